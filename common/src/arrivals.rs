//! How fast gateways may arrive: a capacity that is measured, turns for those that find no room, and the order in which
//! a house that closes sends its gateways to the others.

use std::time::Duration;

use crate::limits::RETRY_AFTER_MAX;
use crate::time::Monotonic;

/// Sessions opened in each second before anything was measured: safe on the smallest machine.
const FIRST: u32 = 100;

/// What is believed of a measurement, in sessions opened in each second.
const SLOWEST: u32 = 20;
const FASTEST: u32 = 5_000;

/// How long openings are counted before they count.
const WINDOW: Duration = Duration::from_secs(1);

/// The shortest wait of a gateway that found no room.
const WAIT_MIN: Duration = Duration::from_secs(1);

/// Over what time gateways that found no room are spread at the least, however few there are.
const HORIZON_MIN: Duration = Duration::from_secs(5);

/// The bounds of the time over which gateways come back that lost their connection.
const SLOT_MIN: Duration = Duration::from_secs(1);
const SLOT_MAX: Duration = Duration::from_secs(5 * 60);

/// Openings at one house: how fast they were, and who is to come when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrivals {
    per_second: u32,
    window: Window,
    /// The last turn that was given.
    last_turn: Monotonic,
}

/// What was counted since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    began: Monotonic,
    opened: u32,
    turned_away: bool,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self::new()
    }
}

impl Arrivals {
    /// Nobody has come yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            per_second: FIRST,
            window: Window::at(Monotonic::ORIGIN),
            last_turn: Monotonic::ORIGIN,
        }
    }

    /// How many sessions can be opened in each second.
    #[must_use]
    pub const fn per_second(&self) -> u32 {
        self.per_second
    }

    /// A session was opened.
    pub fn opened(&mut self, now: Monotonic) {
        self.roll(now);
        self.window.opened = self.window.opened.saturating_add(1);
    }

    /// A gateway found no room: how long it should wait. Each gets a turn behind the last one's, as fast as its house's
    /// share of what all houses do `together`, because it may come to any of them. No turn is later than those of
    /// `fleet` gateways need that nobody has, because whoever asks again and again would push all others away; those
    /// beyond are spread over that time by `draw`, a random number.
    pub fn turned_away(
        &mut self,
        fleet: u64,
        together: &Together,
        draw: u64,
        now: Monotonic,
    ) -> Duration {
        self.roll(now);
        self.window.turned_away = true;
        let horizon = together.time_for(fleet);
        let horizon = horizon.clamp(HORIZON_MIN, RETRY_AFTER_MAX - WAIT_MIN);
        let first = now.saturating_add(WAIT_MIN);
        let turn = self.last_turn.max(first).saturating_add(together.step());
        let wait = turn.saturating_since(now);
        if wait > WAIT_MIN + horizon {
            return WAIT_MIN + part(horizon, draw);
        }
        self.last_turn = turn;
        wait
    }

    /// Takes over what a whole window showed. One in which somebody found no room shows what this house can do; any
    /// other at least so much.
    fn roll(&mut self, now: Monotonic) {
        let elapsed = now.saturating_since(self.window.began);
        if elapsed < WINDOW {
            return;
        }
        let counted = std::mem::replace(&mut self.window, Window::at(now));
        let micros = elapsed.as_micros().max(1);
        let measured = u128::from(counted.opened) * 1_000_000 / micros;
        let measured = u32::try_from(measured).unwrap_or(FASTEST);
        // A window that nobody closed for long, such as the first one, says nothing of a house that was full.
        let was_full = counted.turned_away && elapsed < 2 * WINDOW;
        if was_full {
            // A quarter of the way, so that one slow second is not taken for a slow house.
            let smoothed = (3 * u64::from(self.per_second) + u64::from(measured)) / 4;
            self.per_second = u32::try_from(smoothed).unwrap_or(FASTEST);
        } else {
            self.per_second = self.per_second.max(measured);
        }
        self.per_second = self.per_second.clamp(SLOWEST, FASTEST);
    }
}

impl Window {
    const fn at(began: Monotonic) -> Self {
        Self {
            began,
            opened: 0,
            turned_away: false,
        }
    }
}

/// One house of several, as it says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct House {
    /// Sessions that it has.
    pub sessions: u64,
    /// Sessions that it can have.
    pub sessions_max: u64,
    /// Sessions that it can open in each second.
    pub per_second: u32,
    /// Whether it is about to close, and takes nobody.
    pub closes: bool,
}

impl House {
    /// How many more it has room for.
    #[must_use]
    pub const fn room(&self) -> u64 {
        if self.closes {
            0
        } else {
            self.sessions_max.saturating_sub(self.sessions)
        }
    }
}

/// What all houses that live can do together, as one of them sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Together {
    /// Sessions that those with room can open in each second.
    per_second: u32,
    /// Houses that gateways may come to, each of which turns some away.
    houses: u32,
    /// Sessions that they have.
    sessions: u64,
}

