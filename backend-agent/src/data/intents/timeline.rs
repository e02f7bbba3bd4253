//! The stored anchor of the time line, and on a server, which several processes share, what the server's clock showed.

use std::time::Duration;

use viworks_common::time::Monotonic;
use viworks_common::timeline::shared::{Point, Stored};
use viworks_common::timeline::{Anchor, Anchored};
use viworks_runtime::sqlite::params;

use super::link::Sql;
use super::row::Reader;
use super::tx::View;
use crate::data::{StoreResult, StoredLine};

/// A row always comes from a server: it tells at least what its clock shows.
pub(super) const LOAD: Sql = Sql {
    sqlite: "\
SELECT boot_id, boottime, reads, wall_ahead, NULL AS shows, NULL AS number, NULL AS point_shows, NULL AS point_reads
FROM time_line WHERE one = 1",
    postgres: "\
SELECT l.boot_id, l.boottime, l.reads, l.wall_ahead, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS shows,
       s.number, s.shows AS point_shows, s.reads AS point_reads
FROM (SELECT 1 AS one) AS o LEFT JOIN time_line AS l ON l.one = o.one LEFT JOIN server_time AS s ON s.one = o.one",
};

pub(super) const SAVE: &str = "\
INSERT INTO time_line (one, boot_id, boottime, reads, wall_ahead) VALUES (1, :boot_id, :boottime, :reads, :wall_ahead)
ON CONFLICT (one) DO UPDATE SET boot_id = excluded.boot_id, boottime = excluded.boottime, reads = excluded.reads,
    wall_ahead = excluded.wall_ahead";

/// The next point, by whoever is first, and the anchor with it. Only a server has it.
pub(super) const SAVE_POINT: Sql = Sql {
    sqlite: SAVE,
    postgres: "\
WITH point AS (
    INSERT INTO server_time (one, number, shows, reads) VALUES (1, :number, :shows, :point_reads)
    ON CONFLICT (one) DO UPDATE SET number = excluded.number, shows = excluded.shows, reads = excluded.reads
    WHERE server_time.number = excluded.number - 1 RETURNING one)
INSERT INTO time_line (one, boot_id, boottime, reads, wall_ahead)
SELECT one, :boot_id, :boottime, :reads, :wall_ahead FROM point
ON CONFLICT (one) DO UPDATE SET boot_id = excluded.boot_id, boottime = excluded.boottime, reads = excluded.reads,
    wall_ahead = excluded.wall_ahead",
};

/// The line as it was stored last.
pub(super) fn load(view: &View<'_>) -> StoreResult<StoredLine> {
    let line = view.optional(LOAD, &[], |row| {
        let line = Reader::new("time_line", row);
        Ok(StoredLine {
            line: Stored {
                anchored: anchored(&line)?,
                point: point(&line)?,
            },
            server: line.get("shows")?,
        })
    })?;
    Ok(line.unwrap_or_default())
}

fn anchored(line: &Reader<'_>) -> StoreResult<Option<Anchored>> {
    let Some(boot_id) = line.get("boot_id")? else {
        return Ok(None);
    };
    let anchor = Anchor {
        at: Monotonic::from_duration(Duration::from_micros(line.get("boottime")?)),
        reads: line.get("reads")?,
        wall_ahead: line.get("wall_ahead")?,
    };
    Ok(Some(Anchored { boot_id, anchor }))
}

fn point(line: &Reader<'_>) -> StoreResult<Option<Point>> {
    let Some(number) = line.get("number")? else {
        return Ok(None);
    };
    let (shows, reads) = (line.get("point_shows")?, line.get("point_reads")?);
    Ok(Some(Point {
        number,
        shows,
        reads,
    }))
}

/// Stores the anchor, and the point that it is at; `false` when somebody else has stored a point since.
pub(super) fn save(
    view: &View<'_>,
    anchored: &Anchored,
    point: Option<&Point>,
) -> StoreResult<bool> {
    let Anchored { boot_id, anchor } = anchored;
    let boottime = u64::try_from(anchor.at.as_duration().as_micros()).unwrap_or(u64::MAX);
    let (reads, wall_ahead) = (anchor.reads, anchor.wall_ahead);
    let stored = match point {
        Some(point) => view.execute(
            SAVE_POINT,
            params! {
                boot_id, boottime, reads, wall_ahead,
                number: point.number, shows: point.shows, point_reads: point.reads,
            },
        )?,
        None => view.execute(SAVE, params! { boot_id, boottime, reads, wall_ahead })?,
    };
    Ok(stored > 0)
}
