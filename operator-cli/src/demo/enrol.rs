//! Gateways of a demo become what they are as any others do: each by a ticket of its own.

use std::collections::BTreeMap;
use std::path::Path;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use viworks_api::TicketRequest;
use viworks_common::enrolment::Ticket;
use viworks_runtime::exit::ExitCode;
use viworks_runtime::files;
use zeroize::Zeroizing;

use super::layout::{Layout, cannot_write};
use super::processes::{Ended, Programs, end_of};
use super::start::path;
use crate::client::Client;
use crate::failure::Failure;

/// So many enrol at once.
const AT_ONCE: usize = 4;

/// Enrols those of these gateways, each with where it is said to be, that are none yet; how many those were.
pub(super) async fn missing(
    programs: &Programs,
    layout: &Layout,
    client: &Client,
    door: Option<&str>,
    gateways: &[(String, &str)],
) -> Result<usize, Failure> {
    let missing = gateways.iter().filter(|(name, _site)| {
        let folder = layout.gateway(name);
        !folder.join("gateway.toml").exists() || folder.join(".enrolling").exists()
    });
    let each = missing.map(|(name, site)| enrol(programs, layout, client, door, (name, site)));
    let made: Vec<()> = stream::iter(each)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    Ok(made.len())
}

async fn enrol(
    programs: &Programs,
    layout: &Layout,
    client: &Client,
    door: Option<&str>,
    (name, site): (&str, &str),
) -> Result<(), Failure> {
    let folder = layout.gateway(name);
    files::create_private_folder(&folder).map_err(|error| cannot_write(&error))?;
    let ticket = layout.ticket(name);
    // The ticket of a start that was interrupted may have been used: the same gateway comes of it again.
    if let Some(door) = door {
        lead_to(&ticket, door)?;
    }
    let is_done = ticket.exists() && with_earlier(programs, layout, &folder, &ticket).await?;
    if !is_done {
        let invalid = |error| Failure::new(ExitCode::Error, format!("{name}: {error}"));
        let request = TicketRequest {
            uses: 1,
            name: Some(name.parse().map_err(invalid)?),
            labels: BTreeMap::from([("site".to_owned(), site.to_owned())]),
            ..TicketRequest::default()
        };
        let created = client.create_ticket(&request).await?;
        files::write_new(&ticket, created.secret.as_bytes(), 0o600)
            .map_err(|error| cannot_write(&error))?;
        let ended = enroll(programs, layout, &folder, &ticket).await?;
        ended.map_err(|ended| ended.failure)?;
    }
    std::fs::remove_file(&ticket)?;
    layout.complete_catalogue(name)
}

/// Has the ticket that is there, if one is, lead to the door of this start: each start of a backend takes a free port
/// for it, and `enroll` would wait minutes for the one of before.
fn lead_to(ticket: &Path, door: &str) -> Result<(), Failure> {
    let text = match files::read_private(ticket) {
        Ok(bytes) => Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.is_missing() => return Ok(()),
        Err(error) => return Err(cannot_write(&error)),
    };
    // One that is not whole is told of as that.
    let Ok(mut known) = text.parse::<Ticket>() else {
        return Ok(());
    };
    let port = |place: &str| place.rsplit_once(':').map(|(_, port)| port.to_owned());
    let (Some((host, _)), Some(port)) = (known.url.rsplit_once(':'), port(door)) else {
        return Ok(());
    };
    known.url = format!("{host}:{port}");
    files::write_atomic(ticket, known.expose().as_bytes()).map_err(|error| cannot_write(&error))
}

/// Whether a gateway came of the ticket that is there. One that is no good, or not whole, is removed.
async fn with_earlier(
    programs: &Programs,
    layout: &Layout,
    folder: &Path,
    ticket: &Path,
) -> Result<bool, Failure> {
    let no_good = [ExitCode::Usage, ExitCode::Forbidden].map(|code| i32::from(code.number()));
    match enroll(programs, layout, folder, ticket).await? {
        Ok(()) => Ok(true),
        Err(ended) if ended.code.is_some_and(|code| no_good.contains(&code)) => {
            std::fs::remove_file(ticket)?;
            Ok(false)
        }
        Err(ended) => Err(ended.failure),
    }
}

async fn enroll(
    programs: &Programs,
    layout: &Layout,
    folder: &Path,
    ticket: &Path,
) -> Result<Result<(), Ended>, Failure> {
    let arguments = [
        "enroll",
        "--demo",
        "--out",
        path(folder)?,
        "--ticket-file",
        path(ticket)?,
    ];
    end_of(layout, &programs.gateway, &arguments).await
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use viworks_common::id::TicketId;
    use viworks_common::key::Secret;
    use viworks_common::pin::SpkiPin;
    use viworks_common::time::Timestamp;

    use super::*;

    #[test]
    fn a_ticket_of_before_leads_to_the_door_of_this_start() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(".ticket");
        lead_to(&file, "127.0.0.1:2").unwrap();
        assert!(!file.exists());
        let ticket = Ticket {
            id: TicketId::from_uuid(uuid::Uuid::from_u128(7)),
            secret: Secret::from_bytes([7; 32]),
            expires_at: Timestamp::from_unix_micros(1_790_000_000_000_000),
            pins: BTreeSet::from([SpkiPin::from_digest([7; 32])]),
            url: "https://localhost:1".to_owned(),
        };
        files::write_new(&file, ticket.expose().as_bytes(), 0o600).unwrap();
        lead_to(&file, "127.0.0.1:2").unwrap();
        let led: Ticket = std::fs::read_to_string(&file).unwrap().parse().unwrap();
        assert_eq!(
            (led.url.as_str(), led.id),
            ("https://localhost:2", ticket.id)
        );
        // What an interrupt left of one is for enroll to judge.
        std::fs::write(&file, "vwt1_").unwrap();
        lead_to(&file, "127.0.0.1:3").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "vwt1_");
    }
}
