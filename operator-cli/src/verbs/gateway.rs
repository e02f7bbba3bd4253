//! `viworks gateway`: who the gateways are and whether they answer.

use viworks_api::{GatewayStatus, ResolveForkRequest};
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

use crate::client::Client;
use crate::failure::Failure;
use crate::flags::Gateway;
use crate::output::{self, Format};
use crate::verbs::prompt;
use crate::views;
use crate::views::expiry;

pub(super) async fn execute(
    client: &Client,
    verb: Gateway,
    format: Format,
) -> Result<ExitCode, Failure> {
    match verb {
        Gateway::Ls {
            status,
            expires_within,
        } => {
            let mut gateways = client.gateways().await?;
            let now = SystemClock.wall();
            gateways.items.retain(|gateway| {
                status.is_none_or(|status| gateway.status == status)
                    && expires_within.is_none_or(|time| expiry::ends_within(gateway, time, now))
            });
            views::gateway::list(&gateways, format, now)?;
        }
        Gateway::Expiring { within } => {
            let mut gateways = client.gateways().await?;
            let now = SystemClock.wall();
            gateways
                .items
                .retain(|gateway| expiry::reason(gateway, within, now).is_some());
            views::expiry::list(&gateways, within, format, now)?;
        }
        Gateway::Show { gateway } => show(client, &gateway, format).await?,
        Gateway::Forks { gateway } => {
            let forks = client.forks(&gateway).await?;
            views::forks::list(&forks, &gateway, format, SystemClock.wall())?;
        }
        Gateway::Resolve {
            gateway,
            keep,
            replace,
        } => {
            let decision = ResolveForkRequest { keep, replace };
            let resolved = client.resolve_fork(&gateway, &decision).await?;
            views::forks::resolved(&resolved, replace, format)?;
        }
        Gateway::Orphans { gateway } => {
            let orphans = client.orphans(&gateway).await?;
            views::orphans::list(&orphans, format, SystemClock.wall())?;
        }
        Gateway::Revoke {
            gateway,
            reason,
            yes,
        } => {
            let gateway = if yes {
                gateway
            } else {
                meant(client, &gateway).await?
            };
            let revoked = client.revoke_gateway(&gateway, &reason).await?;
            views::gateway::revoked(&revoked, format, SystemClock.wall())?;
        }
    }
    Ok(ExitCode::Ok)
}

/// The id of a gateway that somebody wants to be rid of, once they have said so: its name may mean another one a moment
/// later.
async fn meant(client: &Client, reference: &str) -> Result<String, Failure> {
    let found = client.gateway(reference).await?;
    if found.status != GatewayStatus::Revoked {
        let question = views::gateway::farewell(&found);
        prompt::ask(&question, "--yes", "nothing was changed")?;
    }
    Ok(found.id.to_string())
}

/// A person is shown the latest fork as well: whoever has one looks for it.
async fn show(client: &Client, reference: &str, format: Format) -> Result<(), Failure> {
    let gateway = client.gateway(reference).await?;
    views::gateway::show(&gateway, format, SystemClock.wall())?;
    if gateway.forks == 0 || format == Format::Json {
        return Ok(());
    }
    let forks = client.forks(&gateway.id.to_string()).await?.items;
    if let Some(latest) = forks.first() {
        output::line("")?;
        views::forks::side_by_side(latest, SystemClock.wall())?;
    }
    if forks.len() > 1 {
        output::note(&format!(
            "{} more: viworks gateway forks {}",
            forks.len() - 1,
            gateway.name
        ));
    }
    Ok(())
}
