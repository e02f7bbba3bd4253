//! The laws of the engine, whatever happens in whatever order.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::command::{Arguments, OutcomeState, digest, format_digest};
use crate::id::CommandName;
use crate::journal::may_forget;
use crate::wire::message::Permit;

mod stopping;

/// Commands of a world; the even ones may run twice.
const COMMANDS: u8 = 6;

fn id_of(number: u8) -> CommandId {
    CommandId::from_uuid(Uuid::from_u128(u128::from(number) + 1))
}

fn may_run_twice(id: CommandId) -> bool {
    id.as_uuid().as_u128() % 2 == 1
}

fn offer(number: u8, permitted: bool) -> Box<Command> {
    let name: CommandName = "test.it".parse().unwrap();
    let arguments = Arguments::new();
    Box::new(Command {
        command_id: id_of(number),
        order: u64::from(number) + 1,
        digest: format_digest(&digest(&name, &arguments)),
        name,
        arguments,
        attempt: 1,
        traceparent: None,
        deadline: Permit {
            remaining_ms: 0,
            as_of: 0,
        },
        permitted,
        timeout_ms: None,
    })
}

#[derive(Debug, Clone)]
enum Act {
    Attach,
    Offer(u8, bool, u64),
    Go(u8, u64),
    Drop(u8),
    Cancel(u8),
    Acknowledge(u8),
    /// Answers one of the open writes: zero to three as durable, otherwise with a failure.
    Write(usize, u8),
    Check(usize, bool),
    Prepare(usize, bool),
    /// What is to be prepared has to wait.
    Queue(usize),
    Exit(usize),
    Wait(u64),
    Crash,
    Stop,
}

fn act() -> impl Strategy<Value = Act> {
    let number = 0..COMMANDS;
    let any_open = 0_usize..4;
    prop_oneof![
        1 => Just(Act::Attach),
        4 => (number.clone(), any::<bool>(), 1_u64..2_000).prop_map(|(n, p, ms)| Act::Offer(n, p, ms)),
        4 => (number.clone(), 0_u64..2_000).prop_map(|(n, ms)| Act::Go(n, ms)),
        1 => number.clone().prop_map(Act::Drop),
        1 => number.clone().prop_map(Act::Cancel),
        2 => number.prop_map(Act::Acknowledge),
        12 => (any_open.clone(), 0_u8..20).prop_map(|(n, how)| Act::Write(n, how)),
        6 => (any_open.clone(), prop::bool::weighted(0.9)).prop_map(|(n, ok)| Act::Check(n, ok)),
        6 => (any_open.clone(), prop::bool::weighted(0.9)).prop_map(|(n, ok)| Act::Prepare(n, ok)),
        2 => any_open.clone().prop_map(Act::Queue),
        3 => any_open.prop_map(Act::Exit),
        2 => (1_u64..1_500).prop_map(Act::Wait),
        1 => Just(Act::Crash),
        1 => Just(Act::Stop),
    ]
}

/// A driver that does what it is asked, when it likes, over a disk that keeps what was written.
struct World {
    engine: Engine,
    run: u128,
    clock: u64,
    disk: BTreeMap<CommandId, Entry>,
    low_water: u64,
    writes: Vec<Write>,
    checks: Vec<CommandId>,
    prepares: Vec<CommandId>,
    running: BTreeSet<CommandId>,
    /// Those of them that are to end.
    ended: BTreeSet<CommandId>,
    launches: BTreeMap<CommandId, usize>,
    over: BTreeSet<CommandId>,
    /// What the backend was told to have started, by whichever process.
    told: BTreeSet<CommandId>,
    /// What the backend was told that it is not taken.
    rejected: Vec<(CommandId, RejectCode)>,
}

impl World {
    fn new() -> Self {
        let run = AgentRunId::from_uuid(Uuid::from_u128(1));
        Self {
            engine: Engine::recover(run, [], 0),
            run: 1,
            clock: 0,
            disk: BTreeMap::new(),
            low_water: 0,
            writes: Vec::new(),
            checks: Vec::new(),
            prepares: Vec::new(),
            running: BTreeSet::new(),
            ended: BTreeSet::new(),
            launches: BTreeMap::new(),
            over: BTreeSet::new(),
            told: BTreeSet::new(),
            rejected: Vec::new(),
        }
    }

