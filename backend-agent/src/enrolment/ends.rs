//! What ends with a machine whose place another one takes: its session here, and the commands that it may have run.

use std::sync::Arc;

use viworks_common::id::AgentId;
use viworks_common::time::Timestamp;

use crate::agent::manager::Manager;
use crate::command::bus::RunBus;
use crate::command::told;
use crate::data::Settled;
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
    /// Another machine is this gateway from now on, from this epoch.
    pub(super) fn replaced(&self, agent_id: AgentId, epoch: u64, at: Timestamp, ended: &[Settled]) {
        // Also when the answer to the first time was lost: what is here of before that epoch is the other machine's.
        self.manager.superseded(agent_id, epoch);
        for settled in ended {
            told::tell(&self.bus, &self.metrics, settled, at);
        }
    }
}
