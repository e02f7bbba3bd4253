//! Wires the parts together, and owns the order in which they start and stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};
use viworks_common::id::{InstanceId, Tenant};
use viworks_common::ledger::lease::Backoff;
use viworks_common::limits::DRAIN_TIME;
use viworks_common::pin::PinSet;
use viworks_runtime::clock::{Clock, SystemClock, Timeline};
use viworks_runtime::conditions::Conditions;
use viworks_runtime::config::Source;
use viworks_runtime::files::{self, FolderLock};
use viworks_runtime::lifecycle::{Hangups, Lifecycle};
use viworks_runtime::metrics::Metrics;
use viworks_runtime::probe::Readiness;
use viworks_runtime::{descriptors, logging, random};

use crate::agent::authorities::{Side, Trust};
use crate::agent::doors::Doors;
use crate::agent::instance;
use crate::agent::manager::Manager;
use crate::agent::pins::{PinParts, ServerPins};
use crate::agent::postman::Postman;
use crate::agent::prober::Prober;
use crate::agent::reach::Reach;
use crate::agent::registry::Registry;
use crate::api::{self, ApiLimits, ApiParts, ApiState};
use crate::auth::quota::Quotas;
use crate::command::absent::Removal;
use crate::command::bus::{BusLimits, RunBus};
use crate::command::dispatch::{Dispatcher, Parts};
use crate::command::queue::calls::Calls;
use crate::command::queue::memory::MemoryQueue;
use crate::command::queue::redis::{self, RedisMetrics, RedisQueue};
use crate::command::queue::{CommandQueue, HintLimits};
use crate::command::{Commands, Parts as CommandParts};
use crate::config::{Config, QueueConfig};
use crate::data::{self, Hurry, MasterIds, OwnPins, Store, line};
use crate::database;
use crate::earlier;
use crate::enrolment::{Addresses, Door, Ends, Enrolment, TicketOffice};
use crate::inbound::heartbeats::Heartbeats;
use crate::inbound::judge::Judge;
use crate::inbound::limits::{AdmissionLimits, Gate};
use crate::inbound::listener::Listener;
use crate::inbound::proxy::Proxies;
use crate::inbound::replay::{ReplayCache, ReplayLimits};
use crate::inbound::{Inbound, Terms};
use crate::jobs::Jobs;
use crate::material::ServerMaterial;
use crate::metrics::BackendMetrics;
use crate::pki::renew::Renewals;
use crate::pki::{crl, site};
use crate::reload::{Reload, Tools};
use crate::start_error::StartError;
use crate::telemetry::processor::TelemetryProcessor;

/// How long a stop may take: draining, then a moment for the last commits.
pub const GRACE: Duration = DRAIN_TIME.saturating_add(Duration::from_secs(5));

/// HELLOs of one agent that are remembered at once.
const NONCES_PER_AGENT: usize = 64;
/// The same of all agents together, for each connection that there may be.
const NONCES_PER_CONNECTION: usize = 32;

/// What a refused submission is told to wait.
const QUEUE_RETRY_AFTER: Duration = Duration::from_secs(10);

/// A running backend.
pub struct App {
    /// Where operators connect.
    pub api: SocketAddr,
    /// Where agents connect.
    pub agents: SocketAddr,
    /// Where machines become gateways, if this backend has a door for them.
    pub enrolment: Option<SocketAddr>,
    store: Arc<dyn Store>,
    clock: Arc<Timeline>,
    /// Until somebody says with which signals; with what API keys may ask for.
    reload: Option<(Reload, Arc<Quotas>)>,
    _lock: FolderLock,
}

/// What several parts share.
struct Shared {
    store: Arc<dyn Store>,
    tenant: Tenant,
    clock: Arc<Timeline>,
    metrics: Metrics,
    counters: BackendMetrics,
    redis: Option<RedisMetrics>,
    manager: Arc<Manager>,
    prober: Arc<Prober>,
    pins: Arc<ServerPins>,
    trust: Arc<Trust>,
    bus: Arc<RunBus>,
    heartbeats: Heartbeats,
    readiness: Readiness,
    conditions: Conditions,
    /// Notified when other backends left something for this one.
    hurry: Arc<Notify>,
}

