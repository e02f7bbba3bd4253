//! Token buckets: how many requests somebody may make, as pure arithmetic over a monotonic clock.

use std::time::Duration;

use crate::time::Monotonic;

/// The span a quota is stated for.
const MINUTE: Duration = Duration::from_secs(60);

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Requests in a minute, in the long run; at least 1.
    pub per_minute: u32,
    /// Requests at once after a pause; at least 1.
    pub burst: u32,
}

impl Quota {
    /// So many in a minute, and as many at once after a pause, yet never fewer at once than `largest`, the most that
    /// anybody asks for in one go.
    #[must_use]
    pub const fn per_minute(per_minute: u32, largest: u32) -> Self {
        let burst = if per_minute > largest {
            per_minute
        } else {
            largest
        };
        Self { per_minute, burst }
    }

    /// How long one request takes to come back.
    #[must_use]
    fn pace(self) -> Duration {
        MINUTE / self.per_minute.max(1)
    }
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It may go on.
    Allowed {
        /// Requests that may follow at once.
        remaining: u32,
        /// Until the whole burst is back.
        reset: Duration,
    },
    /// It may not.
    Refused {
        /// Until the next one may.
        retry_after: Duration,
    },
}

/// What one caller has left. It is stored as the moment at which the whole burst will be back (GCRA), so an idle
/// caller needs no bookkeeping.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bucket {
    full_at: Monotonic,
}

impl Bucket {
    /// The whole burst is there.
    pub const NEW: Self = Self {
        full_at: Monotonic::ORIGIN,
    };

    /// One whose whole burst will be back at this moment: one that was kept somewhere.
    #[must_use]
    pub const fn full_at(full_at: Monotonic) -> Self {
        Self { full_at }
    }

    /// When the whole burst will be back: all there is to keep.
    #[must_use]
    pub const fn is_full_at(&self) -> Monotonic {
        self.full_at
    }

    /// Takes one request at `now`. A refused one costs nothing.
    pub fn take(&mut self, quota: Quota, now: Monotonic) -> Taken {
        self.take_many(quota, 1, now)
    }

    /// Takes `amount` at `now`, all of it or nothing; more than the burst is never there, so it counts as the burst.
    pub fn take_many(&mut self, quota: Quota, amount: u32, now: Monotonic) -> Taken {
        let pace = quota.pace();
        let burst = quota.burst.max(1);
        let used = self.full_at.saturating_since(now);
        let after = used.saturating_add(pace.saturating_mul(amount.min(burst)));
        let most = pace.saturating_mul(burst);
        if after > most {
            return Taken::Refused {
                retry_after: after.saturating_sub(most),
            };
        }
        self.full_at = now.saturating_add(after);
        let left = most.saturating_sub(after).as_nanos() / pace.as_nanos().max(1);
        Taken::Allowed {
            remaining: u32::try_from(left).unwrap_or(u32::MAX),
            reset: after,
        }
    }

    /// Until `amount` can be taken; nothing when it can be at once.
    #[must_use]
    pub fn wait(mut self, quota: Quota, amount: u32, now: Monotonic) -> Duration {
        match self.take_many(quota, amount, now) {
            Taken::Allowed { .. } => Duration::ZERO,
            Taken::Refused { retry_after } => retry_after,
        }
    }

    /// Whether the whole burst is back: such a bucket says nothing that a new one does not.
    #[must_use]
    pub fn is_full(&self, now: Monotonic) -> bool {
        self.full_at <= now
    }
}

/// When a counter went up last, as far as somebody has looked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lately {
    count: u64,
    last: Option<Monotonic>,
}

impl Lately {
    /// Whether a counter that stands at `count` went up for the last time so long ago that nobody has to be told any
    /// more; true once.
    pub fn is_over(&mut self, count: u64, span: Duration, now: Monotonic) -> bool {
        if count != self.count {
            self.count = count;
            self.last = Some(now);
        }
        let over = |last: &mut Monotonic| now.saturating_since(*last) >= span;
        self.last.take_if(over).is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Monotonic {
        Monotonic::from_duration(Duration::from_millis(millis))
    }

    #[test]
    fn a_burst_goes_through_and_then_the_pace_holds() {
        let quota = Quota {
            per_minute: 60,
            burst: 3,
        };
        let mut bucket = Bucket::default();
        for remaining in [2, 1, 0] {
            let Taken::Allowed {
                remaining: left, ..
            } = bucket.take(quota, at(0))
            else {
                panic!("refused within the burst");
            };
            assert_eq!(left, remaining);
        }
        let retry_after = Duration::from_secs(1);
        assert_eq!(bucket.take(quota, at(0)), Taken::Refused { retry_after });
        assert!(matches!(
            bucket.take(quota, at(1_000)),
            Taken::Allowed { .. }
        ));
        assert!(matches!(
            bucket.take(quota, at(1_001)),
            Taken::Refused { .. }
        ));
        assert!(bucket.is_full(at(4_001)));
    }

    #[test]
    fn what_is_over_is_told_once() {
        let span = Duration::from_secs(60);
        let mut lately = Lately::default();
        assert!(!lately.is_over(0, span, at(0)));
        assert!(!lately.is_over(0, span, at(900_000)), "there was nothing");
        assert!(!lately.is_over(5, span, at(1_000_000)));
        assert!(!lately.is_over(6, span, at(1_059_999)));
        assert!(!lately.is_over(6, span, at(1_119_998)));
        assert!(lately.is_over(6, span, at(1_119_999)));
        assert!(!lately.is_over(6, span, at(1_120_000)), "it was told");
    }

    proptest! {
        /// However requests come, no span lets through more than the burst and what came back in it, and whoever waits
        /// as told is let through.
        #[test]
        fn never_more_than_the_quota_and_the_told_wait_is_enough(
            per_minute in 1_u32..100_000,
            burst in 1_u32..50,
            asked in prop::collection::vec((0_u64..2_000, 1_u32..60), 1..200),
        ) {
            let quota = Quota { per_minute, burst };
            let (mut bucket, mut now, mut allowed) = (Bucket::default(), 0, 0_u128);
            for (pause, amount) in asked {
                now += pause;
                match bucket.take_many(quota, amount, at(now)) {
                    Taken::Allowed { remaining, .. } => {
                        prop_assert!(remaining < burst);
                        allowed += u128::from(amount.min(burst));
                    }
                    Taken::Refused { retry_after } => {
                        prop_assert_eq!(bucket.wait(quota, amount, at(now)), retry_after);
                        let mut later = bucket;
                        let then = at(now).saturating_add(retry_after);
                        let taken = later.take_many(quota, amount, then);
                        let went_through = matches!(taken, Taken::Allowed { .. });
                        prop_assert!(went_through);
                    }
                }
                let back = Duration::from_millis(now).as_nanos() / quota.pace().as_nanos();
                prop_assert!(allowed <= u128::from(burst) + back);
            }
        }
    }
}
