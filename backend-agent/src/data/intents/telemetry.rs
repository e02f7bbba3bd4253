//! Telemetry on its way in: batches, with the positions they reach.

use std::collections::{BTreeMap, BTreeSet};

use viworks_common::id::{AgentId, AgentRunId, StreamName};
use viworks_common::ledger::telemetry::{
    self as ledger, Facts, Intake, REFUSED_EPOCHS_MAX, Reached, Row, Usage,
};
use viworks_common::rules::Complete;
use viworks_common::telemetry::{Gap, Position, RecordRefusal};
use viworks_common::time::Timestamp;
use viworks_runtime::fault;
use viworks_runtime::sqlite::{self, params};

use super::link::{Record, Sql};
use super::row::{Reader, column, to_json};
use super::sessions::holds;
use super::tx::{Tx, View};
use crate::data::{StoreError, StoreResult, TelemetryLimits, TelemetryOutcome, TelemetryWrite};

pub(super) mod all;
pub(super) mod proof;
pub(super) mod queries;
pub(super) mod retention;
pub(super) mod rollups;
pub(super) mod steps;

pub(super) const POSITIONS: &str = "\
SELECT spool_epoch, seq FROM telemetry_positions WHERE tenant = :tenant AND agent_id = :agent_id ORDER BY spool_epoch";

pub(super) const POSITION: &str = "\
SELECT seq FROM telemetry_positions
WHERE tenant = :tenant AND agent_id = :agent_id AND spool_epoch = :spool_epoch";

pub(super) const USAGE: &str = "\
SELECT agent_id, day, epochs, records, bytes, gaps, streams FROM telemetry_usage
WHERE tenant = :tenant AND agent_id = :agent_id";

pub(super) const REFUSED_TO: &str = "\
SELECT seq FROM telemetry_refused_epochs
WHERE tenant = :tenant AND agent_id = :agent_id AND spool_epoch = :spool_epoch";

pub(super) const REMEMBER_REFUSED: &str = "\
INSERT INTO telemetry_refused_epochs (tenant, agent_id, spool_epoch, seq, refused_at)
VALUES (:tenant, :agent_id, :spool_epoch, :seq, :now)
ON CONFLICT (tenant, agent_id, spool_epoch) DO UPDATE SET seq = excluded.seq, refused_at = excluded.refused_at";

pub(super) const KEEP_LATEST_REFUSED: &str = "\
DELETE FROM telemetry_refused_epochs WHERE tenant = :tenant AND agent_id = :agent_id AND spool_epoch IN (
    SELECT spool_epoch FROM telemetry_refused_epochs WHERE tenant = :tenant AND agent_id = :agent_id
    ORDER BY refused_at DESC, spool_epoch LIMIT 1000000 OFFSET :kept)";

/// Those of some streams that a gateway has.
pub(super) const KNOWN_STREAMS: Sql = Sql {
    sqlite: "\
SELECT stream FROM telemetry_streams
WHERE tenant = :tenant AND agent_id = :agent_id AND stream IN (SELECT value FROM json_each(:streams))",
    postgres: "\
SELECT stream FROM telemetry_streams
WHERE tenant = :tenant AND agent_id = :agent_id AND stream IN (SELECT * FROM json_array_elements_text(:streams))",
};

pub(super) const MOVE_POSITION: &str = "\
INSERT INTO telemetry_positions (tenant, agent_id, spool_epoch, seq, moved_at)
VALUES (:tenant, :agent_id, :spool_epoch, :seq, :now)
ON CONFLICT (tenant, agent_id, spool_epoch) DO UPDATE SET seq = excluded.seq, moved_at = excluded.moved_at
WHERE excluded.seq > telemetry_positions.seq";

macro_rules! move_streams {
    ($rows:literal) => {
        concat!(
            "INSERT INTO telemetry_streams (tenant, agent_id, stream, newest) SELECT ",
            $rows,
            " ON CONFLICT (tenant, agent_id, stream) DO UPDATE SET newest = excluded.newest \
             WHERE excluded.newest > telemetry_streams.newest"
        )
    };
}

