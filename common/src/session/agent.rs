//! The gateway's end of a session.

mod established;
mod event;
mod sent_times;

use std::collections::VecDeque;
use std::time::Duration;

pub use self::event::{AgentEvent, AgentSessionConfig};

use self::established::{Established, Terms};
use self::sent_times::SentTimes;
use super::inbox::Inbox;
use super::link::Link;
use super::state::AgentState;
use super::timer::{Timer, Timers};
use super::{Closed, End, Misplaced, SendRefusal, cut};
use crate::code::CloseCode;
use crate::key::{KeyCover, Schedule};
use crate::limits;
use crate::rules::{Rule, Rulebook};
use crate::time::Monotonic;
use crate::wire::envelope::{
    self, EnvelopeError, KIND_HELLO, NONCE_BYTES, Packed, Phase, SESSION_ID_BYTES, Sealed, VERSION,
};
use crate::wire::message::{
    AgentMessage, BackendMessage, Bye, Challenge, Confirm, HeartbeatAck, Hello, Permit, Refuse,
    Welcome,
};

/// CHALLENGE was read.
#[derive(Debug)]
struct Challenged {
    challenge: Vec<u8>,
    server_nonce: [u8; NONCE_BYTES],
}

/// HELLO was sent.
#[derive(Debug)]
struct AwaitWelcome {
    link: Link,
    hello_sent_at: Monotonic,
}

/// WELCOME was read.
#[derive(Debug)]
struct Welcomed {
    link: Link,
    hello_sent_at: Monotonic,
    terms: Terms,
}

#[derive(Debug)]
enum State {
    AwaitChallenge,
    Challenged(Challenged),
    AwaitWelcome(AwaitWelcome),
    Welcomed(Welcomed),
    Established(Box<Established>),
    Closed,
}

/// The gateway's end of one session.
#[derive(Debug)]
pub struct AgentSession {
    config: AgentSessionConfig,
    state: State,
    timers: Timers,
    events: Inbox<AgentEvent>,
    /// What covers a later agent key in this session, once HELLO is made.
    cover: Option<KeyCover>,
    /// Messages of the opening and the last one: sealed at once, sent before anything else.
    ready: VecDeque<Vec<u8>>,
    /// What ended it was not made for it.
    misplaced: Option<Misplaced>,
    closed: Option<Closed>,
}

impl AgentSession {
    /// Starts a session on a connection whose upgrade was just accepted.
    #[must_use]
    pub fn new(config: AgentSessionConfig, now: Monotonic) -> Self {
        let mut timers = Timers::default();
        timers.set(Timer::Opening, now.saturating_add(config.opening_timeout));
        Self {
            config,
            state: State::AwaitChallenge,
            timers,
            events: Inbox::new(),
            cover: None,
            ready: VecDeque::new(),
            misplaced: None,
            closed: None,
        }
    }

    /// What was wrong with the message that ended the session, when no backend sends such a one: a security event.
    /// Before HELLO there are no keys, and nothing is known of that.
    #[must_use]
    pub const fn misplaced(&self) -> Option<Misplaced> {
        self.misplaced
    }

    /// Where the session is.
    #[must_use]
    pub fn state(&self) -> AgentState {
        match &self.state {
            State::AwaitChallenge => AgentState::AwaitChallenge,
            State::Challenged(_) => AgentState::Challenged,
            State::AwaitWelcome(_) => AgentState::AwaitWelcome,
            State::Welcomed(_) => AgentState::Welcomed,
            State::Established(live) if live.draining => AgentState::Draining,
            State::Established(_) => AgentState::Established,
            State::Closed => AgentState::Closed,
        }
    }

