//! `viworks error`: which codes of errors there are, and which of them is meant.

use viworks_api::ProblemCode;
use viworks_common::code::CloseCode;
use viworks_runtime::exit::ExitCode;

use crate::failure::Failure;
use crate::output::Format;
use crate::views::codes::{self, ErrorCode};

/// What is known about `wanted`, by its number or its name, or about every code.
pub(super) fn errors(wanted: Option<&str>, format: Format) -> Result<ExitCode, Failure> {
    let is_meant = |known: &ErrorCode| {
        wanted.is_none_or(|wanted| {
            known.code.eq_ignore_ascii_case(wanted) || known.meaning.eq_ignore_ascii_case(wanted)
        })
    };
    let found: Vec<_> = known().filter(is_meant).collect();
    if let (Some(wanted), true) = (wanted, found.is_empty()) {
        return Err(Failure::new(
            ExitCode::NotFound,
            format!("there is no error code {wanted:?}"),
        )
        .with("`viworks error` lists every code"));
    }
    codes::errors(found, format)?;
    Ok(ExitCode::Ok)
}

/// Of the API first, then those that a session is closed with.
fn known() -> impl Iterator<Item = ErrorCode> {
    let problems = ProblemCode::ALL.iter().map(|code| ErrorCode {
        code: code.code().to_owned(),
        meaning: code.title().to_owned(),
        advice: code.advice(),
    });
    let closes = CloseCode::ALL.iter().map(|code| ErrorCode {
        code: code.number().to_string(),
        meaning: code.name().to_owned(),
        advice: code.advice(),
    });
    problems.chain(closes)
}
