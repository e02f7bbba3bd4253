//! `enroll`: makes a gateway of this machine, and says step by step how that goes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use viworks_common::enrolment::{Home, Ticket};
use viworks_common::human;
use viworks_common::id::{GatewayName, InstallId};
use viworks_common::time::Monotonic;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::config::{Problems, environment};
use viworks_runtime::exit::ExitCode;
use viworks_runtime::files::quoted;
use viworks_runtime::lifecycle::Signals;
use viworks_runtime::{fault, files, logging, stdout, tls};

use crate::config::Config;
use crate::enrol::{EnrolError, Enrolled, Found, Machine, Places, Staging, redeem};
use crate::identity::{INSTALL_ID_FILE, known_install_id};
use crate::material::Material;
use crate::outbound::dial::{self, Dialler};
use crate::outbound::look;
use crate::setup;

mod ticket;

/// How long the backend has for its challenge.
const CHALLENGE_TIME: Duration = Duration::from_secs(10);

/// What is wanted.
pub(super) struct Asked {
    /// Where everything goes.
    pub(super) folder: PathBuf,
    /// How the gateway is to be called.
    pub(super) name: Option<GatewayName>,
    /// Where the ticket is.
    pub(super) ticket_file: Option<PathBuf>,
    /// Where the gateway is to run.
    pub(super) home: Home,
    /// How long it is tried again.
    pub(super) patience: Duration,
}

/// Makes the gateway, tries its connection, and returns what the process ends with.
pub(super) async fn enroll(asked: Asked) -> anyhow::Result<ExitCode> {
    tls::install_provider();
    fault::configure(&environment())?;
    let mut signals = Signals::listen()?;
    tokio::select! {
        ended = make(asked) => ended,
        // What it has on disk is gone on with by the next call; a terminal is as it was.
        _signal = signals.next() => Err(EnrolError::Interrupted.into()),
    }
}

async fn make(asked: Asked) -> anyhow::Result<ExitCode> {
    let places = Places::new(asked.folder.clone(), asked.home, &environment());
    match Staging::open(&places)? {
        Found::Whole(whole) => {
            whole.finish(&places)?;
            say(
                "files",
                "an earlier enroll had all of them; they are in place now",
            )?;
        }
        Found::Begun(staging) => {
            let ticket = ticket::read(asked.ticket_file.as_deref()).await?;
            become_gateway(staging, &ticket, &asked, &places).await?;
        }
    }
    try_connection(&places).await
}

async fn become_gateway(
    staging: Staging,
    ticket: &Ticket,
    asked: &Asked,
    places: &Places,
) -> anyhow::Result<()> {
    let known = known_install_id(places.state()).ok().flatten();
    let (csr, install_id) = match staging.request(known) {
        Ok(request) => request,
        Err(error) => return Err(left(staging, error).into()),
    };
    let machine = Machine {
        csr,
        install_id,
        name: asked.name.clone(),
        host: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
    };
    let mut last = String::new();
    let told = |error: &EnrolError| {
        let cause = error.cause();
        if cause != last {
            let patience = human::span(asked.patience);
            logging::say(&format!("{cause}; trying again for up to {patience}"));
            last = cause;
        }
    };
    let enrolled = match redeem(ticket, &machine, asked.patience, told).await {
        Ok(enrolled) => enrolled,
        Err(error) => return Err(left(staging, error).into()),
    };
    let filled = staging.fill(&enrolled.papers, places.home);
    let finished = filled.and_then(|whole| whole.finish(places));
    finished.map_err(EnrolError::unkept)?;
    // What root writes there the service's user could not read.
    if places.home != Home::Installed {
        keep_install_id(places.state(), install_id);
    }
    tell(&enrolled)?;
    if let Some(file) = asked
        .ticket_file
        .as_deref()
        .filter(|file| *file != Path::new("-"))
    {
        let file = quoted(file);
        say(
            "ticket",
            &format!("this machine needs it no more: rm {file}"),
        )?;
    }
    Ok(())
}

/// Takes back what was begun in vain; what the backend may know, by this call or an earlier one, stays.
fn left(staging: Staging, error: EnrolError) -> EnrolError {
    if staging.is_fresh()
        && !error.may_be_done()
        && let Err(error) = staging.clear()
    {
        return error;
    }
    error
}

