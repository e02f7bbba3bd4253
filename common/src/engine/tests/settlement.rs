//! What has ended is settled once: marks that overtake reports, and ends that the journal does not take.

use super::*;

/// Two that the backend acknowledged, which are being reported; the second one's mark covers both.
fn reported_beside_the_mark() -> World {
    let mut world = World::new();
    for number in [1, 3] {
        running(&mut world, number);
        world.act(Act::Exit(0));
        world.act(Act::Write(0, 0));
        // The numbers between them were never offered: their orders are over as well.
        world.over.insert(id_of(number - 1));
    }
    world.act(Act::Acknowledge(1));
    world.act(Act::Acknowledge(3));
    world
}

#[test]
fn what_a_mark_covers_before_it_is_reported_is_forgotten_by_both_or_by_none() {
    // Each order in which the writes can end.
    for first in 0..3 {
        for second in 0..2 {
            let mut world = reported_beside_the_mark();
            world.act(Act::Write(first, 0));
            world.act(Act::Write(second, 0));
            world.rest();
            for number in [1, 3] {
                world.act(Act::Offer(number, false, 1_000));
            }
            // What is resent is in the journal: the world looks.
            world.rest();
            assert!(world.engine.is_quiet());
        }
    }
}

#[test]
fn what_was_asked_while_the_mark_overtook_it_is_asked_of_an_unknown_command() {
    let mut world = reported_beside_the_mark();
    // The second is reported, and the mark is durable, before the first is.
    world.act(Act::Write(1, 0));
    world.act(Act::Offer(1, false, 1_000));
    assert!(matches!(world.writes[1].step, Step::LowWater(_)));
    world.act(Act::Write(1, 0));
    assert!(world.checks.is_empty(), "it is held");
    world.act(Act::Write(0, 0));
    world.act(Act::Check(0, true));
    assert_eq!(world.rejected, [(id_of(1), RejectCode::Stale)]);
    assert!(world.engine.is_quiet());
}

#[test]
fn a_mark_that_was_held_itself_is_followed_before_what_was_held_behind_it() {
    let mut world = World::new();
    for number in [0, 1] {
        running(&mut world, number);
        world.act(Act::Exit(0));
        world.act(Act::Write(0, 0));
    }
    world.act(Act::Acknowledge(1));
    world.act(Act::Acknowledge(0));
    // Now with the mark of both, and behind it what was asked before the backend knew.
    world.act(Act::Acknowledge(1));
    world.act(Act::Offer(1, false, 1_000));
    world.act(Act::Write(0, 0));
    world.rest();
    world.act(Act::Cancel(1));
    assert_eq!(world.rejected, [(id_of(1), RejectCode::Stale)]);
    assert!(world.engine.is_quiet());
}

#[test]
fn an_outcome_that_cannot_be_journalled_is_kept_until_it_can_and_told_then() {
    let mut world = World::new();
    running(&mut world, 1);
    world.act(Act::Exit(0));
    last_write(&mut world);
    let refused = || Err(Unwritten::Refused("the disk is full".to_owned()));
    world.tell(Input::Written(Some(id_of(1)), refused()));
    assert!(!world.engine.is_done() && world.writes.is_empty());
    // Nothing that is asked meanwhile starts it again.
    world.act(Act::Go(1, 1_000));
    world.act(Act::Cancel(1));
    assert!(world.prepares.is_empty() && world.writes.is_empty());
    world.act(Act::Wait(5_000));
    let again = last_write(&mut world);
    assert!(
        matches!(&again.step, Step::Finish(id, outcome) if *id == id_of(1) && outcome.state == OutcomeState::Succeeded)
    );
    world.apply(again.step);
    world.tell(Input::Written(Some(id_of(1)), Ok(())));
    assert!(world.engine.is_quiet());
}

#[test]
fn a_lost_folder_starts_nothing_that_must_not_run_twice_and_still_tells_how_it_ended() {
    let mut world = World::new();
    world.act(Act::Offer(1, false, 1_000));
    world.act(Act::Check(0, true));
    world.act(Act::Write(0, 0));
    world.act(Act::Go(1, 1_000));
    world.act(Act::Prepare(0, true));
    let start = last_write(&mut world);
    assert!(start.kept, "the folder is looked at before");
    let lost = || Err(Unwritten::Lost("it was removed".to_owned()));
    world.tell(Input::Written(Some(id_of(1)), lost()));
    let end = last_write(&mut world);
    let Step::Finish(_, outcome) = end.step else {
        panic!("{end:?}");
    };
    assert_eq!(outcome.reject_code, Some(RejectCode::JournalUnavailable));
    let now = Now {
        clock: world.at(0),
        wall: Timestamp::default(),
    };
    world
        .engine
        .handle(Input::Written(Some(id_of(1)), lost()), now);
    let Some(Effect::Say(said)) = world.engine.poll_effect() else {
        panic!("the backend is not told");
    };
    assert!(matches!(*said, AgentMessage::CommandResult(_)));
    // Whatever comes now starts nothing.
    world.act(Act::Go(1, 1_000));
    world.act(Act::Cancel(1));
    assert!(world.prepares.is_empty() && world.writes.is_empty());
}

#[test]
fn a_full_journal_refuses_as_busy_and_a_broken_one_as_unavailable() {
    for (failure, code) in [
        (Unwritten::Full("full".to_owned()), RejectCode::Busy),
        (
            Unwritten::Lost("lost".to_owned()),
            RejectCode::JournalUnavailable,
        ),
        (
            Unwritten::WrongState("known".to_owned()),
            RejectCode::JournalUnavailable,
        ),
        (
            Unwritten::Fatal("broken".to_owned()),
            RejectCode::JournalUnavailable,
        ),
    ] {
        let mut world = World::new();
        let fatal = matches!(failure, Unwritten::Fatal(_));
        world.act(Act::Offer(1, false, 1_000));
        world.act(Act::Check(0, true));
        last_write(&mut world);
        let now = Now {
            clock: world.at(0),
            wall: Timestamp::default(),
        };
        let written = Input::Written(Some(id_of(1)), Err(failure));
        world.engine.handle(written, now);
        let Some(Effect::Say(said)) = world.engine.poll_effect() else {
            panic!("the backend is not told");
        };
        let AgentMessage::CommandRejected(rejected) = *said else {
            panic!("{said:?}");
        };
        assert_eq!(rejected.code, code);
        let fails = matches!(world.engine.poll_effect(), Some(Effect::Fail(_)));
        assert_eq!(fails, fatal);
    }
}
