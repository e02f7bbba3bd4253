//! From waiting to offered: what submitting announces goes through the queue to the session of the gateway.
//!
//! The queue only says where to look. What a session is given comes out of one transaction of the store, in order, so
//! that a lost, doubled or stale hint changes nothing. Nothing that a gateway or an operator waits for waits for a
//! queue that several instances share: it is told and tidied up beside.

mod shared;

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::sync::{Notify, mpsc};
use tracing::{debug, warn};
use viworks_common::id::{AgentId, CommandId, Tenant};
use viworks_common::ledger::lease::Backoff;
use viworks_runtime::clock::Timeline;
use viworks_runtime::fault;
use viworks_runtime::lifecycle::Lifecycle;

use super::CommandNudge;
use super::queue::calls::Calls;
use super::queue::{CommandQueue, QueueError, QueueKey};
use crate::agent::manager::Manager;
use crate::agent::shelf::Kept;
use crate::data::{Holder, LeaseLimits, Leased, Page, Store, StoreError, StoreResult};
use crate::metrics::BackendMetrics;

/// Announcements on their way into the queue; one that finds no room is found by the reconciler.
const ANNOUNCED_MAX: usize = 65_536;

/// Announcements that are told to the queue at once.
const TOGETHER: usize = 64;

/// Hints of a gateway that are cleared away after a look.
const HINTS_MAX: usize = 256;

/// Gateways that one step of a look at all of them is about.
const STEP: usize = 500;

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
    calls: Arc<Calls>,
    /// Gateways that were looked after, and whose hints are to be cleared away.
    looked: mpsc::Sender<AgentId>,
    /// Sessions that others are to be told of.
    entered: mpsc::Sender<(AgentId, u64)>,
    sweep: Notify,
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
    /// Where the queue calls out.
    pub calls: Arc<Calls>,
}

impl Dispatcher {
    /// Starts the tasks that fill the queue and hear it.
    #[must_use]
    pub fn start(parts: Parts, lifecycle: &Lifecycle) -> Arc<Self> {
        let (announced, received) = mpsc::channel(ANNOUNCED_MAX);
        let (looked, to_clear) = mpsc::channel(shared::WAITING_MAX);
        let (entered, to_tell) = mpsc::channel(shared::WAITING_MAX);
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
            calls: parts.calls,
            looked,
            entered,
            sweep: Notify::new(),
        });
        let task = Arc::clone(&own).fill(received, lifecycle.clone());
        drop(lifecycle.spawn_critical("dispatch", task));
        if own.is_shared() {
            own.share(to_clear, to_tell, lifecycle);
        }
        own
    }

    /// Whether other instances use the queue.
    fn is_shared(&self) -> bool {
        self.queue.attached_for().is_some()
    }

    async fn fill(
        self: Arc<Self>,
        mut received: mpsc::Receiver<(AgentId, CommandId)>,
        lifecycle: Lifecycle,
    ) {
        loop {
            let mut announced = Vec::new();
            let count = tokio::select! {
                () = lifecycle.stopping() => return,
                count = received.recv_many(&mut announced, TOGETHER) => count,
            };
            if count == 0 {
                return;
            }
            let offers = announced
                .into_iter()
                .map(|(agent, command)| self.tell(agent, command));
            stream::iter(offers)
                .buffer_unordered(TOGETHER)
                .collect::<()>()
                .await;
        }
    }

    /// Tells a session here, and the queue for those elsewhere.
    async fn tell(&self, agent_id: AgentId, command_id: CommandId) {
        let is_shared = self.is_shared();
        match self.queue.offer(&self.key(agent_id), &[command_id]).await {
            Ok(_told) => fault::point("queue.offered.before_lease"),
            Err(error @ (QueueError::Full { .. } | QueueError::Unavailable { .. })) => {
                debug!(gateway = self.manager.name_of(agent_id), %agent_id, %command_id, %error, "not offered; the reconciler will");
            }
        }
        if !is_shared {
            self.manager.nudge(agent_id);
        }
    }

    /// Takes at most `room` commands for a session. The store is asked whatever the queue says: hints can be lost.
    ///
    /// # Errors
    ///
    /// As the store's; the hints are then kept for later.
    pub async fn take(&self, holder: &Holder, room: usize) -> StoreResult<Leased> {
        let limits = LeaseLimits {
            commands: room,
            attempts_max: self.attempts_max,
        };
        let leased = self
            .store
            .lease_commands(&self.tenant, holder, limits, self.clock.line())
            .await;
        // A hint that came meanwhile comes with a nudge, which leads to another look.
        if matches!(leased, Ok(_) | Err(StoreError::Fenced)) {
            if self.is_shared() {
                // What finds no room is cleared away after the next look.
                let _full = self.looked.try_send(holder.agent_id);
            } else {
                self.clear(holder.agent_id).await;
            }
        }
        if let Ok(leased) = &leased {
            let dead = u64::try_from(leased.dead.len()).unwrap_or(u64::MAX);
            self.metrics.queue_dead.inc_by(dead);
            let dropped = leased.dead_letters_dropped;
            self.metrics.dropped_dead_letters(dropped);
        }
        leased
    }

    /// Removes the hints of a gateway that was looked after.
    async fn clear(&self, agent_id: AgentId) {
        let key = self.key(agent_id);
        let cleared = async {
            let hints = self.queue.take(&key, HINTS_MAX, self.clock.now()).await?;
            if hints.is_empty() {
                return Ok(());
            }
            self.queue.done(&key, &hints).await
        };
        if let Err(error) = cleared.await {
            debug!(%error, %agent_id, "hints were not cleared away");
        }
    }

    /// Lets every gateway that has its session here, and for which commands wait, look for them.
    ///
    /// # Errors
    ///
    /// As the store's.
    pub async fn look_everywhere(&self) -> StoreResult<()> {
        let mut page = Page::first(STEP);
        loop {
            let now = self.clock.line();
            let listing = self.store.queued_agents(&self.tenant, page, now).await?;
            for agent_id in &listing.items {
                self.manager.nudge(*agent_id);
            }
            match listing.next {
                Some(next) => page = Page::after(next, STEP),
                None => return Ok(()),
            }
        }
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
        // A session that is here must not wait until the others have been told.
        if self.is_shared() {
            self.manager.nudge(*agent_id);
        }
        if self.announced.try_send((*agent_id, command_id)).is_err() {
            // Full, or stopping: the session still looks by itself.
            self.manager.nudge(*agent_id);
        }
    }

    fn cancel(&self, agent_id: &AgentId, command_id: CommandId) {
        // Not connected: the next session is told by its confirmation.
        self.manager.cancel(*agent_id, command_id);
    }

    fn revoked(&self, agent_id: &AgentId) {
        self.manager.revoked(*agent_id);
    }

    fn given_away(&self, agent_id: &AgentId, epoch: u64) {
        self.manager.given_away(*agent_id, epoch);
    }

    fn certificate_revoked(&self, agent_id: &AgentId, epoch: u64) {
        self.manager.certificate_revoked(*agent_id, epoch);
    }

    fn rekey(&self, agent_id: &AgentId, generation: u32) {
        // Not connected here: whoever has its session was told, or its next one begins with it.
        self.manager.rekey(*agent_id, generation);
    }
}
