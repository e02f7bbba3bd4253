//! The two intents that carry the load, with few journeys to a server: the facts come in one statement, and the changes
//! go in another, which commits by itself and does nothing where a row is not what the decision was made from, or the
//! lease of the backend does not hold. What this backend wrote last of the same rows may stand for the question,
//! because what was decided from it counts for the versions of these rows alone. For whatever is not the common case
//! the intent goes its usual way, in a transaction.

use std::collections::BTreeMap;

use viworks_common::command::{CommandState, Outcome};
use viworks_common::id::{AgentId, CommandId};
use viworks_common::ledger::end::{self, Reported};
use viworks_common::ledger::lease::{Place, Scene, at_birth};
use viworks_common::ledger::session;
use viworks_common::ledger::{Change, Command};
use viworks_common::rules::Complete;
use viworks_common::time::Timestamp;
use viworks_runtime::fault;
use viworks_runtime::sqlite::{Row, params};

use super::link::Sql;
use super::recent::{Gateway, Recent};
use super::row::{Reader, column, to_json};
use super::tx::Tx;
use super::{runs, sessions, settle, submit};
use crate::data::ledger::submission;
use crate::data::{
    Actor, AuditOutcome, CompleteOutcome, Holder, NewCommand, NewRun, Offered, Run, StoreError,
    StoreResult, Submission,
};

/// Which version of a row one has seen: the transaction that wrote it.
macro_rules! version {
    ($row:literal) => {
        concat!("CAST(CAST(", $row, ".xmin AS text) AS bigint)")
    };
}

/// Which version a row has that this statement writes.
macro_rules! written_version {
    () => {
        "CAST(CAST(CAST(pg_current_xact_id() AS xid) AS text) AS bigint)"
    };
}

/// Whether the backend has its lease; a tool needs none.
macro_rules! leased {
    () => {
        "(CAST(:instance AS text) IS NULL OR EXISTS (SELECT 1 FROM instances AS i WHERE i.instance = :instance \
          AND i.lease_until > clock_timestamp() AND NOT i.ended))"
    };
}

/// Appends to the audit log once `$from` has a row.
macro_rules! noted {
    ($from:literal) => {
        concat!(
            "noted AS (INSERT INTO audit_log (tenant, at, actor_kind, actor_id, action, object, outcome, detail, request_id) \
             SELECT :tenant, CAST(:now AS bigint) + coalesce((SELECT wall_ahead FROM time_line WHERE one = 1), 0), \
                    :actor_kind, :actor_id, :action, :object, :outcome, CAST(:detail AS json), :request_id FROM ",
            $from,
            ")"
        )
    };
}

/// Counts the tenant's open commands once `$from` has a row.
macro_rules! counted {
    ($from:literal, $change:literal) => {
        concat!(
            "open AS (INSERT INTO open_commands (tenant, share, commands) SELECT :tenant, pg_backend_pid() % 16, ",
            $change,
            " FROM ",
            $from,
            " ON CONFLICT (tenant, share) DO UPDATE SET commands = open_commands.commands + excluded.commands)"
        )
    };
}

pub(super) const SUBMISSION: Sql = Sql::of_server(concat!(
    "SELECT g.agent_id, g.name, g.next_order, g.open_commands, g.confirmed, g.session_epoch, g.session_instance, g.low_water, ",
    version!("g"),
    " AS version, \
     EXISTS (SELECT 1 FROM commands AS c WHERE c.tenant = g.tenant AND c.agent_id = g.agent_id AND c.state = 'queued') AS waits, \
     (SELECT reported_at FROM catalogues AS k WHERE k.tenant = g.tenant AND k.agent_id = g.agent_id) AS reported_at, \
     (SELECT CAST(coalesce(sum(o.commands), 0) AS bigint) FROM open_commands AS o WHERE o.tenant = g.tenant) AS waiting, \
     EXISTS (SELECT 1 FROM idempotency_keys AS i WHERE i.tenant = g.tenant AND i.principal = :principal \
             AND i.route = :route AND i.key = :key) AS used \
     FROM gateways AS g WHERE g.tenant = :tenant AND g.agent_id = :agent_id AND g.revoked_at IS NULL"
));

