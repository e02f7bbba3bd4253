//! `viworks ticket`: what machines become gateways by.

use std::io::Read as _;
use std::path::Path;

use viworks_api::TicketRequest;
use viworks_common::enrolment::{TICKET_CHARS_MAX, Ticket as Written};
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;
use viworks_runtime::files;

use crate::client::Client;
use crate::failure::Failure;
use crate::flags::Ticket;
use crate::output::Format;
use crate::views;

/// The most that is read for a ticket, with white space in it.
const READ_MAX: u64 = 4 * TICKET_CHARS_MAX as u64;

pub(super) async fn execute(
    client: impl FnOnce() -> Result<Client, Failure>,
    verb: Ticket,
    format: Format,
) -> Result<ExitCode, Failure> {
    let now = SystemClock.wall();
    match verb {
        Ticket::Create(wanted) => {
            let request = TicketRequest {
                uses: wanted.uses,
                expires_in_ms: Some(u64::try_from(wanted.ttl.as_millis()).unwrap_or(u64::MAX)),
                labels: wanted.labels.into_iter().collect(),
                name: wanted.name,
                name_prefix: wanted.name_prefix,
                networks: wanted.networks.iter().map(ToString::to_string).collect(),
            };
            let created = client()?.create_ticket(&request).await?;
            views::ticket::created(&created, format, now)?;
        }
        Ticket::Ls => views::ticket::list(&client()?.tickets().await?, format, now)?,
        Ticket::Show { ticket } => {
            views::ticket::show(&client()?.ticket(ticket).await?, format, now)?;
        }
        Ticket::Revoke { ticket } => {
            client()?.revoke_ticket(ticket).await?;
            views::ticket::revoked(ticket, format)?;
        }
        Ticket::Inspect { file } => {
            views::ticket::inspected(&read(file.as_deref())?, format, now)?;
        }
    }
    Ok(ExitCode::Ok)
}

/// The ticket in a file or in the standard input, never on the command line: others can read that.
fn read(file: Option<&Path>) -> Result<Written, Failure> {
    let mut text = String::new();
    match file {
        Some(path) => {
            Written::is_file(path).map_err(|shown| Failure::usage(shown.to_string()))?;
            let bytes = files::read_at_most(path, READ_MAX);
            let bytes = bytes.map_err(|error| Failure::usage(error.to_string()))?;
            text.push_str(&String::from_utf8_lossy(&bytes));
        }
        None => {
            std::io::stdin()
                .lock()
                .take(READ_MAX)
                .read_to_string(&mut text)?;
        }
    }
    let ticket = text.parse::<Written>();
    ticket.map_err(|invalid| Failure::usage(invalid.to_string()))
}
