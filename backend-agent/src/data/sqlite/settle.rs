//! The one place where a command changes its state, with everything that follows from its end.

use std::collections::{BTreeMap, BTreeSet};
use std::slice;

use serde_json::{Value, json};
use sqlx::sqlite::SqliteRow;
use sqlx::{Column, Row, SqliteConnection};
use viworks_common::command::{CommandEvent, CommandState, Transition, transition};
use viworks_common::id::{AgentId, AgentRunId, CommandId, RunId, Tenant};
use viworks_common::time::Timestamp;

use super::audit;
use super::row::{Reader, int, to_json};
use crate::data::{Actor, AuditOutcome, Holder, NewAuditRecord, Settled, StoreError, StoreResult};

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

/// The commands that are not final of the gateways whose ids come first in the elements of document `$2`.
macro_rules! open_of_gateways {
    () => {
        "SELECT c.command_id, c.run_id, c.agent_id, c.state, c.idempotent, c.attempt, c.available_at, c.deadline, \
         c.released_to, c.released_at, c.started_at, c.cancel_requested_at, c.result IS NOT NULL AS has_result, \
         c.late_outcome IS NOT NULL AS has_late_outcome FROM json_each($2) AS e \
         CROSS JOIN commands AS c INDEXED BY open_commands_by_gateway ON c.tenant = $1 AND c.agent_id = e.value ->> 0 AND c.finished_at IS NULL \
         ORDER BY e.key, c.order_no"
    };
}
pub(super) use open_of_gateways;

/// For each `[agent_id, epoch, command_id]`: nothing where the session is fenced, the low-water mark alone where its
/// gateway has no such command.
pub(super) const LOAD: &str = concat!(
    "SELECT e.key AS number, g.low_water, ",
    columns!(),
    "FROM json_each($2) AS e \
     CROSS JOIN gateways AS g ON g.tenant = $1 AND g.agent_id = e.value ->> 0 AND g.confirmed = e.value ->> 1 \
          AND g.revoked_at IS NULL \
     LEFT JOIN commands AS c ON c.tenant = $1 AND c.command_id = e.value ->> 2 AND c.agent_id = g.agent_id"
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

/// Moves commands; a row for each that was in the state it is moved from. Parameter 2 is a document of [`Change`]s, which
/// the limit keeps in one piece: it is to be walked, and each command to be found by its key.
macro_rules! change {
    () => {
        "UPDATE commands SET state = e.value ->> 2, idempotent = e.value ->> 3, attempt = e.value ->> 4, \
         available_at = e.value ->> 5, released_to = e.value ->> 6, released_at = e.value ->> 7, \
         started_at = e.value ->> 8, finished_at = e.value ->> 9, result = coalesce(e.value ->> 10, result), \
         reason = coalesce(e.value ->> 11, reason) \
         FROM (SELECT value ->> 0 AS id, value FROM json_each($2) LIMIT -1) AS e \
         WHERE tenant = $1 AND command_id = e.id AND state = e.value ->> 1 RETURNING command_id AS moved"
    };
}

pub(super) const CHANGE: &str = change!();

/// Ends of commands with all that follows from them, as one script: each statement by itself would be a journey to the
/// driver's thread and back. Its rows are those of the commands, of their gateways and of their runs. The parameters of
/// scripts are `$n` because the driver miscounts the unused ones below the highest `?n` of a statement.
pub(super) const FINISH: &str = concat!(
    change!(),
    "; UPDATE gateways SET open_commands = open_commands - e.ended, low_water = max(low_water, coalesce( \
         (SELECT min(c.order_no) - 1 FROM commands AS c \
          WHERE c.tenant = $1 AND c.agent_id = gateways.agent_id AND c.finished_at IS NULL), next_order - 1)) \
       FROM (SELECT value ->> 12 AS agent_id, count(*) AS ended FROM json_each($2) GROUP BY 1) AS e \
       WHERE tenant = $1 AND gateways.agent_id = e.agent_id RETURNING agent_id AS gateway, low_water; \
       UPDATE runs SET open_commands = open_commands - e.ended, \
         finished_at = CASE WHEN open_commands = e.ended THEN e.at END \
       FROM (SELECT value ->> 13 AS run_id, count(*) AS ended, max(value ->> 9) AS at \
             FROM json_each($2) GROUP BY 1) AS e \
       WHERE tenant = $1 AND runs.run_id = e.run_id RETURNING run_id AS run, open_commands = 0 AS finished; \
       INSERT INTO audit_log (tenant, seq, at, actor_kind, actor_id, action, object, outcome, detail, request_id) \
       SELECT $1, coalesce((SELECT max(seq) FROM audit_log WHERE tenant = $1), 0) + 1 + key, \
              (value ->> 9) + coalesce((SELECT wall_ahead FROM time_line WHERE one = 1), 0), \
              value ->> 14, value ->> 15, value ->> 16, value ->> 17, value ->> 18, value ->> 19, value ->> 20 \
       FROM json_each($2)"
);

pub(super) const RAISE_LOW_WATER: &str = "\
UPDATE gateways SET low_water = max(low_water, coalesce(
    (SELECT min(order_no) - 1 FROM commands WHERE tenant = $1 AND agent_id = $2 AND finished_at IS NULL),
    next_order - 1))
