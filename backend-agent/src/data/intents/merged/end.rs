//! The end of a command, as its gateway reports it.

use std::collections::BTreeMap;

use viworks_common::command::Outcome;
use viworks_common::id::{AgentRunId, CommandId};
use viworks_common::ledger::end::{self, Reported};
use viworks_common::ledger::{Change, Command, Record};
use viworks_common::time::Timestamp;
use viworks_runtime::fault;
use viworks_runtime::sqlite::{Row, params};

use super::super::arrays::{Arrays, Kind, listed, unnested};
use super::super::link::Sql;
use super::super::outputs;
use super::super::recent::{Gateway, Recent};
use super::super::row::{Reader, to_json};
use super::super::tx::{Tx, View};
use super::super::{runs, sessions, settle};
use super::ATTEMPTS;
use crate::data::{Actor, CompleteOutcome, Holder, Run, StoreError, StoreResult};

/// What is written of each.
macro_rules! columns {
    ($as:ident) => {
        $as!(
            agent_id text, gateway_version bigint, command_id text, command_version bigint, run_id text, is_only boolean, at bigint,
            state text, idempotent boolean, attempt bigint, available_at bigint, released_to text, released_at bigint,
            started_at bigint, result text, reason text,
            has_output boolean, stdout_head bytea, stdout_tail bytea, stdout_cut bigint,
            stderr_head bytea, stderr_tail bytea, stderr_cut bigint,
            actor_kind text, actor_id text, action text, object text, outcome text, detail text, request_id text
        )
    };
}

const COLUMNS: &[(&str, Kind)] = columns!(listed);

/// Whether others wait is looked at by whoever writes the next one. A command is found by its id alone: without
/// statistics, all commands of a gateway are as good to the planner, and only an expression keeps it from them.
pub(in crate::data::intents) const ENDING: Sql = Sql::of_server(concat!(
    "SELECT ",
    settle::columns!(),
    ", g.name, g.next_order, g.open_commands, g.confirmed, g.revoked_at, g.session_epoch, g.session_instance, g.low_water, \
     (SELECT reported_at FROM catalogues AS k WHERE k.tenant = :tenant AND k.agent_id = :agent_id) AS reported_at, \
     false AS waits, ",
    version!("g"),
    " AS gateway_version, ",
    version!("c"),
    " AS command_version \
     FROM commands AS c CROSS JOIN gateways AS g \
     WHERE c.tenant = :tenant AND c.command_id = :command_id AND c.agent_id || '' = :agent_id \
       AND g.tenant = :tenant AND g.agent_id = :agent_id"
));

/// What is still open on the gateway is all that was, but for this command. Whatever moves a command has its gateway
/// locked, so one that is another by now was moved before, and is left alone. What somebody else has locked is left to
/// the usual way. What is locked is found by its place, so that no planner has to choose; a run is found by its id, as
/// it has another place once the end of another of its commands, that this one waited for, is written. Its tenant is
/// compared by an expression, so that no planner looks through all runs of that.
pub(in crate::data::intents) const END: Sql = Sql::of_server(concat!(
    "WITH held AS MATERIALIZED (\
        SELECT a.*, h.* FROM ",
    columns!(unnested),
    " CROSS JOIN LATERAL (\
            SELECT g.ctid AS place, c.ctid AS command_place \
            FROM gateways AS g CROSS JOIN commands AS c \
            WHERE g.tenant = :tenant AND g.agent_id = a.agent_id \
              AND c.tenant = :tenant AND c.command_id = a.command_id AND c.agent_id || '' = a.agent_id AND ",
    version!("g"),
    " = a.gateway_version AND ",
    version!("c"),
    " = a.command_version \
            LIMIT 1 FOR NO KEY UPDATE OF g SKIP LOCKED) AS h \
        WHERE ",
    leased!(),
    "), \
     taken AS (UPDATE commands AS c SET state = h.state, idempotent = h.idempotent, attempt = h.attempt, \
            available_at = h.available_at, released_to = h.released_to, released_at = h.released_at, started_at = h.started_at, \
            finished_at = h.at, result = coalesce(CAST(h.result AS json), c.result), reason = h.reason \
        FROM held AS h WHERE c.ctid = h.command_place AND ",
    version!("c"),
    " = h.command_version RETURNING h.*), \
     gateway AS (UPDATE gateways AS g SET open_commands = greatest(0, open_commands - 1), low_water = greatest(low_water, coalesce((\
            SELECT min(o.order_no) - 1 FROM commands AS o WHERE o.tenant = :tenant AND o.agent_id = t.agent_id \
            AND o.finished_at IS NULL AND o.command_id <> t.command_id), next_order - 1)) \
        FROM taken AS t WHERE g.ctid = t.place RETURNING t.*, g.low_water), \
     run AS (UPDATE runs AS r SET open_commands = open_commands - 1, \
            finished_at = CASE WHEN open_commands = 1 THEN t.at END \
        FROM gateway AS t WHERE r.tenant || '' = :tenant AND r.run_id = t.run_id \
        RETURNING t.item, t.low_water, t.is_only, t.command_id, t.state AS ended, r.*), \
     output AS (INSERT INTO command_outputs (tenant, command_id, stdout_head, stdout_tail, stdout_cut, stderr_head, \
                                             stderr_tail, stderr_cut) \
        SELECT :tenant, t.command_id, t.stdout_head, t.stdout_tail, t.stdout_cut, t.stderr_head, t.stderr_tail, t.stderr_cut \
        FROM taken AS t WHERE t.has_output), ",
    noted!("taken"),
    ", ",
    counted!("taken", "-count(*)"),
    " SELECT r.item, r.low_water, ",
    written_version!(),
    " AS version, ",
    runs::run_columns!("strpos"),
    ", CASE WHEN r.finished_at IS NOT NULL AND (r.is_only OR NOT EXISTS (SELECT 1 FROM commands AS o \
            WHERE o.tenant = :tenant AND o.run_id = r.run_id AND o.command_id <> r.command_id)) \
       THEN json_build_object(r.ended, 1) END AS states \
     FROM run AS r"
));

