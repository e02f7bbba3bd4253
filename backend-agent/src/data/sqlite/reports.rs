//! What a gateway says about its commands: accepted, refused, started, ended.

use serde_json::json;
use viworks_common::command::Outcome;
use viworks_common::id::CommandId;
use viworks_common::time::Timestamp;
use viworks_runtime::fault;
use viworks_runtime::sqlite::params;

use super::budget::{self, ORPHANS};
use super::row::{column, to_json};
use super::sessions::fence;
use super::tx::Tx;
use super::{audit, outputs, settle};
use crate::data::ledger::command::{self, Completion, Standing};
use crate::data::{
    AcceptOutcome, Accepted, Actor, AuditOutcome, CommandResult, CompleteOutcome, Holder,
    NewAuditRecord, Rejected, Settled, StoreResult,
};

/// Outcomes of unknown commands kept for one gateway, and bytes of them; the oldest go first.
const ORPHANS_PER_GATEWAY_MAX: i64 = 1_024;
const ORPHAN_BYTES_PER_GATEWAY_MAX: i64 = 8 * 1024 * 1024;

pub(super) const KEEP_LATE_OUTCOME: &str = "\
UPDATE commands SET late_outcome = :result
WHERE tenant = :tenant AND command_id = :command_id AND state = 'indeterminate' AND late_outcome IS NULL";

pub(super) const KEEP_ORPHAN: &str = "\
INSERT INTO orphan_results (tenant, agent_id, command_id, received_at, outcome, bytes)
VALUES (:tenant, :agent_id, :command_id, :now, :outcome, :bytes)";

pub(super) const HAS_ORPHAN: &str = "\
SELECT command_id FROM orphan_results WHERE tenant = :tenant AND agent_id = :agent_id AND command_id = :command_id";

pub(super) const TRIM_ORPHANS: &str = "\
DELETE FROM orphan_results WHERE tenant = :tenant AND agent_id = :agent_id AND command_id IN (
    SELECT command_id FROM (
        SELECT command_id, row_number() OVER newest AS place, sum(bytes) OVER newest AS sum
        FROM orphan_results INDEXED BY orphan_results_by_gateway WHERE tenant = :tenant AND agent_id = :agent_id
        WINDOW newest AS (ORDER BY received_at DESC, command_id DESC ROWS UNBOUNDED PRECEDING))
    WHERE place > :most OR sum > :most_bytes)";

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
        let kept = keep_orphan(tx, holder, command_id, outcome)?;
        return Ok(CompleteOutcome::Orphan { low_water, kept });
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
    let (actor, object) = (Actor::gateway(*agent_id), format!("command:{command_id}"));
    let (action, outcome) = ("command.late_outcome", AuditOutcome::Noted);
    audit::append(tx, &actor, action, &object, outcome, &detail)
}

/// Keeps the outcome of a command that nobody knows; `false` when its gateway left too many, and it is only counted.
fn keep_orphan(
    tx: &Tx<'_>,
    holder: &Holder,
    command_id: CommandId,
    outcome: &Outcome,
) -> StoreResult<bool> {
    let agent_id = holder.agent_id;
    let known = column::<CommandId>("orphan_results", "command_id");
    let known = tx.optional(HAS_ORPHAN, params! { agent_id, command_id }, known)?;
    if known.is_some() {
        return Ok(true);
    }
    let Some(left_out) = budget::take(tx, agent_id, ORPHANS)? else {
        return Ok(false);
    };
    let text = to_json(outcome);
    let bytes = text.len();
    tx.execute(
        KEEP_ORPHAN,
        params! { agent_id, command_id, outcome: text, bytes },
    )?;
    let (most, most_bytes) = (ORPHANS_PER_GATEWAY_MAX, ORPHAN_BYTES_PER_GATEWAY_MAX);
    tx.execute(TRIM_ORPHANS, params! { agent_id, most, most_bytes })?;
    let record = NewAuditRecord {
        actor: Actor::gateway(agent_id),
        action: "command.orphan".to_owned(),
        object: format!("command:{command_id}"),
        outcome: AuditOutcome::Noted,
        detail: json!({ "agent_id": agent_id, "state": outcome.state, "results_not_kept_before": left_out }),
    };
    audit::note(tx, agent_id, record)?;
    Ok(true)
}
