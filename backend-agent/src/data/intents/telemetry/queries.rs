//! Stored telemetry as it is asked for: records by time, streams, gaps and refusals.

use viworks_common::id::{AgentId, StreamName};
use viworks_common::ledger::telemetry::NO_EPOCH;
use viworks_common::telemetry::{Gap, GapReason, RecordRefusal, TimeSource};
use viworks_runtime::sqlite::{Row, params};

use super::all;
use crate::data::intents::link::Sql;
use crate::data::intents::page::{following, listing, rows_wanted};
use crate::data::intents::row::Reader;
use crate::data::intents::tx::View;
use crate::data::{
    GapCursor, Listing, Page, RefusalCursor, StoreResult, StoredGap, StoredRecord, StoredRefusal,
    StreamSummary, TelemetryCursor, TelemetryQuery,
};

/// The columns that [`read`] reads, in the order of the cursor or against it.
macro_rules! on_sqlite {
    ($compare:literal, $order:literal, $stream:literal) => {
        concat!(
            "SELECT spool_epoch, seq, stream, observed_at, stored_at, fields, time_source, gateway_time FROM telemetry \
             WHERE tenant = :tenant AND agent_id = :agent_id AND observed_at >= :from AND observed_at < :until \
             AND (observed_at, spool_epoch, seq) ", $compare, " (:at, :spool_epoch, :seq) ", $stream,
            "ORDER BY observed_at ", $order, ", spool_epoch ", $order, ", seq ", $order, " LIMIT :limit"
        )
    };
}

/// The number of the gateway.
macro_rules! agent {
    () => {
        "(SELECT id FROM telemetry_agent_ids WHERE tenant = :tenant AND agent_id = :agent_id)"
    };
}
pub(super) use agent;

/// The records of one stream, by its number.
macro_rules! of_stream {
    ($compare:literal, $order:literal, $stream:expr) => {
        concat!(
            "SELECT * FROM telemetry WHERE agent = ",
            agent!(),
            " AND stream = ",
            $stream,
            " AND observed_at >= :from AND observed_at < :until AND (observed_at, epoch, seq) ",
            $compare,
            " (:at, coalesce((SELECT id FROM telemetry_epoch_ids WHERE agent = ",
            agent!(),
            " AND spool_epoch = :spool_epoch), 0), :seq) \
             ORDER BY observed_at ",
            $order,
            ", epoch ",
            $order,
            ", seq ",
            $order,
            " LIMIT :limit"
        )
    };
}

/// The columns that [`read`] reads, of a record `t` and its spool epoch `e`.
macro_rules! columns {
    ($stream:literal) => {
        concat!(
            "SELECT e.spool_epoch, t.seq, ",
            $stream,
            " AS stream, t.observed_at, t.stored_at, t.fields, \
             coalesce(t.time_source, 'gateway') AS time_source, t.gateway_time"
        )
    };
}
pub(super) use columns;

macro_rules! ordered {
    ($order:literal) => {
        concat!(
            " AS t JOIN telemetry_epoch_ids AS e ON e.id = t.epoch ORDER BY t.observed_at ",
            $order,
            ", t.epoch ",
            $order,
            ", t.seq ",
            $order
        )
    };
}

macro_rules! stream_on_postgres {
    ($compare:literal, $order:literal) => {
        concat!(
            columns!(":stream::text"),
            " FROM (",
            of_stream!(
                $compare,
                $order,
                concat!(
                    "(SELECT id FROM telemetry_stream_ids WHERE agent = ",
                    agent!(),
                    " AND stream = :stream::text)"
                )
            ),
            ")",
            ordered!($order)
        )
    };
}

/// In the store that has an order of times over streams; see [`super::all`] for the other one.
pub(in crate::data::intents) const ALL_FORWARD: Sql = Sql::of_file(on_sqlite!(">", "ASC", ""));

pub(in crate::data::intents) const ALL_BACKWARD: Sql = Sql::of_file(on_sqlite!("<", "DESC", ""));

pub(in crate::data::intents) const STREAM_FORWARD: Sql = Sql {
    sqlite: on_sqlite!(">", "ASC", "AND stream = :stream "),
    postgres: stream_on_postgres!(">", "ASC"),
};

pub(in crate::data::intents) const STREAM_BACKWARD: Sql = Sql {
    sqlite: on_sqlite!("<", "DESC", "AND stream = :stream "),
    postgres: stream_on_postgres!("<", "DESC"),
};

pub(in crate::data::intents) const STREAMS: &str = "\
SELECT stream, newest FROM telemetry_streams
WHERE tenant = :tenant AND agent_id = :agent_id AND stream > :after ORDER BY stream LIMIT :limit";

pub(in crate::data::intents) const GAPS: &str = "\
SELECT spool_epoch, from_seq, to_seq, reason, stored_at
FROM telemetry_gaps WHERE tenant = :tenant AND agent_id = :agent_id AND (spool_epoch, from_seq) > (:spool_epoch, :from_seq)
ORDER BY spool_epoch, from_seq LIMIT :limit";

pub(in crate::data::intents) const REFUSALS: &str = "\
SELECT spool_epoch, reason, records, first_at, last_at
FROM telemetry_refusals WHERE tenant = :tenant AND agent_id = :agent_id AND (spool_epoch, reason) > (:spool_epoch, :reason)
ORDER BY spool_epoch, reason LIMIT :limit";

