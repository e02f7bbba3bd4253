//! When the gateway's last messages were sent: what permits count from.

use std::collections::VecDeque;

use crate::limits;
use crate::time::Monotonic;

/// When the last messages were sent: their sequence numbers are consecutive.
#[derive(Debug)]
pub(super) struct SentTimes {
    hello_at: Monotonic,
    confirm: u64,
    confirm_at: Monotonic,
    /// The sequence number of the first entry.
    first: u64,
    times: VecDeque<Monotonic>,
}

impl SentTimes {
    pub(super) const fn new(hello_at: Monotonic, confirm: u64, confirm_at: Monotonic) -> Self {
        Self {
            hello_at,
            confirm,
            confirm_at,
            first: confirm + 1,
            times: VecDeque::new(),
        }
    }

    pub(super) fn push(&mut self, now: Monotonic) {
        if self.times.len() == limits::SENT_TIMES_MAX {
            self.times.pop_front();
            self.first += 1;
        }
        self.times.push_back(now);
    }

    /// Earlier is safe: for what was forgotten, and for what was never sent, it is CONFIRM's time.
    pub(super) fn at(&self, sequence: u64) -> Monotonic {
        if sequence < self.confirm {
            return self.hello_at;
        }
        sequence
            .checked_sub(self.first)
            .and_then(|index| usize::try_from(index).ok())
            .and_then(|index| self.times.get(index).copied())
            .unwrap_or(self.confirm_at)
    }
}
