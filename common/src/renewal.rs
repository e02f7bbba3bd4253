//! When a gateway asks for another certificate, and which of those that it has it shows: decided without a clock, a
//! file or a socket.

use std::time::Duration;

use crate::limits::RETRY_AFTER_MAX;
use crate::session::backoff::{between, doubled};
use crate::time::{Monotonic, Timestamp};

/// The first pause behind a request; it doubles with each that leads to nothing. An answer that was lost is asked for
/// again after it.
const PAUSE: Duration = Duration::from_secs(120);

/// Where doubling ends.
const PAUSE_MAX: Duration = Duration::from_secs(6 * 3_600);

/// Requests that count as made, at the least, when the other end does not take the certificate that it issued: another
/// one will hardly fare better.
const TRIES_OF_A_REFUSED_ONE: u32 = 6;

/// No backend keeps a gateway from asking for longer, by what it says in a session: there it is the backend's own word.
const TOLD_MAX: Duration = Duration::from_secs(24 * 3_600);

/// The part of what is left of a certificate's life beyond which no pause goes, so that there is time for more tries.
const LEFT_PART: u32 = 4;

/// What no pause goes below because of that.
const PAUSE_MIN: Duration = Duration::from_secs(60);

/// How long after it was issued a certificate waits, at the least and at the most, for a moment at which no command
/// runs.
const QUIET_SPREAD: Duration = Duration::from_secs(10);
const QUIET_MAX: Duration = Duration::from_secs(600);

/// The part of a certificate's life in whose course gateways ask that were issued together.
const SPREAD_PART: u32 = 30;

/// How long before its end a certificate counts as ended at the door: the clocks of both ends, and of a proxy that
/// judges it before them, may be that far apart.
const LAPSES_BEFORE: Duration = Duration::from_secs(600);

/// The first pause behind a request at the door that came to nothing, and where doubling ends: while nobody is heard
/// there, and while somebody is who says no.
const UNHEARD_PAUSE: Duration = Duration::from_secs(30);
const UNHEARD_PAUSE_MAX: Duration = Duration::from_secs(900);
const REFUSED_PAUSE: Duration = Duration::from_secs(120);
const REFUSED_PAUSE_MAX: Duration = PAUSE_MAX;

/// The first and the last moment of a certificate's life.
pub type Life = (Timestamp, Timestamp);

/// When a certificate is asked for anew: two thirds into its life, or up to a thirtieth of it later, by `random`, which
/// is uniform over all of `u64`.
fn due((not_before, not_after): Life, random: u64) -> Timestamp {
    let whole = not_after.saturating_since(not_before);
    let spread = between(Duration::ZERO, whole / SPREAD_PART, random);
    not_before.saturating_add(whole - whole / 3 + spread)
}

/// The memory of a gateway that renews its certificate: how often it asked in vain, and when it may again. It goes by
/// two clocks. The backend's wall clock says whether a certificate is old enough, because by that it was issued and
/// will be judged; the pauses are by the gateway's monotonic clock, so that no wall clock makes it ask again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    tries: u32,
    /// The end of the pause of its own.
    earliest: Monotonic,
    /// The end of the pause that a backend told.
    told: Monotonic,
    random: u64,
}

/// No more than a part of what is `left` of a life. One that has ended already comes of a clock that is wrong, or of a
/// backend that issues them for very short: nothing is to be hurried for then.
fn within(pause: Duration, left: Duration) -> Duration {
    if left.is_zero() {
        return pause;
    }
    pause.min((left / LEFT_PART).max(PAUSE_MIN))
}

impl Plan {
    /// Nothing was asked yet; `random` places this gateway among those that were issued together.
    #[must_use]
    pub const fn new(random: u64) -> Self {
        Self {
            tries: 0,
            earliest: Monotonic::ORIGIN,
            told: Monotonic::ORIGIN,
            random,
        }
    }

    /// When a certificate of this life is asked for anew, if nothing is in the way.
    #[must_use]
    pub fn due(&self, life: Life) -> Timestamp {
        due(life, self.random)
    }

