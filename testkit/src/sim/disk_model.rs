//! A gateway's disk: what is durable, what is on its way there, and what a crash leaves of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use viworks_common::command::{Outcome, OutcomeState};
use viworks_common::id::{AgentRunId, CommandId};
use viworks_common::journal::{Entry, EntryState, Step, may_forget};
use viworks_common::key::AgentKey;
use viworks_common::rotation;
use viworks_common::telemetry::Position;
use viworks_common::time::Timestamp;

use super::network::ConnectionId;
use super::random::Random;
use super::scenario::Rules;
use super::spool_model::Spool;

/// An agent key, and its generation.
pub(crate) type HeldKey = (u8, AgentKey);

/// One transaction, of the journal or of the spool.
#[derive(Debug, Clone)]
pub(crate) enum Write {
    Journal(Step),
    /// The ratchet moves, for the session on a connection.
    Epoch(ConnectionId, u64, String),
    /// An agent key came over the session on a connection.
    Key {
        wire: ConnectionId,
        /// The generation of the key that the session was opened with.
        in_use: u8,
        new: HeldKey,
    },
    Append(AgentRunId, Vec<Timestamp>),
    /// Records are committed at the backend.
    Acknowledge(Position),
}

/// What a transaction did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// Whether the entry was in the right state for it.
    pub done: bool,
    /// Records that are durable from here on.
    pub spooled: Vec<(u64, Timestamp)>,
}

#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub entries: BTreeMap<CommandId, Entry>,
    /// The highest low-water mark ever told.
    pub low_water: u64,
    /// The highest order ever seen.
    pub highest_order: u64,
    pub epoch: u64,
    pub token: String,
    /// The agent keys that came over sessions.
    pub keys: Vec<HeldKey>,
    pub spool: Spool,
}

/// A disk. Its image is what a reader sees, too: transactions show when they are committed.
#[derive(Debug)]
pub(crate) struct Disk {
    pub image: Image,
    pending: VecDeque<Write>,
    rules: Rules,
}

impl Image {
    /// As installed, with the first token.
    pub(crate) fn installed(token: String, spool_max: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            low_water: 0,
            highest_order: 0,
            epoch: 0,
            token,
            keys: Vec::new(),
            spool: Spool::new(spool_max),
        }
    }

    /// Every command that the backend has not acknowledged, by order.
    pub(crate) fn unreported(&self) -> Vec<CommandId> {
        let mut open: Vec<&Entry> = self
            .entries
            .values()
            .filter(|entry| entry.state != EntryState::Reported)
            .collect();
        open.sort_unstable_by_key(|entry| (entry.order, entry.command_id));
        open.iter().map(|entry| entry.command_id).collect()
    }

    fn apply(&mut self, write: Write, rules: Rules) -> Written {
        let mut written = Written::default();
        written.done = match write {
            Write::Journal(step) => self.step(step, rules),
            Write::Epoch(_, epoch, token) => {
                let newer = epoch >= self.epoch;
                if newer {
                    (self.epoch, self.token) = (epoch, token);
                }
                newer
            }
            Write::Key { in_use, new, .. } => {
                self.keep_key(in_use, new);
                true
            }
            Write::Append(run, observed) => {
                written.spooled = self.spool.append(run, &observed);
                true
            }
            Write::Acknowledge(position) => {
                self.spool.acknowledge(position);
                true
            }
        };
        written
    }

    /// What came last under a number counts.
    fn keep_key(&mut self, in_use: u8, new: HeldKey) {
        self.keys.retain(|(held, _)| *held != new.0);
        let known: Vec<u8> = self.keys.iter().map(|(held, _)| *held).collect();
        let kept = rotation::kept(&known, in_use, new.0);
        self.keys.push(new);
        self.keys.retain(|(held, _)| kept.contains(held));
    }

    /// Whether the step started from where it may.
    fn step(&mut self, step: Step, rules: Rules) -> bool {
        let id = match step {
            Step::LowWater(mark) => {
                self.low_water = self.low_water.max(mark);
                let mark = self.low_water;
                self.entries
                    .retain(|_, it| !may_forget(rules, it.state, it.order, mark));
                return true;
            }
            Step::Accept(entry) if !self.entries.contains_key(&entry.command_id) => {
                self.highest_order = self.highest_order.max(entry.order);
                self.entries.insert(entry.command_id, *entry);
                return true;
            }
            Step::Accept(ref entry) => entry.command_id,
            Step::Start(id, _)
            | Step::Finish(id, _)
            | Step::Report(id)
            | Step::Discard(id)
            | Step::AwaitAgain(id, _) => id,
        };
        let Some(entry) = self.entries.get_mut(&id) else {
            return false;
        };
        let Some(next) = step.leaves(rules, entry) else {
            return false;
        };
        entry.state = next;
        match step {
            Step::Start(_, run) | Step::AwaitAgain(_, run) => entry.agent_run_id = run,
            Step::Finish(_, outcome) => entry.outcome = Some(Arc::unwrap_or_clone(outcome)),
            Step::Discard(_) => {
                let reason = "the backend withdrew it";
                entry.outcome = Some(Outcome::without_run(OutcomeState::Cancelled, reason));
            }
            Step::Accept(again) => *entry = *again,
            Step::Report(_) | Step::LowWater(_) => {}
        }
        true
    }
}

impl Disk {
    pub(crate) const fn new(image: Image, rules: Rules) -> Self {
        Self {
            image,
            pending: VecDeque::new(),
            rules,
        }
    }

    /// Whether nothing is on its way.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// Puts a transaction on its way.
    pub(crate) fn write(&mut self, write: Write) {
        self.pending.push_back(write);
    }

    /// The oldest transaction on its way becomes durable.
    pub(crate) fn sync(&mut self) -> Option<(Write, Written)> {
        let write = self.pending.pop_front()?;
        let written = self.image.apply(write.clone(), self.rules);
        Some((write, written))
    }

    /// Power is lost: of what was on its way, some beginning may have arrived. Tells which.
    pub(crate) fn crash(&mut self, random: &mut Random) -> Vec<(Write, Written)> {
        let kept = random.index(self.pending.len() + 1);
        let survived = (0..kept).filter_map(|_| self.sync()).collect();
        self.pending.clear();
        survived
    }
}
