//! What processes of the backend that share a database do about each other: leases, and what one asks of another.

use std::time::Duration;

use viworks_common::id::AgentId;
use viworks_common::limits::PROBE_TIMEOUT;

use super::super::core::{BackendStep, Core, InstanceId, Owner};
use super::super::network::ConnectionId;
use super::super::random::Random;
use super::super::store_model::{Letter, Live};
use super::connection::{Connection, Order};
use super::{Backend, Instance, Tx};

/// The way to another process and back, beside the probe itself: a newcomer does not wait for ever.
const CROSSING: Duration = Duration::from_millis(1_200);

impl Backend {
    /// Stops a process for a while, and lets it go on as if nothing had been.
    pub(crate) fn pause(&mut self, id: InstanceId, span: Duration, core: &mut Core) {
        let instance = &mut self.instances[id.0];
        if instance.up {
            core.recorder.counts.pauses += 1;
            core.note(|| format!("{id:?} is paused for {span:?}"));
            // What came meanwhile waits for the end that was set first.
            instance.paused_until = instance.paused_until.max(core.now.saturating_add(span));
        }
    }

    /// Whether a process that just died never comes back. One of several may.
    pub(crate) fn is_gone(&mut self, id: InstanceId, random: &mut Random) -> bool {
        let others = self.instances.iter().filter(|it| it.id != id && !it.gone);
        if others.count() > 0 && !self.instances[id.0].gone {
            self.instances[id.0].gone = random.once_in(6);
        }
        self.instances[id.0].gone
    }

    /// Ends the session of a holder that an operator put out, if the process has it.
    pub(crate) fn put_out(&mut self, desk: Owner, agent: AgentId, live: Live, core: &mut Core) {
        self.instances[desk.id.0].put_out(agent, live, core);
    }

    /// Has a gateway's session told another agent key, if the process has it.
    pub(crate) fn rekey(&mut self, desk: Owner, agent: AgentId, wanted: u32, core: &mut Core) {
        self.instances[desk.id.0].rekey(agent, wanted, core);
    }

    /// Renews the lease of a process, and ends what others have left whose lease ran out.
    pub(super) fn keep_lease(&mut self, id: InstanceId, core: &mut Core) {
        let instance = &mut self.instances[id.0];
        if instance.alone {
            return;
        }
        let owner = instance.owner();
        if !self.store.commit(core, |tx| tx.renew_lease(owner)) {
            core.recorder.counts.lost_leases += 1;
            core.note(|| format!("{id:?} has lost its lease"));
            // Somebody may have given its sessions away: it has none of them any more.
            instance.term += 1;
            let sessions = instance.sessions.values();
            for wire in sessions.map(|(wire, _)| *wire).collect::<Vec<_>>() {
                instance.order(wire, Order::End, core);
            }
            let owner = instance.owner();
            self.store.commit(core, |tx| tx.begin_lease(owner));
        }
        let owner = instance.owner();
        self.store.commit(core, |tx| tx.end_dead(owner));
    }

    /// Does what others ask.
    pub(super) fn read_letters(&mut self, id: InstanceId, core: &mut Core) {
        let instance = &mut self.instances[id.0];
        let owner = instance.owner();
        for letter in self.store.commit(core, |tx| tx.read_letters(owner)) {
            core.recorder.counts.letters += 1;
            core.note(|| format!("{id:?} reads {letter:?}"));
            match letter {
                Letter::Nudge(agent) => instance.tell_session(agent, Connection::nudge, core),
                Letter::Cancel(agent, command) => {
                    let cancel = |connection: &mut Connection| connection.cancel(command);
                    instance.tell_session(agent, cancel, core);
                }
                Letter::PutOut(live, agent) => instance.put_out(agent, live, core),
                Letter::Rekey(agent, wanted) => instance.rekey(agent, wanted, core),
                Letter::Overtaken(live, agent, newcomer, alive) => {
                    if let Some(wire) = instance.session_of(agent, live) {
                        if alive {
                            instance.look_for_eviction(agent, newcomer, core);
                        }
                        instance.order(wire, Order::End, core);
                    }
                }
                Letter::Forked(live, agent) => {
                    if instance.session_of(agent, live).is_some() {
                        instance.protect(agent, core);
                    }
                }
                Letter::Probe(live, agent, asker, newcomer) => {
                    core.recorder.counts.crossings += 1;
                    // Nothing is said of a session that is not here: it may be on its way.
                    if let Some(wire) = instance.session_of(agent, live) {
                        instance.probes.insert(newcomer, asker);
                        instance.order(wire, Order::Probe(newcomer), core);
                        let over = instance.event(BackendStep::ProbeOver(newcomer));
                        core.after(PROBE_TIMEOUT, over);
                    }
                }
                Letter::Answer(newcomer, alive) => instance.hear(newcomer, alive, core),
            }
        }
    }
}

