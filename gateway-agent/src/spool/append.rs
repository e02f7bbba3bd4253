//! Appends records, and gives up the oldest ones when the file comes near its bound.

use std::sync::Arc;

use sqlx::SqliteConnection;
use viworks_common::id::AgentRunId;
use viworks_common::telemetry::{GapReason, Record};

use super::trim::{self, Usage};
use super::{RECORD_BYTES_MAX, SpoolError, batch, stored};

/// Bytes that are inserted before the room is looked at again; far below what is kept free.
const CHUNK_BYTES: usize = 16 * 1024;
/// What a row costs beside its body.
const ROW_BYTES: usize = 32;
/// Above this a body spills out of its leaf, and its rest takes pages of its own, however little it is.
const LEAF_BODY_BYTES: usize = 900;
/// Bytes of a page.
const PAGE: usize = 4_096;
/// The least number of records that are given up at a time.
const DROP_MIN: u64 = 32;
/// One in so many records is given up at a time.
const DROP_SHARE: u64 = 64;

/// The stored form of `records`, shared so that the job can be cloned.
pub(super) fn bodies(records: &[Record]) -> Result<Arc<[String]>, SpoolError> {
    records
        .iter()
        .map(|record| {
            if batch::record_bytes(record) > RECORD_BYTES_MAX {
                return Err(SpoolError::RecordTooLarge);
            }
            serde_json::to_string(record).map_err(|_unserialisable| SpoolError::RecordTooLarge)
        })
        .collect()
}

pub(super) async fn run(
    connection: &mut SqliteConnection,
    agent_run_id: AgentRunId,
    pages_max: u32,
    bodies: Arc<[String]>,
) -> Result<Usage, SpoolError> {
    let (epoch, mut next) = own_epoch(connection, agent_run_id).await?;
    make_room(connection, pages_max).await?;
    let (mut chunk_bytes, mut chunk_records) = (0, 0_i64);
    for body in bodies.iter() {
        if chunk_bytes > CHUNK_BYTES {
            count(connection, epoch, next, chunk_records).await?;
            // Giving up records touches no sequence number, so `next` stays right.
            make_room(connection, pages_max).await?;
            (chunk_bytes, chunk_records) = (0, 0);
        }
        sqlx::query("INSERT INTO record (epoch, seq, body) VALUES (?, ?, ?)")
            .bind(epoch)
            .bind(next)
            .bind(body)
            .execute(&mut *connection)
            .await?;
        next += 1;
        chunk_records += 1;
        chunk_bytes += cost(body);
    }
    count(connection, epoch, next, chunk_records).await?;
    trim::usage(connection).await
}

/// At most so many bytes of the file a body takes.
const fn cost(body: &str) -> usize {
    if body.len() > LEAF_BODY_BYTES {
        body.len() + ROW_BYTES + PAGE
    } else {
        body.len() + ROW_BYTES
    }
}

/// Brings the counters up to what was inserted since the last call.
async fn count(
    connection: &mut SqliteConnection,
    epoch: i64,
    next: i64,
    records: i64,
) -> Result<(), SpoolError> {
    sqlx::query("UPDATE usage SET records = records + ?")
        .bind(records)
        .execute(&mut *connection)
        .await?;
    sqlx::query("UPDATE epoch SET next_seq = ? WHERE id = ?")
        .bind(next)
        .bind(epoch)
        .execute(connection)
        .await?;
    Ok(())
}

async fn own_epoch(
    connection: &mut SqliteConnection,
    agent_run_id: AgentRunId,
) -> Result<(i64, i64), SpoolError> {
    sqlx::query(
        "INSERT INTO epoch (agent_run_id, next_seq, acknowledged) VALUES (?, 1, 0) ON CONFLICT DO NOTHING",
    )
    .bind(agent_run_id.to_string())
    .execute(&mut *connection)
    .await?;
    let row = sqlx::query_as("SELECT id, next_seq FROM epoch WHERE agent_run_id = ?")
        .bind(agent_run_id.to_string())
        .fetch_one(connection)
        .await?;
    Ok(row)
}

/// Gives up the oldest records until an eighth of the file is free.
async fn make_room(connection: &mut SqliteConnection, pages_max: u32) -> Result<(), SpoolError> {
    let bound = u64::from(pages_max) - u64::from(pages_max) / 8;
    loop {
        let usage = trim::usage(connection).await?;
        if usage.live_pages <= bound || usage.records == 0 {
            return Ok(());
        }
        give_up_oldest(connection, (usage.records / DROP_SHARE).max(DROP_MIN)).await?;
    }
}

/// Gives up the `count` oldest records of the oldest epoch that has any, and leaves a gap in their place.
async fn give_up_oldest(connection: &mut SqliteConnection, count: u64) -> Result<(), SpoolError> {
    let oldest: Option<(i64, i64)> =
        sqlx::query_as("SELECT epoch, seq FROM record ORDER BY epoch, seq LIMIT 1")
            .fetch_optional(&mut *connection)
            .await?;
    let Some((epoch, first)) = oldest else {
        return Ok(());
    };
    let last: i64 = sqlx::query_scalar(
        "SELECT max(seq) FROM (SELECT seq FROM record WHERE epoch = ? ORDER BY seq LIMIT ?)",
    )
    .bind(epoch)
    .bind(stored(count))
    .fetch_one(&mut *connection)
    .await?;
    let dropped = sqlx::query("DELETE FROM record WHERE epoch = ? AND seq BETWEEN ? AND ?")
        .bind(epoch)
        .bind(first)
        .bind(last)
        .execute(&mut *connection)
        .await?
        .rows_affected();
    sqlx::query("UPDATE usage SET records = records - ?, dropped = dropped + ?")
        .bind(stored(dropped))
        .bind(stored(dropped))
        .execute(&mut *connection)
        .await?;
    trim::add_gap(connection, epoch, first, last, GapReason::SpoolFull).await
}