/// Records by time.
pub(in crate::data::intents) fn records(
    view: &View<'_>,
    agent_id: AgentId,
    query: &TelemetryQuery,
    page: Page<TelemetryCursor>,
) -> StoreResult<Listing<StoredRecord, TelemetryCursor>> {
    let TelemetryQuery {
        stream,
        from,
        until,
        newest_first,
    } = query;
    let (at, spool_epoch, seq) = first(page.after, *newest_first);
    let limit = rows_wanted(page.limit);
    let rows = if let Some(stream) = stream {
        let sql = if *newest_first {
            STREAM_BACKWARD
        } else {
            STREAM_FORWARD
        };
        let params = params! { agent_id, from, until, at, spool_epoch, seq, limit, stream };
        view.page(sql, params, read)?
    } else if let Some(tables) = view.telemetry_tables(*from, *until)? {
        all::rows(view, agent_id, query, page, tables)?
    } else {
        let sql = if *newest_first {
            ALL_BACKWARD
        } else {
            ALL_FORWARD
        };
        let params = params! { agent_id, from, until, at, spool_epoch, seq, limit };
        view.page(sql, params, read)?
    };
    Ok(listing(rows, page.limit, all::cursor))
}

/// What a page follows; the beginning, or the end, where it is the first one.
pub(super) fn first(after: Option<TelemetryCursor>, newest_first: bool) -> (i64, String, u64) {
    match after {
        Some(after) => (
            after.observed_at.unix_micros(),
            after.spool_epoch.to_string(),
            after.seq,
        ),
        // Before the first id, or behind the last one.
        None if newest_first => (i64::MAX, "~".to_owned(), u64::MAX),
        None => (i64::MIN, String::new(), 0),
    }
}

pub(super) fn read(row: &Row<'_>) -> StoreResult<StoredRecord> {
    let row = Reader::new("telemetry", row);
    Ok(StoredRecord {
        spool_epoch: row.get("spool_epoch")?,
        seq: row.get("seq")?,
        stream: row.get("stream")?,
        observed_at: row.get("observed_at")?,
        stored_at: row.get("stored_at")?,
        fields: row.json("fields")?,
        time_source: row.word("time_source", TimeSource::from_name)?,
        gateway_time: row.get("gateway_time")?,
    })
}

/// The streams of a gateway.
pub(in crate::data::intents) fn streams(
    view: &View<'_>,
    agent_id: AgentId,
    page: &Page<StreamName>,
) -> StoreResult<Listing<StreamSummary, StreamName>> {
    let (after, limit) = (following(page.after.as_ref()), rows_wanted(page.limit));
    let rows = view.page(STREAMS, params! { agent_id, after, limit }, |row| {
        let row = Reader::new("telemetry_streams", row);
        Ok(StreamSummary {
            stream: row.get("stream")?,
            newest: row.get("newest")?,
        })
    })?;
    Ok(listing(rows, page.limit, |summary| summary.stream.clone()))
}

/// What will never arrive.
pub(in crate::data::intents) fn gaps(
    view: &View<'_>,
    agent_id: AgentId,
    page: Page<GapCursor>,
) -> StoreResult<Listing<StoredGap, GapCursor>> {
    let spool_epoch = following(page.after.map(|after| after.spool_epoch));
    let from_seq = page.after.map_or(0, |after| after.from_seq);
    let limit = rows_wanted(page.limit);
    let params = params! { agent_id, spool_epoch, from_seq, limit };
    let rows = view.page(GAPS, params, |row| {
        let row = Reader::new("telemetry_gaps", row);
        Ok(StoredGap {
            spool_epoch: row.get("spool_epoch")?,
            gap: Gap {
                from_seq: row.get("from_seq")?,
                to_seq: row.get("to_seq")?,
                reason: row.word("reason", GapReason::from_name)?,
            },
            stored_at: row.get("stored_at")?,
        })
    })?;
    Ok(listing(rows, page.limit, |stored| GapCursor {
        spool_epoch: stored.spool_epoch,
        from_seq: stored.gap.from_seq,
    }))
}

/// What was refused.
pub(in crate::data::intents) fn refusals(
    view: &View<'_>,
    agent_id: AgentId,
    page: Page<RefusalCursor>,
) -> StoreResult<Listing<StoredRefusal, RefusalCursor>> {
    let spool_epoch = following(
        page.after
            .map(|after| after.spool_epoch.unwrap_or(NO_EPOCH)),
    );
    let reason = page.after.map_or("", |after| after.reason.name());
    let limit = rows_wanted(page.limit);
    let params = params! { agent_id, spool_epoch, reason, limit };
    let rows = view.page(REFUSALS, params, |row| {
        let row = Reader::new("telemetry_refusals", row);
        let spool_epoch = row.get("spool_epoch")?;
        Ok(StoredRefusal {
            spool_epoch: (spool_epoch != NO_EPOCH).then_some(spool_epoch),
            reason: row.word("reason", RecordRefusal::from_name)?,
            records: row.get("records")?,
            first_at: row.get("first_at")?,
            last_at: row.get("last_at")?,
        })
    })?;
    Ok(listing(rows, page.limit, |stored| RefusalCursor {
        spool_epoch: stored.spool_epoch,
        reason: stored.reason,
    }))
}
