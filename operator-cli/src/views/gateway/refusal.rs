//! When a gateway was last refused a session, and a certificate at the door: why, and what to do.

use viworks_api::{Gateway, GatewayRefusal};
use viworks_common::human;
use viworks_common::time::Timestamp;

use crate::program;

/// What is told of either.
pub(super) fn rows(gateway: &Gateway, now: Timestamp) -> Vec<(&'static str, String)> {
    let mut rows = of_session(gateway, now);
    if let Some(last) = &gateway.last_refusal_at_door {
        rows.extend(told("at the door", "last refused", last, now));
    }
    rows
}

/// The last refusal of a session; or that not everything was looked through.
fn of_session(gateway: &Gateway, now: Timestamp) -> Vec<(&'static str, String)> {
    if let Some(last) = &gateway.last_refusal {
        return told("refused", "last", last, now);
    }
    let among = gateway.no_refusal_among.map(|records| {
        let records = human::counted_all(records, "record", "records");
        let (program, name) = (program::name(), &gateway.name);
        format!(
            "not among the latest {records} of the audit trail; {program} audit ls -g {name} --outcome refused \
             looks through older ones"
        )
    });
    among.map(|told| ("refused", told)).into_iter().collect()
}

fn told(
    row: &'static str,
    word: &str,
    last: &GatewayRefusal,
    now: Timestamp,
) -> Vec<(&'static str, String)> {
    let mut when = format!("{word} {}", human::relative_and_exact(last.at, now));
    if let Some(address) = &last.peer_address {
        when = format!("{when}, from {address}");
    }
    vec![
        (row, when),
        ("because", format!("{} ({})", last.cause, last.why)),
        ("what to do", last.fix.clone()),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn gateway(more: &Value) -> Gateway {
        let mut gateway = json!({
            "kind": "Gateway", "id": "00000000-0000-4000-8000-000000000001", "name": "gw-1", "status": "offline",
            "created_at": "2026-01-01T00:00:00Z", "since": "2026-01-02T00:00:00Z", "labels": [],
            "queued_commands": 0, "forks": 0,
        });
        for (key, value) in more.as_object().unwrap() {
            gateway[key] = value.clone();
        }
        serde_json::from_value(gateway).unwrap()
    }

    #[test]
    fn the_last_refusal_is_shown_with_its_cause_and_its_fix() {
        let now = Timestamp::parse("2026-01-02T02:00:00Z").unwrap();
        assert!(rows(&gateway(&json!({})), now).is_empty());
        let last = json!({"last_refusal": {
            "at": "2026-01-02T01:00:00Z", "why": "fork", "cause": "another machine has a copy",
            "fix": "decide who keeps it", "peer_address": "192.0.2.7:4000",
        }});
        let rows = rows(&gateway(&last), now);
        let at = Timestamp::parse("2026-01-02T01:00:00Z").unwrap();
        let when = human::relative_and_exact(at, now);
        assert_eq!(
            rows[0],
            ("refused", format!("last {when}, from 192.0.2.7:4000"))
        );
        assert_eq!(rows[1].1, "another machine has a copy (fork)");
        assert_eq!(rows[2], ("what to do", "decide who keeps it".to_owned()));
    }

    #[test]
    fn that_older_records_were_not_looked_through_is_said() {
        let now = Timestamp::parse("2026-01-02T02:00:00Z").unwrap();
        let rows = rows(&gateway(&json!({"no_refusal_among": 50_000})), now);
        assert_eq!(rows.len(), 1);
        let told = rows[0].1.contains("not among the latest 50,000 records");
        assert!(told && rows[0].0 == "refused", "{rows:?}");
    }

    #[test]
    fn the_last_refusal_at_the_door_is_shown_beside_that_of_a_session() {
        let now = Timestamp::parse("2026-01-02T02:00:00Z").unwrap();
        let refused = |why: &str| {
            json!({
                "at": "2026-01-02T01:00:00Z", "why": why, "cause": "it was revoked", "fix": "let it in again",
                "peer_address": "192.0.2.7",
            })
        };
        let only = json!({"last_refusal_at_door": refused("certificate_revoked")});
        let rows_of = |more: &Value| rows(&gateway(more), now);
        let told = rows_of(&only);
        let named: Vec<_> = told.iter().map(|(name, _told)| *name).collect();
        assert_eq!(named, ["at the door", "because", "what to do"]);
        assert!(told[0].1.starts_with("last refused 1 h"), "{told:?}");
        assert!(told[0].1.ends_with(", from 192.0.2.7"), "{told:?}");
        assert_eq!(told[1].1, "it was revoked (certificate_revoked)");
        let both = json!({
            "last_refusal": refused("fork"), "last_refusal_at_door": refused("certificate_revoked"),
        });
        assert_eq!(rows_of(&both).len(), 6);
    }
}
