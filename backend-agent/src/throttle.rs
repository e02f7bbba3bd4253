//! Keeps what strangers and gateways can cause at will from filling the log and the audit trail: so many entries, then
//! now and then one with the number of those left out before it.

use std::sync::{Mutex, PoisonError};

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

impl Throttle {
    /// At most as many entries as `quota` has.
    #[must_use]
    pub const fn new(quota: Quota) -> Self {
        Self {
            quota,
            state: Mutex::new(State {
                bucket: Bucket::NEW,
                left_out: 0,
            }),
        }
    }

    /// Whether to write this one; then with how many were left out before it.
    pub fn take(&self, now: Monotonic) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.bucket.take(self.quota, now) {
            Taken::Allowed { .. } => Some(std::mem::take(&mut state.left_out)),
            Taken::Refused { .. } => {
                state.left_out = state.left_out.saturating_add(1);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_leaves_its_first_entries_and_its_size() {
        let throttle = Throttle::new(Quota {
            per_minute: 60,
            burst: 2,
        });
        let at = |millis| Monotonic::from_duration(Duration::from_millis(millis));
        assert_eq!(throttle.take(at(0)), Some(0));
        assert_eq!(throttle.take(at(10)), Some(0));
        assert_eq!(throttle.take(at(20)), None);
        assert_eq!(throttle.take(at(999)), None);
        assert_eq!(throttle.take(at(1_000)), Some(2));
        assert_eq!(throttle.take(at(1_500)), None);
        assert_eq!(throttle.take(at(9_000)), Some(1));
    }
}
