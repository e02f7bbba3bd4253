//! The local API on a unix socket: status, health, catalogue, telemetry intake, and command runs.
//!
//! | Request | Answer |
//! | --- | --- |
//! | `GET /v1/status` | who this agent is, its connection, spool and executor |
//! | `GET /v1/health` | each part and what is wrong; 503 when one does not work |
//! | `GET /v1/catalogue` | what may be run |
//! | `POST /v1/telemetry` | takes records in; durable when answered, refusals listed one by one |
//! | `POST /v1/commands/{name}` | runs a command through the single executor; root and the agent's own user only |
//!
//! What a user hands in has a rate ([`IntakeQuota`]), but for root and the agent's own user; beyond, 429 says after how
//! many seconds the same request may come again. The answer is held back a little, so that asking without end is slow.
//!
//! Problems are RFC 9457 documents. At [`ServeLimits::connections_max`], or with as many connections of one user as
//! that one may have, a newcomer takes the place of the one that has been idle longest. A caller who stalls in a
//! request's head or does not read its answer is cut off, and one who stalls in its body is answered with 408.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use serde::Serialize;
use tokio::net::UnixStream;
use tokio::sync::watch;
use viworks_common::id::AgentRunId;
use viworks_common::limits;
use viworks_common::rate::Quota;
use viworks_common::telemetry::intake::IntakeQuota;
use viworks_common::time::Timestamp;
use viworks_runtime::blocking::Unanswered;
use viworks_runtime::clock::Clock;
use viworks_runtime::conditions::Conditions;
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::throttle::{LOG_LINES, Throttle, Throttles};

use crate::audit::Audit;
use crate::catalogue::Current;
use crate::executor::Executor;
use crate::journal::Journal;
use crate::outbound::pins::Pins;
use crate::renewal::RenewalStatus;
use crate::spool::Spool;
use crate::status::Status;

mod commands;
mod health;
mod intake;
mod problem;
mod serve;
mod socket;
mod status;
mod telemetry;

use intake::Intakes;

pub use serve::ServeLimits;
pub use socket::{Socket, bind, examine_socket};

/// Entries about one user who may run nothing.
const ONCE_A_MINUTE: Quota = Quota {
    per_minute: 1,
    burst: 1,
};

/// Users who are told apart.
const USERS_MAX: usize = 256;

/// Why there is no local API.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Somebody answers there.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// Something that is no socket stands there.
    #[error("{} is not a socket, and is left as it is", .0.display())]
    NotASocket(PathBuf),
    /// Its folder does not answer.
    #[error("cannot listen on {}", path.display())]
    Silent {
        /// Where.
        path: PathBuf,
        /// Why there is no answer.
        #[source]
        source: Unanswered,
    },
    /// The operating system refused.
    #[error("cannot listen on {}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: io::Error,
    },
}

/// Who this agent is.
#[derive(Debug, Clone, Serialize)]
pub struct AgentFacts {
    /// The identity, once there is one.
    pub agent_id: Option<String>,
    /// This process.
    pub agent_run_id: AgentRunId,
    /// The agent's version.
    pub version: &'static str,
    /// When this process started.
    pub started_at: Timestamp,
}

/// The certificate in force, and what becomes of it.
#[derive(Debug, Clone, Serialize)]
pub struct CertificateStatus {
    /// The first moment of its life.
    pub not_before: Timestamp,
    /// The last one.
    pub not_after: Timestamp,
    /// Where it comes from.
    pub origin: &'static str,
    /// When it is renewed, and what was in the way.
    pub renewal: RenewalStatus,
}

/// Says what the certificate in force is.
pub type Certificate = Arc<dyn Fn() -> CertificateStatus + Send + Sync>;

/// What the local API is made of.
#[derive(Clone)]
pub struct Parts {
    /// Who this agent is.
    pub facts: AgentFacts,
    /// The connection.
    pub status: Arc<Status>,
    /// Telemetry goes here.
    pub spool: Spool,
    /// How much of it one user may hand in, now and later.
    pub intake_quota: watch::Receiver<IntakeQuota>,
    /// Knows which commands are remembered, and whether the disk takes more.
    pub journal: Journal,
    /// The agent's own folder, whose disk is looked at.
    pub state_folder: PathBuf,
    /// The certificate in force.
    pub certificate: Certificate,
    /// Commands run here, and nowhere else.
    pub executor: Executor,
    /// What may be run.
    pub catalogue: Current,
    /// Which keys of the backend are trusted.
    pub pins: Arc<Pins>,
    /// Every command run is recorded here first.
    pub audit: Audit,
    /// What is wrong right now.
    pub conditions: Conditions,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Ends running commands when the process stops.
    pub lifecycle: Lifecycle,
}

/// Serves until the lifecycle stops; connections then finish the request they are in.
///
/// # Errors
/// When the listener fails.
pub async fn serve(socket: Socket, parts: Parts) -> io::Result<()> {
    serve_within(socket, parts, ServeLimits::default()).await
}

/// Like [`serve`], with other bounds.
///
/// # Errors
/// When the listener fails.
pub async fn serve_within(socket: Socket, parts: Parts, limits: ServeLimits) -> io::Result<()> {
    let intakes = Arc::new(Intakes::new(
        parts.intake_quota.clone(),
        Arc::clone(&parts.clock),
        parts.conditions.clone(),
    ));
    let shell = serve::Shell {
        intakes: Arc::clone(&intakes),
        lifecycle: parts.lifecycle.clone(),
        clock: Arc::clone(&parts.clock),
        conditions: parts.conditions.clone(),
    };
    serve::run(socket, router(parts, intakes), limits, shell).await
}

fn router(parts: Parts, intakes: Arc<Intakes>) -> Router {
    let state = State {
        parts,
        intakes,
        not_permitted: Arc::new(Throttles::new(ONCE_A_MINUTE, USERS_MAX)),
        unspooled: Arc::new(Throttle::new(LOG_LINES)),
    };
    Router::new()
        .route("/v1/status", get(status::status))
        .route("/v1/health", get(health::health))
        .route("/v1/catalogue", get(status::catalogue))
        .route("/v1/telemetry", post(telemetry::intake))
        .route("/v1/commands/{name}", post(commands::run))
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(DefaultBodyLimit::max(limits::REQUEST_BODY_BYTES_MAX))
        .with_state(state)
}

#[derive(Clone)]
struct State {
    parts: Parts,
    intakes: Arc<Intakes>,
    /// Entries in the audit log about users who may run nothing: they cost a disk write each, and take up the log.
    not_permitted: Arc<Throttles<Option<u32>>>,
    /// Lines in the log about telemetry that the spool refused.
    unspooled: Arc<Throttle>,
}

/// Who is at the other end of the socket, as the kernel says.
#[derive(Debug, Clone, Copy)]
struct Peer {
    uid: Option<u32>,
}

impl Peer {
    fn of(socket: &UnixStream) -> Self {
        let credentials = socket.peer_cred();
        Self {
            uid: credentials.ok().map(|credentials| credentials.uid()),
        }
    }

    /// Commands may be run by root and by the agent's own user, who could do all of it anyway.
    fn may_run_commands(self) -> bool {
        let own = rustix::process::geteuid().as_raw();
        self.uid.is_some_and(|uid| uid == 0 || uid == own)
    }

    fn actor(self) -> String {
        self.uid
            .map_or_else(|| "uid:unknown".to_owned(), |uid| format!("uid:{uid}"))
    }
}
