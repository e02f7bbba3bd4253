//! The validated configuration: one TOML file, refused whole with every problem when anything in it is unknown or unsafe.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::ServerName;
use viworks_common::id::{LabelKey, check_label_value};
use viworks_common::key::BindingMode;
use viworks_common::limits;
use viworks_common::pin::{PINS_MAX, SpkiPin};
use viworks_common::session::backoff::BackoffSettings;
use viworks_runtime::config::{Document, Environment, Problems, Section};
use viworks_runtime::logging::{self, Format};

use crate::{collect, journal, spool};

pub mod reference;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// No timeout may be shorter: below, an honest peer on a slow path fails it.
const TIMEOUT: RangeInclusive<Duration> = millis(100)..=seconds(120);

/// The path of the listener for agents.
const CONNECT_PATH: &str = "/agent/v1/connect";

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `[gateway]`.
    pub gateway: GatewayConfig,
    /// `[identity]`.
    pub identity: IdentityConfig,
    /// `[outbound]`.
    pub outbound: OutboundConfig,
    /// `[executor]`.
    pub executor: ExecutorConfig,
    /// `[spool]`: bytes of telemetry kept on disk.
    pub spool_bytes_max: u64,
    /// `[collect]`: how often the host is read, if at all.
    pub collect_interval: Option<Duration>,
    /// `[journal]`.
    pub journal: JournalConfig,
    /// `[log]`.
    pub log: LogConfig,
}

/// The durable record of commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalConfig {
    /// Commands remembered.
    pub entries_max: u32,
    /// How often the disk is looked at for room for a reserve that was given up.
    pub reserve_check: Duration,
}

/// What belongs to this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayConfig {
    /// The agent's own folder; one process locks it.
    pub state_folder: PathBuf,
    /// The local API.
    pub socket: PathBuf,
    /// Labels reported to the backend.
    pub labels: BTreeMap<String, String>,
}

/// The files that make the gateway who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityConfig {
    /// The certificate chain.
    pub certificate_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
    /// Agent id, agent key and first token.
    pub identity_file: PathBuf,
}

/// The connection to the backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboundConfig {
    /// Host as in the URL.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path and query of the request.
    pub path: String,
    /// The name in the server's certificate.
    pub server_name: String,
    /// What sessions are bound to.
    pub binding: BindingMode,
    /// Keys the backend may show.
    pub pins: BTreeSet<SpkiPin>,
    /// The authority of the backend's certificate.
    pub ca_file: PathBuf,
    /// The lowest protocol version that is spoken.
    pub version_floor: u8,
    /// One step each.
    pub timeouts: Timeouts,
    /// Between attempts.
    pub backoff: BackoffSettings,
}

/// How long each step of an attempt may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For name resolution.
    pub resolve: Duration,
    /// For TCP, per address.
    pub connect: Duration,
    /// For the TLS handshake.
    pub tls: Duration,
    /// For the HTTP upgrade.
    pub upgrade: Duration,
    /// From the upgrade to CONFIRM.
    pub opening: Duration,
    /// For a send to make progress.
    pub send: Duration,
}

/// What may run, and how much at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutorConfig {
    /// The catalogue.
    pub commands_folder: PathBuf,
    /// Whether files of the agent's own user count.
    pub allow_own_commands: bool,
    /// Commands at once.
    pub parallel_max: usize,
    /// Between SIGTERM and SIGKILL.
    pub kill_grace: Duration,
}

/// The log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// How a line looks.
    pub format: Format,
    /// What is logged.
    pub filter: String,
    /// Bytes of lines that may wait for whoever takes the log.
    pub waiting_bytes_max: usize,
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    ///
    /// All problems at once.
    pub fn load(path: &Path, environment: &Environment) -> Result<Self, Problems> {
        let mut document = Document::load(path, environment)?;
        let config = Self::read(&mut document);
        document.finish()?;
        Ok(config)
    }

    /// The same for somebody who only asks the running agent: the files that are named are not looked at, which may be
    /// the agent's alone.
    ///
    /// # Errors
    ///
    /// All problems at once.
    pub fn load_to_ask(path: &Path, environment: &Environment) -> Result<Self, Problems> {
        let mut document = Document::load_to_ask(path, environment)?;
        let config = Self::read(&mut document);
        document.finish()?;
        Ok(config)
    }

    pub(crate) fn read(document: &mut Document) -> Self {
        Self {
            gateway: read_gateway(&mut document.section("gateway", "What belongs to this host.")),
            identity: read_identity(&mut document.section(
                "identity",
                "The files that make this gateway who it is, as issued by the backend.",
            )),
            outbound: read_outbound(
                &mut document.section("outbound", "The connection to the backend."),
            ),
            executor: read_executor(
                &mut document.section("executor", "What may run, and how much at once."),
            ),
            spool_bytes_max: document
                .section("spool", "Telemetry that waits for the backend.")
                .integer(
                    "bytes_max",
                    64 * 1024 * 1024,
                    spool::BYTES_MIN..=64 * 1024 * 1024 * 1024,
                    "Bytes on disk; at the bound the oldest records are given up and counted.",
                ),
            collect_interval: read_collect(
                &mut document.section("collect", "Host metrics as telemetry."),
            ),
            journal: read_journal(
                &mut document.section("journal", "The durable record of commands."),
            ),
            log: read_log(&mut document.section("log", "The log on the standard error output.")),
        }
    }
}

