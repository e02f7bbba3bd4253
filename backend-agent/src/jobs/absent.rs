//! Ephemeral gateways that stay away are removed, once those that only could not connect have had the time to.

use std::sync::atomic::Ordering;

use tracing::info;

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
            let now = self.clock.line();
            let removed = self
                .store
                .remove_absent_gateways(&self.tenant, most, now)
                .await
                .inspect_err(|_away| self.looks.store(0, Ordering::Relaxed))?;
            let count = removed.len();
            for (agent_id, revoked) in removed {
                info!(%agent_id, "an ephemeral gateway stayed away and was removed");
                self.manager.revoked(agent_id);
                self.announce(&revoked.ended);
            }
            if count < STEP {
                break;
            }
        }
        self.looks
            .store(looks.saturating_add(1).min(LOOKS), Ordering::Relaxed);
        Ok(())
    }
}
