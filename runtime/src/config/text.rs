//! The text of one configuration file, and where things stand in it.

use std::path::{Path, PathBuf};

use super::tree::Spot;
use crate::problem::{Place, Problem};

/// A file as it was read.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) path: PathBuf,
    pub(super) text: String,
    /// Where each line starts, in bytes.
    lines: Vec<usize>,
}

impl Text {
    pub(super) fn new(path: &Path, text: String) -> Self {
        let lines = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        Self {
            path: path.to_owned(),
            text,
            lines,
        }
    }

    /// The text of bytes that are UTF-8.
    pub(super) fn decode(path: &Path, bytes: Vec<u8>) -> Result<Self, Problem> {
        let text = String::from_utf8(bytes).map_err(|error| {
            let message = format!("not UTF-8: {}", error.utf8_error());
            Problem::of_file(path, message, "save the file as UTF-8")
        })?;
        Ok(Self::new(path, text))
    }

    /// The line and column of a place in it.
    pub(super) fn place(&self, spot: &Spot) -> Place {
        let at = spot.span.start.min(self.text.len());
        let line = self.lines.partition_point(|start| *start <= at);
        let start = self.lines.get(line.saturating_sub(1)).copied();
        let before = self.text.get(start.unwrap_or_default()..at);
        Place::Line {
            path: self.path.clone(),
            line: line.max(1),
            column: before.map_or(0, |before| before.chars().count()) + 1,
        }
    }
}
