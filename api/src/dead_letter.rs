//! Commands that could not be delivered.

use serde::{Deserialize, Serialize};
use viworks_common::command::Arguments;
use viworks_common::id::{CommandId, CommandName, RunId};
use viworks_common::time::Timestamp;

use crate::NamedGateway;
use crate::page::{Kind, list};

/// What was decided about a command that could not be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum DeadLetterState {
    /// Nothing yet.
    Open,
    /// A run runs it again.
    Retried,
    /// Nothing more is to be done.
    Discarded,
}

impl DeadLetterState {
    /// The word in answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Retried => "retried",
            Self::Discarded => "discarded",
        }
    }
}

/// A command that was delivered as often as it may be and never accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeadLetter {
    /// What this is.
    pub kind: Kind,
    /// The command's id.
    pub id: CommandId,
    /// Its run.
    pub run_id: RunId,
    /// Its gateway.
    pub gateway: NamedGateway,
    /// Its name.
    pub command: CommandName,
    /// The arguments of its run.
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, String>))]
    pub arguments: Arguments,
    /// How often it was delivered.
    pub attempts: u32,
    /// Why it ended, with what its gateway said last, if it said anything.
    pub cause: Option<String>,
    /// When it ended.
    pub dead_at: Timestamp,
    /// What was decided about it.
    pub state: DeadLetterState,
    /// When that was.
    pub resolved_at: Option<Timestamp>,
    /// Who did.
    pub resolved_by: Option<String>,
    /// The name of the API key that it was, where that is known.
    #[serde(default)]
    pub resolved_by_name: Option<String>,
    /// The run that runs it again.
    pub retry_run_id: Option<RunId>,
}

list! {
    /// Commands that could not be delivered, the one that was submitted last first.
    DeadLetterList of DeadLetter
}
