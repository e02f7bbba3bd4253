//! Keeps refusals from writing the audit trail full: one record at a time, with the number of those left out.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use viworks_common::time::Monotonic;

/// At most one record in each interval.
#[derive(Debug)]
pub struct Throttle {
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Monotonic>,
    left_out: u64,
}

impl Throttle {
    /// At most one record in each `interval`.
    #[must_use]
    pub const fn new(interval: Duration) -> Self {
        Self {
            interval,
            state: Mutex::new(State {
                last: None,
                left_out: 0,
            }),
        }
    }

    /// Whether to record this one; then with how many were left out before it.
    pub fn take(&self, now: Monotonic) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let due = state
            .last
            .is_none_or(|last| now.saturating_since(last) >= self.interval);
        if due {
            state.last = Some(now);
            Some(std::mem::take(&mut state.left_out))
        } else {
            state.left_out = state.left_out.saturating_add(1);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_leaves_one_record_and_its_size() {
        let throttle = Throttle::new(Duration::from_secs(1));
        let at = |millis| Monotonic::from_duration(Duration::from_millis(millis));
        assert_eq!(throttle.take(at(0)), Some(0));
        assert_eq!(throttle.take(at(10)), None);
        assert_eq!(throttle.take(at(999)), None);
        assert_eq!(throttle.take(at(1_000)), Some(2));
        assert_eq!(throttle.take(at(2_000)), Some(0));
    }
}