    /// Takes in one binary WebSocket message.
    pub fn handle_frame(&mut self, bytes: &[u8], now: Monotonic) {
        if !self.events.has_room() {
            return self.fail(CloseCode::Internal, "the driver does not drain its events");
        }
        match &mut self.state {
            State::Closed => {}
            State::AwaitChallenge => self.handle_challenge(bytes),
            State::Challenged(_) => {
                self.fail(CloseCode::BadEnvelope, "a message before HELLO was sent");
            }
            State::AwaitWelcome(AwaitWelcome { link, .. })
            | State::Welcomed(Welcomed { link, .. }) => {
                let opened = link.open(bytes, Phase::Opening).map(|o| decode(&o));
                self.dispatch(opened, bytes.len(), now);
            }
            State::Established(live) => {
                let opened = live
                    .link
                    .open(bytes, Phase::Established)
                    .map(|o| decode(&o));
                if opened.is_ok() {
                    let silence = now.saturating_add(live.silence);
                    self.timers.set(Timer::Silence, silence);
                }
                self.dispatch(opened, bytes.len(), now);
            }
        }
    }

    /// Acts on every deadline that has passed.
    pub fn handle_timeout(&mut self, now: Monotonic) {
        while let Some(timer) = self.timers.take_due(now) {
            match timer {
                Timer::Opening => {
                    self.fail(
                        CloseCode::HelloTimeout,
                        "the opening was not completed in time",
                    );
                }
                Timer::Silence => {
                    self.fail(
                        CloseCode::HeartbeatTimeout,
                        "no authenticated message from the backend in time",
                    );
                }
                Timer::Heartbeat => self.heartbeat_due(now),
                Timer::Drain => self.close("drained", now),
                // The backend's own.
                Timer::Decision | Timer::Certificate => {}
            }
        }
    }

    /// Answers [`AgentEvent::Challenged`]. Does nothing in another state: the session may have ended meanwhile.
    pub fn hello(&mut self, mut hello: Hello, client_nonce: [u8; NONCE_BYTES], now: Monotonic) {
        let State::Challenged(challenged) = &self.state else {
            return;
        };
        hello.version = VERSION;
        let schedule = Schedule::new(
            &challenged.server_nonce,
            &self.config.key,
            self.config.identity.clone(),
            &self.config.binding,
        );
        let body = envelope::hello_body(&client_nonce, &AgentMessage::Hello(hello).encode());
        if body.message_bytes() > limits::OPENING_MESSAGE_BYTES_MAX {
            let reason = format!("HELLO of {} bytes cannot be sent", body.message_bytes());
            return self.fail(CloseCode::TooLarge, &reason);
        }
        let key = schedule.hello_key(&challenged.challenge);
        let sealed = envelope::seal(KIND_HELLO, self.config.key_generation, 1, &body, &key);
        let keys = schedule.session_keys(&challenged.challenge, &sealed);
        self.cover = Some(schedule.key_cover(&challenged.challenge, &sealed));
        self.state = State::AwaitWelcome(AwaitWelcome {
            link: Link::new(keys.agent_to_backend, keys.backend_to_agent, 2, 1),
            hello_sent_at: now,
        });
        self.ready.push_back(sealed);
    }

    /// Answers [`AgentEvent::Welcomed`], after epoch and token are durable. Does nothing in another state.
    pub fn confirm(&mut self, now: Monotonic) {
        if !matches!(self.state, State::Welcomed(_)) {
            return;
        }
        let State::Welcomed(mut welcomed) = std::mem::replace(&mut self.state, State::Closed)
        else {
            return;
        };
        let terms = welcomed.terms;
        let confirm = AgentMessage::Confirm(Confirm { epoch: terms.epoch });
        let body = Packed::plain(confirm.encode());
        self.ready
            .push_back(welcomed.link.seal(confirm.kind(), &body));
        let sent = SentTimes::new(welcomed.hello_sent_at, welcomed.link.last_sent(), now);
        let live = Established::new(welcomed.link, &terms, sent);
        self.state = State::Established(Box::new(live));
        self.timers.clear(Timer::Opening);
        self.timers
            .set(Timer::Silence, now.saturating_add(terms.silence));
        self.events.push(AgentEvent::Established, 0);
        // The first one at once: it measures the round trip.
        self.heartbeat_due(now);
    }

