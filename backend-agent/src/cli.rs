//! The command line: subcommands in, exit code out.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use viworks_api::{ApiKeyStatus, Scope};
use viworks_common::human;
use viworks_common::id::{
    ApiKeyId, GatewayName, InvalidId, LabelKey, Tenant, TrustDomain, check_label_value,
};
use viworks_common::limits::PAGE_ROWS_MAX;
use viworks_common::text;
use viworks_common::time::Timestamp;
use viworks_runtime::blocking;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::config::{Environment, Problems, environment};
use viworks_runtime::exit::ExitCode;
use viworks_runtime::lifecycle::{Hangups, Lifecycle, Signals, notify};
use viworks_runtime::sqlite::Options;
use viworks_runtime::stdout::{self, PrintError};
use viworks_runtime::{fault, files, logging, ready_file, tls};

use crate::app::{App, GRACE, StartError, timeline};
use crate::auth::apikey::{self, CreateError, CreateKey};
use crate::config::{Config, reference};
use crate::data::sqlite::SqliteStore;
use crate::data::{Actor, GatewayRef, Page, Store, StoreError};
use crate::listening;
use crate::pki::PkiError;
use crate::pki::init::{InitRequest, init};
use crate::pki::issue::{Delivery, GATEWAY_LIFE, IssueRequest, Office, is_for, issue};
use crate::setup::Setup;

/// How long everything that a start reads may take.
const LOAD_TIME: Duration = Duration::from_secs(60);

/// How long a small file may take that tells others where this process listens.
const FILE_TIME: Duration = Duration::from_secs(5);

/// How long closing the database may take at the end.
const CLOSE_TIME: Duration = Duration::from_secs(10);

/// The backend of ViWorkS.
#[derive(Debug, Parser)]
#[command(name = "viworks-backend-agent", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Debug, Args)]
struct ConfigFlag {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The backend's own folder, whatever the configuration says
    #[arg(long, value_name = "DIR")]
    state_folder: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Run the backend
    Serve {
        #[command(flatten)]
        config: ConfigFlag,
        /// Write the addresses as JSON once both listeners take connections
        #[arg(long, value_name = "FILE")]
        ready_file: Option<PathBuf>,
    },
    /// Check the configuration and everything it names, and say every problem
    CheckConfig(ConfigFlag),
    /// Print the configuration reference as Markdown
    ConfigReference,
    /// Create the database or bring it up to date
    Migrate(ConfigFlag),
    /// Keys for the operators' API
    #[command(subcommand)]
    Apikey(ApikeyCommand),
    /// Certificates and identities
    #[command(subcommand)]
    Pki(PkiCommand),
    /// Gateways
    #[command(subcommand)]
    Gateway(GatewayCommand),
}

#[derive(Debug, Subcommand)]
enum ApikeyCommand {
    /// Make a key and write its secret to a new file
    Create {
        #[command(flatten)]
        config: ConfigFlag,
        /// What it may do, separated by commas, or `all`
        #[arg(long, value_parser = scopes)]
        scopes: Scopes,
        /// What it is for
        #[arg(long, default_value = "operator")]
        name: String,
        /// After how many days it ends; never when left out
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=3_650))]
        expires_days: Option<u64>,
        /// Where its secret goes
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// List all keys
    Ls(ConfigFlag),
    /// Revoke a key
    Revoke {
        #[command(flatten)]
        config: ConfigFlag,
        /// Its id
        id: ApiKeyId,
    },
}

#[derive(Debug, Subcommand)]
enum PkiCommand {
    /// Make an authority, the server's keys, the master key and a complete configuration
    Init {
        /// Where everything goes
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The trust domain in every gateway's name
        #[arg(long, default_value = "viworks.internal")]
        trust_domain: TrustDomain,
        /// A DNS name or address of the server; may be repeated
        #[arg(long = "server-name", default_values = ["localhost", "127.0.0.1", "::1"])]
        server_names: Vec<String>,
    },
    /// Let a gateway join and write everything it needs: keys, identity, configuration and the shipped catalogue
    IssueGateway {
        #[command(flatten)]
        config: ConfigFlag,
        /// Its name
        name: GatewayName,
        /// Where its files go
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// A label as key=value; may be repeated
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
        labels: Vec<(String, String)>,
        /// Where the gateway reaches the backend: wss://HOST:PORT; `public_url` of [agents], or where it listens, when left out
        #[arg(long)]
        url: Option<String>,
        /// How many days its certificate lives; 90 when left out
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=3_650))]
        days: Option<u64>,
        /// A gateway of the local demo: it may use commands that belong to its own user
        #[arg(long)]
        demo: bool,
    },
}

