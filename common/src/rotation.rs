//! Which of several agent keys a gateway shows, and which ones it keeps: decided without a file or a socket.
//!
//! The generation in HELLO's header is what the backend derives the key by, so a backend whose database was set back
//! takes a later generation than it knows of. What it cannot take is a key of another master key: then a gateway is
//! back with the one before.

/// Agent keys that a gateway keeps beside the one that it was issued with: one that is new, the one that its session
/// was opened with, and one more, for a backend that was set back.
pub const KEYS_KEPT: usize = 3;

/// The last generation: it is one byte of the envelope, and never begins anew.
pub const LAST_GENERATION: u8 = 255;

/// The generation of the key that is handed out next to a gateway whose backend accepts `accepted` and later ones, and
/// has asked for `wanted`, if it has. While that was not used, it stays the next one. None beyond the last.
#[must_use]
pub fn next(accepted: u32, wanted: Option<u32>) -> Option<u32> {
    if let Some(pending) = pending(accepted, wanted) {
        return Some(pending);
    }
    let next = accepted.checked_add(1)?;
    (next <= u32::from(LAST_GENERATION)).then_some(next)
}

/// The generation for another machine in the gateway's place: above every one that was handed out, used or not, so that
/// the machine before knows no key of it. None beyond the last.
#[must_use]
pub fn above(accepted: u32, wanted: Option<u32>) -> Option<u32> {
    next(pending(accepted, wanted).unwrap_or(accepted), None)
}

/// The generation that was asked for and that no HELLO has shown so far.
#[must_use]
pub fn pending(accepted: u32, wanted: Option<u32>) -> Option<u32> {
    wanted.filter(|wanted| *wanted > accepted)
}

/// An agent key that a gateway could show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// SHA-256 of it.
    pub digest: [u8; 32],
    /// Which generation it is of.
    pub generation: u8,
}

/// The keys that were refused where they were shown, the one of longest ago first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RefusedKeys(Vec<[u8; 32]>);

impl RefusedKeys {
    /// Notes one.
    pub fn note(&mut self, digest: [u8; 32]) {
        self.forget(&digest);
        self.0.push(digest);
    }

    /// Notes that one was taken.
    pub fn forget(&mut self, digest: &[u8; 32]) {
        self.0.retain(|known| known != digest);
    }

    /// Forgets those that are no longer there.
    pub fn keep(&mut self, candidates: &[Candidate]) {
        let there = |known: &[u8; 32]| candidates.iter().any(|it| it.digest == *known);
        self.0.retain(there);
    }

    /// Whether this one was refused.
    #[must_use]
    pub fn has(&self, digest: &[u8; 32]) -> bool {
        self.0.contains(digest)
    }
}

/// The place of the key to show: the one of the latest generation that was not refused, and of refused ones the one
/// that was not tried for longest. None without any.
#[must_use]
pub fn choose(candidates: &[Candidate], refused: &RefusedKeys) -> Option<usize> {
    let places = || candidates.iter().enumerate();
    let fresh = places().filter(|(_, one)| !refused.has(&one.digest));
    let latest = fresh.max_by_key(|(place, one)| (one.generation, std::cmp::Reverse(*place)));
    let longest_ago = || {
        refused.0.iter().find_map(|known| {
            let found = places().find(|(_, one)| one.digest == *known);
            found.map(|(place, _)| place)
        })
    };
    latest.map(|(place, _)| place).or_else(longest_ago)
}

