//! Text that cannot do more to a terminal than appear on it.

use std::borrow::Cow;

/// `text` with every character escaped that could break the line, move the cursor or turn the reading direction;
/// the line break at its end stays.
pub(super) fn line(text: &str) -> Cow<'_, str> {
    let (body, end) = text
        .strip_suffix('\n')
        .map_or((text, ""), |body| (body, "\n"));
    if !body.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in body.chars() {
        if is_unsafe(character) {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    escaped.push_str(end);
    Cow::Owned(escaped)
}

fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harmless_text_is_not_copied() {
        assert!(matches!(
            line("grüße → 你好\n"),
            Cow::Borrowed("grüße → 你好\n")
        ));
    }

    #[test]
    fn controls_and_direction_marks_become_visible() {
        assert_eq!(
            line("a\nb\t\u{1b}[0m\u{9b}\u{202e}x\u{2066}\n"),
            "a\\nb\\t\\u{1b}[0m\\u{9b}\\u{202e}x\\u{2066}\n"
        );
    }

    #[test]
    fn only_the_last_line_break_stays() {
        assert_eq!(line("a\n\n"), "a\\n\n");
        assert_eq!(line("\n"), "\n");
        assert_eq!(line(""), "");
    }
}
