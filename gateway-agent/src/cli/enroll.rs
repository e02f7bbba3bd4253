//! `enroll`: makes a gateway of this machine, and says step by step how that goes.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use viworks_common::enrolment::{Home, TICKET_CHARS_MAX, Ticket};
use viworks_common::human;
use viworks_common::id::{GatewayName, InstallId};
use viworks_common::time::Monotonic;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::config::{Problems, environment};
use viworks_runtime::exit::ExitCode;
use viworks_runtime::{fault, files, stdout, tls};
use zeroize::Zeroizing;

use crate::config::Config;
use crate::enrol::{EnrolError, Enrolled, Machine, Stage, Staging, redeem};
use crate::identity::{INSTALL_ID_FILE, known_install_id};
use crate::material::Material;
use crate::outbound::dial::{self, Dialler};
use crate::outbound::look;

/// The most that is read for a ticket, with white space in it.
const READ_MAX: u64 = 4 * TICKET_CHARS_MAX as u64;

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
}

/// Makes the gateway, tries its connection, and returns what the process ends with.
pub(super) async fn enroll(asked: Asked) -> anyhow::Result<ExitCode> {
    tls::install_provider();
    fault::configure(&environment())?;
    let staging = Staging::open(&asked.folder)?;
    if staging.stage() == Stage::Complete {
        staging.finish(asked.home)?;
        say(
            "files",
            "an earlier enroll had all of them; they are in place now",
        )?;
    } else {
        let ticket = match read_ticket(asked.ticket_file.as_deref()) {
            Ok(ticket) => ticket,
            Err(error) => return Err(left(staging, error).into()),
        };
        become_gateway(staging, &ticket, &asked).await?;
    }
    try_connection(&asked).await
}

/// Takes back what was begun in vain; what an earlier call may need stays.
fn left(staging: Staging, error: EnrolError) -> EnrolError {
    if staging.stage() == Stage::Fresh
        && !error.may_be_done()
        && let Err(error) = staging.clear()
    {
        return error;
    }
    error
}

async fn become_gateway(staging: Staging, ticket: &Ticket, asked: &Asked) -> anyhow::Result<()> {
    let state = state_folder(asked);
    let known = known_install_id(&state).ok().flatten();
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
    let enrolled = match redeem(ticket, &machine).await {
        Ok(enrolled) => enrolled,
        Err(error) => return Err(left(staging, error).into()),
    };
    staging.fill(&enrolled.papers, asked.home)?;
    staging.finish(asked.home)?;
    // What root writes there the service's user could not read.
    if asked.home != Home::Installed {
        keep_install_id(&state, install_id);
    }
    tell(&enrolled)
}

/// Where the agent will have its state.
fn state_folder(asked: &Asked) -> PathBuf {
    match asked.home {
        Home::Installed => PathBuf::from("/var/lib/viworks-gateway"),
        Home::Folder | Home::Demo => asked.folder.join("state"),
    }
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
async fn try_connection(asked: &Asked) -> anyhow::Result<ExitCode> {
    let path = asked.folder.join("gateway.toml");
    let begun = SystemClock.now();
    let tried = match load(&path) {
        Ok((config, material)) => connect(config, &material).await,
        Err(problems) => Err((problems.in_one_line(), "see check-config".to_owned())),
    };
    let next = match asked.home {
        Home::Installed => "systemctl enable --now viworks-gateway-agent".to_owned(),
        Home::Folder | Home::Demo => {
            format!("viworks-gateway-agent run --config {}", path.display())
        }
    };
    match tried {
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
        material.tls.clone(),
        material.fingerprint,
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

/// The ticket of a file, of the standard input, or of whoever sits at the terminal.
fn read_ticket(file: Option<&Path>) -> Result<Ticket, EnrolError> {
    let text = match file {
        Some(path) if path != Path::new("-") => {
            let bytes = files::read_private(path)?;
            Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned())
        }
        Some(_) => read_input()?,
        None if std::io::stdin().is_terminal() => prompt()?,
        None => read_input()?,
    };
    Ok(text.parse::<Ticket>()?)
}

fn read_input() -> Result<Zeroizing<String>, EnrolError> {
    let mut text = Zeroizing::new(String::new());
    let read = std::io::stdin()
        .lock()
        .take(READ_MAX)
        .read_to_string(&mut text);
    read.map_err(|error| EnrolError::NoTicket(error.to_string()))?;
    Ok(text)
}

/// A terminal that does not show what is typed, until this is dropped.
struct Unseen(Termios);

impl Unseen {
    fn begin() -> Option<Self> {
        let before = tcgetattr(std::io::stdin()).ok()?;
        let mut unseen = before.clone();
        unseen.local_modes.remove(LocalModes::ECHO);
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &unseen).ok()?;
        Some(Self(before))
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        // A terminal that is gone shows nothing either.
        let _gone = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0);
    }
}

fn prompt() -> Result<Zeroizing<String>, EnrolError> {
    let refused = |error: std::io::Error| EnrolError::NoTicket(error.to_string());
    let unseen = Unseen::begin();
    let mut error = std::io::stderr();
    write!(error, "Ticket: ")
        .and_then(|()| error.flush())
        .map_err(refused)?;
    let mut text = Zeroizing::new(String::new());
    let read = std::io::stdin().lock().take(READ_MAX).read_line(&mut text);
    drop(unseen);
    // The line break was not shown either; nobody misses it where there is no terminal.
    drop(writeln!(error));
    read.map_err(refused)?;
    Ok(text)
}
