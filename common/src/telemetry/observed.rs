//! When a record was observed: what the gateway's clock said, unless that clock is known to be wrong.

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::time::Timestamp;

/// Whose clock says when a record was observed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum TimeSource {
    /// The gateway's.
    Gateway,
    /// The gateway's, less what it was measured to differ from the backend's.
    Skew,
    /// The backend's, when the record arrived: nothing better is known.
    Received,
}

impl TimeSource {
    /// The word in the store and in answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Skew => "skew",
            Self::Received => "received",
        }
    }

    /// The source with a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Gateway, Self::Skew, Self::Received]
            .into_iter()
            .find(|source| source.name() == name)
    }
}

/// When a record was observed whose gateway says `said`. `skew_ms` is the gateway's clock minus the backend's, as last
/// measured, and `now` the backend's clock. No record is lost because of a clock: one that no correction makes
/// plausible was observed when it arrived.
#[must_use]
pub fn observed(said: Timestamp, skew_ms: Option<i64>, now: Timestamp) -> (Timestamp, TimeSource) {
    let plausible = |at: &Timestamp| {
        *at >= now.saturating_sub(limits::OBSERVED_PAST_MAX)
            && *at <= now.saturating_add(limits::OBSERVED_FUTURE_MAX)
    };
    let corrected = skew_ms
        .filter(|skew| u128::from(skew.unsigned_abs()) >= limits::SKEW_CORRECTED_FROM.as_millis())
        .map(|skew| {
            said.unix_micros()
                .saturating_sub(skew.saturating_mul(1_000))
        })
        .map(Timestamp::from_unix_micros)
        .filter(plausible);
    match corrected {
        Some(at) => (at, TimeSource::Skew),
        None if plausible(&said) => (said, TimeSource::Gateway),
        None => (now, TimeSource::Received),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_800_000_000_000_000;
    const HOUR: i64 = 3_600_000_000;

    fn seen(said: i64, skew_ms: Option<i64>) -> (i64, TimeSource) {
        let (at, source) = observed(
            Timestamp::from_unix_micros(said),
            skew_ms,
            Timestamp::from_unix_micros(NOW),
        );
        (at.unix_micros(), source)
    }

    #[test]
    fn a_wrong_clock_is_corrected_and_never_a_reason_to_lose_a_record() {
        assert_eq!(
            seen(NOW - HOUR, Some(300)),
            (NOW - HOUR, TimeSource::Gateway)
        );
        assert_eq!(seen(NOW - HOUR, None), (NOW - HOUR, TimeSource::Gateway));
        let ahead = Some(2 * HOUR / 1_000);
        assert_eq!(seen(NOW + 2 * HOUR, ahead), (NOW, TimeSource::Skew));
        assert_eq!(seen(NOW + HOUR, ahead), (NOW - HOUR, TimeSource::Skew));
        assert_eq!(seen(NOW + 2 * HOUR, None), (NOW, TimeSource::Received));
        assert_eq!(seen(0, Some(0)), (NOW, TimeSource::Received));
        assert_eq!(seen(0, Some(-NOW / 1_000)), (NOW, TimeSource::Skew));
    }

    proptest! {
        #[test]
        fn what_is_stored_is_plausible_whatever_is_said(said in any::<i64>(), skew in any::<Option<i64>>()) {
            let (at, source) = seen(said, skew);
            prop_assert!((NOW - 401 * 24 * HOUR..=NOW + HOUR).contains(&at));
            prop_assert!(source != TimeSource::Gateway || at == said);
        }
    }
}
