//! Connections that delay, die at one end or both, and deliver late what was under way.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use viworks_common::id::AgentId;
use viworks_common::session::End;
use viworks_common::time::Monotonic;

use super::core::{BackendStep, Core, Event, Generation, HostId, InstanceId};

/// Frames an eavesdropper remembers.
const CAPTURED_MAX: usize = 64;
/// One in so many connections is slow from its beginning.
const SLOW_ONE_IN: u64 = 12;

/// One connection, from its upgrade to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnectionId(pub u64);

/// What reaches an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Received {
    Frame(Vec<u8>),
    /// The other end is gone, and this one can tell.
    Lost,
}

#[derive(Debug, Default)]
struct Pipe {
    /// What is under way: when it arrives, and `None` for the end.
    waiting: VecDeque<(Monotonic, Option<Vec<u8>>)>,
    last: Monotonic,
    severed: bool,
    slow_until: Monotonic,
    /// Nobody reads at its end any more.
    closed: bool,
}

impl Pipe {
    /// When what is under way arrives.
    fn arrivals(&self) -> Vec<Monotonic> {
        self.waiting.iter().map(|(at, _)| *at).collect()
    }
}

#[derive(Debug)]
pub(crate) struct Wire {
    /// The gateway's machine and process.
    pub agent: (HostId, Generation),
    /// The gateway in the client's certificate.
    pub agent_id: AgentId,
    pub backend: (InstanceId, Generation),
    to_agent: Pipe,
    to_backend: Pipe,
    /// Whether anything ever went wrong with it.
    sound: bool,
}

