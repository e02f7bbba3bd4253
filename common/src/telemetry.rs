//! Telemetry: records, gaps, contiguous batches and the composite key (tenant, `agent_id`, `spool_epoch`, seq).

use std::collections::BTreeMap;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

use crate::id::{AgentRunId, FieldName, StreamName};
use crate::limits;
use crate::time::Timestamp;

pub mod intake;
mod observed;
pub mod rollup;
pub mod room;
mod rows;
pub mod steps;

pub use observed::{TimeSource, observed};
pub use rows::BatchRows;

/// How the streams begin into which a gateway's agent writes what it reads of its host itself.
const OWN_STREAMS: &str = "host.";

/// Whether a stream is one of the agent's own. Of local programs only those may write into it that could be the agent.
#[must_use]
pub fn is_own(stream: &StreamName) -> bool {
    stream.as_str().starts_with(OWN_STREAMS)
}

/// One value of a record. Numbers are finite by construction.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum FieldValue {
    /// A whole number.
    Integer(i64),
    /// A finite number.
    Number(f64),
    /// Text of at most [`limits::FIELD_TEXT_BYTES_MAX`] bytes.
    Text(String),
    /// Yes or no.
    Flag(bool),
}

impl<'de> Deserialize<'de> for FieldValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;

        impl Visitor<'_> for Scalar {
            type Value = FieldValue;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a finite number, text or a boolean")
            }

            fn visit_bool<E>(self, value: bool) -> Result<FieldValue, E> {
                Ok(FieldValue::Flag(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<FieldValue, E> {
                Ok(FieldValue::Integer(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<FieldValue, E> {
                // A counter beyond i64 keeps its magnitude at the precision of a double.
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "counters beyond 2^63 keep their magnitude, not every digit"
                )]
                Ok(i64::try_from(value)
                    .map_or(FieldValue::Number(value as f64), FieldValue::Integer))
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<FieldValue, E> {
                Ok(FieldValue::Number(value))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<FieldValue, E> {
                Ok(FieldValue::Text(value.to_owned()))
            }
        }

        deserializer.deserialize_any(Scalar)
    }
}

/// The fields of one record.
pub type Fields = BTreeMap<FieldName, FieldValue>;

/// One observation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Which stream it belongs to.
    pub stream: StreamName,
    /// When it was observed, by the gateway's wall clock: data, never identity.
    pub observed_at: Timestamp,
    /// What was observed.
    pub fields: Fields,
}

/// Why one record is refused; the batch it came in goes on without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RecordRefusal {
    /// No fields, or more than [`limits::RECORD_FIELDS_MAX`].
    FieldCount,
    /// NaN or an infinity.
    NonFinite,
    /// Text over its limit or with a NUL character, which no store takes.
    BadText,
    /// Too far in the past or in the future: earlier versions refused such records, and their counts are kept.
    TimeOutOfRange,
    /// Its spool epoch is one more than the gateway may begin on a day.
    EpochLimit,
    /// Its stream is one more than the gateway may have.
    StreamLimit,
    /// The gateway delivered as many records as it may on a day.
    RecordLimit,
    /// The gateway delivered as many bytes as it may on a day.
    ByteLimit,
    /// It was dropped by the gateway, in one more gap than it may report on a day.
    GapLimit,
    /// It arrived when it was older than records are kept.
    PastRetention,
}

impl RecordRefusal {
    /// Every reason.
    pub const ALL: &[Self] = &[
        Self::FieldCount,
        Self::NonFinite,
        Self::BadText,
        Self::TimeOutOfRange,
        Self::EpochLimit,
        Self::StreamLimit,
        Self::RecordLimit,
        Self::ByteLimit,
        Self::GapLimit,
        Self::PastRetention,
    ];

    /// The name in metrics and answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FieldCount => "field_count",
            Self::NonFinite => "non_finite",
            Self::BadText => "bad_text",
            Self::TimeOutOfRange => "time_out_of_range",
            Self::EpochLimit => "epoch_limit",
            Self::StreamLimit => "stream_limit",
            Self::RecordLimit => "record_limit",
            Self::ByteLimit => "byte_limit",
            Self::GapLimit => "gap_limit",
            Self::PastRetention => "past_retention",
        }
    }

    /// The reason with a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|reason| reason.name() == name)
    }
}

