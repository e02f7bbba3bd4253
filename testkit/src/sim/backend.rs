//! The backend: processes that drive real session machines over one store.
//!
//! What a connection asks of the store is committed in one step and answered in another; between them, and at each of
//! them, the process may die.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use viworks_common::claims::{Claims, Entered};
use viworks_common::id::{AgentId, CommandId, Tenant};
use viworks_common::key::{Identity, MasterKey};
use viworks_common::ledger::lease::Place;
use viworks_common::session::End;

use super::core::{BackendStep, Core, Event, Generation, InstanceId, Process as Dying};
use super::network::{ConnectionId, Received};
use super::scenario::Rules;
use super::store_model::{Holder, Leased, Store};

mod answer;
mod connection;
mod intent;

use connection::{Connection, Order};
use intent::{Answer, Intent};

/// Between two runs of the reconcilers.
const TICK: Duration = Duration::from_secs(3);
/// How long after its deadline the owner of a permitted command waits.
const OVERDUE_WAIT: Duration = Duration::from_secs(30);

/// One process.
#[derive(Debug)]
pub(crate) struct Instance {
    id: InstanceId,
    generation: Generation,
    up: bool,
    connections: BTreeMap<ConnectionId, Connection>,
    /// Confirmed sessions.
    manager: BTreeMap<AgentId, (ConnectionId, u64)>,
    claims: Claims<Rules>,
    nonces: BTreeSet<[u8; 32]>,
    jobs: BTreeMap<u64, Job>,
    /// Offered at their birth, and on their way to sessions.
    deliveries: BTreeMap<u64, (ConnectionId, Leased)>,
    next_job: u64,
    master: Arc<MasterKey>,
}

/// Room in a session.
#[derive(Debug)]
pub(crate) struct Kept {
    instance: InstanceId,
    wire: ConnectionId,
    place: Place,
}

impl Kept {
    /// Whose room it is.
    pub(crate) const fn place(&self) -> Place {
        self.place
    }
}

/// Something asked of the store.
#[derive(Debug)]
struct Job {
    wire: ConnectionId,
    intent: Intent,
    answer: Option<Answer>,
}

/// All processes and what they share.
#[derive(Debug)]
pub(crate) struct Backend {
    /// The database.
    pub store: Store,
    /// A backup of it, if somebody took one.
    pub backup: Option<Store>,
    instances: Vec<Instance>,
}

impl Backend {
    /// Processes that have not started, over a store.
    #[must_use]
    pub(crate) fn new(
        store: Store,
        instances: usize,
        master: &Arc<MasterKey>,
        rules: Rules,
    ) -> Self {
        let instance = |n| Instance {
            id: InstanceId(n),
            generation: Generation(0),
            up: false,
            connections: BTreeMap::new(),
            manager: BTreeMap::new(),
            claims: Claims::under(rules),
            nonces: BTreeSet::new(),
            jobs: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            next_job: 0,
            master: Arc::clone(master),
        };
        Self {
            store,
            backup: None,
            instances: (0..instances).map(instance).collect(),
        }
    }

    /// How many processes there can be.
    #[must_use]
    pub(crate) const fn len(&self) -> usize {
        self.instances.len()
    }

    /// Whether any process runs.
    #[must_use]
    pub(crate) fn is_up(&self) -> bool {
        self.instances.iter().any(|instance| instance.up)
    }

    /// The identity in a gateway's certificate.
    #[must_use]
    pub(crate) fn identity(agent_id: AgentId) -> Identity {
        Identity {
            tenant: Tenant::default_tenant(),
            agent_id,
        }
    }

    /// Starts a process.
    pub(crate) fn start(&mut self, id: InstanceId, core: &mut Core) {
        if self.instances[id.0].up {
            return;
        }
        core.note(|| format!("{id:?} starts"));
        if self.instances.len() == 1 {
            self.store.end_abandoned(core.backend_now());
            core.recorder.committed(&self.store, core.now);
        }
        let instance = &mut self.instances[id.0];
        instance.generation = instance.generation.next();
        instance.up = true;
        core.listening.insert((id, instance.generation));
        let tick = Event::Backend(id, instance.generation, BackendStep::Tick);
        core.after(Duration::ZERO, tick);
    }

