//! Commands that could not be delivered, for somebody to decide about.

use std::time::Duration;

use viworks_common::command::Arguments;
use viworks_common::id::{AgentId, CommandId, CommandName, GatewayName, RunId};
use viworks_common::time::Timestamp;

/// A command that was delivered as often as it may be and never accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The command.
    pub command_id: CommandId,
    /// Its run.
    pub run_id: RunId,
    /// Its gateway.
    pub agent_id: AgentId,
    /// Its gateway's name, as it is now.
    pub gateway: GatewayName,
    /// Its name.
    pub name: CommandName,
    /// How often it was delivered.
    pub attempts: u32,
    /// Why it ended.
    pub cause: Option<String>,
    /// When it ended.
    pub dead_at: Timestamp,
    /// When somebody decided about it.
    pub resolved_at: Option<Timestamp>,
    /// Who did, as `kind:id`.
    pub resolved_by: Option<String>,
    /// The name of the API key that it was, where that is known.
    pub resolver: Option<String>,
    /// The run that runs it again; none where it was discarded.
    pub retry_run_id: Option<RunId>,
    /// How it was submitted.
    pub request: DeadLetterRequest,
}

/// What a retry submits again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterRequest {
    /// The arguments of its run.
    pub arguments: Arguments,
    /// How long it might wait for its start.
    pub deadline: Duration,
    /// The time limit that its operator gave it, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// Why it was submitted, in the operator's words.
    pub reason: Option<String>,
}

/// Which dead letters are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeadLetterFilter {
    /// Of this gateway, or of all.
    pub agent_id: Option<AgentId>,
    /// Also those that somebody has decided about.
    pub resolved_too: bool,
}
