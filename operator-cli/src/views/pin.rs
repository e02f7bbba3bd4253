//! Pins: the keys of the server, who trusts them, and what became of a step.

use viworks_api::{Pin, PinChanged, PinGateway, PinState, PinStatus};
use viworks_common::human;
use viworks_common::pin::SpkiPin;
use viworks_common::time::Timestamp;

use crate::failure::Failure;
use crate::output::{self, Format, one_line};

/// Gateways that one line names.
const NAMED_MAX: usize = 5;

/// Prints a row for each.
pub fn list(status: &PinStatus, format: Format, now: Timestamp) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(status);
    }
    table(status, now)?;
    output::note(&standing(status));
    Ok(())
}

fn table(status: &PinStatus, now: Timestamp) -> Result<(), Failure> {
    output::table(
        ["PIN", "STATE", "SHOWN", "IN SETS", "CONFIRMED BY", "SINCE"],
        status.pins.iter().map(|pin| {
            [
                one_line(&pin.pin),
                pin.state.name().to_owned(),
                shown(pin).to_owned(),
                sets(pin),
                confirmed(pin, status),
                pin.since
                    .map_or_else(|| "–".to_owned(), |at| human::relative(at, now)),
            ]
        }),
    )
}

/// Prints the same, and which gateways would be cut off by what.
pub fn status(status: &PinStatus, format: Format, now: Timestamp) -> Result<(), Failure> {
    list(status, format, now)?;
    if format == Format::Json {
        return Ok(());
    }
    for line in advice(status, now) {
        output::line(&line)?;
    }
    Ok(())
}

const fn shown(pin: &Pin) -> &'static str {
    if pin.shown { "yes" } else { "no" }
}

/// The versions of the sets that have a key.
fn sets(pin: &Pin) -> String {
    match pin.retired_in {
        Some(out) if out.saturating_sub(1) <= pin.staged_in => pin.staged_in.to_string(),
        Some(out) => format!("{}–{}", pin.staged_in, out.saturating_sub(1)),
        None => format!("{}–", pin.staged_in),
    }
}

fn confirmed(pin: &Pin, status: &PinStatus) -> String {
    match pin.state {
        PinState::Retired => "–".to_owned(),
        PinState::Staged | PinState::Promoted => format!(
            "{} of {}",
            human::count(pin.confirmed_by),
            human::count(status.gateways)
        ),
    }
}

fn standing(status: &PinStatus) -> String {
    let gateways = human::counted_all(status.gateways, "gateway", "gateways");
    format!("version {} of the pin set, {gateways}", status.version)
}

/// What can be done next with each key, and what that would do.
fn advice(status: &PinStatus, now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    for pin in &status.pins {
        let key = one_line(&pin.pin);
        match pin.state {
            PinState::Staged if pin.cut_off.is_empty() => {
                lines.push(format!("viworks pin promote {key}   cuts nobody off"));
            }
            PinState::Staged => {
                let missing = status.gateways.saturating_sub(pin.confirmed_by);
                let named = named(&pin.cut_off, missing, now);
                lines.push(format!(
                    "viworks pin promote {key} --force --reason TEXT   would cut off {named}"
                ));
            }
            PinState::Promoted if pin.shown => {}
            PinState::Promoted if is_followed(pin, status) => {
                lines.push(format!(
                    "viworks pin retire {key}   no backend shows it any more"
                ));
            }
            PinState::Promoted => {
                lines.push(format!(
                    "put the certificate and the key of {key} in place, and send SIGHUP to each backend   no backend \
                     shows it yet; where it is not to be shown after all: viworks pin retire {key}"
                ));
            }
            PinState::Retired => {}
        }
    }
    lines
}

/// Whether a backend shows a key that was promoted after this one: then this is the one of before, and otherwise the
/// next.
fn is_followed(pin: &Pin, status: &PinStatus) -> bool {
    // Of those of the configuration nobody knows since when: they were there first.
    let came = |pin: &Pin| (pin.since, pin.staged_in);
    let mut others = status.pins.iter();
    others.any(|other| other.shown && came(other) > came(pin))
}

/// Keys that somebody staged and what each waits for, with what can be done. One that the configuration names as the
/// next is for the day when it is needed, and waits for nobody.
pub fn waiting(status: &PinStatus, now: Timestamp) -> Vec<(String, String)> {
    let staged = status.pins.iter();
    let staged = staged.filter(|pin| pin.state == PinState::Staged && pin.since.is_some());
    let told = staged.map(|pin| {
        let key = one_line(&pin.pin);
        if pin.cut_off.is_empty() {
            let found = format!("the staged key {key} waits to be promoted: it cuts nobody off");
            return (found, format!("viworks pin promote {key}"));
        }
        let missing = status.gateways.saturating_sub(pin.confirmed_by);
        let named = named(&pin.cut_off, missing, now);
        let found = format!("the staged key {key} waits to be confirmed by {named}");
        let fix = "connect them, or revoke those that are gone; who is missing: viworks pin status";
        (found, fix.to_owned())
    });
    told.collect()
}

/// Some gateways by name, with when they were heard, and how many more there are.
fn named(gateways: &[PinGateway], all: u64, now: Timestamp) -> String {
    let names: Vec<String> = gateways
        .iter()
        .take(NAMED_MAX)
        .map(|gateway| {
            let seen = gateway
                .last_seen
                .map_or_else(|| "never seen".to_owned(), |at| human::relative(at, now));
            let seen = if gateway.online { "online" } else { &seen };
            format!("{} ({seen})", gateway.name)
        })
        .collect();
    let more = all.saturating_sub(u64::try_from(names.len()).unwrap_or(u64::MAX));
    if more == 0 {
        names.join(", ")
    } else {
        let more = human::counted_all(more, "other", "others");
        format!("{} and {more}", names.join(", "))
    }
}

