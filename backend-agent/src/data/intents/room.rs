//! Whether writes met a full disk lately.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::warn;
use viworks_common::time::Monotonic;
use viworks_runtime::clock::{Clock as _, SystemClock};

use crate::data::{StoreError, StoreResult, in_full};

/// How long after the last such write a database is called full: those that failed are tried again within that time.
const LATELY: Duration = Duration::from_secs(60);

/// What is known about it.
#[derive(Debug, Default)]
pub(super) struct Room {
    last_refused: Mutex<Option<Monotonic>>,
    /// When telemetry seemed to find none. A rule that somebody made may say so as well, of some gateways' alone.
    last_doubted: Mutex<Option<Monotonic>>,
    /// Whether nothing of it was stored since.
    doubted: AtomicBool,
}

impl Room {
    /// Looks at what became of a write.
    pub(super) fn note<T>(&self, written: StoreResult<T>) -> StoreResult<T> {
        if let Err(error @ StoreError::Full(_)) = &written
            && is_news(&self.last_refused)
        {
            warn!(error = in_full(error), "the database has no room");
        }
        written
    }

    /// Telemetry of nobody is stored, and this is what the database says.
    pub(super) fn doubt(&self, error: &StoreError) {
        self.doubted.store(true, Ordering::Relaxed);
        if is_news(&self.last_doubted) {
            let error = in_full(error);
            warn!(error, "the database seems to have no room for telemetry");
        }
    }

    /// Telemetry of somebody was stored: it was about others.
    pub(super) fn found_for_telemetry(&self) {
        self.doubted.store(false, Ordering::Relaxed);
    }

    /// Whether one of the last writes found no room.
    pub(super) fn is_full(&self) -> bool {
        is_recent(&self.last_refused)
    }

    /// Whether telemetry of nobody found room lately, as far as can be seen.
    pub(super) fn is_doubted(&self) -> bool {
        self.doubted.load(Ordering::Relaxed) && is_recent(&self.last_doubted)
    }
}

/// Notes that it is so now; whether it had not been for a while.
fn is_news(last: &Mutex<Option<Monotonic>>) -> bool {
    let now = SystemClock.now();
    let before = of(last).replace(now);
    before.is_none_or(|last| now.saturating_since(last) >= LATELY)
}

fn is_recent(last: &Mutex<Option<Monotonic>>) -> bool {
    let now = SystemClock.now();
    of(last).is_some_and(|last| now.saturating_since(last) < LATELY)
}

fn of(last: &Mutex<Option<Monotonic>>) -> MutexGuard<'_, Option<Monotonic>> {
    // Nothing panics while it is held.
    last.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_full_once_a_write_has_found_no_room() {
        let room = Room::default();
        assert!(room.note(Ok(())).is_ok());
        let away = room.note::<()>(Err(StoreError::Unavailable("gone".into())));
        assert!(away.is_err() && !room.is_full());
        let full = room.note::<()>(Err(StoreError::Full("full".into())));
        assert!(full.is_err() && room.is_full());
        assert!(!room.is_doubted());
    }

    #[test]
    fn what_telemetry_alone_seems_to_find_is_told_apart() {
        let room = Room::default();
        assert!(!room.is_doubted());
        room.doubt(&StoreError::Full("full".into()));
        assert!(room.is_doubted() && !room.is_full());
        let full = room.note::<()>(Err(StoreError::Full("full".into())));
        assert!(full.is_err() && room.is_doubted() && room.is_full());
        room.found_for_telemetry();
        assert!(!room.is_doubted() && room.is_full());
        room.doubt(&StoreError::Full("full".into()));
        assert!(room.is_doubted());
    }
}
