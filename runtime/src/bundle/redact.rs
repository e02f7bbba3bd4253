//! Text without what looks like a secret.

use std::ops::Range;

/// What stands in the place of a secret.
const REMOVED: &str = "[removed]";

/// Digits of a secret of this product in hexadecimal. Public digests are as long, and go with it.
const HEX_DIGITS: usize = 64;

/// How the secrets begin that say what they are.
const PREFIXES: [&str; 2] = ["vwk_", "vwt1_"];

/// How words end behind which a secret stands.
const NAMES: [&str; 12] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "api_key",
    "api-key",
    "agent_key",
    "master_key",
    "private_key",
    "access_key",
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
    // How far an address was looked through: another one within it is not, or a line of them would take for ever.
    let mut looked = 0;
    while let Some(first) = rest.chars().next() {
        let end = if is_of_word(first) {
            rest.find(|c| !is_of_word(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let (word, after) = rest.split_at(end);
        redact_word(word, kept);
        rest = after;
        let at = line.len() - rest.len();
        let hidden = if !kept.ends_with("://") {
            value_behind(word, rest)
        } else if at < looked {
            None
        } else {
            let end = rest.find(ends_value).unwrap_or(rest.len());
            looked = at + end;
            userinfo(&rest[..end])
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

/// What no value without quotes goes beyond.
fn ends_value(c: char) -> bool {
    matches!(c, '"' | '\'') || c.is_whitespace()
}

/// The name and the password that an address begins with. Either may have any sign in it.
fn userinfo(address: &str) -> Option<Range<usize>> {
    let at = address.rfind('@')?;
    (at > 0).then_some(0..at)
}

/// The secret in `rest` when `word` is a name for one: `token=…`, `"auth_token": "…"`, `Bearer …`.
fn value_behind(word: &str, rest: &str) -> Option<Range<usize>> {
    let ends_with = |name: &str| {
        let begin = word.len().checked_sub(name.len());
        let end = begin.and_then(|begin| word.get(begin..));
        end.is_some_and(|end| end.eq_ignore_ascii_case(name))
    };
    let value = if NAMES.iter().any(|name| ends_with(name)) {
        assigned(rest)?
    } else if SCHEMES.iter().any(|name| word.eq_ignore_ascii_case(name)) {
        rest.strip_prefix(' ')?
    } else {
        return None;
    };
    let unescaped = value.trim_start_matches('\\');
    let (hidden, length) = match unescaped.chars().next() {
        Some(quote @ ('"' | '\'')) => {
            let hidden = unescaped.trim_start_matches(quote);
            let escapes = value.len() - unescaped.len();
            (hidden, length_in_quotes(hidden, quote, escapes))
        }
        _ => {
            let end = value.find(ends_value).unwrap_or(value.len());
            // They belong to the quote that it stands before.
            (value, value[..end].trim_end_matches('\\').len())
        }
    };
    let begin = rest.len() - hidden.len();
    (length > 0).then_some(begin..begin + length)
}

/// What is assigned to the name before `rest`.
fn assigned(rest: &str) -> Option<&str> {
    let blank = [' ', '\t'];
    let sign = rest.trim_start_matches(['"', '\'', '\\']);
    let sign = sign.trim_start_matches(blank);
    let value = sign.trim_start_matches(['=', ':', '>']);
    let is_assigned = sign[..sign.len() - value.len()].contains(['=', ':']);
    is_assigned.then(|| value.trim_start_matches(blank))
}

/// How much stands before the quote that ends a value. One with as many `escapes` as the first has ends it; a quote of
/// the value itself was escaped once more, and so were its backslashes.
fn length_in_quotes(value: &str, quote: char, escapes: usize) -> usize {
    let mut backslashes = 0;
    for (at, c) in value.char_indices() {
        match c {
            '\\' => backslashes += 1,
            '\n' => return at,
            _ if c == quote && backslashes % (2 * (escapes + 1)) == escapes => return at - escapes,
            _ => backslashes = 0,
        }
    }
    value.len()
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
            (
                "PGPASSWORD=x db_password = y",
                "PGPASSWORD=[removed] db_password = [removed]",
            ),
            ("X-Api-Key:\tx", "X-Api-Key:\t[removed]"),
            (r#"{"auth_token":" x"}"#, r#"{"auth_token":"[removed]"}"#),
        ] {
            assert_eq!(redact(text), wanted);
        }
    }

    #[test]
    fn a_secret_goes_whole_whatever_signs_it_has() {
        for (text, wanted) in [
            (
                r#"{"password":"a\"b\\","a":1}"#,
                r#"{"password":"[removed]","a":1}"#,
            ),
            (
                r#"{"message":"{\"token\":\"\\\"a\\\"b\",\"name\":1}"}"#,
                r#"{"message":"{\"token\":\"[removed]\",\"name\":1}"}"#,
            ),
            // Without quotes nothing else says where it ends.
            ("password=p,s;s}s a", "password=[removed] a"),
            ("db?password=x&a=1 b", "db?password=[removed] b"),
            (
                r#""saw token=x\" there""#,
                r#""saw token=[removed]\" there""#,
            ),
            ("postgres://me:p/s@s@db/x", "postgres://[removed]@db/x"),
            ("https://abc@host/a", "https://[removed]@host/a"),
        ] {
            assert_eq!(redact(text), wanted, "{text}");
        }
    }

    /// Or a log that ends in such a line would hold up the collecting for hours.
    #[test]
    fn a_long_line_takes_no_longer_than_many_short_ones() {
        for sign in [
            " ", "=", ":", "\"", "\\", "@", "://", "token ", "token=\"", "basic ",
        ] {
            let line = format!("{}password=hunter2", sign.repeat(200_000));
            assert!(!redact(&line).contains("hunter2"), "{sign}");
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

    /// What a name for a secret begins with.
    const BEFORE: [&str; 5] = ["", "PG", "db_", "x-", "VIWORKS_"];

    /// What a secret without quotes has in it, or in quotes as well.
    const SIGNS: [&str; 12] = ["", ",", ";", "&", "}", "/", "@", ":", "=", "\\", "'", "\""];
    const BARE: usize = 10;

    /// As it stands in a string.
    fn escaped(text: &str) -> String {
        text.replace('\\', r"\\").replace('"', "\\\"")
    }

    proptest! {
        /// Whatever stands around it and in it, and however it is said.
        #[test]
        fn no_secret_is_left(
            before in "[ -~\n]{0,60}",
            secret in "[0-9a-f]{64}",
            form in 0_usize..8,
            name in 0..BEFORE.len(),
            sign in 0..SIGNS.len(),
            after in "[ -~\n]{0,60}",
        ) {
            let (name, bare, sign) = (BEFORE[name], SIGNS[sign % BARE], SIGNS[sign]);
            let (head, tail) = (&secret[..20], &secret[20..40]);
            let bare = format!("{bare}{head}{bare}{tail}");
            let inner = escaped(&format!("{sign}{head}{sign} {tail}"));
            let object = format!(" {{\"{name}token\": \"{inner}\"}} ");
            let said = match form {
                0 => secret.clone(),
                1 => format!("vwk_{secret}"),
                2 => format!("\n-----BEGIN PRIVATE KEY-----\n{secret}\n-----END PRIVATE KEY-----\n"),
                3 => format!(" {name}password={bare} "),
                4 => format!(" postgres://me:{bare}@db/x "),
                5 => object,
                6 => escaped(&object),
                _ => escaped(&escaped(&object)),
            };
            let redacted = redact(&format!("{before}{said}{after}"));
            prop_assert!(!redacted.contains(head), "{redacted}");
            prop_assert!(!redacted.contains(tail), "{redacted}");
        }
    }
}
