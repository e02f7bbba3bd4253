//! The queue of a single backend process, in memory: the reconciler finds what it forgets at a restart.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use viworks_common::id::CommandId;
use viworks_common::time::Monotonic;

use super::{CommandQueue, HintLimits, QueueError, QueueKey, Scope, Told};

/// The queue.
#[derive(Debug)]
pub struct MemoryQueue {
    limits: HintLimits,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    total: usize,
    agents: BTreeMap<QueueKey, VecDeque<Hint>>,
}

#[derive(Debug)]
struct Hint {
    command_id: CommandId,
    taken_at: Option<Monotonic>,
}

impl MemoryQueue {
    /// An empty queue.
    #[must_use]
    pub fn new(limits: HintLimits) -> Self {
        Self {
            limits,
            inner: Mutex::default(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl CommandQueue for MemoryQueue {
    async fn offer(&self, key: &QueueKey, commands: &[CommandId]) -> Result<Told, QueueError> {
        let mut inner = self.inner();
        let own = inner.agents.get(key);
        let known =
            |id: &&CommandId| own.is_some_and(|own| own.iter().any(|hint| hint.command_id == **id));
        let new: Vec<_> = commands.iter().filter(|id| !known(id)).copied().collect();
        let HintLimits {
            per_agent, total, ..
        } = self.limits;
        let full = |scope, limit| Err(QueueError::Full { scope, limit });
        if own.map_or(0, VecDeque::len) + new.len() > per_agent {
            return full(Scope::Agent, per_agent);
        }
        if inner.total + new.len() > total {
            return full(Scope::Total, total);
        }
        // Whoever offers wakes the session by itself, where there is one.
        if new.is_empty() {
            return Ok(Told::Nobody);
        }
        inner.total += new.len();
        let hints = new.into_iter().map(|command_id| Hint {
            command_id,
            taken_at: None,
        });
        inner.agents.entry(key.clone()).or_default().extend(hints);
        Ok(Told::Nobody)
    }

    async fn take(
        &self,
        key: &QueueKey,
        limit: usize,
        now: Monotonic,
    ) -> Result<Vec<CommandId>, QueueError> {
        let mut inner = self.inner();
        let own = inner.agents.get_mut(key).into_iter().flatten();
        let waiting = own.filter(|hint| hint.taken_at.is_none()).take(limit);
        let taken = waiting.map(|hint| {
            hint.taken_at = Some(now);
            hint.command_id
        });
        Ok(taken.collect())
    }

    async fn done(&self, key: &QueueKey, commands: &[CommandId]) -> Result<(), QueueError> {
        let mut inner = self.inner();
        let Some(own) = inner.agents.get_mut(key) else {
            return Ok(());
        };
        let before = own.len();
        own.retain(|hint| !commands.contains(&hint.command_id));
        let (removed, empty) = (before - own.len(), own.is_empty());
        if empty {
            inner.agents.remove(key);
        }
        inner.total -= removed;
        Ok(())
    }

    async fn sweep(&self, now: Monotonic) -> Result<Vec<QueueKey>, QueueError> {
        let mut inner = self.inner();
        let mut woken = Vec::new();
        for (key, own) in &mut inner.agents {
            let mut any = false;
            for hint in own {
                let lease = self.limits.lease;
                let back = |at: &mut Monotonic| at.saturating_add(lease) <= now;
                any |= hint.taken_at.take_if(back).is_some();
            }
            if any {
                woken.push(key.clone());
            }
        }
        Ok(woken)
    }

    async fn attach(&self, _key: &QueueKey, _epoch: u64) -> Result<bool, QueueError> {
        Ok(true)
    }

    fn attached_for(&self) -> Option<Duration> {
        None
    }
}
