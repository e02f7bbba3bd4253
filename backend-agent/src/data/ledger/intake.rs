//! What a batch of telemetry adds, held against what its gateway may have stored.

use std::collections::{BTreeMap, BTreeSet};

use viworks_common::id::{AgentRunId, StreamName};
use viworks_common::telemetry::{
    Batch, Fields, Gap, GapReason, MalformedBatch, Position, Record, RecordRefusal, TimeSource,
    observed,
};
use viworks_common::time::Timestamp;

use crate::data::{TelemetryCommit, TelemetryLimits};

const DAY_MICROS: i64 = 24 * 3_600 * 1_000_000;

/// What a row takes beside its fields and its stream: its key, and both again in two indexes.
const ROW_BYTES: usize = 300;

/// The most records that one count names; beyond that nobody counts.
const COUNT_MAX: u64 = 1 << 53;

/// Refusals of spool epochs that are not known by themselves are counted under this one.
pub const NO_EPOCH: AgentRunId = AgentRunId::from_uuid(uuid::Uuid::nil());

/// What a gateway has had stored on a day; its streams are counted for good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Which day, by the time line.
    pub day: i64,
    /// Spool epochs begun.
    pub epochs: u64,
    /// Records stored.
    pub records: u64,
    /// What they take.
    pub bytes: u64,
    /// Gaps kept.
    pub gaps: u64,
    /// Streams that it has.
    pub streams: u64,
    /// The spool epoch that was refused last, and up to which record. One is enough: a gateway sends one after the other.
    pub refused: Option<(AgentRunId, u64)>,
}

impl Usage {
    /// The same today: only a later day begins anew.
    #[must_use]
    pub fn today(self, now: Timestamp) -> Self {
        let day = now.unix_micros().div_euclid(DAY_MICROS);
        if self.day >= day {
            return self;
        }
        Self {
            day,
            streams: self.streams,
            refused: self.refused,
            ..Self::default()
        }
    }

    /// Up to which record a spool epoch that is not known was refused already, as far as that is remembered.
    fn refused_to(&self, spool_epoch: AgentRunId) -> u64 {
        match self.refused {
            Some((epoch, seq)) if epoch == spool_epoch => seq,
            Some(_) | None => 0,
        }
    }

    /// Whether one more spool epoch may be known.
    const fn epoch(&mut self, limits: &TelemetryLimits) -> bool {
        take(&mut self.epochs, limits.epochs_per_day)
    }

    /// Whether one more gap may be kept.
    const fn gap(&mut self, limits: &TelemetryLimits) -> bool {
        take(&mut self.gaps, limits.gaps_per_day)
    }
}

const fn take(used: &mut u64, limit: u64) -> bool {
    if *used >= limit {
        return false;
    }
    *used += 1;
    true
}

/// What is known of a gateway before its batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// How far the batch's spool epoch is committed; `None` when it is not known.
    pub committed: Option<u64>,
    /// What it has had stored, today.
    pub usage: Usage,
    /// Those streams of the batch that it has.
    pub streams: BTreeSet<StreamName>,
    /// What it may.
    pub limits: TelemetryLimits,
}

/// A record as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Row<'b> {
    /// Its number.
    pub seq: u64,
    /// Its stream.
    pub stream: &'b StreamName,
    /// When it was observed.
    pub observed_at: Timestamp,
    /// Its fields, as a document.
    pub fields: String,
    /// By whose clock.
    pub time_source: TimeSource,
    /// What the gateway's clock said, where that is something else.
    pub gateway_time: Option<Timestamp>,
}

/// What a batch adds.
#[derive(Debug, Clone, PartialEq)]
pub struct Intake<'b> {
    /// The position to be stored; none for a spool epoch that is one too many.
    pub position: Option<u64>,
    /// Records in their order.
    pub rows: Vec<Row<'b>>,
    /// The newest record of each of their streams.
    pub newest: BTreeMap<&'b StreamName, Timestamp>,
    /// What will never arrive.
    pub gaps: Vec<Gap>,
    /// The spool epoch under which refusals are counted.
    pub refused_under: AgentRunId,
    /// What the gateway has had stored afterwards.
    pub usage: Usage,
    /// The answer.
    pub commit: TelemetryCommit,
}

