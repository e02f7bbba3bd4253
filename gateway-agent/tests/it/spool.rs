//! The spool against a model of the backend: through loss, restarts and the bound, every record is stored or in a gap.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proptest::prelude::*;
use uuid::Uuid;
use viworks_common::id::AgentRunId;
use viworks_common::limits;
use viworks_common::telemetry::{Batch, BatchColumns, FieldValue, GapReason, Position, Record};
use viworks_common::time::Timestamp;
use viworks_gateway_agent::spool::{
    BATCH_BYTES_MAX, BYTES_MIN, Bounds, IntakeRefusal, Spool, check,
};

const NOW: Timestamp = Timestamp::from_unix_micros(1_795_000_000_000_000);

fn run(number: u32) -> AgentRunId {
    AgentRunId::from_uuid(Uuid::from_u128(number.into()))
}

fn record(bytes: usize) -> Record {
    // Several values, because one may not be longer than 1 KiB.
    let fields = (0..bytes.div_ceil(1_000))
        .map(|part| {
            let length = (bytes - part * 1_000).min(1_000);
            let name = format!("f{part}").parse().unwrap();
            (name, FieldValue::Text("x".repeat(length)))
        })
        .collect();
    Record {
        stream: "test.stream".parse().unwrap(),
        observed_at: NOW,
        fields,
    }
}

async fn open(path: &Path, epoch: AgentRunId) -> Spool {
    let opened = Spool::open(path, Bounds::of(BYTES_MIN), epoch)
        .await
        .unwrap();
    assert_eq!(opened.damaged, None);
    opened.spool
}

/// What a backend would have: committed positions, stored numbers, and numbers in gaps.
#[derive(Default)]
struct Backend {
    committed: BTreeMap<AgentRunId, u64>,
    stored: BTreeSet<(AgentRunId, u64)>,
    gaps: BTreeSet<(AgentRunId, u64)>,
}

impl Backend {
    fn take(&mut self, batch: &Batch) -> Position {
        batch.check_contiguous().unwrap();
        let size = serde_json::to_vec(&BatchColumns::from(batch.clone()))
            .unwrap()
            .len();
        assert!(size <= BATCH_BYTES_MAX, "{size}");
        let epoch = batch.spool_epoch;
        let committed = self.committed.entry(epoch).or_default();
        assert!(
            batch.from_seq <= *committed + 1,
            "a hole before {}",
            batch.from_seq
        );
        for (seq, _record) in &batch.records {
            if seq > committed {
                assert!(self.stored.insert((epoch, *seq)));
            }
        }
        for gap in &batch.gaps {
            for seq in gap.from_seq.max(*committed + 1)..=gap.to_seq {
                assert!(self.gaps.insert((epoch, seq)));
            }
        }
        *committed = batch.to_seq.max(*committed);
        Position {
            spool_epoch: epoch,
            seq: *committed,
        }
    }

