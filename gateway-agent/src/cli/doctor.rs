//! `doctor`: walks over everything that a connection needs, and names the first thing that is not right and its fix.
//!
//! It never says HELLO. That would be a second holder of this gateway's identity: beside a running agent a fork, and
//! without one a session whose epoch the agent's journal would have to know of. What only HELLO shows is asked of the
//! running agent, and as long as that one has a session nothing is dialled but the door, where no identity is shown.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;
use viworks_common::human;
use viworks_common::limits::SKEW_CORRECTED_FROM;
use viworks_common::time::{Monotonic, Timestamp};
use viworks_runtime::ask::walk::{Stop, Walk};
use viworks_runtime::ask::{self, NoAnswer};
use viworks_runtime::blocking;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::config::{Environment, Problem, Problems};
use viworks_runtime::exit::ExitCode;
use viworks_runtime::tls;

use super::status::{Format, STANDS_STILL, look_for_agent};
use crate::catalogue::Catalogue;
use crate::config::{Config, OutboundConfig, door_place};
use crate::outbound::dial::{self, Dialler};
use crate::outbound::door::Door;
use crate::outbound::failure::{DialFailure, Step};
use crate::outbound::lapsed::has_ended;
use crate::outbound::look;
use crate::outbound::pins::Pins;
use crate::setup::Setup;
use crate::watch::{DISK_FIX, ROOM_BYTES, room};

mod lapsed;

const CONFIG: &str = "config";
const DISK: &str = "disk";
const CERTIFICATE: &str = "certificate";
const AGENT: &str = "agent";
const DNS: &str = "dns";
const TCP: &str = "tcp";
const TLS: &str = "tls";
const UPGRADE: &str = "upgrade";
const CHALLENGE: &str = "challenge";
const CLOCK: &str = "clock";
const SESSION: &str = "session";

/// The way, in its order.
const STEPS: [&str; 11] = [
    CONFIG,
    DISK,
    CERTIFICATE,
    AGENT,
    DNS,
    TCP,
    TLS,
    UPGRADE,
    CHALLENGE,
    CLOCK,
    SESSION,
];

/// One step may take so many tenths of the whole, so that the step that hangs is the one that is named.
const STEP_TENTHS: u32 = 4;

/// How often a running agent that is about to connect is asked again.
const AGAIN: Duration = Duration::from_millis(100);

const CLOCK_FIX: &str = "set this machine's clock, and keep it set (chrony, systemd-timesyncd), unless it is the backend's that is wrong: certificates are judged by it, and times of readings are corrected meanwhile";

const DOOR_FIX: &str = "check door_url in [outbound], and that the backend has a door there (listen in its [enrolment]), with nothing in between that ends TLS";

/// What is looked at.
pub(super) struct Asked {
    /// The configuration.
    pub(super) config: PathBuf,
    /// Variables that overlay it.
    pub(super) environment: Environment,
    /// How long all of it may take.
    pub(super) limit: Duration,
}

/// Walks, shows what was found, and returns what the process ends with.
pub(super) async fn walk(asked: Asked, format: Format) -> anyhow::Result<ExitCode> {
    tls::install_provider();
    let begun = SystemClock.now();
    let mut doctor = Doctor {
        walk: Walk::over(&STEPS),
        begun,
        limit: asked.limit,
    };
    let stop = doctor.look(asked).await.err();
    let took = SystemClock.now().saturating_since(begun);
    let json = format == Format::Json;
    Ok(doctor.walk.end(stop.as_ref(), took, json)?)
}

struct Doctor {
    walk: Walk,
    begun: Monotonic,
    limit: Duration,
}

/// What the running agent says, if one runs.
type Status = Option<Value>;

impl Doctor {
    async fn look(&mut self, asked: Asked) -> Result<(), Stop> {
        let setup = self.configuration(&asked).await?;
        self.disk(&setup.config.gateway.state_folder).await?;
        if has_ended(&setup.material, SystemClock.wall()) {
            return self.lapsed(&setup).await;
        }
        self.certificate(&setup)?;
        let socket = setup.config.gateway.socket.clone();
        let status = self.agent(&socket).await?;
        if let Some(status) = &status
            && is_connected(status)
        {
            self.connected(status)?;
            self.door(&setup).await;
            return Ok(());
        }
        if let Err(stop) = self.network(&setup).await {
            self.walk.reach(DNS, stop.step);
            return Err(stop);
        }
        self.session(status, &socket).await?;
        self.door(&setup).await;
        Ok(())
    }

