//! Telemetry on a server: two who append at once, the net beneath the positions, and days that come and go.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tempfile::TempDir;
use viworks_backend_agent::data::{
    Page, StepQuery, StoreError, TelemetryOutcome, TelemetryQuery, TelemetryWrite,
};
use viworks_common::telemetry::steps::{Aggregate, Range, Step};
use viworks_common::telemetry::{Batch, FieldValue, Record};
use viworks_common::time::Timestamp;
use viworks_runtime::clock::{Clock as _, SystemClock};
use viworks_testkit::postgres::Server;

use super::bed::{Bed, agent, at, process};
use super::postgres_only::{finish, two};
use super::{database, make};

pub(super) const DAY: i64 = 24 * 3_600;

/// Records of gateway `n` from number `from`, each observed at its second.
pub(super) fn write(n: u64, epoch: u64, from: u64, seconds: &[i64]) -> TelemetryWrite {
    let record = |seconds: &i64| Record {
        stream: if seconds % 2 == 0 { "even" } else { "odd" }
            .parse()
            .unwrap(),
        observed_at: at(*seconds),
        fields: [("n".parse().unwrap(), FieldValue::Number(1e16))].into(),
    };
    TelemetryWrite {
        agent_id: agent(n),
        epoch,
        skew_ms: None,
        batch: Batch {
            spool_epoch: process(n),
            from_seq: from,
            to_seq: from + u64::try_from(seconds.len()).unwrap() - 1,
            gaps: Vec::new(),
            records: (from..).zip(seconds.iter().map(record)).collect(),
        },
    }
}

/// How many records of it were stored that were not there.
pub(super) async fn commit(bed: &Bed, writes: Vec<TelemetryWrite>) -> u64 {
    commit_at(bed, writes, 0).await
}

/// The same at another second.
async fn commit_at(bed: &Bed, writes: Vec<TelemetryWrite>, now: i64) -> u64 {
    let outcomes = bed
        .store
        .commit_telemetry(&bed.tenant, writes.into(), at(now), at(now))
        .await
        .unwrap();
    let stored = outcomes.into_iter().map(|outcome| match outcome {
        TelemetryOutcome::Committed(commit) => commit.stored,
        other @ (TelemetryOutcome::Fenced | TelemetryOutcome::Malformed(_)) => panic!("{other:?}"),
    });
    stored.sum()
}

async fn stored(bed: &Bed, n: u64) -> Vec<i64> {
    let query = TelemetryQuery {
        stream: None,
        from: Timestamp::from_unix_micros(i64::MIN),
        until: Timestamp::from_unix_micros(i64::MAX),
        newest_first: false,
    };
    let (mut seen, mut page) = (Vec::new(), Page::first(7));
    loop {
        let asked = bed
            .store
            .query_telemetry(&bed.tenant, agent(n), &query, page);
        let listing = asked.await.unwrap();
        seen.extend(listing.items.iter().map(|record| {
            assert_eq!(
                record.fields.values().next(),
                Some(&FieldValue::Number(1e16))
            );
            (record.observed_at.unix_micros() - at(0).unix_micros()) / 1_000_000
        }));
        match listing.next {
            Some(next) => page = Page::after(next, 7),
            None => return seen,
        }
    }
}

/// Who lost an answer and sends it again may come to another instance, and so may it and the one that it replaced.
#[tokio::test]
async fn the_same_batches_by_two_at_once_are_stored_once() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other)) = two(&folder).await else {
        return;
    };
    for n in 1..=4 {
        one.gateway(n).await;
        one.session(n, n).await;
    }
    let mut all = 0;
    for round in 0..25_u64 {
        let from = round * 10 + 1;
        let first = i64::try_from(from).unwrap();
        let seconds: Vec<i64> = (first - 200..first - 190).collect();
        // The same gateways in another order by each, and of one a part only.
        let of = |gateways: [u64; 4], length: usize| {
            let writes = gateways.map(|n| write(n, 1, from, &seconds[..length]));
            writes.to_vec()
        };
        let (a, b) = tokio::join!(
            commit(&one, of([1, 2, 3, 4], 10)),
            commit(&other, of([4, 3, 2, 1], 6)),
        );
        all += a + b;
        assert_eq!(all, (round + 1) * 40, "{a} {b}");
    }
    for n in 1..=4 {
        assert_eq!(stored(&one, n).await, (-199..51).collect::<Vec<_>>());
    }
    finish(&folder, one, other).await;
}

