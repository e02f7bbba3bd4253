//! The line of those who wait to have telemetry stored: gateways take turns, each with a small part at a time.

use std::collections::{BTreeMap, VecDeque};

use viworks_common::id::AgentId;
use viworks_common::telemetry::BatchRows;
use viworks_common::wire::PackedBatch;

use crate::data::TelemetryWrite;

/// Records that a gateway may have stored in one turn, and bytes of them.
const TURN: Room = Room {
    records: 256,
    bytes: 64 * 1024,
};
/// Batches that are unpacked and not stored as a whole yet; before there are more of them, these go on.
const OPEN_MAX: usize = 8;

/// What may be stored together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

impl Room {
    fn min(self, other: Self) -> Self {
        Self {
            records: self.records.min(other.records),
            bytes: self.bytes.min(other.bytes),
        }
    }

    fn take(&mut self, write: &TelemetryWrite, bytes: usize) {
        // A part without records has gaps, which cost something as well.
        let rows = write.batch.records.len() + write.batch.gaps.len();
        self.records = self.records.saturating_sub(rows.max(1));
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    const fn is_used_up(self) -> bool {
        self.records == 0 || self.bytes == 0
    }
}

/// A batch that waits, with what its owner wants to know again.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    pub(super) agent_id: AgentId,
    pub(super) epoch: u64,
    pub(super) skew_ms: Option<i64>,
    pub(super) batch: PackedBatch,
    pub(super) note: T,
}

#[derive(Debug)]
enum Rows {
    Packed(PackedBatch),
    Open(BatchRows),
}

#[derive(Debug)]
struct Job<T> {
    number: u64,
    epoch: u64,
    skew_ms: Option<i64>,
    rows: Rows,
    note: T,
}

/// A batch that is none.
#[derive(Debug)]
pub(super) struct Malformed<T> {
    pub(super) agent_id: AgentId,
    pub(super) epoch: u64,
    pub(super) note: T,
    /// Why it is none.
    pub(super) reason: String,
}

/// What is stored in one transaction.
#[derive(Debug)]
pub(super) struct Composed<T> {
    /// The writes.
    pub(super) writes: Vec<TelemetryWrite>,
    /// For each write the number of its batch.
    pub(super) numbers: Vec<u64>,
    /// The batches that end with this transaction.
    pub(super) ending: BTreeMap<u64, T>,
    /// Batches that turned out to be none.
    pub(super) malformed: Vec<Malformed<T>>,
    /// What else there is room for.
    left: Room,
}

impl<T> Composed<T> {
    const fn new(room: Room) -> Self {
        Self {
            writes: Vec::new(),
            numbers: Vec::new(),
            ending: BTreeMap::new(),
            malformed: Vec::new(),
            left: room,
        }
    }

    /// Whether there is nothing to be done.
    pub(super) fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.malformed.is_empty()
    }

    /// Takes out what there is of a batch of which nothing more is to be stored; what was remembered of it, if it ends
    /// here.
    pub(super) fn give_up(&mut self, number: u64) -> Option<T> {
        let mut numbers = self.numbers.iter();
        self.writes.retain(|_write| numbers.next() != Some(&number));
        self.numbers.retain(|other| *other != number);
        self.ending.remove(&number)
    }
}

/// The line.
#[derive(Debug)]
pub(super) struct Line<T> {
    queues: BTreeMap<AgentId, VecDeque<Job<T>>>,
    turns: VecDeque<AgentId>,
    number: u64,
    batches: usize,
    open: usize,
}

impl<T> Line<T> {
    pub(super) const fn new() -> Self {
        Self {
            queues: BTreeMap::new(),
            turns: VecDeque::new(),
            number: 0,
            batches: 0,
            open: 0,
        }
    }

    /// Batches that wait, those that are stored in part included.
    pub(super) const fn len(&self) -> usize {
        self.batches
    }

    /// Takes in a batch, behind those of its gateway.
    pub(super) fn push(&mut self, waiting: Waiting<T>) {
        let queue = self.queues.entry(waiting.agent_id).or_default();
        if queue.is_empty() {
            self.turns.push_back(waiting.agent_id);
        }
        self.number += 1;
        self.batches += 1;
        queue.push_back(Job {
            number: self.number,
            epoch: waiting.epoch,
            skew_ms: waiting.skew_ms,
            rows: Rows::Packed(waiting.batch),
            note: waiting.note,
        });
    }

