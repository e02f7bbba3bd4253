//! Telemetry that is kept for so long: what is deleted, what is refused, and what stays right beside it.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use viworks_backend_agent::data::postgres::Role;
use viworks_backend_agent::data::{
    InstanceLoad, Page, TelemetryCommit, TelemetryLimits, TelemetryOutcome, TelemetryQuery,
    TelemetryWrite,
};
use viworks_common::id::AgentRunId;
use viworks_common::telemetry::{
    Batch, FieldValue, Gap, GapReason, Position, Record, RecordRefusal,
};
use viworks_common::time::Timestamp;
use viworks_testkit::postgres::Server;
use viworks_testkit::process::eventually;

use super::bed::{Bed, agent, at, process};
use super::instances::Hand;
use super::postgres_only::open;

/// The suite keeps telemetry for thirty days.
const DAY: i64 = 24 * 3_600;
const KEPT: i64 = 30 * DAY;

/// Leases are renewed every five seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Records of gateway `n` from its number `from`, each with its stream and the second at which it was observed,
/// arriving from a gateway whose clock is right.
async fn commit(
    bed: &Bed,
    (n, spool_epoch): (u64, AgentRunId),
    from: u64,
    records: &[(&str, i64)],
    now: i64,
) -> TelemetryCommit {
    commit_by(bed, (n, spool_epoch), from, records, (now, Some(0))).await
}

/// The same from a gateway whose clock was measured to be that far off.
async fn commit_by(
    bed: &Bed,
    (n, spool_epoch): (u64, AgentRunId),
    from: u64,
    records: &[(&str, i64)],
    (now, skew_ms): (i64, Option<i64>),
) -> TelemetryCommit {
    let record = |(stream, seconds): &(&str, i64)| Record {
        stream: stream.parse().unwrap(),
        observed_at: at(*seconds),
        fields: [("n".parse().unwrap(), FieldValue::Integer(*seconds))].into(),
    };
    let write = TelemetryWrite {
        agent_id: agent(n),
        epoch: bed.gateway_now(n).await.confirmed,
        skew_ms,
        batch: Batch {
            spool_epoch,
            from_seq: from,
            to_seq: from + u64::try_from(records.len()).unwrap() - 1,
            gaps: Vec::new(),
            records: (from..).zip(records.iter().map(record)).collect(),
        },
    };
    let outcomes = bed
        .store
        .commit_telemetry(&bed.tenant, [write].into(), at(now), at(now))
        .await
        .unwrap();
    let [TelemetryOutcome::Committed(commit)] = &outcomes[..] else {
        panic!("{outcomes:?}");
    };
    commit.clone()
}

/// The seconds at which what is stored was observed.
async fn stored(bed: &Bed, n: u64) -> Vec<i64> {
    let query = TelemetryQuery {
        stream: None,
        from: Timestamp::from_unix_micros(i64::MIN),
        until: Timestamp::from_unix_micros(i64::MAX),
        newest_first: false,
    };
    let page = Page::first(1_000);
    let listing = bed
        .store
        .query_telemetry(&bed.tenant, agent(n), &query, page)
        .await
        .unwrap();
    let seconds = |at_: Timestamp| (at_.unix_micros() - at(0).unix_micros()) / 1_000_000;
    let stored = listing.items.iter();
    stored.map(|record| seconds(record.observed_at)).collect()
}

async fn streams(bed: &Bed, n: u64) -> Vec<(String, Timestamp)> {
    let page = Page::first(1_000);
    let listing = bed
        .store
        .telemetry_streams(&bed.tenant, agent(n), page)
        .await
        .unwrap();
    let streams = listing.items.into_iter();
    streams
        .map(|it| (it.stream.to_string(), it.newest))
        .collect()
}

