//! Where the ticket comes from: a file, the standard input, or whoever sits at the terminal. Never the command line.

use std::path::Path;

use viworks_common::enrolment::Ticket;
use viworks_runtime::files;
use viworks_runtime::ticket::{self, NoTicket};
use zeroize::Zeroizing;

use crate::enrol::EnrolError;

/// Reads it.
///
/// # Errors
///
/// When there is none, or it is none.
pub(super) async fn read(file: Option<&Path>) -> Result<Ticket, EnrolError> {
    let Some(path) = file else {
        return Ok(ticket::read().await?);
    };
    if path == Path::new("-") {
        return Ok(ticket::read_input().await?);
    }
    Ticket::is_file(path)?;
    let bytes = files::read_private(path)?;
    let text = Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned());
    Ok(text.parse::<Ticket>()?)
}

impl From<NoTicket> for EnrolError {
    fn from(none: NoTicket) -> Self {
        match none {
            NoTicket::Invalid(invalid) => Self::Ticket(invalid),
            NoTicket::Unread(why) => Self::NoTicket(why),
            NoTicket::Interrupted => Self::Interrupted,
        }
    }
}
