//! The one place where a command changes its state, with everything that follows from its end.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::Duration;

use viworks_common::command::CommandState;
use viworks_common::id::{AgentId, CommandId, RunId};
use viworks_common::ledger::{By, Change, Command, Record, Stance};
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Params, Row, params};

use super::link::Sql;
use super::row::{Reader, column, to_json};
use super::tx::{Tx, View};
use super::{audit, dead_letters};
use crate::data::{Actor, AuditOutcome, Settled, StoreError, StoreResult};

/// The columns that [`read`] reads.
macro_rules! columns {
    () => {
        "c.command_id, c.run_id, c.agent_id, c.state, c.idempotent, c.attempt, c.available_at, c.deadline, \
         c.released_to, c.released_at, c.started_at, c.cancel_requested_at, c.result IS NOT NULL AS has_result, \
         c.late_outcome IS NOT NULL AS has_late_outcome, \
         c.late_outcome ->> 'started_at' IS NOT NULL \
         AND c.late_outcome ->> 'state' IN ('succeeded', 'failed', 'timed_out', 'cancelled') AS has_late_run, \
         c.timeout_ms AS allowed_ms, c.reason AS known_reason "
    };
}
pub(super) use columns;

macro_rules! rows {
    ($index:literal) => {
        concat!(
            "SELECT ",
            columns!(),
            "FROM commands AS c ",
            $index,
            " WHERE c.tenant = :tenant "
        )
    };
}

pub(super) const LOAD: &str = concat!(
    rows!(""),
    // An expression, so that no planner looks through all commands of the gateway.
    "AND c.command_id = :command_id AND c.agent_id || '' = :agent_id"
);

/// An embedded database has no index of a gateway's open commands, which each submission and each end would have to
/// write: their orders are above the gateway's low-water mark, and few others are.
pub(super) const LOAD_OPEN_OF_GATEWAY: Sql = Sql {
    sqlite: concat!(
        rows!(""),
        "AND c.agent_id = :agent_id AND c.order_no <= :order AND c.order_no > \
             (SELECT g.low_water FROM gateways AS g WHERE g.tenant = :tenant AND g.agent_id = :agent_id) \
         AND c.finished_at IS NULL ORDER BY c.order_no"
    ),
    postgres: concat!(
        rows!(""),
        "AND c.agent_id = :agent_id AND c.order_no <= :order AND c.finished_at IS NULL ORDER BY c.order_no"
    ),
};

pub(super) const LOAD_OPEN_OF_RUN: &str = concat!(
    rows!("INDEXED BY commands_by_run"),
    "AND c.run_id = :run_id AND c.finished_at IS NULL ORDER BY c.command_id"
);

pub(super) const LOAD_UNSTARTED_PAST_DEADLINE: &str = concat!(
    rows!(""),
    "AND c.finished_at IS NULL AND c.state IN ('queued', 'dispatched') AND c.deadline <= :past \
     ORDER BY c.deadline LIMIT :limit"
);

pub(super) const LOAD_OVERDUE: &str = concat!(
    rows!(""),
    "AND c.finished_at IS NULL AND c.state IN ('released', 'running') AND c.deadline <= :past \
     AND c.deadline + 1000 * c.timeout_ms <= :past ORDER BY c.deadline LIMIT :limit"
);

/// Over the commands that are not final, which are few beside the others.
pub(super) const LOAD_DISPATCHED: &str = concat!(
    rows!("INDEXED BY open_commands_by_deadline"),
    "AND c.finished_at IS NULL AND c.state = 'dispatched'"
);

pub(super) const CHANGE: &str = "\
UPDATE commands SET state = :state, idempotent = :idempotent, attempt = :attempt, available_at = :available_at,
       released_to = :released_to, released_at = :released_at, started_at = :started_at, finished_at = :finished_at,
       result = coalesce(:result, result), reason = :reason
WHERE tenant = :tenant AND command_id = :command_id AND state = :from";

/// Moves the low-water mark of a gateway up to what is left open, and says where it is.
macro_rules! raise {
    ($greater:literal, $lowest:literal, $also:literal) => {
        concat!(
            "UPDATE gateways SET ", $also, "low_water = ", $greater, "(low_water, coalesce((", $lowest, ") - 1, \
             next_order - 1)) WHERE tenant = :tenant AND agent_id = :agent_id RETURNING low_water"
        )
    };
    (sqlite $also:literal) => {
        raise!(
            "max",
            "SELECT c.order_no FROM commands AS c \
             WHERE c.tenant = :tenant AND c.agent_id = :agent_id AND c.order_no > gateways.low_water \
             AND c.finished_at IS NULL ORDER BY c.order_no LIMIT 1",
            $also
        )
    };
    (postgres $also:literal) => {
        raise!(
            "greatest",
            "SELECT min(c.order_no) FROM commands AS c \
             WHERE c.tenant = :tenant AND c.agent_id = :agent_id AND c.finished_at IS NULL",
            $also
        )
    };
}

