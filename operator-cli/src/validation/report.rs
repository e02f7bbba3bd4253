//! What the checks came to, for a person's table, for programs and for whoever reads JUnit.

use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use viworks_common::time::Timestamp;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckResult {
    /// What was measured is within the limit.
    Pass,
    /// It is not, or nothing could be measured.
    Fail,
    /// It could not be tried here; the reason says why.
    Skipped,
}

/// What a check found: what was measured, or why that is not enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Within the limit.
    Pass(String),
    /// Not within the limit.
    Fail {
        /// What was measured.
        measured: String,
        /// Why that is not enough.
        reason: String,
        /// What to do.
        fix: String,
    },
    /// Not tried, for this reason.
    Skipped(String),
}

impl Finding {
    /// Not within the limit.
    pub fn fail(
        measured: impl Into<String>,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::Fail {
            measured: measured.into(),
            reason: reason.into(),
            fix: fix.into(),
        }
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// By which it is chosen.
    pub name: String,
    /// What it is about.
    pub title: String,
    /// How it ended.
    pub result: CheckResult,
    /// What was measured.
    pub measured: String,
    /// Within what that has to be.
    pub limit: String,
    /// Why it is not enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What to do about that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

impl Check {
    /// A check that ended.
    #[must_use]
    pub fn new(name: &str, title: &str, limit: &str, found: Finding, took: Duration) -> Self {
        let (result, measured, reason, fix) = match found {
            Finding::Pass(measured) => (CheckResult::Pass, measured, None, None),
            Finding::Fail {
                measured,
                reason,
                fix,
            } => (CheckResult::Fail, measured, Some(reason), Some(fix)),
            Finding::Skipped(reason) => {
                (CheckResult::Skipped, String::from("–"), Some(reason), None)
            }
        };
        Self {
            name: name.to_owned(),
            title: title.to_owned(),
            result,
            measured,
            limit: limit.to_owned(),
            reason,
            fix,
            took_ms: millis(took),
        }
    }
}

/// What all of them come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// No check failed.
    Go,
    /// One did.
    NoGo,
}

/// Everything that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The version of this document.
    pub api_version: String,
    /// What this is.
    pub kind: String,
    /// What was validated.
    pub target: String,
    /// With which version.
    pub version: String,
    /// When it began.
    pub started_at: Timestamp,
    /// How long the checks took, in milliseconds; with what was started for them, where that was.
    pub took_ms: u64,
    /// What it comes to.
    pub verdict: Verdict,
    /// The checks, in the order in which they ran.
    pub checks: Vec<Check>,
    /// How many there are beside them, which nobody asked for.
    #[serde(default, skip_serializing_if = "is_none_left_out")]
    pub left_out: usize,
}

const fn is_none_left_out(count: &usize) -> bool {
    *count == 0
}

impl Report {
    /// One without checks.
    #[must_use]
    pub fn new(target: &str, started_at: Timestamp) -> Self {
        Self {
            api_version: "viworks/v1".to_owned(),
            kind: "Validation".to_owned(),
            target: target.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at,
            took_ms: 0,
            verdict: Verdict::Go,
            checks: Vec::new(),
            left_out: 0,
        }
    }

    /// So many checks there are: fewer are a part of the validation.
    pub fn out_of(&mut self, all: usize) {
        self.left_out = all.saturating_sub(self.checks.len());
    }

    /// One more check.
    pub fn add(&mut self, check: Check) {
        if check.result == CheckResult::Fail {
            self.verdict = Verdict::NoGo;
        }
        self.took_ms = self.took_ms.saturating_add(check.took_ms);
        self.checks.push(check);
    }

    /// How long all of it took: also what was started before the checks, and ended after them.
    pub fn took_in_all(&mut self, took: Duration) {
        self.took_ms = millis(took);
    }

    /// What was not tried counts as failed.
    pub fn be_strict(&mut self) {
        if self.count(CheckResult::Skipped) > 0 {
            self.verdict = Verdict::NoGo;
        }
    }

    /// How many checks ended so.
    #[must_use]
    pub fn count(&self, result: CheckResult) -> usize {
        let same = self.checks.iter().filter(|check| check.result == result);
        same.count()
    }
}

fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

/// The report as JUnit has it.
#[must_use]
pub fn junit(report: &Report) -> String {
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"production validation\" tests=\"{}\" \
         failures=\"{}\" skipped=\"{}\" time=\"{}\" timestamp=\"{}\">\n",
        report.checks.len(),
        report.count(CheckResult::Fail),
        report.count(CheckResult::Skipped),
        seconds(report.took_ms),
        report.started_at
    );
    for check in &report.checks {
        let reason = check.reason.as_deref().unwrap_or_default();
        let inner = match check.result {
            CheckResult::Pass => format!("<system-out>{}</system-out>", escaped(&check.measured)),
            CheckResult::Fail => format!(
                "<failure message=\"{}\">measured: {}; limit: {}; fix: {}</failure>",
                escaped(reason),
                escaped(&check.measured),
                escaped(&check.limit),
                escaped(check.fix.as_deref().unwrap_or_default())
            ),
            CheckResult::Skipped => format!("<skipped message=\"{}\"/>", escaped(reason)),
        };
        // Writing to a string succeeds.
        let _written = writeln!(
            text,
            "  <testcase classname=\"validation\" name=\"{}\" time=\"{}\">{inner}</testcase>",
            escaped(&check.name),
            seconds(check.took_ms)
        );
    }
    text.push_str("</testsuite>\n");
    text
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1_000, ms % 1_000)
}

/// Text as it stands in an element or an attribute; what XML has no letter for is left out.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push(' '),
            letter if letter.is_control() => {}
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(findings: Vec<Finding>) -> Report {
        let mut report = Report::new("https://example.org", Timestamp::from_unix_micros(0));
        for found in findings {
            report.add(Check::new(
                "a",
                "about",
                "< 2 s",
                found,
                Duration::from_millis(1_234),
            ));
        }
        report
    }

    #[test]
    fn one_failure_is_a_no_go_and_what_was_skipped_is_one_when_it_is_strict() {
        let passed = Finding::Pass("1 s".to_owned());
        let skipped = Finding::Skipped("nothing to go back to".to_owned());
        assert_eq!(report(vec![passed.clone()]).verdict, Verdict::Go);
        let mut lax = report(vec![passed.clone(), skipped]);
        assert_eq!(lax.verdict, Verdict::Go);
        lax.be_strict();
        assert_eq!(lax.verdict, Verdict::NoGo);
        let failed = Finding::fail("3 s", "too slow", "look");
        assert_eq!(report(vec![failed, passed]).verdict, Verdict::NoGo);
    }

    #[test]
    fn junit_keeps_its_form_whatever_was_found() {
        let found = Finding::fail("<3 s>", "\"a\" & b\u{1b}[2J", "look\nthere");
        let text = junit(&report(vec![found, Finding::Skipped("why".to_owned())]));
        assert!(
            text.contains("message=\"&quot;a&quot; &amp; b[2J\""),
            "{text}"
        );
        assert!(text.contains("measured: &lt;3 s&gt;; limit: &lt; 2 s; fix: look there"));
        assert!(text.contains("tests=\"2\" failures=\"1\" skipped=\"1\" time=\"2.468\""));
        assert!(text.contains("<skipped message=\"why\"/>"));
    }
}
