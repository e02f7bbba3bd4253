//! Every statement against the migrated schema: it can be prepared, and none reads a whole table.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rusqlite::Connection;
use viworks_runtime::sqlite::Options;

use super::{
    SqliteStore, admit, agents, audit, budget, catalogues, certificates, confirm, forks, keys,
    lease, opening, orphans, outputs, reports, runs, sessions, settle, submit, targets, telemetry,
    timeline, tx, upkeep,
};

const STATEMENTS: &[(&str, &str)] = &[
    ("admit::FORGET_SESSIONS", admit::FORGET_SESSIONS),
    ("admit::OPEN", admit::OPEN),
    ("agents::ADD_LABELS", agents::ADD_LABELS),
    ("agents::BY_ID", agents::BY_ID),
    ("agents::BY_NAME", agents::BY_NAME),
    ("agents::CREATE", agents::CREATE),
    ("agents::LIST", agents::LIST),
    ("agents::RENAME", agents::RENAME),
    ("agents::REVOKE", agents::REVOKE),
    ("audit::APPEND", audit::APPEND),
    ("audit::LIST", audit::LIST),
    ("budget::LOAD", budget::LOAD),
    ("budget::SAVE", budget::SAVE),
    ("catalogues::LOAD", catalogues::LOAD),
    ("catalogues::MERGE", catalogues::MERGE),
    ("catalogues::MERGE_ONE", catalogues::MERGE_ONE),
    ("catalogues::SAVE", catalogues::SAVE),
    ("certificates::LOAD", certificates::LOAD),
    ("certificates::REGISTER", certificates::REGISTER),
    ("confirm::ADD_LABELS", confirm::ADD_LABELS),
    ("confirm::CONFIRMED", confirm::CONFIRMED),
    ("confirm::REMOVE_LABELS", confirm::REMOVE_LABELS),
    ("confirm::TAKE_EFFECT", confirm::TAKE_EFFECT),
    ("forks::KEEP_NEWEST", forks::KEEP_NEWEST),
    ("forks::LIST", forks::LIST),
    ("forks::RECORD", forks::RECORD),
    ("keys::BY_HASH", keys::BY_HASH),
    ("keys::BY_ID", keys::BY_ID),
    ("keys::CREATE", keys::CREATE),
    ("keys::LIST", keys::LIST),
    ("keys::REVOKE", keys::REVOKE),
    ("keys::TOUCH", keys::TOUCH),
    ("lease::QUEUED", lease::QUEUED),
    ("lease::QUEUED_AGENTS", lease::QUEUED_AGENTS),
    ("opening::IDENTITY", opening::IDENTITY),
    ("opening::SWAP", opening::SWAP),
    ("orphans::LIST", orphans::LIST),
    ("outputs::KEEP", outputs::KEEP),
    ("outputs::LOAD", outputs::LOAD),
    ("reports::HAS_ORPHAN", reports::HAS_ORPHAN),
    ("reports::KEEP_LATE_OUTCOME", reports::KEEP_LATE_OUTCOME),
    ("reports::KEEP_ORPHAN", reports::KEEP_ORPHAN),
    ("reports::TRIM_ORPHANS", reports::TRIM_ORPHANS),
    ("runs::CANCEL_COMMANDS", runs::CANCEL_COMMANDS),
    ("runs::CANCEL_RUN", runs::CANCEL_RUN),
    ("runs::COMMAND", runs::COMMAND),
    ("runs::COMMANDS", runs::COMMANDS),
    ("runs::COUNTS", runs::COUNTS),
    ("runs::KEY", runs::KEY),
    ("runs::LIST", runs::LIST),
    ("runs::RUN", runs::RUN),
    ("runs::SKIPPED", runs::SKIPPED),
    ("sessions::ENDED", sessions::ENDED),
    ("sessions::END_ALL", sessions::END_ALL),
    ("sessions::FENCE", sessions::FENCE),
    ("sessions::LIST", sessions::LIST),
    ("sessions::PINS", sessions::PINS),
    ("sessions::TOUCH", sessions::TOUCH),
    ("sessions::VACATE", sessions::VACATE),
    ("sessions::VACATE_ALL", sessions::VACATE_ALL),
    ("settle::CHANGE", settle::CHANGE),
    ("settle::END_OF_GATEWAY", settle::END_OF_GATEWAY),
    ("settle::END_OF_RUN", settle::END_OF_RUN),
    ("settle::LOAD", settle::LOAD),
    ("settle::LOAD_DISPATCHED", settle::LOAD_DISPATCHED),
    ("settle::LOAD_OPEN_OF_GATEWAY", settle::LOAD_OPEN_OF_GATEWAY),
    ("settle::LOAD_OPEN_OF_RUN", settle::LOAD_OPEN_OF_RUN),
    ("settle::LOAD_OVERDUE", settle::LOAD_OVERDUE),
    (
        "settle::LOAD_UNSTARTED_PAST_DEADLINE",
        settle::LOAD_UNSTARTED_PAST_DEADLINE,
    ),
    ("settle::RAISE_LOW_WATER", settle::RAISE_LOW_WATER),
    ("submit::COUNT", submit::COUNT),
    ("submit::GATEWAY", submit::GATEWAY),
    ("submit::INSERT_COMMAND", submit::INSERT_COMMAND),
    ("submit::INSERT_RUN", submit::INSERT_RUN),
    ("submit::INSERT_SKIP", submit::INSERT_SKIP),
    ("submit::KEEP_KEY", submit::KEEP_KEY),
    ("submit::WAITING", submit::WAITING),
    ("targets::ALL", targets::ALL),
    ("targets::BY_ID", targets::BY_ID),
    ("targets::BY_NAME", targets::BY_NAME),
    ("telemetry::COUNT_REFUSALS", telemetry::COUNT_REFUSALS),
    ("telemetry::INSERT", telemetry::INSERT),
    ("telemetry::INSERT_GAP", telemetry::INSERT_GAP),
    (
        "telemetry::KEEP_LATEST_REFUSED",
        telemetry::KEEP_LATEST_REFUSED,
    ),
    ("telemetry::MOVE_POSITION", telemetry::MOVE_POSITION),
    ("telemetry::MOVE_STREAM", telemetry::MOVE_STREAM),
    ("telemetry::POSITION", telemetry::POSITION),
    ("telemetry::POSITIONS", telemetry::POSITIONS),
    ("telemetry::REFUSED_TO", telemetry::REFUSED_TO),
    ("telemetry::REMEMBER_REFUSED", telemetry::REMEMBER_REFUSED),
    ("telemetry::SAVE_USAGE", telemetry::SAVE_USAGE),
    ("telemetry::STREAM", telemetry::STREAM),
    ("telemetry::USAGE", telemetry::USAGE),
    (
        "telemetry::queries::ALL_BACKWARD",
        telemetry::queries::ALL_BACKWARD,
    ),
    (
        "telemetry::queries::ALL_FORWARD",
        telemetry::queries::ALL_FORWARD,
    ),
    ("telemetry::queries::GAPS", telemetry::queries::GAPS),
    ("telemetry::queries::REFUSALS", telemetry::queries::REFUSALS),
    ("telemetry::queries::STREAMS", telemetry::queries::STREAMS),
    (
        "telemetry::queries::STREAM_BACKWARD",
        telemetry::queries::STREAM_BACKWARD,
    ),
    (
        "telemetry::queries::STREAM_FORWARD",
        telemetry::queries::STREAM_FORWARD,
    ),
    ("timeline::LOAD", timeline::LOAD),
    ("timeline::SAVE", timeline::SAVE),
    ("tx::BEGIN_COUNT", tx::BEGIN_COUNT),
    ("tx::COUNT_OPEN", tx::COUNT_OPEN),
    ("upkeep::BEAT", upkeep::BEAT),
    ("upkeep::PURGE_KEYS", upkeep::PURGE_KEYS),
    ("upkeep::PURGE_SESSIONS", upkeep::PURGE_SESSIONS),
    ("upkeep::VERSION", upkeep::VERSION),
];

