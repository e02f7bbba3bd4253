//! The deadlines of one session, each with a name that says what it waits for.

use std::collections::BTreeMap;

use crate::time::Monotonic;

/// What a session waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// The next step of the opening.
    Opening,
    /// The driver's decision.
    Decision,
    /// Any authenticated frame.
    Silence,
    /// The end of the certificate's validity.
    Certificate,
    /// The end of draining.
    Drain,
    /// The next heartbeat.
    Heartbeat,
}

impl Timer {
    const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Decision => "decision",
            Self::Silence => "silence",
            Self::Certificate => "certificate",
            Self::Drain => "drain",
            Self::Heartbeat => "heartbeat",
        }
    }
}

/// At most one deadline for each purpose.
#[derive(Debug, Default)]
pub(super) struct Timers(BTreeMap<Timer, Monotonic>);

impl Timers {
    pub(super) fn set(&mut self, timer: Timer, at: Monotonic) {
        self.0.insert(timer, at);
    }

    pub(super) fn clear(&mut self, timer: Timer) {
        self.0.remove(&timer);
    }

    pub(super) fn clear_all(&mut self) {
        self.0.clear();
    }

    /// The earliest deadline and what it waits for.
    pub(super) fn next(&self) -> Option<(Monotonic, &'static str)> {
        let (timer, at) = self.0.iter().min_by_key(|(_, at)| **at)?;
        Some((*at, timer.name()))
    }

    /// Takes out the earliest deadline that has been reached.
    pub(super) fn take_due(&mut self, now: Monotonic) -> Option<Timer> {
        let (timer, _) = self
            .0
            .iter()
            .filter(|(_, at)| **at <= now)
            .min_by_key(|(_, at)| **at)?;
        let timer = *timer;
        self.0.remove(&timer);
        Some(timer)
    }
}
