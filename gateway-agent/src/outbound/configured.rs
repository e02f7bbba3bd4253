//! The pins that the configuration file names: read again before a dial and at SIGHUP, as certificates are.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};
use viworks_common::pin::SpkiPin;
use viworks_runtime::blocking::PerKey;
use viworks_runtime::clock::{Clock, sleep_until};
use viworks_runtime::conditions::Conditions;
use viworks_runtime::config::{LOG_FILTER, Source, Values, tell_broken, tell_read};
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::logging;

use super::pins::Pins;
use crate::config::Config;

/// The key of this agent that is taken over without a restart.
const PINS: &str = "[outbound] pins";

const FIX: &str = "mend the file; it is read again within seconds, or at once with SIGHUP, and check-config lists every problem";

/// What a reading of the file gives.
type Read = Result<(BTreeSet<SpkiPin>, String, Values), String>;

/// How often the file is looked at while nothing else asks for it.
const INTERVAL: Duration = Duration::from_secs(10);

/// How long reading it may take.
const READ_TIME: Duration = Duration::from_secs(5);

/// One at a time, whoever asks: a disk that hangs keeps one thread.
static READS: LazyLock<PerKey<PathBuf, Read>> = LazyLock::new(|| PerKey::new("configuration", 1));

/// The pins of the configuration file. Clones share them.
#[derive(Debug, Clone)]
pub struct ConfiguredPins {
    source: Source,
    /// What every key came to at the start.
    values: Arc<Values>,
    pins: Arc<Pins>,
    conditions: Conditions,
}

impl ConfiguredPins {
    /// Those of the configuration that `values` were read from, which `pins` follow.
    #[must_use]
    pub fn new(source: Source, values: Values, pins: Arc<Pins>, conditions: Conditions) -> Self {
        Self {
            source,
            values: Arc::new(values),
            pins,
            conditions,
        }
    }

    /// Reads the file again. Of the configuration, the pins and the log filter are taken over; a key that
    /// needs a restart is named. A file that cannot be used changes nothing and is told. True when other pins are in
    /// force now.
    pub async fn refresh(&self) -> bool {
        let Source { path, environment } = self.source.clone();
        let read = move |path: &PathBuf| {
            let read = Config::load(path, &environment);
            read.map(|config| (config.outbound.pins, config.log.filter, config.values))
                .map_err(|problems| problems.in_one_line())
        };
        let problems = match READS.ask(path, READ_TIME, read).await {
            Ok(Ok((configured, filter, values))) => {
                let mut others = self.values.changed(&values);
                others.retain(|key| *key != PINS);
                match logging::take_over(&filter) {
                    Ok(()) => others.retain(|key| *key != LOG_FILTER),
                    Err(error) => warn!(%error, "the log filter stays as it was"),
                }
                tell_read(&self.conditions, &others);
                let changed = self.pins.configure(configured);
                if changed {
                    info!("took over the configured pins");
                }
                return changed;
            }
            Ok(Err(problems)) => problems,
            Err(error) => error.to_string(),
        };
        tell_broken(&self.conditions, &problems, FIX);
        false
    }

    /// Looks at the file until the agent stops; each change is counted in `reloads`, so that a gateway that waits
    /// because of its pins dials at once.
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