async fn refused(bed: &Bed, n: u64) -> Vec<(RecordRefusal, u64)> {
    let page = Page::first(1_000);
    let listing = bed
        .store
        .telemetry_refusals(&bed.tenant, agent(n), page)
        .await
        .unwrap();
    let refused = listing.items.into_iter();
    refused.map(|it| (it.reason, it.records)).collect()
}

/// Everything that is to be deleted at that second: days, records, streams, and how many steps it took.
async fn purge(bed: &Bed, most: usize, now: i64) -> (u64, u64, u64, u32) {
    let (mut days, mut records, mut streams, mut steps, mut after) = (0, 0, 0, 0, None);
    loop {
        let purged = bed
            .store
            .purge_telemetry(&bed.tenant, after, most, at(now))
            .await
            .unwrap();
        assert!(purged.records <= u64::try_from(most).unwrap(), "{purged:?}");
        days += purged.days;
        records += purged.records;
        streams += purged.streams;
        steps += 1;
        after = purged.after;
        if !purged.more {
            return (days, records, streams, steps);
        }
    }
}

pub(crate) async fn what_is_older_than_it_is_kept_is_refused_and_counted(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    let who = (1, process(1));
    let given = [
        ("a", -KEPT - DAY),
        ("a", -KEPT - 1),
        ("a", -KEPT),
        ("a", -1),
    ];
    let added = commit(bed, who, 1, &given, 0).await;
    assert_eq!((added.position.seq, added.stored), (4, 2), "{added:?}");
    assert_eq!(added.refused, [(RecordRefusal::PastRetention, 2)].into());
    // Its acknowledgement was lost.
    let again = commit(bed, who, 1, &given, 0).await;
    assert!(again.stored == 0 && again.refused.is_empty(), "{again:?}");
    assert_eq!(stored(bed, 1).await, [-KEPT, -1]);
    assert_eq!(refused(bed, 1).await, [(RecordRefusal::PastRetention, 2)]);
    assert_eq!(streams(bed, 1).await, [("a".to_owned(), at(-1))]);
    // A batch of which nothing is kept moves the position all the same, and makes no stream.
    let added = commit(bed, who, 5, &[("b", -KEPT - 2)], 0).await;
    assert_eq!((added.position.seq, added.stored), (5, 0), "{added:?}");
    assert_eq!(streams(bed, 1).await.len(), 1);
    let positions = bed.store.telemetry_positions(&bed.tenant, agent(1)).await;
    assert_eq!(positions.unwrap(), [added.position]);
}

pub(crate) async fn what_was_kept_long_enough_is_deleted_in_steps(bed: &Bed) {
    for n in 1..=3 {
        bed.gateway(n).await;
        bed.session(n, n).await;
        let hours = |hour: i64| {
            if hour % 2 == 0 {
                ("even", hour)
            } else {
                ("odd", hour)
            }
        };
        let old: Vec<_> = (0..20).map(hours).collect();
        commit(bed, (n, process(n)), 1, &old, 20).await;
        commit(
            bed,
            (n, process(n)),
            21,
            &[("even", 9 * DAY), ("even", 10 * DAY)],
            10 * DAY,
        )
        .await;
    }
    assert_eq!(purge(bed, 7, KEPT).await, (0, 0, 0, 1));
    let (days, records, gone, steps) = purge(bed, 7, KEPT + 3 * DAY).await;
    // One by one, or the whole day.
    let deleted = if days == 0 {
        records == 60 && steps > 8
    } else {
        (days, records) == (1, 0)
    };
    assert!(deleted && gone == 3, "{days} {records} {gone} {steps}");
    for n in 1..=3 {
        assert_eq!(stored(bed, n).await, [9 * DAY, 10 * DAY]);
        assert_eq!(streams(bed, n).await, [("even".to_owned(), at(10 * DAY))]);
        let again = commit(bed, (n, process(n)), 22, &[("even", 10 * DAY)], KEPT).await;
        assert_eq!((again.stored, again.position.seq), (0, 22));
    }
    assert_eq!(purge(bed, 7, KEPT + 3 * DAY).await, (0, 0, 0, 1));
}

