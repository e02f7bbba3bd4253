//! The counters of open commands: one that is off refuses nobody, is found and set right; one that is right stays.

use rusqlite::Connection;
use tempfile::TempDir;
use viworks_backend_agent::data::Recounted;
use viworks_common::command::{CommandState, OutcomeState};

use super::bed::{Bed, at};

/// Every counter counts nothing, in the words of both stores.
const EMPTIED: &[&str] = &[
    "UPDATE gateways SET open_commands = 0",
    "UPDATE open_commands SET commands = 0",
];

/// Every counter counts too much, and the tenant's is not there.
const TOO_MUCH: &[&str] = &[
    "UPDATE gateways SET open_commands = open_commands + 7",
    "DELETE FROM open_commands",
];

async fn recount(bed: &Bed) -> Recounted {
    bed.store.recount(&bed.tenant, at(40)).await.unwrap()
}

async fn counted(bed: &Bed) -> [u64; 2] {
    [
        bed.gateway_now(1).await.open_commands,
        bed.gateway_now(2).await.open_commands,
    ]
}

async fn wrong_counters_are_set_right(bed: &Bed, spoil: &(dyn Fn(&str) + Sync)) {
    let spoil = |statements: &[&str]| statements.iter().for_each(|one| spoil(one));
    bed.gateway(1).await;
    bed.gateway(2).await;
    let session = bed.session(1, 1).await;
    for _two in 0..2 {
        bed.command(2, false).await;
    }
    let command = bed.released(1, &session).await;
    assert_eq!(recount(bed).await, Recounted::default());
    assert_eq!(counted(bed).await, [1, 2]);

    // It is no reason to refuse what comes.
    spoil(EMPTIED);
    bed.complete(&session, command, OutcomeState::Succeeded).await;
    assert_eq!(bed.state(command).await, CommandState::Succeeded);
    bed.command(1, false).await;
    let found = recount(bed).await;
    assert!(found.short > 0 && found.gateways > 0, "{found:?}");
    assert_eq!(counted(bed).await, [1, 2]);
    assert_eq!(recount(bed).await, Recounted::default());

    spoil(TOO_MUCH);
    let wanted = Recounted {
        short: 3,
        gateways: 2,
    };
    assert_eq!(recount(bed).await, wanted);
    assert_eq!(counted(bed).await, [1, 2]);
    assert_eq!(recount(bed).await, Recounted::default());
    bed.store.close().await;
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test]
async fn wrong_counters_are_set_right_on_sqlite() {
    let folder = folder();
    let bed = Bed::new(super::sqlite(&folder).await.unwrap());
    let path = folder.path().join("backend.db");
    let spoil = |statement: &str| {
        let database = Connection::open(&path).unwrap();
        assert!(database.execute(statement, []).unwrap() > 0, "{statement}");
    };
    wrong_counters_are_set_right(&bed, &spoil).await;
    super::sqlite_counts_are_right(&folder);
}

#[tokio::test]
async fn wrong_counters_are_set_right_on_postgres() {
    let folder = folder();
    let Some(store) = super::postgres(&folder).await else {
        return;
    };
    let (server, database) = super::database(&folder).unwrap();
    let spoil = |statement: &str| {
        server.psql(&database, statement).unwrap();
    };
    wrong_counters_are_set_right(&Bed::new(store), &spoil).await;
    super::postgres_counts_are_right(&folder);
}
