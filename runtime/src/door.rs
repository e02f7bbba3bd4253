//! The door of a listener: who comes in, who is put out for that, and what a connection tells about itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use viworks_common::places::{Bound, Entered, Place, PlaceLimits, Places};

/// The door of one listener. Clones share it.
#[derive(Debug)]
pub struct Door<S> {
    inside: Arc<Mutex<Inside<S>>>,
}

#[derive(Debug)]
struct Inside<S> {
    places: Places<S>,
    cuts: BTreeMap<Place, CancellationToken>,
}

/// The place of one connection; given back when it is dropped.
#[derive(Debug)]
pub struct Seat<S: Ord + Clone> {
    door: Door<S>,
    place: Place,
    cut: CancellationToken,
}

/// A connection was let in.
#[derive(Debug)]
pub struct LetIn<S: Ord + Clone> {
    /// Its place.
    pub seat: Seat<S>,
    /// At which bound another one had to go for it.
    pub ousted: Option<Bound>,
}

impl<S> Clone for Door<S> {
    fn clone(&self) -> Self {
        Self {
            inside: Arc::clone(&self.inside),
        }
    }
}

impl<S: Ord + Clone> Door<S> {
    /// Nobody is in.
    #[must_use]
    pub fn new(limits: PlaceLimits) -> Self {
        let inside = Inside {
            places: Places::new(limits),
            cuts: BTreeMap::new(),
        };
        Self {
            inside: Arc::new(Mutex::new(inside)),
        }
    }

    /// Lets somebody from `source` in, who is `known` beforehand or not.
    ///
    /// # Errors
    ///
    /// The bound that was met, when nobody could be put out.
    pub fn enter(&self, source: &S, known: bool) -> Result<LetIn<S>, Bound> {
        let mut inside = self.lock();
        let Entered { place, ousted } = inside.places.enter(source, known)?;
        if let Some((victim, _bound)) = ousted
            && let Some(cut) = inside.cuts.remove(&victim)
        {
            cut.cancel();
        }
        let cut = CancellationToken::new();
        inside.cuts.insert(place, cut.clone());
        drop(inside);
        let seat = Seat {
            door: self.clone(),
            place,
            cut,
        };
        Ok(LetIn {
            seat,
            ousted: ousted.map(|(_victim, bound)| bound),
        })
    }

    /// How many are in.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.lock().places.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inside<S>> {
        // Nothing panics while it is held.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Ord + Clone> Seat<S> {
    /// It brought what makes it known as `known`: from now on no stranger takes its place. At which bound another one
    /// had to go for that.
    ///
    /// # Errors
    ///
    /// The bound that was met, when nobody could be put out: then it is no more known than before.
    pub fn vouch(&self, known: &S) -> Result<Option<Bound>, Bound> {
        let mut inside = self.door.lock();
        let ousted = inside.places.vouch(self.place, known)?;
        if let Some((victim, _bound)) = ousted
            && let Some(cut) = inside.cuts.remove(&victim)
        {
            cut.cancel();
        }
        Ok(ousted.map(|(_victim, bound)| bound))
    }

    /// Says whether a request of it is being worked on.
    pub fn busy(&self, busy: bool) {
        self.door.lock().places.busy(self.place, busy);
    }

    /// Completes when the connection is to be closed at once.
    #[must_use]
    pub fn cut(&self) -> CancellationToken {
        self.cut.clone()
    }
}

impl<S: Ord + Clone> Drop for Seat<S> {
    fn drop(&mut self) {
        let mut inside = self.door.lock();
        inside.places.leave(self.place);
        inside.cuts.remove(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_put_out_is_told_and_gives_nothing_back_twice() {
        let door = Door::new(PlaceLimits {
            total: 4,
            per_source: 2,
            per_known: 4,
        });
        let first = door.enter(&1, false).unwrap().seat;
        let second = door.enter(&1, false).unwrap().seat;
        assert_eq!(second.vouch(&100), Ok(None));
        let third = door.enter(&1, false).unwrap().seat;
        let next = door.enter(&1, false).unwrap();
        assert_eq!(next.ousted, Some(Bound::SourceFull));
        assert!(first.cut().is_cancelled());
        assert!(!second.cut().is_cancelled() && !third.cut().is_cancelled());
        drop(first);
        assert_eq!(door.taken(), 3);
        drop((second, third, next));
        assert_eq!(door.taken(), 0);
    }
}
