//! A backend's API over a store in a temporary folder, with gateways that have reported their catalogues.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use futures_util::StreamExt;
use http::{HeaderMap, Method, Request, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use uuid::Uuid;
use viworks_api::Scope;
use viworks_backend_agent::agent::authorities::{Authorities, Trust};
use viworks_backend_agent::agent::pins::{PinParts, ServerPins};
use viworks_backend_agent::api::{ApiLimits, ApiParts, ApiServer, ApiState};
use viworks_backend_agent::auth::apikey::{self, CreateKey};
use viworks_backend_agent::command::bus::{BusLimits, RunBus};
use viworks_backend_agent::command::{CommandNudge, Commands, Parts};
use viworks_backend_agent::config::Config;
use viworks_backend_agent::data::sqlite::SqliteStore;
use viworks_backend_agent::data::{
    Actor, AdmitOutcome, AdmitRequest, ConfirmOutcome, ConfirmRequest, Holder, LeaseLimits,
    NewCertificate, NewGateway, OwnPins, QueueLimits, Store,
};
use viworks_backend_agent::enrolment::{Addresses, TicketOffice};
use viworks_backend_agent::material::ServerMaterial;
use viworks_backend_agent::metrics::BackendMetrics;
use viworks_backend_agent::pki::init::{InitRequest, init};
use viworks_backend_agent::pki::issue::load_master;
use viworks_common::catalogue::{Argument, ArgumentType, CatalogueEntry, Risk};
use viworks_common::id::{AgentId, AgentRunId, BootId, CommandId, InstallId, SessionId, Tenant};
use viworks_common::pin::PinSet;
use viworks_common::time::Timestamp;
use viworks_runtime::clock::{Clock, SystemClock, Timeline};
use viworks_runtime::conditions::Conditions;
use viworks_runtime::config::Environment;
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::metrics::Metrics;
use viworks_runtime::probe::Readiness;
use viworks_runtime::random;
use viworks_runtime::sqlite::Options;

use super::declared;

/// Remembers what it was asked for.
#[derive(Default)]
pub(super) struct Nudges {
    pub(super) agents: Mutex<Vec<AgentId>>,
    pub(super) cancelled: Mutex<Vec<CommandId>>,
    pub(super) revoked: Mutex<Vec<AgentId>>,
    pub(super) given_away: Mutex<Vec<(AgentId, u64)>>,
    pub(super) cut: Mutex<Vec<(AgentId, u64)>>,
    pub(super) rekeyed: Mutex<Vec<(AgentId, u32)>>,
}

impl CommandNudge for Nudges {
    fn nudge(&self, agent_id: &AgentId) {
        self.agents.lock().unwrap().push(*agent_id);
    }

    fn cancel(&self, _agent_id: &AgentId, command_id: CommandId) {
        self.cancelled.lock().unwrap().push(command_id);
    }

    fn revoked(&self, agent_id: &AgentId) {
        self.revoked.lock().unwrap().push(*agent_id);
    }

    fn given_away(&self, agent_id: &AgentId, epoch: u64) {
        self.given_away.lock().unwrap().push((*agent_id, epoch));
    }

    fn certificate_revoked(&self, agent_id: &AgentId, epoch: u64) {
        self.cut.lock().unwrap().push((*agent_id, epoch));
    }

    fn rekey(&self, agent_id: &AgentId, generation: u32) {
        self.rekeyed.lock().unwrap().push((*agent_id, generation));
    }
}

/// The proxy that the API believes.
pub(super) const PROXY: &str = "127.0.0.9";

/// A file in a backend's folder that says that it has no door.
const NO_DOOR: &str = "no_door";

/// The database in a backend's folder.
const DATABASE: &str = "backend.sqlite";

pub(super) struct Backend {
    pub(super) store: Arc<dyn Store>,
    pub(super) tenant: Tenant,
    pub(super) router: axum::Router,
    pub(super) state: Arc<ApiState>,
    pub(super) bus: Arc<RunBus>,
    pub(super) nudges: Arc<Nudges>,
    pub(super) readiness: Readiness,
    pub(super) conditions: Conditions,
    pub(super) stopping: CancellationToken,
    pub(super) limits: ApiLimits,
    pub(super) metrics: Metrics,
    key: String,
    queue: QueueLimits,
    seen: Mutex<BTreeSet<declared::Outcome>>,
    folder: TempDir,
}

/// An answer, read whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {}", self.text))
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// Asserts a problem document and gives it.
    pub(super) fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status);
        assert_eq!(problem["request_id"], self.header("x-request-id"));
        assert!(
            problem["title"]
                .as_str()
                .is_some_and(|title| !title.is_empty())
        );
        problem
    }
}

