//! Ephemeral gateways that stay away are removed, once those that only could not connect have had the time to.

use std::sync::atomic::Ordering;

use tracing::info;
use viworks_common::id::AgentId;

use super::Jobs;
use crate::data::StoreResult;

/// Gateways that are removed in one transaction, each with whatever commands it has.
const STEP: usize = 20;

/// Looks in a row, one at each interval of the job, before anybody is removed. While this backend was off, or its
/// database away, nobody could connect: a gateway comes back within a minute or two, and one that was removed does not.
const LOOKS: u32 = 300;

impl Jobs {
    /// Removes ephemeral gateways that stayed away for longer than they may.
    pub(super) async fn remove_absent(&self) -> StoreResult<()> {
        let looks = self.looks.load(Ordering::Relaxed);
        // Until then it is only asked whether the database answers.
        let most = if looks < LOOKS { 0 } else { STEP };
        loop {
            let removed = self.removal.step(most).await;
            let removed = removed.inspect_err(|_away| self.looks.store(0, Ordering::Relaxed))?;
            let count = removed.len();
            self.removed(removed);
            if count < STEP {
                break;
            }
        }
        self.removed(self.removal.tell_lost().await?);
        self.looks
            .store(looks.saturating_add(1).min(LOOKS), Ordering::Relaxed);
        Ok(())
    }

    fn removed(&self, removed: Vec<AgentId>) {
        for agent_id in removed {
            info!(%agent_id, "an ephemeral gateway stayed away and was removed");
            self.manager.revoked(agent_id);
        }
    }
}
