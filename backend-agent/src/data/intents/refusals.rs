//! When a gateway was last refused a session, and why: found in the audit log, which is all that keeps it.

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

/// What an operator does about a gateway as a whole.
const SETTLES: [&str; 2] = ["gateway.revoke", "gateway.replace"];

/// For how long one that is expected does not hide a graver one: whoever was revoked or replaced goes on knocking.
const STANDS: Duration = Duration::from_secs(3_600);

/// Every record of these takes from what the gateway has left of its kind (`note:` and the action): without a row
/// there, the log is not looked through.
pub(super) const EVER: &str = concat!(
    "SELECT kind FROM gateway_budgets WHERE tenant = :tenant AND agent_id = :agent_id AND substr(kind, 6) IN ",
    actions!(),
    " LIMIT 1"
);

pub(super) const LAST: &str = concat!(
    "\
SELECT at, action, detail FROM audit_log
WHERE tenant = :tenant
  AND seq > (SELECT coalesce(max(seq), 0) FROM audit_log WHERE tenant = :tenant) - CAST(:looked AS bigint)
  AND object = :object AND outcome = 'refused' AND action IN ",
    actions!(),
    " ORDER BY seq DESC LIMIT 1"
);

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

/// The last refusal, as long as it is among the latest records of the log; of those within an hour, one that nobody has
/// caused rather than one that is expected.
pub(super) fn last(view: &View<'_>, agent_id: AgentId) -> StoreResult<LookedForRefusal> {
    let ever = view.optional(EVER, params! { agent_id }, |row| {
        Reader::new("gateway_budgets", row).get::<String>("kind")
    })?;
    if ever.is_none() {
        return Ok(LookedForRefusal::default());
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
    })
}

/// What happened, and what is told of it.
fn read(row: &Row<'_>) -> StoreResult<(String, LastRefusal)> {
    let row = Reader::new("audit_log", row);
    let (action, detail): (String, Value) = (row.get("action")?, row.json("detail")?);
    let said = |name: &str| detail.get(name).and_then(Value::as_str).map(str::to_owned);
    let last = LastRefusal {
        at: row.get("at")?,
        why: why(&action, said("why")),
        peer_address: said("peer_address").or_else(|| said("address")),
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
    }

    #[test]
    fn a_refusal_has_one_word() {
        let said = Some("stale_key".to_owned());
        assert_eq!(why("session.open", said), "stale_key");
        assert_eq!(why("identity.fork", None), "fork");
        assert_eq!(why("gateway.wrong_agent_key", None), "wrong_agent_key");
    }
}
