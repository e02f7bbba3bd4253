//! What this agent tells people about itself: connected or not, since when, why not, and when it tries again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use viworks_common::time::Timestamp;
use viworks_runtime::clock::Clock;
use viworks_runtime::lifecycle::notify;

/// Shared status; clones see the same.
#[derive(Clone)]
pub struct Status {
    clock: Arc<dyn Clock>,
    connection: Arc<Mutex<ConnectionStatus>>,
}

/// The connection as people are shown it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConnectionStatus {
    /// `online`, `connecting` or `waiting`.
    pub state: ConnectionState,
    /// Since when.
    pub since: Timestamp,
    /// The session's epoch, while online.
    pub epoch: Option<u64>,
    /// The last measured round trip, in microseconds.
    pub round_trip_us: Option<u64>,
    /// This machine's clock minus the backend's, in milliseconds.
    pub clock_skew_ms: Option<i64>,
    /// Why the last attempt or session ended.
    pub last_failure: Option<Failure>,
    /// When the next attempt is made, while waiting.
    pub next_attempt_at: Option<Timestamp>,
}

/// Where the connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionState {
    /// A confirmed session.
    Online,
    /// An attempt is under way.
    Connecting,
    /// The next attempt has a time.
    Waiting,
}

/// Why it does not connect, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// When.
    pub at: Timestamp,
    /// One sentence.
    pub cause: String,
    /// What to do, when something should be done.
    pub fix: Option<String>,
}

impl Status {
    /// The status of an agent that has just started.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let connection = ConnectionStatus {
            state: ConnectionState::Connecting,
            since: clock.wall(),
            epoch: None,
            round_trip_us: None,
            clock_skew_ms: None,
            last_failure: None,
            next_attempt_at: None,
        };
        Self { clock, connection: Arc::new(Mutex::new(connection)) }
    }

    /// As it stands.
    #[must_use]
    pub fn connection(&self) -> ConnectionStatus {
        self.lock().clone()
    }

    /// An attempt begins.
    pub fn connecting(&self) {
        self.change(ConnectionState::Connecting, |status| status.next_attempt_at = None);
        notify::status("connecting");
    }

    /// A session is confirmed.
    pub fn connected(&self, epoch: u64) {
        self.change(ConnectionState::Online, |status| {
            status.epoch = Some(epoch);
            status.last_failure = None;
        });
        notify::status("online");
    }

    /// A heartbeat was answered.
    pub fn measured(&self, round_trip: Duration, clock_skew_ms: Option<i64>) {
        let mut status = self.lock();
        status.round_trip_us = u64::try_from(round_trip.as_micros()).ok();
        status.clock_skew_ms = clock_skew_ms;
    }

    /// An attempt or a session ended.
    pub fn failed(&self, cause: &str, fix: Option<&str>, next_attempt_in: Duration) {
        let now = self.clock.wall();
        self.change(ConnectionState::Waiting, |status| {
            status.epoch = None;
            status.last_failure = Some(Failure { at: now, cause: cause.to_owned(), fix: fix.map(str::to_owned) });
            status.next_attempt_at = Some(now.saturating_add(next_attempt_in));
        });
        notify::status(&format!("not connected: {cause}; next attempt in {} s", next_attempt_in.as_secs()));
    }

    fn change(&self, state: ConnectionState, change: impl FnOnce(&mut ConnectionStatus)) {
        let now = self.clock.wall();
        let mut status = self.lock();
        if status.state != state {
            status.state = state;
            status.since = now;
        }
        change(&mut status);
    }

    fn lock(&self) -> MutexGuard<'_, ConnectionStatus> {
        // Nothing panics while it holds the lock.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
