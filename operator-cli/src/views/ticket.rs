//! Tickets: a new one with its string, the list, one of them whole, and what stands in one.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use viworks_api::{ApiVersion, Ticket, TicketCreated, TicketList, TicketStatus};
use viworks_common::enrolment::Ticket as Written;
use viworks_common::human;
use viworks_common::id::TicketId;
use viworks_common::time::Timestamp;
use viworks_runtime::files::quoted;

use crate::failure::Failure;
use crate::output::{self, Format, one_line};

/// The command that redeems the ticket in a copy of this file, from the folder in which the copy is.
fn enroll_with(out: &Path) -> String {
    let name = out.file_name().map_or(out, Path::new);
    format!(
        "viworks-gateway-agent enroll --ticket-file {}",
        one_line(&quoted(name))
    )
}

/// Prints the string of a new ticket, or the file that it went into, and what is done with it.
pub fn created(
    created: &TicketCreated,
    out: Option<&Path>,
    format: Format,
    now: Timestamp,
) -> Result<(), Failure> {
    let ticket = &created.ticket;
    let unshown = |failure| unshown(failure, ticket.id);
    match (format, out) {
        (Format::Json, None) => return output::json(created).map_err(unshown),
        // The string is in the file, and nowhere else.
        (Format::Json, Some(_)) => return output::json(ticket),
        // Alone on the standard output, so that it can be passed on.
        (Format::Table, None) => output::line(&secret(created)).map_err(unshown)?,
        (Format::Table, Some(out)) => output::line(&format!("{}  {}", ticket.id, out.display()))?,
    }
    output::note("");
    output::note(&format!(
        "  For      up to {}; it ends {}",
        human::counted_all(u64::from(ticket.uses_max), "gateway", "gateways"),
        human::relative_and_exact(ticket.expires_at, now)
    ));
    for (what, found) in [
        ("Labels", labels(&ticket.labels)),
        ("Names", naming(ticket)),
        ("From", ticket.networks.join(" ")),
        ("Place", place(ticket)),
        ("Absence", absence(ticket)),
    ] {
        if !found.is_empty() {
            output::note(&format!("  {what:<8} {}", one_line(&found)));
        }
    }
    if let Some(out) = out {
        output::note("  Use it   on the machine, with a copy of the file that only root can read:");
        output::note(&format!("           sudo {}", enroll_with(out)));
    } else {
        output::note("  Use it   on the machine: sudo viworks-gateway-agent enroll");
        output::note(
            "           (paste the ticket when asked: it is shown once, and stays out of the shell's history)",
        );
    }
    output::note(&format!("  Revoke   viworks ticket revoke {}", ticket.id));
    output::note("  Expiry stops new enrolments. Gateways that are enrolled are not affected.");
    Ok(())
}

/// A new ticket could not be shown: nobody has it, and it is as good as any until it ends. That is said even where the
/// reader of the output has gone.
fn unshown(failure: Failure, ticket: TicketId) -> Failure {
    let failure = Failure {
        what: format!(
            "the ticket was made and could not be shown: {}",
            failure.what
        ),
        quiet: false,
        ..failure
    };
    failure.with(revoke_it(ticket))
}

/// What is done about a ticket that nobody has.
pub fn revoke_it(ticket: TicketId) -> String {
    format!("revoke it: viworks ticket revoke {ticket}")
}

/// The string of a new ticket, without what would act on a terminal or be a line of its own, however long.
pub fn secret(created: &TicketCreated) -> String {
    let letters = created.secret.chars();
    letters.filter(char::is_ascii_graphic).collect()
}

/// Prints a row for each.
pub fn list(list: &TicketList, format: Format, now: Timestamp) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(list);
    }
    output::table(
        ["ID", "STATUS", "USED", "ENDS", "NAMES", "LABELS"],
        list.items.iter().map(|ticket| {
            [
                ticket.id.to_string(),
                status(ticket.status).to_owned(),
                format!("{} of {}", ticket.uses, ticket.uses_max),
                human::relative(ticket.expires_at, now),
                naming(ticket),
                labels(&ticket.labels),
            ]
        }),
    )
}

/// Prints one.
pub fn show(ticket: &Ticket, format: Format, now: Timestamp) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(ticket);
    }
    let times = |at| human::relative_and_exact(at, now);
    output::line(&format!("id        {}", ticket.id))?;
    output::line(&format!("status    {}", status(ticket.status)))?;
    if ticket.status == TicketStatus::KeyGone {
        output::line(
            "          no machine enrols by it: the master key of its time is gone; make another one",
        )?;
    }
    output::line(&format!("used      {} of {}", ticket.uses, ticket.uses_max))?;
    if ticket.refusals > 0 {
        output::line(&format!(
            "refused   {}",
            human::counted_all(ticket.refusals, "time", "times")
        ))?;
    }
    output::line(&format!(
        "made      {} by {}",
        times(ticket.created_at),
        one_line(
            ticket
                .created_by_name
                .as_ref()
                .unwrap_or(&ticket.created_by)
        )
    ))?;
    output::line(&format!("ends      {}", times(ticket.expires_at)))?;
    if let Some(at) = ticket.revoked_at {
        output::line(&format!("revoked   {}", times(at)))?;
    }
    for (what, found) in [
        ("names", naming(ticket)),
        ("labels", labels(&ticket.labels)),
        ("from", ticket.networks.join(" ")),
        ("place", place(ticket)),
        ("absence", absence(ticket)),
    ] {
        if !found.is_empty() {
            output::line(&format!("{what:<9} {}", one_line(&found)))?;
        }
    }
    Ok(())
}

