//! How gateways are thrown out: what is asked before, and what is told afterwards.

use viworks_api::{Gateway, GatewayRevoked, revocation_told};
use viworks_common::human;
use viworks_common::id::TicketId;
use viworks_common::time::Timestamp;

use crate::failure::Failure;
use crate::output::{self, Format, one_line};
use crate::program;

/// What is asked before a gateway is thrown out.
pub fn of_gateway(gateway: &Gateway) -> String {
    let session = if gateway.session.is_some() {
        "its session ends"
    } else {
        "it gets no session any more"
    };
    format!(
        "{} is thrown out: {session}, {}; a machine comes back only by a new ticket.",
        gateway.name,
        unfinished([gateway])
    )
}

/// The same of all that came of a ticket.
pub fn of_ticket(ticket: TicketId, gateways: &[Gateway]) -> String {
    format!(
        "What came of the ticket {ticket} is thrown out: {}, {}.",
        human::counted(gateways.len(), "gateway", "gateways"),
        unfinished(gateways)
    )
}

/// How many commands end with gateways, and how many of them are run as far as that is known: these may have done their
/// work.
fn unfinished<'g>(gateways: impl IntoIterator<Item = &'g Gateway>) -> String {
    let (mut open, mut begun) = (0_u64, 0_u64);
    for gateway in gateways {
        open = open.saturating_add(gateway.queued_commands);
        // What it told before its session ended may be long over.
        let runs = gateway.session.as_ref().and(gateway.running_commands);
        begun = begun.saturating_add(runs.unwrap_or(0).min(gateway.queued_commands));
    }
    if open == 0 {
        return "and no command waits or runs there".to_owned();
    }
    let ends = human::counted_all(
        open,
        "command there ends unfinished",
        "commands there end unfinished",
    );
    match begun {
        0 => ends,
        begun => {
            let begun = human::count(begun);
            format!("{ends} (run at the moment, as last heard: {begun})")
        }
    }
}

/// Says what became of a gateway that was thrown out, and how its machine is let in again.
pub fn revoked(revoked: &GatewayRevoked, format: Format, now: Timestamp) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(revoked);
    }
    output::line(&one_line(&fate(revoked, now)))?;
    let (program, name) = (program::name(), &revoked.gateway.name);
    output::note(&format!(
        "to let a machine in under its name again: {program} gateway replace {name}, with its history, or {program} \
         ticket create --name {name}, as a new gateway"
    ));
    Ok(())
}

/// Says what became of the gateways of a ticket.
pub fn all_revoked(
    ticket: TicketId,
    revoked: &[GatewayRevoked],
    format: Format,
    now: Timestamp,
) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(&revoked);
    }
    if revoked.is_empty() {
        output::line("no gateway that came of this ticket is left to throw out")?;
    }
    for one in revoked {
        output::line(&one_line(&fate(one, now)))?;
    }
    output::note(&format!(
        "nobody else enrols by the ticket once it is revoked: {} ticket revoke {ticket}",
        program::name()
    ));
    Ok(())
}

fn fate(revoked: &GatewayRevoked, now: Timestamp) -> String {
    let name = &revoked.gateway.name;
    if revoked.already {
        let when = human::happened(revoked.gateway.since, now);
        return format!("{name} was revoked already, {when}");
    }
    revocation_told(
        name,
        revoked.session_ended,
        revoked.cancelled,
        revoked.indeterminate,
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::gateway;
    use super::*;

    fn gone(already: bool, session_ended: bool, cancelled: u64, indeterminate: u64) -> String {
        let revoked = GatewayRevoked {
            kind: viworks_api::Kind::GatewayRevoked,
            already,
            session_ended,
            cancelled,
            indeterminate,
            gateway: gateway(&json!({})),
        };
        fate(&revoked, Timestamp::parse("2026-01-02T02:00:00Z").unwrap())
    }

    #[test]
    fn what_became_of_a_gateway_is_told_and_nothing_that_did_not_happen() {
        assert_eq!(gone(false, false, 0, 0), "gw-1 is revoked");
        assert_eq!(
            gone(false, true, 1, 0),
            "gw-1 is revoked; its session ends within a second; 1 waiting command was cancelled"
        );
        assert_eq!(
            gone(false, true, 2, 3),
            "gw-1 is revoked; its session ends within a second; 2 waiting commands were cancelled; \
             3 commands that may have begun are indeterminate"
        );
        let again = gone(true, false, 0, 0);
        assert!(again.starts_with("gw-1 was revoked already, "), "{again}");
    }

    #[test]
    fn whoever_is_about_to_throw_one_out_is_told_what_ends() {
        let idle = of_gateway(&gateway(&json!({"status": "offline"})));
        let nothing = "it gets no session any more, and no command waits or runs there; ";
        assert!(idle.contains(nothing), "{idle}");
        let session = json!({"id": "00000000-0000-4000-8000-000000000002", "epoch": 1, "peer_address": "192.0.2.1:1"});
        let more = json!({"status": "online", "session": session, "queued_commands": 1});
        let busy = of_gateway(&gateway(&more));
        assert!(
            busy.contains("its session ends, 1 command there ends unfinished; "),
            "{busy}"
        );
        let more = json!({"status": "online", "session": session, "queued_commands": 3, "running_commands": 2});
        let running = gateway(&more);
        let told = of_gateway(&running);
        let counts = "3 commands there end unfinished (run at the moment, as last heard: 2); ";
        assert!(told.contains(counts), "{told}");
        // What one ran that is gone says nothing of now.
        let gone = json!({"status": "offline", "queued_commands": 1, "running_commands": 1});
        let gone = gateway(&gone);
        let told = of_gateway(&gone);
        assert!(told.contains("1 command there ends unfinished; "), "{told}");
        let ticket = TicketId::from_uuid(viworks_runtime::random::uuid_v4());
        let told = of_ticket(ticket, &[running, gone]);
        let all =
            "2 gateways, 4 commands there end unfinished (run at the moment, as last heard: 2).";
        assert!(told.ends_with(all), "{told}");
    }
}
