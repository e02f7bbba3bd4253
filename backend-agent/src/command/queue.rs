//! The bounded queue of offers: which agent may have something to fetch. A hint that the database can rebuild.

use std::time::Duration;

use async_trait::async_trait;
use viworks_common::id::{AgentId, CommandId, Tenant};
use viworks_common::time::Monotonic;

pub mod memory;

/// The bounds of a queue and its policy of retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Offers of one agent, waiting or leased.
    pub per_agent: usize,
    /// Offers of all agents.
    pub total: usize,
    /// After how many leases without success an offer becomes a dead letter.
    pub attempts_max: u32,
    /// How long a lease lasts before somebody else may take the offer.
    pub lease: Duration,
    /// The delay after the first failure; doubles with each further one.
    pub backoff: Duration,
    /// The longest delay.
    pub backoff_max: Duration,
    /// How many dead letters are kept; older ones make room.
    pub dead_letters_max: usize,
}

impl QueueLimits {
    /// The delay after `attempt` leases have failed.
    #[must_use]
    pub fn delay(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(20);
        self.backoff
            .saturating_mul(1 << doublings)
            .min(self.backoff_max)
    }
}

/// Whose queue.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueueKey {
    /// The tenant.
    pub tenant: Tenant,
    /// The agent.
    pub agent_id: AgentId,
}

/// Which bound was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// That of one agent.
    Agent,
    /// That of the whole queue.
    Total,
}

/// Why the queue did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// It refuses; it never makes room by forgetting what was not handed out.
    #[error("the queue is full: {limit} offers ({scope:?})")]
    Full {
        /// Which bound.
        scope: Scope,
        /// Its value.
        limit: usize,
    },
    /// It cannot be reached.
    #[error("the queue is not available: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
}

/// What became of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// It waits.
    Added,
    /// It was waiting or leased already.
    Present,
}

/// An offer handed out for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The command.
    pub command_id: CommandId,
    /// How often it was handed out, this time included.
    pub attempt: u32,
}

/// What became of an offer that was handed back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retried {
    /// It will be handed out again after this delay.
    After(Duration),
    /// It was handed out too often and lies with the dead letters.
    Dead,
    /// It was not leased: somebody acknowledged it, or it never was there.
    Unknown,
}

/// An offer that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Whose.
    pub key: QueueKey,
    /// The command.
    pub command_id: CommandId,
    /// How often it was handed out.
    pub attempts: u32,
}

/// The contract. Offers are handed out in the order in which they came, at least once.
#[async_trait]
pub trait CommandQueue: Send + Sync {
    /// Adds an offer; adding it twice is harmless.
    async fn offer(&self, key: &QueueKey, command_id: CommandId) -> Result<Offered, QueueError>;

    /// Hands out at most `limit` offers of one agent that wait, whose backoff is over, or whose lease ran out.
    async fn lease(
        &self,
        key: &QueueKey,
        limit: usize,
        now: Monotonic,
    ) -> Result<Vec<Lease>, QueueError>;

    /// Removes an offer that was dealt with; `false` when it was not there.
    async fn acknowledge(&self, key: &QueueKey, command_id: CommandId) -> Result<bool, QueueError>;

    /// Hands back a leased offer that could not be dealt with.
    async fn retry(
        &self,
        key: &QueueKey,
        command_id: CommandId,
        now: Monotonic,
    ) -> Result<Retried, QueueError>;

    /// Offers of all agents, waiting or leased.
    async fn depth(&self) -> Result<usize, QueueError>;

    /// What was given up, oldest first, bounded.
    async fn dead_letters(&self) -> Result<Vec<DeadLetter>, QueueError>;
}
