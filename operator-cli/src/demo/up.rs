//! `viworks up`: from nothing to the first answered command.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};
use viworks_common::api::{GatewayRef, GatewayStatus, RequestedArguments, RunRequest, Targets};
use viworks_runtime::exit::ExitCode;
use viworks_runtime::files;

use super::layout::{Addresses, Layout, Process, Started, quoted};
use super::processes::{Programs, Running, left_running, run_to_end, stop, stop_demo};
use crate::client::Client;
use crate::error::Failure;
use crate::output::{self, Format};
use crate::{context, run};

/// What `up` was asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many gateways.
    pub agents: usize,
    /// Whether to stop after the first command.
    pub once: bool,
    /// Whether to remove an earlier run's data first.
    pub reset: bool,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// How the answers are printed.
    pub format: Format,
    /// Where contexts are kept.
    pub config_dir: Option<PathBuf>,
}

const PLACES: [&str; 6] = ["berlin", "lyon", "oslo", "porto", "turin", "ghent"];
const SCOPES: &str = "all";
const CONNECT_WITHIN: Duration = Duration::from_secs(30);
const FIRST_COMMAND: &str = "gateway.info";

fn gateway_name(index: usize) -> String {
    PLACES.get(index).map_or_else(
        || format!("gw-site-{:02}", index + 1),
        |place| format!("gw-{place}"),
    )
}

/// Runs the demo until it is stopped, or once.
pub async fn up(options: &Options) -> Result<ExitCode, Failure> {
    let programs = Programs::find()?;
    let layout = Layout::at(&options.data_dir)?;
    layout.refuse_strangers()?;
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
    if options.reset && layout.root().exists() {
        refuse_foreign_folder(&layout)?;
        std::fs::remove_dir_all(layout.root())?;
        output::note(&format!("removed {}", layout.root().display()));
    }
    layout.create()?;
    let _lock = files::lock_folder(layout.root()).map_err(|error| {
        Failure::new(ExitCode::Conflict, error.to_string()).with(format!(
            "fix: {}, or use another place: viworks up --data-dir DIR",
            layout.down()
        ))
    })?;

    output::note(&format!(
        "ViWorkS {} · demo on this machine · SQLite + in-process queue\n",
        env!("CARGO_PKG_VERSION")
    ));
    save(&layout, None, &[])?;
    let mut running = Vec::new();
    let mut interrupted = Box::pin(interruption());
    let outcome = tokio::select! {
        outcome = start_and_serve(options, &programs, &layout, &mut running) => outcome,
        () = &mut interrupted => Ok(ExitCode::Interrupted),
    };
    if !running.is_empty() {
        output::note("stopping …");
    }
    stop(&mut running).await;
    layout.remove_sockets();
    layout.forget_started()?;
    // Ctrl-C is how a demo that runs until stopped is stopped.
    match outcome {
        Ok(ExitCode::Interrupted) if !options.once => Ok(ExitCode::Ok),
        other => other,
    }
}

async fn interruption() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    // A terminal that is closed ends what it shows; under nohup it does not.
    let hangup = async {
        if hangups_are_ignored() {
            return std::future::pending().await;
        }
        match signal(SignalKind::hangup()) {
            Ok(mut hangup) => hangup.recv().await,
            Err(_not_to_be_had) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = hangup => {}
    }
}

/// Whether this process was started to outlive its terminal, by proc(5).
fn hangups_are_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Signal 1 is the lowest bit.
    ignored.is_some_and(|mask| mask & 1 == 1)
}

/// Only a folder that `up` made is removed.
fn refuse_foreign_folder(layout: &Layout) -> Result<(), Failure> {
    let made_here = layout.root().join("gateways").is_dir() && layout.root().join("run").is_dir();
    let empty = std::fs::read_dir(layout.root())?.next().is_none();
    if made_here || empty {
        Ok(())
    } else {
        Err(Failure::new(
            ExitCode::Config,
            format!(
                "{} does not look like a demo's folder and is left alone",
                layout.root().display()
            ),
        )
        .with("fix: name the folder that viworks up made, or remove it yourself"))
    }
}

