//! What a validation found: a row for each check, what to do beneath those that failed, and the verdict.

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
    format!(
        "  {word}   {} of {} in {} s{skipped}",
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
