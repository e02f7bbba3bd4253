//! The journal across restarts: what was answered is there, and nothing goes backwards.

use std::path::Path;

use uuid::Uuid;
use viworks_common::command::{Arguments, Outcome, OutcomeState};
use viworks_common::id::{AgentRunId, CommandId};
use viworks_common::journal::{Entry, EntryState};
use viworks_gateway_agent::journal::{Journal, JournalError};

const RUN: AgentRunId = AgentRunId::from_uuid(Uuid::from_u128(1));
const LATER_RUN: AgentRunId = AgentRunId::from_uuid(Uuid::from_u128(2));

fn id(number: u128) -> CommandId {
    CommandId::from_uuid(Uuid::from_u128(number))
}

fn entry(order: u64) -> Entry {
    Entry {
        command_id: id(order.into()),
        order,
        digest: [9; 32],
        name: "service.restart".parse().unwrap(),
        arguments: Arguments::from([("unit".parse().unwrap(), "ssh".to_owned())]),
        timeout_ms: (order % 2 == 1).then_some(order * 1_000),
        idempotent: false,
        state: EntryState::Accepted,
        agent_run_id: RUN,
        outcome: None,
    }
}

async fn open(path: &Path) -> Journal {
    Journal::open(path, 8).await.unwrap()
}

fn done() -> Outcome {
    let mut outcome = Outcome::without_run(OutcomeState::Succeeded, "done");
    outcome.stdout.head = vec![0, 255, 10];
    outcome
}

#[tokio::test]
async fn every_step_survives_a_process_that_just_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    for order in 1..=4 {
        open(&path).await.accept(entry(order)).await.unwrap();
    }
    // Each handle is dropped without being closed, as by kill -9.
    for order in 2..=4 {
        open(&path)
            .await
            .mark_started(id(order), LATER_RUN)
            .await
            .unwrap();
    }
    for order in 3..=4 {
        open(&path).await.finish(id(order), &done()).await.unwrap();
    }
    open(&path).await.mark_reported(id(4)).await.unwrap();
    open(&path).await.store_epoch(7, "token").await.unwrap();

    let journal = open(&path).await;
    let entries = journal.load().await.unwrap();
    let states: Vec<EntryState> = entries.iter().map(|entry| entry.state).collect();
    assert_eq!(
        states,
        [
            EntryState::Accepted,
            EntryState::Started,
            EntryState::Finished,
            EntryState::Reported
        ]
    );
    assert_eq!(entries[0], entry(1));
    assert_eq!(entries[1].agent_run_id, LATER_RUN);
    assert_eq!(entries[2].outcome, Some(done()));
    assert_eq!(
        journal.entry(id(3)).await.unwrap().as_ref(),
        Some(&entries[2])
    );
    assert_eq!(journal.entry(id(99)).await.unwrap(), None);
    assert_eq!(journal.unreported().await.unwrap(), [id(1), id(2), id(3)]);
    let meta = journal.meta().await.unwrap();
    assert_eq!((meta.highest_order, meta.low_water), (4, 0));
    assert_eq!((meta.epoch, meta.token.as_str()), (7, "token"));
}

#[tokio::test]
async fn a_step_from_the_wrong_state_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(&folder.path().join("journal.db")).await;
    journal.accept(entry(1)).await.unwrap();
    let wrong = |result: Result<(), JournalError>| {
        assert!(
            matches!(result, Err(JournalError::WrongState { .. })),
            "{result:?}"
        );
    };
    wrong(journal.accept(entry(1)).await);
    wrong(journal.mark_reported(id(1)).await);
    wrong(journal.mark_started(id(2), RUN).await);
    journal.mark_started(id(1), RUN).await.unwrap();
    wrong(journal.mark_started(id(1), RUN).await);
    wrong(journal.await_again(id(1), LATER_RUN).await);
    assert!(!journal.discard(id(1)).await.unwrap());
    journal.finish(id(1), &done()).await.unwrap();
    wrong(journal.finish(id(1), &done()).await);
    journal.mark_reported(id(1)).await.unwrap();
    journal.mark_reported(id(1)).await.unwrap();
    assert_eq!(journal.load().await.unwrap()[0].outcome, Some(done()));
}