impl App {
    /// Starts everything; once this returns, both listeners take connections.
    ///
    /// # Errors
    ///
    /// When something it needs is missing. What had been started then stops with the lifecycle.
    pub async fn start(
        config: &Config,
        material: ServerMaterial,
        lifecycle: &Lifecycle,
    ) -> Result<Self, StartError> {
        Self::start_by(config, material, lifecycle, Arc::new(SystemClock)).await
    }

    /// Starts everything by a clock of the caller's: tests set it while the backend runs.
    ///
    /// # Errors
    ///
    /// As [`App::start`].
    pub async fn start_by(
        config: &Config,
        mut material: ServerMaterial,
        lifecycle: &Lifecycle,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        files::create_private_folder(&config.data.state_folder)?;
        let lock = files::lock_folder(&config.data.state_folder)?;
        let store = database::open_for_start(config).await?;
        let master = site::settle(&*store, material.master, &config.keys.master_key_file);
        material.master = master.await?;
        store.note_masters(MasterIds::of(&material.master)).await?;
        let (folder, own) = (&config.data.state_folder, *store.instance().borrow());
        let earlier = own.and_then(|_shared| earlier::predecessor(folder));
        earlier::note_instance(folder, own);
        let clock = Arc::new(line::begin(&*store, clock).await?);
        // Stored before anything is read from it: a process that dies at once is continued all the same.
        if let Err(error) = line::keep(&*store, &clock).await {
            warn!(%error, "failed to store the time line; a job tries again");
        }
        let needed = config.sockets_max();
        let config = &config.clone().within(descriptors::room());
        let shared = Shared::new(config, Arc::clone(&store), clock, &material);
        shared.pins.begin().await?;
        shared.reach().note().await?;
        let keys = match config.enrolment.listen {
            Some(_door) => "connections_max of [agents], of [api] and of [enrolment]",
            None => "connections_max of [agents] and of [api]",
        };
        let fewer = config.fewer();
        descriptors::hold(&shared.conditions, needed, keys, &fewer);
        let now = shared.clock.line();
        let abandoned = store.end_abandoned_sessions(&shared.tenant, earlier, now);
        let abandoned = abandoned.await?;
        let database = match config.store.address()? {
            Some(address) => format!("PostgreSQL, {address}"),
            None => format!("SQLite, {}", config.data.sqlite_file.display()),
        };
        info!(database, abandoned, "the database is ready");

        // Bound before anything runs, so that a taken port is found out first.
        let agents = listen(config.agents.listen).await?;
        let api = listen(config.api.listen).await?;
        let door = match config.enrolment.listen {
            Some(door) => Some(listen(door).await?),
            None => None,
        };
        let api_address = address(&api, config.api.listen);
        let addresses = Addresses {
            door: door.as_ref().and_then(|door| door.local_addr().ok()),
            agents: address(&agents, config.agents.listen),
        };
        let master = Arc::new(material.master.clone());
        let pins = Arc::clone(&shared.pins);
        let conditions = shared.conditions.clone();
        let shared_config = Arc::new(config.clone());

        let stored_at_the_end = Arc::clone(&shared.clock);
        let dispatcher = shared.start_dispatcher(config, lifecycle).await?;
        let (reload, side) = shared.start_agents(config, material, lifecycle, agents, &dispatcher);
        let (shown, listed_by) = (side.clone(), side.clone());
        let tickets = TicketOffice::new(shared_config, addresses, master, pins, shown, conditions);
        if let Some(door) = door {
            shared.start_door(config, lifecycle, door, side, tickets.clone());
        }
        shared.start_jobs(config, lifecycle, &dispatcher, listed_by);
        let quotas = shared.start_api(config, lifecycle, api, dispatcher, tickets);
        shared.start_drain(lifecycle);
        shared.keep_instance(config, lifecycle);
        let watch = logging::watch(
            shared.conditions.clone(),
            Arc::clone(&shared.clock) as Arc<dyn Clock>,
            lifecycle.clone(),
        );
        drop(lifecycle.spawn("log", watch));
        Ok(Self {
            agents: addresses.agents,
            enrolment: addresses.door,
            api: api_address,
            store,
            clock: stored_at_the_end,
            reload: Some((reload, quotas)),
            _lock: lock,
        })
    }

