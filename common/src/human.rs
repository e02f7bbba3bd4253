//! Numbers and times as people read them; programs get them exactly, in JSON.

use std::time::Duration;

use crate::certificate::Life;
use crate::time::Timestamp;

/// A number with its thousands apart.
#[must_use]
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
#[must_use]
pub fn counted(number: usize, one: &str, several: &str) -> String {
    counted_all(u64::try_from(number).unwrap_or(u64::MAX), one, several)
}

/// The same for a number that came from the backend.
#[must_use]
pub fn counted_all(number: u64, one: &str, several: &str) -> String {
    format!(
        "{} {}",
        count(number),
        if number == 1 { one } else { several }
    )
}

/// Half a day, in seconds.
const HALF_A_DAY: u64 = 43_200;

/// A span of time in its largest unit or two; one of days is rounded, so that a clock that is set back by 400 days and
/// was read a moment later is not 399 days behind.
#[must_use]
pub fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..172_800 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => {
            let days = seconds.saturating_add(HALF_A_DAY) / 86_400;
            counted_all(days, "day", "days")
        }
    }
}

/// Reads a span of time such as `30s`, `15m`, `2h` or `500ms`; `None` for what is none.
#[must_use]
pub fn parse_span(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(milliseconds).map(Duration::from_millis)
}

/// A time as seen from now: `3 min 5 s ago`, `in 12 min 0 s`.
#[must_use]
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
#[must_use]
pub fn relative_and_exact(at: Timestamp, now: Timestamp) -> String {
    format!("{} ({})", relative(at, now), to_the_second(at))
}

/// When something happened, behind a sentence about it, with the exact time behind that. By a clock that is behind the
/// one that noted it, it may not have happened yet: then it just did.
#[must_use]
pub fn happened(at: Timestamp, now: Timestamp) -> String {
    let behind = now.saturating_since(at);
    if behind < Duration::from_secs(1) {
        return format!("just now ({})", to_the_second(at));
    }
    relative_and_exact(at, now)
}

/// A time of this day, in UTC: the clock that every machine of a fleet shares.
#[must_use]
pub fn clock_utc(at: Timestamp) -> String {
    let text = to_the_second(at);
    match text.split_once('T') {
        Some((_day, clock)) => clock.replace('Z', " UTC"),
        None => text,
    }
}

/// What is to be said of a certificate's life, behind words for the certificate; nothing while all is well.
#[must_use]
pub fn life(
    life: Life,
    not_before: Timestamp,
    not_after: Timestamp,
    now: Timestamp,
) -> Option<String> {
    match life {
        Life::Good => None,
        Life::EndsSoon { .. } => Some(format!("ends {}", relative_and_exact(not_after, now))),
        Life::Ended => Some(format!("ended {}", relative_and_exact(not_after, now))),
        Life::NotYet => Some(format!(
            "begins to be valid only {}, by this machine's clock",
            relative_and_exact(not_before, now)
        )),
    }
}

/// Whether two sentences say the same but for the numbers and times in them, and for one of a thing or several.
#[must_use]
pub fn same_but_for_numbers(one: &str, other: &str) -> bool {
    words(one).map(root).eq(words(other).map(root))
}

/// The words of a sentence that are neither a number nor the unit of one.
fn words(text: &str) -> impl Iterator<Item = &str> {
    const UNITS: [&str; 8] = ["us", "ms", "s", "min", "h", "day", "days", "KiB"];
    let mut behind_number = false;
    text.split_whitespace().filter(move |word| {
        let digits = word.contains(|c: char| c.is_ascii_digit());
        let only_digits = word
            .chars()
            .all(|c| c.is_ascii_digit() || c.is_ascii_punctuation() || matches!(c, 'T' | 'Z'));
        let number = digits && only_digits;
        let trimmed = word.trim_matches(|c: char| c.is_ascii_punctuation());
        let unit = behind_number && UNITS.contains(&trimmed);
        behind_number = number;
        !number && !unit
    })
}

