//! Telemetry: stored once, whatever the batching, with its gaps and refusals counted.

use std::collections::{BTreeMap, BTreeSet};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use viworks_backend_agent::data::{
    Page, StoredGap, TelemetryCommit, TelemetryLimits, TelemetryOutcome, TelemetryQuery,
    TelemetryWrite,
};
use viworks_common::ledger::telemetry::REFUSED_EPOCHS_MAX;
use viworks_common::telemetry::{
    Batch, FieldValue, Gap, GapReason, Position, Record, RecordRefusal,
};

use super::bed::{Bed, agent, at, process};

fn record(seq: u64) -> Record {
    let stream = if seq.is_multiple_of(2) {
        "host.cpu"
    } else {
        "host.load"
    };
    let seq = i64::try_from(seq).unwrap();
    Record {
        stream: stream.parse().unwrap(),
        observed_at: at(seq),
        fields: BTreeMap::from([
            ("value".parse().unwrap(), FieldValue::Integer(seq)),
            (
                "text".parse().unwrap(),
                FieldValue::Text("\u{1}\"\\é".to_owned()),
            ),
        ]),
    }
}

pub(crate) fn batch(from_seq: u64, to_seq: u64) -> Batch {
    let records = (from_seq..=to_seq).map(|seq| (seq, record(seq))).collect();
    Batch {
        spool_epoch: process(1),
        from_seq,
        to_seq,
        gaps: Vec::new(),
        records,
    }
}

pub(crate) async fn commit(bed: &Bed, n: u64, batch: Batch) -> TelemetryCommit {
    commit_all(bed, n, vec![batch], 0).await.remove(0)
}

/// Commits batches of one gateway together, at so many seconds on the line.
pub(crate) async fn commit_all(
    bed: &Bed,
    n: u64,
    batches: Vec<Batch>,
    seconds: i64,
) -> Vec<TelemetryCommit> {
    let epoch = bed.gateway_now(n).await.confirmed;
    let writes: Vec<_> = batches
        .into_iter()
        .map(|batch| TelemetryWrite {
            agent_id: agent(n),
            epoch,
            skew_ms: None,
            batch,
        })
        .collect();
    let outcomes = bed
        .store
        .commit_telemetry(&bed.tenant, writes.into(), at(0), at(seconds))
        .await;
    let commits = outcomes.unwrap().into_iter().map(|outcome| {
        let TelemetryOutcome::Committed(commit) = outcome else {
            panic!("the batch was not committed: {outcome:?}");
        };
        commit
    });
    commits.collect()
}

/// Batches of one record, each of a spool epoch of its own.
fn epochs(from: u64, count: u64) -> Vec<Batch> {
    let numbered = (from..from + count).map(|number| Batch {
        spool_epoch: process(number),
        ..batch(1, 1)
    });
    numbered.collect()
}

/// What was refused, by reason, over all spool epochs.
async fn refusals(bed: &Bed, n: u64) -> BTreeMap<RecordRefusal, u64> {
    let listed = bed
        .store
        .telemetry_refusals(&bed.tenant, agent(n), Page::first(1_000))
        .await
        .unwrap();
    let mut sums = BTreeMap::new();
    for refusal in listed.items {
        *sums.entry(refusal.reason).or_default() += refusal.records;
    }
    sums
}

fn everything(stream: Option<&str>) -> TelemetryQuery {
    TelemetryQuery {
        stream: stream.map(|name| name.parse().unwrap()),
        from: at(-10),
        until: at(100_000),
        newest_first: false,
    }
}

async fn stored(bed: &Bed, n: u64) -> Vec<u64> {
    let page = Page::first(1_000);
    let listing = bed
        .store
        .query_telemetry(&bed.tenant, agent(n), &everything(None), page)
        .await
        .unwrap();
    listing.items.iter().map(|record| record.seq).collect()
}

pub(super) async fn gaps(bed: &Bed, n: u64) -> Vec<(u64, u64, GapReason)> {
    let gaps = bed
        .store
        .telemetry_gaps(&bed.tenant, agent(n), Page::first(1_000))
        .await
        .unwrap()
        .items;
    gaps.iter()
        .map(|StoredGap { gap, .. }| (gap.from_seq, gap.to_seq, gap.reason))
        .collect()
}

