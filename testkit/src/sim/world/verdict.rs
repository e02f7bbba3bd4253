//! When all is quiet: what must then be true of commands, telemetry and holders of an identity.

use std::collections::BTreeSet;

use viworks_common::command::{CommandState, OutcomeState};
use viworks_common::id::AgentId;

use super::super::core::{Core, Event};
use super::super::gateway::Host;
use super::super::operator::Kind;
use super::super::scenario::Storage;
use super::super::store_model::Command;
use super::{LOOK, QUIET_WITHIN, SETTLED_WITHIN, World};

impl World {
    /// Looks whether all is quiet; true when the world is over and well.
    pub(super) fn look(&mut self) -> bool {
        self.resolve_forks();
        let unrest = self.unrest();
        let healed_for = self.core.now.saturating_since(self.healed_at);
        let within = match self.core.scenario.storage {
            Storage::GatewayCloned | Storage::GatewayRestored => SETTLED_WITHIN,
            Storage::Sound | Storage::BackendRestored => QUIET_WITHIN,
        };
        match (unrest, self.quiet_since) {
            (Some(unrest), _) if healed_for > within => {
                self.core.recorder.violated(|| format!("10: {unrest}"));
                return false;
            }
            (Some(_), _) => self.quiet_since = None,
            (None, None) => {
                // Records that follow show what a restored database is missing.
                self.quiet_since = Some(self.core.now);
                for host in &mut self.hosts {
                    host.collect(1, &mut self.core);
                }
            }
            (None, Some(_)) => {
                self.judge_holders();
                self.judge_commands();
                self.core.recorder.look_for_loss(&self.backend.store);
                return self.core.recorder.violation().is_none();
            }
        }
        self.core.after(LOOK, Event::Look);
        false
    }

    /// Invariant 10. What is not quiet.
    fn unrest(&self) -> Option<String> {
        if !self.backend.is_quiet() {
            return Some("the backend is at work".to_owned());
        }
        let mut commands = self.backend.store.commands().map(|command| &command.facts);
        if let Some(open) = commands.find(|facts| !facts.state.is_final()) {
            return Some(format!("{} is still {:?}", open.command_id, open.state));
        }
        let store = &self.backend.store;
        let is_ghost = |host: &&Host| host.is_connected() && !store.is_live(host.agent());
        if let Some(ghost) = self.hosts.iter().find(is_ghost) {
            let agent = ghost.agent();
            return Some(format!("{agent} is connected, and its session has ended"));
        }
        let restless = self.hosts.iter().find(|host| !host.is_quiet());
        restless.map(Host::unrest)
    }

    /// An operator gives up machines that are refused as second holders; an identity with no other holder is revoked.
    fn resolve_forks(&mut self) {
        if self.core.scenario.decisions.resolves {
            return self.insist();
        }
        let connected = self.hosts.iter().filter(|host| host.is_connected());
        let connected: BTreeSet<AgentId> = connected.map(Host::agent).collect();
        for index in 0..self.hosts.len() {
            let host = &self.hosts[index];
            if !host.refused_as_fork || host.retired {
                continue;
            }
            let agent = host.agent();
            if !self.backend.store.has_fork(agent) {
                let recorder = &mut self.core.recorder;
                recorder.violated(|| format!("7: {agent} is refused as a fork, and has none"));
            }
            let holds_it = |it: &&Host| it.agent() == agent && !it.retired;
            let alone = self.hosts.iter().filter(holds_it).count() == 1;
            if connected.contains(&agent) || alone {
                self.retire(index, alone);
            }
        }
    }

    pub(super) fn retire(&mut self, index: usize, alone: bool) {
        let (host, core) = (&mut self.hosts[index], &mut self.core);
        core.note(|| format!("an operator gives {:?} up", host.id));
        let agent = host.agent();
        if let Some(wire) = host.crash(core) {
            core.hang_up(wire, viworks_common::session::End::Agent);
        }
        host.retired = true;
        host.excuse_spool(core);
        if alone {
            self.backend.store.commit(core, |tx| tx.revoke(agent));
        }
    }

    /// Invariant 7: exactly one holder is live, and the fork is recorded.
    fn judge_holders(&mut self) {
        for index in 0..self.hosts.len() {
            let agent = self.hosts[index].agent();
            let holders: Vec<&Host> = self.hosts.iter().filter(|it| it.agent() == agent).collect();
            let live = holders.iter().filter(|it| it.is_connected()).count();
            let recorded = self.backend.store.has_fork(agent);
            if holders.len() > 1 && (live != 1 || !recorded) {
                let recorder = &mut self.core.recorder;
                recorder.violated(|| format!("7: {live} of the holders live, fork: {recorded}"));
            }
        }
    }

    /// Invariants 1 to 3, as far as they show at the end.
    fn judge_commands(&mut self) {
        for (id, _, kind) in &self.commands {
            let rolled_back = self.core.scenario.storage == Storage::BackendRestored;
            match self.backend.store.command(*id) {
                Some(command) => {
                    judge_command(command, *kind, rolled_back, &self.hosts, &mut self.core);
                }
                // Submitted after the backup.
                None if rolled_back => {}
                None => self
                    .core
                    .recorder
                    .violated(|| format!("2: {id} has vanished")),
            }
        }
    }
}

fn judge_command(
    command: &Command,
    kind: Kind,
    rolled_back: bool,
    hosts: &[Host],
    core: &mut Core,
) {
    let id = command.facts.command_id;
    let starts = core.recorder.starts(id).to_vec();
    let told = command.result.as_ref().or(command.late_outcome.as_ref());
    let ran = |number: u64| starts.iter().any(|start| start.number == number);
    if let Some(outcome) = told
        && matches!(
            outcome.state,
            OutcomeState::Succeeded | OutcomeState::Failed | OutcomeState::TimedOut
        )
        && !ran(outcome.duration_ms)
    {
        core.recorder
            .violated(|| format!("3: {id} has an outcome of a run that never was"));
    }
    let sure = command.facts.state == CommandState::Indeterminate
        || told.is_some_and(|it| ran(it.duration_ms) || it.state == OutcomeState::Indeterminate);
    if !starts.is_empty() && kind != Kind::Again && !sure && !rolled_back {
        let state = command.facts.state;
        core.recorder
            .violated(|| format!("1: {id} ran, and ended as {state:?}"));
    }
    for start in starts {
        let host = &hosts[start.host.0];
        let journal_kept = !host.restored && !host.retired;
        if journal_kept && core.recorder.is_owed(start.number) {
            let number = start.number;
            core.recorder
                .violated(|| format!("3: the outcome of start {number} of {id} never arrived"));
        }
    }
}
