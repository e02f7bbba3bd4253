//! Both ends of a session over a hostile network: every byte of the input is something that happens.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::samples;
use crate::code::CloseCode;
use crate::id::{AgentId, SessionId, Tenant};
use crate::key::{Binding, BindingMode, Identity, MasterKey, Schedule, Secret, SessionKeys};
use crate::limits;
use crate::session::state::{AgentState, BackendState};
use crate::session::{
    AgentEvent, AgentSession, AgentSessionConfig, BackendEvent, BackendSession,
    BackendSessionConfig, Closed, End,
};
use crate::time::{Monotonic, Timestamp};
use crate::wire::envelope::{Packed, seal};
use crate::wire::message::{AgentMessage, BackendMessage, Refuse};

/// More steps say nothing new and only make a run slow.
const STEPS_MAX: usize = 2_000;

/// Takes each byte as an action, some with operands behind them.
pub fn session(data: &[u8]) {
    let mut world = World::new();
    let mut input = data.iter().copied();
    for _ in 0..STEPS_MAX {
        let Some(action) = input.next() else { break };
        world.act(action, &mut input);
        world.settle();
    }
}

/// What the agent's driver owes its session.
#[derive(Default)]
struct AgentDriver {
    challenged: bool,
    welcomed: bool,
    confirmed: bool,
    over: Option<Closed>,
}

/// What the backend's driver owes its session.
#[derive(Default)]
struct BackendDriver {
    hello: bool,
    confirmed: bool,
    committed: bool,
    over: Option<Closed>,
}

struct World {
    now: Monotonic,
    agent: AgentSession,
    backend: BackendSession,
    at_agent: AgentDriver,
    at_backend: BackendDriver,
    to_agent: VecDeque<Vec<u8>>,
    to_backend: VecDeque<Vec<u8>>,
    schedule: Schedule,
    challenge: Option<Vec<u8>>,
    /// Known once HELLO is out: what an end that turned hostile has.
    keys: Option<SessionKeys>,
    /// The number of the next frame to the agent.
    next_to_agent: u64,
    /// Whether the network has only ever delivered what was sent, in order, and both ends are ours.
    honest: bool,
}

