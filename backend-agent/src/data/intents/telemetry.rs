//! Telemetry on its way in: batches, with the positions they reach.

use std::collections::BTreeMap;

use viworks_common::id::{AgentId, AgentRunId};
use viworks_common::ledger::telemetry::{self as ledger, REFUSED_EPOCHS_MAX, Reached, Row, Usage};
use viworks_common::rules::Complete;
use viworks_common::telemetry::{Gap, MalformedBatch, Position, RecordRefusal};
use viworks_common::time::Timestamp;
use viworks_runtime::fault;
use viworks_runtime::sqlite::{self, params};

use self::gathered::Gathered;
use super::link::Record;
use super::row::{Reader, column};
use super::tx::{Tx, View};
use crate::data::{StoreResult, TelemetryLimits, TelemetryOutcome, TelemetryWrite};

pub(super) mod all;
pub(super) mod gathered;
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

/// What this transaction refuses stays until the next one that refuses something, however much it is: if the answer to
/// its commit is lost, all of it comes again.
pub(super) const KEEP_LATEST_REFUSED: &str = "\
DELETE FROM telemetry_refused_epochs
WHERE tenant = :tenant AND agent_id = :agent_id AND refused_at < :now AND spool_epoch IN (
    SELECT spool_epoch FROM telemetry_refused_epochs WHERE tenant = :tenant AND agent_id = :agent_id
    ORDER BY refused_at DESC, spool_epoch LIMIT 1000000 OFFSET :kept)";

/// Retention forgets a position before its gaps, so that a gap may be there whose spool epoch begins anew: it is one,
/// and no reason to fail what others have stored in the same transaction. Where the old one ended says nothing of what
/// comes now.
pub(super) const INSERT_GAP: &str = "\
INSERT INTO telemetry_gaps (tenant, agent_id, spool_epoch, from_seq, to_seq, reason, stored_at)
VALUES (:tenant, :agent_id, :spool_epoch, :from_seq, :to_seq, :reason, :now)
ON CONFLICT (tenant, agent_id, spool_epoch, from_seq) DO UPDATE SET stored_at = excluded.stored_at,
    to_seq = excluded.to_seq, reason = excluded.reason";

pub(super) const COUNT_REFUSALS: &str = "\
INSERT INTO telemetry_refusals (tenant, agent_id, spool_epoch, reason, records, first_at, last_at)
VALUES (:tenant, :agent_id, :spool_epoch, :reason, :records, :now, :now)
ON CONFLICT (tenant, agent_id, spool_epoch, reason) DO UPDATE SET last_at = excluded.last_at,
    records = CASE WHEN telemetry_refusals.records > 9007199254740992 - excluded.records THEN 9007199254740992
                   ELSE telemetry_refusals.records + excluded.records END";

/// Stores batches of many gateways, one after another; what is found and changed of all of them is one statement each,
/// and their records come at the end. `wall` is what their clocks are held against.
pub(super) fn commit(
    tx: &Tx<'_>,
    writes: &[TelemetryWrite],
    limits: &TelemetryLimits,
    wall: Timestamp,
) -> StoreResult<Vec<TelemetryOutcome>> {
    tx.lock_telemetry(writes.iter().map(|write| write.agent_id))?;
    let mut gathered = Gathered::find(tx, writes)?;
    let mut outcomes = Vec::with_capacity(writes.len());
    let mut added = Vec::new();
    let mut spoilt = BTreeMap::new();
    for write in writes {
        // Whoever is fenced leaves no trace, and learns nothing else.
        if !gathered.holds(write.agent_id, write.epoch) {
            outcomes.push(TelemetryOutcome::Fenced);
            continue;
        }
        // What comes behind a batch that is none would make a gap of it.
        let checked = match spoilt.get(&write.agent_id) {
            Some(malformed) => Err(MalformedBatch::clone(malformed)),
            None => ledger::check(&write.batch),
        };
        outcomes.push(match checked {
            Err(malformed) => {
                spoilt.insert(write.agent_id, malformed.clone());
                TelemetryOutcome::Malformed(malformed)
            }
            Ok(()) => commit_one(tx, write, limits, wall, (&mut gathered, &mut added))?,
        });
    }
    gathered.write(tx)?;
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
    (gathered, added): (&mut Gathered<'b>, &mut Vec<Added<'b>>),
) -> StoreResult<TelemetryOutcome> {
    let batch = &write.batch;
    let (agent_id, spool_epoch) = (write.agent_id, batch.spool_epoch);
    let facts = gathered.facts(agent_id, spool_epoch, *limits, tx.now);
    let taken = ledger::intake(Complete, batch, write.skew_ms, facts, wall);
    gathered.take(agent_id, spool_epoch, &taken, tx.now);
    for gap in &taken.gaps {
        insert_gap(tx, agent_id, spool_epoch, gap)?;
    }
    for (reason, records) in &taken.commit.refused {
        count_refused(tx, agent_id, taken.refused_under, *reason, *records)?;
    }
    remember_refused(tx, agent_id, spool_epoch, taken.refused_to)?;
    if !taken.rows.is_empty() {
        added.push(Added {
            agent_id: agent_id.to_string(),
            spool_epoch: spool_epoch.to_string(),
            rows: taken.rows,
        });
    }
    Ok(TelemetryOutcome::Committed(taken.commit))
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
        gathered::read_usage(&Reader::new("telemetry_usage", row))
    })?;
    Ok(usage.flatten().unwrap_or_default())
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
            gathered::move_positions(tx, &[(agent_id, spool_epoch, seq)])?;
        }
        remember_refused(tx, agent_id, spool_epoch, remembered.refused_to)?;
        settled.positions.push(remembered.position);
    }
    if used != before {
        gathered::save_usage(tx, &[(agent_id, used)])?;
        let today = rollups::day_of(tx.now);
        let first = (stored.day != today).then_some(today);
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
