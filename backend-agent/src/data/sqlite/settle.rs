//! The one place where a command changes its state, with everything that follows from its end.

use serde_json::json;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Row, Sqlite, SqliteConnection};
use viworks_common::command::{CommandEvent, CommandState, Transition, transition};
use viworks_common::id::{AgentId, AgentRunId, CommandId, RunId, Tenant};
use viworks_common::time::Timestamp;

use super::audit;
use super::row::{Reader, int};
use crate::data::{Actor, AuditOutcome, Holder, Settled, StoreError, StoreResult};

/// The columns that [`CommandRow::read`] reads.
macro_rules! columns {
    () => {
        "c.command_id, c.run_id, c.agent_id, c.state, c.idempotent, c.attempt, c.available_at, c.deadline, \
         c.released_to, c.released_at, c.started_at, c.cancel_requested_at, c.result IS NOT NULL AS has_result, \
         c.late_outcome IS NOT NULL AS has_late_outcome "
    };
}

macro_rules! rows {
    () => {
        concat!("SELECT ", columns!(), "FROM commands AS c ")
    };
}

/// Nothing where the session is fenced, the low-water mark alone where its gateway has no such command.
pub(super) const LOAD: &str = concat!(
    "SELECT g.low_water, ",
    columns!(),
    "FROM gateways AS g \
     LEFT JOIN commands AS c ON c.tenant = g.tenant AND c.command_id = $4 AND c.agent_id = g.agent_id \
     WHERE g.tenant = $1 AND g.agent_id = $2 AND g.confirmed = $3 AND g.revoked_at IS NULL"
);

pub(super) const LOAD_OPEN_OF_GATEWAY: &str = concat!(
    rows!(),
    "WHERE tenant = $1 AND agent_id = $2 AND order_no <= $3 AND finished_at IS NULL ORDER BY order_no"
);

pub(super) const LOAD_OPEN_OF_RUN: &str = concat!(
    rows!(),
    "INDEXED BY commands_by_run WHERE tenant = $1 AND run_id = $2 AND finished_at IS NULL ORDER BY command_id"
);

pub(super) const LOAD_UNSTARTED_PAST_DEADLINE: &str = concat!(
    rows!(),
    "WHERE tenant = $1 AND finished_at IS NULL AND state IN ('queued', 'dispatched') AND deadline <= $2 ORDER BY deadline LIMIT $3"
);

pub(super) const LOAD_OVERDUE: &str = concat!(
    rows!(),
    "WHERE tenant = $1 AND finished_at IS NULL AND state IN ('released', 'running') AND deadline <= $2 AND deadline + 1000 * timeout_ms <= $2 ORDER BY deadline LIMIT $3"
);

macro_rules! change_state {
    () => {
        "UPDATE commands SET state = $4, idempotent = $5, attempt = $6, available_at = $7, released_to = $8, \
         released_at = $9, started_at = $10, finished_at = $11, result = coalesce($12, result), \
         reason = coalesce($13, reason) WHERE tenant = $1 AND command_id = $2 AND state = $3 RETURNING 1"
    };
}

pub(super) const MOVE: &str = change_state!();

/// A command's end with all that follows from it, as one script: each statement by itself would be a journey to the
/// driver's thread and back. Its rows are that of the command, the gateway's low-water mark, and whether the run is
/// finished. Its parameters are `$n` because the driver miscounts the unused ones below the highest `?n` of a statement.
pub(super) const FINISH: &str = concat!(
    change_state!(),
    "; UPDATE gateways SET open_commands = open_commands - 1, low_water = max(low_water, coalesce( \
         (SELECT min(order_no) - 1 FROM commands WHERE tenant = $1 AND agent_id = $14 AND finished_at IS NULL), \
         next_order - 1)) \
       WHERE tenant = $1 AND agent_id = $14 RETURNING low_water; \
       UPDATE runs SET open_commands = open_commands - 1, finished_at = CASE WHEN open_commands = 1 THEN $11 END \
       WHERE tenant = $1 AND run_id = $15 RETURNING open_commands = 0; ",
    audit::appending!("$11", "$16", "$17", "$18", "$19", "$20", "$21", "$22")
);

pub(super) const RAISE_LOW_WATER: &str = "\
UPDATE gateways SET low_water = max(low_water, coalesce(
    (SELECT min(order_no) - 1 FROM commands WHERE tenant = $1 AND agent_id = $2 AND finished_at IS NULL),
    next_order - 1))
