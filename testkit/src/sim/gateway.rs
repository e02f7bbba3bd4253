//! A gateway: a machine with a disk, and on it, most of the time, a process of the agent.
//!
//! The process drives the product's session machine and command engine. What surrounds them takes turns as the
//! product's tasks do: each write to the disk is a step of its own, at which it may die.

use std::collections::VecDeque;
use std::time::Duration;

use viworks_common::id::{AgentId, AgentRunId, CommandId};
use viworks_common::journal::Step;
use viworks_common::key::{AgentKey, Identity};
use viworks_common::session::backoff::Backoff;
use viworks_common::time::{Monotonic, Timestamp};

use super::core::{Core, Event, GatewayStep, Generation, HostId, Process as Dying};
use super::disk_model::{Disk, Image, Write, Written};
use super::network::ConnectionId;

mod engine;
mod link;

use engine::Engine;
use link::Link;
pub(crate) use link::binding;

/// Records the collector has at a time, at most.
const OBSERVED_MAX: u64 = 3;

/// A machine that holds an identity.
#[derive(Debug)]
pub(crate) struct Host {
    /// Which machine.
    pub id: HostId,
    /// Whose identity.
    pub identity: Identity,
    /// Its disk.
    pub disk: Disk,
    /// Its process, while it runs.
    pub process: Option<Process>,
    /// How far its wall clock is off.
    pub skew_micros: i64,
    /// An image of the disk, if somebody took one.
    pub snapshot: Option<Image>,
    /// Nobody reaches anything from here until then.
    pub cut_off_until: Monotonic,
    /// Whether it stays off: an operator gave it up.
    pub retired: bool,
    /// Whether its disk once went back in time: then its journal proves nothing about what ran before.
    pub restored: bool,
    /// Whether it does not wait when it is told to.
    pub rude: bool,
    /// Whether it was last told that another machine holds its identity.
    pub refused_as_fork: bool,
    key: AgentKey,
    generation: Generation,
    /// Where the monotonic clock of this boot began.
    boot: Duration,
}

/// One process of the agent.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its name in every permit and spool epoch.
    pub run: AgentRunId,
    engine: Engine,
    /// What an earlier process left behind is settled.
    dialled: bool,
    link: Option<Link>,
    backoff: Backoff,
    /// What follows each write that is on its way.
    after: VecDeque<After>,
    last_sync: Monotonic,
}

/// What follows a write.
#[derive(Debug, Clone)]
enum After {
    Journalled(Option<CommandId>),
    EpochKept(ConnectionId),
    Nothing,
}

impl Host {
    /// A machine with a disk, switched off.
    #[must_use]
    pub(crate) const fn new(id: HostId, identity: Identity, key: AgentKey, disk: Disk) -> Self {
        Self {
            id,
            identity,
            disk,
            process: None,
            skew_micros: 0,
            snapshot: None,
            cut_off_until: Monotonic::ORIGIN,
            retired: false,
            restored: false,
            rude: false,
            refused_as_fork: false,
            key,
            generation: Generation(0),
            boot: Duration::ZERO,
        }
    }

    /// The gateway whose identity it holds.
    #[must_use]
    pub(crate) const fn agent(&self) -> AgentId {
        self.identity.agent_id
    }

    /// The same identity on another machine.
    #[must_use]
    pub(crate) fn clone_onto(&self, id: HostId, disk: Disk) -> Self {
        let mut clone = Self::new(id, self.identity.clone(), self.key.clone(), disk);
        clone.restored = true;
        clone
    }

    /// Which start of its process this is.
    #[must_use]
    pub(crate) const fn generation(&self) -> Generation {
        self.generation
    }

    /// Its clock since boot.
    fn clock(&self, core: &Core) -> Monotonic {
        core.now.saturating_add(self.boot)
    }

    fn wall(&self, core: &Core) -> Timestamp {
        core.wall(self.skew_micros)
    }

    /// A time of this machine's clock as true time.
    const fn truly(&self, local: Monotonic) -> Monotonic {
        local.saturating_sub(self.boot)
    }

    fn event(&self, step: GatewayStep) -> Event {
        Event::Gateway(self.id, self.generation, step)
    }

    /// Starts the process: settles what an earlier one left behind, and dials.
    pub(crate) fn boot(&mut self, core: &mut Core) {
        if self.retired || self.process.is_some() {
            return;
        }
        self.generation = self.generation.next();
        self.boot = core.random.millis(0, 3_600_000);
        let run = AgentRunId::from_uuid(core.random.uuid());
        let id = self.id;
        core.note(|| format!("{id:?} boots as {run}"));
        self.disk.image.spool.forget_delivered(run);
        self.process = Some(Process {
            run,
            engine: Engine::new(core.rules, run, &self.disk.image),
            dialled: false,
            link: None,
            backoff: Backoff::new(),
            after: VecDeque::new(),
            last_sync: core.now,
        });
        self.perform(core);
        self.dial_when_settled(core);
        let pause = core.random.millis(50, 2_000);
        core.after(pause, self.event(GatewayStep::Observe));
    }

    /// What an earlier process left behind is settled before this one dials.
    fn dial_when_settled(&mut self, core: &mut Core) {
        let event = self.event(GatewayStep::Dial);
        if let Some(process) = &mut self.process
            && !process.dialled
            && process.engine.is_settled()
        {
            process.dialled = true;
            core.after(Duration::ZERO, event);
        }
    }

