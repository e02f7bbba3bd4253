//! The validated configuration: one TOML file, refused whole with every problem when anything in it is unknown or unsafe.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use viworks_common::id::TrustDomain;
use viworks_common::key::BindingMode;
use viworks_common::limits;
use viworks_common::rate::Quota;
use viworks_runtime::config::{Document, Environment, Problems, Section};
use viworks_runtime::logging::{self, Format};

use crate::data::TelemetryLimits;

pub mod reference;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// No timeout may be shorter: below, an honest peer on a slow path fails it.
const TIMEOUT: RangeInclusive<Duration> = millis(100)..=seconds(60);

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `[agents]`.
    pub agents: AgentsConfig,
    /// `[api]`.
    pub api: ApiConfig,
    /// `[data]`.
    pub data: DataConfig,
    /// `[keys]`.
    pub keys: KeysConfig,
    /// `[queue]`.
    pub queue: QueueConfig,
    /// `[telemetry]`.
    pub telemetry: TelemetryConfig,
    /// `[jobs]`.
    pub jobs: JobsConfig,
    /// `[log]`.
    pub log: LogConfig,
}

/// The listener for agents and the terms of their sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentsConfig {
    /// Where agents connect.
    pub listen: SocketAddr,
    /// The server's certificate chain.
    pub certificate_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
    /// Where gateways reach the listener; what new ones are told.
    pub public_url: Option<String>,
    /// The private key that will follow it; only its pin is used.
    pub next_key_file: Option<PathBuf>,
    /// The version of the pin set that both keys make; raise it with every change.
    pub pin_set_version: u64,
    /// The authority of the gateways' certificates.
    pub client_ca_file: PathBuf,
    /// The trust domain in their URI names.
    pub trust_domain: TrustDomain,
    /// What sessions are bound to.
    pub binding: BindingMode,
    /// Open sockets.
    pub connections_max: usize,
    /// Open sockets of one source.
    pub per_source_max: usize,
    /// Handshakes and openings at once.
    pub openings_max: usize,
    /// For the TLS handshake.
    pub tls_timeout: Duration,
    /// For the HTTP upgrade.
    pub upgrade_timeout: Duration,
    /// For HELLO, and again for CONFIRM.
    pub hello_timeout: Duration,
    /// How often gateways send a heartbeat.
    pub heartbeat_interval: Duration,
    /// After how much silence a session ends.
    pub silence: Duration,
    /// Commands offered to one gateway and not finished.
    pub command_credit: u32,
    /// Telemetry bytes in flight on one session.
    pub telemetry_credit_bytes: u32,
    /// Live output bytes ahead of what was processed.
    pub output_window_bytes: u64,
}

/// The operators' API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiConfig {
    /// Where operators connect.
    pub listen: SocketAddr,
    /// Open sockets.
    pub connections_max: usize,
    /// Open sockets of one source that have shown no valid key.
    pub per_source_max: usize,
    /// Open sockets that have shown the same key.
    pub per_key_max: usize,
    /// For a client to take what is sent to it.
    pub send_timeout: Duration,
    /// Bytes of all bodies together.
    pub bodies_bytes_max: usize,
    /// Bytes of all answers together.
    pub answers_bytes_max: usize,
    /// Event streams at once.
    pub streams_max: usize,
    /// Event streams of one key at once.
    pub streams_per_key_max: usize,
    /// Waits for a run's end of one key at once.
    pub waits_per_key_max: usize,
    /// For the headers of a request.
    pub header_timeout: Duration,
    /// For a whole request that is no stream.
    pub request_timeout: Duration,
    /// What one API key may ask for.
    pub quota: Quota,
}

/// Where the backend keeps what it must not lose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataConfig {
    /// The folder: locked by the running backend.
    pub state_folder: PathBuf,
    /// The database.
    pub sqlite_file: PathBuf,
}

/// Secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysConfig {
    /// The master key: 64 hexadecimal digits.
    pub master_key_file: PathBuf,
    /// The authority's private key, where certificates are issued on this machine.
    pub ca_key_file: Option<PathBuf>,
}

