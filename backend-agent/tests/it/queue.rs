//! The contract of the command queue, for every implementation.

use std::time::Duration;

use uuid::Uuid;
use viworks_backend_agent::command::queue::memory::MemoryQueue;
use viworks_backend_agent::command::queue::{
    CommandQueue, HintLimits, QueueError, QueueKey, Scope,
};
use viworks_common::id::{AgentId, CommandId, Tenant};
use viworks_common::time::Monotonic;

const LIMITS: HintLimits = HintLimits {
    per_agent: 3,
    total: 4,
    lease: Duration::from_secs(30),
};

fn key(n: u128) -> QueueKey {
    QueueKey {
        tenant: Tenant::default_tenant(),
        agent_id: AgentId::from_uuid(Uuid::from_u128(n)),
    }
}

fn commands<const N: usize>(numbers: [u128; N]) -> [CommandId; N] {
    numbers.map(|n| CommandId::from_uuid(Uuid::from_u128(n)))
}

fn at(seconds: u64) -> Monotonic {
    Monotonic::from_duration(Duration::from_secs(seconds))
}

async fn taken(queue: &dyn CommandQueue, n: u128, limit: usize, now: u64) -> Vec<CommandId> {
    queue.take(&key(n), limit, at(now)).await.unwrap()
}

async fn hints_are_handed_out_in_order_once(queue: &dyn CommandQueue) {
    queue.offer(&key(1), &commands([1, 2])).await.unwrap();
    queue.offer(&key(1), &commands([2, 3])).await.unwrap();
    assert_eq!(taken(queue, 1, 1, 0).await, commands([1]));
    assert_eq!(taken(queue, 1, 10, 0).await, commands([2, 3]));
    assert_eq!(taken(queue, 1, 10, 0).await, []);
    assert_eq!(taken(queue, 2, 10, 0).await, []);
}

async fn what_is_not_done_in_time_comes_back_and_names_its_gateway(queue: &dyn CommandQueue) {
    queue.offer(&key(1), &commands([1, 2])).await.unwrap();
    queue.offer(&key(2), &commands([3])).await.unwrap();
    assert_eq!(taken(queue, 1, 10, 0).await, commands([1, 2]));
    queue.done(&key(1), &commands([2, 9])).await.unwrap();
    assert_eq!(queue.sweep(at(29)).await, Ok(vec![]));
    assert_eq!(queue.sweep(at(30)).await, Ok(vec![key(1)]));
    assert_eq!(taken(queue, 1, 10, 30).await, commands([1]));
    queue.done(&key(1), &commands([1])).await.unwrap();
    assert_eq!(queue.sweep(at(1_000)).await, Ok(vec![]));
    queue.done(&key(7), &commands([1])).await.unwrap();
}

async fn a_full_queue_refuses_and_forgets_nothing(queue: &dyn CommandQueue) {
    queue.offer(&key(1), &commands([1, 2])).await.unwrap();
    let full = |scope, limit| Err(QueueError::Full { scope, limit });
    let refused = queue.offer(&key(1), &commands([3, 4])).await;
    assert_eq!(refused, full(Scope::Agent, 3), "all or none");
    queue.offer(&key(1), &commands([1, 2, 3])).await.unwrap();
    queue.offer(&key(2), &commands([5])).await.unwrap();
    let refused = queue.offer(&key(3), &commands([6])).await;
    assert_eq!(refused, full(Scope::Total, 4));
    assert_eq!(taken(queue, 1, 10, 0).await, commands([1, 2, 3]));
    let refused = queue.offer(&key(3), &commands([6])).await;
    assert_eq!(refused, full(Scope::Total, 4), "taken is not done");
    queue.done(&key(1), &commands([1, 2])).await.unwrap();
    queue.offer(&key(3), &commands([6])).await.unwrap();
}

macro_rules! conformance {
    ($module:ident, $make:expr) => {
        mod $module {
            use super::*;
            conformance!(@each $make, hints_are_handed_out_in_order_once,
                what_is_not_done_in_time_comes_back_and_names_its_gateway, a_full_queue_refuses_and_forgets_nothing);
        }
    };
    (@each $make:expr, $($test:ident),*) => {
        $(#[tokio::test] async fn $test() { super::$test(&$make).await; })*
    };
}

conformance!(memory, MemoryQueue::new(LIMITS));
