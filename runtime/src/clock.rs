//! The only place that reads clocks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use viworks_common::time::{Monotonic, Timestamp};

/// The longest single nap of [`sleep_until`].
///
/// Timers of the async runtime stand still while the machine is suspended and [`Monotonic`] does not: a nap of this
/// length bounds how late a deadline is noticed after a resume.
const NAP_MAX: Duration = Duration::from_secs(5);

/// A source of both kinds of time, so that tests can bring their own.
pub trait Clock: Send + Sync {
    /// The time that only moves forward; every deadline is measured on it.
    fn now(&self) -> Monotonic;

    /// The time of day, for people and records. It can jump, so no decision rests on it.
    fn wall(&self) -> Timestamp;
}

/// The clocks of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    /// Time since boot, *including* suspension: a command must not outlive its deadline because a laptop lid was shut.
    fn now(&self) -> Monotonic {
        let time = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        let nanos = u32::try_from(time.tv_nsec).unwrap_or_default();
        Monotonic::from_duration(Duration::new(seconds, nanos))
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this module is the one reader of the wall clock"
    )]
    fn wall(&self) -> Timestamp {
        let micros = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
            // A dead battery can put the clock before 1970; that is a time like any other.
            Err(before) => {
                i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros)
            }
        };
        Timestamp::from_unix_micros(micros)
    }
}

/// Sleeps until `clock` has reached `deadline`, also across a suspension of the machine.
pub async fn sleep_until(clock: &dyn Clock, deadline: Monotonic) {
    loop {
        let left = deadline
            .as_duration()
            .saturating_sub(clock.now().as_duration());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(NAP_MAX)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A clock that jumps ahead by a fixed step whenever it is read.
    struct Jumping {
        reads: AtomicU64,
        step: Duration,
    }

    impl Clock for Jumping {
        fn now(&self) -> Monotonic {
            let reads = self.reads.fetch_add(1, Ordering::Relaxed);
            Monotonic::from_duration(self.step * u32::try_from(reads).unwrap())
        }

        fn wall(&self) -> Timestamp {
            Timestamp::from_unix_micros(0)
        }
    }

    #[test]
    fn monotonic_time_does_not_run_backwards() {
        let clock = SystemClock;
        let readings: Vec<_> = (0..1000).map(|_| clock.now()).collect();
        assert!(readings.is_sorted());
        assert!(readings[0] > Monotonic::from_duration(Duration::ZERO));
    }

    #[test]
    fn wall_time_is_after_this_code_was_written() {
        let year_2026 = 1_767_225_600_000_000;
        assert!(SystemClock.wall().unix_micros() > year_2026);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_in_the_past_does_not_sleep() {
        let clock = Jumping {
            reads: AtomicU64::new(5),
            step: Duration::from_secs(1),
        };
        sleep_until(&clock, Monotonic::from_duration(Duration::from_secs(5))).await;
        assert_eq!(clock.reads.load(Ordering::Relaxed), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_jumps_over_the_deadline_is_noticed_after_one_nap() {
        let clock = Jumping {
            reads: AtomicU64::new(0),
            step: Duration::from_secs(3600),
        };
        let before = tokio::time::Instant::now();
        sleep_until(&clock, Monotonic::from_duration(Duration::from_secs(600))).await;
        assert_eq!(before.elapsed(), NAP_MAX);
    }
}
