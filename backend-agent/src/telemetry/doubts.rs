//! Of whom it speaks when the database says that it has no room, or lacks something: of itself, or of what one gateway
//! handed in. A rule may raise any code for the rows of one gateway. What tells them apart is whether those of others
//! are stored meanwhile.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use viworks_common::id::AgentId;

/// So many gateways fail one after another, and nothing is stored of anybody: no more are tried without a pause.
const IN_A_ROW_MAX: usize = 4;

/// So long one that nobody can be compared with fails until it is believed that the database does, and so long what was
/// stored of others speaks against one that fails again.
const ALONE_MAX: Duration = Duration::from_secs(30);

/// Of whom a failure speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nobody knows yet.
    Open,
    /// Of what the gateway handed in: it failed, something of another one was stored, and it failed again.
    Given,
    /// Of the database, as far as can be seen.
    Database,
}

/// When the latest transaction began that stored telemetry, whoever's. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Proof(Arc<Mutex<Option<Instant>>>);

impl Proof {
    fn latest(&self) -> Option<Instant> {
        // Nothing panics while it is held.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, begun: Instant) {
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = (*latest).max(Some(begun));
    }
}

/// A gateway whose telemetry failed like that.
#[derive(Debug, Clone, Copy)]
struct Doubt {
    /// When it did first: from then on it counts that something of another one is stored.
    since: Instant,
    /// When it did last.
    last: Instant,
}

/// The gateways of a lane whose telemetry failed like that, and was not stored since.
#[derive(Debug)]
pub(super) struct Doubts {
    of: BTreeMap<AgentId, Doubt>,
    proof: Proof,
}

impl Doubts {
    pub(super) const fn new(proof: Proof) -> Self {
        Self {
            of: BTreeMap::new(),
            proof,
        }
    }

    /// What a gateway handed in failed, and there was nothing of another one with it.
    pub(super) fn failed(&mut self, agent_id: AgentId, now: Instant) -> Verdict {
        let proof = self.proof.latest();
        let doubt = self.of.entry(agent_id).or_insert(Doubt {
            since: now,
            last: now,
        });
        let last = std::mem::replace(&mut doubt.last, now);
        if let Some(begun) = proof
            && begun > doubt.since
        {
            let is_recent = now.saturating_duration_since(begun) < ALONE_MAX;
            if begun > last || is_recent {
                return Verdict::Given;
            }
            // Nothing was stored of anybody since it failed before: by now the disk may be full. It is looked at as
            // for the first time.
            doubt.since = now;
        }
        let is_long = now.saturating_duration_since(doubt.since) >= ALONE_MAX;
        if is_long || self.open() > IN_A_ROW_MAX {
            Verdict::Database
        } else {
            Verdict::Open
        }
    }

    /// A transaction with what these handed in was committed; whether it stored records.
    pub(super) fn committed(
        &mut self,
        of: impl Iterator<Item = AgentId>,
        stores: bool,
        begun: Instant,
    ) {
        for agent_id in of {
            self.of.remove(&agent_id);
        }
        // Of a table to which nothing was added nothing is known.
        if stores {
            self.proof.note(begun);
        }
    }

    /// Nothing of a gateway waits any more.
    pub(super) fn forget(&mut self, agent_id: AgentId) {
        self.of.remove(&agent_id);
    }

    /// Whether it is not known of whom the failures of a gateway speak.
    pub(super) fn is_open(&self, agent_id: AgentId) -> bool {
        let doubt = self.of.get(&agent_id);
        doubt.is_some_and(|doubt| !self.is_proven_since(doubt.since))
    }

    /// Of how many it is not known.
    pub(super) fn open(&self) -> usize {
        let doubts = self.of.values();
        doubts
            .filter(|doubt| !self.is_proven_since(doubt.since))
            .count()
    }