impl Record {
    /// Whether the record may be stored. Its time is no reason to refuse it.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn check(&self) -> Result<(), RecordRefusal> {
        if self.fields.is_empty() || self.fields.len() > limits::RECORD_FIELDS_MAX {
            return Err(RecordRefusal::FieldCount);
        }
        for value in self.fields.values() {
            match value {
                FieldValue::Number(number) if !number.is_finite() => {
                    return Err(RecordRefusal::NonFinite);
                }
                FieldValue::Text(text)
                    if text.len() > limits::FIELD_TEXT_BYTES_MAX || text.contains('\0') =>
                {
                    return Err(RecordRefusal::BadText);
                }
                FieldValue::Integer(_)
                | FieldValue::Number(_)
                | FieldValue::Text(_)
                | FieldValue::Flag(_) => {}
            }
        }
        Ok(())
    }
}

/// Why records between two positions will never arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum GapReason {
    /// The gateway's spool had no room: at its bound it gave up its oldest records, or its disk took no new ones.
    SpoolFull,
    /// A spool file was damaged and its records could not be read.
    SpoolDamaged,
    /// The backend's database had been rolled back past what the gateway already trimmed.
    BackendRolledBack,
}

impl GapReason {
    /// The name in the store and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SpoolFull => "spool_full",
            Self::SpoolDamaged => "spool_damaged",
            Self::BackendRolledBack => "backend_rolled_back",
        }
    }

    /// Whether only the backend can know it: a gateway that gave it would make its own losses the database's.
    const fn is_the_backends(self) -> bool {
        matches!(self, Self::BackendRolledBack)
    }

    /// The reason with a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::SpoolFull, Self::SpoolDamaged, Self::BackendRolledBack]
            .into_iter()
            .find(|reason| reason.name() == name)
    }
}

/// A counted range of records that was dropped, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gap {
    /// The first dropped sequence number.
    pub from_seq: u64,
    /// The last dropped sequence number.
    pub to_seq: u64,
    /// Why.
    pub reason: GapReason,
}

/// How far the backend has committed one spool epoch: every sequence number up to it is stored, refused or in a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The process that appended the records.
    pub spool_epoch: AgentRunId,
    /// The last committed sequence number; numbers start at 1.
    pub seq: u64,
}

/// Consecutive records of one spool epoch, with the gaps between them.
///
/// `records[i]` carries its own sequence number, strictly increasing; every number between `from_seq` and the last one
/// is either a record or inside a gap.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The process that appended the records.
    pub spool_epoch: AgentRunId,
    /// The first sequence number this batch covers.
    pub from_seq: u64,
    /// The last sequence number this batch covers.
    pub to_seq: u64,
    /// Dropped ranges, ascending.
    pub gaps: Vec<Gap>,
    /// Records with their sequence numbers, ascending.
    pub records: Vec<(u64, Record)>,
}

/// Why a batch is malformed as a whole: a fault of the sender, which closes the session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("telemetry batch is malformed: {0}")]
pub struct MalformedBatch(pub &'static str);

/// Why a batch is malformed whose sender speaks for the backend.
const BACKENDS_REASON: &str = "a gap has a reason that only the backend can give";

impl Batch {
    /// Checks that records and gaps cover `from_seq..=to_seq` exactly once.
    ///
    /// # Errors
    /// When they do not, or when the batch exceeds its bounds.
    pub fn check_contiguous(&self) -> Result<(), MalformedBatch> {
        if self.records.len() > limits::BATCH_RECORDS_MAX
            || self.gaps.len() > limits::BATCH_GAPS_MAX
        {
            return Err(MalformedBatch("more records or gaps than a batch may hold"));
        }
        if self.from_seq == 0 || self.to_seq < self.from_seq {
            return Err(MalformedBatch("the covered range is empty"));
        }
        let mut next = self.from_seq;
        let mut gaps = self.gaps.iter().peekable();
        let mut records = self.records.iter().peekable();
        loop {
            if let Some(gap) = gaps.next_if(|gap| gap.from_seq == next) {
                if gap.to_seq < gap.from_seq || gap.to_seq == u64::MAX {
                    return Err(MalformedBatch("a gap ends before it begins"));
                }
                if gap.reason.is_the_backends() {
                    return Err(MalformedBatch(BACKENDS_REASON));
                }
                next = gap.to_seq + 1;
            } else if let Some((seq, _record)) = records.next_if(|(seq, _record)| *seq == next) {
                next = seq
                    .checked_add(1)
                    .ok_or(MalformedBatch("the sequence numbers overflow"))?;
            } else {
                break;
            }
        }
        if gaps.peek().is_some() || records.peek().is_some() || next != self.to_seq.wrapping_add(1)
        {
            return Err(MalformedBatch(
                "records and gaps do not cover the range exactly once",
            ));
        }
        Ok(())
    }
}

/// The batch as it travels: columns, so that names and times compress well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchColumns {
    /// The process that appended the records.
    pub spool_epoch: AgentRunId,
    /// The first sequence number covered.
    pub from_seq: u64,
    /// The last sequence number covered.
    pub to_seq: u64,
    /// Dropped ranges, ascending.
    pub gaps: Vec<Gap>,
    /// The names of the streams that occur.
    pub streams: Vec<StreamName>,
    /// For each record its stream, as an index into `streams`.
    pub stream: Vec<u32>,
    /// For each record its time: the first as microseconds since the Unix epoch, the others as the difference to the
    /// one before.
    pub observed_at: Vec<i64>,
    /// For each field name its values, one for each record, null where the record has no such field.
    #[serde(deserialize_with = "crate::unique::map")]
    pub fields: BTreeMap<FieldName, Vec<Option<FieldValue>>>,
}

