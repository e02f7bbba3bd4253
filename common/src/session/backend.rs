//! The backend's end of a session.

mod established;
mod event;
mod hello;

use std::collections::VecDeque;

pub use self::event::{BackendEvent, BackendSessionConfig};

use self::established::{Established, Terms};
use self::hello::{Deciding, Unread};
use super::inbox::Inbox;
use super::link::Link;
use super::outbox;
use super::state::BackendState;
use super::timer::{Timer, Timers};
use super::{Closed, End, Misplaced, SendRefusal, cut};
use crate::code::CloseCode;
use crate::key::{KeyCover, SessionKeys};
use crate::limits;
use crate::time::Monotonic;
use crate::wire::PackedBatch;
use crate::wire::envelope::{
    self, EnvelopeError, KIND_TELEMETRY, NONCE_BYTES, Packed, Phase, Sealed, VERSION, Verified,
};
use crate::wire::message::{
    AgentMessage, BackendMessage, Challenge, KeyUpdate, Priority, Probe, Refuse, Welcome,
};

/// What a gateway is told whose HELLO does not prove its key; no more, because nobody proved to be that gateway.
pub const HELLO_UNPROVED: &str = "HELLO is not made with this gateway's agent key";

/// The opening's second half: WELCOME is out, or CONFIRM was read as well.
#[derive(Debug)]
struct Opening {
    link: Link,
    terms: Terms,
}

#[derive(Debug)]
enum State {
    AwaitHello,
    Deciding(Deciding),
    AwaitConfirm(Opening),
    Confirming(Opening),
    Established(Box<Established>),
    Closed,
}

/// The backend's end of one session.
#[derive(Debug)]
pub struct BackendSession {
    config: BackendSessionConfig,
    state: State,
    challenge: Vec<u8>,
    challenged_at: Monotonic,
    timers: Timers,
    events: Inbox<BackendEvent>,
    /// What covers a later agent key in this session, once WELCOME is made.
    cover: Option<KeyCover>,
    /// Messages of the opening and the last one: sealed at once, sent before anything else.
    ready: VecDeque<Vec<u8>>,
    /// CONFIRM was read and is not committed: nothing behind it may have an effect.
    uncommitted: bool,
    /// `Confirmed` was handed out and is not answered: the events behind it wait.
    withheld: bool,
    /// HELLO was not made with the key that its certificate stands for.
    unproved: bool,
    /// What ended it was not made for it.
    misplaced: Option<Misplaced>,
    /// HELLO was made with a key of the master key that is beside the one that makes others.
    of_the_other: bool,
    closed: Option<Closed>,
}

impl BackendSession {
    /// Starts a session on a connection that was just upgraded; CHALLENGE waits in [`Self::poll_transmit`].
    #[must_use]
    pub fn new(config: BackendSessionConfig, now: Monotonic) -> Self {
        let terms = BackendMessage::Challenge(Challenge {
            server_time: config.server_time,
            version_min: VERSION,
            version_max: VERSION,
            binding: config.binding.mode,
        });
        let session_id = config.session_id.as_uuid().as_bytes();
        let challenge = envelope::challenge(session_id, &config.server_nonce, &terms.encode());
        let mut timers = Timers::default();
        timers.set(Timer::Opening, now.saturating_add(config.hello_timeout));
        if let Some(remaining) = config.certificate_remaining {
            timers.set(Timer::Certificate, now.saturating_add(remaining));
        }
        Self {
            config,
            state: State::AwaitHello,
            ready: VecDeque::from([challenge.clone()]),
            challenge,
            challenged_at: now,
            timers,
            events: Inbox::new(),
            cover: None,
            uncommitted: false,
            withheld: false,
            unproved: false,
            misplaced: None,
            of_the_other: false,
            closed: None,
        }
    }

