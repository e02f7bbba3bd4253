//! `viworks up`: from nothing to the first answered command.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use viworks_api::GatewayStatus;
use viworks_common::human;
use viworks_runtime::exit::ExitCode;
use viworks_runtime::files;

use super::layout::{Addresses, Layout, Process, Started};
use super::processes::{Programs, Running, failure_of, left_running, stop, stop_demo};
use super::servers::Servers;
use super::stores::Stores;
use super::{absent, context, first, start};
use crate::client::Client;
use crate::ending::interruption;
use crate::failure::{Failure, chain};
use crate::output::{self, Format};
use crate::program::quoted;
use crate::views;
use crate::views::demo::Hints;

/// How often it is looked whether a process has ended.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What `up` was asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// So many gateways.
    pub agents: usize,
    /// Stop after the first command.
    pub once: bool,
    /// Remove an earlier run's data first.
    pub reset: bool,
    /// Where the backend keeps its data; where it does already when absent, and embedded in a new demo.
    pub stores: Option<Stores>,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    pub format: Format,
    pub config_dir: Option<PathBuf>,
}

/// Runs the demo until it is stopped, or once.
pub async fn up(options: &Options) -> Result<ExitCode, Failure> {
    let programs = Programs::find()?;
    let layout = Layout::at(&options.data_dir)?;
    layout.refuse_strangers()?;
    layout.refuse_foreign()?;
    if let Some(started) = layout.load_started() {
        if started.up.is_alive() {
            return reuse(options, &layout, &started).await;
        }
        layout.forget_started()?;
    }
    if !left_running(&layout).is_empty() {
        output::note("an earlier demo was interrupted; stopping what it left running");
        stop_demo(&layout, None).await?;
    }
    layout.remove_sockets();
    if options.reset {
        reset(&layout)?;
    }
    let stores = stores(options, &layout)?;
    let servers = Servers::find(stores)?;
    layout.create()?;
    let _lock = files::lock_folder(layout.root()).map_err(|error| in_use(&layout, &error))?;

    output::note(&format!(
        "ViWorkS {} · demo on this machine · {}\n",
        env!("CARGO_PKG_VERSION"),
        stores.parts()
    ));
    save(&layout, None, &[])?;
    let mut running = Vec::new();
    let mut is_up = false;
    let mut interrupted = Box::pin(interruption());
    let outcome = tokio::select! {
        outcome = start_and_serve(options, &programs, &layout, &servers, &mut running, &mut is_up) => outcome,
        () = &mut interrupted => Ok(ExitCode::Interrupted),
    };
    let cut_short = !is_up && matches!(outcome, Ok(ExitCode::Interrupted));
    if cut_short {
        output::note("interrupted before the demo was up; stopping …");
    } else if !running.is_empty() {
        output::note("stopping …");
    }
    stop(&mut running).await;
    layout.remove_sockets();
    layout.forget_started()?;
    context::forget(options.config_dir.as_deref(), &layout);
    // Ctrl-C is how a demo that runs until stopped is stopped.
    match outcome {
        Ok(ExitCode::Interrupted) if is_up => Ok(ExitCode::Ok),
        other => other,
    }
}

/// Removes what an earlier `up` made, and says what it left alone.
fn reset(layout: &Layout) -> Result<(), Failure> {
    if !layout.is_demo() {
        return Ok(());
    }
    // Whoever holds the lock uses what would be removed.
    let lock = files::lock_folder(layout.root()).map_err(|error| in_use(layout, &error))?;
    let left = layout.remove_demo()?;
    drop(lock);
    output::note(&format!("removed the demo in {}", layout.root().display()));
    for path in left {
        output::note(&format!("  left alone: {}", path.display()));
    }
    Ok(())
}

/// Where the data of this demo is, or is to be.
fn stores(options: &Options, layout: &Layout) -> Result<Stores, Failure> {
    match (options.stores, layout.stores()) {
        (Some(wanted), Some(known)) if wanted != known => Err(Failure::new(
            ExitCode::Conflict,
            format!(
                "the demo in {} keeps its data in {}, not in {}",
                layout.root().display(),
                known.title(),
                wanted.title()
            ),
        )
        .with(format!(
            "fix: start over: {} --reset --stores {}, or use another place: --data-dir DIR",
            layout.up(),
            wanted.name()
        ))),
        (_, Some(known)) => Ok(known),
        (wanted, None) => Ok(wanted.unwrap_or(Stores::Embedded)),
    }
}

fn in_use(layout: &Layout, error: &files::FileError) -> Failure {
    Failure::new(ExitCode::Conflict, chain(error)).with(format!(
        "fix: {}, or use another place: viworks up --data-dir DIR",
        layout.down()
    ))
}