impl World {
    fn new() -> Self {
        let id = |n: u128| Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 | n);
        let master = Arc::new(MasterKey::new(Secret::from_bytes([0x4d; 32])));
        let identity = Identity {
            tenant: Tenant::default_tenant(),
            agent_id: AgentId::from_uuid(id(0xa1)),
        };
        let binding = Binding {
            mode: BindingMode::Exporter,
            value: [0xb1; 32],
        };
        let now = Monotonic::ORIGIN;
        let key = master.agent_key(&identity, 3);
        let schedule = Schedule::new(&[0x5e; 32], &key, identity.clone(), &binding);
        let agent = AgentSessionConfig {
            key,
            identity: identity.clone(),
            key_generation: 3,
            binding: binding.clone(),
            version_floor: 1,
            opening_timeout: Duration::from_secs(10),
        };
        let backend = BackendSessionConfig {
            identity,
            master,
            binding,
            session_id: SessionId::from_uuid(id(0x5e55)),
            server_nonce: [0x5e; 32],
            server_time: Timestamp::from_unix_micros(1_790_000_000_000_000),
            hello_timeout: limits::HANDSHAKE_STEP_TIMEOUT,
            certificate_remaining: Some(Duration::from_secs(24 * 3_600)),
        };
        let mut world = Self {
            now,
            agent: AgentSession::new(agent, now),
            backend: BackendSession::new(backend, now),
            at_agent: AgentDriver::default(),
            at_backend: BackendDriver::default(),
            to_agent: VecDeque::new(),
            to_backend: VecDeque::new(),
            schedule,
            challenge: None,
            keys: None,
            next_to_agent: 0,
            honest: true,
        };
        world.settle();
        world
    }

    fn act(&mut self, action: u8, input: &mut impl Iterator<Item = u8>) {
        let mut operand = || input.next().unwrap_or_default();
        match action % 24 {
            0 => self.deliver(End::Agent),
            1 => self.deliver(End::Backend),
            2 => self.damage(End::Agent, operand(), operand()),
            3 => self.damage(End::Backend, operand(), operand()),
            4 => self.repeat(End::Agent),
            5 => self.repeat(End::Backend),
            6 => self.lose(End::Agent),
            7 => self.lose(End::Backend),
            8 => {
                let length = usize::from(operand());
                let bytes: Vec<u8> = input.take(length).collect();
                self.honest = false;
                self.agent.handle_frame(&bytes, self.now);
            }
            9 => {
                let length = usize::from(operand());
                let bytes: Vec<u8> = input.take(length).collect();
                self.honest = false;
                self.backend.handle_frame(&bytes, self.now);
            }
            10 => {
                let span = Duration::from_millis(u64::from(operand()).pow(2));
                self.now = self.now.saturating_add(span);
            }
            11 => {
                self.agent.handle_timeout(self.now);
                self.backend.handle_timeout(self.now);
            }
            12 => self.answer_as_agent(),
            13 => self.answer_as_backend(),
            14 => self.refuse(),
            15 => self.send_as_agent(operand()),
            16 => self.send_as_backend(operand()),
            17 => self.agent.close("enough", self.now),
            18 => self.backend.close(CloseCode::Draining, "enough", self.now),
            19 => self.backend.probe(u64::from(operand()), self.now),
            20 => self.reflect(),
            22 => self.forge_to_agent(operand(), operand()),
            23 => self.forge_to_backend(operand(), operand()),
            _ => {
                // A whole round, so that short inputs get far.
                for _ in 0..2 {
                    self.deliver(End::Agent);
                    self.settle();
                    self.answer_as_agent();
                    self.settle();
                    self.deliver(End::Backend);
                    self.settle();
                    self.answer_as_backend();
                    self.settle();
                }
            }
        }
    }

    fn deliver(&mut self, to: End) {
        match to {
            End::Agent => {
                if let Some(frame) = self.to_agent.pop_front() {
                    self.agent.handle_frame(&frame, self.now);
                    self.next_to_agent += 1;
                }
            }
            End::Backend => {
                if let Some(frame) = self.to_backend.pop_front() {
                    self.backend.handle_frame(&frame, self.now);
                }
            }
        }
    }

    const fn queue(&mut self, to: End) -> &mut VecDeque<Vec<u8>> {
        match to {
            End::Agent => &mut self.to_agent,
            End::Backend => &mut self.to_backend,
        }
    }

    fn damage(&mut self, to: End, position: u8, change: u8) {
        if let Some(frame) = self.queue(to).front_mut()
            && let Some(byte) = frame.get_mut(usize::from(position))
            && change != 0
        {
            *byte ^= change;
            self.honest = false;
        }
    }

    fn repeat(&mut self, to: End) {
        if let Some(frame) = self.queue(to).front().cloned() {
            self.queue(to).push_front(frame);
            self.honest = false;
        }
    }

    fn lose(&mut self, to: End) {
        if self.queue(to).pop_front().is_some() {
            self.honest = false;
        }
    }

    /// What the agent sent comes back to it, and what the backend sent to that.
    fn reflect(&mut self) {
        if let Some(frame) = self.to_backend.front() {
            self.honest = false;
            self.agent.handle_frame(frame, self.now);
        }
        if let Some(frame) = self.to_agent.front() {
            self.honest = false;
            self.backend.handle_frame(frame, self.now);
        }
    }

    /// A message from whoever has the backend's keys: any kind at any time, under a good tag.
    fn forge_to_agent(&mut self, which: u8, kind: u8) {
        let Some(keys) = &self.keys else { return };
        let (sample, json) = samples::BACKEND[usize::from(which) % samples::BACKEND.len()];
        // One in two under its own kind, the others under another one.
        let kind = if kind < 0x80 { sample } else { kind & 0x7f };
        let body = Packed::compressed(json.as_bytes().to_vec());
        let frame = seal(kind, 0, self.next_to_agent, &body, &keys.backend_to_agent);
        self.honest = false;
        self.agent.handle_frame(&frame, self.now);
        self.next_to_agent += 1;
    }

    /// The same from whoever has a gateway's keys.
    fn forge_to_backend(&mut self, which: u8, kind: u8) {
        let Some(keys) = &self.keys else { return };
        let (sample, json) = samples::AGENT[usize::from(which) % samples::AGENT.len()];
        let kind = if kind < 0x80 { sample } else { kind & 0x7f };
        let body = Packed::compressed(json.as_bytes().to_vec());
        let next = self.backend.last_processed() + 1;
        let frame = seal(kind, 0, next, &body, &keys.agent_to_backend);
        self.honest = false;
        self.backend.handle_frame(&frame, self.now);
    }

    fn answer_as_agent(&mut self) {
        if std::mem::take(&mut self.at_agent.challenged) {
            let hello = serde_json::from_str(samples::HELLO).expect("the sample is a HELLO");
            self.agent.hello(hello, [0xc1; 32], self.now);
        }
        if std::mem::take(&mut self.at_agent.welcomed) {
            self.agent.confirm(self.now);
            self.at_agent.confirmed = true;
        }
    }

    fn answer_as_backend(&mut self) {
        if std::mem::take(&mut self.at_backend.hello) {
            let welcome = serde_json::from_str(samples::WELCOME).expect("the sample is a WELCOME");
            self.backend.welcome(welcome, self.now);
        }
        if std::mem::take(&mut self.at_backend.confirmed) {
            self.backend.established(self.now);
            self.at_backend.committed = true;
        }
    }

    fn refuse(&mut self) {
        let refuse = Refuse {
            code: CloseCode::RateLimited,
            reason: "wait".to_owned(),
            retry_after_ms: Some(1_000),
        };
        self.backend.refuse(refuse, self.now);
    }

    fn send_as_agent(&mut self, which: u8) {
        let (kind, json) = samples::AGENT[usize::from(which) % samples::AGENT.len()];
        let message = AgentMessage::decode(kind, json.as_bytes());
        if let Some(Ok(message)) = message {
            let sent = self.agent.send(message, self.now);
            if self.agent.state() != AgentState::Established
                && self.agent.state() != AgentState::Draining
            {
                assert!(sent.is_err(), "a message was taken outside a session");
            }
        }
    }

    fn send_as_backend(&mut self, which: u8) {
        let (kind, json) = samples::BACKEND[usize::from(which) % samples::BACKEND.len()];
        let message = BackendMessage::decode(kind, json.as_bytes());
        if let Some(Ok(message)) = message {
            let sent = self.backend.send(message, self.now);
            if self.backend.state() != BackendState::Established
                && self.backend.state() != BackendState::Draining
            {
                assert!(sent.is_err(), "a message was taken outside a session");
            }
        }
    }

    /// Drains both machines as their drivers do, and holds them to the laws.
    fn settle(&mut self) {
        while let Some(event) = self.agent.poll_event() {
            self.at_agent.event(event);
        }
        while let Some(event) = self.backend.poll_event() {
            self.at_backend.event(event);
        }
        while let Some(frame) = self.agent.poll_transmit(self.now) {
            assert!(frame.len() <= limits::MESSAGE_BYTES_MAX);
            if let (Some(challenge), None) = (&self.challenge, &self.keys) {
                self.keys = Some(self.schedule.session_keys(challenge, &frame));
            }
            self.to_backend.push_back(frame);
        }
        while let Some(frame) = self.backend.poll_transmit(self.now) {
            assert!(frame.len() <= limits::MESSAGE_BYTES_MAX);
            self.challenge.get_or_insert_with(|| frame.clone());
            self.to_agent.push_back(frame);
        }
        let over = [
            (
                self.agent.closed(),
                &self.at_agent.over,
                self.agent.state() == AgentState::Closed,
                self.agent.poll_timeout(),
            ),
            (
                self.backend.closed(),
                &self.at_backend.over,
                self.backend.state() == BackendState::Closed,
                self.backend.poll_timeout(),
            ),
        ];
        for (closed, told, is_closed, timer) in over {
            assert_eq!(closed.is_some(), is_closed, "closed and its state disagree");
            assert_eq!(closed, told.as_ref(), "the driver was told something else");
            assert!(closed.is_none() || timer.is_none(), "a timer after the end");
            let code = closed.and_then(|closed| closed.code);
            let blames = matches!(
                code,
                Some(CloseCode::BadEnvelope | CloseCode::TooLarge | CloseCode::Internal)
            );
            assert!(!self.honest || !blames || self.late(), "{closed:?}");
        }
        if self.backend.state() == BackendState::Established {
            assert!(self.at_backend.committed);
            assert!(self.at_agent.confirmed || !self.honest);
        }
    }

    /// Whether a driver may have let the time for its own decision pass.
    fn late(&self) -> bool {
        self.now.saturating_since(Monotonic::ORIGIN) >= limits::CHALLENGE_AGE_MAX
    }
}

