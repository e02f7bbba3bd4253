//! One world: gateways, a backend, a network between them, and everything that goes wrong, until all is quiet again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use viworks_common::id::{AgentId, CommandId};
use viworks_common::key::{MasterKey, Secret};
use viworks_common::session::End;
use viworks_common::time::Monotonic;

use super::backend::Backend;
use super::core::{Core, Event, Fault, HostId, InstanceId, Process};
use super::disk_model::{Disk, Image};
use super::gateway::Host;
use super::network::ConnectionId;
use super::operator::Kind;
use super::random::Random;
use super::recorder::Counts;
use super::scenario::{Rules, Scenario, Storage};
use super::store_model::{Store, Submitted};

mod decisions;
mod verdict;

/// What tells the chance of operators' decisions from all other chance of the same seed.
const FATE: u64 = 0x6a09_e667_f3bc_c908;
/// The generation of the agent key that a gateway is issued with.
const FIRST_KEY: u8 = 1;
/// Between two looks whether all is quiet.
const LOOK: Duration = Duration::from_secs(5);
/// How long after the last fault all must be quiet: longer than any backoff, deadline and wait.
const QUIET_WITHIN: Duration = Duration::from_secs(20 * 60);
/// The same with two holders of an identity: one is told to come back within an hour.
const SETTLED_WITHIN: Duration = Duration::from_secs(3 * 3_600);
/// Events of one world; more than this is a livelock.
const EVENTS_MAX: u64 = 2_000_000;

pub(super) struct World {
    core: Core,
    hosts: Vec<Host>,
    backend: Backend,
    master: Arc<MasterKey>,
    commands: Vec<(CommandId, AgentId, Kind)>,
    /// The machine that an operator wants in an identity.
    chosen: BTreeMap<AgentId, HostId>,
    quiet_since: Option<Monotonic>,
    healed_at: Monotonic,
}

impl World {
    pub(super) fn new(seed: u64, rules: Rules, traced: bool) -> Self {
        let mut random = Random::new(seed);
        let mut fate = Random::new(seed ^ FATE);
        let scenario = Scenario::draw(&mut random, &mut fate);
        let master = Arc::new(MasterKey::new(Secret::from_bytes([7; 32])));
        let mut hosts = Vec::new();
        for n in 0..scenario.gateways {
            let identity = Backend::identity(AgentId::from_uuid(random.uuid()));
            let token = master.token(&identity, 0).expose_hex();
            let key = (FIRST_KEY, master.agent_key(&identity, u32::from(FIRST_KEY)));
            let disk = Disk::new(Image::installed(token, scenario.spool_max), rules);
            hosts.push(Host::new(HostId(n), identity, key, disk));
        }
        let store = Store::new(rules, hosts.iter().map(Host::agent));
        let backend = Backend::new(store, scenario.instances, &master);
        let core = Core::new((random, fate), scenario, rules, traced);
        let mut world = Self {
            core,
            hosts,
            backend,
            master,
            commands: Vec::new(),
            chosen: BTreeMap::new(),
            quiet_since: None,
            healed_at: Monotonic::ORIGIN,
        };
        world.plan();
        world
    }

    fn plan(&mut self) {
        let core = &mut self.core;
        core.note(|| "a new world".to_owned());
        let scenario = core.scenario.clone();
        core.note(|| format!("{scenario:?}"));
        for host in &self.hosts {
            let delay = core.random.millis(0, 2_000);
            core.after(delay, Event::Boot(host.id));
        }
        for n in 0..scenario.instances {
            let delay = core.random.millis(0, 1_000);
            core.after(delay, Event::Start(InstanceId(n)));
        }
        let some_time = |core: &mut Core, event| {
            let at = core.random.span(Duration::ZERO, scenario.turmoil);
            core.after(at, event);
        };
        for _ in 0..scenario.commands {
            some_time(core, Event::Submit);
        }
        for _ in 0..scenario.commands / 3 {
            some_time(core, Event::Cancel);
        }
        for _ in 0..scenario.faults {
            some_time(core, Event::Fault(Fault::Any));
        }
        if scenario.jumps {
            for _ in 0..3 {
                some_time(core, Event::Fault(Fault::Clock));
            }
        }
        if scenario.storage != Storage::Sound {
            let image = core.random.span(Duration::ZERO, scenario.turmoil);
            let restore = core.random.span(image, scenario.turmoil);
            core.after(image, Event::Fault(Fault::Image));
            core.after(restore, Event::Fault(Fault::Restore));
        }
        decisions::plan(core);
        core.after(scenario.turmoil, Event::Heal);
    }

