//! From waiting to offered: what submitting announces goes through the queue to the session of the gateway.
//!
//! The queue only says where to look. What a session is given comes out of one transaction of the store, in order, so
//! that a lost, doubled or stale hint changes nothing.

use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::{debug, warn};
use viworks_common::id::{AgentId, CommandId, Tenant};
use viworks_runtime::clock::Timeline;
use viworks_runtime::fault;
use viworks_runtime::lifecycle::Lifecycle;

use super::CommandNudge;
use super::queue::{CommandQueue, QueueError, QueueKey, Retried};
use crate::agent::manager::{Manager, Order};
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
            match self.queue.offer(&self.key(agent_id), command_id).await {
                Ok(_) => fault::point("queue.offered.before_lease"),
                Err(error @ (QueueError::Full { .. } | QueueError::Unavailable { .. })) => {
                    debug!(gateway = self.manager.name_of(agent_id), %agent_id, %command_id, %error, "not offered; the reconciler will");
                }
            }
            self.count_depth().await;
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
        let now = self.clock.now();
        let hints = match self.queue.lease(&key, room, now).await {
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
        for hint in &hints {
            // An error means that the queue is away: its lease runs out, and the hint is found to be stale.
            let settled = match &leased {
                Ok(_) | Err(StoreError::Fenced) => self
                    .queue
                    .acknowledge(&key, hint.command_id)
                    .await
                    .map(|_| ()),
                Err(_) => self.hand_back(&key, hint.command_id).await,
            };
            if let Err(error) = settled {
                warn!(%error, "the queue did not take a hint back");
            }
        }
        self.count_depth().await;
        leased
    }

    async fn hand_back(&self, key: &QueueKey, command_id: CommandId) -> Result<(), QueueError> {
        match self.queue.retry(key, command_id, self.clock.now()).await? {
            Retried::Dead => {
                self.metrics.queue_dead.inc();
                warn!(gateway = self.manager.name_of(key.agent_id), agent_id = %key.agent_id, %command_id, "an offer was given up; the reconciler will make it again");
            }
            Retried::After(_) | Retried::Unknown => {}
        }
        Ok(())
    }

    async fn count_depth(&self) {
        if let Ok(depth) = self.queue.depth().await {
            self.metrics
                .queue_depth
                .set(i64::try_from(depth).unwrap_or(i64::MAX));
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
        let _told = self.manager.order(*agent_id, Order::Cancel(command_id));
    }
}
