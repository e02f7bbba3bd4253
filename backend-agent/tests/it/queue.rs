//! The contract of the command queue, for every implementation.

mod faults;
mod instances;
mod rights;
mod runs;
mod topologies;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use uuid::Uuid;
use viworks_backend_agent::command::bus::{BusLimits, RunBus};
use viworks_backend_agent::command::queue::calls::Calls;
use viworks_backend_agent::command::queue::memory::MemoryQueue;
use viworks_backend_agent::command::queue::redis::{Error, Parts, RedisMetrics, RedisQueue};
use viworks_backend_agent::command::queue::{
    CommandQueue, HintLimits, QueueError, QueueKey, Scope,
};
use viworks_backend_agent::config::queue::QueueAddress;
use viworks_common::id::{AgentId, CommandId, InstanceId, Tenant};
use viworks_common::time::Monotonic;
use viworks_runtime::clock::{SystemClock, Timeline};
use viworks_runtime::conditions::Conditions;
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::random;
use viworks_testkit::redis::{Kind, server};

/// A hang is a failure that says where.
const PATIENCE: Duration = Duration::from_secs(30);

const LIMITS: HintLimits = HintLimits {
    per_agent: 3,
    total: 4,
    lease: Duration::from_secs(30),
};

/// A queue, and the keys of one test in it.
struct Bed {
    queue: Arc<dyn CommandQueue>,
    tenant: Tenant,
    /// Ends what it started when it is dropped.
    _instance: Option<Instance>,
}

impl Bed {
    fn memory() -> Self {
        Self {
            queue: Arc::new(MemoryQueue::new(LIMITS)),
            tenant: Tenant::default_tenant(),
            _instance: None,
        }
    }

    /// A queue on the server that all tests share; `None` where it is not installed.
    async fn on(kind: Kind) -> Option<Self> {
        let instance = Instance::at(&server(kind)?.url()).await.unwrap();
        Some(Self {
            queue: Arc::clone(&instance.queue) as Arc<dyn CommandQueue>,
            tenant: tenant(),
            _instance: Some(instance),
        })
    }

    fn key(&self, n: u128) -> QueueKey {
        key_of(&self.tenant, n)
    }

    async fn offer<const N: usize>(&self, n: u128, hints: [u128; N]) -> Result<(), QueueError> {
        let hints = commands(hints);
        self.queue.offer(&self.key(n), &hints).await.map(drop)
    }

    async fn taken(&self, n: u128, limit: usize, now: u64) -> Vec<CommandId> {
        self.queue.take(&self.key(n), limit, at(now)).await.unwrap()
    }

    async fn done<const N: usize>(&self, n: u128, hints: [u128; N]) {
        let hints = commands(hints);
        self.queue.done(&self.key(n), &hints).await.unwrap();
    }
}

/// A tenant that no other test has.
fn tenant() -> Tenant {
    format!("t{}", &random::uuid_v4().simple().to_string()[..12])
        .parse()
        .unwrap()
}

fn key_of(tenant: &Tenant, n: u128) -> QueueKey {
    QueueKey {
        tenant: tenant.clone(),
        agent_id: AgentId::from_uuid(Uuid::from_u128(n)),
    }
}

fn commands<const N: usize>(numbers: [u128; N]) -> [CommandId; N] {
    numbers.map(|n| CommandId::from_uuid(Uuid::from_u128(n)))
}

fn at(seconds: u64) -> Monotonic {
    Monotonic::from_duration(Duration::from_secs(seconds))
}

/// One instance's end of a queue in Redis.
struct Instance {
    id: InstanceId,
    queue: Arc<RedisQueue>,
    calls: Arc<Calls>,
    bus: Arc<RunBus>,
    known_as: watch::Sender<Option<InstanceId>>,
    inbox: Arc<Notify>,
    conditions: Conditions,
    metrics: viworks_runtime::metrics::Metrics,
    lifecycle: Lifecycle,
}

impl Instance {
    async fn at(url: &str) -> Result<Self, Error> {
        Self::with(QueueAddress::parse(url, None, None).unwrap(), LIMITS).await
    }

    async fn with(address: QueueAddress, limits: HintLimits) -> Result<Self, Error> {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let clock = Arc::new(Timeline::unstored(Arc::new(SystemClock)));
        let conditions = Conditions::new(Arc::<Timeline>::clone(&clock));
        let metrics = viworks_runtime::metrics::Metrics::new("test", "0", clock.wall());
        let (calls, lifecycle) = (Arc::<Calls>::default(), Lifecycle::new());
        let (known_as, inbox) = (watch::Sender::new(None), Arc::<Notify>::default());
        let bus = Arc::new(RunBus::new(BusLimits::default(), 1));
        let id = InstanceId::from_uuid(random::uuid_v4());
        let parts = Parts {
            address,
            own: id,
            limits,
            clock,
            conditions: conditions.clone(),
            metrics: RedisMetrics::register(&metrics),
            calls: Arc::clone(&calls),
            bus: Arc::clone(&bus),
            known_as: known_as.subscribe(),
            inbox: Arc::clone(&inbox),
        };
        let queue = Arc::new(RedisQueue::start(parts, &lifecycle).await?);
        Ok(Self {
            id,
            queue,
            calls,
            bus,
            known_as,
            inbox,
            conditions,
            metrics,
            lifecycle,
        })
    }