    /// Lets everything happen. `None` when no invariant was violated.
    pub(super) fn run(&mut self) -> Option<String> {
        for _ in 0..EVENTS_MAX {
            let Some(event) = self.core.next() else {
                return Some("10: nothing happens any more, and not all is quiet".to_owned());
            };
            let settled = self.happens(event);
            if let Some(process) = self.core.dying.take() {
                self.dies(process);
            }
            if let Some(violation) = self.core.recorder.violation() {
                return Some(violation.to_owned());
            }
            if settled {
                return None;
            }
        }
        Some("10: the world does not come to rest".to_owned())
    }

    pub(super) const fn counts(&self) -> Counts {
        self.core.recorder.counts
    }

    pub(super) fn into_trace(self) -> Vec<String> {
        self.core.into_trace()
    }

    /// True when all is over and well.
    fn happens(&mut self, event: Event) -> bool {
        let Self {
            core,
            hosts,
            backend,
            ..
        } = self;
        match event {
            Event::Gateway(id, generation, step) => hosts[id.0].step(generation, step, core),
            Event::Backend(id, generation, step) => backend.step((id, generation), step, core),
            Event::Arrival(wire, End::Backend) => backend.arrival(wire, core),
            Event::Arrival(wire, End::Agent) => {
                if let Some(known) = core.network.wire(wire) {
                    let (HostId(id), _) = known.agent;
                    hosts[id].arrival(wire, core);
                }
            }
            Event::Boot(id) => hosts[id.0].boot(core),
            Event::Start(id) => backend.start(id, core),
            Event::Submit => self.submit(),
            Event::Cancel => self.cancel(),
            Event::Decide => self.decide(),
            Event::Rotate => self.rotate(),
            Event::Replace => self.replace(),
            Event::Fault(Fault::Any) => self.fault(),
            Event::Fault(Fault::Clock) => self.set_clock(),
            Event::Fault(Fault::Image) => self.take_image(),
            Event::Fault(Fault::Restore) => self.restore(),
            Event::Heal => self.heal(),
            Event::Look => return self.look(),
        }
        false
    }

    fn submit(&mut self) {
        let core = &mut self.core;
        let Some(desk) = self.backend.desk(core) else {
            core.after(Duration::from_secs(1), Event::Submit);
            return;
        };
        let target = core.random.index(core.scenario.gateways);
        let agent = self.hosts[target].agent();
        let kind = Kind::draw(&mut core.random);
        let id = CommandId::from_uuid(core.random.uuid());
        let span = core.random.millis(500, 40_000);
        core.note(|| format!("operator submits {id} {kind:?} for {agent} within {span:?}"));
        let limited = core.random.once_in(2);
        let timeout_ms = limited.then(|| 1 + core.random.below(10_000));
        let new = Submitted {
            id,
            agent,
            name: kind.name(),
            idempotent: kind.believed_idempotent(),
            deadline: core.backend_now().saturating_add(span),
            timeout_ms,
        };
        let kept = self.backend.keep(desk, agent);
        let place = kept.as_ref().map(|kept| kept.place);
        let store = &mut self.backend.store;
        let submitted = store.commit(core, |tx| tx.submit(desk, new, place));
        if submitted.is_some() {
            self.commands.push((id, agent, kind));
            let when = (core.now, span);
            core.recorder.submitted(agent, id, when, timeout_ms);
        } else {
            core.note(|| format!("{id} is refused"));
        }
        match (kept, submitted) {
            (Some(kept), Some(Some(offer))) => self.backend.deliver(&kept, offer, core),
            (kept, submitted) => {
                if let Some(kept) = &kept {
                    self.backend.give_back(kept);
                }
                if submitted.is_some() {
                    self.backend.nudge(desk, agent, core);
                }
            }
        }
    }

