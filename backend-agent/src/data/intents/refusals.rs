//! When a gateway was last refused a session, or a certificate at the door, and why: found in the audit log, which is
//! all that keeps it.

use serde_json::Value;
use viworks_common::id::AgentId;
use viworks_runtime::sqlite::params;

use super::audit::LOOKED_THROUGH;
use super::row::Reader;
use super::tx::View;
use crate::data::{Actor, LastRefusal, LookedForRefusal, StoreResult};

/// What is recorded of somebody who shows a gateway's certificate and gets no session.
macro_rules! actions {
    () => {
        "('session.open', 'identity.fork', 'gateway.hello_replayed', 'gateway.wrong_agent_key', \
         'gateway.retired_certificate', 'gateway.unregistered_certificate', \
         'gateway.revoked_certificate', 'gateway.replaced_certificate')"
    };
}

/// What is recorded of somebody who gets no certificate at the door.
macro_rules! at_door {
    () => {
        "('certificate.renew_at_door', 'gateway.unproved_renewal')"
    };
}

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

/// Whether there are records behind those that are looked through.
pub(super) const BEYOND: &str = "\
SELECT seq FROM audit_log
WHERE tenant = :tenant
  AND seq <= (SELECT coalesce(max(seq), 0) FROM audit_log WHERE tenant = :tenant) - CAST(:looked AS bigint)
ORDER BY seq DESC LIMIT 1";

/// The last refusal of a session and the last one at the door, each as long as it is among the latest records of the
/// log.
pub(super) fn last(view: &View<'_>, agent_id: AgentId) -> StoreResult<LookedForRefusal> {
    let at_door = match ever(view, EVER_AT_DOOR, agent_id)? {
        true => found(view, LAST_AT_DOOR, agent_id)?,
        false => None,
    };
    if !ever(view, EVER, agent_id)? {
        return Ok(LookedForRefusal {
            at_door,
            ..LookedForRefusal::default()
        });
    }
    let last = found(view, LAST, agent_id)?;
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

fn found(
    view: &View<'_>,
    sql: &'static str,
    agent_id: AgentId,
) -> StoreResult<Option<LastRefusal>> {
    let object = Actor::gateway(agent_id).to_string();
    view.optional(sql, params! { object, looked: LOOKED_THROUGH }, |row| {
        let row = Reader::new("audit_log", row);
        let (action, detail): (String, Value) = (row.get("action")?, row.json("detail")?);
        let said = |name: &str| detail.get(name).and_then(Value::as_str).map(str::to_owned);
        let address = ["peer_address", "address", "peer"];
        Ok(LastRefusal {
            at: row.get("at")?,
            why: why(&action, said("why")),
            peer_address: address.into_iter().find_map(said),
        })
    })
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
    fn a_refusal_has_one_word() {
        let said = Some("stale_key".to_owned());
        assert_eq!(why("session.open", said), "stale_key");
        assert_eq!(why("identity.fork", None), "fork");
        assert_eq!(why("gateway.wrong_agent_key", None), "wrong_agent_key");
    }
}
