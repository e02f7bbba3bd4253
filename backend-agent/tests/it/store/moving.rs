//! Moving a site from one store to the other.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use tempfile::TempDir;
use viworks_backend_agent::data::UpkeepStore as _;
use viworks_backend_agent::data::moving::{Move, MoveError, Progress, look_for_site};
use viworks_backend_agent::data::postgres::{Address, PostgresStore, Role, inspect};
use viworks_backend_agent::data::sqlite::SqliteStore;
use viworks_runtime::sqlite::Options;
use viworks_testkit::postgres::Server;
use viworks_testkit::proxy::{Ear, Heard, Proxy};

use super::bed::{Bed, agent, at};
use super::{database, records};

fn file(folder: &TempDir) -> Options {
    Options::new(folder.path().join("backend.db"))
}

/// Opens the file and does something with it and the database, on a thread for that.
async fn moving<T: Send + 'static>(
    folder: &TempDir,
    server: &Server,
    database: &str,
    work: impl FnOnce(Move) -> Result<T, MoveError> + Send + 'static,
) -> Result<T, MoveError> {
    moving_to(folder, &server.url(database), work).await
}

/// The same, to wherever a URL leads.
async fn moving_to<T: Send + 'static>(
    folder: &TempDir,
    url: &str,
    work: impl FnOnce(Move) -> Result<T, MoveError> + Send + 'static,
) -> Result<T, MoveError> {
    let options = file(folder);
    let path = options.path.clone();
    let source = SqliteStore::open(options).await.unwrap();
    let address = Address::parse(url, None, None).unwrap();
    let runtime = tokio::runtime::Handle::current();
    let opened = source.clone();
    let done =
        tokio::task::spawn_blocking(move || work(Move::open(runtime, opened, &path, &address)?));
    let done = done.await.unwrap();
    source.close().await;
    done
}

