//! A change of a run as instances publish it to each other.

use serde::{Deserialize, Serialize};
use viworks_common::command::CommandState;
use viworks_common::id::{AgentId, CommandId, InstanceId};
use viworks_common::time::Timestamp;
use viworks_common::wire::message::OutputStream;

use crate::command::bus::{CommandChange, OutputChunk, RunChange, Written};

/// The change, and who tells it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) from: InstanceId,
    #[serde(default)]
    run_finished: bool,
    change: Change,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Change {
    Command {
        at: Timestamp,
        command_id: CommandId,
        agent_id: AgentId,
        state: CommandState,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attempt: Option<u32>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit_code: Option<i32>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        duration_ms: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stdout_bytes: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stderr_bytes: Option<u64>,
    },
    Output {
        at: Timestamp,
        command_id: CommandId,
        agent_id: AgentId,
        stream: OutputStream,
        offset: u64,
        #[serde(with = "bytes")]
        data: Vec<u8>,
    },
}

impl Told {
    /// What `from` tells.
    pub(super) fn of(from: InstanceId, change: &RunChange, run_finished: bool) -> Self {
        let change = match change.clone() {
            RunChange::Command(change) => Change::Command {
                at: change.at,
                command_id: change.command_id,
                agent_id: change.agent_id,
                state: change.state,
                attempt: change.attempt,
                exit_code: change.exit_code,
                duration_ms: change.duration_ms,
                reason: change.reason,
                stdout_bytes: change.written.map(|written| written.stdout),
                stderr_bytes: change.written.map(|written| written.stderr),
            },
            RunChange::Output(chunk) => Change::Output {
                at: chunk.at,
                command_id: chunk.command_id,
                agent_id: chunk.agent_id,
                stream: chunk.stream,
                offset: chunk.offset,
                data: chunk.data,
            },
        };
        Self {
            from,
            run_finished,
            change,
        }
    }

    /// As it is published.
    pub(super) fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("it has string keys and finite numbers")
    }

    /// Reads one; `None` for what a later version says, or somebody else.
    pub(super) fn read(payload: &[u8]) -> Option<Self> {
        serde_json::from_slice(payload).ok()
    }

    /// The change, and whether it made the run final.
    pub(super) fn change(self) -> (RunChange, bool) {
        let change = match self.change {
            Change::Command {
                at,
                command_id,
                agent_id,
                state,
                attempt,
                exit_code,
                duration_ms,
                reason,
                stdout_bytes,
                stderr_bytes,
            } => RunChange::Command(CommandChange {
                at,
                command_id,
                agent_id,
                state,
                attempt,
                exit_code,
                duration_ms,
                reason,
                written: stdout_bytes
                    .zip(stderr_bytes)
                    .map(|(stdout, stderr)| Written { stdout, stderr }),
            }),
            Change::Output {
                at,
                command_id,
                agent_id,
                stream,
                offset,
                data,
            } => RunChange::Output(OutputChunk {
                at,
                command_id,
                agent_id,
                stream,
                offset,
                data,
            }),
        };
        (change, self.run_finished)
    }
}

/// Bytes as text.
mod bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD.decode(text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(n: u128) -> Uuid {
        Uuid::from_u128(n)
    }

    #[test]
    fn what_is_written_is_read_as_the_same_and_anything_else_is_not() {
        let from = InstanceId::from_uuid(id(1));
        let command = RunChange::Command(CommandChange {
            at: Timestamp::from_unix_micros(1_800_000_000_000_001),
            command_id: CommandId::from_uuid(id(2)),
            agent_id: AgentId::from_uuid(id(3)),
            state: CommandState::Failed,
            attempt: Some(2),
            exit_code: Some(-1),
            duration_ms: Some(7),
            reason: Some("why".to_owned()),
            written: Some(Written {
                stdout: 5,
                stderr: 6,
            }),
        });
        let output = RunChange::Output(OutputChunk {
            at: Timestamp::from_unix_micros(0),
            command_id: CommandId::from_uuid(id(2)),
            agent_id: AgentId::from_uuid(id(3)),
            stream: OutputStream::Stderr,
            offset: 9,
            data: vec![0, 255, 10],
        });
        for (change, finished) in [(command, true), (output, false)] {
            let written = Told::of(from, &change, finished).write();
            let told = Told::read(&written).unwrap();
            assert_eq!(told.from, from);
            assert_eq!(told.change(), (change, finished));
        }
        for other in ["", "{}", r#"{"from":"x"}"#] {
            assert_eq!(Told::read(other.as_bytes()), None);
        }
    }
}