#[tokio::test]
async fn a_row_that_is_there_is_caught_by_its_key_and_its_neighbours_are_stored() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other)) = two(&folder).await else {
        return;
    };
    one.gateway(1).await;
    one.session(1, 1).await;
    assert_eq!(commit(&one, vec![write(1, 1, 1, &[0, 1, 2, 3])]).await, 4);
    // As no backend leaves it: the records are there, and their position is not.
    let (server, name) = database(&folder).unwrap();
    server
        .psql(&name, "UPDATE telemetry_positions SET seq = 2")
        .unwrap();
    commit(&one, vec![write(1, 1, 3, &[2, 3, 4, 5])]).await;
    assert_eq!(stored(&one, 1).await, [0, 1, 2, 3, 4, 5]);
    // And on as before.
    assert_eq!(commit(&one, vec![write(1, 1, 7, &[6, 7])]).await, 2);
    assert_eq!(stored(&one, 1).await.len(), 8);
    finish(&folder, one, other).await;
}

#[tokio::test]
async fn batches_over_midnight_and_far_apart_make_the_days_that_they_need() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other)) = two(&folder).await else {
        return;
    };
    for n in 1..=2 {
        one.gateway(n).await;
        one.session(n, n).await;
    }
    // 08:00 is second 0.
    let midnight = -8 * 3_600;
    let seconds = [
        -399 * DAY,
        -100 * DAY,
        midnight - 1,
        midnight,
        midnight + 1,
        3_599,
    ];
    let (a, b) = tokio::join!(
        commit(&one, vec![write(1, 1, 1, &seconds)]),
        commit(&other, vec![write(2, 1, 1, &seconds)]),
    );
    assert_eq!((a, b), (6, 6));
    for n in 1..=2 {
        assert_eq!(stored(&one, n).await, seconds);
    }
    let (server, name) = database(&folder).unwrap();
    let days = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'telemetry'::regclass";
    assert_eq!(server.psql(&name, days).unwrap(), "4");
    finish(&folder, one, other).await;
}

#[tokio::test]
async fn old_days_go_whole_and_come_back_when_they_are_needed() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, name)) = database(&folder) else {
        return;
    };
    make(server, &name);
    let bed = Bed::new(super::postgres(&folder).await.unwrap());
    bed.gateway(1).await;
    bed.session(1, 1).await;
    let days = [-60 * DAY, -59 * DAY, -31 * DAY];
    let early = -31 * DAY;
    assert_eq!(commit_at(&bed, vec![write(1, 1, 1, &days)], early).await, 3);
    let days = [-30 * DAY, 0];
    assert_eq!(commit(&bed, vec![write(1, 1, 4, &days)]).await, 2);
    server
        .psql(
            &name,
            "CREATE TABLE telemetry_2001_01_01 (LIKE telemetry INCLUDING ALL)",
        )
        .unwrap();
    let store = Arc::clone(&bed.store);
    // Those of the suite's thirty days ago and more, of which two share a table, and what somebody left behind.
    let purged = store
        .purge_telemetry(&bed.tenant, None, 100, at(0))
        .await
        .unwrap();
    assert_eq!((purged.days, purged.records, purged.more), (3, 0, false));
    assert_eq!(stored(&bed, 1).await, [-30 * DAY, 0]);
    let tables =
        "SELECT count(*) FROM pg_class WHERE relname ~ '^telemetry_2001' AND relkind = 'r'";
    assert_eq!(server.psql(&name, tables).unwrap(), "0");
    // Another backend may read an earlier time, and the connection remembers the days.
    let late = vec![write(1, 1, 6, &[-60 * DAY, -59 * DAY])];
    assert_eq!(commit_at(&bed, late, early).await, 2);
    assert_eq!(stored(&bed, 1).await.len(), 4);
    let again = store
        .purge_telemetry(&bed.tenant, None, 100, at(0))
        .await
        .unwrap();
    assert_eq!(again.days, 1);
    assert_eq!(stored(&bed, 1).await, [-30 * DAY, 0]);
    // The days to come are there.
    let ahead = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'telemetry'::regclass";
    assert_eq!(server.psql(&name, ahead).unwrap(), "5");
    bed.store.close().await;
    super::postgres_counts_are_right(&folder);
}

