//! What to write where a file is not valid TOML: the parser says what it met, this says what it should have met.

/// Words of the parser, and what to do about them; the first that fits counts.
const HELP: &[(&str, &str)] = &[
    (
        REPEATED,
        "keep one of the two; all that belongs to one section stands under one [heading]",
    ),
    ("quote", QUOTES),
    ("unquoted string", QUOTES),
    (
        "basic string",
        "text ends with a quote on its line; write a quote in it as \\\" and a backslash as \\\\",
    ),
    (
        "literal string",
        "text ends with the quote it begins with, on the same line",
    ),
    (
        "inline table",
        "write it in one line: name = { key = value, other = value }",
    ),
    ("array table", "write [[name]] alone on its line"),
    ("array", "write a list as [\"one\", \"two\"]"),
    ("table", "write a heading as [name], alone on its line"),
    ("missing", "write a setting as key = value, on one line"),
    ("assignment", "write a setting as key = value, on one line"),
];

const REPEATED: &str = "duplicate key";
const QUOTES: &str = "write text in quotes: key = \"text\"";

/// For everything else.
const FORM: &str = "a line is a [heading], a setting (key = value, text in quotes) or a # comment";

/// What to do about an error of the parser.
pub(super) fn help(message: &str) -> &'static str {
    let found = HELP.iter().find(|(words, _)| message.contains(words));
    found.map_or(FORM, |(_, help)| help)
}

/// Whether what stands behind it may not have been read, so that a key that seems to be missing may be there. Of what
/// is there twice the first counts.
pub(super) fn hides_keys(message: &str) -> bool {
    !message.contains(REPEATED)
}

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;

    #[test]
    fn every_error_of_the_parser_has_a_fix() {
        for (text, wanted) in [
            ("a = 1\na = 2\n", "keep one"),
            ("[a]\nb = 1\n[a]\nc = 1\n", "keep one"),
            ("a = localhost\n", "text in quotes"),
            ("a = \"b\n", "with a quote"),
            ("a = [\"b\"\nc = 1\n", "a list"),
            ("[a\nb = 1\n", "a heading"),
            ("a =\n", "text in quotes"),
            ("a\n", "key = value"),
        ] {
            let (_, errors) = tree::parse(text, 0);
            let first = errors.first().unwrap().message();
            assert!(
                help(first).contains(wanted),
                "{text:?}: {first}: {}",
                help(first)
            );
        }
    }
}
