//! The armed points and how often each was passed.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

use super::{FaultError, POINTS};

/// A signal that a process sends itself has arrived by then.
const ARRIVES_WITHIN: Duration = Duration::from_millis(200);

static PLAN: OnceLock<Plan> = OnceLock::new();

/// Marks that a durable step is about to happen or has just happened; ends or stops the process here if that was asked
/// for.
///
/// # Panics
///
/// When the name is missing in [`POINTS`]: a test could never reach it.
pub fn point(name: &'static str) {
    assert!(
        POINTS.contains(&name),
        "crash point {name:?} is not in POINTS"
    );
    match PLAN.get().and_then(|plan| plan.pass(name)) {
        None => {}
        Some(Effect::Kill) => {
            kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
            loop {
                // The signal arrives before this thread runs on for long, but nothing may happen until then.
                std::thread::park();
            }
        }
        Some(Effect::Stop) => {
            kill_process(getpid(), Signal::STOP).expect("a process may stop itself");
            // As above, but it goes on some day.
            std::thread::park_timeout(ARRIVES_WITHIN);
        }
    }
}

pub(super) fn arm(armed: &str) -> Result<(), FaultError> {
    let plan = Plan::parse(armed)?;
    PLAN.set(plan).map_err(|_refused| FaultError::Twice)
}

/// What happens at an armed point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Kill,
    Stop,
}

/// Which points do something, and at which passage.
#[derive(Debug)]
struct Plan {
    armed: Vec<Armed>,
}

#[derive(Debug)]
struct Armed {
    name: String,
    left: AtomicU64,
    effect: Effect,
}

impl Plan {
    fn parse(text: &str) -> Result<Self, FaultError> {
        let armed = text
            .split(',')
            .map(|part| Armed::parse(part.trim()))
            .collect::<Result<_, _>>()?;
        Ok(Self { armed })
    }

    /// Counts one passage and answers what happens at it.
    fn pass(&self, name: &str) -> Option<Effect> {
        let mut effect = None;
        for armed in self.armed.iter().filter(|armed| armed.name == name) {
            let before = armed
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(1)
                });
            effect = effect.or((before == Ok(1)).then_some(armed.effect));
        }
        effect
    }
}

impl Armed {
    fn parse(text: &str) -> Result<Self, FaultError> {
        let (point, effect) = text.split_once('=').unwrap_or((text, ""));
        let (name, count) = point.split_once(':').unwrap_or((point, "1"));
        if !POINTS.contains(&name) {
            return Err(FaultError::Unknown {
                name: name.to_owned(),
            });
        }
        let effect = match effect {
            "" => Effect::Kill,
            "stop" => Effect::Stop,
            _ => {
                return Err(FaultError::Effect {
                    name: name.to_owned(),
                    effect: effect.to_owned(),
                });
            }
        };
        match count.parse() {
            Ok(left) if left > 0 => Ok(Self {
                name: name.to_owned(),
                left: AtomicU64::new(left),
                effect,
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
    fn something_happens_at_the_armed_passage_only() {
        let plan =
            Plan::parse("queue.offered.before_lease:3, journal.started.after_commit=stop").unwrap();
        let passages: Vec<_> = (0..5)
            .map(|_| plan.pass("queue.offered.before_lease"))
            .collect();
        assert_eq!(passages, [None, None, Some(Effect::Kill), None, None]);
        let stops = plan.pass("journal.started.after_commit");
        assert_eq!(stops, Some(Effect::Stop));
        assert_eq!(plan.pass("journal.started.before_commit"), None);
    }

    #[test]
    fn unknown_points_bad_counts_and_unknown_effects_are_refused() {
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
        let text = "queue.offered.before_lease:2=dance";
        assert!(matches!(Plan::parse(text), Err(FaultError::Effect { .. })));
    }

    #[test]
    fn an_unarmed_process_lives_on() {
        assert!(PLAN.get().is_none());
        point(POINTS[0]);
    }
}