    /// Whether HELLO was made with a key of the master key that is beside the one that makes others: the gateway is to
    /// get one of that.
    #[must_use]
    pub const fn hello_was_of_the_other_master(&self) -> bool {
        self.of_the_other
    }

    /// Whether HELLO came with a tag that this gateway's key did not make: a wrong agent key, another binding, or
    /// somebody who has the certificate and nothing else.
    #[must_use]
    pub const fn hello_was_unproved(&self) -> bool {
        self.unproved
    }

    /// What was wrong with the message that ended the session, when no gateway sends such a one: a security event.
    #[must_use]
    pub const fn misplaced(&self) -> Option<Misplaced> {
        self.misplaced
    }

    /// The nonce a HELLO claims, before anything is verified: for looking it up, never for remembering it.
    #[must_use]
    pub fn peek_client_nonce(bytes: &[u8]) -> Option<[u8; NONCE_BYTES]> {
        Sealed::new(bytes, Phase::Opening)
            .ok()?
            .claimed_client_nonce()
    }

    /// Where the session is.
    #[must_use]
    pub fn state(&self) -> BackendState {
        match &self.state {
            State::AwaitHello => BackendState::AwaitHello,
            State::Deciding(_) => BackendState::Deciding,
            State::AwaitConfirm(_) => BackendState::AwaitConfirm,
            State::Confirming(_) => BackendState::Confirming,
            State::Established(live) if live.draining => BackendState::Draining,
            State::Established(_) => BackendState::Established,
            State::Closed => BackendState::Closed,
        }
    }

    /// Takes in one binary WebSocket message.
    pub fn handle_frame(&mut self, bytes: &[u8], now: Monotonic) {
        if !self.events.has_room() {
            return self.fail(CloseCode::Internal, "the driver does not drain its events");
        }
        let phase = match &self.state {
            State::AwaitHello | State::Deciding(_) | State::AwaitConfirm(_) => Phase::Opening,
            State::Confirming(_) | State::Established(_) | State::Closed => Phase::Established,
        };
        match &mut self.state {
            State::Closed => {}
            State::AwaitHello => self.handle_hello(bytes, now),
            State::Deciding(_) => {
                self.misplaced = Some(Misplaced::OutOfTurn);
                self.fail(CloseCode::BadEnvelope, "a message before WELCOME was sent");
            }
            State::AwaitConfirm(Opening { link, .. }) | State::Confirming(Opening { link, .. }) => {
                let decoded = link.verify(bytes, phase).and_then(decode);
                self.dispatch(decoded, bytes.len(), now);
            }
            State::Established(live) => {
                let decoded = live.link.verify(bytes, phase).and_then(decode);
                if decoded.is_ok() {
                    let silence = now.saturating_add(live.terms.silence);
                    self.timers.set(Timer::Silence, silence);
                }
                self.dispatch(decoded, bytes.len(), now);
            }
        }
    }

    /// Counts this moment as a sign of life: the driver itself is not reading.
    pub fn heard(&mut self, now: Monotonic) {
        if let State::Established(live) = &self.state {
            self.timers
                .set(Timer::Silence, now.saturating_add(live.terms.silence));
        }
    }

    /// Acts on every deadline that has passed.
    pub fn handle_timeout(&mut self, now: Monotonic) {
        while let Some(timer) = self.timers.take_due(now) {
            match timer {
                Timer::Opening => {
                    let awaited = match &self.state {
                        State::AwaitHello => "HELLO did not come in time",
                        State::Deciding(_)
                        | State::AwaitConfirm(_)
                        | State::Confirming(_)
                        | State::Established(_)
                        | State::Closed => "CONFIRM did not come in time",
                    };
                    self.fail(CloseCode::HelloTimeout, awaited);
                }
                Timer::Decision => {
                    self.fail(
                        CloseCode::Internal,
                        "the backend could not decide in time; see its log",
                    );
                }
                Timer::Silence => {
                    self.fail(
                        CloseCode::HeartbeatTimeout,
                        "no authenticated message from the gateway in time",
                    );
                }
                // Authentic where there are keys: a bare close frame anybody could have sent.
                Timer::Certificate => self.refuse(
                    Refuse {
                        code: CloseCode::CertUntrusted,
                        reason: "the gateway's certificate has expired".to_owned(),
                        retry_after_ms: None,
                    },
                    now,
                ),
                Timer::Drain => self.fail(CloseCode::Draining, "drained"),
                // The agent's own.
                Timer::Heartbeat => {}
            }
        }
    }