pub(crate) async fn a_stream_that_comes_back_is_counted_anew(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    let who = (1, process(1));
    // As many as a gateway may have.
    let names: Vec<String> = (0..1_000).map(|number| format!("s{number:03}")).collect();
    let mut from = 1;
    for part in names.chunks(100) {
        let given: Vec<_> = part.iter().map(|name| (name.as_str(), 0)).collect();
        commit(bed, who, from, &given, 0).await;
        from += 100;
    }
    let beyond = commit(bed, who, from, &[("one-more", DAY)], DAY).await;
    assert_eq!(beyond.refused, [(RecordRefusal::StreamLimit, 1)].into());
    let later = KEPT + 2 * DAY;
    let (days, records, gone, _steps) = purge(bed, 10_000, later).await;
    assert!(days == 1 || records == 1_000, "{days} {records}");
    assert_eq!(gone, 1_000);
    let given: Vec<_> = [("one-more", later), ("s000", later)].into();
    let added = commit(bed, who, from + 1, &given, later).await;
    assert_eq!((added.stored, added.refused.len()), (2, 0), "{added:?}");
    assert_eq!(streams(bed, 1).await.len(), 2);
}

pub(crate) async fn what_an_unmeasured_clock_dates_too_early_is_kept_as_received(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    let who = (1, process(1));
    let given = [("a", -KEPT - DAY), ("a", -1)];
    let added = commit_by(bed, who, 1, &given, (0, None)).await;
    assert_eq!((added.position.seq, added.stored), (2, 2), "{added:?}");
    assert!(added.refused.is_empty(), "{added:?}");
    assert_eq!(stored(bed, 1).await, [-1, 0]);
    purge(bed, 100, 0).await;
    assert_eq!(stored(bed, 1).await, [-1, 0]);
}

pub(crate) async fn a_position_goes_some_time_after_the_last_record_of_its_spool_epoch(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    // Midnight: records are deleted by whole days, or one by one.
    let midnight = DAY - (at(0).unix_micros() / 1_000_000).rem_euclid(DAY);
    // One of which a record is from the next day, and seventy more behind it.
    let lasting = (1, process(100));
    commit(bed, lasting, 1, &[("a", midnight + 600)], midnight - 600).await;
    for n in 1..=70 {
        let when = midnight - 500 + i64::try_from(n).unwrap();
        commit(bed, (1, process(n)), 1, &[("a", when)], when).await;
    }
    let known = async || {
        let positions = bed.store.telemetry_positions(&bed.tenant, agent(1)).await;
        let positions = positions.unwrap().into_iter();
        positions.map(|it| it.spool_epoch).collect::<BTreeSet<_>>()
    };
    purge(bed, 1_000, KEPT + midnight - 1_000).await;
    assert_eq!(known().await.len(), 71);
    let later = KEPT + midnight + 300;
    purge(bed, 1_000, later).await;
    assert_eq!(stored(bed, 1).await, [midnight + 600]);
    // The last few stay, and the one that still has a record.
    let kept = (7..=70).chain([100]).map(process);
    assert_eq!(known().await, kept.collect());
    let again = commit(bed, lasting, 1, &[("a", midnight + 600)], later).await;
    assert_eq!((again.stored, again.position.seq), (0, 1));
    // What comes of one that was forgotten is as old as it was, and no hole.
    let again = commit(bed, (1, process(1)), 1, &[("a", midnight - 499)], later).await;
    assert_eq!((again.stored, again.missing), (0, 0), "{again:?}");
    assert_eq!(again.refused, [(RecordRefusal::PastRetention, 1)].into());
    // Those that a gateway remembers as delivered are known.
    let mut hello = bed.hello(1, 1, 1);
    let named = (55..=70).map(|n| Position {
        spool_epoch: process(n),
        seq: 1,
    });
    hello.telemetry = named.collect();
    let admitted = bed.admitted(hello).await;
    assert!(admitted.refused.is_empty(), "{admitted:?}");
    let page = Page::first(10);
    let gaps = bed.store.telemetry_gaps(&bed.tenant, agent(1), page).await;
    assert_eq!(gaps.unwrap().items, []);
}