/// What a backend signs and proves with.
fn make_keys(folder: &TempDir) {
    let request = InitRequest {
        folder: folder.path().join("keys"),
        trust_domain: "viworks.test".parse().unwrap(),
        server_names: vec!["127.0.0.1".to_owned()],
        installed: false,
        authority: None,
    };
    init(&request, SystemClock.wall()).unwrap();
}

/// Writes tickets for a door that nobody listens at; none where there is a file that says so.
fn tickets(folder: &TempDir, pins: Arc<ServerPins>, conditions: &Conditions) -> TicketOffice {
    let config = config(folder);
    let has_door = !folder.path().join(NO_DOOR).exists();
    let addresses = Addresses {
        door: has_door.then(|| "127.0.0.1:8082".parse().unwrap()),
        agents: "127.0.0.1:8081".parse().unwrap(),
    };
    let master = Arc::new(load_master(&config.keys.master_key_file).unwrap());
    // Nothing is read again here: what was read first stays in force.
    let (_sender, side) = watch::channel(ServerMaterial::load(&config).unwrap().server);
    let conditions = conditions.clone();
    TicketOffice::new(Arc::new(config), addresses, master, pins, side, conditions)
}

fn config(folder: &TempDir) -> Config {
    let config = folder.path().join("keys/backend.toml");
    Config::load(&config, &Environment::default()).unwrap()
}

/// The keys that a backend would show, and show next.
fn own_pins(folder: &TempDir) -> OwnPins {
    let config = config(folder);
    let material = ServerMaterial::load(&config).unwrap();
    OwnPins {
        configured: PinSet {
            version: config.agents.pin_set_version,
            pins: material.pins,
        },
        live: material.pin,
    }
}

/// What a backend would give gateways.
fn own_authorities(folder: &TempDir) -> Arc<Authorities> {
    ServerMaterial::load(&config(folder)).unwrap().authorities
}

impl Backend {
    /// One that no machine can enrol at.
    pub(super) async fn without_a_door() -> Self {
        let backend = Self::new().await;
        backend.store.close().await;
        std::fs::write(backend.folder.path().join(NO_DOOR), "").unwrap();
        let (limits, queue) = (backend.limits, backend.queue);
        let mut again = Self::open(backend.folder, limits, queue, None).await;
        again.key = backend.key;
        again
    }

    /// The authorities that are trusted and given to gateways.
    pub(super) fn authorities(&self) -> Arc<Authorities> {
        own_authorities(&self.folder)
    }

    /// The authority's key, which a test may take away.
    pub(super) fn authority_key(&self) -> PathBuf {
        self.folder.path().join("keys/ca.key")
    }

    /// The file of the authorities, which a test may spoil.
    pub(super) fn authorities_file(&self) -> PathBuf {
        self.folder.path().join("keys/ca.crt")
    }

    pub(super) async fn new() -> Self {
        Self::with(|_limits, _queue| {}).await
    }

    pub(super) async fn with(adjust: impl FnOnce(&mut ApiLimits, &mut QueueLimits)) -> Self {
        let mut limits = ApiLimits {
            recheck: Duration::from_millis(100),
            ..ApiLimits::default()
        };
        let mut queue = QueueLimits {
            per_gateway: 10,
            global: 100,
            retry_after: Duration::from_millis(20_500),
        };
        adjust(&mut limits, &mut queue);
        let folder = tempfile::tempdir().unwrap();
        make_keys(&folder);
        let mut backend = Self::open(folder, limits, queue, None).await;
        backend.key = backend.key_with(Scope::ALL).await;
        backend
    }

