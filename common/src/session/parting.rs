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

/// The sessions that were left for this.
#[derive(Debug, Clone, Copy, Default)]
pub struct Partings {
    last: Option<Monotonic>,
}

impl Partings {
    /// When to leave a session in which a set came that leaves its server's key out: from the first moment on where no
    /// command runs, at the second in any case. `slot` is the time within which the backend takes its gateways in
    /// again, and `random` is uniform over all of `u64`.
    #[must_use]
    pub fn plan(&self, now: Monotonic, slot: Duration, random: u64) -> (Monotonic, Monotonic) {
        let earliest = self.last.map_or(now, |last| last.saturating_add(PAUSE));
        Self::once(earliest.max(now), slot, random)
    }

    /// The same of a session in which a set was taken over that lets an earlier key go. No other one is left for that
    /// set, because the next one is dialled with it, so there is no pause.
    #[must_use]
    pub fn once(now: Monotonic, slot: Duration, random: u64) -> (Monotonic, Monotonic) {
        let slot = slot.clamp(SPREAD_MIN, SPREAD_MAX);
        let from = now.saturating_add(between(Duration::ZERO, slot, random));
        (from, from.saturating_add(QUIET_MAX))
    }

    /// One was left.
    pub const fn left(&mut self, now: Monotonic) {
        self.last = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_duration(Duration::from_secs(seconds))
    }

    #[test]
    fn a_session_is_left_within_the_slot_of_the_backend() {
        let partings = Partings::default();
        let slot = Duration::from_secs(60);
        let (soonest, _) = partings.plan(at(100), slot, 0);
        let (latest, in_any_case) = partings.plan(at(100), slot, u64::MAX);
        assert_eq!(soonest, at(100));
        assert!(latest > at(159) && latest <= at(160), "{latest:?}");
        assert!(in_any_case > at(759) && in_any_case <= at(760));
        // However little or much it says.
        for (said, bound) in [(Duration::ZERO, 2), (Duration::MAX, 600)] {
            let (from, _) = partings.plan(at(0), said, u64::MAX);
            assert!(from > at(bound - 1) && from <= at(bound), "{from:?}");
        }
    }

    #[test]
    fn a_server_that_goes_on_showing_the_key_is_left_once_in_half_an_hour() {
        let mut partings = Partings::default();
        let (mut now, mut left) = (at(0), 0);
        // Each next session brings the same set at once.
        while now < at(24 * 3_600) {
            let (from, latest) = partings.plan(now, Duration::ZERO, u64::MAX / 2);
            assert!(from >= now && latest > from);
            now = from;
            partings.left(now);
            left += 1;
        }
        assert!((47..=49).contains(&left), "{left}");
        // What is left once for each set waits for none of them.
        assert_eq!(Partings::once(now, Duration::ZERO, 0).0, now);
        // One that was left long ago holds nothing up.
        let later = at(48 * 3_600);
        assert_eq!(partings.plan(later, Duration::ZERO, 0).0, later);
    }
}
