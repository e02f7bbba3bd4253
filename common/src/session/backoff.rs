//! How long a gateway waits before it dials again: a pure policy, randomness is an argument.

use std::time::Duration;

use crate::code::CloseCode;
use crate::limits;

/// A session confirmed for this long is no part of a circle of being told to come back.
const SETTLED: Duration = Duration::from_secs(5);

/// The first delay after a refusal that nobody signed.
const UNPROVED_BASE: Duration = Duration::from_secs(60);

/// What a failed attempt or a lost session says about the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// The network, a timeout, a restarting backend.
    Transient,
    /// An authenticated REFUSE with a permanent code.
    PermanentAuthenticated,
    /// What looks permanent and anybody on the path could have caused: a TLS alert, a wrong pin, HTTP 400 or 403, a
    /// bare close frame, a CHALLENGE that does not suit.
    PermanentUnproved,
    /// The backend said when: `Retry-After`, REFUSE or DRAIN.
    Told {
        /// The delay.
        after: Duration,
    },
    /// The backend said how far to spread: WELCOME's reconnect slot.
    Slot {
        /// The longest delay.
        within: Duration,
    },
}

impl FailureClass {
    /// Whether only a person, or a change of files, is expected to mend it.
    #[must_use]
    pub const fn is_permanent(self) -> bool {
        matches!(self, Self::PermanentAuthenticated | Self::PermanentUnproved)
    }

    /// The class of an authenticated REFUSE.
    #[must_use]
    pub fn of_refusal(code: CloseCode, retry_after: Option<Duration>) -> Self {
        match retry_after {
            // An operator decides between two holders, and the one that is kept is not to wait for long after that:
            // the backend says how soon it can bear to be asked again.
            Some(after) if code.awaits_a_decision() => Self::Told { after },
            _ if code.is_permanent() => Self::PermanentAuthenticated,
            Some(after) => Self::Told { after },
            None => Self::Transient,
        }
    }

    /// The class of a WebSocket close frame without a REFUSE before it.
    #[must_use]
    pub fn of_close_frame(number: u16) -> Self {
        let permanent = CloseCode::ALL
            .iter()
            .any(|code| code.number() == number && code.is_permanent());
        if permanent {
            Self::PermanentUnproved
        } else {
            Self::Transient
        }
    }

    /// The class of an HTTP answer to the upgrade.
    #[must_use]
    pub const fn of_http_status(status: u16, retry_after: Option<Duration>) -> Self {
        match (status, retry_after) {
            (400 | 401 | 403, _) => Self::PermanentUnproved,
            (_, Some(after)) => Self::Told { after },
            (_, None) => Self::Transient,
        }
    }
}

/// The delays of the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffSettings {
    /// The upper end of the first delay after a transient failure; it doubles.
    pub base: Duration,
    /// Where doubling ends.
    pub max: Duration,
    /// The shortest delay after an authenticated permanent refusal.
    pub permanent_min: Duration,
    /// The longest delay after any refusal.
    pub permanent_max: Duration,
    /// The first delay after a refusal that nobody signed; it doubles up to `permanent_max`.
    pub unproved_base: Duration,
    /// A session confirmed for this long makes the policy forget earlier failures.
    pub reset_after: Duration,
}

impl Default for BackoffSettings {
    fn default() -> Self {
        Self {
            base: limits::BACKOFF_BASE,
            max: limits::BACKOFF_MAX,
            permanent_min: limits::PERMANENT_BACKOFF_MIN,
            permanent_max: limits::PERMANENT_BACKOFF_MAX,
            unproved_base: UNPROVED_BASE,
            reset_after: limits::BACKOFF_RESET_AFTER,
        }
    }
}

/// The memory of the policy: how often in a row it failed, by class.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backoff {
    settings: BackoffSettings,
    transient: u32,
    unproved: u32,
    told: u32,
}

impl Backoff {
    /// The default policy, without a history.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A policy with its own delays, without a history.
    #[must_use]
    pub fn with(settings: BackoffSettings) -> Self {
        Self {
            settings,
            ..Self::default()
        }
    }

