//! One command from its permit to its journalled end.

use std::sync::Arc;

use super::{
    Asked, CANCELLED_WHILE_RUNNING, Effect, Engine, Now, Permitted, RETRY_TIME, Refused,
    STOP_SECONDS, STOP_TIME, Stage, Unwritten, Wanted,
};
use crate::code::RejectCode;
use crate::command::{Outcome, OutcomeState};
use crate::id::CommandId;
use crate::journal::{EntryState, Idempotent, OnStop, Step, on_stop};
use crate::limits;
use crate::rules::{Rule, Rulebook};
use crate::time::Monotonic;
use crate::wire::message::{AgentMessage, CommandResult};

const LATE: &str = "its deadline passed before it was started";
pub(super) const CANCELLED: &str = "cancelled before it was started";
const STOPPED: &str = "the gateway agent stopped before it was started";

/// Why a command has no end of its own: the truth, in place of a cancel that nobody asked for, and what else is said.
fn stopped(said: &str) -> String {
    let more = said.strip_prefix(CANCELLED_WHILE_RUNNING).unwrap_or(said);
    let more = more.strip_prefix(CANCELLED).unwrap_or(more);
    let more = more.trim_start_matches("; ");
    let mut text =
        format!("the gateway agent was told to stop, and {STOP_SECONDS} s were not enough");
    if !more.is_empty() {
        text.push_str("; ");
        text.push_str(more);
    }
    text.truncate(text.floor_char_boundary(limits::DETAIL_BYTES_MAX));
    text
}

/// Why a command that was prepared does not start.
enum Unfit {
    Refused(RejectCode, String),
    Late,
}

impl<R: Rulebook> Engine<R> {
    /// An accepted command has its permit until `deadline`.
    pub(super) fn permit(&mut self, id: CommandId, deadline: Monotonic, now: Now) {
        let Some(known) = self.known.get_mut(&id) else {
            return;
        };
        known.deadline = Some(deadline);
        known.stage = Stage::Waiting;
        if self.is_late(id, now) {
            self.finish_unstarted(id, OutcomeState::Expired, LATE);
        } else if self.is_stopping() {
            self.give_up(id);
        } else if let Some(known) = self.known.get_mut(&id) {
            known.stage = Stage::Preparing;
            let entry = Box::new(known.entry.clone());
            self.effects.push_back(Effect::Prepare(entry));
        }
    }

    /// The agent stops before a permitted command has started.
    fn give_up(&mut self, id: CommandId) {
        let Some(known) = self.known.get_mut(&id) else {
            return;
        };
        if known.entry.idempotent {
            // The next process announces it, and gets a fresh permit.
            known.stage = Stage::Waiting;
        } else {
            self.finish_unstarted(id, OutcomeState::Cancelled, STOPPED);
        }
    }

    fn is_late(&self, id: CommandId, now: Now) -> bool {
        let deadline = self.known.get(&id).and_then(|known| known.deadline);
        self.rules.keeps(Rule::DeadlineAtStart) && deadline.is_some_and(|it| it <= now.clock)
    }

    /// It has its permit and cannot start at once: that it is accepted is written, and told, by itself.
    pub(super) fn queued(&mut self, id: CommandId, now: Now) {
        if matches!(self.stage(id), Some(Stage::Opening)) {
            self.accept(id, Permitted::Yes, now);
        }
    }

    pub(super) fn prepared(
        &mut self,
        id: CommandId,
        verdict: Result<Idempotent, Refused>,
        now: Now,
    ) {
        let Some(known) = self.known.get_mut(&id) else {
            return;
        };
        match &mut known.stage {
            Stage::Opening => self.opened(id, verdict, now),
            Stage::Accepting(permitted @ Permitted::Yes) => {
                *permitted = Permitted::Prepared(verdict);
            }
            Stage::Preparing => match self.judge(id, verdict, now) {
                Ok(()) => {
                    let (new, end) = (false, None);
                    self.set_stage(id, Stage::Starting { new, end });
                    self.write(Step::Start(id, self.run));
                    self.presume(id, now);
                }
                Err(Unfit::Refused(code, reason)) => self.refuse_start(id, code, reason),
                Err(Unfit::Late) => self.finish_unstarted(id, OutcomeState::Expired, LATE),
            },
            Stage::Settling(_)
            | Stage::Checking(..)
            | Stage::Accepting(_)
            | Stage::Waiting
            | Stage::Starting { .. }
            | Stage::Running(_)
            | Stage::Interrupted(_)
            | Stage::Finishing(_)
            | Stage::Unwritten(..)
            | Stage::Discarding
            | Stage::Finished
            | Stage::Reporting(_)
            | Stage::Reported
            | Stage::Unkept => {}
        }
    }

