//! How the keys of a server follow each other: one is staged beside those before, promoted once the gateways trust it,
//! and the one before is retired when nobody shows it any more.

use std::collections::{BTreeMap, BTreeSet};

use super::{PINS_MAX, PinSet, SpkiPin};
use crate::limits::COUNTER_MAX;
use crate::time::Timestamp;

/// Keys that were retired and are remembered; beyond that the earliest are forgotten.
pub const RETIRED_MAX: usize = 32;

/// A set of fewer leaves no way out when a key is lost; it is never offered.
pub const PINS_MIN: usize = 2;

/// What a key of the server is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyState {
    /// Gateways are to trust it; the server does not show it yet.
    Staged,
    /// The server may show it.
    Promoted,
    /// Gateways are not to trust it any more.
    Retired,
}

impl KeyState {
    /// Every state.
    pub const ALL: &[Self] = &[Self::Staged, Self::Promoted, Self::Retired];

    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Staged => "staged",
            Self::Promoted => "promoted",
            Self::Retired => "retired",
        }
    }

    /// The state with a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|state| state.name() == name)
    }
}

/// One key of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerKey {
    /// Its pin.
    pub pin: SpkiPin,
    /// What it is for.
    pub state: KeyState,
    /// The version of the first set that has it.
    pub staged_in: u64,
    /// The version of the first set that leaves it out again.
    pub retired_in: Option<u64>,
    /// Since when it is in this state; unknown for one of the configuration.
    pub since: Option<Timestamp>,
}

impl ServerKey {
    fn is_trusted(&self) -> bool {
        self.state != KeyState::Retired
    }
}

/// Why a key does not come to another state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RotationRefusal {
    /// Nobody staged it.
    #[error("this key is in no pin set: stage it first")]
    Unknown,
    /// Nobody staged it, or it was retired so long ago that nobody remembers.
    #[error(
        "this key is in no pin set, so gateways trust it by none, and there is nothing to retire"
    )]
    NothingToRetire,
    /// It was retired.
    #[error("this key was retired: stage it again first")]
    Retired,
    /// A set would have more pins than one may.
    #[error(
        "the pin set has as many pins as one may ({PINS_MAX}): retire one that no backend shows"
    )]
    TooMany,
    /// A set would have fewer pins than it takes.
    #[error(
        "a pin set has at least two pins, and this one would have one left: stage the next key first"
    )]
    TooFew,
    /// No gateway would take the set over.
    #[error(
        "the key that a backend shows is not in the set, and no gateway takes such a set over: stage that key first"
    )]
    LiveKeyMissing,
    /// Somebody would be cut off.
    #[error("gateways that do not trust this key yet would be cut off")]
    CutOff,
    /// A backend shows it.
    #[error(
        "a backend still shows this key: put the next one in its place first, and reload each backend"
    )]
    Shown,
    /// Nobody knows what a backend shows.
    #[error(
        "a backend that is there has not said which key it shows, and may show this one: ask again in half a minute; one \
         of a version before says nothing, so put this version there first"
    )]
    Unsaid,
    /// There is no higher version.
    #[error("the version of the pin set is the highest that there is")]
    VersionsUsedUp,
}

/// The keys of a server, and the version of the set that they make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    keys: BTreeMap<SpkiPin, ServerKey>,
    version: u64,
}

impl Rotation {
    /// What is stored, if it came after what is configured; otherwise the configured set, which takes the place of
    /// whatever was stored. `live` is the key that the server shows.
    #[must_use]
    pub fn of(configured: &PinSet, live: SpkiPin, stored: Vec<ServerKey>) -> Self {
        let versions = stored
            .iter()
            .map(|key| key.retired_in.unwrap_or(0).max(key.staged_in));
        let latest = versions.max();
        let keys = stored.into_iter().map(|key| (key.pin, key)).collect();
        let mut own = Self {
            keys,
            version: latest.unwrap_or(configured.version),
        };
        if latest.is_none_or(|latest| latest < configured.version) {
            own.configure(configured, live);
        }
        own
    }

