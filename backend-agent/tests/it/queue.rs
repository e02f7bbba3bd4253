//! The contract of the command queue, for every implementation.

use std::time::Duration;

use uuid::Uuid;
use viworks_backend_agent::command::queue::memory::MemoryQueue;
use viworks_backend_agent::command::queue::{
    CommandQueue, Offered, QueueError, QueueKey, QueueLimits, Retried, Scope,
};
use viworks_common::id::{AgentId, CommandId, Tenant};
use viworks_common::time::Monotonic;

const LIMITS: QueueLimits = QueueLimits {
    per_agent: 3,
    total: 4,
    attempts_max: 2,
    lease: Duration::from_secs(30),
    backoff: Duration::from_secs(1),
    backoff_max: Duration::from_secs(60),
    dead_letters_max: 2,
};

fn key(n: u128) -> QueueKey {
    QueueKey {
        tenant: Tenant::default_tenant(),
        agent_id: AgentId::from_uuid(Uuid::from_u128(n)),
    }
}

fn command(n: u128) -> CommandId {
    CommandId::from_uuid(Uuid::from_u128(n))
}

fn at(seconds: u64) -> Monotonic {
    Monotonic::from_duration(Duration::from_secs(seconds))
}

async fn leased(queue: &dyn CommandQueue, n: u128, now: u64) -> Vec<(CommandId, u32)> {
    let leases = queue.lease(&key(n), 10, at(now)).await.unwrap();
    leases
        .into_iter()
        .map(|lease| (lease.command_id, lease.attempt))
        .collect()
}

async fn offers_are_leased_in_order_once(queue: &dyn CommandQueue) {
    for n in [1, 2, 3] {
        assert_eq!(queue.offer(&key(1), command(n)).await, Ok(Offered::Added));
    }
    assert_eq!(queue.offer(&key(1), command(2)).await, Ok(Offered::Present));
    assert_eq!(queue.lease(&key(1), 1, at(0)).await.unwrap().len(), 1);
    assert_eq!(
        leased(queue, 1, 0).await,
        [(command(2), 1), (command(3), 1)]
    );
    assert_eq!(leased(queue, 1, 29).await, []);
    assert_eq!(leased(queue, 2, 29).await, []);
    assert_eq!(queue.acknowledge(&key(1), command(2)).await, Ok(true));
    assert_eq!(queue.acknowledge(&key(1), command(2)).await, Ok(false));
    assert_eq!(
        leased(queue, 1, 30).await,
        [(command(1), 2), (command(3), 2)]
    );
    assert_eq!(queue.depth().await, Ok(2));
}

async fn a_full_queue_refuses_and_forgets_nothing(queue: &dyn CommandQueue) {
    for n in [1, 2, 3] {
        queue.offer(&key(1), command(n)).await.unwrap();
    }
    let full = QueueError::Full {
        scope: Scope::Agent,
        limit: 3,
    };
    assert_eq!(queue.offer(&key(1), command(4)).await, Err(full));
    queue.offer(&key(2), command(5)).await.unwrap();
    let full = QueueError::Full {
        scope: Scope::Total,
        limit: 4,
    };
    assert_eq!(queue.offer(&key(3), command(6)).await, Err(full));
    assert_eq!(queue.depth().await, Ok(4));
    assert_eq!(leased(queue, 1, 0).await.len(), 3);
    queue.acknowledge(&key(1), command(1)).await.unwrap();
    assert_eq!(queue.offer(&key(3), command(6)).await, Ok(Offered::Added));
}

async fn failures_back_off_and_end_as_dead_letters(queue: &dyn CommandQueue) {
    queue.offer(&key(1), command(1)).await.unwrap();
    assert_eq!(
        queue.retry(&key(1), command(1), at(0)).await,
        Ok(Retried::Unknown)
    );
    assert_eq!(leased(queue, 1, 0).await, [(command(1), 1)]);
    assert_eq!(
        queue.retry(&key(1), command(1), at(0)).await,
        Ok(Retried::After(Duration::from_secs(1)))
    );
    assert_eq!(leased(queue, 1, 0).await, []);
    assert_eq!(leased(queue, 1, 1).await, [(command(1), 2)]);
    assert_eq!(
        queue.retry(&key(1), command(1), at(1)).await,
        Ok(Retried::Dead)
    );
    assert_eq!(leased(queue, 1, 100).await, []);
    let dead = queue.dead_letters().await.unwrap();
    assert_eq!(
        (dead.len(), dead[0].command_id, dead[0].attempts),
        (1, command(1), 2)
    );
    assert_eq!(
        queue.offer(&key(1), command(1)).await,
        Ok(Offered::Added),
        "the reconciler makes it again"
    );
}

async fn dead_letters_are_bounded(queue: &dyn CommandQueue) {
    for n in 1..=4 {
        queue.offer(&key(1), command(n)).await.unwrap();
        for now in [0, 100] {
            assert_eq!(leased(queue, 1, now).await.len(), 1);
            queue.retry(&key(1), command(n), at(now)).await.unwrap();
        }
    }
    let dead: Vec<_> = queue
        .dead_letters()
        .await
        .unwrap()
        .into_iter()
        .map(|letter| letter.command_id)
        .collect();
    assert_eq!(dead, [command(3), command(4)]);
}

macro_rules! conformance {
    ($module:ident, $make:expr) => {
        mod $module {
            use super::*;
            conformance!(@each $make, offers_are_leased_in_order_once, a_full_queue_refuses_and_forgets_nothing,
                failures_back_off_and_end_as_dead_letters, dead_letters_are_bounded);
        }
    };
    (@each $make:expr, $($test:ident),*) => {
        $(#[tokio::test] async fn $test() { super::$test(&$make).await; })*
    };
}

conformance!(memory, MemoryQueue::new(LIMITS));

#[test]
fn delays_double_up_to_their_bound() {
    let seconds: Vec<_> = [1, 2, 3, 7, 8, 1_000]
        .map(|attempt| LIMITS.delay(attempt).as_secs())
        .to_vec();
    assert_eq!(seconds, [1, 2, 4, 60, 60, 60]);
}