pub(super) const END_OF_GATEWAY: Sql = Sql {
    sqlite: raise!(sqlite "open_commands = max(0, open_commands - 1), "),
    postgres: raise!(postgres "open_commands = greatest(0, open_commands - 1), "),
};

pub(super) const END_OF_RUN: &str = "\
UPDATE runs SET open_commands = open_commands - 1, finished_at = CASE WHEN open_commands = 1 THEN CAST(:now AS bigint) END
WHERE tenant = :tenant AND run_id = :run_id RETURNING open_commands = 0 AS finished";

pub(super) const RAISE_LOW_WATER: Sql = Sql {
    sqlite: raise!(sqlite ""),
    postgres: raise!(postgres ""),
};

pub(super) fn read(row: &Row<'_>) -> StoreResult<Command> {
    let row = Reader::new("commands", row);
    Ok(Command {
        command_id: row.get("command_id")?,
        run_id: row.get("run_id")?,
        agent_id: row.get("agent_id")?,
        state: row.word("state", CommandState::from_name)?,
        idempotent: row.get("idempotent")?,
        attempt: row.get("attempt")?,
        available_at: row.get("available_at")?,
        deadline: row.get("deadline")?,
        timeout: Duration::from_millis(row.get("allowed_ms")?),
        released_to: row.get("released_to")?,
        released_at: row.get("released_at")?,
        started_at: row.get("started_at")?,
        cancel_requested: row
            .get::<Option<Timestamp>>("cancel_requested_at")?
            .is_some(),
        has_result: row.get("has_result")?,
        has_late_outcome: row.get("has_late_outcome")?,
        has_late_run: row.get("has_late_run")?,
        reason: row.get::<Option<String>>("known_reason")?.map(Cow::Owned),
    })
}

/// A command, when its gateway has it.
pub(super) fn load(
    view: &View<'_>,
    agent_id: AgentId,
    command_id: CommandId,
) -> StoreResult<Option<Command>> {
    view.optional(LOAD, params! { agent_id, command_id }, read)
}

/// The commands of a gateway up to `order` that are not final.
pub(super) fn load_open(
    view: &View<'_>,
    agent_id: AgentId,
    order: u64,
) -> StoreResult<Vec<Command>> {
    view.all(LOAD_OPEN_OF_GATEWAY, params! { agent_id, order }, read)
}

/// What the end of a command made of its gateway and its run.
#[derive(Debug, Clone, Copy)]
struct End {
    low_water: u64,
    run_finished: bool,
}

/// What changes came to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Written {
    /// The gateway's low-water mark, once an end moved it.
    pub(super) low_water: Option<u64>,
    /// Whether the run has ended with it.
    pub(super) run_finished: bool,
    /// Dead letters that went for newer ones before anybody had decided about them.
    pub(super) dead_letters_dropped: u64,
}

/// How a command is told of that has just moved.
pub(super) fn settled(command: &Command, run_finished: bool) -> Settled {
    Settled {
        moved: true,
        command_id: command.command_id,
        agent_id: command.agent_id,
        run_id: command.run_id,
        state: command.state,
        run_finished,
        reason: command.reason.as_deref().map(str::to_owned),
    }
}

/// Writes changes in their order, with all that follows from the ends among them. `caller` is whoever asked for them.
pub(super) fn write<'c>(
    tx: &Tx<'_>,
    changes: impl IntoIterator<Item = &'c Change>,
    caller: &Actor,
) -> StoreResult<Written> {
    let mut written = Written::default();
    for change in changes {
        move_one(tx, change)?;
        if let Some(record) = change.record() {
            let end = end(tx, &change.command)?;
            if change.command.state == CommandState::Dead {
                written.dead_letters_dropped += dead_letters::keep(tx, &change.command)?;
            }
            note(tx, &record, caller)?;
            written.low_water = Some(end.low_water);
            written.run_finished |= end.run_finished;
        }
    }
    Ok(written)
}

