//! Whether and how a command comes to its start: what it waits for, what keeps it from it, and the one write of both.

use super::*;

#[test]
fn a_cancel_during_the_start_keeps_it_from_starting() {
    let mut world = World::new();
    world.act(Act::Offer(1, false, 1_000));
    world.act(Act::Check(0, true));
    world.act(Act::Write(0, 0));
    world.act(Act::Go(1, 1_000));
    world.act(Act::Prepare(0, true));
    world.act(Act::Cancel(1));
    world.rest();
    assert!(world.launches.is_empty());
    let outcome = world.disk[&id_of(1)].outcome.clone().unwrap();
    assert_eq!(outcome.state, OutcomeState::Cancelled);
}

#[test]
fn what_is_late_when_its_start_is_durable_does_not_start() {
    let mut world = World::new();
    world.act(Act::Offer(1, false, 1_000));
    world.act(Act::Check(0, true));
    world.act(Act::Write(0, 0));
    world.act(Act::Go(1, 100));
    world.act(Act::Prepare(0, true));
    world.clock += 100;
    world.rest();
    assert!(world.launches.is_empty());
    let outcome = world.disk[&id_of(1)].outcome.clone().unwrap();
    assert_eq!(outcome.state, OutcomeState::Expired);
}

#[test]
fn the_same_id_with_another_digest_is_a_security_event() {
    let mut world = World::new();
    running(&mut world, 1);
    let mut other = offer(1, false);
    other.name = "test.other".parse().unwrap();
    other.digest = format_digest(&digest(&other.name, &other.arguments));
    let now = Now {
        clock: world.at(0),
        wall: Timestamp::default(),
    };
    let asked = Asked::Offer(other, world.at(1_000));
    world.engine.handle(Input::Asked(id_of(1), asked), now);
    let said: Vec<&'static str> = std::iter::from_fn(|| world.engine.poll_effect())
        .map(|effect| {
            let Effect::Say(message) = effect else {
                panic!("{effect:?}");
            };
            message.name()
        })
        .collect();
    assert_eq!(said, ["Event", "CommandRejected"]);
}

/// Offered with its permit, and in the catalogue; the last even number, so that it may run twice.
fn opening(world: &mut World, ms: u64) -> CommandId {
    world.act(Act::Offer(4, true, ms));
    world.act(Act::Check(0, true));
    assert!(world.writes.is_empty(), "it may still be one write");
    id_of(4)
}

#[test]
fn what_can_start_at_once_is_accepted_and_started_by_one_write() {
    let mut world = World::new();
    let id = opening(&mut world, 1_000);
    world.act(Act::Prepare(0, true));
    let [write] = &world.writes[..] else {
        panic!("one write: {:?}", world.writes);
    };
    assert!(matches!(&write.step, Step::Accept(entry) if entry.state == EntryState::Started));
    assert!(
        world.launches.is_empty(),
        "nothing starts before it is durable"
    );
    world.act(Act::Write(0, 0));
    assert!(world.running.contains(&id) && world.writes.is_empty());
}

#[test]
fn what_has_to_wait_is_accepted_by_itself() {
    for prepared_first in [false, true] {
        let mut world = World::new();
        let id = opening(&mut world, 1_000);
        world.act(Act::Queue(0));
        let [write] = &world.writes[..] else {
            panic!("one write: {:?}", world.writes);
        };
        assert!(matches!(&write.step, Step::Accept(entry) if entry.state == EntryState::Accepted));
        if prepared_first {
            world.act(Act::Prepare(0, true));
            world.act(Act::Write(0, 0));
        } else {
            world.act(Act::Write(0, 0));
            world.act(Act::Prepare(0, true));
        }
        assert_eq!(world.disk[&id].state, EntryState::Accepted);
        world.act(Act::Write(0, 0));
        assert!(world.running.contains(&id));
    }
}

#[test]
fn what_is_not_fit_to_start_is_accepted_and_ended() {
    let mut world = World::new();
    let id = opening(&mut world, 1_000);
    world.act(Act::Prepare(0, false));
    world.rest();
    assert!(world.launches.is_empty());
    let outcome = world.disk[&id].outcome.clone().unwrap();
    assert_eq!(outcome.state, OutcomeState::Rejected);

    let mut world = World::new();
    let id = opening(&mut world, 100);
    world.clock += 100;
    world.act(Act::Prepare(0, true));
    world.rest();
    assert!(world.launches.is_empty());
    let outcome = world.disk[&id].outcome.clone().unwrap();
    assert_eq!(outcome.state, OutcomeState::Expired);
}

#[test]
fn a_cancel_before_the_one_write_is_durable_keeps_it_from_starting() {
    for prepared_first in [false, true] {
        let mut world = World::new();
        let id = opening(&mut world, 1_000);
        if prepared_first {
            world.act(Act::Prepare(0, true));
            world.act(Act::Cancel(4));
        } else {
            world.act(Act::Cancel(4));
            world.act(Act::Prepare(0, true));
        }
        world.rest();
        assert!(world.launches.is_empty());
        let outcome = world.disk[&id].outcome.clone().unwrap();
        assert_eq!(outcome.state, OutcomeState::Cancelled);
    }
}

#[test]
fn an_agent_that_stops_takes_nothing_of_which_nothing_is_written() {
    let mut world = World::new();
    opening(&mut world, 1_000);
    world.act(Act::Stop);
    assert!(world.prepares.is_empty() && world.writes.is_empty());
    assert!(world.engine.is_done() && world.disk.is_empty());
}

#[test]
fn the_one_write_that_fails_leaves_nothing() {
    let mut world = World::new();
    let id = opening(&mut world, 1_000);
    world.act(Act::Prepare(0, true));
    last_write(&mut world);
    let now = Now {
        clock: world.at(0),
        wall: Timestamp::default(),
    };
    let refused = Err(Unwritten::Refused("the disk is full".to_owned()));
    world.engine.handle(Input::Written(Some(id), refused), now);
    assert_eq!(world.engine.poll_effect(), Some(Effect::Abandon(id)));
    let Some(Effect::Say(said)) = world.engine.poll_effect() else {
        panic!("the backend is not told");
    };
    assert!(
        matches!(*said, AgentMessage::CommandRejected(it) if it.code == RejectCode::JournalUnavailable)
    );
    assert!(world.engine.is_quiet());
}

#[test]
fn a_process_that_died_between_the_one_write_and_its_word_waits_for_a_new_permit() {
    let mut world = World::new();
    let id = opening(&mut world, 1_000);
    world.act(Act::Prepare(0, true));
    world.crash(1);
    assert_eq!(world.disk[&id].state, EntryState::Accepted);
    assert!(world.launches.is_empty());
    world.act(Act::Go(4, 1_000));
    world.rest();
    assert_eq!(world.launches[&id], 1);
}