/// Stops after so many batches.
fn after(batches: u32) -> impl FnMut(Progress) -> ControlFlow<()> {
    let mut left = batches;
    move |_progress| {
        left = left.saturating_sub(1);
        if left == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_moves_whole_however_often_that_is_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = database(&folder) else {
        return;
    };
    server.make_empty(&database);
    let bed = Bed::new(super::sqlite(&folder).await.unwrap());
    let before = records::fill(&bed).await;
    // More than one page of a table, and open commands.
    for batch in 0..3 {
        let from = 1 + batch * 1_000;
        super::telemetry::commit(&bed, 1, super::telemetry::batch(from, from + 999)).await;
    }
    bed.command(1, false).await;
    let before = (
        bed.gateway_now(1).await,
        before.1,
        before.2,
        bed.store
            .list_audit(&bed.tenant, viworks_backend_agent::data::Page::first(100))
            .await
            .unwrap()
            .items,
    );
    bed.store.close().await;

    let mut stops = 0;
    loop {
        let run = moving(&folder, server, &database, |to| to.run(after(4))).await;
        match run {
            Ok(()) => break,
            Err(MoveError::Stopped) => stops += 1,
            Err(error) => panic!("{error:?}"),
        }
        // Half of a site is none.
        let early = moving(&folder, server, &database, |to| to.verify(after(0))).await;
        assert!(matches!(early, Err(MoveError::NotMoved)), "{early:?}");
        is_no_site(server, &database, "is being moved").await;
    }
    assert!(stops > 3, "{stops}");
    let on = |_progress| ControlFlow::Continue(());
    // All of it is there, and nobody has looked whether that is so.
    is_no_site(server, &database, "was not found to be equal").await;
    let compared = moving(&folder, server, &database, move |to| {
        to.run(on)?;
        to.verify(on)
    });
    let compared = compared.await.unwrap();
    let rows = |name: &str| compared.iter().find(|(table, _)| *table == name).unwrap().1;
    assert_eq!(
        (rows("gateways"), rows("telemetry"), rows("commands")),
        (1, 3_000, 2)
    );

    let new = Bed::new(super::postgres(&folder).await.unwrap());
    records::everything_is_there(&new, before).await;
    // It goes on: the next record has the next number, the next command the next order.
    let numbers = |items: &[viworks_backend_agent::data::AuditRecord]| items[0].seq;
    let page = viworks_backend_agent::data::Page::first(1);
    let last = numbers(&new.store.list_audit(&new.tenant, page).await.unwrap().items);
    for _taken in 0..100 {
        let _id = new.run_id();
    }
    new.command(1, false).await;
    assert!(numbers(&new.store.list_audit(&new.tenant, page).await.unwrap().items) > last);
    super::telemetry::commit(&new, 1, super::telemetry::batch(3_001, 3_010)).await;
    new.store.close().await;

    // What was moved and then changed is not what it was.
    let differs = moving(&folder, server, &database, move |to| to.verify(on)).await;
    assert!(
        matches!(
            differs,
            Err(MoveError::Differs {
                was_compared: true,
                ..
            })
        ),
        "{differs:?}"
    );
    // Which takes nothing from whoever uses it.
    let used = Bed::new(super::postgres(&folder).await.unwrap());
    used.store.close().await;
    super::postgres_counts_are_right(&folder);
}

/// No backend starts there, and no tool, and a look at it says the same.
async fn is_no_site(server: &Server, database: &str, why: &str) {
    let address = || Address::parse(&server.url(database), None, None).unwrap();
    for role in [Role::Backend, Role::Beside] {
        let opened = PostgresStore::open(address(), role, true).await;
        let refused = opened.unwrap_err();
        assert!(refused.to_string().contains(why), "{refused}");
        assert!(refused.is_lasting());
    }
    let looked = inspect(address(), true).await.unwrap_err();
    assert!(looked.to_string().contains(why), "{looked}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_that_is_used_while_it_moves_starts_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = database(&folder) else {
        return;
    };
    server.make_empty(&database);
    let bed = Bed::new(super::sqlite(&folder).await.unwrap());
    records::fill(&bed).await;
    bed.store.close().await;
    // The gateways are there, and not all of the rest.
    let stopped = moving(&folder, server, &database, |to| to.run(after(6))).await;
    assert!(matches!(stopped, Err(MoveError::Stopped)), "{stopped:?}");
    let bed = Bed::new(super::sqlite(&folder).await.unwrap());
    bed.gateway(2).await;
    let name = "gw-other".parse().unwrap();
    let actor = viworks_backend_agent::data::Actor::local("test");
    let renamed = bed
        .store
        .rename_gateway(&bed.tenant, agent(1), &name, &actor, at(5));
    renamed.await.unwrap().unwrap();
    bed.store.close().await;
    let on = |_progress| ControlFlow::Continue(());
    for _again in 0..2 {
        let differs = moving(&folder, server, &database, move |to| {
            to.run(on)?;
            to.verify(on)
        });
        let differs = differs.await.unwrap_err();
        assert!(
            matches!(
                differs,
                MoveError::Differs {
                    table: "gateways",
                    was_compared: false,
                    ..
                }
            ),
            "{differs:?}"
        );
        assert!(differs.to_string().contains("drop that"), "{differs}");
        is_no_site(server, &database, "was not found to be equal").await;
    }
    server.drop(&database);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_compares_writes_nothing_and_what_is_no_site_is_not_moved() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = database(&folder) else {
        return;
    };
    server.make_empty(&database);
    let on = |_progress| ControlFlow::Continue(());
    let path = file(&folder).path;
    let missing = look_for_site(&path).unwrap_err();
    assert!(matches!(missing, MoveError::NoSite(_)), "{missing:?}");
    assert!(!path.exists());
    // A file in which no backend has done anything yet.
    let empty = moving(&folder, server, &database, move |to| to.run(on)).await;
    assert!(matches!(empty, Err(MoveError::NoSite(_))), "{empty:?}");
    let bed = Bed::new(super::sqlite(&folder).await.unwrap());
    bed.gateway(1).await;
    bed.store.close().await;
    look_for_site(&path).unwrap();
    let nothing = moving(&folder, server, &database, move |to| to.verify(on)).await;
    assert!(matches!(nothing, Err(MoveError::NotMoved)), "{nothing:?}");
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(server.psql(&database, tables).unwrap(), "0");
    server.drop(&database);
}

/// Hears when a transaction is undone, and is not heard of again.
struct Deaf;

impl Ear for Deaf {
    fn heard(&mut self, said: &[u8]) -> Heard {
        if said.windows(8).any(|word| word == b"ROLLBACK") {
            Heard::Last
        } else {
            Heard::Pass
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_is_blamed_for_what_is_wrong_with_it_and_not_for_a_lost_server() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = database(&folder) else {
        return;
    };
    server.make_empty(&database);
    let bed = Bed::new(super::sqlite(&folder).await.unwrap());
    records::fill(&bed).await;
    bed.store.close().await;
    let source = rusqlite::Connection::open(file(&folder).path).unwrap();
    // No text of the server has that.
    source
        .execute("UPDATE runs SET reason = 'a' || char(0)", [])
        .unwrap();
    drop(source);
    let on = |_progress| ControlFlow::Continue(());
    let proxy = Proxy::listening(format!("127.0.0.1:{}", server.port()), || Box::new(Deaf));
    let proxy = proxy.await.unwrap();
    let url = server.database(&database).behind(proxy.port()).url();
    let lost = moving_to(&folder, &url, move |to| to.run(on)).await;
    assert!(
        matches!(&lost, Err(MoveError::Target { source, .. }) if !source.is_lasting()),
        "{lost:?}"
    );
    let refused = moving(&folder, server, &database, move |to| to.run(on)).await;
    assert!(
        matches!(refused, Err(MoveError::Row { table: "runs", .. })),
        "{refused:?}"
    );
    server.drop(&database);
}

/// What a site has beside what moves: what follows from that, and what only this database is about.
const NOT_MOVED: [&str; 6] = [
    "_sqlx_migrations",
    "enrolment_challenges",
    "heartbeat",
    "open_commands",
    "shown_pins",
    "told_masters",
];

/// A value for a column that has to have one.
fn some_value(column: &str, kind: &str, known: &Known) -> String {
    match column {
        "tenant" => "'default'".to_owned(),
        "agent_id" => format!("'{}'", agent(1)),
        "command_id" => format!("'{}'", known.command),
        "run_id" => format!("'{}'", known.run),
        "source" => "'operator'".to_owned(),
        "time_source" => "'gateway'".to_owned(),
        "challenge" | "key_check" | "sha256" | "spki" => "randomblob(32)".to_owned(),
        "masters" => "randomblob(8)".to_owned(),
        _ if kind == "INTEGER" => "1".to_owned(),
        _ if kind == "BLOB" => "x'0102'".to_owned(),
        // A document where it has to be one, and a text anywhere.
        _ => "'{}'".to_owned(),
    }
}

struct Known {
    command: String,
    run: String,
}

/// Gives each table that has none one row; answers all tables.
fn one_row_each(source: &rusqlite::Connection) -> Vec<String> {
    let one = |sql: &str| -> String { source.query_row(sql, [], |row| row.get(0)).unwrap() };
    let known = Known {
        command: one("SELECT command_id FROM commands"),
        run: one("SELECT run_id FROM runs"),
    };
    // Behind those that they refer to.
    let mut tables = source
        .prepare(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND substr(name, 1, 7) <> 'sqlite_' \
             ORDER BY name <> 'tickets', name",
        )
        .unwrap();
    let tables = tables.query_map([], |row| row.get::<_, String>(0)).unwrap();
    let tables: Vec<String> = tables.collect::<Result<_, _>>().unwrap();
    for table in &tables {
        let rows: i64 = source
            .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
                row.get(0)
            })
            .unwrap();
        if rows > 0 {
            continue;
        }
        let mut columns = source
            .prepare(&format!(
                "SELECT name, type FROM pragma_table_info('{table}') WHERE \"notnull\" OR pk > 0"
            ))
            .unwrap();
        let columns = columns.query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        });
        let columns: Vec<(String, String)> = columns.unwrap().collect::<Result<_, _>>().unwrap();
        let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
        let values = columns
            .iter()
            .map(|(name, kind)| some_value(name, kind, &known));
        let values: Vec<String> = values.collect();
        let insert = format!(
            "INSERT INTO {table} ({}) VALUES ({})",
            names.join(", "),
            values.join(", ")
        );
        source.execute(&insert, []).unwrap();
    }
    tables
}

