//! Turns at reads that may be large: a few at once, so that the store's other readers stay free for what is small and
//! for commands, and one of each key, so that whoever asks for much waits for itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use viworks_common::id::ApiKeyId;

/// Large reads at once: half of the store's readers.
pub(super) const READS_AT_ONCE: usize = 2;

/// The turns. Each key waits in a line of its own, and the first of every line in one line for all.
#[derive(Debug)]
pub(super) struct Turns {
    all: Arc<Semaphore>,
    /// The lines of the keys that have somebody in them.
    keys: Mutex<BTreeMap<ApiKeyId, Weak<Semaphore>>>,
}

/// A turn; the next one has it when this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _all: Option<OwnedSemaphorePermit>,
    _own: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// So many have theirs at once.
    pub(super) fn new(at_once: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(at_once)),
            keys: Mutex::default(),
        }
    }

    /// Waits for a turn of `key`.
    pub(super) async fn next(&self, key: ApiKeyId) -> Turn {
        // Neither is ever closed.
        let own = self.line(key).acquire_owned().await.ok();
        let all = Arc::clone(&self.all).acquire_owned().await.ok();
        Turn {
            _all: all,
            _own: own,
        }
    }

    fn line(&self, key: ApiKeyId) -> Arc<Semaphore> {
        // Nothing panics while it is held.
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = keys.get(&key).and_then(Weak::upgrade) {
            return line;
        }
        keys.retain(|_key, line| line.strong_count() > 0);
        let line = Arc::new(Semaphore::new(1));
        keys.insert(key, Arc::downgrade(&line));
        line
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_key_that_asks_for_much_waits_for_itself_and_others_have_their_turn() {
        let turns = Turns::new(READS_AT_ONCE);
        let key = |n| ApiKeyId::from_uuid(Uuid::from_u128(n));
        let first = turns.next(key(1)).now_or_never().unwrap();
        let mut more: Vec<_> = (0..9).map(|_| Box::pin(turns.next(key(1)))).collect();
        for waiting in &mut more {
            assert!(waiting.now_or_never().is_none());
        }
        let other = turns.next(key(2)).now_or_never().unwrap();
        assert!(turns.next(key(3)).now_or_never().is_none());
        drop(other);
        let third = turns.next(key(3)).now_or_never().unwrap();
        drop((first, third));
        drop(more);
        assert!(turns.next(key(1)).now_or_never().is_some());
    }
}
