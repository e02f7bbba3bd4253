//! A walk over everything that has to be right, step by step, up to the first that is not: what `doctor` shows.

use std::time::Duration;

use serde::Serialize;
use viworks_common::human;
use viworks_common::text::{block, json};

use super::verdict::millis;
use crate::exit::ExitCode;
use crate::stdout::{self, PrintError};

/// What is said of steps after the cause.
const NOT_REACHED: &str = "not reached";

/// How a step came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// As it should be.
    Pass,
    /// Somebody should look; the walk went on.
    Warn,
    /// This is the cause; the walk ended here.
    Fail,
    /// It was not looked at, because there was no need or because the walk had ended.
    Skip,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Its name, such as `tls`.
    pub name: &'static str,
    /// How it came out.
    pub status: Found,
    /// What was found, in one sentence.
    pub detail: String,
    /// What to do about it; empty when nothing has to be done.
    pub fix: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// Why a walk ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// At which step.
    pub step: &'static str,
    /// The cause, in one sentence.
    pub cause: String,
    /// What to do about it.
    pub fix: String,
    /// What the process ends with.
    pub code: ExitCode,
}

impl Stop {
    /// A walk that ended at `step` for this `cause`.
    #[must_use]
    pub fn at(
        step: &'static str,
        code: ExitCode,
        cause: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            step,
            cause: cause.into(),
            fix: fix.into(),
            code,
        }
    }
}

/// A walk under way.
#[derive(Debug, Clone)]
pub struct Walk {
    planned: &'static [&'static str],
    steps: Vec<Step>,
}

/// A walk that is over, as a document.
#[derive(Debug, Serialize)]
struct Document<'w> {
    status: Found,
    /// The step that is the cause.
    step: Option<&'w str>,
    cause: Option<&'w str>,
    fix: Option<&'w str>,
    took_ms: u64,
    steps: &'w [Step],
}