    /// Nobody needs the door to be connected, so it ends no walk: it is where another certificate comes from, should
    /// this one end while the gateway is away, and then it is too late to find out.
    async fn door(&mut self, setup: &Setup) {
        let outbound = &setup.config.outbound;
        let Some(url) = &outbound.door_url else {
            return;
        };
        let Some((host, port)) = door_place(url) else {
            return;
        };
        let pins = Pins::open(&setup.config.gateway.state_folder, outbound.pins.clone());
        let limit = self.step_limit();
        let opened = Box::pin(Door::open(pins.accepted().pins, &host, port));
        let opened = timeout(limit, opened).await;
        let cause = match opened {
            Ok(Ok(_door)) => return,
            Ok(Err(failure)) => failure.to_string(),
            Err(_late) => format!("nothing came of it within {} ms", limit.as_millis()),
        };
        let cause = format!(
            "the door, {url}, would give this gateway no other certificate, should its own end while it is away: {cause}"
        );
        self.walk.warn(CERTIFICATE, cause, DOOR_FIX);
    }

    /// What is left of the time for all, and no more than one step may take.
    fn step_limit(&self) -> Duration {
        let left = self.limit.saturating_sub(self.took(self.begun));
        left.min(self.limit.saturating_mul(STEP_TENTHS) / 10)
            .max(Duration::from_millis(50))
    }

    fn took(&self, since: Monotonic) -> Duration {
        SystemClock.now().saturating_since(since)
    }

    async fn configuration(&mut self, asked: &Asked) -> Result<Setup, Stop> {
        let begun = SystemClock.now();
        let (path, environment) = (asked.config.clone(), asked.environment.clone());
        let read = move || {
            let setup = Setup::read(&path, &environment, SystemClock.wall());
            setup.map_err(|problems| refused(&path, &environment, &problems))
        };
        let read = blocking::call("configuration", self.step_limit(), read).await;
        let setup = read.unwrap_or_else(|error| {
            let cause = format!("{} cannot be read: {error}", asked.config.display());
            let fix = "see whether the disk or the network file system that it is on answers";
            Err(Stop::at(CONFIG, ExitCode::Config, cause, fix))
        })?;
        let may_run = match setup.catalogue.clone() {
            Some(catalogue) => self.may_run(catalogue).await,
            None => String::new(),
        };
        let detail = format!(
            "{} is valid, and so are the files that it names{may_run}",
            asked.config.display()
        );
        self.walk.pass(CONFIG, detail, self.took(begun));
        Ok(setup)
    }

    /// How many commands may run, and can. What one of them needs is no condition of a connection, whatever it comes
    /// to.
    async fn may_run(&self, mut catalogue: Catalogue) -> String {
        let (count, limit) = (catalogue.len(), self.step_limit().min(self.limit / 5));
        let look = move || {
            catalogue.look();
            catalogue.unavailable()
        };
        let can = match blocking::call("catalogue", limit, look).await {
            Ok(0) => String::new(),
            Ok(unavailable) => format!(", {unavailable} of them not now (see status)"),
            Err(error) => format!(", and whether they can is not known: {error}"),
        };
        let commands = human::counted(count, "command", "commands");
        format!("; {commands} may run{can}")
    }

    async fn disk(&mut self, folder: &Path) -> Result<(), Stop> {
        let begun = SystemClock.now();
        // Before the first start, its disk is that of what will hold it.
        let there = folder.ancestors().find(|folder| folder.exists());
        let asked = there.unwrap_or(folder).to_owned();
        let free = blocking::call(DISK, self.step_limit(), move || room(&asked)).await;
        let free = free.map_err(|error| {
            let cause = format!("the disk of {} does not answer: {error}", folder.display());
            let fix = "see dmesg, and whether its mount is alive";
            Stop::at(DISK, ExitCode::NoGo, cause, fix)
        })?;
        let free = format_bytes(free, folder)?;
        self.walk.pass(DISK, free, self.took(begun));
        Ok(())
    }

