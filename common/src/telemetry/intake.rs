//! How much telemetry one local user may hand in: so many records and so many bytes a minute.

use std::time::Duration;

use crate::limits::{BATCH_RECORDS_MAX, REQUEST_BODY_BYTES_MAX};
use crate::rate::{Bucket, Quota, Taken};
use crate::time::Monotonic;

/// What each user may hand in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntakeQuota {
    /// Records, whether they are sound or not.
    pub records: Quota,
    /// Bytes of bodies that are decoded.
    pub bytes: Quota,
}

impl IntakeQuota {
    /// So much in a minute. The largest request is never too large for it.
    #[must_use]
    pub fn per_minute(records: u32, bytes: u32) -> Self {
        Self {
            records: Quota::per_minute(records, count(BATCH_RECORDS_MAX)),
            bytes: Quota::per_minute(bytes, count(REQUEST_BODY_BYTES_MAX)),
        }
    }
}

/// A request of somebody who handed in more than is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverRate {
    /// Until the same request may go on, if nothing else is handed in meanwhile.
    pub retry_after: Duration,
}

/// What one user has left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allowance {
    records: Bucket,
    bytes: Bucket,
}

impl Allowance {
    /// Takes the bytes of a body before any of it is decoded.
    ///
    /// # Errors
    /// When there are not so many left, or no record is: then it need not be decoded to be refused.
    pub fn decode(
        &mut self,
        quota: IntakeQuota,
        bytes: usize,
        now: Monotonic,
    ) -> Result<(), OverRate> {
        let bytes = count(bytes);
        let first_record = self.records.wait(quota.records, 1, now);
        if !first_record.is_zero() {
            let retry_after = first_record.max(self.bytes.wait(quota.bytes, bytes, now));
            return Err(OverRate { retry_after });
        }
        match self.bytes.take_many(quota.bytes, bytes, now) {
            Taken::Allowed { .. } => Ok(()),
            Taken::Refused { retry_after } => Err(OverRate { retry_after }),
        }
    }

    /// Takes the records that a body of so many bytes turned out to hold. What it cost to decode it is not given back.
    ///
    /// # Errors
    /// When there are not so many left.
    pub fn hand_in(
        &mut self,
        quota: IntakeQuota,
        records: usize,
        bytes: usize,
        now: Monotonic,
    ) -> Result<(), OverRate> {
        match self.records.take_many(quota.records, count(records), now) {
            Taken::Allowed { .. } => Ok(()),
            Taken::Refused { retry_after } => {
                // The same body has to be decoded again.
                let again = self.bytes.wait(quota.bytes, count(bytes), now);
                Err(OverRate {
                    retry_after: retry_after.max(again),
                })
            }
        }
    }

    /// Whether there is nothing to remember of this user.
    #[must_use]
    pub fn is_whole(&self, now: Monotonic) -> bool {
        self.records.is_full(now) && self.bytes.is_full(now)
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUOTA: IntakeQuota = IntakeQuota {
        records: Quota {
            per_minute: 600,
            burst: 2_000,
        },
        bytes: Quota {
            per_minute: 60_000,
            burst: 100_000,
        },
    };

    fn at(millis: u64) -> Monotonic {
        Monotonic::from_duration(Duration::from_millis(millis))
    }

    fn ask(
        left: &mut Allowance,
        records: usize,
        bytes: usize,
        now: Monotonic,
    ) -> Result<(), OverRate> {
        left.decode(QUOTA, bytes, now)?;
        left.hand_in(QUOTA, records, bytes, now)
    }

    #[test]
    fn the_largest_request_fits_into_the_least_quota() {
        let least = IntakeQuota::per_minute(1, 1);
        let mut left = Allowance::default();
        left.decode(least, REQUEST_BODY_BYTES_MAX, at(0)).unwrap();
        left.hand_in(least, BATCH_RECORDS_MAX, REQUEST_BODY_BYTES_MAX, at(0))
            .unwrap();
    }

    #[test]
    fn without_a_record_left_nothing_is_decoded() {
        let mut left = Allowance::default();
        ask(&mut left, 2_000, 10, at(0)).unwrap();
        let before = left;
        let over = left.decode(QUOTA, 10, at(0)).unwrap_err();
        assert_eq!(over.retry_after, Duration::from_millis(100));
        assert_eq!(left, before, "it costs nothing");
        assert!(!left.is_whole(at(199_999)) && left.is_whole(at(200_000)));
    }

    #[test]
    fn decoding_in_vain_costs_bytes() {
        let mut left = Allowance::default();
        ask(&mut left, 1_999, 10, at(0)).unwrap();
        for _ in 0..9 {
            ask(&mut left, 2_000, 10_000, at(0)).unwrap_err();
        }
        let over = ask(&mut left, 1, 10_000, at(0)).unwrap_err();
        assert_eq!(over.retry_after, Duration::from_millis(10));
    }

    proptest! {
        /// However somebody asks: no more is handed in or decoded than the burst and what came back, and whoever was
        /// refused for what a body held and waits as told is let through.
        #[test]
        fn never_more_than_the_quota(
            asked in prop::collection::vec((0_u64..4_000, 0_usize..2_001, 1_usize..100_001), 1..100),
        ) {
            let (mut left, mut now, mut records_in, mut decoded) = (Allowance::default(), 0, 0, 0);
            for (pause, records, bytes) in asked {
                now += pause;
                if left.decode(QUOTA, bytes, at(now)).is_ok() {
                    decoded += bytes;
                    match left.hand_in(QUOTA, records, bytes, at(now)) {
                        Ok(()) => records_in += records,
                        Err(over) => {
                            let then = at(now).saturating_add(over.retry_after);
                            prop_assert!(ask(&mut left.clone(), records, bytes, then).is_ok());
                        }
                    }
                }
                let back = usize::try_from(now).unwrap();
                prop_assert!(records_in <= 2_000 + back / 100);
                prop_assert!(decoded <= 100_000 + back);
            }
        }
    }
}
