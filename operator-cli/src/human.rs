//! Numbers and times as people read them; programs get them exactly with `-o json`.

use std::time::Duration;

use viworks_common::time::Timestamp;

/// A number with its thousands apart.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number with the word for what it counts.
pub fn counted(number: usize, one: &str, several: &str) -> String {
    counted_all(u64::try_from(number).unwrap_or(u64::MAX), one, several)
}

/// The same for a number that came from the backend.
pub fn counted_all(number: u64, one: &str, several: &str) -> String {
    format!(
        "{} {}",
        count(number),
        if number == 1 { one } else { several }
    )
}

/// A span of time in its largest unit or two.
pub fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..172_800 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A time as seen from now: `3 min 5 s ago`, `in 12 min 0 s`.
pub fn relative(at: Timestamp, now: Timestamp) -> String {
    let (behind, ahead) = (now.saturating_since(at), at.saturating_since(now));
    if ahead >= Duration::from_secs(1) {
        format!("in {}", span(ahead))
    } else if behind >= Duration::from_secs(1) {
        format!("{} ago", span(behind))
    } else {
        "now".to_owned()
    }
}

/// A time as seen from now, with the exact one behind it to the second.
pub fn relative_and_exact(at: Timestamp, now: Timestamp) -> String {
    format!("{} ({})", relative(at, now), to_the_second(at))
}

/// A time of this day, in UTC: the clock that every machine of a fleet shares.
pub fn clock_utc(at: Timestamp) -> String {
    let text = to_the_second(at);
    match text.split_once('T') {
        Some((_day, clock)) => clock.replace('Z', " UTC"),
        None => text,
    }
}

fn to_the_second(at: Timestamp) -> String {
    let text = at.to_string();
    match text.split_once('.') {
        Some((seconds, _fraction)) => format!("{seconds}Z"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_unix_micros(seconds * 1_000_000 + 1_234)
    }

    #[test]
    fn numbers_have_their_thousands_apart() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234), "1,234");
        assert_eq!(count(12_345_678), "12,345,678");
        assert_eq!(counted(1, "run", "runs"), "1 run");
        assert_eq!(counted(0, "run", "runs"), "0 runs");
    }

    #[test]
    fn times_are_said_from_now() {
        let now = at(1_000_000);
        assert_eq!(relative(now, now), "now");
        assert_eq!(relative(at(999_940), now), "1 min 0 s ago");
        assert_eq!(relative(at(1_000_720), now), "in 12 min 0 s");
        assert_eq!(relative(at(1_000_000 - 7_200), now), "2 h 0 min ago");
        assert_eq!(relative(at(1_000_000 - 864_000), now), "10 days ago");
        assert_eq!(
            relative_and_exact(at(0), at(5)),
            "5 s ago (1970-01-01T00:00:00Z)"
        );
        assert_eq!(clock_utc(at(3_661)), "01:01:01 UTC");
    }
}