async fn start_and_serve(
    options: &Options,
    programs: &Programs,
    layout: &Layout,
    running: &mut Vec<Running>,
) -> Result<ExitCode, Failure> {
    let names: Vec<String> = (0..options.agents).map(gateway_name).collect();
    prepare(programs, layout, &names).await?;

    let addresses = start_backend(programs, layout, running).await?;
    let step = Instant::now();
    start_gateways(programs, layout, &names, &addresses, running)?;
    save(layout, Some(&addresses), running)?;
    let client = Client::new(
        &format!("http://{}", addresses.api),
        Some(&layout.token()),
        false,
    )?;
    wait_until_online(&client, &names, running).await?;
    report(
        &format!("{} gateways", names.len()),
        &summary(&names),
        "connected over mutual TLS",
        step,
    );
    let target = remember(options, layout, &addresses);
    let exit = first_command(&client, &names, options.format).await?;
    if options.once {
        return Ok(exit);
    }
    hints(layout, &addresses, &target);
    watch(running).await
}

/// Remembers the demo as a context, and returns the flags by which other commands find it: none when it is selected.
fn remember(options: &Options, layout: &Layout, addresses: &Addresses) -> String {
    let server = format!("http://{}", addresses.api);
    let remembered = context::remember_demo(
        options.config_dir.as_deref(),
        &server,
        layout.root(),
        &layout.token(),
    );
    match remembered {
        Ok(context) if context.selected => String::new(),
        Ok(context) => {
            output::note(&format!(
                "  context {} stays selected; this demo is context {}",
                context.current, context.name
            ));
            format!(" -c {}", context.name)
        }
        Err(failure) => {
            // Everything the demo needs is in its own folder; a context only saves typing.
            output::note(&format!(
                "  no context was remembered: {}{}",
                failure.what,
                failure
                    .details
                    .first()
                    .map_or_else(String::new, |detail| format!(" ({detail})"))
            ));
            format!(
                " --server {server} --token-file {}",
                quoted(&layout.token().to_string_lossy())
            )
        }
    }
}

fn summary(names: &[String]) -> String {
    match names {
        [] => String::new(),
        names if names.len() <= 4 => names.join(" "),
        [first, .., last] => format!("{first} … {last}"),
        [one] => one.clone(),
    }
}

/// Certificates, database, identities and the operator's key: whatever is missing is made.
async fn prepare(programs: &Programs, layout: &Layout, names: &[String]) -> Result<(), Failure> {
    let step = Instant::now();
    let config = layout.backend_config();
    if !config.exists() {
        let dir = layout.backend();
        // What an interrupted start left: without its configuration nothing was ever made with it.
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        run_to_end(
            layout,
            &programs.backend,
            &["pki", "init", "--dir", path(&dir)?],
        )
        .await?;
    }
    report(
        "certificates",
        &from_here(&layout.backend()),
        "ECDSA P-256",
        step,
    );

    let step = Instant::now();
    for (index, name) in names.iter().enumerate() {
        let dir = layout.gateway(name);
        if !dir.join("gateway.toml").exists() {
            let site = format!("site={}", PLACES.get(index).copied().unwrap_or("elsewhere"));
            let arguments = [
                "pki",
                "issue-gateway",
                name,
                "--config",
                path(&config)?,
                "--out",
                path(&dir)?,
                "--label",
                &site,
                "--demo",
            ];
            run_to_end(layout, &programs.backend, &arguments).await?;
        }
    }
    let token = layout.token();
    if !token.exists() {
        let arguments = [
            "apikey",
            "create",
            "--config",
            path(&config)?,
            "--name",
            "demo",
            "--scopes",
            SCOPES,
            "--out",
            path(&token)?,
        ];
        run_to_end(layout, &programs.backend, &arguments).await?;
    }
    report(
        "identities",
        &format!("{} gateways, 1 operator", names.len()),
        "in the embedded database",
        step,
    );
    Ok(())
}