    /// Queues a message. The time is that of queueing; deadlines count from when it is sent.
    ///
    /// # Errors
    /// When the message cannot be taken now; nothing of it was kept.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a message that was taken is used up"
    )]
    pub fn send(&mut self, message: AgentMessage, _now: Monotonic) -> Result<(), SendRefusal> {
        let State::Established(live) = &mut self.state else {
            return Err(SendRefusal::NotEstablished);
        };
        live.send(&message)
    }

    /// Bytes of TELEMETRY bodies that may be sent now.
    #[must_use]
    pub fn telemetry_credit(&self) -> usize {
        match &self.state {
            State::Established(live) => live.telemetry.credit(),
            State::AwaitChallenge
            | State::Challenged(_)
            | State::AwaitWelcome(_)
            | State::Welcomed(_)
            | State::Closed => 0,
        }
    }

    /// Bytes of live output that may be sent now.
    #[must_use]
    pub fn output_credit(&self) -> u64 {
        match &self.state {
            State::Established(live) => live.output_credit(),
            State::AwaitChallenge
            | State::Challenged(_)
            | State::AwaitWelcome(_)
            | State::Welcomed(_)
            | State::Closed => 0,
        }
    }

    /// Until when a permit holds that arrived at `now`, on this gateway's own clock: it counts from when the frame
    /// that it names was sent, so delay can only end it early.
    #[must_use]
    pub fn deadline(&self, rules: impl Rulebook, permit: &Permit, now: Monotonic) -> Monotonic {
        let from = if rules.keeps(Rule::PermitCountsFromSending) {
            self.sent_at(permit.as_of)
        } else {
            now
        };
        from.saturating_add(Duration::from_millis(permit.remaining_ms))
    }

    /// When the frame with sequence `as_of` was sent, for counting a permit: never later than the truth.
    ///
    /// Zero before CONFIRM and after the end, which no permit survives.
    #[must_use]
    pub fn sent_at(&self, as_of: u64) -> Monotonic {
        match &self.state {
            State::Established(live) => live.sent.at(as_of),
            State::AwaitChallenge
            | State::Challenged(_)
            | State::AwaitWelcome(_)
            | State::Welcomed(_)
            | State::Closed => Monotonic::ORIGIN,
        }
    }

    /// Ends the session on purpose; once established, the backend is told with BYE.
    pub fn close(&mut self, reason: &str, _now: Monotonic) {
        if self.closed.is_some() {
            return;
        }
        let reason = cut(reason);
        if let State::Established(live) = &mut self.state {
            let bye = AgentMessage::Bye(Bye {
                reason: reason.clone(),
            });
            let sealed = live.link.seal(bye.kind(), &Packed::plain(bye.encode()));
            self.ready.push_back(sealed);
        }
        self.end(Closed {
            code: None,
            reason,
            by: End::Agent,
        });
    }

    /// The next message for the socket. It gets its sequence number here, so it must be sent, in this order.
    pub fn poll_transmit(&mut self, now: Monotonic) -> Option<Vec<u8>> {
        if let Some(bytes) = self.ready.pop_front() {
            return Some(bytes);
        }
        match &mut self.state {
            State::Established(live) => live.transmit(now),
            State::AwaitChallenge
            | State::Challenged(_)
            | State::AwaitWelcome(_)
            | State::Welcomed(_)
            | State::Closed => None,
        }
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<AgentEvent> {
        self.events.pop()
    }

    /// When to call [`Self::handle_timeout`], and what for.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Monotonic, &'static str)> {
        self.timers.next()
    }

    /// Why the session is over, once it is. What `poll_transmit` still holds is sent before the close frame.
    #[must_use]
    pub const fn closed(&self) -> Option<&Closed> {
        self.closed.as_ref()
    }

    fn handle_challenge(&mut self, bytes: &[u8]) {
        let challenge = match read_challenge(bytes) {
            Ok(challenge) => challenge,
            Err((code, reason)) => return self.fail(code, &reason),
        };
        let (challenged, terms) = challenge;
        let floor = self.config.version_floor;
        if terms.version_max < floor.max(1) || terms.version_min > VERSION {
            let reason = format!(
                "the backend speaks protocol versions {} to {}, this gateway {floor} to {VERSION}",
                terms.version_min, terms.version_max
            );
            return self.fail(CloseCode::ProtocolTooOld, &reason);
        }
        let own = self.config.binding.mode;
        if terms.binding != own {
            let reason = format!(
                "the backend binds sessions to the {}, this gateway to the {}",
                terms.binding.name(),
                own.name()
            );
            return self.fail(CloseCode::BindingMismatch, &reason);
        }
        self.state = State::Challenged(challenged);
        let server_time = terms.server_time;
        self.events
            .push(AgentEvent::Challenged { server_time }, bytes.len());
    }

    fn dispatch(&mut self, opened: Result<Decoded, EnvelopeError>, bytes: usize, now: Monotonic) {
        self.misplaced = opened
            .as_ref()
            .err()
            .and_then(|error| Misplaced::of(*error));
        let message = match opened {
            Ok(Ok(message)) => message,
            Ok(Err(reason)) => return self.fail(CloseCode::BadEnvelope, &reason),
            Err(error) => return self.fail(error.close_code(), &error.to_string()),
        };
        if !self.state().allows(&message) {
            let reason = format!(
                "{} is not legal in state {}",
                message.name(),
                self.state().name()
            );
            return self.fail(CloseCode::BadEnvelope, &reason);
        }
        match message {
            // `allows` lets no CHALLENGE come this far.
            BackendMessage::Challenge(_) => {}
            BackendMessage::Welcome(welcome) => self.welcomed(welcome, bytes),
            BackendMessage::Refuse(refuse) => self.refused(&refuse, bytes),
            BackendMessage::HeartbeatAck(ack) => self.heartbeat_acknowledged(&ack, now),
            BackendMessage::Probe(probe) => {
                if let State::Established(live) = &mut self.state {
                    // A full control lane means that the socket is stuck: then silence is the true answer.
                    let _stuck = live.send(&AgentMessage::ProbeAck(probe)).is_err();
                }
            }
            BackendMessage::TelemetryAck(ack) => {
                if let State::Established(live) = &mut self.state {
                    live.telemetry.acknowledged(ack.position, now);
                }
                if !ack.refused.is_empty() {
                    self.events
                        .push(AgentEvent::TelemetryRefused(ack.refused), bytes);
                }
                self.events
                    .push(AgentEvent::TelemetryAcknowledged(ack.position), bytes);
            }
            BackendMessage::Command(command) => {
                self.events
                    .push(AgentEvent::Command(Box::new(command)), bytes);
            }
            BackendMessage::Go(go) => self.events.push(AgentEvent::Go(go), bytes),
            BackendMessage::CommandDrop(dropped) => {
                self.events
                    .push(AgentEvent::Drop(dropped.command_id), bytes);
            }
            BackendMessage::CommandCancel(cancelled) => {
                self.events
                    .push(AgentEvent::Cancel(cancelled.command_id), bytes);
            }
            BackendMessage::ResultAck(ack) => {
                let event = AgentEvent::ResultAcknowledged {
                    command_id: ack.command_id,
                    low_water: ack.low_water,
                    kept: !ack.not_kept,
                };
                self.events.push(event, bytes);
            }
            BackendMessage::CertIssued(issued) => {
                self.events
                    .push(AgentEvent::CertificateAnswered(Box::new(issued)), bytes);
            }
            BackendMessage::PinUpdate(offered) => {
                self.events
                    .push(AgentEvent::PinsOffered(Box::new(offered)), bytes);
            }
            BackendMessage::KeyUpdate(update) => {
                let generation = update.generation;
                let opened = |cover: &KeyCover| cover.open(generation, &update.sealed);
                // There is one since HELLO, and the message was checked when it was read.
                if let Some(key) = self.cover.as_ref().and_then(opened) {
                    self.events
                        .push(AgentEvent::KeyOffered { generation, key }, bytes);
                }
            }
            BackendMessage::TrustUpdate(update) => {
                let event = AgentEvent::AuthoritiesOffered(update.bundle);
                self.events.push(event, bytes);
            }
            BackendMessage::Drain(drain) => {
                if let State::Established(live) = &mut self.state {
                    live.draining = true;
                }
                self.timers
                    .set(Timer::Drain, now.saturating_add(limits::DRAIN_TIME));
                let reconnect_after = Duration::from_millis(drain.reconnect_after_ms);
                self.events
                    .push(AgentEvent::Draining { reconnect_after }, bytes);
            }
        }
    }

    fn welcomed(&mut self, welcome: Welcome, bytes: usize) {
        let terms = Terms::from(&welcome);
        // `allows` lets WELCOME come this far in one state only.
        if let State::AwaitWelcome(waiting) = std::mem::replace(&mut self.state, State::Closed) {
            self.state = State::Welcomed(Welcomed {
                link: waiting.link,
                hello_sent_at: waiting.hello_sent_at,
                terms,
            });
            self.events
                .push(AgentEvent::Welcomed(Box::new(welcome)), bytes);
        }
    }

    fn refused(&mut self, refuse: &Refuse, bytes: usize) {
        let closed = Closed {
            code: Some(refuse.code),
            reason: cut(&refuse.reason),
            by: End::Backend,
        };
        let event = AgentEvent::Refused {
            code: refuse.code,
            reason: closed.reason.clone(),
            retry_after: refuse.retry_after_ms.map(Duration::from_millis),
        };
        self.events.push(event, bytes);
        self.end(closed);
    }

    fn heartbeat_due(&mut self, now: Monotonic) {
        if let State::Established(live) = &self.state {
            let next = now.saturating_add(live.heartbeat_interval);
            self.timers.set(Timer::Heartbeat, next);
            self.events.push(AgentEvent::HeartbeatDue, 0);
        }
    }

    fn heartbeat_acknowledged(&mut self, ack: &HeartbeatAck, now: Monotonic) {
        if let State::Established(live) = &mut self.state
            && let Some(rtt) = live.heartbeat_acknowledged(ack, now)
        {
            let server_time = ack.server_time;
            self.events
                .push(AgentEvent::RoundTrip { rtt, server_time }, 0);
        }
    }

    fn fail(&mut self, code: CloseCode, reason: &str) {
        self.end(Closed {
            code: Some(code),
            reason: cut(reason),
            by: End::Agent,
        });
    }

    fn end(&mut self, closed: Closed) {
        if self.closed.is_some() {
            return;
        }
        self.state = State::Closed;
        self.timers.clear_all();
        self.events.push(AgentEvent::Closed(closed.clone()), 0);
        self.closed = Some(closed);
    }
}

