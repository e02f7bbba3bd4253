//! The gateway's command engine: decides between the session's events, the journal and the executor, without any IO.
//!
//! A driver tells it what happened ([`Input`]) and at what time, and does what it asks for ([`Effect`]), in that order.
//! Nothing is said and nothing starts before the write that stands for it is durable: the result of a write is an input
//! like any other. What concerns one command happens in one order: what is asked about it while a write of it is under
//! way waits for that; different commands wait for nothing of each other. So a lost connection loses nothing, and a
//! process that dies between any two steps leaves a journal that the next one can settle.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::code::RejectCode;
use crate::command::Outcome;
use crate::id::{AgentRunId, CommandId};
use crate::journal::{Entry, EntryState, Idempotent, Step};
use crate::limits;
use crate::rules::{Complete, Rule, Rulebook};
use crate::time::{Monotonic, Timestamp};
use crate::wire::message::{AgentMessage, Command};

mod asked;
mod run;
mod settle;
#[cfg(test)]
mod tests;

/// How long commands get to end by themselves when the agent stops; then they are ended. What may run twice is left to
/// the next process, as after a crash, and the others are reported.
pub const STOP_TIME: Duration = Duration::from_secs(STOP_SECONDS);

/// The same as a number.
pub const STOP_SECONDS: u64 = 10;

/// What whoever runs a command says of one that it ended because it was asked to.
pub const CANCELLED_WHILE_RUNNING: &str = "it was cancelled while it ran";

/// How long the end of a command waits that the journal refused for now, as on a full disk.
pub const RETRY_TIME: Duration = Duration::from_secs(5);

/// Requests that may wait for writes, all commands together: then the session has to wait.
pub const HELD_MAX: usize = 4 * limits::COMMANDS_UNREPORTED_MAX;

/// Both clocks, at the moment of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// The one that decides.
    pub clock: Monotonic,
    /// The one that is told.
    pub wall: Timestamp,
}

/// What a session asks about one command.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    /// It is offered, and may start until then.
    Offer(Box<Command>, Monotonic),
    /// It is permitted, and may start until then.
    Go(Monotonic),
    /// It must never start.
    Drop,
    /// It is to end.
    Cancel,
    /// Its result is committed, and up to this order everything is final.
    Acknowledged(u64),
}

/// Why a command may not run, in the gateway's own judgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The stable code.
    pub code: RejectCode,
    /// One sentence.
    pub detail: String,
}

/// Why a write of the journal did not happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unwritten {
    /// There are as many entries as there may be.
    Full(String),
    /// The folder is not what it was: what is written now may be gone with this process.
    Lost(String),
    /// The entry is not in the state that the step starts from.
    WrongState(String),
    /// Not now, as on a full disk; it can be tried again.
    Refused(String),
    /// What is on disk is no longer known: the process must end and read it again.
    Fatal(String),
}

impl Unwritten {
    /// In words.
    #[must_use]
    pub fn detail(&self) -> &str {
        match self {
            Self::Full(detail)
            | Self::Lost(detail)
            | Self::WrongState(detail)
            | Self::Refused(detail)
            | Self::Fatal(detail) => detail,
        }
    }
}

/// What the engine is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Nothing of an earlier process runs any more: the answer to [`Effect::EndLeftovers`].
    LeftoversEnded,
    /// A session is confirmed: everything to say goes there from now on. Up to this order everything is final.
    Attached(u64),
    /// A session asks something about a command.
    Asked(CommandId, Asked),
    /// What the catalogue says of an offered command: the answer to [`Effect::Check`].
    Checked(CommandId, Result<Idempotent, Refused>),
    /// A write is durable, or did not happen: the answer to [`Effect::Write`].
    Written(Option<CommandId>, Result<(), Unwritten>),
    /// A command that is to be prepared has to wait, for a slot or for its files. Told once at least before a wait.
    Queued(CommandId),
    /// A command has its slot, and this is what the catalogue says now: the answer to [`Effect::Prepare`].
    Prepared(CommandId, Result<Idempotent, Refused>),
    /// A launched command ended.
    Exited(CommandId, Box<Outcome>),
    /// The time of [`Engine::poll_timeout`] has come.
    Timeout,
    /// The agent stops: nothing new starts.
    Stopping,
}

/// A change of the journal that somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The change.
    pub step: Step,
    /// Whether it counts only while the next process will know of it: the driver looks at the folder first.
    pub kept: bool,
}