/// What the end of a command depends on.
struct Reporting {
    command: Command,
    command_version: i64,
    gateway: Gateway,
    /// Whether its run is known to have no other.
    is_only: bool,
}

/// A command that ends.
struct Ending<'o> {
    change: Box<Change>,
    record: Record,
    command_version: i64,
    gateway: Gateway,
    is_only: bool,
    outcome: &'o Outcome,
    now: Timestamp,
}

impl<'o> Ending<'o> {
    /// By the outcome that is reported; none where that is not what it comes to.
    fn judged(
        reporting: Reporting,
        run: AgentRunId,
        outcome: &'o Outcome,
        now: Timestamp,
    ) -> Option<Self> {
        let Reporting {
            command,
            command_version,
            gateway,
            is_only,
        } = reporting;
        let whose = (command.agent_id, command.command_id, run);
        let Reported::Ends(change) = end::report(Some(command), whose, outcome, now) else {
            return None;
        };
        Some(Self {
            record: change.record()?,
            change,
            command_version,
            gateway,
            is_only,
            outcome,
            now,
        })
    }

    /// It is written: what is remembered of its gateway, and what that is told.
    fn completed(
        self,
        view: &View<'_>,
        recent: &Recent,
        written: Written,
    ) -> StoreResult<CompleteOutcome> {
        let Self {
            change,
            mut gateway,
            now,
            ..
        } = self;
        let Written {
            low_water,
            version,
            run,
        } = written;
        gateway.found.counters.open = gateway.found.counters.open.saturating_sub(1);
        gateway.found.scene.low_water = low_water;
        (gateway.version, gateway.at) = (version, now);
        recent.keep(view.tenant(), change.command.agent_id, gateway);
        let run = match run {
            Rest::More => None,
            Rest::None(run) => Some(run),
            Rest::Counted => runs::load(view, change.command.run_id)?.map(Box::new),
        };
        Ok(CompleteOutcome::Completed {
            settled: settle::settled(&change.command, run.is_some()),
            low_water,
            run,
        })
    }
}

/// Ends a command after a question for the facts. `None` where that is not what happens.
pub(in crate::data::intents) fn complete(
    tx: &Tx<'_>,
    recent: &Recent,
    holder: &Holder,
    command_id: CommandId,
    outcome: &Outcome,
) -> StoreResult<Option<CompleteOutcome>> {
    for _attempt in 0..ATTEMPTS {
        let params = params! { command_id, agent_id: holder.agent_id };
        let reporting = tx.optional(ENDING, params, |row| reporting(row, holder.epoch, tx.now))?;
        let Some(reporting) = reporting else {
            return Ok(None);
        };
        let Some(ending) = Ending::judged(reporting?, holder.agent_run_id, outcome, tx.now) else {
            return Ok(None);
        };
        let Some(written) = write(tx, std::slice::from_ref(&ending))? else {
            return Ok(None);
        };
        if let Some((_, written)) = written.into_iter().next() {
            return ending.completed(tx, recent, written).map(Some);
        }
        recent.forget(tx.tenant(), holder.agent_id);
    }
    Ok(None)
}

/// A report that came now, from whom and about which command, and the outcome.
pub(super) type Report<'o> = (Timestamp, &'o Holder, CommandId, &'o Outcome);

