//! What many keys may have under way at once, such as event streams or bytes of answers: so much altogether, and of
//! one key at most half of what the others leave, so that no number of keys leaves a further one nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use viworks_common::id::ApiKeyId;

/// All of one kind. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Shares {
    /// What there is so much of, in the plural.
    what: &'static str,
    total: usize,
    per_key: usize,
    /// What a key may always have, even when all the others together have everything.
    floor: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    keys: BTreeMap<ApiKeyId, usize>,
    altogether: usize,
}

/// Some of it; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    shares: Shares,
    key: ApiKeyId,
    amount: usize,
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
    /// `floor` is held to half of `total`: where there is hardly anything, nothing is given away beyond it.
    pub(super) fn new(what: &'static str, total: usize, per_key: usize, floor: usize) -> Self {
        Self {
            what,
            total,
            per_key,
            floor: floor.min(total / 2).min(per_key),
            taken: Arc::default(),
        }
    }

    /// The most that one key may have.
    pub(super) fn per_key(&self) -> usize {
        self.per_key.min(self.total)
    }

    /// Takes `amount` for `key`.
    pub(super) fn enter(&self, key: ApiKeyId, amount: usize) -> Result<Share, Full> {
        let mut share = Share {
            shares: self.clone(),
            key,
            amount: 0,
        };
        share.resize(amount)?;
        Ok(share)
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Nothing panics while it is held.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Makes it this large; where that is not to be had, it stays as it is.
    pub(super) fn resize(&mut self, amount: usize) -> Result<(), Full> {
        let Shares {
            what,
            total,
            per_key,
            floor,
            ..
        } = self.shares;
        let mut taken = self.shares.lock();
        let own = taken.keys.get(&self.key).copied().unwrap_or_default();
        let others = taken.altogether - own;
        let wanted = (own - self.amount).saturating_add(amount);
        if amount > self.amount {
            let left = total.saturating_sub(others);
            let most = if others == 0 { left } else { left / 2 };
            if wanted > per_key {
                return Err(Full::OfKey(what));
            }
            if wanted > most.max(floor) {
                return Err(Full::Altogether(what));
            }
        }
        taken.altogether = others.saturating_add(wanted);
        if wanted == 0 {
            taken.keys.remove(&self.key);
        } else {
            taken.keys.insert(self.key, wanted);
        }
        drop(taken);
        self.amount = amount;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // Less is always to be had.
        let _less = self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn key(n: u128) -> ApiKeyId {
        ApiKeyId::from_uuid(Uuid::from_u128(n))
    }

    /// What a key gets when it takes whatever it can.
    fn greedy(shares: &Shares, n: u128) -> Vec<Share> {
        std::iter::from_fn(|| shares.enter(key(n), 1).ok()).collect()
    }

    #[test]
    fn a_key_that_took_all_it_may_leaves_room_for_others_and_gets_back_what_it_gave_up() {
        let shares = Shares::new("event streams", 5, 2, 0);
        let enter = |n| shares.enter(key(n), 1);
        let (first, _second) = (enter(1).unwrap(), enter(1).unwrap());
        assert_eq!(enter(1).unwrap_err(), Full::OfKey("event streams"));
        let _other = enter(2).unwrap();
        assert_eq!(enter(2).unwrap_err(), Full::Altogether("event streams"));
        drop(first);
        let _again = enter(1).unwrap();
    }

    #[test]
    fn however_many_keys_take_what_they_can_a_newcomer_gets_something() {
        let shares = Shares::new("event streams", 256, 128, 4);
        let mut held = Vec::new();
        for n in 0..40 {
            let got = greedy(&shares, n);
            assert!(got.len() >= 4, "key {n} got {}", got.len());
            held.push(got);
        }
        assert!(held[0].len() == 128 && held[1].len() == 64, "{held:?}");
        drop(held);
        assert_eq!(shares.lock().altogether, 0);
    }

    #[test]
    fn a_share_grows_and_shrinks_and_stays_what_it_is_where_it_may_not_grow() {
        let shares = Shares::new("bytes", 100, 50, 10);
        let mut first = shares.enter(key(1), 30).unwrap();
        assert_eq!(first.resize(51).unwrap_err(), Full::OfKey("bytes"));
        first.resize(50).unwrap();
        let mut other = shares.enter(key(2), 25).unwrap();
        assert_eq!(other.resize(26).unwrap_err(), Full::Altogether("bytes"));
        first.resize(5).unwrap();
        other.resize(47).unwrap();
        assert_eq!(shares.lock().altogether, 52);
    }
}
