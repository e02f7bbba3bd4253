//! Telemetry on its way out: what is older than it is kept is deleted, some of it in each transaction.

use viworks_common::id::AgentId;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::params;

use crate::data::intents::link::Sql;
use crate::data::intents::row::column;
use crate::data::intents::tx::Tx;
use crate::data::{PurgedTelemetry, StoreResult, TelemetryLimits};

/// Positions of each gateway that stay when nothing of their spool epochs is stored any more, those that moved last. A
/// gateway names the youngest few that it delivered, and for one that was forgotten a gap would be noted.
const POSITIONS_KEPT: usize = 64;

/// Gateways that one transaction looks at.
const GATEWAYS: usize = 100;

pub(in crate::data::intents) const GATEWAYS_AFTER: &str = "\
SELECT agent_id FROM telemetry_usage WHERE tenant = :tenant AND agent_id > :after ORDER BY agent_id LIMIT :limit";

pub(in crate::data::intents) const OLD_STREAM: &str = "\
SELECT stream FROM telemetry_streams
WHERE tenant = :tenant AND agent_id = :agent_id AND newest < :until LIMIT 1";

pub(in crate::data::intents) const DELETE_STREAMS: &str = "DELETE FROM telemetry_streams WHERE tenant = :tenant AND agent_id = :agent_id AND newest < :until";

pub(in crate::data::intents) const FREE_STREAMS: &str = "\
UPDATE telemetry_usage SET streams = CASE WHEN streams > :gone THEN streams - :gone ELSE 0 END
WHERE tenant = :tenant AND agent_id = :agent_id";

pub(in crate::data::intents) const COUNT_POSITIONS: &str = "\
SELECT count(*) AS positions FROM telemetry_positions WHERE tenant = :tenant AND agent_id = :agent_id";

macro_rules! forget_positions {
    ($stored:literal) => {
        concat!(
            "DELETE FROM telemetry_positions WHERE tenant = :tenant AND agent_id = :agent_id AND moved_at < :until \
             AND spool_epoch IN (SELECT spool_epoch FROM telemetry_positions \
             WHERE tenant = :tenant AND agent_id = :agent_id \
             ORDER BY moved_at DESC, spool_epoch LIMIT 1000000 OFFSET :kept) AND NOT EXISTS (",
            $stored,
            ")"
        )
    };
}

/// As long as a record is stored, the position keeps it from being stored once more.
pub(in crate::data::intents) const FORGET_POSITIONS: Sql = Sql {
    sqlite: forget_positions!(
        "SELECT 1 FROM telemetry AS t WHERE t.tenant = telemetry_positions.tenant \
         AND t.agent_id = telemetry_positions.agent_id AND t.spool_epoch = telemetry_positions.spool_epoch"
    ),
    postgres: forget_positions!(
        "SELECT FROM telemetry_epoch_ids AS e JOIN telemetry_agent_ids AS a ON a.id = e.agent \
         WHERE a.tenant = telemetry_positions.tenant AND a.agent_id = telemetry_positions.agent_id \
         AND e.spool_epoch = telemetry_positions.spool_epoch"
    ),
};

/// The oldest of them, up to the time of the last that one step may take. A gap was told of after the records beside
/// it, so these are gone.
pub(in crate::data::intents) const FORGET_GAPS: &str = "\
DELETE FROM telemetry_gaps WHERE tenant = :tenant AND stored_at < :until AND stored_at <= coalesce((
    SELECT g.stored_at FROM telemetry_gaps AS g WHERE g.tenant = :tenant AND g.stored_at < :until
    ORDER BY g.stored_at LIMIT 1 OFFSET :further), :until)";

/// The same for refusals, by the last that was counted.
pub(in crate::data::intents) const FORGET_REFUSALS: &str = "\
DELETE FROM telemetry_refusals WHERE tenant = :tenant AND last_at < :until AND last_at <= coalesce((
    SELECT r.last_at FROM telemetry_refusals AS r WHERE r.tenant = :tenant AND r.last_at < :until
    ORDER BY r.last_at LIMIT 1 OFFSET :further), :until)";

