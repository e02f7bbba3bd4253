//! The checks of what keeps gateways and server known to each other for years.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use viworks_api::{Gateway, GatewayStatus, Pin, PinState, PinStatus};
use viworks_common::certificate::{Life, life};
use viworks_common::human;
use viworks_common::pin::SpkiPin;
use viworks_common::time::Timestamp;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

use super::agent::Agent;
use super::causes::{LOGS, not_upgraded, unanswered};
use super::papers::Papers;
use super::report::Finding;
use super::wire::{self, Opened, Refused};
use crate::client::Client;

/// How long connected gateways may take to confirm a key that was staged just now.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(5);
/// Between two looks at the keys.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a session of a gateway that is revoked may go on.
const CUT_MAX: Duration = Duration::from_secs(1);
/// When it is not waited for any longer.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(5);
/// Between two looks at a session that is to end.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// The close code of a gateway that is revoked.
const REVOKED: u16 = 4_403;
/// What to do where a revocation does not keep a machine out.
const UNSAFE: &str = "this backend is not safe to use: report it";
/// Names that one line has.
const NAMED_MAX: usize = 5;

/// Whoever is connected has had the time to renew its certificate, and did.
pub(super) async fn renewal(client: &Client) -> Finding {
    match client.gateways().await {
        Ok(list) => renewed(&list.items, SystemClock.wall()),
        Err(failure) => unanswered("not listed", failure),
    }
}

fn renewed(gateways: &[Gateway], now: Timestamp) -> Finding {
    let valid = gateways.iter();
    let valid = valid.filter(|gateway| gateway.status != GatewayStatus::Revoked);
    let online = valid.clone();
    let online = online.filter(|gateway| gateway.status == GatewayStatus::Online);
    let overdue = |gateway: &&Gateway| is_overdue(gateway, now);
    let late: Vec<String> = online
        .clone()
        .filter(overdue)
        .map(|gateway| gateway.name.to_string())
        .collect();
    let away = valid.filter(overdue).count() - late.len();
    if !late.is_empty() {
        return Finding::fail(
            format!("{} of {} overdue", late.len(), online.count()),
            format!(
                "connected, and their certificates end soon or have ended: {}",
                named(&late)
            ),
            "viworks gateway expiring says why each is not renewed; on its machine: viworks-gateway-agent doctor",
        );
    }
    Finding::Pass(format!(
        "0 of {} overdue, {} away with one that ends soon",
        human::counted(online.count(), "connected gateway", "connected gateways"),
        human::count(u64::try_from(away).unwrap_or(u64::MAX))
    ))
}

/// Whether a certificate should have been renewed by now: a gateway asks from two thirds of its life on.
fn is_overdue(gateway: &Gateway, now: Timestamp) -> bool {
    let dates = gateway.certificate_since.zip(gateway.certificate_not_after);
    dates.is_some_and(|(since, until)| match life(since, until, now) {
        Life::EndsSoon { .. } | Life::Ended => true,
        Life::Good | Life::NotYet => false,
    })
}

/// What the server shows may be shown, and nobody who is connected would be cut off by what is to be shown next.
pub(super) async fn pins(client: &Client, papers: &Papers) -> Finding {
    let begun = Instant::now();
    let status = loop {
        let status = match client.pins().await {
            Ok(status) => status,
            Err(failure) if failure.exit == ExitCode::Forbidden => {
                return Finding::Skipped("this key may not ask for them (pins:read)".to_owned());
            }
            Err(failure) => return unanswered("not listed", failure),
        };
        let Some(unconfirmed) = unconfirmed(&status) else {
            break status;
        };
        if begun.elapsed() >= CONFIRMED_WITHIN {
            return unconfirmed;
        }
        sleep(PAUSE).await;
    };
    match wire::upgrade(papers).await {
        Ok(upgraded) => known(&status, upgraded.pin),
        Err(refused) => not_upgraded(&refused),
    }
}