/// Gateway 1 has given up a record, and so many that it delivers are too old.
async fn lose(bed: &Bed, spool_epoch: AgentRunId, seq: u64, now: i64) {
    let gap = Gap {
        from_seq: seq,
        to_seq: seq,
        reason: GapReason::SpoolFull,
    };
    let write = TelemetryWrite {
        agent_id: agent(1),
        epoch: bed.gateway_now(1).await.confirmed,
        skew_ms: Some(0),
        batch: Batch {
            spool_epoch,
            from_seq: seq,
            to_seq: seq,
            gaps: vec![gap],
            records: Vec::new(),
        },
    };
    let committed = bed
        .store
        .commit_telemetry(&bed.tenant, [write].into(), at(now), at(now));
    let outcomes = committed.await.unwrap();
    assert!(matches!(&outcomes[..], [TelemetryOutcome::Committed(_)]));
    let refused = commit(
        bed,
        (1, spool_epoch),
        seq + 1,
        &[("a", now - KEPT - 1)],
        now,
    )
    .await;
    assert_eq!(refused.refused, [(RecordRefusal::PastRetention, 1)].into());
}

pub(crate) async fn what_tells_of_losses_goes_with_what_was_kept_beside_it(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    // Agents that were started one after the other, and one that is there for weeks.
    for n in 1..=7 {
        lose(bed, process(n), 1, i64::try_from(n).unwrap()).await;
    }
    let lasting = process(100);
    lose(bed, lasting, 1, 8).await;
    lose(bed, lasting, 3, 9 * DAY).await;
    let told = async || {
        let page = Page::first(1_000);
        let gaps = bed.store.telemetry_gaps(&bed.tenant, agent(1), page).await;
        (gaps.unwrap().items.len(), refused(bed, 1).await.len())
    };
    assert_eq!(told().await, (9, 8));
    // As long as a record of their time can be there.
    purge(bed, 1_000, KEPT).await;
    assert_eq!(told().await, (9, 8));
    let (.., steps) = purge(bed, 3, KEPT + 2 * DAY).await;
    assert!(steps > 4, "{steps}");
    assert_eq!(told().await, (1, 1));
    // What was counted together goes together, some time after the last.
    assert_eq!(refused(bed, 1).await, [(RecordRefusal::PastRetention, 2)]);
    // What comes once more is no loss once more.
    let again = commit(bed, (1, process(1)), 2, &[("a", -KEPT)], KEPT + 2 * DAY).await;
    assert!(again.stored == 0 && again.refused.is_empty(), "{again:?}");
    purge(bed, 1_000, KEPT + 12 * DAY).await;
    assert_eq!(told().await, (0, 0));
}

/// A backend that keeps telemetry for so many days, and has told the others.
async fn keeping(server: &Server, database: &str, retention_days: u64) -> Bed {
    let store = open(&server.url(database), Role::Backend).await.unwrap();
    let limits = TelemetryLimits {
        retention_days,
        ..TelemetryLimits::default()
    };
    let bed = Bed::new(Arc::new(store.telemetry_limits(limits)));
    bed.store.note_load(InstanceLoad::default());
    bed
}