#[derive(Debug, Subcommand)]
enum GatewayCommand {
    /// Revoke a gateway: its session ends, and it never gets another one
    Revoke {
        #[command(flatten)]
        config: ConfigFlag,
        /// Its name or id
        gateway: GatewayRef,
    },
}

/// What a key may do, as one argument.
#[derive(Debug, Clone)]
struct Scopes(BTreeSet<Scope>);

fn scopes(text: &str) -> Result<Scopes, String> {
    if text == "all" {
        return Ok(Scopes(Scope::ALL.iter().copied().collect()));
    }
    let known = |name: &str| {
        Scope::ALL
            .iter()
            .copied()
            .find(|scope| scope.name() == name)
    };
    let scopes = text.split(',').map(|name| {
        known(name).ok_or_else(|| {
            let names: Vec<_> = Scope::ALL.iter().map(|scope| scope.name()).collect();
            format!("{name:?} is no scope; known are all, {}", names.join(", "))
        })
    });
    scopes.collect::<Result<_, _>>().map(Scopes)
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label is written key=value")?;
    let key: LabelKey = key.parse().map_err(|error: InvalidId| error.to_string())?;
    check_label_value(value).map_err(|error| error.to_string())?;
    Ok((key.to_string(), value.to_owned()))
}

/// Runs the program with the arguments of this process.
#[must_use]
pub fn main() -> std::process::ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            if error.use_stderr() {
                // Without a place to write to, only the exit code is left.
                drop(error.print());
                return ExitCode::Usage.into();
            }
            return asked(&error.render().to_string()).into();
        }
    };
    tls::install_provider();
    let code = match start(cli) {
        Ok(code) => code,
        Err(error) if matches!(error.downcast_ref(), Some(PrintError::ReaderGone)) => {
            ExitCode::ReaderGone
        }
        Err(error) => {
            logging::say(&format!("error: {error:#}"));
            exit_code(&error)
        }
    };
    logging::flush();
    code.into()
}

