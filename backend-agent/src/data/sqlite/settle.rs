//! The one place where a command changes its state, with everything that follows from its end.

use serde_json::json;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use viworks_common::command::{CommandEvent, CommandState, Transition, transition};
use viworks_common::id::{AgentId, AgentRunId, CommandId, RunId, Tenant};
use viworks_common::time::Timestamp;

use super::audit;
use super::row::{Reader, int};
use crate::data::{Actor, AuditOutcome, Settled, StoreError, StoreResult};

/// The columns that [`CommandRow::read`] reads.
macro_rules! rows {
    () => {
        "SELECT command_id, run_id, agent_id, state, idempotent, attempt, available_at, deadline, released_to, \
         released_at, started_at, cancel_requested_at, result IS NOT NULL AS has_result, \
         late_outcome IS NOT NULL AS has_late_outcome FROM commands "
    };
}

pub(super) const LOAD: &str = concat!(
    rows!(),
    "WHERE tenant = ?1 AND command_id = ?2 AND agent_id = ?3"
);

pub(super) const LOAD_OPEN_OF_GATEWAY: &str = concat!(
    rows!(),
    "WHERE tenant = ?1 AND agent_id = ?2 AND order_no <= ?3 AND finished_at IS NULL ORDER BY order_no"
);

pub(super) const LOAD_OPEN_OF_RUN: &str = concat!(
    rows!(),
    "INDEXED BY commands_by_run WHERE tenant = ?1 AND run_id = ?2 AND finished_at IS NULL ORDER BY command_id"
);

pub(super) const LOAD_UNSTARTED_PAST_DEADLINE: &str = concat!(
    rows!(),
    "WHERE tenant = ?1 AND finished_at IS NULL AND state IN ('queued', 'dispatched') AND deadline <= ?2 ORDER BY deadline LIMIT ?3"
);

pub(super) const LOAD_OVERDUE: &str = concat!(
    rows!(),
    "WHERE tenant = ?1 AND finished_at IS NULL AND state IN ('released', 'running') AND deadline <= ?2 AND deadline + 1000 * timeout_ms <= ?2 ORDER BY deadline LIMIT ?3"
);

pub(super) const MOVE: &str = "\
UPDATE commands SET state = ?4, idempotent = ?5, attempt = ?6, available_at = ?7, released_to = ?8, released_at = ?9,
       started_at = ?10, finished_at = ?11, result = coalesce(?12, result), reason = coalesce(?13, reason)
WHERE tenant = ?1 AND command_id = ?2 AND state = ?3";

pub(super) const LEAVE_GATEWAY: &str = "\
UPDATE gateways SET open_commands = open_commands - 1, low_water = max(low_water, coalesce(
    (SELECT min(order_no) - 1 FROM commands WHERE tenant = ?1 AND agent_id = ?2 AND finished_at IS NULL),
    next_order - 1))
WHERE tenant = ?1 AND agent_id = ?2";

pub(super) const RAISE_LOW_WATER: &str = "\
UPDATE gateways SET low_water = max(low_water, coalesce(
    (SELECT min(order_no) - 1 FROM commands WHERE tenant = ?1 AND agent_id = ?2 AND finished_at IS NULL),
    next_order - 1))
WHERE tenant = ?1 AND agent_id = ?2";

pub(super) const LEAVE_RUN: &str = "\
UPDATE runs SET open_commands = open_commands - 1, finished_at = CASE WHEN open_commands = 1 THEN ?3 END
WHERE tenant = ?1 AND run_id = ?2 RETURNING open_commands = 0";

/// A command as its state changes see it.
#[derive(Debug, Clone)]
pub(super) struct CommandRow {
    pub(super) command_id: CommandId,
    pub(super) run_id: RunId,
    pub(super) agent_id: AgentId,
    pub(super) state: CommandState,
    pub(super) idempotent: bool,
    pub(super) attempt: u32,
    pub(super) available_at: Timestamp,
    pub(super) deadline: Timestamp,
    pub(super) released_to: Option<AgentRunId>,
    released_at: Option<Timestamp>,
    pub(super) started_at: Option<Timestamp>,
    pub(super) cancel_requested: bool,
    pub(super) has_result: bool,
    pub(super) has_late_outcome: bool,
    run_finished: bool,
}

impl CommandRow {
    pub(super) fn read(row: &SqliteRow) -> StoreResult<Self> {
        let reader = Reader::new("commands", row);
        Ok(Self {
            command_id: reader.parse("command_id")?,
            run_id: reader.parse("run_id")?,
            agent_id: reader.parse("agent_id")?,
            state: reader.word("state", CommandState::from_name)?,
            idempotent: reader.get("idempotent")?,
            attempt: reader.small("attempt")?,
            available_at: reader.time("available_at")?,
            deadline: reader.time("deadline")?,
            released_to: reader.parse_optional("released_to")?,
            released_at: reader.time_optional("released_at")?,
            started_at: reader.time_optional("started_at")?,
            cancel_requested: reader.time_optional("cancel_requested_at")?.is_some(),
            has_result: reader.get("has_result")?,
            has_late_outcome: reader.get("has_late_outcome")?,
            run_finished: false,
        })
    }

