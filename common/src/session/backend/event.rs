//! What the backend brings to a session, and what its driver must know or answer.

use std::sync::Arc;
use std::time::Duration;

use crate::id::SessionId;
use crate::key::{Binding, Identity, MasterKey};
use crate::session::Closed;
use crate::time::Timestamp;
use crate::wire::PackedBatch;
use crate::wire::envelope::NONCE_BYTES;
use crate::wire::message::{
    Catalogue, CertRequest, CommandAccepted, CommandRejected, CommandResult, CommandStarted, Event,
    Heartbeat, Hello, KeyReport, Output, PinReport, TrustReport,
};

/// What the backend brings to a session.
#[derive(Debug, Clone)]
pub struct BackendSessionConfig {
    /// Who the certificate says the agent is.
    pub identity: Identity,
    /// The key that every agent key follows from.
    pub master: Arc<MasterKey>,
    /// What the session is bound to.
    pub binding: Binding,
    /// Drawn for this session.
    pub session_id: SessionId,
    /// 32 random bytes, drawn for this session.
    pub server_nonce: [u8; NONCE_BYTES],
    /// The wall clock, for the gateway to measure its skew.
    pub server_time: Timestamp,
    /// How long HELLO may take, and CONFIRM after WELCOME.
    pub hello_timeout: Duration,
    /// How long the agent's certificate is still valid; the session ends with it.
    pub certificate_remaining: Option<Duration>,
}

/// What the driver must know or answer.
#[derive(Debug, Clone, PartialEq)]
pub enum BackendEvent {
    /// HELLO is authentic. Answer with [`BackendSession::welcome`](super::BackendSession::welcome) or
    /// [`BackendSession::refuse`](super::BackendSession::refuse).
    Hello {
        /// Its body.
        hello: Box<Hello>,
        /// For the nonce cache, which it may enter now.
        client_nonce: [u8; NONCE_BYTES],
        /// Which generation of the agent key it proved.
        key_generation: u8,
        /// How long ago CHALLENGE was made.
        challenge_age: Duration,
    },
    /// CONFIRM is authentic. Commit it, then answer with
    /// [`BackendSession::established`](super::BackendSession::established) or
    /// [`BackendSession::refuse`](super::BackendSession::refuse).
    Confirmed {
        /// The epoch of WELCOME.
        epoch: u64,
    },
    /// Answer with `HEARTBEAT_ACK`.
    Heartbeat(Heartbeat),
    /// The agent answered a probe: this session is alive.
    ProbeAnswered {
        /// The probe's id.
        id: u64,
    },
    /// A batch, neither unpacked nor parsed. Answer each, in their order, with `TELEMETRY_ACK` at or beyond its end
    /// once that is committed; one that turns out to be malformed ends the session.
    Telemetry(PackedBatch),
    /// An offer is durable on the gateway.
    Accepted(CommandAccepted),
    /// An offer is refused.
    Rejected(CommandRejected),
    /// A command started.
    Started(CommandStarted),
    /// Live output.
    Output(Output),
    /// An outcome. Answer with `RESULT_ACK` once it is committed.
    Result(Box<CommandResult>),
    /// What the gateway allows.
    Catalogue(Catalogue),
    /// Which pin set the gateway trusts.
    PinReport(PinReport),
    /// The gateway wants another certificate. Answer with `CERT_ISSUED`.
    CertificateWanted(CertRequest),
    /// The agent key that the gateway's next HELLO is made with is durable there.
    KeyReported(KeyReport),
    /// Which authorities the gateway was given last, and what became of the offer.
    TrustReported(TrustReport),
    /// Something to show an operator.
    Event(Event),
    /// The gateway ends the session on purpose.
    Bye {
        /// One sentence.
        reason: String,
    },
    /// The session is over; always the last event.
    Closed(Closed),
}
