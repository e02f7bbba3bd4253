//! Results that a gateway reported of commands that the backend does not have.

use serde::{Deserialize, Serialize};

use crate::page::list;
use crate::run::CommandOutcome;
use viworks_common::command::CommandState;
use viworks_common::id::CommandId;
use viworks_common::time::Timestamp;

/// How a command ended that the backend does not have: it was restored to before the submission, or the gateway makes the
/// command up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OrphanResult {
    /// The command, as the gateway names it.
    pub command_id: CommandId,
    /// When the gateway reported it.
    pub received_at: Timestamp,
    /// How it ended.
    pub state: CommandState,
    /// The rest of it, with what was kept of its output.
    pub outcome: CommandOutcome,
}

list! {
    /// Results of commands that the backend does not have, the latest first.
    OrphanList of OrphanResult
}
