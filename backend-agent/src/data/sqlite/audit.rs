//! The append-only audit log.

use serde_json::Value;
use sqlx::SqliteConnection;
use viworks_common::id::{AgentId, Tenant};
use viworks_common::time::Timestamp;

use super::budget::{self, NOTES};
use super::page::{Fetched, rows_wanted};
use super::row::{Reader, int, to_json};
use crate::data::model::{api_key_word, gateway_word};
use crate::data::{
    Actor, ActorKind, AuditOutcome, AuditRecord, Listing, NewAuditRecord, Page, StoreResult,
};

pub(super) const APPEND: &str = "\
INSERT INTO audit_log (tenant, seq, at, actor_kind, actor_id, action, object, outcome, detail, request_id)
SELECT $1, coalesce((SELECT max(seq) FROM audit_log WHERE tenant = $1), 0) + 1,
       $2 + coalesce((SELECT wall_ahead FROM time_line WHERE one = 1), 0), $3, $4, $5, $6, $7, $8, $9";

/// The name of the key or of the gateway that a text such as `gateway:01…` means, as two values of which one is null.
macro_rules! name_of {
    ($text:literal) => {
        concat!(
            "(SELECT k.name FROM api_keys AS k WHERE k.tenant = a.tenant AND instr(",
            $text,
            ", '",
            api_key_word!(),
            ":') = 1 AND k.id = substr(",
            $text,
            ", 1 + length('",
            api_key_word!(),
            ":'))), \
             (SELECT g.name FROM gateways AS g WHERE g.tenant = a.tenant AND instr(",
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

pub(super) const LIST: &str = concat!(
    "\
SELECT a.seq, a.at, a.actor_kind, a.actor_id, a.action, a.object, a.outcome, a.detail, a.request_id,
       coalesce(",
    name_of!("a.actor_kind || ':' || a.actor_id"),
    ") AS actor_name,
       coalesce(",
    name_of!("a.object"),
    ") AS object_name
FROM audit_log AS a WHERE a.tenant = $1 AND a.seq < $2 ORDER BY a.seq DESC LIMIT $3"
);

/// Appends a record, in wall time, inside the transaction of what it records.
pub(super) async fn append(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    record: &NewAuditRecord,
    now: Timestamp,
) -> StoreResult<()> {
    sqlx::query(APPEND)
        .bind(tenant.as_str())
        .bind(now.unix_micros())
        .bind(record.actor.kind.name())
        .bind(&record.actor.id)
        .bind(&record.action)
        .bind(&record.object)
        .bind(record.outcome.name())
        .bind(to_json(&record.detail))
        .bind(&record.actor.request_id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Appends what a gateway did or tried, as far as it may add to the log; `false` when it is only counted.
pub(super) async fn of_gateway(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    agent_id: AgentId,
    action: &str,
    outcome: AuditOutcome,
    detail: Value,
    now: Timestamp,
) -> StoreResult<bool> {
    let actor = Actor::gateway(agent_id);
    let object = actor.to_string();
    let record = record(&actor, action, object, outcome, detail);
    note(connection, tenant, &record, agent_id, now).await
}

/// Appends a record that a gateway caused, with the number of those that were left out before it, unless this one has to be
/// left out, too: the log is kept for good.
pub(super) async fn note(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    record: &NewAuditRecord,
    agent_id: AgentId,
    now: Timestamp,
) -> StoreResult<bool> {
    let Some(earlier) = budget::take(connection, tenant, agent_id, NOTES, now).await? else {
        return Ok(false);
    };
    let mut record = record.clone();
    if earlier > 0
        && let Value::Object(detail) = &mut record.detail
    {
        let own = detail.get("left_out").and_then(Value::as_u64).unwrap_or(0);
        detail.insert("left_out".to_owned(), own.saturating_add(earlier).into());
    }
    append(connection, tenant, &record, now).await?;
    Ok(true)
}

/// What most intents record.
pub(super) fn record(
    actor: &Actor,
    action: &str,
    object: String,
    outcome: AuditOutcome,
    detail: Value,
) -> NewAuditRecord {
    NewAuditRecord {
        actor: actor.clone(),
        action: action.to_owned(),
        object,
        outcome,
        detail,
    }
}

/// The log, newest first.
pub(super) async fn list(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    page: Page<u64>,
) -> StoreResult<Listing<AuditRecord, u64>> {
    let rows = sqlx::query(LIST)
        .bind(tenant.as_str())
        .bind(page.after.map_or(i64::MAX, int))
        .bind(rows_wanted(page.limit))
        .fetch_all(connection)
        .await?;
    Fetched::new(rows, page.limit).listing(read, |record| record.seq)
}

fn read(row: &sqlx::sqlite::SqliteRow) -> StoreResult<AuditRecord> {
    let reader = Reader::new("audit_log", row);
    Ok(AuditRecord {
        seq: reader.count("seq")?,
        at: reader.time("at")?,
        actor_name: reader.get("actor_name")?,
        object_name: reader.get("object_name")?,
        record: NewAuditRecord {
            actor: Actor {
                kind: reader.word("actor_kind", ActorKind::from_name)?,
                id: reader.get("actor_id")?,
                request_id: reader.get("request_id")?,
            },
            action: reader.get("action")?,
            object: reader.get("object")?,
            outcome: reader.word("outcome", AuditOutcome::from_name)?,
            detail: reader.json("detail")?,
        },
    })
}
