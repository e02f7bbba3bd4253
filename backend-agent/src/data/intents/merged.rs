//! The two intents that carry the load, with few journeys to a server: the facts come in one statement, and the changes
//! go in another, which does nothing where a row is not what the decision was made from. Then, and for whatever is not
//! the common case, the intent goes its usual way in the same transaction.

use std::collections::BTreeMap;

use viworks_common::command::Outcome;
use viworks_common::id::{AgentId, CommandId, RunId};
use viworks_common::ledger::end::{self, Reported};
use viworks_common::ledger::lease::at_birth;
use viworks_common::ledger::{Change, Command};
use viworks_runtime::fault;
use viworks_runtime::sqlite::{Row, params};

use super::link::{Party, Sql};
use super::row::{Reader, column, to_json};
use super::tx::Tx;
use super::{runs, sessions, settle, submit};
use crate::data::ledger::submission;
use crate::data::{
    Actor, AuditOutcome, CompleteOutcome, Holder, NewCommand, NewRun, Offered, StoreError,
    StoreResult, Submission,
};

/// Which version of a row one has seen: the transaction that wrote it.
macro_rules! version {
    ($row:literal) => {
        concat!("CAST(CAST(", $row, ".xmin AS text) AS bigint)")
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
    "SELECT g.agent_id, g.name, g.next_order, g.open_commands, g.session_epoch, g.session_instance, g.low_water, ",
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
    " = CAST(:version AS bigint) \
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
    " SELECT run_id FROM run"
));

pub(super) const ENDING: Sql = Sql::of_server(concat!(
    "SELECT ",
    settle::columns!(),
    ", g.confirmed, g.revoked_at, g.session_epoch, g.low_water, ",
    version!("g"),
    " AS gateway_version, ",
    version!("c"),
    " AS command_version \
     FROM commands AS c JOIN gateways AS g ON g.tenant = c.tenant AND g.agent_id = c.agent_id \
     WHERE c.tenant = :tenant AND c.command_id = :command_id AND c.agent_id = :agent_id"
));

/// What is still open on the gateway is all that was, but for this command.
pub(super) const END: Sql = Sql::of_server(concat!(
    "WITH held AS MATERIALIZED (\
        SELECT g.agent_id FROM gateways AS g JOIN commands AS c ON c.tenant = g.tenant AND c.agent_id = g.agent_id \
        WHERE g.tenant = :tenant AND g.agent_id = :agent_id AND c.tenant = :tenant AND c.command_id = :command_id AND ",
    version!("g"),
    " = CAST(:gateway_version AS bigint) AND ",
    version!("c"),
    " = CAST(:command_version AS bigint) FOR NO KEY UPDATE OF g, c), \
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
        WHERE tenant = :tenant AND run_id = :run_id AND EXISTS (SELECT 1 FROM held) RETURNING open_commands = 0 AS finished), \
     output AS (INSERT INTO command_outputs (tenant, command_id, stdout_head, stdout_tail, stdout_cut, stderr_head, \
                                             stderr_tail, stderr_cut) \
        SELECT :tenant, :command_id, CAST(:stdout_head AS bytea), CAST(:stdout_tail AS bytea), CAST(:stdout_cut AS bigint), \
               CAST(:stderr_head AS bytea), CAST(:stderr_tail AS bytea), CAST(:stderr_cut AS bigint) FROM held \
        ON CONFLICT DO NOTHING), ",
    noted!("held"),
    ", ",
    counted!("held", "-1"),
    " SELECT gateway.low_water, run.finished FROM gateway CROSS JOIN run"
));

/// What the submission of one command depends on.
struct Asked {
    found: submit::Found,
    version: i64,
    waiting: u64,
    used: bool,
}

/// Accepts a run for one gateway whose session takes its command at once. `None` where that is not what happens.
pub(super) fn submit(tx: &Tx<'_>, new: &NewRun) -> StoreResult<Option<Submission>> {
    let [target] = &new.targets[..] else {
        return Ok(None);
    };
    let (Some(place), true) = (target.place, new.skipped.is_empty()) else {
        return Ok(None);
    };
    let Some(asked) = asked(tx, new, target)? else {
        return Ok(None);
    };
    let Asked { found, .. } = &asked;
    let far = submit::is_far_from_bound(new, asked.waiting);
    let elsewhere = found.instance != tx.party().instance();
    if asked.used || elsewhere || !far || submit::is_outdated_for(target, found) {
        return Ok(None);
    }
    let counters = |agent_id| (agent_id == target.agent_id).then_some(&found.counters);
    let judged = submission::judge(new, counters, asked.waiting);
    if !judged.is_ok_and(|full| full.is_empty()) {
        return Ok(None);
    }
    let order = found.counters.next_order;
    let born = submission::command(new, target, tx.now);
    let Some(Change { command, .. }) = at_birth(born, order, place, found.scene, tx.now) else {
        return Ok(None);
    };
    fault::point("store.submit.before_commit");
    if !write(tx, new, target, &command, &asked)? {
        return Ok(None);
    }
    let states = BTreeMap::from([(command.state, 1)]);
    let offered = Offered {
        agent_id: target.agent_id,
        epoch: place.epoch,
        command: submission::offer(new, &command, order),
    };
    Ok(Some(Submission::Submitted {
        run: submission::run(new, tx.now, states, 0),
        offered: vec![offered],
    }))
}