    /// Ends a process as kill -9 or a power cut does.
    pub(crate) fn crash(&mut self, id: InstanceId, core: &mut Core) {
        let instance = &mut self.instances[id.0];
        if !instance.up {
            return;
        }
        core.recorder.counts.backend_crashes += 1;
        core.note(|| format!("{id:?} crashes"));
        core.listening.remove(&(id, instance.generation));
        instance.up = false;
        instance.manager.clear();
        instance.claims = Claims::under(core.rules);
        instance.nonces.clear();
        instance.jobs.clear();
        instance.deliveries.clear();
        let noticed = core.random.below(3) > 0;
        for (wire, connection) in std::mem::take(&mut instance.connections) {
            if connection.is_over() {
                continue;
            }
            if noticed {
                core.hang_up(wire, End::Backend);
            } else {
                core.abandon(wire, End::Backend);
            }
        }
    }

    /// Goes on.
    pub(crate) fn step(
        &mut self,
        (id, generation): (InstanceId, Generation),
        step: BackendStep,
        core: &mut Core,
    ) {
        let instance = &mut self.instances[id.0];
        if !instance.up || instance.generation != generation {
            return;
        }
        match step {
            BackendStep::Accept(wire) => instance.accept(wire, &self.store, core),
            BackendStep::Timer(wire) | BackendStep::Turn(wire) => instance.turn(wire, core),
            BackendStep::Commit(job) => self.commit(id, job, core),
            BackendStep::Reply(job) => self.reply(id, job, core),
            BackendStep::ProbeOver(wire) => self.probe_over(id, wire, core),
            BackendStep::Deliver(number) => instance.arrive(number, core),
            BackendStep::Tick => self.tick(id, core),
        }
    }

    /// Something arrived on a connection.
    pub(crate) fn arrival(&mut self, wire: ConnectionId, core: &mut Core) {
        let Some(received) = core.receive(wire, End::Backend) else {
            return;
        };
        let Some(known) = core.network.wire(wire) else {
            return;
        };
        let (id, generation) = known.backend;
        let instance = &mut self.instances[id.0];
        if !instance.up || instance.generation != generation {
            return;
        }
        if let Some(connection) = instance.connections.get_mut(&wire) {
            match received {
                Received::Frame(bytes) => connection.hold(bytes),
                Received::Lost => connection.lose(),
            }
            instance.turn(wire, core);
        }
    }

    fn commit(&mut self, id: InstanceId, job: u64, core: &mut Core) {
        if core.dies(Dying::Backend(id)) {
            return;
        }
        let now = core.backend_now();
        let instance = &mut self.instances[id.0];
        let Some(waiting) = instance.jobs.get_mut(&job) else {
            return;
        };
        let answer = waiting.intent.execute(&mut self.store, core, now);
        waiting.answer = Some(answer);
        core.recorder.committed(&self.store, core.now);
        if core.dies(Dying::Backend(id)) {
            return;
        }
        let pause = core.random.span(Duration::ZERO, core.scenario.sync / 4);
        let reply = BackendStep::Reply(job);
        core.after(pause, Event::Backend(id, instance.generation, reply));
    }

    fn reply(&mut self, id: InstanceId, job: u64, core: &mut Core) {
        let instance = &mut self.instances[id.0];
        let Some(job) = instance.jobs.remove(&job) else {
            return;
        };
        let Some(answer) = job.answer else { return };
        instance.answered(job.wire, &job.intent, answer, core);
        instance.turn(job.wire, core);
    }

    fn probe_over(&mut self, id: InstanceId, wire: ConnectionId, core: &mut Core) {
        let instance = &mut self.instances[id.0];
        instance.probe_over(wire, core);
        instance.turn(wire, core);
    }

    /// The reconcilers.
    fn tick(&mut self, id: InstanceId, core: &mut Core) {
        let wall = core.backend_wall();
        core.line = core.line.renew_under(core.rules, wall, core.now);
        let now = core.backend_now();
        self.store.end_late(OVERDUE_WAIT, now);
        core.recorder.committed(&self.store, core.now);
        let instance = &mut self.instances[id.0];
        let queued: Vec<ConnectionId> = instance
            .manager
            .iter()
            .filter(|(agent, _)| self.store.has_queued(**agent, now))
            .map(|(_, (wire, _))| *wire)
            .collect();
        for wire in queued {
            instance.nudge(wire, core);
        }
        let tick = Event::Backend(id, instance.generation, BackendStep::Tick);
        core.after(TICK, tick);
    }

    /// Lets whoever holds a gateway's session look for commands.
    pub(crate) fn nudge(&mut self, agent: AgentId, core: &mut Core) {
        for instance in &mut self.instances {
            if let Some((wire, _)) = instance.manager.get(&agent).copied() {
                instance.nudge(wire, core);
            }
        }
    }

