//! Who may have a connection: so many altogether, so many of one source, and a share for those who are known.
//!
//! At a bound the newcomer is let in and the longest held place that nobody works on is taken away instead: whoever
//! holds connections without using them then cannot keep anybody else out. Only where every place is worked on is the
//! newcomer refused.
//!
//! Whoever is known takes the strangers' last places neither: everybody is a stranger at first, so without them nobody
//! would get in any more, not even to ask whether the process lives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

/// One place in so many is kept for those who are known.
const KEPT_SHARE: usize = 4;

/// One place in so many is kept for newcomers, whom nobody vouches for yet.
const NEWCOMERS_SHARE: usize = 16;

/// How many may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlaceLimits {
    /// Altogether.
    pub total: usize,
    /// Of one source.
    pub per_source: usize,
    /// Of one that is vouched for, such as a key.
    pub per_known: usize,
}

/// The number of a place; they go up, so a lower one was taken earlier.
pub type Place = u64;

/// Which bound was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// All places are taken.
    Full,
    /// The source has as many as it may have.
    SourceFull,
    /// Who was vouched for, such as a key, has as many as it may have.
    KnownFull,
}

impl Bound {
    /// The reason in metrics and in the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::SourceFull => "source_full",
            Self::KnownFull => "key_full",
        }
    }
}

/// Somebody came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entered {
    /// The place of the newcomer.
    pub place: Place,
    /// Whose place was taken away for that, and at which bound.
    pub ousted: Option<(Place, Bound)>,
}

/// Who is in. A connection that is known, because it brought a key or is of a user who is trusted, does not count
/// against the strangers' share.
#[derive(Debug)]
pub struct Places<S> {
    limits: PlaceLimits,
    next: Place,
    held: BTreeMap<Place, Held<S>>,
    /// Per source, the places that count against its bound.
    sources: BTreeMap<S, BTreeSet<Place>>,
    strangers: usize,
}

#[derive(Debug)]
struct Held<S> {
    source: S,
    known: bool,
    /// A request of it is being worked on: taking the place away now would leave its outcome unknown.
    busy: bool,
}

impl<S: Ord + Clone> Places<S> {
    /// An empty house.
    #[must_use]
    pub const fn new(limits: PlaceLimits) -> Self {
        Self {
            limits,
            next: 0,
            held: BTreeMap::new(),
            sources: BTreeMap::new(),
            strangers: 0,
        }
    }

    /// Takes a place for somebody from `source`.
    ///
    /// # Errors
    ///
    /// The bound, when every place that could be taken away is worked on.
    pub fn enter(&mut self, source: &S, known: bool) -> Result<Entered, Bound> {
        let own = self.sources.get(source).map_or(0, BTreeSet::len);
        let ousted = if own >= self.limits.per_source {
            let victim = self.idle_of(source, known).ok_or(Bound::SourceFull)?;
            Some((victim, Bound::SourceFull))
        } else if self.is_full(known) {
            // Whoever is known gives way to itself before it is refused.
            let own = || known.then(|| self.idle_of(source, true)).flatten();
            let victim = self.idle_of_most(false).or_else(own).ok_or(Bound::Full)?;
            Some((victim, Bound::Full))
        } else {
            None
        };
        if let Some((victim, _bound)) = ousted {
            self.leave(victim);
        }
        let place = self.next;
        self.next += 1;
        self.held.insert(
            place,
            Held {
                source: source.clone(),
                known,
                busy: false,
            },
        );
        self.sources
            .entry(source.clone())
            .or_default()
            .insert(place);
        self.strangers += usize::from(!known);
        Ok(Entered { place, ousted })
    }

    /// Whoever has this place is known from now on as `known`, wherever it comes from: it counts against that, and no
    /// longer as a stranger. When that has as many as it may have, the one goes that has been idle longest; when all
    /// who are known have as many as they may have together, the same of the one that has the most.
    ///
    /// # Errors
    ///
    /// The bound, when nobody could go because every place is worked on. Nothing has changed then.
    pub fn vouch(&mut self, place: Place, known: &S) -> Result<Option<(Place, Bound)>, Bound> {
        let Some(held) = self.held.get(&place) else {
            return Ok(None);
        };
        if held.known && held.source == *known {
            return Ok(None);
        }
        let (source, was_known) = (held.source.clone(), held.known);
        let own = self.sources.get(known).map_or(0, BTreeSet::len);
        let ousted = if own >= self.limits.per_known {
            let victim = self.idle_of(known, true).ok_or(Bound::KnownFull)?;
            Some((victim, Bound::KnownFull))
        } else if !was_known && self.held.len() - self.strangers >= self.known_max() {
            let victim = self.idle_of_most(true).ok_or(Bound::Full)?;
            Some((victim, Bound::Full))
        } else {
            None
        };
        if let Some((victim, _bound)) = ousted {
            self.leave(victim);
        }
        self.forget(&source, place);
        self.sources.entry(known.clone()).or_default().insert(place);
        if let Some(held) = self.held.get_mut(&place) {
            held.source = known.clone();
            held.known = true;
        }
        self.strangers -= usize::from(!was_known);
        Ok(ousted)
    }

