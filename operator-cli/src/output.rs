//! What is printed: tables for people, JSON for programs, and never a control character from a gateway.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;
use viworks_common::text;
use viworks_runtime::exit::ExitCode;
use viworks_runtime::stdout::{self, PrintError};

use crate::failure::Failure;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Aligned columns.
    Table,
    /// One JSON document.
    Json,
}

/// Text of several lines that cannot drive a terminal, whoever sent it.
pub fn plain(text: &str) -> String {
    text::block(text).into_owned()
}

/// The same for what belongs on one line, so that nobody's title forges the next one.
pub fn one_line(text: &str) -> String {
    text::line(text).into_owned()
}

/// Letters of one line of output in a table.
const LINE_LETTERS_MAX: usize = 200;

/// The last line of `text` that is not empty, on one line that a table can hold.
pub fn last_line(text: &str) -> String {
    short(&plain(
        text.lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("")
            .trim_end(),
    ))
}

/// A line as a table holds it: of a very long one the beginning.
pub fn short(line: &str) -> String {
    match line.char_indices().nth(LINE_LETTERS_MAX) {
        Some((end, _letter)) => format!("{}…", line.get(..end).unwrap_or(line)),
        None => line.to_owned(),
    }
}

/// Prints data on standard output; a closed pipe ends the output, not the program.
pub fn line(text: &str) -> Result<(), Failure> {
    write_all(text, "\n")
}

/// Prints data without a line end.
pub fn raw(text: &str) -> Result<(), Failure> {
    write_all(text, "")
}

/// Whatever is printed passes here: escaping it once more changes nothing, and nothing is forgotten.
fn write_all(text: &str, end: &str) -> Result<(), Failure> {
    clear_status();
    let text = text::block(text);
    match stdout::print(&format!("{text}{end}")) {
        Ok(()) => Ok(()),
        Err(PrintError::ReaderGone) => Err(Failure::reader_gone()),
        Err(error @ PrintError::Failed(_)) => Err(Failure::new(ExitCode::Error, error.to_string())),
    }
}

/// Prints narration on standard error.
pub fn note(text: &str) {
    clear_status();
    // Narration is worth nothing when nobody can read it.
    let _written = writeln!(std::io::stderr().lock(), "{}", text::block(text));
}

/// Whether the last line of the terminal is a status line.
static STATUS: AtomicBool = AtomicBool::new(false);
/// Columns of a terminal that does not say how many it has.
const COLUMNS: usize = 80;

/// Shows `text` as the last line of the terminal on standard error, in place of the one before. Only for a terminal.
pub fn status(text: &str) {
    let columns = terminal_size::terminal_size_of(std::io::stderr())
        .map_or(COLUMNS, |(width, _height)| usize::from(width.0));
    let text = plain(text).replace('\n', " ");
    let cut: String = match text.char_indices().nth(columns.saturating_sub(1)) {
        Some((end, _letter)) => text
            .chars()
            .take(columns.saturating_sub(2))
            .chain(['…'])
            .take(end)
            .collect(),
        None => text,
    };
    STATUS.store(true, Ordering::Relaxed);
    // A status is worth nothing when nobody can read it.
    let _written = write!(std::io::stderr().lock(), "\r\x1b[K{cut}");
}

/// Takes the status line away, so that something else can be printed.
pub fn clear_status() {
    if STATUS.swap(false, Ordering::Relaxed) {
        let _written = write!(std::io::stderr().lock(), "\r\x1b[K");
    }
}

/// Prints one JSON document.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new(ExitCode::Error, error.to_string()))?;
    line(&text::json(&text))
}

/// Prints rows under headings; cut to the terminal's width only on a terminal.
pub fn table<const N: usize>(
    headings: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> Result<(), Failure> {
    line(&render(headings, rows))
}

/// The rows as aligned text.
pub fn render<const N: usize>(
    headings: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(headings);
    for row in rows {
        table.add_row(row.map(|cell| one_line(&cell.replace(['\n', '\t'], " "))));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;
    use viworks_common::text::is_unsafe;

    use super::{last_line, one_line, plain, render};

    proptest! {
        /// Whatever bytes a peer sends, in whatever column: lines are the table's own.
        #[test]
        fn no_byte_string_from_a_peer_prints_a_control_character(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            hostile in "[\u{0}-\u{1f}\u{7f}-\u{9f}\u{200e}\u{202e}\u{2066}x]{0,60}",
        ) {
            let text = String::from_utf8_lossy(&bytes).into_owned() + &hostile;
            let shown = render(["A", "B"], [[text.clone(), text.clone()]]);
            prop_assert!(shown.lines().count() <= 2 && !shown.replace('\n', "").contains(is_unsafe));
            prop_assert!(!one_line(&text).contains(is_unsafe));
            prop_assert!(!last_line(&text).contains(|c| is_unsafe(c) && c != '\t'));
            prop_assert!(!plain(&text).contains(|c| is_unsafe(c) && c != '\t' && c != '\n'));
            let document = serde_json::to_string_pretty(&json!({ "x": text })).unwrap();
            prop_assert!(!viworks_common::text::json(&document).replace('\n', "").contains(is_unsafe));
        }
    }

    #[test]
    fn control_characters_from_a_gateway_are_made_visible() {
        assert_eq!(
            plain("a\x1b[31mb\u{202e}c\td"),
            "a\\u{1b}[31mb\\u{202e}c\td"
        );
    }

    #[test]
    fn a_very_long_line_does_not_fill_a_table() {
        let long = "é".repeat(3_000_000);
        assert_eq!(last_line(&long), format!("{}…", "é".repeat(200)));
        assert_eq!(last_line(&"x".repeat(200)), "x".repeat(200));
    }

    #[test]
    fn the_last_line_skips_blank_ones() {
        assert_eq!(last_line("one\ntwo\n\n"), "two");
        assert_eq!(last_line(""), "");
    }

    #[test]
    fn a_table_has_no_trailing_blanks() {
        let text = render(["A", "B"], [["1".to_owned(), "x\ny".to_owned()]]);
        assert_eq!(text, "A  B\n1  x y");
    }
}