    /// Lets whoever holds a gateway's session ask for the end of a command.
    pub(crate) fn cancel(&mut self, agent: AgentId, command: CommandId, core: &mut Core) {
        for instance in &mut self.instances {
            if let Some((wire, _)) = instance.manager.get(&agent).copied() {
                instance.order(wire, Order::Cancel(command), core);
            }
        }
    }

    /// Keeps room for a command that an operator submits, where a session of its gateway has some.
    pub(crate) fn keep(&mut self, agent: AgentId, core: &Core) -> Option<Kept> {
        let credit = usize::try_from(core.scenario.command_credit).unwrap_or(usize::MAX);
        for instance in &mut self.instances {
            if let Some((wire, _)) = instance.manager.get(&agent).copied()
                && let Some(connection) = instance.connections.get_mut(&wire)
                && let Some(place) = connection.keep(credit)
            {
                let instance = instance.id;
                return Some(Kept {
                    instance,
                    wire,
                    place,
                });
            }
        }
        None
    }

    /// Gives room back that was not used.
    pub(crate) fn give_back(&mut self, kept: &Kept) {
        let instance = &mut self.instances[kept.instance.0];
        if let Some(connection) = instance.connections.get_mut(&kept.wire) {
            connection.give_back();
        }
    }

    /// Sends a command on its way that was offered at its birth.
    pub(crate) fn deliver(&mut self, kept: &Kept, offer: Leased, core: &mut Core) {
        let instance = &mut self.instances[kept.instance.0];
        instance.next_job += 1;
        let number = instance.next_job;
        instance.deliveries.insert(number, (kept.wire, offer));
        let pause = core.random.span(Duration::ZERO, core.scenario.sync / 4);
        core.after(pause, instance.event(BackendStep::Deliver(number)));
    }

    /// Whether nothing is under way in any process.
    #[must_use]
    pub(crate) fn is_quiet(&self) -> bool {
        self.instances.iter().all(|instance| {
            instance.up && instance.jobs.is_empty() && instance.deliveries.is_empty()
        })
    }
}

impl Instance {
    fn event(&self, step: BackendStep) -> Event {
        Event::Backend(self.id, self.generation, step)
    }

    /// Asks the store; the connection goes on with the answer.
    fn ask(&mut self, wire: ConnectionId, intent: Intent, core: &mut Core) {
        self.next_job += 1;
        let job = self.next_job;
        self.jobs.insert(
            job,
            Job {
                wire,
                intent,
                answer: None,
            },
        );
        let pause = core.random.span(Duration::ZERO, core.scenario.sync);
        core.after(pause, self.event(BackendStep::Commit(job)));
    }

    fn arrive(&mut self, number: u64, core: &mut Core) {
        let Some((wire, offer)) = self.deliveries.remove(&number) else {
            return;
        };
        if let Some(connection) = self.connections.get_mut(&wire) {
            connection.put(offer);
            self.turn(wire, core);
        }
    }

    fn nudge(&mut self, wire: ConnectionId, core: &mut Core) {
        if let Some(connection) = self.connections.get_mut(&wire) {
            connection.nudge();
            core.after(Duration::ZERO, self.event(BackendStep::Turn(wire)));
        }
    }

    fn order(&mut self, wire: ConnectionId, order: Order, core: &mut Core) {
        if let Some(connection) = self.connections.get_mut(&wire) {
            connection.order(order);
            core.after(Duration::ZERO, self.event(BackendStep::Turn(wire)));
        }
    }

    /// Enters a confirmed session; an older one of the same gateway is closed. False when a newer one is there.
    fn register(&mut self, holder: Holder, wire: ConnectionId, core: &mut Core) -> bool {
        match self.claims.enter(holder.agent, holder.epoch, holder.run) {
            Entered::Overtaken => return false,
            Entered::First | Entered::Supersedes => {}
        }
        let older = self.manager.insert(holder.agent, (wire, holder.epoch));
        if let Some((older, _)) = older {
            self.order(older, Order::End, core);
        }
        true
    }

    fn remove(&mut self, agent: AgentId, wire: ConnectionId) {
        let known = self.manager.get(&agent).copied();
        if let Some((_, epoch)) = known.filter(|(known, _)| *known == wire) {
            self.claims.leave(agent, epoch);
            self.manager.remove(&agent);
        }
    }
}
