//! Every statement against the schema on a server: it can be prepared, and none reads a whole table of many rows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use viworks_common::id::Tenant;
use viworks_runtime::clock::{Clock as _, SystemClock};
use viworks_testkit::postgres::{self, Server};

use super::schema::MIGRATIONS;
use super::statement::numbered;
use super::{Address, Connection, PostgresStore, Role, naming};
use crate::data::intents::link::{Engine as _, Sql};
use crate::data::intents::statements;
use crate::data::{StoreError, UpkeepStore as _, in_full};
use crate::protocol::ASK_TIME;

/// A database with the schema, and five thousand gateways with their commands, so that plans are those of a fleet.
async fn filled() -> Option<(&'static Server, &'static str)> {
    let server = postgres::server()?;
    let database = "viworks_plans";
    if server.make_empty(database) {
        let address = Address::parse(&server.url(database), None, None).unwrap();
        let store = PostgresStore::open(address, Role::Beside, true);
        store.await.unwrap().close().await;
        server
            .psql(database, include_str!("../../../tests/fixtures/fleet.sql"))
            .unwrap();
    }
    Some((server, database))
}

#[test]
fn a_server_that_says_nothing_is_given_up_when_the_time_to_connect_is_over() {
    // The system takes the connections, and nobody answers on them.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = mute.local_addr().unwrap().port();
    let url = format!("postgres://viworks@127.0.0.1:{port}/viworks");
    let mut address = Address::parse(&url, None, None).unwrap();
    address.connect_timeout = ASK_TIME + Duration::from_millis(500);
    // To see what else may be there takes no time beyond that. One behind the other takes as long as both each time; a
    // machine that does much else is as slow as that now and then.
    let both = address.connect_timeout + ASK_TIME;
    let mut took = (0..3).map(|_round| {
        let begun = SystemClock.now();
        let error = Connection::open_first(&address).unwrap_err();
        assert!(error.is_silence(), "{error}");
        SystemClock.now().saturating_since(begun)
    });
    assert!(took.any(|took| took < both), "never below {both:?}");
}

#[test]
fn health_names_the_server_that_is_away() {
    let address = Address::parse("postgres://viworks@127.0.0.1:5499/site", None, None).unwrap();
    for error in [
        StoreError::Unavailable("Connection refused".into()),
        StoreError::Unknown("Connection reset".into()),
    ] {
        let told = in_full(&naming(&address, error));
        assert!(
            told.contains("site at 127.0.0.1:5499: Connection re"),
            "{told}"
        );
    }
}

#[test]
fn every_migration_is_known() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/postgres");
    let files = fs::read_dir(folder).unwrap();
    let files = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files: BTreeSet<_> = files.filter(|name| name.ends_with(".sql")).collect();
    let known = MIGRATIONS.iter().map(|known| known.file.to_owned());
    assert_eq!(files, known.collect());
}

/// Those that a server is ever asked.
fn of_server() -> impl Iterator<Item = (&'static str, Sql)> {
    let all = statements::all().into_iter();
    all.filter(|(_, sql)| !sql.postgres.is_empty())
}

#[tokio::test]
async fn every_statement_is_prepared_and_none_reads_a_whole_table() {
    let Some((server, database)) = filled().await else {
        return;
    };
    let address = Arc::new(Address::parse(&server.url(database), None, None).unwrap());
    let prepared = tokio::task::spawn_blocking(move || {
        let connection = Connection::open(&address).unwrap();
        for (name, sql) in of_server() {
            if let Err(error) = connection.prepare(sql) {
                panic!("{name}: {error:?}");
            }
        }
        connection.close();
    });
    prepared.await.unwrap();
    for (name, sql) in of_server() {
        if OF_ALL.contains(&name) {
            continue;
        }
        let plan = plan(server, database, sql);
        for table in MANY {
            // A day of telemetry is called by its own name.
            let whole = [
                format!("Seq Scan on {table} "),
                format!("Seq Scan on {table}_2"),
            ];
            let whole = whole.iter().any(|whole| plan.contains(whole));
            assert!(!whole, "{name}: {plan}");
        }
    }
}