/// A staged key that gateways have not confirmed although they are connected.
fn unconfirmed(status: &PinStatus) -> Option<Finding> {
    let mut staged = status.pins.iter();
    staged.find_map(|pin| {
        let late: Vec<String> = pin
            .cut_off
            .iter()
            .filter(|gateway| pin.state == PinState::Staged && gateway.online)
            .map(|gateway| gateway.name.to_string())
            .collect();
        if late.is_empty() {
            return None;
        }
        let count = human::counted(late.len(), "connected gateway", "connected gateways");
        let of = unnamed(status, pin).map_or_else(String::new, |(missing, first)| {
            format!(", of the first {first} that were looked at; {missing} not confirmed it")
        });
        Some(Finding::fail(
            format!("not confirmed by {count}{of}"),
            format!(
                "the staged key {} was sent and is not confirmed: {}",
                pin.pin,
                named(&late)
            ),
            "viworks pin status says who is missing; on its machine: viworks-gateway-agent doctor",
        ))
    })
}

/// Of a staged key that more gateways have not confirmed than are named: how many have not, and how many are named.
fn unnamed(status: &PinStatus, pin: &Pin) -> Option<(String, String)> {
    let missing = status.gateways.saturating_sub(pin.confirmed_by);
    let named = u64::try_from(pin.cut_off.len()).unwrap_or(u64::MAX);
    // Only of a staged key any are named.
    (pin.state == PinState::Staged && named > 0 && missing > named).then(|| {
        (
            human::counted_all(missing, "gateway has", "gateways have"),
            human::count(named),
        )
    })
}

/// What nobody has looked at: gateways that have not confirmed a staged key and are not named.
fn unseen(status: &PinStatus) -> String {
    let staged = status.pins.iter();
    let mut told = staged.filter_map(|pin| {
        let (missing, first) = unnamed(status, pin)?;
        Some(format!(
            "; {missing} not confirmed {}, only the first {first} were looked at",
            pin.pin
        ))
    });
    told.next().unwrap_or_default()
}

fn known(status: &PinStatus, shown: Option<SpkiPin>) -> Finding {
    let shown = shown.map_or_else(String::new, |shown| shown.to_string());
    let of = |state: PinState| status.pins.iter().filter(move |pin| pin.state == state);
    if !status.pins.iter().any(|pin| pin.pin == shown) {
        return Finding::fail(
            format!("key {shown}"),
            "the server shows a key that is none of those that viworks pin ls lists",
            "put the certificate of a promoted key back, or stage this one, and promote it once it is confirmed",
        );
    }
    // What this connection was shown, and what any other backend shows.
    let mut seen = status.pins.iter();
    let wrong = seen.find(|pin| {
        let is_shown = pin.shown || pin.pin == shown;
        is_shown && pin.state != PinState::Promoted
    });
    if let Some(Pin { pin, state, .. }) = wrong {
        let state = state.name();
        return Finding::fail(
            format!("{state} key shown"),
            format!("a server shows {pin}, which is {state}: whoever does not trust it is cut off"),
            "put the certificate of a promoted key back; viworks pin status says who would be cut off",
        );
    }
    Finding::Pass(format!(
        "version {}, {} promoted, {} staged, promoted key shown{}",
        status.version,
        of(PinState::Promoted).count(),
        of(PinState::Staged).count(),
        unseen(status)
    ))
}