/// The agent goes on as the installation that enrolled, where that can be written. Where it cannot, the agent draws an
/// id of its own, which does no harm.
fn keep_install_id(state: &Path, install_id: InstallId) {
    let path = state.join(INSTALL_ID_FILE);
    if files::create_private_folder(state).is_ok() && path.symlink_metadata().is_err() {
        drop(files::write_new(
            &path,
            format!("{install_id}\n").as_bytes(),
            0o600,
        ));
    }
}

fn tell(enrolled: &Enrolled) -> anyhow::Result<()> {
    let answer = &enrolled.papers.answer;
    say(
        "backend",
        &format!(
            "{}    the key {} is one of the ticket's",
            enrolled.place, enrolled.pin
        ),
    )?;
    say("key", "ECDSA P-256, made here, never leaves this machine")?;
    let now = SystemClock.wall();
    say(
        "certificate",
        &format!(
            "CN={}, ends {}",
            answer.name,
            human::relative_and_exact(answer.not_after, now)
        ),
    )?;
    let labels: Vec<String> = answer
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    if !labels.is_empty() {
        say("labels", &labels.join(" "))?;
    }
    Ok(())
}

/// Connects as far as the backend's challenge and no further, as `doctor` does.
async fn try_connection(places: &Places) -> anyhow::Result<ExitCode> {
    let path = places.target.join("gateway.toml");
    let begun = SystemClock.now();
    let next = match places.home {
        Home::Installed => "systemctl enable --now viworks-gateway-agent".to_owned(),
        Home::Folder | Home::Demo => {
            format!("viworks-gateway-agent run --config {}", quoted(&path))
        }
    };
    let (config, material) = match load(&path) {
        Ok(loaded) => loaded,
        Err(problems) => {
            stdout::print(&format!(
                "  \u{2715} {:<14}{}\n\nThis machine has the identity of a gateway, and no agent can start with what \
                 is there. Mend it until this is content: viworks-gateway-agent check-config --config {}\n",
                "files",
                problems.in_one_line(),
                quoted(&path)
            ))?;
            return Ok(ExitCode::Config);
        }
    };
    match connect(config, &material).await {
        Ok(url) => {
            let took = took(begun);
            say(
                "connection",
                &format!("{url} takes this gateway's certificate, in {took} ms"),
            )?;
            stdout::print(&format!(
                "\nThis machine is a gateway now. Start it: {next}\n"
            ))?;
            Ok(ExitCode::Ok)
        }
        Err((cause, fix)) => {
            stdout::print(&format!("  \u{2715} {:<14}{cause}\n", "connection"))?;
            if !fix.is_empty() {
                stdout::print(&format!("    {:<14}{fix}\n", "fix"))?;
            }
            stdout::print(&format!(
                "\nThis machine is a gateway now, and does not reach its backend yet. It goes on trying once it runs: {next}\n"
            ))?;
            Ok(ExitCode::Unavailable)
        }
    }
}

fn load(path: &Path) -> Result<(Config, Material), Problems> {
    let config = Config::load(path, &environment())?;
    let material = Material::load(&config)?;
    setup::examine_catalogue(&config)?;
    Ok((config, material))
}

async fn connect(config: Config, material: &Material) -> Result<String, (String, String)> {
    let outbound = config.outbound;
    let (url, pins, floor) = (
        outbound.address(),
        outbound.pins.clone(),
        outbound.version_floor,
    );
    let failed = |failure: crate::outbound::failure::DialFailure| {
        (failure.to_string(), failure.fix().to_owned())
    };
    let tcp = dial::connect(&outbound.host, outbound.port, None, &outbound.timeouts);
    let tcp = tcp.await.map_err(failed)?;
    let dialler = Dialler::new(
        outbound,
        Arc::clone(&material.roots),
        material.shown.tls.clone(),
        material.shown.fingerprint,
    );
    let dialled = dialler.open(tcp, pins).await.map_err(failed)?;
    let challenged = look::challenge(dialled, material, floor, CHALLENGE_TIME).await;
    challenged.map_err(|refused| (refused.cause, refused.fix))?;
    Ok(url)
}

fn took(begun: Monotonic) -> u128 {
    SystemClock.now().saturating_since(begun).as_millis()
}

fn say(what: &str, found: &str) -> anyhow::Result<()> {
    Ok(stdout::print(&format!("  \u{2713} {what:<14}{found}\n"))?)
}
