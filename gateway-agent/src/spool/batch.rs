//! Reads the next contiguous batch, as much as fits into one message.

use std::collections::{BTreeMap, BTreeSet};

use viworks_common::id::{AgentRunId, FieldName, StreamName};
use viworks_common::limits;
use viworks_common::telemetry::{Batch, FieldValue, Gap, GapReason, Record};
use viworks_runtime::sqlite::{Connection, params};

use super::{SpoolError, read};

/// Bytes of a batch's body beside its gaps, streams and columns.
pub(super) const FRAME_BYTES: usize = 300;
/// The most that one gap takes: two numbers, a reason and their keys.
const GAP_BYTES: usize = 110;
/// The most that one record takes beside its fields: a stream index and a time difference.
const ROW_BYTES: usize = 32;
/// What an absent field takes in its column.
const NULL_BYTES: usize = 5;

/// What a look into the spool found.
pub(super) enum Next {
    /// Something to send.
    Batch(Batch),
    /// Nothing that may be sent now.
    Nothing,
    /// A record that is none; it has to become a gap first.
    Unreadable { epoch: i64, seq: u64 },
}

/// An epoch that has something waiting.
pub(super) struct Waiting {
    id: i64,
    pub(super) agent_run_id: AgentRunId,
    pub(super) acknowledged: u64,
    last: u64,
}

/// The oldest epochs with something waiting, as many as one HELLO names; younger ones wait until these are delivered.
pub(super) fn waiting_epochs(connection: &Connection) -> Result<Vec<Waiting>, SpoolError> {
    const WAITING: &str = "\
        SELECT id, agent_run_id, acknowledged, next_seq FROM epoch
        WHERE acknowledged < next_seq - 1 ORDER BY id LIMIT :limit";
    let limit = limits::SPOOL_EPOCHS_NAMED_MAX;
    connection.all(WAITING, params! { limit }, |row| {
        Ok(Waiting {
            id: read(row, "id")?,
            agent_run_id: read(row, "agent_run_id")?,
            acknowledged: read(row, "acknowledged")?,
            last: read::<u64>(row, "next_seq")?.saturating_sub(1),
        })
    })
}

pub(super) fn next(
    connection: &Connection,
    after: &BTreeMap<AgentRunId, u64>,
    room: usize,
) -> Result<Next, SpoolError> {
    for epoch in waiting_epochs(connection)? {
        let sent = after.get(&epoch.agent_run_id).copied().unwrap_or_default();
        let from_seq = epoch.acknowledged.max(sent).saturating_add(1);
        if from_seq <= epoch.last {
            // Oldest first: if its next record does not fit into the room, a younger epoch does not overtake it.
            return read_batch(connection, &epoch, from_seq, room);
        }
    }
    Ok(Next::Nothing)
}

fn read_batch(
    connection: &Connection,
    epoch: &Waiting,
    from_seq: u64,
    room: usize,
) -> Result<Next, SpoolError> {
    const GAPS: &str = "\
        SELECT from_seq, to_seq, reason FROM gap
        WHERE epoch = :epoch AND to_seq >= :from_seq ORDER BY from_seq LIMIT :limit";
    const RECORDS: &str = "\
        SELECT seq, body FROM record WHERE epoch = :epoch AND seq >= :from_seq ORDER BY seq LIMIT :limit";
    let (id, limit) = (epoch.id, limits::BATCH_GAPS_MAX);
    let gaps = connection.all(GAPS, params! { epoch: id, from_seq, limit }, |row| {
        let reason = row.text("reason").and_then(GapReason::from_name);
        Ok::<_, SpoolError>(Gap {
            from_seq: read(row, "from_seq")?,
            to_seq: read(row, "to_seq")?,
            reason: reason.ok_or(SpoolError::Inconsistent("reason"))?,
        })
    })?;
    let limit = rows_that_could_fit(room);
    let records = connection.all(RECORDS, params! { epoch: id, from_seq, limit }, |row| {
        let record: Option<Record> = row
            .text("body")
            .and_then(|body| serde_json::from_str(body).ok());
        Ok::<_, SpoolError>((read::<u64>(row, "seq")?, record))
    })?;
    let mut builder = Builder::new(from_seq, room);
    let mut full = false;
    let mut gaps = gaps.into_iter().peekable();
    let mut records = records.into_iter().peekable();
    while !full {
        if let Some(gap) = gaps.next_if(|gap| gap.from_seq <= builder.next) {
            let from_seq = gap.from_seq.max(from_seq);
            full = !builder.gap(Gap { from_seq, ..gap });
        } else if let Some((seq, record)) = records.next_if(|(seq, _)| *seq == builder.next) {
            let Some(record) = record else {
                if builder.is_empty() {
                    return Ok(Next::Unreadable { epoch: id, seq });
                }
                break;
            };
            full = !builder.record(record);
        } else {
            break;
        }
    }
    if builder.is_empty() && !full {
        return Err(SpoolError::Inconsistent("a hole that is no gap"));
    }
    Ok(builder.finish(epoch.agent_run_id))
}