    /// Takes renewed certificates over at each of these signals, tells what else changed at `source`, and when a
    /// certificate ends.
    pub fn reload_on(&mut self, source: Source, hangups: Hangups, lifecycle: &Lifecycle) {
        if let Some((reload, quotas)) = self.reload.take() {
            let task = reload.run(source, hangups, quotas, lifecycle.clone());
            drop(lifecycle.spawn_critical("reload", task));
        }
    }

    /// Closes the store. Call it when the lifecycle has shut down.
    pub async fn close(self) {
        // The next process may follow after a boot: the less it does not know of, the better.
        if let Err(error) = line::keep(&*self.store, &self.clock).await {
            warn!(%error, "failed to store the time line at the end; the next process takes it up from a moment before");
        }
        self.store.close().await;
    }
}

impl Shared {
    fn new(
        config: &Config,
        store: Arc<dyn Store>,
        clock: Arc<Timeline>,
        material: &ServerMaterial,
    ) -> Self {
        let metrics = Metrics::new(
            "viworks-backend-agent",
            env!("CARGO_PKG_VERSION"),
            clock.wall(),
        );
        let conditions = Conditions::new(Arc::<Timeline>::clone(&clock));
        metrics.register(|registry| registry.register_collector(conditions.collector()));
        logging::register(&metrics);
        let counters = BackendMetrics::register(&metrics);
        let redis = matches!(config.queue.address(), Ok(Some(_)));
        let generation = u64::from_ne_bytes(random::bytes());
        let doors = Doors::new(config.agents.connections_max);
        let manager = Arc::new(Manager::new(doors, counters.clone()));
        manager.go_on_as(*store.instance().borrow());
        let prober = Prober::new(Arc::clone(&store), Arc::clone(&manager), Arc::clone(&clock));
        let pins = ServerPins::new(PinParts {
            store: Arc::clone(&store),
            tenant: Tenant::default_tenant(),
            clock: Arc::clone(&clock),
            metrics: counters.clone(),
            conditions: conditions.clone(),
            own: OwnPins {
                configured: PinSet {
                    version: config.agents.pin_set_version,
                    pins: material.pins.clone(),
                },
                live: material.pin,
            },
        });
        Self {
            store,
            tenant: Tenant::default_tenant(),
            prober: Arc::new(prober),
            pins: Arc::new(pins),
            trust: Arc::new(Trust::new(Arc::clone(&material.authorities))),
            manager,
            bus: Arc::new(RunBus::new(BusLimits::default(), generation)),
            heartbeats: Heartbeats::default(),
            readiness: Readiness::new(),
            conditions,
            hurry: Arc::default(),
            clock,
            redis: redis.then(|| RedisMetrics::register(&metrics)),
            metrics,
            counters,
        }
    }

    fn reach(&self) -> Reach {
        Reach {
            store: Arc::clone(&self.store),
            tenant: self.tenant.clone(),
            clock: Arc::clone(&self.clock),
            metrics: self.counters.clone(),
            conditions: self.conditions.clone(),
            trust: Arc::clone(&self.trust),
        }
    }