/// Bounds and retries of commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueConfig {
    /// Waiting commands of one gateway.
    pub per_gateway: usize,
    /// Waiting commands of all gateways.
    pub total: usize,
    /// Deliveries before a command is dead.
    pub attempts_max: u32,
    /// How long a hint may be dealt with before it is given again.
    pub lease: Duration,
    /// How soon a command is offered again that its gateway was too busy for, at first.
    pub backoff: Duration,
    /// The longest such delay.
    pub backoff_max: Duration,
}

/// How telemetry is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TelemetryConfig {
    /// How long batches are collected into one transaction.
    pub coalesce: Duration,
    /// Records in one transaction.
    pub rows_max: usize,
    /// Batches waiting to be committed.
    pub batches_waiting_max: usize,
    /// Bytes of batches that wait.
    pub waiting_bytes_max: usize,
    /// What one gateway may have stored.
    pub limits: TelemetryLimits,
}

/// How often the reconcilers run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobsConfig {
    /// Offering what waits, again.
    pub offer: Duration,
    /// Ending what is past its deadline.
    pub expire: Duration,
    /// How long a started command may stay silent beyond its time limit.
    pub overdue_wait: Duration,
    /// Deleting what has served.
    pub purge: Duration,
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
        config.ok_or_else(|| unreachable_without_problem(path))
    }

    /// Reads every section. `None` only when a problem was noted.
    pub(crate) fn read(document: &mut Document) -> Option<Self> {
        let agents = read_agents(
            &mut document.section("agents", "The listener for gateway agents (mutual TLS)."),
        );
        let mut section = document.section("api", "The listener for operators.");
        let api = read_api(&mut section);
        if let Some(agents) = &agents
            && stand_in_the_way(agents.listen, api.listen)
        {
            section.problem(
                "listen",
                format!(
                    "gateways connect at {} already, and one address has one listener",
                    agents.listen
                ),
                "give [api] and [agents] different ports",
            );
        }
        let data = read_data(&mut document.section("data", "What the backend keeps."));
        let keys = read_keys(&mut document.section("keys", "Secrets, each in a file of its own."));
        let queue = read_queue(&mut document.section("queue", "Bounds and retries of commands."));
        let telemetry =
            read_telemetry(&mut document.section("telemetry", "How telemetry is committed."));
        let jobs = read_jobs(&mut document.section("jobs", "How often the reconcilers run."));
        let log = read_log(&mut document.section("log", "The log on the standard error output."));
        Some(Self {
            agents: agents?,
            api,
            data,
            keys,
            queue,
            telemetry,
            jobs,
            log,
        })
    }
}

/// Whether two listeners cannot both have what they ask for.
fn stand_in_the_way(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    // An IPv6 address that stands for all takes those of IPv4 as well.
    let takes_all =
        |ip: IpAddr, other: IpAddr| ip.is_unspecified() && (ip.is_ipv6() || other.is_ipv4());
    let meet = a == b || takes_all(a, b) || takes_all(b, a);
    one.port() == other.port() && one.port() != 0 && meet
}

