//! Appends records, and gives up the oldest ones when the file comes near its bound, or local programs near theirs.

use viworks_common::id::AgentRunId;
use viworks_common::telemetry::room::{GivenUp, Origin, Room};
use viworks_common::telemetry::{GapReason, Record};
use viworks_runtime::sqlite::{Connection, params};

use super::trim::{self, Usage};
use super::{RECORD_BYTES_MAX, SpoolError, batch, portion, read};

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

/// The stored form of `records`.
pub(super) fn bodies(records: &[Record]) -> Result<Vec<String>, SpoolError> {
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

pub(super) fn run(
    connection: &Connection,
    agent_run_id: AgentRunId,
    room: Room,
    origin: Origin,
    bodies: &[String],
) -> Result<Usage, SpoolError> {
    let (epoch, mut seq) = own_epoch(connection, agent_run_id)?;
    make_room(connection, room)?;
    let (mut chunk_bytes, mut chunk_records) = (0, 0);
    let chunk = |seq: u64, records: u64, bytes: usize| {
        count(connection, epoch, seq, records)?;
        portion::note(connection, epoch, (seq - records, seq - 1), bytes, origin)?;
        // Giving up records touches no sequence number, so `seq` stays right.
        make_room(connection, room)
    };
    for body in bodies {
        if chunk_bytes > CHUNK_BYTES {
            chunk(seq, chunk_records, chunk_bytes)?;
            (chunk_bytes, chunk_records) = (0, 0);
        }
        let sql = "INSERT INTO record (epoch, seq, body) VALUES (:epoch, :seq, :body)";
        connection.execute(sql, params! { epoch, seq, body })?;
        seq += 1;
        chunk_records += 1;
        chunk_bytes += cost(body);
    }
    if chunk_records > 0 {
        chunk(seq, chunk_records, chunk_bytes)?;
    }
    trim::usage(connection)
}

/// Gives `lost` records that were never taken in their numbers, inside a gap.
pub(super) fn count_lost(
    connection: &Connection,
    agent_run_id: AgentRunId,
    lost: u64,
) -> Result<Usage, SpoolError> {
    if lost > 0 {
        let (epoch, seq) = own_epoch(connection, agent_run_id)?;
        let next_seq = seq.saturating_add(lost);
        count(connection, epoch, next_seq, 0)?;
        trim::add_gap(connection, epoch, seq, next_seq - 1, GapReason::SpoolFull)?;
    }
    let sql = "UPDATE usage SET dropped = dropped + :lost";
    connection.execute(sql, params! { lost })?;
    trim::usage(connection)
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
fn count(
    connection: &Connection,
    epoch: i64,
    next_seq: u64,
    records: u64,
) -> Result<(), SpoolError> {
    let sql = "UPDATE usage SET records = records + :records";
    connection.execute(sql, params! { records })?;
    let sql = "UPDATE epoch SET next_seq = :next_seq WHERE id = :epoch";
    connection.execute(sql, params! { epoch, next_seq })?;
    Ok(())
}

fn own_epoch(connection: &Connection, agent_run_id: AgentRunId) -> Result<(i64, u64), SpoolError> {
    const BEGIN: &str = "\
        INSERT INTO epoch (agent_run_id, next_seq, acknowledged) VALUES (:agent_run_id, 1, 0)
        ON CONFLICT DO NOTHING";
    connection.execute(BEGIN, params! { agent_run_id })?;
    let sql = "SELECT id, next_seq FROM epoch WHERE agent_run_id = :agent_run_id";
    connection.one(sql, params! { agent_run_id }, |row| {
        Ok((read(row, "id")?, read(row, "next_seq")?))
    })
}

/// Gives up records until an eighth of the file is free, and local programs have no more than their share of the rest.
fn make_room(connection: &Connection, room: Room) -> Result<(), SpoolError> {
    loop {
        let usage = trim::usage(connection)?;
        match room.gives_up(usage.filled) {
            None => return Ok(()),
            Some(GivenUp::OldestLocal) => {
                let Some((epoch, from, to)) = portion::oldest_local(connection)? else {
                    return Err(SpoolError::Inconsistent("local_bytes"));
                };
                give_up(connection, epoch, from, to)?;
                portion::forget(connection, epoch, from)?;
            }
            Some(GivenUp::Oldest) if usage.records == 0 => return Ok(()),
            Some(GivenUp::Oldest) => {
                give_up_oldest(connection, (usage.records / DROP_SHARE).max(DROP_MIN))?;
            }
        }
    }
}

/// Gives up the `count` oldest records of the oldest epoch that has any, and leaves a gap in their place.
fn give_up_oldest(connection: &Connection, count: u64) -> Result<(), SpoolError> {
    const LAST: &str = "\
        SELECT max(seq) AS seq FROM (SELECT seq FROM record WHERE epoch = :epoch ORDER BY seq LIMIT :count)";
    let oldest = "SELECT epoch, seq FROM record ORDER BY epoch, seq LIMIT 1";
    let oldest = connection.optional(oldest, &[], |row| {
        Ok::<_, SpoolError>((read::<i64>(row, "epoch")?, read::<u64>(row, "seq")?))
    })?;
    let Some((epoch, first)) = oldest else {
        return Ok(());
    };
    let last = connection.one(LAST, params! { epoch, count }, |row| {
        read::<u64>(row, "seq")
    })?;
    give_up(connection, epoch, first, last)?;
    portion::forget_up_to(connection, epoch, last)
}

/// Gives up the records `from..=to`, and leaves one gap from the first to the last of them. What was a gap between them
/// becomes part of it.
fn give_up(connection: &Connection, epoch: i64, from: u64, to: u64) -> Result<(), SpoolError> {
    const RANGE: &str = "\
        SELECT min(seq) AS first, max(seq) AS last FROM record
        WHERE epoch = :epoch AND seq BETWEEN :from AND :to";
    let (first, last) = connection.one(RANGE, params! { epoch, from, to }, |row| {
        Ok::<_, SpoolError>((
            read::<Option<u64>>(row, "first")?,
            read::<Option<u64>>(row, "last")?,
        ))
    })?;
    let (Some(first), Some(last)) = (first, last) else {
        // Each was damaged, and is a gap already.
        return Ok(());
    };
    let sql = "DELETE FROM record WHERE epoch = :epoch AND seq BETWEEN :first AND :last";
    let dropped = connection.execute(sql, params! { epoch, first, last })?;
    let sql = "UPDATE usage SET records = records - :dropped, dropped = dropped + :dropped";
    connection.execute(sql, params! { dropped })?;
    let sql = "DELETE FROM gap WHERE epoch = :epoch AND from_seq BETWEEN :first AND :last";
    connection.execute(sql, params! { epoch, first, last })?;
    trim::add_gap(connection, epoch, first, last, GapReason::SpoolFull)
}
