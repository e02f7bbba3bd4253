//! The keys that gateways share with the backend: what becomes of each, and how many are how far.

use std::collections::BTreeMap;

use serde_json::json;
use viworks_api::{Gateway, GatewayKey, GatewayStatus};
use viworks_common::human;
use viworks_common::rotation::LAST_GENERATION;

use crate::failure::Failure;
use crate::output::{self, Format};

/// What becomes of a gateway's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// It is connected, and takes the key over its session.
    Now,
    /// It takes the key over its next session.
    NextSession,
    /// It was not connected since this backend knows who takes one.
    Unknown,
    /// Its agent is of an earlier version.
    Cannot,
    /// There is no later one.
    Last,
    /// It is thrown out.
    Revoked,
}

impl Fate {
    const fn word(self) -> &'static str {
        match self {
            Self::Now => "now",
            Self::NextSession => "next_session",
            Self::Unknown => "unknown",
            Self::Cannot => "cannot",
            Self::Last => "last",
            Self::Revoked => "revoked",
        }
    }

    const fn sentence(self) -> &'static str {
        match self {
            Self::Now => "over its session",
            Self::NextSession => "when it connects",
            Self::Unknown => {
                "when it connects, if its agent takes one: it was not connected since that is known"
            }
            Self::Cannot => "not before its agent is updated: it takes no key over a session",
            Self::Last => "never: it has the last one; give it a new identity",
            Self::Revoked => "never: it is revoked",
        }
    }
}

/// Whether there is no later key for it.
pub fn is_last(gateway: &Gateway) -> bool {
    let key = gateway.key.as_ref();
    key.is_some_and(|key| key.wanted.is_none() && key.generation >= u32::from(LAST_GENERATION))
}

fn fate(gateway: &Gateway) -> Fate {
    if gateway.status == GatewayStatus::Revoked {
        return Fate::Revoked;
    }
    if is_last(gateway) {
        return Fate::Last;
    }
    match gateway.key.as_ref().and_then(|key| key.takes_later) {
        None => Fate::Unknown,
        Some(false) => Fate::Cannot,
        Some(true) if gateway.session.is_some() => Fate::Now,
        Some(true) => Fate::NextSession,
    }
}

fn generations(key: Option<&GatewayKey>) -> (String, String) {
    let unknown = || "–".to_owned();
    let in_use = key.map_or_else(unknown, |key| key.generation.to_string());
    let wanted = key.and_then(|key| key.wanted);
    (
        in_use,
        wanted.map_or_else(unknown, |wanted| wanted.to_string()),
    )
}

fn row(gateway: &Gateway) -> [String; 4] {
    let (in_use, wanted) = generations(gateway.key.as_ref());
    let fate = fate(gateway).sentence().to_owned();
    [gateway.name.to_string(), in_use, wanted, fate]
}

fn document(gateway: &Gateway) -> serde_json::Value {
    json!({
        "id": gateway.id, "name": gateway.name, "key": gateway.key, "gets_it": fate(gateway).word(),
    })
}

/// Prints what becomes of each, or what would.
pub fn rotated(gateways: &[Gateway], dry_run: bool, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        let gateways: Vec<_> = gateways.iter().map(document).collect();
        return output::json(&json!({ "dry_run": dry_run, "gateways": gateways }));
    }
    output::table(
        ["NAME", "IN USE", "WANTED", "GETS THE KEY"],
        gateways.iter().map(row),
    )?;
    let how_many = human::counted(gateways.len(), "gateway", "gateways");
    output::note(&if dry_run {
        format!("{how_many}; nothing was changed")
    } else {
        format!("{how_many}; viworks key status says who uses a later key")
    });
    Ok(())
}

/// Prints how many use keys of which generation, and who is still to use a later one.
pub fn status(gateways: &[Gateway], format: Format) -> Result<(), Failure> {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for key in gateways.iter().filter_map(|gateway| gateway.key.as_ref()) {
        *counts.entry(key.generation).or_default() += 1;
    }
    let waits = |gateway: &&Gateway| {
        let key = gateway.key.as_ref();
        key.is_some_and(|key| key.wanted.is_some())
    };
    let waiting: Vec<&Gateway> = gateways.iter().filter(waits).collect();
    if format == Format::Json {
        let generations: Vec<_> = counts
            .iter()
            .map(|(generation, gateways)| json!({ "generation": generation, "gateways": gateways }))
            .collect();
        let waiting: Vec<_> = waiting.into_iter().map(document).collect();
        return output::json(&json!({ "generations": generations, "waiting": waiting }));
    }
    output::table(
        ["GENERATION", "GATEWAYS"],
        counts
            .iter()
            .map(|(generation, gateways)| [generation.to_string(), gateways.to_string()]),
    )?;
    if waiting.is_empty() {
        output::note(
            "no gateway is asked to use a key of a later generation; which of them still have a key of an earlier \
             master key says: viworks-backend-agent pki rotate-master-key --dry-run",
        );
        return Ok(());
    }
    output::line("")?;
    output::table(
        ["NAME", "IN USE", "WANTED", "GETS THE KEY"],
        waiting.iter().map(|gateway| row(gateway)),
    )?;
    output::note(&format!(
        "{} still to use a later key",
        human::counted(waiting.len(), "gateway is", "gateways are")
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

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
    fn each_gateway_is_told_when_it_gets_a_later_key() {
        let key = |generation: u32, takes: Option<bool>| json!({ "generation": generation, "takes_later": takes });
        let session = json!({
            "id": "00000000-0000-4000-8000-000000000002", "epoch": 3, "peer_address": "192.0.2.1:4000",
        });
        for (more, wanted) in [
            // A backend of before.
            (json!({}), Fate::Unknown),
            (json!({ "key": key(1, None) }), Fate::Unknown),
            (json!({ "key": key(1, Some(false)) }), Fate::Cannot),
            (json!({ "key": key(1, Some(true)) }), Fate::NextSession),
            (
                json!({ "key": key(1, Some(true)), "session": session, "status": "online" }),
                Fate::Now,
            ),
            (json!({ "key": key(255, Some(true)) }), Fate::Last),
            (
                json!({ "key": key(1, Some(true)), "status": "revoked" }),
                Fate::Revoked,
            ),
        ] {
            assert_eq!(fate(&gateway(&more)), wanted, "{more}");
        }
    }

    #[test]
    fn a_row_has_both_generations_while_a_later_one_is_wanted() {
        let waits = gateway(&json!({
            "key": { "generation": 1, "wanted": 2, "takes_later": true },
        }));
        assert_eq!(row(&waits), ["gw-1", "1", "2", "when it connects"]);
        let rests = gateway(&json!({ "key": { "generation": 2, "takes_later": false } }));
        let [_, in_use, wanted, _] = row(&rests);
        assert_eq!((in_use.as_str(), wanted.as_str()), ("2", "–"));
    }
}
