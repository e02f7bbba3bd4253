//! `viworks audit`: who did what to what, and how it ended.

use viworks_common::time::Timestamp;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

use crate::client::{ALL, Client, Sought};
use crate::failure::Failure;
use crate::flags::{Audit, ListAudit};
use crate::output::Format;
use crate::views;

/// Nothing is older than the beginning of what a time can say.
const BEGINNING: Timestamp = Timestamp::from_unix_micros(0);

pub(super) async fn execute(
    client: &Client,
    verb: Audit,
    format: Format,
) -> Result<ExitCode, Failure> {
    let now = SystemClock.wall();
    match verb {
        Audit::Ls(wanted) => {
            let limit = if wanted.all { ALL } else { wanted.limit };
            let list = client.audit(sought(wanted, now), limit).await?;
            views::audit::list(&list, format, now)?;
        }
        Audit::Show { id } => {
            views::audit::show(&client.audit_record(id).await?, format, now)?;
        }
    }
    Ok(ExitCode::Ok)
}

fn sought(wanted: ListAudit, now: Timestamp) -> Sought {
    Sought {
        gateway: wanted.gateway,
        actor: wanted.by,
        object: wanted.on,
        action: wanted.action,
        outcome: wanted.outcome,
        since: wanted
            .since
            .map(|since| now.saturating_sub(since).max(BEGINNING)),
    }
}
