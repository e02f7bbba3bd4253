//! Wires the parts of the agent, starts them in order and stops them in the opposite one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tracing::{info, warn};
use viworks_common::id::AgentRunId;
use viworks_runtime::blocking;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::conditions::Conditions;
use viworks_runtime::config::{Problems, environment};
use viworks_runtime::exit::ExitCode;
use viworks_runtime::lifecycle::{Hangups, Lifecycle, Signals, notify};
use viworks_runtime::{descriptors, fault, files, logging, ready_file, tls};

use crate::api::{self, AgentFacts, CertificateStatus, ServeLimits};
use crate::audit::Audit;
use crate::catalogue::{self, Catalogue, Current, SHIPPED};
use crate::collect;
use crate::config::Config;
use crate::credentials::Credentials;
use crate::engine::{self, Engine};
use crate::executor::{Executor, Limits, LiveOutput};
use crate::host::disks::Prober;
use crate::identity::Identity;
use crate::journal::{self, Journal};
use crate::outbound;
use crate::outbound::configured::Configured;
use crate::outbound::lapsed::Lapsed;
use crate::outbound::pins::Pins;
use crate::outbound::security::Security;
use crate::program;
use crate::reload::Reload;
use crate::renewal::Renewal;
use crate::setup::{Setup, others, owners};
use crate::spool::Spool;
use crate::status::Status;
use crate::watch::Watch;

/// How long running commands and the last reports get when the agent stops.
const GRACE: Duration = Duration::from_secs(20);

/// How long the files get to be closed at the end.
const CLOSE_TIME: Duration = Duration::from_secs(10);

/// How long everything that a start reads may take.
const LOAD_TIME: Duration = Duration::from_secs(60);

/// How long a small file may take that tells others where this process listens.
const FILE_TIME: Duration = Duration::from_secs(5);

/// Files that the agent has open for a command that runs: its outputs, its instructions, its watch.
const FILES_OF_COMMAND: usize = 8;

/// Runs the agent, by what `load` reads, until it is told to stop.
///
/// # Errors
///
/// When it cannot start.
pub async fn run(
    load: impl FnOnce() -> Result<Setup, Problems> + Send + 'static,
    ready: Option<PathBuf>,
) -> anyhow::Result<ExitCode> {
    // Before anything is read, and on a thread of its own: a file that hangs in the operating system must not keep the
    // process from hearing that it should end.
    let mut signals = Signals::listen().context("failed to listen for signals")?;
    let setup = tokio::select! {
        loaded = blocking::call("setup", LOAD_TIME, load) => {
            loaded.context("what the agent starts with could not be read")??
        }
        _told = signals.next() => return Ok(ExitCode::Ok),
    };
    fault::configure(&environment())?;
    let log = &setup.config.log;
    logging::init(log.format, &log.filter, log.waiting_bytes_max)?;
    tls::install_provider();
    let lifecycle = Lifecycle::new();
    for warning in &setup.warnings {
        warn!(%warning, "starting all the same");
    }
    let socket = setup.config.gateway.socket.clone();
    // A task of its own, for the same reason.
    let starting = {
        let within = lifecycle.clone();
        let started = Box::pin(async move { start(setup, &within).await });
        lifecycle.spawn("start", started)
    };
    let journal_and_spool = tokio::select! {
        started = starting => started.context("the start did not come to its end")??,
        signal = signals.next() => {
            info!(%signal, "told to end before it had started");
            return Ok(ExitCode::Ok);
        }
    };
    if let Some(path) = ready {
        let socket = serde_json::json!({ "api": socket });
        blocking::call("ready file", FILE_TIME, move || {
            ready_file::write(&path, &socket)
        })
        .await
        .context("the ready file could not be written")??;
    }
    notify::ready();
    drop(notify::spawn_watchdog(&lifecycle));
    let outcome = lifecycle.run(&mut signals, GRACE).await;
    let (journal, spool) = journal_and_spool;
    // What was acknowledged is on disk already; a disk that hangs does not keep the process.
    let close = async {
        if let Err(error) = journal.close().await {
            warn!(%error, "the journal did not close cleanly");
        }
        if let Err(error) = spool.close().await {
            warn!(%error, "the spool did not close cleanly");
        }
    };
    if tokio::time::timeout(CLOSE_TIME, close).await.is_err() {
        warn!("the journal and the spool could not be closed in time");
    }
    Ok(outcome.exit_code())
}

/// What is said of a database of the state folder with which the agent cannot begin.
fn unusable<E>(path: &Path, error: E) -> anyhow::Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    let error = anyhow::Error::new(error);
    let fix = if journal::is_damage(&error) {
        journal::LOST_FIX
    } else {
        "see the room, the mount and the quotas of its disk"
    };
    error.context(format!("{} cannot be used; {fix}", path.display()))
}

