//! What the gateway brings to a session, and what its driver must know or answer.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::code::CloseCode;
use crate::id::CommandId;
use crate::key::{AgentKey, Binding, Identity};
use crate::pin::PinSet;
use crate::session::Closed;
use crate::telemetry::Position;
use crate::time::Timestamp;
use crate::wire::message::{CertIssued, Command, Go, Welcome};

/// What the gateway brings to a session.
#[derive(Debug, Clone)]
pub struct AgentSessionConfig {
    /// Whose key it is: as in the gateway's certificate.
    pub identity: Identity,
    /// The key shared with the backend.
    pub key: AgentKey,
    /// Which generation of it; never zero.
    pub key_generation: u8,
    /// What the session is bound to.
    pub binding: Binding,
    /// The lowest protocol version this gateway speaks.
    pub version_floor: u8,
    /// How long the whole opening may take.
    pub opening_timeout: Duration,
}

/// What the driver must know or answer.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentEvent {
    /// Answer with [`AgentSession::hello`](super::AgentSession::hello).
    Challenged {
        /// The backend's wall clock.
        server_time: Timestamp,
    },
    /// Make epoch and token durable, then answer with [`AgentSession::confirm`](super::AgentSession::confirm).
    Welcomed(Box<Welcome>),
    /// CONFIRM is on its way: re-announce what the journal holds.
    Established,
    /// Answer with a HEARTBEAT through [`AgentSession::send`](super::AgentSession::send).
    HeartbeatDue,
    /// A heartbeat was answered.
    RoundTrip {
        /// From sending the heartbeat to reading its answer.
        rtt: Duration,
        /// The backend's wall clock when it answered.
        server_time: Timestamp,
    },
    /// So many records of a batch are not stored, by reason; its acknowledgement follows.
    TelemetryRefused(BTreeMap<String, u64>),
    /// Everything up to this position is committed.
    TelemetryAcknowledged(Position),
    /// An offer.
    Command(Box<Command>),
    /// A start permit.
    Go(Go),
    /// Never start it.
    Drop(CommandId),
    /// End it.
    Cancel(CommandId),
    /// The result is committed.
    ResultAcknowledged {
        /// The command.
        command_id: CommandId,
        /// Up to which order everything is final.
        low_water: u64,
        /// Whether the backend has it, and not only counted it.
        kept: bool,
    },
    /// What the backend answers to a `CERT_REQUEST`.
    CertificateAnswered(Box<CertIssued>),
    /// A pin set. Answer with `PIN_REPORT`, whatever became of it.
    PinsOffered(Box<PinSet>),
    /// A later agent key. Make it durable, answer with `KEY_REPORT`, and use it from the next session on.
    KeyOffered {
        /// Which generation it is of.
        generation: u8,
        /// The key.
        key: AgentKey,
    },
    /// The authorities of the server, PEM. Answer with `TRUST_REPORT`, whatever became of them.
    AuthoritiesOffered(String),
    /// Finish what is under way, [`AgentSession::close`](super::AgentSession::close), and reconnect after the delay.
    Draining {
        /// The delay.
        reconnect_after: Duration,
    },
    /// An authenticated refusal; the session is over.
    Refused {
        /// The code.
        code: CloseCode,
        /// One sentence.
        reason: String,
        /// How long the backend asks to wait.
        retry_after: Option<Duration>,
    },
    /// The session is over; always the last event.
    Closed(Closed),
}