    fn at(&self, after: u64) -> Monotonic {
        Monotonic::from_duration(Duration::from_millis(self.clock + after))
    }

    fn tell(&mut self, input: Input) {
        let now = Now {
            clock: self.at(0),
            wall: Timestamp::default(),
        };
        self.engine.handle(input, now);
        while let Some(effect) = self.engine.poll_effect() {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::EndLeftovers(_) => {
                assert!(self.running.is_empty(), "the old process is dead");
                self.tell(Input::LeftoversEnded);
            }
            Effect::Write(write) => {
                let of = write.step.command_id();
                let same = |open: &Write| open.step.command_id() == of;
                assert!(
                    !self.writes.iter().any(same),
                    "two writes of {of:?} at once"
                );
                self.writes.push(write);
            }
            Effect::Check(command) => self.checks.push(command.command_id),
            Effect::Prepare(entry) => self.prepares.push(entry.command_id),
            Effect::Abandon(id) => self.prepares.retain(|other| *other != id),
            Effect::Launch(id, deadline) => {
                assert!(deadline.is_some(), "{id} may not start at any time");
                self.launched(id);
            }
            Effect::End(id) => {
                assert!(self.running.contains(&id), "{id} does not run");
                self.ended.insert(id);
            }
            Effect::Say(message) => self.said(&message),
            Effect::Report(id, outcome) => {
                let entry = self.disk.get(&id).expect("reported from the journal");
                assert_eq!(entry.state, EntryState::Finished);
                assert_eq!(
                    entry.outcome.as_ref(),
                    Some(&*outcome),
                    "said as journalled"
                );
            }
            Effect::Resend(id) => {
                let entry = self.disk.get(&id).expect("resent from the journal");
                assert!(entry.outcome.is_some(), "{id} has not ended");
            }
            Effect::Fail(reason) => panic!("nothing is fatal here: {reason}"),
        }
    }

