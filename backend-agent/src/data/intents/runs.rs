//! Runs: listed, shown and cancelled.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use viworks_api::SkipCode;
use viworks_common::catalogue::Risk;
use viworks_common::command::CommandState;
use viworks_common::id::{AgentId, CommandId, RunId};
use viworks_common::ledger::end;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Row, params};

use super::inbox::Post;
use super::link::Sql;
use super::page::{following, listing, preceding, rows_wanted};
use super::row::Reader;
use super::tx::{Tx, View};
use super::{audit, settle};
use crate::data::{
    Actor, AuditOutcome, Cancelled, Command, CommandRef, Counts, Idempotency, Letter, Listing,
    Page, Run, Skip, SkippedGateway, StoreError, StoreResult, Submission,
};

/// How long an `Idempotency-Key` is remembered.
pub(super) const KEY_LIFE: Duration = Duration::from_secs(24 * 3_600);

/// How long health speaks of what a gateway did wrong. A second holder that goes on comes back within the hour.
const RECENT: Duration = Duration::from_secs(24 * 3_600);

/// Gateways with a second holder that are named.
const FORKED_NAMED: usize = 5;

/// The columns that [`read_run`] reads, but for the states of its commands.
macro_rules! run_columns {
    ($find:literal) => {
        concat!("r.run_id, r.name, r.arguments, r.deadline, r.traceparent, r.reason, r.submitted_by, r.created_at, \
         (SELECT k.name FROM api_keys AS k WHERE k.tenant = r.tenant \
          AND ", $find, "(r.submitted_by, '", crate::data::api_key_word!(), ":') = 1 \
          AND k.id = substr(r.submitted_by, 1 + length('", crate::data::api_key_word!(), ":'))) AS submitter, \
         r.cancel_requested_at, r.finished_at, r.skipped, r.retry_of")
    };
}
pub(super) use run_columns;

/// The columns that [`read_run`] reads.
macro_rules! runs {
    ($rest:literal) => {
        Sql {
            sqlite: runs!("instr", "json_group_object(state, commands)", $rest),
            postgres: runs!("strpos", "coalesce(json_object_agg(state, commands), '{}')", $rest),
        }
    };
    ($find:literal, $states:literal, $rest:literal) => {
        concat!("SELECT ", run_columns!($find), ", \
         (SELECT ", $states, " FROM (SELECT c.state, count(*) AS commands FROM commands AS c \
          WHERE c.tenant = r.tenant AND c.run_id = r.run_id GROUP BY c.state) AS counted) AS states \
         FROM runs AS r WHERE r.tenant = :tenant ", $rest)
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
         WHERE c.tenant = :tenant ")
    };
}

/// What a key was used for, not too long ago.
pub(super) const KEY: &str = "\
SELECT run_id, request_hash FROM idempotency_keys
WHERE tenant = :tenant AND principal = :principal AND route = :route AND key = :key AND created_at > :since";

pub(super) const RUN: Sql = runs!("AND r.run_id = :run_id");

pub(super) const LIST: Sql = runs!("AND r.run_id < :before ORDER BY r.run_id DESC LIMIT :limit");

pub(super) const COMMAND: &str = concat!(commands!(""), "AND c.command_id = :command_id");

pub(super) const COMMANDS: &str = concat!(
    // Without the hint SQLite walks the primary key, which visits the commands of every later run.
    commands!("INDEXED BY commands_by_run"),
    "AND c.run_id = :run_id AND c.command_id > :after ORDER BY c.command_id LIMIT :limit"
);

pub(super) const SKIPPED: &str = "\
SELECT s.agent_id, s.code, s.detail, g.name AS gateway
FROM run_skips AS s JOIN gateways AS g ON g.tenant = s.tenant AND g.agent_id = s.agent_id
WHERE s.tenant = :tenant AND s.run_id = :run_id AND s.agent_id > :after ORDER BY s.agent_id LIMIT :limit";

pub(super) const CANCEL_RUN: &str = "\
UPDATE runs SET cancel_requested_at = coalesce(cancel_requested_at, CASE WHEN finished_at IS NULL THEN CAST(:now AS bigint) END)
WHERE tenant = :tenant AND run_id = :run_id";

pub(super) const CANCEL_COMMANDS: &str = "\
UPDATE commands INDEXED BY commands_by_run SET cancel_requested_at = coalesce(cancel_requested_at, :now)
WHERE tenant = :tenant AND run_id = :run_id AND finished_at IS NULL";

