//! The validated configuration: one TOML file and what lies over it, refused whole with every problem when anything in
//! it is unknown or unsafe.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use viworks_common::human;
use viworks_common::id::TrustDomain;
use viworks_common::key::BindingMode;
use viworks_common::limits::{
    COMMANDS_UNREPORTED_MAX, HANDSHAKE_STEP_TIMEOUT, HEARTBEAT_INTERVAL, OUTPUT_WINDOW_BYTES,
    SILENCE_MAX, TELEMETRY_IN_FLIGHT_BYTES_MAX,
};
use viworks_common::network::IpNetwork;
use viworks_common::rate::Quota;
use viworks_runtime::config::{Document, Environment, Explained, Problems, Section, Values};
use viworks_runtime::logging::LogConfig;
use viworks_runtime::settings;

use crate::data::TelemetryLimits;
use proxies::{believes_nobody, check_proxies, no_strangers};
use queue::{QueueAddress, QueueAddressError};
use server::Named;

mod enrolment;
mod live;
mod proxies;
pub mod queue;
pub mod reference;
mod server;
mod store;

pub use enrolment::EnrolmentConfig;
pub use live::LIVE;
pub use proxies::ProxyProtocol;
pub use store::StoreConfig;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// No timeout may be shorter: below, an honest peer on a slow path fails it.
const TIMEOUT: RangeInclusive<Duration> = millis(100)..=seconds(60);
/// Sockets of each listener, however few there can be.
const SOCKETS_MIN: usize = 16;
/// How often a reconciler may run.
const INTERVAL: RangeInclusive<Duration> = millis(100)..=seconds(3_600);

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub agents: AgentsConfig,
    pub api: ApiConfig,
    pub enrolment: EnrolmentConfig,
    pub data: DataConfig,
    pub store: StoreConfig,
    pub keys: KeysConfig,
    pub queue: QueueConfig,
    pub telemetry: TelemetryConfig,
    pub jobs: JobsConfig,
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

    /// The same for somebody who only asks the running backend: the files that are named are not looked at, which may
    /// be the backend's alone.
    ///
    /// # Errors
    ///
    /// All problems at once.
    pub fn load_to_ask(path: &Path, environment: &Environment) -> Result<Self, Problems> {
        let (config, problems) = Self::read_to_ask(path, environment);
        problems.map_or(Ok(config), Err)
    }

    /// The same where it cannot be used: what can be read of it, with the defaults in place of the rest, and all
    /// problems. A mistake in the file keeps nobody from asking the backend that runs.
    pub fn read_to_ask(path: &Path, environment: &Environment) -> (Self, Option<Problems>) {
        Document::read_to_ask(path, environment, Self::read)
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

    /// Sockets of one gateway's place: where a proxy has to say first for whom it connects, as many may be about to.
    fn sockets_of_place(&self) -> usize {
        match self.agents.tls_ends_at {
            TlsEnd::Backend => self.agents.proxy_protocol.sockets_of_place(),
            TlsEnd::Proxy => 2,
        }
    }

    /// Sockets that the configured bounds come to: of gateways, of operators and of the database.
    #[must_use]
    pub fn sockets_max(&self) -> u64 {
        let of_gateways = self.agents.connections_max;
        let of_peers = of_gateways
            .saturating_mul(self.sockets_of_place())
            .saturating_add(self.api.connections_max)
            .saturating_add(self.enrolment.sockets_max());
        u64::try_from(of_peers)
            .unwrap_or(u64::MAX)
            .saturating_add(u64::from(self.store.connections_max))
    }

    /// The same with bounds that fit into so many sockets: with more, nothing could be opened any more, not even the
    /// database. A quarter is left to operators.
    #[must_use]
    pub fn within(mut self, sockets: Option<u64>) -> Self {
        if let Some(sockets) = sockets
            && sockets < self.sockets_max()
        {
            let room = sockets.saturating_sub(u64::from(self.store.connections_max));
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            let room = room.saturating_sub(self.enrolment.sockets_max());
            let each = self.sockets_of_place();
            let (api, agents) = (&mut self.api, &mut self.agents);
            api.connections_max = api.connections_max.min(room / 4).max(SOCKETS_MIN);
            let rest = room.saturating_sub(api.connections_max);
            agents.connections_max = agents.connections_max.min(rest / each).max(SOCKETS_MIN);
        }
        self
    }

    /// How many are let in, in words.
    #[must_use]
    pub fn fewer(&self) -> String {
        format!(
            "it lets in no more than {} and {}",
            human::counted(self.agents.connections_max, "gateway", "gateways"),
            human::counted(self.api.connections_max, "operator", "operators"),
        )
    }

    /// Reads every section; worth nothing until the document has finished.
    pub(crate) fn read(document: &mut Document) -> Self {
        let agents = AgentsConfig::read(document);
        let api = ApiConfig::read(document);
        if stand_in_the_way(agents.listen, api.listen) {
            let mut section = document.section("api", "The listener for operators.");
            section.problem(
                "listen",
                format!(
                    "gateways connect at {} already, and one address has one listener",
                    agents.listen
                ),
                "give [api] and [agents] different ports",
            );
        }
        let enrolment = EnrolmentConfig::read(document);
        let (data, store, keys) = (
            DataConfig::read(document),
            StoreConfig::read(document),
            KeysConfig::read(document),
        );
        enrolment.check_beside(document, &[agents.listen, api.listen], &keys);
        Self {
            agents,
            api,
            enrolment,
            data,
            store,
            keys,
            queue: QueueConfig::read(document),
            telemetry: TelemetryConfig::read(document),
            jobs: JobsConfig::read(document),
            log: LogConfig::read(document),
            values: document.values(),
        }
    }
}

