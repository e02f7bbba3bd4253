//! Text without what looks like a secret.

use std::ops::Range;

/// What stands in the place of a secret.
const REMOVED: &str = "[removed]";

/// Digits of a secret of this product in hexadecimal. Public digests are as long, and go with it.
const HEX_DIGITS: usize = 64;

/// How the secrets begin that say what they are.
const PREFIXES: [&str; 2] = ["vwk_", "vwt1_"];

/// Words behind which a secret stands.
const NAMES: [&str; 9] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "api_key",
    "agent_key",
    "master_key",
];

/// Words of a header behind which a secret stands.
const SCHEMES: [&str; 2] = ["bearer", "basic"];

/// How a private key begins and ends.
const BEGIN: &str = "-----BEGIN";
const END: &str = "-----END";
const PRIVATE: &str = "PRIVATE KEY";

/// `text` without private keys, API keys, hexadecimal keys, passwords in addresses, and what stands behind a word for a
/// secret. In doubt it goes.
pub(super) fn redact(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    // The end of a log may begin within a key.
    let mut in_key = begins_within(text);
    let mut told = false;
    for line in text.split_inclusive('\n') {
        in_key |= line.contains(BEGIN) && line.contains(PRIVATE);
        if !in_key {
            redact_line(line, &mut kept);
            told = false;
            continue;
        }
        if !told {
            kept.push_str(REMOVED);
            kept.push('\n');
            told = true;
        }
        // A key may be whole on one line, as in JSON, and another one begin there.
        in_key = line.rfind(END) <= line.rfind(BEGIN);
    }
    kept
}

/// Whether the first thing that is said of private keys is that one ends.
fn begins_within(text: &str) -> bool {
    let mut lines = text.lines().filter(|line| line.contains(PRIVATE));
    let first = lines.find(|line| line.contains(BEGIN) || line.contains(END));
    first.is_some_and(|line| match (line.find(BEGIN), line.find(END)) {
        (Some(begin), Some(end)) => end < begin,
        (begin, _) => begin.is_none(),
    })
}

fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