/// Statements that are about all gateways: lists and counts.
const OVER_ALL_GATEWAYS: &[&str] = &[
    "catalogues::MERGE",
    "catalogues::MERGE_ONE",
    "targets::ALL",
    "runs::COUNTS",
    "sessions::VACATE_ALL",
];

/// A database with the store's schema.
async fn database(folder: &tempfile::TempDir) -> Connection {
    let path = folder.path().join("backend.db");
    let store = SqliteStore::open(Options::new(&path)).await.unwrap();
    store.database.close().await.unwrap();
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

/// The constants of a folder's files that hold statements, as `file::NAME`.
fn statements_in(folder: &Path, prefix: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let name = format!("{prefix}{name}");
        if path.is_dir() {
            statements_in(&path, &format!("{name}::"), found);
            continue;
        }
        for line in fs::read_to_string(&path).unwrap().lines() {
            let constant = line
                .split_once(" const ")
                .and_then(|(_, rest)| rest.split_once(": &str"));
            if let Some((constant, _)) = constant {
                found.insert(format!("{name}::{constant}"));
            }
        }
    }
}

#[test]
fn every_statement_is_looked_at() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/data/sqlite");
    let mut found = BTreeSet::new();
    statements_in(&folder, "", &mut found);
    let known: BTreeSet<_> = STATEMENTS
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    assert_eq!(found, known);
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
    for (name, sql) in STATEMENTS {
        let plan = plan(&database, sql);
        // By the tenant alone is no better than the whole table.
        for whole in ["commands", "runs", "telemetry", "gateways", "c", "r", "g"] {
            let whole = format!("SEARCH {whole} USING PRIMARY KEY (tenant=?)");
            assert!(
                !plan.contains(&whole) || OVER_ALL_GATEWAYS.contains(name),
                "{name}: {plan}"
            );
        }
        for line in plan.lines().filter(|line| line.starts_with("SCAN ")) {
            // A document's elements, a subquery's one row, and the table of migrations are short.
            let short = [
                "VIRTUAL TABLE",
                "CONSTANT",
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
async fn hot_statements_use_their_indexes_and_sort_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let database = database(&folder).await;
    for (sql, index) in [
        (lease::QUEUED, "queued_commands_by_gateway"),
        (lease::QUEUED_AGENTS, "queued_commands_by_gateway"),
        (settle::END_OF_GATEWAY, "open_commands_by_gateway"),
        (settle::LOAD_OPEN_OF_GATEWAY, "open_commands_by_gateway"),
        (
            settle::LOAD_UNSTARTED_PAST_DEADLINE,
            "open_commands_by_deadline",
        ),
        (settle::LOAD_OVERDUE, "open_commands_by_deadline"),
        (settle::LOAD_OPEN_OF_RUN, "commands_by_run"),
        (runs::COMMANDS, "commands_by_run"),
        (runs::CANCEL_COMMANDS, "commands_by_run"),
        (runs::RUN, "commands_by_run_and_state"),
        (runs::LIST, "commands_by_run_and_state"),
        (telemetry::queries::STREAM_FORWARD, "telemetry_by_stream"),
        (telemetry::queries::STREAM_BACKWARD, "telemetry_by_stream"),
        (telemetry::queries::ALL_FORWARD, "telemetry_by_time"),
        (telemetry::queries::ALL_BACKWARD, "telemetry_by_time"),
    ] {
        let plan = plan(&database, sql);
        assert!(
            plan.contains(index) && !plan.contains("TEMP B-TREE FOR ORDER BY"),
            "{sql}\n{plan}"
        );
    }
}