/// Whether a batch can be what it says.
///
/// # Errors
/// What contradicts itself.
pub fn check(batch: &Batch) -> Result<(), MalformedBatch> {
    batch.check_contiguous()?;
    if i64::try_from(batch.to_seq).is_err() {
        return Err(MalformedBatch("the sequence numbers overflow"));
    }
    Ok(())
}

/// What lies beyond what is committed of a batch that was checked. `wall` is what its gateway's clock is held against.
#[must_use]
pub fn intake<'b>(
    batch: &'b Batch,
    skew_ms: Option<i64>,
    facts: Facts,
    wall: Timestamp,
) -> Intake<'b> {
    let Facts {
        committed,
        mut usage,
        streams,
        limits,
    } = facts;
    let before = committed.unwrap_or_else(|| usage.refused_to(batch.spool_epoch));
    let known = committed.is_some() || usage.epoch(&limits);
    let mut taken = Intake::new(batch, before, known, usage);
    if !known {
        taken.refuse_epoch(batch, before);
        return taken;
    }
    taken.take_gaps(batch, before, &limits);
    taken.take_records(batch, before, streams, &limits, skew_ms, wall);
    taken
}

impl<'b> Intake<'b> {
    fn new(batch: &Batch, before: u64, known: bool, usage: Usage) -> Self {
        let seq = if known {
            before.max(batch.to_seq)
        } else {
            batch.to_seq
        };
        Self {
            position: known.then_some(seq),
            rows: Vec::new(),
            newest: BTreeMap::new(),
            gaps: Vec::new(),
            refused_under: if known { batch.spool_epoch } else { NO_EPOCH },
            usage,
            commit: TelemetryCommit {
                position: Position {
                    spool_epoch: batch.spool_epoch,
                    seq,
                },
                stored: 0,
                retimed: 0,
                refused: BTreeMap::new(),
                missing: 0,
                rolled_back: known && batch.from_seq > before + 1,
            },
        }
    }

    /// Nothing of what lies beyond `before` is kept but the count.
    fn refuse_epoch(&mut self, batch: &Batch, before: u64) {
        let told = before.max(batch.from_seq.saturating_sub(1));
        let records = batch.to_seq.saturating_sub(told);
        if records > 0 {
            self.commit.refuse(RecordRefusal::EpochLimit, records);
            self.usage.refused = Some((batch.spool_epoch, batch.to_seq));
        }
    }

    fn take_gaps(&mut self, batch: &Batch, before: u64, limits: &TelemetryLimits) {
        let forgotten = self.commit.rolled_back.then_some(Gap {
            from_seq: before + 1,
            to_seq: batch.from_seq - 1,
            reason: GapReason::BackendRolledBack,
        });
        for gap in forgotten.iter().chain(&batch.gaps) {
            if gap.to_seq <= before {
                continue;
            }
            let from_seq = gap.from_seq.max(before + 1);
            let records = (gap.to_seq - from_seq).saturating_add(1);
            if self.usage.gap(limits) {
                self.commit.missing = self.commit.missing.saturating_add(records);
                self.gaps.push(Gap { from_seq, ..*gap });
            } else {
                self.commit.refuse(RecordRefusal::GapLimit, records);
            }
        }
    }

    fn take_records(
        &mut self,
        batch: &'b Batch,
        before: u64,
        mut streams: BTreeSet<StreamName>,
        limits: &TelemetryLimits,
        skew_ms: Option<i64>,
        wall: Timestamp,
    ) {
        for (seq, record) in batch.records.iter().filter(|(seq, _)| *seq > before) {
            let fields = match self.admit(record, &mut streams, limits) {
                Ok(fields) => fields,
                Err(reason) => {
                    self.commit.refuse(reason, 1);
                    continue;
                }
            };
            let (observed_at, time_source) = observed(record.observed_at, skew_ms, wall);
            let own = time_source == TimeSource::Gateway;
            self.commit.stored += 1;
            self.commit.retimed += u64::from(!own);
            let newest = self.newest.entry(&record.stream);
            let newest = newest.or_insert(observed_at);
            *newest = observed_at.max(*newest);
            self.rows.push(Row {
                seq: *seq,
                stream: &record.stream,
                observed_at,
                fields,
                time_source,
                gateway_time: (!own).then_some(record.observed_at),
            });
        }
    }

