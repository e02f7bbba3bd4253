//! The stored anchor of the time line.

use std::time::Duration;

use viworks_common::time::Monotonic;
use viworks_common::timeline::{Anchor, Anchored};
use viworks_runtime::sqlite::params;

use super::row::Reader;
use super::tx::View;
use crate::data::StoreResult;

pub(super) const LOAD: &str =
    "SELECT boot_id, boottime, reads, wall_ahead FROM time_line WHERE one = 1";

pub(super) const SAVE: &str = "\
INSERT INTO time_line (one, boot_id, boottime, reads, wall_ahead) VALUES (1, :boot_id, :boottime, :reads, :wall_ahead)
ON CONFLICT (one) DO UPDATE SET boot_id = excluded.boot_id, boottime = excluded.boottime, reads = excluded.reads,
    wall_ahead = excluded.wall_ahead";

/// The anchor as it was stored last.
pub(super) fn load(view: &View<'_>) -> StoreResult<Option<Anchored>> {
    view.optional(LOAD, &[], |row| {
        let row = Reader::new("time_line", row);
        Ok(Anchored {
            boot_id: row.get("boot_id")?,
            anchor: Anchor {
                at: Monotonic::from_duration(Duration::from_micros(row.get("boottime")?)),
                reads: row.get("reads")?,
                wall_ahead: row.get("wall_ahead")?,
            },
        })
    })
}

/// Stores the anchor.
pub(super) fn save(view: &View<'_>, anchored: &Anchored) -> StoreResult<()> {
    let Anchored { boot_id, anchor } = anchored;
    let boottime = u64::try_from(anchor.at.as_duration().as_micros()).unwrap_or(u64::MAX);
    view.execute(
        SAVE,
        params! { boot_id, boottime, reads: anchor.reads, wall_ahead: anchor.wall_ahead },
    )?;
    Ok(())
}
