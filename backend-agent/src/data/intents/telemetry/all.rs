//! Records of all streams of a gateway by time, where the store has no order of times over streams: table by table, and
//! of each stream a few records at a time.

use viworks_common::id::AgentId;
use viworks_common::telemetry::steps::Range;
use viworks_runtime::sqlite::params;

use super::queries::{agent, columns, first, read};
use crate::data::intents::link::Sql;
use crate::data::intents::page::{Rows, rows_wanted};
use crate::data::intents::row::{column, to_json};
use crate::data::intents::tx::View;
use crate::data::{Page, StoreResult, StoredRecord, TelemetryCursor, TelemetryQuery};

/// Tables that one page looks into for the records that it tells of.
const TABLES_MAX: usize = 64;

/// How many times as many records one page looks at as it has streams and rows to tell of. It ends early where that is
/// not enough, and the next one goes on.
const LOOKS_MAX: usize = 32;

pub(in crate::data::intents) const STREAM_COUNT: Sql = Sql::of_server(concat!(
    "SELECT count(*) AS streams FROM telemetry_stream_ids WHERE agent = ",
    agent!()
));

/// Those of some ranges that hold something of a gateway.
pub(in crate::data::intents) const HELD: Sql = Sql::of_server(concat!(
    "SELECT p.place FROM json_to_recordset(:ranges) AS p (place bigint, low bigint, high bigint) CROSS JOIN LATERAL \
     (SELECT 1 AS one FROM telemetry WHERE agent = ",
    agent!(),
    " AND observed_at >= timestamptz 'epoch' + p.low * interval '1 microsecond' \
     AND observed_at < timestamptz 'epoch' + p.high * interval '1 microsecond' LIMIT 1) AS held \
     ORDER BY p.place LIMIT :limit"
));

/// Of each stream so many records; and of those the first, up to where the first stream has more of them: what lies
/// beyond may have others between. Keys first, so that nothing else is read of what is not told of.
macro_rules! merged {
    ($compare:literal, $within:literal, $order:literal) => {
        concat!(
            "WITH heads AS MATERIALIZED (SELECT h.stream, h.observed_at, h.epoch, h.seq, h.place \
             FROM (SELECT id FROM telemetry_stream_ids WHERE agent = ", agent!(), ") AS s CROSS JOIN LATERAL \
             (SELECT stream, observed_at, epoch, seq, \
              row_number() OVER (ORDER BY observed_at ", $order, ", epoch ", $order, ", seq ", $order, ") AS place \
              FROM telemetry WHERE agent = ", agent!(), " AND stream = s.id \
              AND observed_at >= :from AND observed_at < :until AND (observed_at, epoch, seq) ", $compare,
            " (:at, coalesce((SELECT id FROM telemetry_epoch_ids WHERE agent = ", agent!(),
            " AND spool_epoch = :spool_epoch), 0), :seq) \
              ORDER BY observed_at ", $order, ", epoch ", $order, ", seq ", $order, " LIMIT :share) AS h), \
             horizon AS (SELECT observed_at, epoch, seq FROM heads WHERE place = :share \
              ORDER BY observed_at ", $order, ", epoch ", $order, ", seq ", $order, " LIMIT 1), \
             told AS (SELECT h.stream, h.observed_at, h.epoch, h.seq FROM heads AS h \
              WHERE NOT EXISTS (SELECT FROM horizon) \
              OR (h.observed_at, h.epoch, h.seq) ", $within, " (SELECT observed_at, epoch, seq FROM horizon) \
              ORDER BY h.observed_at ", $order, ", h.epoch ", $order, ", h.seq ", $order, " LIMIT :limit) ",
            columns!("s.stream"),
            ", EXISTS (SELECT FROM horizon) AS beyond \
             FROM told AS k JOIN telemetry AS t ON t.agent = ", agent!(), " AND t.stream = k.stream \
             AND t.observed_at = k.observed_at AND t.epoch = k.epoch AND t.seq = k.seq \
             AND t.observed_at >= :from AND t.observed_at < :until \
             JOIN telemetry_stream_ids AS s ON s.id = t.stream JOIN telemetry_epoch_ids AS e ON e.id = t.epoch \
             ORDER BY t.observed_at ", $order, ", t.epoch ", $order, ", t.seq ", $order
        )
    };
}

pub(in crate::data::intents) const FORWARD: Sql = Sql::of_server(merged!(">", "<=", "ASC"));

pub(in crate::data::intents) const BACKWARD: Sql = Sql::of_server(merged!("<", ">=", "DESC"));

