//! Events of a run, as `GET /v1/runs/{id}/events` streams them.

use serde::{Deserialize, Serialize};

use crate::gateway::NamedGateway;
use crate::run::{OutputBytes, Run};
use viworks_common::command::CommandState;
use viworks_common::id::CommandId;
use viworks_common::time::Timestamp;
use viworks_common::wire::message::OutputStream;

/// One event: the `data` of a server-sent event whose `event` is the same word and whose `id` resumes the stream.
///
/// A stream may repeat a state after a reconnect, and live output is best effort: pieces come whole, in order and between
/// letters, and what lies between them is told by `missed`. What is retained of it is in the command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RunEvent {
    /// A command is in this state.
    Command {
        /// When it got there.
        at: Timestamp,
        /// Which command.
        command_id: CommandId,
        /// Its gateway.
        gateway: NamedGateway,
        /// Its state.
        state: CommandState,
        /// How often it was delivered, when that is at hand.
        attempt: Option<u32>,
        /// The exit code, when it exited.
        exit_code: Option<i32>,
        /// How long it ran, in milliseconds, when it ended.
        duration_ms: Option<u64>,
        /// Why, when there is more to say.
        reason: Option<String>,
        /// Bytes it wrote to its standard output, when it ended and that is known.
        #[serde(default)]
        stdout_bytes: Option<u64>,
        /// Bytes it wrote to its standard error, when it ended and that is known.
        #[serde(default)]
        stderr_bytes: Option<u64>,
    },
    /// A command wrote something.
    Output {
        /// When it arrived.
        at: Timestamp,
        /// Which command.
        command_id: CommandId,
        /// Its gateway.
        gateway: NamedGateway,
        /// Which stream.
        stream: OutputStream,
        /// The position of the first byte in its stream; a jump means that bytes in between did not arrive live.
        offset: u64,
        /// The bytes.
        data: OutputBytes,
    },
    /// Something was not received: events that the reader or a buffer fell behind, and output that never came live.
    /// States follow as they stand; what is retained of the output is in the command.
    Missed {
        /// How many events fell out of the backend's buffer, as far as is known; 0 when only `output` is meant.
        events: u64,
        /// Output that this stream does not bring, by command and stream.
        #[serde(default)]
        output: Vec<MissedOutput>,
    },
    /// Every command is final; the stream ends after this.
    Finished {
        /// The run as it stands.
        run: Box<Run>,
    },
}

/// A range of one command's output that does not come live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MissedOutput {
    /// Which command.
    pub command_id: CommandId,
    /// Its gateway.
    pub gateway: NamedGateway,
    /// Which stream.
    pub stream: OutputStream,
    /// The position of the first byte that is missing.
    pub offset: u64,
    /// How many bytes are missing.
    pub bytes: u64,
}

impl RunEvent {
    /// The word in the server-sent event's `event` field.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Command { .. } => "command",
            Self::Output { .. } => "output",
            Self::Missed { .. } => "missed",
            Self::Finished { .. } => "finished",
        }
    }
}