    async fn drain(&mut self, spool: &Spool) {
        while let Some(batch) = spool
            .next_batch(&BTreeMap::new(), usize::MAX)
            .await
            .unwrap()
        {
            let position = self.take(&batch);
            spool.acknowledge(position).await.unwrap();
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Append so many records of so many bytes.
    Append(usize, usize),
    /// Append so many records of so many bytes that are the agent's own.
    Read(usize, usize),
    /// Deliver a batch; the acknowledgement arrives or is lost.
    Deliver { credit: usize, acknowledged: bool },
    /// End without closing and start again.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_usize..40, 1_usize..4_000).prop_map(|(count, bytes)| Step::Append(count, bytes)),
        1 => (100_usize..110, 1_000_usize..3_000).prop_map(|(count, bytes)| Step::Append(count, bytes)),
        2 => (1_usize..40, 1_usize..1_000).prop_map(|(count, bytes)| Step::Read(count, bytes)),
        4 => (300_usize..20_000, any::<bool>())
            .prop_map(|(credit, acknowledged)| Step::Deliver { credit, acknowledged }),
        1 => Just(Step::Restart),
    ]
}

async fn play(steps: Vec<Step>) -> (u64, u64) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool.db");
    let mut process = 1;
    let mut spool = open(&path, run(process)).await;
    let mut backend = Backend::default();
    let mut appended: BTreeMap<AgentRunId, u64> = BTreeMap::new();
    for step in steps {
        let appending = matches!(step, Step::Append(..) | Step::Read(..));
        match step {
            Step::Append(count, bytes) => {
                spool.append(&vec![record(bytes); count]).await.unwrap();
                *appended.entry(run(process)).or_default() += u64::try_from(count).unwrap();
            }
            Step::Read(count, bytes) => {
                let readings = vec![record(bytes); count];
                spool.append_or_count(&readings).await.unwrap();
                *appended.entry(run(process)).or_default() += u64::try_from(count).unwrap();
            }
            Step::Deliver {
                credit,
                acknowledged,
            } => {
                let batch = spool.next_batch(&BTreeMap::new(), credit).await.unwrap();
                if let Some(batch) = batch {
                    let position = backend.take(&batch);
                    if acknowledged {
                        spool.acknowledge(position).await.unwrap();
                    }
                }
            }
            Step::Restart => {
                process += 1;
                spool = open(&path, run(process)).await;
            }
        }
        let figures = spool.figures();
        assert!(figures.bytes <= figures.bytes_max, "{figures:?}");
        // Who fills how much is known by bytes only, so what is delivered shifts it a little.
        let within = figures.local_bytes <= figures.local_bytes_max;
        assert!(within || !appending, "{figures:?}");
    }
    backend.drain(&spool).await;
    assert_eq!(spool.figures().records, 0);
    for position in spool.positions().await.unwrap() {
        assert_eq!(Some(&position.seq), appended.get(&position.spool_epoch));
    }
    for (epoch, last) in &appended {
        for seq in 1..=*last {
            let (stored, lost) = (
                backend.stored.contains(&(*epoch, seq)),
                backend.gaps.contains(&(*epoch, seq)),
            );
            assert!(
                stored != lost,
                "{epoch} {seq}: stored {stored}, in a gap {lost}"
            );
        }
    }
    let all: u64 = appended.values().sum();
    let (stored, lost) = (backend.stored.len(), backend.gaps.len());
    assert_eq!(u64::try_from(stored + lost).unwrap(), all);
    (u64::try_from(lost).unwrap(), spool.figures().dropped)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_number_is_stored_once_or_in_a_gap_and_never_both(steps in prop::collection::vec(step(), 1..25)) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (lost, dropped) = runtime.block_on(play(steps));
        // A record that was delivered, whose acknowledgement was lost and that was then given up, is no loss.
        prop_assert!(lost <= dropped);
    }
}

/// Bodies a little above what a leaf keeps take a page each: the bound must hold for them as well.
#[tokio::test]
async fn a_burst_of_records_that_just_spill_over_is_taken_in() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(&folder.path().join("spool.db"), run(1)).await;
    for bytes in [700, 850, 950, 1_010, 1_100, 2_050, 3_100] {
        spool.append(&vec![record(bytes); 400]).await.unwrap();
        let figures = spool.figures();
        assert!(figures.bytes <= figures.bytes_max, "{bytes}: {figures:?}");
    }
}

#[tokio::test]
async fn at_the_bound_the_oldest_go_and_the_count_is_exact() {
    let (lost, dropped) = play(vec![Step::Append(600, 2_000)]).await;
    assert!(lost > 0);
    assert_eq!(lost, dropped);
}

#[tokio::test]
async fn however_much_local_programs_hand_in_the_agents_own_records_stay() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(&folder.path().join("spool.db"), run(1)).await;
    let mut own = BTreeSet::new();
    let mut seq = 0;
    for _round in 0..10 {
        spool.append_or_count(&vec![record(200); 5]).await.unwrap();
        own.extend(seq + 1..=seq + 5);
        spool.append(&vec![record(500); 300]).await.unwrap();
        seq += 305;
    }
    let figures = spool.figures();
    assert!(
        figures.local_bytes <= figures.local_bytes_max && figures.dropped > 2_000,
        "{figures:?}"
    );
    let mut backend = Backend::default();
    backend.drain(&spool).await;
    let stored: BTreeSet<u64> = backend.stored.iter().map(|(_run, seq)| *seq).collect();
    assert!(stored.is_superset(&own), "{stored:?}");
    // The newest of the others, too.
    assert!(
        stored.is_superset(&(seq - 200..=seq).collect()),
        "{stored:?}"
    );
    assert_eq!(stored.len() + backend.gaps.len(), 3_050);
    let dropped = usize::try_from(spool.figures().dropped).unwrap();
    assert_eq!(backend.gaps.len(), dropped);
    assert_eq!(
        (spool.figures().records, spool.figures().local_bytes),
        (0, 0)
    );
}