    async fn start_dispatcher(
        &self,
        config: &Config,
        lifecycle: &Lifecycle,
    ) -> Result<Arc<Dispatcher>, StartError> {
        let calls = Arc::<Calls>::default();
        let queue = self.open_queue(config, &calls, lifecycle).await?;
        let parts = Parts {
            store: Arc::clone(&self.store),
            queue,
            manager: Arc::clone(&self.manager),
            clock: Arc::clone(&self.clock),
            metrics: self.counters.clone(),
            tenant: self.tenant.clone(),
            attempts_max: config.queue.attempts_max,
            backoff: Backoff {
                first: config.queue.backoff,
                longest: config.queue.backoff_max,
            },
            calls,
        };
        Ok(Dispatcher::start(parts, lifecycle))
    }

    /// Opens the queue that the configuration names. A server that is away is no reason not to start.
    async fn open_queue(
        &self,
        config: &Config,
        calls: &Arc<Calls>,
        lifecycle: &Lifecycle,
    ) -> Result<Arc<dyn CommandQueue>, StartError> {
        let limits = hint_limits(&config.queue);
        let (Some(address), Some(metrics)) = (config.queue.address()?, &self.redis) else {
            return Ok(Arc::new(MemoryQueue::new(limits)));
        };
        let named = address.to_string();
        let parts = redis::Parts {
            address,
            own: InstanceId::from_uuid(random::uuid_v4()),
            limits,
            clock: Arc::clone(&self.clock),
            conditions: self.conditions.clone(),
            metrics: metrics.clone(),
            calls: Arc::clone(calls),
            known_as: self.store.instance(),
            inbox: Arc::clone(&self.hurry),
            bus: Arc::clone(&self.bus),
        };
        let queue = RedisQueue::start(parts, lifecycle).await;
        let queue = queue.map_err(|source| StartError::Queue {
            address: named,
            source,
        })?;
        let queue = Arc::new(queue);
        self.store
            .hurry_by(Arc::<RedisQueue>::clone(&queue) as Arc<dyn Hurry>);
        Ok(queue)
    }

    fn start_agents(
        &self,
        config: &Config,
        material: ServerMaterial,
        lifecycle: &Lifecycle,
        listener: TcpListener,
        dispatcher: &Arc<Dispatcher>,
    ) -> (Reload, watch::Receiver<Arc<Side>>) {
        let agents = &config.agents;
        let handshake = agents.tls_timeout + agents.upgrade_timeout + agents.hello_timeout;
        let master = Arc::new(material.master.clone());
        let tools = Tools {
            store: Arc::clone(&self.store),
            tenant: self.tenant.clone(),
            manager: Arc::clone(&self.manager),
            pins: Arc::clone(&self.pins),
            trust: Arc::clone(&self.trust),
            metrics: self.counters.clone(),
            conditions: self.conditions.clone(),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
        };
        let (reload, server) = Reload::new(config.clone(), material, tools);
        let inbound = Inbound {
            store: Arc::clone(&self.store),
            registry: Registry::new(Arc::clone(&self.store), agents.trust_domain.clone()),
            manager: Arc::clone(&self.manager),
            prober: Arc::clone(&self.prober),
            dispatcher: Arc::clone(dispatcher),
            telemetry: TelemetryProcessor::start(
                Arc::clone(&self.store),
                self.tenant.clone(),
                Arc::clone(&self.clock),
                self.counters.clone(),
                self.conditions.clone(),
                config.telemetry,
                lifecycle,
            ),
            heartbeats: self.heartbeats.clone(),
            bus: Arc::clone(&self.bus),
            replay: ReplayCache::new(ReplayLimits {
                ttl: handshake.saturating_mul(2),
                total: agents.connections_max.saturating_mul(NONCES_PER_CONNECTION),
                per_agent: NONCES_PER_AGENT,
            }),
            master,
            clock: Arc::clone(&self.clock),
            judge: Judge::new(),
            renewals: Arc::new(Renewals::new(
                Arc::new(config.clone()),
                server.clone(),
                Arc::clone(&self.store),
                Arc::clone(&self.clock),
                self.counters.clone(),
                self.conditions.clone(),
            )),
            metrics: self.counters.clone(),
            terms: Terms::from(agents),
            lifecycle: lifecycle.clone(),
            pins: Arc::clone(&self.pins),
            trust: Arc::clone(&self.trust),
        };
        let gate = Gate::new(AdmissionLimits {
            connections: agents.connections_max,
            per_source: agents.per_source_max,
            openings: agents.openings_max,
        });
        let proxies = Proxies::from(agents);
        let side = server.clone();
        let listener = Listener::new(listener, server, gate, proxies, Arc::new(inbound));
        drop(lifecycle.spawn_critical("agents' listener", listener.run()));
        (reload, side)
    }