/// How many tables there are of days.
fn tables(server: &Server, name: &str) -> usize {
    let tables = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'telemetry'::regclass";
    server.psql(name, tables).unwrap().parse().unwrap()
}

/// What every backend does right behind its start, and so may two at once.
#[tokio::test]
async fn the_days_to_come_are_made_before_anything_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other)) = two(&folder).await else {
        return;
    };
    let (server, name) = database(&folder).unwrap();
    assert_eq!(tables(server, &name), 0);
    // What has served is deleted without them, and does not fail with them.
    let purged = one.store.purge(&one.tenant, 500, at(0)).await;
    purged.map(drop).unwrap();
    assert_eq!(tables(server, &name), 0);
    let make_days = async |bed: &Bed| bed.store.make_days_ahead(&bed.tenant, at(0)).await;
    for _again in 0..2 {
        let (a, b) = tokio::join!(make_days(&one), make_days(&other));
        a.and(b).unwrap();
        assert_eq!(tables(server, &name), 4);
    }
    // The day after, one more.
    let next = one.store.make_days_ahead(&one.tenant, at(DAY)).await;
    next.unwrap();
    assert_eq!(tables(server, &name), 5);
    finish(&folder, one, other).await;
}

/// Days are a matter of how old a site is: whoever says so gets no table for each of four hundred.
#[tokio::test]
async fn records_dated_over_all_time_make_few_tables_and_are_all_stored() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other)) = two(&folder).await else {
        return;
    };
    for n in 1..=2 {
        one.gateway(n).await;
        one.session(n, n).await;
    }
    let (server, name) = database(&folder).unwrap();
    let all: Vec<i64> = (0..400).map(|day| (day - 399) * DAY).collect();
    // The worst order: every other day first, so that the rest lies between.
    let odd = all.iter().copied().filter(|at| at / DAY % 2 != 0);
    let even = all.iter().copied().filter(|at| at / DAY % 2 == 0);
    let mixed: Vec<i64> = odd.chain(even).collect();
    let (first, second) = mixed.split_at(200);
    let (a, b) = tokio::join!(
        commit(&one, vec![write(1, 1, 1, first)]),
        commit(&other, vec![write(2, 1, 1, second)]),
    );
    assert_eq!((a, b), (200, 200));
    let few = tables(server, &name);
    assert!(few <= 70, "{few}");
    let (a, b) = tokio::join!(
        commit(&one, vec![write(1, 1, 201, second)]),
        commit(&other, vec![write(2, 1, 201, first)]),
    );
    assert_eq!((a, b), (200, 200));
    assert!(tables(server, &name) <= few + 8, "{few}");
    for n in 1..=2 {
        assert_eq!(stored(&one, n).await, all);
    }
    // Each of the last days has its own, whatever came first.
    let near = "SELECT count(*) FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid \
                WHERE i.inhparent = 'telemetry'::regclass AND c.relname ~ '^telemetry_[0-9_]{10}$'";
    assert!(server.psql(&name, near).unwrap().parse::<u32>().unwrap() >= 8);
    finish(&folder, one, other).await;
}