/// What the disk did not take is a gap amid the records; the bound may go across it.
#[tokio::test]
async fn records_on_both_sides_of_a_gap_are_given_up_as_one() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(&folder.path().join("spool.db"), run(1)).await;
    spool.append_or_count(&vec![record(10); 10]).await.unwrap();
    spool.hold(Some("a test".to_owned()));
    spool
        .append_or_count(&vec![record(10); 5])
        .await
        .unwrap_err();
    spool.hold(None);
    spool.settle().await.unwrap();
    spool
        .append_or_count(&vec![record(2_000); 600])
        .await
        .unwrap();
    let mut backend = Backend::default();
    backend.drain(&spool).await;
    assert_eq!(backend.committed[&run(1)], 615);
    assert_eq!(backend.stored.len() + backend.gaps.len(), 615);
}

#[tokio::test]
async fn a_gap_is_delivered_even_when_nothing_follows_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool.db");
    let first = open(&path, run(1)).await;
    first.append(&vec![record(100); 20]).await.unwrap();
    let second = open(&path, run(2)).await;
    second.append(&vec![record(3_000); 400]).await.unwrap();
    let batch = second
        .next_batch(&BTreeMap::new(), usize::MAX)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (batch.spool_epoch, batch.from_seq, batch.to_seq),
        (run(1), 1, 20)
    );
    assert!(batch.records.is_empty());
    assert_eq!(batch.gaps[0].reason, GapReason::SpoolFull);
}

#[tokio::test]
async fn what_was_appended_survives_a_process_that_just_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool.db");
    open(&path, run(1))
        .await
        .append(&[record(10), record(20)])
        .await
        .unwrap();
    let spool = open(&path, run(2)).await;
    assert_eq!(spool.figures().records, 2);
    spool.append(&[record(30)]).await.unwrap();
    assert_eq!(
        spool.positions().await.unwrap(),
        [
            Position {
                spool_epoch: run(1),
                seq: 0
            },
            Position {
                spool_epoch: run(2),
                seq: 0
            }
        ]
    );
    let batch = spool
        .next_batch(&BTreeMap::new(), usize::MAX)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(batch.spool_epoch, run(1));
    assert_eq!(batch.records, [(1, record(10)), (2, record(20))]);
}

#[tokio::test]
async fn what_the_disk_did_not_take_becomes_a_gap_before_what_it_takes_later() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(&folder.path().join("spool.db"), run(1)).await;
    spool.append(&[record(10)]).await.unwrap();
    spool.hold(Some("the file system is read-only".to_owned()));
    // Who asked through the local API was told, and may ask again; a reading of the host exists nowhere else.
    spool.append(&[record(20)]).await.unwrap_err();
    spool
        .append_or_count(&vec![record(30); 3])
        .await
        .unwrap_err();
    spool.settle().await.unwrap_err();
    assert_eq!((spool.refused(), spool.figures().dropped), (4, 0));
    spool.hold(None);
    spool.settle().await.unwrap();
    spool.settle().await.unwrap();
    spool.append(&[record(40)]).await.unwrap();
    assert_eq!(spool.figures().dropped, 3, "each is counted once");
    let none = BTreeMap::new();
    let batch = spool.next_batch(&none, usize::MAX).await.unwrap().unwrap();
    batch.check_contiguous().unwrap();
    assert_eq!(batch.records, [(1, record(10)), (5, record(40))]);
    let gap = batch.gaps[0];
    assert_eq!(
        (gap.from_seq, gap.to_seq, gap.reason),
        (2, 4, GapReason::SpoolFull)
    );
    drop(spool);
    let again = open(&folder.path().join("spool.db"), run(2)).await;
    assert_eq!(again.figures().dropped, 3, "the count outlives the process");
}

#[tokio::test]
async fn what_is_under_way_is_not_read_again_and_small_credit_yields_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(&folder.path().join("spool.db"), run(1)).await;
    spool.append(&vec![record(5_000); 5]).await.unwrap();
    let none = BTreeMap::new();
    assert_eq!(spool.next_batch(&none, 1_000).await.unwrap(), None);
    let first = spool.next_batch(&none, usize::MAX).await.unwrap().unwrap();
    assert_eq!((first.from_seq, first.to_seq), (1, 2));
    let after = BTreeMap::from([(run(1), 2)]);
    let second = spool.next_batch(&after, usize::MAX).await.unwrap().unwrap();
    assert_eq!((second.from_seq, second.to_seq), (3, 4));
    let all = BTreeMap::from([(run(1), 5)]);
    assert_eq!(spool.next_batch(&all, usize::MAX).await.unwrap(), None);
}