    /// Answers [`BackendEvent::Hello`]. Does nothing in another state: the session may have ended meanwhile.
    pub fn welcome(&mut self, welcome: Welcome, now: Monotonic) {
        if !matches!(self.state, State::Deciding(_)) {
            return;
        }
        let State::Deciding(deciding) = std::mem::replace(&mut self.state, State::Closed) else {
            return;
        };
        let terms = Terms::new(&welcome, deciding.unreported);
        let message = BackendMessage::Welcome(welcome);
        let body = Packed::plain(message.encode());
        if body.message_bytes() > limits::OPENING_MESSAGE_BYTES_MAX {
            let reason = format!("WELCOME of {} bytes cannot be sent", body.message_bytes());
            return self.fail(CloseCode::Internal, &reason);
        }
        self.cover = Some(deciding.cover);
        let mut link = new_link(deciding.keys);
        self.ready.push_back(link.seal(message.kind(), &body));
        self.state = State::AwaitConfirm(Opening { link, terms });
        self.timers.clear(Timer::Decision);
        self.timers.set(
            Timer::Opening,
            now.saturating_add(self.config.hello_timeout),
        );
    }

    /// Refuses with an authenticated REFUSE and ends the session. Before HELLO there is no key: then it only ends.
    pub fn refuse(&mut self, mut refuse: Refuse, _now: Monotonic) {
        refuse.reason = cut(&refuse.reason);
        let closed = Closed {
            code: Some(refuse.code),
            reason: refuse.reason.clone(),
            by: End::Backend,
        };
        let message = BackendMessage::Refuse(refuse);
        let (kind, body) = (message.kind(), Packed::plain(message.encode()));
        let sealed = match std::mem::replace(&mut self.state, State::Closed) {
            State::Deciding(deciding) => Some(new_link(deciding.keys).seal(kind, &body)),
            State::AwaitConfirm(mut opening) | State::Confirming(mut opening) => {
                Some(opening.link.seal(kind, &body))
            }
            State::Established(mut live) => Some(live.link.seal(kind, &body)),
            State::AwaitHello | State::Closed => None,
        };
        self.ready.extend(sealed);
        self.end(closed);
    }

    /// Answers [`BackendEvent::Confirmed`], after the confirmation is committed. Does nothing in another state.
    pub fn established(&mut self, now: Monotonic) {
        if !matches!(self.state, State::Confirming(_)) {
            return;
        }
        if let State::Confirming(Opening { link, terms }) =
            std::mem::replace(&mut self.state, State::Closed)
        {
            self.timers.clear(Timer::Decision);
            self.timers
                .set(Timer::Silence, now.saturating_add(terms.silence));
            self.uncommitted = false;
            self.withheld = false;
            self.state = State::Established(Box::new(Established::new(link, terms)));
        }
    }

