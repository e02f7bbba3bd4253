//! The only place that reads clocks.

use std::fs;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use viworks_common::id::BootId;
use viworks_common::time::{Monotonic, Timestamp};
use viworks_common::timeline::shared::{Followed, Look, Stored, follow, follow_roughly};
use viworks_common::timeline::{APART_MAX, Anchor, Anchored, resume};

/// Where the kernel says which boot this is.
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// The longest single nap of [`sleep_until`].
///
/// Timers of the async runtime stand still while the machine is suspended and [`Monotonic`] does not: a nap of this
/// length bounds how late a deadline is noticed after a resume.
const NAP_MAX: Duration = Duration::from_secs(5);

/// A source of both kinds of time, so that tests can bring their own.
pub trait Clock: Send + Sync {
    /// The time that only moves forward; every deadline is measured on it.
    fn now(&self) -> Monotonic;

    /// The time of day, for people and records. It can jump, so no decision rests on it: whoever subtracts two
    /// readings, or compares one with an earlier one, wants [`Timeline::line`].
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

/// Which boot of the machine this is; readings of the monotonic clock belong to it.
#[must_use]
pub fn boot_id() -> Option<BootId> {
    fs::read_to_string(BOOT_ID_FILE).ok()?.trim().parse().ok()
}

/// A clock with a time line beside it: wall time that never steps, which may be compared, subtracted and stored.
pub struct Timeline {
    clock: Arc<dyn Clock>,
    boot_id: Option<BootId>,
    known: RwLock<Known>,
    /// What was read last: a new anchor, reckoned a moment before it is adopted, must not take anything back.
    highest: AtomicI64,
}

/// Where a line is.
#[derive(Debug, Clone, Copy)]
struct Known {
    anchor: Anchor,
    /// By how much the look at a server's clock may have been wrong that it was joined by; nothing once it follows a
    /// sharp one.
    error: Duration,
}

impl std::fmt::Debug for Timeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Timeline")
            .field("boot_id", &self.boot_id)
            .field("anchor", &self.anchor())
            .finish_non_exhaustive()
    }
}

impl Timeline {
    /// Takes the line up from what was stored of it, or begins it at the wall clock.
    #[must_use]
    pub fn resume(
        clock: Arc<dyn Clock>,
        boot_id: Option<BootId>,
        stored: Option<&Anchored>,
    ) -> Self {
        let known = Known {
            anchor: resume(stored, boot_id, clock.wall(), clock.now()),
            error: Duration::ZERO,
        };
        Self::at(clock, boot_id, known)
    }

    /// Takes up the line that several processes share, after a look at the clock of their server.
    #[must_use]
    pub fn join(
        clock: Arc<dyn Clock>,
        boot_id: Option<BootId>,
        stored: &Stored,
        look: &Look,
    ) -> Self {
        let own = stored.own(boot_id, look);
        let followed = follow(own.as_ref(), stored, look);
        let (anchor, error) = (followed.anchor, followed.error);
        Self::at(clock, boot_id, Known { anchor, error })
    }

    fn at(clock: Arc<dyn Clock>, boot_id: Option<BootId>, known: Known) -> Self {
        Self {
            clock,
            boot_id,
            known: RwLock::new(known),
            highest: AtomicI64::new(i64::MIN),
        }
    }

    /// A line of its own that nobody stores, for tests and tools.
    #[must_use]
    pub fn unstored(clock: Arc<dyn Clock>) -> Self {
        Self::resume(clock, boot_id(), None)
    }

    /// The time that only moves forward.
    #[must_use]
    pub fn now(&self) -> Monotonic {
        self.clock.now()
    }

    /// The time of day: data for people and peers, and what certificates are valid by. It steps.
    #[must_use]
    pub fn wall(&self) -> Timestamp {
        self.clock.wall()
    }

    /// What the line reads: never less than before, whatever the wall clock does.
    #[must_use]
    pub fn line(&self) -> Timestamp {
        let reads = self.anchor().read(self.clock.now()).unix_micros();
        let before = self.highest.fetch_max(reads, Ordering::Relaxed);
        Timestamp::from_unix_micros(reads.max(before))
    }

    /// Whether the wall clock is so far from the line that somebody must have set it: then either may be wrong.
    #[must_use]
    pub fn is_apart(&self) -> bool {
        let apart = self
            .wall()
            .unix_micros()
            .abs_diff(self.line().unix_micros());
        Duration::from_micros(apart) > APART_MAX
    }

    /// The next anchor. To be stored first and then adopted, so that no process ever continues from an anchor that
    /// another one has gone beyond.
    #[must_use]
    pub fn next_anchor(&self) -> Anchored {
        self.anchored(self.anchor().renew(self.clock.wall(), self.clock.now()))
    }

    /// Where a line that is shared goes on after a look at the server's clock. What is to be stored is stored first,
    /// and then the anchor is adopted.
    #[must_use]
    pub fn follow(&self, stored: &Stored, look: &Look) -> Followed {
        let Known { anchor, error } = self.known();
        follow_roughly(Some((&anchor, error)), stored, look)
    }

    /// An anchor of this line with the boot that it belongs to.
    #[must_use]
    pub fn anchored(&self, anchor: Anchor) -> Anchored {
        Anchored {
            // No boot has this id: what is stored under it is only ever a lower bound.
            boot_id: self.boot_id.unwrap_or(BootId::from_uuid(uuid::Uuid::nil())),
            anchor,
        }
    }

    /// Goes on from an anchor that is stored by now. One of a line that is shared is from a sharp look.
    pub fn adopt(&self, stored: &Anchored) {
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Known {
            anchor: stored.anchor,
            error: Duration::ZERO,
        };
    }

