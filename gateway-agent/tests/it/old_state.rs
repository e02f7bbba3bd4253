//! A state folder that an earlier version left behind: its commands and its telemetry go on in this one.
//!
//! The files hold rows by the first migrations alone, with the checksums that the driver of that time noted beside
//! them.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use viworks_common::command::{Arguments, OutcomeState};
use viworks_common::id::{AgentRunId, CommandId};
use viworks_common::journal::{Entry, EntryState};
use viworks_common::telemetry::{FieldValue, GapReason, Position, Record};
use viworks_common::time::Timestamp;
use viworks_gateway_agent::journal::Journal;
use viworks_gateway_agent::spool::{BYTES_MIN, Bounds, Spool};

const OLD_RUN: AgentRunId = AgentRunId::from_uuid(Uuid::from_u128(0xa1));
const NEW_RUN: AgentRunId = AgentRunId::from_uuid(Uuid::from_u128(0xb2));

fn id(number: u128) -> CommandId {
    CommandId::from_uuid(Uuid::from_u128(number))
}

fn copy(name: &str, folder: &Path) -> PathBuf {
    let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/old_state");
    let copy = folder.join(name);
    std::fs::copy(old.join(name), &copy).unwrap();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o600)).unwrap();
    copy
}

#[tokio::test]
async fn commands_of_an_earlier_version_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = copy("journal.db", folder.path());
    let journal = Journal::open(&path, 8).await.unwrap();
    let entries = journal.load().await.unwrap();
    let seen: Vec<(u64, EntryState, bool, Option<u64>)> = entries
        .iter()
        .map(|entry| (entry.order, entry.state, entry.idempotent, entry.timeout_ms))
        .collect();
    assert_eq!(
        seen,
        [
            (1, EntryState::Reported, false, None),
            (2, EntryState::Finished, false, None),
            (3, EntryState::Started, false, None),
            (4, EntryState::Accepted, true, None),
        ]
    );
    let finished = &entries[1];
    assert_eq!(finished.agent_run_id, OLD_RUN);
    assert_eq!(finished.digest, [9; 32]);
    assert_eq!(
        finished.arguments,
        Arguments::from([("unit".parse().unwrap(), "ssh".to_owned())])
    );
    let outcome = finished.outcome.clone().unwrap();
    assert_eq!(outcome.state, OutcomeState::Succeeded);
    assert_eq!(outcome.stdout.head, [0, 255, 10]);
    let meta = journal.meta().await.unwrap();
    assert_eq!((meta.highest_order, meta.epoch), (4, 7));
    assert_eq!(meta.token, "token");

    journal.finish(id(3), &outcome).await.unwrap();
    journal.mark_started(id(4), OLD_RUN).await.unwrap();
    journal.await_again(id(4), NEW_RUN).await.unwrap();
    let new = Entry {
        command_id: id(5),
        order: 5,
        timeout_ms: Some(5_000),
        state: EntryState::Accepted,
        agent_run_id: NEW_RUN,
        outcome: None,
        ..finished.clone()
    };
    journal.accept(new.clone()).await.unwrap();
    journal.forget_up_to(1).await.unwrap();
    journal.close().await.unwrap();
    let journal = Journal::open(&path, 8).await.unwrap();
    let entries = journal.load().await.unwrap();
    let states: Vec<EntryState> = entries.iter().map(|entry| entry.state).collect();
    assert_eq!(
        states,
        [
            EntryState::Finished,
            EntryState::Finished,
            EntryState::Accepted,
            EntryState::Accepted,
        ]
    );
    assert_eq!(entries.last(), Some(&new));
}

#[tokio::test]
async fn telemetry_of_an_earlier_version_is_delivered_before_what_came_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = copy("spool.db", folder.path());
    let opened = Spool::open(&path, Bounds::of(BYTES_MIN), NEW_RUN)
        .await
        .unwrap();
    assert_eq!(opened.damaged, None);
    let spool = opened.spool;
    assert_eq!((spool.figures().records, spool.figures().dropped), (3, 2));
    let record = Record {
        stream: "host.cpu".parse().unwrap(),
        observed_at: Timestamp::from_unix_micros(1_795_000_000_000_000),
        fields: [("busy_percent".parse().unwrap(), FieldValue::Number(1.5))].into(),
    };
    spool.append(std::slice::from_ref(&record)).await.unwrap();

    let under_way = BTreeMap::new();
    let batch = spool
        .next_batch(&under_way, 100_000)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (batch.spool_epoch, batch.from_seq, batch.to_seq),
        (OLD_RUN, 3, 7)
    );
    let gap = batch.gaps.first().unwrap();
    assert_eq!(
        (gap.from_seq, gap.to_seq, gap.reason),
        (3, 4, GapReason::SpoolFull)
    );
    let numbers: Vec<u64> = batch.records.iter().map(|(seq, _record)| *seq).collect();
    assert_eq!(numbers, [5, 6, 7]);
    let (_seq, first) = batch.records.first().unwrap();
    let busy = first.fields.values().next();
    assert_eq!(busy, Some(&FieldValue::Number(5.5)));
    let committed = Position {
        spool_epoch: OLD_RUN,
        seq: 7,
    };
    spool.acknowledge(committed).await.unwrap();
    let batch = spool
        .next_batch(&under_way, 100_000)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((batch.spool_epoch, batch.from_seq), (NEW_RUN, 1));
    assert_eq!(batch.records, [(1, record)]);
    spool.close().await.unwrap();
}

#[test]
fn a_released_migration_is_never_changed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let changed = viworks_testkit::dump::changed_migrations(&folder);
    assert_eq!(changed, [""; 0]);
}
