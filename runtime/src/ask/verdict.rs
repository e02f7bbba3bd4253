//! What a health check found, for people, programs and service managers: one shape for both agents.

use std::time::Duration;

use serde::Serialize;
use viworks_common::text::{block, json};

use super::NoAnswer;
use crate::exit::ExitCode;
use crate::logging;
use crate::stdout::{self, PrintError};

/// In one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// What was asked about is well.
    Pass,
    /// The agent answers, and says that it is not.
    Fail,
    /// The agent does not answer, or has no connection to do its work with.
    Unreachable,
}

/// What a health check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// What was asked about: `live`, `ready` or `startup`.
    pub probe: &'static str,
    /// In one word.
    pub status: Standing,
    /// Whom it asked.
    pub address: String,
    /// How long that took, in milliseconds.
    pub took_ms: u64,
    /// What was found, in one sentence.
    pub detail: String,
    /// What to do about it; empty when nothing has to be done.
    pub fix: String,
}

impl Verdict {
    /// Nobody answered the question `probe` at `address`; `look` says where to look for the agent.
    #[must_use]
    pub fn no_answer(
        probe: &'static str,
        address: String,
        took: Duration,
        error: &NoAnswer,
        look: &str,
    ) -> Self {
        Self {
            probe,
            status: Standing::Unreachable,
            address,
            took_ms: millis(took),
            detail: error.to_string(),
            fix: look.to_owned(),
        }
    }

    /// What the process ends with: 0, 20 when something fails, 69 when there is no answer or no connection.
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        match self.status {
            Standing::Pass => ExitCode::Ok,
            Standing::Fail => ExitCode::NoGo,
            Standing::Unreachable => ExitCode::Unavailable,
        }
    }

    /// Prints it: the whole of it as JSON, or a line for people, on the standard error output when it is not well.
    ///
    /// # Errors
    ///
    /// When nothing can be printed.
    pub fn show(&self, as_json: bool) -> Result<ExitCode, PrintError> {
        let Self {
            probe,
            address,
            took_ms,
            detail,
            fix,
            ..
        } = self;
        if as_json {
            // It is made of words and numbers.
            let text = serde_json::to_string_pretty(self).unwrap_or_default();
            stdout::print(&json(&format!("{text}\n")))?;
        } else if self.status == Standing::Pass {
            stdout::print(&block(&format!(
                "{probe}: {detail} ({address} answered in {took_ms} ms)\n"
            )))?;
        } else {
            logging::say(&block(&format!("not {probe}: {address}: {detail}")));
            if !fix.is_empty() {
                logging::say(&block(&format!("  fix: {fix}")));
            }
        }
        Ok(self.exit_code())
    }
}

/// As many milliseconds, at least one of what is not nothing.
#[must_use]
pub fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX)
}