/// Each stream with the time of its newest record, from one document.
pub(super) const MOVE_STREAMS: Sql = Sql {
    sqlite: move_streams!(":tenant, :agent_id, key, value FROM json_each(:newest) WHERE true"),
    postgres: move_streams!(":tenant, :agent_id, key, value::bigint FROM json_each_text(:newest)"),
};

pub(super) const INSERT_GAP: &str = "\
INSERT INTO telemetry_gaps (tenant, agent_id, spool_epoch, from_seq, to_seq, reason, stored_at)
VALUES (:tenant, :agent_id, :spool_epoch, :from_seq, :to_seq, :reason, :now)";

pub(super) const COUNT_REFUSALS: &str = "\
INSERT INTO telemetry_refusals (tenant, agent_id, spool_epoch, reason, records, first_at, last_at)
VALUES (:tenant, :agent_id, :spool_epoch, :reason, :records, :now, :now)
ON CONFLICT (tenant, agent_id, spool_epoch, reason) DO UPDATE SET last_at = excluded.last_at,
    records = CASE WHEN telemetry_refusals.records > 9007199254740992 - excluded.records THEN 9007199254740992
                   ELSE telemetry_refusals.records + excluded.records END";

pub(super) const SAVE_USAGE: &str = "\
INSERT INTO telemetry_usage (tenant, agent_id, day, epochs, records, bytes, gaps, streams)
VALUES (:tenant, :agent_id, :day, :epochs, :records, :bytes, :gaps, :streams)
ON CONFLICT (tenant, agent_id) DO UPDATE SET day = excluded.day, epochs = excluded.epochs, records = excluded.records,
    bytes = excluded.bytes, gaps = excluded.gaps, streams = excluded.streams";

/// Stores batches of many gateways, one after another, and their records at the end. `wall` is what their clocks are
/// held against.
pub(super) fn commit(
    tx: &Tx<'_>,
    writes: &[TelemetryWrite],
    limits: &TelemetryLimits,
    wall: Timestamp,
) -> StoreResult<Vec<TelemetryOutcome>> {
    tx.lock_telemetry(writes.iter().map(|write| write.agent_id))?;
    let mut outcomes = Vec::with_capacity(writes.len());
    let mut added = Vec::new();
    for write in writes {
        outcomes.push(match holds(tx, write.agent_id, write.epoch) {
            Ok(_low_water) => commit_one(tx, write, limits, wall, &mut added)?,
            // Whoever is fenced leaves no trace.
            Err(StoreError::Fenced) => TelemetryOutcome::Fenced,
            Err(error) => return Err(error),
        });
    }
    append(tx, &added)?;
    fault::point("store.telemetry.before_commit");
    Ok(outcomes)
}

/// What a batch adds to the records.
struct Added<'b> {
    agent_id: String,
    spool_epoch: String,
    rows: Vec<Row<'b>>,
}

/// The records of all batches, behind everything else that they change.
fn append(tx: &Tx<'_>, added: &[Added<'_>]) -> StoreResult<()> {
    let records = added.iter();
    let records = records.flat_map(|of| of.rows.iter().map(|row| record(of, row, tx.now)));
    tx.append_telemetry(&records.collect::<Vec<_>>())
}

fn record<'a>(of: &'a Added<'_>, row: &'a Row<'_>, stored_at: Timestamp) -> Record<'a> {
    Record {
        agent_id: &of.agent_id,
        spool_epoch: &of.spool_epoch,
        seq: row.seq,
        stream: row.stream.as_str(),
        observed_at: row.observed_at,
        stored_at,
        fields: &row.fields,
        time_source: row.time_source.name(),
        gateway_time: row.gateway_time,
    }
}

