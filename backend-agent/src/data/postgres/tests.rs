//! Every statement against the schema on a server: it can be prepared, and none reads a whole table of many rows.

use std::sync::Arc;

use viworks_testkit::postgres::{self, Server};

use super::statement::numbered;
use super::{Address, Connection, PostgresStore, Role};
use crate::data::Store as _;
use crate::data::intents::link::Sql;
use crate::data::intents::statements;

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
        if [
            "catalogues::MERGE",
            "runs::COUNTS",
            "targets::ALL",
            "sessions::UNOWNED",
            "sessions::VACATE_ALL",
        ]
        .contains(&name)
        {
            continue;
        }
        // A generic plan, as the server makes it for whatever values come.
        let numbered = numbered(sql.postgres);
        let nothing = vec!["NULL"; numbered.names.len()].join(", ");
        let execute = if nothing.is_empty() {
            "asked".to_owned()
        } else {
            format!("asked ({nothing})")
        };
        let explain = format!(
            "SET plan_cache_mode = force_generic_plan; PREPARE asked AS {}; EXPLAIN EXECUTE {execute}",
            numbered.sql
        );
        let plan = server.psql(database, &explain).unwrap();
        for table in ["commands", "runs", "telemetry", "gateways", "sessions"] {
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
