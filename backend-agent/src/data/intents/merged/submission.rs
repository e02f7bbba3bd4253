//! The submission of a run for one gateway, whose session takes its command at once.

use std::collections::BTreeMap;

use viworks_common::command::CommandState;
use viworks_common::id::InstanceId;
use viworks_common::ledger::Command;
use viworks_common::ledger::lease::{Place, at_birth};
use viworks_common::time::Timestamp;
use viworks_runtime::fault;
use viworks_runtime::sqlite::params;

use super::super::arrays::{Arrays, Kind, listed, unnested};
use super::super::audit;
use super::super::link::Sql;
use super::super::recent::{Gateway, Recent};
use super::super::row::{Reader, column, to_json};
use super::super::submit;
use super::super::tx::{Tx, View};
use super::ATTEMPTS;
use crate::data::ledger::submission;
use crate::data::{AuditOutcome, NewCommand, NewRun, Offered, StoreResult, Submission};

/// What is written of each.
macro_rules! columns {
    ($as:ident) => {
        $as!(
            agent_id text, version bigint, reported_at bigint, at bigint,
            run_id text, name text, arguments text, traceparent text, reason text, submitted_by text, run_timeout_ms bigint,
            command_id text, order_no bigint, state text, idempotent boolean, risk text, timeout_ms bigint, attempt bigint,
            released_to text, released_at bigint, available_at bigint, deadline bigint,
            principal text, route text, key text, request_hash bytea,
            actor_kind text, actor_id text, action text, object text, outcome text, detail text, request_id text
        )
    };
}

const COLUMNS: &[(&str, Kind)] = columns!(listed);

pub(in crate::data::intents) const SUBMISSION: Sql = Sql::of_server(concat!(
    "SELECT g.agent_id, g.name, g.next_order, g.open_commands, g.confirmed, g.session_epoch, g.session_instance, g.low_water, ",
    version!("g"),
    " AS version, \
     EXISTS (SELECT 1 FROM commands AS c WHERE c.tenant = g.tenant AND c.agent_id = g.agent_id AND c.state = 'queued') AS waits, \
     (SELECT reported_at FROM catalogues AS k WHERE k.tenant = g.tenant AND k.agent_id = g.agent_id) AS reported_at, \
     (SELECT greatest(0, CAST(coalesce(sum(o.commands), 0) AS bigint)) FROM open_commands AS o WHERE o.tenant = g.tenant) AS waiting, \
     EXISTS (SELECT 1 FROM idempotency_keys AS i WHERE i.tenant = g.tenant AND i.principal = :principal \
             AND i.route = :route AND i.key = :key) AS used \
     FROM gateways AS g WHERE g.tenant = :tenant AND g.agent_id = :agent_id AND g.revoked_at IS NULL"
));

/// A run that is known already, or a key that was used, refuses all of it, and each goes its usual way. What somebody
/// else has locked, a key among them, is left to that as well: nobody waits for it here. Rows are found by their
/// places, which the lock has made certain, so that no planner has to choose.
pub(in crate::data::intents) const SUBMIT: Sql = Sql::of_server(concat!(
    "WITH held AS MATERIALIZED (\
        SELECT a.*, h.place FROM ",
    columns!(unnested),
    " CROSS JOIN LATERAL (\
            SELECT g.ctid AS place FROM gateways AS g WHERE g.tenant = :tenant AND g.agent_id = a.agent_id AND ",
    version!("g"),
    " = a.version \
              AND (SELECT k.reported_at FROM catalogues AS k WHERE k.tenant = :tenant AND k.agent_id = a.agent_id) \
                  IS NOT DISTINCT FROM a.reported_at \
              AND NOT EXISTS (SELECT 1 FROM commands AS c \
                              WHERE c.tenant = :tenant AND c.agent_id = a.agent_id AND c.state = 'queued') \
            LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) AS h \
        WHERE (a.key IS NULL OR pg_try_advisory_xact_lock(hashtextextended(\
                :tenant || ' idempotency ' || a.principal || ' ' || a.route || ' ' || a.key, 0))) AND ",
    leased!(),
    "), \
     taken AS (UPDATE gateways AS g SET next_order = next_order + 1, open_commands = open_commands + 1 \
        FROM held AS h WHERE g.ctid = h.place RETURNING h.*), \
     run AS (INSERT INTO runs (tenant, run_id, name, arguments, deadline, traceparent, reason, submitted_by, created_at, \
                               open_commands, skipped, timeout_ms) \
        SELECT :tenant, t.run_id, t.name, CAST(t.arguments AS json), t.deadline, t.traceparent, t.reason, t.submitted_by, t.at, \
               1, 0, t.run_timeout_ms FROM taken AS t), \
     command AS (INSERT INTO commands (tenant, command_id, run_id, agent_id, order_no, state, idempotent, risk, timeout_ms, \
                                       attempt, released_to, released_at, available_at, deadline, created_at) \
        SELECT :tenant, t.command_id, t.run_id, t.agent_id, t.order_no, t.state, t.idempotent, t.risk, t.timeout_ms, \
               t.attempt, t.released_to, t.released_at, t.available_at, t.deadline, t.at FROM taken AS t), \
     used AS (INSERT INTO idempotency_keys (tenant, principal, route, key, request_hash, run_id, created_at) \
        SELECT :tenant, t.principal, t.route, t.key, t.request_hash, t.run_id, t.at FROM taken AS t \
        WHERE t.key IS NOT NULL), ",
    noted!("taken"),
    ", ",
    counted!("taken", "count(*)"),
    " SELECT t.item, ",
    written_version!(),
    " AS version FROM taken AS t"
));