    /// Offered, permitted and prepared before anything of it was written: one write says that it is accepted and
    /// started. What does not start is accepted first, so that its end has an entry.
    fn opened(&mut self, id: CommandId, verdict: Result<Idempotent, Refused>, now: Now) {
        if self.judge(id, verdict.clone(), now).is_err() {
            return self.accept(id, Permitted::Prepared(verdict), now);
        }
        let Some(known) = self.known.get_mut(&id) else {
            return;
        };
        let cancelled = known.held.contains(&Asked::Cancel);
        known.stage = Stage::Starting {
            new: true,
            end: cancelled.then_some(Wanted::ByOperator),
        };
        let mut entry = Box::new(known.entry.clone());
        entry.state = EntryState::Started;
        self.write(Step::Accept(entry));
        self.presume(id, now);
    }

    /// Whether what was prepared may start, by what the catalogue says of it now and by the time.
    fn judge(
        &self,
        id: CommandId,
        verdict: Result<Idempotent, Refused>,
        now: Now,
    ) -> Result<(), Unfit> {
        let permitted_as = self.known.get(&id).map(|known| known.entry.idempotent);
        match verdict {
            Err(refused) => Err(Unfit::Refused(refused.code, refused.detail)),
            // Its permit was given for a command that may run twice, and it no longer is one.
            Ok(Idempotent(false)) if permitted_as == Some(true) => {
                let reason = "the catalogue changed between acceptance and start";
                Err(Unfit::Refused(RejectCode::NotAllowed, reason.to_owned()))
            }
            Ok(_) if self.is_late(id, now) => Err(Unfit::Late),
            Ok(_) => Ok(()),
        }
    }

    fn refuse_start(&mut self, id: CommandId, code: RejectCode, reason: String) {
        let mut outcome = Outcome::without_run(OutcomeState::Rejected, reason);
        outcome.reject_code = Some(code);
        self.finish(id, outcome);
    }

    pub(super) fn exited(&mut self, id: CommandId, mut outcome: Outcome) {
        let known = self.known.get(&id);
        let started_at = known.and_then(|known| known.started_at);
        let Some(Stage::Running(wanted)) = known.map(|known| &known.stage) else {
            return;
        };
        // Its start was told: an outcome that the next process reports must not deny it.
        outcome.started_at = outcome.started_at.or(started_at);
        // What came to its end by itself meanwhile has an end of its own.
        if *wanted == Some(Wanted::ByStop) && outcome.state == OutcomeState::Cancelled {
            self.interrupt(id, outcome);
        } else {
            self.finish(id, outcome);
        }
    }

    /// The agent has ended it because it stops, or will not begin it any more. The journal says that it has started:
    /// what the next process would run again after a crash is left to it now as well.
    fn interrupt(&mut self, id: CommandId, mut outcome: Outcome) {
        let rules = self.rules;
        match self.known.get(&id).map(|it| on_stop(rules, &it.entry)) {
            Some(OnStop::RunAgain) => {
                if matches!(self.stage(id), Some(Stage::Starting { .. })) {
                    self.effects.push_back(Effect::Abandon(id));
                }
                self.set_stage(id, Stage::Interrupted(Arc::new(outcome)));
            }
            Some(OnStop::Finish) => {
                outcome.reason = Some(stopped(outcome.reason.as_deref().unwrap_or_default()));
                self.finish(id, outcome);
            }
            None => {}
        }
    }