    fn configure(&mut self, configured: &PinSet, live: SpkiPin) {
        self.version = configured.version;
        for key in self.keys.values_mut().filter(|key| key.is_trusted()) {
            if !configured.contains(&key.pin) {
                key.state = KeyState::Retired;
                key.retired_in = Some(configured.version);
                key.since = None;
            }
        }
        for pin in &configured.pins {
            let state = if *pin == live {
                KeyState::Promoted
            } else {
                KeyState::Staged
            };
            let known = self.keys.get(pin).filter(|key| key.is_trusted());
            if known.is_none() {
                let key = ServerKey {
                    pin: *pin,
                    state,
                    staged_in: configured.version,
                    retired_in: None,
                    since: None,
                };
                self.keys.insert(*pin, key);
            }
        }
        // The same keys under another version: whoever reads them is to find that version as well.
        let made = |key: &ServerKey| key.retired_in.unwrap_or(0).max(key.staged_in);
        let is_told = self.keys.values().any(|key| made(key) == self.version);
        if !is_told && let Some(key) = self.keys.get_mut(&live) {
            key.staged_in = self.version;
        }
    }

    /// Whether somebody took a step. Before the first one a server may show each key of the set: by whom it is shown,
    /// it was put in place.
    #[must_use]
    pub fn is_stepped(&self) -> bool {
        self.keys.values().any(|key| key.since.is_some())
    }

    /// Before the first step, the keys that backends show count as promoted.
    pub fn put_in_place(&mut self, shown: &BTreeSet<SpkiPin>) {
        if self.is_stepped() {
            return;
        }
        let keys = self.keys.values_mut();
        for key in keys.filter(|key| key.is_trusted() && shown.contains(&key.pin)) {
            key.state = KeyState::Promoted;
        }
    }

    /// The set that gateways are to trust.
    #[must_use]
    pub fn set(&self) -> PinSet {
        let trusted = self.keys.values().filter(|key| key.is_trusted());
        PinSet {
            version: self.version,
            pins: trusted.map(|key| key.pin).collect(),
        }
    }

    /// Every key that is known, by its pin.
    pub fn keys(&self) -> impl Iterator<Item = &ServerKey> {
        self.keys.values()
    }

    /// The one with a pin.
    #[must_use]
    pub fn key(&self, pin: &SpkiPin) -> Option<&ServerKey> {
        self.keys.get(pin)
    }

    /// Whether the server may show a key.
    #[must_use]
    pub fn may_show(&self, pin: &SpkiPin) -> bool {
        let key = self.keys.get(pin);
        key.is_some_and(|key| key.state == KeyState::Promoted)
    }

    /// From which version on a gateway trusts a key, as far as this server has made versions; none for one that no
    /// gateway is to trust.
    #[must_use]
    pub fn trusted_from(&self, pin: &SpkiPin) -> Option<u64> {
        let key = self.keys.get(pin).filter(|key| key.is_trusted());
        key.map(|key| key.staged_in)
    }

    fn next_version(&self) -> Result<u64, RotationRefusal> {
        let next = self.version.saturating_add(1);
        if next > COUNTER_MAX {
            return Err(RotationRefusal::VersionsUsedUp);
        }
        Ok(next)
    }

    /// Puts a key beside those that are trusted, while `live` is the one that the server shows. False when it is there.
    ///
    /// # Errors
    /// The first rule that speaks against it; nothing changes then.
    pub fn stage(
        &mut self,
        pin: SpkiPin,
        live: SpkiPin,
        now: Timestamp,
    ) -> Result<bool, RotationRefusal> {
        if self.trusted_from(&pin).is_some() {
            return Ok(false);
        }
        let trusted = self.set();
        if trusted.pins.len() >= PINS_MAX {
            return Err(RotationRefusal::TooMany);
        }
        if pin != live && !trusted.contains(&live) {
            return Err(RotationRefusal::LiveKeyMissing);
        }
        if trusted.pins.is_empty() {
            return Err(RotationRefusal::TooFew);
        }
        self.version = self.next_version()?;
        let key = ServerKey {
            pin,
            state: KeyState::Staged,
            staged_in: self.version,
            retired_in: None,
            since: Some(now),
        };
        self.keys.insert(pin, key);
        Ok(true)
    }

    /// Says that the server may show a key, which `missing` gateways do not trust; that they are cut off is accepted
    /// where it is `forced`. False when it could be shown before.
    ///
    /// # Errors
    /// The first rule that speaks against it; nothing changes then.
    pub fn promote(
        &mut self,
        pin: &SpkiPin,
        missing: u64,
        forced: bool,
        now: Timestamp,
    ) -> Result<bool, RotationRefusal> {
        let key = self.keys.get_mut(pin).ok_or(RotationRefusal::Unknown)?;
        match key.state {
            KeyState::Retired => Err(RotationRefusal::Retired),
            KeyState::Promoted => Ok(false),
            KeyState::Staged if missing > 0 && !forced => Err(RotationRefusal::CutOff),
            KeyState::Staged => {
                key.state = KeyState::Promoted;
                key.since = Some(now);
                Ok(true)
            }
        }
    }