impl From<Batch> for BatchColumns {
    fn from(batch: Batch) -> Self {
        let count = batch.records.len();
        let mut columns = Self {
            spool_epoch: batch.spool_epoch,
            from_seq: batch.from_seq,
            to_seq: batch.to_seq,
            gaps: batch.gaps,
            streams: Vec::new(),
            stream: Vec::with_capacity(count),
            observed_at: Vec::with_capacity(count),
            fields: BTreeMap::new(),
        };
        let mut index = BTreeMap::new();
        let mut previous = 0_i64;
        for (row, (_seq, record)) in batch.records.into_iter().enumerate() {
            let streams = &mut columns.streams;
            let position = *index.entry(record.stream.clone()).or_insert_with(|| {
                streams.push(record.stream.clone());
                u32::try_from(streams.len() - 1).unwrap_or(u32::MAX)
            });
            columns.stream.push(position);
            columns
                .observed_at
                .push(record.observed_at.unix_micros().wrapping_sub(previous));
            previous = record.observed_at.unix_micros();
            for (name, value) in record.fields {
                let column = columns
                    .fields
                    .entry(name)
                    .or_insert_with(|| vec![None; count]);
                column[row] = Some(value);
            }
        }
        columns
    }
}

impl TryFrom<BatchColumns> for Batch {
    type Error = MalformedBatch;

