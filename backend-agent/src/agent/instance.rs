//! This process as one of several backends: what the others are told of it, and what follows when it lost its lease.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use viworks_common::id::InstanceId;
use viworks_runtime::lifecycle::Lifecycle;

use super::manager::Manager;
use crate::data::{InstanceLoad, Store};

/// How often the number of sessions is told to what renews the lease.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Keeps the manager on the instance that the store is and on the others, and the store on what they are told of this
/// one. `became` is told of each later instance.
pub async fn keep(
    store: Arc<dyn Store>,
    manager: Arc<Manager>,
    became: impl Fn(InstanceId) + Send,
    lifecycle: Lifecycle,
) {
    let (mut instance, neighbours) = (store.instance(), store.neighbours());
    let mut ticks = interval(TELL_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let draining = tokio::select! {
            () = lifecycle.stopping() => true,
            _ = ticks.tick() => false,
            Ok(()) = instance.changed() => {
                let now = *instance.borrow_and_update();
                manager.go_on_as(now);
                if let Some(now) = now {
                    became(now);
                }
                continue;
            }
        };
        let others: Vec<_> = neighbours
            .borrow()
            .iter()
            .map(|it| it.load.house())
            .collect();
        manager.doors().beside(others);
        let own = manager.doors().house(manager.len(), draining);
        store.note_load(InstanceLoad::of(own));
        if draining {
            return;
        }
    }
}
