//! Runs: accepted whole or refused whole, listed, shown and cancelled.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use viworks_common::command::{CommandEvent, CommandState, Transition};
use viworks_common::id::{CommandId, RunId, Tenant};
use viworks_common::time::Timestamp;

use super::audit;
use super::page::{Fetched, rows_wanted};
use super::row::Reader;
use super::settle::{self, CommandRow, Note};
use crate::data::{
    Actor, AuditOutcome, Cancelled, Command, CommandRef, Counts, Idempotency, Listing, Page, Run,
    StoreError, StoreResult, Submission,
};

/// How long an `Idempotency-Key` is remembered.
pub(super) const KEY_LIFE: Duration = Duration::from_secs(24 * 3_600);

/// The columns that [`read_run`] reads.
macro_rules! runs {
    () => {
        "SELECT r.run_id, r.name, r.arguments, r.deadline, r.traceparent, r.reason, r.submitted_by, r.created_at, \
         r.cancel_requested_at, r.finished_at, \
         (SELECT json_group_object(state, commands) FROM (SELECT c.state, count(*) AS commands FROM commands AS c \
          WHERE c.tenant = r.tenant AND c.run_id = r.run_id GROUP BY c.state)) AS states \
         FROM runs AS r WHERE r.tenant = $1 "
    };
}

/// The columns that [`read_command`] reads.
macro_rules! commands {
    ($index:literal) => {
        concat!("SELECT c.command_id, c.run_id, c.agent_id, g.name AS gateway, c.order_no, r.name, c.state, c.idempotent, \
         c.risk, c.timeout_ms, c.attempt, c.deadline, c.created_at, c.released_at, c.started_at, c.finished_at, \
         c.cancel_requested_at, c.result, c.late_outcome, c.reason \
         FROM commands AS c ", $index, " \
         JOIN runs AS r ON r.tenant = c.tenant AND r.run_id = c.run_id \
         JOIN gateways AS g ON g.tenant = c.tenant AND g.agent_id = c.agent_id \
         WHERE c.tenant = $1 ")
    };
}

pub(super) const KEY: &str = "\
SELECT run_id, request_hash FROM idempotency_keys
WHERE tenant = $1 AND principal = $2 AND route = $3 AND key = $4 AND created_at > $5";

pub(super) const RUN: &str = concat!(runs!(), "AND r.run_id = $2");

pub(super) const LIST: &str = concat!(runs!(), "AND r.run_id < $2 ORDER BY r.run_id DESC LIMIT $3");

pub(super) const COMMAND: &str = concat!(commands!(""), "AND c.command_id = $2");

pub(super) const COMMANDS: &str = concat!(
    // Without the hint SQLite walks the primary key, which visits the commands of every later run.
    commands!("INDEXED BY commands_by_run"),
    "AND c.run_id = $2 AND c.command_id > $3 ORDER BY c.command_id LIMIT $4"
);

pub(super) const CANCEL_RUN: &str = "\
UPDATE runs SET cancel_requested_at = coalesce(cancel_requested_at, $3) WHERE tenant = $1 AND run_id = $2";

pub(super) const CANCEL_COMMANDS: &str = "\
UPDATE commands INDEXED BY commands_by_run SET cancel_requested_at = coalesce(cancel_requested_at, $3)
WHERE tenant = $1 AND run_id = $2 AND finished_at IS NULL";

pub(super) const COUNTS: &str = "\
SELECT $1 AS tenant,
       (SELECT count(*) FROM gateways WHERE tenant = $1 AND revoked_at IS NULL) AS gateways,
       (SELECT count(*) FROM gateways WHERE tenant = $1 AND session_epoch IS NOT NULL) AS connected,
       (SELECT count(*) FROM runs INDEXED BY open_runs WHERE tenant = $1 AND finished_at IS NULL) AS open_runs,
       (SELECT json_group_object(state, commands) FROM (SELECT state, count(*) AS commands
        FROM commands INDEXED BY open_commands_by_deadline
        WHERE tenant = $1 AND finished_at IS NULL GROUP BY state)) AS open_commands,
       (SELECT count(*) FROM orphan_results WHERE tenant = $1) AS orphans,
       (SELECT count(*) FROM forks WHERE tenant = $1) AS forks";

