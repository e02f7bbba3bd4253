//! One world: hosts, a backend, a network, a fault script drawn from the seed, and the demand for rest at the end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use viworks_common::command::CommandState;
use viworks_common::id::{AgentId, CommandId, Tenant};
use viworks_common::key::{AgentKey, Binding, BindingMode, Identity, MasterKey, Secret};
use viworks_common::time::Monotonic;

use super::Rules;
use super::backend::Backend;
use super::gateway::{Died, Disk, Gateway, Surroundings};
use super::recorder::{Recorder, Violation};
use super::rng::Rng;
use super::store::Store;

/// Steps with faults.
const FAULTY_STEPS: u32 = 260;
/// Steps within which everything must come to rest once the faults stop.
const HEALING_STEPS: u32 = 4_000;
/// Commands of one world.
const COMMANDS_MAX: usize = 7;
/// How long a refused holder waits before it tries again.
const REFUSED_BACKOFF: Duration = Duration::from_secs(30);

/// What one world saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// Processes really started.
    pub starts: u64,
    /// Commands submitted.
    pub commands: u64,
    /// Commands whose outcome could not be known.
    pub indeterminate: u64,
    /// Forks refused.
    pub forks: u64,
    /// Telemetry records stored.
    pub records: u64,
}

/// One connection's frames under way. A side that is closed sends nothing more; what is under way still arrives.
#[derive(Debug)]
struct Link {
    host: usize,
    up: VecDeque<(Monotonic, Vec<u8>)>,
    down: VecDeque<(Monotonic, Vec<u8>)>,
    agent_open: bool,
    backend_open: bool,
}

/// Which side may lose its memory in a world. When both do, nobody is left who could know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Losing {
    Nobody,
    Gateway,
    Backend,
}

struct World {
    losing: Losing,
    rng: Rng,
    rules: Rules,
    recorder: Recorder,
    now: Monotonic,
    faults: bool,
    hosts: Vec<Gateway>,
    backend: Backend,
    links: BTreeMap<u64, Link>,
    next_link: u64,
    key: AgentKey,
    disk_copy: Option<(usize, Disk)>,
    store_copy: Option<Store>,
    restored: bool,
    rolled_back: bool,
    submitted: Vec<CommandId>,
    backend_back_at: Monotonic,
    sweep_at: Monotonic,
}

/// Runs the world of a seed.
///
/// # Errors
/// The first broken invariant.
pub fn run(seed: u64, rules: &Rules) -> Result<Report, Box<Violation>> {
    let mut world = World::new(seed, *rules);
    for _ in 0..FAULTY_STEPS {
        world.step();
        world.misfortune();
        if let Some(violation) = world.recorder.violation() {
            return Err(Box::new(violation.clone()));
        }
    }
    world.heal();
    for _ in 0..HEALING_STEPS {
        world.step();
        if let Some(violation) = world.recorder.violation() {
            return Err(Box::new(violation.clone()));
        }
        if world.at_rest() {
            break;
        }
    }
    world.final_checks();
    match world.recorder.violation() {
        Some(violation) => Err(Box::new(violation.clone())),
        None => Ok(world.report()),
    }
}

macro_rules! surroundings {
    ($world:ident) => {
        &mut Surroundings {
            now: $world.now,
            rng: &mut $world.rng,
            rules: &$world.rules,
            recorder: &mut $world.recorder,
            faults: $world.faults,
        }
    };
}

impl World {
    fn new(seed: u64, rules: Rules) -> Self {
        let mut rng = Rng::new(seed);
        let identity = Identity {
            tenant: Tenant::default_tenant(),
            agent_id: AgentId::from_uuid(rng.uuid()),
        };
        let master = Arc::new(MasterKey::new(Secret::from_bytes(rng.bytes())));
        let binding = Binding {
            mode: BindingMode::Exporter,
            value: rng.bytes(),
        };
        let key = master.agent_key(&identity, 1);
        let host = Gateway::new('A', master.token(&identity, 0).expose_hex(), &mut rng);
        let losing = match seed % 4 {
            0 => Losing::Nobody,
            1 => Losing::Backend,
            _ => Losing::Gateway,
        };
        let mut world = Self {
            losing,
            rng,
            rules,
            recorder: Recorder::new(seed),
            now: Monotonic::from_duration(Duration::from_secs(100)),
            faults: true,
            hosts: vec![host],
            backend: Backend::new(identity, master, binding),
            links: BTreeMap::new(),
            next_link: 1,
            key,
            disk_copy: None,
            store_copy: None,
            restored: false,
            rolled_back: false,
            submitted: Vec::new(),
            backend_back_at: Monotonic::ORIGIN,
            sweep_at: Monotonic::ORIGIN,
        };
        world.hosts[0].start(surroundings!(world));
        world
    }