/// Deletes at most `most` records of the gateways behind `after`, and the streams of which nothing is left; behind the
/// last gateway, what tells of losses that are older than anything that is kept. Everything is measured on the time
/// line: a wall clock that is set ahead deletes nothing.
pub(in crate::data::intents) fn purge(
    tx: &Tx<'_>,
    after: Option<AgentId>,
    most: usize,
    limits: &TelemetryLimits,
) -> StoreResult<PurgedTelemetry> {
    if after.is_none() {
        tx.make_days_ahead(tx.now)?;
    }
    let mut purged = PurgedTelemetry {
        days: 0,
        records: 0,
        streams: 0,
        losses: 0,
        after,
        more: false,
    };
    let Some(until) = limits.kept_from(tx.now) else {
        return Ok(purged);
    };
    let begin = after.map_or_else(String::new, |after| after.to_string());
    let params = params! { after: begin, limit: GATEWAYS };
    let gateways = tx.all(
        GATEWAYS_AFTER,
        params,
        column::<AgentId>("telemetry_usage", "agent_id"),
    )?;
    purged.more = gateways.len() == GATEWAYS;
    let emptied_to = tx.telemetry_emptied_to(until)?;
    let mut left = most;
    for agent_id in gateways {
        let deleted = tx.delete_telemetry(agent_id, until, left)?;
        purged.records += count(deleted);
        left = left.saturating_sub(deleted);
        if left == 0 {
            purged.more = true;
            break;
        }
        purged.streams += delete_streams(tx, agent_id, emptied_to)?;
        tx.forget_telemetry(agent_id, emptied_to)?;
        forget_positions(tx, agent_id, emptied_to)?;
        purged.after = Some(agent_id);
    }
    if !purged.more {
        let forgotten = forget_losses(tx, emptied_to, left)?;
        purged.more = forgotten >= left;
        purged.losses = count(forgotten);
    }
    Ok(purged)
}

/// Forgets what was lost or refused before a time, about `most` rows: what is of the same moment goes together. What is
/// refused meanwhile makes a row young again, or one anew.
fn forget_losses(tx: &Tx<'_>, until: Timestamp, most: usize) -> StoreResult<usize> {
    let further = most.saturating_sub(1);
    let gaps = tx.execute(FORGET_GAPS, params! { until, further })?;
    let further = further.saturating_sub(gaps);
    let refusals = tx.execute(FORGET_REFUSALS, params! { until, further })?;
    Ok(gaps.saturating_add(refusals))
}

/// Deletes the streams of which nothing is left; they no longer count as ones that the gateway has.
fn delete_streams(tx: &Tx<'_>, agent_id: AgentId, until: Timestamp) -> StoreResult<u64> {
    let read = column::<String>("telemetry_streams", "stream");
    let old = tx.optional(OLD_STREAM, params! { agent_id, until }, read)?;
    if old.is_none() {
        return Ok(0);
    }
    // Whoever stores something of them now is done before, or comes after.
    tx.lock_telemetry([agent_id])?;
    let gone = tx.execute(DELETE_STREAMS, params! { agent_id, until })?;
    tx.execute(FREE_STREAMS, params! { agent_id, gone })?;
    Ok(count(gone))
}

/// Forgets how far spool epochs came of which nothing is left, and nothing would be taken: what comes of them again is
/// older than it is kept.
fn forget_positions(tx: &Tx<'_>, agent_id: AgentId, until: Timestamp) -> StoreResult<()> {
    let kept = POSITIONS_KEPT;
    let read = column::<usize>("telemetry_positions", "positions");
    if tx.one(COUNT_POSITIONS, params! { agent_id }, read)? <= kept {
        return Ok(());
    }
    // Whoever stores something of one now is done before, or comes after.
    tx.lock_telemetry([agent_id])?;
    tx.execute(FORGET_POSITIONS, params! { agent_id, until, kept })
        .map(drop)
}

fn count(rows: usize) -> u64 {
    u64::try_from(rows).unwrap_or(u64::MAX)
}