    fn cancel(&mut self) {
        let core = &mut self.core;
        if self.commands.is_empty() {
            return;
        }
        let Some(desk) = self.backend.desk(core) else {
            return;
        };
        let (id, agent, _) = self.commands[core.random.index(self.commands.len())];
        core.note(|| format!("operator cancels {id}"));
        if self.backend.store.commit(core, |tx| tx.cancel(desk, id)) {
            self.backend.cancel(desk, agent, id, core);
        }
    }

    fn dies(&mut self, process: Process) {
        match process {
            Process::Gateway(id) => self.crash_gateway(id),
            Process::Backend(id) => self.crash_backend(id),
        }
    }

    fn crash_gateway(&mut self, id: HostId) {
        let core = &mut self.core;
        let wire = self.hosts[id.0].crash(core);
        if let Some(wire) = wire {
            if core.random.once_in(2) {
                core.hang_up(wire, End::Agent);
            } else {
                core.abandon(wire, End::Agent);
            }
            if core.turmoil && core.random.once_in(2) {
                // What it sent before its end may come after its successor's first words.
                let span = core.random.millis(0, 6_000);
                core.hold_up(wire, End::Backend, span);
            }
        }
        let longest = if core.random.once_in(2) { 500 } else { 10_000 };
        let pause = core.random.millis(50, longest);
        core.after(pause, Event::Boot(id));
    }

    fn crash_backend(&mut self, id: InstanceId) {
        let core = &mut self.core;
        self.backend.crash(id, core);
        let pause = core.random.millis(50, 10_000);
        if !core.turmoil || !self.backend.is_gone(id, &mut core.random) {
            core.after(pause, Event::Start(id));
        }
    }

    fn fault(&mut self) {
        let core = &mut self.core;
        let host = HostId(core.random.index(self.hosts.len()));
        let instance = InstanceId(core.random.index(self.backend.len()));
        match core.random.below(10) {
            0 | 1 => self.crash_gateway(host),
            2 | 3 if self.backend.len() > 1 && core.random.once_in(2) => {
                let span = core.random.millis(500, 30_000);
                self.backend.pause(instance, span, core);
            }
            2 | 3 => self.crash_backend(instance),
            4..=6 => self.disturb(),
            7 => {
                let span = core.random.millis(500, 20_000);
                core.note(|| format!("{host:?} reaches nobody for {span:?}"));
                self.hosts[host.0].cut_off_until = core.now.saturating_add(span);
                self.cut_all_of(host);
            }
            8 if core.scenario.replays => {
                if let Some(wire) = self.some_wire() {
                    let core = &mut self.core;
                    let end = core.some_end();
                    core.note(|| format!("an old frame is played into {wire:?} for {end:?}"));
                    core.inject(wire, end);
                }
            }
            9 if core.scenario.jumps => self.jump(host),
            _ => self.disturb(),
        }
    }

    fn some_wire(&mut self) -> Option<ConnectionId> {
        let core = &mut self.core;
        let count = core.network.ids().count();
        let chosen = (count > 0).then(|| core.random.index(count))?;
        core.network.ids().nth(chosen)
    }

    /// Cuts a connection, or holds one of its directions up.
    fn disturb(&mut self) {
        let Some(wire) = self.some_wire() else { return };
        let core = &mut self.core;
        core.recorder.counts.cuts += 1;
        let slow = match core.random.below(4) {
            0 => Some(End::Agent),
            1 => Some(End::Backend),
            _ => None,
        };
        if let Some(end) = slow {
            let span = core.random.millis(100, 15_000);
            core.note(|| format!("{wire:?} is slow to {end:?} for {span:?}"));
            core.delay(wire, end, span);
        } else {
            core.note(|| format!("{wire:?} is cut"));
            core.cut(wire);
        }
    }

