//! The queue of a single backend process, in memory: the reconciler fills it again after a restart.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use viworks_common::id::CommandId;
use viworks_common::time::Monotonic;

use super::{
    CommandQueue, DeadLetter, Lease, Offered, QueueError, QueueKey, QueueLimits, Retried, Scope,
};

/// The queue.
#[derive(Debug)]
pub struct MemoryQueue {
    limits: QueueLimits,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    total: usize,
    agents: BTreeMap<QueueKey, VecDeque<Entry>>,
    dead: VecDeque<DeadLetter>,
}

#[derive(Debug)]
struct Entry {
    command_id: CommandId,
    attempts: u32,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    /// After a failure, until then.
    Resting(Monotonic),
    /// Handed out, until then.
    Leased(Monotonic),
}

impl Entry {
    fn is_due(&self, now: Monotonic) -> bool {
        match self.state {
            State::Waiting => true,
            State::Resting(until) | State::Leased(until) => until <= now,
        }
    }
}

impl MemoryQueue {
    /// An empty queue.
    #[must_use]
    pub fn new(limits: QueueLimits) -> Self {
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

impl Inner {
    fn remove(&mut self, key: &QueueKey, command_id: CommandId) -> Option<Entry> {
        let entries = self.agents.get_mut(key)?;
        let at = entries
            .iter()
            .position(|entry| entry.command_id == command_id)?;
        let entry = entries.remove(at)?;
        if entries.is_empty() {
            self.agents.remove(key);
        }
        self.total -= 1;
        Some(entry)
    }

    fn bury(&mut self, key: &QueueKey, command_id: CommandId, limits: &QueueLimits) {
        let Some(entry) = self.remove(key, command_id) else {
            return;
        };
        if self.dead.len() >= limits.dead_letters_max {
            self.dead.pop_front();
        }
        self.dead.push_back(DeadLetter {
            key: key.clone(),
            command_id,
            attempts: entry.attempts,
        });
    }
}

#[async_trait]
impl CommandQueue for MemoryQueue {
    async fn offer(&self, key: &QueueKey, command_id: CommandId) -> Result<Offered, QueueError> {
        let mut inner = self.inner();
        let own = inner.agents.get(key);
        if own.is_some_and(|own| own.iter().any(|entry| entry.command_id == command_id)) {
            return Ok(Offered::Present);
        }
        if own.map_or(0, VecDeque::len) >= self.limits.per_agent {
            return Err(QueueError::Full {
                scope: Scope::Agent,
                limit: self.limits.per_agent,
            });
        }
        if inner.total >= self.limits.total {
            return Err(QueueError::Full {
                scope: Scope::Total,
                limit: self.limits.total,
            });
        }
        inner.total += 1;
        inner
            .agents
            .entry(key.clone())
            .or_default()
            .push_back(Entry {
                command_id,
                attempts: 0,
                state: State::Waiting,
            });
        Ok(Offered::Added)
    }

    async fn lease(
        &self,
        key: &QueueKey,
        limit: usize,
        now: Monotonic,
    ) -> Result<Vec<Lease>, QueueError> {
        let mut inner = self.inner();
        let mut leases = Vec::new();
        let mut given_up = Vec::new();
        for entry in inner.agents.get_mut(key).into_iter().flatten() {
            if leases.len() >= limit {
                break;
            }
            if !entry.is_due(now) {
                continue;
            }
            if entry.attempts >= self.limits.attempts_max {
                given_up.push(entry.command_id);
                continue;
            }
            entry.attempts += 1;
            entry.state = State::Leased(now.saturating_add(self.limits.lease));
            leases.push(Lease {
                command_id: entry.command_id,
                attempt: entry.attempts,
            });
        }
        for command_id in given_up {
            inner.bury(key, command_id, &self.limits);
        }
        Ok(leases)
    }

    async fn acknowledge(&self, key: &QueueKey, command_id: CommandId) -> Result<bool, QueueError> {
        Ok(self.inner().remove(key, command_id).is_some())
    }

    async fn retry(
        &self,
        key: &QueueKey,
        command_id: CommandId,
        now: Monotonic,
    ) -> Result<Retried, QueueError> {
        let mut inner = self.inner();
        let leased = inner
            .agents
            .get_mut(key)
            .and_then(|own| own.iter_mut().find(|entry| entry.command_id == command_id));
        let Some(entry) = leased.filter(|entry| matches!(entry.state, State::Leased(_))) else {
            return Ok(Retried::Unknown);
        };
        if entry.attempts >= self.limits.attempts_max {
            inner.bury(key, command_id, &self.limits);
            return Ok(Retried::Dead);
        }
        let delay = self.limits.delay(entry.attempts);
        entry.state = State::Resting(now.saturating_add(delay));
        Ok(Retried::After(delay))
    }

    async fn depth(&self) -> Result<usize, QueueError> {
        Ok(self.inner().total)
    }

    async fn dead_letters(&self) -> Result<Vec<DeadLetter>, QueueError> {
        Ok(self.inner().dead.iter().cloned().collect())
    }
}
