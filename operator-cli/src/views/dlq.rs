//! Commands that could not be delivered: the list, one of them whole, and what was decided.

use viworks_api::{DeadLetter, DeadLetterList, DeadLetterState, Run};
use viworks_common::human;
use viworks_common::time::Timestamp;

use crate::failure::Failure;
use crate::output::{self, Format, one_line};
use crate::program;

/// Prints a row for each.
pub fn list(list: &DeadLetterList, format: Format, now: Timestamp) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(list);
    }
    output::table(
        ["ID", "GATEWAY", "COMMAND", "DIED", "TRIED", "STATE", "WHY"],
        list.items.iter().map(|letter| {
            [
                letter.id.to_string(),
                letter.gateway.name.to_string(),
                letter.command.to_string(),
                human::relative(letter.dead_at, now),
                human::count(u64::from(letter.attempts)),
                letter.state.name().to_owned(),
                one_line(letter.cause.as_deref().unwrap_or_default()),
            ]
        }),
    )?;
    let open = |letter: &&DeadLetter| letter.state == DeadLetterState::Open;
    let program = program::name();
    output::note(&match list.items.iter().filter(open).count() {
        0 => "nothing waits for a decision".to_owned(),
        count => format!(
            "{} for a decision: {program} dlq retry ID, or {program} dlq discard ID",
            human::counted(count, "command waits", "commands wait")
        ),
    });
    Ok(())
}

/// Prints one.
pub fn show(letter: &DeadLetter, format: Format, now: Timestamp) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(letter);
    }
    let arguments: Vec<String> = letter
        .arguments
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let arguments = one_line(&arguments.join(" "));
    let times = |at| human::relative_and_exact(at, now);
    output::line(&format!("id        {}", letter.id))?;
    output::line(&format!("gateway   {}", letter.gateway.name))?;
    let command = format!("command   {} {arguments}", letter.command);
    output::line(command.trim_end())?;
    output::line(&format!("run       {}", letter.run_id))?;
    let tried = human::counted_all(u64::from(letter.attempts), "delivery", "deliveries");
    output::line(&format!(
        "died      {} after {tried}",
        times(letter.dead_at)
    ))?;
    if let Some(cause) = &letter.cause {
        output::line(&format!("why       {}", one_line(cause)))?;
    }
    output::line(&format!("state     {}", letter.state.name()))?;
    if let (Some(at), Some(by)) = (letter.resolved_at, &letter.resolved_by) {
        let by = letter.resolved_by_name.as_ref().unwrap_or(by);
        output::line(&format!("decided   {} by {}", times(at), one_line(by)))?;
    }
    if let Some(run_id) = letter.retry_run_id {
        output::line(&format!("retried   {run_id}"))?;
    }
    Ok(())
}

/// Says that it was retried before.
pub fn retried_before(run: &Run, now: Timestamp) {
    output::note(&format!(
        "nothing new was run: it was retried {}",
        human::relative(run.created_at, now)
    ));
}

/// Says that one is done with.
pub fn discarded(letter: &DeadLetter, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => output::json(letter),
        Format::Table => output::line(&format!("{} is discarded", letter.id)),
    }
}
