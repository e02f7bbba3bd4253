//! `enroll`: makes a gateway of this machine, and says step by step how that goes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use viworks_common::enrolment::{Home, Ticket};
use viworks_common::id::GatewayName;
use viworks_common::time::Monotonic;
use viworks_common::{human, text};
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::config::{Problems, environment};
use viworks_runtime::exit::ExitCode;
use viworks_runtime::files::quoted;
use viworks_runtime::lifecycle::Signals;
use viworks_runtime::{fault, logging, stdout, tls};

use crate::config::Config;
use crate::enrol::{EnrolError, Enrolled, Found, Machine, Papers, Places, Staging, redeem};
use crate::identity::known_install_id;
use crate::material::Material;
use crate::outbound::dial::{self, Dialler};
use crate::outbound::look;
use crate::setup;

mod offline;
mod ticket;

/// How long the backend has for its challenge.
const CHALLENGE_TIME: Duration = Duration::from_secs(10);

/// What is wanted.
pub(super) struct Asked {
    /// Where everything goes.
    pub(super) folder: PathBuf,
    /// How the gateway is to be called.
    pub(super) name: Option<GatewayName>,
    /// By what it becomes one.
    pub(super) by: By,
    /// Where the gateway is to run.
    pub(super) home: Home,
    /// How long it is tried again.
    pub(super) patience: Duration,
}

/// By what a machine becomes a gateway.
pub(super) enum By {
    /// A ticket, in this file where one is named.
    Ticket(Option<PathBuf>),
    /// A request that somebody takes to the backend, which goes into this file.
    Request(PathBuf),
    /// The answer to that.
    Answer(PathBuf),
}

impl By {
    /// In one word, for whoever has to give it once more.
    const fn word(&self) -> &'static str {
        match self {
            Self::Ticket(_) => "ticket",
            Self::Request(_) => "request",
            Self::Answer(_) => "answer",
        }
    }
}

/// The folder that is meant, and where its gateway is to run. `installed` is that of the package, however it is
/// written.
pub(super) fn home(out: &Path, installed: &Path, is_demo: bool) -> (PathBuf, Home) {
    if is_demo {
        (absolute(out), Home::Demo)
    } else if real(out) == real(installed) {
        (installed.to_owned(), Home::Installed)
    } else {
        (absolute(out), Home::Folder)
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_unknown| path.to_owned())
}

/// Without links and steps back, as far as it is there.
fn real(path: &Path) -> PathBuf {
    let path = absolute(path);
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    let above = path.parent().and_then(|above| above.canonicalize().ok());
    let real = above.zip(path.file_name());
    let real = real.map(|(above, name)| above.join(name));
    real.unwrap_or(path)
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
            // Nobody is asked any more, and the gateway is as much made as by the call that wrote them.
            let finished = whole.finish(&places);
            finished.map_err(|error| error.unkept(asked.by.word()))?;
            say(
                "files",
                "an earlier enroll had all of them; they are in place now",
            )?;
        }
        Found::Begun(staging) => match &asked.by {
            By::Ticket(file) => {
                let ticket = ticket::read(file.as_deref()).await?;
                become_gateway(staging, &ticket, &asked, &places).await?;
                used_up(file.as_deref())?;
            }
            By::Request(out) => return offline::request(staging, out, &places),
            By::Answer(file) => offline::answered(staging, file, &places)?,
        },
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
    finished.map_err(|error| error.unkept(asked.by.word()))?;
    tell(&enrolled)
}

/// Says what becomes of the file of a ticket that was used.
fn used_up(file: Option<&Path>) -> anyhow::Result<()> {
    if let Some(file) = file.filter(|file| *file != Path::new("-")) {
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

fn tell(enrolled: &Enrolled) -> anyhow::Result<()> {
    say(
        "backend",
        &format!(
            "{}    the key {} is one of the ticket's",
            enrolled.place, enrolled.pin
        ),
    )?;
    tell_of(&enrolled.papers)
}

fn tell_of(papers: &Papers) -> anyhow::Result<()> {
    let answer = &papers.answer;
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
            stdout::print(&line('\u{2715}', "files", &problems.in_one_line()))?;
            stdout::print(&format!(
                "\nThis machine has the identity of a gateway, and no agent can start with what is there. Mend it \
                 until this is content: viworks-gateway-agent check-config --config {}\n",
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
            stdout::print(&line('\u{2715}', "connection", &cause))?;
            if !fix.is_empty() {
                stdout::print(&line(' ', "fix", &fix))?;
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
    Ok(stdout::print(&line('\u{2713}', what, found))?)
}

/// One line and no more, whoever `found` comes from: nothing in it drives the terminal or forges the next line.
fn line(sign: char, what: &str, found: &str) -> String {
    format!("  {sign} {what:<14}{}\n", text::line(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_is_one_line_that_drives_no_terminal() {
        let labels = "k=\u{1b}]0;owned\u{7}v\n  \u{2713} connection    all is well\u{202e}";
        let shown = line('\u{2713}', "labels", labels);
        assert_eq!(shown.lines().count(), 1, "{shown:?}");
        let text = shown.strip_suffix('\n').unwrap();
        assert!(!text.contains(text::is_unsafe), "{shown:?}");
        assert!(shown.contains("k=\\u{1b}]0;owned"), "{shown:?}");
    }

    #[test]
    fn the_package_s_folder_is_known_however_it_is_written() {
        let root = tempfile::tempdir().unwrap();
        // Tests run in a folder of their crate; whatever that is, it has a name in the one above it.
        let here = std::env::current_dir().unwrap();
        let name = here.file_name().unwrap();
        let above = Path::new("..").join(name);
        for out in [PathBuf::from("."), above, PathBuf::from("src/..")] {
            let (folder, home) = home(&out, &here, false);
            assert_eq!((folder, home), (here.clone(), Home::Installed), "{out:?}");
        }
        // By a link, and where it is still to be made.
        let installed = root.path().join("viworks");
        std::os::unix::fs::symlink(root.path(), root.path().join("link")).unwrap();
        for is_there in [false, true] {
            if is_there {
                std::fs::create_dir(&installed).unwrap();
            }
            for out in ["viworks", "viworks/", "./viworks", "link/viworks"] {
                let out = root.path().join(out);
                let (folder, home) = home(&out, &installed, false);
                assert_eq!((&folder, home), (&installed, Home::Installed), "{out:?}");
            }
            let other = root.path().join("other");
            let found = home(&other, &installed, false);
            assert_eq!(found, (other, Home::Folder));
            let found = home(&installed, &installed, true);
            assert_eq!(found, (installed.clone(), Home::Demo));
        }
    }
}