/// What a key was used for.
pub(super) async fn replay(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    idempotency: &Idempotency,
    now: Timestamp,
) -> StoreResult<Option<Submission>> {
    let row = sqlx::query(KEY)
        .bind(tenant.as_str())
        .bind(&idempotency.principal)
        .bind(&idempotency.route)
        .bind(&idempotency.key)
        .bind(now.saturating_sub(KEY_LIFE).unix_micros())
        .fetch_optional(&mut *connection)
        .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    let reader = Reader::new("idempotency_keys", &row);
    if reader.digest("request_hash")? != idempotency.request_hash {
        return Ok(Some(Submission::IdempotencyMismatch));
    }
    let run_id = reader.parse("run_id")?;
    Ok(Some(Submission::Replayed(
        expected(connection, tenant, run_id).await?,
    )))
}

/// One run.
pub(super) async fn load(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    run_id: RunId,
) -> StoreResult<Option<Run>> {
    let row = sqlx::query(RUN)
        .bind(tenant.as_str())
        .bind(run_id.to_string())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(read_run).transpose()
}

async fn expected(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    run_id: RunId,
) -> StoreResult<Run> {
    let found = load(connection, tenant, run_id).await?;
    found.ok_or_else(|| StoreError::Inconsistent {
        table: "runs",
        column: "run_id",
        row: run_id.to_string(),
    })
}

/// Runs, newest first.
pub(super) async fn list(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    page: Page<RunId>,
) -> StoreResult<Listing<Run, RunId>> {
    // Every id begins with a hexadecimal digit, which sorts before this.
    let before = page
        .after
        .map_or_else(|| "~".to_owned(), |after| after.to_string());
    let rows = sqlx::query(LIST)
        .bind(tenant.as_str())
        .bind(before)
        .bind(rows_wanted(page.limit))
        .fetch_all(connection)
        .await?;
    Fetched::new(rows, page.limit).listing(read_run, |run| run.run_id)
}

/// One command.
pub(super) async fn command(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    command_id: CommandId,
) -> StoreResult<Option<Command>> {
    let row = sqlx::query(COMMAND)
        .bind(tenant.as_str())
        .bind(command_id.to_string())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(read_command).transpose()
}

/// The commands of a run.
pub(super) async fn commands(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    run_id: RunId,
    page: Page<CommandId>,
) -> StoreResult<Listing<Command, CommandId>> {
    let rows = sqlx::query(COMMANDS)
        .bind(tenant.as_str())
        .bind(run_id.to_string())
        .bind(
            page.after
                .map_or_else(String::new, |after| after.to_string()),
        )
        .bind(rows_wanted(page.limit))
        .fetch_all(connection)
        .await?;
    Fetched::new(rows, page.limit).listing(read_command, |command| command.command_id)
}