pub(crate) async fn a_batch_twice_is_stored_once(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    let first = commit(bed, 1, batch(1, 10)).await;
    assert!(first.position.seq == 10 && first.stored == 10 && !first.rolled_back);
    let again = commit(bed, 1, batch(1, 10)).await;
    assert!(again.position.seq == 10 && again.stored == 0);
    let overlapping = commit(bed, 1, batch(8, 12)).await;
    assert!(overlapping.position.seq == 12 && overlapping.stored == 2 && !overlapping.rolled_back);
    assert_eq!(stored(bed, 1).await, (1..=12).collect::<Vec<_>>());
    let positions = bed
        .store
        .telemetry_positions(&bed.tenant, agent(1))
        .await
        .unwrap();
    assert_eq!(positions, [overlapping.position]);
    let mut hello = bed.hello(1, 1, 1);
    hello.telemetry = positions.clone();
    assert_eq!(bed.admitted(hello).await.committed, positions);
}

pub(crate) async fn any_batching_stores_every_record_once(bed: &Bed) {
    // Each step sends from somewhere at or below the position, as a gateway does that lost acknowledgements.
    let steps = proptest::collection::vec((0_u64..20, 1_u64..30), 1..12);
    let mut runner = TestRunner::default();
    for case in 1..=20 {
        bed.gateway(case).await;
        bed.session(case, case).await;
        let mut position = 0;
        for (back, length) in steps.new_tree(&mut runner).unwrap().current() {
            let from = position - back.min(position) + 1;
            let to = from + length - 1;
            let added = commit(bed, case, batch(from, to)).await;
            assert_eq!(added.stored, to.saturating_sub(position));
            position = position.max(to);
            assert_eq!(added.position.seq, position);
        }
        assert_eq!(stored(bed, case).await, (1..=position).collect::<Vec<_>>());
        assert!(gaps(bed, case).await.is_empty());
    }
}

pub(crate) async fn gaps_are_stored_clipped_at_the_position(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    commit(bed, 1, batch(1, 5)).await;
    let mut holed = batch(9, 10);
    holed.from_seq = 3;
    holed.gaps = vec![Gap {
        from_seq: 3,
        to_seq: 8,
        reason: GapReason::SpoolFull,
    }];
    let added = commit(bed, 1, holed).await;
    assert!(
        added.missing == 3 && added.stored == 2 && added.position.seq == 10 && !added.rolled_back
    );
    assert_eq!(gaps(bed, 1).await, [(6, 8, GapReason::SpoolFull)]);
}

pub(crate) async fn a_batch_beyond_the_position_commits_a_rolled_back_gap(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    commit(bed, 1, batch(1, 5)).await;
    let added = commit(bed, 1, batch(11, 12)).await;
    assert!(added.rolled_back && added.missing == 5 && added.position.seq == 12);
    assert_eq!(gaps(bed, 1).await, [(6, 10, GapReason::BackendRolledBack)]);
}

pub(crate) async fn what_a_gateway_knows_as_committed_and_the_store_forgot_becomes_a_gap(
    bed: &Bed,
) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    commit(bed, 1, batch(1, 5)).await;
    let spool_epoch = batch(1, 5).spool_epoch;
    let ended = process(77);
    let mut hello = bed.hello(1, 1, 1);
    let named = |spool_epoch, seq| Position { spool_epoch, seq };
    hello.telemetry = vec![
        named(spool_epoch, 9),
        named(ended, 3),
        named(spool_epoch, 9),
    ];
    let admitted = bed.admitted(hello.clone()).await;
    assert!(admitted.rolled_back);
    assert_eq!(
        admitted.committed,
        [
            named(spool_epoch, 9),
            named(ended, 3),
            named(spool_epoch, 9)
        ]
    );
    let lost = GapReason::BackendRolledBack;
    let mut found = gaps(bed, 1).await;
    found.sort_unstable_by_key(|gap| gap.0);
    assert_eq!(found, [(1, 3, lost), (6, 9, lost)]);
    let audited = bed.audited().await;
    assert!(audited.contains(&"telemetry.rolled_back".to_owned()));
    // Said again, it is old news.
    hello.session_id = bed.hello(1, 1, 1).session_id;
    let again = bed.admitted(hello).await;
    assert!(!again.rolled_back && gaps(bed, 1).await.len() == 2);
}

