//! Moving a site from one store to the other.

use std::ops::ControlFlow;

use tempfile::TempDir;
use viworks_backend_agent::data::UpkeepStore as _;
use viworks_backend_agent::data::moving::{Move, MoveError, Progress};
use viworks_backend_agent::data::postgres::Address;
use viworks_backend_agent::data::sqlite::SqliteStore;
use viworks_runtime::sqlite::Options;
use viworks_testkit::postgres::Server;

use super::bed::Bed;
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
    let source = SqliteStore::open(file(folder)).await.unwrap();
    let address = Address::parse(&server.url(database), None, None).unwrap();
    let runtime = tokio::runtime::Handle::current();
    let opened = source.clone();
    let done = tokio::task::spawn_blocking(move || work(Move::open(runtime, opened, &address)?));
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
        let address = Address::parse(&server.url(&database), None, None).unwrap();
        let role = viworks_backend_agent::data::postgres::Role::Backend;
        let opened =
            viworks_backend_agent::data::postgres::PostgresStore::open(address, role, true);
        let refused = opened.await.unwrap_err().to_string();
        assert!(refused.contains("is being moved"), "{refused}");
    }
    assert!(stops > 3, "{stops}");
    let on = |_progress| ControlFlow::Continue(());
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
        matches!(differs, Err(MoveError::Differs { .. })),
        "{differs:?}"
    );
    super::postgres_counts_are_right(&folder);
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
        matches!(&refused, Err(MoveError::NotEmpty(what)) if what == "1 rows of gateways"),
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
