//! The time line: a wall clock that never steps, so that the difference of two of its readings is elapsed time.
//!
//! It begins at the wall clock once and is advanced by a monotonic clock that counts suspension. When somebody sets the
//! wall clock, the line goes on as if nothing had happened, and then leans towards it so slowly that no span measured
//! on it is wrong by more than [`SLEW_PER_MILLION`] millionths. An [`Anchor`] says all there is to know about it, so
//! that a later process of the same boot continues it exactly. Processes on several machines follow the clock of a
//! server that they [share](shared).

use std::time::Duration;

use crate::id::BootId;
use crate::rules::{Complete, Rule, Rulebook};
use crate::time::{Monotonic, Timestamp};

pub mod shared;

/// How much slower or faster than real time the line may run while it leans towards the wall clock: 43 s in a day.
pub const SLEW_PER_MILLION: i64 = 500;

/// How often the anchor is renewed and stored.
pub const RENEWED_EVERY: Duration = Duration::from_secs(5);

/// What may have been read from the line after its anchor was stored for the last time before the machine went down.
const UNSEEN: Duration = Duration::from_secs(30);

/// How far line and wall clock may be apart before somebody should know.
pub const APART_MAX: Duration = Duration::from_secs(2);

/// A point of the line, and where it leads from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchor {
    /// When, by the monotonic clock of this boot.
    pub at: Monotonic,
    /// What the line reads there.
    pub reads: Timestamp,
    /// By how many microseconds the wall clock was ahead of it there; negative when it was behind.
    pub wall_ahead: i64,
}

/// An anchor and the boot that its monotonic clock belongs to: what is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anchored {
    /// The boot.
    pub boot_id: BootId,
    /// The point.
    pub anchor: Anchor,
}

impl Anchor {
    /// A line that begins now, at the wall clock.
    #[must_use]
    pub const fn begin(wall: Timestamp, now: Monotonic) -> Self {
        Self {
            at: now,
            reads: wall,
            wall_ahead: 0,
        }
    }

    /// What the line reads at `now`; a point before the anchor reads as the anchor does.
    #[must_use]
    pub fn read(&self, now: Monotonic) -> Timestamp {
        let elapsed = now.saturating_since(self.at).as_micros();
        let elapsed = i64::try_from(elapsed).unwrap_or(i64::MAX);
        let micros = self.reads.unix_micros().saturating_add(elapsed);
        Timestamp::from_unix_micros(micros.saturating_add(lean(self.wall_ahead, elapsed)))
    }

    /// The same line, anchored at `now`: from here on it leans towards what the wall clock says by now.
    #[must_use]
    pub fn renew(&self, wall: Timestamp, now: Monotonic) -> Self {
        self.renew_under(Complete, wall, now)
    }

    /// The same by other rules.
    #[must_use]
    pub fn renew_under(&self, rules: impl Rulebook, wall: Timestamp, now: Monotonic) -> Self {
        let reads = if rules.keeps(Rule::TimeLine) {
            self.read(now)
        } else {
            wall
        };
        Self {
            at: now.max(self.at),
            reads,
            wall_ahead: wall.unix_micros().saturating_sub(reads.unix_micros()),
        }
    }

    /// How far the wall clock was from the line when it was anchored.
    #[must_use]
    pub const fn apart(&self) -> Duration {
        Duration::from_micros(self.wall_ahead.unsigned_abs())
    }
}

/// How far a line has come towards a clock that is `ahead` of it, in so many microseconds.
fn lean(ahead: i64, elapsed: i64) -> i64 {
    let most = elapsed.max(0) / (1_000_000 / SLEW_PER_MILLION);
    ahead.clamp(-most, most)
}

impl Anchored {
    /// The line as a process of this boot goes on with it, when this is of the same one.
    #[must_use]
    pub(crate) fn of_boot(&self, boot_id: Option<BootId>, now: Monotonic) -> Option<Anchor> {
        // A clock that was reset within a boot, as in a container that was moved, counts from another origin.
        (Some(self.boot_id) == boot_id && self.anchor.at <= now).then_some(self.anchor)
    }
}

