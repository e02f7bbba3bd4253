//! How long it is waited for a store that is away.

use std::time::Duration;

/// The first and the longest wait for a store that is away.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long it is waited before the next attempt.
pub(super) struct Pause(Duration);

impl Pause {
    /// Before the first one.
    pub(super) const fn new() -> Self {
        Self(RETRY.0)
    }

    /// The wait before the next attempt; the one after that is twice as long.
    pub(super) fn next(&mut self) -> Duration {
        let longer = self.0.saturating_mul(2).min(RETRY.1);
        std::mem::replace(&mut self.0, longer)
    }
}