async fn start(setup: Setup, lifecycle: &Lifecycle) -> anyhow::Result<(Journal, Spool)> {
    let Setup {
        ref config,
        material,
        catalogue,
        source,
        ..
    } = setup;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let conditions = Conditions::new(Arc::clone(&clock));
    let watch = logging::watch(conditions.clone(), Arc::clone(&clock), lifecycle.clone());
    drop(lifecycle.spawn("log", watch));
    let folder = &config.gateway.state_folder;
    let identity = Arc::new(Identity::take(folder, &material, &*clock)?);
    hold_descriptors(config, &conditions);
    info!(agent_id = %identity.name.agent_id, agent_run_id = %identity.agent_run_id, "starting");
    let hangups = Hangups::listen().context("failed to listen for SIGHUP")?;
    let catalogue = Current::new(allowed(config, catalogue).await?);
    let journal_path = folder.join("journal.db");
    let (journal, spool) = open_databases(config, &journal_path, identity.agent_run_id).await?;
    let executor = Executor::new(
        Limits {
            parallel_max: config.executor.parallel_max,
            kill_grace: config.executor.kill_grace,
        },
        program::own(),
        Arc::clone(&clock),
    );
    let (live, live_out) = LiveOutput::channel();
    let (engine, handle) = Engine::recover(engine::Parts {
        agent_run_id: identity.agent_run_id,
        catalogue: catalogue.clone(),
        journal: journal.clone(),
        executor: executor.clone(),
        clock: Arc::clone(&clock),
        lifecycle: lifecycle.clone(),
        live,
    })
    .await
    .map_err(|error| unusable(&journal_path, error))?;
    let status = Arc::new(Status::new(config.outbound.address()));
    let shown = Arc::clone(&status);
    let listener = api::bind(&config.gateway.socket).await?;
    let pins = Arc::new(Pins::open(folder, config.outbound.pins.clone()));
    let configured = Configured::new(source, config, Arc::clone(&pins), conditions.clone());
    let credentials = Credentials::new(
        config.clone(),
        material,
        conditions.clone(),
        Arc::clone(&clock),
    );
    let renewal = Renewal::new(folder.clone(), conditions.clone(), Arc::clone(&clock));
    let lapsed = Lapsed::new(folder.clone(), conditions.clone(), Arc::clone(&clock));
    let audit = Audit::open(&folder.join("audit.log"))?;
    let api_parts = api::Parts {
        facts: AgentFacts {
            agent_id: Some(identity.name.agent_id.to_string()),
            agent_run_id: identity.agent_run_id,
            version: env!("CARGO_PKG_VERSION"),
            started_at: clock.wall(),
        },
        status: Arc::clone(&status),
        spool: spool.clone(),
        intake_quota: configured.intake(),
        journal: journal.clone(),
        state_folder: folder.clone(),
        certificate: shown_certificate(credentials.clone(), renewal.clone()),
        executor: executor.clone(),
        catalogue: catalogue.clone(),
        pins: Arc::clone(&pins),
        audit: audit.clone(),
        conditions: conditions.clone(),
        clock: Arc::clone(&clock),
        lifecycle: lifecycle.clone(),
    };
    let reloads = watch::Sender::new(0);
    let outbound_parts = outbound::Parts {
        catalogue: catalogue.clone(),
        engine: handle,
        journal: journal.clone(),
        spool: spool.clone(),
        executor,
        pins: Arc::clone(&pins),
        security: Security::new(audit, Arc::clone(&clock)),
        configured: configured.clone(),
        reloads: reloads.clone(),
        status,
        conditions: conditions.clone(),
        clock: Arc::clone(&clock),
        lifecycle: lifecycle.clone(),
        credentials: credentials.clone(),
        renewal,
        lapsed,
        identity,
    };
    let fresh = catalogue
        .clone()
        .keep_fresh(Arc::clone(&clock), lifecycle.clone());
    lifecycle.spawn_critical("catalogue", fresh);
    let reload = Reload {
        catalogue,
        commands_folder: config.executor.commands_folder.clone(),
        owners: owners(config),
        others: others(config),
        credentials: credentials.clone(),
        configured: configured.clone(),
        conditions: conditions.clone(),
        reloads: reloads.clone(),
    };
    let files_watch = configured.watch(Arc::clone(&clock), reloads.clone(), lifecycle.clone());
    lifecycle.spawn_critical("configuration", files_watch);
    lifecycle.spawn_critical("credentials", credentials.watch(reloads, lifecycle.clone()));
    lifecycle.spawn_critical("reload", reload.run(hangups, lifecycle.clone()));
    let reserve = journal.clone().keep_reserve(
        Arc::clone(&clock),
        config.journal.reserve_check,
        lifecycle.clone(),
    );
    lifecycle.spawn_critical("journal reserve", reserve);
    let watch = Watch {
        folder: config.gateway.state_folder.clone(),
        journal: journal.clone(),
        spool: spool.clone(),
        status: shown,
        conditions: conditions.clone(),
    };
    lifecycle.spawn_critical("watch", watch.run(Arc::clone(&clock), lifecycle.clone()));
    lifecycle.spawn_critical("engine", engine.run());
    serve_api(lifecycle, listener, api_parts);
    if let Some(interval) = config.collect_interval {
        let work = collect::run(collect::Parts {
            spool: spool.clone(),
            clock,
            interval,
            conditions,
            prober: Prober::Process(program::own()),
            lifecycle: lifecycle.clone(),
        });
        drop(lifecycle.spawn("collectors", work));
    }
    lifecycle.spawn_critical("outbound", outbound::run(outbound_parts, live_out));
    Ok((journal, spool))
}

