//! How fast this instance takes gateways in, beside the others: who finds no room gets a turn, and who is sent away is
//! sent when the others can take it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use viworks_common::arrivals::{Arrivals, House, Waves, slot};
use viworks_common::time::Monotonic;

/// The doors of one instance.
#[derive(Debug)]
pub struct Doors {
    sessions_max: u64,
    arrivals: Mutex<Arrivals>,
    /// Gateways that may come, at the most.
    fleet: AtomicUsize,
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
            fleet: AtomicUsize::default(),
            others: Mutex::default(),
        }
    }

    /// How many gateways there are that may come.
    pub fn expect(&self, gateways: u64) {
        let gateways = usize::try_from(gateways).unwrap_or(usize::MAX);
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

    /// When a gateway that found no room should come back; `draw` is random.
    pub fn turned_away(&self, draw: u64, now: Monotonic) -> Duration {
        let fleet = self.fleet.load(Ordering::Relaxed);
        lock(&self.arrivals).turned_away(fleet, draw, now)
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
        let waits = (0..10_000).map(|draw| doors.turned_away(draw * 1_000_003, now));
        let longest = waits.max().unwrap();
        assert!(longest > Duration::from_secs(15), "{longest:?}");
        assert!(longest <= Duration::from_secs(21), "{longest:?}");
    }
}