/// Every record of gateway 1, page by page.
async fn listed(bed: &Bed, newest_first: bool, limit: usize) -> Vec<(Timestamp, u64)> {
    let query = TelemetryQuery {
        stream: None,
        from: Timestamp::from_unix_micros(i64::MIN),
        until: at(1),
        newest_first,
    };
    let (mut seen, mut page) = (Vec::new(), Page::first(limit));
    loop {
        let asked = bed
            .store
            .query_telemetry(&bed.tenant, agent(1), &query, page);
        let listing = asked.await.unwrap();
        assert!(listing.items.len() <= limit);
        let items = listing.items.iter();
        seen.extend(items.map(|record| (record.observed_at, record.seq)));
        match listing.next {
            Some(next) => page = Page::after(next, limit),
            None => return seen,
        }
    }
}

/// How much the server has looked for in the indexes of telemetry. A connection tells that when it ends, some time
/// after it was closed.
fn looked(server: &Server, name: &str) -> i64 {
    let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() \
                  AND backend_type = 'client backend'";
    drop(server.asked_until(name, others, |count| count == "0"));
    let looked = "SELECT coalesce(sum(idx_scan + idx_tup_read), 0) FROM pg_stat_user_indexes \
                  WHERE relname ~ '^telemetry_[0-9]'";
    server.psql(name, looked).unwrap().parse().unwrap()
}

/// The key has no order over streams. A page of all of them costs what it tells of all the same, and not as much as it
/// could tell of each of them on each day.
#[tokio::test]
async fn a_page_over_many_streams_and_days_looks_at_little() {
    const STREAMS: i64 = 200;
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other)) = two(&folder).await else {
        return;
    };
    other.store.close().await;
    one.gateway(1).await;
    one.session(1, 1).await;
    let record = |at_: i64, stream: i64| Record {
        stream: format!("s{stream}").parse().unwrap(),
        observed_at: at(at_),
        fields: [("n".parse().unwrap(), FieldValue::Integer(at_))].into(),
    };
    // One stream of each ten has most of it, and nothing is in the order of time.
    let mut given = Vec::new();
    for day in (-39..=0).rev() {
        for stream in 0..STREAMS {
            let many = if stream % 10 == 0 { 10 } else { 1 };
            given.extend((0..many).map(|n| record(day * DAY - n * 600 - stream, stream)));
        }
    }
    let mut from = 1;
    for part in given.chunks(2_000) {
        let records: Vec<_> = (from..).zip(part.iter().cloned()).collect();
        let mut write = write(1, 1, from, &[0]);
        write.batch.to_seq = from + u64::try_from(part.len()).unwrap() - 1;
        from = write.batch.to_seq + 1;
        write.batch.records = records;
        commit(&one, vec![write]).await;
    }
    let mut expected: Vec<_> = (1..)
        .zip(&given)
        .map(|(seq, it)| (it.observed_at, seq))
        .collect();
    expected.sort_unstable();
    assert_eq!(listed(&one, false, 1_000).await, expected);
    expected.reverse();
    assert_eq!(listed(&one, true, 301).await, expected);
    let (tenant, first) = (one.tenant.clone(), at(-40 * DAY));
    one.store.close().await;
    let (server, name) = database(&folder).unwrap();
    for newest_first in [false, true] {
        let before = looked(server, &name);
        let bed = Bed::new(super::postgres(&folder).await.unwrap());
        let query = TelemetryQuery {
            stream: None,
            from: first,
            until: at(1),
            newest_first,
        };
        let page = Page::first(100);
        let asked = bed.store.query_telemetry(&tenant, agent(1), &query, page);
        assert_eq!(asked.await.unwrap().items.len(), 100);
        bed.store.close().await;
        let cost = looked(server, &name) - before;
        assert!(
            (1..5_000).contains(&cost),
            "{cost} newest first: {newest_first}"
        );
    }
    super::postgres_counts_are_right(&folder);
}

/// A store whose limits are the suite's, and one whose purges find days to delete.
pub(super) async fn with_an_old_day() -> Option<(TempDir, &'static Server, String, Bed)> {
    let folder = tempfile::tempdir().unwrap();
    let (server, name) = database(&folder)?;
    make(server, &name);
    let bed = Bed::new(super::postgres(&folder).await?);
    bed.gateway(1).await;
    bed.session(1, 1).await;
    let early = -31 * DAY;
    let days = [-33 * DAY, -32 * DAY, -31 * DAY];
    assert_eq!(commit_at(&bed, vec![write(1, 1, 1, &days)], early).await, 3);
    Some((folder, server, name, bed))
}