macro_rules! counts {
    ($states:literal) => {
        concat!(
            "\
SELECT :tenant AS tenant,
       (SELECT count(*) FROM gateways WHERE tenant = :tenant AND revoked_at IS NULL
        AND (ephemeral_ms IS NULL OR session_epoch IS NOT NULL)) AS gateways,
       (SELECT count(*) FROM gateways WHERE tenant = :tenant AND session_epoch IS NOT NULL) AS connected,
       (SELECT count(DISTINCT run_id) FROM commands INDEXED BY open_commands_by_deadline
        WHERE tenant = :tenant AND finished_at IS NULL) AS open_runs,
       (SELECT ", $states, " FROM (SELECT state, count(*) AS commands, min(created_at) AS oldest
        FROM commands INDEXED BY open_commands_by_deadline
        WHERE tenant = :tenant AND finished_at IS NULL GROUP BY state) AS counted) AS open_commands,
       (SELECT count(*) FROM dead_letters INDEXED BY open_dead_letters
        WHERE tenant = :tenant AND resolved_at IS NULL) AS dead_letters,
       (SELECT count(*) FROM orphan_results AS o CROSS JOIN gateways AS g
        WHERE g.tenant = o.tenant AND g.agent_id = o.agent_id AND o.tenant = :tenant AND o.received_at > :since AND g.revoked_at IS NULL) AS orphans,
       (SELECT count(*) FROM forks AS f CROSS JOIN gateways AS g
        WHERE g.tenant = f.tenant AND g.agent_id = f.agent_id AND f.tenant = :tenant AND f.at > :since AND f.resolved_at IS NULL AND g.revoked_at IS NULL) AS forks"
        )
    };
}

/// Whose forks those are, the latest first.
pub(super) const FORKED: &str = "\
SELECT g.name, count(*) OVER () AS gateways FROM forks AS f CROSS JOIN gateways AS g
WHERE g.tenant = f.tenant AND g.agent_id = f.agent_id AND f.tenant = :tenant AND f.at > :since AND f.resolved_at IS NULL
  AND g.revoked_at IS NULL
GROUP BY g.name ORDER BY max(f.at) DESC, g.name LIMIT :limit";

/// A run is open while one of its commands is: an index of open runs would have to be written by each end.
pub(super) const COUNTS: Sql = Sql {
    sqlite: counts!("json_group_object(state, json_array(commands, oldest))"),
    postgres: counts!("coalesce(json_object_agg(state, json_build_array(commands, oldest)), '{}')"),
};

/// What a key was used for.
pub(super) fn replay(
    view: &View<'_>,
    asked: &Idempotency,
    now: Timestamp,
) -> StoreResult<Option<Submission>> {
    let Idempotency {
        principal,
        route,
        key,
        request_hash,
    } = asked;
    let since = now.saturating_sub(KEY_LIFE);
    let used = view.optional(KEY, params! { principal, route, key, since }, |row| {
        let row = Reader::new("idempotency_keys", row);
        let run_id: RunId = row.get("run_id")?;
        Ok((run_id, row.get::<[u8; 32]>("request_hash")?))
    })?;
    Ok(match used {
        Some((run_id, hash)) if hash == *request_hash => {
            Some(Submission::Replayed(expected(view, run_id)?))
        }
        Some(_other) => Some(Submission::IdempotencyMismatch),
        None => None,
    })
}

/// A run.
pub(super) fn load(view: &View<'_>, run_id: RunId) -> StoreResult<Option<Run>> {
    view.optional(RUN, params! { run_id }, read_run)
}

pub(super) fn expected(view: &View<'_>, run_id: RunId) -> StoreResult<Run> {
    load(view, run_id)?.ok_or_else(|| StoreError::Inconsistent {
        table: "runs",
        column: "run_id",
        row: run_id.to_string(),
    })
}

/// Runs, newest first.
pub(super) fn list(view: &View<'_>, page: Page<RunId>) -> StoreResult<Listing<Run, RunId>> {
    let (before, limit) = (preceding(page.after), rows_wanted(page.limit));
    let rows = view.page(LIST, params! { before, limit }, read_run)?;
    Ok(listing(rows, page.limit, |run| run.run_id))
}

/// One command.
pub(super) fn command(view: &View<'_>, command_id: CommandId) -> StoreResult<Option<Command>> {
    view.optional(COMMAND, params! { command_id }, read_command)
}

/// The commands of a run.
pub(super) fn commands(
    view: &View<'_>,
    run_id: RunId,
    page: Page<CommandId>,
) -> StoreResult<Listing<Command, CommandId>> {
    let (after, limit) = (following(page.after), rows_wanted(page.limit));
    let rows = view.page(COMMANDS, params! { run_id, after, limit }, read_command)?;
    Ok(listing(rows, page.limit, |command| command.command_id))
}

/// The gateways that a run skipped.
pub(super) fn skipped(
    view: &View<'_>,
    run_id: RunId,
    page: Page<AgentId>,
) -> StoreResult<Listing<SkippedGateway, AgentId>> {
    let (after, limit) = (following(page.after), rows_wanted(page.limit));
    let rows = view.page(SKIPPED, params! { run_id, after, limit }, |row| {
        let row = Reader::new("run_skips", row);
        Ok(SkippedGateway {
            gateway: row.get("gateway")?,
            skip: Skip {
                agent_id: row.get("agent_id")?,
                code: row.word("code", SkipCode::from_name)?,
                detail: row.get("detail")?,
            },
        })
    })?;
    Ok(listing(rows, page.limit, |skipped| skipped.skip.agent_id))
}

