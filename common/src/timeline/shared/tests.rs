//! Processes that follow one server's clock, with everything that clocks and connections do to them.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::id::BootId;

const SECOND: i64 = 1_000_000;
const HOUR: i64 = 3_600 * SECOND;
const NOON: i64 = 1_795_000_000_000_000;

fn at(micros: i64) -> Monotonic {
    Monotonic::from_duration(Duration::from_micros(micros.unsigned_abs()))
}

fn stamp(micros: i64) -> Timestamp {
    Timestamp::from_unix_micros(micros)
}

/// A look that takes no time.
fn look(now: i64, shows: i64) -> Look {
    Look {
        sent: at(now),
        came: at(now),
        shows: stamp(shows),
    }
}

fn stored(shows: i64, reads: i64) -> Stored {
    let point = Point {
        number: 4,
        shows: stamp(shows),
        reads: stamp(reads),
    };
    Stored {
        anchored: None,
        point: Some(point),
    }
}

fn anchor(now: i64, reads: i64) -> Anchor {
    Anchor {
        at: at(now),
        reads: stamp(reads),
        wall_ahead: 0,
    }
}

#[test]
fn a_new_line_begins_at_the_server_s_clock_and_beyond_all_that_was_read_elsewhere() {
    let nothing = Stored::default();
    let begun = follow(None, &nothing, &look(7, NOON));
    assert_eq!(begun.anchor, anchor(7, NOON));
    assert_eq!(begun.course, Course::Begun);
    assert_eq!(begun.next.map(|next| next.number), Some(1));
    // A database that was moved from another machine: of its boot nothing is known here.
    let moved = Stored {
        anchored: Some(Anchored {
            boot_id: BootId::from_uuid(Uuid::nil()),
            anchor: anchor(1, NOON + HOUR),
        }),
        point: None,
    };
    let begun = follow(None, &moved, &look(7, NOON));
    assert!(begun.anchor.reads > stamp(NOON + HOUR), "{begun:?}");
    assert!(begun.anchor.wall_ahead < -HOUR, "it leans back");
}

#[test]
fn a_database_that_was_moved_on_the_same_machine_goes_on_exactly() {
    let own = anchor(0, NOON - HOUR);
    let moved = follow(Some(&own), &Stored::default(), &look(5 * SECOND, NOON));
    assert_eq!(moved.anchor.reads, stamp(NOON - HOUR + 5 * SECOND));
    assert_eq!((moved.course, moved.next.is_some()), (Course::Steady, true));
}

#[test]
fn a_server_s_clock_that_is_set_moves_nothing_and_is_seen_by_the_first_that_looks() {
    for set in [HOUR, -HOUR, 2 * SECOND, -2 * SECOND] {
        let (one, other) = (anchor(0, NOON), anchor(1_000, NOON));
        let before = stored(NOON, NOON);
        let seen = follow(
            Some(&one),
            &before,
            &look(5 * SECOND, NOON + 5 * SECOND + set),
        );
        assert_eq!(seen.course, Course::ServerSet(set));
        assert_eq!(seen.anchor.reads, stamp(NOON + 5 * SECOND));
        let next = seen.next.unwrap();
        assert_eq!((next.number, next.reads), (5, stamp(NOON + 5 * SECOND)));
        // The other one finds the line where it expects it.
        let after = Stored {
            anchored: None,
            point: Some(next),
        };
        let looks = look(1_000 + 6 * SECOND, NOON + 6 * SECOND + set);
        let followed = follow(Some(&other), &after, &looks);
        assert_eq!(followed.course, Course::Steady);
        assert_eq!(followed.next, None, "stored a moment ago");
        let off = micros_between(stamp(NOON + 6 * SECOND), followed.anchor.reads);
        assert!(off.abs() <= 1_000, "it leans, and no more: {off}");
        // And whoever comes then without knowing anything takes the same line.
        let newcomer = follow(None, &after, &looks);
        assert_eq!(newcomer.course, Course::Steady);
        let off = micros_between(followed.anchor.reads, newcomer.anchor.reads);
        assert!(off.abs() <= 1_000, "{off}");
    }
}

#[test]
fn a_process_whose_clock_stood_still_takes_what_the_others_know() {
    let own = anchor(0, NOON);
    // It thinks that five seconds have passed; others have stored what the line read an hour later.
    let others = stored(NOON + HOUR, NOON + HOUR);
    let looks = look(5 * SECOND, NOON + HOUR + 3 * SECOND);
    let back = follow(Some(&own), &others, &looks);
    assert_eq!(back.anchor.reads, stamp(NOON + HOUR + 3 * SECOND));
    assert!(matches!(back.course, Course::StoodStill(for_long) if for_long.as_secs() == 3_598));
    assert_eq!(back.next, None);
    // With nobody beside it, it cannot know, and the line stands still with it.
    let alone = follow(Some(&own), &stored(NOON, NOON), &looks);
    assert!(matches!(alone.course, Course::ServerSet(_)));
    assert_eq!(alone.anchor.reads, stamp(NOON + 5 * SECOND));
}