    /// Queues a message.
    ///
    /// # Errors
    /// When the message cannot be taken now; nothing of it was kept.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a message that was taken is used up"
    )]
    pub fn send(&mut self, message: BackendMessage, now: Monotonic) -> Result<(), SendRefusal> {
        let State::Established(live) = &mut self.state else {
            return Err(SendRefusal::NotEstablished);
        };
        live.send(&message)?;
        if matches!(message, BackendMessage::Drain(_)) {
            self.timers
                .set(Timer::Drain, now.saturating_add(limits::DRAIN_TIME));
        }
        Ok(())
    }

    /// The agent key of this generation as it travels in this session; none before WELCOME.
    #[must_use]
    pub fn key_update(&self, generation: u8) -> Option<KeyUpdate> {
        let (master, identity) = (&self.config.master, &self.config.identity);
        let key = master.agent_key(identity, u32::from(generation));
        let cover = self.cover.as_ref()?;
        Some(KeyUpdate {
            generation,
            sealed: cover.seal(generation, &key),
        })
    }

    /// The sequence number of the last message from the agent: what a permit names as `as_of`.
    #[must_use]
    pub fn last_processed(&self) -> u64 {
        match &self.state {
            State::AwaitHello | State::Closed => 0,
            State::Deciding(_) => 1,
            State::AwaitConfirm(opening) | State::Confirming(opening) => {
                opening.link.last_received()
            }
            State::Established(live) => live.link.last_received(),
        }
    }

    /// Asks whether the agent is alive. Without an established session there is nobody to ask, and no answer comes.
    pub fn probe(&mut self, id: u64, now: Monotonic) {
        // A full control lane means that the socket is stuck: then silence is the true answer.
        let _stuck = self.send(BackendMessage::Probe(Probe { id }), now).is_err();
    }

    /// Ends the session with nothing but the WebSocket close frame.
    pub fn close(&mut self, code: CloseCode, reason: &str, _now: Monotonic) {
        self.fail(code, reason);
    }

    /// The next message for the socket. It gets its sequence number here, so it must be sent, in this order.
    pub fn poll_transmit(&mut self, _now: Monotonic) -> Option<Vec<u8>> {
        if let Some(bytes) = self.ready.pop_front() {
            return Some(bytes);
        }
        match &mut self.state {
            State::Established(live) => live.transmit(),
            State::AwaitHello
            | State::Deciding(_)
            | State::AwaitConfirm(_)
            | State::Confirming(_)
            | State::Closed => None,
        }
    }

    /// The next event. Behind [`BackendEvent::Confirmed`] nothing comes before [`Self::established`].
    pub fn poll_event(&mut self) -> Option<BackendEvent> {
        if self.withheld {
            return None;
        }
        let event = self.events.pop()?;
        self.withheld = matches!(event, BackendEvent::Confirmed { .. }) && self.uncommitted;
        Some(event)
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

    fn handle_hello(&mut self, bytes: &[u8], now: Monotonic) {
        let age = now.saturating_since(self.challenged_at);
        match hello::read(&self.config, &self.challenge, bytes, age) {
            Ok((deciding, version, event)) => {
                self.of_the_other = deciding.of_the_other;
                self.state = State::Deciding(deciding);
                self.timers.clear(Timer::Opening);
                if version < VERSION {
                    let reason = format!(
                        "the gateway speaks protocol versions up to {version}, this backend {VERSION}"
                    );
                    return self.refuse_with(CloseCode::ProtocolTooOld, &reason, now);
                }
                self.timers.set(
                    Timer::Decision,
                    now.saturating_add(limits::CHALLENGE_AGE_MAX),
                );
                self.events.push(event, bytes.len());
            }
            Err(Unread::Unproved(EnvelopeError::BadTag)) => {
                self.unproved = true;
                self.fail(EnvelopeError::BadTag.close_code(), HELLO_UNPROVED);
            }
            Err(Unread::Unproved(error)) => self.fail(error.close_code(), &error.to_string()),
            Err(Unread::Malformed(deciding, what)) => {
                self.of_the_other = deciding.of_the_other;
                self.state = State::Deciding(*deciding);
                self.violated(&format!("HELLO is malformed: {what}"), now);
            }
        }
    }

    /// Acts on a frame of `frame_bytes` bytes; what waits because of it is counted as it costs.
    fn dispatch(
        &mut self,
        decoded: Result<Decoded, EnvelopeError>,
        frame_bytes: usize,
        now: Monotonic,
    ) {
        self.misplaced = decoded
            .as_ref()
            .err()
            .and_then(|error| Misplaced::of(*error));
        let (message, bytes) = match decoded {
            Ok(Decoded::Message(message, body_bytes)) => (message, frame_bytes.max(body_bytes)),
            Ok(Decoded::Batch(batch)) => return self.batch(batch, frame_bytes, now),
            Ok(Decoded::Malformed(reason)) => return self.violated(&reason, now),
            Err(error) if error.is_authentic() => {
                return self.refuse_with(error.close_code(), &error.to_string(), now);
            }
            Err(error) => return self.fail(error.close_code(), &error.to_string()),
        };
        let state = self.state();
        if !state.allows(&message) {
            let reason = format!("{} is not legal in state {}", message.name(), state.name());
            return self.violated(&reason, now);
        }
        if let Err((code, reason)) = self.charge(&message, frame_bytes) {
            return self.refuse_with(code, reason, now);
        }
        let event = match *message {
            // `allows` lets no HELLO come this far, and a batch went another way.
            AgentMessage::Hello(_) | AgentMessage::Telemetry(_) => return,
            AgentMessage::Confirm(confirm) => return self.confirmed(confirm.epoch, bytes, now),
            AgentMessage::Heartbeat(heartbeat) => BackendEvent::Heartbeat(heartbeat),
            AgentMessage::ProbeAck(probe) => return self.probe_answered(probe.id, bytes),
            AgentMessage::CommandAccepted(accepted) => BackendEvent::Accepted(accepted),
            AgentMessage::CommandRejected(rejected) => BackendEvent::Rejected(rejected),
            AgentMessage::CommandStarted(started) => BackendEvent::Started(started),
            AgentMessage::Output(output) => BackendEvent::Output(output),
            AgentMessage::CommandResult(result) => BackendEvent::Result(Box::new(result)),
            AgentMessage::Catalogue(catalogue) => BackendEvent::Catalogue(catalogue),
            AgentMessage::PinReport(report) => BackendEvent::PinReport(report),
            AgentMessage::CertRequest(request) => BackendEvent::CertificateWanted(request),
            AgentMessage::Event(event) => BackendEvent::Event(event),
            AgentMessage::KeyReport(report) => BackendEvent::KeyReported(report),
            AgentMessage::TrustReport(report) => BackendEvent::TrustReported(report),
            AgentMessage::Bye(bye) => return self.bye(&bye.reason, bytes),
        };
        self.events.push(event, bytes);
    }

    /// Takes in a batch as it travelled: it is unpacked when its turn has come.
    fn batch(&mut self, batch: PackedBatch, bytes: usize, now: Monotonic) {
        let state = self.state();
        if !state.takes_traffic() {
            let reason = format!("Telemetry is not legal in state {}", state.name());
            return self.violated(&reason, now);
        }
        if bytes > outbox::message_bytes_max(Priority::Telemetry) {
            let reason = "the message is too large for its kind";
            return self.refuse_with(CloseCode::TooLarge, reason, now);
        }
        let granted = self
            .terms()
            .is_none_or(|terms| terms.telemetry.received(batch.wire_bytes()));
        if !granted {
            return self.violated("the gateway exceeded its credit", now);
        }
        self.events.push(BackendEvent::Telemetry(batch), bytes);
    }

    const fn terms(&mut self) -> Option<&mut Terms> {
        match &mut self.state {
            State::AwaitConfirm(opening) | State::Confirming(opening) => Some(&mut opening.terms),
            State::Established(live) => Some(&mut live.terms),
            State::AwaitHello | State::Deciding(_) | State::Closed => None,
        }
    }

    /// Holds the agent to its credit, so that what waits here stays bounded whatever it sends.
    fn charge(
        &mut self,
        message: &AgentMessage,
        bytes: usize,
    ) -> Result<(), (CloseCode, &'static str)> {
        let limit = outbox::message_bytes_max(message.priority());
        if bytes > limit {
            return Err((CloseCode::TooLarge, "the message is too large for its kind"));
        }
        if self.terms().is_none_or(|terms| terms.grant(message)) {
            Ok(())
        } else {
            Err((CloseCode::BadEnvelope, "the gateway exceeded its credit"))
        }
    }

    fn confirmed(&mut self, epoch: u64, bytes: usize, now: Monotonic) {
        // `allows` lets CONFIRM come this far in one state only.
        let State::AwaitConfirm(opening) = std::mem::replace(&mut self.state, State::Closed) else {
            return;
        };
        if opening.terms.epoch != epoch {
            return self.fail(
                CloseCode::BadEnvelope,
                "CONFIRM names another epoch than WELCOME",
            );
        }
        self.timers.clear(Timer::Opening);
        self.timers
            .set(Timer::Decision, now.saturating_add(opening.terms.silence));
        self.state = State::Confirming(opening);
        self.uncommitted = true;
        self.events.push(BackendEvent::Confirmed { epoch }, bytes);
    }

    fn probe_answered(&mut self, id: u64, bytes: usize) {
        if let State::Established(live) = &mut self.state
            && live.probe_answered(id)
        {
            self.events.push(BackendEvent::ProbeAnswered { id }, bytes);
        }
    }

    fn bye(&mut self, reason: &str, bytes: usize) {
        let reason = cut(reason);
        self.events.push(
            BackendEvent::Bye {
                reason: reason.clone(),
            },
            bytes,
        );
        self.end(Closed {
            code: None,
            reason,
            by: End::Agent,
        });
    }

    /// An authentic message that breaks a rule: its sender is told which, in a REFUSE that it can believe.
    fn violated(&mut self, reason: &str, now: Monotonic) {
        self.refuse_with(CloseCode::BadEnvelope, reason, now);
    }

    fn refuse_with(&mut self, code: CloseCode, reason: &str, now: Monotonic) {
        let refuse = Refuse {
            code,
            reason: reason.to_owned(),
            retry_after_ms: None,
        };
        self.refuse(refuse, now);
    }

    fn fail(&mut self, code: CloseCode, reason: &str) {
        self.end(Closed {
            code: Some(code),
            reason: cut(reason),
            by: End::Backend,
        });
    }

    fn end(&mut self, closed: Closed) {
        if self.closed.is_some() {
            return;
        }
        self.state = State::Closed;
        self.timers.clear_all();
        if self.uncommitted {
            self.events.clear();
            self.withheld = false;
        }
        self.events.push(BackendEvent::Closed(closed.clone()), 0);
        self.closed = Some(closed);
    }
}

/// After CHALLENGE and HELLO: both directions go on with 1 and 2.
fn new_link(keys: SessionKeys) -> Link {
    Link::new(keys.backend_to_agent, keys.agent_to_backend, 1, 2)
}

/// What is behind a verified tag.
enum Decoded {
    /// A message, with the bytes of its body.
    Message(Box<AgentMessage>, usize),
    /// A batch, which is not read yet.
    Batch(PackedBatch),
    /// Why it is neither.
    Malformed(String),
}

fn decode(verified: Verified<'_>) -> Result<Decoded, EnvelopeError> {
    let (kind, bytes) = (verified.kind(), verified.body_bytes());
    if kind == KIND_TELEMETRY {
        return Ok(Decoded::Batch(PackedBatch::new(verified.keep())));
    }
    Ok(match AgentMessage::decode(kind, verified.open()?.body()) {
        Some(Ok(message)) => Decoded::Message(Box::new(message), bytes),
        Some(Err(error)) => Decoded::Malformed(format!(
            "the body of kind {kind:#04x} is malformed: {error}"
        )),
        None => Decoded::Malformed(format!("kind {kind:#04x} is not defined")),
    })
}