/// The connection that sleeps in a database.
const SLEEPER: &str = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";

/// The name of the day that is so many days before the one of second 0.
fn day(before: i64) -> String {
    let text = at(-before * DAY).to_string();
    format!("telemetry_{}", text[..10].replace('-', "_"))
}

/// Begins the leaving of a day while somebody reads, gives up, and lets the reader go.
async fn interrupt_leaving(server: &'static Server, name: &str, table: &str) {
    let (database, table) = (name.to_owned(), table.to_owned());
    let interrupt = move || {
        let name = database.clone();
        let reader = std::thread::spawn(move || {
            server.psql(
                &name,
                "SELECT count(*), pg_sleep(600) FROM telemetry WHERE agent = 0",
            )
        });
        let reads = server.asked_until(&database, SLEEPER, |found| !found.is_empty());
        let patience = |time: &str| {
            let set = format!("ALTER DATABASE \"{database}\" {time}");
            server.psql(&database, &set).unwrap();
        };
        patience("SET lock_timeout = '100ms'");
        let detach = format!("ALTER TABLE telemetry DETACH PARTITION {table} CONCURRENTLY");
        let refused = server.psql(&database, &detach).unwrap_err();
        assert!(refused.contains("lock timeout"), "{refused}");
        patience("RESET lock_timeout");
        server
            .psql(&database, &format!("SELECT pg_terminate_backend({reads})"))
            .unwrap();
        reader.join().unwrap().unwrap_err();
    };
    tokio::task::spawn_blocking(interrupt).await.unwrap();
}

#[tokio::test]
async fn a_day_whose_leaving_was_interrupted_takes_records_at_once() {
    let Some((folder, server, name, bed)) = with_an_old_day().await else {
        return;
    };
    let early = -31 * DAY;
    // Between the two steps of a detachment.
    interrupt_leaving(server, &name, &day(32)).await;
    let more = vec![write(1, 1, 4, &[-32 * DAY, -31 * DAY])];
    assert_eq!(commit_at(&bed, more, early).await, 2);
    // What had been deleted is gone, what came afterwards is there.
    assert_eq!(
        stored(&bed, 1).await,
        [-33 * DAY, -32 * DAY, -31 * DAY, -31 * DAY]
    );
    // Between the detachment and the end of the table.
    let detach = format!("ALTER TABLE telemetry DETACH PARTITION {}", day(32));
    server.psql(&name, &detach).unwrap();
    let more = vec![write(1, 1, 6, &[-32 * DAY])];
    assert_eq!(commit_at(&bed, more, early).await, 1);
    assert_eq!(stored(&bed, 1).await.len(), 4);
    bed.store.close().await;
    super::postgres_counts_are_right(&folder);
}

#[tokio::test]
async fn a_purge_finishes_what_was_interrupted_before_it_begins_anew() {
    let Some((folder, server, name, bed)) = with_an_old_day().await else {
        return;
    };
    // One that is older is still there, and the server lets one leave at a time.
    interrupt_leaving(server, &name, &day(32)).await;
    let purged = bed
        .store
        .purge_telemetry(&bed.tenant, None, 100, at(0))
        .await
        .unwrap();
    assert_eq!(purged.days, 3);
    assert_eq!(stored(&bed, 1).await, Vec::<i64>::new());
    assert_eq!(tables(server, &name), 4);
    bed.store.close().await;
    super::postgres_counts_are_right(&folder);
}

