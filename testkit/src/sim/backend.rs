//! The backend: processes that drive real session machines over one store.
//!
//! What a connection asks of the store is committed in one step and answered in another; between them, and at each of
//! them, the process may die.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use viworks_common::claims::{Claims, Entered};
use viworks_common::id::{AgentId, CommandId, Tenant};
use viworks_common::key::{Identity, MasterKey};
use viworks_common::ledger::lease::Place;
use viworks_common::session::End;
use viworks_common::time::Monotonic;

use super::core::{BackendStep, Core, Event, Generation, InstanceId, Owner, Process as Dying};
use super::network::{ConnectionId, Received};
use super::store_model::{Command, Fenced, Holder, Store, Tx};

mod connection;
mod neighbours;
mod opening;

use connection::{Connection, Order};

/// Between two runs of the reconcilers.
const TICK: Duration = Duration::from_secs(3);

/// One transaction, with what follows from its answer.
type Commit = Box<dyn FnOnce(&mut Store, &mut Core) -> Then>;
/// What a connection does once something for it has come.
type Then = Box<dyn FnOnce(&mut Instance, &mut Connection, &mut Core)>;

pub(crate) struct Instance {
    id: InstanceId,
    generation: Generation,
    /// Which lease it has, of those since its start.
    term: u32,
    /// Whether it is the only process of the database.
    alone: bool,
    up: bool,
    /// Somebody stopped it (SIGSTOP): until then it does nothing.
    paused_until: Monotonic,
    /// It never starts again.
    gone: bool,
    connections: BTreeMap<ConnectionId, Connection>,
    /// Confirmed sessions.
    sessions: BTreeMap<AgentId, (ConnectionId, Holder)>,
    claims: Claims,
    nonces: BTreeSet<[u8; 32]>,
    /// Whose newcomers it probes its own sessions for.
    probes: BTreeMap<ConnectionId, Owner>,
    asked: BTreeMap<u64, (ConnectionId, Commit)>,
    /// On its way to connections: answers, and commands that were offered at their birth.
    coming: BTreeMap<u64, (ConnectionId, Then)>,
    next_job: u64,
    master: Arc<MasterKey>,
}

/// Room in a session.
#[derive(Debug)]
pub(crate) struct Kept {
    instance: InstanceId,
    wire: ConnectionId,
    /// Whose room it is.
    pub place: Place,
}

/// All processes and what they share.
pub(crate) struct Backend {
    pub store: Store,
    /// A backup of it, if somebody took one.
    pub backup: Option<Store>,
    instances: Vec<Instance>,
}

