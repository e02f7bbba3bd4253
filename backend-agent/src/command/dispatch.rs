//! From waiting to offered: what submitting announces goes through the queue to the session of the gateway.
//!
//! The queue only says where to look. What a session is given comes out of one transaction of the store, in order, so
//! that a lost, doubled or stale hint changes nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{debug, warn};
use viworks_common::id::{AgentId, CommandId, Tenant};
use viworks_common::ledger::lease::Backoff;
use viworks_runtime::clock::Timeline;
use viworks_runtime::fault;
use viworks_runtime::lifecycle::Lifecycle;

use super::CommandNudge;
use super::queue::{CommandQueue, QueueError, QueueKey};
use crate::agent::manager::Manager;
use crate::agent::shelf::Kept;
use crate::data::{Holder, LeaseLimits, Leased, Store, StoreError, StoreResult};
use crate::metrics::BackendMetrics;

/// Announcements on their way into the queue; one that finds no room is found by the reconciler.
const ANNOUNCED_MAX: usize = 65_536;

/// Hands waiting commands to sessions.
pub struct Dispatcher {
    store: Arc<dyn Store>,
    queue: Arc<dyn CommandQueue>,
    manager: Arc<Manager>,
    clock: Arc<Timeline>,
    metrics: BackendMetrics,
    tenant: Tenant,
    attempts_max: u32,
    backoff: Backoff,
    announced: mpsc::Sender<(AgentId, CommandId)>,
}

/// What a dispatcher is made of.
pub struct Parts {
    /// The truth.
    pub store: Arc<dyn Store>,
    /// The hints.
    pub queue: Arc<dyn CommandQueue>,
    /// Who is connected.
    pub manager: Arc<Manager>,
    /// The time.
    pub clock: Arc<Timeline>,
    /// What is counted.
    pub metrics: BackendMetrics,
    /// Whose commands.
    pub tenant: Tenant,
    /// Deliveries before a command is dead.
    pub attempts_max: u32,
    /// Between two of them, where a gateway is busy.
    pub backoff: Backoff,
}

impl Dispatcher {
    /// Starts the task that fills the queue.
    #[must_use]
    pub fn start(parts: Parts, lifecycle: &Lifecycle) -> Arc<Self> {
        let (announced, received) = mpsc::channel(ANNOUNCED_MAX);
        let own = Arc::new(Self {
            store: parts.store,
            queue: parts.queue,
            manager: parts.manager,
            clock: parts.clock,
            metrics: parts.metrics,
            tenant: parts.tenant,
            attempts_max: parts.attempts_max,
            backoff: parts.backoff,
            announced,
        });
        let task = Arc::clone(&own).fill(received, lifecycle.clone());
        drop(lifecycle.spawn_critical("dispatch", task));
        own
    }

    async fn fill(
        self: Arc<Self>,
        mut received: mpsc::Receiver<(AgentId, CommandId)>,
        lifecycle: Lifecycle,
    ) {
        loop {
            let (agent_id, command_id) = tokio::select! {
                () = lifecycle.stopping() => return,
                next = received.recv() => match next {
                    Some(next) => next,
                    None => return,
                },
            };
            match self.queue.offer(&self.key(agent_id), &[command_id]).await {
                Ok(()) => fault::point("queue.offered.before_lease"),
                Err(error @ (QueueError::Full { .. } | QueueError::Unavailable { .. })) => {
                    debug!(gateway = self.manager.name_of(agent_id), %agent_id, %command_id, %error, "not offered; the reconciler will");
                }
            }
            self.manager.nudge(agent_id);
        }
    }

    /// Takes at most `room` commands for a session. The store is asked even without a hint: hints can be lost.
    ///
    /// # Errors
    ///
    /// As the store's; the hints are then kept for later.
    pub async fn take(&self, holder: &Holder, room: usize) -> StoreResult<Leased> {
        let key = self.key(holder.agent_id);
        let hints = match self.queue.take(&key, room, self.clock.now()).await {
            Ok(hints) => hints,
            Err(error) => {
                warn!(%error, "the queue gave no hints");
                Vec::new()
            }
        };
        let limits = LeaseLimits {
            commands: room,
            attempts_max: self.attempts_max,
        };
        let leased = self
            .store
            .lease_commands(&self.tenant, holder, limits, self.clock.line())
            .await;
        // What was not looked at comes back by itself.
        let looked = matches!(leased, Ok(_) | Err(StoreError::Fenced));
        if looked
            && !hints.is_empty()
            && let Err(error) = self.queue.done(&key, &hints).await
        {
            warn!(%error, "the queue did not take hints back");
        }
        if let Ok(leased) = &leased {
            let dead = u64::try_from(leased.dead.len()).unwrap_or(u64::MAX);
            self.metrics.queue_dead.inc_by(dead);
        }
        leased
    }

    /// How long a command rests that its gateway was too busy for, after so many deliveries.
    #[must_use]
    pub fn rest(&self, attempt: u32) -> Duration {
        self.backoff.after(attempt)
    }

    /// Wakes whoever was given hints and did not deal with them.
    pub async fn sweep(&self) {
        match self.queue.sweep(self.clock.now()).await {
            Ok(woken) => {
                for key in woken {
                    self.manager.nudge(key.agent_id);
                }
            }
            Err(error) => warn!(%error, "the queue was not swept"),
        }
    }

    fn key(&self, agent_id: AgentId) -> QueueKey {
        QueueKey {
            tenant: self.tenant.clone(),
            agent_id,
        }
    }
}

impl CommandNudge for Dispatcher {
    fn keep(&self, agent_id: &AgentId, with_timeout: bool) -> Option<Kept> {
        self.manager.keep(*agent_id, with_timeout)
    }

    fn nudge(&self, agent_id: &AgentId) {
        self.manager.nudge(*agent_id);
    }

    fn offer(&self, agent_id: &AgentId, command_id: CommandId) {
        if self.announced.try_send((*agent_id, command_id)).is_err() {
            // Full, or stopping: the session still looks by itself.
            self.manager.nudge(*agent_id);
        }
    }

    fn cancel(&self, agent_id: &AgentId, command_id: CommandId) {
        // Not connected: the next session is told by its confirmation.
        self.manager.cancel(*agent_id, command_id);
    }
}