    /// How long to wait after `failure`; `random` is uniform over all of `u64`.
    pub fn next(&mut self, failure: FailureClass, random: u64) -> Duration {
        match failure {
            FailureClass::Transient => self.transient(random),
            FailureClass::PermanentAuthenticated => between(
                self.settings.permanent_min,
                self.settings.permanent_max,
                random,
            ),
            FailureClass::PermanentUnproved => {
                let ceiling = doubled(
                    self.settings.unproved_base,
                    self.unproved,
                    self.settings.permanent_max,
                );
                self.unproved = self.unproved.saturating_add(1);
                between(ceiling / 2, ceiling, random)
            }
            FailureClass::Told { after } => {
                let after = after.min(limits::RETRY_AFTER_MAX);
                after.max(self.told_again(random))
            }
            FailureClass::Slot { within } => {
                let drawn = between(Duration::ZERO, within.min(limits::RETRY_AFTER_MAX), random);
                drawn.max(self.told_again(random))
            }
        }
    }

    /// Notes that a session stayed confirmed for `span`; after long enough, history is forgotten.
    pub fn confirmed_for(&mut self, span: Duration) {
        if span >= self.settings.reset_after {
            *self = Self::with(self.settings);
        } else if span >= SETTLED {
            self.told = 0;
        }
    }

    /// What is waited at the least. Told the same again and again with no session in between that lasted: never a hot
    /// loop. What failed for other reasons before has nothing to do with it: the backend is there, and says when.
    fn told_again(&mut self, random: u64) -> Duration {
        let before = self.told;
        self.told = self.told.saturating_add(1);
        before.checked_sub(1).map_or(Duration::ZERO, |again| {
            let ceiling = doubled(self.settings.base, again, self.settings.max);
            between(Duration::ZERO, ceiling, random)
        })
    }

    fn transient(&mut self, random: u64) -> Duration {
        let ceiling = doubled(self.settings.base, self.transient, self.settings.max);
        self.transient = self.transient.saturating_add(1);
        between(Duration::ZERO, ceiling, random)
    }
}

/// `base`, doubled so many times, and no more than `max`.
pub(crate) fn doubled(base: Duration, times: u32, max: Duration) -> Duration {
    2_u32
        .checked_pow(times)
        .and_then(|factor| base.checked_mul(factor))
        .map_or(max, |delay| delay.min(max))
}

