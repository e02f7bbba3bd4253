//! Reads the columns of a batch in parts, so that no more of its records exist at a time than are about to be stored.

use std::vec::IntoIter;

use super::{BACKENDS_REASON, Batch, BatchColumns, FieldValue, Gap, MalformedBatch, Record};
use crate::id::{AgentRunId, FieldName, StreamName};
use crate::limits;
use crate::time::Timestamp;

/// What a record costs beside its fields, in the estimate of [`BatchRows::next_part`].
const RECORD_BYTES: usize = 128;

/// A batch whose ranges were checked as a whole, and that is read part by part.
#[derive(Debug)]
pub struct BatchRows {
    spool_epoch: AgentRunId,
    next: u64,
    gaps: std::iter::Peekable<IntoIter<Gap>>,
    streams: Vec<StreamName>,
    stream: IntoIter<u32>,
    observed_at: IntoIter<i64>,
    observed: i64,
    fields: Vec<(FieldName, IntoIter<Option<FieldValue>>)>,
}

impl TryFrom<BatchColumns> for BatchRows {
    type Error = MalformedBatch;

    fn try_from(columns: BatchColumns) -> Result<Self, MalformedBatch> {
        check_columns(&columns)?;
        check_range(&columns)?;
        Ok(Self {
            spool_epoch: columns.spool_epoch,
            next: columns.from_seq,
            gaps: columns.gaps.into_iter().peekable(),
            streams: columns.streams,
            stream: columns.stream.into_iter(),
            observed_at: columns.observed_at.into_iter(),
            observed: 0,
            fields: columns
                .fields
                .into_iter()
                .map(|(name, column)| (name, column.into_iter()))
                .collect(),
        })
    }
}

fn check_columns(columns: &BatchColumns) -> Result<(), MalformedBatch> {
    let count = columns.stream.len();
    if count > limits::BATCH_RECORDS_MAX || columns.gaps.len() > limits::BATCH_GAPS_MAX {
        return Err(MalformedBatch("more records or gaps than a batch may hold"));
    }
    if columns.observed_at.len() != count
        || columns.fields.values().any(|column| column.len() != count)
    {
        return Err(MalformedBatch("the columns differ in length"));
    }
    let known = |position: &u32| {
        usize::try_from(*position).is_ok_and(|position| position < columns.streams.len())
    };
    if !columns.stream.iter().all(known) {
        return Err(MalformedBatch("a stream index points nowhere"));
    }
    Ok(())
}

/// Whether records and gaps cover `from_seq..=to_seq` exactly once.
fn check_range(columns: &BatchColumns) -> Result<(), MalformedBatch> {
    let overflow = || MalformedBatch("the sequence numbers overflow");
    let uncovered = || MalformedBatch("records and gaps do not cover the range exactly once");
    if columns.from_seq == 0 || columns.to_seq < columns.from_seq {
        return Err(MalformedBatch("the covered range is empty"));
    }
    let mut records = u64::try_from(columns.stream.len()).map_err(|_huge| overflow())?;
    let mut next = columns.from_seq;
    for gap in &columns.gaps {
        if gap.to_seq < gap.from_seq {
            return Err(MalformedBatch("a gap ends before it begins"));
        }
        if gap.reason.is_the_backends() {
            return Err(MalformedBatch(BACKENDS_REASON));
        }
        let before = gap.from_seq.checked_sub(next).ok_or_else(uncovered)?;
        records = records.checked_sub(before).ok_or_else(uncovered)?;
        next = gap.to_seq.checked_add(1).ok_or_else(overflow)?;
    }
    let end = next.checked_add(records).ok_or_else(overflow)?;
    if columns.to_seq.checked_add(1) == Some(end) {
        Ok(())
    } else {
        Err(uncovered())
    }
}

impl BatchRows {
    /// Which spool epoch it belongs to.
    #[must_use]
    pub const fn spool_epoch(&self) -> AgentRunId {
        self.spool_epoch
    }

    /// Whether everything was read.
    pub fn is_done(&mut self) -> bool {
        self.stream.len() == 0 && self.gaps.peek().is_none()
    }

    /// The next records and the gaps between them, with about the bytes they take: at most `records` of them, not many
    /// more than `bytes` bytes, and at least one; nothing when everything was read.
    pub fn next_part(&mut self, records: usize, bytes: usize) -> Option<(Batch, usize)> {
        if self.is_done() {
            return None;
        }
        let mut part = Batch {
            spool_epoch: self.spool_epoch,
            from_seq: self.next,
            to_seq: self.next,
            gaps: Vec::new(),
            records: Vec::with_capacity(records.min(self.stream.len())),
        };
        let mut taken = 0;
        loop {
            if let Some(gap) = self.gaps.next_if(|gap| gap.from_seq == self.next) {
                self.next = gap.to_seq.saturating_add(1);
                part.gaps.push(gap);
            } else if part.records.len() >= records.max(1)
                || (taken >= bytes && !part.records.is_empty())
            {
                break;
            } else if let Some(record) = self.next_record() {
                taken += cost(&record);
                part.records.push((self.next, record));
                self.next = self.next.saturating_add(1);
            } else {
                break;
            }
        }
        part.to_seq = self.next.saturating_sub(1);
        Some((part, taken))
    }

    fn next_record(&mut self) -> Option<Record> {
        let stream = usize::try_from(self.stream.next()?).ok()?;
        let stream = self.streams.get(stream)?.clone();
        self.observed = self.observed.wrapping_add(self.observed_at.next()?);
        let fields = self
            .fields
            .iter_mut()
            .filter_map(|(name, column)| Some((name.clone(), column.next()??)))
            .collect();
        Some(Record {
            stream,
            observed_at: Timestamp::from_unix_micros(self.observed),
            fields,
        })
    }
}

/// About what a record takes as a row.
fn cost(record: &Record) -> usize {
    let value = |value: &FieldValue| match value {
        FieldValue::Text(text) => text.len(),
        FieldValue::Integer(_) | FieldValue::Number(_) | FieldValue::Flag(_) => 8,
    };
    let fields = record.fields.iter();
    let fields: usize = fields
        .map(|(name, it)| name.as_str().len() + value(it) + 4)
        .sum();
    RECORD_BYTES + fields
}