/// A message behind a verified tag, or why its body is not one.
type Decoded = Result<BackendMessage, String>;

fn decode(opened: &envelope::Opened<'_>) -> Decoded {
    match BackendMessage::decode(opened.kind(), opened.body()) {
        Some(Ok(message)) => Ok(message),
        Some(Err(error)) => Err(format!(
            "the body of kind {:#04x} is malformed: {error}",
            opened.kind()
        )),
        None => Err(format!("kind {:#04x} is not defined", opened.kind())),
    }
}

fn read_challenge(bytes: &[u8]) -> Result<(Challenged, Challenge), (CloseCode, String)> {
    let opened = Sealed::new(bytes, Phase::Opening)
        .and_then(Sealed::open_challenge)
        .map_err(|error| (error.close_code(), error.to_string()))?;
    let malformed = |what: &str| {
        (
            CloseCode::BadEnvelope,
            format!("CHALLENGE is malformed: {what}"),
        )
    };
    let (server_nonce, json) = opened
        .body()
        .split_at_checked(SESSION_ID_BYTES)
        .and_then(|(_session_id, rest)| rest.split_first_chunk::<NONCE_BYTES>())
        .ok_or_else(|| malformed("it is too short"))?;
    match BackendMessage::decode(opened.kind(), json) {
        Some(Ok(BackendMessage::Challenge(terms))) => Ok((
            Challenged {
                challenge: bytes.to_vec(),
                server_nonce: *server_nonce,
            },
            terms,
        )),
        Some(Err(error)) => Err(malformed(&error.to_string())),
        Some(Ok(_)) | None => Err(malformed("it is another message")),
    }
}
