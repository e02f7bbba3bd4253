//! What of a batch is stored, refused or in a gap, whatever is repeated.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::rules::Complete;
use crate::telemetry::FieldValue;

const NOW: Timestamp = Timestamp::from_unix_micros(1_795_000_000_000_000);

fn run(n: u128) -> AgentRunId {
    AgentRunId::from_uuid(Uuid::from_u128(n))
}

fn batch(from_seq: u64, to_seq: u64) -> Batch {
    let record = || Record {
        stream: "sys".parse().unwrap(),
        observed_at: NOW,
        fields: [("n".parse().unwrap(), FieldValue::Flag(true))].into(),
    };
    Batch {
        spool_epoch: run(1),
        from_seq,
        to_seq,
        gaps: Vec::new(),
        records: (from_seq..=to_seq).map(|seq| (seq, record())).collect(),
    }
}

fn gap(from_seq: u64, to_seq: u64) -> Batch {
    let gap = Gap {
        from_seq,
        to_seq,
        reason: GapReason::SpoolFull,
    };
    Batch {
        gaps: vec![gap],
        records: Vec::new(),
        ..batch(from_seq, to_seq)
    }
}

fn reached(committed: Option<u64>) -> Reached {
    Reached {
        committed,
        refused: 0,
    }
}

fn facts(committed: Option<u64>, limits: Limits) -> Facts {
    Facts {
        reached: reached(committed),
        usage: Usage::default().today(NOW),
        streams: BTreeSet::new(),
        limits,
        now: NOW,
    }
}

fn take(batch: &Batch, committed: Option<u64>, limits: Limits) -> Intake<'_> {
    intake(Complete, batch, None, facts(committed, limits), NOW)
}

#[test]
fn a_repeated_batch_adds_nothing_and_reaches_the_same_position() {
    let repeated = batch(1, 4);
    let taken = take(&repeated, Some(4), Limits::default());
    assert_eq!((taken.commit.position.seq, taken.commit.stored), (4, 0));
    // Nothing is written for it.
    assert_eq!(
        (taken.position, taken.usage),
        (None, Usage::default().today(NOW))
    );
    // Half of it is new.
    let half = batch(3, 6);
    let taken = take(&half, Some(4), Limits::default());
    assert_eq!((taken.position, taken.commit.stored), (Some(6), 2));
    let seqs: Vec<u64> = taken.rows.iter().map(|row| row.seq).collect();
    assert_eq!(seqs, [5, 6]);
}

#[test]
fn a_hole_before_a_batch_was_forgotten_by_the_database() {
    let later = batch(5, 6);
    let taken = take(&later, Some(2), Limits::default());
    assert!(taken.commit.rolled_back);
    assert_eq!(taken.commit.missing, 2);
    assert_eq!((taken.gaps[0].from_seq, taken.gaps[0].to_seq), (3, 4));
    assert_eq!(taken.gaps[0].reason, GapReason::BackendRolledBack);
}

#[test]
fn a_gap_is_clipped_to_what_is_not_committed() {
    let gap = gap(1, 4);
    let taken = take(&gap, Some(2), Limits::default());
    assert_eq!(taken.commit.missing, 2);
    assert_eq!((taken.gaps[0].from_seq, taken.gaps[0].to_seq), (3, 4));
    let taken = take(&gap, Some(4), Limits::default());
    assert_eq!(taken.commit.missing, 0);
}

