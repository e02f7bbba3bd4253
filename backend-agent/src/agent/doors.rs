//! How fast this instance takes gateways in, beside the others: who finds no room gets a turn, and who is sent away is
//! sent when the others can take it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use viworks_common::arrivals::{Arrivals, House, Together, Waves, slot};
use viworks_common::time::Monotonic;

/// The doors of one instance.
#[derive(Debug)]
pub struct Doors {
    sessions_max: u64,
    arrivals: Mutex<Arrivals>,
    /// Gateways that may come, at the most.
    fleet: AtomicU64,
    /// The other instances, as they were last seen.
    others: Mutex<Vec<House>>,
}

impl Doors {
    /// Of an instance that can have so many sessions.
    #[must_use]
    pub fn new(sessions_max: usize) -> Self {
        Self {
            sessions_max: u64::try_from(sessions_max).unwrap_or(u64::MAX),
            arrivals: Mutex::default(),
            fleet: AtomicU64::default(),
            others: Mutex::default(),
        }
    }

    /// How many gateways there are that may come.
    pub fn expect(&self, gateways: u64) {
        self.fleet.store(gateways, Ordering::Relaxed);
    }

    /// The other instances, as they say of themselves.
    pub fn beside(&self, others: Vec<House>) {
        *lock(&self.others) = others;
    }

    /// A session was opened.
    pub fn opened(&self, now: Monotonic) {
        lock(&self.arrivals).opened(now);
    }

    /// When a gateway that found no room should come back, to this instance or another one; `draw` is random.
    pub fn turned_away(&self, sessions: usize, draw: u64, now: Monotonic) -> Duration {
        let fleet = self.fleet.load(Ordering::Relaxed);
        let own = self.house(sessions, false);
        let together = Together::of(&own, &lock(&self.others));
        lock(&self.arrivals).turned_away(fleet, &together, draw, now)
    }

    /// What it says of itself with so many sessions.
    #[must_use]
    pub fn house(&self, sessions: usize, closes: bool) -> House {
        House {
            sessions: u64::try_from(sessions).unwrap_or(u64::MAX),
            sessions_max: self.sessions_max,
            per_second: lock(&self.arrivals).per_second(),
            closes,
        }
    }

    /// The delay within which a gateway reconnects first when its connection is lost, one of so many.
    #[must_use]
    pub fn slot(&self, sessions: usize) -> Duration {
        slot(&self.house(sessions, false), &lock(&self.others))
    }

    /// When each of the gateways should come back whose sessions are over here while this instance stays open.
    #[must_use]
    pub fn anew(&self) -> Together {
        Together::of(&self.house(0, false), &lock(&self.others))
    }

    /// When each of so many gateways should come back when this instance closes.
    #[must_use]
    pub fn waves(&self, sessions: usize) -> Waves {
        Waves::plan(&self.house(sessions, true), &lock(&self.others))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one of these is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_others_say_decides_about_slots_and_waves() {
        let doors = Doors::new(1_000);
        assert_eq!(doors.slot(500), Duration::from_secs(5));
        let other = House {
            sessions: 0,
            sessions_max: 300,
            per_second: 400,
            closes: false,
        };
        doors.beside(vec![other]);
        assert_eq!(doors.slot(800), Duration::from_secs(2));
        let waves = doors.waves(800);
        assert!(waves.delay(299) < Duration::from_secs(1));
        assert_eq!(waves.delay(400), Duration::from_millis(1_750));
    }

    #[test]
    fn whoever_finds_no_room_waits_as_long_as_the_fleet_needs_at_the_most() {
        let (doors, now) = (Doors::new(10), Monotonic::ORIGIN);
        doors.expect(2_000);
        let waits = (0..10_000).map(|draw| doors.turned_away(0, draw * 1_000_003, now));
        let longest = waits.max().unwrap();
        assert!(longest > Duration::from_secs(15), "{longest:?}");
        assert!(longest <= Duration::from_secs(21), "{longest:?}");
    }

    #[test]
    fn whoever_finds_no_room_is_told_what_all_instances_can_do() {
        let now = Monotonic::ORIGIN;
        let longest = |others: &[House], sessions| {
            let doors = Doors::new(10_000);
            doors.expect(2_000);
            doors.beside(others.to_vec());
            let waits = (0..10_000).map(|draw| doors.turned_away(sessions, draw * 1_000_003, now));
            waits.max().unwrap().as_secs()
        };
        let other = House {
            sessions: 0,
            sessions_max: 10_000,
            per_second: 100,
            closes: false,
        };
        assert_eq!(longest(&[], 0), 21);
        assert_eq!(longest(&[other], 0), 11);
        assert_eq!(longest(&[other; 3], 0), 6);
        // Those that are connected do not come.
        let busy = House {
            sessions: 600,
            ..other
        };
        assert_eq!(longest(&[busy], 400), 6);
        // Whoever has no room takes nobody, and who closes is not there.
        let full = House {
            sessions_max: 600,
            ..busy
        };
        assert_eq!(longest(&[full], 400), 11);
        let closes = House {
            closes: true,
            ..other
        };
        assert_eq!(longest(&[closes], 0), 21);
    }
}
