//! What a gateway says about its commands: accepted, refused, started, ended.

use serde_json::json;
use viworks_common::command::Outcome;
use viworks_common::id::CommandId;
use viworks_common::time::Timestamp;
use viworks_runtime::fault;
use viworks_runtime::sqlite::params;

use super::row::to_json;
use super::sessions::fence;
use super::tx::Tx;
use super::{audit, outputs, settle};
use crate::data::ledger::command::{self, Completion, Standing};
use crate::data::{
    AcceptOutcome, Accepted, Actor, AuditOutcome, CommandResult, CompleteOutcome, Holder, Rejected,
    Settled, StoreResult,
};

/// Outcomes of unknown commands kept for one gateway; the oldest go first.
const ORPHANS_PER_GATEWAY_MAX: i64 = 1_024;

pub(super) const KEEP_LATE_OUTCOME: &str = "\
UPDATE commands SET late_outcome = :result
WHERE tenant = :tenant AND command_id = :command_id AND state = 'indeterminate' AND late_outcome IS NULL";

pub(super) const KEEP_ORPHAN: &str = "\
INSERT INTO orphan_results (tenant, agent_id, command_id, received_at, outcome)
VALUES (:tenant, :agent_id, :command_id, :now, :outcome)
ON CONFLICT DO NOTHING";

pub(super) const TRIM_ORPHANS: &str = "\
DELETE FROM orphan_results WHERE tenant = :tenant AND agent_id = :agent_id AND command_id IN (
    SELECT command_id FROM orphan_results WHERE tenant = :tenant AND agent_id = :agent_id
    ORDER BY received_at DESC, command_id LIMIT -1 OFFSET :kept)";

/// Decides about the start permit of a command that its gateway has journalled.
pub(super) fn accept(
    tx: &Tx<'_>,
    holder: &Holder,
    accepted: Accepted,
) -> StoreResult<AcceptOutcome> {
    fence(tx, holder.agent_id, holder.epoch)?;
    let Some(standing) = settle::load(tx, holder.agent_id, accepted.command_id)? else {
        return Ok(AcceptOutcome::Drop);
    };
    let (changes, outcome) = command::accept(standing, holder.agent_run_id, accepted, tx.now);
    settle::write(tx, &changes, &Actor::system())?;
    if !changes.is_empty() && matches!(outcome, AcceptOutcome::Go { .. }) {
        fault::point("store.release.before_commit");
    }
    Ok(outcome)
}

/// The gateway refused a command on arrival.
pub(super) fn reject(
    tx: &Tx<'_>,
    holder: &Holder,
    rejected: &Rejected,
) -> StoreResult<Option<Settled>> {
    fence(tx, holder.agent_id, holder.epoch)?;
    let Some(standing) = settle::load(tx, holder.agent_id, rejected.command_id)? else {
        return Ok(None);
    };
    let before = standing.clone();
    let changes = command::reject(standing, rejected, tx.now);
    let written = settle::write(tx, &changes, &Actor::gateway(holder.agent_id))?;
    let after = changes.last().map_or(&before, |change| &change.command);
    Ok(Some(after.settled(written.run_finished)))
}

/// The gateway started a command.
pub(super) fn start(
    tx: &Tx<'_>,
    holder: &Holder,
    command_id: CommandId,
    started_at: Timestamp,
) -> StoreResult<bool> {
    fence(tx, holder.agent_id, holder.epoch)?;
    let Some(standing) = settle::load(tx, holder.agent_id, command_id)? else {
        return Ok(false);
    };
    let (changes, is_news) = command::start(standing, started_at, tx.now);
    settle::write(tx, &changes, &Actor::gateway(holder.agent_id))?;
    Ok(is_news)
}

/// The gateway reported how a command ended.
pub(super) fn complete(
    tx: &Tx<'_>,
    holder: &Holder,
    command_id: CommandId,
    outcome: &Outcome,
) -> StoreResult<CompleteOutcome> {
    let low_water = fence(tx, holder.agent_id, holder.epoch)?;
    let Some(standing) = settle::load(tx, holder.agent_id, command_id)? else {
        keep_orphan(tx, holder, command_id, outcome)?;
        return Ok(CompleteOutcome::Orphan { low_water });
    };
    let before = standing.clone();
    let completed = match command::complete(standing, outcome, tx.now) {
        Completion::Ends(change) => {
            let actor = Actor::gateway(holder.agent_id);
            let written = settle::write(tx, std::slice::from_ref(&*change), &actor)?;
            outputs::keep(tx, command_id, outcome)?;
            CompleteOutcome::Completed {
                settled: change.command.settled(written.run_finished),
                low_water: written.low_water.unwrap_or(low_water),
            }
        }
        Completion::Late(result) => {
            outputs::keep(tx, command_id, outcome)?;
            keep_late_outcome(tx, &before, &result)?;
            CompleteOutcome::LateOutcome { low_water }
        }
        Completion::Repeated => CompleteOutcome::Repeated { low_water },
    };
    fault::point("store.result.before_commit");
    Ok(completed)
}

fn keep_late_outcome(tx: &Tx<'_>, command: &Standing, result: &CommandResult) -> StoreResult<()> {
    let Standing {
        command_id,
        run_id,
        agent_id,
        ..
    } = command;
    let result = to_json(result);
    tx.execute(KEEP_LATE_OUTCOME, params! { command_id, result })?;
    let detail = json!({ "run_id": run_id, "agent_id": agent_id });
    let action = "command.late_outcome";
    note(tx, &Actor::gateway(*agent_id), action, *command_id, &detail)
}

fn keep_orphan(
    tx: &Tx<'_>,
    holder: &Holder,
    command_id: CommandId,
    outcome: &Outcome,
) -> StoreResult<()> {
    let agent_id = holder.agent_id;
    let detail = json!({ "agent_id": agent_id, "state": outcome.state });
    let outcome = to_json(outcome);
    if tx.execute(KEEP_ORPHAN, params! { agent_id, command_id, outcome })? == 0 {
        return Ok(());
    }
    tx.execute(
        TRIM_ORPHANS,
        params! { agent_id, kept: ORPHANS_PER_GATEWAY_MAX },
    )?;
    note(
        tx,
        &Actor::gateway(agent_id),
        "command.orphan",
        command_id,
        &detail,
    )
}

fn note(
    tx: &Tx<'_>,
    actor: &Actor,
    action: &str,
    command_id: CommandId,
    detail: &serde_json::Value,
) -> StoreResult<()> {
    let object = format!("command:{command_id}");
    audit::append(tx, actor, action, &object, AuditOutcome::Noted, detail)
}