    /// A backend over the database in `folder`, with room for so many pages.
    async fn open(
        folder: TempDir,
        limits: ApiLimits,
        queue: QueueLimits,
        pages: Option<u32>,
    ) -> Self {
        let mut options = Options::new(folder.path().join(DATABASE));
        if let Some(pages) = pages {
            options = options.max_page_count(pages);
        }
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(options).await.unwrap());
        let tenant = Tenant::default_tenant();
        let clock = Arc::new(Timeline::unstored(Arc::new(SystemClock)));
        let bus = Arc::new(RunBus::new(BusLimits::default(), 1));
        let nudges = Arc::new(Nudges::default());
        let metrics = Metrics::new("viworks-test", "0", clock.wall());
        let counters = BackendMetrics::register(&metrics);
        let commands = Commands::new(Parts {
            store: Arc::clone(&store),
            tenant: tenant.clone(),
            clock: Arc::clone(&clock),
            bus: Arc::clone(&bus),
            nudge: Arc::clone(&nudges) as Arc<dyn CommandNudge>,
            metrics: counters.clone(),
            limits: queue,
            lifecycle: Lifecycle::new(),
        });
        let readiness = Readiness::new();
        readiness.latch("store").set(true, "open");
        let conditions = Conditions::new(Arc::<Timeline>::clone(&clock));
        let stopping = CancellationToken::new();
        let pins = Arc::new(ServerPins::new(PinParts {
            store: Arc::clone(&store),
            tenant: tenant.clone(),
            clock: Arc::clone(&clock),
            metrics: counters.clone(),
            conditions: conditions.clone(),
            own: own_pins(&folder),
        }));
        let state = ApiState::new(ApiParts {
            store: Arc::clone(&store),
            tenant: tenant.clone(),
            clock: Arc::clone(&clock),
            commands,
            readiness: readiness.clone(),
            conditions: conditions.clone(),
            metrics: metrics.clone(),
            counters,
            redis: None,
            tickets: tickets(&folder, Arc::clone(&pins), &conditions),
            pins,
            trust: Arc::new(Trust::new(own_authorities(&folder))),
            state_folder: folder.path().to_owned(),
            limits,
            trusted_proxies: vec![PROXY.parse().unwrap()],
            stopping: stopping.clone(),
        });
        Self {
            router: ApiServer::router(Arc::clone(&state)),
            state,
            store,
            tenant,
            bus,
            nudges,
            readiness,
            conditions,
            stopping,
            limits,
            metrics,
            key: String::new(),
            queue,
            seen: Mutex::default(),
            folder,
        }
    }

    /// The same backend after a restart, on a disk with hardly any room left. What was seen is kept.
    pub(super) async fn on_a_full_disk(self) -> Self {
        self.store.close().await;
        let path = self.folder.path().join(DATABASE);
        let bytes = std::fs::metadata(path).unwrap().len();
        let pages = u32::try_from(bytes / 4_096).unwrap() + 4;
        let mut backend = Self::open(self.folder, self.limits, self.queue, Some(pages)).await;
        backend.key = self.key;
        backend.seen = self.seen;
        backend
    }

    /// Makes every API key in the database unreadable, as a fault of the disk might.
    pub(super) fn spoil_keys(&self) {
        let database = rusqlite::Connection::open(self.folder.path().join(DATABASE)).unwrap();
        let spoilt = database.execute("UPDATE api_keys SET scopes = 'x'", []);
        assert!(spoilt.unwrap() > 0);
    }

    /// Which statuses of which operations were answered so far.
    pub(super) fn seen(&self) -> BTreeSet<declared::Outcome> {
        self.seen.lock().unwrap().clone()
    }

    /// A key with every scope.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) async fn key_with(&self, scopes: &[Scope]) -> String {
        let request = CreateKey {
            name: "test".to_owned(),
            scopes: scopes.iter().copied().collect::<BTreeSet<_>>(),
            expires_in: None,
        };
        let actor = Actor::local("test");
        let (_key, secret) = apikey::issue(&*self.store, &self.tenant, request, &actor, now())
            .await
            .unwrap();
        secret.expose().to_owned()
    }

    pub(super) async fn send(&self, request: Request<Body>) -> Answer {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let answer = Answer {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8(bytes.to_vec()).unwrap(),
        };
        let outcome = declared::check(&method, &path, &answer)
            .unwrap_or_else(|error| panic!("not as described: {error}"));
        self.seen.lock().unwrap().extend(outcome);
        answer
    }

    pub(super) fn request(&self, method: Method, path: &str) -> http::request::Builder {
        Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {}", self.key))
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        let request = self.request(Method::GET, path).body(Body::empty());
        self.send(request.unwrap()).await
    }

    pub(super) async fn delete(&self, path: &str) -> Answer {
        let request = self.request(Method::DELETE, path).body(Body::empty());
        self.send(request.unwrap()).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, body.to_string(), &[]).await
    }

    pub(super) async fn post_text(
        &self,
        path: &str,
        body: impl Into<Body>,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request = self
            .request(Method::POST, path)
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(body.into()).unwrap()).await
    }

    /// Opens an event stream and gives its events as (event, id, data), as they come.
    pub(super) async fn follow(
        &self,
        path: &str,
        last_event_id: Option<&str>,
    ) -> impl futures_util::Stream<Item = (String, String, Value)> + Unpin + use<> {
        let mut request = self.request(Method::GET, path);
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let request = request.body(Body::empty()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        let frames = response.into_body().into_data_stream();
        Box::pin(frames.filter_map(|frame| async move {
            let text = String::from_utf8(frame.unwrap().to_vec()).unwrap();
            let field = |name: &str| {
                text.lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                    .unwrap_or_default()
                    .to_owned()
            };
            let data = field("data");
            (!data.is_empty()).then(|| {
                (
                    field("event"),
                    field("id"),
                    serde_json::from_str(&data).unwrap(),
                )
            })
        }))
    }

    /// Registers a gateway that has never connected.
    pub(super) async fn register(&self, name: &str) -> AgentId {
        let agent_id = AgentId::from_uuid(random::uuid_v7(now()));
        let new = NewGateway {
            agent_id,
            name: name.parse().unwrap(),
            labels: BTreeMap::new(),
            key_generation: 1,
            pins: None,
            authorities: None,
            certificate: None,
        };
        self.store
            .create_gateway(&self.tenant, new, &Actor::local("test"), now())
            .await
            .unwrap();
        agent_id
    }

    /// Registers a certificate for a gateway; its fingerprint, which repeats this byte. Sessions here show that of 7.
    pub(super) async fn certify(&self, agent_id: AgentId, byte: u8) -> String {
        let new = NewCertificate {
            agent_id,
            spki: [byte; 32],
            serial: format!("0a{byte:02x}"),
            not_after: now().saturating_add(Duration::from_secs(3_600)),
            fingerprint: [byte; 32],
            issuer: None,
        };
        self.store
            .register_certificate(&self.tenant, new, &Actor::local("test"), now())
            .await
            .unwrap();
        hex::encode([byte; 32])
    }

    /// Registers a gateway, confirms a session of it and reports its catalogue.
    pub(super) async fn connect(&self, name: &str, entries: Vec<CatalogueEntry>) -> Holder {
        let agent_id = self.register(name).await;
        let agent_run_id = AgentRunId::from_uuid(Uuid::now_v7());
        let session_id = SessionId::from_uuid(Uuid::now_v7());
        let request = hello(agent_id, agent_run_id, session_id);
        let admitted = self
            .store
            .admit(&self.tenant, request, now())
            .await
            .unwrap();
        let AdmitOutcome::Accepted(admitted) = admitted else {
            panic!("{admitted:?}")
        };
        let request = ConfirmRequest {
            agent_id,
            session_id,
            presented: admitted.presented,
            issued: admitted.issued,
            agent_run_id,
            unreported: Vec::new(),
            proves: None,
            signed_by: None,
        };
        let confirmed = self
            .store
            .confirm_session(&self.tenant, request, now())
            .await
            .unwrap();
        assert!(matches!(confirmed, ConfirmOutcome::Confirmed(_)));
        let epoch = admitted.issued;
        self.store
            .save_catalogue(
                &self.tenant,
                agent_id,
                epoch,
                &"0".repeat(64),
                entries,
                now(),
            )
            .await
            .unwrap();
        Holder {
            agent_id,
            epoch,
            agent_run_id,
        }
    }

    /// Another process shows an identity that is connected, with an epoch that was left behind: a second holder.
    pub(super) async fn second_holder(&self, agent_id: AgentId) -> AgentRunId {
        let agent_run_id = AgentRunId::from_uuid(Uuid::now_v7());
        let session_id = SessionId::from_uuid(Uuid::now_v7());
        let request = hello(agent_id, agent_run_id, session_id);
        let refused = self.store.admit(&self.tenant, request, now()).await;
        assert_eq!(refused.unwrap(), AdmitOutcome::Fork);
        agent_run_id
    }

    /// Has every command die that waits for a gateway, as one that was delivered as often as may be.
    pub(super) async fn kill_queued(&self, holder: &Holder) -> Vec<CommandId> {
        let limits = LeaseLimits {
            commands: 256,
            attempts_max: 0,
        };
        let leased = self
            .store
            .lease_commands(&self.tenant, holder, limits, now())
            .await
            .unwrap();
        leased.dead.iter().map(|dead| dead.command_id).collect()
    }

    /// Submits `sys.uptime` to everybody and gives the run's id.
    pub(super) async fn submit_uptime(&self) -> String {
        let answer = self
            .post(
                "/v1/runs",
                &json!({"command": "sys.uptime", "targets": "all"}),
            )
            .await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
        answer.json()["id"].as_str().unwrap().to_owned()
    }
}

