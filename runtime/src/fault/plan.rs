//! The armed points and how often each was passed.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Signal, getpid, kill_process};

use super::{FaultError, POINTS};

static PLAN: OnceLock<Plan> = OnceLock::new();

/// Marks that a durable step is about to happen or has just happened; ends the process here if that was asked for.
///
/// # Panics
///
/// When the name is missing in [`POINTS`]: a test could never reach it.
pub fn point(name: &'static str) {
    assert!(
        POINTS.contains(&name),
        "crash point {name:?} is not in POINTS"
    );
    if PLAN.get().is_some_and(|plan| plan.pass(name)) {
        kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
        loop {
            // The signal arrives before this thread runs on for long, but nothing may happen until then.
            std::thread::park();
        }
    }
}

pub(super) fn arm(armed: &str) -> Result<(), FaultError> {
    let plan = Plan::parse(armed)?;
    PLAN.set(plan).map_err(|_refused| FaultError::Twice)
}

/// Which points kill, and at which passage.
#[derive(Debug)]
struct Plan {
    armed: Vec<Armed>,
}

#[derive(Debug)]
struct Armed {
    name: String,
    left: AtomicU64,
}

impl Plan {
    fn parse(text: &str) -> Result<Self, FaultError> {
        let armed = text
            .split(',')
            .map(|part| Armed::parse(part.trim()))
            .collect::<Result<_, _>>()?;
        Ok(Self { armed })
    }

    /// Counts one passage and answers whether it is the fatal one.
    fn pass(&self, name: &str) -> bool {
        let mut fatal = false;
        for armed in self.armed.iter().filter(|armed| armed.name == name) {
            let before = armed
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(1)
                });
            fatal |= before == Ok(1);
        }
        fatal
    }
}

impl Armed {
    fn parse(text: &str) -> Result<Self, FaultError> {
        let (name, count) = text.split_once(':').unwrap_or((text, "1"));
        if !POINTS.contains(&name) {
            return Err(FaultError::Unknown {
                name: name.to_owned(),
            });
        }
        match count.parse() {
            Ok(left) if left > 0 => Ok(Self {
                name: name.to_owned(),
                left: AtomicU64::new(left),
            }),
            Ok(_) | Err(_) => Err(FaultError::Count {
                name: name.to_owned(),
                count: count.to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_armed_passage_is_fatal() {
        let plan =
            Plan::parse("queue.offered.before_lease:3, journal.started.after_commit").unwrap();
        let passages: Vec<_> = (0..5)
            .map(|_| plan.pass("queue.offered.before_lease"))
            .collect();
        assert_eq!(passages, [false, false, true, false, false]);
        assert!(plan.pass("journal.started.after_commit"));
        assert!(!plan.pass("journal.started.before_commit"));
    }

    #[test]
    fn unknown_points_and_bad_counts_are_refused() {
        let unknown = FaultError::Unknown {
            name: "journal.acepted".to_owned(),
        };
        assert_eq!(Plan::parse("journal.acepted").unwrap_err(), unknown);
        for count in ["0", "x", ""] {
            let text = format!("queue.offered.before_lease:{count}");
            assert!(
                matches!(Plan::parse(&text), Err(FaultError::Count { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn an_unarmed_process_lives_on() {
        assert!(PLAN.get().is_none());
        point(POINTS[0]);
    }
}
