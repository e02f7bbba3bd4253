//! The append-only audit log.

use serde_json::Value;
use viworks_common::id::AgentId;
use viworks_runtime::sqlite::{Row, params};

use super::page::{listing, rows_wanted};
use super::row::{Reader, to_json};
use super::tx::{Tx, View};
use crate::data::{
    Actor, ActorKind, AuditOutcome, AuditRecord, Listing, NewAuditRecord, Page, StoreResult,
};

pub(super) const APPEND: &str = "\
INSERT INTO audit_log (tenant, seq, at, actor_kind, actor_id, action, object, outcome, detail, request_id)
SELECT :tenant, coalesce((SELECT max(seq) FROM audit_log WHERE tenant = :tenant), 0) + 1,
       :now + coalesce((SELECT wall_ahead FROM time_line WHERE one = 1), 0),
       :actor_kind, :actor_id, :action, :object, :outcome, :detail, :request_id";

pub(super) const LIST: &str = "\
SELECT seq, at, actor_kind, actor_id, action, object, outcome, detail, request_id
FROM audit_log WHERE tenant = :tenant AND seq < :before ORDER BY seq DESC LIMIT :limit";

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
    let (outcome, detail) = (outcome.name(), to_json(detail));
    tx.execute(
        APPEND,
        params! { actor_kind, actor_id, action, object, outcome, detail, request_id },
    )?;
    Ok(())
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

/// Appends what a gateway did or tried.
pub(super) fn of_gateway(
    tx: &Tx<'_>,
    agent_id: AgentId,
    action: &str,
    outcome: AuditOutcome,
    detail: &Value,
) -> StoreResult<()> {
    let (actor, object) = (Actor::gateway(agent_id), format!("gateway:{agent_id}"));
    append(tx, &actor, action, &object, outcome, detail)
}

/// The log, newest first.
pub(super) fn list(view: &View<'_>, page: Page<u64>) -> StoreResult<Listing<AuditRecord, u64>> {
    let (before, limit) = (page.after.unwrap_or(u64::MAX), rows_wanted(page.limit));
    let rows = view.all(LIST, params! { before, limit }, read)?;
    Ok(listing(rows, page.limit, |record| record.seq))
}

fn read(row: &Row<'_>) -> StoreResult<AuditRecord> {
    let row = Reader::new("audit_log", row);
    Ok(AuditRecord {
        seq: row.get("seq")?,
        at: row.get("at")?,
        record: NewAuditRecord {
            actor: Actor {
                kind: row.word("actor_kind", ActorKind::from_name)?,
                id: row.get("actor_id")?,
                request_id: row.get("request_id")?,
            },
            action: row.get("action")?,
            object: row.get("object")?,
            outcome: row.word("outcome", AuditOutcome::from_name)?,
            detail: row.json("detail")?,
        },
    })
}