/// What is kept once a key of generation `new` came in a session that was opened with one of `in_use`: these two, and
/// of the others the latest, each generation once, the latest first.
#[must_use]
pub fn kept(known: &[u8], in_use: u8, new: u8) -> Vec<u8> {
    let mut others: Vec<u8> = known.to_vec();
    others.retain(|one| *one != in_use && *one != new);
    others.sort_unstable_by(|one, other| other.cmp(one));
    others.dedup();
    let mut kept = vec![new];
    if known.contains(&in_use) && in_use != new {
        kept.push(in_use);
    }
    let room = KEYS_KEPT.saturating_sub(kept.len());
    kept.extend(others.into_iter().take(room));
    kept.sort_unstable_by(|one, other| other.cmp(one));
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(generation: u8) -> Candidate {
        Candidate {
            digest: [generation; 32],
            generation,
        }
    }

    #[test]
    fn the_latest_key_is_shown_and_the_one_before_when_it_was_refused() {
        let (all, mut refused) = ([key(1), key(3), key(2)], RefusedKeys::default());
        assert_eq!(choose(&all, &refused), Some(1));
        refused.note([3; 32]);
        assert_eq!(choose(&all, &refused), Some(2));
        refused.note([2; 32]);
        assert_eq!(choose(&all, &refused), Some(0));
        refused.note([1; 32]);
        assert_eq!(choose(&all, &refused), Some(1), "tried longest ago");
        refused.note([3; 32]);
        assert_eq!(choose(&all, &refused), Some(2));
        refused.forget(&[1; 32]);
        assert_eq!(choose(&all, &refused), Some(0));
        refused.keep(&all[1..2]);
        assert!(refused.has(&[3; 32]) && !refused.has(&[2; 32]));
        assert_eq!(choose(&[], &refused), None);
        // The same generation from two places is the first of them.
        let other = Candidate {
            digest: [9; 32],
            ..key(3)
        };
        assert_eq!(choose(&[other, key(3)], &RefusedKeys::default()), Some(0));
    }

    #[test]
    fn a_rotation_that_is_under_way_stays_the_next_one_and_generations_end() {
        assert_eq!(next(1, None), Some(2));
        assert_eq!(next(1, Some(2)), Some(2), "asked for twice");
        assert_eq!(next(2, Some(2)), Some(3));
        assert_eq!(next(5, Some(2)), Some(6), "the database was set back");
        assert_eq!(next(255, None), None);
        assert_eq!(next(254, None), Some(255));
        assert_eq!(pending(2, Some(2)), None);
        assert_eq!(pending(2, Some(3)), Some(3));
    }

    #[test]
    fn what_is_kept_has_the_new_key_and_that_of_the_session() {
        assert_eq!(kept(&[], 1, 2), [2]);
        assert_eq!(kept(&[2], 2, 3), [3, 2]);
        assert_eq!(kept(&[3, 2], 3, 4), [4, 3, 2]);
        assert_eq!(kept(&[4, 3, 2], 4, 5), [5, 4, 3]);
        // The later ones are refused, and the session is one of an earlier key.
        assert_eq!(kept(&[5, 4, 3], 3, 4), [5, 4, 3]);
        assert_eq!(kept(&[5, 4, 2], 2, 3), [5, 3, 2]);
    }

    /// What happens between two looks at a gateway and its backend.
    #[derive(Debug, Clone)]
    enum Happened {
        /// An operator asks for another key.
        Rotate,
        /// A session gets as far as this, and the gateway dies.
        Session(u8),
        /// The database is as it was when it was kept last.
        SetBack,
        /// It is kept.
        Keep,
    }

    fn happened() -> impl Strategy<Value = Happened> {
        prop_oneof![
            3 => Just(Happened::Rotate),
            6 => (0_u8..4).prop_map(Happened::Session),
            1 => Just(Happened::SetBack),
            1 => Just(Happened::Keep),
        ]
    }

    proptest! {
        /// A crash between any two steps, and a database that is set back at any time, lock nobody out: the first key
        /// that is shown is taken.
        #[test]
        fn the_key_that_is_shown_is_always_taken(events in prop::collection::vec(happened(), 0..200)) {
            let (mut accepted, mut wanted) = (1_u32, None);
            let mut saved = (accepted, wanted);
            let mut ring: Vec<u8> = Vec::new();
            for event in events {
                match event {
                    Happened::Rotate => wanted = next(accepted, wanted).or(wanted),
                    Happened::Keep => saved = (accepted, wanted),
                    Happened::SetBack => (accepted, wanted) = saved,
                    Happened::Session(steps) => {
                        let mut all = vec![key(1)];
                        all.extend(ring.iter().map(|generation| key(*generation)));
                        let place = choose(&all, &RefusedKeys::default()).unwrap();
                        let shown = all[place].generation;
                        prop_assert!(u32::from(shown) >= accepted, "{shown} of {accepted}");
                        // HELLO is out, and lost.
                        if steps == 0 {
                            continue;
                        }
                        // It is admitted, and the answer is lost.
                        accepted = accepted.max(u32::from(shown));
                        if steps == 1 {
                            continue;
                        }
                        // The key is on its way.
                        if let Some(offered) = pending(accepted, wanted) {
                            let offered = u8::try_from(offered).unwrap();
                            prop_assert!(offered > shown);
                            // It is durable, reported or not.
                            if steps == 3 {
                                ring = kept(&ring, shown, offered);
                                prop_assert!(ring.len() <= KEYS_KEPT);
                                prop_assert!(ring.contains(&offered));
                            }
                        }
                    }
                }
            }
        }
    }
}
