//! What the log says while a database cannot be used: the first failures, then nothing but their number, and one line
//! when it works again. Whoever met such a failure has nothing to add.
//!
//! Where it works and lacks something that one statement needs and the next one does not, the log has the words of the
//! first one that met it; where somebody holds a lock, it says nothing: the health of the database finds all of it, and
//! a condition tells that once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{debug, info, warn};
use viworks_common::rate::{Bucket, Quota, Taken};
use viworks_common::time::Monotonic;
use viworks_runtime::clock::{Clock as _, SystemClock};

use super::link::Doubt;
use crate::data::{StoreError, StoreHealth, StoreResult, in_full, without_words};

/// Failures in a row that are told.
const TOLD: u64 = 2;

/// How often the log is told that something was refused: whoever gave it has the reason as well.
const REFUSALS: Quota = Quota {
    per_minute: 1,
    burst: 10,
};

/// How long something counts that a statement met: whatever needs it is tried again within that time.
const LATELY: Duration = Duration::from_secs(30);

/// What became of intents lately.
#[derive(Debug, Default)]
pub(in crate::data) struct Outage {
    /// Failures since something worked.
    failures: AtomicU64,
    met: Mutex<Met>,
}

/// What statements met, and whether the last look found something lacking.
#[derive(Debug, Default)]
struct Met {
    unfit: Option<(Monotonic, String)>,
    held: Option<Monotonic>,
    was_lacking: bool,
    refusals: Bucket,
}

impl Outage {
    /// Looks at what became of an intent.
    pub(super) fn note<T>(&self, outcome: StoreResult<T>) -> StoreResult<T> {
        match &outcome {
            Err(error @ StoreError::Unfit(cause)) => {
                let now = SystemClock.now();
                let before = self.met().unfit.replace((now, without_words(cause)));
                if before.is_none_or(|(at, _)| now.saturating_since(at) >= LATELY) {
                    let error = in_full(error);
                    warn!(error, "the database lacks something, or the rights to it");
                }
            }
            Err(StoreError::Held(_)) => self.met().held = Some(SystemClock.now()),
            // It can be used; somebody asked of it what it does not take.
            Err(error) if error.is_outage() && error.is_about_what_was_given() => {
                let told = self.met().refusals.take(REFUSALS, SystemClock.now());
                let error = in_full(error);
                if matches!(told, Taken::Allowed { .. }) {
                    warn!(error, "the database refused what it was given");
                } else {
                    debug!(error, "the database refused what it was given");
                }
            }
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

    /// What health is to explain.
    pub(super) fn doubt(&self) -> Doubt {
        let now = SystemClock.now();
        let lately = |at| now.saturating_since(at) < LATELY;
        let met = self.met();
        Doubt {
            unfit: met.was_lacking || met.unfit.as_ref().is_some_and(|(at, _)| lately(*at)),
            held: met.held.is_some_and(lately),
        }
    }

    /// Adds to what was found by a look with such a doubt what statements met that it does not explain. What they met
    /// since that look began is for the next one, which comes soon.
    pub(super) fn explain(
        &self,
        doubt: Doubt,
        found: StoreResult<StoreHealth>,
    ) -> StoreResult<StoreHealth> {
        let now = SystemClock.now();
        let mut met = self.met();
        match found {
            // What it lacked has been put back: what was met before is explained.
            Ok(health) if std::mem::take(&mut met.was_lacking) => {
                met.unfit = None;
                drop(met);
                self.note(Ok(health))
            }
            Ok(health) => {
                let unfit = met.unfit.as_ref().filter(|_| doubt.unfit);
                let refused = unfit.filter(|(at, _)| now.saturating_since(*at) < LATELY);
                let refused = refused.map(|(_, cause)| cause.clone());
                drop(met);
                self.note(Ok(StoreHealth { refused, ..health }))
            }
            Err(error @ StoreError::Unfit(_)) => {
                met.was_lacking = true;
                Err(error)
            }
            Err(error) => {
                drop(met);
                self.note(Err(error))
            }
        }
    }

    fn met(&self) -> MutexGuard<'_, Met> {
        // Nothing panics while it is held.
        self.met.lock().unwrap_or_else(PoisonError::into_inner)
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

    #[test]
    fn what_is_lacking_is_doubted_until_it_is_found_to_be_there_again() {
        let health = || StoreHealth {
            kind: "postgres",
            schema_version: 1,
            problem: None,
            full: false,
            full_for_telemetry: false,
            lacks: None,
            refused: None,
            held: None,
        };
        let outage = Outage::default();
        assert_eq!(outage.doubt(), Doubt::default());
        let unfit = || StoreError::Unfit("no table commands".into());
        assert!(outage.note::<()>(Err(unfit())).is_err());
        // What works meanwhile says nothing about it.
        assert!(outage.note(Ok(())).is_ok());
        // The look that had begun before was not for that.
        let told = outage.explain(Doubt::default(), Ok(health())).unwrap();
        assert_eq!(told.refused, None);
        let doubt = outage.doubt();
        assert!(doubt.unfit);
        let told = outage.explain(doubt, Ok(health())).unwrap();
        assert_eq!(told.refused.as_deref(), Some("no table commands"));
        assert!(outage.explain(doubt, Err(unfit())).is_err());
        let doubt = outage.doubt();
        assert!(doubt.unfit);
        let told = outage.explain(doubt, Ok(health())).unwrap();
        assert_eq!((told.refused, outage.doubt()), (None, Doubt::default()));
        let held = outage.note::<()>(Err(StoreError::Held("a lock".into())));
        assert!(held.is_err() && outage.doubt().held && !outage.doubt().unfit);
    }
}
