//! What is stored in one transaction, and what of one gateway can be taken out of it again.

use std::collections::BTreeMap;

use viworks_common::id::AgentId;

use crate::data::TelemetryWrite;

/// What may be stored together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

impl Room {
    pub(super) fn min(self, other: Self) -> Self {
        Self {
            records: self.records.min(other.records),
            bytes: self.bytes.min(other.bytes),
        }
    }

    pub(super) fn take(&mut self, write: &TelemetryWrite, bytes: usize) {
        // A part without records has gaps, which cost something as well.
        let rows = write.batch.records.len() + write.batch.gaps.len();
        self.records = self.records.saturating_sub(rows.max(1));
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    pub(super) const fn is_used_up(self) -> bool {
        self.records == 0 || self.bytes == 0
    }
}

/// Why nothing of a batch is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Why {
    /// It is none, or one before it is none, which the text says.
    Malformed(String),
    /// The database refuses one before it.
    Unstorable,
}

/// A batch of which nothing is stored.
#[derive(Debug)]
pub(super) struct Dropped<T> {
    pub(super) agent_id: AgentId,
    pub(super) epoch: u64,
    pub(super) note: T,
    pub(super) why: Why,
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
    /// Batches of which nothing is stored.
    pub(super) dropped: Vec<Dropped<T>>,
    /// What else there is room for.
    pub(super) left: Room,
}

/// What is stored of one gateway.
#[derive(Debug)]
pub(super) struct Parts<T> {
    /// The writes, in their order.
    pub(super) writes: Vec<TelemetryWrite>,
    /// For each write the number of its batch.
    pub(super) numbers: Vec<u64>,
    /// The batches that end with the last of their writes.
    pub(super) ending: BTreeMap<u64, T>,
}

impl<T> Default for Parts<T> {
    fn default() -> Self {
        Self {
            writes: Vec::new(),
            numbers: Vec::new(),
            ending: BTreeMap::new(),
        }
    }
}

impl<T> Parts<T> {
    /// Takes a write in, with what is remembered of its batch if that ends with it.
    pub(super) fn push(&mut self, write: TelemetryWrite, number: u64, note: Option<T>) {
        self.writes.push(write);
        self.numbers.push(number);
        if let Some(note) = note {
            self.ending.insert(number, note);
        }
    }

    /// Takes out what is of earlier sessions; what was remembered of their batches.
    pub(super) fn fence(&mut self, epoch: u64) -> Vec<T> {
        let mut fenced = Vec::new();
        let numbers = std::mem::take(&mut self.numbers);
        for (write, number) in std::mem::take(&mut self.writes).into_iter().zip(numbers) {
            if write.epoch < epoch {
                fenced.extend(self.ending.remove(&number));
            } else {
                self.writes.push(write);
                self.numbers.push(number);
            }
        }
        fenced
    }

    /// Takes in what comes behind.
    pub(super) fn append(&mut self, behind: Self) {
        self.writes.extend(behind.writes);
        self.numbers.extend(behind.numbers);
        self.ending.extend(behind.ending);
    }
}

impl<T> Composed<T> {
    pub(super) const fn new(room: Room) -> Self {
        Self {
            writes: Vec::new(),
            numbers: Vec::new(),
            ending: BTreeMap::new(),
            dropped: Vec::new(),
            left: room,
        }
    }

    /// Whether there is nothing to be done.
    pub(super) fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.dropped.is_empty()
    }

    /// Takes out what there is of a gateway, that of one session where one is named.
    pub(super) fn take_out(&mut self, agent_id: AgentId, epoch: Option<u64>) -> Parts<T> {
        let mut taken = Parts::default();
        let is_of = |write: &TelemetryWrite| {
            write.agent_id == agent_id && epoch.is_none_or(|epoch| write.epoch == epoch)
        };
        if !self.writes.iter().any(is_of) {
            return taken;
        }
        let numbers = std::mem::take(&mut self.numbers);
        for (write, number) in std::mem::take(&mut self.writes).into_iter().zip(numbers) {
            if is_of(&write) {
                taken.push(write, number, self.ending.remove(&number));
            } else {
                self.writes.push(write);
                self.numbers.push(number);
            }
        }
        taken
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