    /// Leaves a key out of the next set, while the backends show the keys `shown`. False when it was left out before.
    ///
    /// # Errors
    /// The first rule that speaks against it; nothing changes then.
    pub fn retire(
        &mut self,
        pin: &SpkiPin,
        shown: &BTreeSet<SpkiPin>,
        now: Timestamp,
    ) -> Result<bool, RotationRefusal> {
        let known = self.keys.get(pin);
        let known = known.ok_or(RotationRefusal::NothingToRetire)?;
        if !known.is_trusted() {
            return Ok(false);
        }
        if shown.contains(pin) {
            return Err(RotationRefusal::Shown);
        }
        let trusted = self.set().pins;
        if trusted.len() <= PINS_MIN {
            return Err(RotationRefusal::TooFew);
        }
        if !shown.is_subset(&trusted) {
            return Err(RotationRefusal::LiveKeyMissing);
        }
        let version = self.next_version()?;
        if let Some(key) = self.keys.get_mut(pin) {
            key.state = KeyState::Retired;
            key.retired_in = Some(version);
            key.since = Some(now);
            self.version = version;
        }
        Ok(true)
    }

    /// Forgets the keys that were retired first, beyond as many as are remembered; answers which.
    pub fn forget(&mut self) -> Vec<SpkiPin> {
        let retired = self.keys.values().filter(|key| !key.is_trusted());
        let mut retired: Vec<_> = retired.map(|key| (key.retired_in, key.pin)).collect();
        retired.sort_unstable();
        let excess = retired.len().saturating_sub(RETIRED_MAX);
        let forgotten = retired.into_iter().take(excess).map(|(_version, pin)| pin);
        let forgotten: Vec<SpkiPin> = forgotten.collect();
        for pin in &forgotten {
            self.keys.remove(pin);
        }
        forgotten
    }
}

