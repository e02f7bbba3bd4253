//! Errors of the command line: what failed, the state left behind, the fix, and a code to look up.

use std::io::Write;

use serde_json::json;
use viworks_api::{Problem, ProblemCode};
use viworks_common::text;
use viworks_runtime::exit::ExitCode;

use crate::output::one_line;

/// Fields of a submission, and the flags that they come from.
const FLAGS: [(&str, &str); 6] = [
    ("deadline_ms", "--expires"),
    ("timeout_ms", "--timeout"),
    ("skip_unable", "--skip-unable"),
    ("expect_targets", "--confirm"),
    ("reason", "--reason"),
    ("Idempotency-Key", "--idempotency-key"),
];

/// How to run without the gateways that stand in the way, which the API says in its own words.
const WITHOUT_THEM: &str =
    "leave them out (of -g, or of --all with --except NAMES), or add --skip-unable";

/// A field of the API in the words of the command line.
fn flag(field: &str) -> &str {
    FLAGS
        .iter()
        .find(|(name, _flag)| *name == field)
        .map_or(field, |(_name, flag)| flag)
}

/// One failure, ready to be shown to a person or to a program.
#[derive(Debug)]
pub struct Failure {
    /// What the process exits with.
    pub exit: ExitCode,
    /// What failed: a lower-case fragment.
    pub what: String,
    /// State left behind and the fix, a sentence each.
    pub details: Vec<String>,
    /// The backend's own words, when it had any.
    pub problem: Option<Box<Problem>>,
    /// Whether there is nobody to tell: who read standard output has gone, as `head` does.
    pub quiet: bool,
}

impl Failure {
    /// A failure with an exit code and what went wrong.
    pub fn new(exit: ExitCode, what: impl Into<String>) -> Self {
        Self {
            exit,
            what: what.into(),
            details: Vec::new(),
            problem: None,
            quiet: false,
        }
    }

    /// Who read standard output has gone: nothing is wrong, and nothing is left to say.
    pub fn reader_gone() -> Self {
        Self {
            quiet: true,
            ..Self::new(
                ExitCode::ReaderGone,
                "the reader of standard output has gone",
            )
        }
    }

    /// Whether the backend gave this reason.
    pub fn is(&self, code: ProblemCode) -> bool {
        self.problem
            .as_ref()
            .is_some_and(|problem| problem.code == code.code())
    }

    /// Wrong flags or arguments.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(ExitCode::Usage, what)
    }

    /// Adds a sentence: the state left behind, or the fix.
    #[must_use]
    pub fn with(mut self, detail: impl Into<String>) -> Self {
        self.details.push(detail.into());
        self
    }

    /// Prints the failure on standard error: lines for people, one JSON object for programs.
    pub fn print(&self, json: bool) {
        crate::output::clear_status();
        if self.quiet {
            return;
        }
        let mut text = Vec::new();
        let composed = if json {
            self.write_json(&mut text)
        } else {
            self.write_text(&mut text)
        };
        let text = String::from_utf8_lossy(&text);
        let harmless = if json {
            text::json(&text)
        } else {
            text::block(&text)
        };
        // Nobody is left to tell when standard error is gone.
        let _written =
            composed.and_then(|()| std::io::stderr().lock().write_all(harmless.as_bytes()));
    }

    fn write_text(&self, out: &mut impl Write) -> std::io::Result<()> {
        writeln!(out, "error: {}", one_line(&self.what))?;
        for detail in &self.details {
            writeln!(out, "  {}", one_line(detail))?;
        }
        if let Some(problem) = &self.problem {
            for error in &problem.errors {
                writeln!(
                    out,
                    "  {}: {}",
                    one_line(flag(&error.field)),
                    one_line(&error.problem)
                )?;
                if let Some(allowed) = &error.allowed {
                    let of_the_api = allowed.contains("all_except");
                    let allowed = if of_the_api { WITHOUT_THEM } else { allowed };
                    writeln!(out, "    allowed: {}", one_line(allowed))?;
                }
            }
            if let Ok(code) = problem.code.parse::<ProblemCode>() {
                writeln!(out, "  fix: {}", code.advice())?;
            }
            let request = &problem.request_id;
            writeln!(
                out,
                "  help  viworks error {}   request {request}",
                problem.code
            )?;
        }
        Ok(())
    }

    fn write_json(&self, out: &mut impl Write) -> std::io::Result<()> {
        let value = match &self.problem {
            Some(problem) => serde_json::to_value(problem).unwrap_or_default(),
            None => json!({
                "type": "about:blank",
                "title": self.what,
                "detail": self.details.join(" "),
                "code": self.exit.name(),
            }),
        };
        writeln!(out, "{value}")
    }
}

/// An error with everything that it was caused by, each said once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(ExitCode::Error, error.to_string())
    }
}