/// What the engine wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// End what an earlier process left running of these commands.
    EndLeftovers(Vec<CommandId>),
    /// Make a change durable. Changes of different commands may overtake each other.
    Write(Write),
    /// Ask the catalogue about an offered command.
    Check(Box<Command>),
    /// Get a slot, and then ask the catalogue again: the permit may be older than it. Where that takes time,
    /// [`Input::Queued`] says so.
    Prepare(Box<Entry>),
    /// What was prepared, or is being prepared, is not wanted any more.
    Abandon(CommandId),
    /// Start what was prepared, as long as its deadline, if it has one, has not come: whoever runs it may take a while
    /// to get there.
    Launch(CommandId, Option<Monotonic>),
    /// End what was launched.
    End(CommandId),
    /// Tell the session, if there is one; the next one is told by what the journal holds.
    Say(Box<AgentMessage>),
    /// Tell the session an outcome that the journal holds.
    Report(CommandId, Arc<Outcome>),
    /// Read an outcome from the journal and tell the session.
    Resend(CommandId),
    /// The process must end.
    Fail(String),
}

/// How far a command has come, beyond what the journal says of it.
#[derive(Debug)]
enum Stage {
    /// Left over by an earlier process; a write settles it.
    Settling(Step),
    /// Offered, and not in the journal yet.
    Checking(Box<Command>, Monotonic),
    /// Offered with its permit, and being prepared. Where that takes no time, acceptance and start are one write.
    Opening,
    /// Its acceptance is being written.
    Accepting(Permitted),
    /// Accepted; waits for its permit.
    Waiting,
    /// Has its permit; waits for a slot and a second look at the catalogue.
    Preparing,
    /// Its start is being written, and its acceptance with it where it is new; somebody may want its end meanwhile.
    Starting { new: bool, end: Option<Wanted> },
    /// Runs; somebody may want its end.
    Running(Option<Wanted>),
    /// This process has ended it, or not begun it, because it stops, and the next one runs it again: the journal says
    /// that it has started. What would be said of it if nobody wanted it any more.
    Interrupted(Arc<Outcome>),
    /// Its end is being written.
    Finishing(Arc<Outcome>),
    /// It ended, or will not start any more, and the journal did not take that; again then.
    Unwritten(Arc<Outcome>, Monotonic),
    /// Its withdrawal is being written.
    Discarding,
    /// Its outcome is in the journal.
    Finished,
    /// That its outcome is committed is being written; up to this order everything is final.
    Reporting(u64),
    /// The backend has its outcome.
    Reported,
    /// Over, and the journal is not there to keep that.
    Unkept,
}

/// By whom the end of a command is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// An operator.
    ByOperator,
    /// The agent itself, which stops.
    ByStop,
}

/// How near to its start a command is whose acceptance is being written.
#[derive(Debug)]
enum Permitted {
    /// It waits for its permit.
    No,
    /// It has its permit and is being prepared.
    Yes,
    /// It has its permit, and this came of its preparation.
    Prepared(Result<Idempotent, Refused>),
}

impl Stage {
    /// Whether something about it is under way that has to come to its end before anything else about it is decided.
    const fn is_busy(&self) -> bool {
        match self {
            Self::Settling(_)
            | Self::Checking(..)
            | Self::Opening
            | Self::Accepting(_)
            | Self::Starting { .. }
            | Self::Finishing(_)
            | Self::Discarding
            | Self::Reporting(_) => true,
            Self::Waiting
            | Self::Preparing
            | Self::Running(_)
            | Self::Interrupted(_)
            | Self::Unwritten(..)
            | Self::Finished
            | Self::Reported
            | Self::Unkept => false,
        }
    }
}

impl Stage {
    const fn settling(&self) -> Option<&Step> {
        if let Self::Settling(step) = self {
            Some(step)
        } else {
            None
        }
    }
}

/// A command that the journal holds, or is about to.
#[derive(Debug)]
struct Known {
    /// As in the journal, without its outcome.
    entry: Entry,
    stage: Stage,
    /// Until when it may start.
    deadline: Option<Monotonic>,
    /// When this process launched it, as sessions are told.
    started_at: Option<Timestamp>,
    /// What was asked meanwhile.
    held: VecDeque<Asked>,
}

/// The state of the engine; `R` is [`Complete`] in everything that ships.
#[derive(Debug)]
pub struct Engine<R = Complete> {
    rules: R,
    run: AgentRunId,
    known: BTreeMap<CommandId, Known>,
    /// Requests that wait for a write, and offers that wait for the catalogue.
    held: usize,
    checks: usize,
    /// The highest mark ever told, and the highest in the journal.
    low_water: u64,
    kept_low_water: u64,
    marking: Option<u64>,
    writes: usize,
    stopping: Option<Monotonic>,
    failed: bool,
    effects: VecDeque<Effect>,
}

impl Engine {
    /// The engine of process `run` over what the journal holds; not to be asked anything before it is settled.
    #[must_use]
    pub fn recover(
        run: AgentRunId,
        entries: impl IntoIterator<Item = Entry>,
        low_water: u64,
    ) -> Self {
        Self::under(Complete, run, entries, low_water)
    }
}