/// Says that one opens nothing any more, and since when where it did not before: as far as it is known what it was.
pub fn revoked(
    ticket: TicketId,
    before: Option<&Ticket>,
    format: Format,
    now: Timestamp,
) -> Result<(), Failure> {
    let already = before.and_then(|ticket| ticket.revoked_at);
    match (format, already) {
        // Null where whoever asks may not read it: nobody was told then.
        (Format::Json, _) => output::json(&json!({
            "id": ticket, "status": TicketStatus::Revoked, "already": before.map(|known| known.revoked_at.is_some()),
        })),
        (Format::Table, None) => output::line(&format!(
            "{ticket} is revoked; gateways that came of it stay"
        )),
        (Format::Table, Some(at)) => output::line(&format!(
            "{ticket} was revoked already, {}; gateways that came of it stay",
            human::relative_and_exact(at, now)
        )),
    }
}

/// Prints what stands in a ticket, but for its secret.
pub fn inspected(ticket: &Written, format: Format, now: Timestamp) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(&document(ticket));
    }
    output::line(&format!("id        {}", ticket.id))?;
    output::line(&format!("door      {}", one_line(&ticket.url)))?;
    for pin in &ticket.pins {
        output::line(&format!("pin       {pin}"))?;
    }
    output::line(&format!(
        "ends      {}",
        human::relative_and_exact(ticket.expires_at, now)
    ))
}

/// What stands in a ticket, without its secret, for programs.
fn document(ticket: &Written) -> Value {
    json!({
        "apiVersion": ApiVersion::V1,
        "id": ticket.id,
        "url": ticket.url,
        "pins": ticket.pins,
        "expires_at": ticket.expires_at,
    })
}

fn naming(ticket: &Ticket) -> String {
    match (&ticket.name, &ticket.name_prefix) {
        (Some(name), _) => name.to_string(),
        (None, Some(prefix)) => format!("{prefix}…"),
        (None, None) => String::new(),
    }
}

/// Whose place a machine takes with it.
fn place(ticket: &Ticket) -> String {
    let taken = "it takes the place of the gateway";
    match (ticket.replaces, ticket.allow_replace) {
        (Some(one), _) => {
            format!("{taken} {one}, whose machine is cut off once the ticket is redeemed")
        }
        (None, true) => {
            format!("{taken} that has its name, where that is neither connected nor revoked")
        }
        (None, false) => String::new(),
    }
}

/// What becomes of its gateways when they stay away.
fn absence(ticket: &Ticket) -> String {
    ticket.ephemeral_ms.map_or_else(String::new, |absence| {
        let absence = human::span(Duration::from_millis(absence));
        format!("its gateways are removed once they were away for {absence}")
    })
}

fn labels(labels: &BTreeMap<String, String>) -> String {
    let each: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    each.join(" ")
}

const fn status(status: TicketStatus) -> &'static str {
    match status {
        TicketStatus::Active => "active",
        TicketStatus::UsedUp => "used up",
        TicketStatus::Expired => "expired",
        TicketStatus::Revoked => "revoked",
        TicketStatus::KeyGone => "key gone",
    }
}

#[cfg(test)]
mod tests {
    use viworks_common::key::Secret;
    use viworks_common::pin::SpkiPin;
    use viworks_runtime::exit::ExitCode;

    use super::*;

    #[test]
    fn the_command_that_redeems_a_ticket_names_its_file() {
        for (out, command) in [
            ("gw.ticket", "enroll --ticket-file gw.ticket"),
            ("/root/tickets/gw-1", "enroll --ticket-file gw-1"),
            ("my tickets/it's", "enroll --ticket-file 'it'\\''s'"),
        ] {
            let told = enroll_with(Path::new(out));
            assert!(told.ends_with(command), "{told}");
        }
    }

    #[test]
    fn what_stands_in_a_ticket_is_a_document_without_its_secret() {
        let pin = SpkiPin::from_digest([7; 32]);
        let written = Written {
            id: TicketId::from_uuid(viworks_runtime::random::uuid_v4()),
            secret: Secret::from_bytes([9; 32]),
            expires_at: Timestamp::from_unix_micros(1_790_000_000_000_000),
            pins: [pin].into(),
            url: "https://door.test:8082".to_owned(),
        };
        let told = document(&written);
        assert_eq!(told["apiVersion"], "viworks/v1", "{told}");
        assert_eq!(told["url"], written.url, "{told}");
        assert!(
            !told.to_string().contains(&written.secret.expose_hex()),
            "{told}"
        );
    }

    #[test]
    fn a_ticket_that_nobody_got_to_see_is_named_with_what_revokes_it() {
        let id = TicketId::from_uuid(viworks_runtime::random::uuid_v4());
        let full = Failure::new(ExitCode::Error, "the disk is full");
        for (failure, exit) in [
            (full, ExitCode::Error),
            (Failure::reader_gone(), ExitCode::ReaderGone),
        ] {
            let told = unshown(failure, id);
            assert_eq!(told.exit, exit);
            assert!(!told.quiet, "{told:?}");
            let revoke = format!("viworks ticket revoke {id}");
            assert!(told.details[0].contains(&revoke), "{told:?}");
        }
    }
}
