//! How many sessions a gateway may open, so that a copy of its identity that is refused again and again uses up
//! nothing that the gateway itself needs to come back.

use std::collections::VecDeque;
use std::time::Duration;

use viworks_common::id::AgentRunId;
use viworks_common::rate::{Bucket, Quota, Taken};
use viworks_common::time::Monotonic;

/// Sessions that the process which was confirmed last may open, and as many that others may whose HELLO nothing is
/// known against.
const OPENINGS: Quota = Quota {
    per_minute: 60,
    burst: 60,
};

/// HELLOs that are going to be refused, as far as one can tell, and that the store judges all the same.
const STRAYS: Quota = Quota {
    per_minute: 30,
    burst: 10,
};

/// Processes that are remembered as second holders.
const FORKS_MAX: usize = 16;

/// What a HELLO shows before the store is asked.
#[derive(Debug, Clone, Copy)]
pub struct Presented {
    /// Whether its token is the one of its epoch.
    pub token_valid: bool,
    /// Its epoch.
    pub epoch: u64,
    /// The process.
    pub run: AgentRunId,
}

/// What one identity has left.
#[derive(Debug, Default)]
pub struct Openings {
    own: Bucket,
    others: Bucket,
    strays: Bucket,
    /// The process that was confirmed last.
    confirmed: Option<AgentRunId>,
    /// The last epoch that was found to be a copy's: epochs only grow, so it stays one.
    stale: Option<u64>,
    /// Processes that were found to be second holders.
    forks: VecDeque<AgentRunId>,
}

impl Openings {
    /// Uses up one opening.
    ///
    /// # Errors
    /// When to try again.
    pub fn take(&mut self, presented: &Presented, now: Monotonic) -> Result<(), Duration> {
        let (bucket, quota) = if self.is_stray(presented) {
            (&mut self.strays, STRAYS)
        } else if self.confirmed == Some(presented.run) {
            (&mut self.own, OPENINGS)
        } else {
            (&mut self.others, OPENINGS)
        };
        match bucket.take(quota, now) {
            Taken::Allowed { .. } => Ok(()),
            Taken::Refused { retry_after } => Err(retry_after),
        }
    }

    fn is_stray(&self, presented: &Presented) -> bool {
        !presented.token_valid
            || self.stale.is_some_and(|stale| presented.epoch <= stale)
            || self.forks.contains(&presented.run)
    }

    /// A session of this process was confirmed: whatever was thought of it, it holds the identity.
    pub fn confirmed(&mut self, run: AgentRunId) {
        self.confirmed = Some(run);
        self.forks.retain(|fork| *fork != run);
    }

    /// A HELLO was refused because its epoch was left behind: it is a copy's, or of a state that was restored.
    pub fn left_behind(&mut self, epoch: u64) {
        self.stale = self.stale.max(Some(epoch));
    }

    /// A process turned out to be a second holder.
    pub fn forked(&mut self, run: AgentRunId) {
        if self.confirmed == Some(run) || self.forks.contains(&run) {
            return;
        }
        if self.forks.len() >= FORKS_MAX {
            self.forks.pop_front();
        }
        self.forks.push_back(run);
    }

    /// Whether all of it is there.
    #[must_use]
    pub fn are_full(&self, now: Monotonic) -> bool {
        [self.own, self.others, self.strays]
            .iter()
            .all(|bucket| bucket.is_full(now))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_duration(Duration::from_secs(seconds))
    }

    fn hello(run: u128, epoch: u64) -> Presented {
        Presented {
            token_valid: true,
            epoch,
            run: AgentRunId::from_uuid(Uuid::from_u128(run)),
        }
    }

    fn taken(openings: &mut Openings, presented: &Presented) -> usize {
        (0..1_000)
            .take_while(|_| openings.take(presented, at(1)).is_ok())
            .count()
    }

    #[test]
    fn a_copy_that_is_refused_without_end_leaves_the_true_gateway_its_openings() {
        let mut openings = Openings::default();
        openings.take(&hello(100, 3), at(0)).unwrap();
        openings.left_behind(3);
        let mut strays = 0;
        for run in 101..400 {
            strays += usize::from(openings.take(&hello(run, 3), at(1)).is_ok());
        }
        assert_eq!(strays, 10);
        // One that started anew, with what it was given last.
        openings.take(&hello(1, 7), at(1)).unwrap();
    }

    #[test]
    fn guessed_tokens_leave_the_true_gateway_its_openings() {
        let mut openings = Openings::default();
        let guessed = Presented {
            token_valid: false,
            ..hello(9, 1 << 40)
        };
        assert_eq!(taken(&mut openings, &guessed), 10);
        openings.take(&hello(1, 1), at(1)).unwrap();
    }

    #[test]
    fn a_copy_of_the_latest_state_leaves_the_confirmed_process_its_own_openings() {
        let mut openings = Openings::default();
        openings.confirmed(hello(1, 0).run);
        for run in 100..400 {
            let _refused = openings.take(&hello(run, 7), at(1));
            openings.forked(hello(run, 7).run);
        }
        assert_eq!(taken(&mut openings, &hello(1, 7)), 60);
    }

    #[test]
    fn of_second_holders_the_latest_are_remembered() {
        let mut openings = Openings::default();
        let holders: Vec<_> = (0..=FORKS_MAX).map(|n| hello(n as u128, 7)).collect();
        for holder in &holders {
            openings.forked(holder.run);
        }
        let remembered = holders.iter().map(|holder| openings.is_stray(holder));
        let remembered: Vec<_> = remembered.collect();
        assert_eq!(remembered.iter().filter(|it| **it).count(), FORKS_MAX);
        assert!(!remembered[0]);
    }

    #[test]
    fn whoever_is_confirmed_is_no_stray_any_more() {
        let mut openings = Openings::default();
        let holder = hello(1, 7);
        openings.forked(holder.run);
        assert_eq!(taken(&mut openings, &holder), 10);
        openings.confirmed(holder.run);
        openings.forked(holder.run);
        assert_eq!(taken(&mut openings, &holder), 60);
    }
}
