//! A gateway: a machine with a disk, and on it, most of the time, a process of the agent.
//!
//! The process drives the product's session machine and command engine. What surrounds them takes turns as the
//! product's tasks do: each write to the disk is a step of its own, at which it may die.

use std::time::Duration;

use viworks_common::id::{AgentId, AgentRunId, BootId, InstallId};
use viworks_common::journal::Step;
use viworks_common::key::Identity;
use viworks_common::session::backoff::Backoff;
use viworks_common::time::{Monotonic, Timestamp};

use super::core::{Core, Event, GatewayStep, Generation, HostId, Process as Dying};
use super::disk_model::{Disk, HeldKey, Image, Write, Written};
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
    pub id: HostId,
    pub identity: Identity,
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
    /// Whether another machine took its place by a ticket: no operator gives it the identity again.
    pub replaced: bool,
    /// Whether it was last told that its agent key is good no more.
    key_refused: bool,
    /// The agent key that it was issued with.
    key: HeldKey,
    /// Drawn once for its disk, and copied with it.
    install_id: InstallId,
    /// What it says of its boot, where anybody tells holders apart by that.
    boot_id: Option<BootId>,
    generation: Generation,
    /// Where the monotonic clock of this boot began.
    boot: Duration,
    last_sync: Monotonic,
}

/// One process of the agent.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its name in every permit and spool epoch.
    run: AgentRunId,
    engine: Engine,
    /// What an earlier process left behind is settled.
    dialled: bool,
    link: Option<Link>,
    backoff: Backoff,
    /// Later agent keys that are nowhere but here: none, by the rules.
    unkept: Vec<HeldKey>,
}

