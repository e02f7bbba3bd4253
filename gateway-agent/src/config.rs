//! The validated configuration: one TOML file and what lies over it, refused whole with every problem when anything in
//! it is unknown or unsafe.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::ServerName;
use viworks_common::human;
use viworks_common::id::{LabelKey, check_label_value};
use viworks_common::key::BindingMode;
use viworks_common::limits::{HANDSHAKE_STEP_TIMEOUT, LABELS_MAX, SEND_PROGRESS_TIMEOUT};
use viworks_common::pin::{PINS_MAX, SpkiPin};
use viworks_common::session::backoff::BackoffSettings;
use viworks_common::telemetry::intake::IntakeQuota;
use viworks_common::wire::CONNECT_PATH;
use viworks_runtime::config::{Document, Environment, Explained, Problems, Section, Values};
use viworks_runtime::logging::LogConfig;
use viworks_runtime::settings;

use crate::{collect, journal, spool};

mod door;
mod live;
pub mod reference;

pub use door::door_place;
pub use live::{LIVE, Live};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// No timeout may be shorter: below, an honest peer on a slow path fails it.
const TIMEOUT: RangeInclusive<Duration> = millis(100)..=seconds(120);

/// What a pin looks like; no key has this one.
const EXAMPLE_PIN: &str = "sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub gateway: GatewayConfig,
    pub identity: IdentityConfig,
    pub outbound: OutboundConfig,
    pub executor: ExecutorConfig,
    /// What is kept on disk of telemetry.
    pub spool: spool::Bounds,
    /// How much telemetry one local user may hand in.
    pub intake: IntakeConfig,
    /// How often the host is read, if at all.
    pub collect_interval: Option<Duration>,
    pub journal: JournalConfig,
    pub log: LogConfig,
    /// What each key came to, for the next reading to be compared with.
    pub values: Values,
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
        let (config, problems) = Self::read_to_ask(path, environment);
        problems.map_or(Ok(config), Err)
    }

    /// The same where it cannot be used: what can be read of it, with the defaults in place of the rest, and all
    /// problems. A mistake in the file keeps nobody from asking the agent that runs.
    pub fn read_to_ask(path: &Path, environment: &Environment) -> (Self, Option<Problems>) {
        Document::read_to_ask(path, environment, Self::read)
    }

    /// Whether an agent could read this text, which is about to be written: the files that it names need not be there.
    ///
    /// # Errors
    ///
    /// All problems at once.
    pub fn examine_draft(path: &Path, text: &str) -> Result<(), Problems> {
        let mut document = Document::draft(path, text);
        let _read = Self::read(&mut document);
        document.finish()
    }

    /// Every key with its value and where that comes from, as far as there is one, and all problems.
    ///
    /// # Errors
    ///
    /// When the file cannot be read at all.
    pub fn explain(
        path: &Path,
        environment: &Environment,
    ) -> Result<(Explained, Result<(), Problems>), Problems> {
        let mut document = Document::load(path, environment)?;
        let _read = Self::read(&mut document);
        Ok((document.explain(), document.finish()))
    }

    pub(crate) fn read(document: &mut Document) -> Self {
        Self {
            gateway: GatewayConfig::read(document),
            identity: IdentityConfig::read(document),
            outbound: read_outbound(
                &mut document.section("outbound", "The connection to the backend."),
            ),
            executor: ExecutorConfig::read(document),
            spool: SpoolConfig::read(document).bounds(),
            intake: IntakeConfig::read(document),
            collect_interval: CollectConfig::read(document).interval(),
            journal: JournalConfig::read(document),
            log: LogConfig::read(document),
            values: document.values(),
        }
    }
}

settings! {
    /// What belongs to this host.
    [gateway]
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct GatewayConfig from section {
        /// The agent's own folder; one running agent locks it.
        state_folder: PathBuf = path("state"),
        /// The local API; api.sock in the state folder when left out.
        socket: PathBuf = optional_path() like "/run/viworks-gateway/api.sock" else state_folder.join("api.sock"),
        /// Labels reported to the backend, by key.
        labels: BTreeMap<String, String> = strings_by_key(),
    }
    check GatewayConfig::check
}