    /// An operator wants the end of what has started.
    pub(super) fn end(&mut self, id: CommandId) {
        match self.known.get_mut(&id).map(|known| &mut known.stage) {
            Some(Stage::Running(wanted)) => {
                *wanted = Some(Wanted::ByOperator);
                self.effects.push_back(Effect::End(id));
            }
            // It has ended already, and is not to run again.
            Some(Stage::Interrupted(outcome)) => {
                let outcome = Arc::clone(outcome);
                self.write_end(id, outcome);
            }
            Some(_) | None => {}
        }
    }

    pub(super) fn finish_unstarted(&mut self, id: CommandId, state: OutcomeState, reason: &str) {
        self.finish(id, Outcome::without_run(state, reason));
    }

    /// Its end is decided; whatever was prepared for it is not wanted.
    fn finish(&mut self, id: CommandId, outcome: Outcome) {
        if matches!(
            self.stage(id),
            Some(Stage::Preparing | Stage::Starting { .. })
        ) {
            self.effects.push_back(Effect::Abandon(id));
        }
        self.write_end(id, Arc::new(outcome));
    }

    fn write_end(&mut self, id: CommandId, outcome: Arc<Outcome>) {
        self.set_stage(id, Stage::Finishing(Arc::clone(&outcome)));
        self.write(Step::Finish(id, outcome));
    }

    /// Without the rule that the journal comes first, what a write stands for happens at once.
    pub(super) fn presume(&mut self, id: CommandId, now: Now) {
        if !self.rules.keeps(Rule::JournalFirst) {
            self.durable(id, now);
        }
    }

    pub(super) fn written(
        &mut self,
        of: Option<CommandId>,
        result: Result<(), Unwritten>,
        now: Now,
    ) {
        self.writes = self.writes.saturating_sub(1);
        if let Err(Unwritten::Fatal(detail)) = &result {
            if let Some(id) = of
                && matches!(
                    self.stage(id),
                    Some(Stage::Accepting(_) | Stage::Starting { new: true, .. })
                )
            {
                self.reject(id, RejectCode::JournalUnavailable, detail);
            }
            return self.fail(format!("the command journal failed: {detail}"));
        }
        match (of, result) {
            (None, result) => self.marked(result.is_ok()),
            (Some(id), Ok(())) => self.durable(id, now),
            (Some(id), Err(unwritten)) => self.unwritten(id, &unwritten, now),
        }
    }

    /// What was to be written of a command is durable.
    fn durable(&mut self, id: CommandId, now: Now) {
        let Some(known) = self.known.get_mut(&id) else {
            return;
        };
        match std::mem::replace(&mut known.stage, Stage::Waiting) {
            Stage::Settling(step) => return self.settled(id, &step, now),
            Stage::Accepting(permitted) => self.accepted(id, permitted, now),
            Stage::Starting { new, end } => {
                if new {
                    self.say_accepted(id, false);
                }
                self.started(id, end, now);
            }
            Stage::Finishing(outcome) => {
                self.moved(id, EntryState::Finished, Stage::Finished);
                self.effects.push_back(Effect::Report(id, outcome));
            }
            Stage::Discarding => return self.reported(id, self.low_water, now),
            Stage::Reporting(low_water) => return self.reported(id, low_water, now),
            // Nothing of it is being written.
            other @ (Stage::Checking(..)
            | Stage::Opening
            | Stage::Waiting
            | Stage::Preparing
            | Stage::Running(_)
            | Stage::Interrupted(_)
            | Stage::Unwritten(..)
            | Stage::Finished
            | Stage::Reported
            | Stage::Unkept) => known.stage = other,
        }
        self.release(id, now);
    }

    /// Nobody needs it any more, durably. The mark that covers it may be durable before or after.
    fn reported(&mut self, id: CommandId, low_water: u64, now: Now) {
        self.moved(id, EntryState::Reported, Stage::Reported);
        self.forget(low_water);
        self.release(id, now);
    }

    /// That it is accepted is durable, and it waits: for its permit, or with it for its turn.
    fn accepted(&mut self, id: CommandId, permitted: Permitted, now: Now) {
        self.say_accepted(id, matches!(permitted, Permitted::No));
        if matches!(permitted, Permitted::No) {
            return;
        }
        if self.is_stopping() {
            self.effects.push_back(Effect::Abandon(id));
            return self.give_up(id);
        }
        self.set_stage(id, Stage::Preparing);
        if let Permitted::Prepared(verdict) = permitted {
            self.prepared(id, verdict, now);
        }
    }