impl Together {
    /// Of `own` and the others.
    #[must_use]
    pub fn of(own: &House, others: &[House]) -> Self {
        let open = || std::iter::once(own).chain(others.iter().filter(|house| !house.closes));
        let paces = open().filter(|house| house.room() > 0);
        let per_second = paces.fold(0, |sum: u32, house| sum.saturating_add(house.per_second));
        Self {
            // Where nobody has room, they come back to find that out, no faster than to this one.
            per_second: if per_second == 0 {
                own.per_second
            } else {
                per_second
            },
            houses: u32::try_from(open().count()).unwrap_or(u32::MAX),
            sessions: open().fold(0, |sum, house| sum.saturating_add(house.sessions)),
        }
    }

    /// How long it takes until those of a fleet have a session that have none.
    fn time_for(&self, fleet: u64) -> Duration {
        let missing = fleet.saturating_sub(self.sessions);
        span(
            usize::try_from(missing).unwrap_or(usize::MAX),
            self.per_second,
        )
    }

    /// When each of many should come that all have to come anew, by its place among them; 0 is the first.
    #[must_use]
    pub fn delay(&self, place: usize) -> Duration {
        span(place, self.per_second).min(RETRY_AFTER_MAX)
    }

    /// Between two turns that one house gives: all of them together give as many as can be taken.
    fn step(&self) -> Duration {
        span(1, self.per_second).saturating_mul(self.houses)
    }
}

/// The delay within which a gateway of `own` first reconnects when its connection is lost: then either its house is
/// gone, and all of them come to the others, or it is started again, and all of them come back.
#[must_use]
pub fn slot(own: &House, others: &[House]) -> Duration {
    let sessions = usize::try_from(own.sessions).unwrap_or(usize::MAX);
    let open = others.iter().filter(|house| !house.closes);
    let elsewhere: u32 = open.map(|house| house.per_second).sum();
    let per_second = if elsewhere == 0 {
        own.per_second
    } else {
        elsewhere
    };
    span(sessions, per_second).clamp(SLOT_MIN, SLOT_MAX)
}

/// When the gateways of a house that closes should come back, one after another: first as many as the others have room
/// for, as fast as these can open sessions; the rest behind them, as fast as the house itself takes them in when it is
/// back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waves {
    first: usize,
    elsewhere: u32,
    here: u32,
}

impl Waves {
    /// Of `own`, which closes, into `others`.
    #[must_use]
    pub fn plan(own: &House, others: &[House]) -> Self {
        let room: u64 = others.iter().map(House::room).sum();
        let open = others.iter().filter(|house| house.room() > 0);
        Self {
            first: usize::try_from(room).unwrap_or(usize::MAX),
            elsewhere: open.map(|house| house.per_second).sum(),
            here: own.per_second,
        }
    }

    /// The delay of one gateway, by its place among all; 0 is the first.
    #[must_use]
    pub fn delay(&self, place: usize) -> Duration {
        if let Some(place) = place.checked_sub(self.first) {
            let behind = span(self.first, self.elsewhere);
            return (behind + span(place, self.here)).min(RETRY_AFTER_MAX);
        }
        span(place, self.elsewhere).min(RETRY_AFTER_MAX)
    }
}

/// How long so many openings take.
fn span(openings: usize, per_second: u32) -> Duration {
    let openings = u64::try_from(openings).unwrap_or(u64::MAX);
    let micros = openings.saturating_mul(1_000_000) / u64::from(per_second.max(1));
    Duration::from_micros(micros)
}

