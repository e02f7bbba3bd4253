//! Gateways whose telemetry the database refuses: it is kept as it is and tried again, and what else they do goes on.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use viworks_common::id::AgentId;

use super::composed::Parts;

/// So many gateways are withheld in a lane with what they handed in. Of more it is only kept who waits.
pub(super) const GATEWAYS_MAX: usize = 16;

/// The first and the longest wait before it is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// The longest one while it is not known of whom a failure speaks: the database may do again at any time.
const RETRY_OPEN: Duration = Duration::from_secs(5);

/// How long the place of a gateway is kept whose next session hands in, or is to come: until then it is known whether
/// that is refused as well.
const RESERVED: Duration = Duration::from_secs(30);

/// What is withheld of one gateway.
#[derive(Debug)]
struct One<T> {
    parts: Parts<T>,
    pause: Duration,
    due: Instant,
}

/// Who waits for an answer about batches of which nothing is kept.
#[derive(Debug)]
struct Outside<T> {
    /// Of which session.
    epoch: u64,
    notes: Vec<T>,
    due: Instant,
}

/// Who is withheld.
#[derive(Debug)]
pub(super) struct Withheld<T> {
    of: BTreeMap<AgentId, One<T>>,
    outside: BTreeMap<AgentId, Outside<T>>,
    /// Whose place is kept, and until when.
    reserved: BTreeMap<AgentId, Instant>,
}

impl<T> Withheld<T> {
    pub(super) const fn new() -> Self {
        Self {
            of: BTreeMap::new(),
            outside: BTreeMap::new(),
            reserved: BTreeMap::new(),
        }
    }

    /// Whether something of a gateway is kept.
    pub(super) fn has(&self, agent_id: AgentId) -> bool {
        self.of.contains_key(&agent_id)
    }

    /// Whether there is room for this gateway.
    pub(super) fn takes(&self, agent_id: AgentId) -> bool {
        self.takes_beside(agent_id, 0)
    }

    /// The same beside so many others that are to be kept as well.
    pub(super) fn takes_beside(&self, agent_id: AgentId, others: usize) -> bool {
        self.room() > others || self.has(agent_id) || self.reserved.contains_key(&agent_id)
    }

    /// For how many more there is room.
    fn room(&self) -> usize {
        GATEWAYS_MAX.saturating_sub(self.of.len() + self.reserved.len())
    }

    /// Keeps the place of a gateway of which nothing is kept any more, because another session of it hands in: somebody
    /// outside would be sent away for a place that is taken again at once.
    pub(super) fn reserve(&mut self, agent_id: AgentId, now: Instant) {
        self.reserved.insert(agent_id, now + RESERVED);
    }

    /// Keeps what is refused of a gateway, behind what there is of it.
    pub(super) fn keep(&mut self, agent_id: AgentId, parts: Parts<T>, now: Instant) {
        self.reserved.remove(&agent_id);
        let one = self.of.entry(agent_id).or_insert_with(|| One {
            parts: Parts::default(),
            pause: RETRY.0,
            due: now + RETRY.0,
        });
        // However long the attempt took: others have their turn before the next one.
        one.due = one.due.max(now + RETRY.0);
        one.parts.append(parts);
    }

    /// What is kept of a gateway is tried again soon, for it may not be about that at all. How often that was so makes
    /// no pause longer.
    pub(super) fn hurry(&mut self, agent_id: AgentId, now: Instant) {
        if let Some(one) = self.of.get_mut(&agent_id) {
            one.due = one.due.min(now + RETRY_OPEN);
            one.pause = one.pause.min(RETRY_OPEN);
        }
    }

    /// Keeps only who waits, where there is no room for more.
    pub(super) fn leave_outside(
        &mut self,
        (agent_id, epoch): (AgentId, u64),
        notes: impl IntoIterator<Item = T>,
        now: Instant,
    ) {
        let outside = self.outside.entry(agent_id).or_insert_with(|| Outside {
            epoch,
            notes: Vec::new(),
            due: now + RETRY.1,
        });
        outside.epoch = outside.epoch.max(epoch);
        outside.notes.extend(notes);
    }