/// What may run, by the catalogue that was read; a demo is given one before.
async fn allowed(config: &Config, read: Option<Catalogue>) -> anyhow::Result<Catalogue> {
    let catalogue = match read {
        Some(catalogue) => catalogue,
        None => {
            let own = config.clone();
            let made = blocking::call("catalogue", catalogue::LOAD_TIME, move || make_demo(&own));
            made.await.context("the catalogue cannot be made")??
        }
    };
    info!(commands = catalogue.len(), folder = %config.executor.commands_folder.display(), "read the catalogue");
    Ok(catalogue)
}

/// Opens both databases of the state folder. A damaged spool is put aside; a damaged journal is for somebody to decide.
async fn open_databases(
    config: &Config,
    journal_path: &Path,
    agent_run_id: AgentRunId,
) -> anyhow::Result<(Journal, Spool)> {
    let journal = Journal::open(journal_path, config.journal.entries_max).await;
    let journal = journal.map_err(|error| unusable(journal_path, error))?;
    let path = config.gateway.state_folder.join("spool.db");
    let opened = Spool::open(&path, config.spool, agent_run_id).await;
    let opened = opened.map_err(|error| unusable(&path, error))?;
    if let Some(path) = opened.damaged {
        warn!(path = %path.display(), "the telemetry spool was damaged and put aside");
    }
    Ok((journal, opened.spool))
}

/// What local programs are told of the certificate in force, whenever they ask.
fn shown_certificate(credentials: Credentials, renewal: Renewal) -> api::Certificate {
    Arc::new(move || {
        let material = credentials.get();
        let shown = &material.shown;
        CertificateStatus {
            not_before: shown.not_before,
            not_after: shown.not_after,
            origin: shown.origin.name(),
            renewal: renewal.status(shown.life()),
        }
    })
}

/// Raises the limit of open files only as far as the bounds need it, because commands inherit it, and tells when that
/// is not possible.
fn hold_descriptors(config: &Config, conditions: &Conditions) {
    let of_commands = config.executor.parallel_max * FILES_OF_COMMAND;
    // As many again may wait for a place.
    let of_api = 2 * ServeLimits::default().connections_max;
    let needed = u64::try_from(of_commands + of_api).unwrap_or(u64::MAX);
    if let Err(error) = descriptors::raise_for(needed) {
        warn!(%error, "the limit of open files stays as it was");
    }
    let meanwhile = "commands and local programs are refused when none is left";
    descriptors::hold(conditions, needed, "parallel_max of [executor]", meanwhile);
}

fn serve_api(lifecycle: &Lifecycle, listener: api::Socket, parts: api::Parts) {
    let failing = lifecycle.clone();
    lifecycle.spawn_critical("api", async move {
        if let Err(error) = api::serve(listener, parts).await {
            failing.fail(ExitCode::Error, format!("the local API failed: {error}"));
        }
    });
}

/// Fills the missing folder of a demo with the shipped catalogue.
fn make_demo(config: &Config) -> anyhow::Result<Catalogue> {
    let folder = &config.executor.commands_folder;
    fill_demo(folder)?;
    let own = program::own();
    Ok(catalogue::load(
        folder,
        owners(config),
        own,
        others(config),
    )?)
}

/// The folder comes to be whole or not at all: one that is there is the operator's, and nothing is added to it.
fn fill_demo(folder: &Path) -> anyhow::Result<()> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let being_made = folder.with_file_name(format!(".{name}.being-made"));
    // Of a start that was killed.
    if being_made.symlink_metadata().is_ok() {
        std::fs::remove_dir_all(&being_made)?;
    }
    files::create_private_folder(&being_made)?;
    for (name, contents) in SHIPPED {
        files::write_atomic(&being_made.join(name), contents.as_bytes())?;
    }
    std::fs::rename(&being_made, folder)?;
    files::sync_folder(folder.parent().unwrap_or_else(|| Path::new(".")))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_that_was_killed_while_it_got_its_catalogue_gets_all_of_it_the_next_time() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("commands.d");
        let begun = place.path().join(".commands.d.being-made");
        files::create_private_folder(&begun).unwrap();
        std::fs::write(begun.join(".10-gateway.toml.0.tmp"), "").unwrap();
        fill_demo(&folder).unwrap();
        let named = |path: &Path| {
            let entries = std::fs::read_dir(path).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let shipped: Vec<&str> = SHIPPED.iter().map(|(name, _contents)| *name).collect();
        assert_eq!(named(&folder), shipped);
        assert_eq!(named(place.path()), ["commands.d"]);
        // What is there is the operator's.
        std::fs::remove_file(folder.join(SHIPPED[0].0)).unwrap();
        assert!(fill_demo(&folder).is_err());
        assert_eq!(named(&folder).len(), SHIPPED.len() - 1);
    }
}