    fn cut_all_of(&mut self, host: HostId) {
        let of_host = |wire: &ConnectionId| {
            let known = self.core.network.wire(*wire);
            known.is_some_and(|known| known.agent.0 == host)
        };
        let wires: Vec<ConnectionId> = self.core.network.ids().filter(of_host).collect();
        for wire in wires {
            self.core.cut(wire);
        }
    }

    fn jump(&mut self, host: HostId) {
        let core = &mut self.core;
        let width = i64::try_from(Duration::from_secs(600).as_micros()).unwrap_or(i64::MAX);
        let draw = i64::try_from(core.random.below(600_000_000)).unwrap_or_default();
        let skew = draw - width / 2;
        core.note(|| format!("a wall clock jumps to {skew} us off"));
        if core.random.once_in(2) {
            core.backend_skew_micros = skew;
        } else {
            self.hosts[host.0].skew_micros = skew;
        }
    }

    /// An administrator, or a time server, sets the clock of the backend's host.
    fn set_clock(&mut self) {
        let core = &mut self.core;
        let seconds = [-90, 3_600, -3_600, 20];
        let step = seconds[core.random.index(seconds.len())] * 1_000_000;
        core.note(|| format!("the backend's wall clock is set {step} us further"));
        core.recorder.counts.steps += 1;
        core.backend_skew_micros += step;
    }

    fn take_image(&mut self) {
        let core = &mut self.core;
        core.note(|| "somebody takes an image or a backup".to_owned());
        match core.scenario.storage {
            Storage::Sound => {}
            Storage::BackendRestored => self.backend.backup = Some(self.backend.store.clone()),
            Storage::GatewayRestored | Storage::GatewayCloned => {
                let host = core.random.index(self.hosts.len());
                self.hosts[host].snapshot = Some(self.hosts[host].disk.image.clone());
            }
        }
    }

    /// Somebody uses the backup or the image, if there is one.
    fn restore(&mut self) {
        if let Some(backup) = self.backend.backup.take() {
            self.restore_backend(backup);
        }
        let has_image = |host: &Host| host.snapshot.is_some();
        let Some(index) = self.hosts.iter().position(has_image) else {
            return;
        };
        let is_cloned = self.core.scenario.storage == Storage::GatewayCloned;
        if !is_cloned {
            self.crash_gateway(HostId(index));
        }
        let (next, core) = (HostId(self.hosts.len()), &mut self.core);
        let host = &mut self.hosts[index];
        let Some(image) = host.snapshot.take() else {
            return;
        };
        let id = host.id;
        core.recorder.doubled(host.agent());
        if is_cloned {
            core.note(|| format!("{next:?} starts from an image of {id:?}"));
            let mut clone = host.clone_onto(next, Disk::new(image, core.rules));
            clone.rude = core.scenario.rude_copy;
            self.hosts.push(clone);
            core.after(Duration::ZERO, Event::Boot(next));
            self.stop_one_of_several();
        } else {
            core.note(|| format!("the disk of {id:?} is RESTORED from its image"));
            host.restore(image, core);
        }
    }

    /// The one that has the original, perhaps, while its copy comes to the other.
    fn stop_one_of_several(&mut self) {
        let core = &mut self.core;
        if self.backend.len() > 1 && core.random.once_in(2) {
            let instance = InstanceId(core.random.index(self.backend.len()));
            let span = core.random.millis(4_000, 9_000);
            self.backend.pause(instance, span, core);
        }
    }

    fn restore_backend(&mut self, backup: Store) {
        for n in 0..self.backend.len() {
            self.crash_backend(InstanceId(n));
        }
        let core = &mut self.core;
        core.note(|| "the database is RESTORED from its backup".to_owned());
        self.backend.store = backup;
        core.recorder.rolled_back(&self.backend.store);
    }

    fn heal(&mut self) {
        let core = &mut self.core;
        core.note(|| "from here on nothing goes wrong".to_owned());
        core.turmoil = false;
        self.healed_at = core.now;
        for host in &mut self.hosts {
            host.cut_off_until = core.now;
        }
        core.after(LOOK, Event::Look);
    }
}