/// The one gateway of a run that may go this way.
pub(super) fn target(new: &NewRun) -> Option<(&NewCommand, Place)> {
    let [target] = &new.targets[..] else {
        return None;
    };
    let place = target.place?;
    (new.skipped.is_empty() && new.retry_of.is_none()).then_some((target, place))
}

/// What the submission of one command depends on.
struct Asked {
    gateway: Gateway,
    waiting: u64,
    used: bool,
}

/// A run, and its command as it is born.
struct Born<'n> {
    new: &'n NewRun,
    target: &'n NewCommand,
    place: Place,
    command: Command,
    gateway: Gateway,
    now: Timestamp,
}

impl<'n> Born<'n> {
    /// Where the session of the gateway takes it at once.
    fn judged(
        own: Option<InstanceId>,
        new: &'n NewRun,
        asked: Asked,
        now: Timestamp,
    ) -> Option<Self> {
        let (target, place) = target(new)?;
        let found = &asked.gateway.found;
        let far = submit::is_far_from_bound(new, asked.waiting);
        let elsewhere = found.instance != own;
        if asked.used || elsewhere || !far || submit::is_outdated_for(target, found) {
            return None;
        }
        let counters = |agent_id| (agent_id == target.agent_id).then_some(&found.counters);
        let judged = submission::judge(new, counters, asked.waiting);
        if !judged.is_ok_and(|full| full.is_empty()) {
            return None;
        }
        let order = found.counters.next_order;
        let born = submission::command(new, target, now);
        let command = at_birth(born, order, place, found.scene, now)?.command;
        Some(Self {
            new,
            target,
            place,
            command,
            gateway: asked.gateway,
            now,
        })
    }

    /// It is written: what is remembered of it, and what the one who submitted it is told.
    fn submitted(self, view: &View<'_>, recent: &Recent, version: i64) -> Submission {
        let Self {
            new,
            target,
            place,
            command,
            mut gateway,
            now,
        } = self;
        let order = gateway.found.counters.next_order;
        gateway.found.counters.next_order += 1;
        gateway.found.counters.open += 1;
        (gateway.version, gateway.at) = (version, now);
        recent.keep(view.tenant(), target.agent_id, gateway);
        recent.keep_command(command.clone(), version, now);
        let states = BTreeMap::from([(command.state, 1)]);
        let offered = Offered {
            agent_id: target.agent_id,
            epoch: place.epoch,
            command: submission::offer(new, &command, order),
        };
        Submission::Submitted {
            run: submission::run(new, now, states, 0),
            offered: vec![offered],
        }
    }
}

/// Accepts a run after a question for the facts. `None` where that is not what happens.
pub(in crate::data::intents) fn submit(
    tx: &Tx<'_>,
    recent: &Recent,
    new: &NewRun,
) -> StoreResult<Option<Submission>> {
    let Some((target, _)) = target(new) else {
        return Ok(None);
    };
    for _attempt in 0..ATTEMPTS {
        let Some(asked) = asked(tx, recent, new, target)? else {
            return Ok(None);
        };
        let Some(born) = Born::judged(tx.party().instance(), new, asked, tx.now) else {
            return Ok(None);
        };
        match write(tx, std::slice::from_ref(&born))? {
            None => return Ok(None),
            Some(written) => {
                if let Some((_, version)) = written.first() {
                    return Ok(Some(born.submitted(tx, recent, *version)));
                }
            }
        }
        recent.forget(tx.tenant(), target.agent_id);
    }
    Ok(None)
}