impl AgentDriver {
    fn event(&mut self, event: AgentEvent) {
        assert!(self.over.is_none(), "{event:?} after the end");
        match event {
            AgentEvent::Challenged { .. } => {
                assert!(!self.challenged && !self.confirmed);
                self.challenged = true;
            }
            AgentEvent::Welcomed(_) => {
                assert!(!self.welcomed && !self.confirmed);
                self.welcomed = true;
            }
            AgentEvent::Closed(closed) => self.over = Some(closed),
            AgentEvent::Refused { .. } => {}
            AgentEvent::Established
            | AgentEvent::HeartbeatDue
            | AgentEvent::RoundTrip { .. }
            | AgentEvent::TelemetryAcknowledged(_)
            | AgentEvent::TelemetryRefused(_)
            | AgentEvent::Command(_)
            | AgentEvent::Go(_)
            | AgentEvent::Drop(_)
            | AgentEvent::Cancel(_)
            | AgentEvent::ResultAcknowledged { .. }
            | AgentEvent::CertificateAnswered(_)
            | AgentEvent::PinsOffered(_)
            | AgentEvent::KeyOffered { .. }
            | AgentEvent::AuthoritiesOffered(_)
            | AgentEvent::Draining { .. } => {
                assert!(self.confirmed, "{event:?} before CONFIRM");
            }
        }
    }
}