impl Backend {
    /// Processes that have not started, over a store.
    pub(crate) fn new(store: Store, instances: usize, master: &Arc<MasterKey>) -> Self {
        let instance = |n| Instance {
            id: InstanceId(n),
            generation: Generation(0),
            term: 0,
            alone: instances == 1,
            up: false,
            paused_until: Monotonic::ORIGIN,
            gone: false,
            connections: BTreeMap::new(),
            sessions: BTreeMap::new(),
            claims: Claims::default(),
            nonces: BTreeSet::new(),
            probes: BTreeMap::new(),
            asked: BTreeMap::new(),
            coming: BTreeMap::new(),
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
    pub(crate) const fn len(&self) -> usize {
        self.instances.len()
    }

    /// The process that an operator comes to, if one is there.
    pub(crate) fn desk(&self, core: &mut Core) -> Option<Owner> {
        let there = |it: &&Instance| it.up && it.paused_until <= core.now;
        let there: Vec<Owner> = self
            .instances
            .iter()
            .filter(there)
            .map(Instance::owner)
            .collect();
        match there.len() {
            0 | 1 => there.first().copied(),
            several => Some(there[core.random.index(several)]),
        }
    }

    /// The identity in a gateway's certificate.
    pub(crate) fn identity(agent_id: AgentId) -> Identity {
        Identity {
            tenant: Tenant::default_tenant(),
            agent_id,
        }
    }

    /// Starts a process.
    pub(crate) fn start(&mut self, id: InstanceId, core: &mut Core) {
        let instance = &mut self.instances[id.0];
        if instance.up || instance.gone {
            return;
        }
        core.note(|| format!("{id:?} starts"));
        instance.generation.0 += 1;
        instance.up = true;
        let (owner, alone) = (instance.owner(), instance.alone);
        self.store.commit(core, |tx| {
            if alone {
                tx.end_abandoned();
            } else {
                tx.begin_lease(owner);
            }
        });
        core.listening.insert((id, instance.generation));
        core.after(Duration::ZERO, instance.event(BackendStep::Tick));
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
        instance.paused_until = core.now;
        instance.probes.clear();
        instance.sessions.clear();
        instance.claims = Claims::default();
        instance.nonces.clear();
        instance.asked.clear();
        instance.coming.clear();
        let noticed = core.random.below(3) > 0;
        for (wire, connection) in std::mem::take(&mut instance.connections) {
            if connection.over {
                continue;
            }
            if noticed {
                core.hang_up(wire, End::Backend);
            } else {
                core.abandon(wire, End::Backend);
            }
        }
    }

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
        // What it asked of the store may be done while it does nothing, as long as it has its lease.
        let is_asked = matches!(step, BackendStep::Commit(_))
            && self.store.holds(instance.owner(), core.backend_now());
        if instance.paused_until > core.now && !(is_asked && core.random.once_in(2)) {
            return core.at(instance.paused_until, Event::Backend(id, generation, step));
        }
        match step {
            BackendStep::Accept(wire) => instance.accept(wire, &self.store, core),
            BackendStep::Turn(wire) => instance.turn(wire, core),
            BackendStep::Commit(job) => self.commit(id, job, core),
            BackendStep::Come(job) => instance.come(job, core),
            BackendStep::ProbeOver(wire) => instance.probe_over(wire, core),
            BackendStep::Inbox => self.read_letters(id, core),
            BackendStep::Tick => self.tick(id, core),
        }
    }

    pub(crate) fn arrival(&mut self, wire: ConnectionId, core: &mut Core) {
        let known = core.network.wire(wire).map(|known| known.backend.0);
        let resumes = known.map_or(Monotonic::ORIGIN, |id| self.instances[id.0].paused_until);
        if resumes > core.now {
            return core.at(resumes, Event::Arrival(wire, End::Backend));
        }
        let received = core.receive(wire, End::Backend);
        let (Some(received), Some(known)) = (received, core.network.wire(wire)) else {
            return;
        };
        let (InstanceId(id), _) = known.backend;
        let instance = &mut self.instances[id];
        if let Some(connection) = instance.connections.get_mut(&wire) {
            match received {
                Received::Frame(bytes) => connection.held.push_back(bytes),
                Received::Lost => connection.lost = true,
            }
            instance.turn(wire, core);
        }
    }

    fn commit(&mut self, id: InstanceId, job: u64, core: &mut Core) {
        if core.dies(Dying::Backend(id)) {
            return;
        }
        let instance = &self.instances[id.0];
        if !instance.alone && !self.store.holds(instance.owner(), core.backend_now()) {
            // It writes nothing before it knows where it stands.
            self.keep_lease(id, core);
        }
        let instance = &mut self.instances[id.0];
        let Some((wire, commit)) = instance.asked.remove(&job) else {
            return;
        };
        let then = commit(&mut self.store, core);
        if !core.dies(Dying::Backend(id)) {
            instance.send_off(wire, then, core);
        }
    }

    /// The reconcilers.
    fn tick(&mut self, id: InstanceId, core: &mut Core) {
        let wall = core.backend_wall();
        core.line = core.line.renew_under(core.rules, wall, core.now);
        self.keep_lease(id, core);
        self.store.commit(core, |tx| tx.end_late());
        let (now, instance) = (core.backend_now(), &mut self.instances[id.0]);
        let sessions = instance.sessions.iter();
        let queued = sessions.filter(|(agent, _)| self.store.has_queued(**agent, now));
        for wire in queued.map(|(_, (wire, _))| *wire).collect::<Vec<_>>() {
            instance.tell(wire, Connection::nudge, core);
        }
        core.after(TICK, instance.event(BackendStep::Tick));
    }

    /// Lets a gateway's session look for commands, if the process has it.
    pub(crate) fn nudge(&mut self, desk: Owner, agent: AgentId, core: &mut Core) {
        self.instances[desk.id.0].tell_session(agent, Connection::nudge, core);
    }

    /// Lets a gateway's session ask for the end of a command, if the process has it.
    pub(crate) fn cancel(
        &mut self,
        desk: Owner,
        agent: AgentId,
        command: CommandId,
        core: &mut Core,
    ) {
        let cancel = |connection: &mut Connection| connection.cancel(command);
        self.instances[desk.id.0].tell_session(agent, cancel, core);
    }

    /// Keeps room for a command that an operator submits to a process, where a session of it has some.
    pub(crate) fn keep(&mut self, desk: Owner, agent: AgentId) -> Option<Kept> {
        let instance = &mut self.instances[desk.id.0];
        let (wire, _) = *instance.sessions.get(&agent)?;
        let place = instance.connections.get_mut(&wire)?.keep()?;
        Some(Kept {
            instance: instance.id,
            wire,
            place,
        })
    }

    /// Gives room back that was not used.
    pub(crate) fn give_back(&mut self, kept: &Kept) {
        let instance = &mut self.instances[kept.instance.0];
        if let Some(connection) = instance.connections.get_mut(&kept.wire) {
            connection.give_back();
        }
    }

    /// Sends a command on its way that was offered at its birth.
    pub(crate) fn deliver(&mut self, kept: &Kept, offer: Command, core: &mut Core) {
        let put: Then = Box::new(|_, connection, _| connection.put(offer));
        self.instances[kept.instance.0].send_off(kept.wire, put, core);
    }

    /// Whether nothing is under way in any process.
    pub(crate) fn is_quiet(&self) -> bool {
        let is_idle = |it: &Instance| it.up && it.asked.is_empty() && it.coming.is_empty();
        let is_quiet = |it: &Instance| it.gone || is_idle(it);
        self.instances.iter().all(is_quiet)
    }
}

impl Instance {
    const fn event(&self, step: BackendStep) -> Event {
        Event::Backend(self.id, self.generation, step)
    }

