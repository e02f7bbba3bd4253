//! Whether writes met a full disk lately.

use std::sync::{Mutex, PoisonError};
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
}

impl Room {
    /// Looks at what became of a write.
    pub(super) fn note<T>(&self, written: StoreResult<T>) -> StoreResult<T> {
        if let Err(error @ StoreError::Full(_)) = &written {
            let now = SystemClock.now();
            let before = self.last().replace(now);
            if before.is_none_or(|last| now.saturating_since(last) >= LATELY) {
                warn!(error = in_full(error), "the database has no room");
            }
        }
        written
    }

    /// Whether one of the last writes found no room.
    pub(super) fn is_full(&self) -> bool {
        let now = SystemClock.now();
        let is_recent = |last| now.saturating_since(last) < LATELY;
        self.last().is_some_and(is_recent)
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<Monotonic>> {
        // Nothing panics while it is held.
        self.last_refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
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
    }
}
