//! Coalesces the batches of many gateways into one transaction every few milliseconds, and answers what is committed.
//!
//! Bounded: when the store is slow or away, batches wait in a channel of fixed size, sessions stop handing in more,
//! nothing is acknowledged, and the gateways' credit stops them. Commands do not pass through here.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};
use viworks_common::id::Tenant;
use viworks_runtime::clock::Clock;
use viworks_runtime::fault;
use viworks_runtime::lifecycle::Lifecycle;

use crate::config::TelemetryConfig;
use crate::data::{Store, TelemetryOutcome, TelemetryWrite};
use crate::metrics::BackendMetrics;

/// The first and the longest wait for a store that is away.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Where sessions hand in their batches. Clones share it.
#[derive(Clone)]
pub struct TelemetryProcessor {
    waiting: mpsc::Sender<Waiting>,
}

/// A place in the line, taken before a batch is handed in, so that the order of a session's batches is kept.
pub struct Place {
    permit: mpsc::OwnedPermit<Waiting>,
}

struct Waiting {
    write: TelemetryWrite,
    answer: oneshot::Sender<TelemetryOutcome>,
}

struct Worker {
    store: Arc<dyn Store>,
    tenant: Tenant,
    clock: Arc<dyn Clock>,
    metrics: BackendMetrics,
    config: TelemetryConfig,
    lifecycle: Lifecycle,
}

impl TelemetryProcessor {
    /// Starts the one writer.
    #[must_use]
    pub fn start(
        store: Arc<dyn Store>,
        tenant: Tenant,
        clock: Arc<dyn Clock>,
        metrics: BackendMetrics,
        config: TelemetryConfig,
        lifecycle: &Lifecycle,
    ) -> Self {
        let (waiting, received) = mpsc::channel(config.batches_waiting_max);
        let worker = Worker {
            store,
            tenant,
            clock,
            metrics,
            config,
            lifecycle: lifecycle.clone(),
        };
        drop(lifecycle.spawn_critical("telemetry", worker.run(received)));
        Self { waiting }
    }

    /// Waits for a place. `None` when the backend is stopping.
    pub async fn place(self) -> Option<Place> {
        let permit = self.waiting.reserve_owned().await.ok()?;
        Some(Place { permit })
    }
}

impl Place {
    /// Hands in a batch; the answer comes when it is committed, and never when the backend stops before that.
    #[must_use]
    pub fn hand_in(self, write: TelemetryWrite) -> oneshot::Receiver<TelemetryOutcome> {
        let (answer, outcome) = oneshot::channel();
        drop(self.permit.send(Waiting { write, answer }));
        outcome
    }
}

impl Worker {
    async fn run(self, mut received: mpsc::Receiver<Waiting>) {
        loop {
            let first = tokio::select! {
                biased;
                first = received.recv() => first,
                () = self.lifecycle.stopping() => received.try_recv().ok(),
            };
            let Some(first) = first else { return };
            let batch = self.collect(first, &mut received).await;
            if !self.commit(batch).await {
                return;
            }
        }
    }

    /// Everything that comes within the time of coalescing, up to the bound of rows.
    async fn collect(
        &self,
        first: Waiting,
        received: &mut mpsc::Receiver<Waiting>,
    ) -> Vec<Waiting> {
        let mut rows = first.write.batch.records.len();
        let mut batch = vec![first];
        let pause = tokio::time::sleep(self.config.coalesce);
        tokio::pin!(pause);
        while rows < self.config.rows_max {
            let next = tokio::select! {
                biased;
                next = received.recv() => next,
                () = &mut pause => None,
            };
            let Some(next) = next else { break };
            rows = rows.saturating_add(next.write.batch.records.len());
            batch.push(next);
        }
        batch
    }

    /// Commits, however long that takes. `false` when the backend stops before it worked.
    async fn commit(&self, batch: Vec<Waiting>) -> bool {
        let (writes, answers): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|waiting| (waiting.write, waiting.answer))
            .unzip();
        let mut pause = RETRY.0;
        loop {
            let now = self.clock.wall();
            match self
                .store
                .commit_telemetry(&self.tenant, writes.clone(), now)
                .await
            {
                Ok(outcomes) => {
                    fault::point("telemetry.committed.before_acknowledgement");
                    self.answer(answers, outcomes);
                    return true;
                }
                Err(error) => {
                    self.metrics
                        .telemetry_refused
                        .inc_by(u64::try_from(writes.len()).unwrap_or(u64::MAX));
                    warn!(%error, batches = writes.len(), "telemetry could not be committed; it waits");
                }
            }
            tokio::select! {
                () = self.lifecycle.stopping() => return false,
                () = tokio::time::sleep(pause) => {}
            }
            pause = pause.saturating_mul(2).min(RETRY.1);
        }
    }

    fn answer(
        &self,
        answers: Vec<oneshot::Sender<TelemetryOutcome>>,
        outcomes: Vec<TelemetryOutcome>,
    ) {
        let mut rows = 0;
        for (answer, outcome) in answers.into_iter().zip(outcomes) {
            if let TelemetryOutcome::Committed(commit) = &outcome {
                rows += commit.stored;
            }
            if answer.send(outcome).is_err() {
                debug!("the session of a committed batch has ended; its gateway will ask again");
            }
        }
        self.metrics.telemetry_rows.inc_by(rows);
        #[expect(
            clippy::cast_precision_loss,
            reason = "far fewer rows than a double can count"
        )]
        self.metrics.telemetry_commit_rows.observe(rows as f64);
    }
}
