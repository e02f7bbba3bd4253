//! Gateways whose telemetry the database refuses: it is kept as it is and tried again, and what else they do goes on.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use viworks_common::id::AgentId;

use super::line::Parts;

/// So many gateways are withheld in a lane; what they handed in takes of what may wait in the process.
pub(super) const GATEWAYS_MAX: usize = 16;

/// The first and the longest wait before it is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// What is withheld of one gateway.
#[derive(Debug)]
struct One<T> {
    parts: Parts<T>,
    pause: Duration,
    due: Instant,
}

/// Who is withheld.
#[derive(Debug)]
pub(super) struct Withheld<T> {
    of: BTreeMap<AgentId, One<T>>,
}

impl<T> Withheld<T> {
    pub(super) const fn new() -> Self {
        Self {
            of: BTreeMap::new(),
        }
    }

    /// Whether there is room for this gateway.
    pub(super) fn takes(&self, agent_id: AgentId) -> bool {
        self.of.len() < GATEWAYS_MAX || self.of.contains_key(&agent_id)
    }

    /// Keeps what is refused of a gateway, behind what there is of it.
    pub(super) fn keep(&mut self, agent_id: AgentId, parts: Parts<T>, now: Instant) {
        let one = self.of.entry(agent_id).or_insert_with(|| One {
            parts: Parts::default(),
            pause: RETRY.0,
            due: now + RETRY.0,
        });
        one.parts.append(parts);
    }

    /// Another session of a gateway hands in: that of before is fenced, which one attempt shows.
    pub(super) fn hasten(&mut self, agent_id: AgentId, epoch: u64, now: Instant) {
        if let Some(one) = self.of.get_mut(&agent_id)
            && one.parts.writes.iter().all(|write| write.epoch < epoch)
        {
            one.due = now;
        }
    }

    /// When the next attempt is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.of.values().map(|one| one.due).min()
    }

    /// What is to be tried again now. It counts as withheld until [`Self::settle`] finds nothing of it refused again.
    pub(super) fn due(&mut self, now: Instant) -> Option<(AgentId, Parts<T>)> {
        let mut of = self.of.iter_mut();
        let (agent_id, one) = of.find(|(_, one)| one.due <= now)?;
        one.due = now + one.pause;
        one.pause = one.pause.saturating_mul(2).min(RETRY.1);
        Some((*agent_id, std::mem::take(&mut one.parts)))
    }

    /// Whether nothing of a gateway is refused any more; it is not withheld then.
    pub(super) fn settle(&mut self, agent_id: AgentId) -> bool {
        let settled = |one: &One<T>| one.parts.writes.is_empty();
        self.of.get(&agent_id).is_some_and(settled) && self.of.remove(&agent_id).is_some()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use viworks_common::telemetry::Batch;

    use super::*;
    use crate::data::TelemetryWrite;

    fn agent(n: u128) -> AgentId {
        AgentId::from_uuid(Uuid::from_u128(n))
    }

    fn parts(n: u128, epoch: u64) -> Parts<()> {
        let write = TelemetryWrite {
            agent_id: agent(n),
            epoch,
            skew_ms: None,
            batch: Batch {
                spool_epoch: viworks_common::id::AgentRunId::from_uuid(Uuid::from_u128(1)),
                from_seq: 1,
                to_seq: 1,
                gaps: Vec::new(),
                records: Vec::new(),
            },
        };
        let mut parts = Parts::default();
        parts.push(write, 1, Some(()));
        parts
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_again_waits_longer_up_to_a_bound() {
        let mut withheld = Withheld::new();
        withheld.keep(agent(1), parts(1, 1), Instant::now());
        let mut pauses = Vec::new();
        for _attempt in 0..12 {
            let began = Instant::now();
            assert!(withheld.due(began).is_none());
            tokio::time::sleep_until(withheld.next_due().unwrap()).await;
            let (agent_id, parts) = withheld.due(Instant::now()).unwrap();
            withheld.keep(agent_id, parts, Instant::now());
            assert!(!withheld.settle(agent_id));
            pauses.push(began.elapsed().as_secs());
        }
        assert_eq!(pauses[..4], [1, 1, 2, 4]);
        assert_eq!(pauses.last(), Some(&300));
    }

    #[tokio::test(start_paused = true)]
    async fn another_session_is_an_occasion_to_try_again() {
        let mut withheld = Withheld::new();
        let now = Instant::now();
        withheld.keep(agent(1), parts(1, 4), now);
        withheld.hasten(agent(1), 4, now);
        assert!(withheld.due(now).is_none());
        withheld.hasten(agent(1), 5, now);
        assert!(withheld.due(now).is_some());
        assert!(withheld.settle(agent(1)));
        assert_eq!(withheld.next_due(), None);
    }

    #[test]
    fn there_is_room_for_so_many_and_always_for_those_of_before() {
        let mut withheld = Withheld::new();
        for n in 0..u128::try_from(GATEWAYS_MAX).unwrap() {
            assert!(withheld.takes(agent(n)));
            withheld.keep(agent(n), parts(n, 1), Instant::now());
        }
        assert!(!withheld.takes(agent(1_000)));
        assert!(withheld.takes(agent(0)));
    }
}
