//! What each API key has left of its requests, and how an answer says so.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use viworks_common::id::ApiKeyId;
use viworks_common::rate::{Bucket, Quota, Taken};
use viworks_common::time::Monotonic;

/// Keys whose use is remembered at once. Beyond that, those that have everything left are forgotten; a key for which
/// there is no room then is not limited, which costs less than locking an operator out.
const KEYS_MAX: usize = 10_000;

/// `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers).
pub const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// See [`POLICY`].
pub const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// The quotas of all keys.
#[derive(Debug)]
pub struct Quotas {
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    quota: Quota,
    buckets: BTreeMap<ApiKeyId, Bucket>,
}

impl Quotas {
    /// Every key has `quota`.
    #[must_use]
    pub const fn new(quota: Quota) -> Self {
        Self {
            kept: Mutex::new(Kept {
                quota,
                buckets: BTreeMap::new(),
            }),
        }
    }

    /// Every key has another quota from now on. All begin anew: what was taken under the old one says nothing about it.
    pub fn change(&self, quota: Quota) {
        let mut kept = self.lock();
        if kept.quota != quota {
            *kept = Kept {
                quota,
                buckets: BTreeMap::new(),
            };
        }
    }

    /// Takes one request of `key`.
    pub fn take(&self, key: ApiKeyId, now: Monotonic) -> Taken {
        let mut kept = self.lock();
        let Kept { quota, buckets } = &mut *kept;
        if !buckets.contains_key(&key) && buckets.len() >= KEYS_MAX {
            buckets.retain(|_, bucket| !bucket.is_full(now));
            if buckets.len() >= KEYS_MAX {
                return Bucket::default().take(*quota, now);
            }
        }
        buckets.entry(key).or_default().take(*quota, now)
    }

    /// Says in an answer what is left.
    pub fn describe(&self, taken: Taken, headers: &mut HeaderMap) {
        let (remaining, reset) = match taken {
            Taken::Allowed { remaining, reset } => (remaining, reset),
            Taken::Refused { retry_after } => (0, retry_after),
        };
        let Quota { per_minute, burst } = self.lock().quota;
        let policy = format!(
            "\"key\";q={per_minute};w=60;qu=\"requests\", \"burst\";q={burst};w=1;qu=\"requests\""
        );
        let limit = format!("\"burst\";r={remaining};t={}", whole_seconds(reset));
        for (name, value) in [(POLICY, policy), (LIMIT, limit)] {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Nothing panics while it is held.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever waits so long waits long enough.
fn whole_seconds(span: Duration) -> u64 {
    span.as_secs() + u64::from(span.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn keys_do_not_share_and_the_answer_says_what_is_left() {
        let quotas = Quotas::new(Quota {
            per_minute: 60,
            burst: 2,
        });
        let key = |n| ApiKeyId::from_uuid(Uuid::from_u128(n));
        let now = Monotonic::default();
        quotas.take(key(1), now);
        quotas.take(key(1), now);
        let refused = quotas.take(key(1), now);
        assert!(matches!(refused, Taken::Refused { .. }));
        assert!(matches!(quotas.take(key(2), now), Taken::Allowed { .. }));
        let mut headers = HeaderMap::new();
        quotas.describe(refused, &mut headers);
        assert_eq!(headers[LIMIT], "\"burst\";r=0;t=1");
        assert_eq!(
            headers[POLICY],
            "\"key\";q=60;w=60;qu=\"requests\", \"burst\";q=2;w=1;qu=\"requests\""
        );
        // Nobody waits for what a slower quota would give back.
        quotas.change(Quota {
            per_minute: 600,
            burst: 1,
        });
        assert!(matches!(quotas.take(key(1), now), Taken::Allowed { .. }));
        assert!(matches!(quotas.take(key(1), now), Taken::Refused { .. }));
    }

    #[test]
    fn a_key_for_which_there_is_no_room_is_not_limited_until_others_have_all_they_may() {
        let quotas = Quotas::new(Quota {
            per_minute: 60,
            burst: 1,
        });
        let key = |n: usize| ApiKeyId::from_uuid(Uuid::from_u128(u128::try_from(n).unwrap()));
        let now = Monotonic::default();
        for n in 0..KEYS_MAX {
            quotas.take(key(n), now);
        }
        let beyond = key(KEYS_MAX);
        for _each in 0..3 {
            assert!(matches!(quotas.take(beyond, now), Taken::Allowed { .. }));
        }
        assert_eq!(quotas.lock().buckets.len(), KEYS_MAX);
        assert!(matches!(quotas.take(key(0), now), Taken::Refused { .. }));
        let later = Monotonic::from_duration(Duration::from_secs(60));
        assert!(matches!(quotas.take(beyond, later), Taken::Allowed { .. }));
        assert!(matches!(quotas.take(beyond, later), Taken::Refused { .. }));
        assert_eq!(quotas.lock().buckets.len(), 1);
    }
}
