//! What the outbound side tells people: connected since when, or why not, what to do, and when it tries again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use viworks_common::time::Timestamp;

use crate::api::{ConnectionStatus, Failure, StatusSource};

/// The status of the connection, shared between the outbound loop and the local API.
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

    /// A session is confirmed.
    pub fn connected(&self, epoch: u64, now: Timestamp) {
        let mut current = self.lock();
        current.connected = true;
        "connected".clone_into(&mut current.state);
        current.since = Some(now);
        current.epoch = epoch;
        current.next_attempt = None;
        current.last_failure = None;
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

    fn lock(&self) -> MutexGuard<'_, ConnectionStatus> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StatusSource for Status {
    fn connection(&self) -> ConnectionStatus {
        self.lock().clone()
    }
}
