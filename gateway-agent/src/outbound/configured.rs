//! What of the configuration is taken over while the agent runs: read again before a dial, every few seconds and at
//! SIGHUP, as certificates are.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};
use viworks_common::telemetry::intake::IntakeQuota;
use viworks_runtime::blocking::PerKey;
use viworks_runtime::clock::{Clock, sleep_until};
use viworks_runtime::conditions::Conditions;
use viworks_runtime::config::{LOG_FILTER, Readings, Source, tell_broken, tell_read};
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::logging;

use super::pins::Pins;
use crate::config::{Config, LIVE, Live};

const FIX: &str = "mend the file; it is read again within seconds, or at once with SIGHUP, and check-config lists every problem";

/// What a reading of the files gives.
type Read = Result<Arc<Config>, String>;

/// How often the files are looked at while nothing else asks for them.
const INTERVAL: Duration = Duration::from_secs(10);

/// How long reading them may take.
const READ_TIME: Duration = Duration::from_secs(5);

/// One at a time, whoever asks: a disk that hangs keeps one thread.
static READS: LazyLock<PerKey<PathBuf, Read>> = LazyLock::new(|| PerKey::new("configuration", 1));

/// What is in force of the configuration. Clones share it.
#[derive(Debug, Clone)]
pub struct Configured {
    source: Source,
    readings: Arc<Mutex<Readings>>,
    live: watch::Sender<Arc<Live>>,
    intake: watch::Sender<IntakeQuota>,
    pins: Arc<Pins>,
    conditions: Conditions,
}

impl Configured {
    /// Begins with the configuration that the start has read, whose pins `pins` follow.
    #[must_use]
    pub fn new(source: Source, config: &Config, pins: Arc<Pins>, conditions: Conditions) -> Self {
        let live = Live::from(config);
        Self {
            source,
            readings: Arc::new(Mutex::new(Readings::new(config.values.clone(), LIVE))),
            intake: watch::Sender::new(live.intake),
            live: watch::Sender::new(Arc::new(live)),
            pins,
            conditions,
        }
    }

    /// What is in force at this moment.
    #[must_use]
    pub fn get(&self) -> Arc<Live> {
        Arc::clone(&self.live.borrow())
    }

    /// The same, and each that follows.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<Live>> {
        self.live.subscribe()
    }

    /// How much telemetry one local user may hand in, now and later.
    #[must_use]
    pub fn intake(&self) -> watch::Receiver<IntakeQuota> {
        self.intake.subscribe()
    }

    /// Reads the files again. What can be taken over is; a key that needs a restart is named. Files that cannot be used
    /// change nothing and are told of. True when something else is in force now that a dial depends on.
    pub async fn refresh(&self) -> bool {
        let Source { path, environment } = self.source.clone();
        let read = move |path: &PathBuf| {
            let read = Config::load(path, &environment);
            read.map(Arc::new)
                .map_err(|problems| problems.in_one_line())
        };
        let problems = match READS.ask(path, READ_TIME, read).await {
            Ok(Ok(config)) => return self.take_over(&config),
            Ok(Err(problems)) => problems,
            Err(error) => error.to_string(),
        };
        tell_broken(&self.conditions, &problems, FIX);
        false
    }

    fn take_over(&self, config: &Config) -> bool {
        // Held to the end: of two readings, each is taken over whole.
        let mut readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = readings.note(config.values.clone());
        if let Err(error) = logging::take_over(&config.log.filter) {
            warn!(%error, "the log filter stays as it was");
            changed.taken_over.retain(|key| key != LOG_FILTER);
            changed.waiting.push(LOG_FILTER.to_owned());
        }
        tell_read(&self.conditions, &changed.waiting);
        if !changed.taken_over.is_empty() {
            let keys = changed.taken_over.join(", ");
            info!(keys, "took over from the configuration");
        }
        let (before, live) = (self.get(), Live::from(config));
        if self.pins.configure(live.outbound.pins.clone()) {
            info!("took over the configured pins");
        }
        if *before == live {
            return false;
        }
        self.intake
            .send_if_modified(|quota| std::mem::replace(quota, live.intake) != live.intake);
        let is_for_a_dial = before.outbound != live.outbound || before.labels != live.labels;
        self.live.send_replace(Arc::new(live));
        is_for_a_dial
    }

    /// Looks at the files until the agent stops; each change is counted in `reloads`, so that a gateway that waits
    /// because of what was there dials at once.
    pub async fn watch(
        self,
        clock: Arc<dyn Clock>,
        reloads: watch::Sender<u64>,
        lifecycle: Lifecycle,
    ) {
        loop {
            let next = clock.now().saturating_add(INTERVAL);
            tokio::select! {
                () = lifecycle.stopping() => return,
                () = sleep_until(&*clock, next) => {}
            }
            if self.refresh().await {
                reloads.send_modify(|count| *count += 1);
            }
        }
    }
}
