//! `viworks run`: asks whether it is meant, submits a command, and follows it unless told otherwise.

mod confirm;

use std::time::Duration;

use viworks_common::id::RunId;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

use super::follow::follow;
use crate::client::Client;
use crate::failure::Failure;
use crate::flags::Run;
use crate::output::{self, Format};
use crate::{program, views};

/// How long a run is followed where no limit was given.
const FOLLOWED_FOR: Duration = Duration::from_secs(24 * 3_600);

/// Submits and, unless told otherwise, waits.
pub(super) async fn execute(
    client: &Client,
    flags: &Run,
    format: Format,
) -> Result<ExitCode, Failure> {
    let request = flags.request()?;
    confirm::confirm(client, flags, &request).await?;
    if flags.dry_run {
        let plan = client.plan(&request).await?;
        views::plan::print(&request, &plan, format)?;
        return Ok(ExitCode::Ok);
    }
    let (submitted, replayed) = client
        .submit(&request, flags.idempotency_key.as_deref())
        .await?;
    if replayed {
        views::submitted::replayed(&submitted, SystemClock.wall());
    }
    if flags.no_wait {
        views::submitted::print(&submitted, format)?;
        return Ok(ExitCode::Ok);
    }
    let limit = flags.wait.unwrap_or(FOLLOWED_FOR);
    let exit = tokio::select! {
        exit = follow(client, &submitted, limit, flags.skip_unable, format) => {
            exit.map_err(|failure| went_on(failure, submitted.id))?
        }
        signal = tokio::signal::ctrl_c() => {
            signal?;
            output::note("");
            output::note(&format!("stopped watching; the run goes on. Back to it: {0} runs wait {1}   cancel it: {0} runs cancel {1}", program::name(), submitted.id));
            ExitCode::Interrupted
        }
    };
    Ok(exit)
}

/// The run was accepted before this failed, and whoever believes that nothing was done submits it twice.
fn went_on(failure: Failure, run: RunId) -> Failure {
    if failure.quiet {
        return failure;
    }
    if failure.exit == ExitCode::NotFound {
        return failure.with(format!(
            "the run was accepted as {run}: this is another backend, or one that lost it; {} runs ls shows what it knows",
            program::name()
        ));
    }
    failure.with(format!(
        "the run was accepted and goes on without this command: {0} runs wait {run}   cancel it: {0} runs cancel {run}",
        program::name()
    ))
}
