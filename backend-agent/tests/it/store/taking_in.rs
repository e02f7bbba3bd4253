//! What becomes of batches that cannot be stored, while others want to have theirs stored.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::oneshot;
use viworks_backend_agent::config::TelemetryConfig;
use viworks_backend_agent::data::{Page, TelemetryLimits, TelemetryQuery};
use viworks_backend_agent::metrics::BackendMetrics;
use viworks_backend_agent::telemetry::processor::{Answer, HandedIn, TelemetryProcessor};
use viworks_common::telemetry::BatchColumns;
use viworks_common::wire::PackedBatch;
use viworks_runtime::clock::{SystemClock, Timeline};
use viworks_runtime::conditions::Conditions;
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::metrics::Metrics;

use super::bed::{Bed, agent, at};
use super::telemetry::batch;

const PATIENCE: Duration = Duration::from_secs(30);

const UNSTORABLE: &str = "viworks_telemetry_unstorable_batches_total";

/// A processor of telemetry over a store.
struct Processor {
    processor: TelemetryProcessor,
    metrics: Metrics,
    lifecycle: Lifecycle,
}

impl Processor {
    fn over(bed: &Bed) -> Self {
        let clock = Arc::new(Timeline::unstored(Arc::new(SystemClock)));
        let metrics = Metrics::new("viworks-test", "0", clock.wall());
        let conditions = Conditions::new(Arc::<Timeline>::clone(&clock));
        let lifecycle = Lifecycle::new();
        let config = TelemetryConfig {
            // What is handed in at once is stored at once.
            coalesce: Duration::from_millis(200),
            rows_max: 2_000,
            batches_waiting_max: 64,
            waiting_bytes_max: 1024 * 1024,
            limits: TelemetryLimits::default(),
        };
        let processor = TelemetryProcessor::start(
            Arc::clone(&bed.store),
            bed.tenant.clone(),
            clock,
            BackendMetrics::register(&metrics),
            conditions,
            config,
            &lifecycle,
        );
        Self {
            processor,
            metrics,
            lifecycle,
        }
    }

    async fn hand_in(&self, n: u64, epoch: u64, packed: PackedBatch) -> oneshot::Receiver<Answer> {
        let place = self.processor.clone().place(agent(n)).await.unwrap();
        place.hand_in(HandedIn {
            gateway: format!("gw-{n}").parse().unwrap(),
            agent_id: agent(n),
            epoch,
            skew_ms: None,
            batch: packed,
            share: None,
        })
    }

    /// How many batches were refused for what they hold.
    fn unstorable(&self) -> String {
        let text = self.metrics.encode().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(UNSTORABLE));
        line.unwrap().trim().to_owned()
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        self.lifecycle.stop();
    }
}

async fn answered(answer: oneshot::Receiver<Answer>) -> Answer {
    let answered = tokio::time::timeout(PATIENCE, answer).await;
    answered.expect("a batch is answered").unwrap()
}

fn packed(from_seq: u64, to_seq: u64) -> PackedBatch {
    PackedBatch::pack(&BatchColumns::from(batch(from_seq, to_seq)))
}

async fn stored(bed: &Bed, n: u64) -> usize {
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

/// One gateway's batches are such that a rule of the database refuses them; those of another come at the same time.
async fn nobody_waits_for_what_the_database_refuses(bed: &Bed, spoil: impl FnOnce(&str)) {
    // Both in the same lane.
    let other = 1 + u64::try_from(bed.store.telemetry_lanes()).unwrap();
    for n in [1, other] {
        bed.gateway(n).await;
        bed.session(n, n).await;
    }
    spoil(&agent(1).to_string());
    let processor = Processor::over(bed);
    let spoilt = processor.hand_in(1, 1, packed(1, 3)).await;
    let sound = processor.hand_in(other, 1, packed(1, 5)).await;
    let Answer::Committed(commit) = answered(sound).await else {
        panic!("the other gateway's batch was not committed");
    };
    assert_eq!(commit.stored, 5);
    let refused = answered(spoilt).await;
    assert!(
        matches!(&refused, Answer::Malformed(why) if why.contains("database")),
        "{refused:?}"
    );
    assert_eq!((stored(bed, 1).await, stored(bed, other).await), (0, 5));
    assert_eq!(processor.unstorable(), "1");
    // Nothing stands still behind it.
    let next = processor.hand_in(other, 1, packed(6, 7)).await;
    assert!(matches!(answered(next).await, Answer::Committed(_)));
}

fn spoil_file(folder: &TempDir, agent_id: &str) {
    let database = rusqlite::Connection::open(folder.path().join("backend.db")).unwrap();
    let rule = format!(
        "CREATE TRIGGER spoilt BEFORE INSERT ON telemetry_positions WHEN new.agent_id = '{agent_id}' \
         BEGIN SELECT RAISE(ABORT, 'not this one'); END"
    );
    database.execute_batch(&rule).unwrap();
}

#[tokio::test]
async fn nobody_waits_for_what_the_file_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let bed = Bed::new(super::sqlite(&folder).await.unwrap());
    nobody_waits_for_what_the_database_refuses(&bed, |agent_id| spoil_file(&folder, agent_id))
        .await;
    bed.store.close().await;
}

#[tokio::test]
async fn nobody_waits_for_what_the_server_refuses() {
    // A rule of the schema, a value that is none, and a row that is too large.
    for code in ["23514", "22P05", "54000"] {
        let folder = tempfile::tempdir().unwrap();
        let Some(store) = super::postgres(&folder).await else {
            return;
        };
        let (server, database) = super::database(&folder).unwrap();
        let bed = Bed::new(store);
        let spoil = |agent_id: &str| {
            let rule = format!(
                "CREATE FUNCTION spoilt() RETURNS trigger LANGUAGE plpgsql AS \
                 $$ BEGIN RAISE EXCEPTION 'not this one' USING ERRCODE = '{code}'; END $$; \
                 CREATE TRIGGER spoilt BEFORE INSERT ON telemetry_positions FOR EACH ROW \
                 WHEN (NEW.agent_id = '{agent_id}') EXECUTE FUNCTION spoilt()"
            );
            server.psql(&database, &rule).unwrap();
        };
        nobody_waits_for_what_the_database_refuses(&bed, spoil).await;
        bed.store.close().await;
        server.drop(&database);
    }
}

#[tokio::test]
async fn what_is_no_batch_is_fenced_where_its_session_is() {
    let folder = tempfile::tempdir().unwrap();
    let bed = Bed::new(super::sqlite(&folder).await.unwrap());
    bed.gateway(1).await;
    bed.session(1, 1).await;
    let mut holed = batch(1, 5);
    holed.records.remove(2);
    let holed = PackedBatch::pack(&BatchColumns::from(holed));
    let processor = Processor::over(&bed);
    let superseded = processor.hand_in(1, 0, holed.clone()).await;
    let current = processor.hand_in(1, 1, holed).await;
    assert_eq!(answered(superseded).await, Answer::Fenced);
    assert!(matches!(answered(current).await, Answer::Malformed(_)));
    bed.store.close().await;
}
