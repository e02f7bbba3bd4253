//! Submitting runs, each as a whole or not at all.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use viworks_common::id::AgentId;
use viworks_common::ledger::submit::Counters;
use viworks_runtime::fault;
use viworks_runtime::sqlite::params;

use super::audit;
use super::row::{Reader, column, to_json};
use super::runs::replay;
use super::tx::Tx;
use crate::data::ledger::submission::{self, FullQueues};
use crate::data::{AuditOutcome, NewCommand, NewRun, Skip, StoreError, StoreResult, Submission};

/// How many commands of all gateways are not final.
pub(super) const WAITING: &str = "SELECT commands FROM open_commands WHERE tenant = :tenant";

pub(super) const COUNTERS: &str = "\
SELECT name, next_order, open_commands FROM gateways
WHERE tenant = :tenant AND agent_id = :agent_id AND revoked_at IS NULL";

pub(super) const COUNT: &str = "\
UPDATE gateways SET next_order = next_order + 1, open_commands = open_commands + 1
WHERE tenant = :tenant AND agent_id = :agent_id";

pub(super) const INSERT_RUN: &str = "\
INSERT INTO runs (tenant, run_id, name, arguments, deadline, traceparent, reason, submitted_by, created_at,
                  open_commands, skipped, timeout_ms)
VALUES (:tenant, :run_id, :name, :arguments, :deadline, :traceparent, :reason, :submitted_by, :now,
        :commands, :skipped, :timeout_ms)";

pub(super) const INSERT_COMMAND: &str = "\
INSERT INTO commands (tenant, command_id, run_id, agent_id, order_no, state, idempotent, risk, timeout_ms,
                      available_at, deadline, created_at)
VALUES (:tenant, :command_id, :run_id, :agent_id, :order, 'queued', :idempotent, :risk, :timeout_ms,
        :now, :deadline, :now)";

pub(super) const INSERT_SKIP: &str = "\
INSERT INTO run_skips (tenant, run_id, agent_id, code, detail) VALUES (:tenant, :run_id, :agent_id, :code, :detail)";

pub(super) const KEEP_KEY: &str = "\
INSERT OR REPLACE INTO idempotency_keys (tenant, principal, route, key, request_hash, run_id, created_at)
VALUES (:tenant, :principal, :route, :key, :request_hash, :run_id, :now)";

/// What became of a run; a refusal is the inner error, and only its audit record remains.
pub(super) type Answer = Result<Submission, StoreError>;

/// Accepts a run, or refuses it.
pub(super) fn submit(tx: &Tx<'_>, new: &NewRun) -> StoreResult<Answer> {
    if let Some(key) = &new.idempotency
        && let Some(earlier) = replay(tx, key, tx.now)?
    {
        return Ok(Ok(earlier));
    }
    let gateways = counters(tx, new)?;
    let waiting = tx.optional(WAITING, &[], column("open_commands", "commands"))?;
    let full = match submission::judge(new, &gateways, waiting.unwrap_or(0)) {
        Ok(full) => full,
        Err(refusal) => {
            let detail = json!({ "name": new.name, "targets": new.targets.len(), "reason": refusal.to_string() });
            note(tx, new, AuditOutcome::Refused, &detail)?;
            return Ok(Err(refusal));
        }
    };
    let (commands, skips) = (submission::count(new, &full), submission::skips(new, &full));
    let skipped = u64::try_from(skips.len()).unwrap_or(u64::MAX);
    write(tx, new, &gateways, &full, &skips)?;
    let detail = json!({
        "name": new.name, "arguments": new.arguments, "targets": commands, "skipped": skipped,
        "deadline": new.deadline, "timeout_ms": new.timeout_ms, "reason": new.reason,
    });
    note(tx, new, AuditOutcome::Done, &detail)?;
    fault::point("store.submit.before_commit");
    let run = submission::run(new, tx.now, commands, skipped);
    Ok(Ok(Submission::Submitted(run)))
}

/// The gateways that a run is for, each that is not revoked.
fn counters(tx: &Tx<'_>, new: &NewRun) -> StoreResult<BTreeMap<AgentId, Counters>> {
    let mut gateways = BTreeMap::new();
    for NewCommand { agent_id, .. } in &new.targets {
        let found = tx.optional(COUNTERS, params! { agent_id }, |row| {
            let row = Reader::new("gateways", row);
            Ok(Counters {
                name: row.get("name")?,
                next_order: row.get("next_order")?,
                open: row.get("open_commands")?,
            })
        })?;
        gateways.extend(found.map(|found| (*agent_id, found)));
    }
    Ok(gateways)
}

fn write(
    tx: &Tx<'_>,
    new: &NewRun,
    gateways: &BTreeMap<AgentId, Counters>,
    full: &FullQueues,
    skips: &[Skip],
) -> StoreResult<()> {
    let NewRun {
        run_id,
        name,
        deadline,
        timeout_ms,
        traceparent,
        reason,
        ..
    } = new;
    let (arguments, submitted_by) = (to_json(&new.arguments), new.actor.to_string());
    let (commands, skipped) = (submission::count(new, full), skips.len());
    let params = params! {
        run_id, name, arguments, deadline, traceparent, reason, submitted_by, commands, skipped, timeout_ms,
    };
    tx.execute(INSERT_RUN, params)?;
    for target in &new.targets {
        let counters = gateways.get(&target.agent_id);
        if let Some(counters) = counters.filter(|_| !full.contains(&target.agent_id)) {
            insert_command(tx, new, target, counters.next_order)?;
        }
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
        let params = params! {
            principal: used.principal, route: used.route, key: used.key, request_hash: used.request_hash, run_id,
        };
        tx.execute(KEEP_KEY, params)?;
    }
    Ok(())
}

fn insert_command(tx: &Tx<'_>, new: &NewRun, target: &NewCommand, order: u64) -> StoreResult<()> {
    let NewCommand {
        agent_id,
        command_id,
        idempotent,
        timeout_ms,
        risk,
    } = target;
    let (run_id, deadline) = (&new.run_id, &new.deadline);
    let risk = risk.name();
    tx.execute(COUNT, params! { agent_id })?;
    let params =
        params! { command_id, run_id, agent_id, order, idempotent, risk, timeout_ms, deadline };
    tx.execute(INSERT_COMMAND, params)?;
    tx.count_open(1);
    Ok(())
}

fn note(tx: &Tx<'_>, new: &NewRun, outcome: AuditOutcome, detail: &Value) -> StoreResult<()> {
    let object = format!("run:{}", new.run_id);
    audit::append(tx, &new.actor, "run.submit", &object, outcome, detail)
}
