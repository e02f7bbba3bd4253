//! Results that a gateway reported of commands that the backend does not have.

use viworks_api::OrphanList;
use viworks_common::human;
use viworks_common::time::Timestamp;

use crate::failure::Failure;
use crate::output::{self, Format};

/// Prints a row for each; the output is in the document.
pub fn list(list: &OrphanList, format: Format, now: Timestamp) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(list);
    }
    let bytes = |count: Option<u64>| human::count(count.unwrap_or(0));
    output::table(
        ["REPORTED", "COMMAND", "STATE", "EXIT", "STDOUT", "STDERR"],
        list.items.iter().map(|orphan| {
            let outcome = &orphan.outcome;
            [
                human::relative(orphan.received_at, now),
                orphan.command_id.to_string(),
                orphan.state.name().to_owned(),
                outcome
                    .exit_code
                    .map_or_else(|| "–".to_owned(), |code| code.to_string()),
                bytes(outcome.stdout_bytes),
                bytes(outcome.stderr_bytes),
            ]
        }),
    )?;
    output::note(&format!(
        "{}; the output that was kept: -o json",
        human::counted(
            list.items.len(),
            "result of a command that the backend does not have",
            "results of commands that the backend does not have"
        )
    ));
    Ok(())
}
