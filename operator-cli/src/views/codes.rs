//! The codes that programs end with and that errors carry.

use serde::Serialize;
use viworks_runtime::exit::ExitCode;

use super::document::{Document, Items, Kind};
use crate::failure::Failure;
use crate::output::{self, Format};

/// A code that an error carries, what it means in a few words, and what a person should do.
#[derive(Debug, Serialize)]
pub struct ErrorCode {
    pub code: String,
    pub meaning: String,
    pub advice: &'static str,
}

#[derive(Serialize)]
struct Exit {
    code: u8,
    name: &'static str,
    meaning: &'static str,
}

/// Prints every exit code.
pub fn exits(format: Format) -> Result<(), Failure> {
    let exits = ExitCode::ALL.iter().map(|code| Exit {
        code: code.number(),
        name: code.name(),
        meaning: code.meaning(),
    });
    match format {
        Format::Json => Document::new(Kind::ExitCodeList, Items::of(exits)).print(),
        Format::Table => output::table(
            ["CODE", "NAME", "WHEN"],
            exits.map(|exit| {
                [
                    exit.code.to_string(),
                    exit.name.to_owned(),
                    exit.meaning.to_owned(),
                ]
            }),
        ),
    }
}

/// Prints codes of errors.
pub fn errors(codes: Vec<ErrorCode>, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => Document::new(Kind::ErrorList, Items::of(codes)).print(),
        Format::Table => output::table(
            ["CODE", "MEANING", "WHAT TO DO"],
            codes
                .into_iter()
                .map(|entry| [entry.code, entry.meaning, entry.advice.to_owned()]),
        ),
    }
}