/// A run that is known already is left to the usual way, which recognises it.
pub(super) const SUBMIT: Sql = Sql::of_server(concat!(
    "WITH held AS MATERIALIZED (\
        SELECT g.agent_id FROM gateways AS g WHERE g.tenant = :tenant AND g.agent_id = :agent_id AND ",
    version!("g"),
    " = CAST(:version AS bigint) AND ",
    leased!(),
    " AND (SELECT k.reported_at FROM catalogues AS k WHERE k.tenant = :tenant AND k.agent_id = :agent_id) \
          IS NOT DISTINCT FROM CAST(:reported_at AS bigint) \
      AND NOT EXISTS (SELECT 1 FROM commands AS c WHERE c.tenant = :tenant AND c.agent_id = :agent_id AND c.state = 'queued') \
        FOR NO KEY UPDATE), \
     run AS (INSERT INTO runs (tenant, run_id, name, arguments, deadline, traceparent, reason, submitted_by, created_at, \
                               open_commands, skipped, timeout_ms) \
        SELECT :tenant, :run_id, :name, CAST(:arguments AS json), CAST(:deadline AS bigint), :traceparent, :reason, \
               :submitted_by, CAST(:now AS bigint), 1, 0, CAST(:run_timeout_ms AS bigint) FROM held \
        ON CONFLICT DO NOTHING RETURNING run_id), \
     gateway AS (UPDATE gateways SET next_order = next_order + 1, open_commands = open_commands + 1 \
        WHERE tenant = :tenant AND agent_id = :agent_id AND EXISTS (SELECT 1 FROM run)), \
     command AS (INSERT INTO commands (tenant, command_id, run_id, agent_id, order_no, state, idempotent, risk, timeout_ms, \
                                       attempt, released_to, released_at, available_at, deadline, created_at) \
        SELECT :tenant, :command_id, :run_id, :agent_id, CAST(:order AS bigint), :state, CAST(:idempotent AS boolean), :risk, \
               CAST(:timeout_ms AS bigint), CAST(:attempt AS bigint), :released_to, CAST(:released_at AS bigint), \
               CAST(:available_at AS bigint), CAST(:deadline AS bigint), CAST(:now AS bigint) FROM run), \
     used AS (INSERT INTO idempotency_keys (tenant, principal, route, key, request_hash, run_id, created_at) \
        SELECT :tenant, :principal, :route, :key, CAST(:request_hash AS bytea), :run_id, CAST(:now AS bigint) FROM run \
        WHERE CAST(:key AS text) IS NOT NULL), ",
    noted!("run"),
    ", ",
    counted!("run", "1"),
    " SELECT ",
    written_version!(),
    " AS version FROM run"
));