    fn launched(&mut self, id: CommandId) {
        let entry = self.disk.get(&id).expect("started from the journal");
        assert_eq!(
            entry.state,
            EntryState::Started,
            "a durable start comes first"
        );
        assert_eq!(entry.agent_run_id.as_uuid().as_u128(), self.run);
        assert!(self.running.insert(id), "{id} runs already");
        let launches = self.launches.entry(id).or_default();
        *launches += 1;
        assert!(*launches == 1 || may_run_twice(id), "{id} ran twice");
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "only some words are bound to the journal"
    )]
    fn said(&mut self, message: &AgentMessage) {
        match message {
            AgentMessage::CommandAccepted(it) => {
                assert!(
                    self.disk.contains_key(&it.command_id),
                    "said before durable"
                );
            }
            AgentMessage::CommandStarted(it) => {
                let entry = self.disk.get(&it.command_id).expect("journalled");
                assert_eq!(entry.state, EntryState::Started);
                assert!(
                    self.launches.contains_key(&it.command_id),
                    "nobody launched it"
                );
                self.told.insert(it.command_id);
            }
            AgentMessage::CommandRejected(it) => self.rejected.push((it.command_id, it.code)),
            AgentMessage::CommandResult(it) => {
                panic!("{} was said although the folder is there", it.command_id);
            }
            _ => {}
        }
    }

    /// A write ends; the order of different commands is anybody's.
    fn write(&mut self, index: usize, how: u8) {
        if self.writes.is_empty() {
            return;
        }
        let write = self.writes.remove(index % self.writes.len());
        let of = write.step.command_id();
        let failure = match how {
            17 if matches!(write.step, Step::Accept(_)) => Some(Unwritten::Full("full".to_owned())),
            18 => Some(Unwritten::Refused("not now".to_owned())),
            _ => None,
        };
        let settling = !self.engine.is_settled();
        if let Some(failure) = failure.filter(|_| !settling) {
            return self.tell(Input::Written(of, Err(failure)));
        }
        self.apply(write.step);
        self.tell(Input::Written(of, Ok(())));
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Accept(entry) => {
                assert!(entry.order > self.low_water, "forgotten and accepted again");
                let known = self.disk.insert(entry.command_id, *entry);
                assert_eq!(known, None, "accepted twice");
            }
            Step::LowWater(mark) => {
                self.low_water = mark;
                self.disk
                    .retain(|_, it| !may_forget(Complete, it.state, it.order, mark));
            }
            Step::Start(id, _)
            | Step::Finish(id, _)
            | Step::Report(id)
            | Step::Discard(id)
            | Step::AwaitAgain(id, _) => {
                let entry = self.disk.get_mut(&id).expect("it was accepted");
                let next = step.leaves(Complete, entry);
                entry.state = next.unwrap_or_else(|| panic!("{step:?} of {entry:?}"));
                match step {
                    Step::Start(_, run) | Step::AwaitAgain(_, run) => entry.agent_run_id = run,
                    Step::Finish(_, outcome) => {
                        let denies = outcome.state != OutcomeState::Indeterminate
                            && outcome.started_at.is_none();
                        let told = self.told.contains(&id) && !may_run_twice(id);
                        assert!(!(told && denies), "{id} has started, as was told");
                        entry.outcome = Some((*outcome).clone());
                    }
                    Step::Discard(_) => {
                        let outcome = Outcome::without_run(OutcomeState::Cancelled, "withdrawn");
                        entry.outcome = Some(outcome);
                    }
                    Step::Accept(_) | Step::Report(_) | Step::LowWater(_) => {}
                }
            }
        }
    }

    fn crash(&mut self, kept: usize) {
        let survived = kept.min(self.writes.len());
        let writes: Vec<Write> = self.writes.drain(..).collect();
        for write in writes.into_iter().take(survived) {
            self.apply(write.step);
        }
        self.checks.clear();
        self.prepares.clear();
        self.running.clear();
        self.ended.clear();
        self.run += 1;
        let run = AgentRunId::from_uuid(Uuid::from_u128(self.run));
        let entries: Vec<Entry> = self.disk.values().cloned().collect();
        self.engine = Engine::recover(run, entries, self.low_water);
        while let Some(effect) = self.engine.poll_effect() {
            self.perform(effect);
        }
        while !self.engine.is_settled() {
            self.write(0, 0);
        }
    }

    fn ask(&mut self, number: u8, asked: Asked) {
        self.tell(Input::Asked(id_of(number), asked));
    }

    /// The backend knows the end of a command once the journal does, and a mark only covers what it knows.
    fn acknowledge(&mut self, number: u8) {
        let id = id_of(number);
        if self.disk.get(&id).is_none_or(|it| it.outcome.is_none()) {
            return;
        }
        self.over.insert(id);
        let over = |n: &u8| self.over.contains(&id_of(*n));
        let mark = (0..COMMANDS).take_while(over).count();
        self.ask(number, Asked::Acknowledged(u64::try_from(mark).unwrap()));
    }

    #[expect(clippy::needless_pass_by_value, reason = "an act happens once")]
    fn act(&mut self, act: Act) {
        match act {
            Act::Attach => self.tell(Input::Attached(0)),
            Act::Offer(n, permitted, ms) => {
                let asked = Asked::Offer(offer(n, permitted), self.at(ms));
                self.ask(n, asked);
            }
            Act::Go(n, ms) => {
                let asked = Asked::Go(self.at(ms));
                self.ask(n, asked);
            }
            Act::Drop(n) => self.ask(n, Asked::Drop),
            Act::Cancel(n) => self.ask(n, Asked::Cancel),
            Act::Acknowledge(n) => self.acknowledge(n),
            Act::Write(index, how) => self.write(index, how),
            Act::Check(index, ok) if !self.checks.is_empty() => {
                let id = self.checks.remove(index % self.checks.len());
                let verdict = verdict(ok, id);
                self.tell(Input::Checked(id, verdict));
            }
            Act::Prepare(index, ok) if !self.prepares.is_empty() => {
                let id = self.prepares.remove(index % self.prepares.len());
                let verdict = verdict(ok, id);
                self.tell(Input::Prepared(id, verdict));
            }
            Act::Queue(index) if !self.prepares.is_empty() => {
                let id = self.prepares[index % self.prepares.len()];
                self.tell(Input::Queued(id));
            }
            Act::Exit(index) if !self.running.is_empty() => {
                let index = index % self.running.len();
                let id = *self.running.iter().nth(index).unwrap();
                self.running.remove(&id);
                // It may come to its end by itself all the same.
                let outcome = if self.ended.remove(&id) && self.clock.is_multiple_of(2) {
                    Outcome::without_run(OutcomeState::Cancelled, CANCELLED_WHILE_RUNNING)
                } else {
                    Outcome::without_run(OutcomeState::Succeeded, "it ran")
                };
                self.tell(Input::Exited(id, Box::new(outcome)));
            }
            Act::Check(..) | Act::Prepare(..) | Act::Queue(_) | Act::Exit(_) => {}
            Act::Wait(ms) => {
                self.clock += ms;
                self.wake();
            }
            Act::Crash => self.crash(usize::from(self.clock.is_multiple_of(2)) * self.writes.len()),
            Act::Stop => self.tell(Input::Stopping),
        }
    }

    fn wake(&mut self) {
        if self
            .engine
            .poll_timeout()
            .is_some_and(|due| due <= self.at(0))
        {
            self.tell(Input::Timeout);
        }
    }

    /// Lets everything that is under way come to its end.
    fn rest(&mut self) {
        for _ in 0..10_000 {
            if !self.writes.is_empty() {
                self.write(0, 0);
            } else if !self.checks.is_empty() {
                self.act(Act::Check(0, true));
            } else if !self.prepares.is_empty() {
                self.act(Act::Prepare(0, true));
            } else if !self.running.is_empty() {
                self.act(Act::Exit(0));
            } else if let Some(due) = self.engine.poll_timeout() {
                let due = u64::try_from(due.as_duration().as_millis()).unwrap();
                self.clock = self.clock.max(due);
                self.wake();
            } else {
                return;
            }
        }
        panic!("the engine does not come to rest");
    }
}