/// Where a process takes the line up: exactly where it is when the machine has not been started since, and otherwise at
/// the wall clock, though never before what was read from it: nobody knows how long the machine was off.
#[must_use]
pub fn resume(
    stored: Option<&Anchored>,
    boot_id: Option<BootId>,
    wall: Timestamp,
    now: Monotonic,
) -> Anchor {
    let Some(known) = stored else {
        return Anchor::begin(wall, now);
    };
    known.of_boot(boot_id, now).unwrap_or_else(|| {
        let last = known.anchor.reads.saturating_add(UNSEEN);
        Anchor::begin(last.max(wall), now).renew(wall, now)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const HOUR: i64 = 3_600_000_000;
    const NOON: i64 = 1_795_000_000_000_000;

    fn boot(n: u128) -> BootId {
        BootId::from_uuid(Uuid::from_u128(n))
    }

    fn at(micros: u64) -> Monotonic {
        Monotonic::from_duration(Duration::from_micros(micros))
    }

    fn stamp(micros: i64) -> Timestamp {
        Timestamp::from_unix_micros(micros)
    }

    /// What the slew may add to or take from a span.
    fn tolerance(span: u64) -> i64 {
        i64::try_from(span).unwrap() / 2_000 + 1
    }

    proptest! {
        /// Whatever the wall clock does, and whenever the anchor is renewed, lost or taken up by another process.
        #[test]
        fn a_span_on_the_line_is_elapsed_time(
            steps in prop::collection::vec((0_u64..20_000_000, -2 * HOUR..2 * HOUR, 0_u8..4), 1..80)
        ) {
            let mut now = 1_000_000_u64;
            let mut line = Anchor::begin(stamp(NOON), at(now));
            let mut stored = Anchored { boot_id: boot(1), anchor: line };
            let mut last = (now, line.read(at(now)));
            let first = last;
            for (elapsed, off, what) in steps {
                now += elapsed;
                let wall = stamp(NOON + i64::try_from(now).unwrap() + off);
                match what {
                    0 => {}
                    1 => {
                        line = line.renew(wall, at(now));
                        stored.anchor = line;
                    }
                    2 => line = resume(Some(&stored), Some(boot(1)), wall, at(now)),
                    _ => {
                        stored.anchor = line.renew(wall, at(now));
                        line = stored.anchor;
                    }
                }
                let reads = line.read(at(now));
                prop_assert!(reads >= last.1, "it ran backwards by {:?}", last.1.saturating_since(reads));
                let span = reads.unix_micros() - first.1.unix_micros();
                let truly = now - first.0;
                let wrong = (span - i64::try_from(truly).unwrap()).abs();
                prop_assert!(wrong <= tolerance(truly) + 80, "{wrong} us in {truly}");
                last = (now, reads);
            }
        }

        #[test]
        fn the_line_comes_to_the_wall_clock_and_stays(off in -60_000_000_i64..60_000_000) {
            let mut now = 1_u64;
            let wall = |now: u64| stamp(NOON + off + i64::try_from(now).unwrap());
            let mut line = Anchor::begin(stamp(NOON), at(now));
            for _ in 0..3_000 {
                now += 60_000_000;
                line = line.renew(wall(now), at(now));
            }
            prop_assert_eq!(line.wall_ahead, 0);
            prop_assert_eq!(line.read(at(now + 7)), wall(now + 7));
        }
    }

    #[test]
    fn a_step_of_the_wall_clock_moves_nothing() {
        let line = Anchor::begin(stamp(NOON), at(10));
        for off in [-90_000_000, HOUR] {
            let stepped = line.renew(stamp(NOON + off), at(10));
            assert_eq!(stepped.wall_ahead, off);
            let after = stepped.read(at(1_000_010)).unix_micros() - NOON;
            assert!((after - 1_000_000).abs() <= 500, "{after}");
        }
    }

    #[test]
    fn another_process_of_the_same_boot_goes_on_exactly() {
        let line = Anchor::begin(stamp(NOON), at(10)).renew(stamp(NOON + HOUR), at(5_000_010));
        let stored = Anchored {
            boot_id: boot(1),
            anchor: line,
        };
        let taken_up = resume(Some(&stored), Some(boot(1)), stamp(0), at(99_000_000));
        assert_eq!(taken_up.read(at(99_000_000)), line.read(at(99_000_000)));
    }

    #[test]
    fn after_the_machine_was_off_the_line_is_at_the_wall_clock_and_never_before_what_was_read() {
        let stored = Anchored {
            boot_id: boot(1),
            anchor: Anchor::begin(stamp(NOON), at(500_000_000)),
        };
        let later = resume(Some(&stored), Some(boot(2)), stamp(NOON + HOUR), at(7));
        assert_eq!(later, Anchor::begin(stamp(NOON + HOUR), at(7)));
        let dead_battery = resume(Some(&stored), Some(boot(2)), stamp(0), at(7));
        assert!(dead_battery.reads > stamp(NOON));
        assert!(dead_battery.wall_ahead < -NOON, "and it is known to be off");
        // The same boot id over another origin is no continuation either.
        let moved = resume(Some(&stored), Some(boot(1)), stamp(NOON + HOUR), at(7));
        assert_eq!(moved.reads, stamp(NOON + HOUR));
        let unknown = resume(Some(&stored), None, stamp(NOON + HOUR), at(900_000_000));
        assert_eq!(unknown.reads, stamp(NOON + HOUR));
    }
}