/// Whether two listeners cannot both have what they ask for.
pub(crate) fn stand_in_the_way(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    // An IPv6 address that stands for all takes those of IPv4 as well.
    let takes_all =
        |ip: IpAddr, other: IpAddr| ip.is_unspecified() && (ip.is_ipv6() || other.is_ipv4());
    let meet = a == b || takes_all(a, b) || takes_all(b, a);
    one.port() == other.port() && one.port() != 0 && meet
}

/// Where the TLS of gateways ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsEnd {
    /// At this backend's listener.
    Backend,
    /// In a proxy, which passes certificates on.
    Proxy,
}

settings! {
    /// The listener for gateway agents (mutual TLS).
    [agents]
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct AgentsConfig from section {
        /// Where agents connect; port 0 takes a free one.
        listen: SocketAddr = parsed("address:port", loopback(8081)),
        /// Where gateways reach it, when not at `listen`: pki issue-gateway tells them.
        public_url: Option<String> = optional_url(&["wss"]) like "wss://agents.example.org",
        /// The server's certificate chain, PEM.
        certificate_file: PathBuf = file() like "server.crt",
        /// Its private key, PEM, readable by the backend only.
        key_file: PathBuf = secret_file() like "server.key",
        /// The private key that will follow it, PEM: gateways pin both.
        next_key_file: Option<PathBuf> = optional_secret_file() like "next.key",
        /// The version of the pin set that both keys make, until viworks pin stage stores another one. Above the stored
        /// one, it takes its place.
        pin_set_version: u64 = integer(1, 1..=u64::MAX >> 11),
        /// The authority of the gateways' certificates, PEM.
        client_ca_file: PathBuf = file() like "ca.crt",
        /// The trust domain in the gateways' URI names.
        trust_domain: TrustDomain = required_parsed("domain") like "viworks.internal" else no_domain(),
        /// What sessions are bound to: the TLS connection, or the certificate where a proxy ends TLS. The same on every
        /// gateway.
        binding: BindingMode = one_of(
            "exporter",
            &[("exporter", BindingMode::Exporter), ("certificate", BindingMode::Certificate)],
        ),
        /// Where the gateways' TLS ends. With `proxy`, in a proxy on this machine that passes their certificates on:
        /// `listen` is then a loopback address in plain text, `binding` is `certificate`, and what comes from elsewhere
        /// than `trusted_proxies` is refused.
        tls_ends_at: TlsEnd = one_of(
            "backend",
            &[("backend", TlsEnd::Backend), ("proxy", TlsEnd::Proxy)],
        ),
        /// Whether every connection begins with a header of the PROXY protocol, in which a proxy that passes TLS
        /// through says who connects. With `require`, what does not begin with one, or comes from elsewhere than
        /// `trusted_proxies`, is refused.
        proxy_protocol: ProxyProtocol = one_of("off", &ProxyProtocol::ALL),
        /// The addresses and networks of the proxies that are believed about who connects, such as `127.0.0.1` or
        /// `10.0.8.0/24`.
        trusted_proxies: Vec<IpNetwork> = parsed_list("addresses and networks"),
        /// Open sockets; more are closed at once.
        connections_max: usize = integer(20_000, 1..=200_000),
        /// Open sockets of one IPv4 address or IPv6 /64 network; many gateways can share one address behind NAT.
        per_source_max: usize = integer(2_000, 1..=200_000),
        /// Handshakes and session openings at once; the rest wait their turn or are told when to come back. A quarter
        /// of these, and of all sockets, is kept for sources that held a session within the last hour.
        openings_max: usize = integer(128, 1..=10_000),
        /// For the header of a proxy, and again for the TLS handshake.
        tls_timeout: Duration = duration_ms(HANDSHAKE_STEP_TIMEOUT, TIMEOUT),
        /// For the HTTP upgrade.
        upgrade_timeout: Duration = duration_ms(HANDSHAKE_STEP_TIMEOUT, TIMEOUT),
        /// For HELLO, and again for CONFIRM.
        hello_timeout: Duration = duration_ms(HANDSHAKE_STEP_TIMEOUT, TIMEOUT),
        /// How often gateways send a heartbeat.
        heartbeat_interval: Duration = duration_ms(HEARTBEAT_INTERVAL, millis(100)..=seconds(300)),
        /// After how much silence a session ends; at least three heartbeats.
        silence: Duration = duration_ms(SILENCE_MAX, millis(300)..=seconds(900)),
        /// Commands offered to one gateway and not finished.
        command_credit: u32 = integer(
            64,
            1..=u32::try_from(COMMANDS_UNREPORTED_MAX).unwrap_or(u32::MAX),
        ),
        /// Telemetry bytes in flight on one session.
        telemetry_credit_bytes: u32 = integer(
            TELEMETRY_IN_FLIGHT_BYTES_MAX,
            16_384..=TELEMETRY_IN_FLIGHT_BYTES_MAX,
        ),
        /// Live output bytes that may be ahead of the last heartbeat.
        output_window_bytes: u64 = integer(OUTPUT_WINDOW_BYTES, 65_536..=OUTPUT_WINDOW_BYTES),
    }
    check AgentsConfig::check
}