    /// Says whether a request of this place is being worked on.
    pub fn busy(&mut self, place: Place, busy: bool) {
        if let Some(held) = self.held.get_mut(&place) {
            held.busy = busy;
        }
    }

    /// Gives a place back. One that was taken away is given back already.
    pub fn leave(&mut self, place: Place) {
        if let Some(held) = self.held.remove(&place) {
            self.strangers -= usize::from(!held.known);
            self.forget(&held.source, place);
        }
    }

    /// How many places are taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether nobody is in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    fn is_full(&self, known: bool) -> bool {
        let kept = self.limits.total / KEPT_SHARE;
        self.held.len() >= self.limits.total
            || (!known && self.strangers >= self.limits.total - kept)
    }

    /// How many may be known by what was vouched for.
    const fn known_max(&self) -> usize {
        self.limits.total - self.limits.total / NEWCOMERS_SHARE
    }

    /// The longest held place of a source that nobody works on; a stranger does not take that of somebody known.
    fn idle_of(&self, source: &S, known: bool) -> Option<Place> {
        let places = self.sources.get(source)?;
        let gives_way = |place: &Place| {
            self.held
                .get(place)
                .is_some_and(|held| !held.busy && (known || !held.known))
        };
        places.iter().copied().find(gives_way)
    }

    /// The longest held idle place of those who are known, or of strangers, from the source that has the most.
    fn idle_of_most(&self, known: bool) -> Option<Place> {
        let idle = self.sources.values().filter_map(|places| {
            let gives_way = |place: &Place| {
                self.held
                    .get(place)
                    .is_some_and(|held| !held.busy && held.known == known)
            };
            let victim = places.iter().copied().find(gives_way)?;
            Some((places.len(), victim))
        });
        let most = idle.max_by_key(|(places, victim)| (*places, std::cmp::Reverse(*victim)));
        most.map(|(_places, victim)| victim)
    }

    fn forget(&mut self, source: &S, place: Place) {
        if let Some(places) = self.sources.get_mut(source) {
            places.remove(&place);
            if places.is_empty() {
                self.sources.remove(source);
            }
        }
    }
}

