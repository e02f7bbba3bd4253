//! Named readiness latches, and the report that the health endpoints answer from.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::watch;

/// The latches of one process. Clones share them.
#[derive(Debug, Clone)]
pub struct Readiness {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    latches: Mutex<BTreeMap<&'static str, State>>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Clone)]
struct State {
    ok: bool,
    was_ok: bool,
    reason: String,
}

/// One thing that must be well for the process to be ready.
#[derive(Debug, Clone)]
pub struct Latch {
    name: &'static str,
    shared: Arc<Shared>,
}

/// What a latch says at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The thing it stands for.
    pub name: &'static str,
    /// Whether it is well.
    pub ok: bool,
    /// Why, in words for an operator.
    pub reason: String,
}

/// All latches at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Every latch is well: traffic is welcome. The answer of `/readyz`.
    pub ready: bool,
    /// Every latch has been well at least once: starting is over. The answer of `/startupz`.
    pub started: bool,
    /// The latches, by name.
    pub checks: Vec<Check>,
}

impl Readiness {
    /// No latches yet: such a process is not ready.
    #[must_use]
    pub fn new() -> Self {
        let changes = watch::Sender::new(0);
        Self {
            shared: Arc::new(Shared {
                latches: Mutex::default(),
                changes,
            }),
        }
    }

    /// Adds a latch, not well until it is set. Asking for the same name again gives the same latch.
    #[must_use]
    pub fn latch(&self, name: &'static str) -> Latch {
        self.shared.latches().entry(name).or_insert_with(|| State {
            ok: false,
            was_ok: false,
            reason: "starting".to_owned(),
        });
        self.shared.changed();
        Latch {
            name,
            shared: Arc::clone(&self.shared),
        }
    }

    /// What every latch says.
    #[must_use]
    pub fn report(&self) -> Report {
        let latches = self.shared.latches();
        Report {
            ready: !latches.is_empty() && latches.values().all(|state| state.ok),
            started: !latches.is_empty() && latches.values().all(|state| state.was_ok),
            checks: latches
                .iter()
                .map(|(name, state)| Check {
                    name,
                    ok: state.ok,
                    reason: state.reason.clone(),
                })
                .collect(),
        }
    }

    /// Waits until every latch is well.
    pub async fn ready(&self) {
        let mut changes = self.shared.changes.subscribe();
        while !self.report().ready {
            if changes.changed().await.is_err() {
                // The sender lives in `self.shared`, which is borrowed here.
                return;
            }
        }
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Latch {
    /// Says whether the thing is well, and why.
    pub fn set(&self, ok: bool, reason: impl Into<String>) {
        let reason = reason.into();
        {
            let mut latches = self.shared.latches();
            let Some(state) = latches.get_mut(self.name) else {
                // Latches are never removed.
                return;
            };
            state.ok = ok;
            state.was_ok |= ok;
            state.reason = reason;
        }
        self.shared.changed();
    }
}

impl Shared {
    fn latches(&self) -> MutexGuard<'_, BTreeMap<&'static str, State>> {
        // Each change is one assignment after another without a panic in between.
        self.latches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|version| *version += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_latches_nothing_is_ready() {
        let report = Readiness::new().report();
        assert!(!report.ready && !report.started && report.checks.is_empty());
    }

    #[test]
    fn all_latches_must_be_well_and_the_report_says_which_is_not() {
        let readiness = Readiness::new();
        let database = readiness.latch("database");
        let listener = readiness.latch("listener");
        database.set(true, "migrated");
        assert!(!readiness.report().ready);
        listener.set(true, "listening");
        assert!(readiness.report().ready);
        database.set(false, "disk full");
        let report = readiness.report();
        assert!(!report.ready, "a latch can fall back");
        assert!(report.started, "starting is over once and for all");
        assert_eq!(
            report.checks[0],
            Check {
                name: "database",
                ok: false,
                reason: "disk full".to_owned()
            }
        );
    }

    #[test]
    fn the_same_name_is_the_same_latch() {
        let readiness = Readiness::new();
        readiness.latch("database").set(true, "migrated");
        let again = readiness.latch("database");
        assert!(readiness.report().ready);
        again.set(false, "gone");
        assert_eq!(readiness.report().checks.len(), 1);
    }

    #[tokio::test]
    async fn waiting_ends_when_the_last_latch_is_set() {
        let readiness = Readiness::new();
        let latch = readiness.latch("database");
        let (_, ()) = tokio::join!(readiness.ready(), async { latch.set(true, "migrated") });
        assert!(readiness.report().ready);
    }
}
