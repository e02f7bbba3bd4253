//! When a gateway was last refused a session, or a certificate at the door, and why: found in the audit log, which is
//! all that keeps it.

use std::time::Duration;

use serde_json::Value;
use viworks_common::id::AgentId;
use viworks_runtime::sqlite::{Row, params};

use super::audit::LOOKED_THROUGH;
use super::row::Reader;
use super::tx::View;
use crate::data::{Actor, LastRefusal, LookedForRefusal, StoreResult};

/// What is recorded of somebody who shows a gateway's certificate and gets no session, and that nobody has caused.
macro_rules! grave {
    () => {
        "'session.open', 'identity.fork', 'gateway.hello_replayed', 'gateway.wrong_agent_key', \
         'gateway.retired_certificate', 'gateway.unregistered_certificate'"
    };
}

/// What is recorded of somebody who gets no certificate at the door.
macro_rules! at_door {
    () => {
        "('certificate.renew_at_door', 'gateway.unproved_renewal')"
    };
}

/// The same where it follows from what an operator did.
macro_rules! expected {
    () => {
        "'gateway.revoked_certificate', 'gateway.replaced_certificate'"
    };
}

macro_rules! actions {
    () => {
        concat!("(", grave!(), ", ", expected!(), ")")
    };
}

/// What is expected, each by itself.
const EXPECTED: [&str; 2] = [
    "gateway.revoked_certificate",
    "gateway.replaced_certificate",
];

/// What anybody can cause at the door who knows the gateway's id.
const UNPROVED: &str = "gateway.unproved_renewal";

/// What an operator does about a gateway as a whole.
const SETTLES: [&str; 2] = ["gateway.revoke", "gateway.replace"];

/// For how long one that is expected does not hide a graver one: whoever was revoked or replaced goes on knocking.
const STANDS: Duration = Duration::from_secs(3_600);

macro_rules! ever {
    ($($actions:tt)+) => {
        concat!(
            "SELECT kind FROM gateway_budgets WHERE tenant = :tenant AND agent_id = :agent_id AND substr(kind, 6) IN ",
            $($actions)+,
            " LIMIT 1"
        )
    };
}

macro_rules! last {
    ($($actions:tt)+) => {
        concat!(
            "\
SELECT at, action, detail FROM audit_log
WHERE tenant = :tenant
  AND seq > (SELECT coalesce(max(seq), 0) FROM audit_log WHERE tenant = :tenant) - CAST(:looked AS bigint)
  AND object = :object AND outcome = 'refused' AND action IN ",
            $($actions)+,
            " ORDER BY seq DESC LIMIT 1"
        )
    };
}

/// Every record of these takes from what the gateway has left of its kind (`note:` and the action): without a row
/// there, the log is not looked through.
pub(super) const EVER: &str = ever!(actions!());

/// The same of the door.
pub(super) const EVER_AT_DOOR: &str = ever!(at_door!());

pub(super) const LAST: &str = last!(actions!());

pub(super) const LAST_AT_DOOR: &str = last!(at_door!());

/// The last one at the door of somebody who had proved to be the gateway.
pub(super) const PROVED_AT_DOOR: &str = "\
SELECT at, action, detail FROM audit_log
WHERE tenant = :tenant
  AND seq > (SELECT coalesce(max(seq), 0) FROM audit_log WHERE tenant = :tenant) - CAST(:looked AS bigint)
  AND object = :object AND at >= :since AND outcome = 'refused' AND action = 'certificate.renew_at_door'
ORDER BY seq DESC LIMIT 1";

