//! Submitting runs, each as a whole or not at all.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use viworks_common::command::CommandState;
use viworks_common::id::{AgentId, InstanceId};
use viworks_common::ledger::Command;
use viworks_common::ledger::lease::{Scene, at_birth};
use viworks_common::ledger::submit::Counters;
use viworks_common::time::Timestamp;
use viworks_runtime::fault;
use viworks_runtime::sqlite::params;

use super::inbox::Post;
use super::link::Sql;
use super::row::{Reader, column, to_json};
use super::runs::{self, KEY_LIFE, replay};
use super::tx::Tx;
use super::{audit, dead_letters};
use crate::data::ledger::submission;
use crate::data::{
    AuditOutcome, Idempotency, Letter, NewCommand, NewRun, Offered, Remembered, Skip, StoreError,
    StoreResult, Submission,
};

/// How many commands of all gateways are not final, as they are counted; a counter that is off is no reason to refuse.
pub(super) const WAITING: Sql = Sql {
    sqlite: "SELECT max(0, coalesce(sum(commands), 0)) AS commands FROM open_commands WHERE tenant = :tenant",
    postgres: "\
SELECT greatest(0, CAST(coalesce(sum(commands), 0) AS bigint)) AS commands FROM open_commands WHERE tenant = :tenant",
};

/// What a gateway's next command depends on.
pub(super) const GATEWAY: &str = "\
SELECT g.agent_id, g.name, g.next_order, g.open_commands, g.session_epoch, g.session_instance, g.low_water,
       EXISTS (SELECT 1 FROM commands AS c INDEXED BY queued_commands_by_gateway
               WHERE c.tenant = g.tenant AND c.agent_id = g.agent_id AND c.state = 'queued') AS waits,
       (SELECT reported_at FROM catalogues AS k WHERE k.tenant = g.tenant AND k.agent_id = g.agent_id) AS reported_at
FROM gateways AS g WHERE g.tenant = :tenant AND g.agent_id = :agent_id AND g.revoked_at IS NULL";

pub(super) const COUNT: &str = "\
UPDATE gateways SET next_order = next_order + 1, open_commands = open_commands + 1
WHERE tenant = :tenant AND agent_id = :agent_id";

pub(super) const INSERT_RUN: &str = "\
INSERT INTO runs (tenant, run_id, name, arguments, deadline, traceparent, reason, submitted_by, created_at,
                  open_commands, skipped, timeout_ms, retry_of)
VALUES (:tenant, :run_id, :name, :arguments, :deadline, :traceparent, :reason, :submitted_by, :now,
        :commands, :skipped, :timeout_ms, :retry_of) ON CONFLICT DO NOTHING";

pub(super) const INSERT_COMMAND: &str = "\
INSERT INTO commands (tenant, command_id, run_id, agent_id, order_no, state, idempotent, risk, timeout_ms, attempt,
                      released_to, released_at, available_at, deadline, created_at)
VALUES (:tenant, :command_id, :run_id, :agent_id, :order, :state, :idempotent, :risk, :timeout_ms, :attempt,
        :released_to, :released_at, :available_at, :deadline, :now)";

pub(super) const INSERT_SKIP: &str = "\
INSERT INTO run_skips (tenant, run_id, agent_id, code, detail) VALUES (:tenant, :run_id, :agent_id, :code, :detail)";

pub(super) const KEEP_KEY: &str = "\
INSERT INTO idempotency_keys (tenant, principal, route, key, request_hash, run_id, created_at)
VALUES (:tenant, :principal, :route, :key, :request_hash, :run_id, :now)
ON CONFLICT (tenant, principal, route, key) DO UPDATE
    SET request_hash = excluded.request_hash, run_id = excluded.run_id, created_at = excluded.created_at
    WHERE idempotency_keys.created_at <= :since";

/// Targets of a run that does not wait for others as long as there is much room.
const SMALL: u64 = 64;

/// Runs that are submitted at the same moment, at most: as many as there can be connections.
const AT_ONCE: u64 = 500;

/// What became of a run; a refusal is the inner error, and only its audit record remains.
pub(super) type Answer = Result<Submission, StoreError>;

/// A gateway that a run is for, as it is found.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) counters: Counters,
    pub(super) scene: Scene,
    pub(super) reported_at: Option<Timestamp>,
    /// Which of several backends has its session.
    pub(super) instance: Option<InstanceId>,
}