fn asked(tx: &Tx<'_>, new: &NewRun, target: &NewCommand) -> StoreResult<Option<Asked>> {
    let used = new.idempotency.as_ref();
    let (principal, route, key) = (
        used.map(|used| &used.principal),
        used.map(|used| &used.route),
        used.map(|used| &used.key),
    );
    let agent_id = target.agent_id;
    let params = params! { agent_id, principal, route, key };
    tx.optional(SUBMISSION, params, |row| {
        let row = Reader::new("gateways", row);
        Ok(Asked {
            found: submit::Found::read(&row)?,
            version: row.get("version")?,
            waiting: row.get("waiting")?,
            used: row.get("used")?,
        })
    })
}

fn write(
    tx: &Tx<'_>,
    new: &NewRun,
    target: &NewCommand,
    command: &Command,
    asked: &Asked,
) -> StoreResult<bool> {
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
        version: asked.version, order: asked.found.counters.next_order, arguments: to_json(&new.arguments),
        submitted_by: new.actor.to_string(), run_timeout_ms: new.timeout_ms, timeout_ms: target.timeout_ms,
        state: command.state.name(), risk: target.risk.name(), actor_kind: kind.name(), action: "run.submit",
        object: format!("run:{run_id}"), outcome: AuditOutcome::Done.name(), detail: to_json(&detail),
    };
    let written = tx.optional(SUBMIT, params, column::<RunId>("runs", "run_id"))?;
    Ok(written.is_some())
}

/// What the end of a command depends on.
struct Reporting {
    command: Command,
    low_water: Option<u64>,
    gateway_version: i64,
    command_version: i64,
}

/// Ends a command that its gateway reports on. `None` where that is not what happens.
pub(super) fn complete(
    tx: &Tx<'_>,
    holder: &Holder,
    command_id: CommandId,
    outcome: &Outcome,
) -> StoreResult<Option<CompleteOutcome>> {
    let agent_id = holder.agent_id;
    let reporting = tx.optional(ENDING, params! { command_id, agent_id }, |row| {
        reporting(row, holder.epoch)
    })?;
    let Some(reporting) = reporting else {
        return Ok(None);
    };
    let versions = (reporting.gateway_version, reporting.command_version);
    if reporting.low_water.is_none() {
        return Err(StoreError::Fenced);
    }
    let whose = (agent_id, command_id);
    let Reported::Ends(change) = end::report(Some(reporting.command), whose, outcome, tx.now)
    else {
        return Ok(None);
    };
    fault::point("store.result.before_commit");
    let Some((low_water, finished)) = write_end(tx, whose, &change, outcome, versions)? else {
        return Ok(None);
    };
    let run = match finished {
        true => runs::load(tx, change.command.run_id)?.map(Box::new),
        false => None,
    };
    Ok(Some(CompleteOutcome::Completed {
        settled: settle::settled(&change.command, finished),
        low_water,
        run,
    }))
}

fn reporting(row: &Row<'_>, epoch: u64) -> StoreResult<Reporting> {
    let command = settle::read(row)?;
    let row = Reader::new("commands", row);
    Ok(Reporting {
        command,
        low_water: sessions::low_water_of(&row, epoch)?,
        gateway_version: row.get("gateway_version")?,
        command_version: row.get("command_version")?,
    })
}

/// The gateway's low-water mark afterwards, and whether the run has ended.
fn write_end(
    tx: &Tx<'_>,
    (agent_id, command_id): (AgentId, CommandId),
    change: &Change,
    outcome: &Outcome,
    (gateway_version, command_version): (i64, i64),
) -> StoreResult<Option<(u64, bool)>> {
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
        agent_id, command_id, run_id, gateway_version, command_version, idempotent, attempt, available_at, released_to,
        released_at, started_at, state: change.command.state.name(), reason: change.command.reason.as_deref(),
        result: change.result.as_ref().map(to_json),
        stdout_head: stdout.head, stdout_tail: stdout.tail, stdout_cut: stdout.cut_bytes,
        stderr_head: stderr.head, stderr_tail: stderr.tail, stderr_cut: stderr.cut_bytes,
        actor_kind: actor.kind.name(), actor_id: actor.id, request_id: actor.request_id, action: record.action,
        object: record.object, outcome: audited.name(), detail: to_json(&record.detail),
    };
    tx.optional(END, params, |row| {
        let row = Reader::new("gateways", row);
        Ok((row.get("low_water")?, row.get("finished")?))
    })
}

/// Whether the database is on a server, where journeys count.
pub(super) fn is_wanted(tx: &Tx<'_>) -> bool {
    tx.party() != Party::Alone
}
