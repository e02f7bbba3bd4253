//! How answers look: a line each on the standard output, and what is for people on the other one.

use std::io::Write;

use viworks_api::{ApiKey, ApiKeyStatus};
use viworks_common::human;
use viworks_common::text;
use viworks_common::time::Timestamp;
use viworks_runtime::stdout;

/// An API key on one line.
pub(super) fn key(key: &ApiKey, now: Timestamp) -> String {
    let scopes: Vec<_> = key.scopes.iter().map(|scope| scope.name()).collect();
    format!(
        "{}  {}  {}  {}  created {}  {}",
        key.id,
        status(key.status),
        key.name,
        scopes.join(","),
        human::relative(key.created_at, now),
        key.expires_at.map_or_else(
            || "never ends".to_owned(),
            |at| {
                let verb = if at <= now { "ended" } else { "ends" };
                format!("{verb} {}", human::relative_and_exact(at, now))
            }
        )
    )
}

/// Since when something that was there already is, where that is known.
pub(super) fn since_when(at: Option<Timestamp>, now: Timestamp) -> String {
    at.map_or_else(String::new, |at| {
        format!(", {}", human::relative_and_exact(at, now))
    })
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
