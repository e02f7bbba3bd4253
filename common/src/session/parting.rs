//! When a gateway leaves a session that is well because the newest pin set leaves out the key of its server, or another
//! one that it goes on accepting until it has dialled with that set: decided without a clock, a file or a socket.

use std::time::Duration;

use super::backoff::between;
use crate::time::Monotonic;

/// Within which time gateways leave, at the least and at the most; in between, the backend says how many it has to take
/// in again.
const SPREAD_MIN: Duration = Duration::from_secs(2);
const SPREAD_MAX: Duration = Duration::from_secs(600);

/// How long a gateway waits for a moment at which no command runs.
const QUIET_MAX: Duration = Duration::from_secs(600);

/// The pause between two sessions that are left for this: a server that goes on showing the key costs no more.
const PAUSE: Duration = Duration::from_secs(1_800);

/// Why a session is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A set came that leaves out the key of its server.
    LiveKey,
    /// A set was taken over that lets another key go. No other session is left for that set, because the next one is
    /// dialled with it.
    OtherKey,
}

/// When a session is left, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parting {
    /// From this moment on where no command runs.
    pub from: Monotonic,
    /// At this one in any case.
    pub latest: Monotonic,
    /// Why.
    pub cause: Cause,
}

impl Parting {
    /// Whether to leave it now, where no command runs (`quiet`) or some do.
    #[must_use]
    pub fn is_due(&self, quiet: bool, now: Monotonic) -> bool {
        now >= self.latest || (quiet && now >= self.from)
    }
}

/// The sessions that were left because the key of their server was in no set any more.
#[derive(Debug, Clone, Copy, Default)]
pub struct Partings {
    last: Option<Monotonic>,
}

impl Partings {
    /// When to leave a session: as `planned` before, or at some moment within `slot`, the time within which the backend
    /// takes its gateways in again; for another key, at the sooner one where that was planned for its server's, which
    /// may have to pause. `random` is uniform over all of `u64`.
    #[must_use]
    pub fn plan(
        &self,
        planned: Option<Parting>,
        cause: Cause,
        now: Monotonic,
        slot: Duration,
        random: u64,
    ) -> Parting {
        let planned = planned.map(|planned| (planned.cause, Parting { cause, ..planned }));
        if let Some((before, planned)) = planned
            && (cause == Cause::LiveKey || before == Cause::OtherKey)
        {
            return planned;
        }
        let earliest = match (cause, self.last) {
            (Cause::LiveKey, Some(last)) => now.max(last.saturating_add(PAUSE)),
            (Cause::LiveKey, None) | (Cause::OtherKey, _) => now,
        };
        let slot = slot.clamp(SPREAD_MIN, SPREAD_MAX);
        let from = earliest.saturating_add(between(Duration::ZERO, slot, random));
        let anew = Parting {
            from,
            latest: from.saturating_add(QUIET_MAX),
            cause,
        };
        match planned {
            Some((_before, planned)) if planned.from < from => planned,
            Some(_) | None => anew,
        }
    }

    /// One was left. What is left once for each set costs no more by itself, and holds up none that is left for the key
    /// of its server: that may be a stolen one.
    pub const fn left(&mut self, cause: Cause, now: Monotonic) {
        if matches!(cause, Cause::LiveKey) {
            self.last = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_duration(Duration::from_secs(seconds))
    }

    /// When a session is left of which nothing was planned before, with the backend's shortest slot.
    fn plan(partings: Partings, cause: Cause, now: Monotonic, random: u64) -> Parting {
        partings.plan(None, cause, now, Duration::ZERO, random)
    }

    #[test]
    fn a_session_is_left_within_the_slot_of_the_backend() {
        let partings = Partings::default();
        let within = |now, slot, random| partings.plan(None, Cause::LiveKey, now, slot, random);
        let slot = Duration::from_secs(60);
        let soonest = within(at(100), slot, 0).from;
        let Parting { from, latest, .. } = within(at(100), slot, u64::MAX);
        assert_eq!(soonest, at(100));
        assert!(from > at(159) && from <= at(160), "{from:?}");
        assert!(latest > at(759) && latest <= at(760), "{latest:?}");
        // However little or much it says.
        for (said, bound) in [(Duration::ZERO, 2), (Duration::MAX, 600)] {
            let from = within(at(0), said, u64::MAX).from;
            assert!(from > at(bound - 1) && from <= at(bound), "{from:?}");
        }
    }

    #[test]
    fn it_is_left_while_no_command_runs_and_after_a_while_anyway() {
        let parting = plan(Partings::default(), Cause::LiveKey, at(10), 0);
        for (now, quiet, due) in [
            (9, true, false),
            (10, true, true),
            (10, false, false),
            (609, false, false),
            (610, false, true),
        ] {
            assert_eq!(parting.is_due(quiet, at(now)), due, "{now} {quiet}");
        }
    }

    #[test]
    fn a_server_that_goes_on_showing_the_key_is_left_once_in_half_an_hour() {
        let mut partings = Partings::default();
        let (mut now, mut left) = (at(0), 0);
        // Each next session brings the same set at once.
        while now < at(24 * 3_600) {
            let Parting { from, latest, .. } = plan(partings, Cause::LiveKey, now, u64::MAX / 2);
            assert!(from >= now && latest > from);
            now = from;
            partings.left(Cause::LiveKey, now);
            left += 1;
        }
        assert!((47..=49).contains(&left), "{left}");
        // What is left once for each set waits for none of them.
        assert_eq!(plan(partings, Cause::OtherKey, now, 0).from, now);
        // One that was left long ago holds nothing up.
        let later = at(48 * 3_600);
        assert_eq!(plan(partings, Cause::LiveKey, later, 0).from, later);
    }

    #[test]
    fn a_session_that_was_left_for_another_key_holds_none_up_that_is_left_for_its_server_s() {
        let mut partings = Partings::default();
        partings.left(Cause::OtherKey, at(0));
        assert_eq!(plan(partings, Cause::LiveKey, at(1), 0).from, at(1));
        // One whose cause has changed until it was left counts as what it was left for.
        let planned = plan(partings, Cause::OtherKey, at(2), u64::MAX / 2);
        let live = partings.plan(Some(planned), Cause::LiveKey, at(3), Duration::ZERO, 0);
        assert_eq!((live.from, live.latest), (planned.from, planned.latest));
        // And one whose key is trusted again does not pause for it.
        let mut partings_of = Partings::default();
        partings_of.left(Cause::LiveKey, at(0));
        let paused = plan(partings_of, Cause::LiveKey, at(1), 0);
        assert!(paused.from >= at(1).saturating_add(PAUSE / 2));
        let other = partings_of.plan(Some(paused), Cause::OtherKey, at(2), Duration::ZERO, 0);
        assert_eq!((other.from, other.cause), (at(2), Cause::OtherKey));
        partings.left(live.cause, at(3));
        let next = plan(partings, Cause::LiveKey, at(4), 0).from;
        assert_eq!(next, at(3).saturating_add(PAUSE));
    }
}