#[test]
fn a_process_whose_clock_stood_still_for_a_moment_is_contradicted_and_takes_the_line() {
    // It misses less than the last point is old, which looks like a server's clock that was set.
    let still = 2 * SECOND;
    let own = anchor(0, NOON);
    let mut common = stored(NOON + SECOND, NOON + SECOND);
    let first = follow(Some(&own), &common, &look(SECOND, NOON + SECOND + still));
    assert_eq!(first.course, Course::ServerSet(still));
    common.point = first.next;
    // Whoever went on meanwhile knows better.
    let other = anchor(0, NOON);
    let looks = look(SECOND + still, NOON + SECOND + still);
    let better = follow(Some(&other), &common, &looks);
    assert_eq!(better.course, Course::ServerSet(-still));
    common.point = better.next;
    let looks = look(4 * SECOND, NOON + 4 * SECOND + still);
    let second = follow(Some(&first.anchor), &common, &looks);
    let Course::StoodStill(missed) = second.course else {
        panic!("{second:?}");
    };
    let lean = Duration::from_millis(5);
    let expected = Duration::from_micros(still.unsigned_abs());
    assert!(missed.abs_diff(expected) <= lean, "{missed:?}");
    let off = micros_between(second.anchor.reads, stamp(NOON + 4 * SECOND + still));
    assert!(off.abs() <= 5_000, "it leans, and no more: {off}");
    let next = second.next.expect("the point has aged");
    assert_eq!(next.reads, second.anchor.reads);
    // The other one, told the same by mistake, would not go back.
    common.point = first.next;
    let looks = look(4 * SECOND + still, NOON + 4 * SECOND + still);
    let kept = follow(Some(&better.anchor), &common, &looks);
    assert!(matches!(kept.course, Course::ServerSet(by) if (by + still).abs() <= 5_000));
    let off = micros_between(kept.anchor.reads, stamp(NOON + 4 * SECOND + still));
    assert!(off.abs() <= 5_000, "{off}");
}

#[test]
fn a_connection_that_was_gone_for_minutes_leaves_no_trace() {
    let own = anchor(0, NOON);
    let away = 600 * SECOND;
    // Its quartz runs 50 millionths fast; the others have renewed the point all the time.
    let looks = look(away + away / 20_000, NOON + away);
    let others = stored(NOON + away - SECOND, NOON + away - SECOND);
    let back = follow(Some(&own), &others, &looks);
    assert_eq!((back.course, back.next), (Course::Steady, None));
    assert_eq!(back.anchor.reads, stamp(NOON + away));
}

#[test]
fn a_newcomer_doubts_a_point_that_nobody_may_have_renewed() {
    let point = stored(NOON, NOON);
    for (shows, doubtful) in [
        (NOON, false),
        (NOON + 15 * SECOND, false),
        (NOON + 16 * SECOND, true),
        (NOON - 1, true),
    ] {
        let looks = look(7, shows);
        let boot = BootId::from_uuid(Uuid::nil());
        assert_eq!(is_doubtful(Some(boot), &point, &looks), doubtful, "{shows}");
        let known = Stored {
            anchored: Some(Anchored {
                boot_id: boot,
                anchor: anchor(0, NOON),
            }),
            ..point
        };
        assert!(!is_doubtful(Some(boot), &known, &looks));
        assert_eq!(is_doubtful(None, &known, &looks), doubtful, "{shows}");
    }
    assert!(!is_doubtful(None, &Stored::default(), &look(7, NOON)));
    // Where nobody was there to renew it, the clock counts what passed, and is never before what was read.
    let later = follow(None, &point, &look(7, NOON + HOUR));
    assert_eq!(later.anchor.reads, stamp(NOON + HOUR));
    assert_eq!((later.course, later.next.is_some()), (Course::Steady, true));
    let behind = follow(None, &point, &look(7, NOON - HOUR));
    assert!(behind.anchor.reads > stamp(NOON));
    assert_eq!(
        (behind.course, behind.next.is_some()),
        (Course::Begun, true)
    );
}

#[test]
fn a_failover_to_a_machine_with_another_clock_and_an_older_point_moves_nothing() {
    let own = anchor(0, NOON);
    // What the standby has of the point is twelve seconds old, and its clock is a minute behind.
    let lost = stored(NOON - 12 * SECOND, NOON - 12 * SECOND);
    let seen = follow(Some(&own), &lost, &look(5 * SECOND, NOON - 55 * SECOND));
    assert_eq!(seen.course, Course::ServerSet(-60 * SECOND));
    assert_eq!(seen.anchor.reads, stamp(NOON + 5 * SECOND));
}