/// A point between `low` and `high`, by a random fraction of 2^64.
pub(crate) fn between(low: Duration, high: Duration, random: u64) -> Duration {
    let span = high.saturating_sub(low).as_nanos();
    let offset = (span.min(u128::from(u64::MAX)) * u128::from(random)) >> 64;
    low.saturating_add(Duration::from_nanos(
        u64::try_from(offset).unwrap_or(u64::MAX),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_retry_is_already_spread_over_the_whole_interval() {
        assert_eq!(
            Backoff::new().next(FailureClass::Transient, 0),
            Duration::ZERO
        );
        let late = Backoff::new().next(FailureClass::Transient, u64::MAX);
        assert!(late > SECOND * 99 / 100 && late <= SECOND, "{late:?}");
    }

    #[test]
    fn transient_delays_double_up_to_a_minute_and_start_again_after_a_minute_of_session() {
        let mut backoff = Backoff::new();
        let ceilings: Vec<u128> = (0..9)
            .map(|_| {
                let delay = backoff.next(FailureClass::Transient, u64::MAX);
                delay.as_millis().div_ceil(1_000)
            })
            .collect();
        assert_eq!(ceilings, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        backoff.confirmed_for(Duration::from_secs(59));
        assert_ne!(backoff, Backoff::new());
        backoff.confirmed_for(Duration::from_secs(60));
        assert_eq!(backoff, Backoff::new());
    }

    #[test]
    fn a_told_delay_is_taken_as_it_is_and_capped() {
        let told = |secs| FailureClass::Told {
            after: SECOND * secs,
        };
        assert_eq!(Backoff::new().next(told(7), u64::MAX), SECOND * 7);
        assert_eq!(Backoff::new().next(told(86_400), 0), SECOND * 900);
    }

    #[test]
    fn being_told_to_come_back_at_once_again_and_again_is_no_hot_loop() {
        let mut backoff = Backoff::new();
        let at_once = FailureClass::Told {
            after: Duration::ZERO,
        };
        assert_eq!(backoff.next(at_once, u64::MAX), Duration::ZERO);
        let waits: Duration = (0..10).map(|_| backoff.next(at_once, u64::MAX / 2)).sum();
        assert!(waits > SECOND * 60, "{waits:?}");
    }

    #[test]
    fn a_backend_that_names_a_moment_is_believed_whatever_went_wrong_before() {
        let at_once = FailureClass::Told {
            after: SECOND / 100,
        };
        let mut backoff = Backoff::new();
        for _ in 0..9 {
            backoff.next(FailureClass::Transient, u64::MAX);
        }
        backoff.next(at_once, u64::MAX);
        // One backend after the other is stopped in an orderly way, and each time there was a session for a while.
        for _ in 0..5 {
            backoff.confirmed_for(SETTLED);
            assert_eq!(backoff.next(at_once, u64::MAX), SECOND / 100);
        }
        // Without one it takes a moment longer each time.
        for ceiling in [1, 2, 4, 8] {
            backoff.confirmed_for(SECOND * 4);
            let delay = backoff.next(at_once, u64::MAX);
            assert!(
                delay > SECOND * (ceiling - 1) && delay <= SECOND * ceiling,
                "{delay:?}"
            );
        }
    }

    #[test]
    fn permanent_refusals_wait_between_a_quarter_and_a_full_hour() {
        let mut backoff = Backoff::new();
        let wait = |backoff: &mut Backoff, random| {
            backoff.next(FailureClass::PermanentAuthenticated, random)
        };
        assert_eq!(wait(&mut backoff, 0), SECOND * 900);
        let longest = wait(&mut backoff, u64::MAX);
        assert!(
            longest > SECOND * 3_599 && longest <= SECOND * 3_600,
            "{longest:?}"
        );
    }

    #[test]
    fn refusals_that_nobody_signed_escalate_from_a_minute_to_an_hour() {
        let mut backoff = Backoff::new();
        let minutes: Vec<u128> = (0..8)
            .map(|_| {
                let delay = backoff.next(FailureClass::PermanentUnproved, u64::MAX);
                delay.as_millis().div_ceil(60_000)
            })
            .collect();
        assert_eq!(minutes, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(
            Backoff::new().next(FailureClass::PermanentUnproved, 0),
            SECOND * 30
        );
    }

    #[test]
    fn a_second_holder_that_is_told_when_comes_back_within_a_minute() {
        // Also where it is refused for the agent key that it has, which the other holder's superseded.
        for code in [CloseCode::IdentityFork, CloseCode::CertUntrusted] {
            let told = FailureClass::of_refusal(code, Some(SECOND * 30));
            let mut backoff = Backoff::new();
            for random in [0, u64::MAX / 2, u64::MAX].repeat(20) {
                let delay = backoff.next(told, random);
                assert!((SECOND * 30..=SECOND * 60).contains(&delay), "{delay:?}");
            }
        }
    }

    #[test]
    fn only_a_signed_refusal_is_permanent_at_once() {
        assert_eq!(
            FailureClass::of_refusal(CloseCode::Revoked, Some(SECOND)),
            FailureClass::PermanentAuthenticated
        );
        assert_eq!(
            FailureClass::of_refusal(CloseCode::IdentityFork, None),
            FailureClass::PermanentAuthenticated
        );
        assert_eq!(
            FailureClass::of_refusal(CloseCode::RateLimited, Some(SECOND)),
            FailureClass::Told { after: SECOND }
        );
        assert_eq!(
            FailureClass::of_close_frame(4403),
            FailureClass::PermanentUnproved
        );
        assert_eq!(FailureClass::of_close_frame(4503), FailureClass::Transient);
        assert_eq!(
            FailureClass::of_http_status(403, None),
            FailureClass::PermanentUnproved
        );
        assert_eq!(
            FailureClass::of_http_status(503, Some(SECOND)),
            FailureClass::Told { after: SECOND }
        );
    }
}
