//! When bulk may be written: short writes that somebody waits for come first, and bulk leaves them room.

use std::time::Duration;

use viworks_common::time::Monotonic;

/// The span over which short writes are counted.
const WINDOW: Duration = Duration::from_millis(250);
/// So many short writes that change something, within two windows, are more than the upkeep of an idle process.
const BUSY_FROM: usize = 4;
/// How long bulk rests after it was written while others write, in multiples of the time it took.
const REST: u32 = 2;
/// So many commits of short writes may go before bulk that waits.
const IN_A_ROW_MAX: u32 = 64;

/// What happened lately.
#[derive(Debug, Default)]
pub(super) struct Pace {
    window: Monotonic,
    before: usize,
    current: usize,
    rest_until: Monotonic,
    in_a_row: u32,
}

impl Pace {
    /// Notes a commit of so many short writes that changed something, and whether bulk waits meanwhile.
    pub(super) fn short(&mut self, writes: usize, bulk_waits: bool, now: Monotonic) {
        self.turn(now);
        self.current = self.current.saturating_add(writes);
        self.in_a_row = if bulk_waits {
            self.in_a_row.saturating_add(1)
        } else {
            0
        };
    }

    /// Notes that bulk was written, begun at `begun`.
    pub(super) fn bulk(&mut self, begun: Monotonic, now: Monotonic) {
        self.in_a_row = 0;
        let took = now.saturating_since(begun);
        self.rest_until = if self.is_busy(now) {
            now.saturating_add(took.saturating_mul(REST))
        } else {
            now
        };
    }

    /// Until when bulk leaves the room to others.
    pub(super) const fn rest_until(&self) -> Monotonic {
        self.rest_until
    }

    /// Whether bulk was passed over for too long.
    pub(super) const fn is_bulk_due(&self) -> bool {
        self.in_a_row >= IN_A_ROW_MAX
    }

    /// Whether others write.
    pub(super) fn is_busy(&mut self, now: Monotonic) -> bool {
        self.turn(now);
        self.before.saturating_add(self.current) >= BUSY_FROM
    }

    fn turn(&mut self, now: Monotonic) {
        let since = now.saturating_since(self.window);
        if since < WINDOW {
            return;
        }
        self.before = if since < WINDOW * 2 { self.current } else { 0 };
        self.current = 0;
        self.window = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Monotonic {
        Monotonic::from_duration(Duration::from_millis(10_000 + millis))
    }

    #[test]
    fn bulk_rests_only_while_others_write() {
        let mut pace = Pace::default();
        pace.short(1, true, at(0));
        pace.bulk(at(1), at(11));
        assert_eq!(pace.rest_until(), at(11));
        pace.short(BUSY_FROM, true, at(20));
        assert!(pace.is_busy(at(20)));
        pace.bulk(at(30), at(40));
        assert_eq!(pace.rest_until(), at(60));
        assert!(!pace.is_busy(at(2_000)));
    }

    #[test]
    fn bulk_is_not_passed_over_for_ever() {
        let mut pace = Pace::default();
        for _ in 0..IN_A_ROW_MAX {
            assert!(!pace.is_bulk_due());
            pace.short(1, true, at(0));
        }
        assert!(pace.is_bulk_due());
        pace.bulk(at(0), at(1));
        assert!(!pace.is_bulk_due());
        // What was written while none waited passed nobody over.
        for _ in 0..IN_A_ROW_MAX {
            pace.short(1, false, at(2));
        }
        assert!(!pace.is_bulk_due());
    }
}