/// Cancels what has no permit, and asks for the end of the rest.
pub(super) async fn cancel(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    actor: &Actor,
    run_id: RunId,
    now: Timestamp,
) -> StoreResult<Option<Cancelled>> {
    let known = sqlx::query(CANCEL_RUN)
        .bind(tenant.as_str())
        .bind(run_id.to_string())
        .bind(now.unix_micros())
        .execute(&mut *connection)
        .await?;
    if known.rows_affected() == 0 {
        return Ok(None);
    }
    sqlx::query(CANCEL_COMMANDS)
        .bind(tenant.as_str())
        .bind(run_id.to_string())
        .bind(now.unix_micros())
        .execute(&mut *connection)
        .await?;
    let rows = sqlx::query(settle::LOAD_OPEN_OF_RUN)
        .bind(tenant.as_str())
        .bind(run_id.to_string())
        .fetch_all(&mut *connection)
        .await?;
    let (mut cancelled, mut requested) = (Vec::new(), Vec::new());
    for row in &rows {
        let mut command = CommandRow::read(row)?;
        let reference = CommandRef {
            command_id: command.command_id,
            agent_id: command.agent_id,
        };
        let reason = Note {
            reason: Some("cancelled by an operator"),
            ..Note::default()
        };
        let event = CommandEvent::CancelRequested;
        let decision =
            settle::apply(connection, tenant, &mut command, event, reason, actor, now).await?;
        match decision {
            Transition::To(_) => cancelled.push(reference),
            Transition::Stay | Transition::LateOutcome | Transition::Refused => {
                requested.push(reference);
            }
        }
    }
    let detail = json!({ "cancelled": cancelled.len(), "requested": requested.len() });
    let object = format!("run:{run_id}");
    let record = audit::record(actor, "run.cancel", object, AuditOutcome::Done, detail);
    audit::append(connection, tenant, &record, now).await?;
    let run = expected(connection, tenant, run_id).await?;
    Ok(Some(Cancelled {
        cancelled,
        requested,
        run,
    }))
}

/// How many of what there is.
pub(super) async fn counts(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
) -> StoreResult<Counts> {
    let row = sqlx::query(COUNTS)
        .bind(tenant.as_str())
        .fetch_one(connection)
        .await?;
    let reader = Reader::new("commands", &row);
    Ok(Counts {
        gateways: reader.count("gateways")?,
        connected: reader.count("connected")?,
        open_runs: reader.count("open_runs")?,
        open_commands: states(&reader, "open_commands")?,
        orphans: reader.count("orphans")?,
        forks: reader.count("forks")?,
    })
}

fn states(reader: &Reader<'_>, column: &'static str) -> StoreResult<BTreeMap<CommandState, u64>> {
    reader.json(column)
}

fn read_run(row: &SqliteRow) -> StoreResult<Run> {
    let reader = Reader::new("runs", row);
    Ok(Run {
        run_id: reader.parse("run_id")?,
        name: reader.parse("name")?,
        arguments: reader.json("arguments")?,
        deadline: reader.time("deadline")?,
        traceparent: reader.get("traceparent")?,
        reason: reader.get("reason")?,
        submitted_by: reader.get("submitted_by")?,
        created_at: reader.time("created_at")?,
        cancel_requested_at: reader.time_optional("cancel_requested_at")?,
        finished_at: reader.time_optional("finished_at")?,
        states: states(&reader, "states")?,
    })
}

fn read_command(row: &SqliteRow) -> StoreResult<Command> {
    let reader = Reader::new("commands", row);
    Ok(Command {
        command_id: reader.parse("command_id")?,
        run_id: reader.parse("run_id")?,
        agent_id: reader.parse("agent_id")?,
        gateway: reader.parse("gateway")?,
        order: reader.count("order_no")?,
        name: reader.parse("name")?,
        state: reader.word("state", CommandState::from_name)?,
        idempotent: reader.get("idempotent")?,
        risk: reader.word("risk", |word| {
            serde_json::from_value(serde_json::Value::from(word)).ok()
        })?,
        timeout_ms: reader.count("timeout_ms")?,
        attempt: reader.small("attempt")?,
        deadline: reader.time("deadline")?,
        created_at: reader.time("created_at")?,
        released_at: reader.time_optional("released_at")?,
        started_at: reader.time_optional("started_at")?,
        finished_at: reader.time_optional("finished_at")?,
        cancel_requested_at: reader.time_optional("cancel_requested_at")?,
        result: reader.json_optional("result")?,
        late_outcome: reader.json_optional("late_outcome")?,
        reason: reader.get("reason")?,
    })
}