    /// Changes what is remembered of a batch that is stored in part.
    pub(super) fn note(&mut self, agent_id: AgentId, number: u64) -> Option<&mut T> {
        let job = self.queues.get_mut(&agent_id)?.front_mut()?;
        (job.number == number).then_some(&mut job.note)
    }

    /// Takes out a batch that is stored in part.
    pub(super) fn give_up(&mut self, agent_id: AgentId, number: u64) -> Option<T> {
        let queue = self.queues.get_mut(&agent_id)?;
        let job = queue.pop_front_if(|job| job.number == number)?;
        self.batches -= 1;
        self.open -= usize::from(matches!(job.rows, Rows::Open(_)));
        if queue.is_empty() {
            self.queues.remove(&agent_id);
            self.turns.retain(|turn| *turn != agent_id);
        }
        Some(job.note)
    }

    /// Takes what fits into `room`, turn by turn.
    pub(super) fn compose(&mut self, room: Room) -> Composed<T> {
        let mut composed = Composed::new(room);
        self.top_up(&mut composed);
        composed
    }

    /// Takes what still fits, turn by turn.
    pub(super) fn top_up(&mut self, composed: &mut Composed<T>) {
        while !composed.left.is_used_up()
            && let Some(agent_id) = self.next_turn()
        {
            self.turn(agent_id, composed);
        }
    }

    /// Whose turn it is; at the bound of unpacked batches that of a gateway which has one.
    fn next_turn(&mut self) -> Option<AgentId> {
        if self.open < OPEN_MAX {
            return self.turns.pop_front();
        }
        let opened = |agent_id: &AgentId| {
            let front = self.queues.get(agent_id).and_then(VecDeque::front);
            front.is_some_and(|job| matches!(job.rows, Rows::Open(_)))
        };
        let position = self.turns.iter().position(opened).unwrap_or(0);
        self.turns.remove(position)
    }

    fn turn(&mut self, agent_id: AgentId, composed: &mut Composed<T>) {
        let mut own = TURN.min(composed.left);
        let Some(queue) = self.queues.get_mut(&agent_id) else {
            return;
        };
        while !own.is_used_up()
            && let Some(mut job) = queue.pop_front()
        {
            let mut rows = match open(job.rows) {
                Ok((rows, news)) => {
                    self.open += usize::from(news);
                    rows
                }
                Err(reason) => {
                    self.batches -= 1;
                    composed.malformed.push(Malformed {
                        agent_id,
                        epoch: job.epoch,
                        note: job.note,
                        reason,
                    });
                    continue;
                }
            };
            if let Some((batch, bytes)) = rows.next_part(own.records, own.bytes) {
                let write = TelemetryWrite {
                    agent_id,
                    epoch: job.epoch,
                    skew_ms: job.skew_ms,
                    batch,
                };
                own.take(&write, bytes);
                composed.left.take(&write, bytes);
                composed.numbers.push(job.number);
                composed.writes.push(write);
            }
            if rows.is_done() {
                self.open -= 1;
                self.batches -= 1;
                composed.ending.insert(job.number, job.note);
            } else {
                job.rows = Rows::Open(rows);
                queue.push_front(job);
                break;
            }
        }
        if queue.is_empty() {
            self.queues.remove(&agent_id);
        } else {
            self.turns.push_back(agent_id);
        }
    }
}