    /// As the others know it.
    const fn owner(&self) -> Owner {
        Owner {
            id: self.id,
            generation: self.generation,
            term: self.term,
        }
    }

    fn number(&mut self) -> u64 {
        self.next_job += 1;
        self.next_job
    }

    /// Asks the store; `then` the connection goes on. It looks at nothing else meanwhile.
    fn ask<T: Debug + 'static>(
        &mut self,
        connection: &mut Connection,
        what: &'static str,
        intent: impl FnOnce(&mut Tx<'_>) -> Result<T, Fenced> + 'static,
        then: impl FnOnce(&mut Self, &mut Connection, T, &mut Core) + 'static,
        core: &mut Core,
    ) {
        connection.waiting = true;
        let then = |instance: &mut Self, connection: &mut Connection, answer, core: &mut Core| {
            connection.waiting = false;
            if let Some(answer) = connection.unfenced(answer, core.now) {
                then(instance, connection, answer, core);
            }
        };
        self.ask_beside(connection.wire, what, intent, then, core);
    }

    /// The same, and the connection does not wait for it.
    fn ask_beside<T: Debug + 'static>(
        &mut self,
        wire: ConnectionId,
        what: &'static str,
        intent: impl FnOnce(&mut Tx<'_>) -> T + 'static,
        then: impl FnOnce(&mut Self, &mut Connection, T, &mut Core) + 'static,
        core: &mut Core,
    ) {
        let commit: Commit = Box::new(move |store, core| {
            let answer = store.commit(core, intent);
            core.note(|| format!("store: {what} of {wire:?} -> {answer:?}"));
            Box::new(|instance, connection, core| then(instance, connection, answer, core))
        });
        let job = self.number();
        self.asked.insert(job, (wire, commit));
        let pause = core.random.span(Duration::ZERO, core.scenario.sync);
        core.after(pause, self.event(BackendStep::Commit(job)));
    }

    /// Puts something on its way to a connection.
    fn send_off(&mut self, wire: ConnectionId, then: Then, core: &mut Core) {
        let job = self.number();
        self.coming.insert(job, (wire, then));
        let pause = core.random.span(Duration::ZERO, core.scenario.sync / 4);
        core.after(pause, self.event(BackendStep::Come(job)));
    }

    fn come(&mut self, job: u64, core: &mut Core) {
        if let Some((wire, then)) = self.coming.remove(&job) {
            self.with(wire, |instance, connection| {
                then(instance, connection, core);
            });
            self.turn(wire, core);
        }
    }

    /// Lets a connection do something for which it needs its process. It is gone when it is over and stored as such.
    fn with(&mut self, wire: ConnectionId, what: impl FnOnce(&mut Self, &mut Connection)) {
        if let Some(mut connection) = self.connections.remove(&wire) {
            what(self, &mut connection);
            if !connection.over || connection.live.is_some() {
                self.connections.insert(wire, connection);
            }
        }
    }

    /// Tells a connection something, for its next turn.
    fn tell(&mut self, wire: ConnectionId, what: impl FnOnce(&mut Connection), core: &mut Core) {
        if let Some(connection) = self.connections.get_mut(&wire) {
            what(connection);
            core.after(Duration::ZERO, self.event(BackendStep::Turn(wire)));
        }
    }

    fn tell_session(
        &mut self,
        agent: AgentId,
        what: impl FnOnce(&mut Connection),
        core: &mut Core,
    ) {
        if let Some((wire, _)) = self.sessions.get(&agent).copied() {
            self.tell(wire, what, core);
        }
    }

    fn order(&mut self, wire: ConnectionId, order: Order, core: &mut Core) {
        self.tell(wire, |connection| connection.orders.push_back(order), core);
    }

    /// Enters a confirmed session; an older one of the same gateway is closed. False when a newer one is there.
    fn register(&mut self, holder: Holder, wire: ConnectionId, core: &mut Core) -> bool {
        let entered = self.claims.enter(holder.agent, holder.epoch);
        if entered == Entered::Overtaken {
            return false;
        }
        if let Some((older, _)) = self.sessions.insert(holder.agent, (wire, holder)) {
            self.order(older, Order::End, core);
        }
        true
    }

    fn remove(&mut self, agent: AgentId, wire: ConnectionId) {
        if let Some((_, holder)) = self
            .sessions
            .get(&agent)
            .filter(|(known, _)| *known == wire)
        {
            self.claims.leave(agent, holder.epoch);
            self.sessions.remove(&agent);
        }
    }
}
