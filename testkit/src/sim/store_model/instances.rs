//! Processes of the backend that share the database: their leases, and what they ask of each other.

use std::time::Duration;

use viworks_common::claims::{Claims, Verdict};
use viworks_common::id::{AgentId, AgentRunId, CommandId};
use viworks_common::rules::{Rule, Rulebook};
use viworks_common::time::Timestamp;

use super::super::core::Owner;
use super::super::network::ConnectionId;
use super::{Live, Store, Tx};

/// How long a process has its sessions without a word.
const LEASE: Duration = Duration::from_secs(10);

/// Since when a process has its lease without a pause, and until when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease {
    since: Timestamp,
    until: Timestamp,
}

/// What one process asks of another about a session of it, written in the transaction of its cause.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Letter {
    /// Commands wait.
    Nudge(AgentId),
    Cancel(AgentId, CommandId),
    /// An operator gave its identity to another holder.
    PutOut(Live, AgentId),
    /// The agent key of a later generation is wanted.
    Rekey(AgentId, u32),
    /// Another session was confirmed, and its process; the last says whether the owner of the older one was there.
    Overtaken(Live, AgentId, AgentRunId, bool),
    /// A copy was refused: the live one is to pass it.
    Forked(Live, AgentId),
    /// Does its gateway answer? The one who asks does it for a newcomer on this connection.
    Probe(Live, AgentId, Owner, ConnectionId),
    Answer(ConnectionId, bool),
}

impl Store {
    /// Whether a process may write.
    pub(crate) fn holds(&self, owner: Owner, now: Timestamp) -> bool {
        let lease = self.leases.get(&owner);
        lease.is_some_and(|lease| lease.until > now)
    }
}

impl Tx<'_> {
    /// A process begins, and ends what the one before it in the same place left.
    pub(crate) fn begin_lease(&mut self, owner: Owner) {
        let earlier = self.store.leases.keys().copied();
        let earlier: Vec<Owner> = earlier.filter(|it| it.id == owner.id).collect();
        earlier.into_iter().for_each(|owner| self.end_owner(owner));
        let (since, until) = (self.now, self.now.saturating_add(LEASE));
        self.store.leases.insert(owner, Lease { since, until });
    }

    /// Renews a lease; false when somebody has ended it.
    pub(crate) fn renew_lease(&mut self, owner: Owner) -> bool {
        let Some(lease) = self.store.leases.get_mut(&owner) else {
            return false;
        };
        if lease.until <= self.now {
            lease.since = self.now;
        }
        lease.until = self.now.saturating_add(LEASE);
        true
    }

    /// Whether `own` may take another process for gone: that has no lease, while its own has held for as long as one.
    fn is_gone(&self, own: Owner, owner: Owner) -> bool {
        let leases = &self.store.leases;
        let Some(lease) = leases.get(&owner) else {
            return true;
        };
        let long_enough = |own: &Lease| own.since.saturating_add(LEASE) <= self.now;
        lease.until <= self.now
            && self.store.holds(own, self.now)
            && leases.get(&own).is_some_and(long_enough)
            && self.store.rules.keeps(Rule::LeaseEnds)
    }

    /// Ends the sessions of processes that are gone.
    pub(crate) fn end_dead(&mut self, own: Owner) {
        let known = self.store.leases.keys().copied();
        let dead: Vec<Owner> = known.filter(|owner| self.is_gone(own, *owner)).collect();
        dead.into_iter().for_each(|owner| self.end_owner(owner));
    }

    fn end_owner(&mut self, owner: Owner) {
        self.store.leases.remove(&owner);
        self.store.letters.retain(|(to, _)| *to != owner);
        self.end_sessions(|live| live.owner == owner);
    }

    /// Asks something of whoever has the session of a gateway, if that is not `own`.
    pub(super) fn ask_owner(
        &mut self,
        own: Owner,
        agent: AgentId,
        letter: impl FnOnce(Live) -> Letter,
    ) {
        let live = self.store.gateways.get(&agent).and_then(|it| it.live);
        if let Some(live) = live.filter(|live| live.owner != own) {
            self.write_to(live.owner, letter(live));
        }
    }

    /// What is written to a process that is no more reaches nobody.
    pub(crate) fn write_to(&mut self, owner: Owner, letter: Letter) {
        if self.store.leases.contains_key(&owner) {
            self.store.letters.push((owner, letter));
            self.store.posted.push(owner);
        }
    }

    pub(crate) fn read_letters(&mut self, owner: Owner) -> Vec<Letter> {
        let letters = self.store.letters.extract_if(.., |(to, _)| *to == owner);
        letters.map(|(_, letter)| letter).collect()
    }

    /// Who keeps an identity; `answered` is what the owner of its session, of the epoch `asked`, said to `own`, and
    /// nothing if it did not.
    pub(crate) fn judge_newcomer(
        &mut self,
        own: Owner,
        (agent, newcomer): (AgentId, AgentRunId),
        asked: Option<u64>,
        (owner, answered): (Owner, Option<bool>),
    ) -> Verdict {
        let gone = answered.is_none() && owner != own && self.is_gone(own, owner);
        let probed = Claims::default().heard(answered, !gone);
        let (rules, now) = (self.store.rules, self.elapsed);
        let Some(gateway) = self.store.gateways.get_mut(&agent) else {
            return Verdict::TakeOver;
        };
        let epoch = gateway.live.map(|live| live.epoch);
        let probed = asked.map_or(probed, |asked| probed.by_now(asked, epoch));
        let live = gateway.live.map(|live| live.run);
        if gone {
            gateway.abandoned = gateway.live.map(|live| live.epoch);
        }
        let standing = &mut gateway.standing;
        standing.on_probed(rules, live, newcomer, probed, now)
    }
}
