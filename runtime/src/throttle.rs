//! Keeps what strangers and peers can cause at will from filling the log and the audit trail: so many entries, then now
//! and then one with the number of those left out before it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use viworks_common::rate::{Bucket, Quota, Taken};
use viworks_common::time::Monotonic;

/// Log lines of one kind: a burst says what is going on, one each second that it goes on.
pub const LOG_LINES: Quota = Quota {
    per_minute: 60,
    burst: 20,
};

/// Bounds the entries of one kind.
#[derive(Debug)]
pub struct Throttle {
    quota: Quota,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bucket: Bucket,
    left_out: u64,
}

impl State {
    fn take(&mut self, quota: Quota, now: Monotonic) -> Option<u64> {
        match self.bucket.take(quota, now) {
            Taken::Allowed { .. } => Some(std::mem::take(&mut self.left_out)),
            Taken::Refused { .. } => {
                self.left_out = self.left_out.saturating_add(1);
                None
            }
        }
    }

    /// Whether there is nothing in it that a new one has not.
    fn is_new(&self, now: Monotonic) -> bool {
        self.left_out == 0 && self.bucket.is_full(now)
    }
}

impl Throttle {
    /// At most as many entries as `quota` has.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        Self {
            quota,
            state: Mutex::default(),
        }
    }

    /// Whether to write this one; then with how many were left out before it.
    pub fn take(&self, now: Monotonic) -> Option<u64> {
        lock(&self.state).take(self.quota, now)
    }
}

/// Bounds the entries of each of many.
#[derive(Debug)]
pub struct Throttles<K> {
    quota: Quota,
    sources_max: usize,
    sources: Mutex<Sources<K>>,
}

#[derive(Debug)]
struct Sources<K> {
    known: BTreeMap<K, State>,
    /// All for whom there was no room.
    others: State,
}

impl<K: Ord> Throttles<K> {
    /// At most as many entries of each source as `quota` has; beyond `sources_max`, those that come later share it.
    #[must_use]
    pub fn new(quota: Quota, sources_max: usize) -> Self {
        Self {
            quota,
            sources_max,
            sources: Mutex::new(Sources {
                known: BTreeMap::new(),
                others: State::default(),
            }),
        }
    }

    /// Whether to write this one of `source`; then with how many were left out before it.
    pub fn take(&self, source: K, now: Monotonic) -> Option<u64> {
        let mut sources = lock(&self.sources);
        let Sources { known, others } = &mut *sources;
        if known.len() >= self.sources_max && !known.contains_key(&source) {
            known.retain(|_source, state| !state.is_new(now));
        }
        let room = known.len() < self.sources_max || known.contains_key(&source);
        let state = if room {
            known.entry(source).or_default()
        } else {
            others
        };
        state.take(self.quota, now)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(millis: u64) -> Monotonic {
        Monotonic::from_duration(Duration::from_millis(millis))
    }

    #[test]
    fn a_burst_leaves_its_first_entries_and_its_size() {
        let throttle = Throttle::new(Quota {
            per_minute: 60,
            burst: 2,
        });
        assert_eq!(throttle.take(at(0)), Some(0));
        assert_eq!(throttle.take(at(10)), Some(0));
        assert_eq!(throttle.take(at(20)), None);
        assert_eq!(throttle.take(at(999)), None);
        assert_eq!(throttle.take(at(1_000)), Some(2));
        assert_eq!(throttle.take(at(1_500)), None);
        assert_eq!(throttle.take(at(9_000)), Some(1));
    }

    #[test]
    fn each_source_has_its_own_and_too_many_share_one() {
        let quota = Quota {
            per_minute: 1,
            burst: 1,
        };
        let throttles = Throttles::new(quota, 2);
        assert_eq!(throttles.take(1, at(0)), Some(0));
        assert_eq!(throttles.take(1, at(1)), None);
        assert_eq!(throttles.take(2, at(1)), Some(0));
        assert_eq!(throttles.take(3, at(2)), Some(0));
        assert_eq!(throttles.take(4, at(3)), None);
        // Of the second, nothing has to be remembered by then; of the first one was left out.
        assert_eq!(throttles.take(5, at(60_002)), Some(0));
        assert_eq!(throttles.take(1, at(60_003)), Some(1));
        assert_eq!(throttles.take(6, at(60_004)), Some(1));
    }
}