fn find<'s>(pin: &SpkiPin, changed: &'s PinChanged) -> Option<&'s Pin> {
    let pin = pin.to_string();
    let mut all = changed.status.pins.iter();
    all.find(|known| known.pin == pin)
}

/// Says that gateways are told of a key.
pub fn staged(pin: &SpkiPin, changed: &PinChanged, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(changed);
    }
    let version = find(pin, changed).map_or(changed.status.version, |found| found.staged_in);
    let was = if changed.already {
        "was in the pin set already, since"
    } else {
        "is staged in"
    };
    output::line(&format!("{pin} {was} version {version}"))?;
    output::note("connected gateways are told now, and others when they connect");
    output::note("who has confirmed it: viworks pin status");
    Ok(())
}

/// Says that a key may be shown, and what puts it there.
pub fn promoted(pin: &SpkiPin, changed: &PinChanged, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(changed);
    }
    let was = if changed.already { "was" } else { "is" };
    output::line(&format!("{pin} {was} promoted: the server may show it"))?;
    if find(pin, changed).is_none_or(|found| !found.shown) {
        output::note(
            "put its certificate and key where certificate_file and key_file of [agents] point, and send SIGHUP to each \
             backend",
        );
    }
    Ok(())
}

/// Says that no gateway is to trust a key any more.
pub fn retired(pin: &SpkiPin, changed: &PinChanged, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(changed);
    }
    let was = if changed.already { "was" } else { "is" };
    output::line(&format!("{pin} {was} retired"))?;
    output::note("each gateway gives it up with the first session that it opens with the new set");
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn status(staged: &Value) -> PinStatus {
        let key = |name: &str, more: &Value| {
            let mut pin = json!({
                "pin": name, "state": "promoted", "shown": true, "staged_in": 1, "retired_in": null, "since": null,
                "confirmed_by": 3, "cut_off": [],
            });
            for (field, value) in more.as_object().unwrap() {
                pin[field] = value.clone();
            }
            pin
        };
        let status = json!({
            "kind": "PinStatus", "version": 2, "gateways": 3,
            "pins": [key("sha256/a", &json!({})), key("sha256/b", staged)],
        });
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn whoever_would_be_cut_off_is_named_with_when_it_was_heard() {
        let now = Timestamp::parse("2026-01-02T02:00:00Z").unwrap();
        let missing = json!([
            {"id": "00000000-0000-4000-8000-000000000001", "name": "gw-1", "pin_set_version": 1, "online": false,
             "last_seen": null},
            {"id": "00000000-0000-4000-8000-000000000002", "name": "gw-2", "pin_set_version": 1, "online": true,
             "last_seen": "2026-01-02T01:59:00Z"},
        ]);
        let since = "2026-01-01T02:00:00Z";
        let staged = json!({"state": "staged", "shown": false, "staged_in": 2, "since": since, "confirmed_by": 0,
                            "cut_off": missing});
        let lines = advice(&status(&staged), now);
        assert_eq!(
            lines,
            [
                "viworks pin promote sha256/b --force --reason TEXT   would cut off gw-1 (never seen), gw-2 (online) and 1 other"
            ]
        );
        let waits = waiting(&status(&staged), now);
        assert_eq!(waits.len(), 1, "{waits:?}");
        assert_eq!(
            waits[0].0,
            "the staged key sha256/b waits to be confirmed by gw-1 (never seen), gw-2 (online) and 1 other"
        );
        let confirmed = json!({"state": "staged", "shown": false, "staged_in": 2, "since": since});
        let waits = waiting(&status(&confirmed), now);
        assert_eq!(waits[0].1, "viworks pin promote sha256/b");
        assert!(waiting(&status(&json!({})), now).is_empty());
        let configured = json!({"state": "staged", "shown": false, "cut_off": missing});
        assert!(waiting(&status(&configured), now).is_empty());
        let lines = advice(&status(&confirmed), now);
        assert_eq!(lines, ["viworks pin promote sha256/b   cuts nobody off"]);
        assert!(advice(&status(&json!({})), now).is_empty());
    }

    #[test]
    fn a_key_that_was_just_promoted_is_put_in_place_and_the_one_before_retired() {
        let now = Timestamp::parse("2026-01-02T02:00:00Z").unwrap();
        let since = "2026-01-01T02:00:00Z";
        let promoted = status(&json!({"shown": false, "staged_in": 2, "since": since}));
        let lines = advice(&promoted, now);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].starts_with("put the certificate and the key of sha256/b in place"),
            "{lines:?}"
        );
        // Its certificate is in place: what is left is the key before it.
        let mut followed = promoted;
        followed.pins[0].shown = false;
        followed.pins[1].shown = true;
        let lines = advice(&followed, now);
        assert_eq!(
            lines,
            ["viworks pin retire sha256/a   no backend shows it any more"]
        );
    }

    #[test]
    fn a_key_has_the_versions_of_its_sets() {
        let of = |more: &Value| sets(&status(more).pins[1]);
        assert_eq!(of(&json!({"staged_in": 2})), "2–");
        assert_eq!(of(&json!({"staged_in": 2, "retired_in": 5})), "2–4");
        assert_eq!(of(&json!({"staged_in": 2, "retired_in": 3})), "2");
    }
}