#[tokio::test]
async fn nothing_goes_that_another_backend_is_set_to_keep_longer() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = super::database(&folder) else {
        return;
    };
    super::make(server, &database);
    let short = keeping(server, &database, 30).await;
    let long = keeping(server, &database, 90).await;
    let days = |bed: &Bed| {
        let all = bed.store.neighbours().borrow().clone();
        let told = all.iter().map(|one| one.load.retention);
        told.collect::<Option<Vec<_>>>().map(|all| {
            all.into_iter()
                .map(|kept| kept.records_days)
                .collect::<Vec<_>>()
        })
    };
    eventually("both know of each other", PATIENCE, async || {
        let known = (days(&short), days(&long));
        (known == (Some(vec![90]), Some(vec![30]))).then_some(())
    })
    .await;
    short.gateway(1).await;
    short.session(1, 1).await;
    let spool = process(1);
    // What the shorter one would refuse is taken, and what it would delete stays.
    let taken = commit(
        &short,
        (1, spool),
        1,
        &[("a", -40 * DAY), ("a", -20 * DAY)],
        0,
    )
    .await;
    assert_eq!((taken.stored, taken.refused.len()), (2, 0));
    assert_eq!(purge(&short, 100, 0).await.1, 0);
    assert_eq!(stored(&short, 1).await.len(), 2);
    // Its promise stays when it is away, also for one that starts then, and whatever the server's clock says.
    long.store.close().await;
    eventually("it is alone", PATIENCE, async || {
        (days(&short) == Some(Vec::new())).then_some(())
    })
    .await;
    assert_eq!(purge(&short, 100, 0).await.1, 0);
    assert_eq!(stored(&short, 1).await.len(), 2);
    short.store.close().await;
    let anew = keeping(server, &database, 30).await;
    assert_eq!(promised(&anew), Some(90));
    let (hand, turn) = (server.database(&database), Cell::new(0));
    for set in ["- interval '1000 days'", "+ interval '1000 days'"] {
        let set = format!("UPDATE telemetry_promises SET looked_at = looked_at {set}");
        hand.ask(&set).unwrap();
        let looked = "SELECT count(*) FROM telemetry_promises WHERE abs(extract(epoch FROM \
                      looked_at - clock_timestamp())) < 60 AND records_days = 90 AND untold_seconds BETWEEN 0 AND 300";
        eventually("it was looked at", PATIENCE, async || {
            look_again(&anew, &turn);
            (hand.ask(looked).unwrap() == "1").then_some(())
        })
        .await;
    }
    assert_eq!(purge(&anew, 100, 0).await, (0, 0, 0, 1));
    assert_eq!(stored(&anew, 1).await.len(), 2);
    // It ends when nobody told it for long enough.
    let over =
        "UPDATE telemetry_promises SET untold_seconds = 7 * 86400 + 1 WHERE records_days = 90";
    hand.ask(over).unwrap();
    eventually("the promise is over", PATIENCE, async || {
        (promised(&anew) == Some(30)).then_some(())
    })
    .await;
    let _purged = purge(&anew, 100, 0).await;
    assert_eq!(stored(&anew, 1).await, [-20 * DAY]);
    eventually("it is forgotten", PATIENCE, async || {
        look_again(&anew, &turn);
        let left = "SELECT count(*) FROM telemetry_promises WHERE records_days = 90";
        (hand.ask(left).unwrap() == "0").then_some(())
    })
    .await;
    anew.store.close().await;
    super::postgres_counts_are_right(&folder);
}

/// Has a backend that keeps records for 30 days tell another promise, and so look at those of others at once.
fn look_again(bed: &Bed, turn: &Cell<u64>) {
    turn.set(turn.get() + 1);
    bed.store.limit_telemetry(TelemetryLimits {
        retention_days: 30,
        rollup_days: 1 + turn.get() % 2,
        ..TelemetryLimits::default()
    });
    bed.store.note_load(InstanceLoad::default());
}

/// Days for which others promised to keep records.
fn promised(bed: &Bed) -> Option<u64> {
    bed.store.promised().map(|kept| kept.records_days)
}

