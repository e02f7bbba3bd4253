//! A failure on standard error: lines for people, one JSON object for programs.

use std::io::Write;

use serde::Serialize;
use viworks_api::{Problem, ProblemCode};
use viworks_common::text;

use crate::failure::Failure;
use crate::output::{self, Format, one_line};

/// Fields of a submission or of a ticket, and the flags that they come from.
const FLAGS: [(&str, &str); 12] = [
    ("deadline_ms", "--expires"),
    ("timeout_ms", "--timeout"),
    ("skip_unable", "--skip-unable"),
    ("expect_targets", "--confirm"),
    ("reason", "--reason"),
    ("Idempotency-Key", "--idempotency-key"),
    ("uses", "--uses"),
    ("expires_in_ms", "--ttl"),
    ("labels", "--label"),
    ("name", "--name"),
    ("name_prefix", "--name-prefix"),
    ("networks", "--from"),
];

/// How to run without the gateways that stand in the way, which the API says in its own words.
const WITHOUT_THEM: &str =
    "leave them out (of -g, or of --all with --except NAMES), or add --skip-unable";

/// What the API puts before the name of a gateway that stands in the way of a submission.
const NAMED: &str = "targets.gateways: ";

/// A field of the API in the words of the command line; of a gateway, its name.
fn flag(field: &str) -> &str {
    let field = field.strip_prefix(NAMED).unwrap_or(field);
    FLAGS
        .iter()
        .find(|(name, _flag)| *name == field)
        .map_or(field, |(_name, flag)| flag)
}

/// A failure that no answer of the backend describes, in the shape of one that does (RFC 9457).
#[derive(Serialize)]
struct Described<'f> {
    code: &'f str,
    detail: String,
    title: &'f str,
    r#type: &'static str,
}

/// Prints it, unless nobody is left to read it.
pub fn print(failure: &Failure, format: Format) {
    output::clear_status();
    if failure.quiet {
        return;
    }
    let mut text = Vec::new();
    let composed = match format {
        Format::Json => write_json(failure, &mut text),
        Format::Table => write_text(failure, &mut text),
    };
    let text = String::from_utf8_lossy(&text);
    let harmless = match format {
        Format::Json => text::json(&text),
        Format::Table => text::block(&text),
    };
    // Nobody is left to tell when standard error is gone.
    let _written = composed.and_then(|()| std::io::stderr().lock().write_all(harmless.as_bytes()));
}

fn write_text(failure: &Failure, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "error: {}", one_line(&failure.what))?;
    for detail in &failure.details {
        writeln!(out, "  {}", one_line(detail))?;
    }
    let Some(problem) = &failure.problem else {
        return Ok(());
    };
    for error in &problem.errors {
        let (field, what) = (one_line(flag(&error.field)), one_line(&error.problem));
        writeln!(out, "  {field}: {what}")?;
        if let Some(allowed) = &error.allowed {
            let of_the_api = allowed.contains("all_except");
            let allowed = if of_the_api { WITHOUT_THEM } else { allowed };
            writeln!(out, "    allowed: {}", one_line(allowed))?;
        }
    }
    if let Some(fix) = advice(problem) {
        writeln!(out, "  fix: {}", one_line(fix))?;
    }
    let (code, request) = (one_line(&problem.code), one_line(&problem.request_id));
    writeln!(out, "  help  viworks error {code}   request {request}")
}

/// What to do about it: what the backend says of this time, or what the code stands for.
pub fn advice(problem: &Problem) -> Option<&str> {
    let of_its_code = || {
        problem
            .code
            .parse::<ProblemCode>()
            .ok()
            .map(ProblemCode::advice)
    };
    problem.fix.as_deref().or_else(of_its_code)
}

fn write_json(failure: &Failure, out: &mut impl Write) -> std::io::Result<()> {
    let text = match &failure.problem {
        Some(problem) => serde_json::to_string(problem),
        None => serde_json::to_string(&Described {
            code: failure.exit.name(),
            // The cause first: a program that shows one field shows this one.
            detail: [
                std::slice::from_ref(&failure.what),
                failure.details.as_slice(),
            ]
            .concat()
            .join("; "),
            title: &failure.what,
            r#type: "about:blank",
        }),
    };
    writeln!(out, "{}", text?)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn nothing_that_a_server_says_forges_a_line() {
        let forged = "VW-Q-001\nall is well\u{1b}[2J";
        let mut failure = Failure::new(viworks_runtime::exit::ExitCode::Error, forged).with(forged);
        let problem = json!({
            "type": forged, "title": forged, "status": 422, "code": forged, "detail": forged, "request_id": forged,
            "errors": [{"field": forged, "problem": forged, "allowed": forged}], "fix": forged,
        });
        failure.problem = Some(Box::new(serde_json::from_value(problem).unwrap()));
        let mut text = Vec::new();
        write_text(&failure, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.lines().count(), 6, "{text}");
        assert!(!text.lines().any(|line| line.starts_with("all")), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn what_the_backend_says_of_this_time_is_the_fix() {
        let mut problem: Problem = serde_json::from_value(json!({
            "type": "t", "title": "conflict", "status": 409, "code": "VW-N-002", "detail": "one left", "request_id": "r",
        }))
        .unwrap();
        assert_eq!(advice(&problem), Some(ProblemCode::Conflict.advice()));
        problem.fix = Some("stage the next one".to_owned());
        assert_eq!(advice(&problem), Some("stage the next one"));
        let mut failure = Failure::usage("one left");
        failure.problem = Some(Box::new(problem));
        let mut text = Vec::new();
        write_text(&failure, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("\n  fix: stage the next one\n"), "{text}");
        assert!(!text.contains("decide again"), "{text}");
    }

    #[test]
    fn a_gateway_that_is_not_there_is_named_as_it_was_typed() {
        let problem = json!({
            "type": "t", "title": "unknown gateway", "status": 422, "code": "VW-C-004",
            "detail": "unknown or revoked gateways", "request_id": "r",
            "errors": [{"field": "targets.gateways: gw-berlin", "problem": "the gateway was revoked"}],
        });
        let mut failure = Failure::usage("unknown or revoked gateways");
        failure.problem = Some(Box::new(serde_json::from_value(problem).unwrap()));
        let mut text = Vec::new();
        write_text(&failure, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.contains("\n  gw-berlin: the gateway was revoked\n"),
            "{text}"
        );
    }

    #[test]
    fn a_program_that_shows_the_detail_shows_the_cause() {
        let failure = Failure::usage("unexpected argument '--x' found").with("try '--help'");
        let mut text = Vec::new();
        write_json(&failure, &mut text).unwrap();
        let document: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(document["code"], "usage");
        assert_eq!(document["title"], "unexpected argument '--x' found");
        assert_eq!(
            document["detail"],
            "unexpected argument '--x' found; try '--help'"
        );
    }
}
