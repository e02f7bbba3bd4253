//! What a gateway says about its commands: accepted, refused, started, ended.

use viworks_common::command::Outcome;
use viworks_common::id::{AgentId, CommandId};
use viworks_common::ledger::end::{self, Reported};
use viworks_common::ledger::permit::{self, Permit};
use viworks_common::ledger::{Change, Record};
use viworks_common::rules::Complete;
use viworks_common::time::Timestamp;
use viworks_runtime::fault;
use viworks_runtime::sqlite::params;

use super::budget::{self, ORPHANS};
use super::row::{column, to_json};
use super::sessions::fence;
use super::tx::Tx;
use super::{audit, outputs, runs, settle};
use crate::data::{
    AcceptOutcome, Accepted, Actor, AuditOutcome, CompleteOutcome, Holder, NewAuditRecord,
    Rejected, Settled, StoreResult,
};

/// Outcomes of unknown commands kept for one gateway, and bytes of them; the oldest go first.
const ORPHANS_PER_GATEWAY_MAX: i64 = 1_024;
const ORPHAN_BYTES_PER_GATEWAY_MAX: i64 = 8 * 1024 * 1024;

/// In place of one that knew less, where there is one.
pub(super) const KEEP_LATE_OUTCOME: &str = "\
UPDATE commands SET late_outcome = :result WHERE tenant = :tenant AND command_id = :command_id";

pub(super) const KEEP_ORPHAN: &str = "\
INSERT INTO orphan_results (tenant, agent_id, command_id, received_at, outcome, bytes)
VALUES (:tenant, :agent_id, :command_id, :now, :outcome, :bytes)";

pub(super) const HAS_ORPHAN: &str = "\
SELECT command_id FROM orphan_results WHERE tenant = :tenant AND agent_id = :agent_id AND command_id = :command_id";

pub(super) const TRIM_ORPHANS: &str = "\
DELETE FROM orphan_results WHERE tenant = :tenant AND agent_id = :agent_id AND command_id IN (
    SELECT command_id FROM (
        SELECT command_id, row_number() OVER newest AS place, CAST(sum(bytes) OVER newest AS bigint) AS sum
        FROM orphan_results INDEXED BY orphan_results_by_gateway WHERE tenant = :tenant AND agent_id = :agent_id
        WINDOW newest AS (ORDER BY received_at DESC, command_id DESC ROWS UNBOUNDED PRECEDING)) AS placed
    WHERE place > :most OR sum > :most_bytes)";

/// Decides about the start permit of a command that its gateway has journalled.
pub(super) fn accept(
    tx: &Tx<'_>,
    holder: &Holder,
    accepted: Accepted,
) -> StoreResult<AcceptOutcome> {
    fence(tx, holder.agent_id, holder.epoch)?;
    let standing = settle::load(tx, holder.agent_id, accepted.command_id)?;
    let said = permit::Accepted {
        idempotent: accepted.idempotent,
        awaiting_permit: accepted.awaiting_permit,
    };
    let (permit, change) = permit::accept(Complete, standing, holder.agent_run_id, said, tx.now);
    settle::write(tx, &change, &Actor::system())?;
    if change.is_some() && matches!(permit, Permit::Go(_)) {
        fault::point("store.release.before_commit");
    }
    Ok(told(permit))
}

/// What the session is told of a permit that was decided about.
pub(super) const fn told(permit: Permit) -> AcceptOutcome {
    match permit {
        Permit::Go(deadline) => AcceptOutcome::Go { deadline },
        Permit::Drop => AcceptOutcome::Drop,
        Permit::Cancel => AcceptOutcome::Cancel,
        Permit::Wait => AcceptOutcome::Wait,
    }
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
    let Rejected {
        code,
        detail,
        again_at,
        ..
    } = rejected;
    let change = end::reject(standing, *code, detail.clone(), *again_at, tx.now);
    let written = settle::write(tx, &change, &Actor::system())?;
    let after = change.as_ref().map_or(&before, |change| &change.command);
    Ok(Some(Settled {
        moved: change.is_some(),
        ..settle::settled(after, written.run_finished)
    }))
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
    let change = end::start(standing, started_at, tx.now);
    settle::write(tx, &change, &Actor::system())?;
    Ok(change.is_some())
}