/// Changes one cell of a table on the server, past every rule that can be passed by.
fn change_a_cell(server: &Server, database: &str, table: &str) {
    let columns = server
        .psql(
            database,
            &format!(
                "SELECT column_name || ' ' || data_type FROM information_schema.columns \
                 WHERE table_schema = 'public' AND table_name = '{table}' ORDER BY ordinal_position DESC"
            ),
        )
        .unwrap();
    let changed = columns.lines().any(|line| {
        let (column, kind) = line.split_once(' ').unwrap();
        let other = match kind {
            "text" => format!("{column} || 'x'"),
            "json" => "'[\"changed\"]'".to_owned(),
            "bytea" => format!("set_byte({column}, 0, (get_byte({column}, 0) + 1) % 256)"),
            "boolean" => format!("NOT {column}"),
            _ => format!("{column} + 1"),
        };
        let update = format!(
            "SET session_replication_role = replica; \
             UPDATE {table} SET {column} = {other} WHERE {column} IS NOT NULL RETURNING 'changed'"
        );
        server
            .psql(database, &update)
            .is_ok_and(|said| said.contains("changed"))
    });
    assert!(changed, "{table}: {columns}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_table_moves_and_is_compared() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = database(&folder) else {
        return;
    };
    server.make_empty(&database);
    let bed = Bed::new(super::sqlite(&folder).await.unwrap());
    records::fill(&bed).await;
    bed.store.close().await;
    let source = rusqlite::Connection::open(file(&folder).path).unwrap();
    let tables = one_row_each(&source);
    drop(source);
    let on = |_progress| ControlFlow::Continue(());
    let compared = moving(&folder, server, &database, move |to| {
        to.run(on)?;
        to.verify(on)
    });
    let compared = compared.await.unwrap();
    let moved: BTreeSet<&str> = compared.iter().map(|(table, _)| *table).collect();
    let expected = tables.iter().map(String::as_str);
    let expected = expected.filter(|table| !NOT_MOVED.contains(table));
    assert_eq!(
        moved,
        expected.collect(),
        "a table is moved, or said why not"
    );
    assert!(compared.iter().all(|(_, rows)| *rows > 0), "{compared:?}");
    for (table, _) in &compared {
        let changed = format!("{database}_changed");
        let copy = format!("CREATE DATABASE \"{changed}\" TEMPLATE \"{database}\"");
        server.psql("postgres", &copy).unwrap();
        change_a_cell(server, &changed, table);
        let differs = moving(&folder, server, &changed, move |to| to.verify(on)).await;
        assert!(
            matches!(&differs, Err(MoveError::Differs { table: found, .. }) if found == table),
            "{table}: {differs:?}"
        );
        server.drop(&changed);
    }
    server.drop(&database);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_holds_something_takes_no_site() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some((server, database)) = database(&folder) else {
        return;
    };
    for place in [&folder, &other] {
        let bed = Bed::new(super::sqlite(place).await.unwrap());
        bed.gateway(if std::ptr::eq(place, &folder) { 1 } else { 2 })
            .await;
        bed.store.close().await;
    }
    let used = Bed::new(super::postgres(&folder).await.unwrap());
    used.gateway(7).await;
    used.store.close().await;
    let on = |_progress| ControlFlow::Continue(());
    let refused = moving(&folder, server, &database, move |to| to.run(on)).await;
    assert!(
        matches!(&refused, Err(MoveError::NotEmpty(what)) if what == "gateways: 1"),
        "{refused:?}"
    );
    server.drop(&database);
    server.make_empty(&database);
    moving(&folder, server, &database, move |to| to.run(on))
        .await
        .unwrap();
    let refused = moving(&other, server, &database, move |to| to.run(on)).await;
    assert!(matches!(refused, Err(MoveError::OtherSite)), "{refused:?}");
    server.drop(&database);
}
