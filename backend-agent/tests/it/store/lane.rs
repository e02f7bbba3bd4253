//! A processor of telemetry over a store, what is handed in to it, and what it tells.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use viworks_backend_agent::config::TelemetryConfig;
use viworks_backend_agent::data::{Page, TelemetryLimits, TelemetryQuery};
use viworks_backend_agent::metrics::BackendMetrics;
use viworks_backend_agent::telemetry::processor::{Answer, HandedIn, Standing, TelemetryProcessor};
use viworks_common::telemetry::{Batch, BatchColumns, RecordRefusal};
use viworks_common::wire::PackedBatch;
use viworks_runtime::clock::{SystemClock, Timeline};
use viworks_runtime::conditions::Conditions;
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::metrics::Metrics;

use super::bed::{Bed, agent, at};
use super::telemetry::batch;

pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) const WAITING_BYTES_MAX: usize = 1024 * 1024;

const WITHHELD: &str = "viworks_telemetry_withheld_gateways";

const WAITING: &str = "viworks_telemetry_waiting_gateways";

const PUT_OFF: &str = "viworks_telemetry_refused_batches_total";

const ROWS: &str = "viworks_telemetry_rows_total";

const REFUSED: &str = "viworks_telemetry_refused_records_total";

/// A processor of telemetry over a store.
pub(super) struct Processor {
    pub(super) processor: TelemetryProcessor,
    metrics: Metrics,
    conditions: Conditions,
    lifecycle: Lifecycle,
}

impl Processor {
    pub(super) fn over(bed: &Bed) -> Self {
        let clock = Arc::new(Timeline::unstored(Arc::new(SystemClock)));
        let metrics = Metrics::new("viworks-test", "0", clock.wall());
        let conditions = Conditions::new(Arc::<Timeline>::clone(&clock));
        let lifecycle = Lifecycle::new();
        let config = TelemetryConfig {
            // What is handed in at once is stored at once.
            coalesce: Duration::from_millis(200),
            rows_max: 2_000,
            batches_waiting_max: 64,
            waiting_bytes_max: WAITING_BYTES_MAX,
            limits: TelemetryLimits::default(),
        };
        let processor = TelemetryProcessor::start(
            Arc::clone(&bed.store),
            bed.tenant.clone(),
            clock,
            BackendMetrics::register(&metrics),
            conditions.clone(),
            config,
            &lifecycle,
        );
        Self {
            processor,
            metrics,
            conditions,
            lifecycle,
        }
    }

    pub(super) async fn hand_in(
        &self,
        n: u64,
        epoch: u64,
        packed: PackedBatch,
    ) -> oneshot::Receiver<Answer> {
        let standing = watch::Sender::new(Standing::InTurn);
        self.hand_in_with((n, epoch), packed, None, &standing).await
    }

    pub(super) async fn hand_in_with(
        &self,
        (n, epoch): (u64, u64),
        packed: PackedBatch,
        share: Option<OwnedSemaphorePermit>,
        standing: &watch::Sender<Standing>,
    ) -> oneshot::Receiver<Answer> {
        let place = self.processor.clone().place(agent(n)).await.unwrap();
        place.hand_in(HandedIn {
            gateway: format!("gw-{n}").parse().unwrap(),
            agent_id: agent(n),
            epoch,
            skew_ms: None,
            batch: packed,
            share,
            standing: standing.clone(),
        })
    }

    /// How many gateways' batches wait until the database does not refuse them any more.
    pub(super) fn withheld(&self) -> String {
        self.metric(WITHHELD)
    }

    /// How many gateways' batches could not be stored for themselves, whoever is to blame.
    pub(super) fn waiting(&self) -> String {
        self.metric(WAITING)
    }

    /// How many batches had to wait so far because the database seemed to fail.
    pub(super) fn put_off(&self) -> u64 {
        self.metric(PUT_OFF).parse().unwrap()
    }

    /// How many records are counted as stored so far.
    pub(super) fn rows(&self) -> u64 {
        self.metric(ROWS).parse().unwrap()
    }

    /// How many are counted as refused for this reason.
    pub(super) fn refused(&self, reason: RecordRefusal) -> u64 {
        let name = format!("{REFUSED}{{reason=\"{}\"}}", reason.name());
        self.metric(&name).parse().unwrap()
    }

    fn metric(&self, name: &str) -> String {
        let text = self.metrics.encode().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().to_owned()
    }

    /// What health says of them.
    pub(super) fn told(&self) -> String {
        self.cause("telemetry.withheld")
    }

    /// What health says where nothing of anybody is stored.
    pub(super) fn stalled(&self) -> String {
        self.cause("telemetry.stalled")
    }

    fn cause(&self, condition: &str) -> String {
        let found = self.conditions.list().into_iter();
        let mut causes = found.filter(|it| it.name == condition);
        causes.next().map(|it| it.cause).unwrap_or_default()
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        self.lifecycle.stop();
    }
}

pub(super) async fn answered(answer: oneshot::Receiver<Answer>) -> Answer {
    let answered = tokio::time::timeout(PATIENCE, answer).await;
    answered.expect("a batch is answered").unwrap()
}

pub(super) fn packed(from_seq: u64, to_seq: u64) -> PackedBatch {
    pack(batch(from_seq, to_seq))
}

/// A batch as it travels.
pub(super) fn pack(batch: Batch) -> PackedBatch {
    PackedBatch::pack(&BatchColumns::from(batch))
}

pub(super) async fn stored(bed: &Bed, n: u64) -> usize {
    let everything = TelemetryQuery {
        stream: None,
        from: at(-1_000_000_000),
        until: at(1_000_000_000),
        newest_first: false,
    };
    let listed = bed
        .store
        .query_telemetry(&bed.tenant, agent(n), &everything, Page::first(1_000));
    listed.await.unwrap().items.len()
}

/// Changes the database of a folder behind the store's back.
pub(super) fn alter_file(folder: &TempDir, rule: &str) {
    let database = rusqlite::Connection::open(folder.path().join("backend.db")).unwrap();
    database.execute_batch(rule).unwrap();
}

/// Returns once it is so.
pub(super) async fn until(holds: impl Fn() -> bool + Send + Sync) {
    let waits = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waits)
        .await
        .expect("it comes");
}