/// The gateway reported how a command ended.
pub(super) fn complete(
    tx: &Tx<'_>,
    holder: &Holder,
    command_id: CommandId,
    outcome: &Outcome,
) -> StoreResult<CompleteOutcome> {
    let low_water = fence(tx, holder.agent_id, holder.epoch)?;
    let standing = settle::load(tx, holder.agent_id, command_id)?;
    let whose = (holder.agent_id, command_id);
    let by = (holder.agent_id, command_id, holder.agent_run_id);
    let completed = match end::report(standing, by, outcome, tx.now) {
        Reported::Ends(change) => write_end(tx, &change, outcome, low_water)?,
        Reported::Denies(change, record) => {
            note(tx, holder.agent_id, record)?;
            match change {
                Some(change) => write_end(tx, &change, outcome, low_water)?,
                None => CompleteOutcome::Repeated { low_water },
            }
        }
        Reported::Late(ended, record) => {
            outputs::put(tx, command_id, outcome)?;
            let result = to_json(&*ended);
            tx.execute(KEEP_LATE_OUTCOME, params! { command_id, result })?;
            note(tx, holder.agent_id, record)?;
            CompleteOutcome::LateOutcome { low_water }
        }
        Reported::Repeated => CompleteOutcome::Repeated { low_water },
        Reported::Orphan(record) => {
            let kept = keep_orphan(tx, whose, outcome, record)?;
            return Ok(CompleteOutcome::Orphan { low_water, kept });
        }
    };
    fault::point("store.result.before_commit");
    Ok(completed)
}

/// Ends a command by what was reported of it.
fn write_end(
    tx: &Tx<'_>,
    change: &Change,
    outcome: &Outcome,
    low_water: u64,
) -> StoreResult<CompleteOutcome> {
    let written = settle::write(tx, [change], &Actor::system())?;
    if change.result.is_some() {
        outputs::keep(tx, change.command.command_id, outcome)?;
    }
    let run = match written.run_finished {
        true => runs::load(tx, change.command.run_id)?.map(Box::new),
        false => None,
    };
    Ok(CompleteOutcome::Completed {
        settled: settle::settled(&change.command, written.run_finished),
        low_water: written.low_water.unwrap_or(low_water),
        run,
    })
}

/// Keeps the outcome of a command that nobody knows; `false` when its gateway left too many, and it is only counted.
fn keep_orphan(
    tx: &Tx<'_>,
    (agent_id, command_id): (AgentId, CommandId),
    outcome: &Outcome,
    mut record: Record,
) -> StoreResult<bool> {
    let known = column::<CommandId>("orphan_results", "command_id");
    let known = tx.optional(HAS_ORPHAN, params! { agent_id, command_id }, known)?;
    if known.is_some() {
        return Ok(true);
    }
    let Some(left_out) = budget::take(tx, agent_id, ORPHANS, 0)? else {
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
    record.detail["results_not_kept_before"] = left_out.into();
    if !note(tx, agent_id, record)? && left_out > 0 {
        // The log has no room for this one: the next one that it has room for tells of them.
        budget::untold(tx, agent_id, ORPHANS, left_out)?;
    }
    Ok(true)
}

/// Of what a gateway says whenever it likes, within its bounds; `false` when it is beyond them, and only counted.
fn note(tx: &Tx<'_>, agent_id: AgentId, record: Record) -> StoreResult<bool> {
    let record = NewAuditRecord {
        actor: Actor::gateway(agent_id),
        action: record.action.to_owned(),
        object: record.object,
        outcome: AuditOutcome::Noted,
        detail: record.detail,
    };
    audit::note(tx, agent_id, record)
}