pub(crate) async fn a_gateway_that_knows_less_than_the_store_loses_nothing(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    commit(bed, 1, batch(1, 5)).await;
    let mut hello = bed.hello(1, 1, 1);
    hello.telemetry = vec![Position {
        spool_epoch: batch(1, 5).spool_epoch,
        seq: 2,
    }];
    let admitted = bed.admitted(hello).await;
    assert!(!admitted.rolled_back && admitted.committed[0].seq == 5);
    assert!(gaps(bed, 1).await.is_empty());
}

pub(crate) async fn a_refused_record_is_counted_and_does_not_fail_its_batch(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    let mut mixed = batch(1, 4);
    mixed.records[1].1.fields =
        BTreeMap::from([("value".parse().unwrap(), FieldValue::Number(f64::NAN))]);
    mixed.records[2].1.fields =
        BTreeMap::from([("value".parse().unwrap(), FieldValue::Text("a\0".to_owned()))]);
    let added = commit(bed, 1, mixed).await;
    let refused = BTreeMap::from([(RecordRefusal::NonFinite, 1), (RecordRefusal::BadText, 1)]);
    assert!(
        added.stored == 2 && added.refused == refused && added.position.seq == 4,
        "{added:?}"
    );
    assert_eq!(stored(bed, 1).await, [1, 4]);
}

pub(crate) async fn other_bounds_count_from_the_next_batch_on(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    bed.store.limit_telemetry(TelemetryLimits {
        records_per_day: 2,
        ..TelemetryLimits::default()
    });
    // Two, and of what its agent reads itself one more.
    let few = commit(bed, 1, batch(1, 4)).await;
    assert_eq!((few.stored, few.refused.values().sum::<u64>()), (3, 1));
    bed.store.limit_telemetry(TelemetryLimits::default());
    let more = commit(bed, 1, batch(5, 7)).await;
    assert_eq!((more.stored, more.refused.len()), (3, 0));
}

pub(crate) async fn a_day_that_goes_back_gives_no_gateway_more_than_its_share(bed: &Bed) {
    const DAY: i64 = 24 * 3_600;
    bed.gateway(1).await;
    bed.session(1, 1).await;
    let refused = |commits: Vec<TelemetryCommit>| {
        let refused = commits
            .iter()
            .map(|commit| commit.refused.values().sum::<u64>());
        refused.sum::<u64>()
    };
    let most = 1_000;
    assert_eq!(
        refused(commit_all(bed, 1, epochs(1_000, most), DAY).await),
        0
    );
    // HELLO looks at the same counts, on a day that is over.
    let mut hello = bed.hello(1, 1, 1);
    hello.telemetry = vec![Position {
        spool_epoch: process(1),
        seq: 5,
    }];
    let admitted = bed.admitted(hello).await;
    assert_eq!(
        admitted.refused,
        BTreeMap::from([(RecordRefusal::EpochLimit, 5)])
    );
    assert_eq!(refused(commit_all(bed, 1, epochs(5_000, 3), 0).await), 3);
    assert_eq!(refused(commit_all(bed, 1, epochs(6_000, 3), DAY).await), 3);
    assert_eq!(
        refused(commit_all(bed, 1, epochs(7_000, 3), 2 * DAY).await),
        0
    );
}

pub(crate) async fn what_is_refused_of_one_epoch_too_many_is_counted_once(bed: &Bed) {
    const DAY: i64 = 24 * 3_600;
    bed.gateway(1).await;
    bed.session(1, 1).await;
    commit_all(bed, 1, epochs(1_000, 1_000), 0).await;
    let refused = |records| BTreeMap::from([(RecordRefusal::EpochLimit, records)]);
    // Its acknowledgement was lost, and the second time it comes with more.
    assert_eq!(commit(bed, 1, batch(1, 3)).await.refused, refused(3));
    assert_eq!(commit(bed, 1, batch(1, 3)).await.refused, BTreeMap::new());
    assert_eq!(commit(bed, 1, batch(2, 7)).await.refused, refused(4));
    // In HELLO it says how far it was acknowledged, as often as it connects.
    for told in [7, 7, 9, 9] {
        let mut hello = bed.hello(1, 1, 1);
        let position = Position {
            spool_epoch: batch(1, 1).spool_epoch,
            seq: told,
        };
        hello.telemetry = vec![position];
        let admitted = bed.admitted(hello).await;
        assert_eq!(admitted.committed, [position]);
    }
    assert_eq!(refusals(bed, 1).await, refused(9));
    assert!(gaps(bed, 1).await.is_empty());
    bed.session(1, 1).await;
    // On the next day it may come, and nothing of it is counted twice.
    let next = commit_all(bed, 1, vec![batch(8, 12)], DAY).await.remove(0);
    assert!(
        next.stored == 3 && next.missing == 0 && !next.rolled_back,
        "{next:?}"
    );
    assert_eq!(refusals(bed, 1).await, refused(9));
}

