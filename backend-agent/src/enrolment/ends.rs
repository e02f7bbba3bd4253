//! What ends with a machine whose place another one takes: its session here, and the commands that it may have run.

use std::sync::Arc;

use viworks_common::id::AgentId;
use viworks_common::time::Timestamp;

use crate::agent::manager::Manager;
use crate::command::bus::{CommandChange, RunBus};
use crate::data::Replaced;
use crate::metrics::BackendMetrics;

/// Where both are.
pub struct Ends {
    /// Who is connected here. Where a session is elsewhere, the transaction has left it there.
    pub manager: Arc<Manager>,
    /// Who listens to commands.
    pub bus: Arc<RunBus>,
    /// What is counted.
    pub metrics: BackendMetrics,
}

impl Ends {
    /// Another machine is this gateway from now on.
    pub(super) fn replaced(&self, agent_id: AgentId, replaced: &Replaced, at: Timestamp) {
        // Also when the answer to the first time was lost: what is here of before that epoch is the other machine's.
        self.manager.superseded(agent_id, replaced.epoch);
        for settled in &replaced.ended {
            self.metrics.commands_final(settled.state, 1);
            let change = CommandChange {
                at,
                command_id: settled.command_id,
                agent_id: settled.agent_id,
                state: settled.state,
                attempt: None,
                exit_code: None,
                duration_ms: None,
                reason: settled.reason.clone(),
                written: None,
            };
            self.bus
                .command_changed(settled.run_id, change, settled.run_finished);
        }
    }
}
