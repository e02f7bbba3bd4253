//! Telemetry on its way out: what is older than it is kept is deleted, some of it in each transaction.

use viworks_common::id::AgentId;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::params;

use crate::data::intents::row::column;
use crate::data::intents::tx::Tx;
use crate::data::{PurgedTelemetry, StoreResult, TelemetryLimits};

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

/// Deletes at most `most` records of the gateways behind `after`, and the streams of which nothing is left. Everything
/// is measured on the time line: a wall clock that is set ahead deletes nothing.
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
        purged.after = Some(agent_id);
    }
    Ok(purged)
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

fn count(rows: usize) -> u64 {
    u64::try_from(rows).unwrap_or(u64::MAX)
}
