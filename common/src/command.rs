//! The life-cycle of a command: its states, what may move it, and what came out of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::code::RejectCode;
use crate::id::{ArgumentName, CommandName};
use crate::text::deserialize_told_option;
use crate::time::Timestamp;

/// The arguments of a command as text, checked against the catalogue's types and patterns.
pub type Arguments = BTreeMap<ArgumentName, String>;

/// SHA-256 of name and arguments, every field behind its length: the same id with another digest is a security event.
#[must_use]
pub fn digest(name: &CommandName, arguments: &Arguments) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut field = |text: &str| {
        hash.update(u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(text.as_bytes());
    };
    field(name.as_str());
    for (key, value) in arguments {
        field(key.as_str());
        field(value);
    }
    hash.finalize().into()
}

/// Writes a digest as it travels: 64 hexadecimal digits.
#[must_use]
pub fn format_digest(digest: &[u8; 32]) -> String {
    hex::encode(digest)
}

/// Where a command is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum CommandState {
    /// Accepted and waiting for its gateway.
    Queued,
    /// Handed to a session of its gateway; may not start yet.
    Dispatched,
    /// Permitted to start, in one run of the gateway agent.
    Released,
    /// The gateway said that it started.
    Running,
    /// It ran and its exit code was zero.
    Succeeded,
    /// It ran and failed.
    Failed,
    /// It ran into its time limit and was ended.
    TimedOut,
    /// The gateway refused it.
    Rejected,
    /// Its deadline passed before it could start.
    Expired,
    /// An operator cancelled it.
    Cancelled,
    /// It could not be delivered in the allowed number of attempts.
    Dead,
    /// It may have run; whether it did cannot be known.
    Indeterminate,
}

impl CommandState {
    /// Every state, in life-cycle order.
    pub const ALL: &[Self] = &[
        Self::Queued,
        Self::Dispatched,
        Self::Released,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::TimedOut,
        Self::Rejected,
        Self::Expired,
        Self::Cancelled,
        Self::Dead,
        Self::Indeterminate,
    ];

    /// Whether nothing changes it any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Dispatched | Self::Released | Self::Running => false,
            Self::Succeeded
            | Self::Failed
            | Self::TimedOut
            | Self::Rejected
            | Self::Expired
            | Self::Cancelled
            | Self::Dead
            | Self::Indeterminate => true,
        }
    }

    /// Whether it waits: for a session of its gateway, or there for its permit to start.
    #[must_use]
    pub const fn awaits_permit(self) -> bool {
        match self {
            Self::Queued | Self::Dispatched => true,
            Self::Released
            | Self::Running
            | Self::Succeeded
            | Self::Failed
            | Self::TimedOut
            | Self::Rejected
            | Self::Expired
            | Self::Cancelled
            | Self::Dead
            | Self::Indeterminate => false,
        }
    }

    /// Whether it is permitted to start and not over: only its gateway can say how far it is.
    #[must_use]
    pub const fn has_permit(self) -> bool {
        !self.awaits_permit() && !self.is_final()
    }

    /// The word on the wire, in the store and on screen.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Dispatched => "dispatched",
            Self::Released => "released",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Dead => "dead",
            Self::Indeterminate => "indeterminate",
        }
    }

    /// The state with a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|state| state.name() == name)
    }
}

/// How a command ended, in the gateway's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeState {
    /// Exit code zero.
    Succeeded,
    /// A non-zero exit code, a signal, or it could not be started.
    Failed,
    /// Ended at its time limit.
    TimedOut,
    /// Refused at the second check, before it started.
    Rejected,
    /// Its deadline passed before it started.
    Expired,
    /// Ended, or never started, because an operator cancelled it.
    Cancelled,
    /// The agent, or the helper that ran it as another user, died in the middle of it.
    Indeterminate,
}

impl OutcomeState {
    /// The state of the command that ended so.
    #[must_use]
    pub const fn command_state(self) -> CommandState {
        match self {
            Self::Succeeded => CommandState::Succeeded,
            Self::Failed => CommandState::Failed,
            Self::TimedOut => CommandState::TimedOut,
            Self::Rejected => CommandState::Rejected,
            Self::Expired => CommandState::Expired,
            Self::Cancelled => CommandState::Cancelled,
            Self::Indeterminate => CommandState::Indeterminate,
        }
    }
}

/// What moves a command on the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandEvent {
    /// A session took it; it waits for the gateway's acceptance.
    Dispatched,
    /// The start permit was given: after acceptance, or inline for an idempotent command.
    Released,
    /// The gateway reported that it started.
    Started,
    /// The gateway reported how it ended.
    Ended(OutcomeState),
    /// The gateway refused it on arrival.
    Rejected(RejectCode),
    /// The session that held it ended before the permit was given.
    SessionLost,
    /// A later run of the gateway agent no longer knows it.
    RunGone,
    /// Its deadline passed and no permit was given.
    DeadlinePassed,
    /// An operator cancelled it and no permit was given.
    CancelRequested,
    /// The allowed number of deliveries is used up.
    AttemptsExhausted,
    /// The owner of a permitted command gave up waiting.
    WaitExhausted,
    /// The backend's database was rolled back past it.
    RolledBack,
}

/// What an event does to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// It moves.
    To(CommandState),
    /// It stays as it is, and that is right.
    Stay,
    /// It is final as indeterminate, and the outcome is kept beside it.
    LateOutcome,
    /// The event does not apply in this state and is ignored.
    Refused,
}