#[test]
fn whoever_fills_the_bounds_of_a_gateway_leaves_room_for_what_its_agent_reads() {
    let bounds = [
        (RecordRefusal::StreamLimit, |limits: &mut Limits| {
            limits.streams = 32;
        }),
        (RecordRefusal::RecordLimit, |limits| {
            limits.records_per_day = 32;
        }),
        // Of a record here.
        (RecordRefusal::ByteLimit, |limits| {
            limits.bytes_per_day = 32 * 200;
        }),
    ] as [(RecordRefusal, fn(&mut Limits)); 3];
    for (reason, bound) in bounds {
        let mut limits = Limits::default();
        bound(&mut limits);
        let mut full = batch(1, 100);
        for (seq, record) in &mut full.records {
            // All of the program's come first.
            let part = if *seq <= 90 { "app" } else { "host" };
            record.stream = format!("{part}.s{seq}").parse().unwrap();
        }
        let taken = take(&full, None, limits);
        let stored = |part: &str| {
            let rows = taken.rows.iter();
            rows.filter(|row| row.stream.as_str().starts_with(part))
                .count()
        };
        assert!((1..=32).contains(&stored("app.")), "{reason:?}");
        assert!((1..=3).contains(&stored("host.")), "{reason:?}");
        assert!(taken.commit.refused.contains_key(&reason), "{reason:?}");
    }
}

#[test]
fn what_is_beyond_a_bound_is_counted_and_the_position_passes_it() {
    let none = Limits {
        epochs_per_day: 0,
        ..Limits::default()
    };
    let some = batch(1, 3);
    let taken = take(&some, None, none);
    assert_eq!(taken.commit.position.seq, 3);
    assert_eq!(
        taken.commit.refused,
        [(RecordRefusal::EpochLimit, 3)].into()
    );
    assert_eq!(taken.refused_under, NO_EPOCH);
    assert!(taken.rows.is_empty() && taken.position.is_none());
    let few = Limits {
        gaps_per_day: 0,
        records_per_day: 1,
        ..Limits::default()
    };
    let hole = gap(1, 5);
    let taken = take(&hole, None, few);
    assert_eq!(taken.commit.refused, [(RecordRefusal::GapLimit, 5)].into());
    let taken = take(&some, None, few);
    assert_eq!(taken.commit.stored, 1);
    assert_eq!(
        taken.commit.refused,
        [(RecordRefusal::RecordLimit, 2)].into()
    );
    let narrow = Limits {
        bytes_per_day: 400,
        ..Limits::default()
    };
    let taken = take(&some, None, narrow);
    assert_eq!(taken.commit.refused, [(RecordRefusal::ByteLimit, 2)].into());
    let nothing = Limits {
        streams: 0,
        ..Limits::default()
    };
    let taken = take(&some, None, nothing);
    assert_eq!(
        taken.commit.refused,
        [(RecordRefusal::StreamLimit, 3)].into()
    );
}

#[test]
fn what_a_gateway_remembers_and_the_database_does_not_is_a_gap() {
    let asked = |seq| Position {
        spool_epoch: run(1),
        seq,
    };
    let mut usage = Usage::default();
    let mut remember = |seq, committed| {
        let limits = Limits::default();
        let reached = reached(committed);
        remembered(Complete, asked(seq), reached, &mut usage, &limits)
    };
    let more = remember(5, Some(3));
    assert_eq!(more.position, asked(5));
    let gap = more.gap.unwrap();
    assert_eq!((gap.from_seq, gap.to_seq), (4, 5));
    let less = remember(2, Some(3));
    assert_eq!((less.position, less.gap), (asked(3), None));
    assert_eq!((more.moved_to, less.moved_to), (Some(5), None));
    let nothing = remember(0, None);
    assert_eq!((nothing.position, nothing.gap), (asked(0), None));
}

#[test]
fn what_is_beyond_a_bound_is_counted_once_however_often_it_comes() {
    let none = Limits {
        epochs_per_day: 0,
        gaps_per_day: 0,
        ..Limits::default()
    };
    let some = batch(1, 3);
    let mut facts = facts(None, none);
    facts.reached.refused = take(&some, None, none).refused_to.unwrap();
    let again = intake(Complete, &some, None, facts.clone(), NOW);
    assert!(again.commit.refused.is_empty());
    assert_eq!(again.commit.position.seq, 3);
    let asked = Position {
        spool_epoch: run(1),
        seq: 5,
    };
    let told = remembered(Complete, asked, facts.reached, &mut facts.usage, &none);
    let epoch = (NO_EPOCH, RecordRefusal::EpochLimit, 2);
    assert_eq!((told.position, told.moved_to), (asked, None));
    assert_eq!((told.refused, told.refused_to), (Some(epoch), Some(5)));
    let told = remembered(Complete, asked, reached(Some(1)), &mut facts.usage, &none);
    assert_eq!(told.refused, Some((run(1), RecordRefusal::GapLimit, 4)));
    assert_eq!((told.gap, told.moved_to), (None, Some(5)));
}