    fn start_door(
        &self,
        config: &Config,
        lifecycle: &Lifecycle,
        listener: TcpListener,
        side: watch::Receiver<Arc<Side>>,
        tickets: TicketOffice,
    ) {
        let enrolment = Enrolment::new(
            Arc::clone(&self.store),
            self.tenant.clone(),
            Arc::clone(&self.clock),
            tickets,
            Arc::clone(&self.trust),
            config.enrolment.requests_per_minute,
            Ends {
                manager: Arc::clone(&self.manager),
                bus: Arc::clone(&self.bus),
                metrics: self.counters.clone(),
            },
        );
        let door = Door::new(
            listener,
            side,
            enrolment,
            &config.enrolment,
            self.counters.clone(),
            lifecycle.clone(),
        );
        drop(lifecycle.spawn_critical("door for new gateways", door.run()));
    }

    fn start_jobs(
        &self,
        config: &Config,
        lifecycle: &Lifecycle,
        dispatcher: &Arc<Dispatcher>,
        side: watch::Receiver<Arc<Side>>,
    ) {
        let jobs = Jobs {
            store: Arc::clone(&self.store),
            tenant: self.tenant.clone(),
            manager: Arc::clone(&self.manager),
            dispatcher: Arc::clone(dispatcher),
            heartbeats: self.heartbeats.clone(),
            bus: Arc::clone(&self.bus),
            clock: Arc::clone(&self.clock),
            metrics: self.counters.clone(),
            store_latch: self.readiness.latch("store"),
            conditions: self.conditions.clone(),
            config: config.jobs,
            strays: Default::default(),
            given_up: Default::default(),
            removal: Removal::new(
                Arc::clone(&self.store),
                self.tenant.clone(),
                Arc::clone(&self.clock),
                Arc::clone(&self.bus),
                self.counters.clone(),
            ),
            looks: Default::default(),
        };
        jobs.start(lifecycle);
        let pins = Arc::clone(&self.pins).run(lifecycle.clone());
        drop(lifecycle.spawn_critical("pins", pins));
        let reach = self.reach().run(lifecycle.clone());
        drop(lifecycle.spawn_critical("authorities", reach));
        if config.keys.crl_file.is_some() {
            let keeper = crl::Keeper {
                config: Arc::new(config.clone()),
                side,
                store: Arc::clone(&self.store),
                tenant: self.tenant.clone(),
                clock: Arc::clone(&self.clock),
                conditions: self.conditions.clone(),
            };
            let task = keeper.run(lifecycle.clone());
            drop(lifecycle.spawn("revocation list", task));
        }
    }