/// The first HELLO of a process, of an installation and a boot of its own.
fn hello(agent_id: AgentId, agent_run_id: AgentRunId, session_id: SessionId) -> AdmitRequest {
    AdmitRequest {
        agent_id,
        session_id,
        install_id: InstallId::from_uuid(Uuid::now_v7()),
        boot_id: BootId::from_uuid(Uuid::now_v7()),
        agent_run_id,
        epoch: 0,
        token_valid: true,
        key_generation: 1,
        highest_order: 0,
        low_water: 0,
        // Nothing overtook it.
        confirmed_at_challenge: u64::MAX,
        unreported: Vec::new(),
        telemetry: Vec::new(),
        catalogue_digest: "0".repeat(64),
        labels: BTreeMap::new(),
        agent_version: "0.1.0".to_owned(),
        pin_set_version: 1,
        peer_address: "127.0.0.1:1".to_owned(),
        fingerprint: [7; 32],
    }
}

pub(super) fn now() -> Timestamp {
    SystemClock.wall()
}

pub(super) fn entry(name: &str, risk: Risk, arguments: Vec<Argument>) -> CatalogueEntry {
    CatalogueEntry {
        name: name.parse().unwrap(),
        title: format!("Runs {name}"),
        risk,
        idempotent: risk == Risk::Read,
        arguments,
        timeout_ms: 30_000,
        output_bytes_max: 65_536,
        unavailable: None,
    }
}

pub(super) fn argument(name: &str, value: ArgumentType, default: Option<&str>) -> Argument {
    Argument {
        name: name.parse().unwrap(),
        description: format!("The {name}"),
        value,
        default: default.map(str::to_owned),
    }
}

/// What an ordinary gateway allows.
pub(super) fn catalogue() -> Vec<CatalogueEntry> {
    let unit = ArgumentType::String {
        pattern: "[a-z0-9.@-]{1,64}".to_owned(),
    };
    let lines = ArgumentType::Integer { min: 1, max: 1_000 };
    let tail = vec![
        argument("unit", unit.clone(), None),
        argument("lines", lines, Some("50")),
    ];
    vec![
        entry("log.tail", Risk::Read, tail),
        entry(
            "service.restart",
            Risk::Change,
            vec![argument("unit", unit, None)],
        ),
        entry("sys.reboot", Risk::Danger, Vec::new()),
        entry("sys.uptime", Risk::Read, Vec::new()),
    ]
}
