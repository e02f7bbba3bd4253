//! The line of those who wait to have telemetry stored: gateways take turns, each with a small part at a time.

use std::collections::{BTreeMap, VecDeque};

use viworks_common::id::AgentId;
use viworks_common::telemetry::BatchRows;
use viworks_common::wire::PackedBatch;

use super::composed::{Composed, Dropped, Room, Why};
use crate::data::TelemetryWrite;

/// Records that a gateway may have stored in one turn, and bytes of them.
const TURN: Room = Room {
    records: 256,
    bytes: 64 * 1024,
};
/// Batches that are unpacked and not stored as a whole yet; before there are more of them, these go on.
const OPEN_MAX: usize = 8;

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

/// The line.
#[derive(Debug)]
pub(super) struct Line<T> {
    queues: BTreeMap<AgentId, VecDeque<Job<T>>>,
    turns: VecDeque<AgentId>,
    number: u64,
    batches: usize,
    open: usize,
    /// What waits of gateways whose turn does not come: it counts for nothing, and keeps nobody from anything.
    withheld: BTreeMap<AgentId, VecDeque<Job<T>>>,
    /// Of which session of a gateway a batch is not stored, and why: nothing of that session is stored behind it.
    spoilt: BTreeMap<AgentId, (u64, Why)>,
}

impl<T> Line<T> {
    pub(super) const fn new() -> Self {
        Self {
            queues: BTreeMap::new(),
            turns: VecDeque::new(),
            number: 0,
            batches: 0,
            open: 0,
            withheld: BTreeMap::new(),
            spoilt: BTreeMap::new(),
        }
    }

    /// Batches that wait for a turn, those that are stored in part included.
    pub(super) const fn len(&self) -> usize {
        self.batches
    }

    /// Takes in a batch, behind those of its gateway.
    pub(super) fn push(&mut self, waiting: Waiting<T>) {
        let (agent_id, epoch) = (waiting.agent_id, waiting.epoch);
        if self.spoilt.get(&agent_id).is_some_and(|it| it.0 < epoch) {
            self.spoilt.remove(&agent_id);
        }
        let queue = match self.withheld.get_mut(&agent_id) {
            Some(queue) => queue,
            None => {
                let queue = self.queues.entry(agent_id).or_default();
                if queue.is_empty() {
                    self.turns.push_back(agent_id);
                }
                self.batches += 1;
                queue
            }
        };
        self.number += 1;
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
        let queues = [&mut self.queues, &mut self.withheld].into_iter();
        let queue = queues.filter_map(|of| of.get_mut(&agent_id)).next()?;
        let job = queue.front_mut()?;
        (job.number == number).then_some(&mut job.note)
    }

    /// A gateway's turn does not come until it is released; what it hands in meanwhile waits as well.
    pub(super) fn withhold(&mut self, agent_id: AgentId) {
        let queue = self.queues.remove(&agent_id).unwrap_or_default();
        self.batches -= queue.len();
        self.open -= opened(&queue);
        self.turns.retain(|turn| *turn != agent_id);
        self.withheld.entry(agent_id).or_default().extend(queue);
    }

    /// A gateway takes its turns again.
    pub(super) fn release(&mut self, agent_id: AgentId) {
        let Some(queue) = self.withheld.remove(&agent_id) else {
            return;
        };
        self.batches += queue.len();
        self.open += opened(&queue);
        if !queue.is_empty() {
            self.turns.push_back(agent_id);
            self.queues.insert(agent_id, queue);
        }
    }

    /// What is remembered of the batches of a gateway that is withheld.
    pub(super) fn withheld(&mut self, agent_id: AgentId) -> impl Iterator<Item = &mut T> {
        let queue = self.withheld.get_mut(&agent_id).into_iter().flatten();
        queue.map(|job| &mut job.note)
    }

    /// Nothing that a gateway handed in while it was withheld is stored.
    pub(super) fn forget(&mut self, agent_id: AgentId) {
        if let Some(queue) = self.withheld.get_mut(&agent_id) {
            queue.clear();
        }
    }

    /// Nothing more of a session is stored, because a batch of it is not: what is behind that would leave a gap.
    pub(super) fn spoil(&mut self, agent_id: AgentId, epoch: u64, why: &Why) {
        spoil(&mut self.spoilt, agent_id, epoch, why);
    }

    /// Takes out what waits of earlier sessions of a gateway that is withheld: they are fenced.
    pub(super) fn fence(&mut self, agent_id: AgentId, epoch: u64) -> Vec<T> {
        let Some(queue) = self.withheld.get_mut(&agent_id) else {
            return Vec::new();
        };
        let (fenced, current) = std::mem::take(queue)
            .into_iter()
            .partition::<VecDeque<_>, _>(|job| job.epoch < epoch);
        *queue = current;
        fenced.into_iter().map(|job| job.note).collect()
    }