    /// Whether the database stored telemetry that came to it after that.
    fn is_proven_since(&self, first: Instant) -> bool {
        self.proof.latest().is_some_and(|begun| begun > first)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn agent(n: usize) -> AgentId {
        AgentId::from_uuid(Uuid::from_u128(u128::try_from(n).unwrap()))
    }

    /// Seconds after some moment.
    struct Time(Instant);

    impl Time {
        fn at(&self, seconds: u64) -> Instant {
            self.0 + Duration::from_secs(seconds)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_again_after_that_of_others_was_stored_is_about_what_was_given() {
        let time = Time(Instant::now());
        let mut doubts = Doubts::new(Proof::default());
        assert_eq!(doubts.failed(agent(1), time.at(1)), Verdict::Open);
        assert_eq!(doubts.failed(agent(1), time.at(2)), Verdict::Open);
        // That one was on its way before; it says nothing of what is now.
        doubts.committed([agent(2)].into_iter(), true, time.at(0));
        // Nor does one that added nothing.
        doubts.committed([agent(2)].into_iter(), false, time.at(3));
        assert_eq!(doubts.failed(agent(1), time.at(4)), Verdict::Open);
        assert!(doubts.is_open(agent(1)));
        doubts.committed([agent(2)].into_iter(), true, time.at(5));
        assert!(!doubts.is_open(agent(1)));
        assert_eq!(doubts.failed(agent(1), time.at(6)), Verdict::Given);
        // It goes on to be for a while, and is over once something of it is stored.
        assert_eq!(doubts.failed(agent(1), time.at(20)), Verdict::Given);
        doubts.committed([agent(1)].into_iter(), true, time.at(21));
        assert_eq!(doubts.failed(agent(1), time.at(22)), Verdict::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn what_failed_once_and_is_stored_then_was_nobody_s() {
        let time = Time(Instant::now());
        let mut doubts = Doubts::new(Proof::default());
        assert_eq!(doubts.failed(agent(1), time.at(1)), Verdict::Open);
        doubts.committed([agent(1), agent(2)].into_iter(), true, time.at(2));
        assert_eq!(doubts.open(), 0);
        doubts.failed(agent(1), time.at(3));
        doubts.forget(agent(1));
        assert_eq!(doubts.open(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_fail_it_is_the_database_and_nobody_is_blamed() {
        let time = Time(Instant::now());
        let mut doubts = Doubts::new(Proof::default());
        for n in 0..IN_A_ROW_MAX {
            assert_eq!(doubts.failed(agent(n), time.at(1)), Verdict::Open);
        }
        let next = agent(IN_A_ROW_MAX);
        assert_eq!(doubts.failed(next, time.at(1)), Verdict::Database);
        assert_eq!(doubts.failed(agent(0), time.at(9)), Verdict::Database);
        // Once it works for anybody, in whichever lane, it is not.
        let mut other = Doubts::new(doubts.proof.clone());
        other.committed([agent(99)].into_iter(), true, time.at(10));
        assert_eq!(doubts.open(), 0);
        assert_eq!(doubts.failed(next, time.at(11)), Verdict::Given);
        assert_eq!(doubts.failed(agent(98), time.at(11)), Verdict::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_nobody_is_compared_with_is_believed_after_a_while() {
        let time = Time(Instant::now());
        let mut doubts = Doubts::new(Proof::default());
        doubts.committed([agent(2)].into_iter(), true, time.at(0));
        assert_eq!(doubts.failed(agent(1), time.at(1)), Verdict::Open);
        assert_eq!(doubts.failed(agent(1), time.at(30)), Verdict::Open);
        assert_eq!(doubts.failed(agent(1), time.at(31)), Verdict::Database);
        doubts.committed([agent(2)].into_iter(), true, time.at(32));
        assert_eq!(doubts.failed(agent(1), time.at(33)), Verdict::Given);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_stored_long_ago_speaks_against_nobody() {
        let time = Time(Instant::now());
        let mut doubts = Doubts::new(Proof::default());
        assert_eq!(doubts.failed(agent(1), time.at(0)), Verdict::Open);
        doubts.committed([agent(2)].into_iter(), true, time.at(1));
        assert_eq!(doubts.failed(agent(1), time.at(2)), Verdict::Given);
        // For a while it does not matter that nobody else has anything to store.
        assert_eq!(doubts.failed(agent(1), time.at(30)), Verdict::Given);
        assert!(!doubts.is_open(agent(1)));
        // By now the disk is full: it is looked at as for the first time, and tried again soon.
        assert_eq!(doubts.failed(agent(1), time.at(94)), Verdict::Open);
        assert!(doubts.is_open(agent(1)));
        assert_eq!(doubts.failed(agent(1), time.at(123)), Verdict::Open);
        assert_eq!(doubts.failed(agent(1), time.at(124)), Verdict::Database);
        assert_eq!(doubts.failed(agent(1), time.at(129)), Verdict::Database);
        // Or it was about the gateway all the same.
        doubts.committed([agent(2)].into_iter(), true, time.at(130));
        assert_eq!(doubts.failed(agent(1), time.at(131)), Verdict::Given);
        assert_eq!(doubts.failed(agent(1), time.at(132)), Verdict::Given);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_fails_beside_others_that_are_stored_goes_on_to_be_about_what_was_given() {
        let time = Time(Instant::now());
        let mut doubts = Doubts::new(Proof::default());
        doubts.failed(agent(1), time.at(0));
        for round in 1..100 {
            let seconds = round * 60;
            doubts.committed([agent(2)].into_iter(), true, time.at(seconds - 1));
            assert_eq!(doubts.failed(agent(1), time.at(seconds)), Verdict::Given);
            assert_eq!(doubts.open(), 0);
        }
    }
}