    /// The start is durable. The write takes time of its own, and a disk can hang: what is late now must not start.
    fn started(&mut self, id: CommandId, end: Option<Wanted>, now: Now) {
        self.moved(id, EntryState::Started, Stage::Starting { new: false, end });
        if end == Some(Wanted::ByOperator) {
            self.finish_unstarted(id, OutcomeState::Cancelled, CANCELLED);
        } else if self.is_late(id, now) {
            self.finish_unstarted(id, OutcomeState::Expired, LATE);
        } else if end == Some(Wanted::ByStop) {
            let outcome = Outcome::without_run(OutcomeState::Cancelled, CANCELLED);
            self.interrupt(id, outcome);
        } else {
            self.set_stage(id, Stage::Running(None));
            let mut deadline = None;
            if let Some(known) = self.known.get_mut(&id) {
                known.started_at = Some(now.wall);
                deadline = known.deadline;
            }
            let deadline = deadline.filter(|_| self.rules.keeps(Rule::DeadlineAtStart));
            self.effects.push_back(Effect::Launch(id, deadline));
            self.say_started(id);
        }
    }

    /// What was to be written of a command is not, and the journal as a whole goes on.
    fn unwritten(&mut self, id: CommandId, unwritten: &Unwritten, now: Now) {
        let Some(known) = self.known.get_mut(&id) else {
            return;
        };
        let ran = known.entry.state == EntryState::Started;
        match std::mem::replace(&mut known.stage, Stage::Waiting) {
            Stage::Settling(_) => {
                let detail = unwritten.detail();
                return self.fail(format!(
                    "what an earlier process left of command {id} cannot be settled: {detail}"
                ));
            }
            Stage::Accepting(Permitted::No) => return self.unaccepted(id, unwritten, now),
            Stage::Accepting(_) | Stage::Starting { new: true, .. } => {
                self.effects.push_back(Effect::Abandon(id));
                return self.unaccepted(id, unwritten, now);
            }
            Stage::Starting { new: false, .. } => {
                self.effects.push_back(Effect::Abandon(id));
                if let Unwritten::Lost(lost) = unwritten {
                    // Its start would be forgotten with this process, and a later one could start it again.
                    let reason = format!("the gateway's state folder is lost: {lost}");
                    self.refuse_start(id, RejectCode::JournalUnavailable, reason);
                }
                // Otherwise it waits for another permit, or for its deadline.
            }
            Stage::Finishing(outcome) => return self.unfinished(id, outcome, unwritten, ran, now),
            // It waits on, and the backend decides again.
            Stage::Discarding => {}
            Stage::Reporting(low_water) => {
                known.stage = Stage::Finished;
                self.forget(low_water);
            }
            other @ (Stage::Checking(..)
            | Stage::Opening
            | Stage::Waiting
            | Stage::Preparing
            | Stage::Running(_)
            | Stage::Interrupted(_)
            | Stage::Unwritten(..)
            | Stage::Finished
            | Stage::Reported
            | Stage::Unkept) => known.stage = other,
        }
        self.release(id, now);
    }

    /// It cannot be journalled at all.
    fn unaccepted(&mut self, id: CommandId, unwritten: &Unwritten, now: Now) {
        let code = match unwritten {
            Unwritten::Full(_) => RejectCode::Busy,
            Unwritten::Lost(_)
            | Unwritten::WrongState(_)
            | Unwritten::Refused(_)
            | Unwritten::Fatal(_) => RejectCode::JournalUnavailable,
        };
        let detail = match unwritten {
            Unwritten::Lost(lost) => format!("the state folder is lost: {lost}"),
            Unwritten::Full(_)
            | Unwritten::WrongState(_)
            | Unwritten::Refused(_)
            | Unwritten::Fatal(_) => unwritten.detail().to_owned(),
        };
        self.reject(id, code, &detail);
        self.forgo(id, now);
    }

