//! What a batch of telemetry adds, held against what its gateway may have stored.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::id::{AgentRunId, StreamName};
use crate::limits::TELEMETRY_POSITIONS_MAX;
use crate::rules::{Rule, Rulebook};
use crate::telemetry::{
    Batch, Fields, Gap, GapReason, MalformedBatch, Position, Record, RecordRefusal, TimeSource,
    is_own, observed,
};
use crate::time::Timestamp;

const DAY_SECONDS: u64 = 24 * 3_600;
const DAY_MICROS: i64 = 24 * 3_600 * 1_000_000;

/// What a row takes beside its fields and its stream: its key, and both again in two indexes.
const ROW_BYTES: usize = 300;

/// The most records that one count names; beyond that nobody counts.
const COUNT_MAX: u64 = 1 << 53;

/// Spool epochs of one gateway of which is remembered how far they were refused as one too many; the latest stay, and
/// all of the last transaction. Twice as many as one HELLO may name, so that whoever names them again and again has
/// each counted once.
pub const REFUSED_EPOCHS_MAX: usize = 2 * TELEMETRY_POSITIONS_MAX;

/// Refusals of spool epochs that are not known by themselves are counted under this one.
pub const NO_EPOCH: AgentRunId = AgentRunId::from_uuid(uuid::Uuid::nil());

/// What one gateway may have stored. What is beyond is refused, counted and told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Spool epochs that it may begin on a day.
    pub epochs_per_day: u64,
    /// Streams that it may have at all.
    pub streams: u64,
    /// Records on a day.
    pub records_per_day: u64,
    /// Bytes of records on a day, indexes included.
    pub bytes_per_day: u64,
    /// Gaps that it may report on a day.
    pub gaps_per_day: u64,
    /// Days for which its records are kept; for ever, where it is none.
    pub retention_days: u64,
    /// Days for which what they came to is kept beside them, by the hour; none are rolled up where it is none.
    pub rollup_days: u64,
}

/// Beyond what a gateway may have, so much of it is for what its agent reads itself: others who fill the bounds do not
/// push that out.
const OWN_SHARE: u64 = 16;

impl Limits {
    /// A bound, as it holds for a stream.
    fn of(bound: u64, stream: &StreamName) -> u64 {
        let more = if is_own(stream) {
            bound.div_ceil(OWN_SHARE)
        } else {
            0
        };
        bound.saturating_add(more)
    }

    /// The time before which nothing is kept; none where everything is.
    #[must_use]
    pub fn kept_from(&self, now: Timestamp) -> Option<Timestamp> {
        let span = Duration::from_secs(self.retention_days.saturating_mul(DAY_SECONDS));
        (self.retention_days > 0).then(|| now.saturating_sub(span))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            epochs_per_day: 1_000,
            streams: 1_000,
            records_per_day: 5_000_000,
            bytes_per_day: 2 * 1024 * 1024 * 1024,
            gaps_per_day: 10_000,
            retention_days: 0,
            rollup_days: 730,
        }
    }
}

/// What a batch added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The committed position.
    pub position: Position,
    /// Records stored that were not stored before.
    pub stored: u64,
    /// Those of them whose time is not what the gateway's clock said.
    pub retimed: u64,
    /// Records refused, by reason.
    pub refused: BTreeMap<RecordRefusal, u64>,
    /// Records newly covered by gaps, the backend's own included.
    pub missing: u64,
    /// Whether the batch began beyond the position: the backend's database was rolled back.
    pub rolled_back: bool,
}

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
            ..Self::default()
        }
    }

    /// Whether one more spool epoch may be known.
    const fn epoch(&mut self, limits: &Limits) -> bool {
        take(&mut self.epochs, limits.epochs_per_day)
    }

    /// Whether one more gap may be kept.
    const fn gap(&mut self, limits: &Limits) -> bool {
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

/// How far a spool epoch has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reached {
    /// How far it is committed; `None` when it is not known.
    pub committed: Option<u64>,
    /// Up to which record it was refused as one too many, as far as that is remembered.
    pub refused: u64,
}

impl Reached {
    /// Up to which record everything is accounted for.
    fn accounted(self) -> u64 {
        self.committed.unwrap_or(self.refused)
    }
}

/// What is known of a gateway before its batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// How far the batch's spool epoch has come.
    pub reached: Reached,
    /// What it has had stored, today.
    pub usage: Usage,
    /// Those streams of the batch that it has.
    pub streams: BTreeSet<StreamName>,
    /// What it may.
    pub limits: Limits,
    /// When it arrives, on the time line.
    pub now: Timestamp,
}

/// What the time of a record is, and whether it is kept.
struct Times {
    skew_ms: Option<i64>,
    wall: Timestamp,
    kept_from: Option<Timestamp>,
}