fn commit_one<'b>(
    tx: &Tx<'_>,
    write: &'b TelemetryWrite,
    limits: &TelemetryLimits,
    wall: Timestamp,
    added: &mut Vec<Added<'b>>,
) -> StoreResult<TelemetryOutcome> {
    let batch = &write.batch;
    if let Err(malformed) = ledger::check(batch) {
        return Ok(TelemetryOutcome::Malformed(malformed));
    }
    let (agent_id, spool_epoch) = (write.agent_id, batch.spool_epoch);
    let named: BTreeSet<_> = batch
        .records
        .iter()
        .map(|(_, record)| &record.stream)
        .collect();
    let streams = to_json(&named);
    let known = column::<StreamName>("telemetry_streams", "stream");
    let streams = tx.all(KNOWN_STREAMS, params! { agent_id, streams }, known)?;
    let stored = usage(tx, agent_id)?;
    let facts = Facts {
        reached: reached(tx, agent_id, spool_epoch)?,
        usage: stored.today(tx.now),
        streams: streams.into_iter().collect(),
        limits: *limits,
        now: tx.now,
    };
    let before = facts.usage;
    let taken = ledger::intake(Complete, batch, write.skew_ms, facts, wall);
    write_intake(tx, agent_id, spool_epoch, &taken)?;
    if taken.usage != before {
        save_usage(tx, agent_id, &taken.usage)?;
    }
    // Today is noted once. A day that is over, or to come, is each time: somebody may have rolled it up.
    let today = rollups::day_of(tx.now);
    let days = taken
        .rows
        .iter()
        .map(|row| rollups::day_of(row.observed_at));
    let mut days: BTreeSet<i64> = days.filter(|day| *day != today).collect();
    days.extend((stored.day < today).then_some(today));
    rollups::mark(tx, agent_id, &days)?;
    if !taken.rows.is_empty() {
        added.push(Added {
            agent_id: agent_id.to_string(),
            spool_epoch: spool_epoch.to_string(),
            rows: taken.rows,
        });
    }
    Ok(TelemetryOutcome::Committed(taken.commit))
}

fn write_intake(
    tx: &Tx<'_>,
    agent_id: AgentId,
    spool_epoch: AgentRunId,
    taken: &Intake<'_>,
) -> StoreResult<()> {
    if !taken.newest.is_empty() {
        let newest = taken.newest.iter();
        let newest: BTreeMap<_, _> = newest.map(|(name, at)| (name, at.unix_micros())).collect();
        let newest = to_json(&newest);
        tx.execute(MOVE_STREAMS, params! { agent_id, newest })?;
    }
    if let Some(seq) = taken.position {
        tx.execute(MOVE_POSITION, params! { agent_id, spool_epoch, seq })?;
    }
    for gap in &taken.gaps {
        insert_gap(tx, agent_id, spool_epoch, gap)?;
    }
    for (reason, records) in &taken.commit.refused {
        count_refused(tx, agent_id, taken.refused_under, *reason, *records)?;
    }
    remember_refused(tx, agent_id, spool_epoch, taken.refused_to)
}

/// Remembers how far a spool epoch was refused as one too many.
fn remember_refused(
    tx: &Tx<'_>,
    agent_id: AgentId,
    spool_epoch: AgentRunId,
    seq: Option<u64>,
) -> StoreResult<()> {
    let Some(seq) = seq else {
        return Ok(());
    };
    tx.execute(REMEMBER_REFUSED, params! { agent_id, spool_epoch, seq })?;
    let kept = REFUSED_EPOCHS_MAX;
    tx.execute(KEEP_LATEST_REFUSED, params! { agent_id, kept })
        .map(drop)
}

fn count_refused(
    tx: &Tx<'_>,
    agent_id: AgentId,
    spool_epoch: AgentRunId,
    reason: RecordRefusal,
    records: u64,
) -> StoreResult<()> {
    let reason = reason.name();
    let params = params! { agent_id, spool_epoch, reason, records };
    tx.execute(COUNT_REFUSALS, params).map(drop)
}

fn insert_gap(
    tx: &Tx<'_>,
    agent_id: AgentId,
    spool_epoch: AgentRunId,
    gap: &Gap,
) -> StoreResult<()> {
    let (from_seq, to_seq, reason) = (gap.from_seq, gap.to_seq, gap.reason.name());
    let params = params! { agent_id, spool_epoch, from_seq, to_seq, reason };
    tx.execute(INSERT_GAP, params).map(drop)
}

