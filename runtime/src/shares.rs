//! What many owners may have under way at once, such as event streams of API keys or requests of local users: so much
//! altogether, and of one owner at most half of what the others leave, so that no number of them leaves a further one
//! nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All of one kind. Clones share them.
#[derive(Debug, Clone)]
pub struct Shares<K: Ord + Copy> {
    /// Who has a share, in one word.
    who: &'static str,
    /// What there is so much of, in the plural.
    what: &'static str,
    total: usize,
    per_owner: usize,
    /// What an owner may always have, even when all the others together have everything.
    floor: usize,
    taken: Arc<Mutex<Taken<K>>>,
}

#[derive(Debug)]
struct Taken<K> {
    owners: BTreeMap<K, usize>,
    altogether: usize,
}

/// Some of it; given back when it is dropped.
#[derive(Debug)]
pub struct Share<K: Ord + Copy> {
    shares: Shares<K>,
    owner: K,
    amount: usize,
}

/// Why there is none left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The others have so much that there is not enough for this one.
    #[error("too many {0} are under way")]
    Altogether(&'static str),
    /// This owner has as much as one may.
    #[error("this {0} has too many {1} under way")]
    OfOwner(&'static str, &'static str),
}

impl<K: Ord + Copy> Shares<K> {
    /// So much of `what` in `total`, and of one owner, a `who`, at most `per_owner`. `floor` is held to half of
    /// `total`: where there is hardly anything, nothing is given away beyond it.
    #[must_use]
    pub fn new(
        (who, what): (&'static str, &'static str),
        total: usize,
        per_owner: usize,
        floor: usize,
    ) -> Self {
        Self {
            who,
            what,
            total,
            per_owner,
            floor: floor.min(total / 2).min(per_owner),
            taken: Arc::new(Mutex::new(Taken {
                owners: BTreeMap::new(),
                altogether: 0,
            })),
        }
    }

    /// The most that one owner may have.
    #[must_use]
    pub fn per_owner(&self) -> usize {
        self.per_owner.min(self.total)
    }

    /// Takes `amount` for `owner`.
    ///
    /// # Errors
    /// When there is not so much left for it.
    pub fn enter(&self, owner: K, amount: usize) -> Result<Share<K>, Full> {
        let mut share = Share {
            shares: self.clone(),
            owner,
            amount: 0,
        };
        share.resize(amount)?;
        Ok(share)
    }

    fn lock(&self) -> MutexGuard<'_, Taken<K>> {
        // Nothing panics while it is held.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Ord + Copy> Share<K> {
    /// Makes it this large; where that is not to be had, it stays as it is.
    ///
    /// # Errors
    /// When there is not so much left for its owner.
    pub fn resize(&mut self, amount: usize) -> Result<(), Full> {
        let Shares {
            who,
            what,
            total,
            per_owner,
            floor,
            ..
        } = self.shares;
        let mut taken = self.shares.lock();
        let own = taken.owners.get(&self.owner).copied().unwrap_or_default();
        let others = taken.altogether - own;
        let wanted = (own - self.amount).saturating_add(amount);
        if amount > self.amount {
            let left = total.saturating_sub(others);
            let most = if others == 0 { left } else { left / 2 };
            if wanted > per_owner {
                return Err(Full::OfOwner(who, what));
            }
            if wanted > most.max(floor) {
                return Err(Full::Altogether(what));
            }
        }
        taken.altogether = others.saturating_add(wanted);
        if wanted == 0 {
            taken.owners.remove(&self.owner);
        } else {
            taken.owners.insert(self.owner, wanted);
        }
        drop(taken);
        self.amount = amount;
        Ok(())
    }
}

impl<K: Ord + Copy> Drop for Share<K> {
    fn drop(&mut self) {
        // Less is always to be had.
        let _less = self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an owner gets when it takes whatever it can.
    fn greedy(shares: &Shares<u32>, n: u32) -> Vec<Share<u32>> {
        std::iter::from_fn(|| shares.enter(n, 1).ok()).collect()
    }

    #[test]
    fn an_owner_that_took_all_it_may_leaves_room_for_others_and_gets_back_what_it_gave_up() {
        let shares = Shares::new(("user", "event streams"), 5, 2, 0);
        let enter = |n| shares.enter(n, 1);
        let (first, _second) = (enter(1).unwrap(), enter(1).unwrap());
        assert_eq!(
            enter(1).unwrap_err(),
            Full::OfOwner("user", "event streams")
        );
        let _other = enter(2).unwrap();
        assert_eq!(enter(2).unwrap_err(), Full::Altogether("event streams"));
        drop(first);
        let _again = enter(1).unwrap();
    }

    #[test]
    fn however_many_owners_take_what_they_can_a_newcomer_gets_something() {
        let shares = Shares::new(("user", "event streams"), 256, 128, 4);
        let mut held = Vec::new();
        for n in 0..40 {
            let got = greedy(&shares, n);
            assert!(got.len() >= 4, "owner {n} got {}", got.len());
            held.push(got);
        }
        assert!(held[0].len() == 128 && held[1].len() == 64, "{held:?}");
        drop(held);
        assert_eq!(shares.lock().altogether, 0);
    }

    #[test]
    fn a_share_grows_and_shrinks_and_stays_what_it_is_where_it_may_not_grow() {
        let shares = Shares::new(("user", "bytes"), 100, 50, 10);
        let mut first = shares.enter(1, 30).unwrap();
        assert_eq!(
            first.resize(51).unwrap_err(),
            Full::OfOwner("user", "bytes")
        );
        first.resize(50).unwrap();
        let mut other = shares.enter(2, 25).unwrap();
        assert_eq!(other.resize(26).unwrap_err(), Full::Altogether("bytes"));
        first.resize(5).unwrap();
        other.resize(47).unwrap();
        assert_eq!(shares.lock().altogether, 52);
    }
}