    fn step(&mut self) {
        let longest = if self.faults { 60 } else { 120 };
        self.now = self
            .now
            .saturating_add(Duration::from_millis(1 + self.rng.below(longest)));
        if !self.backend.up && self.now >= self.backend_back_at {
            self.backend.up = true;
            self.recorder.note(|| "the backend is back".to_owned());
        }
        self.connect();
        self.deliver();
        self.run_hosts();
        self.run_backend();
        self.transmit();
        self.reap();
    }

    fn connect(&mut self) {
        for index in 0..self.hosts.len() {
            let Some(process) = &mut self.hosts[index].process else {
                continue;
            };
            if process.session.is_some() || self.now < process.retry_at {
                continue;
            }
            if !self.backend.up {
                process.retry_at = self
                    .now
                    .saturating_add(Duration::from_millis(100 + self.rng.below(400)));
                continue;
            }
            let id = self.next_link;
            self.next_link += 1;
            self.backend.accept(id, surroundings!(self));
            let (identity, binding) = (self.backend.identity.clone(), self.backend.binding.clone());
            self.hosts[index].connect(id, &identity, &self.key, &binding, self.now);
            let link = Link {
                host: index,
                up: VecDeque::new(),
                down: VecDeque::new(),
                agent_open: true,
                backend_open: true,
            };
            self.links.insert(id, link);
        }
    }

    fn deliver(&mut self) {
        let now = self.now;
        for (id, link) in &mut self.links {
            while link.up.front().is_some_and(|(at, _bytes)| *at <= now) {
                let Some((_at, bytes)) = link.up.pop_front() else {
                    break;
                };
                if let Some(connection) = self.backend.connections.get_mut(id) {
                    connection.session.handle_frame(&bytes, now);
                    if self.faults && self.rng.one_in(400) {
                        // Recorded and sent again: refused, and the session is over.
                        connection.session.handle_frame(&bytes, now);
                        if connection.session.closed().is_none() {
                            self.recorder
                                .broken(8, "a repeated envelope was accepted".to_owned());
                        }
                    }
                }
            }
            while link.down.front().is_some_and(|(at, _bytes)| *at <= now) {
                let Some((_at, bytes)) = link.down.pop_front() else {
                    break;
                };
                let process = self.hosts[link.host].process.as_mut();
                if let Some((session_id, session)) =
                    process.and_then(|process| process.session.as_mut())
                    && session_id == id
                {
                    session.handle_frame(&bytes, now);
                }
            }
        }
    }

    fn run_hosts(&mut self) {
        for index in 0..self.hosts.len() {
            if self.hosts[index].process.is_none() {
                if !self.faults || self.rng.one_in(6) {
                    self.hosts[index].start(surroundings!(self));
                }
                continue;
            }
            if let Err(Died) = self.hosts[index].step(surroundings!(self)) {
                self.crash_host(index);
            }
        }
    }

    fn crash_host(&mut self, index: usize) {
        let name = self.hosts[index].name;
        self.recorder.note(|| format!("{name} dies"));
        self.hosts[index].crash();
        for link in self.links.values_mut().filter(|link| link.host == index) {
            link.agent_open = false;
        }
    }