    /// Takes a record into account, if all of it is within the bounds; answers its fields as a document.
    fn admit(
        &mut self,
        record: &Record,
        streams: &mut BTreeSet<StreamName>,
        limits: &TelemetryLimits,
    ) -> Result<String, RecordRefusal> {
        record.check()?;
        let fields = document(&record.fields);
        let bytes = ROW_BYTES + fields.len() + record.stream.as_str().len() * 2;
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let usage = &mut self.usage;
        if usage.records >= limits.records_per_day {
            return Err(RecordRefusal::RecordLimit);
        }
        if usage.bytes.saturating_add(bytes) > limits.bytes_per_day {
            return Err(RecordRefusal::ByteLimit);
        }
        if !streams.contains(&record.stream) {
            if !take(&mut usage.streams, limits.streams) {
                return Err(RecordRefusal::StreamLimit);
            }
            streams.insert(record.stream.clone());
        }
        usage.records += 1;
        usage.bytes += bytes;
        Ok(fields)
    }
}

fn document(fields: &Fields) -> String {
    serde_json::to_string(fields).expect("fields have string keys and values that can be written")
}

impl TelemetryCommit {
    fn refuse(&mut self, reason: RecordRefusal, records: u64) {
        add(&mut self.refused, reason, records);
    }
}

/// Adds refused records to their sums.
pub fn add(refused: &mut BTreeMap<RecordRefusal, u64>, reason: RecordRefusal, records: u64) {
    let sum = refused.entry(reason).or_default();
    *sum = sum.saturating_add(records).min(COUNT_MAX);
}

/// What a gateway remembers as acknowledged, beside what is committed. Nothing is acknowledged before it is committed, so
/// whatever lies between the two was forgotten with a restored database: it becomes a gap, or is counted as refused where
/// its gateway has had as many gaps or spool epochs as it may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// The answer: how far its spool epoch is committed.
    pub position: Position,
    /// The position to be stored.
    pub moved_to: Option<u64>,
    /// What was forgotten and is noted as missing.
    pub gap: Option<Gap>,
    /// What was forgotten and is refused: the spool epoch under which it is counted, why, and how many.
    pub refused: Option<(AgentRunId, RecordRefusal, u64)>,
}

/// Compares one remembered position with what is committed.
#[must_use]
pub fn remembered(
    asked: Position,
    committed: Option<u64>,
    usage: &mut Usage,
    limits: &TelemetryLimits,
) -> Remembered {
    let spool_epoch = asked.spool_epoch;
    let before = committed.unwrap_or_else(|| usage.refused_to(spool_epoch));
    // Numbers beyond the store's range would take centuries to reach.
    let told = asked.seq.min(i64::MAX.unsigned_abs());
    let mut remembered = Remembered {
        position: Position {
            spool_epoch,
            seq: before.max(told),
        },
        moved_to: None,
        gap: None,
        refused: None,
    };
    if told <= before {
        return remembered;
    }
    let forgotten = told - before;
    if committed.is_none() && !usage.epoch(limits) {
        // One more than it may have is answered as it asks, and only counted.
        usage.refused = Some((spool_epoch, told));
        remembered.refused = Some((NO_EPOCH, RecordRefusal::EpochLimit, forgotten));
        return remembered;
    }
    remembered.moved_to = Some(told);
    if usage.gap(limits) {
        remembered.gap = Some(Gap {
            from_seq: before + 1,
            to_seq: told,
            reason: GapReason::BackendRolledBack,
        });
    } else {
        remembered.refused = Some((spool_epoch, RecordRefusal::GapLimit, forgotten));
    }
    remembered
}
