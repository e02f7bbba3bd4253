//! Tells whoever looks after the backend that requests are refused for want of room, as long as that lasts.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use viworks_common::time::Monotonic;
use viworks_runtime::clock::{Clock, sleep_until};
use viworks_runtime::conditions::{Conditions, Severity};
use viworks_runtime::shares::Full;

/// One key has all that it may have.
const KEY_FULL: &str = "api.key_full";
const KEY_FULL_FIX: &str = "find out what uses that key, and revoke it if nobody knows: viworks-backend-agent apikey ls; the bounds are those of [api] whose names have per_key in them";

/// All together have all that there is.
const FULL: &str = "api.full";
const FULL_FIX: &str = "find out who asks for so much at once: the metric viworks_api_requests counts by route, viworks_api_connections_refused by bound; then bound the greedy, or raise the bounds of [api]";

/// How long after the last refusal health speaks of it.
const QUIET: Duration = Duration::from_secs(10);
/// How often is looked whether it is over.
const INTERVAL: Duration = Duration::from_secs(5);

/// What was refused lately. Clones share it.
#[derive(Clone)]
pub(super) struct Crowd {
    clock: Arc<dyn Clock>,
    conditions: Conditions,
    last: Arc<Mutex<Last>>,
}

/// When somebody was refused last.
#[derive(Default)]
struct Last {
    /// Because of what one key has.
    of_key: Option<Monotonic>,
    /// Because of what all have.
    altogether: Option<Monotonic>,
}

impl Crowd {
    pub(super) fn new(clock: Arc<dyn Clock>, conditions: Conditions) -> Self {
        Self {
            clock,
            conditions,
            last: Arc::default(),
        }
    }

    /// A request was refused because the key of this name has all the `what` that it may have.
    pub(super) fn key_full(&self, key: &str, what: &str) {
        self.last().of_key = Some(self.clock.now());
        let cause = format!(
            "requests of the API key {key:?} are refused: it has all the {what} it may have"
        );
        self.conditions
            .raise(KEY_FULL, Severity::Warn, &cause, KEY_FULL_FIX);
    }

    /// A request was refused because all together have all the `what` that there may be.
    pub(super) fn full(&self, what: &str) {
        self.last().altogether = Some(self.clock.now());
        let cause =
            format!("requests are refused, whoever sends them: all {what} that may be are in use");
        self.conditions
            .raise(FULL, Severity::Warn, &cause, FULL_FIX);
    }

    /// A request of the key of this name was refused for want of room.
    pub(super) fn refused(&self, full: Full, key: &str) {
        match full {
            Full::OfOwner(_, what) => self.key_full(key, what),
            Full::Altogether(what) => self.full(what),
        }
    }

    /// Looks whether it is over until the backend stops.
    pub(super) async fn watch(&self, stopping: &CancellationToken) {
        loop {
            let next = self.clock.now().saturating_add(INTERVAL);
            tokio::select! {
                () = stopping.cancelled() => return,
                () = sleep_until(&*self.clock, next) => {}
            }
            self.look();
        }
    }

    fn look(&self) {
        let now = self.clock.now();
        let over = |last: &mut Option<Monotonic>| {
            last.take_if(|last| now.saturating_since(*last) >= QUIET)
                .is_some()
        };
        let mut last = self.last();
        if over(&mut last.of_key) {
            self.conditions.clear(KEY_FULL);
        }
        if over(&mut last.altogether) {
            self.conditions.clear(FULL);
        }
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        // Nothing panics while it is held.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