/// Whether others wait is looked at by whoever writes the next one. A command is found by its id alone: without
/// statistics, all commands of a gateway are as good to the planner, and only an expression keeps it from them.
pub(super) const ENDING: Sql = Sql::of_server(concat!(
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

/// What is still open on the gateway is all that was, but for this command.
pub(super) const END: Sql = Sql::of_server(concat!(
    "WITH held AS MATERIALIZED (\
        SELECT g.agent_id FROM gateways AS g CROSS JOIN commands AS c \
        WHERE g.tenant = :tenant AND g.agent_id = :agent_id \
          AND c.tenant = :tenant AND c.command_id = :command_id AND c.agent_id || '' = :agent_id AND ",
    version!("g"),
    " = CAST(:gateway_version AS bigint) AND ",
    version!("c"),
    " = CAST(:command_version AS bigint) AND ",
    leased!(),
    " FOR NO KEY UPDATE OF g, c), \
     command AS (UPDATE commands SET state = :state, idempotent = :idempotent, attempt = :attempt, \
            available_at = :available_at, released_to = :released_to, released_at = :released_at, started_at = :started_at, \
            finished_at = CAST(:now AS bigint), result = coalesce(CAST(:result AS json), result), reason = :reason \
        WHERE tenant = :tenant AND command_id = :command_id AND EXISTS (SELECT 1 FROM held)), \
     gateway AS (UPDATE gateways SET open_commands = open_commands - 1, low_water = greatest(low_water, coalesce((\
            SELECT min(o.order_no) - 1 FROM commands AS o WHERE o.tenant = :tenant AND o.agent_id = :agent_id \
            AND o.finished_at IS NULL AND o.command_id <> :command_id), next_order - 1)) \
        WHERE tenant = :tenant AND agent_id = :agent_id AND EXISTS (SELECT 1 FROM held) RETURNING low_water), \
     run AS (UPDATE runs SET open_commands = open_commands - 1, \
            finished_at = CASE WHEN open_commands = 1 THEN CAST(:now AS bigint) END \
        WHERE tenant = :tenant AND run_id = :run_id AND EXISTS (SELECT 1 FROM held) RETURNING *), \
     output AS (INSERT INTO command_outputs (tenant, command_id, stdout_head, stdout_tail, stdout_cut, stderr_head, \
                                             stderr_tail, stderr_cut) \
        SELECT :tenant, :command_id, CAST(:stdout_head AS bytea), CAST(:stdout_tail AS bytea), CAST(:stdout_cut AS bigint), \
               CAST(:stderr_head AS bytea), CAST(:stderr_tail AS bytea), CAST(:stderr_cut AS bigint) FROM held \
        ON CONFLICT DO NOTHING), ",
    noted!("held"),
    ", ",
    counted!("held", "-1"),
    " SELECT gateway.low_water, ",
    written_version!(),
    " AS version, ",
    runs::run_columns!("strpos"),
    ", CASE WHEN r.finished_at IS NOT NULL AND NOT EXISTS (SELECT 1 FROM commands AS o WHERE o.tenant = :tenant \
            AND o.run_id = :run_id AND o.command_id <> :command_id) \
       THEN json_build_object(CAST(:state AS text), 1) END AS states \
     FROM gateway CROSS JOIN run AS r"
));

/// How often the facts are asked for anew, where others change them meanwhile.
const ATTEMPTS: u32 = 3;

/// What the submission of one command depends on.
struct Asked {
    gateway: Gateway,
    waiting: u64,
    used: bool,
}

/// Accepts a run for one gateway whose session takes its command at once. `None` where that is not what happens.
pub(super) fn submit(
    tx: &Tx<'_>,
    recent: &Recent,
    new: &NewRun,
) -> StoreResult<Option<Submission>> {
    let [target] = &new.targets[..] else {
        return Ok(None);
    };
    let (Some(place), true, None) = (target.place, new.skipped.is_empty(), new.retry_of) else {
        return Ok(None);
    };
    for attempt in 0..ATTEMPTS {
        let guess = (attempt == 0 && tx.is_fresh())
            .then(|| recent.gateway(tx.tenant(), target.agent_id, tx.now))
            .flatten();
        let guessed = guess.is_some();
        let asked = match guess {
            // A key that was used already refuses what is written.
            Some((gateway, waiting)) => Some(Asked {
                gateway,
                waiting,
                used: false,
            }),
            None => asked(tx, recent, new, target)?,
        };
        let Some(asked) = asked else {
            return Ok(None);
        };
        let Some(command) = judged(tx, new, target, place, &asked) else {
            if guessed {
                continue;
            }
            return Ok(None);
        };
        fault::point("store.submit.before_commit");
        let Some(version) = write(tx, new, target, &command, &asked)? else {
            recent.forget(tx.tenant(), target.agent_id);
            continue;
        };
        let mut gateway = asked.gateway;
        let order = gateway.found.counters.next_order;
        gateway.found.counters.next_order += 1;
        gateway.found.counters.open += 1;
        (gateway.version, gateway.at) = (version, tx.now);
        recent.keep(tx.tenant(), target.agent_id, gateway);
        // One that needs a permit of its own is written once more before it ends.
        if command.state == CommandState::Released {
            recent.keep_command(command.clone(), version, tx.now);
        }
        let states = BTreeMap::from([(command.state, 1)]);
        let offered = Offered {
            agent_id: target.agent_id,
            epoch: place.epoch,
            command: submission::offer(new, &command, order),
        };
        return Ok(Some(Submission::Submitted {
            run: submission::run(new, tx.now, states, 0),
            offered: vec![offered],
        }));
    }
    Ok(None)
}

/// The command as it is born, where its session takes it at once.
fn judged(
    tx: &Tx<'_>,
    new: &NewRun,
    target: &NewCommand,
    place: Place,
    asked: &Asked,
) -> Option<Command> {
    let found = &asked.gateway.found;
    let far = submit::is_far_from_bound(new, asked.waiting);
    let elsewhere = found.instance != tx.party().instance();
    if asked.used || elsewhere || !far || submit::is_outdated_for(target, found) {
        return None;
    }
    let counters = |agent_id| (agent_id == target.agent_id).then_some(&found.counters);
    let judged = submission::judge(new, counters, asked.waiting);
    if !judged.is_ok_and(|full| full.is_empty()) {
        return None;
    }
    let order = found.counters.next_order;
    let born = submission::command(new, target, tx.now);
    at_birth(born, order, place, found.scene, tx.now).map(|offer| offer.command)
}

fn asked(
    tx: &Tx<'_>,
    recent: &Recent,
    new: &NewRun,
    target: &NewCommand,
) -> StoreResult<Option<Asked>> {
    let used = new.idempotency.as_ref();
    let (principal, route, key) = (
        used.map(|used| &used.principal),
        used.map(|used| &used.route),
        used.map(|used| &used.key),
    );
    let agent_id = target.agent_id;
    let params = params! { agent_id, principal, route, key };
    let asked = tx.optional(SUBMISSION, params, |row| {
        let row = Reader::new("gateways", row);
        Ok(Asked {
            gateway: Gateway::read(&row, row.get("version")?, tx.now)?,
            waiting: row.get("waiting")?,
            used: row.get("used")?,
        })
    })?;
    if let Some(asked) = &asked {
        recent.counted(tx.tenant(), asked.waiting, tx.now);
    }
    Ok(asked)
}

/// The version of the rows that were written.
fn write(
    tx: &Tx<'_>,
    new: &NewRun,
    target: &NewCommand,
    command: &Command,
    asked: &Asked,
) -> StoreResult<Option<i64>> {
    let NewRun {
        run_id,
        name,
        deadline,
        traceparent,
        reason,
        ..
    } = new;
    let Command {
        command_id,
        agent_id,
        idempotent,
        attempt,
        released_to,
        released_at,
        available_at,
        ..
    } = command;
    let used = new.idempotency.as_ref();
    let (principal, route, key, request_hash) = (
        used.map(|used| &used.principal),
        used.map(|used| &used.route),
        used.map(|used| &used.key),
        used.map(|used| used.request_hash),
    );
    let Actor {
        kind,
        id: actor_id,
        request_id,
    } = &new.actor;
    let detail = submit::detail(new, 1, 0);
    let params = params! {
        run_id, name, deadline, traceparent, reason, command_id, agent_id, idempotent, attempt, released_to, released_at,
        available_at, principal, route, key, request_hash, actor_id, request_id,
        instance: tx.party().instance(), version: asked.gateway.version, reported_at: asked.gateway.found.reported_at,
        order: asked.gateway.found.counters.next_order, arguments: to_json(&new.arguments),
        submitted_by: new.actor.to_string(), run_timeout_ms: new.timeout_ms, timeout_ms: target.timeout_ms,
        state: command.state.name(), risk: target.risk.name(), actor_kind: kind.name(), action: "run.submit",
        object: format!("run:{run_id}"), outcome: AuditOutcome::Done.name(), detail: to_json(&detail),
    };
    tx.optional_and_commit(SUBMIT, params, column("runs", "version"))
}

/// What the end of a command depends on.
struct Reporting {
    command: Command,
    command_version: i64,
    gateway: Gateway,
    /// Where the session may write.
    low_water: Option<u64>,
}

/// Ends a command that its gateway reports on. `None` where that is not what happens.
pub(super) fn complete(
    tx: &Tx<'_>,
    recent: &Recent,
    holder: &Holder,
    command_id: CommandId,
    outcome: &Outcome,
) -> StoreResult<Option<CompleteOutcome>> {
    let whose = (holder.agent_id, command_id);
    for attempt in 0..ATTEMPTS {
        let guess = (attempt == 0 && tx.is_fresh())
            .then(|| remembered(tx, recent, whose, holder.epoch))
            .flatten();
        let guessed = guess.is_some();
        let reporting = match guess {
            Some(guess) => Some(guess),
            None => {
                let params = params! { command_id, agent_id: holder.agent_id };
                tx.optional(ENDING, params, |row| reporting(row, holder.epoch, tx.now))?
            }
        };
        let Some(mut reporting) = reporting else {
            return Ok(None);
        };
        if reporting.low_water.is_none() {
            return Err(StoreError::Fenced);
        }
        let versions = (reporting.gateway.version, reporting.command_version);
        let Reported::Ends(change) = end::report(Some(reporting.command), whose, outcome, tx.now)
        else {
            if guessed {
                continue;
            }
            return Ok(None);
        };
        fault::point("store.result.before_commit");
        let Some(written) = write_end(tx, whose, &change, outcome, versions)? else {
            recent.forget(tx.tenant(), holder.agent_id);
            continue;
        };
        let gateway = &mut reporting.gateway;
        gateway.found.counters.open = gateway.found.counters.open.saturating_sub(1);
        gateway.found.scene.low_water = written.low_water;
        (gateway.version, gateway.at) = (written.version, tx.now);
        recent.keep(tx.tenant(), holder.agent_id, reporting.gateway);
        let run = match written.run {
            Ending::Goes => None,
            Ending::With(run) => Some(run),
            Ending::Last => runs::load(tx, change.command.run_id)?.map(Box::new),
        };
        let finished = run.is_some();
        return Ok(Some(CompleteOutcome::Completed {
            settled: settle::settled(&change.command, finished),
            low_water: written.low_water,
            run,
        }));
    }
    Ok(None)
}

/// What this backend wrote of a command and its gateway last, where the session was the gateway's then.
fn remembered(
    tx: &Tx<'_>,
    recent: &Recent,
    whose: (AgentId, CommandId),
    epoch: u64,
) -> Option<Reporting> {
    let (command, command_version, gateway) = recent.take(tx.tenant(), whose, tx.now)?;
    let Scene {
        session_epoch,
        low_water,
        ..
    } = gateway.found.scene;
    // Of one that was revoked nothing is remembered.
    let may = session::may_write(Complete, gateway.confirmed, false, epoch);
    (may && session_epoch == Some(epoch)).then_some(Reporting {
        command,
        command_version,
        gateway,
        low_water: Some(low_water),
    })
}

fn reporting(row: &Row<'_>, epoch: u64, now: Timestamp) -> StoreResult<Reporting> {
    let command = settle::read(row)?;
    let row = Reader::new("commands", row);
    Ok(Reporting {
        command,
        command_version: row.get("command_version")?,
        gateway: Gateway::read(&row, row.get("gateway_version")?, now)?,
        low_water: sessions::low_water_of(&row, epoch)?,
    })
}

/// What became of the run of a command that ended.
enum Ending {
    /// It goes on.
    Goes,
    /// It ended with this one, its only one.
    With(Box<Run>),
    /// It ended with this one, the last of several.
    Last,
}

/// What the end of a command came to.
struct Written {
    /// The gateway's low-water mark afterwards.
    low_water: u64,
    run: Ending,
    /// The version of the rows.
    version: i64,
}

fn write_end(
    tx: &Tx<'_>,
    (agent_id, command_id): (AgentId, CommandId),
    change: &Change,
    outcome: &Outcome,
    (gateway_version, command_version): (i64, i64),
) -> StoreResult<Option<Written>> {
    let Command {
        run_id,
        idempotent,
        attempt,
        available_at,
        released_to,
        released_at,
        started_at,
        ..
    } = &change.command;
    let Some(record) = change.record() else {
        return Ok(None);
    };
    let (actor, audited) = settle::told(&record, &Actor::system());
    let (stdout, stderr) = (&outcome.stdout, &outcome.stderr);
    let params = params! {
        instance: tx.party().instance(), agent_id, command_id, run_id, gateway_version, command_version, idempotent, attempt, available_at, released_to,
        released_at, started_at, state: change.command.state.name(), reason: change.command.reason.as_deref(),
        result: change.result.as_ref().map(to_json),
        stdout_head: stdout.head, stdout_tail: stdout.tail, stdout_cut: stdout.cut_bytes,
        stderr_head: stderr.head, stderr_tail: stderr.tail, stderr_cut: stderr.cut_bytes,
        actor_kind: actor.kind.name(), actor_id: actor.id, request_id: actor.request_id, action: record.action,
        object: record.object, outcome: audited.name(), detail: to_json(&record.detail),
    };
    tx.optional_and_commit(END, params, |row| {
        let found = Reader::new("gateways", row);
        let finished = found.get::<Option<Timestamp>>("finished_at")?.is_some();
        let only = found.get::<Option<String>>("states")?.is_some();
        Ok(Written {
            low_water: found.get("low_water")?,
            version: found.get("version")?,
            run: match (finished, only) {
                (true, true) => Ending::With(Box::new(runs::read_run(row)?)),
                (true, false) => Ending::Last,
                (false, _) => Ending::Goes,
            },
        })
    })
}
