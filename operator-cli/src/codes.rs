//! The codes that programs end with and that errors carry: what each means and what to do about it.

use serde_json::{Value, json};
use viworks_api::ProblemCode;
use viworks_common::code::CloseCode;
use viworks_runtime::exit::ExitCode;

use crate::error::Failure;
use crate::output::{self, Format};

/// Prints every exit code.
pub fn exit_codes(format: Format) -> Result<ExitCode, Failure> {
    match format {
        Format::Table => output::table(
            ["CODE", "NAME", "WHEN"],
            ExitCode::ALL.iter().map(|code| {
                [
                    code.number().to_string(),
                    code.name().to_owned(),
                    code.meaning().to_owned(),
                ]
            }),
        )?,
        Format::Json => {
            let items: Vec<_> = ExitCode::ALL
                .iter()
                .map(|code| serde_json::json!({"code": code.number(), "name": code.name(), "meaning": code.meaning()}))
                .collect();
            output::json(
                &serde_json::json!({"apiVersion": "viworks/v1", "kind": "ExitCodeList", "items": items}),
            )?;
        }
    }
    Ok(ExitCode::Ok)
}

/// A code, what it means in a few words, and what a person should do.
struct Entry {
    code: String,
    meaning: String,
    advice: &'static str,
}

fn entries() -> impl Iterator<Item = Entry> {
    let problems = ProblemCode::ALL.iter().map(|code| Entry {
        code: code.code().to_owned(),
        meaning: code.title().to_owned(),
        advice: code.advice(),
    });
    let closes = CloseCode::ALL.iter().map(|code| Entry {
        code: code.number().to_string(),
        meaning: code.name().to_owned(),
        advice: code.advice(),
    });
    problems.chain(closes)
}

/// Prints what is known about `wanted`, or about every code.
pub fn errors(wanted: Option<&str>, format: Format) -> Result<ExitCode, Failure> {
    let matches = |entry: &Entry| {
        wanted.is_none_or(|wanted| {
            entry.code.eq_ignore_ascii_case(wanted) || entry.meaning.eq_ignore_ascii_case(wanted)
        })
    };
    let found: Vec<_> = entries().filter(matches).collect();
    if let (Some(wanted), true) = (wanted, found.is_empty()) {
        return Err(Failure::new(
            ExitCode::NotFound,
            format!("there is no error code {wanted:?}"),
        )
        .with("`viworks error` lists every code"));
    }
    match format {
        Format::Table => output::table(
            ["CODE", "MEANING", "WHAT TO DO"],
            found
                .into_iter()
                .map(|entry| [entry.code, entry.meaning, entry.advice.to_owned()]),
        )?,
        Format::Json => {
            let items: Vec<Value> = found
                .into_iter()
                .map(|entry| json!({"code": entry.code, "meaning": entry.meaning, "advice": entry.advice}))
                .collect();
            output::json(
                &json!({"apiVersion": "viworks/v1", "kind": "ErrorList", "items": items}),
            )?;
        }
    }
    Ok(ExitCode::Ok)
}