/// The last one that nobody has caused, or what an operator did since, which settles it.
pub(super) const GRAVE: &str = concat!(
    "\
SELECT at, action, detail FROM audit_log
WHERE tenant = :tenant
  AND seq > (SELECT coalesce(max(seq), 0) FROM audit_log WHERE tenant = :tenant) - CAST(:looked AS bigint)
  AND object = :object AND at >= :since
  AND (action IN ('gateway.revoke', 'gateway.replace') OR outcome = 'refused' AND action IN (",
    grave!(),
    ")) ORDER BY seq DESC LIMIT 1"
);

/// Whether there are records behind those that are looked through.
pub(super) const BEYOND: &str = "\
SELECT seq FROM audit_log
WHERE tenant = :tenant
  AND seq <= (SELECT coalesce(max(seq), 0) FROM audit_log WHERE tenant = :tenant) - CAST(:looked AS bigint)
ORDER BY seq DESC LIMIT 1";

/// The last refusal of a session and the last one at the door, each as long as it is among the latest records of the
/// log; of those of sessions within an hour, one that nobody has caused rather than one that is expected, and of those
/// at the door one with proof rather than one without.
pub(super) fn last(view: &View<'_>, agent_id: AgentId) -> StoreResult<LookedForRefusal> {
    let at_door = match ever(view, EVER_AT_DOOR, agent_id)? {
        true => last_at_door(view, agent_id)?,
        false => None,
    };
    if !ever(view, EVER, agent_id)? {
        return Ok(LookedForRefusal {
            at_door,
            ..LookedForRefusal::default()
        });
    }
    let object = Actor::gateway(agent_id).to_string();
    let mut last = view.optional(LAST, params! { object, looked: LOOKED_THROUGH }, read)?;
    if let Some((action, known)) = &last
        && EXPECTED.contains(&action.as_str())
    {
        let since = known.at.saturating_sub(STANDS);
        let graver = view.optional(
            GRAVE,
            params! { object, looked: LOOKED_THROUGH, since },
            read,
        )?;
        last = graver
            .filter(|(action, _)| !SETTLES.contains(&action.as_str()))
            .or(last);
    }
    let last = last.map(|(_action, last)| last);
    let beyond = match &last {
        Some(_) => None,
        None => view.optional(BEYOND, params! { looked: LOOKED_THROUGH }, |row| {
            Reader::new("audit_log", row).get::<u64>("seq")
        })?,
    };
    Ok(LookedForRefusal {
        last,
        among: beyond.map(|_older| LOOKED_THROUGH),
        at_door,
    })
}

fn ever(view: &View<'_>, sql: &'static str, agent_id: AgentId) -> StoreResult<bool> {
    let kind = view.optional(sql, params! { agent_id }, |row| {
        Reader::new("gateway_budgets", row).get::<String>("kind")
    })?;
    Ok(kind.is_some())
}

/// The last refusal at the door; one without proof does not hide one with proof of the hour before it, for whoever
/// knows the gateway's id can cause it.
fn last_at_door(view: &View<'_>, agent_id: AgentId) -> StoreResult<Option<LastRefusal>> {
    let object = Actor::gateway(agent_id).to_string();
    let looked = LOOKED_THROUGH;
    let mut last = view.optional(LAST_AT_DOOR, params! { object, looked }, read)?;
    if let Some((action, unproved)) = &last
        && action == UNPROVED
    {
        let since = unproved.at.saturating_sub(STANDS);
        let proved = view.optional(PROVED_AT_DOOR, params! { object, looked, since }, read)?;
        last = proved.or(last);
    }
    Ok(last.map(|(_action, last)| last))
}

/// What happened, and what is told of it.
fn read(row: &Row<'_>) -> StoreResult<(String, LastRefusal)> {
    let row = Reader::new("audit_log", row);
    let (action, detail): (String, Value) = (row.get("action")?, row.json("detail")?);
    let said = |name: &str| detail.get(name).and_then(Value::as_str).map(str::to_owned);
    let address = ["peer_address", "address", "peer"];
    let last = LastRefusal {
        at: row.get("at")?,
        why: why(&action, said("why")),
        peer_address: address.into_iter().find_map(said),
    };
    Ok((action, last))
}

/// One word for it: what a HELLO was refused for, or the last part of what happened.
fn why(action: &str, said: Option<String>) -> String {
    let last = || action.rsplit('.').next().unwrap_or(action).to_owned();
    said.unwrap_or_else(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_is_looked_for_by_the_same_names() {
        for action in EXPECTED {
            assert!(LAST.contains(&format!("'{action}'")), "{action}");
            assert!(!GRAVE.contains(action), "{action}");
        }
        let settles = SETTLES.map(|action| format!("'{action}'")).join(", ");
        assert!(GRAVE.contains(&settles), "{settles}");
        assert!(LAST_AT_DOOR.contains(&format!("'{UNPROVED}'")));
    }

    #[test]
    fn a_refusal_has_one_word() {
        let said = Some("stale_key".to_owned());
        assert_eq!(why("session.open", said), "stale_key");
        assert_eq!(why("identity.fork", None), "fork");
        assert_eq!(why("gateway.wrong_agent_key", None), "wrong_agent_key");
    }
}
