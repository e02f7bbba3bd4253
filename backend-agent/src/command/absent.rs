//! Ephemeral gateways that stayed away are removed, and what ends with them is told: also when the answer of the
//! database was lost, which does not say it a second time.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use viworks_common::id::{AgentId, CommandId, RunId, Tenant};
use viworks_common::time::Timestamp;
use viworks_runtime::clock::Timeline;

use super::bus::RunBus;
use super::told;
use super::unsure::{self, Unsure};
use crate::data::{GatewayRef, Settled, Store, StoreError, StoreResult};
use crate::metrics::BackendMetrics;

/// Removes them, some at a time.
pub struct Removal {
    store: Arc<dyn Store>,
    tenant: Tenant,
    clock: Arc<Timeline>,
    bus: Arc<RunBus>,
    metrics: BackendMetrics,
    /// Those that may have been removed.
    unsure: Unsure,
    /// When that would have been.
    moments: Mutex<BTreeSet<Timestamp>>,
}

impl Removal {
    /// Nothing is removed yet.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        tenant: Tenant,
        clock: Arc<Timeline>,
        bus: Arc<RunBus>,
        metrics: BackendMetrics,
    ) -> Self {
        Self {
            store,
            tenant,
            clock,
            bus,
            metrics,
            unsure: Unsure::default(),
            moments: Mutex::default(),
        }
    }

    /// Removes at most so many; which they were. With none the database is only asked whether it answers.
    ///
    /// # Errors
    /// As the store's.
    pub async fn step(&self, most: usize) -> StoreResult<Vec<AgentId>> {
        let now = self.clock.line();
        // What may end with them: if the answer is lost, nothing else says so.
        let open = self.open(most, now).await?;
        let removed = self
            .store
            .remove_absent_gateways(&self.tenant, most, now)
            .await;
        if matches!(removed, Err(StoreError::Unknown(_))) {
            self.moments().insert(now);
            for (agent_id, open) in open {
                self.unsure.lost(&self.bus, agent_id, open);
            }
        }
        let mut gone = Vec::new();
        for (agent_id, revoked) in removed? {
            // It was not done before.
            drop(self.unsure.take(agent_id));
            self.tell(&revoked.ended);
            gone.push(agent_id);
        }
        Ok(gone)
    }

    /// Tells what ended with those that were removed and of which nobody knew; which they are. Only what is known by
    /// now, so behind a step that was answered.
    ///
    /// # Errors
    /// As the store's; it is told another time.
    pub async fn tell_lost(&self) -> StoreResult<Vec<AgentId>> {
        let mut gone = Vec::new();
        for agent_id in self.unsure.gateways() {
            let lost = self.unsure.take(agent_id);
            let ended = self.ended_with(agent_id, &lost).await;
            let ended = ended.inspect_err(|_away| self.unsure.keep(agent_id, lost))?;
            if let Some(ended) = ended {
                self.tell(&ended);
                gone.push(agent_id);
            }
        }
        self.moments().clear();
        Ok(gone)
    }

    /// The next ones that will be removed, with the commands of each that are not final.
    async fn open(&self, most: usize, now: Timestamp) -> StoreResult<Vec<Open>> {
        let mut open = Vec::new();
        if most == 0 {
            return Ok(open);
        }
        let absent = self.store.absent_gateways(&self.tenant, most, now).await?;
        for agent_id in absent {
            let commands = self.store.open_commands(&self.tenant, agent_id).await?;
            open.push((agent_id, commands));
        }
        Ok(open)
    }

    /// Those of some commands that ended with the removal of their gateway; `None` when it was not removed here.
    async fn ended_with(
        &self,
        agent_id: AgentId,
        commands: &BTreeSet<CommandId>,
    ) -> StoreResult<Option<Vec<Settled>>> {
        let which = GatewayRef::Id(agent_id);
        let gateway = self.store.gateway(&self.tenant, &which).await?;
        let revoked_at = gateway.and_then(|gateway| gateway.revoked_at);
        // Whoever revoked it at another moment has told of that.
        let Some(at) = revoked_at.filter(|at| self.moments().contains(at)) else {
            return Ok(None);
        };
        let moments = BTreeSet::from([at]);
        let ended = unsure::ended_at(&*self.store, &self.tenant, commands, &moments).await?;
        Ok(Some(ended))
    }

    fn tell(&self, ended: &[Settled]) {
        for settled in ended {
            told::tell(&self.bus, &self.metrics, settled, self.clock.line());
        }
    }

    fn moments(&self) -> MutexGuard<'_, BTreeSet<Timestamp>> {
        // Nothing panics while it is held.
        self.moments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A gateway with its open commands and their runs.
type Open = (AgentId, Vec<(CommandId, RunId)>);
