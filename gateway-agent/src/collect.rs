//! Host metrics into the spool: CPU, load, memory, disks, network, uptime, and temperatures where there are any.
//!
//! Counters are passed on as they are, totals since boot, so that a missed reading loses resolution and nothing else.
//! Each source has a thread of its own and a time limit: one that hangs, or for which there is no thread, is said to be
//! so and asked again with the next reading, while the others go on.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tracing::warn;
use viworks_common::telemetry::Record;
use viworks_common::time::Timestamp;
use viworks_runtime::blocking::{Unanswered, Worker};
use viworks_runtime::clock::{Clock, sleep_until};
use viworks_runtime::conditions::{Conditions, Severity};
use viworks_runtime::lifecycle::Lifecycle;

use crate::host::disks::Prober;
use crate::spool::{self, Spool};

mod source;

pub use source::{Reading, Trouble};

/// The interval when the configuration does not say.
pub const INTERVAL_DEFAULT: Duration = Duration::from_secs(10);

/// How long a source may take before the reading goes on without it.
const PATIENCE: Duration = Duration::from_secs(8);

/// The second reading follows the first so soon, because what is the difference of two readings begins with it.
const SECOND_READING: Duration = Duration::from_secs(1);

/// How long the collection rests after it failed as a whole.
const RESTART_PAUSE: Duration = Duration::from_secs(10);

/// What the collectors work with.
#[derive(Clone)]
pub struct Parts {
    /// Where records go.
    pub spool: Spool,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// How often the host is read.
    pub interval: Duration,
    /// Where a source that does not work is named.
    pub conditions: Conditions,
    /// How disks are asked.
    pub prober: Prober,
    /// Shutdown.
    pub lifecycle: Lifecycle,
}

/// Collects until the lifecycle stops. Telemetry of the host is no promise that the agent should end for: if all of it
/// fails, that is said, and tried again.
pub async fn run(parts: Parts) {
    while !parts.lifecycle.is_stopping() {
        let readings = parts.lifecycle.spawn("collect", collect(parts.clone()));
        if readings.await.is_some() || parts.lifecycle.is_stopping() {
            return;
        }
        parts.conditions.raise(
            "collector",
            Severity::Warn,
            "the collection of host telemetry failed and is started again",
            "see the log, and report it",
        );
        let again = parts.clock.now().saturating_add(RESTART_PAUSE);
        tokio::select! {
            biased;
            () = parts.lifecycle.stopping() => return,
            () = sleep_until(&*parts.clock, again) => {}
        }
    }
}

/// Reads the host every interval and appends what it finds.
///
/// When the spool refuses, the reading is lost and counted: keeping it in memory would only move the bound.
async fn collect(parts: Parts) {
    let mut sources = source::all(&parts.prober);
    let mut due = parts.clock.now();
    let mut pause = SECOND_READING.min(parts.interval);
    loop {
        tokio::select! {
            biased;
            () = parts.lifecycle.stopping() => return,
            () = sleep_until(&*parts.clock, due) => {}
        }
        let now = parts.clock.wall();
        let asked = sources
            .iter_mut()
            .map(|source| read(source, now, &parts.conditions));
        let records = tokio::select! {
            biased;
            () = parts.lifecycle.stopping() => return,
            records = join_all(asked) => records,
        };
        let sound: Vec<Record> = records
            .into_iter()
            .flatten()
            .filter(|record| spool::check(record).is_ok())
            .collect();
        match parts.spool.append_or_count(&sound).await {
            Ok(_taken) => parts.conditions.clear("collector"),
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::new(error));
                warn!(%error, records = sound.len(), "the spool did not take a reading of the host; it is counted as a gap once it can be written");
            }
        }
        // What was missed while the machine slept is not made up for.
        due = parts.clock.now().max(due).saturating_add(pause);
        pause = parts.interval;
    }
}

/// A source, by the name under which its condition is known.
struct Source {
    name: &'static str,
    worker: Worker<Timestamp, Reading>,
}

async fn read(source: &mut Source, now: Timestamp, conditions: &Conditions) -> Vec<Record> {
    let condition = format!("collector.{}", source.name);
    let (records, trouble) = match source.worker.ask(now, PATIENCE).await {
        Ok(reading) => (reading.records, reading.trouble),
        Err(error) => (Vec::new(), Some(unanswered(source.name, &error))),
    };
    match trouble {
        None => conditions.clear(&condition),
        Some(trouble) => {
            conditions.raise(&condition, Severity::Warn, &trouble.cause, &trouble.fix);
        }
    }
    records
}

/// What to do where the system starts no thread or process for a source.
fn fix_of_a_start(error: &std::io::Error) -> &'static str {
    use rustix::io::Errno;
    match Errno::from_io_error(error) {
        Some(Errno::MFILE | Errno::NFILE) => {
            "raise the limit on open files (LimitNOFILE of the unit, ulimit -n)"
        }
        Some(_) | None => {
            "raise the limit on processes and threads (TasksMax of the unit, ulimit -u, pids.max of the container)"
        }
    }
}

fn unanswered(name: &str, error: &Unanswered) -> Trouble {
    let fix = match error {
        Unanswered::NoThread(error) => fix_of_a_start(error),
        Unanswered::Late(_) | Unanswered::Hanging(_) => {
            "something in the operating system hangs: see dmesg, mounts and sensors"
        }
        Unanswered::Panicked => "see the log, and report it",
    };
    Trouble {
        cause: format!("{name} cannot be read: {error}"),
        fix: fix.to_owned(),
    }
}