/// Which version a gateway has confirmed by becoming one with the set `given`, where these keys are stored: that of the
/// set, if it has every key that gateways of this version are taken to trust. Otherwise zero, as for one that has said
/// nothing so far: while nothing is stored, as before there are two pins, another set may yet be stored under its
/// version.
#[must_use]
pub fn confirmed_with(given: &PinSet, stored: &[ServerKey]) -> u64 {
    let made = |key: &ServerKey| key.retired_in.unwrap_or(0).max(key.staged_in);
    let is_made = stored.iter().any(|key| made(key) >= given.version);
    let mut promised = stored
        .iter()
        .filter(|key| key.is_trusted() && key.staged_in <= given.version);
    if is_made && promised.all(|key| given.contains(&key.pin)) {
        given.version
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix_micros(1);

    fn pin(n: u8) -> SpkiPin {
        SpkiPin::from_digest([n; 32])
    }

    fn pins(numbers: &[u8]) -> BTreeSet<SpkiPin> {
        numbers.iter().copied().map(pin).collect()
    }

    fn configured(version: u64, numbers: &[u8]) -> PinSet {
        PinSet {
            version,
            pins: pins(numbers),
        }
    }

    fn stored(rotation: &Rotation) -> Vec<ServerKey> {
        rotation.keys().copied().collect()
    }

    #[test]
    fn a_key_is_staged_promoted_and_the_one_before_is_retired() {
        let first = configured(1, &[1, 2]);
        let mut own = Rotation::of(&first, pin(1), Vec::new());
        assert_eq!(own.set(), first);
        assert!(own.may_show(&pin(1)) && !own.may_show(&pin(2)));
        assert_eq!(own.stage(pin(3), pin(1), NOW), Ok(true));
        assert_eq!(own.stage(pin(3), pin(1), NOW), Ok(false));
        assert_eq!(own.set(), configured(2, &[1, 2, 3]));
        let cut_off = own.promote(&pin(3), 1, false, NOW);
        assert_eq!(cut_off, Err(RotationRefusal::CutOff));
        assert!(!own.may_show(&pin(3)));
        assert_eq!(own.promote(&pin(3), 0, false, NOW), Ok(true));
        assert_eq!(own.promote(&pin(3), 0, false, NOW), Ok(false));
        assert!(own.may_show(&pin(3)));
        let shown = own.retire(&pin(1), &pins(&[1]), NOW);
        assert_eq!(shown, Err(RotationRefusal::Shown));
        assert_eq!(own.retire(&pin(1), &pins(&[3]), NOW), Ok(true));
        assert_eq!(own.retire(&pin(1), &pins(&[3]), NOW), Ok(false));
        assert_eq!(own.set(), configured(3, &[2, 3]));
        let again = Rotation::of(&first, pin(3), stored(&own));
        assert_eq!(again, own, "what is stored came after what is configured");
    }

    #[test]
    fn what_breaks_a_rule_changes_nothing() {
        let mut own = Rotation::of(&configured(1, &[1, 2]), pin(1), Vec::new());
        let before = own.clone();
        let unknown = Err(RotationRefusal::Unknown);
        assert_eq!(own.promote(&pin(9), 0, true, NOW), unknown);
        let nothing = Err(RotationRefusal::NothingToRetire);
        assert_eq!(own.retire(&pin(9), &pins(&[1]), NOW), nothing);
        let few = own.retire(&pin(2), &pins(&[1]), NOW);
        assert_eq!(few, Err(RotationRefusal::TooFew));
        // The server shows a key that nobody is to trust: the way out begins with that one.
        let missing = Err(RotationRefusal::LiveKeyMissing);
        assert_eq!(own.stage(pin(4), pin(9), NOW), missing);
        assert_eq!(own, before);
        assert_eq!(own.stage(pin(9), pin(9), NOW), Ok(true));
        assert_eq!(own.retire(&pin(1), &pins(&[8]), NOW), missing);
        for n in 10..15 {
            assert_eq!(own.stage(pin(n), pin(9), NOW), Ok(true));
        }
        let many = own.stage(pin(15), pin(9), NOW);
        assert_eq!(many, Err(RotationRefusal::TooMany));
        let mut last = Rotation::of(&configured(COUNTER_MAX, &[1, 2]), pin(1), Vec::new());
        let used_up = last.stage(pin(3), pin(1), NOW);
        assert_eq!(used_up, Err(RotationRefusal::VersionsUsedUp));
    }

    #[test]
    fn a_configured_set_of_a_higher_version_takes_the_place_of_what_is_stored() {
        let mut own = Rotation::of(&configured(1, &[1, 2]), pin(1), Vec::new());
        own.stage(pin(3), pin(1), NOW).unwrap();
        let kept = stored(&own);
        let same = Rotation::of(&configured(2, &[7, 8]), pin(7), kept.clone());
        assert_eq!(same.set(), configured(2, &[1, 2, 3]));
        let higher = Rotation::of(&configured(5, &[2, 7]), pin(7), kept);
        assert_eq!(higher.set(), configured(5, &[2, 7]));
        assert_eq!(higher.trusted_from(&pin(2)), Some(1));
        assert_eq!(higher.trusted_from(&pin(7)), Some(5));
        assert_eq!(higher.trusted_from(&pin(3)), None);
    }

    #[test]
    fn what_is_kept_of_a_configured_set_has_its_version() {
        for (version, numbers) in [(1, [1, 2]), (5, [1, 2]), (6, [1, 3])] {
            let kept = stored(&Rotation::of(&configured(1, &[1, 2]), pin(1), Vec::new()));
            let higher = configured(version, &numbers);
            let own = Rotation::of(&higher, pin(1), kept);
            let other = Rotation::of(&configured(1, &[1, 2]), pin(1), stored(&own));
            assert_eq!(other.set(), higher);
            assert_eq!(other, own);
        }
    }

    #[test]
    fn before_the_first_step_a_key_that_is_shown_was_put_in_place() {
        let mut own = Rotation::of(&configured(1, &[1, 2]), pin(1), Vec::new());
        assert!(!own.is_stepped() && !own.may_show(&pin(2)));
        own.put_in_place(&pins(&[2, 9]));
        assert!(own.may_show(&pin(1)) && own.may_show(&pin(2)));
        assert_eq!(own.key(&pin(9)), None);
        own.stage(pin(3), pin(2), NOW).unwrap();
        assert!(own.is_stepped());
        own.put_in_place(&pins(&[3]));
        assert!(
            !own.may_show(&pin(3)),
            "from the first step on it takes one"
        );
    }

    #[test]
    fn whoever_is_given_a_set_has_confirmed_its_version_where_that_is_what_is_stored() {
        let mut own = Rotation::of(&configured(1, &[1, 2]), pin(1), Vec::new());
        let first = configured(1, &[1, 2]);
        assert_eq!(confirmed_with(&first, &[]), 0, "nothing is stored");
        assert_eq!(confirmed_with(&first, &stored(&own)), 1);
        // As a backend gives it that has no next key, under the version that another set has by now.
        let alone = configured(1, &[1]);
        assert_eq!(confirmed_with(&alone, &stored(&own)), 0);
        assert_eq!(
            confirmed_with(&configured(2, &[1, 2]), &stored(&own)),
            0,
            "no set was made under it"
        );
        own.stage(pin(3), pin(1), NOW).unwrap();
        assert_eq!(confirmed_with(&first, &stored(&own)), 1, "the older set");
        assert_eq!(confirmed_with(&configured(2, &[1, 2]), &stored(&own)), 0);
        // With the key beside it that the server shows.
        let second = configured(2, &[1, 2, 3, 9]);
        assert_eq!(confirmed_with(&second, &stored(&own)), 2);
        own.promote(&pin(3), 0, false, NOW).unwrap();
        own.retire(&pin(1), &pins(&[3]), NOW).unwrap();
        let third = configured(3, &[2, 3]);
        assert_eq!(confirmed_with(&third, &stored(&own)), 3);
        // What was retired since is asked of nobody.
        assert_eq!(confirmed_with(&configured(2, &[2, 3]), &stored(&own)), 2);
        // Who has not heard of the key that was staged again is not taken to trust it.
        own.stage(pin(1), pin(3), NOW).unwrap();
        assert_eq!(own.trusted_from(&pin(1)), Some(4));
        assert_eq!(confirmed_with(&third, &stored(&own)), 3);
        assert_eq!(confirmed_with(&configured(4, &[2, 3]), &stored(&own)), 0);
    }

    #[test]
    fn so_many_retired_keys_are_remembered() {
        let mut own = Rotation::of(&configured(1, &[1, 2]), pin(1), Vec::new());
        for n in 100..=140 {
            own.stage(pin(n), pin(1), NOW).unwrap();
            own.retire(&pin(n), &pins(&[1]), NOW).unwrap();
        }
        let forgotten = own.forget();
        assert_eq!(forgotten.len(), 41 - RETIRED_MAX);
        assert_eq!(forgotten.first(), Some(&pin(100)));
        assert_eq!(own.key(&pin(100)), None);
        assert!(own.key(&pin(140)).is_some());
        let again = Rotation::of(&configured(1, &[1, 2]), pin(1), stored(&own));
        assert_eq!(again.set(), own.set());
    }

    /// A gateway that follows every set it is offered, and dials again now and then.
    struct Follower {
        set: PinSet,
        previous: Option<PinSet>,
    }

    impl Follower {
        fn trusts(&self, key: &SpkiPin) -> bool {
            let before = self.previous.as_ref();
            self.set.contains(key) || before.is_some_and(|set| set.contains(key))
        }
    }

    proptest! {
        /// Whatever an operator asks for, a gateway that is told of each set before the next step is never cut off, and
        /// the set has at least two pins, the shown key among them.
        #[test]
        fn whoever_follows_is_never_cut_off(steps in prop::collection::vec((0_u8..5, 1_u8..12), 0..60)) {
            let first = configured(1, &[1, 2]);
            let mut live = pin(1);
            let mut own = Rotation::of(&first, live, Vec::new());
            let mut gateway = Follower { set: configured(0, &[1, 2]), previous: None };
            for (step, n) in steps {
                let before = own.set();
                match step {
                    0 => {
                        let _refused = own.stage(pin(n), live, NOW).is_err();
                    }
                    1 => {
                        let from = own.trusted_from(&pin(n));
                        let trusts = from.is_some_and(|from| gateway.set.version >= from);
                        let missing = u64::from(!trusts);
                        let _refused = own.promote(&pin(n), missing, false, NOW).is_err();
                    }
                    2 => {
                        let shown = BTreeSet::from([live]);
                        let _refused = own.retire(&pin(n), &shown, NOW).is_err();
                    }
                    3 if own.may_show(&pin(n)) => live = pin(n),
                    _ => {
                        prop_assert!(gateway.trusts(&live), "{live} of {:?}", gateway.set);
                        gateway.previous = None;
                    }
                }
                let after = own.set();
                prop_assert!(after.pins.len() >= PINS_MIN && after.pins.len() <= PINS_MAX);
                prop_assert!(after.contains(&live));
                prop_assert_eq!(after.version > before.version, after.pins != before.pins);
                // The next session, or the open one, brings it.
                if gateway.set.accepts(&after, &live).is_ok() {
                    let proved = gateway.previous.take().unwrap_or(gateway.set);
                    gateway = Follower { set: after, previous: Some(proved) };
                }
                prop_assert!(gateway.trusts(&live));
                own.forget();
                own = Rotation::of(&first, live, stored(&own));
            }
        }
    }
}
