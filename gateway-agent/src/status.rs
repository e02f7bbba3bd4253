//! What the outbound side tells people: connected since when, or why not, what to do, and when it tries again.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use viworks_common::time::Timestamp;

/// What is known about the connection to the backend.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ConnectionStatus {
    /// Whether a session is established.
    pub connected: bool,
    /// In one word: `starting`, `connecting`, `connected` or `waiting`.
    pub state: String,
    /// Where the backend is.
    pub url: String,
    /// Since when it is in this state.
    pub since: Option<Timestamp>,
    /// The epoch of the last session.
    pub epoch: u64,
    /// The last measured round trip, in microseconds.
    pub round_trip_us: Option<u64>,
    /// The gateway's wall clock minus the backend's, in milliseconds.
    pub clock_skew_ms: Option<i64>,
    /// When the next attempt comes, while it waits for that.
    pub next_attempt: Option<Timestamp>,
    /// Why the last attempt failed or the last session ended; kept until the next session.
    pub last_failure: Option<Failure>,
    /// Why there was none before the last session.
    pub earlier_failure: Option<Failure>,
}

/// In one line, for the service manager.
impl fmt::Display for ConnectionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, state, .. } = self;
        match (&self.since, &self.last_failure) {
            (Some(since), _) if self.connected => write!(f, "connected to {url} since {since}"),
            (_, Some(failure)) => write!(f, "not connected to {url}: {}", failure.cause),
            (_, None) => write!(f, "{state}: {url}"),
        }
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// When that was.
    pub at: Timestamp,
    /// In one sentence.
    pub cause: String,
    /// What to do about it; empty when time heals it.
    pub fix: String,
    /// The code that `docs/errors` has a page for, where there is one.
    pub code: Option<&'static str>,
}

/// The status of the connection: the outbound loop keeps it, the local API shows it.
#[derive(Debug)]
pub struct Status {
    current: Mutex<ConnectionStatus>,
}

impl Status {
    /// Nothing was tried yet.
    #[must_use]
    pub fn new(url: String) -> Self {
        Self {
            current: Mutex::new(ConnectionStatus {
                url,
                state: "starting".to_owned(),
                ..ConnectionStatus::default()
            }),
        }
    }

    /// An attempt begins.
    pub fn connecting(&self) {
        let mut current = self.lock();
        "connecting".clone_into(&mut current.state);
        current.next_attempt = None;
    }

    /// It is this backend that the attempt is for.
    pub fn dials(&self, url: String) {
        self.lock().url = url;
    }

    /// A session is confirmed.
    pub fn connected(&self, epoch: u64, now: Timestamp) {
        let mut current = self.lock();
        current.connected = true;
        "connected".clone_into(&mut current.state);
        current.since = Some(now);
        current.epoch = epoch;
        current.next_attempt = None;
        if let Some(failure) = current.last_failure.take() {
            current.earlier_failure = Some(failure);
        }
    }

    /// A measurement.
    pub fn measured(&self, rtt: Duration, skew_ms: i64) {
        let mut current = self.lock();
        current.round_trip_us = Some(u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX));
        current.clock_skew_ms = Some(skew_ms);
    }

    /// The attempt failed or the session ended; the next attempt comes at `next`.
    pub fn failed(&self, failure: Failure, next: Timestamp) {
        let mut current = self.lock();
        if current.connected || current.since.is_none() {
            current.since = Some(failure.at);
        }
        current.connected = false;
        "waiting".clone_into(&mut current.state);
        current.next_attempt = Some(next);
        current.last_failure = Some(failure);
    }

    /// The state at this moment.
    #[must_use]
    pub fn connection(&self) -> ConnectionStatus {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, ConnectionStatus> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
