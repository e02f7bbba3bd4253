//! This process as one of several backends: what the others are told of it, and what follows when it lost its lease.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;
use viworks_common::id::InstanceId;
use viworks_runtime::blocking;
use viworks_runtime::lifecycle::Lifecycle;

use super::manager::Manager;
use crate::data::{InstanceLoad, Store};
use crate::earlier;
use crate::metrics::BackendMetrics;

/// How often the number of sessions is told to what renews the lease.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// How long a small file may take.
const FILE_TIME: Duration = Duration::from_secs(5);

/// Keeps the manager on the instance that the store is and on the others, and the store on what they are told of this
/// one. Each later instance is written down in the state folder. Runs until the backend stops and the last session has
/// ended: until then others may end this instance.
pub async fn keep(
    store: Arc<dyn Store>,
    manager: Arc<Manager>,
    metrics: BackendMetrics,
    state_folder: PathBuf,
    lifecycle: Lifecycle,
) {
    let (mut instance, neighbours) = (store.instance(), store.neighbours());
    // It may have become another one since the manager was made.
    let mut known = manager.instance();
    instance.mark_changed();
    let mut ticks = interval(TELL_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut draining = false;
    loop {
        tokio::select! {
            () = lifecycle.stopping(), if !draining => draining = true,
            _ = ticks.tick() => {}
            Ok(()) = instance.changed() => {
                let now = *instance.borrow_and_update();
                manager.go_on_as(now);
                if std::mem::replace(&mut known, now) == now {
                    continue;
                }
                if let Some(now) = now {
                    metrics.leases_lost.inc();
                    note(state_folder.clone(), now).await;
                }
                continue;
            }
        }
        let others: Vec<_> = neighbours
            .borrow()
            .iter()
            .map(|it| it.load.house())
            .collect();
        if instance.borrow().is_some() {
            let all = i64::try_from(others.len().saturating_add(1));
            metrics.instances.set(all.unwrap_or(i64::MAX));
        }
        manager.doors().beside(others);
        let own = manager.doors().house(manager.len(), draining);
        store.note_load(InstanceLoad::of(own));
        if draining && manager.is_empty() {
            return;
        }
    }
}

/// Writes down which instance this process is now.
async fn note(state_folder: PathBuf, instance: InstanceId) {
    let note = move || earlier::note(&state_folder, instance).map_err(|error| error.to_string());
    let noted = blocking::call("instance", FILE_TIME, note).await;
    if let Err(error) = noted.unwrap_or_else(|error| Err(error.to_string())) {
        warn!(error, "{}", earlier::NOT_NOTED);
    }
}
