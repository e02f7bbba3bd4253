//! Gateways of a demo become what they are as any others do: each by a ticket of its own.

use std::collections::BTreeMap;
use std::path::Path;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use viworks_api::TicketRequest;
use viworks_runtime::exit::ExitCode;
use viworks_runtime::files;

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
    gateways: &[(String, &str)],
) -> Result<usize, Failure> {
    let missing = gateways.iter().filter(|(name, _site)| {
        let folder = layout.gateway(name);
        !folder.join("gateway.toml").exists() || folder.join(".enrolling").exists()
    });
    let each = missing.map(|(name, site)| enrol(programs, layout, client, name, site));
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
    name: &str,
    site: &str,
) -> Result<(), Failure> {
    let folder = layout.gateway(name);
    files::create_private_folder(&folder).map_err(|error| cannot_write(&error))?;
    let ticket = layout.ticket(name);
    // The ticket of a start that was interrupted may have been used: the same gateway comes of it again.
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
