//! What a validation found: a row for each check, what to do beneath those that failed, and the verdict.

use viworks_common::human;

use crate::failure::Failure;
use crate::output::{self, Format};
use crate::validation::{CheckResult, Report, Verdict};

/// Prints it.
pub fn print(report: &Report, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => output::json(report),
        Format::Table => output::line(&table(report)),
    }
}

/// The whole of it as text.
#[must_use]
pub fn table(report: &Report) -> String {
    let rows = report.checks.iter().zip(1_u32..).map(|(check, number)| {
        [
            format!("{number:>3}"),
            check.title.clone(),
            word(check.result).to_owned(),
            check.measured.clone(),
            check.limit.clone(),
        ]
    });
    let rows = output::render(["  #", "CHECK", "RESULT", "MEASURED", "LIMIT"], rows);
    let mut lines = vec![
        format!(
            "ViWorkS production validation   {}   {}   version {}",
            report.target, report.started_at, report.version
        ),
        String::new(),
    ];
    let mut rows = rows.lines();
    lines.extend(rows.next().map(str::to_owned));
    for (row, check) in rows.zip(&report.checks) {
        lines.push(row.to_owned());
        for (what, text) in [("why", &check.reason), ("fix", &check.fix)] {
            lines.extend(text.iter().map(|text| format!("       {what}  {text}")));
        }
    }
    lines.push(String::new());
    lines.push(verdict(report));
    lines.join("\n")
}

fn verdict(report: &Report) -> String {
    let word = match report.verdict {
        Verdict::Go => "GO",
        Verdict::NoGo => "NO-GO",
    };
    let skipped = match report.count(CheckResult::Skipped) {
        0 => String::new(),
        count => format!("   {count} SKIPPED"),
    };
    let left_out = match report.left_out {
        0 => String::new(),
        count => format!(
            "   a part of it: {} left out (--only)",
            human::counted(count, "check", "checks")
        ),
    };
    format!(
        "  {word}   {} of {} in {} s{skipped}{left_out}",
        report.count(CheckResult::Pass),
        report.checks.len(),
        report.took_ms.div_ceil(1_000)
    )
}

const fn word(result: CheckResult) -> &'static str {
    match result {
        CheckResult::Pass => "pass",
        CheckResult::Fail => "FAIL",
        CheckResult::Skipped => "SKIPPED",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use viworks_common::time::Timestamp;

    use super::*;
    use crate::validation::{Check, Finding};

    #[test]
    fn the_last_line_of_a_part_says_that_it_was_one() {
        let mut report = Report::new("https://example.org", Timestamp::from_unix_micros(0));
        let passed = Finding::Pass("1 s".to_owned());
        report.add(Check::new(
            "a",
            "about",
            "< 2 s",
            passed,
            Duration::from_secs(1),
        ));
        let last = |report: &Report| table(report).lines().last().unwrap_or_default().to_owned();
        report.out_of(1);
        assert_eq!(last(&report), "  GO   1 of 1 in 1 s");
        report.out_of(13);
        assert_eq!(
            last(&report),
            "  GO   1 of 1 in 1 s   a part of it: 12 checks left out (--only)"
        );
    }
}