fn verdict(ok: bool, id: CommandId) -> Result<Idempotent, Refused> {
    if ok {
        Ok(Idempotent(may_run_twice(id)))
    } else {
        Err(Refused {
            code: RejectCode::Unavailable,
            detail: "its program is not there".to_owned(),
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nothing_is_said_or_started_too_early_or_twice_and_everything_ends(
        acts in prop::collection::vec(act(), 1..120)
    ) {
        let mut world = World::new();
        for act in acts {
            world.act(act);
        }
        // The last process is told about everything once more, and lives long enough.
        world.crash(0);
        for number in 0..COMMANDS {
            if world.disk.contains_key(&id_of(number)) {
                world.act(Act::Offer(number, false, 1_000));
            }
        }
        world.rest();
        for entry in world.disk.values() {
            let ended = matches!(entry.state, EntryState::Finished | EntryState::Reported);
            prop_assert!(ended, "{:?} has not ended", entry);
        }
        prop_assert!(world.engine.is_quiet());
    }

    #[test]
    fn an_engine_that_stops_is_done_once_everything_under_way_has_ended(
        acts in prop::collection::vec(act(), 1..80)
    ) {
        let mut world = World::new();
        for act in acts {
            world.act(act);
        }
        world.act(Act::Stop);
        world.rest();
        prop_assert!(world.engine.is_done());
        // And it starts nothing any more.
        let before = world.launches.clone();
        for number in 0..COMMANDS {
            world.act(Act::Offer(number, true, 1_000));
            world.act(Act::Go(number, 1_000));
        }
        world.rest();
        prop_assert_eq!(before, world.launches);
    }
}

fn running(world: &mut World, number: u8) {
    world.act(Act::Offer(number, false, 1_000));
    world.act(Act::Check(0, true));
    world.act(Act::Write(0, 0));
    world.act(Act::Go(number, 1_000));
    world.act(Act::Prepare(0, true));
    world.act(Act::Write(0, 0));
    assert!(world.running.contains(&id_of(number)));
}

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

fn last_write(world: &mut World) -> Write {
    world.writes.pop().expect("something is being written")
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
