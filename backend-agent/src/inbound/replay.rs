//! The bounded cache of nonces seen outside an established session: a recorded HELLO opens no second session.
//!
//! The cache is the first line and holds per instance; what makes a replay fail everywhere is the challenge. Two rules
//! keep strangers out of it: it is looked up before a MAC is checked, and written only after one was found right. At
//! its bound it refuses newcomers; it never forgets a nonce that could still be replayed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moka::future::Cache;
use moka::policy::EvictionPolicy;
use viworks_common::id::AgentId;
use viworks_common::time::Monotonic;

/// A nonce drawn by an agent.
pub type Nonce = [u8; 32];

/// The bounds of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayLimits {
    /// How long a nonce is remembered: at least twice the deadline of a handshake.
    pub ttl: Duration,
    /// How many nonces are remembered.
    pub total: usize,
    /// How many of them may belong to one agent.
    pub per_agent: usize,
}

/// What became of a nonce that a right MAC vouches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remembered {
    /// It was never seen before, and will be recognised from now on.
    Fresh,
    /// It was seen before: a security event.
    Replayed,
    /// This agent has used up its share; not remembered, so not to be accepted.
    AgentFull,
    /// The cache holds only nonces that could still be replayed; not remembered, so not to be accepted.
    Full,
}

/// The cache.
#[derive(Debug)]
pub struct ReplayCache {
    limits: ReplayLimits,
    seen: Cache<(AgentId, Nonce), ()>,
    ledger: Mutex<Ledger>,
}

/// Exact books beside the cache, whose own count is only eventually right.
#[derive(Debug, Default)]
struct Ledger {
    /// In the order of insertion, which is the order of expiry because all live equally long.
    expiries: VecDeque<(Monotonic, AgentId)>,
    per_agent: BTreeMap<AgentId, usize>,
}

impl ReplayCache {
    /// An empty cache.
    #[must_use]
    pub fn new(limits: ReplayLimits) -> Self {
        // Twice the bound and a longer life than the books give: the cache itself never has a reason to evict, and
        // should it ever have one, the least recently used entry is also the oldest.
        let capacity = u64::try_from(limits.total.saturating_mul(2)).unwrap_or(u64::MAX);
        let seen = Cache::builder()
            .max_capacity(capacity)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(limits.ttl.saturating_add(limits.ttl / 4))
            .build();
        Self {
            limits,
            seen,
            ledger: Mutex::default(),
        }
    }

    /// Whether the nonce was used before. Asked before the MAC is checked; changes nothing.
    #[must_use]
    pub fn contains(&self, agent: AgentId, nonce: &Nonce) -> bool {
        self.seen.contains_key(&(agent, *nonce))
    }

    /// Remembers the nonce of a HELLO whose MAC was right.
    pub async fn remember(&self, agent: AgentId, nonce: Nonce, now: Monotonic) -> Remembered {
        if self.contains(agent, &nonce) {
            return Remembered::Replayed;
        }
        if let Err(refusal) = self.ledger().reserve(agent, now, &self.limits) {
            return refusal;
        }
        // Of two simultaneous holders of one nonce exactly one is fresh.
        if self
            .seen
            .entry((agent, nonce))
            .or_insert(())
            .await
            .is_fresh()
        {
            Remembered::Fresh
        } else {
            Remembered::Replayed
        }
    }

