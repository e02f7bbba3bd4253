//! The connection behind a breaker: there is one exactly while the breaker is closed, and only what is answered on it
//! speaks of the server.

use std::time::Duration;

use super::{Breaker, BreakerLimits, BreakerState};
use crate::time::Monotonic;

/// The shortest pause before a trial, so that whoever tries again and again never does nothing else.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// A connection that many use, and the breaker in front of it. Whoever asks is given a number with the connection, and
/// says it with what came of it: by then there may be another connection, or none.
#[derive(Debug)]
pub struct Link<C> {
    breaker: Breaker,
    connection: Option<C>,
    /// How many there were, with those that were only tried.
    number: u64,
}

impl<C> Link<C> {
    /// Without a connection; the first trial is due.
    #[must_use]
    pub fn new(limits: BreakerLimits) -> Self {
        Self {
            breaker: Breaker::new(limits),
            connection: None,
            number: 0,
        }
    }

    /// Whether the server is asked.
    #[must_use]
    pub const fn state(&self) -> BreakerState {
        self.breaker.state()
    }

    /// The number of the connection that is used or tried, or was last.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// The connection that is used, and its number; `None` while the server is not asked.
    #[must_use]
    pub fn used(&self) -> Option<(&C, u64)> {
        self.connection.as_ref().map(|it| (it, self.number))
    }

    /// How long whoever makes the trials is to wait before the next one. It is never nothing.
    #[must_use]
    pub fn rest(&self, now: Monotonic) -> Duration {
        let due = self.breaker.retry_at().unwrap_or(now);
        due.saturating_since(now).max(PAUSE_MIN)
    }

    /// Begins a trial, when one is due; answers whether it may be made. One that was begun before, and of which nothing
    /// was heard, has failed.
    pub fn begin_trial(&mut self, now: Monotonic) -> bool {
        if self.state() == BreakerState::HalfOpen {
            self.breaker.failed(now);
        }
        let begins = self.breaker.try_out(now);
        if begins {
            self.number += 1;
        }
        begins
    }

    /// The trial succeeded: this is used from here on. Answers its number.
    pub fn opened(&mut self, connection: C) -> u64 {
        if self.state() == BreakerState::HalfOpen {
            self.breaker.succeeded();
            self.connection = Some(connection);
        }
        self.number
    }

    /// The trial failed.
    pub fn trial_failed(&mut self, now: Monotonic) {
        if self.state() == BreakerState::HalfOpen {
            self.breaker.failed(now);
        }
    }

    /// The server did what it was asked on the connection of this number.
    pub fn answered(&mut self, number: u64) {
        if self.is_used(number) {
            self.breaker.succeeded();
        }
    }

    /// It did not, or not in time; answers whether it is left alone for that.
    pub fn failed(&mut self, number: u64, now: Monotonic) -> bool {
        let opens = self.is_used(number) && self.breaker.failed(now);
        self.let_go(opens)
    }

    /// The connection of this number is gone; answers whether the server is left alone for that.
    pub fn lost(&mut self, number: u64, now: Monotonic) -> bool {
        let opens = self.is_used(number) && self.breaker.lost(now);
        self.let_go(opens)
    }

    fn let_go(&mut self, opens: bool) -> bool {
        if opens {
            self.connection = None;
        }
        opens
    }

    fn is_used(&self, number: u64) -> bool {
        self.connection.is_some() && self.number == number
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: BreakerLimits = BreakerLimits {
        failures: 3,
        pause: Duration::from_millis(200),
        pause_max: Duration::from_secs(2),
    };

    fn at(millis: u64) -> Monotonic {
        Monotonic::from_duration(Duration::from_millis(millis))
    }

    /// One that is used, with its connection's number.
    fn used() -> (Link<&'static str>, u64) {
        let mut link = Link::new(LIMITS);
        assert!(link.begin_trial(at(0)));
        let number = link.opened("first");
        assert_eq!(link.used(), Some((&"first", number)));
        (link, number)
    }

    #[test]
    fn a_late_answer_on_an_old_connection_closes_nothing_over_nothing() {
        let (mut link, old) = used();
        assert!(link.lost(old, at(1_000)));
        assert!(link.begin_trial(at(2_000)));
        // What was asked on the old connection is answered while the next one is tried.
        link.answered(old);
        assert_eq!(link.state(), BreakerState::HalfOpen);
        assert_eq!(link.used(), None);
        link.trial_failed(at(2_001));
        link.answered(old);
        assert_eq!(link.state(), BreakerState::Open);
        assert!(link.begin_trial(at(9_000)));
        let new = link.opened("second");
        assert_eq!(link.used(), Some((&"second", new)));
        // And what fails there late does not take the new one away.
        for _often in 0..10 {
            assert!(!link.failed(old, at(9_001)));
            assert!(!link.lost(old, at(9_001)));
        }
        assert_eq!(link.used(), Some((&"second", new)));
    }

    #[test]
    fn a_trial_of_which_nothing_was_heard_is_made_again_after_a_pause() {
        let mut link = Link::<()>::new(LIMITS);
        assert!(link.begin_trial(at(0)));
        assert!(!link.begin_trial(at(1)));
        assert_eq!(link.state(), BreakerState::Open);
        assert!(link.begin_trial(at(1_000)));
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// So many milliseconds go by.
        Wait(u64),
        /// Whoever makes the trials rests and begins one.
        Try,
        /// The trial ends so.
        Trial(bool),
        /// What was asked on the connection that was used so many trials ago ends so.
        Answered(u64),
        Failed(u64),
        Lost(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..3_000_u64).prop_map(Step::Wait),
            Just(Step::Try),
            any::<bool>().prop_map(Step::Trial),
            (0..3_u64).prop_map(Step::Answered),
            (0..3_u64).prop_map(Step::Failed),
            (0..3_u64).prop_map(Step::Lost),
        ];
        proptest::collection::vec(step, 0..80)
    }

    proptest! {
        #[test]
        fn it_is_closed_exactly_while_there_is_a_connection_and_no_trial_comes_without_a_pause(steps in steps()) {
            let mut link = Link::new(LIMITS);
            let (mut now, mut tried_at, mut under_trial) = (0, None, false);
            for step in steps {
                match step {
                    Step::Wait(millis) => now += millis,
                    Step::Try if link.state() != BreakerState::Closed => {
                        let rest = link.rest(at(now));
                        prop_assert!(rest >= PAUSE_MIN);
                        now += u64::try_from(rest.as_millis()).unwrap();
                        under_trial = link.begin_trial(at(now));
                        if under_trial {
                            prop_assert!(tried_at.is_none_or(|before| now >= before + 10));
                            tried_at = Some(now);
                        }
                    }
                    Step::Trial(true) if under_trial => {
                        link.opened(now);
                        under_trial = false;
                    }
                    Step::Trial(false) if under_trial => {
                        link.trial_failed(at(now));
                        under_trial = false;
                    }
                    Step::Try | Step::Trial(_) => {}
                    Step::Answered(ago) => link.answered(link.number().saturating_sub(ago)),
                    Step::Failed(ago) => {
                        link.failed(link.number().saturating_sub(ago), at(now));
                    }
                    Step::Lost(ago) => {
                        link.lost(link.number().saturating_sub(ago), at(now));
                    }
                }
                prop_assert_eq!(link.state() == BreakerState::Closed, link.used().is_some());
                prop_assert_eq!(link.state() == BreakerState::HalfOpen, under_trial);
            }
        }
    }
}
