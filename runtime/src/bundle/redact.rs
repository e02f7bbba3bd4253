//! Text without what looks like a secret.

/// What stands in the place of a secret.
const REMOVED: &str = "[removed]";

/// Digits of a secret of this product in hexadecimal. Public digests are as long, and go with it.
const HEX_DIGITS: usize = 64;

/// How an API key begins.
const API_KEY: &str = "vwk_";

/// Words behind which a secret stands.
const NAMES: [&str; 7] = ["password", "passwd", "secret", "token", "apikey", "api_key", "agent_key"];

/// `text` without private keys, API keys, hexadecimal keys, passwords in addresses, and what stands behind a word for a
/// secret. In doubt it goes.
pub(super) fn redact(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut in_key = false;
    for line in text.split_inclusive('\n') {
        let begins = line.contains("-----BEGIN") && line.contains("PRIVATE KEY");
        if begins {
            kept.push_str(REMOVED);
            kept.push('\n');
        }
        in_key |= begins;
        if !in_key {
            redact_line(line, &mut kept);
        }
        // A key may be whole on one line, as in JSON.
        in_key &= !line.contains("-----END");
    }
    kept
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
        let is_hex = word.len() >= HEX_DIGITS && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        kept.push_str(if is_hex || word.starts_with(API_KEY) { REMOVED } else { word });
        rest = after;
        let hidden = if kept.ends_with("://") {
            userinfo(rest).map(|end| (0, end))
        } else {
            value_behind(word, rest)
        };
        if let Some((from, to)) = hidden {
            kept.push_str(&rest[..from]);
            kept.push_str(REMOVED);
            rest = &rest[to..];
        }
    }
}

/// Where the name and the password end that an address begins with.
fn userinfo(address: &str) -> Option<usize> {
    let ends = |c: char| matches!(c, '/' | '"' | '\'' | '<' | '>') || c.is_whitespace();
    let end = address.find(ends).unwrap_or(address.len());
    let at = address[..end].rfind('@')?;
    address[..at].contains(':').then_some(at)
}

/// From where to where a secret stands in `rest` when `word` is a name for one: `token=…`, `"token": "…"`, `Bearer …`.
fn value_behind(word: &str, rest: &str) -> Option<(usize, usize)> {
    let named = NAMES.iter().any(|name| word.eq_ignore_ascii_case(name));
    let between = rest.find(|c: char| !matches!(c, '"' | '\'' | ' ' | '=' | ':'))?;
    let assigned = rest[..between].contains(['=', ':']);
    let bearer = word.eq_ignore_ascii_case("bearer") && rest.starts_with(' ');
    if !(named && assigned || bearer) {
        return None;
    }
    // In quotes it may have spaces.
    let quote = rest[..between].chars().last();
    let quote = quote.filter(|last| matches!(last, '"' | '\''));
    let ends = |c: char| match quote {
        Some(quote) => c == quote || c == '\n',
        None => matches!(c, '"' | '\'' | ',' | ';' | '&' | '}') || c.is_whitespace(),
    };
    let length = rest[between..].find(ends).unwrap_or(rest.len() - between);
    (length > 0).then_some((between, between + length))
}

#[cfg(test)]
mod tests {
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
            (r#"{"token":"abc","name":"gw-1"}"#, r#"{"token":"[removed]","name":"gw-1"}"#),
            ("Authorization: Bearer abc.def", "Authorization: Bearer [removed]"),
            ("SECRET = 'a b'", "SECRET = '[removed]'"),
            ("db?password=x&a=1", "db?password=[removed]&a=1"),
        ] {
            assert_eq!(redact(text), wanted);
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
}