impl Found {
    pub(super) fn read(row: &Reader<'_>) -> StoreResult<Self> {
        Ok(Self {
            counters: Counters {
                name: row.get("name")?,
                next_order: row.get("next_order")?,
                open: row.get("open_commands")?,
            },
            scene: Scene {
                session_epoch: row.get("session_epoch")?,
                low_water: row.get("low_water")?,
                waits: row.get("waits")?,
            },
            reported_at: row.get("reported_at")?,
            instance: row.get("session_instance")?,
        })
    }

    fn is(&self, remembered: &Remembered) -> bool {
        self.counters.name == remembered.name && self.reported_at == Some(remembered.reported_at)
    }
}

/// Accepts a run, or refuses it.
pub(super) fn submit(tx: &Tx<'_>, new: &NewRun) -> StoreResult<Answer> {
    if let Some(asked) = &new.idempotency {
        let Idempotency {
            principal,
            route,
            key,
            ..
        } = asked;
        tx.lock_name(&format!("idempotency {principal} {route} {key}"))?;
        if let Some(earlier) = replay(tx, asked, tx.now)? {
            return Ok(Ok(earlier));
        }
    }
    tx.lock(new.targets.iter().map(|target| target.agent_id))?;
    if let Some(dead) = new.retry_of
        && let Some(answer) = dead_letters::answered(tx, dead)?
    {
        return Ok(Ok(answer));
    }
    let found = find(tx, new)?;
    if is_outdated(new, &found) {
        return Ok(Ok(Submission::Outdated));
    }
    let counters = |agent_id| found.get(&agent_id).map(|found| &found.counters);
    let full = match submission::judge(new, counters, waiting(tx, new)?) {
        Ok(full) => full,
        Err(refusal) => {
            // What was accepted already, and whose answer was lost, is not refused.
            if let Some(run) = runs::load(tx, new.run_id)? {
                return Ok(Ok(Submission::Replayed(run)));
            }
            if is_one_gone(new, &found) {
                return Ok(Ok(Submission::Outdated));
            }
            let detail = json!({ "name": new.name, "targets": new.targets.len(), "reason": refusal.to_string() });
            note(tx, new, AuditOutcome::Refused, &detail)?;
            return Ok(Err(refusal));
        }
    };
    let (commands, skips) = (submission::count(new, &full), submission::skips(new, &full));
    let skipped = u64::try_from(skips.len()).unwrap_or(u64::MAX);
    if !insert_run(tx, new, commands, &skips)? {
        let known = runs::expected(tx, new.run_id)?;
        return Ok(Ok(Submission::Replayed(known)));
    }
    if let Some(dead) = new.retry_of {
        dead_letters::retried(tx, dead, new.run_id, &new.actor)?;
    }
    let mut run = submission::run(new, tx.now, BTreeMap::new(), skipped);
    let mut offered = Vec::new();
    for target in &new.targets {
        let found = found.get(&target.agent_id);
        if let Some(found) = found.filter(|_| !full.contains(&target.agent_id)) {
            let (state, offer) = insert_command(tx, new, target, found)?;
            *run.states.entry(state).or_default() += 1;
            offered.extend(offer);
        }
    }
    let detail = detail(new, commands, skipped);
    note(tx, new, AuditOutcome::Done, &detail)?;
    fault::point("store.submit.before_commit");
    Ok(Ok(Submission::Submitted { run, offered }))
}

/// Whether there is so much room that it does not matter who else submits at this moment.
pub(super) fn is_far_from_bound(new: &NewRun, waiting: u64) -> bool {
    let own = u64::try_from(new.targets.len()).unwrap_or(u64::MAX);
    own <= SMALL && waiting.saturating_add(SMALL * AT_ONCE) < new.limits.global
}

/// How many commands of all gateways are not final. Where a run is large, or the bound not far, runs that are submitted
/// at the same moment wait for each other: each would otherwise see room that another one takes.
fn waiting(tx: &Tx<'_>, new: &NewRun) -> StoreResult<u64> {
    let read = || tx.one(WAITING, &[], column("open_commands", "commands"));
    let waiting: u64 = read()?;
    if is_far_from_bound(new, waiting) {
        return Ok(waiting);
    }
    tx.lock_name("open commands")?;
    read()
}

/// The gateways that a run is for, each that is not revoked.
fn find(tx: &Tx<'_>, new: &NewRun) -> StoreResult<BTreeMap<AgentId, Found>> {
    let mut gateways = BTreeMap::new();
    for NewCommand { agent_id, .. } in &new.targets {
        let found = tx.optional(GATEWAY, params! { agent_id }, |row| {
            Found::read(&Reader::new("gateways", row))
        })?;
        gateways.extend(found.map(|found| (*agent_id, found)));
    }
    Ok(gateways)
}

