//! A circuit breaker: whether a server that failed is still asked, as pure decisions over a monotonic clock.

use std::time::Duration;

use crate::time::Monotonic;

pub use link::Link;

mod link;

/// When a breaker opens, and how soon the server is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerLimits {
    /// Failures in a row after which nobody asks any more; at least 1.
    pub failures: u32,
    /// The pause before the first trial; it doubles with each that fails.
    pub pause: Duration,
    /// The longest pause.
    pub pause_max: Duration,
}

/// Whether the server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// It is.
    Closed,
    /// Nobody asks it, until a pause is over.
    Open,
    /// One tries it.
    HalfOpen,
}

impl BreakerState {
    /// The word for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

/// The breaker in front of one server. It begins open and due: the first trial decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breaker {
    limits: BreakerLimits,
    state: BreakerState,
    /// Failures in a row while it is closed.
    failures: u32,
    /// Trials in a row that failed.
    trials: u32,
    retry_at: Monotonic,
}

impl Breaker {
    /// A breaker that knows nothing of its server.
    #[must_use]
    pub fn new(limits: BreakerLimits) -> Self {
        Self {
            limits,
            state: BreakerState::Open,
            failures: 0,
            trials: 0,
            retry_at: Monotonic::default(),
        }
    }

    /// Whether the server is asked.
    #[must_use]
    pub const fn state(&self) -> BreakerState {
        self.state
    }

    /// When the next trial is due; `None` while none is wanted.
    #[must_use]
    pub fn retry_at(&self) -> Option<Monotonic> {
        (self.state == BreakerState::Open).then_some(self.retry_at)
    }

    /// Begins a trial, when one is due; answers whether it may be made.
    pub fn try_out(&mut self, now: Monotonic) -> bool {
        let due = self.state == BreakerState::Open && self.retry_at <= now;
        if due {
            self.state = BreakerState::HalfOpen;
        }
        due
    }

    /// The server did what it was asked. Only a trial closes a breaker: what was asked before it opened may be answered
    /// afterwards.
    pub fn succeeded(&mut self) {
        match self.state {
            BreakerState::Closed => self.failures = 0,
            BreakerState::HalfOpen => {
                self.state = BreakerState::Closed;
                (self.failures, self.trials) = (0, 0);
            }
            BreakerState::Open => {}
        }
    }

    /// The server did not do it, or not in time; answers whether that opened the breaker.
    pub fn failed(&mut self, now: Monotonic) -> bool {
        match self.state {
            BreakerState::Closed => {
                self.failures = self.failures.saturating_add(1);
                if self.failures < self.limits.failures {
                    return false;
                }
            }
            BreakerState::HalfOpen => {}
            BreakerState::Open => return false,
        }
        self.open(now);
        true
    }

    /// The connection is gone: there is nothing to ask, whatever was answered before. Answers whether that opened it.
    pub fn lost(&mut self, now: Monotonic) -> bool {
        let opens = self.state != BreakerState::Open;
        if opens {
            self.open(now);
        }
        opens
    }

    fn open(&mut self, now: Monotonic) {
        // A server that worked until now is tried at once; one that did not is given time.
        let pause = match self.trials {
            0 => self.limits.pause,
            trials => self
                .limits
                .pause
                .saturating_mul(1_u32.checked_shl(trials).unwrap_or(u32::MAX)),
        };
        self.trials = self.trials.saturating_add(1);
        self.state = BreakerState::Open;
        self.retry_at = now.saturating_add(pause.min(self.limits.pause_max));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BreakerLimits = BreakerLimits {
        failures: 3,
        pause: Duration::from_secs(1),
        pause_max: Duration::from_secs(5),
    };

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_duration(Duration::from_secs(seconds))
    }

    fn closed() -> Breaker {
        let mut breaker = Breaker::new(LIMITS);
        assert!(breaker.try_out(at(0)));
        breaker.succeeded();
        assert_eq!(breaker.state(), BreakerState::Closed);
        breaker
    }

    #[test]
    fn it_opens_after_so_many_failures_in_a_row() {
        let mut breaker = closed();
        for _twice in 0..2 {
            assert!(!breaker.failed(at(1)));
            assert!(!breaker.failed(at(1)));
            breaker.succeeded();
        }
        assert!(!breaker.failed(at(2)));
        assert!(!breaker.failed(at(2)));
        assert!(breaker.failed(at(2)));
        assert_eq!(breaker.state().name(), "open");
        assert!(!breaker.failed(at(2)), "it is open already");
    }

    #[test]
    fn a_lost_connection_opens_it_at_once() {
        let mut breaker = closed();
        assert!(breaker.lost(at(9)));
        assert!(!breaker.lost(at(9)));
        assert_eq!(breaker.retry_at(), Some(at(10)));
    }

    #[test]
    fn one_trial_at_a_time_and_pauses_that_grow_up_to_a_bound() {
        let mut breaker = closed();
        breaker.lost(at(0));
        let (mut now, mut pauses) = (0, Vec::new());
        for _trial in 0..5 {
            let due = breaker.retry_at().unwrap();
            let pause = due.saturating_since(at(now)).as_secs();
            pauses.push(pause);
            now += pause;
            assert!(!breaker.try_out(at(now - 1)), "too early");
            assert!(breaker.try_out(at(now)));
            assert!(!breaker.try_out(at(now)), "one tries it already");
            assert_eq!(breaker.retry_at(), None);
            assert!(breaker.failed(at(now)));
        }
        assert_eq!(pauses, [1, 2, 4, 5, 5]);
    }

    #[test]
    fn a_late_answer_does_not_close_it_and_a_good_trial_does() {
        let mut breaker = closed();
        breaker.lost(at(0));
        breaker.succeeded();
        assert_eq!(breaker.state(), BreakerState::Open);
        assert!(breaker.try_out(at(1)));
        breaker.succeeded();
        breaker.lost(at(2));
        assert_eq!(breaker.retry_at(), Some(at(3)), "the pause is short again");
    }
}
