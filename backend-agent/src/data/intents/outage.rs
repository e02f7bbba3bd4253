//! What the log says while a database cannot be used: the first failures, then nothing but their number, and one line
//! when it works again. Whoever met such a failure has nothing to add.

use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{info, warn};

use crate::data::{StoreResult, in_full};

/// Failures in a row that are told.
const TOLD: u64 = 2;

/// Failures since something worked.
#[derive(Debug, Default)]
pub(in crate::data) struct Outage {
    failures: AtomicU64,
}

impl Outage {
    /// Looks at what became of an intent.
    pub(super) fn note<T>(&self, outcome: StoreResult<T>) -> StoreResult<T> {
        match &outcome {
            Err(error) if error.is_outage() => {
                if self.is_news() {
                    warn!(error = in_full(error), "the database cannot be used");
                }
            }
            // What it refuses it has answered.
            Ok(_) | Err(_) => {
                if let Some(left_out) = self.over() {
                    info!(left_out, "the database is used again");
                }
            }
        }
        outcome
    }

    /// Something failed: whether the log is to be told of it.
    pub(in crate::data) fn is_news(&self) -> bool {
        self.failures.fetch_add(1, Ordering::Relaxed) < TOLD
    }

    /// Something worked: how many failures the log was not told of, where there were any.
    pub(in crate::data) fn over(&self) -> Option<u64> {
        // Nearly always nothing has failed, and many look at the same time.
        if self.failures.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let failures = self.failures.swap(0, Ordering::Relaxed);
        failures.checked_sub(TOLD).filter(|left_out| *left_out > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_failures_in_a_row_two_are_told_and_the_others_counted() {
        let outage = Outage::default();
        assert_eq!(outage.over(), None);
        let told = (0..100).filter(|_| outage.is_news()).count();
        assert_eq!(told, 2);
        assert_eq!(outage.over(), Some(98));
        assert_eq!(outage.over(), None);
        // What fails once in a while is told each time, and no more.
        for _ in 0..3 {
            assert!(outage.is_news());
            assert_eq!(outage.over(), None);
        }
    }
}
