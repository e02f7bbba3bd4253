//! Ground truth: what really happened, outside the system under test, held against the invariants.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;

use viworks_common::command::CommandState;
use viworks_common::id::{AgentRunId, CommandId};
use viworks_common::time::Monotonic;

/// Lines of trace that a violation shows.
const TRACE_LINES: usize = 80;

/// A broken invariant, with what led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The world.
    pub seed: u64,
    /// The invariant's number in `docs/protocol.md`.
    pub invariant: u8,
    /// What happened.
    pub what: String,
    /// The last steps.
    pub trace: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {} breaks invariant {}: {}",
            self.seed, self.invariant, self.what
        )?;
        self.trace
            .iter()
            .try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// What is known of one command from outside.
#[derive(Debug, Clone)]
struct Truth {
    idempotent: bool,
    deadline: Monotonic,
    starts: u32,
    ended: Option<CommandState>,
}

/// The record of one world.
#[derive(Debug)]
pub(super) struct Recorder {
    pub(super) seed: u64,
    commands: BTreeMap<CommandId, Truth>,
    /// Every telemetry key that a spool took in and no restored disk lost.
    pub(super) spooled: BTreeSet<(AgentRunId, u64)>,
    pub(super) starts: u64,
    pub(super) forks: u64,
    trace: VecDeque<String>,
    violation: Option<Violation>,
}

impl Recorder {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            commands: BTreeMap::new(),
            spooled: BTreeSet::new(),
            starts: 0,
            forks: 0,
            trace: VecDeque::new(),
            violation: None,
        }
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if self.trace.len() == TRACE_LINES {
            self.trace.pop_front();
        }
        self.trace.push_back(line());
    }

    pub(super) fn broken(&mut self, invariant: u8, what: String) {
        if self.violation.is_none() {
            self.violation = Some(Violation {
                seed: self.seed,
                invariant,
                what,
                trace: self.trace.iter().cloned().collect(),
            });
        }
    }

    pub(super) const fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    pub(super) fn submitted(&mut self, id: CommandId, idempotent: bool, deadline: Monotonic) {
        self.commands.insert(
            id,
            Truth {
                idempotent,
                deadline,
                starts: 0,
                ended: None,
            },
        );
    }

    /// A process was really started.
    pub(super) fn started(&mut self, id: CommandId, now: Monotonic) {
        self.starts += 1;
        let Some(truth) = self.commands.get_mut(&id) else {
            return self.broken(2, format!("{id:?} started and was never submitted"));
        };
        truth.starts += 1;
        let (starts, idempotent, late) = (truth.starts, truth.idempotent, now > truth.deadline);
        if starts > 1 && !idempotent {
            self.broken(1, format!("{id:?} started {starts} times"));
        }
        if late {
            self.broken(4, format!("{id:?} started after its deadline"));
        }
    }

    /// The store holds a command in a state.
    pub(super) fn stored(&mut self, id: CommandId, state: CommandState) {
        let Some(truth) = self.commands.get_mut(&id) else {
            return;
        };
        match truth.ended {
            Some(ended) if ended != state => self.broken(
                2,
                format!("{id:?} was {} and became {}", ended.name(), state.name()),
            ),
            None if state.is_final() => truth.ended = Some(state),
            Some(_) | None => {}
        }
    }

    /// The store was put back to an earlier copy: its final states are no longer promised.
    pub(super) fn store_restored(&mut self, held: &BTreeSet<CommandId>) {
        for truth in self.commands.values_mut() {
            truth.ended = None;
        }
        self.commands.retain(|id, truth| {
            held.contains(id) || truth.starts > 0 || truth.deadline > Monotonic::ORIGIN
        });
    }

    pub(super) fn starts_of(&self, id: CommandId) -> u32 {
        self.commands.get(&id).map_or(0, |truth| truth.starts)
    }
}
