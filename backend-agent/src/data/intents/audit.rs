//! The append-only audit log.

use serde_json::Value;
use viworks_common::id::AgentId;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Row, params};

use super::budget;
use super::link::Sql;
use super::page::{listing, rows_wanted};
use super::row::{Reader, to_json};
use super::tx::{Tx, View};
use crate::data::model::{api_key_word, gateway_word};
use crate::data::{
    Actor, ActorKind, AuditFilter, AuditOutcome, AuditRecord, Listing, NewAuditRecord, Page,
    Revocation, StoreResult,
};

/// The latest records among which one of a gateway is looked for: the log has no index but its numbers, and is
/// kept for good.
pub(super) const LOOKED_THROUGH: usize = 50_000;

/// Numbered by the highest there is where one writes at a time, and by a sequence where many do.
pub(super) const APPEND: Sql = Sql {
    sqlite: "\
INSERT INTO audit_log (tenant, seq, at, actor_kind, actor_id, action, object, outcome, detail, request_id)
SELECT :tenant, coalesce((SELECT max(seq) FROM audit_log WHERE tenant = :tenant), 0) + 1,
       :now + coalesce((SELECT wall_ahead FROM time_line WHERE one = 1), 0),
       :actor_kind, :actor_id, :action, :object, :outcome, :detail, :request_id",
    postgres: "\
INSERT INTO audit_log (tenant, at, actor_kind, actor_id, action, object, outcome, detail, request_id)
VALUES (:tenant, :now + coalesce((SELECT wall_ahead FROM time_line WHERE one = 1), 0),
        :actor_kind, :actor_id, :action, :object, :outcome, :detail, :request_id)",
};

/// The name of the key or of the gateway that a text such as `gateway:01…` means, as two values of which one is null.
macro_rules! name_of {
    ($find:literal, $text:literal) => {
        concat!(
            "(SELECT k.name FROM api_keys AS k WHERE k.tenant = a.tenant AND ",
            $find,
            "(",
            $text,
            ", '",
            api_key_word!(),
            ":') = 1 AND k.id = substr(",
            $text,
            ", 1 + length('",
            api_key_word!(),
            ":'))), \
             (SELECT g.name FROM gateways AS g WHERE g.tenant = a.tenant AND ",
            $find,
            "(",
            $text,
            ", '",
            gateway_word!(),
            ":') = 1 AND g.agent_id = substr(",
            $text,
            ", 1 + length('",
            gateway_word!(),
            ":')))"
        )
    };
}

