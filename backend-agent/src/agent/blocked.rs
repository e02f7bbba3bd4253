//! How soon a second holder of an identity may ask again: soon enough that the one that an operator keeps is let in
//! within a minute of that, and seldom enough that any number of copies costs no more than so much.

use std::time::Duration;

use viworks_common::limits::RETRY_AFTER_MAX;
use viworks_common::time::Monotonic;

/// The shortest pause. The gateway adds to it, up to a minute in all.
const PAUSE: Duration = Duration::from_secs(30);

/// Second holders that are judged in a second, over all identities, once there are many: with up to 600 of them, each
/// still asks every [`PAUSE`].
const PER_SECOND: u32 = 20;

/// The span that they are counted over.
const MINUTE: Duration = Duration::from_secs(60);

/// The second holders that were refused lately.
#[derive(Debug, Default)]
pub struct Blocked {
    /// Since when they are counted, and how many there were.
    counted: Option<(Monotonic, u32)>,
    /// What they are told.
    pause: Duration,
}

impl Blocked {
    /// One more is refused: how long it is to wait, the longest half as much again by a random fraction of 2^64.
    pub fn refused(&mut self, now: Monotonic, random: u64) -> Duration {
        let (since, count) = self.counted.unwrap_or((now, 0));
        let over = now.saturating_since(since);
        if over >= MINUTE {
            // Whoever waits longer than a minute was not heard in each.
            let a_minute = scaled(count, MINUTE, over);
            let holders = scaled(a_minute, self.pause.max(MINUTE), MINUTE);
            self.pause = pause_of(holders);
            self.counted = Some((now, 1));
        } else {
            let count = count.saturating_add(1);
            self.counted = Some((since, count));
            self.pause = self.pause.max(pause_of(count));
        }
        let spread = (self.pause.as_nanos() / 2 * u128::from(random)) >> 64;
        let spread = Duration::from_nanos(u64::try_from(spread).unwrap_or(u64::MAX));
        self.pause.saturating_add(spread)
    }
}

/// How long each of so many is to wait.
fn pause_of(holders: u32) -> Duration {
    (Duration::from_secs(1) / PER_SECOND)
        .saturating_mul(holders)
        .clamp(PAUSE, RETRY_AFTER_MAX)
}

/// `count` times `of`, by `by`.
fn scaled(count: u32, of: Duration, by: Duration) -> u32 {
    let scaled = u128::from(count) * of.as_millis() / by.as_millis().max(1);
    u32::try_from(scaled).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Monotonic {
        Monotonic::from_duration(Duration::from_millis(millis))
    }

    /// So many holders that each ask as soon as they may, all at first within a second: how many were judged in the
    /// last of so many minutes.
    fn judged_in_the_last_minute(holders: u64, minutes: u64) -> usize {
        let mut blocked = Blocked::default();
        let mut due: std::collections::BTreeSet<(u64, u64)> =
            (0..holders).map(|n| (n * 1_000 / holders, n)).collect();
        let (end, mut judged) = (minutes * 60_000, 0);
        while let Some((millis, holder)) = due.pop_first() {
            if millis >= end {
                break;
            }
            judged += usize::from(millis >= end - 60_000);
            let random = holder.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let wait = blocked.refused(at(millis), random);
            let wait = u64::try_from(wait.as_millis()).unwrap();
            due.insert((millis + wait, holder));
        }
        judged
    }

    #[test]
    fn a_few_ask_within_a_minute() {
        let mut blocked = Blocked::default();
        for n in 0..600_u64 {
            let wait = blocked.refused(at(n * 50), u64::MAX);
            assert!(wait >= PAUSE && wait <= PAUSE * 3 / 2, "{n}: {wait:?}");
        }
    }

    #[test]
    fn any_number_costs_no_more_than_so_much() {
        let bound = usize::try_from(PER_SECOND * 60).unwrap();
        for holders in [1_000, 10_000] {
            let judged = judged_in_the_last_minute(holders, 60);
            assert!(judged <= bound * 3 / 2, "{holders}: {judged}");
            assert!(judged > 0, "{holders}");
        }
    }

    #[test]
    fn once_the_many_are_gone_the_few_ask_soon_again() {
        let mut blocked = Blocked::default();
        for n in 0..10_000 {
            blocked.refused(at(n), 0);
        }
        assert!(blocked.refused(at(10_001), 0) > MINUTE);
        blocked.refused(at(3_600_000), 0);
        blocked.refused(at(3_700_000), 0);
        assert_eq!(blocked.refused(at(3_700_001), 0), PAUSE);
    }
}
