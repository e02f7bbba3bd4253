//! How many requests one source may make at the door.

use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use moka::sync::Cache;
use viworks_common::places::network;
use viworks_common::rate::{Bucket, Quota, Taken};
use viworks_common::time::Monotonic;

/// Sources that are remembered at once; beyond that the longest unused one is forgotten.
const SOURCES_MAX: u64 = 10_000;

/// A bucket for each source.
#[derive(Debug)]
pub(super) struct Sources {
    quota: Quota,
    buckets: Mutex<Cache<IpAddr, Bucket>>,
}

impl Sources {
    pub(super) fn new(per_minute: u32) -> Self {
        Self {
            quota: Quota::per_minute(per_minute, 1),
            buckets: Mutex::new(Cache::new(SOURCES_MAX)),
        }
    }

    /// Takes one request of an address.
    ///
    /// # Errors
    ///
    /// How long to wait, when it has none left.
    pub(super) fn take(&self, address: IpAddr, now: Monotonic) -> Result<(), Duration> {
        // Nothing panics while it is held; taken whole, so that two at once do not both take the last.
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let source = network(address);
        let mut bucket = buckets.get(&source).unwrap_or(Bucket::NEW);
        let taken = bucket.take(self.quota, now);
        buckets.insert(source, bucket);
        match taken {
            Taken::Allowed { .. } => Ok(()),
            Taken::Refused { retry_after } => Err(retry_after),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_its_requests_and_takes_none_of_others() {
        let sources = Sources::new(2);
        let now = Monotonic::ORIGIN;
        let (one, other) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        assert_eq!(sources.take(one, now), Ok(()));
        assert_eq!(sources.take(one, now), Ok(()));
        let wait = sources.take(one, now).unwrap_err();
        assert_eq!(wait, Duration::from_secs(30));
        assert_eq!(sources.take(other, now), Ok(()));
        assert_eq!(sources.take(one, now.saturating_add(wait)), Ok(()));
    }
}