#[test]
fn a_look_moves_the_line_no_further_than_it_proves() {
    let own = anchor(0, NOON);
    let slow = Look {
        sent: at(5 * SECOND),
        came: at(5 * SECOND + 400_000),
        shows: stamp(NOON + 5 * SECOND),
    };
    assert!(slow.is_sharp());
    let followed = follow(Some(&own), &stored(NOON, NOON), &slow);
    // By its own clock 200 ms more have passed at the middle, which this look cannot rule out.
    assert_eq!(followed.anchor.reads, stamp(NOON + 5 * SECOND + 200_000));
    let exact = look(5 * SECOND + 200_000, NOON + 5 * SECOND);
    let followed = follow(Some(&own), &stored(NOON, NOON), &exact);
    assert_eq!(followed.anchor.reads, stamp(NOON + 5 * SECOND));
    let hopeless = Look {
        came: at(5 * SECOND + 500_002),
        ..slow
    };
    assert!(!hopeless.is_sharp());
}

#[test]
fn who_joined_by_a_look_that_took_long_takes_the_line_at_its_first_sharp_one() {
    let common = stored(NOON, NOON);
    // The question was under way for six seconds, or the answer was.
    for (shows, wrong) in [(NOON + 6 * SECOND, 3), (NOON, -3)] {
        let slow = Look {
            sent: at(0),
            came: at(6 * SECOND),
            shows: stamp(shows),
        };
        let joined = follow(None, &common, &slow);
        assert_eq!(joined.error, Duration::from_secs(3));
        let own = joined.anchor;
        let reads = own.read(at(10 * SECOND));
        assert_eq!(reads, stamp(NOON + (10 + wrong) * SECOND));
        // Another one like it proves nothing.
        let again = Look {
            sent: at(4 * SECOND),
            came: at(10 * SECOND),
            shows: stamp(shows + 4 * SECOND),
        };
        let again = follow_roughly(Some((&own, joined.error)), &common, &again);
        assert_eq!((again.course, again.error), (Course::Steady, joined.error));
        let sharp = look(10 * SECOND, NOON + 10 * SECOND);
        let followed = follow_roughly(Some((&own, joined.error)), &common, &sharp);
        assert_eq!(followed.course, Course::Steady);
        assert_eq!(followed.error, Duration::ZERO);
        for reads in [followed.anchor.reads, followed.next.unwrap().reads] {
            assert_eq!(reads, stamp(NOON + 10 * SECOND));
        }
        // What it cannot have been wrong by was set.
        let set = look(10 * SECOND, NOON + HOUR);
        let followed = follow_roughly(Some((&own, joined.error)), &common, &set);
        assert!(matches!(followed.course, Course::ServerSet(_)));
    }
}

#[test]
fn the_line_comes_to_the_server_s_clock() {
    let mut stored = stored(NOON, NOON - 60 * SECOND);
    let mut own = anchor(0, NOON - 60 * SECOND);
    for renewed in 1..=30_000_i64 {
        let now = renewed * 5 * SECOND;
        let followed = follow(Some(&own), &stored, &look(now, NOON + now));
        assert_eq!(followed.course, Course::Steady);
        own = followed.anchor;
        stored.point = followed.next;
    }
    assert_eq!(own.wall_ahead, 0);
}

/// A process, with a monotonic clock of its own.
struct Process {
    /// What its clock counts from, how fast it runs, and how long it stood still.
    origin: i64,
    drift: i64,
    stood: i64,
    own: Option<Anchor>,
    highest: i64,
    looked: i64,
}

impl Process {
    fn now(&self, truth: i64) -> Monotonic {
        at(self.origin + truth + truth / 1_000_000 * self.drift - self.stood)
    }

    /// What it reads, as the product does: never less than before.
    fn reads(&mut self, truth: i64) -> Option<i64> {
        let now = self.now(truth);
        let reads = self.own?.read(now).unix_micros();
        self.highest = self.highest.max(reads);
        Some(self.highest)
    }
}

/// One step of a history: who, after how long, how slow the two ways to the server are, and what happens.
type Step = (usize, i64, (i64, i64), u8, i64);

