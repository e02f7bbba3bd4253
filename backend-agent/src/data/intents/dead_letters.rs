//! Commands that could not be delivered: kept, listed, retried once, discarded, and forgotten in the end.

use std::time::Duration;

use serde_json::{Value, json};
use viworks_common::id::{CommandId, RunId};
use viworks_common::ledger::Command;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Row, params};

use super::keys::name_of_key;
use super::page::{listing, preceding, rows_wanted};
use super::row::Reader;
use super::tx::{Tx, View};
use super::{audit, runs};
use crate::data::{
    Actor, AuditOutcome, DeadLetter, DeadLetterFilter, DeadLetterRequest, Listing, Page,
    StoreError, StoreResult, Submission,
};

/// How many are kept of one gateway. Beyond, the oldest that are resolved go first; what goes stays as a command of its
/// run.
const OF_GATEWAY_MAX: usize = 100;

/// How many are kept in all, unless a store is told otherwise.
pub(super) const ALL_MAX: usize = 10_000;

/// How many go in one step.
const STEP: usize = 500;

/// How long one is kept that was retried or discarded.
const RESOLVED_LIFE: Duration = Duration::from_secs(30 * 24 * 3_600);

/// The columns that [`read`] reads.
macro_rules! rows {
    ($index:literal, $rest:literal) => {
        concat!(
            "SELECT d.command_id, d.dead_at, d.resolved_at, d.resolved_by, ",
            name_of_key!("d", "d.resolved_by"),
            " AS resolver, d.retry_run_id, c.run_id, c.agent_id, \
             c.attempt, c.reason AS cause, g.name AS gateway, r.name, r.arguments, r.timeout_ms, r.reason, r.created_at, r.deadline \
             FROM dead_letters AS d ", $index, " \
             CROSS JOIN commands AS c CROSS JOIN gateways AS g CROSS JOIN runs AS r \
             WHERE c.tenant = d.tenant AND c.command_id = d.command_id AND g.tenant = d.tenant AND g.agent_id = c.agent_id \
             AND r.tenant = d.tenant AND r.run_id = c.run_id AND d.tenant = :tenant ", $rest
        )
    };
}

pub(super) const BY_ID: &str = rows!("", "AND d.command_id = :command_id");

pub(super) const LIST: &str = rows!(
    "",
    "AND d.command_id < :before ORDER BY d.command_id DESC LIMIT :limit"
);

pub(super) const LIST_OF_GATEWAY: &str = rows!(
    "INDEXED BY dead_letters_by_gateway",
    "AND d.agent_id = :agent_id AND d.command_id < :before ORDER BY d.command_id DESC LIMIT :limit"
);

pub(super) const OPEN: &str = rows!(
    "INDEXED BY open_dead_letters",
    "AND d.resolved_at IS NULL AND d.command_id < :before ORDER BY d.command_id DESC LIMIT :limit"
);

pub(super) const OPEN_OF_GATEWAY: &str = rows!(
    "INDEXED BY dead_letters_by_gateway",
    "AND d.agent_id = :agent_id AND d.resolved_at IS NULL AND d.command_id < :before \
     ORDER BY d.command_id DESC LIMIT :limit"
);

pub(super) const KEEP: &str = "\
INSERT INTO dead_letters (tenant, command_id, agent_id, dead_at) VALUES (:tenant, :command_id, :agent_id, :now)";

pub(super) const TRIM_GATEWAY: &str = "\
DELETE FROM dead_letters WHERE tenant = :tenant AND command_id IN (
    SELECT d.command_id FROM dead_letters AS d INDEXED BY dead_letters_by_gateway
    WHERE d.tenant = :tenant AND d.agent_id = :agent_id
    ORDER BY d.resolved_at IS NOT NULL, d.command_id DESC LIMIT :limit OFFSET :kept)
RETURNING resolved_at IS NULL AS open";

pub(super) const TRIM: &str = "\
DELETE FROM dead_letters WHERE tenant = :tenant AND command_id IN (
    SELECT d.command_id FROM dead_letters AS d WHERE d.tenant = :tenant
    ORDER BY d.resolved_at IS NOT NULL, d.command_id DESC LIMIT :limit OFFSET :kept)
RETURNING resolved_at IS NULL AS open";

pub(super) const PURGE: &str = "\
DELETE FROM dead_letters WHERE tenant = :tenant AND command_id IN (
    SELECT d.command_id FROM dead_letters AS d INDEXED BY dead_letters_by_resolution
    WHERE d.tenant = :tenant AND d.resolved_at <= :until LIMIT :limit)";

pub(super) const RETRY: &str = "\
UPDATE dead_letters SET resolved_at = :now, resolved_by = :by, retry_run_id = :run_id
WHERE tenant = :tenant AND command_id = :command_id AND resolved_at IS NULL";

pub(super) const DISCARD: &str = "\
UPDATE dead_letters SET resolved_at = :now, resolved_by = :by
WHERE tenant = :tenant AND command_id = :command_id AND resolved_at IS NULL";

/// Keeps a command that has just died, in the transaction that ends it; answers how many go for it that nobody had
/// decided about.
pub(super) fn keep(tx: &Tx<'_>, command: &Command) -> StoreResult<u64> {
    let Command {
        command_id,
        agent_id,
        ..
    } = command;
    tx.execute(KEEP, params! { command_id, agent_id })?;
    let (kept, limit) = (OF_GATEWAY_MAX, STEP);
    let gone = tx.all(TRIM_GATEWAY, params! { agent_id, kept, limit }, is_open)?;
    Ok(count_open(&gone))
}

