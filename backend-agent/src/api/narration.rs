//! How much live output is told in a second to all who follow runs: each of them costs its own encoding, on the
//! processors that commands need as well.

use std::sync::{Mutex, PoisonError};

use tokio::time::{Instant, sleep};
use viworks_common::id::ApiKeyId;
use viworks_common::rate::{Bucket, Quota, Taken};
use viworks_common::time::Monotonic;

use super::turns::Turns;

/// KiB of output in a second, of all followers together. Whoever comes too late for what the ring holds is told what it
/// missed.
const KIB_PER_SECOND: u32 = 8_192;

/// KiB at once after a pause: what is remembered of the output of one run.
const KIB_AT_ONCE: u32 = 1_024;

const QUOTA: Quota = Quota {
    per_minute: 60 * KIB_PER_SECOND,
    burst: KIB_AT_ONCE,
};

/// The pace of all of it. Each key waits in a line of its own, so that one with many followers waits for itself.
#[derive(Debug)]
pub(super) struct Narration {
    began: Instant,
    turns: Turns,
    bucket: Mutex<Bucket>,
}

impl Narration {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            // Two who waited for the bucket beside each other would come to it in any order.
            turns: Turns::new(1),
            bucket: Mutex::new(Bucket::NEW),
        }
    }

    /// Completes when a follower with this key may be told a piece of so many bytes. A short piece costs as much as a
    /// KiB.
    pub(super) async fn next(&self, key: ApiKeyId, bytes: usize) {
        let kib = u32::try_from(bytes.div_ceil(1_024)).unwrap_or(u32::MAX);
        let _turn = self.turns.next(key).await;
        while let Some(wait) = self.wait(kib.max(1)) {
            sleep(wait).await;
        }
    }

    fn wait(&self, kib: u32) -> Option<std::time::Duration> {
        let now = Monotonic::from_duration(self.began.elapsed());
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        match bucket.take_many(QUOTA, kib, now) {
            Taken::Allowed { .. } => None,
            Taken::Refused { retry_after } => Some(retry_after),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use futures_util::future::join_all;
    use uuid::Uuid;

    use super::*;

    const PIECE: usize = 16 * 1_024;

    #[tokio::test(start_paused = true)]
    async fn followers_share_what_is_told_in_a_second_and_a_key_waits_for_itself() {
        let narration = Arc::new(Narration::new());
        let key = |n| ApiKeyId::from_uuid(Uuid::from_u128(n));
        let began = Instant::now();
        let followers = (0..64).map(|_follower| {
            let narration = Arc::clone(&narration);
            async move {
                // A MiB each.
                for _piece in 0..64 {
                    narration.next(key(1), PIECE).await;
                }
            }
        });
        let other = async {
            narration.next(key(2), PIECE).await;
            began.elapsed()
        };
        let (_all, other) = tokio::join!(join_all(followers), other);
        // What was there at once is not waited for.
        let told = (began.elapsed().as_secs_f64() * f64::from(KIB_PER_SECOND)).round();
        assert!((told - 63.0 * 1_024.0).abs() < 32.0, "{told} KiB");
        assert!(other < Duration::from_secs(1), "{other:?}");
    }
}