proptest! {
    /// Three processes, looks that take up to half a second, a server's clock that is set at any time, connections that
    /// are gone for minutes, two that store at once: every span is elapsed time, and all read the same.
    #[test]
    fn a_span_on_the_common_line_is_elapsed_time_for_everybody(
        drifts in prop::array::uniform3(-100_i64..100),
        steps in prop::collection::vec(
            (0_usize..3, 0_i64..4_000_000, (0_i64..240_000, 0_i64..240_000), 0_u8..12, -2 * HOUR..2 * HOUR),
            1..150,
        )
    ) {
        let origins = [SECOND, 77 * HOUR, 5_000 * HOUR];
        let mut processes: Vec<Process> = (0..3).map(|n| Process {
            origin: origins[n],
            drift: drifts[n],
            stood: 0,
            own: None,
            highest: i64::MIN,
            looked: 0,
        }).collect();
        let (mut truth, mut set, mut away) = (0_i64, 0_i64, 0_i64);
        let mut stored = Stored::default();
        let beginning = NOON;
        // Each has looked once, so that all know the line before somebody sets a clock.
        let opening: Vec<Step> = (0..3).map(|n| (n, 10_000, (5_000, 5_000), 0, 0)).collect();
        for (who, pause, (there, back), what, by) in opening.into_iter().chain(steps) {
            truth += pause;
            match what {
                9 => set = by,
                10 => truth += 120 * SECOND,
                _ => {}
            }
            let before = stored;
            let process = &processes[who];
            let looks = Look {
                sent: process.now(truth),
                came: process.now(truth + there + back),
                shows: stamp(NOON + truth + there + set),
            };
            truth += there + back;
            let followed = follow(process.own.as_ref(), &before, &looks);
            if what == 11 {
                // Somebody else has stored a point in between, from the same one: this one has to look again.
                let other = (who + 1) % 3;
                let theirs = look_of(&processes[other], truth, set);
                let theirs = follow(processes[other].own.as_ref(), &before, &theirs);
                if let Some(next) = theirs.next {
                    stored.point = Some(next);
                    processes[other].own = Some(theirs.anchor);
                    processes[other].looked = truth;
                    continue;
                }
            }
            stored.point = followed.next.or(stored.point);
            processes[who].own = Some(followed.anchor);
            processes[who].looked = truth;
            let longest = processes.iter().map(|process| truth - process.looked).max();
            away = away.max(longest.unwrap_or_default());
            let mut all = Vec::new();
            for process in &mut processes {
                let before = process.highest;
                if let Some(reads) = process.reads(truth) {
                    prop_assert!(reads >= before);
                    all.push(reads);
                }
            }
            for reads in &all {
                let wrong = (reads - beginning - truth).abs();
                prop_assert!(wrong <= bound(truth), "{wrong} us in {truth}: {followed:?}");
                let apart = (reads - all[0]).abs();
                prop_assert!(apart <= bound_apart(away), "{apart} us apart: {followed:?}");
            }
        }
    }

    /// One of two processes stands still for a while, as the virtual machine of a host that pauses it.
    #[test]
    fn a_clock_that_stands_still_holds_nobody_else_up(
        still in 1_i64..7_200,
        rounds in 3_usize..20,
    ) {
        let process = |origin| Process {
            origin,
            drift: 0,
            stood: 0,
            own: None,
            highest: i64::MIN,
            looked: 0,
        };
        let mut processes = [process(SECOND), process(9 * HOUR)];
        let (mut truth, mut stored) = (0, Stored::default());
        let mut round = |processes: &mut [Process; 2], who: &[usize], truth: &mut i64| {
            for who in who {
                *truth += 2_500_000;
                let looks = look_of(&processes[*who], *truth, 0);
                let followed = follow(processes[*who].own.as_ref(), &stored, &looks);
                stored.point = followed.next.or(stored.point);
                processes[*who].own = Some(followed.anchor);
            }
        };
        round(&mut processes, &[0, 1, 0, 1], &mut truth);
        let until = truth + still * SECOND;
        while truth < until {
            round(&mut processes, &[1], &mut truth);
        }
        processes[0].stood = truth - (until - still * SECOND);
        for n in 0..rounds {
            round(&mut processes, &[0, 1], &mut truth);
            // It may have to look twice: of what it missed since the last point was stored nobody has told it.
            for process in processes.iter_mut().skip(usize::from(n < 2)) {
                let reads = process.reads(truth).unwrap();
                let wrong = (reads - NOON - truth).abs();
                prop_assert!(wrong <= 600_000, "{wrong} us");
            }
        }
    }
}

/// A quick look.
fn look_of(process: &Process, truth: i64, set: i64) -> Look {
    Look {
        sent: process.now(truth),
        came: process.now(truth),
        shows: stamp(NOON + truth + set),
    }
}

/// What the lean, quartzes and errors of looks add up to.
fn bound(truth: i64) -> i64 {
    700_000 + truth / 1_000
}

/// What two processes are apart at most: twice [`TOGETHER`], and while one of them did not look for `away`, what the
/// line leans in that time and what its clock may have differed, as a server's clock that is set by as much is not
/// noticed.
fn bound_apart(away: i64) -> i64 {
    520_000 + away / 1_000
}
