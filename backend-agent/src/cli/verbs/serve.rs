//! `serve`: from the first file that is read to the last that is closed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use viworks_runtime::config::Problems;
use viworks_runtime::exit::ExitCode;
use viworks_runtime::lifecycle::{Hangups, Lifecycle, Signals, notify};
use viworks_runtime::{blocking, descriptors, logging, ready_file};

use crate::app::{App, GRACE};
use crate::listening;
use crate::setup::Setup;

/// How long everything that a start reads may take.
const LOAD_TIME: Duration = Duration::from_secs(60);

/// How long a small file may take that tells others where this process listens.
const FILE_TIME: Duration = Duration::from_secs(5);

/// How long closing the database may take at the end.
const CLOSE_TIME: Duration = Duration::from_secs(10);

/// Takes back what was said about where this process listens. Where that cannot be done it stays, and whoever waits for
/// the next start learns of the old one.
async fn forget(ready_file: &Path) {
    let path = ready_file.to_owned();
    drop(blocking::call("ready file", FILE_TIME, move || std::fs::remove_file(path)).await);
}

/// Runs the backend until it is told to end.
pub(super) async fn serve(
    load: impl FnOnce() -> Result<Setup, Problems> + Send + 'static,
    ready_file: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    // Before anything is read, and on a thread of its own: a file that hangs in the operating system must not keep the
    // process from hearing that it should end.
    let mut signals = Signals::listen().context("failed to listen for signals")?;
    let hangups = Hangups::listen().context("failed to listen for SIGHUP")?;
    if let Some(path) = ready_file {
        // What an earlier run said is not true any more.
        forget(path).await;
    }
    let setup = tokio::select! {
        loaded = blocking::call("setup", LOAD_TIME, load) => {
            loaded.context("what the backend starts with could not be read")??
        }
        _told = signals.next() => return Ok(ExitCode::Ok),
    };
    let config = &setup.config;
    let log = &config.log;
    logging::init(log.format, &log.filter, log.waiting_bytes_max)?;
    for warning in &setup.warnings {
        tracing::warn!(%warning, "starting all the same");
    }
    // Before anything listens; whether that is enough is told by the health of the running backend.
    if let Err(error) = descriptors::raise_all() {
        tracing::warn!(%error, "the limit of open files stays as it was");
    }
    let lifecycle = Lifecycle::new();
    // A task of its own, for the same reason.
    let starting = {
        let (config, within) = (config.clone(), lifecycle.clone());
        let material = setup.material;
        let started = Box::pin(async move { App::start(&config, material, &within).await });
        lifecycle.spawn("start", started)
    };
    let mut app = tokio::select! {
        started = starting => started.context("the start did not come to its end")??,
        signal = signals.next() => {
            tracing::info!(%signal, "told to end before it had started");
            return Ok(ExitCode::Ok);
        }
    };
    app.reload_on(setup.source, hangups, &lifecycle);
    tracing::info!(api = %app.api, agents = %app.agents, "listening");
    if let Some(enrolment) = app.enrolment {
        tracing::info!(%enrolment, "machines with tickets become gateways here");
    }
    if let Some(path) = ready_file {
        let mut addresses: BTreeMap<&str, SocketAddr> =
            BTreeMap::from([("api", app.api), ("agents", app.agents)]);
        addresses.extend(app.enrolment.map(|door| ("enrolment", door)));
        let path = path.to_owned();
        blocking::call("ready file", FILE_TIME, move || {
            ready_file::write(&path, &addresses)
        })
        .await
        .context("the ready file could not be written")??;
    }
    let (folder, agents) = (config.data.state_folder.clone(), app.agents);
    let note = move || listening::note(&folder, agents).map_err(|error| error.to_string());
    let noted = blocking::call("listening", FILE_TIME, note).await;
    if let Err(error) = noted.unwrap_or_else(|error| Err(error.to_string())) {
        tracing::warn!(error, "new gateways are told the configured address");
    }
    notify::ready();
    let watchdog = notify::spawn_watchdog(&lifecycle);
    let outcome = lifecycle.run(&mut signals, GRACE).await;
    drop(watchdog);
    if let Some(path) = ready_file {
        forget(path).await;
    }
    let folder = config.data.state_folder.clone();
    let forget = move || listening::forget(&folder);
    // What stays behind is known for that; a disk that hangs does not keep the process.
    drop(blocking::call("listening", FILE_TIME, forget).await);
    // What was acknowledged is on disk already.
    if tokio::time::timeout(CLOSE_TIME, app.close()).await.is_err() {
        tracing::warn!("the database could not be closed in time");
    }
    Ok(outcome.exit_code())
}
