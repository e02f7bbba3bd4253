//! Whom a key stands for, remembered for a moment: a burst of requests with one key asks the store once. While the
//! store cannot be asked, a key that it knew lately still opens what says how this process is.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use viworks_common::time::Monotonic;

use super::Principal;

/// How long a key is believed without another look. A revocation by this process is known at once, one by another
/// process, such as the backend's own command line, after so long.
const LIFE: Duration = Duration::from_secs(1);

/// How long a key opens that much since the store was last asked about it. What is revoked by another instance
/// meanwhile is known here once the store answers again.
const LATELY: Duration = Duration::from_secs(3_600);

/// Keys that are remembered; when there are more, all are forgotten.
const KEYS_MAX: usize = 1_024;

/// The memory of one process, by the digest of the secret.
#[derive(Debug, Default)]
pub struct Principals {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    known: BTreeMap<[u8; 32], (Principal, Monotonic)>,
    /// How often all was forgotten.
    generation: u64,
}

/// That somebody looks a key up, since when: what is revoked meanwhile is not remembered.
#[derive(Debug, Clone, Copy)]
pub struct Lookup {
    generation: u64,
}

impl Principals {
    /// The principal behind a secret, or the permission to remember it once it is found.
    ///
    /// # Errors
    /// When the store must be asked.
    pub fn find(&self, digest: &[u8; 32], now: Monotonic) -> Result<Principal, Lookup> {
        let inner = self.inner();
        match inner.known.get(digest) {
            Some((principal, since)) if now.saturating_since(*since) < LIFE => {
                Ok(principal.clone())
            }
            Some(_) | None => Err(Lookup {
                generation: inner.generation,
            }),
        }
    }

    /// The principal behind a secret that the store knew lately, for when it cannot be asked.
    #[must_use]
    pub fn lately(&self, digest: &[u8; 32], now: Monotonic) -> Option<Principal> {
        let inner = self.inner();
        let (principal, since) = inner.known.get(digest)?;
        (now.saturating_since(*since) < LATELY).then(|| principal.clone())
    }

    /// Forgets one: the store does not accept it.
    pub fn forget_one(&self, digest: &[u8; 32]) {
        self.inner().known.remove(digest);
    }

    /// Remembers what a lookup found at `now`, the moment at which it began.
    pub fn remember(
        &self,
        lookup: Lookup,
        digest: [u8; 32],
        principal: &Principal,
        now: Monotonic,
    ) {
        let mut inner = self.inner();
        if lookup.generation != inner.generation {
            return;
        }
        if inner.known.len() >= KEYS_MAX {
            inner.known.clear();
        }
        inner.known.insert(digest, (principal.clone(), now));
    }

    /// Forgets everybody: a key was revoked.
    pub fn forget(&self) {
        let mut inner = self.inner();
        inner.known.clear();
        inner.generation = inner.generation.wrapping_add(1);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use uuid::Uuid;
    use viworks_common::id::ApiKeyId;

    use super::*;

    fn principal() -> Principal {
        Principal {
            key_id: ApiKeyId::from_uuid(Uuid::from_u128(1)),
            name: "ci".to_owned(),
            scopes: BTreeSet::new(),
            expires_at: None,
            address: None,
        }
    }

    fn at(millis: u64) -> Monotonic {
        Monotonic::from_duration(Duration::from_millis(millis))
    }

    #[test]
    fn a_key_is_believed_for_a_second_and_not_after_a_revocation() {
        let principals = Principals::default();
        let lookup = principals.find(&[1; 32], at(0)).unwrap_err();
        principals.remember(lookup, [1; 32], &principal(), at(0));
        assert_eq!(principals.find(&[1; 32], at(999)).unwrap(), principal());
        assert!(principals.find(&[2; 32], at(1)).is_err());
        assert!(principals.find(&[1; 32], at(1_000)).is_err());
        principals.forget();
        assert!(principals.find(&[1; 32], at(1)).is_err());
    }

    #[test]
    fn a_key_that_was_known_lately_is_known_for_an_hour_unless_it_was_refused_since() {
        let principals = Principals::default();
        let remember = || {
            let lookup = principals.find(&[1; 32], at(5_000)).unwrap_err();
            principals.remember(lookup, [1; 32], &principal(), at(0));
        };
        remember();
        assert!(principals.find(&[1; 32], at(60_000)).is_err());
        assert_eq!(principals.lately(&[1; 32], at(60_000)), Some(principal()));
        assert_eq!(principals.lately(&[2; 32], at(60_000)), None);
        assert_eq!(principals.lately(&[1; 32], at(3_600_000)), None);
        principals.forget_one(&[1; 32]);
        assert_eq!(principals.lately(&[1; 32], at(60_000)), None);
        remember();
        principals.forget();
        assert_eq!(principals.lately(&[1; 32], at(60_000)), None);
    }

    #[test]
    fn what_was_looked_up_before_a_revocation_is_not_remembered_after_it() {
        let principals = Principals::default();
        let lookup = principals.find(&[1; 32], at(0)).unwrap_err();
        principals.forget();
        principals.remember(lookup, [1; 32], &principal(), at(0));
        assert!(principals.find(&[1; 32], at(0)).is_err());
    }

    #[test]
    fn no_more_keys_are_remembered_than_there_is_room_for() {
        let principals = Principals::default();
        for n in 0..2 * KEYS_MAX {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&n.to_le_bytes());
            let lookup = principals.find(&digest, at(0)).unwrap_err();
            principals.remember(lookup, digest, &principal(), at(0));
        }
        assert!(principals.inner().known.len() <= KEYS_MAX);
    }
}
