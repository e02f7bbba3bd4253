//! What an earlier process left behind, what a new session is told, and what is forgotten.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Effect, Engine, Known, Now, Stage};
use crate::command::{Outcome, OutcomeState};
use crate::id::CommandId;
use crate::journal::{Entry, EntryState, OnRestart, Step, may_forget, on_restart};
use crate::rules::{Rule, Rulebook};

impl<R: Rulebook> Engine<R> {
    /// Takes the journal's entries in. What was interrupted waits until nothing of it runs any more.
    pub(super) fn take_over(&mut self, entries: impl IntoIterator<Item = Entry>) {
        let mut interrupted = Vec::new();
        for mut entry in entries {
            let id = entry.command_id;
            entry.outcome = None;
            if entry.state == EntryState::Started {
                interrupted.push(id);
            }
            let stage = match (on_restart(self.rules, &entry), entry.state) {
                (OnRestart::AwaitPermitAgain, _) => Stage::Settling(Step::AwaitAgain(id, self.run)),
                (OnRestart::FinishIndeterminate, _) => {
                    let reason = "the gateway agent ended while it ran";
                    let outcome = Outcome::without_run(OutcomeState::Indeterminate, reason);
                    Stage::Settling(Step::Finish(id, Arc::new(outcome)))
                }
                (OnRestart::Keep, EntryState::Accepted | EntryState::Started) => Stage::Waiting,
                (OnRestart::Keep, EntryState::Finished) => Stage::Finished,
                (OnRestart::Keep, EntryState::Reported) => Stage::Reported,
            };
            let known = Known {
                entry,
                stage,
                deadline: None,
                started_at: None,
                held: VecDeque::new(),
            };
            self.known.insert(id, known);
        }
        if !interrupted.is_empty() {
            self.effects.push_back(Effect::EndLeftovers(interrupted));
        }
    }

    /// Nothing of an earlier process runs beside this one: what it was in the middle of is over.
    pub(super) fn settle_leftovers(&mut self) {
        let steps: Vec<Step> = self
            .known
            .values()
            .filter_map(|known| known.stage.settling().cloned())
            .collect();
        for step in steps {
            self.write(step);
        }
    }

    pub(super) fn settled(&mut self, id: CommandId, step: &Step, now: Now) {
        if let Step::Finish(_, outcome) = step {
            self.moved(id, EntryState::Finished, Stage::Finished);
            self.effects
                .push_back(Effect::Report(id, Arc::clone(outcome)));
        } else {
            if let Some(known) = self.known.get_mut(&id) {
                known.entry.agent_run_id = self.run;
            }
            self.moved(id, EntryState::Accepted, Stage::Waiting);
        }
        self.release(id, now);
    }

    /// Tells a new session what the journal holds, by order. What is being written is told when it is durable.
    pub(super) fn announce(&mut self) {
        let mut ids: Vec<(u64, CommandId)> = self
            .known
            .iter()
            .map(|(id, known)| (known.entry.order, *id))
            .collect();
        ids.sort_unstable();
        for (_, id) in ids {
            let Some(known) = self.known.get(&id) else {
                continue;
            };
            match (&known.stage, known.entry.state) {
                (Stage::Waiting, _) => self.say_accepted(id, true),
                (Stage::Preparing | Stage::Starting { new: false, .. }, _) => {
                    self.say_accepted(id, false);
                }
                (Stage::Running(_) | Stage::Interrupted(_), _)
                | (Stage::Finishing(_) | Stage::Unkept, EntryState::Started) => {
                    self.say_started(id);
                }
                (Stage::Finished, _) if self.rules.keeps(Rule::ResultsResent) => {
                    self.effects.push_back(Effect::Resend(id));
                }
                (
                    Stage::Settling(_)
                    | Stage::Checking(..)
                    | Stage::Opening
                    | Stage::Accepting(_)
                    | Stage::Starting { new: true, .. }
                    | Stage::Finishing(_)
                    | Stage::Unwritten(..)
                    | Stage::Discarding
                    | Stage::Finished
                    | Stage::Reporting(_)
                    | Stage::Reported
                    | Stage::Unkept,
                    _,
                ) => {}
            }
        }
    }

    /// Up to `low_water` everything is final: the journal may forget what is reported there.
    pub(super) fn forget(&mut self, low_water: u64) {
        if low_water > self.low_water {
            self.low_water = low_water;
            let rules = self.rules;
            // What was asked while it was being reported is asked first.
            self.known
                .retain(|_, known| !known.held.is_empty() || !known.is_over(rules, low_water));
        }
        if self.low_water > self.kept_low_water && self.marking.is_none() {
            self.marking = Some(self.low_water);
            self.write(Step::LowWater(self.low_water));
        }
    }

    /// The mark is durable, or is not.
    pub(super) fn marked(&mut self, durable: bool) {
        // What could not be kept, the next mark brings as well.
        let Some(mark) = self.marking.take().filter(|_| durable) else {
            return;
        };
        self.kept_low_water = mark;
        self.forget(mark);
    }
}

impl Known {
    /// Whether a mark covers it and nobody needs it any more: the journal forgets it with this mark, or with the next
    /// one where this one was durable first.
    pub(super) fn is_over(&self, rules: impl Rulebook, low_water: u64) -> bool {
        let is_reported = matches!(self.stage, Stage::Reported);
        is_reported && may_forget(rules, self.entry.state, self.entry.order, low_water)
    }
}
