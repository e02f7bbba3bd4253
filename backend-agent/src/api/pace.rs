//! The pace of a connection that has shown no valid key: a few requests at once, then a few in a second.
//!
//! One that sends a thousand requests in one write is served at this pace, and those behind it do not wait for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use viworks_common::rate::{Bucket, Quota, Taken};
use viworks_common::time::Monotonic;

/// What a stranger's connection may ask for; a page of documents or a probe needs less.
pub(super) const STRANGER: Quota = Quota {
    per_minute: 300,
    burst: 20,
};

/// The pace of one connection.
#[derive(Debug)]
pub(super) struct Pace {
    began: Instant,
    bucket: Mutex<Bucket>,
    known: AtomicBool,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            bucket: Mutex::new(Bucket::NEW),
            known: AtomicBool::new(false),
        }
    }

    /// It showed a valid key, and has the quota of that from now on.
    pub(super) fn know(&self) {
        self.known.store(true, Ordering::Relaxed);
    }

    /// Completes when the next request may be looked at.
    pub(super) async fn next(&self) {
        while let Some(wait) = self.wait() {
            tokio::time::sleep(wait).await;
        }
    }

    fn wait(&self) -> Option<Duration> {
        if self.known.load(Ordering::Relaxed) {
            return None;
        }
        let now = Monotonic::from_duration(self.began.elapsed());
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        match bucket.take(STRANGER, now) {
            Taken::Allowed { .. } => None,
            Taken::Refused { retry_after } => Some(retry_after),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stranger_gets_a_few_at_once_and_then_a_few_in_a_second_until_it_is_known() {
        let pace = Pace::new();
        let began = Instant::now();
        for _at_once in 0..20 {
            pace.next().await;
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        for _later in 0..50 {
            pace.next().await;
        }
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(9_800), "{took:?}");
        pace.know();
        for _known in 0..1_000 {
            pace.next().await;
        }
        assert_eq!(began.elapsed(), took);
    }
}