    fn try_from(columns: BatchColumns) -> Result<Self, MalformedBatch> {
        let mut rows = BatchRows::try_from(columns)?;
        rows.next_part(usize::MAX, usize::MAX)
            .map(|(batch, _bytes)| batch)
            .ok_or(MalformedBatch("the covered range is empty"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn record(stream: &str, micros: i64, fields: &[(&str, FieldValue)]) -> Record {
        Record {
            stream: stream.parse().unwrap(),
            observed_at: Timestamp::from_unix_micros(micros),
            fields: fields
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.clone()))
                .collect(),
        }
    }

    fn batch(from_seq: u64, layout: &[bool]) -> Batch {
        let mut gaps = Vec::new();
        let mut records = Vec::new();
        for (seq, kept) in (from_seq..).zip(layout) {
            if *kept {
                let at = i64::try_from(seq).unwrap() * 7;
                let stream = if seq % 3 == 0 {
                    "host.cpu"
                } else {
                    "host.load"
                };
                records.push((
                    seq,
                    record(
                        stream,
                        at,
                        &[
                            ("value", FieldValue::Number(0.5)),
                            ("seq", FieldValue::Integer(at)),
                        ],
                    ),
                ));
            } else {
                gaps.push(Gap {
                    from_seq: seq,
                    to_seq: seq,
                    reason: GapReason::SpoolFull,
                });
            }
        }
        let to_seq = from_seq + u64::try_from(layout.len()).unwrap() - 1;
        Batch {
            spool_epoch: AgentRunId::from_uuid(Uuid::from_u128(5)),
            from_seq,
            to_seq,
            gaps,
            records,
        }
    }

    proptest! {
        #[test]
        fn a_batch_survives_its_columns(from_seq in 1_u64..1_000, layout in prop::collection::vec(any::<bool>(), 1..60)) {
            let original = batch(from_seq, &layout);
            prop_assume!(original.gaps.len() <= limits::BATCH_GAPS_MAX);
            original.check_contiguous().unwrap();
            let json = serde_json::to_vec(&BatchColumns::from(original.clone())).unwrap();
            let columns: BatchColumns = serde_json::from_slice(&json).unwrap();
            prop_assert_eq!(Batch::try_from(columns).unwrap(), original);
        }
    }

    proptest! {
        #[test]
        fn a_batch_that_is_read_in_parts_is_the_same_batch(
            from_seq in 1_u64..1_000,
            layout in prop::collection::vec(any::<bool>(), 1..60),
            records in 1_usize..9,
            bytes in 1_usize..2_000,
        ) {
            let whole = batch(from_seq, &layout);
            prop_assume!(whole.gaps.len() <= limits::BATCH_GAPS_MAX);
            let mut rows = BatchRows::try_from(BatchColumns::from(whole.clone())).unwrap();
            let (mut gaps, mut read, mut next) = (Vec::new(), Vec::new(), from_seq);
            while let Some((part, _bytes)) = rows.next_part(records, bytes) {
                prop_assert!(part.records.len() <= records);
                part.check_contiguous().unwrap();
                prop_assert_eq!(part.from_seq, next);
                next = part.to_seq + 1;
                gaps.extend(part.gaps);
                read.extend(part.records);
            }
            prop_assert!(rows.is_done());
            prop_assert_eq!(next, whole.to_seq + 1);
            prop_assert_eq!((gaps, read), (whole.gaps, whole.records));
        }
    }

    #[test]
    fn columns_that_do_not_cover_their_range_are_malformed() {
        let sound = BatchColumns::from(batch(1, &[true, false, true]));
        let broken: [fn(&mut BatchColumns); 8] = [
            |it| it.to_seq = 4,
            |it| it.to_seq = u64::MAX,
            |it| it.from_seq = 0,
            |it| it.gaps[0].to_seq = 1,
            |it| it.gaps[0].to_seq = u64::MAX,
            |it| it.gaps[0].from_seq = u64::MAX,
            |it| it.stream[0] = 7,
            |it| it.observed_at.truncate(1),
        ];
        Batch::try_from(sound.clone()).unwrap();
        for change in broken {
            let mut columns = sound.clone();
            change(&mut columns);
            assert!(Batch::try_from(columns.clone()).is_err(), "{columns:?}");
        }
    }

    #[test]
    fn a_batch_with_a_hole_is_malformed() {
        let mut holed = batch(1, &[true, true, true]);
        holed.records.remove(1);
        assert!(holed.check_contiguous().is_err());
        let mut short = batch(1, &[true, true]);
        short.to_seq = 5;
        assert!(short.check_contiguous().is_err());
    }

    #[test]
    fn a_record_outside_the_bounds_is_refused_with_its_reason() {
        let at = 1_800_000_000_000_000;
        assert_eq!(
            record("a", at, &[("v", FieldValue::Integer(1))]).check(),
            Ok(())
        );
        assert_eq!(record("a", at, &[]).check(), Err(RecordRefusal::FieldCount));
        assert_eq!(
            record("a", at, &[("v", FieldValue::Number(f64::NAN))]).check(),
            Err(RecordRefusal::NonFinite)
        );
        assert_eq!(
            record("a", at, &[("v", FieldValue::Text("a\0".to_owned()))]).check(),
            Err(RecordRefusal::BadText)
        );
        assert_eq!(
            record("a", 0, &[("v", FieldValue::Integer(1))]).check(),
            Ok(()),
            "a clock that was never set is no reason to lose a record"
        );
    }

    #[test]
    fn no_gateway_says_what_only_the_backend_can_know() {
        for (reason, taken) in [
            (GapReason::SpoolFull, true),
            (GapReason::SpoolDamaged, true),
            (GapReason::BackendRolledBack, false),
        ] {
            let mut told = batch(1, &[true, false, true]);
            told.gaps[0].reason = reason;
            assert_eq!(told.check_contiguous().is_ok(), taken, "{reason:?}");
            let rows = BatchRows::try_from(BatchColumns::from(told));
            assert_eq!(rows.is_ok(), taken, "{reason:?}");
        }
    }
}
