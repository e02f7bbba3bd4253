//! What becomes of what runs when the agent stops: what may run twice is the next process's, as after a crash.

use super::*;

/// Two that run, of which the first may run twice, in an agent that is told to stop.
fn stopping() -> World {
    let mut world = World::new();
    running(&mut world, 0);
    running(&mut world, 1);
    world.act(Act::Stop);
    assert!(world.ended.is_empty(), "they may come to their end");
    world
}

/// The time for that is over.
fn over(world: &mut World) {
    world.clock += u64::try_from(STOP_TIME.as_millis()).unwrap();
    world.wake();
}

fn outcome_of(world: &World, number: u8) -> Option<Outcome> {
    world.disk[&id_of(number)].outcome.clone()
}

#[test]
fn what_may_run_twice_is_run_again_by_the_next_process_and_the_rest_is_told_the_truth() {
    let mut world = stopping();
    over(&mut world);
    assert_eq!(world.ended, BTreeSet::from([id_of(0), id_of(1)]));
    assert!(!world.engine.is_done(), "their processes have not ended");
    world.rest();
    assert!(world.engine.is_done());
    assert_eq!(world.disk[&id_of(0)].state, EntryState::Started);
    assert_eq!(outcome_of(&world, 0), None);
    let once = outcome_of(&world, 1).unwrap();
    assert_eq!(once.state, OutcomeState::Cancelled);
    let reason = "the gateway agent was told to stop, and 10 s were not enough";
    assert_eq!(once.reason.as_deref(), Some(reason));

    world.crash(0);
    assert_eq!(world.disk[&id_of(0)].state, EntryState::Accepted);
    world.act(Act::Go(0, 1_000));
    world.act(Act::Go(1, 1_000));
    world.rest();
    assert_eq!(world.launches[&id_of(0)], 2);
    assert_eq!(world.launches[&id_of(1)], 1);
    let state = outcome_of(&world, 0).unwrap().state;
    assert_eq!(state, OutcomeState::Succeeded);
}

#[test]
fn what_comes_to_its_end_by_itself_meanwhile_is_reported() {
    let mut world = stopping();
    over(&mut world);
    // An odd time: see `Act::Exit`.
    world.clock += 1;
    world.rest();
    for number in [0, 1] {
        let state = outcome_of(&world, number).unwrap().state;
        assert_eq!(state, OutcomeState::Succeeded);
    }
}

#[test]
fn what_an_operator_cancels_does_not_run_again() {
    // Before the agent ends it, while it ends, and when it has ended.
    for (before, after) in [(true, false), (false, false), (false, true)] {
        let mut world = stopping();
        if before {
            world.act(Act::Cancel(0));
        }
        over(&mut world);
        if !before && !after {
            world.act(Act::Cancel(0));
        }
        world.rest();
        if after {
            assert_eq!(outcome_of(&world, 0), None);
            world.act(Act::Cancel(0));
            assert!(!world.engine.is_done(), "its end is being written");
            world.rest();
        }
        let outcome = outcome_of(&world, 0).unwrap();
        assert_eq!(outcome.state, OutcomeState::Cancelled);
        assert_eq!(outcome.reason.as_deref(), Some(CANCELLED_WHILE_RUNNING));
        assert!(world.engine.is_done());
    }
}

#[test]
fn what_is_about_to_start_when_the_time_is_over_does_not() {
    let mut world = World::new();
    for number in [0, 1] {
        world.act(Act::Offer(number, false, 60_000));
        world.act(Act::Check(0, true));
        // The last one: the start before it is still being written.
        world.act(Act::Write(1, 0));
        world.act(Act::Go(number, 60_000));
        world.act(Act::Prepare(0, true));
    }
    world.act(Act::Stop);
    over(&mut world);
    world.act(Act::Write(0, 0));
    world.act(Act::Write(0, 0));
    world.rest();
    assert!(world.engine.is_done());
    assert!(world.launches.is_empty());
    assert_eq!(world.disk[&id_of(0)].state, EntryState::Started);
    let once = outcome_of(&world, 1).unwrap();
    assert_eq!(once.state, OutcomeState::Cancelled);
    let reason = once.reason.unwrap();
    assert!(reason.contains("told to stop"), "{reason}");
}

#[test]
fn what_else_is_said_of_its_end_stays_said() {
    let mut world = stopping();
    over(&mut world);
    let said = format!("{CANCELLED_WHILE_RUNNING}; 1 process of it was ended");
    let outcome = Outcome::without_run(OutcomeState::Cancelled, said);
    world.running.remove(&id_of(1));
    world.tell(Input::Exited(id_of(1), Box::new(outcome)));
    world.rest();
    let reason = outcome_of(&world, 1).unwrap().reason.unwrap();
    let wanted =
        "the gateway agent was told to stop, and 10 s were not enough; 1 process of it was ended";
    assert_eq!(reason, wanted);
}

#[test]
fn an_agent_that_stops_keeps_what_may_run_twice_and_ends_what_may_not() {
    let mut world = World::new();
    for number in [0, 1] {
        world.act(Act::Offer(number, false, 1_000));
        world.act(Act::Check(0, true));
        world.act(Act::Write(0, 0));
        world.act(Act::Go(number, 1_000));
    }
    world.act(Act::Stop);
    assert!(
        world.prepares.is_empty(),
        "nobody waits for a slot any more"
    );
    world.act(Act::Write(0, 0));
    assert!(world.engine.is_done());
    assert_eq!(world.disk[&id_of(0)].state, EntryState::Accepted);
    let outcome = world.disk[&id_of(1)].outcome.clone().unwrap();
    assert_eq!(outcome.state, OutcomeState::Cancelled);
}

#[test]
fn what_still_runs_when_the_time_for_stopping_is_over_is_ended() {
    let mut world = World::new();
    running(&mut world, 1);
    world.act(Act::Stop);
    assert!(!world.engine.is_done());
    let due = world.engine.poll_timeout().expect("an end");
    assert_eq!(due, Monotonic::from_duration(STOP_TIME));
    let now = Now {
        clock: due,
        wall: Timestamp::default(),
    };
    world.engine.handle(Input::Timeout, now);
    assert_eq!(world.engine.poll_effect(), Some(Effect::End(id_of(1))));
    world.rest();
    assert!(world.engine.is_done());
}