async fn start_and_serve(
    options: &Options,
    programs: &Programs,
    layout: &Layout,
    servers: &Servers,
    running: &mut Vec<Running>,
    is_up: &mut bool,
) -> Result<ExitCode, Failure> {
    let names = start::gateway_names(options.agents);
    if layout.stores().is_none() {
        // What an interrupted start left: without its configuration nothing was ever made with it.
        layout.remove_servers()?;
        // By these places it is known what a demo is, as soon as it has its configuration.
        servers.make_places(layout)?;
    }
    start::certificates(programs, layout).await?;
    servers.start(layout, running).await?;
    if !running.is_empty() {
        save(layout, None, running)?;
    }
    let stores = servers.stores();
    start::operator(programs, layout, stores).await?;

    let backends = start::backends(programs, layout, stores, running).await?;
    let addresses = backends
        .first()
        .cloned()
        .ok_or_else(|| Failure::new(ExitCode::Error, "no backend was started"))?;
    save(layout, None, running)?;
    let mut client = own_client(layout, &addresses)?;
    let door = addresses.enrolment.as_deref();
    let made = start::identities(programs, layout, &client, door, &names).await;
    let forbidden = |failure: &Failure| failure.exit == ExitCode::Forbidden;
    if made.as_ref().is_err_and(forbidden) {
        // The key of a demo of before there were tickets.
        start::operator_anew(programs, layout).await?;
        client = own_client(layout, &addresses)?;
        start::identities(programs, layout, &client, door, &names).await?;
    } else {
        made?;
    }
    let step = Instant::now();
    let names = absent::without_revoked(&client, layout, names).await?;
    start::gateways(programs, layout, &names, &backends, running)?;
    save(layout, Some(&addresses), running)?;
    absent::wait_until_online(&client, layout, &names, running).await?;
    views::demo::step(
        &human::counted(names.len(), "gateway", "gateways"),
        &views::demo::names(&names),
        "connected over mutual TLS",
        step.elapsed(),
    );
    let exit = first::command(&client, &names, options.format).await?;
    // A demo that is over in a moment is nobody's context.
    if options.once {
        return Ok(exit);
    }
    *is_up = true;
    introduce(options, layout, &addresses);
    watch(running).await
}

/// A client of the demo's own backend, which nobody has to be told to start.
fn own_client(layout: &Layout, addresses: &Addresses) -> Result<Client, Failure> {
    let client = Client::new(&addresses.server(), Some(&layout.token()), false)?;
    let log = layout.log("backend");
    Ok(client.whose_silence_means(format!(
        "why, by the backend's own words: {}",
        quoted(&log.to_string_lossy())
    )))
}

/// Remembers the demo and says what can be done with it.
fn introduce(options: &Options, layout: &Layout, addresses: &Addresses) {
    let target = context::remember(options.config_dir.as_deref(), layout, addresses);
    views::demo::hints(&Hints {
        api: &addresses.api,
        target: &target,
        down: &layout.down(),
        sockets: layout.sockets(),
    });
}

fn save(
    layout: &Layout,
    addresses: Option<&Addresses>,
    running: &[Running],
) -> Result<(), Failure> {
    let up = Process::observe("up", std::process::id()).ok_or_else(|| {
        Failure::new(
            ExitCode::Error,
            "this process cannot read its own state in /proc",
        )
    })?;
    let processes = running.iter().filter_map(Running::observe).collect();
    layout.save_started(&Started {
        up,
        addresses: addresses.cloned(),
        processes,
    })
}

/// Stays until a process ends by itself; Ctrl-C is handled by the caller.
async fn watch(running: &mut [Running]) -> Result<ExitCode, Failure> {
    loop {
        if let Some(failure) = failure_of(running)? {
            return Err(failure);
        }
        sleep(LOOK_EVERY).await;
    }
}

/// A demo that already runs is used, not started again.
async fn reuse(options: &Options, layout: &Layout, started: &Started) -> Result<ExitCode, Failure> {
    if options.reset {
        return Err(Failure::new(
            ExitCode::Conflict,
            format!(
                "the demo in {} runs (pid {})",
                layout.root().display(),
                started.up.pid
            ),
        )
        .with(format!(
            "fix: {}, then viworks up --reset again",
            layout.down()
        )));
    }
    stores(options, layout)?;
    let Some(addresses) = &started.addresses else {
        return Err(Failure::new(
            ExitCode::Conflict,
            format!(
                "the demo in {} is just starting (pid {})",
                layout.root().display(),
                started.up.pid
            ),
        )
        .with(format!(
            "fix: try again in a moment, or stop it with {}",
            layout.down()
        )));
    };
    output::note(&format!(
        "already running (pid {}): API http://{}",
        started.up.pid, addresses.api
    ));
    let client = own_client(layout, addresses)?;
    let known = client.gateways().await?.items;
    let online: Vec<String> = known
        .iter()
        .filter(|gateway| gateway.status == GatewayStatus::Online)
        .map(|gateway| gateway.name.to_string())
        .collect();
    if !options.once {
        output::note(&format!(
            "{} online; stop it with Ctrl-C there, or {}",
            human::counted(online.len(), "gateway", "gateways"),
            layout.down()
        ));
        if online.len() != options.agents {
            output::note(&format!(
                "it has its own number of gateways; for {} of them: {}, then viworks up --agents {}",
                options.agents,
                layout.down(),
                options.agents
            ));
        }
        introduce(options, layout, addresses);
        return Ok(ExitCode::Ok);
    }
    first::command(&client, &online, options.format).await
}
