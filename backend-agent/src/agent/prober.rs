//! Whether the gateway of a confirmed session is alive, whichever backend has that session.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::warn;
use viworks_common::claims::Probed;
use viworks_common::id::{AgentId, SessionId, Tenant};
use viworks_common::limits::PROBE_TIMEOUT;
use viworks_runtime::clock::Timeline;

use super::manager::Manager;
use crate::data::{LiveSession, Owner, Store, in_full};

/// How long the answer of another backend is waited for: it finds the question, probes, and its answer is found here.
const ANSWER_TIME: Duration = PROBE_TIMEOUT.saturating_add(Duration::from_millis(1_000));

/// Asks, here or elsewhere.
pub struct Prober {
    store: Arc<dyn Store>,
    manager: Arc<Manager>,
    clock: Arc<Timeline>,
    /// Who waits for another backend's answer, by the session that wants to open.
    waiting: Mutex<BTreeMap<SessionId, oneshot::Sender<bool>>>,
}

impl std::fmt::Debug for Prober {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prober").finish_non_exhaustive()
    }
}

impl Prober {
    /// Nobody waits.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, manager: Arc<Manager>, clock: Arc<Timeline>) -> Self {
        Self {
            store,
            manager,
            clock,
            waiting: Mutex::default(),
        }
    }

    /// Whether the gateway of a live session answers, for the sake of the session `newcomer`.
    pub async fn probe(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        live: LiveSession,
        newcomer: SessionId,
    ) -> Probed {
        if let Some(probed) = self.manager.probe(agent_id, live.epoch).await {
            return probed;
        }
        if self.store.instance().borrow().is_none() {
            // Nobody else is there who could have it.
            return Probed::Silent;
        }
        let (tell, told) = oneshot::channel();
        self.waiting().insert(newcomer, tell);
        let probed = self.ask(tenant, agent_id, live.epoch, newcomer, told).await;
        self.waiting().remove(&newcomer);
        probed
    }

    async fn ask(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        epoch: u64,
        newcomer: SessionId,
        told: oneshot::Receiver<bool>,
    ) -> Probed {
        let owner = async || {
            let now = self.clock.line();
            let asked = self
                .store
                .ask_owner(tenant, agent_id, epoch, newcomer, now)
                .await;
            asked.unwrap_or_else(|error| {
                warn!(%agent_id, error = in_full(&error), "failed to ask another backend about a session");
                Owner::Unsure
            })
        };
        match owner().await {
            Owner::Gone => Probed::Silent,
            Owner::Unsure => Probed::Unreachable,
            Owner::Asked => {
                let answered = timeout(ANSWER_TIME, told).await.ok().and_then(Result::ok);
                // Who did not answer in all that time may be gone by now.
                let lives = answered.is_some() || owner().await != Owner::Gone;
                self.manager.heard(answered, lives)
            }
        }
    }

    /// Another backend answered.
    pub fn answered(&self, newcomer: SessionId, alive: bool) {
        if let Some(tell) = self.waiting().remove(&newcomer) {
            // Whoever asked may have stopped waiting.
            let _gone = tell.send(alive);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<SessionId, oneshot::Sender<bool>>> {
        // Nothing panics while it is held.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
