//! A model of the backend's store: one agent's rows, atomic commits, and copies that can be put back.

use std::collections::{BTreeMap, BTreeSet};

use viworks_common::admission::{self, Admission, Confirmation, HelloFacts, IdentityRow};
use viworks_common::command::{CommandEvent, CommandState, Outcome, Transition, transition};
use viworks_common::id::{AgentRunId, CommandId};
use viworks_common::limits;
use viworks_common::telemetry::Batch;
use viworks_common::time::Monotonic;

use super::Rules;
use super::recorder::Recorder;

/// A command's row.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) order: u64,
    pub(super) state: CommandState,
    pub(super) idempotent: bool,
    pub(super) deadline: Monotonic,
    pub(super) attempt: u32,
    /// The session that holds it while dispatched.
    pub(super) epoch: u64,
    /// The process it was released to.
    pub(super) agent_run_id: Option<AgentRunId>,
    pub(super) cancel: bool,
    pub(super) late_outcome: Option<Outcome>,
}

/// Who writes: a session of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) epoch: u64,
    pub(super) agent_run_id: AgentRunId,
}

/// The answer to an acceptance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accepted {
    Go(Monotonic),
    Cancel,
    Drop,
}

/// The database.
#[derive(Debug, Clone)]
pub(super) struct Store {
    pub(super) identity: IdentityRow,
    pub(super) commands: BTreeMap<CommandId, Row>,
    pub(super) orphans: BTreeSet<CommandId>,
    pub(super) telemetry: BTreeSet<(AgentRunId, u64)>,
    pub(super) gaps: BTreeMap<AgentRunId, Vec<(u64, u64)>>,
    pub(super) positions: BTreeMap<AgentRunId, u64>,
    pub(super) forks: u64,
}

impl Store {
    pub(super) fn new() -> Self {
        Self {
            identity: IdentityRow::fresh(1),
            commands: BTreeMap::new(),
            orphans: BTreeSet::new(),
            telemetry: BTreeSet::new(),
            gaps: BTreeMap::new(),
            positions: BTreeMap::new(),
            forks: 0,
        }
    }

    fn fenced(&self, holder: Holder, rules: &Rules) -> bool {
        rules.epoch_fence && self.identity.confirmed != holder.epoch
    }

    fn apply(
        &mut self,
        id: CommandId,
        event: CommandEvent,
        recorder: &mut Recorder,
    ) -> Option<Transition> {
        let row = self.commands.get_mut(&id)?;
        let step = transition(row.state, event, row.idempotent);
        if let Transition::To(state) = step {
            row.state = state;
            recorder.stored(id, state);
            self.raise_low_water();
        }
        Some(step)
    }

    fn raise_low_water(&mut self) {
        let open = self
            .commands
            .values()
            .filter(|row| !row.state.is_final())
            .map(|row| row.order)
            .min();
        let mark = open.unwrap_or(self.identity.next_order) - 1;
        self.identity.low_water = self.identity.low_water.max(mark);
    }

    pub(super) fn submit(&mut self, id: CommandId, idempotent: bool, deadline: Monotonic) {
        let order = self.identity.next_order;
        self.identity.next_order += 1;
        self.commands.insert(
            id,
            Row {
                order,
                state: CommandState::Queued,
                idempotent,
                deadline,
                attempt: 0,
                epoch: 0,
                agent_run_id: None,
                cancel: false,
                late_outcome: None,
            },
        );
    }

    pub(super) fn admit(
        &mut self,
        facts: &HelloFacts,
        unreported: &BTreeSet<CommandId>,
        recorder: &mut Recorder,
    ) -> Admission {
        let admission = admission::admit(&self.identity, facts);
        match &admission {
            Admission::Accept { row, .. } => self.identity = row.clone(),
            Admission::RolledBack {
                row, highest_order, ..
            } => {
                self.identity = row.clone();
                let lost: Vec<CommandId> = self
                    .commands
                    .iter()
                    .filter(|(id, row)| row.order <= *highest_order && !unreported.contains(id))
                    .map(|(id, _row)| *id)
                    .collect();
                for id in lost {
                    self.apply(id, CommandEvent::RolledBack, recorder);
                }
            }
            Admission::Fork => self.forks += 1,
            Admission::Late | Admission::BadToken | Admission::Revoked | Admission::StaleKey => {}
        }
        admission
    }

