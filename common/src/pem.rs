//! What a PEM text has in it, told before anything of it is decoded: readers skip without a word what they do not look
//! for, and what they skipped would be written, or taken for something else, all the same. What was decoded is passed
//! on as [`certificate`] writes it, and never a part of the text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The label of a certificate.
pub const CERTIFICATE: &str = "CERTIFICATE";

/// Bytes in one line of a section.
const LINE: usize = 48;

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

/// A certificate (DER) as a section of its own: of the text that it was read from nothing comes along, however that is
/// put together.
#[must_use]
pub fn certificate(der: &[u8]) -> String {
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in der.chunks(LINE) {
        text.push_str(&STANDARD.encode(line));
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
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
    fn a_certificate_is_written_in_lines_of_64() {
        assert_eq!(certificate(&[0; 3]), ONE);
        let long = certificate(&[0xff; 2 * LINE + 1]);
        let lengths: Vec<usize> = long.lines().map(str::len).collect();
        assert_eq!(lengths, [27, 64, 64, 4, 25]);
        assert!(has_nothing_else(&long, CERTIFICATE));
    }

    #[test]
    fn a_key_on_the_line_where_a_certificate_ends_is_found() {
        let joined = format!("{}{KEY}", ONE.trim_end());
        assert!(!has_no_other(&joined, CERTIFICATE));
        for text in [
            joined,
            format!("{}{ONE}", ONE.trim_end()),
            format!("{} # mine\n", ONE.trim_end()),
        ] {
            assert!(!has_nothing_else(&text, CERTIFICATE), "{text}");
        }
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