/// Whether one that was remembered is not there any more, or was revoked: whoever asks is told so by the name that it
/// asked for, once it is looked up anew.
fn is_one_gone(new: &NewRun, found: &BTreeMap<AgentId, Found>) -> bool {
    new.targets
        .iter()
        .any(|target| target.remembered.is_some() && !found.contains_key(&target.agent_id))
}

/// Whether a gateway is not what the run was checked against. One that is gone is told of by the decision.
fn is_outdated(new: &NewRun, found: &BTreeMap<AgentId, Found>) -> bool {
    new.targets.iter().any(|target| {
        let found = found.get(&target.agent_id);
        found.is_some_and(|found| is_outdated_for(target, found))
    })
}

/// Whether one is not.
pub(super) fn is_outdated_for(target: &NewCommand, found: &Found) -> bool {
    let remembered = target.remembered.as_ref();
    remembered.is_some_and(|remembered| !found.is(remembered))
}

/// What the audit log is told of a run that was accepted.
pub(super) fn detail(new: &NewRun, commands: u64, skipped: u64) -> Value {
    json!({
        "name": new.name, "arguments": new.arguments, "targets": commands, "skipped": skipped,
        "deadline": new.deadline, "timeout_ms": new.timeout_ms, "reason": new.reason,
    })
}

/// Writes the run; `false` when it is there already.
fn insert_run(tx: &Tx<'_>, new: &NewRun, commands: u64, skips: &[Skip]) -> StoreResult<bool> {
    let NewRun {
        run_id,
        name,
        deadline,
        timeout_ms,
        traceparent,
        reason,
        retry_of,
        ..
    } = new;
    let (arguments, submitted_by) = (to_json(&new.arguments), new.actor.to_string());
    let skipped = skips.len();
    let params = params! {
        run_id, name, arguments, deadline, traceparent, reason, submitted_by, commands, skipped, timeout_ms,
        retry_of,
    };
    if tx.execute(INSERT_RUN, params)? == 0 {
        return Ok(false);
    }
    for Skip {
        agent_id,
        code,
        detail,
    } in skips
    {
        let code = code.name();
        tx.execute(INSERT_SKIP, params! { run_id, agent_id, code, detail })?;
    }
    if let Some(used) = &new.idempotency {
        let since = tx.now.saturating_sub(KEY_LIFE);
        let params = params! {
            principal: used.principal, route: used.route, key: used.key, request_hash: used.request_hash, run_id, since,
        };
        if tx.execute(KEEP_KEY, params)? == 0 {
            // Whoever uses a key has it locked. Where that failed, one of the two runs must not be.
            let fault = "an idempotency key was used by somebody else meanwhile; submit again";
            return Err(StoreError::Unavailable(fault.into()));
        }
    }
    Ok(true)
}

/// Writes a command, offered already if a session has kept room for it and it is its turn.
fn insert_command(
    tx: &Tx<'_>,
    new: &NewRun,
    target: &NewCommand,
    found: &Found,
) -> StoreResult<(CommandState, Option<Offered>)> {
    let order = found.counters.next_order;
    let born = submission::command(new, target, tx.now);
    let offer = target
        .place
        .and_then(|place| at_birth(born.clone(), order, place, found.scene, tx.now));
    let command = offer.as_ref().map_or(&born, |offer| &offer.command);
    let Command {
        command_id,
        run_id,
        agent_id,
        idempotent,
        attempt,
        released_to,
        released_at,
        available_at,
        deadline,
        ..
    } = command;
    let (state, risk, timeout_ms) = (command.state.name(), target.risk.name(), target.timeout_ms);
    tx.execute(COUNT, params! { agent_id })?;
    let params = params! {
        command_id, run_id, agent_id, order, state, idempotent, risk, timeout_ms, attempt, released_to, released_at,
        available_at, deadline,
    };
    tx.execute(INSERT_COMMAND, params)?;
    tx.count_open(1);
    if found.instance.is_some() && found.instance != tx.party().instance() {
        tx.post(Post {
            to: found.instance,
            agent_id: *agent_id,
            letter: Letter::Look,
        });
    }
    let offered = target
        .place
        .filter(|_| offer.is_some())
        .map(|place| Offered {
            agent_id: *agent_id,
            epoch: place.epoch,
            command: submission::offer(new, command, order),
        });
    Ok((command.state, offered))
}

fn note(tx: &Tx<'_>, new: &NewRun, outcome: AuditOutcome, detail: &Value) -> StoreResult<()> {
    let object = format!("run:{}", new.run_id);
    audit::append(tx, &new.actor, "run.submit", &object, outcome, detail)
}