/// Unpacks a batch, and says whether it had been packed.
fn open(rows: Rows) -> Result<(BatchRows, bool), String> {
    match rows {
        Rows::Open(rows) => Ok((rows, false)),
        Rows::Packed(batch) => {
            let columns = batch.open()?;
            let rows = BatchRows::try_from(columns).map_err(|malformed| malformed.to_string())?;
            Ok((rows, true))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use uuid::Uuid;
    use viworks_common::id::AgentRunId;
    use viworks_common::telemetry::{BatchColumns, FieldValue};

    use super::*;

    const ROOM: Room = Room {
        records: 1_000,
        bytes: 256 * 1024,
    };

    fn agent(n: u128) -> AgentId {
        AgentId::from_uuid(Uuid::from_u128(n))
    }

    fn columns(from_seq: u64, count: usize) -> BatchColumns {
        BatchColumns {
            spool_epoch: AgentRunId::from_uuid(Uuid::from_u128(1)),
            from_seq,
            to_seq: from_seq + u64::try_from(count).unwrap() - 1,
            gaps: Vec::new(),
            streams: vec!["a".parse().unwrap()],
            stream: vec![0; count],
            observed_at: vec![1; count],
            fields: BTreeMap::from([(
                "v".parse().unwrap(),
                vec![Some(FieldValue::Integer(1)); count],
            )]),
        }
    }

    fn push(line: &mut Line<u64>, n: u128, from_seq: u64, count: usize) {
        line.push(Waiting {
            agent_id: agent(n),
            epoch: 1,
            skew_ms: None,
            batch: PackedBatch::pack(&columns(from_seq, count)),
            note: from_seq,
        });
    }

    fn records(composed: &Composed<u64>, n: u128) -> Vec<u64> {
        let own = composed.writes.iter().filter(|it| it.agent_id == agent(n));
        own.flat_map(|it| it.batch.records.iter().map(|(seq, _)| *seq))
            .collect()
    }

    #[test]
    fn a_large_batch_does_not_keep_others_from_their_turn() {
        let mut line = Line::new();
        push(&mut line, 1, 1, 2_000);
        push(&mut line, 2, 1, 100);
        push(&mut line, 2, 101, 100);
        let composed = line.compose(ROOM);
        assert_eq!(records(&composed, 2), (1..=200).collect::<Vec<_>>());
        assert_eq!(records(&composed, 1), (1..=800).collect::<Vec<_>>());
        assert_eq!(
            composed.ending.values().copied().collect::<Vec<_>>(),
            [1, 101]
        );
        let mut own = records(&composed, 1);
        while line.len() > 0 {
            own.extend(records(&line.compose(ROOM), 1));
        }
        assert_eq!(own, (1..=2_000).collect::<Vec<_>>());
    }

    #[test]
    fn few_batches_are_unpacked_at_a_time() {
        let mut line = Line::new();
        for n in 0..100 {
            push(&mut line, n, 1, 2_000);
        }
        let mut stored = 0;
        while line.len() > 0 {
            let composed = line.compose(Room {
                records: 300,
                bytes: usize::MAX,
            });
            assert!(line.open <= OPEN_MAX, "{}", line.open);
            assert!(
                composed
                    .writes
                    .iter()
                    .map(|it| it.batch.records.len())
                    .sum::<usize>()
                    <= 300
            );
            stored += composed.ending.len();
        }
        assert_eq!((stored, line.open), (100, 0));
    }

    #[test]
    fn what_is_no_batch_is_told_and_stops_nobody() {
        let mut line = Line::new();
        let mut holed = columns(1, 10);
        holed.to_seq = 11;
        line.push(Waiting {
            agent_id: agent(1),
            epoch: 1,
            skew_ms: None,
            batch: PackedBatch::pack(&holed),
            note: 7,
        });
        push(&mut line, 1, 1, 5);
        let composed = line.compose(ROOM);
        assert_eq!(composed.malformed.len(), 1);
        assert_eq!(records(&composed, 1), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_batch_that_is_stored_in_part_can_be_given_up() {
        let mut line = Line::new();
        push(&mut line, 1, 1, 2_000);
        let composed = line.compose(Room {
            records: 10,
            bytes: usize::MAX,
        });
        let number = composed.numbers[0];
        assert!(line.note(agent(1), number).is_some());
        assert_eq!(line.give_up(agent(1), number), Some(1));
        assert_eq!((line.len(), line.open), (0, 0));
        assert!(line.compose(ROOM).writes.is_empty());
    }

    #[test]
    fn what_was_taken_of_a_batch_goes_with_it_when_it_is_given_up() {
        let mut line = Line::new();
        push(&mut line, 1, 1, 300);
        push(&mut line, 2, 1, 10);
        let small = Room {
            records: 100,
            bytes: usize::MAX,
        };
        let number = line.compose(small).numbers[0];
        let mut ahead = line.compose(ROOM);
        assert_eq!(records(&ahead, 1).len(), 200);
        assert_eq!(ahead.give_up(number), Some(1));
        assert!(records(&ahead, 1).is_empty());
        assert_eq!(records(&ahead, 2).len(), 10);
        assert_eq!(ahead.numbers.len(), ahead.writes.len());
        assert_eq!(ahead.give_up(number), None);
    }

    #[test]
    fn what_comes_while_something_is_stored_goes_along_as_far_as_there_is_room() {
        let mut line = Line::new();
        push(&mut line, 1, 1, 300);
        let mut composed = line.compose(Room {
            records: 400,
            bytes: usize::MAX,
        });
        push(&mut line, 2, 1, 300);
        line.top_up(&mut composed);
        assert_eq!(records(&composed, 1).len(), 300);
        assert_eq!(records(&composed, 2).len(), 100);
        assert_eq!(line.len(), 1);
    }
}