    /// Ends the process as kill -9 or a power cut does. Returns the connection it had.
    pub(crate) fn crash(&mut self, core: &mut Core) -> Option<ConnectionId> {
        let process = self.process.take()?;
        core.recorder.counts.gateway_crashes += 1;
        let id = self.id;
        core.note(|| format!("{id:?} crashes"));
        for (write, written) in self.disk.crash(&mut core.random) {
            self.witness(&write, &written, core);
        }
        process.link.map(|link| link.wire)
    }

    /// Lets the disk be what it was when the image was taken.
    pub(crate) fn restore(&mut self, image: Image, core: &mut Core) {
        let agent = self.agent();
        for (run, seq) in self.disk.image.spool.untold() {
            core.recorder.excuse((agent, run, seq));
        }
        self.disk.image = image;
        self.restored = true;
    }

    /// The recorder learns what is durable.
    fn witness(&self, write: &Write, written: &Written, core: &mut Core) {
        if let Write::Journal(Step::Finish(_, outcome)) = write
            && written.done
        {
            core.recorder.journalled(outcome.duration_ms);
        }
        if let Write::Append(run, _) = write {
            for (seq, at) in &written.spooled {
                let key = (self.agent(), *run, *seq);
                core.recorder.spooled(key, at.unix_micros());
            }
        }
    }

    /// Goes on.
    pub(crate) fn step(&mut self, step: GatewayStep, core: &mut Core) {
        if self.process.is_none() {
            return;
        }
        match step {
            GatewayStep::Dial => self.dial(core),
            GatewayStep::Dialled => self.dialled(core),
            GatewayStep::Timer => self.pump(core),
            GatewayStep::Engine => self.engine_step(core),
            GatewayStep::Expire => self.wake(core),
            GatewayStep::Synced => self.synced(core),
            GatewayStep::Begin(id) => self.begin(id, core),
            GatewayStep::Exit(id, ended) => self.exit(id, ended, core),
            GatewayStep::Observe => self.observe(core),
        }
    }

    fn observe(&mut self, core: &mut Core) {
        let count = 1 + core.random.below(OBSERVED_MAX);
        self.collect(count, core);
        if core.turmoil {
            let pause = core.random.millis(500, 8_000);
            core.after(pause, self.event(GatewayStep::Observe));
        }
    }

    /// The collector appends records.
    pub(crate) fn collect(&mut self, count: u64, core: &mut Core) {
        let wall = self.wall(core);
        let Some(process) = &self.process else { return };
        let run = process.run;
        let observed = (0..count)
            .map(|n| wall.saturating_add(Duration::from_micros(n)))
            .collect();
        self.write(Write::Append(run, observed), After::Nothing, core);
    }

    fn write(&mut self, write: Write, after: After, core: &mut Core) {
        let (id, event) = (self.id, self.event(GatewayStep::Synced));
        let Some(process) = &mut self.process else {
            return;
        };
        core.note(|| format!("{id:?} writes {write:?}"));
        self.disk.write(write);
        let delay = core.random.span(Duration::ZERO, core.scenario.sync);
        let done = core.now.saturating_add(delay).max(process.last_sync);
        process.last_sync = done;
        core.at(done, event);
        process.after.push_back(after);
    }

    fn synced(&mut self, core: &mut Core) {
        if core.dies(Dying::Gateway(self.id)) {
            return;
        }
        let Some((write, written)) = self.disk.sync() else {
            return;
        };
        self.witness(&write, &written, core);
        let bound = core.scenario.spool_max;
        if self.disk.image.spool.len() > bound {
            core.recorder
                .violated(|| format!("9: a spool holds more than {bound} records"));
        }
        if core.dies(Dying::Gateway(self.id)) {
            return;
        }
        let Some(process) = &mut self.process else {
            return;
        };
        let Some(after) = process.after.pop_front() else {
            return;
        };
        self.go_on_after(&after, written.done, core);
    }

    fn go_on_after(&mut self, after: &After, done: bool, core: &mut Core) {
        match after {
            After::Journalled(of) => {
                self.journalled(*of, done, core);
                self.dial_when_settled(core);
            }
            After::EpochKept(wire) => self.epoch_kept(*wire, done, core),
            After::Nothing => self.look_again(core),
        }
    }

    /// Whether everything that can be done has been done.
    #[must_use]
    pub(crate) fn is_quiet(&self) -> bool {
        let Some(process) = &self.process else {
            return self.retired;
        };
        process.after.is_empty()
            && process.engine.is_quiet()
            && process.link.as_ref().is_some_and(Link::is_established)
            && self.disk.image.unreported().is_empty()
            && self.disk.image.spool.is_delivered()
    }

    /// Why it is not quiet.
    #[must_use]
    pub(crate) fn unrest(&self) -> String {
        let image = &self.disk.image;
        let link = self.process.as_ref().and_then(|it| it.link.as_ref());
        format!(
            "{:?}: established {:?}, unreported {:?}, waiting records {}, refused as fork {}",
            self.id,
            link.map(Link::is_established),
            image.unreported(),
            image.spool.len(),
            self.refused_as_fork
        )
    }

    /// Whether a session is established.
    #[must_use]
    pub(crate) fn is_connected(&self) -> bool {
        let link = self.process.as_ref().and_then(|it| it.link.as_ref());
        link.is_some_and(Link::is_established)
    }
}
