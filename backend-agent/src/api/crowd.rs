//! Tells whoever looks after the backend that a key has more under way than it may have, as long as that lasts.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use viworks_common::time::Monotonic;
use viworks_runtime::clock::{Clock, sleep_until};
use viworks_runtime::conditions::{Conditions, Severity};

const CONDITION: &str = "api.key_full";
const FIX: &str = "find out what uses that key, and revoke it if nobody knows: viworks-backend-agent apikey ls; the bounds are those of [api] whose names have per_key in them";

/// How long after the last refusal health speaks of it.
const QUIET: Duration = Duration::from_secs(10);
/// How often is looked whether it is over.
const INTERVAL: Duration = Duration::from_secs(5);

/// What was refused lately.
pub(super) struct Crowd {
    clock: Arc<dyn Clock>,
    conditions: Conditions,
    last: Mutex<Option<Monotonic>>,
}

impl Crowd {
    pub(super) fn new(clock: Arc<dyn Clock>, conditions: Conditions) -> Self {
        Self {
            clock,
            conditions,
            last: Mutex::default(),
        }
    }

    /// A request was refused because the key of this name has all the `what` that it may have.
    pub(super) fn refused(&self, key: &str, what: &str) {
        *self.last() = Some(self.clock.now());
        let cause = format!(
            "requests of the API key {key:?} are refused: it has all the {what} it may have"
        );
        self.conditions
            .raise(CONDITION, Severity::Warn, &cause, FIX);
    }

    /// Looks whether it is over until the backend stops.
    pub(super) async fn watch(&self, stopping: &CancellationToken) {
        loop {
            let next = self.clock.now().saturating_add(INTERVAL);
            tokio::select! {
                () = stopping.cancelled() => return,
                () = sleep_until(&*self.clock, next) => {}
            }
            let now = self.clock.now();
            let over = self
                .last()
                .take_if(|last| now.saturating_since(*last) >= QUIET);
            if over.is_some() {
                self.conditions.clear(CONDITION);
            }
        }
    }

    fn last(&self) -> MutexGuard<'_, Option<Monotonic>> {
        // Nothing panics while it is held.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