#[tokio::test]
async fn a_report_that_takes_too_long_is_ended() {
    const LONG: &str = "SELECT pg_sleep(60) IS NULL AS slept";
    let Some(server) = postgres::server() else {
        return;
    };
    let database = "viworks_long_report";
    server.make_empty(database);
    let address = Address::parse(&server.url(database), None, None).unwrap();
    let store = PostgresStore::open(address, Role::Beside, true)
        .await
        .unwrap();
    let tenant = Tenant::default_tenant();
    let asked = store
        .engine()
        .report(&tenant, |view| view.one(LONG, &[], |_row| Ok(())));
    let ended = asked.await;
    assert!(matches!(ended, Err(StoreError::TooLong(_))), "{ended:?}");
    store.close().await;
    server.drop(database);
}

/// Statements are prepared on the first day of a site and stay for as long as their connection does.
#[tokio::test]
async fn no_statement_is_planned_for_tables_that_stay_empty() {
    let Some(server) = postgres::server() else {
        return;
    };
    let database = "viworks_young_plans";
    server.make_empty(database);
    let address = Address::parse(&server.url(database), None, None).unwrap();
    let store = PostgresStore::open(address, Role::Beside, true);
    store.await.unwrap().close().await;
    let entered = server
        .psql(
            database,
            "SELECT i.indexrelid::regclass || ' ' || a.attname FROM pg_index AS i \
             JOIN pg_attribute AS a ON a.attrelid = i.indexrelid AND a.attnum = 1",
        )
        .unwrap();
    let entered: BTreeMap<&str, &str> = entered
        .lines()
        .filter_map(|line| line.split_once(' '))
        .collect();
    for (name, sql) in of_server() {
        if OF_ALL.contains(&name) || WITH_STATISTICS.contains(&name) {
            continue;
        }
        let plan = plan(server, database, sql);
        let mut lines = plan.lines().peekable();
        while let Some(line) = lines.next() {
            let table = line.split(" on ").nth(1);
            let table = table.and_then(|rest| rest.split_whitespace().next());
            if !table.is_some_and(|table| MANY.contains(&table)) || !line.contains("Scan") {
                continue;
            }
            let index = line.split(" using ").nth(1);
            let index = index.and_then(|rest| rest.split_whitespace().next());
            let column = index.and_then(|index| entered.get(index));
            let condition = lines.peek().copied().unwrap_or_default();
            let goes_by = |column: &&&str| {
                condition.contains("Index Cond:") && condition.contains(&format!("({column} "))
            };
            let by_place = line.contains("Tid Scan") && condition.contains("TID Cond:");
            assert!(
                by_place || column.as_ref().is_some_and(goes_by) || in_order(&plan),
                "{name}: {line}\n{plan}"
            );
        }
    }
}

/// Whether a plan takes the first few in the order of an index.
fn in_order(plan: &str) -> bool {
    plan.starts_with("Limit ") && !plan.contains("Sort ")
}

/// Statements about all there is, or most of it.
const OF_ALL: &[&str] = &[
    "authorities::FORGET",
    "authorities::SIGNED",
    "authorities::SIGNED_FOR",
    "authorities::TRUST",
    "catalogues::MERGE",
    "expiry::AWAY",
    "expiry::GENERATIONS",
    "expiry::TALLY",
    "pins::TRUST",
    "pins::UNTRUSTING_COUNT",
    "certificates::WITHDRAWN",
    "recount::GATEWAYS",
    "recount::SHORT",
    "runs::COUNTS",
    "runs::FORKED",
    "targets::ALL",
    "sessions::UNOWNED",
    "sessions::VACATE_ALL",
];

/// What is not asked with each command. In a join the planner takes the tenant for as good as a key until the server
/// has looked at the tables, which it does within minutes.
const WITH_STATISTICS: &[&str] = &[
    "agents::BY_NAME",
    "catalogues::MERGE_ONE",
    "dead_letters::BY_ID",
    "runs::CANCEL_COMMANDS",
    "runs::COMMAND",
    "sessions::END_ALL",
    "settle::LOAD_DISPATCHED",
];

/// Tables that have many rows.
const MANY: &[&str] = &["commands", "runs", "telemetry", "gateways", "sessions"];

/// A generic plan, as the server makes it for whatever values come.
fn plan(server: &Server, database: &str, sql: Sql) -> String {
    let numbered = numbered(sql.postgres);
    let nothing = vec!["NULL"; numbered.names.len()].join(", ");
    let execute = if nothing.is_empty() {
        "asked".to_owned()
    } else {
        format!("asked ({nothing})")
    };
    let explain = format!(
        "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; \
         PREPARE asked AS {}; EXPLAIN EXECUTE {execute}",
        numbered.sql
    );
    server.psql(database, &explain).unwrap()
}
