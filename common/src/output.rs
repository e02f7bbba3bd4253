//! The output of commands: where it may be divided, and which lines come of pieces that did not all arrive.

/// Bytes of one line that are gathered before a part of it is shown.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// Bytes behind a hole in which the beginning of a line is looked for.
const RESUME_BYTES_MAX: u64 = 64 * 1024;
/// Bytes within which the end of a line is looked for where output is cut.
const LINE_SEARCH_BYTES: usize = 4 * 1024;

/// How many bytes at the end begin a letter of UTF-8 that is not complete yet: at most three.
///
/// Bytes that can be no part of a letter are nobody's beginning, so data that is no text is never held back.
#[must_use]
pub fn begun_letter(bytes: &[u8]) -> usize {
    for (back, byte) in bytes.iter().rev().take(3).enumerate() {
        let needed = match byte {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => return 0,
        };
        return if back + 1 < needed { back + 1 } else { 0 };
    }
    0
}

/// How many bytes of a beginning that was cut are kept: up to the end of a line, or at least of a letter.
#[must_use]
pub fn cut_head(head: &[u8]) -> usize {
    let search = head.len().saturating_sub(LINE_SEARCH_BYTES);
    match head
        .get(search..)
        .and_then(|end| end.iter().rposition(|byte| *byte == b'\n'))
    {
        Some(line) => search + line + 1,
        None => head.len() - begun_letter(head),
    }
}

/// How many bytes of an end that was cut are left out: up to the beginning of a line, or at least of a letter.
#[must_use]
pub fn cut_tail(tail: &[u8]) -> usize {
    let line = tail
        .iter()
        .take(LINE_SEARCH_BYTES)
        .position(|byte| *byte == b'\n');
    // A line end that is the last byte of all would leave nothing.
    match line.filter(|line| line + 1 < tail.len()) {
        Some(line) => line + 1,
        None => tail
            .iter()
            .take(3)
            .take_while(|byte| matches!(byte, 0x80..=0xbf))
            .count(),
    }
}

/// What can be shown of one output stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// A whole line, without its end; or the last part of one that began with [`Shown::Part`].
    Line(Vec<u8>),
    /// A part of a line that is very long; more of it follows.
    Part(Vec<u8>),
    /// What arrived of a line whose beginning did not, without its end.
    Rest(Vec<u8>),
    /// So many bytes lie here that are not shown: they did not arrive, or are a part of a line whose end did not.
    Missing(u64),
}

/// Makes lines of the pieces of one output stream by their offsets, and never one that was not written: the rest of one
/// is told from a whole one.
///
/// What is shown, with a byte for the end of each line, and what is counted as not shown add up to what was written.
#[derive(Debug, Default)]
pub struct Lines {
    reached: u64,
    line: Vec<u8>,
    parted: bool,
    /// Bytes left out since a hole, while the beginning of a line is looked for.
    searched: Option<u64>,
    /// Those bytes.
    rest: Vec<u8>,
    hidden: u64,
    /// Whether the last line that was shown is one that was broken off.
    broken: bool,
}

impl Lines {
    /// Behind the last byte that arrived.
    #[must_use]
    pub const fn reached(&self) -> u64 {
        self.reached
    }

    /// Goes back behind the last byte that was shown: what was left out since then, and what was only gathered, can be
    /// given again from what was retained.
    pub fn rewind(&mut self) {
        let gathered = length(self.line.len()).saturating_add(length(self.rest.len()));
        let not_shown = self.hidden.saturating_add(gathered);
        self.reached = self.reached.saturating_sub(not_shown);
        self.hidden = 0;
        self.line.clear();
        self.rest.clear();
        // The rest of a line that was broken off is no line.
        self.searched = self.broken.then_some(0);
    }