WHERE tenant = $1 AND agent_id = $2 RETURNING low_water";

/// Over the commands that are not final, which are few beside the others.
pub(super) const LOAD_DISPATCHED: &str = concat!(
    rows!(),
    "INDEXED BY open_commands_by_deadline WHERE tenant = $1 AND finished_at IS NULL AND state = 'dispatched'"
);

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
    let mut held = load_all(connection, tenant, &[(holder, command_id)]).await?;
    held.remove(&0).ok_or(StoreError::Fenced)
}

/// Commands, each for the session that holds its gateway, by their places in `wanted`; fenced ones are absent.
pub(super) async fn load_all(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    wanted: &[(Holder, CommandId)],
) -> StoreResult<BTreeMap<usize, Held>> {
    let document: Vec<_> = wanted
        .iter()
        .map(|(holder, command_id)| (holder.agent_id, int(holder.epoch), command_id))
        .collect();
    let rows = sqlx::query(LOAD)
        .bind(tenant.as_str())
        .bind(to_json(&document))
        .fetch_all(connection)
        .await?;
    let mut held = BTreeMap::new();
    for row in &rows {
        let reader = Reader::new("commands", row);
        let known: Option<String> = reader.get("command_id")?;
        let one = Held {
            low_water: reader.count("low_water")?,
            command: known.map(|_id| CommandRow::read(row)).transpose()?,
        };
        held.insert(reader.index("number")?, one);
    }
    Ok(held)
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

/// The commands of all gateways that were offered and not permitted.
pub(super) async fn load_dispatched(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
) -> StoreResult<Vec<CommandRow>> {
    let rows = sqlx::query(LOAD_DISPATCHED)
        .bind(tenant.as_str())
        .fetch_all(connection)
        .await?;
    rows.iter().map(CommandRow::read).collect()
}

/// A change of one command's state, to be written.
pub(super) struct Change {
    /// The command as it is afterwards.
    pub(super) row: CommandRow,
    from: CommandState,
    result: Option<String>,
    record: NewAuditRecord,
    at: Timestamp,
}

/// Lets `event` happen to a command in memory; the change is to be written with [`write_all`]. What the caller changed in
/// `row` before (attempt, permit, times, the stricter idempotence) is written along with the state.
pub(super) fn step(
    mut row: CommandRow,
    event: CommandEvent,
    note: Note<'_>,
    actor: &Actor,
    now: Timestamp,
) -> (Transition, Result<Change, CommandRow>) {
    let decision = transition(row.state, event, row.idempotent);
    let Transition::To(next) = decision else {
        return (decision, Err(row));
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
    (decision, Ok(Change::new(row, from, note, actor, now)))
}

/// [`step`] for an event that always changes such a command's state.
pub(super) fn change(
    row: CommandRow,
    event: CommandEvent,
    note: Note<'_>,
    actor: &Actor,
    now: Timestamp,
) -> Change {
    let from = row.state;
    match step(row, event, note, actor, now) {
        (_, Ok(change)) => change,
        (_, Err(row)) => Change::new(row, from, note, actor, now),
    }
}

impl Change {
    fn new(
        row: CommandRow,
        from: CommandState,
        note: Note<'_>,
        actor: &Actor,
        at: Timestamp,
    ) -> Self {
        let detail = json!({ "state": row.state, "run_id": row.run_id, "agent_id": row.agent_id, "reason": note.reason });
        let object = format!("command:{}", row.command_id);
        Self {
            from,
            result: note.result.map(str::to_owned),
            record: audit::record(actor, "command.end", object, AuditOutcome::Done, detail),
            at,
            row,
        }
    }

    /// The document that the statements read.
    fn document(&self) -> Value {
        let (row, record) = (&self.row, &self.record);
        let time = |at: Option<Timestamp>| at.map(Timestamp::unix_micros);
        json!([
            row.command_id,
            self.from.name(),
            row.state.name(),
            row.idempotent,
            row.attempt,
            row.available_at.unix_micros(),
            row.released_to,
            time(row.released_at),
            time(row.started_at),
            time(row.state.is_final().then_some(self.at)),
            self.result,
            record.detail["reason"],
            row.agent_id,
            row.run_id,
            record.actor.kind.name(),
            record.actor.id,
            record.action,
            record.object,
            record.outcome.name(),
            to_json(&record.detail),
            record.actor.request_id,
        ])
    }
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
    let (decision, change) = step(row.clone(), event, note, actor, now);
    if let Ok(mut change) = change {
        write_all(connection, tenant, slice::from_mut(&mut change)).await?;
        *row = change.row;
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
    let actor = Actor::system();
    let mut change = Change::new(row.clone(), row.state, Note::default(), &actor, now);
    write_all(connection, tenant, slice::from_mut(&mut change)).await
}

/// Writes changes of different commands.
pub(super) async fn write_all(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    changes: &mut [Change],
) -> StoreResult<()> {
    let (ends, moves): (Vec<_>, Vec<_>) = changes
        .iter_mut()
        .partition(|change| change.row.state.is_final());
    run(connection, tenant, CHANGE, &moves).await?;
    let rows = run(connection, tenant, FINISH, &ends).await?;
    let (mut low_waters, mut finished) = (BTreeMap::new(), BTreeSet::new());
    for row in &rows {
        let reader = Reader::new("commands", row);
        match row.column(0).name() {
            "gateway" => {
                low_waters.insert(
                    reader.parse::<AgentId>("gateway")?,
                    reader.count("low_water")?,
                );
            }
            "run" if reader.get("finished")? => {
                finished.insert(reader.parse::<RunId>("run")?);
            }
            _ => {}
        }
    }
    // The last end of a run is the one that finishes it.
    for change in ends.into_iter().rev() {
        change.row.low_water = low_waters.get(&change.row.agent_id).copied();
        change.row.run_finished = finished.remove(&change.row.run_id);
    }
    Ok(())
}

async fn run(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    sql: &'static str,
    changes: &[&mut Change],
) -> StoreResult<Vec<SqliteRow>> {
    let Some(first) = changes.first() else {
        return Ok(Vec::new());
    };
    let document: Vec<_> = changes.iter().map(|change| change.document()).collect();
    let rows = sqlx::query(sql)
        .bind(tenant.as_str())
        .bind(to_json(&document))
        .fetch_all(connection)
        .await?;
    let moved = rows.iter().filter(|row| row.column(0).name() == "moved");
    if moved.count() == changes.len() {
        return Ok(rows);
    }
    // There is one writer, so a row cannot have moved since it was read in this transaction.
    Err(StoreError::Inconsistent {
        table: "commands",
        column: "state",
        row: first.row.command_id.to_string(),
    })
}