    pub(super) const fn settled(&self) -> Settled {
        Settled {
            command_id: self.command_id,
            agent_id: self.agent_id,
            run_id: self.run_id,
            state: self.state,
            run_finished: self.run_finished,
        }
    }
}

/// What an event brings along besides the change of state.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Note<'a> {
    /// Why the command ended, for the operator.
    pub(super) reason: Option<&'a str>,
    /// How it ended, as a document.
    pub(super) result: Option<&'a str>,
}

/// Raises the low-water mark past orders that no command of this database has.
pub(super) async fn raise_low_water(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    agent_id: AgentId,
) -> StoreResult<()> {
    sqlx::query(RAISE_LOW_WATER)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .execute(connection)
        .await?;
    Ok(())
}

/// One command of one gateway.
pub(super) async fn load(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    agent_id: AgentId,
    command_id: CommandId,
) -> StoreResult<Option<CommandRow>> {
    let row = sqlx::query(LOAD)
        .bind(tenant.as_str())
        .bind(command_id.to_string())
        .bind(agent_id.to_string())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(CommandRow::read).transpose()
}

/// The commands of a gateway up to `order` that are not final.
pub(super) async fn load_open(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    agent_id: AgentId,
    order: u64,
) -> StoreResult<Vec<CommandRow>> {
    let rows = sqlx::query(LOAD_OPEN_OF_GATEWAY)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .bind(int(order))
        .fetch_all(connection)
        .await?;
    rows.iter().map(CommandRow::read).collect()
}

/// Lets `event` happen to a command: its row, its gateway's and its run's counters, and the audit record of its end.
///
/// What the caller changed in `row` (attempt, permit, times, the stricter idempotence) is written along with the state.
pub(super) async fn apply(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    row: &mut CommandRow,
    event: CommandEvent,
    note: Note<'_>,
    actor: &Actor,
    now: Timestamp,
) -> StoreResult<Transition> {
    let decision = transition(row.state, event, row.idempotent);
    let Transition::To(next) = decision else {
        return Ok(decision);
    };
    match next {
        CommandState::Queued | CommandState::Dispatched => {
            row.released_to = None;
            row.released_at = None;
            row.started_at = None;
        }
        CommandState::Released => row.released_at = Some(now),
        CommandState::Running
        | CommandState::Succeeded
        | CommandState::Failed
        | CommandState::TimedOut
        | CommandState::Rejected
        | CommandState::Expired
        | CommandState::Cancelled
        | CommandState::Dead
        | CommandState::Indeterminate => {}
    }
    write(connection, tenant, row, next, note, now).await?;
    row.state = next;
    if next.is_final() {
        finish(connection, tenant, row, note, actor, now).await?;
    }
    Ok(decision)
}

/// Writes what the caller changed without a change of state, such as the permit's new holder.
pub(super) async fn rewrite(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    row: &CommandRow,
    now: Timestamp,
) -> StoreResult<()> {
    write(connection, tenant, row, row.state, Note::default(), now).await
}

async fn write(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    row: &CommandRow,
    next: CommandState,
    note: Note<'_>,
    now: Timestamp,
) -> StoreResult<()> {
    let done = sqlx::query(MOVE)
        .bind(tenant.as_str())
        .bind(row.command_id.to_string())
        .bind(row.state.name())
        .bind(next.name())
        .bind(row.idempotent)
        .bind(row.attempt)
        .bind(row.available_at.unix_micros())
        .bind(row.released_to.map(|run| run.to_string()))
        .bind(row.released_at.map(Timestamp::unix_micros))
        .bind(row.started_at.map(Timestamp::unix_micros))
        .bind(next.is_final().then_some(now.unix_micros()))
        .bind(note.result)
        .bind(note.reason)
        .execute(connection)
        .await?;
    if done.rows_affected() == 1 {
        return Ok(());
    }
    // There is one writer, so the row cannot have moved since it was read in this transaction.
    Err(StoreError::Inconsistent {
        table: "commands",
        column: "state",
        row: row.command_id.to_string(),
    })
}

async fn finish(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    row: &mut CommandRow,
    note: Note<'_>,
    actor: &Actor,
    now: Timestamp,
) -> StoreResult<()> {
    sqlx::query(LEAVE_GATEWAY)
        .bind(tenant.as_str())
        .bind(row.agent_id.to_string())
        .execute(&mut *connection)
        .await?;
    row.run_finished = sqlx::query_scalar(LEAVE_RUN)
        .bind(tenant.as_str())
        .bind(row.run_id.to_string())
        .bind(now.unix_micros())
        .fetch_one(&mut *connection)
        .await?;
    let detail = json!({ "state": row.state, "run_id": row.run_id, "agent_id": row.agent_id, "reason": note.reason });
    let object = format!("command:{}", row.command_id);
    let record = audit::record(actor, "command.end", object, AuditOutcome::Done, detail);
    audit::append(connection, tenant, &record, now).await
}