/// The source that an address counts as: whoever has one IPv6 address has its whole /64.
#[must_use]
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: PlaceLimits = PlaceLimits {
        total: 8,
        per_source: 4,
        per_known: 8,
    };

    fn entered(places: &mut Places<u8>, source: u8) -> Place {
        places.enter(&source, false).unwrap().place
    }

    #[test]
    fn one_source_pushes_only_itself_out() {
        let mut places = Places::new(LIMITS);
        let other = entered(&mut places, 1);
        let first = entered(&mut places, 2);
        for _ in 0..3 {
            entered(&mut places, 2);
        }
        let next = places.enter(&2, false).unwrap();
        assert_eq!(next.ousted, Some((first, Bound::SourceFull)));
        assert_eq!(places.len(), 5);
        places.leave(other);
        assert_eq!(places.len(), 4);
    }

    #[test]
    fn strangers_never_take_the_last_quarter_and_the_greediest_source_gives_way() {
        let mut places = Places::new(LIMITS);
        let greedy = entered(&mut places, 1);
        for source in [1, 1, 2, 3, 4] {
            entered(&mut places, source);
        }
        let next = places.enter(&5, false).unwrap();
        assert_eq!(next.ousted, Some((greedy, Bound::Full)));
        assert_eq!(places.len(), 6);
        let known = places.enter(&6, true).unwrap();
        assert_eq!(known.ousted, None);
        assert_eq!(places.len(), 7);
    }

    #[test]
    fn who_is_vouched_for_is_never_pushed_out_and_does_not_count_against_its_source() {
        let mut places = Places::new(LIMITS);
        let holders: Vec<Place> = (0..8)
            .map(|_| {
                let place = entered(&mut places, 1);
                assert_eq!(places.vouch(place, &100), Ok(None));
                place
            })
            .collect();
        assert_eq!(places.enter(&1, false), Err(Bound::Full));
        places.leave(holders[3]);
        let stranger = entered(&mut places, 1);
        let next = places.enter(&2, false).unwrap();
        assert_eq!(next.ousted, Some((stranger, Bound::Full)));
    }

    #[test]
    fn who_is_known_gives_way_to_itself_before_it_is_refused() {
        let mut places = Places::new(PlaceLimits {
            total: 2,
            per_source: 2,
            per_known: 2,
        });
        let first = places.enter(&1, true).unwrap().place;
        let second = places.enter(&2, true).unwrap().place;
        let next = places.enter(&2, true).unwrap();
        assert_eq!(next.ousted, Some((second, Bound::Full)));
        assert_eq!(places.enter(&3, true), Err(Bound::Full));
        places.leave(first);
        places.enter(&3, true).unwrap();
    }

    #[test]
    fn one_key_pushes_only_itself_out() {
        let mut places = Places::new(PlaceLimits {
            per_known: 2,
            ..LIMITS
        });
        let held: Vec<Place> = (0..3).map(|_| entered(&mut places, 1)).collect();
        assert_eq!(places.vouch(held[0], &100), Ok(None));
        assert_eq!(places.vouch(held[1], &100), Ok(None));
        assert_eq!(places.vouch(held[1], &100), Ok(None));
        let first = Ok(Some((held[0], Bound::KnownFull)));
        assert_eq!(places.vouch(held[2], &100), first);
        assert_eq!(places.len(), 2);
        places.busy(held[1], true);
        places.busy(held[2], true);
        let more = entered(&mut places, 1);
        assert_eq!(places.vouch(more, &100), Err(Bound::KnownFull));
        assert_eq!(places.len(), 3);
        assert_eq!(places.vouch(more, &101), Ok(None));
    }

    #[test]
    fn keys_together_leave_places_to_newcomers_and_the_greediest_gives_way() {
        let mut places = Places::new(PlaceLimits {
            total: 16,
            per_source: 16,
            per_known: 12,
        });
        let known: Vec<Place> = (0..15)
            .map(|number| {
                let place = entered(&mut places, 1);
                let key = if number < 12 { 100 } else { 101 };
                assert_eq!(places.vouch(place, &key), Ok(None));
                place
            })
            .collect();
        let newcomer = entered(&mut places, 2);
        let first = Ok(Some((known[0], Bound::Full)));
        assert_eq!(places.vouch(newcomer, &102), first);
        for place in known.iter().chain([&newcomer]) {
            places.busy(*place, true);
        }
        let late = entered(&mut places, 2);
        assert_eq!(places.vouch(late, &103), Err(Bound::Full));
        // It is there all the same, and whoever comes next takes its place.
        let next = places.enter(&3, false).unwrap();
        assert_eq!(next.ousted, Some((late, Bound::Full)));
    }

    #[test]
    fn what_is_worked_on_is_not_taken_away() {
        let mut places = Places::new(LIMITS);
        let held: Vec<Place> = (0..4).map(|_| entered(&mut places, 1)).collect();
        for place in &held {
            places.busy(*place, true);
        }
        assert_eq!(places.enter(&1, false), Err(Bound::SourceFull));
        places.busy(held[2], false);
        let next = places.enter(&1, false).unwrap();
        assert_eq!(next.ousted, Some((held[2], Bound::SourceFull)));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Enter(u8, bool),
        Vouch(usize),
        Busy(usize, bool),
        Leave(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..4_u8, any::<bool>()).prop_map(|(source, known)| Step::Enter(source, known)),
            1 => (0..64_usize).prop_map(Step::Vouch),
            1 => (0..64_usize, any::<bool>()).prop_map(|(n, busy)| Step::Busy(n, busy)),
            1 => (0..64_usize).prop_map(Step::Leave),
        ]
    }

    proptest! {
        #[test]
        fn the_bounds_hold_whatever_comes(steps in prop::collection::vec(step(), 0..200)) {
            let limits = PlaceLimits { per_known: 3, ..LIMITS };
            let mut places = Places::new(limits);
            let mut all = Vec::new();
            for step in steps {
                let pick = |n: usize| all.get(n % all.len().max(1)).copied().unwrap_or(0);
                match step {
                    Step::Enter(source, known) => {
                        if let Ok(entered) = places.enter(&source, known) {
                            all.push(entered.place);
                        }
                    }
                    Step::Vouch(n) => {
                        let key = 100 + u8::from(n % 2 == 0);
                        let before = places.len();
                        let vouched = places.vouch(pick(n), &key);
                        let gone = usize::from(matches!(vouched, Ok(Some(_))));
                        prop_assert_eq!(places.len(), before - gone);
                    }
                    Step::Busy(n, busy) => places.busy(pick(n), busy),
                    Step::Leave(n) => places.leave(pick(n)),
                }
                let strangers = places.held.values().filter(|held| !held.known).count();
                prop_assert!(places.len() <= LIMITS.total);
                prop_assert_eq!(places.strangers, strangers);
                prop_assert!(strangers <= LIMITS.total - LIMITS.total / KEPT_SHARE);
                for (source, counted) in &places.sources {
                    let most = if *source < 100 { limits.per_source } else { limits.per_known };
                    prop_assert!((1..=most).contains(&counted.len()));
                    prop_assert!(counted.iter().all(|place| places.held.contains_key(place)));
                }
            }
        }
    }
}
