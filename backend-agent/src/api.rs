//! The operators' REST API v1: one table of routes, problems for everything that goes wrong, bounds on everything.

mod budget;
mod client;
mod crowd;
mod events;
mod extract;
mod handlers;
mod health;
pub mod limits;
mod looks;
mod narration;
pub mod openapi;
mod pace;
mod problem;
mod request;
mod router;
mod serve;
mod turns;

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Bytes;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use tokio_util::sync::CancellationToken;
use viworks_common::id::{ApiKeyId, Tenant};
use viworks_common::network::IpNetwork;
use viworks_common::rate::Quota;
use viworks_common::time::Monotonic;
use viworks_runtime::clock::Timeline;
use viworks_runtime::conditions::Conditions;
use viworks_runtime::metrics::Metrics;
use viworks_runtime::probe::Readiness;
use viworks_runtime::shares::Shares;
use viworks_runtime::throttle::Throttle;

use crate::agent::authorities::Trust;
use crate::agent::pins::ServerPins;
use crate::auth::principals::Principals;
use crate::auth::quota::Quotas;
use crate::command::Commands;
use crate::command::queue::redis::RedisMetrics;
use crate::data::Store;
use crate::enrolment::TicketOffice;
use crate::metrics::BackendMetrics;

use budget::Budget;
use crowd::Crowd;
use narration::Narration;
use turns::{READS_AT_ONCE, Turns};

pub use limits::ApiLimits;
pub use router::{Access, Endpoint, endpoints};
pub use serve::serve;

/// How often refused requests leave an audit record.
const REFUSAL_RECORDS: Quota = Quota {
    per_minute: 60,
    burst: 1,
};

/// Event streams, and waits, that a key may have even when others have all that there are.
const KEY_FLOOR: usize = 4;

/// What the API stands on.
pub struct ApiParts {
    /// The system of record.
    pub store: Arc<dyn Store>,
    /// Whose rows it shows.
    pub tenant: Tenant,
    /// Both kinds of time.
    pub clock: Arc<Timeline>,
    /// Submitting, cancelling, watching.
    pub commands: Commands,
    /// What the probes answer from.
    pub readiness: Readiness,
    /// What is wrong right now.
    pub conditions: Conditions,
    /// What `/metrics` shows.
    pub metrics: Metrics,
    /// What the backend counts.
    pub counters: BackendMetrics,
    /// What it counts of Redis, where the queue is there.
    pub redis: Option<RedisMetrics>,
    /// Writes tickets for new gateways.
    pub tickets: TicketOffice,
    /// The pins of the server's keys.
    pub pins: Arc<ServerPins>,
    /// The authorities that gateways are given.
    pub trust: Arc<Trust>,
    /// The backend's own folder, whose disk is looked at.
    pub state_folder: PathBuf,
    /// The bounds.
    pub limits: ApiLimits,
    /// Proxies that are believed about where a request came from.
    pub trusted_proxies: Vec<IpNetwork>,
    /// Ends streams and waits when the backend stops.
    pub stopping: CancellationToken,
}

/// The state behind every handler.
pub struct ApiState {
    store: Arc<dyn Store>,
    tenant: Tenant,
    clock: Arc<Timeline>,
    commands: Commands,
    readiness: Readiness,
    conditions: Conditions,
    metrics: Metrics,
    counters: BackendMetrics,
    redis: Option<RedisMetrics>,
    tickets: TicketOffice,
    pins: Arc<ServerPins>,
    trust: Arc<Trust>,
    state_folder: PathBuf,
    limits: ApiLimits,
    trusted_proxies: Vec<IpNetwork>,
    stopping: CancellationToken,
    started: Monotonic,
    refusals: Throttle,
    principals: Principals,
    quotas: Arc<Quotas>,
    limited: Counter,
    streams: Shares<ApiKeyId>,
    waits: Shares<ApiKeyId>,
    turns: Turns,
    narration: Narration,
    requests: Family<[(&'static str, String); 3], Counter>,
    /// One copy, however many ask for it.
    openapi: Bytes,
    budget: Budget,
    crowd: Crowd,
}

type Shared = Arc<ApiState>;

impl ApiState {
    /// Wires it and registers its metrics.
    #[must_use]
    pub fn new(parts: ApiParts) -> Arc<Self> {
        let (requests, limited) = (Family::default(), Counter::default());
        parts.metrics.register(|registry| {
            registry.register(
                "viworks_api_rate_limited",
                "API requests refused because their key had none left",
                limited.clone(),
            );
            registry.register(
                "viworks_api_requests",
                "Answered API requests by method, route and status",
                requests.clone(),
            );
        });
        let crowd = Crowd::new(
            Arc::<Timeline>::clone(&parts.clock),
            parts.conditions.clone(),
        );
        Arc::new(Self {
            started: parts.clock.now(),
            refusals: Throttle::new(REFUSAL_RECORDS),
            principals: Principals::default(),
            quotas: Arc::new(Quotas::new(parts.limits.quota)),
            limited,
            streams: Shares::new(
                ("key", "event streams"),
                parts.limits.streams_max,
                parts.limits.streams_per_key_max,
                KEY_FLOOR,
            ),
            // Altogether there are no more than connections.
            waits: Shares::new(
                ("key", "waits"),
                parts.limits.connections_max,
                parts.limits.waits_per_key_max,
                KEY_FLOOR,
            ),
            turns: Turns::new(READS_AT_ONCE),
            narration: Narration::new(),
            requests,
            openapi: Bytes::from(openapi::document()),
            budget: Budget::new(&parts.limits, &parts.metrics, crowd.clone()),
            crowd,
            store: parts.store,
            tenant: parts.tenant,
            clock: parts.clock,
            commands: parts.commands,
            readiness: parts.readiness,
            conditions: parts.conditions,
            metrics: parts.metrics,
            counters: parts.counters,
            redis: parts.redis,
            tickets: parts.tickets,
            pins: parts.pins,
            trust: parts.trust,
            state_folder: parts.state_folder,
            limits: parts.limits,
            trusted_proxies: parts.trusted_proxies,
            stopping: parts.stopping,
        })
    }

    /// What each key may ask for, to be changed.
    #[must_use]
    pub fn quotas(&self) -> Arc<Quotas> {
        Arc::clone(&self.quotas)
    }

    /// Takes back what health says of crowds that are gone, until the backend stops.
    pub async fn watch_crowds(self: Arc<Self>) {
        self.crowd.watch(&self.stopping).await;
    }
}

/// The operators' API as a service.
pub struct ApiServer;

impl ApiServer {
    /// Every route with its guards.
    pub fn router(state: Arc<ApiState>) -> axum::Router {
        router::build(state)
    }
}