    /// Waits until something is called.
    async fn called(&self) -> viworks_backend_agent::command::queue::calls::Called {
        let called = tokio::time::timeout(PATIENCE, self.calls.next()).await;
        called.expect("something is called")
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.lifecycle.stop();
    }
}

async fn hints_are_handed_out_in_order_once(bed: Bed) {
    bed.offer(1, [1, 2]).await.unwrap();
    bed.offer(1, [3]).await.unwrap();
    assert_eq!(bed.taken(1, 1, 0).await, commands([1]));
    assert_eq!(bed.taken(1, 10, 0).await, commands([2, 3]));
    assert_eq!(bed.taken(1, 10, 0).await, []);
    assert_eq!(bed.taken(2, 10, 0).await, []);
}

async fn what_is_offered_twice_is_dealt_with_once(bed: Bed) {
    bed.offer(1, [1]).await.unwrap();
    bed.offer(1, [1, 2]).await.unwrap();
    assert_eq!(bed.taken(1, 10, 0).await, commands([1, 2]));
    bed.done(1, [1, 2]).await;
    assert_eq!(bed.queue.sweep(at(1_000)).await, Ok(vec![]));
    assert_eq!(bed.taken(1, 10, 1_000).await, []);
    bed.offer(1, [1, 2, 3]).await.unwrap();
}

async fn what_is_not_done_in_time_comes_back_and_names_its_gateway(bed: Bed) {
    bed.offer(1, [1, 2]).await.unwrap();
    bed.offer(2, [3]).await.unwrap();
    assert_eq!(bed.taken(1, 10, 0).await, commands([1, 2]));
    bed.done(1, [2, 9]).await;
    assert_eq!(bed.queue.sweep(at(29)).await, Ok(vec![]));
    assert_eq!(bed.queue.sweep(at(30)).await, Ok(vec![bed.key(1)]));
    assert_eq!(bed.taken(1, 10, 30).await, commands([1]));
    bed.done(1, [1]).await;
    assert_eq!(bed.queue.sweep(at(1_000)).await, Ok(vec![]));
    bed.done(7, [1]).await;
}

async fn a_full_queue_refuses_and_forgets_nothing(bed: Bed) {
    bed.offer(1, [1, 2]).await.unwrap();
    let full = Err(QueueError::Full {
        scope: Scope::Agent,
        limit: 3,
    });
    assert_eq!(bed.offer(1, [3, 4]).await, full, "all or none");
    bed.offer(1, [3]).await.unwrap();
    bed.offer(2, [5]).await.unwrap();
    assert_eq!(bed.taken(1, 10, 0).await, commands([1, 2, 3]));
    assert_eq!(bed.offer(1, [6]).await, full, "taken is not done");
    bed.done(1, [1, 2]).await;
    bed.offer(1, [6, 7]).await.unwrap();
}

macro_rules! conformance {
    ($module:ident, $make:expr) => {
        mod $module {
            use super::*;
            conformance!(@each $make, hints_are_handed_out_in_order_once, what_is_offered_twice_is_dealt_with_once,
                what_is_not_done_in_time_comes_back_and_names_its_gateway, a_full_queue_refuses_and_forgets_nothing);
        }
    };
    (@each $make:expr, $($test:ident),*) => {
        $(#[tokio::test] async fn $test() {
            let Some(bed) = $make else { return };
            super::$test(bed).await;
        })*
    };
}

conformance!(memory, Some(Bed::memory()));
conformance!(redis, Bed::on(Kind::Redis).await);
conformance!(valkey, Bed::on(Kind::Valkey).await);

#[tokio::test]
async fn the_queue_in_memory_has_a_bound_for_all_gateways_together() {
    let bed = Bed::memory();
    bed.offer(1, [1, 2, 3]).await.unwrap();
    bed.offer(1, [1, 2, 3]).await.unwrap();
    bed.offer(2, [5]).await.unwrap();
    let full = Err(QueueError::Full {
        scope: Scope::Total,
        limit: 4,
    });
    assert_eq!(bed.offer(3, [6]).await, full);
    assert_eq!(bed.taken(1, 10, 0).await, commands([1, 2, 3]));
    assert_eq!(bed.offer(3, [6]).await, full, "taken is not done");
    bed.done(1, [1]).await;
    bed.offer(3, [6]).await.unwrap();
}