    fn certificate(&mut self, setup: &Setup) -> Result<(), Stop> {
        if let Some(wrong) = setup.warnings.first() {
            let code = ExitCode::Unavailable;
            return Err(Stop::at(CERTIFICATE, code, &wrong.message, &wrong.help));
        }
        let (material, now) = (&setup.material, SystemClock.wall());
        let detail = format!(
            "gateway {}, its certificate ends {}",
            material.name.agent_id,
            human::relative_and_exact(material.shown.not_after, now)
        );
        self.walk.pass(CERTIFICATE, detail, Duration::ZERO);
        Ok(())
    }

    /// Asks the running agent, which may be about to connect.
    async fn agent(&mut self, socket: &Path) -> Result<Status, Stop> {
        let begun = SystemClock.now();
        match self.ask(socket).await {
            Ok(status) => {
                let word = |pointer: &str| text(&status, pointer);
                let detail = format!(
                    "version {} answers at {}, {}",
                    word("/agent/version"),
                    socket.display(),
                    word("/connection/state")
                );
                self.walk.pass(AGENT, detail, self.took(begun));
                Ok(Some(status))
            }
            // The network is looked at first: it may be why somebody stopped it.
            Err(NoAnswer::NobodyThere(error)) => {
                self.walk.skip(AGENT, nobody_at(socket, &error));
                Ok(None)
            }
            Err(NoAnswer::Late(limit)) => {
                let cause = format!(
                    "the agent takes the connection at {} and does not answer within {} ms",
                    socket.display(),
                    limit.as_millis()
                );
                let code = ExitCode::Unavailable;
                Err(Stop::at(AGENT, code, cause, STANDS_STILL))
            }
            Err(NoAnswer::Broken(reason)) => Err(other_program(socket, &reason)),
        }
    }

    async fn ask(&self, socket: &Path) -> Result<Value, NoAnswer> {
        let answer = ask::unix(socket, "/v1/status", self.step_limit()).await?;
        let status = serde_json::from_slice(&answer.body);
        status.map_err(|error| NoAnswer::Broken(error.to_string()))
    }

    /// The running agent has a session: whoever dialled now would only disturb.
    fn connected(&mut self, status: &Value) -> Result<(), Stop> {
        for step in [DNS, TCP, TLS, UPGRADE, CHALLENGE] {
            self.walk
                .skip(step, "the agent's session shows that it works");
        }
        if let Some(skew) = status.pointer("/connection/clock_skew_ms") {
            self.clock(skew.as_i64().unwrap_or_default())?;
        }
        let now = SystemClock.wall();
        let since = text(status, "/connection/since");
        let since =
            Timestamp::parse(&since).map_or(since, |since| human::relative_and_exact(since, now));
        let url = text(status, "/connection/url");
        let detail = format!("connected to {url} since {since}");
        self.walk.pass(SESSION, detail, Duration::ZERO);
        let conditions = status["conditions"].as_array().into_iter().flatten();
        for condition in conditions {
            let word = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
            let cause = format!("{}: {}", word("name"), word("cause"));
            if condition["severity"] == "fail" {
                return Err(Stop::at(AGENT, ExitCode::NoGo, cause, word("fix")));
            }
            self.walk.warn(AGENT, cause, word("fix"));
        }
        Ok(())
    }

