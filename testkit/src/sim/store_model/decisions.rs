//! What an operator decides about an identity, as the real stores write it: who of several holders keeps it, and that
//! its agent key is to be another one.

use viworks_common::admission::{IdentityRow, give_under};
use viworks_common::claims::Standing;
use viworks_common::fork::{Apart, Holder as Party, Kept};
use viworks_common::id::{AgentId, AgentRunId};
use viworks_common::ledger::session::{Successor, settle_older};
use viworks_common::rotation;

use super::super::core::Owner;
use super::{Letter, Live, Store, Tx};

/// Two holders of one identity that were seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fork {
    refused: Party,
    /// Who had it, or had it last.
    accepted: Option<Party>,
    decided: bool,
}

impl Fork {
    fn parties(self) -> impl Iterator<Item = Party> {
        self.accepted.into_iter().chain([self.refused])
    }

    /// The other one of the two; `None` when this is none of them.
    fn other_than(self, party: &Party) -> Option<Option<Party>> {
        if self.refused == *party {
            return Some(self.accepted);
        }
        (self.accepted == Some(*party)).then_some(Some(self.refused))
    }
}

/// An identity was given to another holder than the one that had it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Given {
    /// Every session of an epoch below this one is over.
    pub epoch: u64,
    /// The one that was there.
    pub ended: Option<Live>,
}

impl Store {
    /// What a process of a gateway said of itself.
    pub(crate) fn party(&self, agent: AgentId, run: AgentRunId) -> Option<Party> {
        self.gateways.get(&agent)?.said.get(&run).copied()
    }

    /// The holders between which nobody has decided.
    pub(crate) fn undecided(&self) -> Vec<(AgentId, Party)> {
        let undecided = self.forks.iter().filter(|(_, fork)| !fork.decided);
        let parties = undecided.flat_map(|((agent, _), fork)| {
            let parties = fork.parties();
            parties.map(move |party| (*agent, party))
        });
        parties.collect()
    }

    /// From whom a decision tells the chosen holder: whoever is in a fork that nobody decided, and whoever is there.
    pub(crate) fn known_holders(&self, agent: AgentId) -> Vec<Party> {
        let live = self.gateways.get(&agent).and_then(|gateway| gateway.live);
        let live = live.and_then(|live| self.party(agent, live.run));
        let undecided = self.forks_of(agent, false);
        undecided.flat_map(Fork::parties).chain(live).collect()
    }

    fn forks_of(&self, agent: AgentId, decided: bool) -> impl Iterator<Item = Fork> {
        let of_it = self
            .forks
            .iter()
            .filter(move |((forked, _), _)| *forked == agent);
        let forks = of_it.map(|(_, fork)| *fork);
        forks.filter(move |fork| fork.decided == decided)
    }

    pub(super) fn note_fork(&mut self, agent: AgentId, run: AgentRunId) {
        let last = self.gateways.get(&agent).and_then(|gateway| gateway.last);
        let accepted = last.and_then(|last| self.party(agent, last));
        if let Some(refused) = self.party(agent, run) {
            let fork = Fork {
                refused,
                accepted,
                decided: false,
            };
            self.forks.insert((agent, run), fork);
        }
    }

    /// The generation of the agent key that a gateway is to be given.
    pub(crate) fn pending_key(&self, agent: AgentId) -> Option<u32> {
        let gateway = self.gateways.get(&agent)?;
        rotation::pending(gateway.row.key_generation, gateway.key_wanted)
    }
}

impl Tx<'_> {
    /// An operator says which holder keeps an identity. `None` when that one has it, and nothing changes.
    pub(crate) fn keep(&mut self, own: Owner, agent: AgentId, holder: Party) -> Option<Given> {
        let rules = self.store.rules;
        let gateway = self.store.gateways.get(&agent)?;
        if gateway.row.revoked {
            return None;
        }
        let live = gateway.live;
        let has_it = live.and_then(|live| self.store.party(agent, live.run));
        let undecided: Vec<Fork> = self.store.forks_of(agent, false).collect();
        let settled: Vec<Fork> = self.store.forks_of(agent, true).collect();
        let mut in_turn = undecided.iter().chain(&settled);
        let other = in_turn.find_map(|fork| fork.other_than(&holder)).flatten();
        let further = self.store.known_holders(agent);
        let kept = Kept {
            epoch: give_under(rules, &gateway.row).confirmed,
            holder,
            apart: Apart::between_under(rules, &holder, other.as_ref(), further),
        };
        self.settle_forks(agent);
        if has_it.is_some_and(|has_it| kept.is(&has_it)) {
            return None;
        }
        if let Some(live) = live {
            self.ask_owner(own, agent, |live| Letter::PutOut(live, agent));
            self.end_session(agent, live.epoch);
        }
        let gateway = self.store.gateways.get_mut(&agent)?;
        gateway.row = give_under(rules, &gateway.row);
        gateway.standing = Standing::default();
        gateway.kept = Some(kept);
        Some(Given {
            epoch: kept.epoch,
            ended: live,
        })
    }

    /// Another machine takes the place of all that hold an identity; with which generation of the agent key.
    pub(crate) fn replace(&mut self, own: Owner, agent: AgentId) -> Option<(Given, u8)> {
        let rules = self.store.rules;
        let gateway = self.store.gateways.get(&agent)?;
        let above = rotation::above(gateway.row.key_generation, gateway.key_wanted)?;
        let generation = u8::try_from(above).ok()?;
        self.ask_owner(own, agent, |live| Letter::PutOut(live, agent));
        self.settle_forks(agent);
        let gateway = self.store.gateways.get_mut(&agent)?;
        gateway.row = IdentityRow {
            key_generation: above,
            ..give_under(rules, &gateway.row)
        };
        let given = Given {
            epoch: gateway.row.confirmed,
            ended: gateway.live.take(),
        };
        gateway.standing = Standing::default();
        (gateway.kept, gateway.key_wanted) = (None, None);
        // The new one has no journal of what was with the machine before.
        let open = self.store.open_facts(agent, u64::MAX);
        let older = settle_older(rules, open, &Successor::to_come(), self.now);
        self.write(older.changes, None);
        self.recorder.counts.replaced += 1;
        Some((given, generation))
    }

    /// Every fork of an identity is decided: it has one holder.
    fn settle_forks(&mut self, agent: AgentId) {
        let forks = self.store.forks.iter_mut();
        for (_, fork) in forks.filter(|((it, _), _)| *it == agent) {
            fork.decided = true;
        }
    }

    /// An operator has a gateway given another agent key; of which generation.
    pub(crate) fn rotate(&mut self, own: Owner, agent: AgentId) -> Option<u32> {
        let gateway = self.store.gateways.get_mut(&agent)?;
        let wanted = rotation::next(gateway.row.key_generation, gateway.key_wanted)?;
        gateway.key_wanted = Some(wanted);
        self.ask_owner(own, agent, |_| Letter::Rekey(agent, wanted));
        Some(wanted)
    }

    /// The generation of the agent key that a session is to be told.
    pub(crate) fn pending_key(&self, agent: AgentId) -> Option<u32> {
        self.store.pending_key(agent)
    }
}
