//! An operator who decides between holders of one identity, and has gateways given other agent keys.

use std::time::Duration;

use viworks_common::fork::Holder as Party;
use viworks_common::id::{AgentId, InstallId};

use super::super::backend::Backend;
use super::super::core::{Core, Event, Fault, HostId};
use super::super::disk_model::{Disk, Image};
use super::World;

/// How soon somebody looks again who found no backend.
const AGAIN: Duration = Duration::from_secs(1);

/// When what this world has of it happens.
pub(super) fn plan(core: &mut Core) {
    let (decisions, turmoil) = (core.scenario.decisions, core.scenario.turmoil);
    let events = [
        (decisions.resolutions, Event::Decide),
        (decisions.rotations, Event::Rotate),
        (decisions.replacements, Event::Replace),
    ];
    for (times, event) in events {
        for _ in 0..times {
            let at = core.fate.span(Duration::ZERO, turmoil);
            core.after(at, event);
        }
    }
    for _ in 0..decisions.copies {
        let image = core.fate.span(Duration::ZERO, turmoil);
        let restore = core.fate.span(image, turmoil);
        core.after(image, Event::Fault(Fault::Image));
        core.after(restore, Event::Fault(Fault::Restore));
    }
}

impl World {
    /// While things go wrong, an operator keeps either of two holders that were seen, wherever that is by now.
    pub(super) fn decide(&mut self) {
        let core = &mut self.core;
        if !core.turmoil {
            return;
        }
        let undecided = self.backend.store.undecided().into_iter();
        let known = undecided.filter_map(|(agent, party)| {
            let host = core.recorder.machine_of(party.agent_run_id)?;
            (!self.hosts[host.0].replaced).then_some((agent, party, host))
        });
        let known: Vec<(AgentId, Party, HostId)> = known.collect();
        if known.is_empty() {
            let pause = core.fate.millis(1_000, 8_000);
            core.after(pause, Event::Decide);
            return;
        }
        let (agent, party, host) = known[core.fate.index(known.len())];
        self.keep(agent, party, host);
    }

    /// When nothing goes wrong any more, the operator's choice stands: it is given the identity as often as it is
    /// refused, and a machine beside it is given up once the chosen one is in.
    pub(super) fn insist(&mut self) {
        for index in 0..self.hosts.len() {
            let host = &self.hosts[index];
            let (id, agent, as_fork) = (host.id, host.agent(), host.refused_as_fork);
            if host.retired || !host.is_kept_out() {
                continue;
            }
            if !self.backend.store.has_fork(agent) {
                // One whose key alone is too old is not left behind yet: it comes again.
                if as_fork {
                    let recorder = &mut self.core.recorder;
                    recorder.violated(|| format!("7: {agent} is refused as a fork, and has none"));
                }
                continue;
            }
            let chosen = self.choice(agent);
            if chosen == id {
                self.let_in(id);
            } else if self.hosts[chosen.0].is_connected() {
                self.retire(index, false);
            }
        }
    }

    /// The machine that is to have an identity.
    fn choice(&mut self, agent: AgentId) -> HostId {
        if let Some(chosen) = self.chosen.get(&agent) {
            return *chosen;
        }
        let holders = self
            .hosts
            .iter()
            .filter(|it| it.agent() == agent && !it.retired && !it.replaced);
        let holders: Vec<HostId> = holders.map(|host| host.id).collect();
        let chosen = holders[self.core.fate.index(holders.len())];
        self.chosen.insert(agent, chosen);
        chosen
    }

    /// The chosen machine was refused: it is given the identity as it is now.
    fn let_in(&mut self, id: HostId) {
        let host = &self.hosts[id.0];
        let (agent, run) = (host.agent(), host.run());
        let party = run.and_then(|run| self.backend.store.party(agent, run));
        if party.is_some_and(|party| self.keep(agent, party, id)) {
            self.hosts[id.0].forget_refusals();
        }
    }

    /// Gives an identity to a holder on a machine; false when there is no backend to ask.
    fn keep(&mut self, agent: AgentId, party: Party, host: HostId) -> bool {
        let core = &mut self.core;
        let Some(desk) = self.backend.desk(core) else {
            return false;
        };
        let run = party.agent_run_id;
        core.note(|| format!("operator keeps {run} on {host:?} in {agent}"));
        self.chosen.insert(agent, host);
        let store = &mut self.backend.store;
        let known = store.known_holders(agent).into_iter();
        let known = known.filter_map(|it| core.recorder.machine_of(it.agent_run_id));
        let known: Vec<HostId> = known.collect();
        // A copy that nobody has seen cannot be told from the one that is kept.
        let (chosen, others) = (&self.hosts[host.0], self.hosts.iter());
        let mut copies = others.filter(|it| !it.retired && it.shares_installation(chosen));
        let is_sure = copies.all(|copy| known.contains(&copy.id));
        if let Some(given) = store.commit(core, |tx| tx.keep(desk, agent, party)) {
            core.recorder
                .given(agent, is_sure.then_some(host), given.epoch);
            if let Some(live) = given.ended {
                self.backend.put_out(desk, agent, live, core);
            }
        }
        true
    }

    /// An operator has a gateway given another agent key.
    pub(super) fn rotate(&mut self) {
        let core = &mut self.core;
        let Some(desk) = self.backend.desk(core) else {
            core.after(AGAIN, Event::Rotate);
            return;
        };
        let target = core.fate.index(core.scenario.gateways);
        let agent = self.hosts[target].agent();
        let store = &mut self.backend.store;
        if let Some(wanted) = store.commit(core, |tx| tx.rotate(desk, agent)) {
            core.note(|| format!("operator wants key {wanted} for {agent}"));
            self.backend.rekey(desk, agent, wanted, core);
        }
    }

    /// An operator puts another machine in the place of all that hold an identity, as redeeming a ticket for that does.
    pub(super) fn replace(&mut self) {
        let core = &mut self.core;
        if !core.turmoil {
            return;
        }
        let Some(desk) = self.backend.desk(core) else {
            core.after(AGAIN, Event::Replace);
            return;
        };
        let target = core.fate.index(core.scenario.gateways);
        let agent = self.hosts[target].agent();
        let store = &mut self.backend.store;
        let Some((given, generation)) = store.commit(core, |tx| tx.replace(desk, agent)) else {
            return;
        };
        let next = HostId(self.hosts.len());
        core.note(|| format!("{next:?} takes the place of {agent} with key {generation}"));
        core.recorder.doubled(agent);
        core.recorder.given(agent, Some(next), given.epoch);
        if let Some(live) = given.ended {
            self.backend.put_out(desk, agent, live, core);
        }
        let identity = Backend::identity(agent);
        let key = self.master.agent_key(&identity, u32::from(generation));
        let token = self.master.token(&identity, given.epoch).expose_hex();
        let image = Image {
            epoch: given.epoch,
            ..Image::installed(token, core.scenario.spool_max)
        };
        let install_id = InstallId::from_uuid(core.fate.uuid());
        let issued = ((generation, key), install_id);
        let disk = Disk::new(image, core.rules);
        let new = self.hosts[target].successor(next, issued, disk);
        for host in self.hosts.iter_mut().filter(|it| it.agent() == agent) {
            host.replaced = true;
        }
        self.hosts.push(new);
        self.chosen.insert(agent, next);
        core.after(Duration::ZERO, Event::Boot(next));
    }
}