    /// How long it is until a pause that was made is over; none when it is.
    #[must_use]
    pub fn pause(&self, now: Monotonic) -> Option<Duration> {
        let left = self.earliest.max(self.told).saturating_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// Whether to ask at `now`, when the backend's wall clock shows `wall`.
    #[must_use]
    pub fn may_ask(&self, life: Life, wall: Timestamp, now: Monotonic) -> bool {
        wall >= self.due(life) && now >= self.earliest.max(self.told)
    }

    /// Notes that another session begins: what one backend told need not be what another one says.
    pub const fn begin(&mut self) {
        self.told = Monotonic::ORIGIN;
    }

    /// Notes a request, while so much is `left` of the life in use.
    pub fn asked(&mut self, left: Duration, now: Monotonic, random: u64) {
        self.tries = self.tries.saturating_add(1);
        self.rest(left, now, random);
    }

    /// Notes that the backend said no, and when to come again, while so much is `left` of the life in use.
    pub fn refused(&mut self, retry_after: Duration, left: Duration, now: Monotonic) {
        let told = now.saturating_add(within(retry_after.min(TOLD_MAX), left));
        self.told = self.told.max(told);
    }

    /// Notes that a certificate was issued, and not taken where it was shown, while so much is `left` of the life in
    /// use.
    pub fn gave_up(&mut self, left: Duration, now: Monotonic, random: u64) {
        self.tries = self.tries.max(TRIES_OF_A_REFUSED_ONE);
        self.rest(left, now, random);
    }

    /// Notes that a session was confirmed with a certificate of this life. One that is to be asked for anew already
    /// comes of a clock that is wrong, or of a backend that issues them for very short: the pauses go on growing.
    pub fn proved(&mut self, life: Life, wall: Timestamp, random: u64) {
        self.random = random;
        if wall < self.due(life) {
            self.tries = 0;
        }
    }

    fn rest(&mut self, left: Duration, now: Monotonic, random: u64) {
        let ceiling = doubled(PAUSE, self.tries.saturating_sub(1), PAUSE_MAX);
        let pause = within(between(ceiling / 2, ceiling, random), left);
        self.earliest = self.earliest.max(now.saturating_add(pause));
    }
}

/// When a certificate that was just issued is tried by a session of its own: from the first moment on where no command
/// runs, at the second in any case.
#[must_use]
pub fn trial(
    not_after: Timestamp,
    wall: Timestamp,
    now: Monotonic,
    random: u64,
) -> (Monotonic, Monotonic) {
    let left = not_after.saturating_since(wall);
    let spread = between(Duration::ZERO, QUIET_SPREAD.min(left / 10), random);
    let latest = QUIET_MAX.min(left / 4).max(spread);
    (now.saturating_add(spread), now.saturating_add(latest))
}

/// Whether a certificate that ends then has ended, as far as the door goes: a gateway whose certificate is good renews
/// it over its session.
#[must_use]
pub fn has_lapsed(not_after: Timestamp, now: Timestamp) -> bool {
    now.saturating_add(LAPSES_BEFORE) >= not_after
}

/// What came of a request at the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtDoor {
    /// Nobody is heard there.
    Unheard,
    /// Somebody says no, and perhaps when to come again. Nobody signs a refusal.
    Refused(Option<Duration>),
}

/// How long a gateway waits before it asks at the door again, the `vain`-th time in a row that nothing came of it;
/// `random` is uniform over all of `u64`.
#[must_use]
pub fn pause_at_door(came: AtDoor, vain: u32, random: u64) -> Duration {
    let (first, longest, told) = match came {
        AtDoor::Unheard => (UNHEARD_PAUSE, UNHEARD_PAUSE_MAX, Duration::ZERO),
        AtDoor::Refused(told) => (
            REFUSED_PAUSE,
            REFUSED_PAUSE_MAX,
            told.unwrap_or_default().min(RETRY_AFTER_MAX),
        ),
    };
    let ceiling = doubled(first, vain.saturating_sub(1), longest);
    between(ceiling / 2, ceiling, random).max(told)
}

/// A certificate that a gateway could show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// SHA-256 of it.
    pub fingerprint: [u8; 32],
    /// Its life.
    pub life: Life,
}

/// What was said against a certificate that was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Against {
    /// It is not taken, for whatever reason.
    Refused,
    /// A later one of the same gateway has its place.
    Retired,
}

