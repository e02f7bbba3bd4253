//! Every statement against the migrated schema: it can be prepared, and none reads a whole table.

use sqlx::{Row, SqliteConnection};
use viworks_runtime::sqlite::Options;

use super::{
    SqliteStore, admit, agents, audit, budget, catalogues, commands, confirm, forks, keys, opening,
    outputs, runs, sessions, settle, submit, telemetry, timeline, upkeep,
};

const STATEMENTS: &[(&str, &str)] = &[
    ("agents::CREATE", agents::CREATE),
    ("agents::ADD_LABELS", agents::ADD_LABELS),
    ("agents::REMOVE_LABELS", agents::REMOVE_LABELS),
    ("agents::BY_ID", agents::BY_ID),
    ("agents::BY_NAME", agents::BY_NAME),
    ("agents::LIST", agents::LIST),
    ("agents::RENAME", agents::RENAME),
    ("agents::REVOKE", agents::REVOKE),
    ("agents::REGISTER", agents::REGISTER),
    ("agents::CERTIFICATES", agents::CERTIFICATES),
    ("audit::APPEND", audit::APPEND),
    ("audit::LIST", audit::LIST),
    ("budget::LOAD", budget::LOAD),
    ("budget::SAVE", budget::SAVE),
    ("catalogues::LOAD", catalogues::LOAD),
    ("catalogues::MERGE", catalogues::MERGE),
    ("catalogues::TARGETS_ALL", catalogues::TARGETS_ALL),
    ("catalogues::TARGETS_SELECTED", catalogues::TARGETS_SELECTED),
    ("commands::QUEUED", commands::QUEUED),
    ("commands::QUEUED_AGENTS", commands::QUEUED_AGENTS),
    ("commands::KEEP_LATE_OUTCOME", commands::KEEP_LATE_OUTCOME),
    ("commands::HAS_ORPHAN", commands::HAS_ORPHAN),
    ("commands::KEEP_ORPHAN", commands::KEEP_ORPHAN),
    ("commands::TRIM_ORPHANS", commands::TRIM_ORPHANS),
    ("keys::CREATE", keys::CREATE),
    ("keys::BY_HASH", keys::BY_HASH),
    ("keys::LIST", keys::LIST),
    ("keys::BY_ID", keys::BY_ID),
    ("keys::REVOKE", keys::REVOKE),
    ("keys::TOUCH", keys::TOUCH),
    ("outputs::LOAD", outputs::LOAD),
    ("runs::KEYS", runs::KEYS),
    ("submit::STANDING", submit::STANDING),
    ("submit::SUBMIT", submit::SUBMIT),
    ("runs::RUNS", runs::RUNS),
    ("runs::LIST", runs::LIST),
    ("runs::COMMAND", runs::COMMAND),
    ("runs::COMMANDS", runs::COMMANDS),
    ("runs::SKIPPED", runs::SKIPPED),
    ("runs::CANCEL_RUN", runs::CANCEL_RUN),
    ("runs::CANCEL_COMMANDS", runs::CANCEL_COMMANDS),
    ("runs::COUNTS", runs::COUNTS),
    ("sessions::FENCE", sessions::FENCE),
    ("opening::IDENTITIES", opening::IDENTITIES),
    ("admit::ADMIT", admit::ADMIT),
    ("confirm::CONFIRM", confirm::CONFIRM),
    ("sessions::ENDED", sessions::ENDED),
    ("sessions::VACATE", sessions::VACATE),
    ("sessions::VACATE_ALL", sessions::VACATE_ALL),
    ("sessions::END_ALL", sessions::END_ALL),
    ("sessions::TOUCH", sessions::TOUCH),
    ("sessions::PINS", sessions::PINS),
    ("sessions::LIST", sessions::LIST),
    ("forks::RECORD", forks::RECORD),
    ("forks::LIST", forks::LIST),
    ("forks::KEEP_NEWEST", forks::KEEP_NEWEST),
    ("settle::LOAD", settle::LOAD),
    ("settle::LOAD_OPEN_OF_GATEWAY", settle::LOAD_OPEN_OF_GATEWAY),
    ("settle::LOAD_OPEN_OF_RUN", settle::LOAD_OPEN_OF_RUN),
    ("settle::LOAD_DISPATCHED", settle::LOAD_DISPATCHED),
    (
        "settle::LOAD_UNSTARTED_PAST_DEADLINE",
        settle::LOAD_UNSTARTED_PAST_DEADLINE,
    ),
    ("settle::LOAD_OVERDUE", settle::LOAD_OVERDUE),
    ("settle::CHANGE", settle::CHANGE),
    ("settle::FINISH", settle::FINISH),
    ("settle::RAISE_LOW_WATER", settle::RAISE_LOW_WATER),
    ("telemetry::STANDING", telemetry::STANDING),
    ("telemetry::POSITIONS", telemetry::POSITIONS),
    ("telemetry::POSITIONS_NAMED", telemetry::POSITIONS_NAMED),
    ("telemetry::INSERT", telemetry::INSERT),
    ("telemetry::MOVE_POSITIONS", telemetry::MOVE_POSITIONS),
    ("telemetry::MOVE_STREAMS", telemetry::MOVE_STREAMS),
    ("telemetry::INSERT_GAPS", telemetry::INSERT_GAPS),
    ("telemetry::COUNT_REFUSALS", telemetry::COUNT_REFUSALS),
    ("telemetry::ALL_FORWARD", telemetry::ALL_FORWARD),
    ("telemetry::ALL_BACKWARD", telemetry::ALL_BACKWARD),
    ("telemetry::STREAM_FORWARD", telemetry::STREAM_FORWARD),
    ("telemetry::STREAM_BACKWARD", telemetry::STREAM_BACKWARD),
    ("telemetry::STREAMS", telemetry::STREAMS),
    ("telemetry::GAPS", telemetry::GAPS),
    ("telemetry::REFUSALS", telemetry::REFUSALS),
    ("admit::FORGET_SESSIONS", admit::FORGET_SESSIONS),
    ("telemetry::usage::USAGE", telemetry::usage::USAGE),
    (
        "telemetry::usage::KNOWN_STREAMS",
        telemetry::usage::KNOWN_STREAMS,
    ),
    ("telemetry::usage::SAVE_USAGE", telemetry::usage::SAVE_USAGE),
    ("upkeep::PURGE_KEYS", upkeep::PURGE_KEYS),
    ("upkeep::PURGE_SESSIONS", upkeep::PURGE_SESSIONS),
    ("timeline::LOAD", timeline::LOAD),
    ("timeline::SAVE", timeline::SAVE),
    ("upkeep::BEAT", upkeep::BEAT),
    ("upkeep::VERSION", upkeep::VERSION),
];