/// A gateway that is thrown out is cut off at once, and stays out.
pub(super) async fn revocation(
    client: &Client,
    papers: &Papers,
    reference: &str,
    agent: &mut Agent,
) -> Finding {
    if !agent.is_connected().await {
        let fix = "mend what the other checks found first";
        return Finding::fail("not tried", "the gateway is not connected", fix);
    }
    let begun = Instant::now();
    match client
        .revoke_gateway(reference, "production validation")
        .await
    {
        Ok(_revoked) => {}
        Err(failure) if failure.exit == ExitCode::Forbidden => {
            return Finding::Skipped(
                "this key may not revoke a gateway (gateways:write)".to_owned(),
            );
        }
        Err(failure) => return unanswered("not revoked", failure),
    }
    while agent.is_connected().await {
        if begun.elapsed() >= GIVEN_UP_AFTER {
            let measured = format!("not cut within {} s", GIVEN_UP_AFTER.as_secs());
            return Finding::fail(measured, "the revoked gateway keeps its session", UNSAFE);
        }
        sleep(LOOK_PAUSE).await;
    }
    let took = begun.elapsed();
    if let Some(status) = agent.ended() {
        let reason = format!("the agent ended ({status}): {}", agent.last_line());
        return Finding::fail("not seen", reason, LOGS);
    }
    let refused = match wire::hello(papers).await {
        Err(refused @ (Refused::Http(403) | Refused::Certificate(_)))
        | Ok((_, Opened::Refused(refused @ Refused::Closed(REVOKED)))) => refused,
        Ok((_, Opened::Welcomed)) => {
            return Finding::fail("let in", "the revoked gateway was let in again", UNSAFE);
        }
        Err(refused) | Ok((_, Opened::Refused(refused))) => {
            let reason = "it was not let in again, and nobody said that it is revoked";
            return Finding::fail(refused.words(), reason, LOGS);
        }
    };
    match client.gateway(reference).await {
        Ok(gateway) => cut_off(&gateway, took, &refused.words()),
        Err(failure) => unanswered("not known", failure),
    }
}

fn cut_off(gateway: &Gateway, took: Duration, refused: &str) -> Finding {
    let measured = format!("cut after {} ms, then {refused}", took.as_millis());
    if gateway.status != GatewayStatus::Revoked || gateway.session.is_some() {
        let reason = "the list of gateways does not show it as revoked and without a session";
        return Finding::fail(measured, reason, UNSAFE);
    }
    if took < CUT_MAX {
        return Finding::Pass(measured);
    }
    let reason = "it took as long as the limit, or longer";
    let fix = "look at the load of the database, which tells every backend of a revocation";
    Finding::fail(measured, reason, fix)
}