impl Host {
    /// A machine with a disk, switched off.
    pub(crate) const fn new(id: HostId, identity: Identity, key: HeldKey, disk: Disk) -> Self {
        let install_id = InstallId::from_uuid(*identity.agent_id.as_uuid());
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
            key_refused: false,
            replaced: false,
            key,
            install_id,
            boot_id: None,
            generation: Generation(0),
            boot: Duration::ZERO,
            last_sync: Monotonic::ORIGIN,
        }
    }

    pub(crate) const fn agent(&self) -> AgentId {
        self.identity.agent_id
    }

    /// The same identity on another machine.
    pub(crate) fn clone_onto(&self, id: HostId, disk: Disk) -> Self {
        let mut clone = Self::new(id, self.identity.clone(), self.key.clone(), disk);
        clone.restored = true;
        clone.install_id = self.install_id;
        clone.replaced = self.replaced;
        clone
    }

    /// Whether it began as a copy of another machine, or that of it.
    pub(crate) fn shares_installation(&self, other: &Self) -> bool {
        self.id != other.id && self.agent() == other.agent() && self.install_id == other.install_id
    }

    /// Another machine in its place, with its own disk and installation.
    pub(crate) fn successor(
        &self,
        id: HostId,
        (key, install_id): (HeldKey, InstallId),
        disk: Disk,
    ) -> Self {
        let mut successor = Self::new(id, self.identity.clone(), key, disk);
        successor.install_id = install_id;
        successor
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

    /// Lets the process do something on its machine.
    fn with(&mut self, what: impl FnOnce(&mut Process, &mut Self)) {
        if let Some(mut process) = self.process.take() {
            what(&mut process, self);
            self.process = Some(process);
        }
    }

    /// Starts the process: settles what an earlier one left behind, and dials.
    pub(crate) fn boot(&mut self, core: &mut Core) {
        if self.retired || self.process.is_some() {
            return;
        }
        self.generation.0 += 1;
        self.boot = core.random.millis(0, 3_600_000);
        self.last_sync = core.now;
        let run = AgentRunId::from_uuid(core.random.uuid());
        let id = self.id;
        core.note(|| format!("{id:?} boots as {run}"));
        core.recorder.booted(run, id);
        let decisions = core.scenario.decisions;
        if decisions.resolves && (self.boot_id.is_none() || core.fate.once_in(3)) {
            self.boot_id = Some(BootId::from_uuid(core.fate.uuid()));
        }
        self.disk.image.spool.forget_delivered(run);
        self.process = Some(Process {
            run,
            engine: Engine::new(core.rules, run, &self.disk.image),
            dialled: false,
            link: None,
            backoff: Backoff::new(),
            unkept: Vec::new(),
        });
        self.with(|process, host| {
            process.perform(host, core);
            process.dial_when_settled(host, core);
        });
        let pause = core.random.millis(50, 2_000);
        core.after(pause, self.event(GatewayStep::Observe));
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
        self.excuse_spool(core);
        self.disk.image = image;
        self.restored = true;
    }

    /// What the spool still has to tell is gone by no fault of the protocol.
    pub(crate) fn excuse_spool(&self, core: &mut Core) {
        for (run, seq) in self.disk.image.spool.untold() {
            core.recorder.excuse((self.agent(), run, seq));
        }
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

    /// A step of the process that was started then, if that is still the one.
    pub(crate) fn step(&mut self, started: Generation, step: GatewayStep, core: &mut Core) {
        if started == self.generation {
            self.with(|process, host| process.step(step, host, core));
        }
    }

    pub(crate) fn arrival(&mut self, wire: ConnectionId, core: &mut Core) {
        self.with(|process, host| process.arrival(wire, host, core));
    }

    /// The collector appends records.
    pub(crate) fn collect(&mut self, count: u64, core: &mut Core) {
        self.with(|process, host| process.collect(count, host, core));
    }

    fn write(&mut self, write: Write, core: &mut Core) {
        let id = self.id;
        core.note(|| format!("{id:?} writes {write:?}"));
        self.disk.write(write);
        let delay = core.random.span(Duration::ZERO, core.scenario.sync);
        self.last_sync = core.now.saturating_add(delay).max(self.last_sync);
        core.at(self.last_sync, self.event(GatewayStep::Synced));
    }

    /// Whether everything that can be done has been done.
    pub(crate) fn is_quiet(&self) -> bool {
        let Some(process) = &self.process else {
            return self.retired;
        };
        self.disk.is_idle()
            && process.engine.is_quiet()
            && self.is_connected()
            && self.disk.image.unreported().is_empty()
            && self.disk.image.spool.is_delivered()
    }

    /// Why it is not quiet.
    pub(crate) fn unrest(&self) -> String {
        let image = &self.disk.image;
        format!(
            "{:?}: connected {}, unreported {:?}, waiting records {}, refused as fork {}",
            self.id,
            self.is_connected(),
            image.unreported(),
            image.spool.len(),
            self.refused_as_fork
        )
    }

    /// Its process, while there is one.
    pub(crate) fn run(&self) -> Option<AgentRunId> {
        self.process.as_ref().map(|process| process.run)
    }

    /// Whether it was last refused for what only an operator changes.
    pub(crate) const fn is_kept_out(&self) -> bool {
        self.refused_as_fork || self.key_refused
    }

    /// An operator has decided since it was refused, or it is in.
    pub(crate) const fn forget_refusals(&mut self) {
        self.refused_as_fork = false;
        self.key_refused = false;
    }

    /// Whether a session is established.
    pub(crate) fn is_connected(&self) -> bool {
        let link = self.process.as_ref().and_then(|it| it.link.as_ref());
        link.is_some_and(Link::is_established)
    }
}

impl Process {
    fn step(&mut self, step: GatewayStep, host: &mut Host, core: &mut Core) {
        match step {
            GatewayStep::Dial => {
                let span = core.scenario.latency * 3;
                core.after(span, host.event(GatewayStep::Dialled));
            }
            GatewayStep::Dialled => self.dialled(host, core),
            GatewayStep::Timer => self.pump(host, core),
            GatewayStep::Engine => self.engine_step(host, core),
            GatewayStep::Expire => self.wake(host, core),
            GatewayStep::Synced => self.synced(host, core),
            GatewayStep::Begin(id) => self.begin(id, host, core),
            GatewayStep::Exit(id, ended) => self.exit(id, ended, host, core),
            GatewayStep::Observe => self.observe(host, core),
        }
    }

    /// What an earlier process left behind is settled before this one dials.
    fn dial_when_settled(&mut self, host: &Host, core: &mut Core) {
        if !self.dialled && self.engine.is_settled() {
            self.dialled = true;
            core.after(Duration::ZERO, host.event(GatewayStep::Dial));
        }
    }

    fn observe(&self, host: &mut Host, core: &mut Core) {
        let count = 1 + core.random.below(OBSERVED_MAX);
        self.collect(count, host, core);
        if core.turmoil {
            let pause = core.random.millis(500, 8_000);
            core.after(pause, host.event(GatewayStep::Observe));
        }
    }

    fn collect(&self, count: u64, host: &mut Host, core: &mut Core) {
        let wall = host.wall(core);
        let observed = (0..count).map(|n| wall.saturating_add(Duration::from_micros(n)));
        host.write(Write::Append(self.run, observed.collect()), core);
    }

    fn synced(&mut self, host: &mut Host, core: &mut Core) {
        if core.dies(Dying::Gateway(host.id)) {
            return;
        }
        let Some((write, written)) = host.disk.sync() else {
            return;
        };
        host.witness(&write, &written, core);
        let bound = core.scenario.spool_max;
        if host.disk.image.spool.len() > bound {
            core.recorder
                .violated(|| format!("9: a spool holds more than {bound} records"));
        }
        if core.dies(Dying::Gateway(host.id)) {
            return;
        }
        match write {
            Write::Journal(step) => {
                self.journalled(step.command_id(), written.done, host, core);
                self.dial_when_settled(host, core);
            }
            Write::Epoch(wire, ..) => self.epoch_kept(wire, written.done, host, core),
            Write::Key { wire, new, .. } => self.key_kept(wire, new.0, host, core),
            Write::Append(..) | Write::Acknowledge(_) => self.look_again(host, core),
        }
    }
}