/// Cancels what has no permit, and asks for the end of the rest.
pub(super) fn cancel(tx: &Tx<'_>, run_id: RunId, actor: &Actor) -> StoreResult<Option<Cancelled>> {
    let open = settle::load_open_of_run(tx, run_id)?;
    tx.lock(open.iter().map(|command| command.agent_id))?;
    if tx.execute(CANCEL_RUN, params! { run_id })? == 0 {
        return Ok(None);
    }
    tx.execute(CANCEL_COMMANDS, params! { run_id })?;
    let (mut cancelled, mut requested) = (Vec::new(), Vec::new());
    for standing in settle::load_open_of_run(tx, run_id)? {
        let reference = CommandRef {
            command_id: standing.command_id,
            agent_id: standing.agent_id,
        };
        tx.post(Post {
            to: None,
            agent_id: reference.agent_id,
            letter: Letter::Cancel(reference.command_id),
        });
        let change = end::cancel(standing, tx.now);
        settle::write(tx, &change, actor)?;
        if change.is_some() {
            cancelled.push(reference);
        } else {
            requested.push(reference);
        }
    }
    let detail = json!({ "cancelled": cancelled.len(), "requested": requested.len() });
    let object = format!("run:{run_id}");
    audit::append(
        tx,
        actor,
        "run.cancel",
        &object,
        AuditOutcome::Done,
        &detail,
    )?;
    Ok(Some(Cancelled {
        cancelled,
        requested,
        run: expected(tx, run_id)?,
    }))
}

/// How many of what there is.
pub(super) fn counts(view: &View<'_>, now: Timestamp) -> StoreResult<Counts> {
    let since = now.saturating_sub(RECENT);
    let mut counts = view.one(COUNTS, params! { since }, |row| {
        let row = Reader::new("commands", row);
        // Of each state how many there are, and when the oldest of them was submitted.
        let open: BTreeMap<CommandState, (u64, i64)> = row.json("open_commands")?;
        let queued = open.get(&CommandState::Queued);
        let oldest_queued_at = queued.map(|(_count, at)| Timestamp::from_unix_micros(*at));
        Ok(Counts {
            gateways: row.get("gateways")?,
            connected: row.get("connected")?,
            open_runs: row.get("open_runs")?,
            open_commands: open
                .into_iter()
                .map(|(state, (count, _oldest))| (state, count))
                .collect(),
            oldest_queued_at,
            dead_letters: row.get("dead_letters")?,
            orphans: row.get("orphans")?,
            forks: row.get("forks")?,
            forked: 0,
            forked_first: Vec::new(),
        })
    })?;
    if counts.forks > 0 {
        let limit = FORKED_NAMED;
        let mut gateways = 0;
        counts.forked_first = view.all(FORKED, params! { since, limit }, |row| {
            let row = Reader::new("forks", row);
            gateways = row.get("gateways")?;
            row.get("name")
        })?;
        counts.forked = gateways;
    }
    Ok(counts)
}

pub(super) fn read_run(row: &Row<'_>) -> StoreResult<Run> {
    let row = Reader::new("runs", row);
    Ok(Run {
        run_id: row.get("run_id")?,
        name: row.get("name")?,
        arguments: row.json("arguments")?,
        deadline: row.get("deadline")?,
        traceparent: row.get("traceparent")?,
        reason: row.get("reason")?,
        submitted_by: row.get("submitted_by")?,
        submitter: row.get("submitter")?,
        created_at: row.get("created_at")?,
        cancel_requested_at: row.get("cancel_requested_at")?,
        finished_at: row.get("finished_at")?,
        states: row.json("states")?,
        skipped: row.get("skipped")?,
        retry_of: row.get("retry_of")?,
    })
}

fn read_command(row: &Row<'_>) -> StoreResult<Command> {
    let row = Reader::new("commands", row);
    Ok(Command {
        command_id: row.get("command_id")?,
        run_id: row.get("run_id")?,
        agent_id: row.get("agent_id")?,
        gateway: row.get("gateway")?,
        order: row.get("order_no")?,
        name: row.get("name")?,
        state: row.word("state", CommandState::from_name)?,
        idempotent: row.get("idempotent")?,
        risk: row.word("risk", Risk::from_name)?,
        timeout_ms: row.get("timeout_ms")?,
        attempt: row.get("attempt")?,
        deadline: row.get("deadline")?,
        created_at: row.get("created_at")?,
        released_at: row.get("released_at")?,
        started_at: row.get("started_at")?,
        finished_at: row.get("finished_at")?,
        cancel_requested_at: row.get("cancel_requested_at")?,
        result: row.json_optional("result")?,
        late_outcome: row.json_optional("late_outcome")?,
        reason: row.get("reason")?,
    })
}
