//! HELLO, CONFIRM, the end of a session, forks and revocation.

use viworks_common::admission::{
    Admission, Confirmation, HelloFacts, admit_under, confirm as decide_confirm, is_left_behind,
    revoke,
};
use viworks_common::code::CloseCode;
use viworks_common::fork::{Holder as Party, Kept};
use viworks_common::id::{AgentId, AgentRunId, CommandId};
use viworks_common::ledger::end;
use viworks_common::ledger::session::{Older, Successor, lose, settle_older, settle_rolled_back};
use viworks_common::telemetry::Position;

use super::super::core::Owner;
use super::{Holder, Letter, Live, Tx};

/// A HELLO, as the store sees it.
#[derive(Debug, Clone)]
pub(crate) struct AdmitRequest {
    pub agent: AgentId,
    pub facts: HelloFacts,
    /// What the gateway says of itself.
    pub party: Party,
    /// Commands that are not acknowledged.
    pub unreported: Vec<CommandId>,
    /// How far spool epochs are acknowledged.
    pub telemetry: Vec<Position>,
}

/// The session may go on.
#[derive(Debug, Clone)]
pub(crate) struct Admitted {
    pub presented: u64,
    pub issued: u64,
    pub low_water: u64,
    /// How far the named spool epochs are committed.
    pub committed: Vec<Position>,
    /// The confirmed session there is.
    pub live: Option<Live>,
}

/// A CONFIRM, as the store sees it.
#[derive(Debug, Clone)]
pub(crate) struct ConfirmRequest {
    /// Who asks, with the epoch that WELCOME issued.
    pub holder: Holder,
    /// The epoch that HELLO presented.
    pub presented: u64,
    /// Commands that HELLO named.
    pub unreported: Vec<CommandId>,
    /// Whose session it will be.
    pub owner: Owner,
}