/// Accepts those of the runs for which what is remembered is true.
pub(super) fn submit_all(
    view: &View<'_>,
    recent: &Recent,
    runs: &[(Timestamp, &NewRun)],
) -> StoreResult<Vec<Option<Submission>>> {
    let mut answers: Vec<Option<Submission>> = runs.iter().map(|_run| None).collect();
    let (mut places, mut born) = (Vec::new(), Vec::new());
    let Some(&(now, _)) = runs.first() else {
        return Ok(answers);
    };
    let waiting = match recent.open(view.tenant(), now) {
        Some(waiting) => waiting,
        None => counted(view, recent, now)?,
    };
    for (place, &(now, new)) in runs.iter().enumerate() {
        if let Some(one) = guessed(view, recent, new, waiting, now) {
            places.push(place);
            born.push(one);
        }
    }
    let (written, failed) = match write(view, &born) {
        Ok(written) => (written.unwrap_or_default(), None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let mut written: BTreeMap<usize, i64> = written.into_iter().collect();
    for (number, (place, born)) in places.into_iter().zip(born).enumerate() {
        match answers.get_mut(place).zip(written.remove(&number)) {
            Some((answer, version)) => *answer = Some(born.submitted(view, recent, version)),
            // Not before: whoever comes meanwhile comes behind it.
            None => recent.forget(view.tenant(), born.target.agent_id),
        }
    }
    failed.map_or(Ok(answers), Err)
}

/// By what this backend found and wrote of the gateway last.
fn guessed<'n>(
    view: &View<'_>,
    recent: &Recent,
    new: &'n NewRun,
    waiting: u64,
    now: Timestamp,
) -> Option<Born<'n>> {
    let (target, _) = target(new)?;
    let gateway = recent.gateway(view.tenant(), target.agent_id, now)?;
    // A key that was used already refuses what is written.
    let asked = Asked {
        gateway,
        waiting,
        used: false,
    };
    Born::judged(view.party().instance(), new, asked, now)
}

/// How many commands are open, which is known for a moment.
fn counted(view: &View<'_>, recent: &Recent, now: Timestamp) -> StoreResult<u64> {
    let waiting = view.one(submit::WAITING, &[], column("open_commands", "commands"))?;
    recent.counted(view.tenant(), waiting, now);
    Ok(waiting)
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

/// Which of them were written, by their numbers, each with the version of its rows; none where a key refused them.
fn write(view: &View<'_>, born: &[Born<'_>]) -> StoreResult<Option<Vec<(usize, i64)>>> {
    let mut rows = Arrays::of(COLUMNS);
    for one in born {
        push(&mut rows, one)?;
        fault::point("store.submit.before_commit");
    }
    if born.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let instance = view.party().instance();
    let others = params! { instance };
    let params = rows.and(others);
    view.all_and_commit(SUBMIT, &params, |row| {
        let row = Reader::new("runs", row);
        let item: usize = row.get("item")?;
        Ok((item.saturating_sub(1), row.get("version")?))
    })
}

fn push(rows: &mut Arrays, born: &Born<'_>) -> StoreResult<()> {
    let Born {
        new,
        target,
        command,
        gateway,
        now,
        ..
    } = born;
    let used = new.idempotency.as_ref();
    let (run_id, run_timeout_ms) = (new.run_id, new.timeout_ms);
    let state: CommandState = command.state;
    rows.push(params! {
        agent_id: target.agent_id, version: gateway.version, reported_at: gateway.found.reported_at, at: now,
        run_id, name: new.name, arguments: to_json(&new.arguments), traceparent: new.traceparent, reason: new.reason,
        submitted_by: new.actor.to_string(), run_timeout_ms,
        command_id: command.command_id, order_no: gateway.found.counters.next_order, state: state.name(),
        idempotent: command.idempotent, risk: target.risk.name(), timeout_ms: target.timeout_ms, attempt: command.attempt,
        released_to: command.released_to, released_at: command.released_at, available_at: command.available_at,
        deadline: command.deadline,
        principal: used.map(|used| &used.principal), route: used.map(|used| &used.route), key: used.map(|used| &used.key),
        request_hash: used.map(|used| used.request_hash),
        actor_kind: new.actor.kind.name(), actor_id: new.actor.id, action: "run.submit", object: format!("run:{run_id}"),
        outcome: AuditOutcome::Done.name(), detail: to_json(&audit::with_peer(&new.actor, submit::detail(new, 1, 0))),
        request_id: new.actor.request_id,
    })
}