fn read_journal(section: &mut Section<'_>) -> JournalConfig {
    JournalConfig {
        entries_max: section.integer(
            "entries_max",
            journal::ENTRIES_MAX_DEFAULT,
            256..=65_536,
            "Commands remembered; at the bound new ones are refused.",
        ),
        reserve_check: section.duration_ms(
            "reserve_check_interval_ms",
            seconds(60),
            millis(100)..=seconds(3_600),
            "How often the disk is looked at for room for the 16 MiB of reserve, after a full disk took them.",
        ),
    }
}

fn read_gateway(section: &mut Section<'_>) -> GatewayConfig {
    let state_folder = section.path(
        "state_folder",
        "state",
        "The agent's own folder; one running agent locks it.",
    );
    let socket = section
        .optional_path(
            "socket",
            "The local API; api.sock in the state folder when left out.",
        )
        .unwrap_or_else(|| state_folder.join("api.sock"));
    let labels = section.strings_by_key("labels", "Labels reported to the backend, by key.");
    if labels.len() > limits::LABELS_MAX {
        section.problem(
            "labels",
            format!("{} labels", labels.len()),
            format!("at most {} are reported", limits::LABELS_MAX),
        );
    }
    for (key, value) in &labels {
        // The same words by which the backend checks what it is told.
        let wrong = key
            .parse::<LabelKey>()
            .map(drop)
            .and_then(|()| check_label_value(value));
        if let Err(invalid) = wrong {
            section.problem(
                "labels",
                invalid.to_string(),
                format!("the label {key:?} is not reported like this"),
            );
        }
    }
    GatewayConfig {
        state_folder,
        socket,
        labels,
    }
}

fn read_identity(section: &mut Section<'_>) -> IdentityConfig {
    IdentityConfig {
        certificate_file: section.file("certificate_file", "The gateway's certificate chain, PEM."),
        key_file: section.secret_file(
            "key_file",
            "Its private key, PEM, readable by the agent only.",
        ),
        identity_file: section.secret_file(
            "identity_file",
            "Agent id, agent key and first token, JSON, readable by the agent only.",
        ),
    }
}

fn read_outbound(section: &mut Section<'_>) -> OutboundConfig {
    let url = section.required_url(
        "url",
        &["wss"],
        "Where the backend listens for agents; without a path /agent/v1/connect.",
    );
    let target = Target::split(&url);
    let server_name = section.optional_str(
        "server_name",
        "The name in the backend's certificate; the URL's host when left out.",
    );
    if let Some(name) = &server_name
        && ServerName::try_from(name.as_str()).is_err()
    {
        section.problem(
            "server_name",
            format!("{name:?} is neither a DNS name nor an address"),
            "for example: server_name = \"backend.example.org\"",
        );
    }
    let binding = section.one_of(
        "binding",
        "exporter",
        &[
            ("exporter", BindingMode::Exporter),
            ("certificate", BindingMode::Certificate),
        ],
        "What sessions are bound to: the TLS connection, or the certificate where a proxy ends TLS. The same on the backend.",
    );
    let pins: Vec<SpkiPin> = section.required_parsed_list(
        "pins",
        "sha256/…",
        "Keys the backend may show, at least one, better two. A newer set that the backend sent takes precedence until this list changes.",
    );
    if pins.len() > PINS_MAX {
        section.problem(
            "pins",
            format!("{} pins", pins.len()),
            format!("at most {PINS_MAX} can be given"),
        );
    }
    OutboundConfig {
        server_name: server_name.unwrap_or_else(|| target.name()),
        host: target.host,
        port: target.port,
        path: target.path,
        binding,
        pins: pins.into_iter().collect(),
        ca_file: section.file(
            "ca_file",
            "The authority of the backend's certificate, PEM.",
        ),
        version_floor: section.integer(
            "version_floor",
            1,
            1..=1,
            "The lowest protocol version that is spoken.",
        ),
        timeouts: read_timeouts(section),
        backoff: read_backoff(section),
    }
}

