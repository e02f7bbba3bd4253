//! Both ends of a session as machines without IO: bytes and time go in, bytes and events come out.
//!
//! A driver owns the socket and the clock. After every call it drains `poll_transmit` onto the socket and `poll_event`
//! into its features, looks at `closed`, and arms one timer with `poll_timeout`. `docs/protocol.md` is the normative
//! text.

pub mod agent;
pub mod backend;
pub mod backoff;
mod credit;
mod inbox;
mod link;
mod outbox;
pub mod parting;
pub mod state;
mod timer;

use crate::code::CloseCode;
use crate::wire::envelope::EnvelopeError;

pub use self::agent::{AgentEvent, AgentSession, AgentSessionConfig};
pub use self::backend::{BackendEvent, BackendSession, BackendSessionConfig, HELLO_UNPROVED};

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The gateway agent.
    Agent,
    /// The backend.
    Backend,
}

/// Why a session ended, and which end decided so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// The code; `None` when the gateway said BYE: nothing was wrong.
    pub code: Option<CloseCode>,
    /// One sentence.
    pub reason: String,
    /// Who decided.
    pub by: End,
}

impl Closed {
    /// The number for the WebSocket close frame.
    #[must_use]
    pub fn number(&self) -> u16 {
        /// RFC 6455: the purpose of the connection is fulfilled.
        const NORMAL: u16 = 1000;
        self.code.map_or(NORMAL, CloseCode::number)
    }

    /// The name for the close frame's reason, logs and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.code.map_or("bye", CloseCode::name)
    }
}

/// A message that nobody honest sends behind TLS: it was not made for this place of this session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misplaced {
    /// Its tag is of no key of this session and direction: it is of another session, came back to who sent it, or was
    /// changed.
    Foreign,
    /// Its number is not the next one: it was said before, or one in front of it is missing.
    OutOfTurn,
}

impl Misplaced {
    /// What an error of an envelope says about its sender, where it says that.
    const fn of(error: EnvelopeError) -> Option<Self> {
        match error {
            EnvelopeError::BadTag => Some(Self::Foreign),
            EnvelopeError::Sequence { .. } => Some(Self::OutOfTurn),
            EnvelopeError::TooShort { .. }
            | EnvelopeError::TooLarge { .. }
            | EnvelopeError::Version(_)
            | EnvelopeError::Flags(_)
            | EnvelopeError::KeyGeneration(_)
            | EnvelopeError::NotChallenge(_)
            | EnvelopeError::CompressedTooEarly
            | EnvelopeError::Compression
            | EnvelopeError::BodyTooLarge { .. } => None,
        }
    }

    /// The word for metrics and for the end of an action's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Foreign => "frame_foreign",
            Self::OutOfTurn => "frame_replayed",
        }
    }
}

/// Why a message was not taken. Nothing of it was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendRefusal {
    /// The session is not established, or no longer.
    #[error("the session is not established")]
    NotEstablished,
    /// The queue of this priority is full: drain `poll_transmit` first.
    #[error("the queue of this priority is full")]
    Full,
    /// The other end has not granted it: wait for an acknowledgement.
    #[error("no credit")]
    NoCredit,
    /// Larger than a message of this kind may be.
    #[error("a message of {bytes} bytes exceeds the {limit} allowed for its kind")]
    TooLarge {
        /// Its size on the wire.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
    /// The machine sends this kind itself, at its own time.
    #[error("the session sends this kind itself")]
    Reserved,
    /// The session is draining: offer it in the next one.
    #[error("the session is draining")]
    Draining,
}

/// A reason as it travels: harmless, and no longer than such texts may be. Parts of it may be the other end's words.
fn cut(reason: &str) -> String {
    crate::text::told(reason)
}
