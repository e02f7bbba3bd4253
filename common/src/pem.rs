//! What a PEM text has in it, told before anything of it is decoded: readers skip without a word what they do not look
//! for, and what they skipped would be written, or taken for something else, all the same.

/// The label of a certificate.
pub const CERTIFICATE: &str = "CERTIFICATE";

/// The labels of the sections that begin in a text, wherever on a line.
pub fn labels(text: &str) -> impl Iterator<Item = &str> {
    let begun = text.split("-----BEGIN ").skip(1);
    begun.map(|rest| rest.split_once("-----").map_or(rest, |(label, _)| label))
}

/// Whether every section that begins in a text has this label. There may be words beside them.
#[must_use]
pub fn has_no_other(text: &str, label: &str) -> bool {
    labels(text).all(|found| found == label)
}

/// Whether a text has sections with this label and nothing else: no other ones, and no words before, between or behind
/// them.
#[must_use]
pub fn has_nothing_else(text: &str, label: &str) -> bool {
    let begin = format!("-----BEGIN {label}-----");
    let end = format!("-----END {label}-----");
    let mut inside = false;
    for line in text.lines().map(str::trim_end) {
        if inside {
            if line == end {
                inside = false;
            } else if line.starts_with("-----") {
                return false;
            }
        } else if line == begin {
            inside = true;
        } else if !line.is_empty() {
            return false;
        }
    }
    !inside
}

/// The sections of a text that have this label, without whatever else it has.
#[must_use]
pub fn only(text: &str, label: &str) -> String {
    let begin = format!("-----BEGIN {label}-----");
    let end = format!("-----END {label}-----");
    let mut sections = String::new();
    let mut inside = false;
    for line in text.lines().map(str::trim_end) {
        inside |= line == begin;
        if inside {
            sections.push_str(line);
            sections.push('\n');
        }
        inside &= line != end;
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";

    #[test]
    fn sections_are_told_by_their_labels() {
        let text = format!("{ONE}{KEY}  {ONE}");
        let found: Vec<&str> = labels(&text).collect();
        assert_eq!(found, [CERTIFICATE, "PRIVATE KEY", CERTIFICATE]);
        assert_eq!(labels("no PEM").count(), 0);
        assert!(has_no_other(&format!("words\n{ONE}"), CERTIFICATE));
        assert!(!has_no_other(&text, CERTIFICATE));
    }

    #[test]
    fn nothing_but_what_is_asked_for_is_passed_on() {
        assert_eq!(only(&format!("{ONE}{ONE}"), CERTIFICATE), ONE.repeat(2));
        let mixed = format!("words\n{KEY}{ONE}more\n{KEY}{ONE}");
        assert_eq!(only(&mixed, CERTIFICATE), ONE.repeat(2));
        assert_eq!(only(KEY, CERTIFICATE), "");
    }

    #[test]
    fn whatever_is_beside_certificates_is_found() {
        for text in [
            String::new(),
            ONE.to_owned(),
            format!("\n{ONE}\n\n{ONE}"),
            ONE.replace('\n', "\r\n"),
        ] {
            assert!(has_nothing_else(&text, CERTIFICATE), "{text}");
        }
        for text in [
            KEY.to_owned(),
            format!("{ONE}{KEY}"),
            format!("{KEY}{ONE}"),
            format!("words\n{ONE}"),
            format!("{ONE}words"),
            format!("{ONE}words\n{ONE}"),
            format!("  {ONE}"),
            ONE.replace("AAAA", KEY),
            ONE.replace("-----END CERTIFICATE-----\n", ""),
        ] {
            assert!(!has_nothing_else(&text, CERTIFICATE), "{text}");
        }
    }
}
