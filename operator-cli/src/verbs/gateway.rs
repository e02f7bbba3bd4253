//! `viworks gateway`: who the gateways are and whether they answer.

use viworks_api::GatewayStatus;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

use crate::client::Client;
use crate::failure::Failure;
use crate::flags::Gateway;
use crate::output::{self, Format};
use crate::verbs::prompt;
use crate::views;

pub(super) async fn execute(
    client: &Client,
    verb: Gateway,
    format: Format,
) -> Result<ExitCode, Failure> {
    match verb {
        Gateway::Ls { status } => {
            let mut gateways = client.gateways().await?;
            gateways
                .items
                .retain(|gateway| status.is_none_or(|status| gateway.status == status));
            views::gateway::list(&gateways, format, SystemClock.wall())?;
        }
        Gateway::Show { gateway } => show(client, &gateway, format).await?,
        Gateway::Forks { gateway } => {
            let forks = client.forks(&gateway).await?;
            views::forks::list(&forks, format, SystemClock.wall())?;
        }
        Gateway::Orphans { gateway } => {
            let orphans = client.orphans(&gateway).await?;
            views::orphans::list(&orphans, format, SystemClock.wall())?;
        }
        Gateway::Certificates { gateway } => {
            let certificates = client.certificates(&gateway).await?;
            views::certificates::list(&certificates, format, SystemClock.wall())?;
        }
        Gateway::Revoke {
            gateway,
            certificate: Some(certificate),
            reason,
            yes,
        } => {
            if !yes {
                let question = views::certificates::farewell(&gateway, &certificate.to_string());
                prompt::ask(&question, "--yes", "nothing was changed")?;
            }
            let revoked = client
                .revoke_certificate(&gateway, &certificate, &reason)
                .await?;
            views::certificates::revoked(&revoked, format, SystemClock.wall())?;
        }
        Gateway::Revoke {
            gateway,
            certificate: None,
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