impl BackendDriver {
    fn event(&mut self, event: BackendEvent) {
        assert!(self.over.is_none(), "{event:?} after the end");
        match event {
            BackendEvent::Hello { .. } => {
                assert!(!self.hello && !self.committed);
                self.hello = true;
            }
            BackendEvent::Confirmed { .. } => {
                assert!(!self.confirmed && !self.committed);
                self.confirmed = true;
            }
            BackendEvent::Closed(closed) => self.over = Some(closed),
            BackendEvent::Heartbeat(_)
            | BackendEvent::ProbeAnswered { .. }
            | BackendEvent::Telemetry(_)
            | BackendEvent::Accepted(_)
            | BackendEvent::Rejected(_)
            | BackendEvent::Started(_)
            | BackendEvent::Output(_)
            | BackendEvent::Result(_)
            | BackendEvent::Catalogue(_)
            | BackendEvent::PinReport(_)
            | BackendEvent::CertificateWanted(_)
            | BackendEvent::KeyReported(_)
            | BackendEvent::TrustReported(_)
            | BackendEvent::Event(_)
            | BackendEvent::Bye { .. } => {
                assert!(self.committed, "{event:?} before the commit");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_rounds_establish_a_session_and_messages_cross_it() {
        let mut world = World::new();
        for action in [21, 21, 15, 16] {
            world.act(action, &mut std::iter::repeat(0));
            world.settle();
        }
        assert!(world.honest);
        assert_eq!(world.agent.state(), AgentState::Established);
        assert_eq!(world.backend.state(), BackendState::Established);
        assert!(!world.to_agent.is_empty() && !world.to_backend.is_empty());
    }

    #[test]
    fn a_forged_message_is_taken_for_a_real_one() {
        let mut world = World::new();
        for action in [21, 21, 22, 23] {
            world.act(action, &mut std::iter::repeat(0));
            world.settle();
        }
        assert!(!world.honest);
        assert_eq!(world.agent.state(), AgentState::Established);
        assert_eq!(world.backend.state(), BackendState::Established);
    }
}