/// Reports wait for each other, and nobody else for them.
#[tokio::test]
async fn reports_that_take_long_hold_up_nobody() {
    let Some((folder, server, name, bed)) = with_an_old_day().await else {
        return;
    };
    // A report now waits for whoever has the table, as it would for a slow disk.
    let holder = std::thread::spawn({
        let name = name.clone();
        move || {
            server.psql(
                &name,
                "BEGIN; LOCK TABLE telemetry IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(600)",
            )
        }
    });
    let holds = server.asked_until(&name, SLEEPER, |found| !found.is_empty());
    let query = StepQuery {
        stream: "even".parse().unwrap(),
        field: "n".parse().unwrap(),
        step: Step::new(Duration::from_secs(3_600)).unwrap(),
        aggregate: Aggregate::Max,
        range: Range {
            from: at(-40 * DAY),
            until: at(0),
        },
        newest_first: false,
        rows_max: 500_000,
        bytes_max: 1 << 30,
    };
    let report = || async {
        let asked = bed
            .store
            .telemetry_steps(&bed.tenant, agent(1), &query, Page::first(10));
        asked.await.map(drop)
    };
    // Some of them do not come to their turn; none is answered, and all others are.
    let reports = async {
        let refused = join_all((0..12).map(|_| report())).await;
        let busy = |it: &&Result<(), StoreError>| matches!(it, Err(StoreError::ReportsBusy));
        assert!(refused.iter().all(Result::is_err), "{refused:?}");
        assert!(refused.iter().filter(busy).count() >= 8, "{refused:?}");
    };
    let reading = async {
        for _ in 0..20 {
            let begun = SystemClock.now();
            bed.gateway_now(1).await;
            bed.command(1, false).await;
            let took = SystemClock.now().saturating_since(begun);
            assert!(took < Duration::from_secs(1), "{took:?}");
        }
    };
    tokio::join!(reports, reading);
    let end = format!("SELECT pg_terminate_backend({holds})");
    server.psql(&name, &end).unwrap();
    holder.join().unwrap().unwrap_err();
    // And each has its turn again.
    report().await.unwrap();
    bed.store.close().await;
    super::postgres_counts_are_right(&folder);
}

/// Numbers that stand for names are taken back with the last record, and no connection goes on with one.
#[tokio::test]
async fn numbers_of_what_is_gone_are_taken_back_and_given_anew() {
    let Some((folder, server, name, bed)) = with_an_old_day().await else {
        return;
    };
    let given = || {
        let given = "SELECT (SELECT count(*) FROM telemetry_epoch_ids), (SELECT count(*) FROM telemetry_stream_ids)";
        server.psql(&name, given).unwrap()
    };
    let mut now = write(1, 1, 1, &[0]);
    now.batch.spool_epoch = process(2);
    now.batch.records[0].1.stream = "new".parse().unwrap();
    assert_eq!(commit(&bed, vec![now]).await, 1);
    assert_eq!(given(), "2|2");
    let purge = async || {
        let purged = bed.store.purge_telemetry(&bed.tenant, None, 100, at(0));
        purged.await.unwrap()
    };
    purge().await;
    assert_eq!(given(), "1|1");
    // Every connection that may have remembered the old numbers comes to it.
    let early = -31 * DAY;
    for n in 0..4 {
        let seconds = [-31 * DAY + n, -30 * DAY + n];
        let from = 4 + 2 * u64::try_from(n).unwrap();
        let writes = vec![write(1, 1, from, &seconds)];
        assert_eq!(commit_at(&bed, writes, early).await, 2);
    }
    assert_eq!(stored(&bed, 1).await.len(), 9);
    assert_eq!(given(), "2|3");
    bed.store.close().await;
    super::postgres_counts_are_right(&folder);
}

#[tokio::test]
async fn the_view_for_reports_has_names_and_times() {
    let Some((folder, server, name, bed)) = with_an_old_day().await else {
        return;
    };
    let asked = "SELECT gateway, stream, seq, stored_at > observed_at, fields ->> 'n' FROM telemetry_records \
                 WHERE stored_at > timestamptz '2026-01-01' ORDER BY observed_at LIMIT 1";
    assert_eq!(server.psql(&name, asked).unwrap(), "gw-1|even|1|t|1e+16");
    bed.store.close().await;
    super::postgres_counts_are_right(&folder);
}
