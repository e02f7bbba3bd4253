//! The places for event streams: so many altogether, so many of one key.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use viworks_common::id::ApiKeyId;

/// The places. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    total: usize,
    per_key: usize,
    taken: Arc<Mutex<BTreeMap<ApiKeyId, usize>>>,
}

/// The place of one stream; given back when it is dropped.
#[derive(Debug)]
pub(super) struct StreamPlace {
    streams: Streams,
    key: ApiKeyId,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("too many event streams are open")]
    Altogether,
    #[error("this key has too many event streams open")]
    OfKey,
}

impl Streams {
    pub(super) fn new(total: usize, per_key: usize) -> Self {
        Self {
            total,
            per_key,
            taken: Arc::default(),
        }
    }

    /// Takes a place for a stream that `key` opens.
    pub(super) fn enter(&self, key: ApiKeyId) -> Result<StreamPlace, Full> {
        let mut taken = self.lock();
        if taken.get(&key).is_some_and(|own| *own >= self.per_key) {
            return Err(Full::OfKey);
        }
        if taken.values().sum::<usize>() >= self.total {
            return Err(Full::Altogether);
        }
        *taken.entry(key).or_default() += 1;
        Ok(StreamPlace {
            streams: self.clone(),
            key,
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ApiKeyId, usize>> {
        // Nothing panics while it is held.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        let mut taken = self.streams.lock();
        if let Some(own) = taken.get_mut(&self.key) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_key_that_took_all_it_may_leaves_room_for_others_and_gets_back_what_it_gave_up() {
        let streams = Streams::new(3, 2);
        let key = |n| ApiKeyId::from_uuid(Uuid::from_u128(n));
        let (first, _second) = (
            streams.enter(key(1)).unwrap(),
            streams.enter(key(1)).unwrap(),
        );
        assert_eq!(streams.enter(key(1)).unwrap_err(), Full::OfKey);
        let _other = streams.enter(key(2)).unwrap();
        assert_eq!(streams.enter(key(3)).unwrap_err(), Full::Altogether);
        drop(first);
        let _again = streams.enter(key(1)).unwrap();
    }
}
