//! How many requests the same one may make at the door.

use std::hash::Hash;
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use viworks_common::rate::{Bucket, Quota, Taken};
use viworks_common::time::Monotonic;

/// Who is remembered at once; beyond that the longest unused one is forgotten.
const REMEMBERED_MAX: u64 = 10_000;

/// A bucket for each.
pub(super) struct Buckets<K> {
    quota: Quota,
    buckets: Cache<K, Bucket>,
}

impl<K: Hash + Eq + Send + Sync + 'static> Buckets<K> {
    pub(super) fn new(per_minute: u32) -> Self {
        Self::remembering(per_minute, REMEMBERED_MAX)
    }

    fn remembering(per_minute: u32, remembered_max: u64) -> Self {
        Self {
            quota: Quota::per_minute(per_minute, 1),
            buckets: Cache::builder()
                .max_capacity(remembered_max)
                // Another policy may not keep the newcomer, who would have a new bucket each time.
                .eviction_policy(EvictionPolicy::lru())
                .build(),
        }
    }

    /// Takes one request of somebody.
    ///
    /// # Errors
    ///
    /// How long to wait, when there is none left.
    pub(super) fn take(&self, who: K, now: Monotonic) -> Result<(), Duration> {
        let mut taken = None;
        // One at a time for the same one, so that two do not both take the last.
        self.buckets.entry(who).and_upsert_with(|found| {
            let mut bucket = found.map_or(Bucket::NEW, moka::Entry::into_value);
            taken = Some(bucket.take(self.quota, now));
            bucket
        });
        match taken {
            Some(Taken::Refused { retry_after }) => Err(retry_after),
            Some(Taken::Allowed { .. }) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn a_source_has_its_requests_and_takes_none_of_others() {
        let sources = Buckets::<IpAddr>::new(2);
        let now = Monotonic::ORIGIN;
        let (one, other) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        assert_eq!(sources.take(one, now), Ok(()));
        assert_eq!(sources.take(one, now), Ok(()));
        let wait = sources.take(one, now).unwrap_err();
        assert_eq!(wait, Duration::from_secs(30));
        assert_eq!(sources.take(other, now), Ok(()));
        assert_eq!(sources.take(one, now.saturating_add(wait)), Ok(()));
    }

    #[test]
    fn of_many_the_latest_are_remembered() {
        let sources = Buckets::<u32>::remembering(1, 10);
        let now = Monotonic::ORIGIN;
        for one in 0..100 {
            assert_eq!(sources.take(one, now), Ok(()));
            sources.buckets.run_pending_tasks();
            assert!(sources.take(one, now).is_err(), "{one}");
        }
        assert_eq!(sources.take(0, now), Ok(()), "the first is forgotten");
    }
}
