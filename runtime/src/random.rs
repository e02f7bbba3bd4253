//! Randomness from the operating system, the only source in the product.

use std::ops::Range;

use uuid::{Builder, Uuid};
use viworks_common::time::Timestamp;

/// Fills `buffer` with unpredictable bytes.
///
/// # Panics
///
/// When the operating system has no randomness to give. No secret made without it would be one, so there is nothing
/// to go on with.
pub fn fill(buffer: &mut [u8]) {
    getrandom::fill(buffer).expect("the operating system provides randomness from boot on");
}

/// Unpredictable bytes.
#[must_use]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut buffer = [0; N];
    fill(&mut buffer);
    buffer
}

/// A time-ordered identifier for a record made at `wall`.
#[must_use]
pub fn uuid_v7(wall: Timestamp) -> Uuid {
    // Before 1970 there is no such identifier; zero keeps a machine with a dead battery working.
    let millis = u64::try_from(wall.unix_micros() / 1000).unwrap_or_default();
    Builder::from_unix_timestamp_millis(millis, &bytes()).into_uuid()
}

/// An identifier that says nothing about its making.
#[must_use]
pub fn uuid_v4() -> Uuid {
    Builder::from_random_bytes(bytes()).into_uuid()
}

/// A number from `range`, each equally likely; the start of an empty range.
#[must_use]
pub fn uniform(range: Range<u64>) -> u64 {
    let span = range.end.saturating_sub(range.start);
    if span == 0 {
        return range.start;
    }
    // Numbers above the last whole multiple of `span` would favour the small results.
    let fair = u64::MAX - u64::MAX % span;
    loop {
        let drawn = u64::from_ne_bytes(bytes());
        if drawn < fair {
            return range.start + drawn % span;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_draws_differ() {
        assert_ne!(bytes::<32>(), bytes::<32>());
    }

    #[test]
    fn a_version_7_identifier_carries_its_time() {
        let uuid = uuid_v7(Timestamp::from_unix_micros(1_767_225_600_123_456));
        let (seconds, nanos) = uuid.get_timestamp().unwrap().to_unix();
        assert_eq!(uuid.get_version_num(), 7);
        assert_eq!((seconds, nanos), (1_767_225_600, 123_000_000));
    }

    #[test]
    fn a_time_before_1970_still_gives_an_identifier() {
        assert_eq!(
            uuid_v7(Timestamp::from_unix_micros(-1)).get_version_num(),
            7
        );
    }

    #[test]
    fn version_4_identifiers_are_marked_as_such() {
        assert_eq!(uuid_v4().get_version_num(), 4);
    }

    #[test]
    fn uniform_reaches_every_number_of_its_range_and_no_other() {
        let mut seen = [false; 5];
        for _ in 0..2000 {
            let drawn = uniform(10..15);
            assert!((10..15).contains(&drawn));
            seen[usize::try_from(drawn - 10).unwrap()] = true;
        }
        assert_eq!(seen, [true; 5]);
    }

    #[test]
    fn uniform_of_an_empty_range_is_its_start() {
        assert_eq!(uniform(7..7), 7);
        assert_eq!(uniform(u64::MAX..u64::MAX), u64::MAX);
    }
}
