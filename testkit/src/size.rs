//! Sizes as people write them on a command line.

/// Reads `65536`, `64KiB` or `64MiB`.
///
/// # Errors
///
/// In words, when the text is no size between one byte and a gibibyte.
pub fn parse(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        other => return Err(format!("{other:?} is not one of B, KiB, MiB, GiB")),
    };
    digits
        .parse::<usize>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .filter(|bytes| (1..=1 << 30).contains(bytes))
        .ok_or_else(|| format!("{text:?} is not a size between 1B and 1GiB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_their_unit() {
        assert_eq!(parse("65536"), Ok(65_536));
        assert_eq!(parse("1KiB"), Ok(1_024));
        assert_eq!(parse("64MiB"), Ok(64 * 1_048_576));
        assert_eq!(parse("1GiB"), Ok(1_073_741_824));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "0",
            "MiB",
            "1MB",
            "-1",
            "1.5MiB",
            "2GiB",
            "99999999999999999999GiB",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
