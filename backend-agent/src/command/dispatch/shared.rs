//! What a queue that several instances share asks of each: to say which sessions it has, to hear what others call, and
//! to look after everything when word may have been lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tracing::{debug, warn};
use viworks_common::id::AgentId;
use viworks_runtime::fault;
use viworks_runtime::lifecycle::Lifecycle;

use super::{Dispatcher, TOGETHER};
use crate::data::in_full;

/// Gateways that wait to be told of, or to have their hints cleared away.
pub(super) const WAITING_MAX: usize = 4_096;

/// The pause between two looks at everything, and before one that failed is repeated.
const PAUSE: Duration = Duration::from_secs(1);

/// So many times an attachment is said while it holds.
const SAID_WHILE_IT_HOLDS: u32 = 3;

impl Dispatcher {
    /// Starts what a shared queue needs.
    pub(super) fn share(
        self: &Arc<Self>,
        to_clear: mpsc::Receiver<AgentId>,
        to_tell: mpsc::Receiver<(AgentId, u64)>,
        lifecycle: &Lifecycle,
    ) {
        let stop = || lifecycle.clone();
        let own = || Arc::clone(self);
        drop(lifecycle.spawn_critical("queue: clear", own().clear_all(to_clear, stop())));
        drop(lifecycle.spawn_critical("queue: attach", own().attach_all(to_tell, stop())));
        drop(lifecycle.spawn_critical("queue: calls", own().hear(stop())));
        drop(lifecycle.spawn_critical("queue: sweep", own().sweep_all(stop())));
        drop(lifecycle.spawn_critical("queue: renew", own().renew_all(stop())));
    }

    /// A session was confirmed and entered: others are told, and then it looks again. What was offered meanwhile, and
    /// told to whoever had the session before, is found by that.
    pub fn entered(&self, agent_id: AgentId, epoch: u64) {
        if self.is_shared() && self.entered.try_send((agent_id, epoch)).is_err() {
            self.sweep.notify_one();
        }
    }

    async fn clear_all(self: Arc<Self>, mut looked: mpsc::Receiver<AgentId>, lifecycle: Lifecycle) {
        while let Some(agents) = next(&mut looked, &lifecycle).await {
            let agents: BTreeSet<_> = agents.into_iter().collect();
            let clearings = agents.into_iter().map(|agent_id| self.clear(agent_id));
            together(clearings).await;
        }
    }

    async fn attach_all(
        self: Arc<Self>,
        mut entered: mpsc::Receiver<(AgentId, u64)>,
        lifecycle: Lifecycle,
    ) {
        while let Some(sessions) = next(&mut entered, &lifecycle).await {
            let attached = sessions.iter().copied().map(|(agent_id, epoch)| {
                let own = &self;
                async move {
                    fault::point("session.entered.before_route");
                    own.attach(agent_id, epoch).await;
                }
            });
            together(attached).await;
            fault::point("session.routed.before_look");
            let entered = sessions.into_iter().map(|(agent_id, _)| agent_id);
            self.look_among(entered.collect()).await;
        }
    }

    /// Lets those sessions look for which something was committed. A transaction of each would be most of what it costs
    /// to take over the sessions of another instance.
    async fn look_among(&self, agents: Vec<AgentId>) {
        let queued = self.store.queued_among(&self.tenant, agents.clone()).await;
        let look = queued.unwrap_or_else(|error| {
            debug!(
                error = in_full(&error),
                "it is not known for which sessions something waits; they look themselves"
            );
            agents
        });
        for agent_id in look {
            self.manager.nudge(agent_id);
        }
    }

    async fn attach(&self, agent_id: AgentId, epoch: u64) {
        match self.queue.attach(&self.key(agent_id), epoch).await {
            Ok(true) => {}
            Ok(false) => debug!(%agent_id, epoch, "another instance has a later session"),
            Err(error) => debug!(%error, %agent_id, "others were not told of a session"),
        }
    }

    async fn hear(self: Arc<Self>, lifecycle: Lifecycle) {
        loop {
            let called = tokio::select! {
                () = lifecycle.stopping() => return,
                called = self.calls.next() => called,
            };
            for agent_id in called.look {
                self.manager.nudge(agent_id);
            }
            if called.look_everywhere {
                self.sweep.notify_one();
            }
        }
    }

    /// Looks after everything when word may have been lost, until that has succeeded once.
    async fn sweep_all(self: Arc<Self>, lifecycle: Lifecycle) {
        loop {
            tokio::select! {
                () = lifecycle.stopping() => return,
                () = self.sweep.notified() => {}
            }
            let looked = self.look_everywhere().await;
            self.attach_held().await;
            // What was announced while nobody was attached.
            let looked = match looked {
                Ok(()) => self.look_everywhere().await,
                Err(error) => Err(error),
            };
            if let Err(error) = looked {
                warn!(
                    error = in_full(&error),
                    "waiting commands were not looked for; that is repeated"
                );
                self.sweep.notify_one();
            }
            tokio::select! {
                () = lifecycle.stopping() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// Says which sessions are here while they are.
    async fn renew_all(self: Arc<Self>, lifecycle: Lifecycle) {
        let Some(holds) = self.queue.attached_for() else {
            return;
        };
        let mut ticks = tokio::time::interval(holds / SAID_WHILE_IT_HOLDS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = lifecycle.stopping() => return,
                _ = ticks.tick() => self.attach_held().await,
            }
        }
    }

    async fn attach_held(&self) {
        let held = self.manager.held().into_iter();
        together(held.map(|(agent_id, epoch)| self.attach(agent_id, epoch))).await;
    }
}

/// What waits in a channel, as far as it is worked on together; `None` when nothing will come any more.
async fn next<T>(waiting: &mut mpsc::Receiver<T>, lifecycle: &Lifecycle) -> Option<Vec<T>> {
    let mut taken = Vec::new();
    let count = tokio::select! {
        () = lifecycle.stopping() => return None,
        count = waiting.recv_many(&mut taken, TOGETHER) => count,
    };
    (count > 0).then_some(taken)
}

async fn together(work: impl Iterator<Item = impl Future<Output = ()>>) {
    stream::iter(work)
        .buffer_unordered(TOGETHER)
        .collect::<()>()
        .await;
}
