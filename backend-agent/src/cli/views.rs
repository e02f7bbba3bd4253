//! How answers look: a line each on the standard output, and what is for people on the other one.

use std::io::Write;

use viworks_api::{ApiKey, ApiKeyStatus};
use viworks_common::human;
use viworks_common::text;
use viworks_common::time::Timestamp;
use viworks_runtime::stdout;

/// API keys, a line each under their heads.
pub(super) fn keys(keys: &[ApiKey], now: Timestamp) -> String {
    let heads = ["ID", "STATUS", "NAME", "SCOPES", "CREATED", "ENDS"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(heads)
        .chain(keys.iter().map(|key| row(key, now)))
        .collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let widths = cells.map(|cell| cell.chars().count());
        widths.max().unwrap_or_default()
    };
    let widths: [usize; 6] = std::array::from_fn(width);
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(widths);
        let cells = cells.map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        line.trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join(
        "
",
    )
}

fn row(key: &ApiKey, now: Timestamp) -> [String; 6] {
    let scopes: Vec<_> = key.scopes.iter().map(|scope| scope.name()).collect();
    [
        key.id.to_string(),
        status(key.status).to_owned(),
        // A name is one line, whoever has chosen it.
        text::line(&key.name).into_owned(),
        scopes.join(","),
        human::relative(key.created_at, now),
        key.expires_at.map_or_else(
            || "never".to_owned(),
            |at| human::relative_and_exact(at, now),
        ),
    ]
}

/// Since when something that was there already is, where that is known.
pub(super) fn since_when(at: Option<Timestamp>, now: Timestamp) -> String {
    at.map_or_else(String::new, |at| format!(", {}", human::happened(at, now)))
}

const fn status(status: ApiKeyStatus) -> &'static str {
    match status {
        ApiKeyStatus::Active => "active",
        ApiKeyStatus::Expired => "expired",
        ApiKeyStatus::Revoked => "revoked",
    }
}

/// Prints a line of the answer.
pub(super) fn print(line: &str) -> anyhow::Result<()> {
    let harmless = text::block(line);
    Ok(stdout::print(&format!("{harmless}\n"))?)
}

/// For people; a closed standard error output is no reason to fail.
pub(super) fn say(line: &str) {
    drop(writeln!(std::io::stderr(), "{}", text::block(line)));
}
