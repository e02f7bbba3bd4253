//! Telemetry on a server: two who append at once, the net beneath the positions, and days that come and go.

use std::sync::Arc;

use viworks_backend_agent::data::{Page, TelemetryOutcome, TelemetryQuery, TelemetryWrite};
use viworks_common::telemetry::{Batch, FieldValue, Record};
use viworks_common::time::Timestamp;

use super::bed::{Bed, agent, at, process};
use super::postgres_only::{finish, two};
use super::{database, make};

const DAY: i64 = 24 * 3_600;

/// Records of gateway `n` from number `from`, each observed at its second.
fn write(n: u64, epoch: u64, from: u64, seconds: &[i64]) -> TelemetryWrite {
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
async fn commit(bed: &Bed, writes: Vec<TelemetryWrite>) -> u64 {
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
    // Two of the suite's thirty days ago and more, and what somebody left behind.
    let purged = store
        .purge_telemetry(&bed.tenant, None, 100, at(0))
        .await
        .unwrap();
    assert_eq!((purged.days, purged.records, purged.more), (4, 0, false));
    assert_eq!(stored(&bed, 1).await, [-30 * DAY, 0]);
    let tables =
        "SELECT count(*) FROM pg_class WHERE relname ~ '^telemetry_2001' AND relkind = 'r'";
    assert_eq!(server.psql(&name, tables).unwrap(), "0");
    // Another backend may read an earlier time, and the connection remembers the day.
    let late = vec![write(1, 1, 6, &[-60 * DAY, -59 * DAY])];
    assert_eq!(commit_at(&bed, late, early).await, 2);
    assert_eq!(stored(&bed, 1).await.len(), 4);
    let again = store
        .purge_telemetry(&bed.tenant, None, 100, at(0))
        .await
        .unwrap();
    assert_eq!(again.days, 2);
    assert_eq!(stored(&bed, 1).await, [-30 * DAY, 0]);
    // The days to come are there.
    let ahead = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'telemetry'::regclass";
    assert_eq!(server.psql(&name, ahead).unwrap(), "5");
    bed.store.close().await;
    super::postgres_counts_are_right(&folder);
}