fn move_one(tx: &Tx<'_>, change: &Change) -> StoreResult<()> {
    let Command {
        command_id,
        idempotent,
        attempt,
        available_at,
        released_to,
        released_at,
        started_at,
        ..
    } = &change.command;
    let (from, state, reason) = (
        change.from.name(),
        change.command.state.name(),
        change.command.reason.as_deref(),
    );
    let finished_at = change.command.state.is_final().then_some(tx.now);
    let result = change.result.as_ref().map(to_json);
    let params = params! {
        command_id, from, state, idempotent, attempt, available_at, released_to, released_at, started_at,
        finished_at, result, reason,
    };
    if tx.execute(CHANGE, params)? == 1 {
        return Ok(());
    }
    // Its gateway is locked, so a row cannot have moved since it was read in this transaction.
    Err(StoreError::Inconsistent {
        table: "commands",
        column: "state",
        row: command_id.to_string(),
    })
}

fn end(tx: &Tx<'_>, command: &Command) -> StoreResult<End> {
    let Command {
        agent_id, run_id, ..
    } = command;
    let low_water = tx.one(
        END_OF_GATEWAY,
        params! { agent_id },
        column("gateways", "low_water"),
    )?;
    let run_finished = tx.one(END_OF_RUN, params! { run_id }, column("runs", "finished"))?;
    tx.count_open(-1);
    Ok(End {
        low_water,
        run_finished,
    })
}

/// On whose account a record that a decision left is told, and as what.
pub(super) fn told(record: &Record, caller: &Actor) -> (Actor, AuditOutcome) {
    let actor = match record.by {
        By::System => Actor::system(),
        By::Gateway(agent_id) => Actor::gateway(agent_id),
        By::Caller => caller.clone(),
    };
    let outcome = match record.stance {
        Stance::Done => AuditOutcome::Done,
        Stance::Refused => AuditOutcome::Refused,
        Stance::Noted => AuditOutcome::Noted,
    };
    (actor, outcome)
}

/// Appends an audit record that a decision left; `caller` is whoever asked for it.
pub(super) fn note(tx: &Tx<'_>, record: &Record, caller: &Actor) -> StoreResult<()> {
    let (actor, outcome) = told(record, caller);
    let Record {
        action,
        object,
        detail,
        ..
    } = record;
    audit::append(tx, &actor, action, object, outcome, detail)
}

/// Raises the low-water mark past orders that no command of this database has; answers where it is.
pub(super) fn raise_low_water(tx: &Tx<'_>, agent_id: AgentId) -> StoreResult<u64> {
    let read = column("gateways", "low_water");
    tx.one(RAISE_LOW_WATER, params! { agent_id }, read)
}

/// The commands of a run that are not final.
pub(super) fn load_open_of_run(view: &View<'_>, run_id: RunId) -> StoreResult<Vec<Command>> {
    view.all(LOAD_OPEN_OF_RUN, params! { run_id }, read)
}

/// Writes what happens to each of the commands that a statement finds; answers them as they are afterwards.
pub(super) fn each(
    tx: &Tx<'_>,
    sql: &'static str,
    params: Params<'_>,
    happen: impl Fn(Command) -> Option<Change>,
) -> StoreResult<Vec<Settled>> {
    let mut found = tx.all(sql, params, read)?;
    let gateways: BTreeSet<AgentId> = found.iter().map(|command| command.agent_id).collect();
    if tx.lock(gateways.iter().copied())? {
        // Some may have moved while this waited; a gateway that is not locked has its turn another time.
        found = tx.all(sql, params, read)?;
        found.retain(|command| gateways.contains(&command.agent_id));
    }
    let mut all = Vec::new();
    for command in found {
        let before = command.clone();
        let change = happen(command);
        let written = write(tx, &change, &Actor::system())?;
        let after = change.as_ref().map_or(&before, |change| &change.command);
        all.push(Settled {
            moved: change.is_some(),
            ..settled(after, written.run_finished)
        });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use viworks_common::command::{Outcome, OutcomeState};

    use super::*;

    #[test]
    fn the_database_and_the_rule_know_the_same_outcomes_of_what_ran() {
        let (_, said) = columns!().split_once("'state' IN (").unwrap();
        let (said, _) = said.split_once(')').unwrap();
        let said: BTreeSet<&str> = said
            .split(", ")
            .map(|name| name.trim_matches('\''))
            .collect();
        let states = [
            OutcomeState::Succeeded,
            OutcomeState::Failed,
            OutcomeState::TimedOut,
            OutcomeState::Rejected,
            OutcomeState::Expired,
            OutcomeState::Cancelled,
            OutcomeState::Indeterminate,
        ];
        let ran = states.into_iter().filter(|state| {
            let started_at = Some(Timestamp::from_unix_micros(1));
            let outcome = Outcome::without_run(*state, "");
            Outcome {
                started_at,
                ..outcome
            }
            .ran()
        });
        let ran: BTreeSet<&str> = ran.map(|state| state.command_state().name()).collect();
        assert_eq!(said, ran);
    }
}
