//! How soon a second holder of an identity may ask again: soon enough that the one that an operator keeps is let in
//! within a minute of that, and seldom enough that any number of copies costs no more than so much.

use std::time::Duration;

use viworks_common::limits::RETRY_AFTER_MAX;
use viworks_common::time::Monotonic;

/// The shortest pause. The gateway adds to it, up to a minute in all.
const PAUSE: Duration = Duration::from_secs(30);

/// Second holders that are told to come back in the same second, over all identities: up to 600 of them still ask every
/// [`PAUSE`], and 18,000 as often as a gateway can be told at all.
const PER_SECOND: u32 = 20;

/// The times that second holders were told to come back at.
#[derive(Debug, Default)]
pub struct Blocked {
    /// The next one that nobody has.
    free: Option<Monotonic>,
}

impl Blocked {
    /// One more is refused: how long it is to wait.
    pub fn refused(&mut self, now: Monotonic) -> Duration {
        let soonest = now.saturating_add(PAUSE);
        let at = self.free.map_or(soonest, |free| free.max(soonest));
        let wait = at.saturating_since(now);
        if wait > RETRY_AFTER_MAX {
            // Beyond, they share a time: no gateway waits for longer, and none that asks again and again puts the
            // others off for longer than that.
            return RETRY_AFTER_MAX;
        }
        self.free = Some(at.saturating_add(Duration::from_secs(1) / PER_SECOND));
        wait
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn at(millis: u64) -> Monotonic {
        Monotonic::from_duration(Duration::from_millis(millis))
    }

    /// So many holders that each ask as soon as they may, all at first within a second: how many come at most in a
    /// second after that, within so many minutes.
    fn in_the_worst_second(holders: u64, minutes: u64) -> usize {
        let mut blocked = Blocked::default();
        let mut due: BTreeSet<(u64, u64)> =
            (0..holders).map(|n| (n * 1_000 / holders, n)).collect();
        let mut seconds = BTreeMap::<u64, usize>::new();
        while let Some((millis, holder)) = due.pop_first() {
            if millis >= minutes * 60_000 {
                break;
            }
            *seconds.entry(millis / 1_000).or_default() += 1;
            let wait = blocked.refused(at(millis));
            due.insert((millis + u64::try_from(wait.as_millis()).unwrap(), holder));
        }
        let later = seconds.into_iter().filter(|(second, _)| *second > 1);
        later.map(|(_, came)| came).max().unwrap_or_default()
    }

    #[test]
    fn a_few_ask_within_a_minute() {
        let mut blocked = Blocked::default();
        for n in 0..600_u64 {
            let wait = blocked.refused(at(0));
            assert!(wait >= PAUSE && wait <= PAUSE * 2, "{n}: {wait:?}");
        }
    }

    #[test]
    fn any_number_costs_no_more_than_so_much() {
        let bound = usize::try_from(PER_SECOND).unwrap();
        for holders in [10, 1_000, 10_000] {
            let came = in_the_worst_second(holders, 60);
            assert!((1..=bound + 1).contains(&came), "{holders}: {came}");
        }
    }

    #[test]
    fn one_that_does_not_wait_puts_nobody_off_for_longer_than_a_gateway_can_be_told() {
        let mut blocked = Blocked::default();
        for _again in 0..100_000 {
            blocked.refused(at(0));
        }
        assert_eq!(blocked.refused(at(0)), RETRY_AFTER_MAX);
    }

    #[test]
    fn once_the_many_are_gone_the_few_ask_soon_again() {
        let mut blocked = Blocked::default();
        for n in 0..10_000 {
            blocked.refused(at(n));
        }
        assert!(blocked.refused(at(10_001)) > PAUSE * 2);
        assert_eq!(blocked.refused(at(3_600_000)), PAUSE);
    }
}
