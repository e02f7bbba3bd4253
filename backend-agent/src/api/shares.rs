//! What many keys may have under way at once, such as event streams: so many altogether, so many of one key.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use viworks_common::id::ApiKeyId;

/// All of one kind. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Shares {
    /// What there are so many of, in the plural.
    what: &'static str,
    total: usize,
    per_key: usize,
    taken: Arc<Mutex<BTreeMap<ApiKeyId, usize>>>,
}

/// One of them; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    shares: Shares,
    key: ApiKeyId,
}

/// Why there is none left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("too many {0} are under way")]
    Altogether(&'static str),
    #[error("this key has too many {0} under way")]
    OfKey(&'static str),
}

impl Shares {
    pub(super) fn new(what: &'static str, total: usize, per_key: usize) -> Self {
        Self {
            what,
            total,
            per_key,
            taken: Arc::default(),
        }
    }

    /// Takes one for `key`.
    pub(super) fn enter(&self, key: ApiKeyId) -> Result<Share, Full> {
        let mut taken = self.lock();
        if taken.get(&key).is_some_and(|own| *own >= self.per_key) {
            return Err(Full::OfKey(self.what));
        }
        if taken.values().sum::<usize>() >= self.total {
            return Err(Full::Altogether(self.what));
        }
        *taken.entry(key).or_default() += 1;
        Ok(Share {
            shares: self.clone(),
            key,
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ApiKeyId, usize>> {
        // Nothing panics while it is held.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.lock();
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
        let shares = Shares::new("event streams", 3, 2);
        let key = |n| ApiKeyId::from_uuid(Uuid::from_u128(n));
        let (first, _second) = (shares.enter(key(1)).unwrap(), shares.enter(key(1)).unwrap());
        assert_eq!(
            shares.enter(key(1)).unwrap_err(),
            Full::OfKey("event streams")
        );
        let _other = shares.enter(key(2)).unwrap();
        assert_eq!(
            shares.enter(key(3)).unwrap_err(),
            Full::Altogether("event streams")
        );
        drop(first);
        let _again = shares.enter(key(1)).unwrap();
    }
}