/// Decides what `event` does to a command in `state`; `idempotent` is the stricter of both ends' opinions.
#[must_use]
pub fn transition(state: CommandState, event: CommandEvent, idempotent: bool) -> Transition {
    use CommandState as S;
    use Transition::{LateOutcome, Refused, Stay, To};

    match (state, event) {
        (S::Queued, CommandEvent::Dispatched) => To(S::Dispatched),
        (S::Queued, CommandEvent::Released) if idempotent => To(S::Released),
        (S::Dispatched, CommandEvent::Released) => To(S::Released),
        (S::Released, CommandEvent::Released | CommandEvent::Dispatched) => Stay,
        (S::Dispatched, CommandEvent::Dispatched) => Stay,

        (S::Dispatched, CommandEvent::SessionLost) => To(S::Queued),
        (S::Released | S::Running, CommandEvent::RunGone) => To(if idempotent {
            S::Queued
        } else {
            S::Indeterminate
        }),
        (S::Dispatched, CommandEvent::RunGone) => To(S::Queued),

        (S::Released, CommandEvent::Started) => To(S::Running),
        (S::Running, CommandEvent::Started) => Stay,

        (S::Queued | S::Dispatched | S::Released | S::Running, CommandEvent::Ended(outcome)) => {
            To(outcome.command_state())
        }
        (S::Indeterminate, CommandEvent::Ended(_)) => LateOutcome,

        (S::Queued | S::Dispatched | S::Released, CommandEvent::Rejected(code)) => {
            // What is not idempotent was released after it was accepted: it can only have been forgotten since.
            if code.is_transient() && (state != S::Released || idempotent) {
                To(S::Queued)
            } else {
                To(S::Rejected)
            }
        }

        (S::Queued | S::Dispatched, CommandEvent::DeadlinePassed) => To(S::Expired),
        (S::Queued | S::Dispatched, CommandEvent::CancelRequested) => To(S::Cancelled),
        // From here on only the gateway can say whether it was in time.
        (
            S::Released | S::Running,
            CommandEvent::DeadlinePassed | CommandEvent::CancelRequested,
        ) => Stay,
        (S::Queued | S::Dispatched, CommandEvent::AttemptsExhausted) => To(S::Dead),

        (S::Released | S::Running, CommandEvent::WaitExhausted) => To(S::Indeterminate),
        (S::Queued | S::Dispatched | S::Released | S::Running, CommandEvent::RolledBack) => {
            if idempotent {
                Stay
            } else {
                To(S::Indeterminate)
            }
        }
        _ if state.is_final() => Stay,
        _ => Refused,
    }
}

/// What is kept of one output stream: its beginning, its end, and how much was cut between them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetainedOutput {
    /// The first bytes.
    #[serde(with = "base64_bytes")]
    pub head: Vec<u8>,
    /// The last bytes; empty when nothing was cut.
    #[serde(with = "base64_bytes")]
    pub tail: Vec<u8>,
    /// Bytes between head and tail that were not kept.
    pub cut_bytes: u64,
}

impl RetainedOutput {
    /// Bytes that were written, kept or not.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        let kept = self.head.len().saturating_add(self.tail.len());
        u64::try_from(kept)
            .unwrap_or(u64::MAX)
            .saturating_add(self.cut_bytes)
    }
}

/// How a command ended on the gateway: journalled there, committed with the state on the backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// How it ended.
    pub state: OutcomeState,
    /// The exit code, when it exited.
    pub exit_code: Option<i32>,
    /// The signal that ended it, when one did.
    pub signal: Option<i32>,
    /// When it started by the gateway's wall clock, when it did.
    pub started_at: Option<Timestamp>,
    /// How long it ran, in milliseconds.
    pub duration_ms: u64,
    /// What it wrote to its standard output.
    pub stdout: RetainedOutput,
    /// What it wrote to its standard error.
    pub stderr: RetainedOutput,
    /// Why it was refused or could not run, in one sentence.
    #[serde(deserialize_with = "deserialize_told_option", default)]
    pub reason: Option<String>,
    /// The refusal's code when it was rejected.
    pub reject_code: Option<RejectCode>,
}

impl Outcome {
    /// Whether it is the end of a command that ran, and not of one whose start came to nothing or whose end nobody saw.
    #[must_use]
    pub const fn ran(&self) -> bool {
        self.started_at.is_some()
            && matches!(
                self.state,
                OutcomeState::Succeeded
                    | OutcomeState::Failed
                    | OutcomeState::TimedOut
                    | OutcomeState::Cancelled
            )
    }

    /// An outcome of a command that did not run, or of which nothing more is known.
    #[must_use]
    pub fn without_run(state: OutcomeState, reason: impl Into<String>) -> Self {
        Self {
            state,
            exit_code: None,
            signal: None,
            started_at: None,
            duration_ms: 0,
            stdout: RetainedOutput::default(),
            stderr: RetainedOutput::default(),
            reason: Some(reason.into()),
            reject_code: None,
        }
    }
}

/// Bytes as standard Base64 text.
pub mod base64_bytes {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes the Base64 text.
    ///
    /// # Errors
    /// As the serializer's.
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    /// Reads the Base64 text.
    ///
    /// # Errors
    /// When the text is not standard Base64.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}