    /// CONFIRM: fences what came before, and settles what earlier processes and sessions left.
    pub(super) fn confirm(
        &mut self,
        presented: u64,
        holder: Holder,
        unreported: &BTreeSet<CommandId>,
        recorder: &mut Recorder,
    ) -> bool {
        match admission::confirm(&self.identity, presented, holder.epoch, holder.agent_run_id) {
            Confirmation::Superseded => return false,
            Confirmation::Confirmed(row) => self.identity = row,
        }
        let ids: Vec<CommandId> = self.commands.keys().copied().collect();
        for id in ids {
            let Some(row) = self.commands.get(&id) else {
                continue;
            };
            let (state, run, idempotent) = (row.state, row.agent_run_id, row.idempotent);
            let permitted = matches!(state, CommandState::Released | CommandState::Running);
            // Its process is gone; or the same process never got the inline permit.
            let gone = run != Some(holder.agent_run_id) || idempotent;
            if state == CommandState::Dispatched {
                self.apply(id, CommandEvent::SessionLost, recorder);
            } else if permitted && gone && !unreported.contains(&id) {
                self.apply(id, CommandEvent::RunGone, recorder);
            }
        }
        true
    }

    /// Takes the next commands for a session; idempotent ones are released at once.
    pub(super) fn lease(
        &mut self,
        holder: Holder,
        now: Monotonic,
        room: usize,
        rules: &Rules,
        recorder: &mut Recorder,
    ) -> Vec<CommandId> {
        if self.fenced(holder, rules) {
            return Vec::new();
        }
        let window = self.identity.low_water.saturating_add(limits::ORDER_WINDOW);
        let mut next: Vec<(u64, CommandId)> = self
            .commands
            .iter()
            .filter(|(_id, row)| {
                row.state == CommandState::Queued && row.deadline > now && row.order <= window
            })
            .map(|(id, row)| (row.order, *id))
            .collect();
        next.sort_unstable();
        next.truncate(room);
        for (_order, id) in &next {
            let inline = self.commands.get(id).is_some_and(|row| row.idempotent) || !rules.permit;
            if let Some(row) = self.commands.get_mut(id) {
                row.attempt += 1;
                row.epoch = holder.epoch;
                if inline {
                    row.agent_run_id = Some(holder.agent_run_id);
                }
            }
            self.apply(*id, CommandEvent::Dispatched, recorder);
            if inline {
                self.apply(*id, CommandEvent::Released, recorder);
            }
        }
        next.into_iter().map(|(_order, id)| id).collect()
    }

    pub(super) fn accept(
        &mut self,
        id: CommandId,
        idempotent: bool,
        holder: Holder,
        now: Monotonic,
        rules: &Rules,
        recorder: &mut Recorder,
    ) -> Option<Accepted> {
        if self.fenced(holder, rules) {
            return None;
        }
        let Some(row) = self.commands.get_mut(&id) else {
            return Some(Accepted::Drop);
        };
        row.idempotent &= idempotent;
        let here = row.agent_run_id == Some(holder.agent_run_id) || !rules.permit_bound_to_run;
        match row.state {
            CommandState::Queued | CommandState::Dispatched if row.deadline > now => {
                row.agent_run_id = Some(holder.agent_run_id);
                row.epoch = holder.epoch;
                row.state = CommandState::Released;
                Some(Accepted::Go(row.deadline))
            }
            CommandState::Queued | CommandState::Dispatched => {
                self.apply(id, CommandEvent::DeadlinePassed, recorder);
                Some(Accepted::Drop)
            }
            CommandState::Released if here && row.cancel => Some(Accepted::Cancel),
            CommandState::Released if here => Some(Accepted::Go(row.deadline)),
            CommandState::Released | CommandState::Running if row.idempotent => {
                row.agent_run_id = Some(holder.agent_run_id);
                row.state = CommandState::Released;
                Some(Accepted::Go(row.deadline))
            }
            CommandState::Released | CommandState::Running => {
                self.apply(id, CommandEvent::RunGone, recorder);
                Some(Accepted::Drop)
            }
            CommandState::Succeeded
            | CommandState::Failed
            | CommandState::TimedOut
            | CommandState::Rejected
            | CommandState::Expired
            | CommandState::Cancelled
            | CommandState::Dead
            | CommandState::Indeterminate => Some(Accepted::Drop),
        }
    }