pub(crate) async fn what_is_refused_of_several_epochs_in_alternation_is_counted_once(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    commit_all(bed, 1, epochs(1_000, 1_000), 0).await;
    let many = 32;
    let refused = BTreeMap::from([(RecordRefusal::EpochLimit, many)]);
    // A HELLO names so many of them, and a gateway sends them in turn.
    for _ in 0..3 {
        commit_all(bed, 1, epochs(5_000, many), 0).await;
        assert_eq!(refusals(bed, 1).await, refused);
    }
    for _ in 0..3 {
        let mut hello = bed.hello(1, 1, 1);
        let named = epochs(5_000, many).into_iter().map(|batch| Position {
            spool_epoch: batch.spool_epoch,
            seq: batch.to_seq + 1,
        });
        hello.telemetry = named.collect();
        bed.admitted(hello).await;
    }
    let refused = BTreeMap::from([(RecordRefusal::EpochLimit, 2 * many)]);
    assert_eq!(refusals(bed, 1).await, refused);
}

pub(crate) async fn what_is_refused_of_many_epochs_at_once_is_counted_once(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    bed.store.limit_telemetry(TelemetryLimits {
        epochs_per_day: 1,
        ..TelemetryLimits::default()
    });
    commit(bed, 1, batch(1, 1)).await;
    let many = u64::try_from(REFUSED_EPOCHS_MAX).unwrap() + 50;
    let refused = BTreeMap::from([(RecordRefusal::EpochLimit, many)]);
    // The answer to the first commit was lost, and that to the second.
    for seconds in 1..=3 {
        commit_all(bed, 1, epochs(5_000, many), seconds).await;
        assert_eq!(refusals(bed, 1).await, refused, "{seconds}");
    }
    // More come, and those before them are remembered as far as they are kept.
    commit_all(bed, 1, epochs(9_000, 1), 4).await;
    commit_all(bed, 1, epochs(9_000, 1), 5).await;
    let refused = BTreeMap::from([(RecordRefusal::EpochLimit, many + 1)]);
    assert_eq!(refusals(bed, 1).await, refused);
}

pub(crate) async fn what_hello_claims_beyond_the_bound_of_gaps_is_counted_once(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    let holed = |batch_number: u64| {
        let from_seq = 1 + batch_number * 128;
        let odd = (from_seq..from_seq + 128).step_by(2);
        let mut holed = batch(from_seq, from_seq + 127);
        holed.gaps = odd
            .map(|seq| Gap {
                from_seq: seq,
                to_seq: seq,
                reason: GapReason::SpoolFull,
            })
            .collect();
        holed.records.retain(|(seq, _)| seq.is_multiple_of(2));
        holed
    };
    let most = 10_000;
    let commits = commit_all(bed, 1, (0..157).map(holed).collect(), 0).await;
    let missing: u64 = commits.iter().map(|commit| commit.missing).sum();
    assert_eq!(missing, most);
    let before = 157 * 64 - most;
    let last = commits.last().unwrap().position;
    for _ in 0..2 {
        let mut hello = bed.hello(1, 1, 1);
        hello.telemetry = vec![Position {
            seq: last.seq + 100,
            ..last
        }];
        bed.admitted(hello).await;
    }
    let refused = BTreeMap::from([(RecordRefusal::GapLimit, before + 100)]);
    assert_eq!(refusals(bed, 1).await, refused);
}

pub(crate) async fn a_fenced_batch_is_not_stored_and_its_neighbour_is(bed: &Bed) {
    bed.gateway(1).await;
    bed.gateway(2).await;
    bed.session(1, 1).await;
    bed.session(2, 2).await;
    let write = |n, epoch| TelemetryWrite {
        agent_id: agent(n),
        epoch,
        skew_ms: None,
        batch: batch(1, 3),
    };
    let outcomes = bed
        .store
        .commit_telemetry(&bed.tenant, [write(1, 0), write(2, 1)].into(), at(0), at(0))
        .await
        .unwrap();
    assert!(
        outcomes[0] == TelemetryOutcome::Fenced
            && matches!(outcomes[1], TelemetryOutcome::Committed(_))
    );
    assert!(stored(bed, 1).await.is_empty() && stored(bed, 2).await.len() == 3);
}

