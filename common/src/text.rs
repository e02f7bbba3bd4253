//! Text from the other end: what may be shown of it, and what it may be at all.
//!
//! Whatever a peer sends may end on a terminal or in a log. Characters that move a cursor, break a line or turn the
//! reading direction never get there as they are: they are written out.

use std::borrow::Cow;
use std::error::Error;
use std::fmt::Write;

use serde::{Deserialize, Deserializer};

use crate::limits;

/// Whether a character does more than appear: a control, a line separator, or one that turns the reading direction.
#[must_use]
pub fn is_unsafe(character: char) -> bool {
    breaks(character) || matches!(character, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{feff}')
}

/// Whether a character has no place in one line that people read: a control, a line separator, or an override of the
/// reading direction. Marks that right-to-left scripts need in ordinary text are not among them.
#[must_use]
pub fn breaks(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Whether `text` is one line of at most `bytes` bytes.
#[must_use]
pub fn is_line(text: &str, bytes: usize) -> bool {
    text.len() <= bytes && !text.chars().any(breaks)
}

/// `text` on one line that cannot do more to a terminal than appear on it.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    escape(text, is_unsafe)
}

/// The same for text of several lines: line breaks and tabulators stay.
#[must_use]
pub fn block(text: &str) -> Cow<'_, str> {
    escape(text, |c| is_unsafe(c) && c != '\n' && c != '\t')
}

/// A JSON document with the same characters written as JSON escapes, so that its meaning stays; its own line breaks
/// stay.
#[must_use]
pub fn json(document: &str) -> Cow<'_, str> {
    let hidden = |c: char| is_unsafe(c) && c != '\n';
    if !document.contains(hidden) {
        return Cow::Borrowed(document);
    }
    let mut escaped = String::with_capacity(document.len() + 16);
    for character in document.chars() {
        if hidden(character) {
            // All of them lie in the basic multilingual plane: one escape each.
            write!(escaped, "\\u{:04x}", u32::from(character))
                .expect("writing to a string succeeds");
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

/// A reason or detail as it is kept: on one harmless line, no longer than such texts travel.
///
/// Prose is never a cause to close: a result counts for more than the wording of its reason.
#[must_use]
pub fn told(text: &str) -> String {
    let text = &text[..text.floor_char_boundary(limits::DETAIL_BYTES_MAX)];
    let harmless = line(text);
    let end = harmless.floor_char_boundary(limits::DETAIL_BYTES_MAX);
    harmless[..end].to_owned()
}

/// An error with everything that it was caused by, for people. A cause whose words stand there already, as where an
/// error quotes its own, says nothing; a word that only begins, ends or goes on as it does is not it.
#[must_use]
pub fn in_full(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !says(&text, &said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}

/// Whether these words stand in a text, and not as a part of longer ones.
fn says(text: &str, words: &str) -> bool {
    let goes_on = |next: Option<char>| next.is_some_and(char::is_alphanumeric);
    words.is_empty()
        || text.match_indices(words).any(|(at, found)| {
            let (before, behind) = (&text[..at], &text[at + found.len()..]);
            !goes_on(before.chars().next_back()) && !goes_on(behind.chars().next())
        })
}

fn escape(text: &str, hidden: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&hidden) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if hidden(character) {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

/// Reads a reason or detail as it is kept, see [`told`].
///
/// # Errors
/// When it is no text.
pub fn deserialize_told<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(|text| told(&text))
}

/// Reads a reason or detail that may be absent as it is kept, see [`told`].
///
/// # Errors
/// When it is neither text nor null.
pub fn deserialize_told_option<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(|text| told(&text)))
}

/// Whether text in a JSON document holds NUL, which not every database takes and no operator can see.
#[must_use]
pub fn json_holds_nul(document: &[u8]) -> bool {
    const ESCAPE: &[u8] = b"\\u0000";
    let mut found = document.windows(ESCAPE.len()).enumerate();
    found.any(|(at, window)| {
        // Behind an odd number of backslashes the first of these is itself escaped.
        let before = document[..at].iter().rev();
        window == ESCAPE && before.take_while(|byte| **byte == b'\\').count() % 2 == 0
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nul_is_found_where_it_is_and_not_where_it_is_spelt() {
        for (document, holds) in [
            (r#"{"a":"\u0000"}"#, true),
            (r#"{"a\u0000":1}"#, true),
            (r#"{"a":"\\u0000"}"#, false),
            (r#"{"a":"\\\u0000"}"#, true),
            (r#"{"a":"u0000\u0001"}"#, false),
        ] {
            assert_eq!(json_holds_nul(document.as_bytes()), holds, "{document}");
            let read: serde_json::Value = serde_json::from_str(document).unwrap();
            let object = read.as_object().unwrap().iter().next().unwrap();
            let held =
                object.0.contains('\0') || object.1.as_str().is_some_and(|it| it.contains('\0'));
            assert_eq!(held, holds, "{document}");
        }
    }

    proptest! {
        #[test]
        fn nothing_unsafe_is_left(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let text = String::from_utf8_lossy(&bytes);
            prop_assert!(!line(&text).contains(is_unsafe));
            prop_assert!(!block(&text).contains(|c| is_unsafe(c) && c != '\n' && c != '\t'));
            let told = told(&text);
            prop_assert!(told.len() <= limits::DETAIL_BYTES_MAX && is_line(&told, limits::DETAIL_BYTES_MAX));
        }

        #[test]
        fn a_json_document_keeps_its_meaning(text in any::<String>()) {
            let document = serde_json::to_string_pretty(&[&text]).unwrap();
            let escaped = json(&document);
            prop_assert!(!escaped.contains(|c| is_unsafe(c) && c != '\n'));
            prop_assert_eq!(serde_json::from_str::<Vec<String>>(&escaped).unwrap(), [text]);
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{said}")]
    struct Told {
        said: &'static str,
        source: Option<Box<Self>>,
    }

    #[test]
    fn an_error_is_told_with_its_causes_and_each_of_them_once() {
        let cases: [(&[&'static str], &str); 8] = [
            (&["one"], "one"),
            (&["one", "two", "three"], "one: two: three"),
            // It quotes what is behind it, at its end or within.
            (&["a file: no room", "no room"], "a file: no room"),
            (
                &["a: no room; mend it", "no room", "b"],
                "a: no room; mend it: b",
            ),
            // One hands on what another one says, and one says nothing.
            (&["full", "full", "53100"], "full: 53100"),
            (&["one", "two", "one", ""], "one: two"),
            // Not what it says, only letters of it.
            (&["port 8443 is taken", "84"], "port 8443 is taken: 84"),
            (&["unavailable", "available"], "unavailable: available"),
        ];
        for (causes, expected) in cases {
            let mut told = None;
            for &said in causes.iter().rev() {
                let source = told.map(Box::new);
                told = Some(Told { said, source });
            }
            assert_eq!(in_full(&told.unwrap()), expected);
        }
    }

    #[test]
    fn what_is_escaped_once_stays_as_it_is() {
        let once = told("a\n\u{1b}[31m\u{202e}b\u{9b}");
        assert_eq!(once, "a\\n\\u{1b}[31m\\u{202e}b\\u{9b}");
        assert_eq!(told(&once), once);
    }
}
