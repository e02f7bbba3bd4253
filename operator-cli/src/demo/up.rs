//! `viworks up`: from nothing to the first answered command.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};
use viworks_api::{GatewayRef, GatewayStatus, RequestedArguments, RunRequest, Targets};
use viworks_common::human;
use viworks_runtime::exit::ExitCode;
use viworks_runtime::files;

use super::layout::{Addresses, Layout, Process, Started, quoted};
use super::processes::{Programs, Running, left_running, run_to_end, stop, stop_demo};
use crate::client::Client;
use crate::error::{Failure, chain};
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
    layout.create()?;
    let _lock = files::lock_folder(layout.root()).map_err(|error| in_use(&layout, &error))?;

    output::note(&format!(
        "ViWorkS {} · demo on this machine · SQLite + in-process queue\n",
        env!("CARGO_PKG_VERSION")
    ));
    save(&layout, None, &[])?;
    let mut running = Vec::new();
    let mut is_up = false;
    let mut interrupted = Box::pin(interruption());
    let outcome = tokio::select! {
        outcome = start_and_serve(options, &programs, &layout, &mut running, &mut is_up) => outcome,
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
    context::forget_demo(options.config_dir.as_deref(), &layout.token());
    // Ctrl-C is how a demo that runs until stopped is stopped.
    match outcome {
        Ok(ExitCode::Interrupted) if is_up => Ok(ExitCode::Ok),
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
    running: &mut Vec<Running>,
    is_up: &mut bool,
) -> Result<ExitCode, Failure> {
    let names: Vec<String> = (0..options.agents).map(gateway_name).collect();
    prepare(programs, layout, &names).await?;

    let addresses = start_backend(programs, layout, running).await?;
    let step = Instant::now();
    let client = own_client(layout, &addresses)?;
    let names = without_revoked(&client, layout, names).await?;
    start_gateways(programs, layout, &names, &addresses, running)?;
    save(layout, Some(&addresses), running)?;
    wait_until_online(&client, layout, &names, running).await?;
    report(
        &human::counted(names.len(), "gateway", "gateways"),
        &summary(&names),
        "connected over mutual TLS",
        step,
    );
    let exit = first_command(&client, &names, options.format).await?;
    // A demo that is over in a moment is nobody's context.
    if options.once {
        return Ok(exit);
    }
    *is_up = true;
    let target = remember(options, layout, &addresses);
    hints(layout, &addresses, &target);
    watch(running).await
}

/// A client of the demo's own backend, which nobody has to be told to start.
fn own_client(layout: &Layout, addresses: &Addresses) -> Result<Client, Failure> {
    let server = format!("http://{}", addresses.api);
    let client = Client::new(&server, Some(&layout.token()), false)?;
    let log = layout.log("backend");
    Ok(client.whose_silence_means(format!(
        "why, by the backend's own words: {}",
        quoted(&log.to_string_lossy())
    )))
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
        layout.remove_backend()?;
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
            layout.complete_catalogue(name)?;
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
        &format!(
            "{}, 1 operator",
            human::counted(names.len(), "gateway", "gateways")
        ),
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

/// The gateways that are worth a start: one that was revoked never gets a session again.
async fn without_revoked(
    client: &Client,
    layout: &Layout,
    mut names: Vec<String>,
) -> Result<Vec<String>, Failure> {
    let revoked: Vec<String> = client
        .gateways()
        .await?
        .iter()
        .filter(|gateway| gateway.status == GatewayStatus::Revoked)
        .map(|gateway| gateway.name.to_string())
        .collect();
    for name in names.iter().filter(|name| revoked.contains(name)) {
        output::note(&format!(
            "  {name} was revoked and is left out; {}",
            new_identity(layout, name)
        ));
    }
    names.retain(|name| !revoked.contains(name));
    if names.is_empty() {
        return Err(
            Failure::new(ExitCode::Config, "every gateway of this demo was revoked")
                .with(format!("fix: start over: {} --reset", layout.up())),
        );
    }
    Ok(names)
}

/// How a revoked gateway of the demo gets an identity again.
fn new_identity(layout: &Layout, name: &str) -> String {
    format!(
        "for a new identity under its name: mv {folder} {old}, then {up}",
        folder = quoted(&layout.gateway(name).to_string_lossy()),
        old = quoted(&layout.gateway(&format!("{name}-revoked")).to_string_lossy()),
        up = layout.up()
    )
}

async fn wait_until_online(
    client: &Client,
    layout: &Layout,
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
        // Nothing that is waited for mends this.
        if let Some(revoked) = gateways.iter().find(|gateway| {
            gateway.status == GatewayStatus::Revoked && missing.contains(&gateway.name.as_str())
        }) {
            return Err(
                Failure::new(ExitCode::Config, format!("{} was revoked", revoked.name)).with(
                    format!("fix: {}", new_identity(layout, revoked.name.as_str())),
                ),
            );
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
            .with(format!(
                "why, by its own words: {}",
                missing
                    .iter()
                    .map(|name| quoted(&layout.log(name).to_string_lossy()))
                    .collect::<Vec<_>>()
                    .join(" ")
            )));
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
    let (submitted, _replayed) = client.submit(&request, None).await?;
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
    let client = own_client(layout, addresses)?;
    let online: Vec<String> = client
        .gateways()
        .await?
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