#[tokio::test]
async fn an_interrupted_idempotent_command_waits_again() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(&folder.path().join("journal.db")).await;
    let idempotent = Entry {
        idempotent: true,
        ..entry(1)
    };
    journal.accept(idempotent).await.unwrap();
    journal.mark_started(id(1), RUN).await.unwrap();
    journal.await_again(id(1), LATER_RUN).await.unwrap();
    let found = journal.entry(id(1)).await.unwrap().unwrap();
    assert_eq!(
        (found.state, found.agent_run_id),
        (EntryState::Accepted, LATER_RUN)
    );
}

#[tokio::test]
async fn a_withdrawn_command_is_over_and_its_id_stays_known() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(&folder.path().join("journal.db")).await;
    journal.accept(entry(1)).await.unwrap();
    assert!(journal.discard(id(1)).await.unwrap());
    assert!(!journal.discard(id(1)).await.unwrap());
    assert!(journal.unreported().await.unwrap().is_empty());
    let withdrawn = journal.entry(id(1)).await.unwrap().unwrap();
    assert_eq!(withdrawn.state, EntryState::Reported);
    assert_eq!(journal.meta().await.unwrap().highest_order, 1);
}

#[tokio::test]
async fn only_reported_entries_up_to_the_mark_are_forgotten_and_the_mark_never_falls() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(&folder.path().join("journal.db")).await;
    for order in 1..=4 {
        journal.accept(entry(order)).await.unwrap();
    }
    for order in [1, 2, 4] {
        journal.finish(id(order), &done()).await.unwrap();
        journal.mark_reported(id(order)).await.unwrap();
    }
    assert_eq!(journal.forget_up_to(3).await.unwrap(), 2);
    assert_eq!(journal.forget_up_to(1).await.unwrap(), 0);
    let left: Vec<u64> = journal
        .load()
        .await
        .unwrap()
        .iter()
        .map(|e| e.order)
        .collect();
    assert_eq!(left, [3, 4]);
    let meta = journal.meta().await.unwrap();
    assert_eq!((meta.low_water, meta.highest_order), (3, 4));
}

#[tokio::test]
async fn the_bound_refuses_and_forgetting_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(&folder.path().join("journal.db")).await;
    for order in 1..=8 {
        journal.accept(entry(order)).await.unwrap();
    }
    assert!(matches!(
        journal.accept(entry(9)).await,
        Err(JournalError::Full(8))
    ));
    assert_eq!(journal.meta().await.unwrap().highest_order, 8);
    journal.finish(id(1), &done()).await.unwrap();
    journal.mark_reported(id(1)).await.unwrap();
    journal.forget_up_to(1).await.unwrap();
    journal.accept(entry(9)).await.unwrap();
}

#[tokio::test]
async fn the_ratchet_never_goes_back() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(&folder.path().join("journal.db")).await;
    journal.store_epoch(5, "five").await.unwrap();
    assert!(journal.store_epoch(4, "four").await.is_err());
    journal.store_epoch(5, "five").await.unwrap();
    let meta = journal.meta().await.unwrap();
    assert_eq!((meta.epoch, meta.token.as_str()), (5, "five"));
}

/// Made by version 2 of the schema on its driver: one entry in each state, by order.
#[tokio::test]
async fn a_journal_of_an_earlier_version_opens_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let dump = include_str!("../fixtures/journal_0002.sql");
    viworks_testkit::dump::restore(&path, dump);
    let journal = open(&path).await;
    let entries = journal.load().await.unwrap();
    let states: Vec<_> = entries.iter().map(|entry| entry.state).collect();
    let wanted = [
        EntryState::Accepted,
        EntryState::Started,
        EntryState::Finished,
        EntryState::Reported,
    ];
    assert_eq!(states, wanted);
    assert_eq!(entries[0], entry(1));
    assert_eq!(entries[1].agent_run_id, LATER_RUN);
    assert_eq!(entries[2].outcome, Some(done()));
    let meta = journal.meta().await.unwrap();
    assert_eq!((meta.epoch, meta.token.as_str()), (7, "token"));
    assert_eq!((meta.highest_order, meta.low_water), (4, 0));
    assert_eq!(journal.unreported().await.unwrap(), [id(1), id(2), id(3)]);
    journal.mark_started(id(1), LATER_RUN).await.unwrap();
    journal.accept(entry(5)).await.unwrap();
    assert_eq!(journal.forget_up_to(4).await.unwrap(), 1);
    journal.close().await.unwrap();
    assert_eq!(open(&path).await.load().await.unwrap().len(), 4);
}