async fn start_backend(
    programs: &Programs,
    layout: &Layout,
    running: &mut Vec<Running>,
) -> Result<Addresses, Failure> {
    let step = Instant::now();
    let (api, agents) = (free_or_any(8080), free_or_any(8081));
    let addresses = match launch_backend(programs, layout, running, api, agents).await {
        Ok(addresses) => addresses,
        // Somebody else may have taken a port after the look; free ones cannot be lost like that.
        Err(_failure) if (api, agents) != (0, 0) => {
            stop(running).await;
            output::note("  the backend did not come up; trying free ports");
            launch_backend(programs, layout, running, 0, 0).await?
        }
        Err(failure) => return Err(failure),
    };
    report(
        "backend",
        &format!("wss://{}", addresses.agents),
        &format!("API http://{}", addresses.api),
        step,
    );
    Ok(addresses)
}

async fn launch_backend(
    programs: &Programs,
    layout: &Layout,
    running: &mut Vec<Running>,
    api: u16,
    agents: u16,
) -> Result<Addresses, Failure> {
    let ready = layout.ready("backend");
    remove_stale(&ready)?;
    let environment = [
        ("VIWORKS__API__LISTEN", format!("127.0.0.1:{api}")),
        ("VIWORKS__AGENTS__LISTEN", format!("127.0.0.1:{agents}")),
    ];
    let config = layout.backend_config();
    let arguments = [
        "serve",
        "--config",
        path(&config)?,
        "--ready-file",
        path(&ready)?,
    ];
    running.push(Running::start(
        layout,
        "backend",
        &programs.backend,
        &arguments,
        &environment,
    )?);
    let backend = running.last_mut().expect("it was pushed on the line above");
    backend.ready(&ready).await
}

fn start_gateways(
    programs: &Programs,
    layout: &Layout,
    names: &[String],
    addresses: &Addresses,
    running: &mut Vec<Running>,
) -> Result<(), Failure> {
    for name in names {
        let config = layout.gateway(name).join("gateway.toml");
        let mut environment = vec![(
            "VIWORKS__OUTBOUND__URL",
            format!("wss://{}/agent/v1/connect", addresses.agents),
        )];
        if let Some(socket) = layout.short_socket(name)? {
            environment.push(("VIWORKS__GATEWAY__SOCKET", path(&socket)?.to_owned()));
        }
        running.push(Running::start(
            layout,
            name,
            &programs.gateway,
            &["run", "--config", path(&config)?],
            &environment,
        )?);
    }
    Ok(())
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

async fn wait_until_online(
    client: &Client,
    names: &[String],
    running: &mut [Running],
) -> Result<(), Failure> {
    let deadline = Instant::now() + CONNECT_WITHIN;
    loop {
        let gateways = client.gateways().await?;
        let missing: Vec<&str> = names
            .iter()
            .filter(|name| {
                !gateways.iter().any(|gateway| {
                    gateway.name.as_str() == name.as_str()
                        && gateway.status == GatewayStatus::Online
                        && gateway.catalogue_digest.is_some()
                })
            })
            .map(String::as_str)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        for one in running.iter_mut() {
            if let Some(failure) = one.ended()? {
                return Err(failure);
            }
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(
                ExitCode::NoAnswer,
                format!(
                    "not connected in {} s: {}",
                    CONNECT_WITHIN.as_secs(),
                    missing.join(" ")
                ),
            )
            .with("see the logs folder in the demo's folder"));
        }
        sleep(Duration::from_millis(25)).await;
    }
}