impl AgentsConfig {
    fn check(&self, section: &mut Section<'_>) {
        if self.silence < self.heartbeat_interval.saturating_mul(3) {
            section.problem(
                "silence_ms",
                format!(
                    "silence_ms is {} and heartbeat_interval_ms is {}",
                    self.silence.as_millis(),
                    self.heartbeat_interval.as_millis()
                ),
                "silence_ms must be at least three times heartbeat_interval_ms, so that one lost packet ends no session",
            );
        }
        self.check_proxies(section);
    }

    fn check_proxies(&self, section: &mut Section<'_>) {
        let terminated = self.tls_ends_at == TlsEnd::Proxy;
        check_proxies(
            section,
            self.proxy_protocol,
            &self.trusted_proxies,
            terminated,
        );
        if terminated {
            self.check_terminated(section);
        }
    }

    /// What a proxy that ends TLS needs.
    fn check_terminated(&self, section: &mut Section<'_>) {
        if believes_nobody(section, &self.trusted_proxies) {
            section.problem(
                "tls_ends_at",
                "tls_ends_at is \"proxy\", and no proxy is believed: nobody could connect".to_owned(),
                "name the addresses that the proxy connects from, such as trusted_proxies = [\"127.0.0.1\"]",
            );
        }
        if self.binding != BindingMode::Certificate {
            section.problem(
                "binding",
                "sessions cannot be bound to a TLS connection that ends in a proxy".to_owned(),
                "set binding = \"certificate\", here and on every gateway",
            );
        }
        if self.proxy_protocol == ProxyProtocol::Require {
            section.problem(
                "proxy_protocol",
                "a proxy that ends TLS says who connects in a header of HTTP".to_owned(),
                "leave proxy_protocol out where tls_ends_at is \"proxy\"",
            );
        }
        if !self.listen.ip().to_canonical().is_loopback() {
            section.problem(
                "listen",
                format!(
                    "{} is not a loopback address, and sessions would cross the network in plain text",
                    self.listen
                ),
                "listen on 127.0.0.1 or [::1], behind a proxy on this machine",
            );
        }
    }
}

