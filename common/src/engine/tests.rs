//! The world in which the engine is tested: a driver, a disk and a backend that do what a test has them do.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::*;
use crate::command::{Arguments, OutcomeState, digest, format_digest};
use crate::id::CommandName;
use crate::journal::may_forget;
use crate::wire::message::Permit;

mod laws;
mod settlement;
mod starts;
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

/// Offers a command and sees it to its start.
fn running(world: &mut World, number: u8) {
    world.act(Act::Offer(number, false, 1_000));
    world.act(Act::Check(0, true));
    world.act(Act::Write(0, 0));
    world.act(Act::Go(number, 1_000));
    world.act(Act::Prepare(0, true));
    world.act(Act::Write(0, 0));
    assert!(world.running.contains(&id_of(number)));
}

/// The write that was asked for last, for a test that answers it itself.
fn last_write(world: &mut World) -> Write {
    world.writes.pop().expect("something is being written")
}