/// What the words for one and for several have in common.
fn root(word: &str) -> &str {
    let bare = word.trim_matches(|c: char| c.is_ascii_punctuation());
    if !bare.chars().all(char::is_alphabetic) {
        return word;
    }
    match bare {
        "are" => "is",
        "were" => "was",
        "have" => "has",
        "is" | "was" | "has" => bare,
        _ => bare
            .strip_suffix("ies")
            .or_else(|| bare.strip_suffix('y'))
            .unwrap_or_else(|| bare.trim_end_matches('s').trim_end_matches('e')),
    }
}

/// How far one clock is from another, and on which side: `250 ms ahead of`, `2 h 15 min behind`.
#[must_use]
pub fn apart(ahead_ms: i64) -> String {
    let off = Duration::from_millis(ahead_ms.unsigned_abs());
    let shown = match off.as_millis() {
        0 => return "level with".to_owned(),
        millis @ 1..10_000 => format!("{} ms", count(u64::try_from(millis).unwrap_or_default())),
        _ => span(off),
    };
    let side = if ahead_ms < 0 { "behind" } else { "ahead of" };
    format!("{shown} {side}")
}

/// A time as it is written where nothing smaller than a second matters.
#[must_use]
pub fn to_the_second(at: Timestamp) -> String {
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
    fn what_has_happened_is_never_ahead() {
        let now = at(100);
        assert_eq!(happened(at(97), now), relative_and_exact(at(97), now));
        for then in [at(100), at(103)] {
            let exact = to_the_second(then);
            assert_eq!(happened(then, now), format!("just now ({exact})"));
        }
    }

    #[test]
    fn clocks_that_are_apart_are_told_as_people_tell_it() {
        for (ahead, told) in [
            (0, "level with"),
            (12, "12 ms ahead of"),
            (-9_999, "9,999 ms behind"),
            (10_000, "10 s ahead of"),
            (8_100_001, "2 h 15 min ahead of"),
            (i64::MIN, "106751991167 days behind"),
        ] {
            assert_eq!(apart(ahead).replace(',', ""), told.replace(',', ""));
        }
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

    #[test]
    fn days_are_rounded_and_shorter_spans_are_exact() {
        const DAY: u64 = 86_400;
        for (seconds, told) in [
            (400 * DAY, "400 days"),
            (400 * DAY - 1, "400 days"),
            (400 * DAY - DAY / 2 - 1, "399 days"),
            (400 * DAY + 3, "400 days"),
            (2 * DAY, "2 days"),
            (2 * DAY - 1, "47 h 59 min"),
            (59, "59 s"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), told, "{seconds}");
        }
    }

    #[test]
    fn a_certificate_is_spoken_of_only_when_its_end_or_beginning_is_near() {
        let (from, to) = (at(0), at(90 * 86_400));
        let said = |seconds: i64| {
            let now = at(seconds);
            life(crate::certificate::life(from, to, now), from, to, now)
        };
        assert_eq!(said(86_400), None);
        assert_eq!(
            said(87 * 86_400).unwrap(),
            "ends in 3 days (1970-04-01T00:00:00Z)"
        );
        assert_eq!(
            said(90 * 86_400 + 3_600).unwrap(),
            "ended 1 h 0 min ago (1970-04-01T00:00:00Z)"
        );
        assert!(
            said(-60)
                .unwrap()
                .starts_with("begins to be valid only in 1 min")
        );
    }

    #[test]
    fn another_number_is_not_another_sentence_and_another_name_is() {
        let same = same_but_for_numbers;
        assert!(same(
            "it ends in 3 h 5 min (2026-11-29T17:00:00Z); 7 records",
            "it ends in 12 days (2026-12-09T17:00:00Z); 1,234 records"
        ));
        assert!(same(
            "1 record was refused, 1 entry is full, 1 batch has come",
            "2 records were refused, 3 entries are full, 7 batches have come"
        ));
        assert!(!same(
            "telemetry of gw-1 is refused",
            "telemetry of gw-2 is refused"
        ));
        assert!(!same(
            "the key cannot be read",
            "the certificate cannot be read"
        ));
        assert!(!same("one", "one more"));
    }
}