/// Whoever is set to keep less from now on does not wait for its own promise of before.
#[tokio::test]
async fn a_promise_goes_on_with_the_backend_that_made_it() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = super::database(&folder) else {
        return;
    };
    super::make(server, &database);
    let other = keeping(server, &database, 30).await;
    let one = keeping(server, &database, 90).await;
    let sees = async |days: Option<u64>| {
        eventually("the other one sees it", PATIENCE, async || {
            (promised(&other) == days).then_some(())
        })
        .await;
    };
    sees(Some(90)).await;
    // Another one ended its lease: it is a new instance, and has the promise.
    let mut instance = one.store.instance();
    let before = instance.borrow_and_update().unwrap();
    let hand = Hand {
        database: server.database(&database),
    };
    hand.set(before, "ended = true");
    let is_new = async || (*one.store.instance().borrow() != Some(before)).then_some(());
    eventually("it is a new instance", PATIENCE, is_new).await;
    let whose = "SELECT instance FROM telemetry_promises WHERE records_days = 90";
    let now = super::instances::instance(&one);
    assert_eq!(hand.says(whose), now.to_string());
    // It is started again with the same folder, and says another thing; until it does, the promise is there.
    one.store.close().await;
    let again = open(&server.url(&database), Role::Backend).await.unwrap();
    let limits = TelemetryLimits {
        retention_days: 7,
        ..TelemetryLimits::default()
    };
    let again = Bed::new(Arc::new(again.telemetry_limits(limits)));
    let ended = again
        .store
        .end_abandoned_sessions(&again.tenant, Some(now), at(0));
    ended.await.unwrap();
    let own = super::instances::instance(&again);
    assert_eq!(hand.says(whose), own.to_string());
    again.store.note_load(InstanceLoad::default());
    sees(Some(7)).await;
    assert_eq!(
        hand.says("SELECT count(*) FROM telemetry_promises WHERE records_days > 30"),
        "0"
    );
    // Set to for ever while it runs.
    let limits = TelemetryLimits {
        retention_days: 0,
        ..limits
    };
    again.store.limit_telemetry(limits);
    again.store.note_load(InstanceLoad::default());
    sees(Some(0)).await;
    again.store.close().await;
    sees(Some(0)).await;
    other.store.close().await;
    super::postgres_counts_are_right(&folder);
}

#[tokio::test]
async fn no_day_is_rolled_up_or_left_out_before_each_backend_has_told() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = super::database(&folder) else {
        return;
    };
    super::make(server, &database);
    let without = async || {
        let store = open(&server.url(&database), Role::Backend).await.unwrap();
        let limits = TelemetryLimits {
            rollup_days: 0,
            ..TelemetryLimits::default()
        };
        Bed::new(Arc::new(store.telemetry_limits(limits)))
    };
    let (one, untold) = (without().await, without().await);
    one.store.note_load(InstanceLoad::default());
    eventually("it knows of the other one", PATIENCE, async || {
        (one.store.neighbours().borrow().len() == 1).then_some(())
    })
    .await;
    one.gateway(1).await;
    one.session(1, 1).await;
    commit(&one, (1, process(1)), 1, &[("a", 0)], 0).await;
    let roll_up = || one.store.roll_up_telemetry(&one.tenant, at(3 * DAY));
    let rolled = roll_up().await.unwrap();
    assert_eq!((rolled.days, rolled.more), (0, false));
    untold.store.limit_telemetry(TelemetryLimits::default());
    untold.store.note_load(InstanceLoad::default());
    eventually("it has told", PATIENCE, async || {
        let all = one.store.neighbours().borrow().clone();
        let told = all.iter().all(|it| it.load.retention.is_some());
        told.then_some(())
    })
    .await;
    assert_eq!(roll_up().await.unwrap().days, 1);
    let count = server
        .psql(&database, "SELECT count(*) FROM telemetry_rollups")
        .unwrap();
    assert_eq!(count.trim(), "1");
    untold.store.close().await;
    one.store.close().await;
    super::postgres_counts_are_right(&folder);
}
