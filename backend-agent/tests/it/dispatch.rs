//! Sessions that are here are woken, whatever becomes of the queue that is shared with others.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;
use viworks_backend_agent::agent::doors::Doors;
use viworks_backend_agent::agent::manager::Manager;
use viworks_backend_agent::command::CommandNudge as _;
use viworks_backend_agent::command::dispatch::{Dispatcher, Parts};
use viworks_backend_agent::command::queue::{CommandQueue, QueueError, QueueKey, Told};
use viworks_backend_agent::data::sqlite::SqliteStore;
use viworks_backend_agent::metrics::BackendMetrics;
use viworks_common::id::{AgentId, CommandId, Tenant};
use viworks_common::ledger::lease::Backoff;
use viworks_common::time::Monotonic;
use viworks_runtime::clock::{SystemClock, Timeline};
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::metrics::Metrics;
use viworks_runtime::sqlite::Options;

/// A shared queue whose server takes everything and answers nothing.
struct Hung;

#[async_trait]
impl CommandQueue for Hung {
    async fn offer(&self, _key: &QueueKey, _commands: &[CommandId]) -> Result<Told, QueueError> {
        std::future::pending().await
    }

    async fn take(
        &self,
        _key: &QueueKey,
        _limit: usize,
        _now: Monotonic,
    ) -> Result<Vec<CommandId>, QueueError> {
        std::future::pending().await
    }

    async fn done(&self, _key: &QueueKey, _commands: &[CommandId]) -> Result<(), QueueError> {
        std::future::pending().await
    }

    async fn sweep(&self, _now: Monotonic) -> Result<Vec<QueueKey>, QueueError> {
        std::future::pending().await
    }

    async fn attach(&self, _key: &QueueKey, _epoch: u64) -> Result<bool, QueueError> {
        std::future::pending().await
    }

    fn attached_for(&self) -> Option<Duration> {
        Some(Duration::from_secs(45))
    }
}

#[tokio::test]
async fn no_session_here_waits_for_a_shared_queue_that_hangs() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::new(folder.path().join("backend.sqlite"));
    let store = Arc::new(SqliteStore::open(options).await.unwrap());
    let clock = Arc::new(Timeline::unstored(Arc::new(SystemClock)));
    let metrics = BackendMetrics::register(&Metrics::new("test", "0", clock.wall()));
    let manager = Arc::new(Manager::new(Doors::new(10), metrics.clone()));
    let lifecycle = Lifecycle::new();
    let parts = Parts {
        store,
        queue: Arc::new(Hung),
        manager: Arc::clone(&manager),
        clock,
        metrics,
        tenant: Tenant::default_tenant(),
        attempts_max: 5,
        backoff: Backoff {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(60),
        },
        calls: Arc::default(),
    };
    let dispatcher = Dispatcher::start(parts, &lifecycle);
    let agent_id = AgentId::from_uuid(Uuid::from_u128(1));
    // More than are told at once, and more than wait to be told. Nobody is connected, so each nudge is a missed one.
    for number in 1..=70_000_u64 {
        let command = CommandId::from_uuid(Uuid::from_u128(u128::from(number)));
        let before = manager.missed_nudges();
        dispatcher.offer(&agent_id, command);
        assert!(manager.missed_nudges() > before, "number {number}");
        if number.is_multiple_of(100) {
            // Whoever tells others takes what waits, and hangs.
            tokio::task::yield_now().await;
        }
    }
    lifecycle.stop();
}