impl Walk {
    /// A walk over these steps, in this order.
    #[must_use]
    pub const fn over(planned: &'static [&'static str]) -> Self {
        Self {
            planned,
            steps: Vec::new(),
        }
    }

    /// A step is as it should be.
    pub fn pass(&mut self, name: &'static str, detail: impl Into<String>, took: Duration) {
        self.add(name, Found::Pass, detail.into(), String::new(), took);
    }

    /// Somebody should look at a step.
    pub fn warn(&mut self, name: &'static str, detail: impl Into<String>, fix: impl Into<String>) {
        self.add(name, Found::Warn, detail.into(), fix.into(), Duration::ZERO);
    }

    /// There was no need to look at a step.
    pub fn skip(&mut self, name: &'static str, detail: impl Into<String>) {
        self.add(
            name,
            Found::Skip,
            detail.into(),
            String::new(),
            Duration::ZERO,
        );
    }

    /// Whoever comes as far as `step` passed those before it, from `first` on, of which nothing was said.
    pub fn reach(&mut self, first: &str, step: &str) {
        let at = |name: &str| self.planned.iter().position(|planned| *planned == name);
        let (Some(first), Some(step_at)) = (at(first), at(step)) else {
            return;
        };
        let planned = self.planned;
        for name in planned.get(first..step_at).unwrap_or_default() {
            if !self.steps.iter().any(|told| told.name == *name) {
                self.pass(name, format!("it came as far as {step}"), Duration::ZERO);
            }
        }
    }

    fn add(
        &mut self,
        name: &'static str,
        status: Found,
        detail: String,
        fix: String,
        took: Duration,
    ) {
        self.steps.push(Step {
            name,
            status,
            detail,
            fix,
            took_ms: millis(took),
        });
    }

    /// Ends the walk, and shows it: as JSON, or a line for each step and the cause at the end.
    ///
    /// # Errors
    ///
    /// When nothing can be printed.
    pub fn end(
        mut self,
        stop: Option<&Stop>,
        took: Duration,
        as_json: bool,
    ) -> Result<ExitCode, PrintError> {
        if let Some(stop) = stop {
            self.add(
                stop.step,
                Found::Fail,
                stop.cause.clone(),
                stop.fix.clone(),
                Duration::ZERO,
            );
            for name in self.planned {
                if self.steps.iter().all(|step| step.name != *name) {
                    self.skip(name, NOT_REACHED);
                }
            }
        }
        let code = stop.map_or(ExitCode::Ok, |stop| stop.code);
        if as_json {
            let document = Document {
                status: stop.map_or(Found::Pass, |_stop| Found::Fail),
                step: stop.map(|stop| stop.step),
                cause: stop.map(|stop| stop.cause.as_str()),
                fix: stop.map(|stop| stop.fix.as_str()),
                took_ms: millis(took),
                steps: &self.steps,
            };
            // It is made of words and numbers.
            let text = serde_json::to_string_pretty(&document).unwrap_or_default();
            stdout::print(&json(&format!("{text}\n")))?;
        } else {
            stdout::print(&block(&self.lines(stop)))?;
        }
        Ok(code)
    }

    fn lines(&self, stop: Option<&Stop>) -> String {
        let mut lines = Vec::new();
        let mut unreached = Vec::new();
        for step in &self.steps {
            let mark = match step.status {
                Found::Pass => '✓',
                Found::Warn => '!',
                Found::Fail => '✕',
                Found::Skip if step.detail == NOT_REACHED => {
                    unreached.push(step.name);
                    continue;
                }
                Found::Skip => '–',
            };
            lines.push(format!("  {mark} {:<12} {}", step.name, step.detail));
            if !step.fix.is_empty() {
                lines.push(format!("      {:<10} {}", "fix", step.fix));
            }
        }
        if !unreached.is_empty() {
            lines.push(format!("  – {NOT_REACHED}  {}", unreached.join(", ")));
        }
        lines.push(String::new());
        let warned = self.steps.iter().filter(|step| step.status == Found::Warn);
        lines.push(match (stop, warned.count()) {
            (Some(stop), _) => format!("Result: {}: {}\n", stop.step, stop.cause),
            (None, 0) => "Result: all is well\n".to_owned(),
            (None, warned) => {
                let things = human::counted(warned, "thing", "things");
                let verb = if warned == 1 { "is" } else { "are" };
                format!(
                    "Result: {things} above {verb} to be looked at; nothing else is in the way\n"
                )
            }
        });
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_passed_on_the_way_is_no_step_that_was_not_reached() {
        let mut walk = Walk::over(&["file", "dns", "tcp", "tls", "hello"]);
        walk.pass("file", "read", Duration::ZERO);
        walk.pass("tcp", "connected", Duration::ZERO);
        walk.reach("dns", "hello");
        let told: Vec<_> = walk.steps.iter().map(|step| step.name).collect();
        assert_eq!(told, ["file", "tcp", "dns", "tls"]);
        // A step that is not on this way shows nothing.
        let mut walk = Walk::over(&["file", "dns", "tcp"]);
        walk.reach("dns", "file");
        walk.reach("dns", "elsewhere");
        assert_eq!(walk.steps, []);
    }

    #[test]
    fn the_cause_is_shown_with_its_fix_and_what_was_not_reached() {
        let mut walk = Walk::over(&["config", "tcp", "tls", "session"]);
        walk.pass("config", "gateway.toml is valid", Duration::ZERO);
        let stop = Stop::at("tcp", ExitCode::Unavailable, "refused", "start the backend");
        walk.add(
            stop.step,
            Found::Fail,
            stop.cause.clone(),
            stop.fix.clone(),
            Duration::ZERO,
        );
        walk.skip("tls", "not reached");
        walk.skip("session", "not reached");
        assert_eq!(
            walk.lines(Some(&stop)),
            "  ✓ config       gateway.toml is valid\n  ✕ tcp          refused\n      fix        start the backend\n  – not reached  tls, session\n\nResult: tcp: refused\n"
        );
        let mut well = Walk::over(&[]);
        assert!(well.lines(None).ends_with("all is well\n"));
        well.warn("gateways", "one is away", "look at it");
        let told = well.lines(None);
        assert!(
            told.ends_with(
                "Result: 1 thing above is to be looked at; nothing else is in the way\n"
            ),
            "{told}"
        );
        well.warn("gateways", "another one is away", "look at it");
        let told = well.lines(None);
        assert!(
            told.contains("2 things above are to be looked at"),
            "{told}"
        );
    }
}
