//! What every part of a world shares: its time, what happens next, chance, the network, and who writes down what
//! happened.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use viworks_common::id::CommandId;
use viworks_common::session::End;
use viworks_common::time::{Monotonic, Timestamp};
use viworks_common::timeline::Anchor;

use super::network::{ConnectionId, Network};
use super::random::Random;
use super::recorder::Recorder;
use super::scenario::{Rules, Scenario};

/// Lines of a trace that are kept.
const TRACE_LINES: usize = 400;
/// The wall clock at the beginning of every world.
const WALL_ORIGIN: i64 = 1_795_000_000_000_000;

/// A machine that holds a gateway's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostId(pub usize);

/// A process of the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InstanceId(pub usize);

/// Which start of a process: what was meant for an earlier one is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Generation(pub u32);

/// A process of the backend as the others know it: until it restarts, or finds that its lease ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    pub id: InstanceId,
    pub generation: Generation,
    pub term: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GatewayStep {
    Dial,
    /// The upgrade was accepted, or not.
    Dialled,
    /// The session wanted to be woken.
    Timer,
    /// The engine takes its next input.
    Engine,
    /// The engine wanted to be woken.
    Expire,
    /// The oldest write is durable.
    Synced,
    /// A permitted command looks for a slot.
    Begin(CommandId),
    /// A running command ends, by itself or because somebody wants it.
    Exit(CommandId, bool),
    Observe,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BackendStep {
    Accept(ConnectionId),
    /// A connection's loop takes its next turn.
    Turn(ConnectionId),
    /// The store commits what was asked of it.
    Commit(u64),
    /// An answer of the store, or what was offered at its birth, reaches its connection.
    Come(u64),
    ProbeOver(ConnectionId),
    /// It looks what others ask of it.
    Inbox,
    Tick,
}

/// Something that goes wrong, drawn when it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Of processes, connections and clocks.
    Any,
    Image,
    Restore,
    /// Somebody sets the wall clock of the backend's host.
    Clock,
}

/// What happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    Gateway(HostId, Generation, GatewayStep),
    Backend(InstanceId, Generation, BackendStep),
    /// The next frame, or the end, of a connection reaches one end.
    Arrival(ConnectionId, End),
    Boot(HostId),
    Start(InstanceId),
    Submit,
    Cancel,
    /// An operator decides between two holders of an identity.
    Decide,
    /// An operator has a gateway given another agent key.
    Rotate,
    /// An operator puts another machine in a gateway's place.
    Replace,
    Fault(Fault),
    /// From here on, nothing goes wrong any more.
    Heal,
    /// Time to look whether all is quiet.
    Look,
}

/// Who dies of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Process {
    Gateway(HostId),
    Backend(InstanceId),
}

/// The shared part of a world.
#[derive(Debug)]
pub(crate) struct Core {
    pub now: Monotonic,
    pub random: Random,
    /// Chance of what operators decide about identities: other events do not depend on how often that is.
    pub fate: Random,
    pub scenario: Scenario,
    pub rules: Rules,
    pub network: Network,
    pub recorder: Recorder,
    /// The backend's processes that take connections.
    pub listening: BTreeSet<(InstanceId, Generation)>,
    /// Whether things go wrong.
    pub turmoil: bool,
    /// Who is to die before anything else happens.
    pub dying: Option<Process>,
    /// How far each backend's wall clock is off; they share one host's.
    pub backend_skew_micros: i64,
    /// The stored anchor of the backend's time line; its processes come and go beside it.
    pub line: Anchor,
    agenda: BTreeMap<(Monotonic, u64), Event>,
    serial: u64,
    trace: Option<VecDeque<String>>,
}

impl Core {
    pub(super) fn new(
        (random, fate): (Random, Random),
        scenario: Scenario,
        rules: Rules,
        traced: bool,
    ) -> Self {
        Self {
            now: Monotonic::ORIGIN,
            random,
            fate,
            scenario,
            rules,
            network: Network::default(),
            recorder: Recorder::default(),
            listening: BTreeSet::new(),
            turmoil: true,
            dying: None,
            backend_skew_micros: 0,
            line: Anchor::begin(Timestamp::from_unix_micros(WALL_ORIGIN), Monotonic::ORIGIN),
            agenda: BTreeMap::new(),
            serial: 0,
            trace: traced.then(VecDeque::new),
        }
    }

    /// Lets `event` happen `after` from now; what was scheduled first happens first.
    pub(crate) fn after(&mut self, after: Duration, event: Event) {
        self.at(self.now.saturating_add(after), event);
    }

    /// Lets `event` happen at `time`, or now when that has passed.
    pub(crate) fn at(&mut self, time: Monotonic, event: Event) {
        self.serial += 1;
        self.agenda.insert((time.max(self.now), self.serial), event);
    }

    /// Moves time on to the next event.
    pub(super) fn next(&mut self) -> Option<Event> {
        let ((time, _serial), event) = self.agenda.pop_first()?;
        self.now = time;
        Some(event)
    }

    /// What the backend's store is told to be now.
    pub(crate) fn backend_now(&self) -> Timestamp {
        self.line.read(self.now)
    }

    pub(crate) fn backend_wall(&self) -> Timestamp {
        self.wall(self.backend_skew_micros)
    }

    /// A wall clock that is off by `skew_micros`.
    pub(crate) fn wall(&self, skew_micros: i64) -> Timestamp {
        let micros = i64::try_from(self.now.as_duration().as_micros()).unwrap_or(i64::MAX);
        Timestamp::from_unix_micros(WALL_ORIGIN + micros + skew_micros)
    }

    /// Whether `process` dies at this very point of a commit.
    pub(crate) fn dies(&mut self, process: Process) -> bool {
        if !self.turmoil || self.dying.is_some() {
            return self.dying == Some(process);
        }
        let dies = self.random.once_in(self.scenario.crash_at_commit);
        if dies {
            self.dying = Some(process);
        }
        dies
    }

    /// Writes a line of the trace, when there is one.
    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            if trace.len() == TRACE_LINES {
                trace.pop_front();
            }
            let at = self.now.as_duration();
            trace.push_back(format!("{:>10.6} {}", at.as_secs_f64(), shortened(&line())));
        }
    }

    pub(super) fn into_trace(self) -> Vec<String> {
        self.trace.map(Vec::from).unwrap_or_default()
    }
}

/// Ids by their first digits, without the words before them: within one world those are enough.
fn shortened(line: &str) -> String {
    const KEPT: usize = 6;
    const UUID: usize = 36;
    let line = line.replace("agent run id ", "run ");
    let line = line.replace("command id ", "");
    let ends = |c: char| !c.is_ascii_hexdigit() && c != '-';
    let shortened = line.split_inclusive(ends).map(|word| {
        let id = word.trim_end_matches(ends);
        let is_id = id.len() == UUID && uuid::Uuid::try_parse(id).is_ok();
        let kept = if is_id { &id[..KEPT] } else { id };
        [kept, &word[id.len()..]].concat()
    });
    shortened.collect()
}