    fn run_backend(&mut self) {
        if !self.backend.up {
            return;
        }
        let ids: Vec<u64> = self.backend.connections.keys().copied().collect();
        for id in ids {
            if let Err(Died) = self.backend.step(id, surroundings!(self)) {
                return self.crash_backend();
            }
        }
        if self.now >= self.sweep_at {
            self.sweep_at = self.now.saturating_add(Duration::from_millis(300));
            let nobody_comes = !self.faults && self.hosts.iter().all(|host| host.refused);
            self.backend
                .store
                .sweep(self.now, nobody_comes, &mut self.recorder);
            if let Err(Died) = self.backend.dispatch(surroundings!(self)) {
                self.crash_backend();
            }
        }
    }

    fn crash_backend(&mut self) {
        self.recorder.note(|| "the backend dies".to_owned());
        self.backend.crash();
        self.backend_back_at = self
            .now
            .saturating_add(Duration::from_millis(50 + self.rng.below(900)));
        for link in self.links.values_mut() {
            link.backend_open = false;
        }
    }

    fn transmit(&mut self) {
        let slow = if self.faults && self.rng.one_in(20) {
            3_000
        } else {
            40
        };
        for (id, link) in &mut self.links {
            let process = self.hosts[link.host].process.as_mut();
            if let Some((session_id, session)) =
                process.and_then(|process| process.session.as_mut())
                && session_id == id
            {
                while let Some(bytes) = session.poll_transmit(self.now) {
                    if link.agent_open {
                        push(&mut link.up, self.now, self.rng.below(slow), bytes);
                    }
                }
                if session.closed().is_some() {
                    link.agent_open = false;
                }
            }
            if let Some(connection) = self.backend.connections.get_mut(id) {
                while let Some(bytes) = connection.session.poll_transmit(self.now) {
                    if link.backend_open {
                        push(&mut link.down, self.now, self.rng.below(slow), bytes);
                    }
                }
                if connection.session.closed().is_some() {
                    link.backend_open = false;
                }
            }
        }
    }

    /// Connections whose one side has ended: the other learns it when everything under way has arrived.
    fn reap(&mut self) {
        let now = self.now;
        let mut gone = Vec::new();
        for (id, link) in &mut self.links {
            let host = &mut self.hosts[link.host];
            let refused = host.refused;
            if let Some(process) = &mut host.process {
                let here = process
                    .session
                    .as_ref()
                    .is_some_and(|(session_id, _session)| session_id == id);
                let over = !link.agent_open || !link.backend_open && link.down.is_empty();
                if here && over {
                    process.session = None;
                    process.established = false;
                    let wait = if refused {
                        REFUSED_BACKOFF
                    } else {
                        Duration::from_millis(50 + self.rng.below(600))
                    };
                    process.retry_at = now.saturating_add(wait);
                    link.agent_open = false;
                } else if !here {
                    link.agent_open = false;
                }
            } else {
                link.agent_open = false;
            }
            let backend_over =
                !link.backend_open || !link.agent_open && link.up.is_empty() && self.rng.one_in(8);
            if backend_over {
                link.backend_open = false;
                self.backend.connections.remove(id);
                if self.backend.live == Some(*id) {
                    self.backend.live = None;
                }
            }
            if !link.agent_open && !link.backend_open && link.down.is_empty() {
                gone.push(*id);
            }
        }
        for id in gone {
            self.links.remove(&id);
        }
    }

    /// At most one thing happens to the world at a step.
    fn misfortune(&mut self) {
        match self.rng.below(100) {
            0..9 => self.submit(),
            9..20 => self.append(),
            20..22 => self.cancel(),
            22..25 => self.cut(),
            25..27 if self.hosts[0].process.is_some() => self.crash_host(0),
            27..29 if self.backend.up => self.crash_backend(),
            29 if self.losing == Losing::Gateway => self.copy_disk(),
            30 if self.losing == Losing::Gateway && self.rng.one_in(3) => self.restore_disk(),
            31 if self.losing == Losing::Backend => {
                self.store_copy = Some(self.backend.store.clone());
            }
            32 if self.losing == Losing::Backend && self.rng.one_in(3) => self.roll_back(),
            33 if self.losing == Losing::Gateway && self.rng.one_in(4) => self.clone_host(),
            34 => {
                let jump = i64::try_from(self.rng.below(1 << 40)).unwrap_or(0) - (1 << 39);
                self.hosts[0].wall_offset = jump;
            }
            _ => {}
        }
    }

