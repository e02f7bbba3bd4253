//! `viworks gateway`: who the gateways are and whether they answer.

use std::time::Duration;

use viworks_api::{GatewayStatus, ReplaceRequest, ResolveForkRequest};
use viworks_common::human;
use viworks_common::id::TicketId;
use viworks_common::time::Timestamp;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

use crate::client::{Client, Sought};
use crate::failure::Failure;
use crate::flags::{Gateway, ReplaceGateway};
use crate::output::{self, Format};
use crate::verbs::{prompt, ticket};
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
            let only = only(status, expires_within);
            views::gateway::list(&gateways, &only, format, now)?;
        }
        Gateway::Expiring { within } => {
            let mut gateways = client.gateways().await?;
            let now = SystemClock.wall();
            gateways
                .items
                .retain(|gateway| expiry::reason(gateway, within, now).is_some());
            expiry::list(&gateways, within, format, now)?;
        }
        Gateway::Show { gateway } => show(client, &gateway, format).await?,
        Gateway::Forks { gateway } => forks(client, &gateway, format).await?,
        Gateway::Resolve {
            gateway,
            keep,
            replace,
        } => {
            let decision = ResolveForkRequest { keep, replace };
            let resolved = client.resolve_fork(&gateway, &decision).await?;
            views::forks::resolved(&resolved, replace, format, SystemClock.wall())?;
        }
        Gateway::Orphans { gateway } => {
            let orphans = client.orphans(&gateway).await?;
            views::orphans::list(&orphans, format, SystemClock.wall())?;
        }
        Gateway::Replace(wanted) => replace(client, wanted, format).await?,
        Gateway::Revoke {
            of_ticket: Some(ticket),
            reason,
            yes,
            ..
        } => revoke_of(client, ticket, &reason, yes, format).await?,
        Gateway::Certificates { gateway } => {
            let certificates = client.certificates(&gateway).await?;
            views::certificates::list(&certificates, format, SystemClock.wall())?;
        }
        Gateway::Revoke {
            gateway,
            certificate: Some(certificate),
            reason,
            yes,
            of_ticket: None,
        } => {
            // There is one where there is no ticket.
            let gateway = gateway.unwrap_or_default();
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
            of_ticket: None,
        } => {
            // There is one where there is no ticket.
            let gateway = gateway.unwrap_or_default();
            let gateway = if yes {
                gateway
            } else {
                meant(client, &gateway).await?
            };
            let revoked = client.revoke_gateway(&gateway, &reason).await?;
            views::gateway::farewell::revoked(&revoked, format, SystemClock.wall())?;
        }
    }
    Ok(ExitCode::Ok)
}

/// Of which kind gateways are that were asked for, behind the word for them; nothing where all were.
fn only(status: Option<GatewayStatus>, expires_within: Option<Duration>) -> String {
    let status = status.map(|status| format!("the status {}", status.name()));
    let ends = expires_within.map(|time| {
        let within = human::span(time);
        format!("a certificate that ends within {within}")
    });
    let kinds: Vec<String> = status.into_iter().chain(ends).collect();
    if kinds.is_empty() {
        return String::new();
    }
    format!(" with {}", kinds.join(" and "))
}

/// Makes a ticket by which another machine takes a gateway's place.
async fn replace(client: &Client, wanted: ReplaceGateway, format: Format) -> Result<(), Failure> {
    let ReplaceGateway {
        gateway,
        ttl,
        networks,
        out,
    } = wanted;
    ticket::check_out(out.as_deref())?;
    let request = ReplaceRequest {
        expires_in_ms: ticket::millis(ttl),
        networks: networks.iter().map(ToString::to_string).collect(),
    };
    let asking = client.replace_gateway(&gateway, &request);
    let created = ticket::make(asking, out.as_deref()).await?;
    views::ticket::created(&created, out.as_deref(), format, SystemClock.wall())
}

/// Throws out every gateway that came of a ticket, one after the other: each is a revocation of its own.
async fn revoke_of(
    client: &Client,
    ticket: TicketId,
    reason: &str,
    yes: bool,
    format: Format,
) -> Result<(), Failure> {
    let mut list = client.gateways_of(ticket).await?;
    if list.items.is_empty() {
        // Nothing came of one that there is not, either: whoever mistypes an id must not take that for done.
        client.ticket(ticket).await?;
    }
    list.items
        .retain(|gateway| gateway.status != GatewayStatus::Revoked);
    let now = SystemClock.wall();
    let many = human::counted(list.items.len(), "gateway", "gateways");
    if !yes && !list.items.is_empty() {
        for gateway in &list.items {
            output::note(&format!("  {}  {}", gateway.id, gateway.name));
        }
        let question = views::gateway::farewell::of_ticket(ticket, &list.items);
        prompt::ask(&question, "--yes", "nothing was changed")?;
    }
    let mut revoked = Vec::new();
    for gateway in &list.items {
        match client.revoke_gateway(&gateway.id.to_string(), reason).await {
            Ok(one) => revoked.push(one),
            Err(failure) => {
                let done = format!(
                    "thrown out so far: {} of {many}; run it again, which goes on with the others",
                    revoked.len()
                );
                return Err(failure.with(done));
            }
        }
    }
    views::gateway::farewell::all_revoked(ticket, &revoked, format, now)
}

/// The id of a gateway that somebody wants to be rid of, once they have said so: its name may mean another one a moment
/// later.
async fn meant(client: &Client, reference: &str) -> Result<String, Failure> {
    let found = client.gateway(reference).await?;
    if found.status != GatewayStatus::Revoked {
        let question = views::gateway::farewell::of_gateway(&found);
        prompt::ask(&question, "--yes", "nothing was changed")?;
    }
    Ok(found.id.to_string())
}

/// Before a decision was recorded the clocks of backend and database may have been apart.
const DECISION_SLACK: Duration = Duration::from_secs(3_600);

/// A person is told as well whether there is anything to decide, and who decided, where the key may read that.
async fn forks(client: &Client, reference: &str, format: Format) -> Result<(), Failure> {
    let list = client.forks(reference).await?;
    let mut beside = views::forks::Beside::default();
    if format == Format::Table {
        if views::forks::is_open(&list) {
            let gateway = client.gateway(reference).await?;
            beside.revoked = gateway.status == GatewayStatus::Revoked;
        }
        if let Some(at) = views::forks::decided_at(&list) {
            beside.decided_by = decided_by(client, reference, at).await;
        }
    }
    views::forks::list(&list, reference, &beside, format, SystemClock.wall())
}

/// Who decided last, if that is found; a key may lack `audit:read`.
async fn decided_by(client: &Client, reference: &str, at: Timestamp) -> Option<String> {
    let sought = Sought {
        gateway: Some(reference.to_owned()),
        action: Some("identity.resolve".to_owned()),
        since: Some(at.saturating_sub(DECISION_SLACK)),
        ..Sought::default()
    };
    let found = client.audit(sought, 1).await.ok()?;
    let record = found.items.into_iter().next()?;
    Some(record.actor_name.unwrap_or(record.actor))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_of_a_kind_is_not_none_at_all() {
        let month = Some(Duration::from_secs(30 * 86_400));
        let (revoked, all) = (Some(GatewayStatus::Revoked), String::new());
        assert_eq!(only(None, None), all);
        assert_eq!(only(revoked, None), " with the status revoked");
        assert_eq!(
            only(None, month),
            " with a certificate that ends within 30 days"
        );
        assert_eq!(
            only(revoked, month),
            " with the status revoked and a certificate that ends within 30 days"
        );
    }
}