    async fn network(&mut self, setup: &Setup) -> Result<(), Stop> {
        let material = &setup.material;
        let life = (material.shown.not_before, material.shown.not_after);
        let stop = |failure: DialFailure| {
            let failure = failure.with_certificate(life, SystemClock.wall());
            Stop::at(
                step_of(&failure),
                ExitCode::Unavailable,
                failure.to_string(),
                failure.fix(),
            )
        };
        let outbound = self.within_limits(&setup.config.outbound);
        let begun = SystemClock.now();
        let (host, port) = (&outbound.host, outbound.port);
        let tcp = dial::connect(host, port, None, &outbound.timeouts);
        let tcp = tcp.await.map_err(stop)?;
        let took = self.took(begun);
        let peer = tcp
            .peer_addr()
            .map_or_else(|_gone| host.clone(), |peer| peer.to_string());
        self.walk
            .pass(DNS, format!("{host} is at {peer}"), Duration::ZERO);
        let connected = format!("{peer} takes the connection");
        self.walk.pass(TCP, connected, took);

        let outbound = self.within_limits(&outbound);
        let (begun, version_floor) = (SystemClock.now(), outbound.version_floor);
        let pins = Pins::open(&setup.config.gateway.state_folder, outbound.pins.clone());
        let accepted = pins.accepted();
        let (server_name, path) = (outbound.server_name.clone(), outbound.path.clone());
        let dialler = Dialler::new(
            outbound,
            Arc::clone(&material.roots),
            material.shown.tls.clone(),
            material.shown.fingerprint,
        );
        let trusted = accepted.pins.len();
        let dialled = dialler.open(tcp, accepted.pins).await.map_err(stop)?;
        let took = self.took(begun);
        let secured = format!(
            "{server_name} shows the key {}, one of {trusted} that are trusted",
            dialled.pin
        );
        self.walk.pass(TLS, secured, took);
        let upgraded = format!("{path} answers 101 to this gateway's certificate");
        self.walk.pass(UPGRADE, upgraded, took);

        let begun = SystemClock.now();
        let challenged = look::challenge(dialled, material, version_floor, self.step_limit()).await;
        let took = self.took(begun);
        let server_time = challenged.map_err(|refused| {
            let code = ExitCode::Unavailable;
            Stop::at(CHALLENGE, code, refused.cause, refused.fix)
        })?;
        self.walk
            .pass(CHALLENGE, "the backend speaks this protocol", took);
        let ahead = SystemClock.wall().unix_millis() - server_time.unix_millis();
        self.clock(ahead)
    }

    /// The configured timeouts, as far as there is time for them.
    fn within_limits(&self, outbound: &OutboundConfig) -> OutboundConfig {
        let mut outbound = outbound.clone();
        let limit = self.step_limit();
        let times = &mut outbound.timeouts;
        for time in [
            &mut times.resolve,
            &mut times.connect,
            &mut times.tls,
            &mut times.upgrade,
        ] {
            *time = limit.min(*time);
        }
        outbound
    }

    fn clock(&mut self, ahead_ms: i64) -> Result<(), Stop> {
        let off = Duration::from_millis(ahead_ms.unsigned_abs());
        let found = format!("this clock is {} the backend's", human::apart(ahead_ms));
        if off >= SKEW_CORRECTED_FROM {
            return Err(Stop::at(CLOCK, ExitCode::NoGo, found, CLOCK_FIX));
        }
        self.walk.pass(CLOCK, found, Duration::ZERO);
        Ok(())
    }

    /// What only HELLO shows, as the running agent has learned it.
    async fn session(&mut self, mut status: Status, socket: &Path) -> Result<(), Stop> {
        loop {
            let Some(known) = status.take() else {
                let cause = format!("no agent runs: nothing answers at {}", socket.display());
                let code = ExitCode::Unavailable;
                return Err(Stop::at(SESSION, code, cause, look_for_agent()));
            };
            if is_connected(&known) {
                let url = text(&known, "/connection/url");
                let detail = format!("connected to {url} a moment ago");
                self.walk.pass(SESSION, detail, Duration::ZERO);
                return Ok(());
            }
            let failure = &known["connection"]["last_failure"];
            let waits = !known["connection"]["next_attempt"].is_null();
            let over = self.took(self.begun) + 2 * AGAIN >= self.limit;
            if !failure.is_null() && (waits || over) {
                let word = |key: &str| failure[key].as_str().unwrap_or_default().to_owned();
                let code = ExitCode::Unavailable;
                return Err(Stop::at(SESSION, code, word("cause"), word("fix")));
            }
            if over {
                let state = text(&known, "/connection/state");
                let cause = format!("the agent is not connected yet: {state}");
                let fix = "ask again in a moment; viworks-gateway-agent status tells how it goes";
                return Err(Stop::at(SESSION, ExitCode::Unavailable, cause, fix));
            }
            tokio::time::sleep(AGAIN).await;
            // One that has gone meanwhile is told of as one that does not run.
            status = self.ask(socket).await.ok();
        }
    }
}