    /// Takes the piece of the stream at `offset`.
    pub fn push(&mut self, offset: u64, data: &[u8], show: &mut dyn FnMut(Shown)) {
        if offset < self.reached {
            // A command that was run again begins again.
            self.end(None, show);
            *self = Self::default();
        }
        if offset > self.reached {
            self.lose(offset - self.reached, show);
        }
        self.reached = offset.saturating_add(length(data.len()));
        let mut rest = data;
        if let Some(searched) = self.searched {
            let end = rest.iter().position(|byte| *byte == b'\n');
            let left_out = end.map_or(rest.len(), |end| end + 1);
            let (before, behind) = rest.split_at(left_out);
            self.rest.extend_from_slice(before);
            rest = behind;
            let searched = searched.saturating_add(length(left_out));
            let found = end.is_some() || searched >= RESUME_BYTES_MAX;
            self.searched = (!found).then_some(searched);
            if found {
                self.show_rest(show);
            }
        }
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, behind) = rest.split_at(end);
            self.line.extend_from_slice(line);
            rest = behind.get(1..).unwrap_or(&[]);
            self.show_line(show);
        }
        self.line.extend_from_slice(rest);
        if self.line.len() > LINE_BYTES_MAX {
            let begun = self
                .line
                .split_off(self.line.len() - begun_letter(&self.line));
            let part = std::mem::replace(&mut self.line, begun);
            self.show_hidden(show);
            self.parted = true;
            show(Shown::Part(part));
        }
    }

    /// No more comes. With the number of bytes that were written in all, what is missing at the end is told as well.
    pub fn end(&mut self, written: Option<u64>, show: &mut dyn FnMut(Shown)) {
        let missing = written.unwrap_or(0).saturating_sub(self.reached);
        if missing > 0 {
            self.lose(missing, show);
            self.reached = self.reached.saturating_add(missing);
        } else if self.parted || !self.line.is_empty() {
            self.show_line(show);
        }
        self.hide_rest();
        self.show_hidden(show);
    }

    fn lose(&mut self, bytes: u64, show: &mut dyn FnMut(Shown)) {
        self.hide_rest();
        if self.parted {
            // It was shown in part already; what follows is no part of it.
            self.show_line(show);
            self.broken = true;
        } else {
            self.hidden = self.hidden.saturating_add(length(self.line.len()));
            self.line.clear();
        }
        self.hidden = self.hidden.saturating_add(bytes);
        self.searched = Some(0);
    }

    fn show_line(&mut self, show: &mut dyn FnMut(Shown)) {
        self.show_hidden(show);
        self.parted = false;
        self.broken = false;
        show(Shown::Line(std::mem::take(&mut self.line)));
    }

    /// Shows the rest of a line behind a hole. Where it has no end within reason, or nothing else, it is left out.
    fn show_rest(&mut self, show: &mut dyn FnMut(Shown)) {
        if self.rest.len() > 1 && self.rest.pop_if(|last| *last == b'\n').is_some() {
            let rest = std::mem::take(&mut self.rest);
            self.show_hidden(show);
            self.broken = false;
            show(Shown::Rest(rest));
        } else {
            self.hide_rest();
        }
    }

    fn hide_rest(&mut self) {
        self.hidden = self.hidden.saturating_add(length(self.rest.len()));
        self.rest.clear();
    }

    fn show_hidden(&mut self, show: &mut dyn FnMut(Shown)) {
        if self.hidden > 0 {
            show(Shown::Missing(std::mem::take(&mut self.hidden)));
        }
    }
}

fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_beginning_of_a_letter_is_held_back() {
        assert_eq!(begun_letter(b"plain"), 0);
        assert_eq!(begun_letter("é".as_bytes()), 0);
        assert_eq!(begun_letter(b"\xc3"), 1);
        assert_eq!(begun_letter(b"a\xe2\x82"), 2);
        assert_eq!(begun_letter(b"\xf0\x9f\x98"), 3);
        assert_eq!(begun_letter(b"\x80\x80\x80\x80"), 0);
        assert_eq!(begun_letter(b"\xff"), 0);
    }

    #[test]
    fn what_was_left_out_behind_the_last_shown_byte_can_be_given_again() {
        let shown = |pieces: &[(u64, &[u8])], again: &[u8]| {
            let mut lines = Lines::default();
            let mut shown = Vec::new();
            for (offset, data) in pieces {
                lines.push(*offset, data, &mut |one| shown.push(one));
            }
            lines.rewind();
            let from = usize::try_from(lines.reached()).unwrap();
            let rest = &again[from..];
            lines.push(lines.reached(), rest, &mut |one| shown.push(one));
            lines.end(Some(length(again.len())), &mut |one| shown.push(one));
            shown
        };
        let line = |text: &[u8]| Shown::Line(text.to_vec());
        let whole = b"one\ntwo\nthree\n";
        let all = [line(b"one"), line(b"two"), line(b"three")];
        // The beginning was lost, and what came was a part of a line.
        assert_eq!(shown(&[(10, b"re")], whole), all);
        // What is shown of it is not shown again.
        assert_eq!(
            shown(&[(10, b"ree\n")], whole),
            [Shown::Missing(10), Shown::Rest(b"ree".to_vec())]
        );
        assert_eq!(shown(&[(0, b"one\n"), (10, b"re")], whole), all);
        assert_eq!(shown(&[], whole), all);
        assert_eq!(shown(&[(0, whole)], whole), all);
        // The rest of a line that was broken off is not shown as a whole one.
        let long = [b"x".repeat(LINE_BYTES_MAX + 1), b"yy\nz\n".to_vec()].concat();
        let part = &long[..=LINE_BYTES_MAX];
        let end = length(LINE_BYTES_MAX + 2);
        assert_eq!(
            shown(&[(0, part), (end, b"y")], &long),
            [
                Shown::Part(part.to_vec()),
                line(b""),
                Shown::Rest(b"yy".to_vec()),
                line(b"z")
            ]
        );
    }

    #[test]
    fn cuts_fall_between_lines_and_else_between_letters() {
        assert_eq!(cut_head(b"one\ntw"), 4);
        assert_eq!(cut_head(b"one"), 3);
        assert_eq!(cut_head("né".as_bytes().get(..2).unwrap()), 1);
        assert_eq!(cut_tail(b"ne\ntwo\n"), 3);
        assert_eq!(cut_tail("é".as_bytes().get(1..).unwrap()), 1);
        assert_eq!(cut_tail(b"no end"), 0);
        assert_eq!(cut_tail(b"end\n"), 0);
    }

    /// Lines as text, `+` behind a part and before a rest, and `-n` for what is not shown.
    fn shown(pieces: &[(u64, &[u8])], written: Option<u64>) -> Vec<String> {
        let mut said = Vec::new();
        let mut show = |shown| {
            said.push(match shown {
                Shown::Line(line) => String::from_utf8(line).unwrap(),
                Shown::Part(part) => format!("{}+", String::from_utf8(part).unwrap()),
                Shown::Rest(rest) => format!("+{}", String::from_utf8(rest).unwrap()),
                Shown::Missing(bytes) => format!("-{bytes}"),
            });
        };
        let mut lines = Lines::default();
        for (offset, data) in pieces {
            lines.push(*offset, data, &mut show);
        }
        lines.end(written, &mut show);
        said
    }

    #[test]
    fn no_line_is_made_over_a_hole() {
        let pieces: [(u64, &[u8]); 3] = [(0, b"one\ntw"), (6, b"o\nthr"), (20, b"ve\nsix\n")];
        let all = ["one", "two", "-12", "+ve", "six", "-3"];
        assert_eq!(shown(&pieces, Some(27)), all[..5]);
        assert_eq!(shown(&pieces, Some(30)), all);
        // Whatever arrived with its end is shown, and an end alone is nothing to show.
        assert_eq!(shown(&[(9, b"line 1\n")], Some(16)), ["-9", "+line 1"]);
        assert_eq!(shown(&[(9, b"\nnext\n")], Some(15)), ["-10", "next"]);
        assert_eq!(shown(&[], Some(7)), ["-7"]);
        assert_eq!(shown(&[(0, b"no end")], Some(6)), ["no end"]);
        assert_eq!(shown(&[(0, b"no end")], Some(8)), ["-8"]);
    }

    #[test]
    fn a_letter_that_two_pieces_share_is_one_letter() {
        let euro = "€\n".as_bytes();
        assert_eq!(shown(&[(0, &euro[..1]), (1, &euro[1..])], Some(4)), ["€"]);
    }

    #[test]
    fn a_command_that_is_run_again_begins_again() {
        let pieces: [(u64, &[u8]); 2] = [(0, b"one\ntwo"), (0, b"one\n")];
        assert_eq!(shown(&pieces, Some(4)), ["one", "two", "one"]);
    }

    #[test]
    fn a_very_long_line_is_shown_in_parts() {
        let long = vec![b'x'; LINE_BYTES_MAX + 1];
        let at = length(long.len());
        let said = shown(&[(0, &long), (at, b"end\n")], Some(at + 4));
        assert_eq!(said.len(), 2);
        assert!(said[0].ends_with("x+"));
        assert_eq!(said[1], "end");
    }

    proptest! {
        #[test]
        fn lines_are_lines_that_were_written_and_every_byte_is_accounted_for(
            lines in prop::collection::vec("[a-zé]{0,6}", 0..40),
            sizes in prop::collection::vec((1_usize..9, any::<bool>()), 1..60),
        ) {
            let whole: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
            let mut rest = whole.as_bytes();
            let (mut said, mut machine, mut at) = (Vec::new(), Lines::default(), 0);
            for (size, lost) in sizes {
                let (piece, behind) = rest.split_at(size.min(rest.len()));
                if !lost && !piece.is_empty() {
                    machine.push(at, piece, &mut |shown| said.push(shown));
                }
                at += length(piece.len());
                rest = behind;
            }
            machine.end(Some(length(whole.len())), &mut |shown| said.push(shown));
            let mut bytes = 0;
            for shown in said {
                match shown {
                    Shown::Line(line) => {
                        bytes += length(line.len()) + 1;
                        let line = String::from_utf8(line).unwrap();
                        prop_assert!(lines.contains(&line), "{line:?}");
                    }
                    Shown::Rest(rest) => {
                        bytes += length(rest.len()) + 1;
                        let is_one = lines.iter().any(|line| line.as_bytes().ends_with(&rest));
                        prop_assert!(is_one, "{rest:?}");
                    }
                    Shown::Missing(hidden) => bytes += hidden,
                    Shown::Part(_) => prop_assert!(false, "no line is long"),
                }
            }
            prop_assert_eq!(bytes, length(whole.len()));
        }

        #[test]
        fn text_that_is_divided_anywhere_stays_text(text in "\\PC{0,40}", at in 0_usize..80) {
            let bytes = text.as_bytes();
            let at = at.min(bytes.len());
            let (first, second) = bytes.split_at(at);
            prop_assert!(std::str::from_utf8(&first[..first.len() - begun_letter(first)]).is_ok());
            prop_assert!(std::str::from_utf8(&first[..cut_head(first)]).is_ok());
            prop_assert!(std::str::from_utf8(&second[cut_tail(second)..]).is_ok());
        }
    }
}