/// The certificates that were refused where they were shown, the one of longest ago first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RefusedOnes(Vec<[u8; 32]>);

impl RefusedOnes {
    /// Notes one.
    pub fn note(&mut self, fingerprint: [u8; 32]) {
        self.forget(&fingerprint);
        self.0.push(fingerprint);
    }

    /// Notes one that a later one has the place of. Where the latest of these is such a one, it is tried next, whatever
    /// was said of it before: that was somebody else, or another time. Nobody signed either, so this one is refused and
    /// not more: it has its turn again, and the latest one can call for none that is later.
    pub fn retired(&mut self, fingerprint: [u8; 32], candidates: &[Candidate]) {
        self.note(fingerprint);
        let own = candidates.iter().find(|it| it.fingerprint == fingerprint);
        let latest = candidates.iter().max_by_key(|it| it.life);
        if let Some((own, latest)) = own.zip(latest)
            && own.life < latest.life
        {
            self.forget(&latest.fingerprint);
        }
    }

    /// Notes that one was taken.
    pub fn forget(&mut self, fingerprint: &[u8; 32]) {
        self.0.retain(|known| known != fingerprint);
    }

    /// Forgets those that are no longer there.
    pub fn keep(&mut self, candidates: &[Candidate]) {
        let there = |known: &[u8; 32]| candidates.iter().any(|it| it.fingerprint == *known);
        self.0.retain(there);
    }

    /// Whether this one was refused.
    #[must_use]
    pub fn has(&self, fingerprint: &[u8; 32]) -> bool {
        self.0.contains(fingerprint)
    }
}

