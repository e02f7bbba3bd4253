//! Trims what is acknowledged, keeps gaps merged, and counts what remains.

use sqlx::SqliteConnection;
use viworks_common::id::AgentRunId;
use viworks_common::limits;
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

/// Forgets the epochs of earlier processes that have nothing waiting, but for the youngest.
///
/// Nobody will add to them any more. What is remembered of the youngest is how far the backend said they are committed:
/// a backend whose database was restored to before that learns from it which records are gone.
pub(super) async fn forget_delivered(
    connection: &mut SqliteConnection,
    own: AgentRunId,
) -> Result<(), SpoolError> {
    sqlx::query(
        "DELETE FROM epoch WHERE acknowledged = next_seq - 1 AND agent_run_id <> ?1 AND id NOT IN (
            SELECT id FROM epoch WHERE acknowledged = next_seq - 1 ORDER BY id DESC LIMIT ?2)",
    )
    .bind(own.to_string())
    .bind(stored(
        u64::try_from(limits::SPOOL_EPOCHS_NAMED_MAX).unwrap_or(u64::MAX),
    ))
    .execute(connection)
    .await?;
    Ok(())
}

/// The youngest epochs that have nothing waiting, with how far they are acknowledged.
pub(super) async fn delivered(
    connection: &mut SqliteConnection,
) -> Result<Vec<Position>, SpoolError> {
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "SELECT agent_run_id, acknowledged FROM epoch WHERE acknowledged = next_seq - 1 AND acknowledged > 0
         ORDER BY id DESC LIMIT ?",
    )
    .bind(stored(
        u64::try_from(limits::SPOOL_EPOCHS_NAMED_MAX).unwrap_or(u64::MAX),
    ))
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|(run, acknowledged)| {
            Ok(Position {
                spool_epoch: run
                    .parse()
                    .map_err(|_invalid| SpoolError::Inconsistent("an epoch's run id"))?,
                seq: restored(acknowledged)?,
            })
        })
        .collect()
}

/// Forgets everything up to `position`; `own` is the epoch that goes on growing and is always kept.
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
    if seq.max(before) == next - 1 {
        forget_delivered(connection, own).await?;
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