    /// Its end cannot be journalled.
    fn unfinished(
        &mut self,
        id: CommandId,
        outcome: Arc<Outcome>,
        unwritten: &Unwritten,
        ran: bool,
        now: Now,
    ) {
        match unwritten {
            // Nothing can be kept, and the backend can still be told; without a session it finds out that nobody knows.
            Unwritten::Lost(_) => {
                self.set_stage(id, Stage::Unkept);
                self.say(AgentMessage::CommandResult(CommandResult {
                    command_id: id,
                    outcome: Arc::unwrap_or_clone(outcome),
                }));
                self.release(id, now);
            }
            // It ran, and the journal says that it cannot have: nothing in it can be relied on.
            Unwritten::WrongState(detail) if ran => self.fail(format!(
                "the outcome of command {id} cannot be journalled: {detail}"
            )),
            // The journal knows better.
            Unwritten::WrongState(_) => self.forgo(id, now),
            // Nobody but this process knows how it ended: it keeps that until the disk takes it. If the process ends
            // before, the next one finds the truth, that it is not known.
            Unwritten::Full(_) | Unwritten::Refused(_) | Unwritten::Fatal(_) => {
                let again = now.clock.saturating_add(RETRY_TIME);
                self.set_stage(id, Stage::Unwritten(outcome, again));
                self.release(id, now);
            }
        }
    }

    /// Ends what has waited beyond its deadline, and what runs on although the agent stops.
    pub(super) fn timeout(&mut self, now: Now) {
        let ids: Vec<CommandId> = self.known.keys().copied().collect();
        for id in ids {
            match self.stage(id) {
                Some(Stage::Waiting) if self.is_due(id, now) => {
                    self.finish_unstarted(id, OutcomeState::Expired, LATE);
                }
                Some(Stage::Preparing) if self.is_late(id, now) => {
                    self.finish_unstarted(id, OutcomeState::Expired, LATE);
                }
                Some(Stage::Unwritten(outcome, again)) if *again <= now.clock => {
                    let outcome = Arc::clone(outcome);
                    self.write_end(id, outcome);
                }
                Some(_) | None => {}
            }
        }
        if self.stopping.is_some_and(|due| due <= now.clock) {
            // How they ended is journalled; the grace period of the shutdown bounds that.
            self.stopping = Some(now.clock.saturating_add(STOP_TIME));
            self.end_all();
        }
    }

    fn is_due(&self, id: CommandId, now: Now) -> bool {
        let deadline = self.known.get(&id).and_then(|known| known.deadline);
        deadline.is_some_and(|deadline| deadline <= now.clock)
    }

    fn end_all(&mut self) {
        for (id, known) in &mut self.known {
            match &mut known.stage {
                Stage::Running(wanted) => {
                    *wanted = wanted.or(Some(Wanted::ByStop));
                    self.effects.push_back(Effect::End(*id));
                }
                Stage::Starting { end, .. } => *end = end.or(Some(Wanted::ByStop)),
                Stage::Settling(_)
                | Stage::Checking(..)
                | Stage::Opening
                | Stage::Accepting(_)
                | Stage::Waiting
                | Stage::Preparing
                | Stage::Interrupted(_)
                | Stage::Finishing(_)
                | Stage::Unwritten(..)
                | Stage::Discarding
                | Stage::Finished
                | Stage::Reporting(_)
                | Stage::Reported
                | Stage::Unkept => {}
            }
        }
    }

    /// Nothing starts any more that waits for its slot; what runs may end by itself for a while.
    pub(super) fn stop(&mut self, now: Now) {
        if self.is_stopping() {
            return;
        }
        self.stopping = Some(now.clock.saturating_add(STOP_TIME));
        let preparing = |(id, known): (&CommandId, &super::Known)| {
            matches!(known.stage, Stage::Opening | Stage::Preparing).then_some(*id)
        };
        let ids: Vec<CommandId> = self.known.iter().filter_map(preparing).collect();
        for id in ids {
            self.effects.push_back(Effect::Abandon(id));
            if matches!(self.stage(id), Some(Stage::Opening)) {
                // Nothing of it is written: it is as if it had come a moment later.
                self.reject(id, RejectCode::Busy, RejectCode::Busy.name());
                self.forgo(id, now);
            } else {
                self.set_stage(id, Stage::Waiting);
                self.give_up(id);
            }
        }
    }
}