pub(crate) async fn a_fenced_batch_is_fenced_whatever_it_holds(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    let mut holed = batch(1, 5);
    holed.records.remove(2);
    let write = |epoch| TelemetryWrite {
        agent_id: agent(1),
        epoch,
        skew_ms: None,
        batch: holed.clone(),
    };
    let outcomes = bed
        .store
        .commit_telemetry(&bed.tenant, [write(0), write(1)].into(), at(0), at(0))
        .await
        .unwrap();
    assert_eq!(outcomes[0], TelemetryOutcome::Fenced);
    assert!(matches!(outcomes[1], TelemetryOutcome::Malformed(_)));
    assert!(stored(bed, 1).await.is_empty());
}

/// What is stored behind it would make a gap of it, which the gateway takes for settled.
pub(crate) async fn behind_a_malformed_batch_nothing_of_its_gateway_is_stored(bed: &Bed) {
    for n in [1, 2] {
        bed.gateway(n).await;
        bed.session(n, n).await;
    }
    let mut holed = batch(3, 5);
    holed.records.remove(1);
    let write = |n, batch| TelemetryWrite {
        agent_id: agent(n),
        epoch: 1,
        skew_ms: None,
        batch,
    };
    // Two batches of one spool epoch in one commit follow each other.
    let writes = [
        write(1, batch(1, 1)),
        write(1, batch(2, 2)),
        write(1, holed),
        write(1, batch(6, 7)),
        write(2, batch(1, 2)),
    ];
    let outcomes = bed
        .store
        .commit_telemetry(&bed.tenant, writes.into(), at(0), at(0))
        .await
        .unwrap();
    for (outcome, reached) in outcomes.iter().zip([Some(1), Some(2), None, None, Some(2)]) {
        let position = match outcome {
            TelemetryOutcome::Committed(added) => Some(added.position.seq),
            TelemetryOutcome::Malformed(_) => None,
            TelemetryOutcome::Fenced => panic!("{outcomes:?}"),
        };
        assert_eq!(position, reached, "{outcomes:?}");
    }
    assert_eq!(stored(bed, 1).await, [1, 2]);
    assert_eq!(stored(bed, 2).await, [1, 2]);
    assert_eq!(gaps(bed, 1).await, []);
}

pub(crate) async fn records_are_queried_by_stream_range_and_page(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    commit(bed, 1, batch(1, 20)).await;
    for newest_first in [false, true] {
        for stream in [None, Some("host.cpu")] {
            let mut query = everything(stream);
            query.newest_first = newest_first;
            query.from = at(5);
            query.until = at(15);
            let (mut seen, mut page) = (Vec::new(), Page::first(3));
            loop {
                let listing = bed
                    .store
                    .query_telemetry(&bed.tenant, agent(1), &query, page)
                    .await
                    .unwrap();
                seen.extend(listing.items.iter().map(|stored| stored.seq));
                let Some(next) = listing.next else { break };
                page = Page::after(next, 3);
            }
            let mut expected: Vec<u64> = (5..15)
                .filter(|seq| stream.is_none() || seq % 2 == 0)
                .collect();
            if newest_first {
                expected.reverse();
            }
            assert_eq!(seen, expected);
        }
    }
    let one = bed
        .store
        .query_telemetry(&bed.tenant, agent(1), &everything(None), Page::first(1))
        .await
        .unwrap()
        .items
        .remove(0);
    assert!(one.fields == record(1).fields && one.observed_at == at(1) && one.stored_at == at(0));
    let streams = bed
        .store
        .telemetry_streams(&bed.tenant, agent(1), Page::first(1_000))
        .await
        .unwrap()
        .items;
    let newest: BTreeSet<_> = streams
        .iter()
        .map(|summary| (summary.stream.as_str(), summary.newest))
        .collect();
    assert_eq!(
        newest,
        BTreeSet::from([("host.cpu", at(20)), ("host.load", at(19))])
    );
}