impl Instance {
    /// The connection of a session, if it is still there.
    fn session_of(&self, agent: AgentId, live: Live) -> Option<ConnectionId> {
        let session = self.sessions.get(&agent);
        let same = session.filter(|(_, holder)| holder.epoch == live.epoch);
        same.map(|(wire, _)| *wire)
    }

    fn put_out(&mut self, agent: AgentId, live: Live, core: &mut Core) {
        // It may be confirmed, and about to be entered.
        let is_it = |it: &&Connection| it.agent == agent && it.unsettled == Some(live.epoch);
        let coming = self.connections.values().find(is_it).map(|it| it.wire);
        if let Some(wire) = self.session_of(agent, live).or(coming) {
            self.order(wire, Order::End, core);
        }
    }

    fn rekey(&mut self, agent: AgentId, wanted: u32, core: &mut Core) {
        if let Some((wire, _)) = self.sessions.get(&agent).copied() {
            self.order(wire, Order::Rekey(wanted), core);
        }
    }

    /// Tells another process what its probe brought.
    pub(super) fn answer(
        &mut self,
        asker: Owner,
        newcomer: ConnectionId,
        alive: bool,
        core: &mut Core,
    ) {
        let answer = move |tx: &mut Tx<'_>| tx.write_to(asker, Letter::Answer(newcomer, alive));
        self.ask_beside(newcomer, "an answer", answer, |_, _, (), _| {}, core);
    }

    /// Asks the process that has a session whether its gateway answers.
    pub(super) fn ask_neighbour(
        &mut self,
        connection: &mut Connection,
        live: Live,
        core: &mut Core,
    ) {
        let (agent, wire, own) = (connection.agent, connection.wire, self.owner());
        connection.waiting = true;
        connection.probing = Some(live.owner);
        let probe = move |tx: &mut Tx<'_>| {
            tx.write_to(live.owner, Letter::Probe(live, agent, own, wire));
        };
        self.ask_beside(wire, "a probe", probe, |_, _, (), _| {}, core);
        core.after(
            PROBE_TIMEOUT + CROSSING,
            self.event(BackendStep::ProbeOver(wire)),
        );
    }

    /// The owner of a session has said whether its gateway answers.
    fn hear(&mut self, wire: ConnectionId, alive: bool, core: &mut Core) {
        self.with(wire, |instance, connection| {
            if let Some(owner) = connection.probing.take() {
                instance.judge(connection, (owner, Some(alive)), core);
            }
        });
    }

    /// Decides with the store who keeps an identity, by what the owner of its session has said or not said in time.
    pub(super) fn judge(
        &mut self,
        connection: &mut Connection,
        heard: (Owner, Option<bool>),
        core: &mut Core,
    ) {
        let (agent, Some(run)) = (connection.agent, connection.newcomer()) else {
            return;
        };
        let (own, asked) = (self.owner(), connection.asks_about());
        let judge = move |tx: &mut Tx<'_>| Ok(tx.judge_newcomer(own, (agent, run), asked, heard));
        let then = |instance: &mut Self, connection: &mut Connection, verdict, core: &mut _| {
            instance.judged(connection, verdict, core);
        };
        self.ask(connection, "a verdict", judge, then, core);
    }
}
