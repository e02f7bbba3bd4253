//! Heartbeats of many sessions.

use std::collections::BTreeSet;

use viworks_runtime::sqlite::params;

use super::super::arrays::{Arrays, Kind, listed, unnested};
use super::super::link::Sql;
use super::super::row::Reader;
use super::super::tx::Tx;
use crate::data::{SessionTouch, StoreResult};

/// What is written of each.
macro_rules! columns {
    ($as:ident) => {
        $as!(
            agent_id text, epoch bigint, round_trip_us bigint, clock_skew_ms bigint, spool_records bigint,
            spool_bytes bigint, commands_running bigint
        )
    };
}

const COLUMNS: &[(&str, Kind)] = columns!(listed);

/// The same as [`super::super::sessions::TOUCH`], but for gateways that somebody else has locked.
pub(in crate::data::intents) const TOUCH: Sql = Sql::of_server(concat!(
    "WITH held AS MATERIALIZED (\
        SELECT a.*, h.place FROM ",
    columns!(unnested),
    " CROSS JOIN LATERAL (\
            SELECT g.ctid AS place FROM gateways AS g \
            WHERE g.tenant = :tenant AND g.agent_id = a.agent_id AND g.session_epoch = a.epoch \
            LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED) AS h \
        WHERE ",
    leased!(),
    ") \
     UPDATE gateways AS g SET last_seen_at = :now, round_trip_us = h.round_trip_us, clock_skew_ms = h.clock_skew_ms, \
            spool_records = h.spool_records, spool_bytes = h.spool_bytes, commands_running = h.commands_running \
        FROM held AS h WHERE g.ctid = h.place RETURNING h.item"
));

/// Stores those that hold up nobody and wait for nobody; answers the others.
pub(in crate::data::intents) fn touch_all(
    tx: &Tx<'_>,
    touches: &[SessionTouch],
) -> StoreResult<Vec<SessionTouch>> {
    let mut rows = Arrays::of(COLUMNS);
    for SessionTouch {
        agent_id,
        epoch,
        figures,
    } in touches
    {
        rows.push(params! {
            agent_id, epoch, round_trip_us: figures.round_trip_us, clock_skew_ms: figures.clock_skew_ms,
            spool_records: figures.spool_records, spool_bytes: figures.spool_bytes,
            commands_running: figures.commands_running,
        })?;
    }
    let (now, instance) = (tx.now, tx.party().instance());
    let others = params! { now, instance };
    let written = tx.all_and_commit(TOUCH, &rows.and(others), |row| {
        let item: usize = Reader::new("gateways", row).get("item")?;
        Ok(item.saturating_sub(1))
    })?;
    let written: BTreeSet<usize> = written.unwrap_or_default().into_iter().collect();
    let left = touches.iter().enumerate();
    Ok(left
        .filter(|(number, _)| !written.contains(number))
        .map(|(_, touch)| *touch)
        .collect())
}