/// Prints the help or the version.
fn asked(text: &str) -> ExitCode {
    match stdout::print(text) {
        Ok(()) => ExitCode::Ok,
        Err(PrintError::ReaderGone) => ExitCode::ReaderGone,
        Err(error @ PrintError::Failed(_)) => {
            say(&format!("error: {error}"));
            ExitCode::Error
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    fault::configure(&environment())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // Said here, because the library would read a variable of its own and panic where that is no number.
        .worker_threads(std::thread::available_parallelism().map_or(1, NonZero::get))
        .enable_all()
        .build()
        .context("failed to start the async runtime")?;
    viworks_runtime::lifecycle::run_to_end(runtime, run(cli.command))
}

async fn run(command: Subcommands) -> anyhow::Result<ExitCode> {
    match command {
        Subcommands::Serve { config, ready_file } => {
            return Box::pin(serve(move || load_all(&config), ready_file.as_deref())).await;
        }
        Subcommands::CheckConfig(config) => {
            for warning in load_all(&config)?.warnings {
                say(&format!("warning: {warning}"));
            }
            print(&format!("{} is valid", config.config.display()))?;
        }
        Subcommands::ConfigReference => print(reference::markdown().trim_end())?,
        Subcommands::Migrate(config) => {
            let store = open(&load(&config)?).await?;
            let health = store.health().await?;
            store.close().await;
            print(&format!("{} schema {}", health.kind, health.schema_version))?;
        }
        Subcommands::Apikey(command) => return run_apikey(command).await,
        Subcommands::Pki(command) => run_pki(command).await?,
        Subcommands::Gateway(GatewayCommand::Revoke { config, gateway }) => {
            return revoke_gateway(&load(&config)?, &gateway).await;
        }
    }
    Ok(ExitCode::Ok)
}

async fn serve(
    load: impl FnOnce() -> Result<Setup, Problems> + Send + 'static,
    ready_file: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    // Before anything is read, and on a thread of its own: a file that hangs in the operating system must not keep the
    // process from hearing that it should end.
    let mut signals = Signals::listen().context("failed to listen for signals")?;
    let hangups = Hangups::listen().context("failed to listen for SIGHUP")?;
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
    app.reload_on(hangups, &lifecycle);
    tracing::info!(api = %app.api, agents = %app.agents, "listening");
    if let Some(path) = ready_file {
        let addresses: BTreeMap<&str, SocketAddr> =
            BTreeMap::from([("api", app.api), ("agents", app.agents)]);
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

async fn run_apikey(command: ApikeyCommand) -> anyhow::Result<ExitCode> {
    let tenant = Tenant::default_tenant();
    match command {
        ApikeyCommand::Create {
            config,
            scopes,
            name,
            expires_days,
            out,
        } => {
            let store = open(&load(&config)?).await?;
            let request = CreateKey {
                name,
                scopes: scopes.0,
                expires_in: expires_days.map(days),
            };
            let created = apikey::create(
                &store,
                &tenant,
                request,
                &actor(),
                &out,
                line(&store).await?,
            )
            .await;
            store.close().await;
            print(&format!("{}  {}", created?.id, out.display()))?;
        }
        ApikeyCommand::Ls(config) => {
            let store = open(&load(&config)?).await?;
            let listed = list_keys(&store, &tenant).await;
            store.close().await;
            listed?;
        }
        ApikeyCommand::Revoke { config, id } => {
            let store = open(&load(&config)?).await?;
            let revoked = apikey::revoke(&store, &tenant, id, &actor(), line(&store).await?).await;
            store.close().await;
            if revoked?.is_none() {
                say(&format!("error: there is no API key {id}"));
                return Ok(ExitCode::NotFound);
            }
            print(&format!("revoked {id}"))?;
        }
    }
    Ok(ExitCode::Ok)
}

const fn status(status: ApiKeyStatus) -> &'static str {
    match status {
        ApiKeyStatus::Active => "active",
        ApiKeyStatus::Expired => "expired",
        ApiKeyStatus::Revoked => "revoked",
    }
}

/// Prints every key, page after page.
async fn list_keys(store: &SqliteStore, tenant: &Tenant) -> anyhow::Result<()> {
    let now = line(store).await?;
    let mut page = Page::first(PAGE_ROWS_MAX);
    loop {
        let listing = apikey::list(store, tenant, page, now).await?;
        for key in listing.items {
            let scopes: Vec<_> = key.scopes.iter().map(|scope| scope.name()).collect();
            print(&format!(
                "{}  {}  {}  {}  created {}  {}",
                key.id,
                status(key.status),
                key.name,
                scopes.join(","),
                human::relative(key.created_at, now),
                key.expires_at.map_or_else(
                    || "never expires".to_owned(),
                    |at| format!("expires {}", human::relative_and_exact(at, now))
                )
            ))?;
        }
        match listing.next {
            Some(next) => page = Page::after(next, PAGE_ROWS_MAX),
            None => return Ok(()),
        }
    }
}

async fn run_pki(command: PkiCommand) -> anyhow::Result<()> {
    match command {
        PkiCommand::Init {
            dir,
            trust_domain,
            server_names,
        } => {
            let request = InitRequest {
                folder: dir,
                trust_domain,
                server_names,
            };
            let made = init(&request, SystemClock.wall())?;
            print(&format!("config  {}", made.config.display()))?;
            print(&format!("pin     {}", made.active))?;
            print(&format!("next    {}", made.next))?;
        }
        PkiCommand::IssueGateway {
            config,
            name,
            out,
            labels,
            url,
            days: life,
            demo,
        } => {
            let config = load(&config)?;
            let url = match url {
                Some(url) => url,
                None => url_for_gateways(&config, demo)?,
            };
            let delivery = Delivery {
                folder: out,
                url,
                demo,
            };
            delivery.check()?;
            let request = IssueRequest {
                name,
                labels: labels.into_iter().collect(),
                life: life.map_or(GATEWAY_LIFE, days),
            };
            issue_gateway(&config, &delivery, request).await?;
        }
    }
    Ok(())
}

/// Where gateways reach this backend, as far as it is known here.
fn url_for_gateways(config: &Config, demo: bool) -> Result<String, PkiError> {
    if let Some(url) = &config.agents.public_url {
        return Ok(url.clone());
    }
    // A port may be another one than is configured.
    let address = listening::agents(&config.data.state_folder).unwrap_or(config.agents.listen);
    if address.ip().is_unspecified() || address.port() == 0 {
        return Err(PkiError::Url {
            message: format!("{address} does not say where gateways reach this backend"),
            help: format!(
                "say it: --url wss://HOST:{}, or public_url in [agents]",
                address.port()
            ),
        });
    }
    let port = address.port();
    let mut places = vec![(address.ip().to_string(), address.to_string())];
    if address.ip().is_loopback() {
        places.push(("localhost".to_owned(), format!("localhost:{port}")));
    }
    let file = &config.agents.certificate_file;
    let mut place = None;
    for (host, authority) in places {
        if place.is_none() && is_for(file, &host)? {
            place = Some(authority);
        }
    }
    let Some(place) = place else {
        return Err(PkiError::Url {
            message: format!(
                "gateways would refuse this backend at {address}, because {} is not for {}",
                file.display(),
                address.ip()
            ),
            help: format!(
                "say the name that the certificate is for: --url wss://NAME:{port}, or public_url in [agents]"
            ),
        });
    };
    if address.ip().is_loopback() && !demo {
        say(&format!(
            "the gateway will look for the backend on its own machine, at {place}; for another one: --url wss://HOST:PORT, or public_url in [agents]"
        ));
    }
    Ok(format!("wss://{place}/agent/v1/connect"))
}

async fn issue_gateway(
    config: &Config,
    delivery: &Delivery,
    request: IssueRequest,
) -> anyhow::Result<()> {
    let office = Office::open(config)?;
    let store = open(config).await?;
    let tenant = Tenant::default_tenant();
    let name = request.name.clone();
    let clock = timeline(&store, Arc::new(SystemClock)).await?;
    let issued = issue(
        &store,
        &tenant,
        &office,
        request,
        delivery,
        &actor(),
        &clock,
    )
    .await;
    store.close().await;
    print(&format!(
        "{name}  {}  {}",
        issued?,
        delivery.folder.display()
    ))
}

async fn revoke_gateway(config: &Config, gateway: &GatewayRef) -> anyhow::Result<ExitCode> {
    let tenant = Tenant::default_tenant();
    let store = open(config).await?;
    let revoked = async {
        let Some(found) = store.gateway(&tenant, gateway).await? else {
            return Ok::<_, StoreError>(None);
        };
        store
            .revoke_gateway(&tenant, found.agent_id, &actor(), line(&store).await?)
            .await
    }
    .await;
    store.close().await;
    match revoked? {
        Some(revoked) if revoked.already => print("it was revoked before")?,
        Some(_) => print("revoked")?,
        None => {
            say("error: there is no such gateway");
            return Ok(ExitCode::NotFound);
        }
    }
    Ok(ExitCode::Ok)
}

fn load(flag: &ConfigFlag) -> Result<Config, Problems> {
    let (path, environment) = place(flag);
    Config::load(&path, &environment)
}

/// What the start reads, and the check as well.
fn load_all(flag: &ConfigFlag) -> Result<Setup, Problems> {
    let (path, environment) = place(flag);
    Setup::load(&path, &environment, SystemClock.wall())
}

fn place(flag: &ConfigFlag) -> (PathBuf, Environment) {
    let path = std::path::absolute(&flag.config).unwrap_or_else(|_no_folder| flag.config.clone());
    let mut environment = environment();
    if let Some(folder) = &flag.state_folder {
        let folder = std::path::absolute(folder).unwrap_or_else(|_no_folder| folder.clone());
        environment = environment.with("VIWORKS__DATA__STATE_FOLDER", &folder.to_string_lossy());
    }
    (path, environment)
}

async fn open(config: &Config) -> Result<SqliteStore, StartError> {
    files::create_private_folder(&config.data.state_folder)?;
    Ok(SqliteStore::open(Options::new(&config.data.sqlite_file)).await?)
}

/// What the time line of the store reads; a running backend is on the same.
async fn line(store: &SqliteStore) -> Result<Timestamp, StoreError> {
    Ok(timeline(store, Arc::new(SystemClock)).await?.line())
}

fn actor() -> Actor {
    Actor::local(&format!("uid {}", rustix::process::getuid().as_raw()))
}

const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 24 * 3_600)
}

fn print(line: &str) -> anyhow::Result<()> {
    let harmless = text::block(line);
    Ok(stdout::print(&format!("{harmless}\n"))?)
}

/// For people; a closed standard error output is no reason to fail.
fn say(line: &str) {
    drop(writeln!(std::io::stderr(), "{}", text::block(line)));
}

fn exit_code(error: &anyhow::Error) -> ExitCode {
    if let Some(problems) = error.downcast_ref::<Problems>() {
        return problems.exit_code();
    }
    if let Some(start) = error.downcast_ref::<StartError>() {
        return start.exit_code();
    }
    if error.downcast_ref::<fault::FaultError>().is_some() {
        return ExitCode::Config;
    }
    let store = error.downcast_ref::<StoreError>().or_else(|| {
        match (
            error.downcast_ref::<PkiError>(),
            error.downcast_ref::<CreateError>(),
        ) {
            (Some(PkiError::Store(error)), _) | (None, Some(CreateError::Store(error))) => {
                Some(error)
            }
            _ => None,
        }
    });
    match error.downcast_ref::<CreateError>() {
        Some(CreateError::BadName | CreateError::NoScope | CreateError::BadExpiry) => {
            return ExitCode::Usage;
        }
        Some(CreateError::Write { source, .. })
            if source.kind() == std::io::ErrorKind::AlreadyExists =>
        {
            return ExitCode::Conflict;
        }
        Some(CreateError::Write { .. } | CreateError::File(_) | CreateError::Store(_)) | None => {}
    }
    let exists = match error.downcast_ref::<PkiError>() {
        Some(PkiError::Url { .. } | PkiError::Name { .. }) => return ExitCode::Usage,
        Some(PkiError::Exists { .. }) => true,
        Some(_) | None => false,
    };
    if exists || matches!(store, Some(StoreError::Conflict { .. })) {
        return ExitCode::Conflict;
    }
    ExitCode::Error
}
