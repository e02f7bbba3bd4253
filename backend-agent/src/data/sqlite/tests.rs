//! Every statement against the migrated schema: it can be prepared, and none reads a whole table.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rusqlite::Connection;
use viworks_common::id::{AgentId, Tenant};
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::Options;

use super::SqliteStore;
use crate::data::intents::link::Engine as _;
use crate::data::intents::statements;
use crate::data::{HeartbeatFigures, SessionStore as _, SessionTouch, StoreError};

/// Statements that are about all gateways: lists and counts.
const OVER_ALL_GATEWAYS: &[&str] = &[
    "authorities::FORGET",
    "authorities::SIGNED",
    "authorities::SIGNED_FOR",
    "authorities::TRUST",
    "catalogues::MERGE",
    "catalogues::MERGE_ONE",
    "expiry::AWAY",
    "expiry::GENERATIONS",
    "expiry::TALLY",
    "pins::TRUST",
    "pins::UNTRUSTING_COUNT",
    "certificates::FORGET",
    "certificates::WITHDRAWN",
    "enrolments::FORGET",
    "recount::GATEWAYS",
    "targets::ALL",
    "runs::COUNTS",
    "sessions::OPEN",
    "sessions::VACATE_ALL",
];

/// How the open commands of a gateway are found: by the key of its orders (`UNIQUE`), beginning at its low-water mark.
const ABOVE_LOW_WATER: &str = "sqlite_autoindex_commands_2 (tenant=? AND agent_id=? AND order_no>?";

/// A database with the store's schema.
async fn database(folder: &tempfile::TempDir) -> Connection {
    let path = folder.path().join("backend.db");
    let store = SqliteStore::open(Options::new(&path)).await.unwrap();
    store.database().close().await.unwrap();
    Connection::open(path).unwrap()
}

fn plan(database: &Connection, sql: &str) -> String {
    let mut statement = database
        .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
        .unwrap();
    let mut rows = statement.raw_query();
    let mut lines = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        lines.push(row.get::<_, String>("detail").unwrap());
    }
    lines.join("\n")
}

#[test]
fn every_migration_is_known() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/sqlite");
    let files = fs::read_dir(folder).unwrap();
    let files: BTreeSet<_> = files
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let known: BTreeSet<_> = super::MIGRATIONS
        .iter()
        .map(|known| known.file.to_owned())
        .collect();
    assert_eq!(files, known);
}

#[tokio::test]
async fn every_statement_is_prepared_and_none_reads_a_whole_table() {
    let folder = tempfile::tempdir().unwrap();
    let database = database(&folder).await;
    for (name, sql) in statements::all() {
        // What only several backends need is not here.
        if sql.sqlite.is_empty() {
            continue;
        }
        let plan = plan(&database, sql.sqlite);
        // By the tenant alone is no better than the whole table.
        let certificates = ["certificates", "reissued", "enrolments", "e", "k"];
        let others = ["commands", "runs", "telemetry", "gateways", "c", "r", "g"];
        for whole in others.into_iter().chain(certificates) {
            let whole = format!("SEARCH {whole} USING PRIMARY KEY (tenant=?)");
            assert!(
                !plan.contains(&whole) || OVER_ALL_GATEWAYS.contains(&name),
                "{name}: {plan}"
            );
        }
        for line in plan.lines().filter(|line| line.starts_with("SCAN ")) {
            // A document's elements, a subquery's one row, and the table of migrations are short.
            let short = [
                "VIRTUAL TABLE",
                "CONSTANT",
                "SCAN here",
                "SCAN placed",
                "SCAN held",
                "SCAN numbers",
                "SCAN counted",
                "(subquery",
                "_sqlx_migrations",
                "SCAN s",
            ];
            assert!(
                short.iter().any(|short| line.contains(short)),
                "{name}: {line}"
            );
        }
    }
}

#[tokio::test]
async fn a_report_that_takes_too_long_is_ended() {
    const FOR_EVER: &str = "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n) SELECT count(*) AS i FROM n";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backend.db");
    let store = SqliteStore::open(Options::new(&path)).await.unwrap();
    let tenant = Tenant::default_tenant();
    let asked = store
        .engine()
        .report(&tenant, |view| view.one(FOR_EVER, &[], |_row| Ok(())));
    let ended = asked.await;
    assert!(matches!(ended, Err(StoreError::TooLong(_))), "{ended:?}");
    store.database().close().await.unwrap();
}