/// A part of a span, by a random number.
fn part(whole: Duration, draw: u64) -> Duration {
    let micros = u64::try_from(whole.as_micros()).unwrap_or(u64::MAX).max(1);
    Duration::from_micros(draw % micros)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Monotonic {
        Monotonic::from_duration(Duration::from_millis(millis))
    }

    /// What one house can do that has nobody beside it.
    fn alone(arrivals: &Arrivals) -> Together {
        Together::of(&house(0, 1_000_000, arrivals.per_second()), &[])
    }

    /// A house that opens so many in each of some seconds, and turns somebody away in each when it is `full`.
    fn worked(arrivals: &mut Arrivals, per_second: u64, seconds: u64, full: bool) {
        for second in 1..=seconds {
            for number in 0..per_second {
                arrivals.opened(at(second * 1_000 + number * 1_000 / per_second));
            }
            if full {
                let alone = alone(arrivals);
                let _wait = arrivals.turned_away(0, &alone, 0, at(second * 1_000 + 999));
            }
        }
        arrivals.opened(at((seconds + 1) * 1_000));
    }

    #[test]
    fn the_capacity_is_what_a_full_house_did() {
        let mut slow = Arrivals::new();
        worked(&mut slow, 40, 30, true);
        assert!((38..=44).contains(&slow.per_second()), "{slow:?}");
        let mut fast = Arrivals::new();
        worked(&mut fast, 700, 30, true);
        assert!((650..=700).contains(&fast.per_second()), "{fast:?}");
    }

    #[test]
    fn a_house_with_few_visitors_is_not_taken_for_a_slow_one() {
        let mut arrivals = Arrivals::new();
        worked(&mut arrivals, 3, 60, false);
        assert_eq!(arrivals.per_second(), FIRST);
        let mut lively = Arrivals::new();
        worked(&mut lively, 300, 2, false);
        assert!(lively.per_second() >= 290, "{lively:?}");
    }

    #[test]
    fn one_who_asks_all_the_time_does_not_push_the_others_away() {
        let mut arrivals = Arrivals::new();
        for draw in 0..100_000 {
            let alone = alone(&arrivals);
            let wait = arrivals.turned_away(1_000, &alone, draw * 7_919, at(5_000));
            assert!(
                wait >= WAIT_MIN && wait <= WAIT_MIN + Duration::from_secs(10),
                "{wait:?}"
            );
        }
    }

    #[test]
    fn houses_that_turn_gateways_away_give_as_many_turns_together_as_they_can_take() {
        let houses = [house(0, 10_000, 100), house(0, 10_000, 300)];
        let mut turns = BTreeMap::<u64, u32>::new();
        for own in 0..2 {
            let together = Together::of(&houses[own], &houses[1 - own..2 - own]);
            assert_eq!(together.time_for(4_000), Duration::from_secs(10));
            let mut arrivals = Arrivals::new();
            for _ in 0..1_000 {
                let wait = arrivals.turned_away(4_000, &together, 0, at(10_000));
                *turns.entry(wait.as_secs()).or_default() += 1;
            }
        }
        let most = turns.values().max().copied().unwrap();
        assert!((390..=401).contains(&most), "{turns:?}");
        // Where nobody has room, they come back to find that out.
        let full = [house(10, 10, 100), house(5, 5, 300)];
        let together = Together::of(&full[0], &full[1..]);
        assert_eq!(together.time_for(115), Duration::from_secs(1));
    }

    #[test]
    fn without_other_houses_all_come_back_here() {
        let own = house(2_000, 10_000, 200);
        assert_eq!(slot(&own, &[]), Duration::from_secs(10));
        assert_eq!(slot(&house(0, 10, 100), &[]), SLOT_MIN);
        assert_eq!(slot(&house(10_000_000, 1, 20), &[]), SLOT_MAX);
        let waves = Waves::plan(&own, &[]);
        assert_eq!(waves.delay(0), Duration::ZERO);
        assert_eq!(waves.delay(400), Duration::from_secs(2));
    }

    #[test]
    fn the_others_get_what_they_have_room_for_and_no_faster_than_they_open() {
        let own = house(1_000, 10_000, 100);
        let closing = House {
            closes: true,
            ..house(0, 10_000, 1_000)
        };
        let others = [house(9_900, 10_000, 50), house(9_700, 10_000, 150), closing];
        assert_eq!(slot(&own, &others), Duration::from_secs(5));
        let waves = Waves::plan(&own, &others);
        assert_eq!(waves.delay(200), Duration::from_secs(1));
        assert_eq!(waves.delay(399), span(399, 200));
        assert_eq!(waves.delay(400), Duration::from_secs(2));
        assert_eq!(waves.delay(500), Duration::from_secs(3));
    }

    fn house(sessions: u64, sessions_max: u64, per_second: u32) -> House {
        House {
            sessions,
            sessions_max,
            per_second,
            closes: false,
        }
    }

    proptest! {
        #[test]
        fn turns_come_no_faster_than_sessions_can_be_opened(
            pauses in prop::collection::vec(0_u64..40, 1..600),
        ) {
            let mut arrivals = Arrivals::new();
            let (mut now, mut turns) = (10_000, BTreeMap::<u64, u32>::new());
            for pause in pauses {
                now += pause;
                let alone = alone(&arrivals);
                let wait = arrivals.turned_away(10_000, &alone, 0, at(now));
                prop_assert!(wait >= WAIT_MIN && wait <= RETRY_AFTER_MAX);
                let turn = now + u64::try_from(wait.as_millis()).unwrap();
                *turns.entry(turn / 1_000).or_default() += 1;
            }
            let most = turns.values().max().copied().unwrap_or_default();
            prop_assert!(most <= FIRST + 1, "{most} in one second");
        }

        #[test]
        fn nobody_overtakes_in_waves(room in 0_u64..100, rate in 1_u32..500) {
            let own = house(1_000, 10_000, 100);
            let waves = Waves::plan(&own, &[house(0, room, rate)]);
            for place in 1..200 {
                prop_assert!(waves.delay(place - 1) <= waves.delay(place));
            }
        }
    }
}
