//! `viworks dlq`: commands that could not be delivered, and what is decided about them.

use viworks_api::DeadLetter;
use viworks_common::id::CommandId;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

use crate::client::Client;
use crate::failure::Failure;
use crate::flags::Dlq;
use crate::output::Format;
use crate::views;

pub(super) async fn execute(
    client: &Client,
    verb: Dlq,
    format: Format,
) -> Result<ExitCode, Failure> {
    let now = SystemClock.wall();
    match verb {
        Dlq::Ls { gateway, all } => {
            let letters = client.dead_letters(gateway.as_deref(), all).await?;
            views::dlq::list(&letters, format, now)?;
        }
        Dlq::Show { id } => {
            let letter = find(client, &id).await?;
            views::dlq::show(&letter, format, now)?;
        }
        Dlq::Retry { id } => {
            let id = find(client, &id).await?.id;
            let (run, replayed) = client.retry_dead_letter(id).await?;
            if replayed {
                views::dlq::retried_before(&run, now);
            }
            views::submitted::print(&run, format)?;
        }
        Dlq::Discard { id } => {
            let id = find(client, &id).await?.id;
            let letter = client.discard_dead_letter(id).await?;
            views::dlq::discarded(&letter, format)?;
        }
    }
    Ok(ExitCode::Ok)
}

/// A dead letter by its command's id, or by a beginning that fits one alone.
async fn find(client: &Client, text: &str) -> Result<DeadLetter, Failure> {
    if let Ok(id) = text.parse::<CommandId>() {
        return client.dead_letter(id).await;
    }
    let usage = |problem: String| Failure::usage(problem).with("see: viworks dlq ls --all");
    if text.is_empty() || !text.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
        return Err(usage(format!("{text:?} is no command's id")));
    }
    let mut fitting = client.dead_letters(None, true).await?.items;
    fitting.retain(|letter| letter.id.to_string().starts_with(&text.to_lowercase()));
    match fitting.len() {
        0 => Err(Failure::new(
            ExitCode::NotFound,
            format!("no dead letter begins with {text:?}"),
        )
        .with("see: viworks dlq ls --all")),
        1 => Ok(fitting.remove(0)),
        several => Err(usage(format!(
            "{several} dead letters begin with {text:?}; type more of the id"
        ))),
    }
}
