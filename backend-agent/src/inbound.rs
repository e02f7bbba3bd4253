//! Bytes from agents: accepted, bounded, recognised, and driven through their sessions.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use viworks_common::key::{BindingMode, MasterKey};
use viworks_runtime::clock::Timeline;
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::websocket::Socket;

use crate::agent::authorities::Trust;
use crate::agent::manager::Manager;
use crate::agent::pins::ServerPins;
use crate::agent::prober::Prober;
use crate::agent::registry::Registry;
use crate::command::bus::RunBus;
use crate::command::dispatch::Dispatcher;
use crate::config::AgentsConfig;
use crate::data::Store;
use crate::metrics::BackendMetrics;
use crate::pki::renew::Renewals;
use crate::telemetry::processor::TelemetryProcessor;

pub mod connection;
mod fix;
pub mod forwarded;
pub mod heartbeats;
pub mod held;
pub mod judge;
pub mod limits;
pub mod listener;
mod opening;
pub mod proxy;
pub mod replay;
mod skew;
pub mod upgrade;

/// What comes from an agent: TLS that ends here, or what a proxy has taken out of it.
type AgentStream = Either<TlsStream<TcpStream>, TcpStream>;

/// The socket of an agent.
type AgentSocket = Socket<held::Held<AgentStream>>;

/// What every session works with.
pub struct Inbound {
    /// The truth.
    pub store: Arc<dyn Store>,
    /// Who is known.
    pub registry: Registry,
    /// Who is connected.
    pub manager: Arc<Manager>,
    /// Whether other sessions' gateways are alive.
    pub prober: Arc<Prober>,
    /// Where commands come from.
    pub dispatcher: Arc<Dispatcher>,
    /// Where telemetry goes.
    pub telemetry: TelemetryProcessor,
    /// Where heartbeats go.
    pub heartbeats: heartbeats::Heartbeats,
    /// Who listens to commands.
    pub bus: Arc<RunBus>,
    /// Nonces seen outside an established session.
    pub replay: replay::ReplayCache,
    /// The key every agent key follows from.
    pub master: Arc<MasterKey>,
    /// The time.
    pub clock: Arc<Timeline>,
    /// Who judges what gateways say that they allow.
    pub judge: judge::Judge,
    /// Who issues them other certificates.
    pub renewals: Arc<Renewals>,
    /// What is counted.
    pub metrics: BackendMetrics,
    /// The terms.
    pub terms: Terms,
    /// The tasks.
    pub lifecycle: Lifecycle,
    /// The pins of the server's keys.
    pub pins: Arc<ServerPins>,
    /// The authorities that gateways are given.
    pub trust: Arc<Trust>,
}

/// The configured terms of sessions.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// What sessions are bound to.
    pub binding: BindingMode,
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
    /// Commands offered and not finished.
    pub command_credit: u32,
    /// Telemetry bytes in flight.
    pub telemetry_credit_bytes: u32,
    /// Live output bytes ahead of the last heartbeat.
    pub output_window_bytes: u64,
}

impl From<&AgentsConfig> for Terms {
    fn from(config: &AgentsConfig) -> Self {
        Self {
            binding: config.binding,
            tls_timeout: config.tls_timeout,
            upgrade_timeout: config.upgrade_timeout,
            hello_timeout: config.hello_timeout,
            heartbeat_interval: config.heartbeat_interval,
            silence: config.silence,
            command_credit: config.command_credit,
            telemetry_credit_bytes: config.telemetry_credit_bytes,
            output_window_bytes: config.output_window_bytes,
        }
    }
}