async fn first_command(
    client: &Client,
    names: &[String],
    format: Format,
) -> Result<ExitCode, Failure> {
    let step = Instant::now();
    let command = FIRST_COMMAND
        .parse()
        .map_err(|error| Failure::new(ExitCode::Error, format!("{error}")))?;
    let targets: Result<Vec<GatewayRef>, _> = names.iter().map(|name| name.parse()).collect();
    let request = RunRequest {
        command,
        arguments: RequestedArguments::default(),
        // Not all that are registered: an earlier demo in this folder may have had more.
        targets: Targets::Gateways(
            targets.map_err(|error| Failure::new(ExitCode::Error, format!("{error}")))?,
        ),
        deadline_ms: None,
        timeout_ms: None,
        skip_unable: false,
        expect_targets: None,
        reason: None,
    };
    let submitted = client.submit(&request, None).await?;
    let finished = client.wait(submitted.id, Duration::from_secs(20)).await?;
    let commands = run::with_output(client, client.run_commands(submitted.id).await?).await?;
    let answered = commands
        .iter()
        .filter(|command| command.state.is_final())
        .count();
    report(
        "first command",
        FIRST_COMMAND,
        &format!("{answered} of {} answered", commands.len()),
        step,
    );
    output::note("");
    match format {
        Format::Table => run::print_commands(&commands, &[], |_id| run::Told::default())?,
        Format::Json => output::json(
            &serde_json::json!({"apiVersion": "viworks/v1", "kind": "RunResult", "run": finished.run, "commands": commands}),
        )?,
    }
    output::note("");
    Ok(run::exit_code(commands.iter().map(|command| command.state)))
}

fn hints(layout: &Layout, addresses: &Addresses, target: &str) {
    let program = quoted(&run::program_name());
    let mut lines = vec![
        format!("  API       http://{}/openapi.json", addresses.api),
        format!("  Next      {program}{target} run sys.uptime --all     (second terminal)"),
        format!("            {program}{target} gateway ls"),
        format!("            {program}{target} telemetry -g gw-berlin --stream host.cpu"),
        format!("  Stop      Ctrl-C, or {}", layout.down()),
    ];
    if let Some(folder) = layout.sockets() {
        lines.push(format!(
            "  Sockets   {} (the demo's folder is too deep for them)",
            quoted(&folder.to_string_lossy())
        ));
    }
    for line in lines {
        output::note(&line);
    }
}

/// Stays until a process ends by itself; Ctrl-C is handled by the caller.
async fn watch(running: &mut [Running]) -> Result<ExitCode, Failure> {
    loop {
        for one in running.iter_mut() {
            if let Some(failure) = one.ended()? {
                return Err(failure);
            }
        }
        sleep(Duration::from_millis(500)).await;
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
    let client = Client::new(
        &format!("http://{}", addresses.api),
        Some(&layout.token()),
        false,
    )?;
    let online: Vec<String> = client
        .gateways()
        .await?
        .iter()
        .filter(|gateway| gateway.status == GatewayStatus::Online)
        .map(|gateway| gateway.name.to_string())
        .collect();
    if !options.once {
        output::note(&format!(
            "{} gateways online; stop it with Ctrl-C there, or {}",
            online.len(),
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
        let target = remember(options, layout, addresses);
        hints(layout, addresses, &target);
        return Ok(ExitCode::Ok);
    }
    first_command(&client, &online, options.format).await
}

fn report(what: &str, subject: &str, detail: &str, since: Instant) {
    output::note(&format!(
        "  ✓ {what:<15} {subject:<36} {detail:<30} {:>5} ms",
        since.elapsed().as_millis()
    ));
}

fn path(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| {
        Failure::usage(format!(
            "{} is not UTF-8; use another folder",
            path.display()
        ))
    })
}

/// A path as short as it can be said where the person stands.
fn from_here(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here)
        .unwrap_or(path)
        .display()
        .to_string()
}

fn remove_stale(file: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(file) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The wanted port when it is free, otherwise 0: the backend then takes any free one.
fn free_or_any(port: u16) -> u16 {
    match TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) {
        Ok(_free) => port,
        Err(_taken) => {
            output::note(&format!("  port {port} is taken; using a free one"));
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::gateway_name;

    #[test]
    fn gateway_names_are_distinct_and_valid() {
        let names: std::collections::BTreeSet<String> = (0..40).map(gateway_name).collect();
        assert_eq!(names.len(), 40);
        for name in names {
            name.parse::<viworks_common::id::GatewayName>().unwrap();
        }
    }
}
