//! Runs: accepted whole or refused whole, listed, shown and cancelled.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::json;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use viworks_common::api::SkipCode;
use viworks_common::command::{CommandEvent, CommandState, Transition};
use viworks_common::id::{AgentId, CommandId, RunId, Tenant};
use viworks_common::time::Timestamp;

use super::audit;
use super::page::{Fetched, rows_wanted};
use super::row::{Reader, to_json};
use super::settle::{self, CommandRow, Note};
use crate::data::model::api_key_word;
use crate::data::{
    Actor, AuditOutcome, Cancelled, Command, CommandRef, Counts, Idempotency, Listing, Page, Run,
    Skip, SkippedGateway, StoreError, StoreResult, Submission,
};

/// How long an `Idempotency-Key` is remembered.
pub(super) const KEY_LIFE: Duration = Duration::from_secs(24 * 3_600);

/// How long health speaks of what a gateway did wrong. A second holder that goes on comes back within the hour.
const RECENT: Duration = Duration::from_secs(24 * 3_600);

/// The columns that [`read_run`] reads.
macro_rules! runs {
    () => {
        concat!("SELECT r.run_id, r.name, r.arguments, r.deadline, r.traceparent, r.reason, r.submitted_by, r.created_at, \
         (SELECT k.name FROM api_keys AS k WHERE k.tenant = r.tenant \
          AND instr(r.submitted_by, '", api_key_word!(), ":') = 1 \
          AND k.id = substr(r.submitted_by, 1 + length('", api_key_word!(), ":'))) AS submitter, \
         r.cancel_requested_at, r.finished_at, r.skipped, \
         (SELECT json_group_object(state, commands) FROM (SELECT c.state, count(*) AS commands FROM commands AS c \
          WHERE c.tenant = r.tenant AND c.run_id = r.run_id GROUP BY c.state)) AS states \
         FROM runs AS r WHERE r.tenant = $1 ")
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

/// For each `[principal, route, key, time]` what the key was used for after that time.
pub(super) const KEYS: &str = "\
SELECT e.key AS number, k.run_id, k.request_hash
FROM json_each($2) AS e
CROSS JOIN idempotency_keys AS k ON k.tenant = $1 AND k.principal = e.value ->> 0 AND k.route = e.value ->> 1
     AND k.key = e.value ->> 2 AND k.created_at > e.value ->> 3";

pub(super) const RUNS: &str = concat!(runs!(), "AND r.run_id IN (SELECT value FROM json_each($2))");

pub(super) const LIST: &str = concat!(runs!(), "AND r.run_id < $2 ORDER BY r.run_id DESC LIMIT $3");

pub(super) const COMMAND: &str = concat!(commands!(""), "AND c.command_id = $2");

pub(super) const COMMANDS: &str = concat!(
    // Without the hint SQLite walks the primary key, which visits the commands of every later run.
    commands!("INDEXED BY commands_by_run"),
    "AND c.run_id = $2 AND c.command_id > $3 ORDER BY c.command_id LIMIT $4"
);

pub(super) const SKIPPED: &str = "\
SELECT s.agent_id, s.code, s.detail, g.name AS gateway
FROM run_skips AS s JOIN gateways AS g ON g.tenant = s.tenant AND g.agent_id = s.agent_id
WHERE s.tenant = $1 AND s.run_id = $2 AND s.agent_id > $3 ORDER BY s.agent_id LIMIT $4";

pub(super) const CANCEL_RUN: &str = "\
UPDATE runs SET cancel_requested_at = coalesce(cancel_requested_at, CASE WHEN finished_at IS NULL THEN $3 END)
WHERE tenant = $1 AND run_id = $2";

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
       (SELECT count(*) FROM orphan_results AS o CROSS JOIN gateways AS g ON g.tenant = o.tenant AND g.agent_id = o.agent_id
        WHERE o.tenant = $1 AND o.received_at > $2 AND g.revoked_at IS NULL) AS orphans,
       (SELECT count(*) FROM forks AS f CROSS JOIN gateways AS g ON g.tenant = f.tenant AND g.agent_id = f.agent_id
        WHERE f.tenant = $1 AND f.at > $2 AND g.revoked_at IS NULL) AS forks";

/// What keys were used for, each where it stands.
pub(super) async fn replays(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    asked: &[(Idempotency, Timestamp)],
) -> StoreResult<Vec<StoreResult<Option<Submission>>>> {
    let document: Vec<_> = asked
        .iter()
        .map(|(key, now)| {
            let since = now.saturating_sub(KEY_LIFE).unix_micros();
            (&key.principal, &key.route, &key.key, since)
        })
        .collect();
    let mut answers: Vec<_> = asked.iter().map(|_| Ok(None)).collect();
    if document.is_empty() {
        return Ok(answers);
    }
    let rows = sqlx::query(KEYS)
        .bind(tenant.as_str())
        .bind(to_json(&document))
        .fetch_all(&mut *connection)
        .await?;
    let mut used = Vec::new();
    for row in &rows {
        let reader = Reader::new("idempotency_keys", row);
        let number = reader.index("number")?;
        let (Some((key, _now)), Some(answer)) = (asked.get(number), answers.get_mut(number)) else {
            continue;
        };
        if reader.digest("request_hash")? == key.request_hash {
            used.push((number, reader.parse("run_id")?));
        } else {
            *answer = Ok(Some(Submission::IdempotencyMismatch));
        }
    }
    let runs: Vec<RunId> = used.iter().map(|(_, run_id)| *run_id).collect();
    for ((number, run_id), run) in used.iter().zip(load(connection, tenant, &runs).await?) {
        if let Some(answer) = answers.get_mut(*number) {
            let run = run?.ok_or_else(|| missing(*run_id));
            *answer = run.map(|run| Some(Submission::Replayed(run)));
        }
    }
    Ok(answers)
}

/// Runs, each where its id stands.
pub(super) async fn load(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    wanted: &[RunId],
) -> StoreResult<Vec<StoreResult<Option<Run>>>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let distinct: BTreeSet<_> = wanted.iter().collect();
    let rows = sqlx::query(RUNS)
        .bind(tenant.as_str())
        .bind(to_json(&distinct))
        .fetch_all(connection)
        .await?;
    let mut found = BTreeMap::new();
    for row in &rows {
        let run = read_run(row)?;
        found.insert(run.run_id, run);
    }
    let answers = wanted.iter().map(|run_id| Ok(found.get(run_id).cloned()));
    Ok(answers.collect())
}

async fn expected(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    run_id: RunId,
) -> StoreResult<Run> {
    let mut found = load(connection, tenant, &[run_id]).await?;
    found
        .pop()
        .unwrap_or(Ok(None))?
        .ok_or_else(|| missing(run_id))
}

fn missing(run_id: RunId) -> StoreError {
    StoreError::Inconsistent {
        table: "runs",
        column: "run_id",
        row: run_id.to_string(),
    }
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

/// The gateways that a run skipped.
pub(super) async fn skipped(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    run_id: RunId,
    page: Page<AgentId>,
) -> StoreResult<Listing<SkippedGateway, AgentId>> {
    let rows = sqlx::query(SKIPPED)
        .bind(tenant.as_str())
        .bind(run_id.to_string())
        .bind(
            page.after
                .map_or_else(String::new, |after| after.to_string()),
        )
        .bind(rows_wanted(page.limit))
        .fetch_all(connection)
        .await?;
    Fetched::new(rows, page.limit).listing(read_skipped, |skipped| skipped.skip.agent_id)
}

fn read_skipped(row: &SqliteRow) -> StoreResult<SkippedGateway> {
    let reader = Reader::new("run_skips", row);
    Ok(SkippedGateway {
        gateway: reader.parse("gateway")?,
        skip: Skip {
            agent_id: reader.parse("agent_id")?,
            code: reader.word("code", SkipCode::from_name)?,
            detail: reader.get("detail")?,
        },
    })
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
    now: Timestamp,
) -> StoreResult<Counts> {
    let row = sqlx::query(COUNTS)
        .bind(tenant.as_str())
        .bind(now.saturating_sub(RECENT).unix_micros())
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
        submitter: reader.get("submitter")?,
        created_at: reader.time("created_at")?,
        cancel_requested_at: reader.time_optional("cancel_requested_at")?,
        finished_at: reader.time_optional("finished_at")?,
        states: states(&reader, "states")?,
        skipped: reader.count("skipped")?,
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
