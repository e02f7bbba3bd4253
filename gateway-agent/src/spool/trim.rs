//! Trims what is acknowledged, keeps gaps merged, and counts what remains.

use viworks_common::id::AgentRunId;
use viworks_common::limits;
use viworks_common::telemetry::room::Filled;
use viworks_common::telemetry::{GapReason, Position};
use viworks_runtime::sqlite::{Connection, params};

use super::{SpoolError, portion, read};

/// Gives so many pages back to the file system at a time, once the spool is empty.
const VACUUM: &str = "PRAGMA incremental_vacuum(1024)";

/// How full the file is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    /// Records that wait.
    pub(super) records: u64,
    /// Records given up since the file was made.
    pub(super) dropped: u64,
    /// Pages of the file.
    pub(super) pages: u64,
    /// Who fills how much of those that hold something.
    pub(super) filled: Filled,
}

pub(super) fn usage(connection: &Connection) -> Result<Usage, SpoolError> {
    const USAGE: &str = "\
        SELECT u.records, u.dropped, u.bytes, u.local_bytes, p.page_count, f.freelist_count
        FROM usage AS u, pragma_page_count AS p, pragma_freelist_count AS f";
    connection.one(USAGE, &[], |row| {
        let pages: u64 = read(row, "page_count")?;
        let free: u64 = read(row, "freelist_count")?;
        Ok(Usage {
            records: read(row, "records")?,
            dropped: read(row, "dropped")?,
            pages,
            filled: Filled {
                pages: pages.saturating_sub(free),
                bytes: read(row, "bytes")?,
                local_bytes: read(row, "local_bytes")?,
            },
        })
    })
}

/// Forgets the epochs of earlier processes that have nothing waiting, but for the youngest.
///
/// Nobody will add to them any more. What is remembered of the youngest is how far the backend said they are committed:
/// a backend whose database was restored to before that learns from it which records are gone.
pub(super) fn forget_delivered(connection: &Connection, own: AgentRunId) -> Result<(), SpoolError> {
    const FORGET: &str = "\
        DELETE FROM epoch WHERE acknowledged = next_seq - 1 AND agent_run_id <> :own AND id NOT IN (
            SELECT id FROM epoch WHERE acknowledged = next_seq - 1 ORDER BY id DESC LIMIT :limit)";
    let limit = limits::SPOOL_EPOCHS_NAMED_MAX;
    connection.execute(FORGET, params! { own, limit })?;
    Ok(())
}

/// The youngest epochs that have nothing waiting, with how far they are acknowledged.
pub(super) fn delivered(connection: &Connection) -> Result<Vec<Position>, SpoolError> {
    const DELIVERED: &str = "\
        SELECT agent_run_id, acknowledged FROM epoch
        WHERE acknowledged = next_seq - 1 AND acknowledged > 0 ORDER BY id DESC LIMIT :limit";
    let limit = limits::SPOOL_EPOCHS_NAMED_MAX;
    connection.all(DELIVERED, params! { limit }, |row| {
        Ok(Position {
            spool_epoch: read(row, "agent_run_id")?,
            seq: read(row, "acknowledged")?,
        })
    })
}

/// Forgets everything up to `position`; `own` is the epoch that goes on growing and is always kept.
pub(super) fn acknowledge(
    connection: &Connection,
    position: Position,
    own: AgentRunId,
) -> Result<Usage, SpoolError> {
    const KNOWN: &str = "\
        SELECT id, next_seq, acknowledged FROM epoch WHERE agent_run_id = :agent_run_id";
    let agent_run_id = position.spool_epoch;
    let known = connection.optional(KNOWN, params! { agent_run_id }, |row| {
        let last = read::<u64>(row, "next_seq")?.saturating_sub(1);
        let acknowledged: u64 = read(row, "acknowledged")?;
        Ok::<_, SpoolError>((read::<i64>(row, "id")?, last, acknowledged))
    })?;
    let Some((epoch, last, before)) = known else {
        // An epoch that was delivered and forgotten.
        return usage(connection);
    };
    let seq = position.seq.min(last);
    if seq > before {
        trim_to(connection, epoch, seq)?;
    }
    if seq.max(before) == last {
        forget_delivered(connection, own)?;
    }
    if usage(connection)?.records == 0 {
        // It answers with a row for each page.
        connection.all(VACUUM, &[], |_page| Ok::<_, SpoolError>(()))?;
    }
    usage(connection)
}

fn trim_to(connection: &Connection, epoch: i64, seq: u64) -> Result<(), SpoolError> {
    let sql = "DELETE FROM record WHERE epoch = :epoch AND seq <= :seq";
    let trimmed = connection.execute(sql, params! { epoch, seq })?;
    let sql = "UPDATE usage SET records = records - :trimmed";
    connection.execute(sql, params! { trimmed })?;
    portion::forget_up_to(connection, epoch, seq)?;
    let sql = "DELETE FROM gap WHERE epoch = :epoch AND to_seq <= :seq";
    connection.execute(sql, params! { epoch, seq })?;
    // At most one gap spans the position; what lies behind it is still to be told.
    let sql = "UPDATE gap SET from_seq = :seq + 1 WHERE epoch = :epoch AND from_seq <= :seq";
    connection.execute(sql, params! { epoch, seq })?;
    let sql = "UPDATE epoch SET acknowledged = :seq WHERE id = :epoch";
    connection.execute(sql, params! { epoch, seq })?;
    Ok(())
}

/// Notes that `from..=to` has no records any more, as one with the gaps directly before and behind it if the reason is
/// the same.
pub(super) fn add_gap(
    connection: &Connection,
    epoch: i64,
    from: u64,
    to: u64,
    reason: GapReason,
) -> Result<(), SpoolError> {
    const MERGE: &str = "\
        UPDATE gap SET to_seq = :to
        WHERE epoch = :epoch AND to_seq = :from - 1 AND reason = :reason
            AND from_seq = (SELECT max(from_seq) FROM gap WHERE epoch = :epoch AND from_seq < :from)";
    const BEHIND: &str = "\
        SELECT to_seq FROM gap WHERE epoch = :epoch AND from_seq = :to + 1 AND reason = :reason";
    const INSERT: &str = "\
        INSERT INTO gap (epoch, from_seq, to_seq, reason) VALUES (:epoch, :from, :to, :reason)";
    let reason = reason.name();
    let behind = connection.optional(BEHIND, params! { epoch, to, reason }, |row| {
        read::<u64>(row, "to_seq")
    })?;
    let sql = "DELETE FROM gap WHERE epoch = :epoch AND from_seq = :to + 1 AND reason = :reason";
    connection.execute(sql, params! { epoch, to, reason })?;
    let to = behind.unwrap_or(to);
    if connection.execute(MERGE, params! { epoch, from, to, reason })? == 0 {
        connection.execute(INSERT, params! { epoch, from, to, reason })?;
    }
    Ok(())
}

/// Replaces one record that cannot be read by a gap.
pub(super) fn mark_damaged(
    connection: &Connection,
    epoch: i64,
    seq: u64,
) -> Result<(), SpoolError> {
    let sql = "DELETE FROM record WHERE epoch = :epoch AND seq = :seq";
    if connection.execute(sql, params! { epoch, seq })? == 0 {
        return Ok(());
    }
    let sql = "UPDATE usage SET records = records - 1, dropped = dropped + 1";
    connection.execute(sql, &[])?;
    add_gap(connection, epoch, seq, seq, GapReason::SpoolDamaged)
}