/// How far a spool epoch has come; whether it was refused matters only where it is not known.
fn reached(view: &View<'_>, agent_id: AgentId, spool_epoch: AgentRunId) -> StoreResult<Reached> {
    let read = column("telemetry_positions", "seq");
    let committed = view.optional(POSITION, params! { agent_id, spool_epoch }, read)?;
    let refused = if committed.is_none() {
        let read = column("telemetry_refused_epochs", "seq");
        view.optional(REFUSED_TO, params! { agent_id, spool_epoch }, read)?
    } else {
        None
    };
    Ok(Reached {
        committed,
        refused: refused.unwrap_or(0),
    })
}

/// What a gateway had had stored when that was noted last.
fn usage(tx: &Tx<'_>, agent_id: AgentId) -> StoreResult<Usage> {
    let usage = tx.optional(USAGE, params! { agent_id }, |row| {
        let row = Reader::new("telemetry_usage", row);
        Ok(Usage {
            day: row.get("day")?,
            epochs: row.get("epochs")?,
            records: row.get("records")?,
            bytes: row.get("bytes")?,
            gaps: row.get("gaps")?,
            streams: row.get("streams")?,
        })
    })?;
    Ok(usage.unwrap_or_default())
}

fn save_usage(tx: &Tx<'_>, agent_id: AgentId, usage: &Usage) -> StoreResult<()> {
    let Usage {
        day,
        epochs,
        records,
        bytes,
        gaps,
        streams,
    } = usage;
    let params = params! { agent_id, day, epochs, records, bytes, gaps, streams };
    tx.execute(SAVE_USAGE, params).map(drop)
}

/// How far the epochs are committed that a gateway names.
pub(super) struct Settled {
    /// In the order in which they were named.
    pub(super) positions: Vec<Position>,
    /// Records that were committed and are gone: the database was restored to before them.
    pub(super) missing: u64,
    /// Such records that are beyond what may be kept of their gateway, by reason.
    pub(super) refused: BTreeMap<RecordRefusal, u64>,
}

/// Compares what a gateway remembers as acknowledged with what is committed.
pub(super) fn settle_positions(
    tx: &Tx<'_>,
    agent_id: AgentId,
    named: &[Position],
    limits: &TelemetryLimits,
) -> StoreResult<Settled> {
    let mut settled = Settled {
        positions: Vec::with_capacity(named.len()),
        missing: 0,
        refused: BTreeMap::new(),
    };
    if named.is_empty() {
        return Ok(settled);
    }
    let stored = usage(tx, agent_id)?;
    let before = stored.today(tx.now);
    let mut used = before;
    for asked in named {
        let spool_epoch = asked.spool_epoch;
        let reached = reached(tx, agent_id, spool_epoch)?;
        let remembered = ledger::remembered(Complete, *asked, reached, &mut used, limits);
        if let Some(gap) = remembered.gap {
            let forgotten = (gap.to_seq - gap.from_seq).saturating_add(1);
            settled.missing = settled.missing.saturating_add(forgotten);
            insert_gap(tx, agent_id, spool_epoch, &gap)?;
        }
        if let Some((under, reason, records)) = remembered.refused {
            ledger::add(&mut settled.refused, reason, records);
            count_refused(tx, agent_id, under, reason, records)?;
        }
        if let Some(seq) = remembered.moved_to {
            tx.execute(MOVE_POSITION, params! { agent_id, spool_epoch, seq })?;
        }
        remember_refused(tx, agent_id, spool_epoch, remembered.refused_to)?;
        settled.positions.push(remembered.position);
    }
    if used != before {
        save_usage(tx, agent_id, &used)?;
        let today = rollups::day_of(tx.now);
        let first = (stored.day < today).then_some(today);
        rollups::mark(tx, agent_id, &first.into_iter().collect())?;
    }
    Ok(settled)
}

/// How far every spool epoch is committed.
pub(super) fn positions(view: &View<'_>, agent_id: AgentId) -> StoreResult<Vec<Position>> {
    view.all(POSITIONS, params! { agent_id }, read_position)
}

fn read_position(row: &sqlite::Row<'_>) -> StoreResult<Position> {
    let row = Reader::new("telemetry_positions", row);
    Ok(Position {
        spool_epoch: row.get("spool_epoch")?,
        seq: row.get("seq")?,
    })
}
