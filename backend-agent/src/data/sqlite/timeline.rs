//! The stored anchor of the time line.

use std::time::Duration;

use sqlx::SqliteConnection;
use viworks_common::time::Monotonic;
use viworks_common::timeline::{Anchor, Anchored};

use super::row::{Reader, int};
use crate::data::StoreResult;

pub(super) const LOAD: &str =
    "SELECT boot_id, boottime, reads, wall_ahead FROM time_line WHERE one = 1";

pub(super) const SAVE: &str = "\
INSERT INTO time_line (one, boot_id, boottime, reads, wall_ahead) VALUES (1, ?1, ?2, ?3, ?4)
ON CONFLICT DO UPDATE SET boot_id = excluded.boot_id, boottime = excluded.boottime, reads = excluded.reads,
    wall_ahead = excluded.wall_ahead";

/// The anchor as it was stored last.
pub(super) async fn load(connection: &mut SqliteConnection) -> StoreResult<Option<Anchored>> {
    let row = sqlx::query(LOAD).fetch_optional(connection).await?;
    let Some(row) = row else { return Ok(None) };
    let reader = Reader::new("time_line", &row);
    Ok(Some(Anchored {
        boot_id: reader.parse("boot_id")?,
        anchor: Anchor {
            at: Monotonic::from_duration(Duration::from_micros(reader.count("boottime")?)),
            reads: reader.time("reads")?,
            wall_ahead: reader.get("wall_ahead")?,
        },
    }))
}

/// Stores the anchor.
pub(super) async fn save(
    connection: &mut SqliteConnection,
    anchored: &Anchored,
) -> StoreResult<()> {
    let Anchor {
        at,
        reads,
        wall_ahead,
    } = anchored.anchor;
    let boottime = u64::try_from(at.as_duration().as_micros()).unwrap_or(u64::MAX);
    sqlx::query(SAVE)
        .bind(anchored.boot_id.to_string())
        .bind(int(boottime))
        .bind(reads.unix_micros())
        .bind(wall_ahead)
        .execute(connection)
        .await?;
    Ok(())
}