/// What stands in for a trust domain that is missing, which was noted.
fn no_domain() -> TrustDomain {
    "missing.invalid".parse().expect("it is a domain")
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

settings! {
    /// The listener for operators.
    [api]
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct ApiConfig from section {
        /// Where operators connect, in plain text and therefore on a loopback address only: a proxy that ends TLS
        /// stands in front of it for others. Port 0 takes a free one.
        listen: SocketAddr = parsed("loopback address:port", loopback(8080)),
        /// The addresses and networks of the proxies that are believed about where an operator is (`X-Real-IP`), for
        /// the log and the audit trail. Others are where their connections come from.
        trusted_proxies: Vec<IpNetwork> = parsed_list("addresses and networks"),
        /// Open sockets. Beyond, and at three quarters for those that have shown no valid key, a newcomer takes the
        /// place of the stranger who has held one longest.
        connections_max: usize = integer(1_024, 1..=100_000),
        /// Open sockets of one IPv4 address or IPv6 /64 network that have shown no valid key; a newcomer from there
        /// takes the place of the oldest.
        per_source_max: usize = integer(256, 1..=100_000),
        /// Open sockets that have shown the same valid key; at the next one the socket is cut that has been idle
        /// longest, and when none is idle the request gets 429.
        per_key_max: usize = integer(512, 1..=100_000),
        /// For a client to take at least 4 KiB of what is sent to it, or all of it; then its socket is cut.
        send_timeout: Duration = duration_ms(seconds(10), TIMEOUT),
        /// Bytes of the bodies of all requests together, and of one key half of what the others leave; beyond, requests
        /// get 503.
        bodies_bytes_max: usize = integer(8_388_608, 1_048_576..=1_073_741_824),
        /// Bytes of all answers together that clients have not taken yet, and of one key half of what the others leave;
        /// beyond, requests get 503. Event streams are bounded by their number.
        answers_bytes_max: usize = integer(67_108_864, 1_048_576..=4_294_967_296),
        /// Event streams at once, and of one key half of what the others leave; more get 503, but every key may have 4.
        streams_max: usize = integer(256, 1..=10_000),
        /// Event streams of one key at once; more get 503.
        streams_per_key_max: usize = integer(128, 1..=10_000),
        /// Waits of one key at once for the end of a run; more get 503.
        waits_per_key_max: usize = integer(128, 1..=10_000),
        /// For the headers of a request.
        header_timeout: Duration = duration_ms(seconds(10), TIMEOUT),
        /// For a whole request that is no stream.
        request_timeout: Duration = duration_ms(seconds(30), TIMEOUT),
        /// What one API key may ask for.
        quota: Quota = by(quota),
    }
    check ApiConfig::check
}

impl ApiConfig {
    fn check(&self, section: &mut Section<'_>) {
        let listen = self.listen;
        if !listen.ip().to_canonical().is_loopback() {
            section.problem(
                "listen",
                format!("{listen} is not a loopback address, and API keys would cross the network in plain text"),
                "listen on 127.0.0.1 or [::1], behind a proxy that ends TLS",
            );
        }
        no_strangers(section, &self.trusted_proxies);
    }
}

fn quota(section: &mut Section<'_>) -> Quota {
    Quota {
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
    }
}

settings! {
    /// What the backend keeps.
    [data]
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct DataConfig from section {
        /// The backend's own folder; one running backend locks it.
        state_folder: PathBuf = path("state"),
        /// The database; backend.sqlite in the state folder when left out.
        sqlite_file: PathBuf = optional_path() like "state/backend.sqlite" else state_folder.join("backend.sqlite"),
    }
    check DataConfig::check
}

impl DataConfig {
    fn check(&self, section: &mut Section<'_>) {
        if !self.sqlite_file.starts_with(&self.state_folder) {
            section.problem(
                "sqlite_file",
                format!(
                    "sqlite_file: {} lies outside of {}",
                    self.sqlite_file.display(),
                    self.state_folder.display()
                ),
                "the lock of the state folder protects only what is inside; move the database there",
            );
        }
    }
}

settings! {
    /// Secrets, each in a file of its own.
    [keys]
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct KeysConfig from section {
        /// The master key, 64 hexadecimal digits, readable by the backend only. Every agent key follows from it.
        master_key_file: PathBuf = secret_file() like "master.key",
        /// The master key of before, while a site moves from that to the one in `master_key_file`: both are accepted,
        /// and that one makes agent keys to which the database belongs, see `pki rotate-master-key`.
        previous_master_key_file: Option<PathBuf> = optional_secret_file() like "previous-master.key",
        /// The authority's private key, PEM, where gateways' certificates are issued on this machine.
        ca_key_file: Option<PathBuf> = optional_secret_file() like "ca.key",
        /// A program that has the authority's key, such as in a hardware module, and its arguments: it is given what
        /// is to be signed on its standard input, and answers the signature (ECDSA in DER, with the hash of its key's
        /// size) on its standard output, within ten seconds. Instead of `ca_key_file`. No shell reads it.
        ca_sign_command: Vec<String> = strings(&[]),
        /// Where the list of certificates that are revoked or replaced is kept (a CRL, PEM), for `ssl_crl` of an nginx
        /// that ends the gateways' TLS: written anew within a minute of a change, and every day. Needs `ca_key_file` or
        /// `ca_sign_command`.
        crl_file: Option<PathBuf> = optional_path() like "gateways.crl",
    }
    check KeysConfig::check
}

impl KeysConfig {
    /// Whether certificates can be signed here.
    #[must_use]
    pub const fn signs(&self) -> bool {
        self.ca_key_file.is_some() || !self.ca_sign_command.is_empty()
    }

    fn check(&self, section: &mut Section<'_>) {
        if self.crl_file.is_some() && !self.signs() {
            section.problem(
                "crl_file",
                "a list of revoked certificates is to be kept, and nothing can sign it",
                "set ca_key_file, or leave crl_file out",
            );
        }
        let Some(program) = self.ca_sign_command.first() else {
            return;
        };
        if !Path::new(program).is_absolute() {
            section.problem(
                "ca_sign_command",
                format!(
                    "{program:?} is no absolute path, and nobody looks for a program that signs"
                ),
                "name the program by its whole path, and its arguments behind it, each for itself",
            );
        }
        if self.ca_key_file.is_some() {
            section.problem(
                "ca_sign_command",
                "ca_key_file and ca_sign_command both sign for the authority",
                "leave one of them out",
            );
        }
    }
}

settings! {
    /// Bounds and retries of commands, and where the hints are that they wait.
    [queue]
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct QueueConfig from section {
        /// `memory`, or Redis (or Valkey) where several instances share a database: redis://USER@HOST:PORT/DATABASE,
        /// redis-cluster://USER@HOST,HOST or redis-sentinel://USER@HOST,HOST/MASTER, never with a password. A server
        /// that is not on this machine is spoken to encrypted and verified: rediss://, rediss-cluster://,
        /// rediss-sentinel://.
        url: String = str(queue::MEMORY),
        /// The password of USER, readable by the backend only; read with each connection.
        password_file: Option<PathBuf> = optional_secret_file() like "redis.password",
        /// The authority that signed the server's certificate, PEM, where that is a private one.
        ca_file: Option<PathBuf> = optional_file() like "redis-ca.crt",
        /// Waiting commands of one gateway; a run that does not fit is refused with 429.
        per_gateway: usize = integer(1_000, 1..=4_096),
        /// Waiting commands of all gateways.
        total: usize = integer(100_000, 1..=10_000_000),
        /// Deliveries of one command before it is dead.
        attempts_max: u32 = integer(20, 1..=1_000),
        /// How long a hint that commands wait may be dealt with before it is given again.
        lease: Duration = duration_ms(seconds(30), millis(100)..=seconds(600)),
        /// How soon a command that its gateway was too busy for is offered again; doubles with each delivery.
        backoff: Duration = duration_ms(seconds(1), millis(10)..=seconds(60)),
        /// The longest such delay.
        backoff_max: Duration = duration_ms(seconds(60), millis(10)..=seconds(3_600)),
    }
    check QueueConfig::check
}

impl QueueConfig {
    /// Where Redis is; `None` where the memory of this process is meant.
    ///
    /// # Errors
    ///
    /// When the URL cannot be used, or a file that goes with it.
    pub fn address(&self) -> Result<Option<QueueAddress>, QueueAddressError> {
        if self.url == queue::MEMORY {
            return Ok(None);
        }
        let (password, ca) = (self.password_file.as_deref(), self.ca_file.as_deref());
        QueueAddress::parse(&self.url, password, ca).map(Some)
    }

    fn check(&self, section: &mut Section<'_>) {
        let server = Named {
            instead: "the queue in memory",
            shortest: "redis://USER@HOST",
            like: "url = \"memory\" or \"redis://USER@HOST:6379/0\"",
            password_file: self.password_file.as_deref(),
            ca_file: self.ca_file.as_deref(),
        };
        server.check(section, self.address(), QueueAddressError::file);
        if self.total < self.per_gateway {
            section.problem(
                "total",
                "total is lower than per_gateway",
                "raise total or lower per_gateway",
            );
        }
    }
}

settings! {
    /// How telemetry is committed.
    [telemetry]
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct TelemetryConfig from section {
        /// How long batches of all gateways are collected into one transaction.
        coalesce: Duration = duration_ms(millis(5), millis(0)..=seconds(1)),
        /// Records in one transaction; fewer while commands come in.
        rows_max: usize = integer(2_000, 100..=200_000),
        /// Batches waiting to be committed; beyond, sessions stop handing in telemetry.
        batches_waiting_max: usize = integer(4_096, 1..=100_000),
        /// Bytes of batches of all sessions that wait, as they travelled; beyond, sessions with more than one batch
        /// waiting are not read.
        waiting_bytes_max: usize = integer(64 * 1024 * 1024, 1024 * 1024..=1024 * 1024 * 1024),
        /// What one gateway may have stored.
        limits: TelemetryLimits = by(telemetry_limits),
    }
}

fn telemetry_limits(section: &mut Section<'_>) -> TelemetryLimits {
    let default = TelemetryLimits::default();
    TelemetryLimits {
        epochs_per_day: section.integer("gateway_epochs_per_day", default.epochs_per_day, 1..=1_000_000, "Spool epochs, which are starts of its agent, that one gateway may begin on a day (UTC). Beyond this and each of the next four bounds, records are refused, counted and told."),
        streams: section.integer("gateway_streams_max", default.streams, 1..=1_000_000, "Streams that one gateway may have, and a sixteenth more of those that its agent reads itself (host.…); one of which nothing is kept any longer counts no longer."),
        records_per_day: section.integer("gateway_records_per_day", default.records_per_day, 1..=10_000_000_000, "Records of one gateway on a day, and a sixteenth more of what its agent reads itself."),
        bytes_per_day: section.integer("gateway_bytes_per_day", default.bytes_per_day, 1024..=1 << 50, "Bytes of one gateway's records on a day, as stored, indexes included, and a sixteenth more of what its agent reads itself."),
        gaps_per_day: section.integer("gateway_gaps_per_day", default.gaps_per_day, 1..=100_000_000, "Gaps that one gateway may report on a day."),
        retention_days: section.integer("retention_days", default.retention_days, 0..=36_500, "Days for which records are kept, by the time at which they were observed; 0 keeps them for ever. Older ones are deleted, and what tells of losses before that; what is older when it arrives is refused, counted and told. Of several backends the longest time holds, also for seven days without the one that is set to it."),
        rollup_days: section.integer("rollup_retention_days", default.rollup_days, 0..=36_500, "Days for which roll-ups are kept: what the numbers of each hour came to, told of in steps of hours, also when the records themselves are gone; 0 makes none."),
    }
}

settings! {
    /// How often the reconcilers run.
    [jobs]
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct JobsConfig from section {
        /// How often everything that waits is offered again.
        offer as "offer_interval_ms": Duration = duration_ms(seconds(15), INTERVAL),
        /// How often what is past its deadline is ended.
        expire as "expire_interval_ms": Duration = duration_ms(seconds(1), INTERVAL),
        /// How long the result of a started command is waited for beyond its time limit; then it ends as indeterminate.
        overdue_wait: Duration = duration_ms(seconds(24 * 3_600), seconds(1)..=seconds(30 * 24 * 3_600)),
        /// How often what has served is deleted.
        purge as "purge_interval_ms": Duration = duration_ms(seconds(3_600), millis(100)..=seconds(24 * 3_600)),
    }
}
