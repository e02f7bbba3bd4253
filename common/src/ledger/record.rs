//! Audit records that decisions leave behind, without who asked: only the store knows that.

use serde_json::Value;

use super::command::By;

/// What became of what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stance {
    /// It was done.
    Done,
    /// It was refused.
    Refused,
    /// It was reported, such as a security event.
    Noted,
}

/// One record of the audit trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// On whose account.
    pub by: By,
    /// What, such as `command.end`.
    pub action: &'static str,
    /// To what, such as `command:…`.
    pub object: String,
    /// What became of it.
    pub stance: Stance,
    /// The rest.
    pub detail: Value,
}