impl GatewayConfig {
    fn check(&self, section: &mut Section<'_>) {
        if self.labels.len() > LABELS_MAX {
            section.problem(
                "labels",
                human::counted(self.labels.len(), "label", "labels"),
                format!("at most {LABELS_MAX} are reported"),
            );
        }
        for (key, value) in &self.labels {
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
    }
}

settings! {
    /// The files that make this gateway who it is, as issued by the backend.
    [identity]
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct IdentityConfig from section {
        /// The gateway's certificate chain, PEM.
        certificate_file: PathBuf = file() like "gateway.crt",
        /// Its private key, PEM, readable by the agent only.
        key_file: PathBuf = secret_file() like "gateway.key",
        /// Agent id, agent key and first token, JSON, readable by the agent only.
        identity_file: PathBuf = secret_file() like "identity.json",
    }
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
    /// Where another certificate is asked for when this gateway's own has ended.
    pub door_url: Option<String>,
    /// The authority of the backend's certificate.
    pub ca_file: PathBuf,
    /// The lowest protocol version that is spoken.
    pub version_floor: u8,
    /// One step each.
    pub timeouts: Timeouts,
    /// Between attempts.
    pub backoff: BackoffSettings,
}

impl OutboundConfig {
    /// Where the backend is, as people are told.
    #[must_use]
    pub fn address(&self) -> String {
        format!("wss://{}:{}", self.host, self.port)
    }

    /// Whom a request is for (RFC 9110, section 7.2): the name that the certificate proves, as TLS asks for it, also
    /// where the URL leads there by another one. A proxy that ends TLS goes by it.
    #[must_use]
    pub fn authority(&self) -> String {
        authority(&self.host, &self.server_name, self.port)
    }
}

fn authority(host: &str, server_name: &str, port: u16) -> String {
    if host.trim_matches(['[', ']']) == server_name {
        format!("{host}:{port}")
    } else if server_name.contains(':') {
        format!("[{server_name}]:{port}")
    } else {
        format!("{server_name}:{port}")
    }
}

settings! {
    /// How long each step of an attempt may take.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Timeouts from section {
        /// For resolving the name.
        resolve as "resolve_timeout_ms": Duration = duration_ms(seconds(10), TIMEOUT),
        /// For TCP, for each address.
        connect as "connect_timeout_ms": Duration = duration_ms(seconds(10), TIMEOUT),
        /// For the TLS handshake.
        tls as "tls_timeout_ms": Duration = duration_ms(seconds(10), TIMEOUT),
        /// For the HTTP upgrade.
        upgrade as "upgrade_timeout_ms": Duration = duration_ms(seconds(10), TIMEOUT),
        /// From the upgrade until the session is confirmed.
        opening as "opening_timeout_ms": Duration = duration_ms(HANDSHAKE_STEP_TIMEOUT * 2, TIMEOUT),
        /// How long a send may make no progress.
        send as "send_timeout_ms": Duration = duration_ms(SEND_PROGRESS_TIMEOUT, TIMEOUT),
    }
}

fn read_outbound(section: &mut Section<'_>) -> OutboundConfig {
    section.like("url", "wss://agents.example.org:8081");
    let url = section.required_url(
        "url",
        &["wss"],
        "Where the backend listens for agents; without a path /agent/v1/connect.",
    );
    let target = Target::split(&url);
    section.like("server_name", "agents.example.org");
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
    section.like("pins", EXAMPLE_PIN);
    let pins: Vec<SpkiPin> = section.required_parsed_list(
        "pins",
        "sha256/…",
        "Keys the backend may show, at least one, better two. A newer set that the backend sent takes precedence until this list changes.",
    );
    if pins.len() > PINS_MAX {
        section.problem(
            "pins",
            human::counted(pins.len(), "pin", "pins"),
            format!("at most {PINS_MAX} can be given"),
        );
    }
    section.like("door_url", "https://agents.example.org:8082");
    let door_url = section.optional_url(
        "door_url",
        &["https"],
        "The door of the backend, where another certificate is asked for when this gateway's own has ended while it was away, and the authorities of the server's when they are not known here. Written by enroll.",
    );
    if let Some(url) = &door_url
        && door_place(url).is_none()
    {
        section.problem(
            "door_url",
            format!("{url:?} is no address of a door"),
            "give https://, the host and the port, and nothing behind them",
        );
    }
    section.like("ca_file", "ca.crt");
    OutboundConfig {
        server_name: server_name.unwrap_or_else(|| target.name()),
        host: target.host,
        port: target.port,
        path: target.path,
        binding,
        pins: pins.into_iter().collect(),
        door_url,
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
        timeouts: Timeouts::read(section),
        backoff: read_backoff(section),
    }
}

/// Delays are drawn between zero (or the stated shortest) and a ceiling that doubles.
fn read_backoff(section: &mut Section<'_>) -> BackoffSettings {
    let defaults = BackoffSettings::default();
    let shortest = Duration::from_millis(100);
    let day = seconds(24 * 3_600);
    let backoff = BackoffSettings {
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
    };
    check_backoff(section, &backoff);
    backoff
}