#[tokio::test]
async fn no_more_epochs_are_named_than_a_hello_holds_and_the_others_follow() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool.db");
    let processes = u32::try_from(limits::SPOOL_EPOCHS_NAMED_MAX).unwrap() + 3;
    let mut spool = open(&path, run(1)).await;
    for process in 1..=processes {
        spool = open(&path, run(process)).await;
        spool.append(&[record(10)]).await.unwrap();
    }
    assert_eq!(
        spool.positions().await.unwrap().len(),
        limits::SPOOL_EPOCHS_NAMED_MAX
    );
    let mut backend = Backend::default();
    backend.drain(&spool).await;
    assert_eq!(backend.stored.len(), usize::try_from(processes).unwrap());
}

#[tokio::test]
async fn the_youngest_delivered_epochs_are_remembered_beside_those_that_wait() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool.db");
    let last = u32::try_from(limits::SPOOL_EPOCHS_NAMED_MAX).unwrap() + 4;
    let mut backend = Backend::default();
    for process in 1..=last {
        let spool = open(&path, run(process)).await;
        spool.append(&[record(10), record(20)]).await.unwrap();
        backend.drain(&spool).await;
    }
    let spool = open(&path, run(last + 1)).await;
    spool.append(&[record(30)]).await.unwrap();
    let mut expected = vec![Position {
        spool_epoch: run(last + 1),
        seq: 0,
    }];
    expected.extend((5..=last).rev().map(|process| Position {
        spool_epoch: run(process),
        seq: 2,
    }));
    assert_eq!(spool.positions().await.unwrap(), expected);
}

#[tokio::test]
async fn a_late_or_foreign_acknowledgement_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(&folder.path().join("spool.db"), run(1)).await;
    spool.append(&[record(10), record(10)]).await.unwrap();
    spool
        .acknowledge(Position {
            spool_epoch: run(9),
            seq: 5,
        })
        .await
        .unwrap();
    spool
        .acknowledge(Position {
            spool_epoch: run(1),
            seq: 2,
        })
        .await
        .unwrap();
    spool
        .acknowledge(Position {
            spool_epoch: run(1),
            seq: 1,
        })
        .await
        .unwrap();
    // Beyond what was ever appended: the next number is not taken for acknowledged.
    spool
        .acknowledge(Position {
            spool_epoch: run(1),
            seq: 99,
        })
        .await
        .unwrap();
    spool.append(&[record(30)]).await.unwrap();
    let batch = spool
        .next_batch(&BTreeMap::new(), usize::MAX)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(batch.records, [(3, record(30))]);
}

#[tokio::test]
async fn a_damaged_file_is_put_aside_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool.db");
    std::fs::write(&path, vec![0xa5; 20_000]).unwrap();
    let opened = Spool::open(&path, Bounds::of(BYTES_MIN), run(1))
        .await
        .unwrap();
    assert!(opened.damaged.unwrap().exists());
    opened.spool.append(&[record(10)]).await.unwrap();
    assert_eq!(opened.spool.figures().records, 1);
}

#[test]
fn a_record_that_fits_into_no_batch_is_refused_beforehand() {
    assert_eq!(check(&record(14_000)), Ok(()));
    assert_eq!(check(&record(20_000)), Err(IntakeRefusal::TooLarge));
}

/// Made by version 1 of the schema on its driver: twenty records of process 1, five of them acknowledged.
#[tokio::test]
async fn a_spool_of_an_earlier_version_opens_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool.db");
    let dump = include_str!("../fixtures/spool_0001.sql");
    viworks_testkit::dump::restore(&path, dump);
    let spool = open(&path, run(2)).await;
    assert_eq!(spool.figures().records, 15);
    spool.append(&[record(10), record(10)]).await.unwrap();
    let mut backend = Backend::default();
    backend.committed.insert(run(1), 5);
    backend.drain(&spool).await;
    assert_eq!(backend.committed, [(run(1), 20), (run(2), 2)].into());
    assert_eq!(backend.stored.len(), 17);
    assert_eq!(spool.figures().records, 0);
    spool.close().await.unwrap();
}