WHERE tenant = $1 AND agent_id = $2 RETURNING low_water";

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
    /// The gateway's low-water mark, once the command's end moved it.
    pub(super) low_water: Option<u64>,
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
            low_water: None,
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

/// Raises the low-water mark past orders that no command of this database has; answers where it is.
pub(super) async fn raise_low_water(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    agent_id: AgentId,
) -> StoreResult<u64> {
    let row = sqlx::query(RAISE_LOW_WATER)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .fetch_one(connection)
        .await?;
    Reader::new("gateways", &row).count("low_water")
}

/// What a session has to do with.
pub(super) struct Held {
    /// Up to which order everything of its gateway is final.
    pub(super) low_water: u64,
    /// The command, when its gateway has it.
    pub(super) command: Option<CommandRow>,
}

/// One command, for the session that holds its gateway. Any other is fenced.
pub(super) async fn load(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    holder: Holder,
    command_id: CommandId,
) -> StoreResult<Held> {
    let row = sqlx::query(LOAD)
        .bind(tenant.as_str())
        .bind(holder.agent_id.to_string())
        .bind(int(holder.epoch))
        .bind(command_id.to_string())
        .fetch_optional(connection)
        .await?
        .ok_or(StoreError::Fenced)?;
    let reader = Reader::new("commands", &row);
    let known: Option<String> = reader.get("command_id")?;
    Ok(Held {
        low_water: reader.count("low_water")?,
        command: known.map(|_id| CommandRow::read(&row)).transpose()?,
    })
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
    let from = std::mem::replace(&mut row.state, next);
    if next.is_final() {
        finish(connection, tenant, row, from, note, actor, now).await?;
    } else {
        write(connection, tenant, row, from, note).await?;
    }
    Ok(decision)
}

/// Writes what the caller changed without a change of state, such as the permit's new holder.
pub(super) async fn rewrite(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    row: &CommandRow,
) -> StoreResult<()> {
    write(connection, tenant, row, row.state, Note::default()).await
}

/// Binds the parameters of a change of state.
fn bind<'q>(
    sql: &'static str,
    tenant: &'q Tenant,
    row: &CommandRow,
    from: CommandState,
    note: Note<'q>,
    finished_at: Option<Timestamp>,
) -> Query<'q, Sqlite, SqliteArguments> {
    sqlx::query(sql)
        .bind(tenant.as_str())
        .bind(row.command_id.to_string())
        .bind(from.name())
        .bind(row.state.name())
        .bind(row.idempotent)
        .bind(row.attempt)
        .bind(row.available_at.unix_micros())
        .bind(row.released_to.map(|run| run.to_string()))
        .bind(row.released_at.map(Timestamp::unix_micros))
        .bind(row.started_at.map(Timestamp::unix_micros))
        .bind(finished_at.map(Timestamp::unix_micros))
        .bind(note.result)
        .bind(note.reason)
}

async fn write(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    row: &CommandRow,
    from: CommandState,
    note: Note<'_>,
) -> StoreResult<()> {
    let written = bind(MOVE, tenant, row, from, note, None)
        .fetch_optional(connection)
        .await?;
    written.map(drop).ok_or_else(|| moved(row))
}

/// There is one writer, so a row cannot have moved since it was read in this transaction.
fn moved(row: &CommandRow) -> StoreError {
    StoreError::Inconsistent {
        table: "commands",
        column: "state",
        row: row.command_id.to_string(),
    }
}

async fn finish(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    row: &mut CommandRow,
    from: CommandState,
    note: Note<'_>,
    actor: &Actor,
    now: Timestamp,
) -> StoreResult<()> {
    let detail = json!({ "state": row.state, "run_id": row.run_id, "agent_id": row.agent_id, "reason": note.reason });
    let object = format!("command:{}", row.command_id);
    let record = audit::record(actor, "command.end", object, AuditOutcome::Done, detail);
    let finish = bind(FINISH, tenant, row, from, note, Some(now))
        .bind(row.agent_id.to_string())
        .bind(row.run_id.to_string());
    let rows = audit::bind(finish, &record).fetch_all(connection).await?;
    let [_command, gateway, run] = rows.as_slice() else {
        return Err(moved(row));
    };
    row.low_water = Some(Reader::new("gateways", gateway).count("low_water")?);
    row.run_finished = run.try_get(0)?;
    Ok(())
}
