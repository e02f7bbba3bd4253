//! HELLO, CONFIRM, the end of a session, forks and revocation.

use viworks_common::admission::{
    Admission, Confirmation, HelloFacts, admit_under, confirm as decide_confirm, revoke,
};
use viworks_common::id::{AgentId, AgentRunId, CommandId};
use viworks_common::ledger::session::{Older, lose, settle_older, settle_rolled_back};
use viworks_common::ledger::{Change, end};
use viworks_common::telemetry::Position;
use viworks_common::time::Timestamp;

use super::super::recorder::Recorder;
use super::{Holder, Store};

/// A HELLO, as the store sees it.
#[derive(Debug, Clone)]
pub(crate) struct AdmitRequest {
    /// Whose.
    pub agent: AgentId,
    /// What it says.
    pub facts: HelloFacts,
    /// Commands that are not acknowledged.
    pub unreported: Vec<CommandId>,
    /// How far spool epochs are acknowledged.
    pub telemetry: Vec<Position>,
}

/// The session may go on.
#[derive(Debug, Clone)]
pub(crate) struct Admitted {
    /// What it presented.
    pub presented: u64,
    /// What it gets.
    pub issued: u64,
    /// Up to which order everything is final.
    pub low_water: u64,
    /// How far the named spool epochs are committed.
    pub committed: Vec<Position>,
    /// The confirmed session there is: whether it belongs to the same process.
    pub live_same_run: Option<bool>,
}

/// It may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Late.
    Late,
    /// A second holder.
    Fork,
    /// The token does not belong to the epoch.
    BadToken,
    /// The identity was given up.
    Revoked,
    /// The key was replaced.
    StaleKey,
}

/// A CONFIRM, as the store sees it.
#[derive(Debug, Clone)]
pub(crate) struct ConfirmRequest {
    /// Whose.
    pub agent: AgentId,
    /// What HELLO presented.
    pub presented: u64,
    /// What WELCOME issued.
    pub issued: u64,
    /// The process.
    pub run: AgentRunId,
    /// Commands that HELLO named.
    pub unreported: Vec<CommandId>,
}

impl Store {
    /// Judges a HELLO.
    ///
    /// # Errors
    /// Why it is refused.
    pub(crate) fn admit(
        &mut self,
        request: &AdmitRequest,
        now: Timestamp,
        recorder: &mut Recorder,
    ) -> Result<Admitted, Refusal> {
        let agent = request.agent;
        let Some(known) = self.gateways.get(&agent).cloned() else {
            return Err(Refusal::Revoked);
        };
        let (presented, issued, after, rolled_back_to) =
            match admit_under(self.rules, &known.row, &request.facts) {
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
                Admission::Late => return Err(Refusal::Late),
                Admission::Fork => {
                    self.record_fork(agent, request.facts.agent_run_id, recorder);
                    return Err(Refusal::Fork);
                }
                Admission::BadToken => return Err(Refusal::BadToken),
                Admission::Revoked => return Err(Refusal::Revoked),
                Admission::StaleKey => return Err(Refusal::StaleKey),
            };
        if let Some(gateway) = self.gateways.get_mut(&agent) {
            gateway.row = after;
        }
        if let Some(highest_order) = rolled_back_to {
            self.settle_rolled_back(request, highest_order, now);
        }
        let committed = self.settle_positions(agent, &request.telemetry, now, recorder);
        Ok(Admitted {
            presented,
            issued,
            low_water: self.low_water(agent),
            committed,
            live_same_run: known.live.map(|(_, run)| run == request.facts.agent_run_id),
        })
    }

    /// Two holders of one identity were seen.
    pub(crate) fn record_fork(
        &mut self,
        agent: AgentId,
        refused: AgentRunId,
        recorder: &mut Recorder,
    ) {
        self.forks.insert((agent, refused));
        recorder.forked(agent, refused);
    }

    fn settle_rolled_back(&mut self, request: &AdmitRequest, highest_order: u64, now: Timestamp) {
        let open = self.open(request.agent, highest_order);
        let unreported = request.unreported.iter().copied().collect();
        self.write(settle_rolled_back(open, &unreported, now), None);
        self.raise_low_water(request.agent);
    }

    /// Confirms an epoch; from here on every older session is fenced. `None` when it was overtaken.
    pub(crate) fn confirm(
        &mut self,
        request: &ConfirmRequest,
        now: Timestamp,
        recorder: &mut Recorder,
    ) -> Option<Older> {
        let gateway = self.gateways.get_mut(&request.agent)?;
        let decision = decide_confirm(&gateway.row, request.presented, request.issued, request.run);
        match decision {
            Confirmation::Confirmed(row) => gateway.row = row,
            Confirmation::Superseded => return None,
        }
        if gateway.live.is_some_and(|(_, run)| run != request.run) {
            recorder.counts.take_overs += 1;
        }
        gateway.live = Some((request.issued, request.run));
        recorder.counts.sessions += 1;
        recorder.wrote(request.agent, request.issued);
        recorder.settled(request.agent, request.run);
        let open = self.open(request.agent, u64::MAX);
        let unreported = request.unreported.iter().copied().collect();
        let older = settle_older(self.rules, open, request.run, &unreported, now);
        self.write(older.changes.clone(), None);
        Some(older)
    }

    /// Ends a session; only what still belongs to it is touched.
    pub(crate) fn end_session(&mut self, holder: Holder, now: Timestamp) {
        let Some(gateway) = self.gateways.get_mut(&holder.agent) else {
            return;
        };
        if gateway.live.is_none_or(|(epoch, _)| epoch != holder.epoch) {
            return;
        }
        gateway.live = None;
        let held = self.open(holder.agent, u64::MAX);
        let lost: Vec<Change> = held.into_iter().filter_map(|it| lose(it, now)).collect();
        self.write(lost, None);
    }

    /// Ends what the only process before this one left open.
    pub(crate) fn end_abandoned(&mut self, now: Timestamp) {
        let live: Vec<Holder> = self
            .gateways
            .iter()
            .filter_map(|(agent, gateway)| {
                let (epoch, run) = gateway.live?;
                let agent = *agent;
                Some(Holder { agent, epoch, run })
            })
            .collect();
        for holder in live {
            self.end_session(holder, now);
        }
    }

    /// An operator gives an identity up: every epoch is fenced, and every command ends.
    pub(crate) fn revoke(&mut self, agent: AgentId, now: Timestamp) {
        if let Some(gateway) = self.gateways.get_mut(&agent) {
            gateway.row = revoke(&gateway.row);
            gateway.live = None;
        }
        let open = self.open(agent, u64::MAX);
        let ends: Vec<Change> = open
            .into_iter()
            .filter_map(|command| end::revoke(command, now))
            .collect();
        self.write(ends, None);
    }
}