    fn start_api(
        &self,
        config: &Config,
        lifecycle: &Lifecycle,
        listener: TcpListener,
        dispatcher: Arc<Dispatcher>,
        tickets: TicketOffice,
    ) -> Arc<Quotas> {
        let readiness = self.readiness.clone();
        // Its migrations ran; from here on a job looks after it.
        readiness.latch("store").set(true, "open");
        readiness.latch("agents").set(true, "listening");
        // What is wrong with it is a condition: nobody is turned away for that.
        if let Ok(Some(address)) = config.queue.address() {
            let queue = readiness.latch("queue");
            queue.set(true, format!("Redis at {address}"));
        }
        let limits = ApiLimits {
            connections_max: config.api.connections_max,
            per_source_max: config.api.per_source_max,
            per_key_max: config.api.per_key_max,
            send_timeout: config.api.send_timeout,
            bodies_bytes_max: config.api.bodies_bytes_max,
            answers_bytes_max: config.api.answers_bytes_max,
            streams_max: config.api.streams_max,
            streams_per_key_max: config.api.streams_per_key_max,
            waits_per_key_max: config.api.waits_per_key_max,
            header_timeout: config.api.header_timeout,
            request_timeout: config.api.request_timeout,
            quota: config.api.quota,
            ..ApiLimits::default()
        };
        let bounds = data::QueueLimits {
            per_gateway: u64::try_from(config.queue.per_gateway).unwrap_or(u64::MAX),
            global: u64::try_from(config.queue.total).unwrap_or(u64::MAX),
            retry_after: QUEUE_RETRY_AFTER,
        };
        let commands = Commands::new(CommandParts {
            store: Arc::clone(&self.store),
            tenant: self.tenant.clone(),
            clock: Arc::clone(&self.clock),
            bus: Arc::clone(&self.bus),
            nudge: dispatcher,
            metrics: self.counters.clone(),
            limits: bounds,
            lifecycle: lifecycle.clone(),
        });
        let state = ApiState::new(ApiParts {
            store: Arc::clone(&self.store),
            tenant: self.tenant.clone(),
            clock: Arc::clone(&self.clock),
            commands,
            readiness: readiness.clone(),
            conditions: self.conditions.clone(),
            metrics: self.metrics.clone(),
            counters: self.counters.clone(),
            redis: self.redis.clone(),
            tickets,
            pins: Arc::clone(&self.pins),
            trust: Arc::clone(&self.trust),
            state_folder: config.data.state_folder.clone(),
            limits,
            trusted_proxies: config.api.trusted_proxies.clone(),
            stopping: lifecycle.stop_token(),
        });
        let quotas = state.quotas();
        drop(lifecycle.spawn("crowds", Arc::clone(&state).watch_crowds()));
        let served = api::serve(listener, state, limits, lifecycle.clone());
        drop(lifecycle.spawn_critical("operators' listener", served));
        let (latch, stopping) = (readiness.latch("agents"), lifecycle.stop_token());
        drop(lifecycle.spawn("readiness", async move {
            stopping.cancelled().await;
            latch.set(false, "draining");
        }));
        quotas
    }

    /// This process is one of several backends, and may become another one.
    fn keep_instance(&self, config: &Config, lifecycle: &Lifecycle) {
        let (store, manager) = (Arc::clone(&self.store), Arc::clone(&self.manager));
        let state_folder = config.data.state_folder.clone();
        let kept = instance::keep(
            store,
            manager,
            self.counters.clone(),
            state_folder,
            lifecycle.clone(),
        );
        drop(lifecycle.spawn_critical("instance", kept));
        let postman = Postman {
            store: Arc::clone(&self.store),
            tenant: self.tenant.clone(),
            manager: Arc::clone(&self.manager),
            prober: Arc::clone(&self.prober),
            clock: Arc::clone(&self.clock),
            hurry: Arc::clone(&self.hurry),
        };
        drop(lifecycle.spawn_critical("postman", postman.run(lifecycle.clone())));
    }

    /// On stop every gateway is told to come back, each at its own time.
    fn start_drain(&self, lifecycle: &Lifecycle) {
        let (manager, stopping) = (Arc::clone(&self.manager), lifecycle.stop_token());
        drop(lifecycle.spawn("drain", async move {
            stopping.cancelled().await;
            manager.drain_all();
        }));
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Listen { address, source })
}

/// Where it really listens: port 0 has become another one.
fn address(listener: &TcpListener, wanted: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(wanted)
}

const fn hint_limits(config: &QueueConfig) -> HintLimits {
    HintLimits {
        per_agent: config.per_gateway,
        total: config.total,
        lease: config.lease,
    }
}
