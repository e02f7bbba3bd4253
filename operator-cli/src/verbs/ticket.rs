//! `viworks ticket`: what machines become gateways by.

use std::path::Path;
use std::time::Duration;

use viworks_api::{TicketCreated, TicketRequest};
use viworks_common::enrolment::{TICKET_CHARS_MAX, TICKET_NETWORKS_MAX, Ticket as Written};
use viworks_common::human;
use viworks_common::limits::LABELS_MAX;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;
use viworks_runtime::files::{self, FileError};
use viworks_runtime::lifecycle::Signals;
use viworks_runtime::ticket::{self, NoTicket};

use crate::client::Client;
use crate::failure::{Failure, chain};
use crate::flags::{CreateTicket, Ticket};
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
            check(&wanted)?;
            let out = wanted.out;
            let request = TicketRequest {
                uses: wanted.uses,
                expires_in_ms: Some(millis(wanted.ttl)),
                labels: wanted.labels.into_iter().collect(),
                name: wanted.name,
                name_prefix: wanted.name_prefix,
                networks: wanted.networks.iter().map(ToString::to_string).collect(),
                allow_replace: wanted.allow_replace,
                ephemeral_ms: wanted.ephemeral.map(millis),
            };
            let client = client()?;
            let created = make(client.create_ticket(&request), out.as_deref()).await?;
            views::ticket::created(&created, out.as_deref(), format, now)?;
        }
        Ticket::Ls => views::ticket::list(&client()?.tickets().await?, format, now)?,
        Ticket::Show { ticket } => {
            views::ticket::show(&client()?.ticket(ticket).await?, format, now)?;
        }
        Ticket::Revoke { ticket, yes: _ } => {
            let client = client()?;
            // Whoever may not read tickets is not told, and can revoke one all the same.
            let before = client.ticket(ticket).await.ok();
            client.revoke_ticket(ticket).await?;
            views::ticket::revoked(ticket, before.as_ref(), format, now)?;
        }
        Ticket::Inspect { file } => {
            views::ticket::inspected(&read(file.as_deref()).await?, format, now)?;
        }
    }
    Ok(ExitCode::Ok)
}

/// What no backend takes, in the words of the flags.
fn check(wanted: &CreateTicket) -> Result<(), Failure> {
    let CreateTicket {
        uses,
        labels,
        name,
        networks,
        out,
        ..
    } = wanted;
    check_out(out.as_deref())?;
    if name.is_some() && *uses > 1 {
        let what = format!("--name is the name of one gateway, and --uses {uses} is for several");
        return Err(Failure::usage(what).with("fix: leave --uses out, or use --name-prefix"));
    }
    for (flag, given, most) in [
        ("--label", labels.len(), LABELS_MAX),
        ("--from", networks.len(), TICKET_NETWORKS_MAX),
    ] {
        if given > most {
            let given = human::counted(given, "time", "times");
            let what = format!("{flag} is given {given}, and a ticket has at most {most}");
            return Err(Failure::usage(what));
        }
    }
    Ok(())
}

/// Refuses a file that stands for the standard output elsewhere.
pub(super) fn check_out(out: Option<&Path>) -> Result<(), Failure> {
    if out == Some(Path::new("-")) {
        let what = "--out names a new file, and - stands for the standard output elsewhere";
        let fix = "fix: leave --out out, and the ticket goes there; a file of that name is ./-";
        return Err(Failure::usage(what).with(fix));
    }
    Ok(())
}

/// Whole milliseconds.
pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Makes a ticket by asking for it; it may go into a new file. The file comes first: a ticket whose string nobody has
/// is rubbish.
pub(super) async fn make(
    asking: impl Future<Output = Result<TicketCreated, Failure>>,
    out: Option<&Path>,
) -> Result<TicketCreated, Failure> {
    let Some(out) = out else {
        return asking.await;
    };
    let mut signals = Signals::listen()?;
    files::write_new(out, b"", 0o600).map_err(|error| untaken(out, &error))?;
    let asked = tokio::select! {
        biased;
        created = asking => created,
        _signal = signals.next() => Err(interrupted()),
    };
    let created = match asked {
        Ok(created) => created,
        Err(failure) => {
            // Best effort: the failure that matters is the one about to be returned.
            drop(std::fs::remove_file(out));
            return Err(failure);
        }
    };
    let line = format!("{}\n", views::ticket::secret(&created));
    files::write_atomic(out, line.as_bytes()).map_err(|error| {
        // Best effort, as above: left there, it would be in the way of the next ticket.
        drop(std::fs::remove_file(out));
        let revoke = views::ticket::revoke_it(created.ticket.id);
        let what = format!(
            "the ticket was made and could not be written: {}",
            chain(&error)
        );
        let failure = Failure::new(error.exit_code(), what).with(revoke);
        match error.named_fix() {
            Some(fix) => failure.with(format!("fix: {fix}")),
            None => failure,
        }
    })?;
    Ok(created)
}

fn interrupted() -> Failure {
    let unknown = "whether a ticket was made is not known; nobody has its string, and viworks ticket ls lists it";
    Failure::new(
        ExitCode::Interrupted,
        "interrupted before the backend answered",
    )
    .with(unknown)
}

/// Why there is no new file.
fn untaken(out: &Path, error: &FileError) -> Failure {
    if error.is_taken() {
        // Such as one whose call was killed.
        let found = out.symlink_metadata();
        if found.is_ok_and(|found| found.is_file() && found.len() == 0) {
            let what = format!("{} is there already, and empty", out.display());
            let fix = format!(
                "fix: no ticket is in it, unless another call is about to write it; remove it: rm {}",
                files::quoted(out)
            );
            return Failure::new(ExitCode::Conflict, what).with(fix);
        }
        let what = format!("{} is there already", out.display());
        let fix = "fix: name a new file with --out, or move the one that is there: it may hold a ticket that is in use";
        Failure::new(ExitCode::Conflict, what).with(fix)
    } else {
        let fix = error.named_fix();
        let fix = fix.unwrap_or("name a file in a folder that is there and yours");
        Failure::new(error.exit_code(), chain(error)).with(format!("fix: {fix}"))
    }
}

/// The ticket in a file, in the standard input, or of whoever sits at the terminal, never on the command line: others
/// can read that.
async fn read(file: Option<&Path>) -> Result<Written, Failure> {
    let Some(path) = file else {
        let mut signals = Signals::listen()?;
        return tokio::select! {
            read = ticket::read() => read.map_err(|none| not_read(&none)),
            // The terminal is as it was.
            _signal = signals.next() => Err(not_read(&NoTicket::Interrupted)),
        };
    };
    Written::is_file(path).map_err(|shown| Failure::usage(shown.to_string()))?;
    let bytes = files::read_at_most(path, READ_MAX);
    let bytes = bytes.map_err(Failure::from)?;
    let ticket = String::from_utf8_lossy(&bytes).parse::<Written>();
    ticket.map_err(|invalid| Failure::usage(invalid.to_string()))
}

fn not_read(none: &NoTicket) -> Failure {
    let exit = match none {
        NoTicket::Invalid(_) => ExitCode::Usage,
        NoTicket::Unread(_) => ExitCode::Error,
        NoTicket::Interrupted => ExitCode::Interrupted,
    };
    Failure::new(exit, none.to_string())
}