/// The rows of a page, from tables that each hold a range of time. It reads a bounded number of records, however many
/// streams and tables there are.
pub(super) fn rows(
    view: &View<'_>,
    agent_id: AgentId,
    query: &TelemetryQuery,
    page: Page<TelemetryCursor>,
    tables: Vec<Range>,
) -> StoreResult<Rows<StoredRecord>> {
    let wanted = rows_wanted(page.limit);
    let streams: usize = view.one(
        STREAM_COUNT,
        params! { agent_id },
        column("telemetry_stream_ids", "streams"),
    )?;
    let (tables, more_tables) = held(view, agent_id, query, page, tables)?;
    let mut merge = Merge {
        view,
        agent_id,
        query,
        after: page.after,
        bytes: 0,
        looks: LOOKS_MAX.saturating_mul(streams.saturating_add(wanted)),
        streams,
        rows: Vec::new(),
    };
    for table in tables {
        if merge.table(table, wanted)? {
            return Ok(Rows {
                items: merge.rows,
                cut: true,
            });
        }
        if merge.rows.len() >= wanted {
            break;
        }
    }
    Ok(Rows {
        cut: more_tables && merge.rows.len() < wanted,
        items: merge.rows,
    })
}

/// Those of the tables that hold records of the gateway, in the order of the question, and whether there are more.
fn held(
    view: &View<'_>,
    agent_id: AgentId,
    query: &TelemetryQuery,
    page: Page<TelemetryCursor>,
    mut tables: Vec<Range>,
) -> StoreResult<(Vec<Range>, bool)> {
    let newest_first = query.newest_first;
    // A record of the cursor's own time may follow.
    let follows = |table: &Range| match page.after {
        Some(after) if newest_first => table.from <= after.observed_at,
        Some(after) => table.until > after.observed_at,
        None => true,
    };
    tables.retain(|table| table.from < table.until && follows(table));
    if newest_first {
        tables.reverse();
    }
    let ranges = tables.iter().enumerate().map(|(place, table)| {
        let (low, high) = (table.from.unix_micros(), table.until.unix_micros());
        serde_json::json!({ "place": place, "low": low, "high": high })
    });
    let ranges = to_json(&ranges.collect::<Vec<_>>());
    let limit = TABLES_MAX + 1;
    let read = column::<usize>("telemetry", "place");
    let places = view.all(HELD, params! { agent_id, ranges, limit }, read)?;
    let more = places.len() > TABLES_MAX;
    let places = places.into_iter().take(TABLES_MAX);
    let held = places.filter_map(|place| tables.get(place).copied());
    Ok((held.collect(), more))
}

/// A page as far as it has come.
struct Merge<'m> {
    view: &'m View<'m>,
    agent_id: AgentId,
    query: &'m TelemetryQuery,
    after: Option<TelemetryCursor>,
    /// Bytes of the rows.
    bytes: usize,
    /// Records that it may still look at.
    looks: usize,
    streams: usize,
    rows: Vec<StoredRecord>,
}

impl Merge<'_> {
    /// Adds the rows of one table; answers whether the page ends in it.
    fn table(&mut self, table: Range, wanted: usize) -> StoreResult<bool> {
        // Streams are alike more often than not; where one has most of it, more is looked at the next time.
        let even = wanted.saturating_mul(2) / self.streams.max(1);
        let mut share = even.saturating_add(8).min(wanted.saturating_add(1));
        loop {
            let left = wanted.saturating_sub(self.rows.len());
            if left == 0 {
                return Ok(false);
            }
            let looked = self.streams.saturating_mul(share);
            if looked > self.looks && !self.rows.is_empty() {
                return Ok(true);
            }
            self.looks = self.looks.saturating_sub(looked);
            let (cut, beyond) = self.add(table, share, left)?;
            if cut || !beyond {
                return Ok(cut);
            }
            share = share.saturating_mul(4).min(wanted.saturating_add(1));
        }
    }

    /// Adds rows; answers whether the page is full by its bytes, and whether the table may hold more.
    fn add(&mut self, table: Range, share: usize, limit: usize) -> StoreResult<(bool, bool)> {
        let (agent_id, from, until) = (self.agent_id, table.from, table.until);
        let (at, spool_epoch, seq) = first(self.after, self.query.newest_first);
        let sql = if self.query.newest_first {
            BACKWARD
        } else {
            FORWARD
        };
        let params = params! { agent_id, from, until, at, spool_epoch, seq, share, limit };
        let mut beyond = false;
        let rows = self.view.page_on(sql, params, &mut self.bytes, |row| {
            beyond = row.get("beyond").unwrap_or_default();
            read(row)
        })?;
        self.rows.extend(rows.items);
        self.after = self.rows.last().map(cursor).or(self.after);
        Ok((rows.cut, beyond))
    }
}

/// The place of a record.
pub(super) fn cursor(record: &StoredRecord) -> TelemetryCursor {
    TelemetryCursor {
        observed_at: record.observed_at,
        spool_epoch: record.spool_epoch,
        seq: record.seq,
    }
}
