//! Certificates of gateways that end soon, and why nobody renews them.

use std::time::Duration;

use viworks_api::{Gateway, GatewayList, GatewayStatus};
use viworks_common::certificate::{Life, life};
use viworks_common::human;
use viworks_common::time::Timestamp;

use crate::failure::Failure;
use crate::output::{self, Format};
use crate::program;

/// Whether the certificate of a gateway that is not revoked ends within this time, or has ended.
pub fn ends_within(gateway: &Gateway, within: Duration, now: Timestamp) -> bool {
    let until = now.saturating_add(within);
    gateway.status != GatewayStatus::Revoked
        && gateway.certificate_not_after.is_some_and(|at| at <= until)
}

/// Why a certificate that ends within this time is not renewed by itself, where that is so.
pub fn reason(gateway: &Gateway, within: Duration, now: Timestamp) -> Option<String> {
    if !ends_within(gateway, within, now) {
        return None;
    }
    match gateway.status {
        GatewayStatus::Offline => Some(back(gateway, "it is away", "when it is back", now)),
        GatewayStatus::Blocked => {
            let (program, name) = (program::name(), &gateway.name);
            Some(format!(
                "two machines hold its identity: {program} gateway forks {name}"
            ))
        }
        GatewayStatus::Never => {
            let started = "once its agent is started";
            Some(back(gateway, "it never connected", started, now))
        }
        GatewayStatus::Revoked => None,
        // It is connected, and would have done it by now.
        GatewayStatus::Online => {
            let (since, until) = gateway
                .certificate_since
                .zip(gateway.certificate_not_after)?;
            match life(since, until, now) {
                Life::EndsSoon { .. } | Life::Ended => Some(
                    "it is connected and has not renewed it: its version may not know how, or it is refused; see its log"
                        .to_owned(),
                ),
                Life::Good | Life::NotYet => None,
            }
        }
    }
}

/// How one that is not connected gets another certificate: over a session, or at the door once its own has ended, if
/// there is one.
fn back(gateway: &Gateway, is: &str, when: &str, now: Timestamp) -> String {
    let has_ended = gateway.certificate_not_after.is_some_and(|at| at <= now);
    match (has_ended, gateway.renews_at_door) {
        (false, Some(false)) => format!("{is}: it renews {when}, before its certificate has ended"),
        (false, Some(true) | None) => {
            format!("{is}: it renews {when}, at the door once its certificate has ended")
        }
        (true, Some(true)) => {
            format!(
                "{is}: it gets another one at the door by itself {when}, if its door_url is set"
            )
        }
        (true, Some(false)) => format!(
            "{is}, and this backend has no door at which it would get another one: let a machine take its place when it \
             is needed: {} gateway replace {}",
            program::name(),
            gateway.name
        ),
        // A backend of before does not say whether it has one.
        (true, None) => format!(
            "{is}: it gets another one at the door {when}, if the backend has one and its door_url is set; otherwise: {} \
             gateway replace {}",
            program::name(),
            gateway.name
        ),
    }
}

/// Why a certificate that should have been renewed by now was not: it ends soon, as `life` judges it, or has ended.
pub fn overdue(gateway: &Gateway, now: Timestamp) -> Option<String> {
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
                reason(gateway, within, now).unwrap_or_default(),
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
    fn one_that_comes_back_by_itself_is_not_to_be_enrolled_anew() {
        let now = Timestamp::parse("2026-03-01T00:00:00Z").unwrap();
        let (since, ended) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
        let told = |status, until, door| {
            let mut gateway = gateway(status, since, until);
            gateway.renews_at_door = door;
            reason(&gateway, DAY * 30, now).unwrap()
        };
        for status in ["never", "offline"] {
            let comes = told(status, ended, Some(true));
            assert!(comes.contains("at the door by itself"), "{comes}");
            assert!(!comes.contains("gateway replace"), "{comes}");
            let stays = told(status, ended, Some(false));
            assert!(stays.contains("gateway replace gw-1"), "{stays}");
            let unknown = told(status, ended, None);
            for way in ["door_url", "gateway replace gw-1"] {
                assert!(unknown.contains(way), "{unknown}");
            }
            let renews = told(status, "2026-03-08T00:00:00Z", Some(true));
            assert!(renews.contains("it renews "), "{renews}");
        }
        let blocked = told("blocked", ended, Some(true));
        assert!(blocked.ends_with("gateway forks gw-1"), "{blocked}");
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
