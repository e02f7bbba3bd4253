//! Trims what is acknowledged, keeps gaps merged, and counts what remains.

use sqlx::SqliteConnection;
use viworks_common::id::AgentRunId;
use viworks_common::telemetry::{GapReason, Position};

use super::{SpoolError, restored, stored};

/// Pages given back to the file system at a time, once the spool is empty.
const VACUUM_PAGES: u32 = 1024;

/// How full the file is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    /// Records that wait.
    pub(super) records: u64,
    /// Records given up since the file was made.
    pub(super) dropped: u64,
    /// Pages of the file.
    pub(super) pages: u64,
    /// Pages of the file that hold something.
    pub(super) live_pages: u64,
}

pub(super) async fn usage(connection: &mut SqliteConnection) -> Result<Usage, SpoolError> {
    let (records, dropped): (i64, i64) = sqlx::query_as("SELECT records, dropped FROM usage")
        .fetch_one(&mut *connection)
        .await?;
    let pages: i64 = sqlx::query_scalar("PRAGMA page_count")
        .fetch_one(&mut *connection)
        .await?;
    let free: i64 = sqlx::query_scalar("PRAGMA freelist_count")
        .fetch_one(&mut *connection)
        .await?;
    let pages = restored(pages)?;
    Ok(Usage {
        records: restored(records)?,
        dropped: restored(dropped)?,
        pages,
        live_pages: pages.saturating_sub(restored(free)?),
    })
}

/// Forgets the epochs of earlier processes that have nothing waiting: nobody will add to them any more.
pub(super) async fn forget_delivered(
    connection: &mut SqliteConnection,
    own: AgentRunId,
) -> Result<Usage, SpoolError> {
    sqlx::query("DELETE FROM epoch WHERE acknowledged = next_seq - 1 AND agent_run_id <> ?")
        .bind(own.to_string())
        .execute(&mut *connection)
        .await?;
    usage(connection).await
}

/// Forgets everything up to `position`; `own` is the epoch that goes on growing and is kept even when it is empty.
pub(super) async fn acknowledge(
    connection: &mut SqliteConnection,
    position: Position,
    own: AgentRunId,
) -> Result<Usage, SpoolError> {
    let known: Option<(i64, i64, i64)> =
        sqlx::query_as("SELECT id, next_seq, acknowledged FROM epoch WHERE agent_run_id = ?")
            .bind(position.spool_epoch.to_string())
            .fetch_optional(&mut *connection)
            .await?;
    let Some((epoch, next, before)) = known else {
        // An epoch that was delivered and forgotten.
        return usage(connection).await;
    };
    let seq = stored(position.seq).min(next - 1);
    if seq > before {
        trim_to(connection, epoch, seq).await?;
    }
    if seq.max(before) == next - 1 && position.spool_epoch != own {
        sqlx::query("DELETE FROM epoch WHERE id = ?")
            .bind(epoch)
            .execute(&mut *connection)
            .await?;
    }
    let left = usage(connection).await?;
    if left.records == 0 {
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "PRAGMA incremental_vacuum({VACUUM_PAGES})"
        )))
        .execute(&mut *connection)
        .await?;
    }
    usage(connection).await
}

async fn trim_to(
    connection: &mut SqliteConnection,
    epoch: i64,
    seq: i64,
) -> Result<(), SpoolError> {
    let trimmed = sqlx::query("DELETE FROM record WHERE epoch = ? AND seq <= ?")
        .bind(epoch)
        .bind(seq)
        .execute(&mut *connection)
        .await?
        .rows_affected();
    sqlx::query("UPDATE usage SET records = records - ?")
        .bind(stored(trimmed))
        .execute(&mut *connection)
        .await?;
    sqlx::query("DELETE FROM gap WHERE epoch = ? AND to_seq <= ?")
        .bind(epoch)
        .bind(seq)
        .execute(&mut *connection)
        .await?;
    // At most one gap spans the position; what lies behind it is still to be told.
    sqlx::query("UPDATE gap SET from_seq = ? WHERE epoch = ? AND from_seq <= ?")
        .bind(seq + 1)
        .bind(epoch)
        .bind(seq)
        .execute(&mut *connection)
        .await?;
    sqlx::query("UPDATE epoch SET acknowledged = ? WHERE id = ?")
        .bind(seq)
        .bind(epoch)
        .execute(connection)
        .await?;
    Ok(())
}

/// Notes that `from..=to` has no records any more, as part of the gap directly before it if the reason is the same.
pub(super) async fn add_gap(
    connection: &mut SqliteConnection,
    epoch: i64,
    from: i64,
    to: i64,
    reason: GapReason,
) -> Result<(), SpoolError> {
    let merged =
        sqlx::query("UPDATE gap SET to_seq = ? WHERE epoch = ? AND to_seq = ? AND reason = ?")
            .bind(to)
            .bind(epoch)
            .bind(from - 1)
            .bind(reason.name())
            .execute(&mut *connection)
            .await?
            .rows_affected();
    if merged == 0 {
        sqlx::query("INSERT INTO gap (epoch, from_seq, to_seq, reason) VALUES (?, ?, ?, ?)")
            .bind(epoch)
            .bind(from)
            .bind(to)
            .bind(reason.name())
            .execute(connection)
            .await?;
    }
    Ok(())
}

/// Replaces one record that cannot be read by a gap.
pub(super) async fn mark_damaged(
    connection: &mut SqliteConnection,
    epoch: i64,
    seq: i64,
) -> Result<(), SpoolError> {
    let removed = sqlx::query("DELETE FROM record WHERE epoch = ? AND seq = ?")
        .bind(epoch)
        .bind(seq)
        .execute(&mut *connection)
        .await?
        .rows_affected();
    if removed == 0 {
        return Ok(());
    }
    sqlx::query("UPDATE usage SET records = records - 1, dropped = dropped + 1")
        .execute(&mut *connection)
        .await?;
    add_gap(connection, epoch, seq, seq, GapReason::SpoolDamaged).await
}