fn is_connected(status: &Value) -> bool {
    status["connection"]["connected"] == true
}

fn text(status: &Value, pointer: &str) -> String {
    let text = status.pointer(pointer).and_then(Value::as_str);
    text.unwrap_or("unknown").to_owned()
}

fn nobody_at(socket: &Path, error: &std::io::Error) -> String {
    format!("nothing answers at {} ({error})", socket.display())
}

fn other_program(socket: &Path, reason: &str) -> Stop {
    let cause = format!("what answers at {} is no agent: {reason}", socket.display());
    let fix = "check which program listens there, and socket in [gateway]";
    Stop::at(AGENT, ExitCode::Unavailable, cause, fix)
}

fn format_bytes(free: u64, folder: &Path) -> Result<String, Stop> {
    let kib = human::count(free / 1_024);
    let what = format!("{kib} KiB are free on the disk of {}", folder.display());
    if free < ROOM_BYTES {
        let cause =
            format!("{what}: readings are refused there, and commands once its reserve is gone");
        return Err(Stop::at(DISK, ExitCode::NoGo, cause, DISK_FIX));
    }
    Ok(what)
}

/// The configuration is refused; that somebody else than the agent's user asks explains the most of it.
fn refused(path: &Path, environment: &Environment, problems: &Problems) -> Stop {
    if let Some(stop) = asked_by_other(path, environment) {
        return stop;
    }
    // A key that is misspelt is missing as well, and explains that.
    let misspelt = problems
        .iter()
        .find(|problem| problem.message.starts_with("unknown "));
    let first = misspelt.or_else(|| problems.iter().next());
    let cause = first.map_or_else(|| problems.to_string(), Problem::line);
    let more = problems.iter().count().saturating_sub(1);
    let mut fix = first.map_or_else(String::new, |problem| problem.help.clone());
    if more > 0 {
        let all = format!("check-config lists {more} more of it");
        fix = if fix.is_empty() {
            all
        } else {
            format!("{fix}; {all}")
        };
    } else if fix.is_empty() {
        "mend the file, and run check-config until it finds nothing".clone_into(&mut fix);
    }
    Stop::at(CONFIG, ExitCode::Config, cause, fix)
}

/// An agent that runs as a user of its own has files that root is not to trust.
fn asked_by_other(path: &Path, environment: &Environment) -> Option<Stop> {
    let config = Config::load_to_ask(path, environment).ok()?;
    let owner = config.gateway.state_folder.metadata().ok()?.uid();
    let own = rustix::process::geteuid();
    if owner == own.as_raw() || owner == 0 {
        return None;
    }
    let cause = format!(
        "the agent's state folder belongs to user {owner}, and this is user {}: its files are not this one's to judge",
        own.as_raw()
    );
    let fix = format!(
        "run it as that user: setpriv --reuid {owner} --clear-groups viworks-gateway-agent doctor --config {}",
        path.display()
    );
    Some(Stop::at(CONFIG, ExitCode::Config, cause, fix))
}

/// At which step an attempt failed.
const fn step_of(failure: &DialFailure) -> &'static str {
    match failure {
        DialFailure::Dns { .. } => DNS,
        DialFailure::Refused { .. } => TCP,
        DialFailure::Timeout { step, .. }
        | DialFailure::Network { step, .. }
        | DialFailure::HungUp { step, .. } => match step {
            Step::Resolve => DNS,
            Step::Connect => TCP,
            Step::Tls => TLS,
            Step::Upgrade => UPGRADE,
        },
        DialFailure::CertificateEnded { .. }
        | DialFailure::CertificateDisputed { .. }
        | DialFailure::TlsAlert { .. }
        | DialFailure::PinMismatch { .. }
        | DialFailure::CertificateTime { .. }
        | DialFailure::CertificateName { .. }
        | DialFailure::AuthorityUnknown { .. }
        | DialFailure::Stranger { .. }
        | DialFailure::CertificateUntrusted { .. }
        | DialFailure::Tls { .. } => TLS,
        DialFailure::HttpStatus { .. }
        | DialFailure::Declined { .. }
        | DialFailure::Subprotocol
        | DialFailure::NotWebSocket { .. } => UPGRADE,
    }
}