/// Every record costs at least its row; more than that need not be read.
fn rows_that_could_fit(room: usize) -> usize {
    (room / ROW_BYTES).clamp(1, limits::BATCH_RECORDS_MAX)
}

/// Builds a batch and an upper bound of the bytes of its columns.
struct Builder {
    from_seq: u64,
    next: u64,
    room: usize,
    bytes: usize,
    gaps: Vec<Gap>,
    records: Vec<(u64, Record)>,
    streams: BTreeSet<StreamName>,
    fields: BTreeSet<FieldName>,
}

impl Builder {
    const fn new(from_seq: u64, room: usize) -> Self {
        Self {
            from_seq,
            next: from_seq,
            room,
            bytes: FRAME_BYTES,
            gaps: Vec::new(),
            records: Vec::new(),
            streams: BTreeSet::new(),
            fields: BTreeSet::new(),
        }
    }

    const fn is_empty(&self) -> bool {
        self.gaps.is_empty() && self.records.is_empty()
    }

    /// Adds a gap; false if it does not fit any more.
    fn gap(&mut self, gap: Gap) -> bool {
        let bytes = self.bytes + GAP_BYTES;
        if bytes > self.room || self.gaps.len() == limits::BATCH_GAPS_MAX {
            return false;
        }
        self.bytes = bytes;
        self.next = gap.to_seq.saturating_add(1);
        self.gaps.push(gap);
        true
    }

    /// Adds a record; false if it does not fit any more.
    fn record(&mut self, record: Record) -> bool {
        let count = self.records.len();
        let new_fields = record
            .fields
            .keys()
            .filter(|name| !self.fields.contains(*name));
        let columns: usize = new_fields
            .map(|name| column_bytes(name) + count * NULL_BYTES)
            .sum();
        let absent = self
            .fields
            .iter()
            .filter(|name| !record.fields.contains_key(*name))
            .count();
        let values: usize = record.fields.values().map(value_bytes).sum();
        let stream = if self.streams.contains(&record.stream) {
            0
        } else {
            stream_bytes(&record.stream)
        };
        let bytes = self.bytes + ROW_BYTES + stream + columns + absent * NULL_BYTES + values;
        if bytes > self.room || count == limits::BATCH_RECORDS_MAX {
            return false;
        }
        self.bytes = bytes;
        self.streams.insert(record.stream.clone());
        self.fields.extend(record.fields.keys().cloned());
        self.records.push((self.next, record));
        self.next = self.next.saturating_add(1);
        true
    }

    fn finish(self, spool_epoch: AgentRunId) -> Next {
        if self.is_empty() {
            return Next::Nothing;
        }
        Next::Batch(Batch {
            spool_epoch,
            from_seq: self.from_seq,
            to_seq: self.next.saturating_sub(1),
            gaps: self.gaps,
            records: self.records,
        })
    }
}

/// What one record takes at most in a batch of its own, beside [`FRAME_BYTES`].
pub(super) fn record_bytes(record: &Record) -> usize {
    let fields: usize = record
        .fields
        .iter()
        .map(|(name, value)| column_bytes(name) + value_bytes(value))
        .sum();
    ROW_BYTES + stream_bytes(&record.stream) + fields
}

fn stream_bytes(stream: &StreamName) -> usize {
    stream.as_str().len() + 3
}

fn column_bytes(name: &FieldName) -> usize {
    name.as_str().len() + 6
}

/// The value as JSON with its comma.
fn value_bytes(value: &FieldValue) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX / 1024, |json| json.len() + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use viworks_common::telemetry::BatchColumns;
    use viworks_common::time::Timestamp;

    use super::*;

    fn value() -> impl Strategy<Value = FieldValue> {
        prop_oneof![
            any::<i64>().prop_map(FieldValue::Integer),
            prop::num::f64::NORMAL.prop_map(FieldValue::Number),
            "\\PC{0,30}".prop_map(FieldValue::Text),
            any::<bool>().prop_map(FieldValue::Flag),
        ]
    }

    fn record() -> impl Strategy<Value = Record> {
        (
            "[a-c]{1,3}",
            any::<i64>(),
            prop::collection::btree_map("[a-f]{1,2}", value(), 1..6),
        )
            .prop_map(|(stream, micros, fields)| Record {
                stream: stream.parse().unwrap(),
                observed_at: Timestamp::from_unix_micros(micros),
                fields: fields
                    .into_iter()
                    .map(|(name, value)| (name.parse().unwrap(), value))
                    .collect(),
            })
    }

    proptest! {
        #[test]
        fn the_bound_of_a_batch_is_never_below_its_real_size(records in prop::collection::vec(record(), 1..40), room in 400_usize..16_000) {
            let mut builder = Builder::new(u64::MAX / 4, room);
            for record in records {
                if !builder.record(record) {
                    break;
                }
            }
            let bound = builder.bytes;
            if let Next::Batch(batch) = builder.finish(AgentRunId::from_uuid(uuid::Uuid::max())) {
                batch.check_contiguous().unwrap();
                let json = serde_json::to_vec(&BatchColumns::from(batch)).unwrap();
                prop_assert!(json.len() <= bound, "{} > {bound}", json.len());
                prop_assert!(bound <= room);
            }
        }
    }
}