impl<R: Rulebook> Engine<R> {
    /// The same by other rules.
    #[must_use]
    pub fn under(
        rules: R,
        run: AgentRunId,
        entries: impl IntoIterator<Item = Entry>,
        low_water: u64,
    ) -> Self {
        let mut engine = Self {
            rules,
            run,
            known: BTreeMap::new(),
            held: 0,
            checks: 0,
            low_water,
            kept_low_water: low_water,
            marking: None,
            writes: 0,
            stopping: None,
            failed: false,
            effects: VecDeque::new(),
        };
        engine.take_over(entries);
        engine
    }

    /// Takes in what happened.
    pub fn handle(&mut self, input: Input, now: Now) {
        if self.failed {
            return;
        }
        match input {
            Input::LeftoversEnded => self.settle_leftovers(),
            Input::Attached(low_water) => {
                self.forget(low_water);
                self.announce();
            }
            Input::Asked(id, asked) => self.asked(id, asked, now),
            Input::Checked(id, verdict) => self.checked(id, &verdict, now),
            Input::Written(of, result) => self.written(of, result, now),
            Input::Queued(id) => self.queued(id, now),
            Input::Prepared(id, verdict) => self.prepared(id, verdict, now),
            Input::Exited(id, outcome) => self.exited(id, *outcome),
            Input::Timeout => self.timeout(now),
            Input::Stopping => self.stop(now),
        }
    }

    /// What is to be done next.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to tell [`Input::Timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Monotonic> {
        let of = |known: &Known| match &known.stage {
            Stage::Waiting => known.deadline,
            Stage::Preparing => known
                .deadline
                .filter(|_| self.rules.keeps(Rule::DeadlineAtStart)),
            Stage::Unwritten(_, again) => Some(*again),
            Stage::Settling(_)
            | Stage::Checking(..)
            | Stage::Opening
            | Stage::Accepting(_)
            | Stage::Starting { .. }
            | Stage::Running(_)
            | Stage::Interrupted(_)
            | Stage::Finishing(_)
            | Stage::Discarding
            | Stage::Finished
            | Stage::Reporting(_)
            | Stage::Reported
            | Stage::Unkept => None,
        };
        let ending = self.stopping.filter(|_| self.active() > 0);
        self.known.values().filter_map(of).chain(ending).min()
    }

    /// Whether what an earlier process left behind is settled.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let settling = |known: &Known| matches!(known.stage, Stage::Settling(_));
        !self.failed && !self.known.values().any(settling)
    }

    /// How many commands have their permit and have not ended.
    #[must_use]
    pub fn active(&self) -> usize {
        let active = |known: &&Known| {
            matches!(
                known.stage,
                Stage::Opening
                    | Stage::Accepting(Permitted::Yes | Permitted::Prepared(_))
                    | Stage::Preparing
                    | Stage::Starting { .. }
                    | Stage::Running(_)
                    | Stage::Finishing(_)
            )
        };
        self.known.values().filter(active).count()
    }

    /// Whether a session may ask more.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.held + self.checks < HELD_MAX
    }

    /// Whether the agent stops.
    #[must_use]
    pub const fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Whether there is nothing left to do before the process ends.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.failed || (self.is_stopping() && self.writes == 0 && self.active() == 0)
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.effects.is_empty()
            && self.writes == 0
            && self.active() == 0
            && self.held + self.checks == 0
    }

    /// The commands that the backend does not have the outcome of, as far as they are, or may be, in the journal.
    fn unreported(&self) -> usize {
        let open = |known: &&Known| !matches!(known.stage, Stage::Checking(..) | Stage::Reported);
        self.known.values().filter(open).count()
    }

    fn write(&mut self, step: Step) {
        self.writes += 1;
        let kept = match &step {
            Step::Accept(entry) => !entry.idempotent,
            Step::Start(id, _) => self.known.get(id).is_some_and(|it| !it.entry.idempotent),
            Step::Finish(..)
            | Step::Report(_)
            | Step::Discard(_)
            | Step::AwaitAgain(..)
            | Step::LowWater(_) => false,
        };
        self.effects.push_back(Effect::Write(Write { step, kept }));
    }

    fn say(&mut self, message: AgentMessage) {
        self.effects.push_back(Effect::Say(Box::new(message)));
    }

    fn fail(&mut self, reason: String) {
        self.failed = true;
        self.effects.push_back(Effect::Fail(reason));
    }

    fn stage(&self, id: CommandId) -> Option<&Stage> {
        self.known.get(&id).map(|known| &known.stage)
    }

    fn set_stage(&mut self, id: CommandId, stage: Stage) {
        if let Some(known) = self.known.get_mut(&id) {
            known.stage = stage;
        }
    }

    /// Takes note of what a durable step made of an entry, and forgets what nobody needs to start it again.
    fn moved(&mut self, id: CommandId, state: EntryState, stage: Stage) {
        if let Some(known) = self.known.get_mut(&id) {
            known.entry.state = state;
            known.stage = stage;
            if matches!(state, EntryState::Finished | EntryState::Reported) {
                known.entry.arguments.clear();
            }
        }
    }
}