/// The columns that [`read`] reads, of those that `$which` says.
macro_rules! rows {
    ($find:literal, $($which:tt)+) => {
        concat!(
    "\
SELECT a.seq, a.at, a.actor_kind, a.actor_id, a.action, a.object, a.outcome, a.detail, a.request_id,
       coalesce(",
    name_of!($find, "a.actor_kind || ':' || a.actor_id"),
    ") AS actor_name,
       coalesce(",
    name_of!($find, "a.object"),
    ") AS object_name
FROM audit_log AS a WHERE a.tenant = :tenant ",
    $($which)+,
    " ORDER BY a.seq DESC LIMIT :limit"
        )
    };
}

pub(super) const LIST: Sql = Sql {
    sqlite: rows!("instr", "AND a.seq < :before"),
    postgres: rows!("strpos", "AND a.seq < :before"),
};

/// By number down to one below which this page does not look, whatever else is asked: the log has no index but its
/// numbers, and names are looked up where nothing else has ruled a record out.
macro_rules! find {
    ($find:literal) => {
        rows!(
            $find,
            "AND a.seq <= :top AND a.seq > :floor
  AND (CAST(:since AS bigint) IS NULL OR a.at >= :since)
  AND (CAST(:outcome AS text) IS NULL OR a.outcome = :outcome)
  AND (CAST(:action AS text) IS NULL OR a.action = :action
       OR substr(a.action, 1, 1 + length(:action)) = :action || '.')
  AND (CAST(:about AS text) IS NULL OR a.object = :about OR a.actor_kind || ':' || a.actor_id = :about)
  AND (CAST(:actor AS text) IS NULL OR a.actor_kind || ':' || a.actor_id = :actor OR :actor IN (",
            name_of!($find, "a.actor_kind || ':' || a.actor_id"),
            "))
  AND (CAST(:object AS text) IS NULL OR a.object = :object OR :object IN (",
            name_of!($find, "a.object"),
            "))"
        )
    };
}

pub(super) const FIND: Sql = Sql {
    sqlite: find!("instr"),
    postgres: find!("strpos"),
};

/// The latest record of those before a number.
pub(super) const TOP: &str = "\
SELECT seq, at FROM audit_log WHERE tenant = :tenant AND seq < :before ORDER BY seq DESC LIMIT 1";

pub(super) const REVOCATION: &str = concat!(
    "SELECT a.actor_kind, a.actor_id, a.detail,
  (SELECT k.name FROM api_keys AS k
   WHERE k.tenant = a.tenant AND a.actor_kind = '",
    api_key_word!(),
    "' AND k.id = a.actor_id) AS actor_name
FROM audit_log AS a
WHERE a.tenant = :tenant
  AND a.seq > (SELECT coalesce(max(seq), 0) FROM audit_log WHERE tenant = :tenant) - CAST(:looked AS bigint)
  AND a.object = :object AND a.action = 'gateway.revoke'
ORDER BY a.seq DESC LIMIT 1"
);

/// Appends a record, in wall time, inside the transaction of what it records.
pub(super) fn append(
    tx: &Tx<'_>,
    actor: &Actor,
    action: &str,
    object: &str,
    outcome: AuditOutcome,
    detail: &Value,
) -> StoreResult<()> {
    let (actor_kind, actor_id, request_id) = (actor.kind.name(), &actor.id, &actor.request_id);
    let (outcome, detail) = (outcome.name(), to_json(&with_peer(actor, detail.clone())));
    tx.execute(
        APPEND,
        params! { actor_kind, actor_id, action, object, outcome, detail, request_id },
    )?;
    Ok(())
}

/// What else there is to know, with where the request came from.
pub(super) fn with_peer(actor: &Actor, mut detail: Value) -> Value {
    if let (Some(address), Value::Object(fields)) = (actor.address, &mut detail) {
        fields.insert("peer".to_owned(), address.to_string().into());
    }
    detail
}

/// Appends what no other intent records.
pub(super) fn append_record(tx: &Tx<'_>, record: &NewAuditRecord) -> StoreResult<()> {
    let NewAuditRecord {
        actor,
        action,
        object,
        outcome,
        detail,
    } = record;
    append(tx, actor, action, object, *outcome, detail)
}

/// Appends what a gateway did or tried, as far as it may add to the log; `false` when it is only counted.
pub(super) fn of_gateway(
    tx: &Tx<'_>,
    agent_id: AgentId,
    action: &str,
    outcome: AuditOutcome,
    detail: Value,
) -> StoreResult<bool> {
    let actor = Actor::gateway(agent_id);
    let record = NewAuditRecord {
        object: actor.to_string(),
        actor,
        action: action.to_owned(),
        outcome,
        detail,
    };
    note(tx, agent_id, record)
}

/// Appends a record that a gateway caused, with the number of those that were left out before it, unless this one has
/// to be left out, too: the log is kept for good.
pub(super) fn note(
    tx: &Tx<'_>,
    agent_id: AgentId,
    mut record: NewAuditRecord,
) -> StoreResult<bool> {
    tx.lock([agent_id])?;
    let own = record.detail.get("left_out").and_then(Value::as_u64);
    let own = own.unwrap_or(0);
    let budget = budget::notes(&record.action);
    let Some(earlier) = budget::take(tx, agent_id, budget, own)? else {
        return Ok(false);
    };
    if earlier > 0
        && let Value::Object(detail) = &mut record.detail
    {
        detail.insert("left_out".to_owned(), own.saturating_add(earlier).into());
    }
    append_record(tx, &record)?;
    Ok(true)
}

/// The log, newest first.
pub(super) fn list(view: &View<'_>, page: Page<u64>) -> StoreResult<Listing<AuditRecord, u64>> {
    let (before, limit) = (page.after.unwrap_or(u64::MAX), rows_wanted(page.limit));
    let rows = view.page(LIST, params! { before, limit }, read)?;
    Ok(listing(rows, page.limit, |record| record.seq))
}

/// Those that are meant, newest first. A page looks at `looked` records: what is behind them is for the next one.
pub(super) fn find(
    view: &View<'_>,
    filter: &AuditFilter,
    looked: u64,
    page: Page<u64>,
) -> StoreResult<Listing<AuditRecord, u64>> {
    let Some((top, _at)) = latest_before(view, page.after.unwrap_or(u64::MAX))? else {
        return Ok(Listing {
            items: Vec::new(),
            next: None,
        });
    };
    let (floor, limit) = (top.saturating_sub(looked.max(1)), rows_wanted(page.limit));
    let AuditFilter {
        agent_id,
        actor,
        object,
        action,
        outcome,
        since,
    } = filter;
    let about = agent_id.map(|agent_id| Actor::gateway(agent_id).to_string());
    let outcome = outcome.map(AuditOutcome::name);
    let rows = view.page(
        FIND,
        params! { top, floor, since, outcome, action, about, actor, object, limit },
        read,
    )?;
    let mut found = listing(rows, page.limit, |record| record.seq);
    if found.next.is_none() {
        let below = latest_before(view, floor.saturating_add(1))?;
        // The log is in the order of time but where the clock was set back, which this page has looked at as far as it
        // goes.
        let goes_on = below.is_some_and(|(_seq, at)| since.is_none_or(|since| at >= since));
        found.next = goes_on.then(|| floor.saturating_add(1));
    }
    Ok(found)
}

fn latest_before(view: &View<'_>, before: u64) -> StoreResult<Option<(u64, Timestamp)>> {
    view.optional(TOP, params! { before }, |row| {
        let row = Reader::new("audit_log", row);
        Ok((row.get("seq")?, row.get("at")?))
    })
}

/// Who revoked a gateway, and why, where a program of before did, which kept it nowhere else.
pub(super) fn revocation(view: &View<'_>, agent_id: AgentId) -> StoreResult<Option<Revocation>> {
    let object = Actor::gateway(agent_id).to_string();
    view.optional(
        REVOCATION,
        params! { object, looked: LOOKED_THROUGH },
        |row| {
            let row = Reader::new("audit_log", row);
            let kind = row.word("actor_kind", ActorKind::from_name)?;
            let id: String = row.get("actor_id")?;
            let detail: Value = row.json("detail")?;
            let reason = detail.get("reason").and_then(Value::as_str);
            Ok(Revocation {
                by: format!("{}:{id}", kind.name()),
                by_name: row.get("actor_name")?,
                reason: reason.map(str::to_owned),
            })
        },
    )
}

fn read(row: &Row<'_>) -> StoreResult<AuditRecord> {
    let row = Reader::new("audit_log", row);
    Ok(AuditRecord {
        seq: row.get("seq")?,
        at: row.get("at")?,
        actor_name: row.get("actor_name")?,
        object_name: row.get("object_name")?,
        record: NewAuditRecord {
            actor: Actor {
                kind: row.word("actor_kind", ActorKind::from_name)?,
                id: row.get("actor_id")?,
                request_id: row.get("request_id")?,
                address: None,
            },
            action: row.get("action")?,
            object: row.get("object")?,
            outcome: row.word("outcome", AuditOutcome::from_name)?,
            detail: row.json("detail")?,
        },
    })
}