impl Wire {
    const fn pipe_to(&mut self, end: End) -> &mut Pipe {
        match end {
            End::Agent => &mut self.to_agent,
            End::Backend => &mut self.to_backend,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Network {
    wires: BTreeMap<ConnectionId, Wire>,
    next: u64,
    captured: VecDeque<Vec<u8>>,
}

impl Network {
    /// A connection that at least one end still has.
    pub(crate) fn wire(&self, id: ConnectionId) -> Option<&Wire> {
        self.wires.get(&id)
    }

    /// Every connection that at least one end still has.
    pub(crate) fn ids(&self) -> impl Iterator<Item = ConnectionId> {
        self.wires.keys().copied()
    }

    /// Whether nothing ever went wrong with a connection, and both ends still have it.
    pub(crate) fn is_sound(&self, id: ConnectionId) -> bool {
        let known = self.wires.get(&id);
        known.is_some_and(|it| it.sound && !it.to_agent.closed && !it.to_backend.closed)
    }
}

const fn other(end: End) -> End {
    match end {
        End::Agent => End::Backend,
        End::Backend => End::Agent,
    }
}

impl Core {
    /// Connects to one of the backend's processes, if any listens.
    pub(crate) fn reach_backend(
        &mut self,
        agent: (HostId, Generation),
        agent_id: AgentId,
    ) -> Option<ConnectionId> {
        if self.listening.is_empty() {
            return None;
        }
        let chosen = self.random.index(self.listening.len());
        let backend = *self.listening.iter().nth(chosen)?;
        self.network.next += 1;
        let id = ConnectionId(self.network.next);
        let wire = Wire {
            agent,
            agent_id,
            backend,
            to_agent: Pipe::default(),
            to_backend: Pipe::default(),
            sound: true,
        };
        self.network.wires.insert(id, wire);
        let accept = Event::Backend(backend.0, backend.1, BackendStep::Accept(id));
        self.after(Duration::ZERO, accept);
        if self.turmoil && self.random.once_in(SLOW_ONE_IN) {
            let span = self.random.millis(100, 6_000);
            let end = self.some_end();
            self.delay(id, end, span);
        }
        Some(id)
    }

    /// Either end of a connection.
    pub(crate) const fn some_end(&mut self) -> End {
        if self.random.once_in(2) {
            End::Agent
        } else {
            End::Backend
        }
    }

    /// Puts a message on its way from `from`.
    pub(crate) fn send(&mut self, id: ConnectionId, from: End, bytes: Vec<u8>) {
        self.recorder.sealed(id, from, &bytes);
        if self.scenario.replays {
            let captured = &mut self.network.captured;
            if captured.len() == CAPTURED_MAX {
                captured.pop_front();
            }
            captured.push_back(bytes.clone());
        }
        self.put(id, from, Some(bytes));
    }

    fn put(&mut self, id: ConnectionId, from: End, content: Option<Vec<u8>>) {
        let (now, latency) = (self.now, self.scenario.latency);
        let delay = self.random.span(latency / 4, latency);
        let end = other(from);
        let Some(wire) = self.network.wires.get_mut(&id) else {
            return;
        };
        let pipe = wire.pipe_to(end);
        if pipe.severed {
            return;
        }
        let arrives = now
            .saturating_add(delay)
            .max(pipe.last)
            .max(pipe.slow_until);
        pipe.last = arrives;
        pipe.waiting.push_back((arrives, content));
        self.at(arrives, Event::Arrival(id, end));
    }

    /// What has arrived at `end`, in order.
    pub(crate) fn receive(&mut self, id: ConnectionId, end: End) -> Option<Received> {
        let now = self.now;
        let pipe = self.network.wires.get_mut(&id)?.pipe_to(end);
        let (_, content) = pipe.waiting.pop_front_if(|(at, _)| *at <= now)?;
        let content = content.map_or(Received::Lost, Received::Frame);
        (!pipe.closed).then_some(content)
    }

    /// `end` is done with the connection and says so, as TCP does after everything before it.
    pub(crate) fn hang_up(&mut self, id: ConnectionId, end: End) {
        self.put(id, end, None);
        self.abandon(id, end);
    }

    /// `end` is done with the connection; nobody is told.
    pub(crate) fn abandon(&mut self, id: ConnectionId, end: End) {
        let Some(wire) = self.network.wires.get_mut(&id) else {
            return;
        };
        wire.pipe_to(end).closed = true;
        if wire.to_agent.closed && wire.to_backend.closed {
            self.network.wires.remove(&id);
        }
    }

    /// Cuts a connection: what is under way arrives up to a point, perhaps late, and each end may or may not notice.
    pub(crate) fn cut(&mut self, id: ConnectionId) {
        let late = if self.random.once_in(2) {
            self.random.millis(0, 8_000)
        } else {
            Duration::ZERO
        };
        for end in [End::Agent, End::Backend] {
            let noticed = self.random.below(3) > 0;
            let choice = self.random.number();
            let now = self.now;
            let Some(wire) = self.network.wires.get_mut(&id) else {
                return;
            };
            wire.sound = false;
            let pipe = wire.pipe_to(end);
            let kept = usize::try_from(choice).unwrap_or(usize::MAX) % (pipe.waiting.len() + 1);
            pipe.waiting.truncate(kept);
            for (at, _) in &mut pipe.waiting {
                *at = at.saturating_add(late);
            }
            pipe.severed = true;
            if noticed {
                let last = pipe.waiting.back().map_or(now, |(at, _)| *at);
                pipe.waiting.push_back((last, None));
            }
            for at in pipe.arrivals() {
                self.at(at, Event::Arrival(id, end));
            }
        }
    }

    /// Holds up what is under way to `end` for a while, and everything behind it.
    pub(crate) fn hold_up(&mut self, id: ConnectionId, end: End, span: Duration) {
        let until = self.now.saturating_add(span);
        let Some(wire) = self.network.wires.get_mut(&id) else {
            return;
        };
        wire.sound = false;
        let pipe = wire.pipe_to(end);
        pipe.slow_until = pipe.slow_until.max(until);
        pipe.last = pipe.last.max(until);
        for (at, _) in &mut pipe.waiting {
            *at = until.max(*at);
        }
        for at in pipe.arrivals() {
            self.at(at, Event::Arrival(id, end));
        }
    }

    /// Holds up everything that is sent in one direction from now on, for a while.
    pub(crate) fn delay(&mut self, id: ConnectionId, end: End, span: Duration) {
        let until = self.now.saturating_add(span);
        if let Some(wire) = self.network.wires.get_mut(&id) {
            wire.sound = false;
            let pipe = wire.pipe_to(end);
            pipe.slow_until = pipe.slow_until.max(until);
        }
    }

    /// Plays a message that was once seen anywhere into a connection.
    pub(crate) fn inject(&mut self, id: ConnectionId, end: End) {
        if self.network.captured.is_empty() {
            return;
        }
        let index = self.random.index(self.network.captured.len());
        let bytes = self.network.captured[index].clone();
        if let Some(wire) = self.network.wires.get_mut(&id) {
            wire.sound = false;
        }
        self.put(id, other(end), Some(bytes));
    }
}