/// Ends those of the commands of which what is remembered is true.
pub(super) fn complete_all(
    view: &View<'_>,
    recent: &Recent,
    reports: &[Report<'_>],
) -> StoreResult<Vec<Option<CompleteOutcome>>> {
    let mut answers: Vec<Option<CompleteOutcome>> = reports.iter().map(|_report| None).collect();
    let (mut places, mut endings) = (Vec::new(), Vec::new());
    for (place, &(now, holder, command_id, outcome)) in reports.iter().enumerate() {
        let reporting = remembered(view, recent, holder, command_id, now);
        let run = holder.agent_run_id;
        let judged = reporting.and_then(|it| Ending::judged(it, run, outcome, now));
        if let Some(ending) = judged {
            places.push(place);
            endings.push(ending);
        }
    }
    let (written, failed) = match write(view, &endings) {
        Ok(written) => (written.unwrap_or_default(), None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let mut written: BTreeMap<usize, Written> = written.into_iter().collect();
    for (number, (place, ending)) in places.into_iter().zip(endings).enumerate() {
        match answers.get_mut(place).zip(written.remove(&number)) {
            Some((answer, written)) => *answer = Some(ending.completed(view, recent, written)?),
            // Not before: whoever comes meanwhile comes behind it.
            None => recent.forget(view.tenant(), ending.change.command.agent_id),
        }
    }
    failed.map_or(Ok(answers), Err)
}

/// What this backend wrote of a command and its gateway last, where the session was the gateway's then.
fn remembered(
    view: &View<'_>,
    recent: &Recent,
    holder: &Holder,
    command_id: CommandId,
    now: Timestamp,
) -> Option<Reporting> {
    let whose = (holder.agent_id, command_id);
    let (command, command_version, gateway) = recent.take(view.tenant(), whose, now)?;
    sessions::may_write(&gateway, holder).then_some(Reporting {
        command,
        command_version,
        gateway,
        // Nothing else is remembered.
        is_only: true,
    })
}

fn reporting(row: &Row<'_>, epoch: u64, now: Timestamp) -> StoreResult<StoreResult<Reporting>> {
    let command = settle::read(row)?;
    let row = Reader::new("commands", row);
    if sessions::low_water_of(&row, epoch)?.is_none() {
        return Ok(Err(StoreError::Fenced));
    }
    Ok(Ok(Reporting {
        command,
        command_version: row.get("command_version")?,
        gateway: Gateway::read(&row, row.get("gateway_version")?, now)?,
        is_only: false,
    }))
}

/// What became of the run of a command that ended.
enum Rest {
    /// It goes on.
    More,
    /// It ended with this one, its only one.
    None(Box<Run>),
    /// It ended with this one, the last of several.
    Counted,
}

/// What the end of a command came to.
struct Written {
    /// The gateway's low-water mark afterwards.
    low_water: u64,
    run: Rest,
    /// The version of the rows.
    version: i64,
}

/// Which of them were written, by their numbers; none where a key refused them.
fn write(view: &View<'_>, endings: &[Ending<'_>]) -> StoreResult<Option<Vec<(usize, Written)>>> {
    let mut rows = Arrays::of(COLUMNS);
    for ending in endings {
        push(&mut rows, ending)?;
        fault::point("store.result.before_commit");
    }
    if endings.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let instance = view.party().instance();
    let others = params! { instance };
    let params = rows.and(others);
    view.all_and_commit(END, &params, |row| {
        let found = Reader::new("gateways", row);
        let item: usize = found.get("item")?;
        let finished = found.get::<Option<Timestamp>>("finished_at")?.is_some();
        let only = found.get::<Option<String>>("states")?.is_some();
        let written = Written {
            low_water: found.get("low_water")?,
            version: found.get("version")?,
            run: match (finished, only) {
                (true, true) => Rest::None(Box::new(runs::read_run(row)?)),
                (true, false) => Rest::Counted,
                (false, _) => Rest::More,
            },
        };
        Ok((item.saturating_sub(1), written))
    })
}

fn push(rows: &mut Arrays, ending: &Ending<'_>) -> StoreResult<()> {
    let Ending {
        change,
        record,
        command_version,
        gateway,
        is_only,
        outcome,
        now,
    } = ending;
    let Command {
        agent_id,
        command_id,
        run_id,
        idempotent,
        attempt,
        available_at,
        released_to,
        released_at,
        started_at,
        ..
    } = &change.command;
    let (stdout, stderr) = (&outcome.stdout, &outcome.stderr);
    let (actor, audited) = settle::told(record, &Actor::system());
    rows.push(params! {
        agent_id, gateway_version: gateway.version, command_id, command_version, run_id, is_only, at: now,
        state: change.command.state.name(), idempotent, attempt, available_at, released_to, released_at,
        started_at, result: change.result.as_ref().map(to_json), reason: change.command.reason.as_deref(),
        has_output: change.result.is_some() && outputs::is_worth_keeping(outcome),
        stdout_head: stdout.head, stdout_tail: stdout.tail, stdout_cut: stdout.cut_bytes,
        stderr_head: stderr.head, stderr_tail: stderr.tail, stderr_cut: stderr.cut_bytes,
        actor_kind: actor.kind.name(), actor_id: actor.id, action: record.action, object: record.object,
        outcome: audited.name(), detail: to_json(&record.detail), request_id: actor.request_id,
    })
}