/// The place of the certificate to show: the one that was issued last of those that were not refused, and of refused
/// ones the one that was not tried for longest. None without any.
#[must_use]
pub fn choose(candidates: &[Candidate], refused: &RefusedOnes) -> Option<usize> {
    let places = || candidates.iter().enumerate();
    let fresh = places().filter(|(_, one)| !refused.has(&one.fingerprint));
    let latest = fresh.max_by_key(|(place, one)| (one.life, std::cmp::Reverse(*place)));
    let longest_ago = || {
        refused.0.iter().find_map(|known| {
            let found = places().find(|(_, one)| one.fingerprint == *known);
            found.map(|(place, _)| place)
        })
    };
    latest.map(|(place, _)| place).or_else(longest_ago)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3_600);

    fn at(days: u32) -> Timestamp {
        Timestamp::from_unix_micros(0).saturating_add(DAY * days)
    }

    fn mono(span: Duration) -> Monotonic {
        Monotonic::from_duration(span)
    }

    fn one(number: u8, from: u32, to: u32) -> Candidate {
        Candidate {
            fingerprint: [number; 32],
            life: (at(from), at(to)),
        }
    }

    #[test]
    fn a_certificate_of_ninety_days_is_asked_for_from_the_sixtieth_on_and_within_three_days() {
        let life = (at(0), at(90));
        assert_eq!(due(life, 0), at(60));
        let latest = due(life, u64::MAX);
        assert!(latest > at(62) && latest <= at(63), "{latest}");
    }

    #[test]
    fn pauses_double_and_end_at_six_hours() {
        let mut plan = Plan::new(0);
        let mut now = Monotonic::ORIGIN;
        let pauses: Vec<u64> = (0..9)
            .map(|_| {
                plan.asked(DAY * 30, now, u64::MAX);
                let pause = plan.pause(now).unwrap();
                now = now.saturating_add(pause);
                pause.as_secs().div_ceil(60)
            })
            .collect();
        assert_eq!(pauses, [2, 4, 8, 16, 32, 64, 128, 256, 360]);
    }

    #[test]
    fn what_the_backend_says_lengthens_a_pause_up_to_a_day() {
        let (mut plan, now) = (Plan::new(0), Monotonic::ORIGIN);
        plan.asked(DAY * 30, now, 0);
        plan.refused(Duration::ZERO, DAY * 30, now);
        assert_eq!(plan.pause(now), Some(Duration::from_secs(60)));
        plan.refused(DAY * 400, DAY * 30, now);
        assert_eq!(plan.pause(now), Some(DAY));
        // Another session, perhaps with another backend; the pause of its own stays.
        plan.begin();
        assert_eq!(plan.pause(now), Some(Duration::from_secs(60)));
    }

    #[test]
    fn no_pause_is_longer_than_a_quarter_of_what_is_left_nor_shorter_than_a_minute() {
        let (hour, now) = (Duration::from_secs(3_600), Monotonic::ORIGIN);
        let pauses = |left: Duration| {
            let (mut own, mut told) = (Plan::new(0), Plan::new(0));
            own.gave_up(left, now, u64::MAX);
            told.refused(DAY, left, now);
            (own.pause(now).unwrap(), told.pause(now).unwrap())
        };
        assert_eq!(pauses(hour), (hour / 4, hour / 4));
        let minute = Duration::from_secs(60);
        assert_eq!(pauses(minute), (minute, minute));
        let (own, told) = pauses(Duration::ZERO);
        assert!(own > hour && told == DAY, "{own:?}");
    }

    #[test]
    fn the_latest_is_shown_and_an_earlier_one_when_it_was_refused() {
        let mut refused = RefusedOnes::default();
        let all = [one(1, 0, 90), one(2, 60, 150), one(3, 61, 70)];
        // Issued later counts, not what lives longer: an operator may have shortened the lives.
        assert_eq!(choose(&all, &refused), Some(2));
        refused.note([3; 32]);
        assert_eq!(choose(&all, &refused), Some(1));
        refused.note([2; 32]);
        assert_eq!(choose(&all, &refused), Some(0));
        refused.note([1; 32]);
        assert_eq!(choose(&all, &refused), Some(2), "tried longest ago");
        refused.note([3; 32]);
        assert_eq!(choose(&all, &refused), Some(1));
        refused.forget(&[1; 32]);
        assert_eq!(choose(&all, &refused), Some(0));
        refused.keep(&all[..1]);
        assert_eq!(choose(&all, &refused), Some(2));
        assert_eq!(choose(&[], &refused), None);
        // The same one from two places is the first of them.
        assert_eq!(choose(&[one(1, 0, 9), one(1, 0, 9)], &refused), Some(0));
    }

    /// Attempts that each follow the one before at once, of a gateway all of whose certificates are refused, as
    /// `against` has it: up to the one behind which there is a pause.
    fn attempts(
        all: &[Candidate],
        refused: &mut RefusedOnes,
        against: impl Fn(u8) -> Against,
    ) -> Vec<u8> {
        let mut tried = Vec::new();
        loop {
            let shown = all[choose(all, refused).unwrap()].fingerprint;
            tried.push(shown[0]);
            assert!(tried.len() < 10, "there is no end: {tried:?}");
            match against(shown[0]) {
                Against::Refused => refused.note(shown),
                Against::Retired => refused.retired(shown, all),
            }
            let next = &all[choose(all, refused).unwrap()];
            if refused.has(&next.fingerprint) {
                return tried;
            }
        }
    }

    #[test]
    fn whoever_is_told_of_a_later_certificate_tries_that_and_the_earlier_ones_in_turn() {
        // One that renewed twice, at a backend that does not know the authority of the latest.
        let all = [one(1, 0, 90), one(2, 60, 150), one(3, 120, 210)];
        let against = |shown: u8| match shown {
            3 => Against::Refused,
            _ => Against::Retired,
        };
        let mut refused = RefusedOnes::default();
        assert_eq!(attempts(&all, &mut refused, against), [3_u8, 2, 3, 1, 3]);
        for round in [[2_u8, 3], [1, 3], [2, 3], [1, 3]] {
            assert_eq!(attempts(&all, &mut refused, against), round);
        }
        // A lie about every one of them shuts none of them out.
        let mut refused = RefusedOnes::default();
        let mut tried: Vec<u8> = Vec::new();
        for _round in 0..4 {
            tried.extend(attempts(&all, &mut refused, |_shown| Against::Retired));
        }
        for number in [1, 2, 3] {
            let turns = tried.iter().filter(|it| **it == number).count();
            assert!(turns >= 2, "{number}: {tried:?}");
        }
        // One alone has no later one, and one that came from two places is not later than itself.
        let twice = [one(1, 0, 90), one(1, 0, 90)];
        let mut refused = RefusedOnes::default();
        let tried = attempts(&twice, &mut refused, |_shown| Against::Retired);
        assert_eq!(tried, [1_u8]);
    }

    #[test]
    fn a_certificate_is_tried_soon_and_long_before_its_end() {
        let now = mono(DAY);
        let (from, latest) = trial(at(90), at(0), now, u64::MAX);
        assert!(from.saturating_since(now) <= QUIET_SPREAD && from > now);
        assert_eq!(latest.saturating_since(now), QUIET_MAX);
        let minute = at(0).saturating_add(Duration::from_secs(60));
        let (from, latest) = trial(minute, at(0), now, u64::MAX);
        assert!(from.saturating_since(now) <= Duration::from_secs(6));
        assert_eq!(latest.saturating_since(now), Duration::from_secs(15));
        assert_eq!(trial(at(0), at(1), now, u64::MAX), (now, now));
    }

    #[test]
    fn a_certificate_has_lapsed_from_ten_minutes_before_its_end_on() {
        let end = at(90);
        for (before, lapsed) in [(601, false), (600, true), (1, true), (0, true)] {
            let now = end.saturating_sub(Duration::from_secs(before));
            assert_eq!(has_lapsed(end, now), lapsed, "{before}");
        }
        assert!(has_lapsed(end, at(455)));
    }

    #[test]
    fn nobody_knocks_at_the_door_without_a_pause() {
        let minutes = |came, vain| pause_at_door(came, vain, u64::MAX).as_secs().div_ceil(60);
        let told = |seconds| AtDoor::Refused(Some(Duration::from_secs(seconds)));
        let unheard: Vec<u64> = (1..8).map(|vain| minutes(AtDoor::Unheard, vain)).collect();
        assert_eq!(unheard, [1, 1, 2, 4, 8, 15, 15]);
        let refused = (1..10).map(|vain| minutes(AtDoor::Refused(None), vain));
        let refused: Vec<u64> = refused.collect();
        assert_eq!(refused, [2, 4, 8, 16, 32, 64, 128, 256, 360]);
        assert_eq!(minutes(told(600), 1), 10);
        // What nobody signed lengthens a pause no more than that of an upgrade does.
        for told_for in [3_600, 24 * 3_600, u64::MAX] {
            assert_eq!(minutes(told(told_for), 1), 15, "{told_for}");
        }
        assert_eq!(minutes(told(3_600), 9), 360, "it does not shorten one");
    }

    #[test]
    fn in_a_year_of_certificates_of_an_hour_none_ends_before_the_next_one_is_there() {
        const HOUR: Duration = Duration::from_secs(3_600);
        // As a backend issues them: they begin an eighth of their life in the past.
        let issued = |wall: Timestamp| (wall.saturating_sub(HOUR / 8), wall.saturating_add(HOUR));
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut drawn = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _gateway in 0..50 {
            let (mut wall, mut now) = (at(0), mono(DAY));
            let (mut plan, mut life) = (Plan::new(drawn()), issued(wall));
            let (mut renewals, mut lost) = (0, 0);
            while wall < at(365) {
                let due = plan.due(life).saturating_since(wall);
                let wait = due.max(plan.pause(now).unwrap_or_default());
                (wall, now) = (wall.saturating_add(wait), now.saturating_add(wait));
                assert!(wall < life.1, "{wall} is behind {}", life.1);
                assert!(plan.may_ask(life, wall, now));
                plan.asked(life.1.saturating_since(wall), now, drawn());
                // Every fourth answer is lost, and two of them in a row at the most.
                if lost < 2 && drawn().is_multiple_of(4) {
                    lost += 1;
                    continue;
                }
                lost = 0;
                life = issued(wall);
                plan.proved(life, wall, drawn());
                renewals += 1;
            }
            assert!(renewals > 10_000, "{renewals}");
        }
    }

    /// What happens to a gateway between two looks.
    #[derive(Debug, Clone)]
    enum Happened {
        /// The backend's wall clock shows another day, for whatever reason.
        Wall(u32),
        /// So many seconds went by.
        Passed(u32),
        /// The answer was no.
        Refused(u32),
        /// The certificate was taken, and lives from that day of the wall clock for so many.
        Proved(u32),
        /// It was not taken.
        GaveUp,
        /// Another session began.
        Began,
    }

    fn happened() -> impl Strategy<Value = Happened> {
        prop_oneof![
            (0_u32..4_000).prop_map(Happened::Wall),
            (0_u32..100_000).prop_map(Happened::Passed),
            (0_u32..100_000).prop_map(Happened::Refused),
            (0_u32..400).prop_map(Happened::Proved),
            Just(Happened::GaveUp),
            Just(Happened::Began),
        ]
    }

    proptest! {
        #[test]
        fn whatever_the_clocks_show_nothing_is_asked_twice_within_a_minute_nor_too_early(
            events in prop::collection::vec((happened(), any::<u64>()), 0..200),
            first in any::<u64>(),
        ) {
            let (mut plan, mut life) = (Plan::new(first), (at(0), at(90)));
            let (mut wall, mut now) = (at(0), mono(DAY));
            let mut asked: Option<Monotonic> = None;
            for (event, random) in events {
                let left = life.1.saturating_since(wall);
                match event {
                    Happened::Wall(days) => wall = at(days),
                    Happened::Passed(seconds) => {
                        let span = Duration::from_secs(u64::from(seconds));
                        (wall, now) = (wall.saturating_add(span), now.saturating_add(span));
                    }
                    Happened::Refused(seconds) => {
                        plan.refused(Duration::from_secs(u64::from(seconds)), left, now);
                    }
                    Happened::Proved(days) => {
                        life = (wall, wall.saturating_add(DAY * days));
                        plan.proved(life, wall, random);
                    }
                    Happened::GaveUp => plan.gave_up(left, now, random),
                    Happened::Began => plan.begin(),
                }
                if plan.may_ask(life, wall, now) {
                    let (from, to) = life;
                    let lived = wall.saturating_since(from);
                    prop_assert!(lived >= to.saturating_since(from) * 2 / 3);
                    if let Some(before) = asked {
                        prop_assert!(now.saturating_since(before) >= PAUSE / 2);
                    }
                    plan.asked(life.1.saturating_since(wall), now, random);
                    asked = Some(now);
                }
            }
        }

        #[test]
        fn a_certificate_is_asked_for_before_its_end_whatever_was_drawn(
            days in 1_u32..400, random in any::<u64>(), again in any::<u64>(),
        ) {
            let life = (at(0), at(days));
            let mut plan = Plan::new(random);
            let due = plan.due(life);
            prop_assert!(due < at(days));
            prop_assert!(plan.may_ask(life, due, mono(DAY)));
            plan.asked(at(days).saturating_since(due), mono(DAY), again);
            prop_assert!(!plan.may_ask(life, due, mono(DAY)));
            // Lost answers leave time for many more.
            let later = due.saturating_add(PAUSE);
            prop_assert!(plan.may_ask(life, later, mono(DAY).saturating_add(PAUSE)));
        }

        #[test]
        fn a_pause_at_the_door_has_both_bounds(vain in any::<u32>(), told in any::<u64>(), random in any::<u64>()) {
            let told = Duration::from_secs(told);
            for came in [AtDoor::Unheard, AtDoor::Refused(None), AtDoor::Refused(Some(told))] {
                let pause = pause_at_door(came, vain, random);
                let longest = REFUSED_PAUSE_MAX;
                prop_assert!(pause >= UNHEARD_PAUSE / 2 && pause <= longest, "{came:?}: {pause:?}");
            }
        }

        #[test]
        fn certificates_that_are_old_at_once_are_asked_for_less_and_less(random in any::<u64>()) {
            let (mut plan, mut now) = (Plan::new(random), mono(DAY));
            let life = (at(0), at(0));
            for _ in 0..20 {
                prop_assert!(plan.may_ask(life, at(9), now));
                plan.asked(Duration::ZERO, now, random);
                plan.proved(life, at(9), random);
                now = now.saturating_add(plan.pause(now).unwrap_or_default());
            }
            plan.asked(Duration::ZERO, now, random);
            prop_assert!(plan.pause(now).unwrap_or_default() >= PAUSE_MAX / 2);
        }
    }
}