    fn known(&self) -> Known {
        *self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn anchor(&self) -> Anchor {
        self.known().anchor
    }
}

impl Clock for Timeline {
    fn now(&self) -> Monotonic {
        Self::now(self)
    }

    fn wall(&self) -> Timestamp {
        Self::wall(self)
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
    use std::sync::atomic::AtomicU64;

    use viworks_common::timeline::shared::{Course, Point};

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

    /// Clocks that are set by hand.
    #[derive(Default)]
    struct ByHand {
        now: AtomicU64,
        wall: AtomicI64,
    }

    impl Clock for ByHand {
        fn now(&self) -> Monotonic {
            Monotonic::from_duration(Duration::from_micros(self.now.load(Ordering::Relaxed)))
        }

        fn wall(&self) -> Timestamp {
            Timestamp::from_unix_micros(self.wall.load(Ordering::Relaxed))
        }
    }

    #[test]
    fn the_line_goes_on_beside_a_wall_clock_that_steps_and_through_a_new_process() {
        let clock = Arc::new(ByHand::default());
        clock.wall.store(1_000_000_000, Ordering::Relaxed);
        let boot = boot_id();
        assert!(boot.is_some(), "the kernel says which boot this is");
        let line = Timeline::resume(Arc::clone(&clock) as Arc<dyn Clock>, boot, None);
        assert_eq!(line.line().unix_micros(), 1_000_000_000);
        assert!(!line.is_apart());
        clock.wall.store(0, Ordering::Relaxed);
        assert!(
            line.is_apart(),
            "known at once, not when the anchor is renewed"
        );
        clock.now.store(2_000_000, Ordering::Relaxed);
        assert_eq!(line.line().unix_micros(), 1_002_000_000);
        let stored = line.next_anchor();
        line.adopt(&stored);
        clock.now.store(4_000_000, Ordering::Relaxed);
        let before = line.line();
        assert_eq!(before.unix_micros(), 1_004_000_000 - 1_000, "it leans back");
        let again = Timeline::resume(Arc::clone(&clock) as Arc<dyn Clock>, boot, Some(&stored));
        assert_eq!(again.line(), before);
        assert_eq!(again.wall().unix_micros(), 0);
    }

    #[test]
    fn a_shared_line_goes_by_the_server_s_clock_and_never_runs_back() {
        let clock = Arc::new(ByHand::default());
        // An hour ahead of the server's, which does not matter.
        clock.wall.store(3_601_000_000, Ordering::Relaxed);
        let look = |now: u64, shows| Look {
            sent: Monotonic::from_duration(Duration::from_micros(now)),
            came: Monotonic::from_duration(Duration::from_micros(now)),
            shows: Timestamp::from_unix_micros(shows),
        };
        let mut stored = Stored::default();
        let own = Arc::clone(&clock) as Arc<dyn Clock>;
        let line = Timeline::join(own, boot_id(), &stored, &look(0, 1_000_000));
        assert_eq!(line.line().unix_micros(), 1_000_000);
        assert!(line.is_apart());
        stored.point = line.follow(&stored, &look(0, 1_000_000)).next;
        clock.now.store(5_000_000, Ordering::Relaxed);
        assert_eq!(line.line().unix_micros(), 6_000_000);
        // A look that finds it 100 ms ahead: it stands still until that has passed.
        let followed = line.follow(&stored, &look(5_000_000, 5_900_000));
        stored.point = followed.next;
        line.adopt(&line.anchored(followed.anchor));
        assert_eq!(line.line().unix_micros(), 6_000_000);
        clock.now.store(5_200_000, Ordering::Relaxed);
        assert_eq!(line.line().unix_micros(), 6_100_000);
        // Another process of this boot goes on where it would, though the server's clock was set meanwhile.
        stored.anchored = Some(line.anchored(followed.anchor));
        let own = Arc::clone(&clock) as Arc<dyn Clock>;
        let again = Timeline::join(own, boot_id(), &stored, &look(5_200_000, 0));
        assert_eq!(again.line(), line.line());
    }

    #[test]
    fn a_line_that_was_joined_by_a_slow_look_pushes_nobody_forward() {
        let clock = Arc::new(ByHand::default());
        let at = |micros| Monotonic::from_duration(Duration::from_micros(micros));
        let common = Stored {
            anchored: None,
            point: Some(Point {
                number: 1,
                shows: Timestamp::from_unix_micros(0),
                reads: Timestamp::from_unix_micros(0),
            }),
        };
        // The question was under way all the time.
        let slow = Look {
            sent: at(0),
            came: at(6_000_000),
            shows: Timestamp::from_unix_micros(6_000_000),
        };
        let own = Arc::clone(&clock) as Arc<dyn Clock>;
        let line = Timeline::join(own, boot_id(), &common, &slow);
        clock.now.store(10_000_000, Ordering::Relaxed);
        let ahead = line.line();
        assert_eq!(ahead.unix_micros(), 13_000_000);
        let sharp = |now| Look {
            sent: at(now),
            came: at(now),
            shows: Timestamp::from_unix_micros(i64::try_from(now).unwrap()),
        };
        let followed = line.follow(&common, &sharp(10_000_000));
        assert_eq!(followed.course, Course::Steady);
        assert_eq!(followed.next.unwrap().reads.unix_micros(), 10_000_000);
        line.adopt(&line.anchored(followed.anchor));
        assert_eq!(line.line(), ahead, "it waits for the others");
        // From here on it knows the line: what is apart was set.
        let set = Look {
            shows: Timestamp::from_unix_micros(13_000_000),
            ..sharp(11_000_000)
        };
        let course = line.follow(&common, &set).course;
        assert!(matches!(course, Course::ServerSet(_)), "{course:?}");
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