/// Statements that are about all gateways: lists, counts, and the sum of what waits.
const OVER_ALL_GATEWAYS: &[&str] = &[
    "catalogues::MERGE",
    "catalogues::TARGETS_ALL",
    "runs::COUNTS",
    "sessions::VACATE_ALL",
    "submit::STANDING",
];

async fn plan(connection: &mut SqliteConnection, sql: &'static str) -> String {
    let mut lines = Vec::new();
    for statement in sql.split(';') {
        let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {statement}"));
        let rows = sqlx::query(explain)
            .fetch_all(&mut *connection)
            .await
            .unwrap();
        lines.extend(rows.iter().map(|row| row.get::<String, _>("detail")));
    }
    lines.join("\n")
}

async fn store(folder: &tempfile::TempDir) -> SqliteStore {
    let options = Options::new(folder.path().join("backend.db"));
    SqliteStore::open(options).await.unwrap()
}

#[tokio::test]
async fn every_statement_is_prepared_and_none_reads_a_whole_table() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder).await;
    let mut reader = store.database.read().await.unwrap();
    for (name, sql) in STATEMENTS {
        let plan = plan(&mut reader, sql).await;
        // By the tenant alone is no better than the whole table.
        for whole in [
            "commands",
            "runs",
            "telemetry",
            "gateways",
            "c",
            "r",
            "q",
            "g",
        ] {
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
                "SCAN e",
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
    let store = store(&folder).await;
    let mut reader = store.database.read().await.unwrap();
    for (sql, index) in [
        (commands::QUEUED, "queued_commands_by_gateway"),
        (commands::QUEUED_AGENTS, "queued_commands_by_gateway"),
        (settle::FINISH, "open_commands_by_gateway"),
        (settle::LOAD_OPEN_OF_GATEWAY, "open_commands_by_gateway"),
        (
            settle::LOAD_UNSTARTED_PAST_DEADLINE,
            "open_commands_by_deadline",
        ),
        (settle::LOAD_OVERDUE, "open_commands_by_deadline"),
        (settle::LOAD_OPEN_OF_RUN, "commands_by_run"),
        (runs::COMMANDS, "commands_by_run"),
        (runs::CANCEL_COMMANDS, "commands_by_run"),
        (runs::RUNS, "commands_by_run_and_state"),
        (runs::LIST, "commands_by_run_and_state"),
        (telemetry::STREAM_FORWARD, "telemetry_by_stream"),
        (telemetry::STREAM_BACKWARD, "telemetry_by_stream"),
        (telemetry::ALL_FORWARD, "telemetry_by_time"),
        (telemetry::ALL_BACKWARD, "telemetry_by_time"),
    ] {
        let plan = plan(&mut reader, sql).await;
        assert!(
            plan.contains(index) && !plan.contains("TEMP B-TREE FOR ORDER BY"),
            "{sql}\n{plan}"
        );
    }
}