impl Tx<'_> {
    /// Judges a HELLO.
    pub(crate) fn admit(&mut self, request: &AdmitRequest) -> Result<Admitted, CloseCode> {
        let (agent, run) = (request.agent, request.facts.agent_run_id);
        let (rules, now) = (self.store.rules, self.elapsed);
        let gateway = self.store.gateways.get_mut(&agent);
        let gateway = gateway.ok_or(CloseCode::Revoked)?;
        // One that is favoured is on its way past a copy: nobody else moves the counters meanwhile.
        if gateway.standing.favours_another(rules, run, now).is_some() {
            return Err(CloseCode::RateLimited);
        }
        let live = gateway.live;
        gateway.said.insert(run, request.party);
        let lets_in = |kept: Kept| kept.lets_in(&request.party, gateway.row.confirmed);
        let facts = HelloFacts {
            kept: gateway.kept.is_some_and(lets_in),
            ..request.facts
        };
        let left_behind = is_left_behind(&gateway.row, &facts);
        let (presented, issued, row, rolled_back_to) =
            match admit_under(rules, &gateway.row, &facts) {
                Admission::Accept {
                    presented,
                    issued,
                    row,
                } => (presented, issued, row, None),
                Admission::RolledBack {
                    presented,
                    issued,
                    row,
                    highest_order,
                } => (presented, issued, row, Some(highest_order)),
                Admission::Late => return Err(CloseCode::Superseded),
                Admission::Fork => {
                    self.record_fork(agent, run);
                    return Err(CloseCode::IdentityFork);
                }
                Admission::BadToken => return Err(CloseCode::BadEnvelope),
                Admission::Revoked => return Err(CloseCode::Revoked),
                Admission::StaleKey => {
                    if left_behind {
                        self.record_fork(agent, run);
                    }
                    return Err(CloseCode::CertUntrusted);
                }
            };
        if row.key_generation > gateway.row.key_generation {
            self.recorder.counts.new_keys += 1;
        }
        gateway.row = row;
        if let Some(highest_order) = rolled_back_to {
            let open = self.store.open_facts(agent, highest_order);
            let unreported = request.unreported.iter().copied().collect();
            self.write(settle_rolled_back(open, &unreported, self.now), None);
            self.raise_low_water(agent);
        }
        Ok(Admitted {
            presented,
            issued,
            committed: self.settle_positions(agent, &request.telemetry),
            low_water: self.store.low_water(agent),
            live,
        })
    }

    /// A live session answered for the sake of a second holder of its identity: whoever has it is told.
    pub(crate) fn settle_fork(&mut self, own: Owner, agent: AgentId, refused: AgentRunId) {
        self.record_fork(agent, refused);
        self.ask_owner(own, agent, |live| Letter::Forked(live, agent));
    }

    /// Two holders of one identity were seen.
    pub(crate) fn record_fork(&mut self, agent: AgentId, refused: AgentRunId) {
        self.store.note_fork(agent, refused);
        self.recorder.forked(agent, refused);
    }

    /// Confirms an epoch; from here on every older session is fenced. `None` when it was overtaken.
    pub(crate) fn confirm(&mut self, request: &ConfirmRequest) -> Option<Older> {
        let Holder { agent, epoch, run } = request.holder;
        let owner = request.owner;
        let gateway = self.store.gateways.get_mut(&agent)?;
        let kept = gateway
            .kept
            .filter(|kept| kept.epoch == gateway.row.confirmed);
        match decide_confirm(&gateway.row, request.presented, epoch, run) {
            Confirmation::Confirmed(row) => gateway.row = row,
            Confirmation::Superseded => return None,
        }
        gateway.standing.entered();
        gateway.last = Some(run);
        let older = gateway.live.replace(Live { epoch, run, owner });
        if let Some(older) = older.filter(|older| older.owner != owner) {
            let alive = gateway.abandoned != Some(older.epoch);
            self.write_to(older.owner, Letter::Overtaken(older, agent, run, alive));
        }
        if older.is_some_and(|older| older.run != run) {
            self.recorder.counts.take_overs += 1;
        }
        self.recorder.counts.sessions += 1;
        self.recorder.wrote(agent, epoch);
        self.recorder.settled(agent, run);
        let open = self.store.open_facts(agent, u64::MAX);
        let successor = Successor {
            run,
            unreported: request.unreported.iter().copied().collect(),
            by_decision: kept.is_some(),
        };
        let older = settle_older(self.store.rules, open, &successor, self.now);
        self.write(older.changes.clone(), None);
        Some(older)
    }

    /// Ends a session; only what still belongs to it is touched.
    pub(crate) fn end_session(&mut self, agent: AgentId, epoch: u64) {
        let gateway = self.store.gateways.get_mut(&agent);
        let live = gateway.and_then(|gateway| gateway.live.take_if(|live| live.epoch == epoch));
        if live.is_some() {
            let (held, now) = (self.store.open_facts(agent, u64::MAX), self.now);
            self.write(held.into_iter().filter_map(|it| lose(it, now)), None);
        }
    }

    /// Ends what the only process before this one left open.
    pub(crate) fn end_abandoned(&mut self) {
        self.end_sessions(|_| true);
    }

    pub(super) fn end_sessions(&mut self, which: impl Fn(&Live) -> bool) {
        let gateways = self.store.gateways.iter();
        let live: Vec<(AgentId, u64)> = gateways
            .filter_map(|(agent, gateway)| Some((*agent, gateway.live.filter(&which)?.epoch)))
            .collect();
        for (agent, epoch) in live {
            self.end_session(agent, epoch);
        }
    }

    /// An operator gives an identity up: every epoch is fenced, and every command ends.
    pub(crate) fn revoke(&mut self, agent: AgentId) {
        if let Some(gateway) = self.store.gateways.get_mut(&agent) {
            gateway.row = revoke(&gateway.row);
            gateway.live = None;
        }
        let (open, now) = (self.store.open_facts(agent, u64::MAX), self.now);
        self.write(open.into_iter().filter_map(|it| end::revoke(it, now)), None);
    }
}