#[test]
fn a_batch_that_contradicts_itself_is_refused() {
    let mut broken = batch(1, 3);
    broken.records.remove(1);
    assert!(check(&broken).is_err());
    assert!(check(&batch(1, 3)).is_ok());
}

#[test]
fn a_day_begins_anew_and_streams_count_for_good() {
    let used = Usage {
        day: NOW.unix_micros().div_euclid(DAY_MICROS),
        epochs: 1,
        records: 2,
        bytes: 3,
        gaps: 4,
        streams: 5,
    };
    assert_eq!(used.today(NOW), used);
    let yesterday = NOW.saturating_sub(Duration::from_secs(24 * 3_600));
    assert_eq!(
        used.today(yesterday),
        used,
        "a clock that goes back begins nothing"
    );
    let tomorrow = NOW.saturating_add(Duration::from_secs(24 * 3_600));
    let begun = used.today(tomorrow);
    assert_eq!((begun.records, begun.streams), (0, 5));
}

#[test]
fn what_is_older_than_it_is_kept_is_counted_and_passed_by() {
    let day = Duration::from_secs(24 * 3_600);
    let limits = Limits {
        retention_days: 30,
        ..Limits::default()
    };
    let mut some = batch(1, 4);
    let edge = NOW.saturating_sub(day * 30);
    let before = Timestamp::from_unix_micros(edge.unix_micros() - 1);
    for ((_, record), at) in
        some.records
            .iter_mut()
            .zip([NOW, edge, before, edge.saturating_sub(day)])
    {
        record.observed_at = at;
    }
    let known = || facts(None, limits);
    let taken = intake(Complete, &some, Some(0), known(), NOW);
    let refused = BTreeMap::from([(RecordRefusal::PastRetention, 2)]);
    assert_eq!((taken.commit.stored, &taken.commit.refused), (2, &refused));
    assert_eq!((taken.position, taken.usage.records), (Some(4), 2));
    // A clock that was not measured may be wrong.
    let taken = intake(Complete, &some, None, known(), NOW);
    assert_eq!(
        (taken.commit.stored, taken.commit.refused),
        (4, BTreeMap::new())
    );
    // One that was is put right first.
    let ahead = i64::try_from(day.as_millis()).unwrap();
    let taken = intake(Complete, &some, Some(ahead), known(), NOW);
    assert_eq!(
        taken.commit.refused,
        BTreeMap::from([(RecordRefusal::PastRetention, 3)])
    );
    let ever = intake(
        Complete,
        &some,
        Some(0),
        facts(None, Limits::default()),
        NOW,
    );
    assert_eq!(ever.commit.stored, 4);
}

proptest! {
    /// Everything up to the position is stored once, in a gap once, or refused, whatever is repeated.
    #[test]
    fn every_number_is_accounted_for_exactly_once(
        parts in prop::collection::vec((1_u64..30, 0_u64..6, any::<bool>()), 1..20)
    ) {
        let limits = Limits { records_per_day: 20, gaps_per_day: 3, ..Limits::default() };
        let mut known = facts(Some(0), limits);
        let (mut position, mut told) = (0, 0);
        for (from, more, is_gap) in parts {
            let part = if is_gap { gap(from, from + more) } else { batch(from, from + more) };
            let taken = intake(Complete, &part, None, known.clone(), NOW);
            let commit = &taken.commit;
            prop_assert!(commit.position.seq >= position);
            position = commit.position.seq;
            told += commit.stored + commit.missing + commit.refused.values().sum::<u64>();
            known.reached.committed = taken.position.or(known.reached.committed);
            known.usage = taken.usage;
            known.streams.extend(taken.newest.keys().map(|stream| (*stream).clone()));
        }
        prop_assert_eq!(told, position);
    }
}