    pub(super) fn event(
        &mut self,
        id: CommandId,
        event: CommandEvent,
        holder: Holder,
        rules: &Rules,
        recorder: &mut Recorder,
    ) -> bool {
        if self.fenced(holder, rules) {
            return false;
        }
        if !rules.epoch_fence && self.identity.confirmed != holder.epoch {
            recorder.broken(
                6,
                format!(
                    "epoch {} wrote while {} is in force",
                    holder.epoch, self.identity.confirmed
                ),
            );
        }
        self.apply(id, event, recorder);
        true
    }

    /// A result: false when the session is fenced, and nothing may be acknowledged.
    pub(super) fn complete(
        &mut self,
        id: CommandId,
        outcome: &Outcome,
        holder: Holder,
        rules: &Rules,
        recorder: &mut Recorder,
    ) -> bool {
        if self.fenced(holder, rules) {
            return false;
        }
        if !rules.epoch_fence && self.identity.confirmed != holder.epoch {
            recorder.broken(
                6,
                format!(
                    "epoch {} wrote while {} is in force",
                    holder.epoch, self.identity.confirmed
                ),
            );
        }
        match self.apply(id, CommandEvent::Ended(outcome.state), recorder) {
            None => {
                self.orphans.insert(id);
            }
            Some(Transition::LateOutcome) => {
                if let Some(row) = self.commands.get_mut(&id) {
                    row.late_outcome = Some(outcome.clone());
                }
            }
            Some(_) => {}
        }
        true
    }

    pub(super) fn cancel(&mut self, id: CommandId, recorder: &mut Recorder) -> bool {
        if let Some(row) = self.commands.get_mut(&id) {
            row.cancel = true;
        }
        self.apply(id, CommandEvent::CancelRequested, recorder);
        self.commands
            .get(&id)
            .is_some_and(|row| !row.state.is_final())
    }

    /// What the owners of waiting states do; `overdue` also gives up what was permitted long ago.
    pub(super) fn sweep(&mut self, now: Monotonic, overdue: bool, recorder: &mut Recorder) {
        let ids: Vec<CommandId> = self
            .commands
            .iter()
            .filter(|(_id, row)| row.deadline <= now)
            .map(|(id, _row)| *id)
            .collect();
        for id in ids {
            self.apply(id, CommandEvent::DeadlinePassed, recorder);
            if overdue {
                self.apply(id, CommandEvent::WaitExhausted, recorder);
            }
        }
    }

    /// A batch: drops what is committed, clips gaps, fills a hole that a roll-back left.
    pub(super) fn commit_telemetry(
        &mut self,
        batch: &Batch,
        holder: Holder,
        rules: &Rules,
    ) -> Option<u64> {
        if self.fenced(holder, rules) {
            return None;
        }
        let position = self.positions.entry(batch.spool_epoch).or_insert(0);
        let gaps = self.gaps.entry(batch.spool_epoch).or_default();
        if batch.from_seq > *position + 1 {
            gaps.push((*position + 1, batch.from_seq - 1));
        }
        for gap in &batch.gaps {
            if gap.to_seq > *position {
                gaps.push((gap.from_seq.max(*position + 1), gap.to_seq));
            }
        }
        for (seq, _record) in &batch.records {
            if *seq > *position {
                self.telemetry.insert((batch.spool_epoch, *seq));
            }
        }
        *position = (*position).max(batch.to_seq);
        Some(*position)
    }

    pub(super) fn accounts_for(&self, key: &(AgentRunId, u64)) -> bool {
        self.telemetry.contains(key)
            || self
                .gaps
                .get(&key.0)
                .is_some_and(|gaps| gaps.iter().any(|(from, to)| (*from..=*to).contains(&key.1)))
    }
}