impl Times {
    fn of(&self, record: &Record) -> Result<(Timestamp, TimeSource), RecordRefusal> {
        let (at, source) = observed(record.observed_at, self.skew_ms, self.wall);
        match self.kept_from {
            Some(from) if at < from => {
                // The word of a clock that nobody has measured is no reason to refuse anything, nor to have it deleted
                // as soon as it is stored.
                let is_known = self.skew_ms.is_some();
                let as_received = (self.wall, TimeSource::Received);
                if is_known {
                    Err(RecordRefusal::PastRetention)
                } else {
                    Ok(as_received)
                }
            }
            Some(_) | None => Ok((at, source)),
        }
    }
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
    /// The position to be stored; none where it stays, and for a spool epoch that is one too many.
    pub position: Option<u64>,
    /// Records in their order.
    pub rows: Vec<Row<'b>>,
    /// The newest record of each of their streams.
    pub newest: BTreeMap<&'b StreamName, Timestamp>,
    /// What will never arrive.
    pub gaps: Vec<Gap>,
    /// The spool epoch under which refusals are counted.
    pub refused_under: AgentRunId,
    /// Up to which record the spool epoch is refused as one too many from now on.
    pub refused_to: Option<u64>,
    /// What the gateway has had stored afterwards.
    pub usage: Usage,
    /// The answer.
    pub commit: Commit,
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
    rules: impl Rulebook,
    batch: &'b Batch,
    skew_ms: Option<i64>,
    facts: Facts,
    wall: Timestamp,
) -> Intake<'b> {
    let Facts {
        reached,
        mut usage,
        streams,
        limits,
        now,
    } = facts;
    let before = reached.accounted();
    let known = reached.committed.is_some() || usage.epoch(&limits);
    let mut taken = Intake::new(batch, reached, known, usage);
    if !known {
        taken.refuse_epoch(batch, before);
        return taken;
    }
    taken.take_gaps(rules, batch, before, &limits);
    let beyond = if rules.keeps(Rule::PositionDropsRepeats) {
        before
    } else {
        0
    };
    let times = Times {
        skew_ms,
        wall,
        kept_from: limits.kept_from(now),
    };
    taken.take_records(batch, beyond, streams, &limits, &times);
    taken
}

impl<'b> Intake<'b> {
    fn new(batch: &Batch, reached: Reached, known: bool, usage: Usage) -> Self {
        let before = reached.accounted();
        let seq = if known {
            before.max(batch.to_seq)
        } else {
            batch.to_seq
        };
        Self {
            position: (known && reached.committed != Some(seq)).then_some(seq),
            rows: Vec::new(),
            newest: BTreeMap::new(),
            gaps: Vec::new(),
            refused_under: if known { batch.spool_epoch } else { NO_EPOCH },
            refused_to: None,
            usage,
            commit: Commit {
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
            self.refused_to = Some(batch.to_seq);
        }
    }

    fn take_gaps(&mut self, rules: impl Rulebook, batch: &Batch, before: u64, limits: &Limits) {
        let hole = self.commit.rolled_back && rules.keeps(Rule::GapAfterRollback);
        let forgotten = hole.then(|| Gap {
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
        limits: &Limits,
        times: &Times,
    ) {
        for (seq, record) in batch.records.iter().filter(|(seq, _)| *seq > before) {
            let admitted = times
                .of(record)
                .and_then(|time| Ok((time, self.admit(record, &mut streams, limits)?)));
            let ((observed_at, time_source), fields) = match admitted {
                Ok(admitted) => admitted,
                Err(reason) => {
                    self.commit.refuse(reason, 1);
                    continue;
                }
            };
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
        limits: &Limits,
    ) -> Result<String, RecordRefusal> {
        record.check()?;
        let fields = document(&record.fields);
        let bytes = ROW_BYTES + fields.len() + record.stream.as_str().len() * 2;
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let usage = &mut self.usage;
        let most = |bound| Limits::of(bound, &record.stream);
        if usage.records >= most(limits.records_per_day) {
            return Err(RecordRefusal::RecordLimit);
        }
        if usage.bytes.saturating_add(bytes) > most(limits.bytes_per_day) {
            return Err(RecordRefusal::ByteLimit);
        }
        if !streams.contains(&record.stream) {
            if !take(&mut usage.streams, most(limits.streams)) {
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

impl Commit {
    fn refuse(&mut self, reason: RecordRefusal, records: u64) {
        add(&mut self.refused, reason, records);
    }
}

/// Adds refused records to their sums.
pub fn add(refused: &mut BTreeMap<RecordRefusal, u64>, reason: RecordRefusal, records: u64) {
    let sum = refused.entry(reason).or_default();
    *sum = sum.saturating_add(records).min(COUNT_MAX);
}

/// What a gateway remembers as acknowledged, beside what is committed. Nothing is acknowledged before it is
/// committed, so whatever lies between the two was forgotten with a restored database: it becomes a gap, or is
/// counted as refused where its gateway has had as many gaps or spool epochs as it may.
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
    /// Up to which record the spool epoch is refused as one too many from now on.
    pub refused_to: Option<u64>,
}

/// Compares one remembered position with what is committed.
#[must_use]
pub fn remembered(
    rules: impl Rulebook,
    asked: Position,
    reached: Reached,
    usage: &mut Usage,
    limits: &Limits,
) -> Remembered {
    let spool_epoch = asked.spool_epoch;
    let before = reached.accounted();
    // Numbers beyond the store's range would take centuries to reach.
    let told = if rules.keeps(Rule::GapAfterRollback) {
        asked.seq.min(i64::MAX.unsigned_abs())
    } else {
        before
    };
    let mut remembered = Remembered {
        position: Position {
            spool_epoch,
            seq: before.max(told),
        },
        moved_to: None,
        gap: None,
        refused: None,
        refused_to: None,
    };
    if told <= before {
        return remembered;
    }
    let forgotten = told - before;
    if reached.committed.is_none() && !usage.epoch(limits) {
        // One more than it may have is answered as it asks, and only counted.
        remembered.refused_to = Some(told);
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

#[cfg(test)]
mod tests;