    fn submit(&mut self) {
        if self.submitted.len() >= COMMANDS_MAX || !self.backend.up {
            return;
        }
        let id = CommandId::from_uuid(self.rng.uuid());
        let idempotent = self.rng.one_in(2);
        let deadline = self
            .now
            .saturating_add(Duration::from_millis(300 + self.rng.below(20_000)));
        self.recorder.submitted(id, idempotent, deadline);
        self.recorder
            .note(|| format!("{id:?} is submitted, idempotent {idempotent}"));
        self.backend.store.submit(id, idempotent, deadline);
        self.submitted.push(id);
        if let Err(Died) = self.backend.dispatch(surroundings!(self)) {
            self.crash_backend();
        }
    }

    fn cancel(&mut self) {
        if self.submitted.is_empty() || !self.backend.up {
            return;
        }
        let index = usize::try_from(
            self.rng
                .below(u64::try_from(self.submitted.len()).unwrap_or(1)),
        )
        .unwrap_or(0);
        let id = self.submitted[index];
        if self.backend.store.cancel(id, &mut self.recorder) {
            self.recorder.note(|| format!("{id:?} is asked to stop"));
        }
    }

    fn append(&mut self) {
        let index = usize::try_from(self.rng.below(u64::try_from(self.hosts.len()).unwrap_or(1)))
            .unwrap_or(0);
        for _ in 0..=self.rng.below(6) {
            if let Err(Died) = self.hosts[index].append(surroundings!(self)) {
                return self.crash_host(index);
            }
        }
    }

    fn cut(&mut self) {
        let both = self.rng.one_in(2);
        for link in self.links.values_mut() {
            link.agent_open = false;
            if both {
                link.backend_open = false;
                link.up.clear();
            }
        }
        self.recorder.note(|| {
            format!(
                "connections are cut, {}",
                if both { "both ends know" } else { "half-open" }
            )
        });
    }

    fn copy_disk(&mut self) {
        self.disk_copy = Some((0, self.hosts[0].synced.clone()));
    }

    fn restore_disk(&mut self) {
        let Some((index, copy)) = self.disk_copy.clone() else {
            return;
        };
        self.recorder
            .note(|| "the disk of A is put back".to_owned());
        self.crash_host(index);
        self.hosts[index].disk = copy.clone();
        self.hosts[index].synced = copy;
        self.restored = true;
        self.forget_lost_records();
    }

    /// Records that no disk and no database holds are nobody's to deliver.
    fn forget_lost_records(&mut self) {
        let hosts = &self.hosts;
        let store = &self.backend.store;
        self.recorder.spooled.retain(|key| {
            store.accounts_for(key)
                || hosts.iter().any(|host| {
                    host.synced
                        .spool
                        .get(&key.0)
                        .is_some_and(|spooled| spooled.last >= key.1)
                })
        });
    }

    fn roll_back(&mut self) {
        let Some(copy) = self.store_copy.take() else {
            return;
        };
        self.recorder.note(|| "the database is put back".to_owned());
        self.crash_backend();
        // What had been committed may be trimmed by now, or as soon as an acknowledgement under way arrives.
        let before = std::mem::replace(&mut self.backend.store, copy);
        self.recorder
            .spooled
            .retain(|key| !before.accounts_for(key));
        self.rolled_back = true;
        let held: BTreeSet<CommandId> = self.backend.store.commands.keys().copied().collect();
        self.recorder.store_restored(&held);
        self.submitted.retain(|id| held.contains(id));
    }

    fn clone_host(&mut self) {
        if self.hosts.len() > 1 {
            return;
        }
        let mut copy = Gateway::new('B', String::new(), &mut self.rng);
        copy.disk = self.hosts[0].synced.clone();
        copy.synced = copy.disk.clone();
        copy.install_id = self.hosts[0].install_id;
        self.recorder
            .note(|| "the disk of A is cloned; B speaks with it".to_owned());
        self.hosts.push(copy);
        self.hosts[1].start(surroundings!(self));
    }

    fn heal(&mut self) {
        self.faults = false;
        self.backend_back_at = self.now;
        for host in &mut self.hosts {
            // With the rule off, what was not synced is written at last.
            host.synced = host.disk.clone();
        }
        self.recorder.note(|| "the faults stop".to_owned());
    }