/// One of them.
pub(super) fn load(view: &View<'_>, command_id: CommandId) -> StoreResult<Option<DeadLetter>> {
    view.optional(BY_ID, params! { command_id }, read)
}

/// Those that are meant, the command that was submitted last first.
pub(super) fn list(
    view: &View<'_>,
    filter: DeadLetterFilter,
    page: Page<CommandId>,
) -> StoreResult<Listing<DeadLetter, CommandId>> {
    let (before, limit) = (preceding(page.after), rows_wanted(page.limit));
    let rows = match (filter.agent_id, filter.resolved_too) {
        (None, true) => view.page(LIST, params! { before, limit }, read),
        (None, false) => view.page(OPEN, params! { before, limit }, read),
        (Some(agent_id), true) => {
            view.page(LIST_OF_GATEWAY, params! { agent_id, before, limit }, read)
        }
        (Some(agent_id), false) => {
            view.page(OPEN_OF_GATEWAY, params! { agent_id, before, limit }, read)
        }
    };
    Ok(listing(rows?, page.limit, |letter| letter.command_id))
}

/// What a run that retries one is answered with, unless it is to be submitted. Behind the lock of its gateway.
pub(super) fn answered(tx: &Tx<'_>, command_id: CommandId) -> StoreResult<Option<Submission>> {
    let Some(letter) = load(tx, command_id)? else {
        return Ok(Some(Submission::Resolved));
    };
    Ok(match (letter.retry_run_id, letter.resolved_at) {
        (Some(run_id), _) => Some(Submission::Replayed(runs::expected(tx, run_id)?)),
        (None, Some(_discarded)) => Some(Submission::Resolved),
        (None, None) => None,
    })
}

/// Notes which run retries one.
pub(super) fn retried(
    tx: &Tx<'_>,
    command_id: CommandId,
    run_id: RunId,
    actor: &Actor,
) -> StoreResult<()> {
    let by = actor.to_string();
    if tx.execute(RETRY, params! { command_id, run_id, by })? != 1 {
        // Its gateway is locked, so it stands as it was read in this transaction: nobody has decided about it.
        return Err(StoreError::Inconsistent {
            table: "dead_letters",
            column: "resolved_at",
            row: command_id.to_string(),
        });
    }
    note(
        tx,
        actor,
        "dead_letter.retry",
        command_id,
        &json!({ "run_id": run_id }),
    )
}

/// Discards one, unless it was retried; answers it as it stands afterwards.
pub(super) fn discard(
    tx: &Tx<'_>,
    command_id: CommandId,
    actor: &Actor,
) -> StoreResult<Option<DeadLetter>> {
    let Some(letter) = load(tx, command_id)? else {
        return Ok(None);
    };
    // Whoever retries it at the same moment is first, or comes too late.
    tx.lock([letter.agent_id])?;
    let by = actor.to_string();
    if tx.execute(DISCARD, params! { command_id, by })? == 1 {
        note(tx, actor, "dead_letter.discard", command_id, &json!({}))?;
    }
    load(tx, command_id)
}

/// Deletes some of those that have served, or of those beyond `most`; answers how many, and about how many of them
/// nobody had decided.
pub(super) fn purge(tx: &Tx<'_>, most: usize, limit: usize) -> StoreResult<(usize, u64)> {
    let until = tx.now.saturating_sub(RESOLVED_LIFE);
    let purged = tx.execute(PURGE, params! { until, limit })?;
    if purged == limit {
        return Ok((purged, 0));
    }
    let (kept, limit) = (most, limit - purged);
    let gone = tx.all(TRIM, params! { kept, limit }, is_open)?;
    Ok((purged + gone.len(), count_open(&gone)))
}

fn is_open(row: &Row<'_>) -> StoreResult<bool> {
    Reader::new("dead_letters", row).get("open")
}

fn count_open(gone: &[bool]) -> u64 {
    let open = gone.iter().filter(|is_open| **is_open).count();
    u64::try_from(open).unwrap_or(u64::MAX)
}

fn note(
    tx: &Tx<'_>,
    actor: &Actor,
    action: &str,
    command_id: CommandId,
    detail: &Value,
) -> StoreResult<()> {
    let object = format!("command:{command_id}");
    audit::append(tx, actor, action, &object, AuditOutcome::Done, detail)
}

fn read(row: &Row<'_>) -> StoreResult<DeadLetter> {
    let row = Reader::new("dead_letters", row);
    let (created_at, deadline) = (row.get("created_at")?, row.get("deadline")?);
    Ok(DeadLetter {
        command_id: row.get("command_id")?,
        run_id: row.get("run_id")?,
        agent_id: row.get("agent_id")?,
        gateway: row.get("gateway")?,
        name: row.get("name")?,
        attempts: row.get("attempt")?,
        cause: row.get("cause")?,
        dead_at: row.get("dead_at")?,
        resolved_at: row.get("resolved_at")?,
        resolved_by: row.get("resolved_by")?,
        resolver: row.get("resolver")?,
        retry_run_id: row.get("retry_run_id")?,
        request: DeadLetterRequest {
            arguments: row.json("arguments")?,
            deadline: span(created_at, deadline),
            timeout_ms: row.get("timeout_ms")?,
            reason: row.get("reason")?,
        },
    })
}

/// How long its submission gave it to start.
fn span(created_at: Timestamp, deadline: Timestamp) -> Duration {
    deadline.saturating_since(created_at)
}