fn redact_line(line: &str, kept: &mut String) {
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let end = if is_of_word(first) {
            rest.find(|c| !is_of_word(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let (word, after) = rest.split_at(end);
        redact_word(word, kept);
        rest = after;
        let hidden = if kept.ends_with("://") {
            userinfo(rest)
        } else {
            value_behind(word, rest)
        };
        if let Some(hidden) = hidden {
            kept.push_str(&rest[..hidden.start]);
            kept.push_str(REMOVED);
            rest = &rest[hidden.end..];
        }
    }
}

fn redact_word(word: &str, kept: &mut String) {
    if PREFIXES.iter().any(|prefix| word.contains(prefix)) {
        return kept.push_str(REMOVED);
    }
    let mut rest = word;
    while !rest.is_empty() {
        let is_hex = |c: char| c.is_ascii_hexdigit();
        let digits = rest.find(|c| !is_hex(c)).unwrap_or(rest.len());
        let others = rest[digits..].find(is_hex).unwrap_or(rest.len() - digits);
        let (run, after) = rest.split_at(digits);
        kept.push_str(if digits < HEX_DIGITS { run } else { REMOVED });
        kept.push_str(&after[..others]);
        rest = &after[others..];
    }
}

/// The name and the password that an address begins with.
fn userinfo(address: &str) -> Option<Range<usize>> {
    let ends = |c: char| matches!(c, '/' | '"' | '\'' | '<' | '>') || c.is_whitespace();
    let end = address.find(ends).unwrap_or(address.len());
    let at = address[..end].rfind('@')?;
    address[..at].contains(':').then_some(0..at)
}

/// The secret in `rest` when `word` is a name for one: `token=…`, `"token": "…"`, `Bearer …`.
fn value_behind(word: &str, rest: &str) -> Option<Range<usize>> {
    let is = |name: &&str| word.eq_ignore_ascii_case(name);
    let between = rest.find(|c: char| !matches!(c, '"' | '\'' | '\\' | ' ' | '=' | ':'))?;
    let (before, value) = rest.split_at(between);
    let assigned = before.contains(['=', ':']) && NAMES.iter().any(is);
    let of_header = before == " " && SCHEMES.iter().any(is);
    if !(assigned || of_header) {
        return None;
    }
    // In quotes it may have spaces.
    let length = match before.chars().next_back() {
        Some('"') if before.ends_with("\\\"") => value.find(['\\', '\n']),
        Some(quote @ ('"' | '\'')) => value.find([quote, '\n']),
        _ => value.find(|c: char| {
            matches!(c, '"' | '\'' | '\\' | ',' | ';' | '&' | '}') || c.is_whitespace()
        }),
    };
    let length = length.unwrap_or(value.len());
    (length > 0).then_some(between..between + length)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_looks_like_a_secret_is_taken_out_and_the_rest_stays() {
        let hex = "0f".repeat(32);
        let pem = "-----BEGIN PRIVATE KEY-----\nMIGHAgEA\n-----END PRIVATE KEY-----\n";
        let text = format!(
            "key {hex} of gw-1\n{pem}saw vwk_abc-DEF_123, url postgres://me:pass@db/x and wss://gw:8081/a\n"
        );
        assert_eq!(
            redact(&text),
            "key [removed] of gw-1\n[removed]\nsaw [removed], url postgres://[removed]@db/x and wss://gw:8081/a\n"
        );
    }

    #[test]
    fn what_is_named_as_a_secret_is_taken_out() {
        for (text, wanted) in [
            ("password=hunter2 user=me", "password=[removed] user=me"),
            (
                r#"{"token":"abc","name":"gw-1"}"#,
                r#"{"token":"[removed]","name":"gw-1"}"#,
            ),
            (
                r#"{"message":"{\"token\":\"a b\",\"name\":1}"}"#,
                r#"{"message":"{\"token\":\"[removed]\",\"name\":1}"}"#,
            ),
            (
                "Authorization: Bearer abc.def",
                "Authorization: Bearer [removed]",
            ),
            ("SECRET = 'a b'", "SECRET = '[removed]'"),
            ("db?password=x&a=1", "db?password=[removed]&a=1"),
        ] {
            assert_eq!(redact(text), wanted);
        }
    }

    #[test]
    fn a_private_key_goes_however_much_of_it_is_there() {
        for (text, wanted) in [
            // The end of a log that begins within one, and one that ends within one.
            (
                "MIGH\nAgEA\n-----END PRIVATE KEY-----\nup\n",
                "[removed]\nup\n",
            ),
            (
                "up\n-----BEGIN EC PRIVATE KEY-----\nMIGH\n",
                "up\n[removed]\n",
            ),
            // One behind a certificate on the same line.
            (
                "-----END CERTIFICATE----------BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----\nup",
                "[removed]\nup",
            ),
            (
                r#"{"pem":"-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----"}"#,
                "[removed]\n",
            ),
        ] {
            assert_eq!(redact(text), wanted, "{text}");
        }
    }

    #[test]
    fn what_only_speaks_of_secrets_stays() {
        for text in [
            "a certificate sha256/abc= of user@example.org\n",
            "[keys] master_key_file = /etc/viworks/master.key\n",
            "password_file = none\nthe token is not valid\n",
            "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        ] {
            assert_eq!(redact(text), text);
        }
    }

    proptest! {
        /// Whatever stands around it, and however it is said.
        #[test]
        fn no_secret_is_left(
            before in "[ -~\n]{0,60}",
            secret in "[0-9a-f]{64}",
            form in 0_usize..6,
            after in "[ -~\n]{0,60}",
        ) {
            let said = match form {
                0 => secret.clone(),
                1 => format!("vwk_{secret}"),
                2 => format!("\n-----BEGIN PRIVATE KEY-----\n{secret}\n-----END PRIVATE KEY-----\n"),
                3 => format!(" password={} ", &secret[..20]),
                4 => format!(" {{\"token\": \"{}\"}} ", &secret[..20]),
                _ => format!(" postgres://me:{}@db/x ", &secret[..20]),
            };
            let redacted = redact(&format!("{before}{said}{after}"));
            prop_assert!(!redacted.contains(&secret[..20]), "{redacted}");
        }
    }
}