    /// Takes out a batch that is stored in part.
    pub(super) fn give_up(&mut self, agent_id: AgentId, number: u64) -> Option<T> {
        if let Some(queue) = self.withheld.get_mut(&agent_id) {
            let job = queue.pop_front_if(|job| job.number == number)?;
            return Some(job.note);
        }
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
            let spoilt = self.spoilt.get(&agent_id);
            let spoilt = spoilt.filter(|(epoch, _)| *epoch == job.epoch);
            let was_open = matches!(job.rows, Rows::Open(_));
            let opened = match spoilt {
                Some((_, why)) => Err(why.clone()),
                None => open(job.rows).map_err(Why::Malformed),
            };
            let mut rows = match opened {
                Ok(rows) => {
                    self.open += usize::from(!was_open);
                    rows
                }
                Err(why) => {
                    self.open -= usize::from(was_open);
                    self.batches -= 1;
                    spoil(&mut self.spoilt, agent_id, job.epoch, &why);
                    composed.dropped.push(Dropped {
                        agent_id,
                        epoch: job.epoch,
                        note: job.note,
                        why,
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

/// Remembers of the latest session of a gateway why nothing more of it is stored.
fn spoil(spoilt: &mut BTreeMap<AgentId, (u64, Why)>, agent_id: AgentId, epoch: u64, why: &Why) {
    let of_gateway = spoilt.entry(agent_id);
    let of_gateway = of_gateway.or_insert_with(|| (epoch, why.clone()));
    if of_gateway.0 < epoch {
        *of_gateway = (epoch, why.clone());
    }
}

/// Unpacks a batch.
fn open(rows: Rows) -> Result<BatchRows, String> {
    match rows {
        Rows::Open(rows) => Ok(rows),
        Rows::Packed(batch) => {
            let columns = batch.open()?;
            BatchRows::try_from(columns).map_err(|malformed| malformed.to_string())
        }
    }
}

/// How many batches of a gateway are unpacked: that in front, or none.
fn opened<T>(queue: &VecDeque<Job<T>>) -> usize {
    let front = queue.front();
    usize::from(front.is_some_and(|job| matches!(job.rows, Rows::Open(_))))
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

    /// Behind a batch that is none, whatever else of its session is stored would make a gap of it.
    #[test]
    fn what_is_no_batch_is_told_and_stops_its_session_alone() {
        let mut line = Line::new();
        let mut holed = columns(11, 10);
        holed.to_seq = 21;
        let of_session = |epoch, batch, note| Waiting {
            agent_id: agent(1),
            epoch,
            skew_ms: None,
            batch: PackedBatch::pack(batch),
            note,
        };
        push(&mut line, 1, 1, 10);
        line.push(of_session(1, &holed, 11));
        push(&mut line, 1, 22, 5);
        push(&mut line, 2, 1, 5);
        let composed = line.compose(ROOM);
        let malformed: Vec<_> = composed.dropped.iter().map(|it| it.note).collect();
        assert_eq!(malformed, [11, 22]);
        assert_eq!(records(&composed, 1), (1..=10).collect::<Vec<_>>());
        assert_eq!(records(&composed, 2), [1, 2, 3, 4, 5]);
        // Of the same session also later, and of the next one no more.
        push(&mut line, 1, 27, 5);
        let later = line.compose(ROOM);
        assert_eq!((later.dropped.len(), later.writes.len()), (1, 0));
        line.push(of_session(2, &columns(11, 10), 11));
        assert_eq!(records(&line.compose(ROOM), 1).len(), 10);
        assert_eq!((line.len(), line.open), (0, 0));
    }

    #[test]
    fn a_batch_that_is_stored_in_part_is_none_when_its_session_is_spoilt() {
        let mut line = Line::new();
        push(&mut line, 1, 1, 300);
        let small = Room {
            records: 100,
            bytes: usize::MAX,
        };
        assert_eq!(records(&line.compose(small), 1).len(), 100);
        line.spoil(agent(1), 1, &Why::Unstorable);
        let rest = line.compose(ROOM);
        assert_eq!((rest.dropped.len(), rest.writes.len()), (1, 0));
        assert_eq!(rest.dropped[0].why, Why::Unstorable);
        assert_eq!((line.len(), line.open), (0, 0));
    }

    #[test]
    fn who_is_withheld_keeps_nobody_from_anything_and_goes_on_where_it_stood() {
        let mut line = Line::new();
        push(&mut line, 1, 1, 300);
        push(&mut line, 2, 1, 10);
        let small = Room {
            records: 100,
            bytes: usize::MAX,
        };
        let first = line.compose(small);
        assert_eq!(records(&first, 1).len(), 100);
        let mut ahead = line.compose(small);
        line.withhold(agent(1));
        let taken = ahead.take_out(agent(1), None);
        assert!(records(&ahead, 1).is_empty());
        assert_eq!(ahead.numbers.len(), ahead.writes.len());
        push(&mut line, 1, 301, 50);
        let others = line.compose(ROOM);
        assert!(records(&others, 1).is_empty());
        assert_eq!((line.len(), line.open), (0, 0));
        assert_eq!(
            line.withheld(agent(1))
                .map(|note| *note)
                .collect::<Vec<_>>(),
            [1, 301]
        );
        assert!(line.note(agent(1), first.numbers[0]).is_some());
        line.release(agent(1));
        let mut all: Vec<_> = records(&first, 1);
        let taken = taken.writes.iter().flat_map(|it| &it.batch.records);
        all.extend(taken.map(|(seq, _)| *seq));
        all.extend(records(&line.compose(ROOM), 1));
        assert_eq!(all, (1..=350).collect::<Vec<_>>());
        assert_eq!((line.len(), line.open), (0, 0));
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
