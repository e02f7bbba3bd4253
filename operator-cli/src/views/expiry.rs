//! Certificates of gateways that end soon, and why nobody renews them.

use std::time::Duration;

use viworks_api::{Gateway, GatewayList, GatewayStatus};
use viworks_common::certificate::{Life, life};
use viworks_common::human;
use viworks_common::time::Timestamp;

use crate::failure::Failure;
use crate::output::{self, Format};

/// Whether the certificate of a gateway that is not revoked ends within this time, or has ended.
pub fn ends_within(gateway: &Gateway, within: Duration, now: Timestamp) -> bool {
    let until = now.saturating_add(within);
    gateway.status != GatewayStatus::Revoked
        && gateway.certificate_not_after.is_some_and(|at| at <= until)
}

/// Why a certificate that ends within this time is not renewed by itself, where that is so.
pub fn reason(gateway: &Gateway, within: Duration, now: Timestamp) -> Option<&'static str> {
    if !ends_within(gateway, within, now) {
        return None;
    }
    match gateway.status {
        GatewayStatus::Offline => {
            Some("it is away: it renews when it is back, at the door once it has ended")
        }
        GatewayStatus::Blocked => Some("two machines hold its identity: viworks gateway forks"),
        GatewayStatus::Never => Some("it never connected: enrol it anew when it is needed"),
        GatewayStatus::Revoked => None,
        // It is connected, and would have done it by now.
        GatewayStatus::Online => {
            let (since, until) = gateway
                .certificate_since
                .zip(gateway.certificate_not_after)?;
            match life(since, until, now) {
                Life::EndsSoon { .. } | Life::Ended => Some(
                    "it is connected and has not renewed it: its version may not know how, or it is refused; see its log",
                ),
                Life::Good | Life::NotYet => None,
            }
        }
    }
}

/// Why a certificate that should have been renewed by now was not: it ends soon, as `life` judges it, or has ended.
pub fn overdue(gateway: &Gateway, now: Timestamp) -> Option<&'static str> {
    let (since, until) = gateway
        .certificate_since
        .zip(gateway.certificate_not_after)?;
    match life(since, until, now) {
        Life::EndsSoon { .. } | Life::Ended => reason(gateway, until.saturating_since(now), now),
        Life::Good | Life::NotYet => None,
    }
}

/// Prints a row for each.
pub fn list(
    list: &GatewayList,
    within: Duration,
    format: Format,
    now: Timestamp,
) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(list);
    }
    output::table(
        ["NAME", "CERTIFICATE ENDS", "WHY IT IS NOT RENEWED"],
        list.items.iter().map(|gateway| {
            let ends = gateway.certificate_not_after;
            [
                gateway.name.to_string(),
                ends.map_or_else(|| "–".to_owned(), |at| human::relative_and_exact(at, now)),
                reason(gateway, within, now).unwrap_or_default().to_owned(),
            ]
        }),
    )?;
    output::note(&count(list.items.len(), within));
    Ok(())
}

fn count(found: usize, within: Duration) -> String {
    let within = human::span(within);
    if found == 1 {
        return format!("1 certificate that ends within {within} and is not renewed by itself");
    }
    let found = human::counted(found, "certificate", "certificates");
    format!("{found} that end within {within} and are not renewed by themselves")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3_600);

    fn gateway(status: &str, since: &str, until: &str) -> Gateway {
        serde_json::from_value(json!({
            "kind": "Gateway", "id": "00000000-0000-4000-8000-000000000001", "name": "gw-1", "status": status,
            "created_at": "2026-01-01T00:00:00Z", "since": "2026-01-02T00:00:00Z", "labels": [],
            "queued_commands": 0, "forks": 0, "certificate_since": since, "certificate_not_after": until,
        }))
        .unwrap()
    }

    #[test]
    fn who_is_away_is_told_of_in_time_and_who_is_connected_once_it_is_overdue() {
        let now = Timestamp::parse("2026-03-01T00:00:00Z").unwrap();
        let told = |status, until| {
            let gateway = gateway(status, "2026-01-01T00:00:00Z", until);
            reason(&gateway, DAY * 30, now).is_some()
        };
        assert!(told("offline", "2026-03-30T00:00:00Z"));
        assert!(!told("offline", "2026-04-30T00:00:00Z"));
        assert!(told("blocked", "2026-03-30T00:00:00Z"));
        assert!(told("never", "2026-02-01T00:00:00Z"));
        assert!(!told("revoked", "2026-03-30T00:00:00Z"));
        // From a third of its life before the end it renews by itself; in the last quarter it should have.
        assert!(!told("online", "2026-03-30T00:00:00Z"));
        assert!(told("online", "2026-03-08T00:00:00Z"));
    }

    #[test]
    fn one_certificate_ends_and_several_end() {
        assert_eq!(
            [0, 1, 2].map(|found| count(found, DAY * 30)),
            [
                "0 certificates that end within 30 days and are not renewed by themselves",
                "1 certificate that ends within 30 days and is not renewed by itself",
                "2 certificates that end within 30 days and are not renewed by themselves",
            ]
        );
    }

    #[test]
    fn whoever_should_have_renewed_by_now_is_overdue_whether_connected_or_away() {
        let now = Timestamp::parse("2026-03-01T00:00:00Z").unwrap();
        let told = |status, until| {
            let gateway = gateway(status, "2026-01-01T00:00:00Z", until);
            overdue(&gateway, now).is_some()
        };
        for status in ["online", "offline", "blocked", "never"] {
            assert!(told(status, "2026-02-01T00:00:00Z"), "{status}");
            assert!(told(status, "2026-03-08T00:00:00Z"), "{status}");
            assert!(!told(status, "2026-03-30T00:00:00Z"), "{status}");
        }
        assert!(!told("revoked", "2026-02-01T00:00:00Z"));
    }
}