/// Notes delays whose beginning lies above their end. A first delay that nobody set gives way to an end that somebody
/// did.
fn check_backoff(section: &mut Section<'_>, backoff: &BackoffSettings) {
    let defaults = BackoffSettings::default();
    let (max, permanent_max) = (
        ("backoff_max_ms", backoff.max),
        ("permanent_backoff_max_ms", backoff.permanent_max),
    );
    for (key, from, gives_way, (end, to)) in [
        (
            "backoff_base_ms",
            backoff.base,
            backoff.base == defaults.base,
            max,
        ),
        (
            "permanent_backoff_min_ms",
            backoff.permanent_min,
            false,
            permanent_max,
        ),
        (
            "unproved_backoff_base_ms",
            backoff.unproved_base,
            backoff.unproved_base == defaults.unproved_base,
            permanent_max,
        ),
    ] {
        if from > to && !gives_way {
            section.problem(
                key,
                format!(
                    "{key} is {} and {end} is {}",
                    from.as_millis(),
                    to.as_millis()
                ),
                format!("{key} must not be above {end}"),
            );
        }
    }
}

settings! {
    /// What may run, and how much at once.
    [executor]
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct ExecutorConfig from section {
        /// The catalogue: files of root that say what may run. SIGHUP reads it again, as a whole or not at all.
        commands_folder: PathBuf = path("commands.d"),
        /// Trust catalogue files of the agent's own user, and fill a missing folder with the shipped catalogue.
        allow_own_commands: bool = unsafe_switch("for_demo_only"),
        /// Where the helper listens that runs commands as other users.
        helper_socket: PathBuf = path("/run/viworks-gateway-helper.sock"),
        /// Commands at once.
        parallel_max: usize = integer(4, 1..=64),
        /// How long a command has between SIGTERM and SIGKILL.
        kill_grace: Duration = duration_ms(seconds(5), millis(100)..=seconds(8)),
    }
}

settings! {
    /// Telemetry that waits for the backend.
    [spool]
    struct SpoolConfig from section {
        /// Bytes on disk; at the bound the oldest records are given up and counted.
        bytes_max: u64 = integer(64 * 1024 * 1024, spool::BYTES_MIN..=64 * 1024 * 1024 * 1024),
        /// How many in a hundred of them local programs may fill; beyond, their own oldest records are given up.
        local_percent: u8 = integer(spool::LOCAL_PERCENT_DEFAULT, 25..=90),
    }
}

impl SpoolConfig {
    const fn bounds(&self) -> spool::Bounds {
        spool::Bounds {
            bytes_max: self.bytes_max,
            local_percent: self.local_percent,
        }
    }
}

settings! {
    /// What each local user may hand in through the local API; root and the agent's own user have no such bound.
    [intake]
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct IntakeConfig from section {
        /// Telemetry records a minute, in the long run. As many at once after a pause, and always one whole request.
        records_per_minute: u32 = integer(3_000, 1..=10_000_000),
        /// Bytes of telemetry requests a minute. As many at once after a pause, and always one whole request.
        bytes_per_minute: u32 = integer(4 * 1024 * 1024, 1_024..=1_024 * 1024 * 1024),
    }
}

impl IntakeConfig {
    /// As a rule.
    #[must_use]
    pub fn quota(self) -> IntakeQuota {
        IntakeQuota::per_minute(self.records_per_minute, self.bytes_per_minute)
    }
}

settings! {
    /// Host metrics as telemetry.
    [collect]
    struct CollectConfig from section {
        /// Whether the host is read at all.
        enabled: bool = bool(true),
        /// How often.
        interval: Duration = duration_ms(collect::INTERVAL_DEFAULT, millis(100)..=seconds(3_600)),
    }
}

impl CollectConfig {
    fn interval(&self) -> Option<Duration> {
        self.enabled.then_some(self.interval)
    }
}

settings! {
    /// The durable record of commands.
    [journal]
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct JournalConfig from section {
        /// Commands remembered; at the bound new ones are refused.
        entries_max: u32 = integer(journal::ENTRIES_MAX_DEFAULT, 256..=65_536),
        /// How often the disk is looked at for room for the 16 MiB of reserve, after a full disk took them.
        reserve_check as "reserve_check_interval_ms": Duration = duration_ms(seconds(60), millis(100)..=seconds(3_600)),
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

#[cfg(test)]
mod tests {
    use super::authority;

    #[test]
    fn a_request_is_for_the_name_that_the_certificate_proves() {
        for (host, server_name, wanted) in [
            (
                "agents.example.org",
                "agents.example.org",
                "agents.example.org:8081",
            ),
            ("10.0.0.1", "agents.example.org", "agents.example.org:8081"),
            ("[::1]", "agents.example.org", "agents.example.org:8081"),
            ("[::1]", "::1", "[::1]:8081"),
            ("localhost", "::1", "[::1]:8081"),
        ] {
            assert_eq!(authority(host, server_name, 8081), wanted);
        }
    }
}