/// Some names, and how many more there are.
fn named(names: &[String]) -> String {
    let first = names.get(..NAMED_MAX).unwrap_or(names).join(", ");
    match names.len().saturating_sub(NAMED_MAX) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn gateway(name: &str, status: &str, until: &str) -> Gateway {
        serde_json::from_value(json!({
            "kind": "Gateway", "id": "00000000-0000-4000-8000-000000000001", "name": name, "status": status,
            "created_at": "2026-01-01T00:00:00Z", "since": "2026-01-02T00:00:00Z", "labels": [],
            "queued_commands": 0, "forks": 0, "certificate_since": "2026-01-01T00:00:00Z",
            "certificate_not_after": until,
        }))
        .unwrap()
    }

    #[test]
    fn a_gateway_that_is_connected_and_has_not_renewed_is_named_and_one_that_is_away_is_counted() {
        let now = Timestamp::parse("2026-03-01T00:00:00Z").unwrap();
        let (soon, late) = ("2026-03-08T00:00:00Z", "2026-12-31T00:00:00Z");
        let sound = [
            gateway("gw-1", "online", late),
            gateway("gw-2", "offline", soon),
            gateway("gw-3", "revoked", soon),
        ];
        let passed = "0 of 1 connected gateway overdue, 1 away with one that ends soon";
        assert_eq!(renewed(&sound, now), Finding::Pass(passed.to_owned()));
        let overdue = gateway("gw-4", "online", soon);
        let [first, second, third] = sound;
        match renewed(&[first, second, third, overdue], now) {
            Finding::Fail {
                measured, reason, ..
            } => {
                assert_eq!(measured, "1 of 2 overdue");
                assert!(reason.ends_with(": gw-4"), "{reason}");
            }
            other @ (Finding::Pass(_) | Finding::Skipped(_)) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_revocation_is_in_time_and_shown() {
        let cut = |status, ms| {
            let gateway = gateway("gw-1", status, "2026-12-31T00:00:00Z");
            cut_off(&gateway, Duration::from_millis(ms), "refused with HTTP 403")
        };
        let passed = "cut after 999 ms, then refused with HTTP 403";
        assert_eq!(cut("revoked", 999), Finding::Pass(passed.to_owned()));
        for (status, ms) in [("revoked", 1_000), ("offline", 10)] {
            let found = cut(status, ms);
            assert!(matches!(found, Finding::Fail { .. }), "{found:?}");
        }
    }

    fn key(pin: &str, state: &str, shown: bool, cut_off: &Value) -> Value {
        json!({
            "pin": pin, "state": state, "shown": shown, "staged_in": 1, "retired_in": null, "since": null,
            "confirmed_by": 0, "cut_off": cut_off,
        })
    }

    fn status(pins: &[Value]) -> PinStatus {
        let status = json!({"kind": "PinStatus", "version": 2, "gateways": 3, "pins": pins});
        serde_json::from_value(status).unwrap()
    }

    fn missing(online: bool) -> Value {
        json!([{
            "id": "00000000-0000-4000-8000-000000000001", "name": "gw-1", "pin_set_version": 1, "online": online,
            "last_seen": null,
        }])
    }

    #[test]
    fn a_staged_key_may_wait_for_whoever_is_away_and_for_nobody_who_is_connected() {
        let of = |online| unconfirmed(&status(&[key("b", "staged", false, &missing(online))]));
        assert_eq!(of(false), None);
        let found = of(true).unwrap();
        assert!(
            matches!(&found, Finding::Fail { reason, .. } if reason.ends_with(": gw-1")),
            "{found:?}"
        );
    }

    #[test]
    fn of_more_gateways_than_are_named_it_is_told_how_many_there_are() {
        let ours = SpkiPin::from_digest([1; 32]);
        let promoted = key(&ours.to_string(), "promoted", true, &json!([]));
        let of = |online: bool, gateways: u64| {
            let staged = key("b", "staged", false, &missing(online));
            let mut status = status(&[promoted.clone(), staged]);
            status.gateways = gateways;
            unconfirmed(&status).unwrap_or_else(|| known(&status, Some(ours)))
        };
        let Finding::Pass(all) = of(false, 1) else {
            panic!("whoever is away may wait");
        };
        assert!(all.ends_with("promoted key shown"), "{all}");
        let Finding::Pass(few) = of(false, 1_234) else {
            panic!("whoever is away may wait");
        };
        let told = "; 1,234 gateways have not confirmed b, only the first 1 were looked at";
        assert!(few.ends_with(told), "{few}");
        let Finding::Fail { measured, .. } = of(true, 1_234) else {
            panic!("whoever is connected may not wait");
        };
        let told = "not confirmed by 1 connected gateway, of the first 1 that were looked at; 1,234 gateways have not confirmed it";
        assert_eq!(measured, told);
    }

    #[test]
    fn only_a_promoted_key_may_be_shown_by_any_server() {
        let ours = SpkiPin::from_digest([1; 32]);
        let (own, nobody) = (ours.to_string(), json!([]));
        let promoted = key(&own, "promoted", true, &nobody);
        let of = |pins: &[Value]| known(&status(pins), Some(ours));
        let sound = of(&[promoted.clone(), key("b", "staged", false, &nobody)]);
        let passed = "version 2, 1 promoted, 1 staged, promoted key shown";
        assert_eq!(sound, Finding::Pass(passed.to_owned()));
        for pins in [
            vec![],
            vec![key("b", "promoted", true, &nobody)],
            vec![key(&own, "staged", false, &nobody)],
            vec![key(&own, "retired", true, &nobody)],
            vec![promoted, key("b", "staged", true, &nobody)],
        ] {
            let found = of(&pins);
            assert!(matches!(found, Finding::Fail { .. }), "{pins:?}: {found:?}");
        }
    }
}