fn read_timeouts(section: &mut Section<'_>) -> Timeouts {
    let step = limits::HANDSHAKE_STEP_TIMEOUT;
    Timeouts {
        resolve: section.duration_ms(
            "resolve_timeout_ms",
            seconds(10),
            TIMEOUT,
            "For resolving the name.",
        ),
        connect: section.duration_ms(
            "connect_timeout_ms",
            seconds(10),
            TIMEOUT,
            "For TCP, for each address.",
        ),
        tls: section.duration_ms(
            "tls_timeout_ms",
            seconds(10),
            TIMEOUT,
            "For the TLS handshake.",
        ),
        upgrade: section.duration_ms(
            "upgrade_timeout_ms",
            seconds(10),
            TIMEOUT,
            "For the HTTP upgrade.",
        ),
        opening: section.duration_ms(
            "opening_timeout_ms",
            step * 2,
            TIMEOUT,
            "From the upgrade until the session is confirmed.",
        ),
        send: section.duration_ms(
            "send_timeout_ms",
            limits::SEND_PROGRESS_TIMEOUT,
            TIMEOUT,
            "How long a send may make no progress.",
        ),
    }
}

/// Delays are drawn between zero (or the stated shortest) and a ceiling that doubles.
fn read_backoff(section: &mut Section<'_>) -> BackoffSettings {
    let defaults = BackoffSettings::default();
    let shortest = Duration::from_millis(100);
    let day = seconds(24 * 3_600);
    BackoffSettings {
        base: section.duration_ms(
            "backoff_base_ms",
            defaults.base,
            shortest..=seconds(600),
            "Upper end of the first delay after a transient failure; it doubles.",
        ),
        max: section.duration_ms(
            "backoff_max_ms",
            defaults.max,
            shortest..=seconds(3_600),
            "Where doubling ends.",
        ),
        permanent_min: section.duration_ms(
            "permanent_backoff_min_ms",
            defaults.permanent_min,
            shortest..=day,
            "Shortest delay after a permanent refusal.",
        ),
        permanent_max: section.duration_ms(
            "permanent_backoff_max_ms",
            defaults.permanent_max,
            shortest..=day,
            "Longest delay after any refusal.",
        ),
        unproved_base: section.duration_ms(
            "unproved_backoff_base_ms",
            defaults.unproved_base,
            shortest..=day,
            "First delay after a refusal that nobody signed, such as a TLS alert; it doubles.",
        ),
        reset_after: section.duration_ms(
            "backoff_reset_after_ms",
            defaults.reset_after,
            shortest..=day,
            "A session confirmed for this long makes earlier failures forgotten.",
        ),
    }
}

fn read_executor(section: &mut Section<'_>) -> ExecutorConfig {
    ExecutorConfig {
        commands_folder: section.path(
            "commands_folder",
            "commands.d",
            "The catalogue: files of root that say what may run. SIGHUP reads it again, as a whole or not at all.",
        ),
        allow_own_commands: section.unsafe_switch(
            "allow_own_commands",
            "for_demo_only",
            "Trust catalogue files of the agent's own user, and fill a missing folder with the shipped catalogue.",
        ),
        parallel_max: section.integer("parallel_max", 4, 1..=64, "Commands at once."),
        kill_grace: section.duration_ms(
            "kill_grace_ms",
            seconds(5),
            millis(100)..=seconds(8),
            "How long a command has between SIGTERM and SIGKILL.",
        ),
    }
}

fn read_collect(section: &mut Section<'_>) -> Option<Duration> {
    let enabled = section.bool("enabled", true, "Whether the host is read at all.");
    let interval = section.duration_ms(
        "interval_ms",
        collect::INTERVAL_DEFAULT,
        millis(100)..=seconds(3_600),
        "How often.",
    );
    enabled.then_some(interval)
}

fn read_log(section: &mut Section<'_>) -> LogConfig {
    let format = section.one_of(
        "format",
        "human",
        &[("human", Format::Human), ("json", Format::Json)],
        "How a line looks.",
    );
    let filter = section.str(
        "filter",
        "info",
        "What is logged, such as info,viworks_gateway_agent=debug.",
    );
    if let Err(error) = logging::check_filter(&filter) {
        section.problem(
            "filter",
            error.to_string(),
            "for example: filter = \"info\"",
        );
    }
    LogConfig {
        format,
        filter,
        waiting_bytes_max: section.integer(
            "waiting_bytes_max",
            logging::WAITING_BYTES_DEFAULT,
            16_384..=67_108_864,
            "Bytes of lines that may wait for whoever takes the log; those that find no room are dropped and counted, and nothing waits for them.",
        ),
    }
}

/// The parts of a URL that was checked, or whatever there is of one that was refused.
struct Target {
    host: String,
    port: u16,
    path: String,
}

impl Target {
    fn split(url: &str) -> Self {
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        // A fragment is never sent.
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, path) = rest
            .find(['/', '?'])
            .map_or((rest, ""), |end| rest.split_at(end));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !authority.ends_with(']') => (host, port.parse().ok()),
            Some(_) | None => (authority, None),
        };
        let path = match path {
            "" | "/" => CONNECT_PATH.to_owned(),
            query if query.starts_with('?') => format!("{CONNECT_PATH}{query}"),
            path => path.to_owned(),
        };
        Self {
            host: host.to_owned(),
            port: port.unwrap_or(443),
            path,
        }
    }

    /// The host as a certificate names it.
    fn name(&self) -> String {
        self.host.trim_matches(['[', ']']).to_owned()
    }
}