    /// Takes out what is of sessions of a gateway before this one: they are fenced.
    pub(super) fn fence(&mut self, agent_id: AgentId, epoch: u64) -> Vec<T> {
        let of = self.of.get_mut(&agent_id);
        let mut fenced = of.map_or_else(Vec::new, |one| one.parts.fence(epoch));
        let outside = self.outside.get(&agent_id);
        if outside.is_some_and(|outside| outside.epoch < epoch) {
            let outside = self.outside.remove(&agent_id);
            fenced.extend(outside.into_iter().flat_map(|outside| outside.notes));
        }
        fenced
    }

    /// Whether nobody of a gateway waits.
    pub(super) fn knows_nothing_of(&self, agent_id: AgentId) -> bool {
        !self.has(agent_id) && !self.outside.contains_key(&agent_id)
    }

    /// When the next attempt is due, the next one that waits outside, or a place that is kept for nobody.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let of = self.of.values().map(|one| one.due);
        of.chain(self.outside.values().map(|outside| outside.due))
            .chain(self.reserved.values().copied())
            .min()
    }

    /// What is to be tried again now, and has been for the longest time. It counts as withheld until [`Self::settle`]
    /// finds nothing of it refused again.
    pub(super) fn due(&mut self, now: Instant) -> Option<(AgentId, Parts<T>)> {
        let due = self.of.iter_mut().filter(|(_, one)| one.due <= now);
        let (agent_id, one) = due.min_by_key(|(_, one)| one.due)?;
        one.due = now + one.pause;
        one.pause = one.pause.saturating_mul(2).min(RETRY.1);
        Some((*agent_id, std::mem::take(&mut one.parts)))
    }

    /// Whether nothing of a gateway is refused any more; it is not withheld then, and there is room for another one.
    pub(super) fn settle(&mut self, agent_id: AgentId) -> bool {
        let settled = |one: &One<T>| one.parts.writes.is_empty();
        self.of.get(&agent_id).is_some_and(settled) && self.of.remove(&agent_id).is_some()
    }

    /// Those outside whose time has come, and as many others as there is room for beside those that are to be kept as
    /// well: with another session, they hand in again. Their places are kept for them meanwhile, or all would be sent
    /// away for the same one.
    pub(super) fn let_in(&mut self, now: Instant, to_be_kept: usize) -> Vec<(AgentId, Vec<T>)> {
        self.reserved.retain(|_, until| *until > now);
        let next = self
            .outside
            .keys()
            .take(self.room().saturating_sub(to_be_kept))
            .copied()
            .collect::<Vec<_>>();
        for agent_id in &next {
            self.reserve(*agent_id, now);
        }
        let due = self.outside.iter().filter(|(_, it)| it.due <= now);
        let due = due.map(|(agent_id, _)| *agent_id).collect::<Vec<_>>();
        let all = next.into_iter().chain(due);
        all.filter_map(|agent_id| Some((agent_id, self.outside.remove(&agent_id)?.notes)))
            .collect()
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
        parts.push(write, epoch, Some(()));
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
    async fn what_may_not_be_about_the_gateway_is_tried_again_soon() {
        let mut withheld = Withheld::new();
        withheld.keep(agent(1), parts(1, 1), Instant::now());
        let mut pauses = Vec::new();
        for _attempt in 0..8 {
            let began = Instant::now();
            tokio::time::sleep_until(withheld.next_due().unwrap()).await;
            pauses.push(began.elapsed().as_secs());
            let (agent_id, parts) = withheld.due(Instant::now()).unwrap();
            // An attempt that takes longer than the pause leaves one all the same.
            tokio::time::sleep(Duration::from_secs(2)).await;
            withheld.keep(agent_id, parts, Instant::now());
            assert!(withheld.due(Instant::now()).is_none());
            withheld.hurry(agent_id, Instant::now());
        }
        assert_eq!(pauses, [1, 1, 1, 2, 3, 3, 3, 3]);
        // Once it is known to be about the gateway, it goes on from there.
        tokio::time::sleep_until(withheld.next_due().unwrap()).await;
        let (agent_id, parts) = withheld.due(Instant::now()).unwrap();
        withheld.keep(agent_id, parts, Instant::now());
        let next = withheld.next_due().unwrap();
        assert_eq!(next - Instant::now(), RETRY_OPEN);
    }

    #[tokio::test(start_paused = true)]
    async fn each_has_its_turn_however_soon_others_are_due_again() {
        let mut withheld = Withheld::new();
        for n in 1..=2 {
            withheld.keep(agent(n), parts(n, 1), Instant::now());
        }
        for n in [1, 2, 1, 2] {
            tokio::time::sleep(Duration::from_secs(30)).await;
            let (agent_id, parts) = withheld.due(Instant::now()).unwrap();
            assert_eq!(agent_id, agent(n));
            withheld.keep(agent_id, parts, Instant::now());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_sessions_before_the_one_that_hands_in_nothing_is_kept() {
        let mut withheld = Withheld::new();
        let now = Instant::now();
        withheld.keep(agent(1), parts(1, 4), now);
        withheld.keep(agent(1), parts(1, 5), now);
        assert_eq!(withheld.fence(agent(1), 4), []);
        assert_eq!(withheld.fence(agent(1), 5), [()]);
        assert!(!withheld.settle(agent(1)));
        withheld.leave_outside((agent(2), 7), [()], now);
        assert_eq!(withheld.fence(agent(2), 7), []);
        withheld.leave_outside((agent(2), 7), [()], now);
        assert!(!withheld.knows_nothing_of(agent(2)));
        assert_eq!(withheld.fence(agent(2), 8), [(), ()]);
        assert!(withheld.knows_nothing_of(agent(2)));
        assert_eq!(withheld.fence(agent(1), 6), [()]);
        assert!(withheld.settle(agent(1)));
        assert_eq!(withheld.next_due(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_outside_is_let_in_when_there_is_room_and_after_a_while_anyway() {
        let mut withheld = Withheld::new();
        for n in 0..u128::try_from(GATEWAYS_MAX).unwrap() {
            withheld.keep(agent(n), parts(n, 1), Instant::now());
        }
        let began = Instant::now();
        withheld.leave_outside((agent(100), 1), [()], began);
        withheld.leave_outside((agent(101), 1), [()], began);
        assert!(withheld.let_in(began, 0).is_empty());
        let (first, _parts) = withheld.due(began + RETRY.0).unwrap();
        assert!(withheld.settle(first));
        assert_eq!(withheld.let_in(began, 0), [(agent(100), vec![()])]);
        // One place is for one.
        assert!(withheld.let_in(began, 0).is_empty());
        withheld.keep(agent(100), parts(100, 1), began);
        assert!(withheld.let_in(began, 0).is_empty());
        assert_eq!(
            withheld.let_in(began + RETRY.1, 0),
            [(agent(101), vec![()])]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_place_of_one_that_comes_again_is_kept_for_a_while() {
        let mut withheld = Withheld::new();
        let began = Instant::now();
        for n in 0..u128::try_from(GATEWAYS_MAX).unwrap() {
            withheld.keep(agent(n), parts(n, 1), began);
        }
        withheld.leave_outside((agent(100), 1), [()], began);
        for kept in [true, false] {
            assert_eq!(withheld.fence(agent(0), 9), [()]);
            assert!(withheld.settle(agent(0)));
            withheld.reserve(agent(0), began);
            assert!(withheld.takes(agent(0)) && !withheld.takes(agent(200)));
            assert!(withheld.let_in(began, 0).is_empty());
            if kept {
                withheld.keep(agent(0), parts(0, 1), began);
                assert!(withheld.let_in(began + RESERVED, 0).is_empty());
            }
        }
        assert_eq!(
            withheld.let_in(began + RESERVED, 0),
            [(agent(100), vec![()])]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_let_in_for_the_place_of_one_that_is_to_be_kept() {
        let mut withheld = Withheld::new();
        let began = Instant::now();
        for n in 2..u128::try_from(GATEWAYS_MAX).unwrap() {
            withheld.keep(agent(n), parts(n, 1), began);
        }
        for n in 100..=102 {
            withheld.leave_outside((agent(n), 1), [()], began);
        }
        // There is room for two more. One of them failed and is kept once all of its transaction have had their turn.
        assert!(withheld.takes(agent(50)));
        assert_eq!(withheld.let_in(began, 1), [(agent(100), vec![()])]);
        assert!(withheld.let_in(began, 1).is_empty());
        assert!(withheld.takes(agent(50)));
        // More may fail than there is room for.
        assert!(withheld.let_in(began, 2).is_empty());
        // Whose time has come goes all the same.
        let due = withheld.let_in(began + RETRY.1, 20);
        assert_eq!(due, [(agent(101), vec![()]), (agent(102), vec![()])]);
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