    fn at_rest(&self) -> bool {
        let open = self
            .backend
            .store
            .commands
            .values()
            .any(|row| !row.state.is_final());
        let connected = self.backend.live.is_some() || self.hosts.iter().all(|host| host.refused);
        let delivered = self.live_host().is_none_or(|host| {
            host.disk
                .spool
                .values()
                .all(|spooled| spooled.acknowledged == spooled.last)
                && host
                    .disk
                    .entries
                    .values()
                    .all(|entry| entry.state == viworks_common::journal::EntryState::Reported)
        });
        // Of two holders one is refused in the end, and the fork is known.
        let decided = self.hosts.len() == 1
            || self.hosts.iter().any(|host| host.refused) && self.recorder.forks > 0;
        !open && connected && delivered && decided
    }

    fn live_host(&self) -> Option<&Gateway> {
        let live = self.backend.live?;
        self.links
            .get(&live)
            .and_then(|link| self.hosts.get(link.host))
    }

    fn final_checks(&mut self) {
        if !self.at_rest() {
            let open: Vec<String> = self
                .backend
                .store
                .commands
                .iter()
                .filter(|(_id, row)| !row.state.is_final())
                .map(|(id, row)| {
                    format!("{id:?} is {} for {:?}", row.state.name(), row.agent_run_id)
                })
                .collect();
            let live = self.backend.live;
            let refused: Vec<bool> = self.hosts.iter().map(|host| host.refused).collect();
            self.recorder.broken(
                10,
                format!("no rest: open {open:?}, live {live:?}, refused {refused:?}"),
            );
            return;
        }
        let single = self.hosts.len() == 1 && !self.restored && self.rules == Rules::ALL;
        if single && !self.rolled_back && self.recorder.forks > 0 {
            self.recorder
                .broken(7, "a single holder was refused as a fork".to_owned());
        }
        let ran_as_said: Vec<CommandId> = self
            .backend
            .store
            .commands
            .iter()
            .filter(|(id, row)| {
                row.state == CommandState::Succeeded && self.recorder.starts_of(**id) == 0
            })
            .map(|(id, _row)| *id)
            .collect();
        for id in ran_as_said {
            self.recorder
                .broken(3, format!("{id:?} succeeded and never started"));
        }
        self.check_telemetry();
    }

    /// What live hosts took in is stored or in a gap.
    fn check_telemetry(&mut self) {
        // A holder that was refused keeps collecting; the live one has delivered everything, or there would be no rest.
        let waiting = |key: &(viworks_common::id::AgentRunId, u64)| {
            self.hosts.iter().any(|host| {
                host.disk
                    .spool
                    .get(&key.0)
                    .is_some_and(|spooled| spooled.acknowledged < key.1 && key.1 <= spooled.last)
            })
        };
        let missing: Vec<String> = self
            .recorder
            .spooled
            .iter()
            .filter(|key| !self.backend.store.accounts_for(key) && !waiting(key))
            .map(|key| format!("{:?} {}", key.0, key.1))
            .collect();
        if !missing.is_empty() {
            self.recorder.broken(
                5,
                format!("records are neither stored nor in a gap: {missing:?}"),
            );
        }
    }

    fn report(&self) -> Report {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let indeterminate = self
            .backend
            .store
            .commands
            .values()
            .filter(|row| row.state == CommandState::Indeterminate)
            .count();
        Report {
            starts: self.recorder.starts,
            commands: count(self.backend.store.commands.len()),
            indeterminate: count(indeterminate),
            forks: self.recorder.forks,
            records: count(self.backend.store.telemetry.len()),
        }
    }
}

/// Frames of one direction arrive in order.
fn push(queue: &mut VecDeque<(Monotonic, Vec<u8>)>, now: Monotonic, delay_ms: u64, bytes: Vec<u8>) {
    let earliest = queue.back().map_or(now, |(at, _bytes)| *at);
    queue.push_back((
        now.saturating_add(Duration::from_millis(delay_ms))
            .max(earliest),
        bytes,
    ));
}