#[tokio::test]
async fn heartbeats_of_a_storm_share_one_commit() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::new(folder.path().join("backend.db"));
    let store = SqliteStore::open(options).await.unwrap();
    let commits = || store.database().counters().commits();
    let before = commits();
    let touches = (0..1_000).map(|n| SessionTouch {
        agent_id: AgentId::from_uuid(uuid::Uuid::from_u128(n)),
        epoch: 1,
        figures: HeartbeatFigures::default(),
    });
    let now = Timestamp::from_unix_micros(0);
    let tenant = Tenant::default_tenant();
    let stored = store.touch_sessions(&tenant, touches.collect(), now);
    stored.await.unwrap();
    assert_eq!(commits() - before, 1);
    store.database().close().await.unwrap();
}

#[tokio::test]
async fn hot_statements_use_their_indexes_and_sort_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let database = database(&folder).await;
    for (name, index) in [
        ("lease::QUEUED", "queued_commands_by_gateway"),
        ("lease::QUEUED_AGENTS", "queued_commands_by_gateway"),
        ("settle::END_OF_GATEWAY", ABOVE_LOW_WATER),
        ("settle::RAISE_LOW_WATER", ABOVE_LOW_WATER),
        ("settle::LOAD_OPEN_OF_GATEWAY", ABOVE_LOW_WATER),
        (
            "settle::LOAD_UNSTARTED_PAST_DEADLINE",
            "open_commands_by_deadline",
        ),
        ("settle::LOAD_OVERDUE", "open_commands_by_deadline"),
        ("settle::LOAD_OPEN_OF_RUN", "commands_by_run"),
        ("runs::COMMANDS", "commands_by_run"),
        ("runs::CANCEL_COMMANDS", "commands_by_run"),
        ("runs::RUN", "COVERING INDEX commands_by_run"),
        ("runs::LIST", "COVERING INDEX commands_by_run"),
        ("telemetry::queries::STREAM_FORWARD", "telemetry_by_stream"),
        ("telemetry::queries::STREAM_BACKWARD", "telemetry_by_stream"),
        ("telemetry::steps::REACH_BACKWARD", "telemetry_by_stream"),
        ("telemetry::steps::REACH_FORWARD", "telemetry_by_stream"),
        ("telemetry::steps::FIRST_TIME", "telemetry_by_stream"),
        ("telemetry::steps::LAST_TIME", "telemetry_by_stream"),
        ("telemetry::queries::ALL_FORWARD", "telemetry_by_time"),
        ("telemetry::queries::ALL_BACKWARD", "telemetry_by_time"),
    ] {
        let plan = plan(&database, statements::named(name).sqlite);
        assert!(
            plan.contains(index) && !plan.contains("TEMP B-TREE FOR ORDER BY"),
            "{name}\n{plan}"
        );
    }
}

/// Retention forgets the position of a spool epoch before its gaps, and the gateway may begin it anew.
#[tokio::test]
async fn a_gap_that_is_there_already_fails_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let database = database(&folder).await;
    let (_, sql) = statements::all()
        .into_iter()
        .find(|(name, _)| *name == "telemetry::INSERT_GAP")
        .unwrap();
    database.pragma_update(None, "foreign_keys", false).unwrap();
    for (to_seq, now) in [(4, 1), (9, 2), (7, 3)] {
        let named = rusqlite::named_params! {
            ":tenant": "default", ":agent_id": "a", ":spool_epoch": "e", ":from_seq": 1, ":to_seq": to_seq,
            ":reason": "spool_full", ":now": now,
        };
        database.execute(sql.sqlite, named).unwrap();
    }
    let found = database.query_row(
        "SELECT count(*), max(to_seq) FROM telemetry_gaps",
        [],
        |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)),
    );
    // The latest: beyond its end records are stored since.
    assert_eq!(found.unwrap(), (1, 7));
}
