//! Host metrics into the spool: CPU, load, memory, disks, network, uptime, and temperatures where there are any.
//!
//! Counters are passed on as they are, totals since boot, so that a missed reading loses resolution and nothing else.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;
use viworks_common::telemetry::Record;
use viworks_runtime::clock::{Clock, sleep_until};
use viworks_runtime::lifecycle::Lifecycle;

use crate::spool::{self, Spool};

mod host;

pub use host::Host;

/// The interval when the configuration does not say.
pub const INTERVAL_DEFAULT: Duration = Duration::from_secs(10);

/// Reads the host every `interval` and appends what it finds, until the lifecycle stops.
///
/// When the spool refuses, the reading is lost and said so: keeping it in memory would only move the bound.
pub async fn run(lifecycle: Lifecycle, spool: Spool, clock: Arc<dyn Clock>, interval: Duration) {
    let mut host = Host::new();
    let mut due = clock.now();
    loop {
        tokio::select! {
            biased;
            () = lifecycle.stopping() => return,
            () = sleep_until(&*clock, due) => {}
        }
        // Reading `/proc` is quick, but a disk behind a dead network mount is not.
        let reading = tokio::task::spawn_blocking({
            let now = clock.wall();
            move || {
                let records = host.read(now);
                (host, records)
            }
        });
        let records: Vec<Record>;
        match reading.await {
            Ok((returned, found)) => {
                host = returned;
                records = found;
            }
            Err(error) => {
                warn!(%error, "a reading of the host failed");
                host = Host::new();
                records = Vec::new();
            }
        }
        let now = clock.wall();
        let sound: Vec<Record> = records
            .into_iter()
            .filter(|record| spool::check(record, now).is_ok())
            .collect();
        if let Err(error) = spool.append(&sound).await {
            warn!(%error, records = sound.len(), "the spool did not take a reading of the host");
        }
        // What was missed while the machine slept is not made up for.
        due = clock.now().max(due).saturating_add(interval);
    }
}
