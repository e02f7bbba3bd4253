//! The queue as a wake-up: hints that commands may wait for a gateway, and word to the instance that has its session.
//! The database has the commands, so a hint that is lost, doubled or stale changes nothing; how many wait, and which
//! are dead, only the database says.

use std::time::Duration;

use async_trait::async_trait;
use viworks_common::id::{AgentId, CommandId, Tenant};
use viworks_common::time::Monotonic;

pub mod calls;
pub mod memory;
pub mod redis;

/// The bounds of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HintLimits {
    /// Hints of one gateway.
    pub per_agent: usize,
    /// Hints of all gateways that this process holds itself.
    pub total: usize,
    /// After how long a hint that was taken and not dealt with is put back.
    pub lease: Duration,
}

/// Whose queue.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueueKey {
    /// The tenant.
    pub tenant: Tenant,
    /// The gateway.
    pub agent_id: AgentId,
}

/// Which bound was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// That of one gateway.
    Agent,
    /// That of the whole queue.
    Total,
}

/// Why the queue did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// It refuses; it never makes room by forgetting what was not handed out.
    #[error("the queue is full: {limit} hints ({scope:?})")]
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

/// Who was told that something waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// The queue knows of no session of the gateway.
    Nobody,
    /// The session is this instance's own, which needs no hint: nothing was added.
    Own,
    /// The instance that has the session.
    Another,
}

/// The contract. Hints of a gateway are handed out in the order in which they came, at least once.
#[async_trait]
pub trait CommandQueue: Send + Sync {
    /// Adds hints, all or none of them, and tells whoever has the session; adding one twice is harmless.
    async fn offer(&self, key: &QueueKey, commands: &[CommandId]) -> Result<Told, QueueError>;

    /// Hands out at most `limit` hints of one gateway.
    async fn take(
        &self,
        key: &QueueKey,
        limit: usize,
        now: Monotonic,
    ) -> Result<Vec<CommandId>, QueueError>;

    /// Removes hints that were dealt with; one that is not there is no mistake.
    async fn done(&self, key: &QueueKey, commands: &[CommandId]) -> Result<(), QueueError>;

    /// Puts back what was taken too long ago, and says for whom: those are to be woken.
    async fn sweep(&self, now: Monotonic) -> Result<Vec<QueueKey>, QueueError>;

    /// This instance has the session of the gateway: for a while hints are told to it, and what others took and left
    /// is handed out here. It says so again and again. `false` when a later session is known.
    async fn attach(&self, key: &QueueKey, epoch: u64) -> Result<bool, QueueError>;

    /// For how long an attachment holds; `None` where this process is the only one, and nothing has to be said.
    fn attached_for(&self) -> Option<Duration>;
}
