//! The gateway's journal as values: what an entry holds and which states it goes through.

use crate::command::{Arguments, Outcome};
use crate::id::{AgentRunId, CommandId, CommandName};

/// How far a command has come on its gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryState {
    /// Taken in; it waits for its start permit.
    Accepted,
    /// Its start was recorded; it may have run.
    Started,
    /// How it ended is recorded.
    Finished,
    /// The backend has committed how it ended.
    Reported,
}

/// One command in the journal.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The command.
    pub command_id: CommandId,
    /// Its number on this gateway.
    pub order: u64,
    /// SHA-256 of name and arguments.
    pub digest: [u8; 32],
    /// Its name in the catalogue.
    pub name: CommandName,
    /// Its arguments as they were sent.
    pub arguments: Arguments,
    /// Whether this gateway's catalogue called it idempotent when it was accepted.
    pub idempotent: bool,
    /// How far it has come.
    pub state: EntryState,
    /// The process that accepted it, or that started it.
    pub agent_run_id: AgentRunId,
    /// How it ended, once it has.
    pub outcome: Option<Outcome>,
}