/// A reader gave nothing without noting why; refused all the same.
fn unreachable_without_problem(path: &Path) -> Problems {
    let mut document = Document::parse(path, "", &Environment::default());
    document.problem("the configuration is incomplete", "");
    match document.finish() {
        Err(problems) => problems,
        Ok(()) => unreachable!("the problem was noted on the line above"),
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn read_agents(section: &mut Section<'_>) -> Option<AgentsConfig> {
    let listen = section.parsed(
        "listen",
        "address:port",
        loopback(8081),
        "Where agents connect; port 0 takes a free one.",
    );
    let public_url = section.optional_url(
        "public_url",
        &["wss"],
        "Where gateways reach it, when not at `listen`: pki issue-gateway tells them.",
    );
    let certificate_file = section.file("certificate_file", "The server's certificate chain, PEM.");
    let key_file = section.secret_file(
        "key_file",
        "Its private key, PEM, readable by the backend only.",
    );
    let next_key_file = section.optional_secret_file(
        "next_key_file",
        "The private key that will follow it, PEM: gateways pin both.",
    );
    let pin_set_version = section.integer(
        "pin_set_version",
        1,
        1..=u64::MAX >> 11,
        "The version of the pin set that both keys make; raise it with every change. Gateways with an older set are sent this one.",
    );
    let client_ca_file = section.file(
        "client_ca_file",
        "The authority of the gateways' certificates, PEM.",
    );
    let trust_domain = section.required_parsed(
        "trust_domain",
        "domain",
        "The trust domain in the gateways' URI names.",
    );
    let binding = section.one_of(
        "binding",
        "exporter",
        &[("exporter", BindingMode::Exporter), ("certificate", BindingMode::Certificate)],
        "What sessions are bound to: the TLS connection, or the certificate where a proxy ends TLS. The same on every gateway.",
    );
    let connections_max = section.integer(
        "connections_max",
        20_000,
        1..=200_000,
        "Open sockets; more are closed at once.",
    );
    let per_source_max = section.integer("per_source_max", 2_000, 1..=200_000, "Open sockets of one IPv4 address or IPv6 /64 network; many gateways can share one address behind NAT.");
    let openings_max = section.integer("openings_max", 128, 1..=10_000, "Handshakes and session openings at once; the rest wait their turn or are told when to come back. A quarter of these, and of all sockets, is kept for sources that held a session within the last hour.");
    let tls_timeout = section.duration_ms(
        "tls_timeout_ms",
        limits::HANDSHAKE_STEP_TIMEOUT,
        TIMEOUT,
        "For the TLS handshake.",
    );
    let upgrade_timeout = section.duration_ms(
        "upgrade_timeout_ms",
        limits::HANDSHAKE_STEP_TIMEOUT,
        TIMEOUT,
        "For the HTTP upgrade.",
    );
    let hello_timeout = section.duration_ms(
        "hello_timeout_ms",
        limits::HANDSHAKE_STEP_TIMEOUT,
        TIMEOUT,
        "For HELLO, and again for CONFIRM.",
    );
    let heartbeat_interval = section.duration_ms(
        "heartbeat_interval_ms",
        limits::HEARTBEAT_INTERVAL,
        millis(100)..=seconds(300),
        "How often gateways send a heartbeat.",
    );
    let silence = section.duration_ms(
        "silence_ms",
        limits::SILENCE_MAX,
        millis(300)..=seconds(900),
        "After how much silence a session ends; at least three heartbeats.",
    );
    if silence < heartbeat_interval.saturating_mul(3) {
        section.problem(
            "silence_ms",
            format!("silence_ms is {} and heartbeat_interval_ms is {}", silence.as_millis(), heartbeat_interval.as_millis()),
            "silence_ms must be at least three times heartbeat_interval_ms, so that one lost packet ends no session",
        );
    }
    let unreported = u32::try_from(limits::COMMANDS_UNREPORTED_MAX).unwrap_or(u32::MAX);
    let command_credit = section.integer(
        "command_credit",
        64,
        1..=unreported,
        "Commands offered to one gateway and not finished.",
    );
    let telemetry_credit_bytes = section.integer(
        "telemetry_credit_bytes",
        limits::TELEMETRY_IN_FLIGHT_BYTES_MAX,
        16_384..=limits::TELEMETRY_IN_FLIGHT_BYTES_MAX,
        "Telemetry bytes in flight on one session.",
    );
    let output_window_bytes = section.integer(
        "output_window_bytes",
        limits::OUTPUT_WINDOW_BYTES,
        65_536..=limits::OUTPUT_WINDOW_BYTES,
        "Live output bytes that may be ahead of the last heartbeat.",
    );
    Some(AgentsConfig {
        listen,
        public_url,
        certificate_file,
        key_file,
        next_key_file,
        pin_set_version,
        client_ca_file,
        trust_domain: trust_domain?,
        binding,
        connections_max,
        per_source_max,
        openings_max,
        tls_timeout,
        upgrade_timeout,
        hello_timeout,
        heartbeat_interval,
        silence,
        command_credit,
        telemetry_credit_bytes,
        output_window_bytes,
    })
}

fn read_api(section: &mut Section<'_>) -> ApiConfig {
    let listen = section.parsed(
        "listen",
        "loopback address:port",
        loopback(8080),
        "Where operators connect, in plain text and therefore on a loopback address only: a proxy that ends TLS stands in front of it for others. Port 0 takes a free one.",
    );
    if !listen.ip().to_canonical().is_loopback() {
        section.problem(
            "listen",
            format!("{listen} is not a loopback address, and API keys would cross the network in plain text"),
            "listen on 127.0.0.1 or [::1], behind a proxy that ends TLS",
        );
    }
    ApiConfig {
        listen,
        connections_max: section.integer("connections_max", 1_024, 1..=100_000, "Open sockets. Beyond, and at three quarters for those that have shown no valid key, a newcomer takes the place of the stranger who has held one longest."),
        per_source_max: section.integer("per_source_max", 256, 1..=100_000, "Open sockets of one IPv4 address or IPv6 /64 network that have shown no valid key; a newcomer from there takes the place of the oldest."),
        per_key_max: section.integer("per_key_max", 512, 1..=100_000, "Open sockets that have shown the same valid key; at the next one the socket is cut that has been idle longest, and when none is idle the request gets 429."),
        send_timeout: section.duration_ms(
            "send_timeout_ms",
            seconds(10),
            TIMEOUT,
            "For a client to take at least 4 KiB of what is sent to it, or all of it; then its socket is cut.",
        ),
        bodies_bytes_max: section.integer("bodies_bytes_max", 8_388_608, 1_048_576..=1_073_741_824, "Bytes of the bodies of all requests together; beyond, requests get 503."),
        answers_bytes_max: section.integer("answers_bytes_max", 67_108_864, 1_048_576..=4_294_967_296, "Bytes of all answers together that clients have not taken yet; beyond, requests get 503. Event streams are bounded by their number."),
        streams_max: section.integer(
            "streams_max",
            256,
            1..=10_000,
            "Event streams at once; more get 503.",
        ),
        streams_per_key_max: section.integer(
            "streams_per_key_max",
            128,
            1..=10_000,
            "Event streams of one key at once; more get 503.",
        ),
        waits_per_key_max: section.integer(
            "waits_per_key_max",
            128,
            1..=10_000,
            "Waits of one key at once for the end of a run; more get 503.",
        ),
        header_timeout: section.duration_ms(
            "header_timeout_ms",
            seconds(10),
            TIMEOUT,
            "For the headers of a request.",
        ),
        request_timeout: section.duration_ms(
            "request_timeout_ms",
            seconds(30),
            TIMEOUT,
            "For a whole request that is no stream.",
        ),
        quota: Quota {
            per_minute: section.integer(
                "key_requests_per_minute",
                6_000,
                1..=100_000_000,
                "Requests of one API key in a minute, in the long run; more get 429. A wait or an event stream is one request.",
            ),
            burst: section.integer(
                "key_requests_burst",
                500,
                1..=1_000_000,
                "Requests of one API key at once, after a pause.",
            ),
        },
    }
}

fn read_data(section: &mut Section<'_>) -> DataConfig {
    let state_folder = section.path(
        "state_folder",
        "state",
        "The backend's own folder; one running backend locks it.",
    );
    let sqlite_file = section.optional_path(
        "sqlite_file",
        "The database; backend.sqlite in the state folder when left out.",
    );
    let sqlite_file = sqlite_file.unwrap_or_else(|| state_folder.join("backend.sqlite"));
    if !sqlite_file.starts_with(&state_folder) {
        section.problem(
            "sqlite_file",
            format!(
                "sqlite_file: {} lies outside of {}",
                sqlite_file.display(),
                state_folder.display()
            ),
            "the lock of the state folder protects only what is inside; move the database there",
        );
    }
    DataConfig {
        state_folder,
        sqlite_file,
    }
}

fn read_keys(section: &mut Section<'_>) -> KeysConfig {
    KeysConfig {
        master_key_file: section.secret_file("master_key_file", "The master key, 64 hexadecimal digits, readable by the backend only. Every agent key follows from it."),
        ca_key_file: section.optional_secret_file("ca_key_file", "The authority's private key, PEM, where gateways' certificates are issued on this machine."),
    }
}

fn read_queue(section: &mut Section<'_>) -> QueueConfig {
    let per_gateway = section.integer(
        "per_gateway",
        1_000,
        1..=4_096,
        "Waiting commands of one gateway; a run that does not fit is refused with 429.",
    );
    let total = section.integer(
        "total",
        100_000,
        1..=10_000_000,
        "Waiting commands of all gateways.",
    );
    if total < per_gateway {
        section.problem(
            "total",
            "total is lower than per_gateway",
            "raise total or lower per_gateway",
        );
    }
    QueueConfig {
        per_gateway,
        total,
        attempts_max: section.integer(
            "attempts_max",
            20,
            1..=1_000,
            "Deliveries of one command before it is dead.",
        ),
        lease: section.duration_ms(
            "lease_ms",
            seconds(30),
            millis(100)..=seconds(600),
            "How long a hint that commands wait may be dealt with before it is given again.",
        ),
        backoff: section.duration_ms(
            "backoff_ms",
            seconds(1),
            millis(10)..=seconds(60),
            "How soon a command that its gateway was too busy for is offered again; doubles with each delivery.",
        ),
        backoff_max: section.duration_ms(
            "backoff_max_ms",
            seconds(60),
            millis(10)..=seconds(3_600),
            "The longest such delay.",
        ),
    }
}

fn read_telemetry(section: &mut Section<'_>) -> TelemetryConfig {
    TelemetryConfig {
        coalesce: section.duration_ms(
            "coalesce_ms",
            millis(5),
            millis(0)..=seconds(1),
            "How long batches of all gateways are collected into one transaction.",
        ),
        rows_max: section.integer(
            "rows_max",
            1_000,
            100..=200_000,
            "Records in one transaction; fewer while commands come in.",
        ),
        batches_waiting_max: section.integer(
            "batches_waiting_max",
            4_096,
            1..=100_000,
            "Batches waiting to be committed; beyond, sessions stop handing in telemetry.",
        ),
        waiting_bytes_max: section.integer(
            "waiting_bytes_max",
            64 * 1024 * 1024,
            1024 * 1024..=1024 * 1024 * 1024,
            "Bytes of batches of all sessions that wait, as they travelled; beyond, sessions with more than one batch waiting are not read.",
        ),
        limits: read_telemetry_limits(section),
    }
}

fn read_telemetry_limits(section: &mut Section<'_>) -> TelemetryLimits {
    let default = TelemetryLimits::default();
    TelemetryLimits {
        epochs_per_day: section.integer("gateway_epochs_per_day", default.epochs_per_day, 1..=1_000_000, "Spool epochs, which are starts of its agent, that one gateway may begin on a day (UTC). Beyond this and each of the next four bounds, records are refused, counted and told."),
        streams: section.integer("gateway_streams_max", default.streams, 1..=1_000_000, "Streams that one gateway may have at all."),
        records_per_day: section.integer("gateway_records_per_day", default.records_per_day, 1..=10_000_000_000, "Records of one gateway on a day."),
        bytes_per_day: section.integer("gateway_bytes_per_day", default.bytes_per_day, 1024..=1 << 50, "Bytes of one gateway's records on a day, as stored, indexes included."),
        gaps_per_day: section.integer("gateway_gaps_per_day", default.gaps_per_day, 1..=100_000_000, "Gaps that one gateway may report on a day."),
    }
}

fn read_jobs(section: &mut Section<'_>) -> JobsConfig {
    let interval = millis(100)..=seconds(3_600);
    JobsConfig {
        offer: section.duration_ms("offer_interval_ms", seconds(15), interval.clone(), "How often everything that waits is offered again."),
        expire: section.duration_ms("expire_interval_ms", seconds(1), interval, "How often what is past its deadline is ended."),
        overdue_wait: section.duration_ms("overdue_wait_ms", seconds(24 * 3_600), seconds(1)..=seconds(30 * 24 * 3_600), "How long the result of a started command is waited for beyond its time limit; then it ends as indeterminate."),
        purge: section.duration_ms("purge_interval_ms", seconds(3_600), millis(100)..=seconds(24 * 3_600), "How often what has served is deleted."),
    }
}

fn read_log(section: &mut Section<'_>) -> LogConfig {
    let format = section.one_of(
        "format",
        "human",
        &[("human", Format::Human), ("json", Format::Json)],
        "For eyes or for machines.",
    );
    let filter = section.str(
        "filter",
        "info",
        "What is logged, such as info,viworks_backend_agent::inbound=debug.",
    );
    if let Err(error) = logging::check_filter(&filter) {
        section.problem(
            "filter",
            error.to_string(),
            "use a level (error, warn, info, debug, trace) or target=level pairs",
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