    /// How many nonces could still be replayed, at most [`ReplayLimits::total`].
    #[must_use]
    pub fn len(&self, now: Monotonic) -> usize {
        let mut ledger = self.ledger();
        ledger.forget_expired(now);
        ledger.expiries.len()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Nothing panics while it is held.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    fn reserve(
        &mut self,
        agent: AgentId,
        now: Monotonic,
        limits: &ReplayLimits,
    ) -> Result<(), Remembered> {
        self.forget_expired(now);
        if self.expiries.len() >= limits.total {
            return Err(Remembered::Full);
        }
        let own = self.per_agent.entry(agent).or_default();
        if *own >= limits.per_agent {
            return Err(Remembered::AgentFull);
        }
        *own += 1;
        self.expiries
            .push_back((now.saturating_add(limits.ttl), agent));
        Ok(())
    }

    fn forget_expired(&mut self, now: Monotonic) {
        while let Some(&(expiry, agent)) = self.expiries.front() {
            if expiry > now {
                return;
            }
            self.expiries.pop_front();
            if let Some(own) = self.per_agent.get_mut(&agent) {
                *own -= 1;
                if *own == 0 {
                    self.per_agent.remove(&agent);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const LIMITS: ReplayLimits = ReplayLimits {
        ttl: Duration::from_secs(30),
        total: 1_000,
        per_agent: 20,
    };

    fn agent(n: u128) -> AgentId {
        AgentId::from_uuid(Uuid::from_u128(n))
    }

    fn nonce(n: u64) -> Nonce {
        let mut nonce = [0; 32];
        nonce[..8].copy_from_slice(&n.to_be_bytes());
        nonce
    }

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_duration(Duration::from_secs(seconds))
    }

    #[tokio::test]
    async fn a_nonce_is_fresh_once() {
        let cache = ReplayCache::new(LIMITS);
        assert!(!cache.contains(agent(1), &nonce(1)));
        assert_eq!(
            cache.remember(agent(1), nonce(1), at(0)).await,
            Remembered::Fresh
        );
        assert!(cache.contains(agent(1), &nonce(1)));
        assert_eq!(
            cache.remember(agent(1), nonce(1), at(1)).await,
            Remembered::Replayed
        );
        assert_eq!(
            cache.remember(agent(2), nonce(1), at(1)).await,
            Remembered::Fresh
        );
        assert_eq!(cache.len(at(1)), 2, "a replay takes no room");
    }

    #[tokio::test]
    async fn after_a_flood_every_nonce_that_was_accepted_is_still_recognised() {
        let cache = ReplayCache::new(LIMITS);
        let mut accepted = Vec::new();
        let mut refused = 0;
        for n in 0..20_000 {
            let who = agent(u128::from(n % 100));
            match cache.remember(who, nonce(n), at(0)).await {
                Remembered::Fresh => accepted.push((who, nonce(n))),
                Remembered::Full | Remembered::AgentFull => refused += 1,
                Remembered::Replayed => panic!("nonce {n} was never used"),
            }
        }
        assert_eq!((accepted.len(), refused), (1_000, 19_000));
        for (who, nonce) in accepted {
            assert_eq!(
                cache.remember(who, nonce, at(29)).await,
                Remembered::Replayed
            );
        }
    }

    #[tokio::test]
    async fn one_agent_cannot_take_the_room_of_others() {
        let cache = ReplayCache::new(LIMITS);
        for n in 0..20 {
            assert_eq!(
                cache.remember(agent(1), nonce(n), at(0)).await,
                Remembered::Fresh
            );
        }
        assert_eq!(
            cache.remember(agent(1), nonce(20), at(0)).await,
            Remembered::AgentFull
        );
        assert_eq!(
            cache.remember(agent(2), nonce(20), at(0)).await,
            Remembered::Fresh
        );
    }

    #[tokio::test]
    async fn room_comes_back_when_nonces_can_no_longer_be_replayed() {
        let limits = ReplayLimits { total: 1, ..LIMITS };
        let cache = ReplayCache::new(limits);
        assert_eq!(
            cache.remember(agent(1), nonce(1), at(0)).await,
            Remembered::Fresh
        );
        assert_eq!(
            cache.remember(agent(1), nonce(2), at(29)).await,
            Remembered::Full
        );
        assert_eq!(
            cache.remember(agent(1), nonce(2), at(30)).await,
            Remembered::Fresh
        );
        assert_eq!(cache.len(at(60)), 0);
    }

    #[tokio::test]
    async fn of_many_simultaneous_uses_of_one_nonce_exactly_one_is_fresh() {
        let cache = ReplayCache::new(LIMITS);
        let uses = (0..20).map(|_| cache.remember(agent(1), nonce(1), at(0)));
        let results = futures_util::future::join_all(uses).await;
        let fresh = results
            .iter()
            .filter(|result| **result == Remembered::Fresh);
        assert_eq!(fresh.count(), 1);
    }
}
