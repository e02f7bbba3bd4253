//! What a session asks about a command: offers, permits, withdrawals, cancellations, acknowledgements.

use std::collections::VecDeque;

use super::run::CANCELLED;
use super::{Asked, Effect, Engine, Known, Now, Permitted, Refused, Stage, Wanted};
use crate::code::RejectCode;
use crate::command::{self, OutcomeState};
use crate::id::CommandId;
use crate::journal::{
    Entry, EntryState, Idempotent, LocalView, OnCancel, OnCommand, OnDrop, OnGo, Step, on_cancel,
    on_drop, on_go, on_known_command, on_new_command,
};
use crate::limits;
use crate::rules::{Rule, Rulebook};
use crate::time::Monotonic;
use crate::wire::message::{
    AgentMessage, Command, CommandAccepted, CommandRejected, CommandStarted, Event,
};

impl<R: Rulebook> Engine<R> {
    pub(super) fn asked(&mut self, id: CommandId, asked: Asked, now: Now) {
        if let Some(known) = self.known.get_mut(&id)
            && known.stage.is_busy()
        {
            match (&mut known.stage, asked) {
                // Whoever waits for the disk sees to it.
                (Stage::Starting { end, .. }, Asked::Cancel) => *end = Some(Wanted::ByOperator),
                (_, asked) => {
                    known.held.push_back(asked);
                    self.held += 1;
                }
            }
            return;
        }
        match asked {
            Asked::Offer(command, deadline) => self.offered(command, deadline, now),
            Asked::Go(deadline) => self.permitted(id, deadline, now),
            Asked::Drop => self.dropped(id),
            Asked::Cancel => self.cancelled(id),
            Asked::Acknowledged(low_water) => self.acknowledged(id, low_water, now),
        }
    }

    /// What was asked while something was under way is decided now, as far as nothing is again.
    pub(super) fn release(&mut self, id: CommandId, now: Now) {
        while let Some(known) = self.known.get(&id)
            && !known.stage.is_busy()
        {
            if known.is_over(self.rules, self.low_water) {
                return self.forgo(id, now);
            }
            let held = self.known.get_mut(&id).map(|known| &mut known.held);
            let Some(asked) = held.and_then(VecDeque::pop_front) else {
                return;
            };
            self.held -= 1;
            self.asked(id, asked, now);
        }
    }

    /// It is not known any more: what was asked meanwhile is asked about an unknown command.
    pub(super) fn forgo(&mut self, id: CommandId, now: Now) {
        let Some(known) = self.known.remove(&id) else {
            return;
        };
        self.held -= known.held.len();
        for asked in known.held {
            self.asked(id, asked, now);
        }
    }

    fn offered(&mut self, command: Box<Command>, deadline: Monotonic, now: Now) {
        let id = command.command_id;
        let digest = command::digest(&command.name, &command.arguments);
        if command::format_digest(&digest) != command.digest {
            let detail = "name, arguments and digest do not fit";
            return self.reject(id, RejectCode::DigestMismatch, detail);
        }
        let Some(known) = self.known.get(&id) else {
            return self.look_up(command, digest, deadline);
        };
        let runs = matches!(known.stage, Stage::Running(_));
        if !self.rules.keeps(Rule::KnownIdAnswered) && !runs {
            return self.look_up(command, digest, deadline);
        }
        let waits = matches!(known.stage, Stage::Waiting);
        match on_known_command(&known.entry, &digest, command.permitted) {
            OnCommand::Announce { start } if waits => {
                self.say_accepted(id, !start);
                if start {
                    self.permit(id, deadline, now);
                } else if let Some(known) = self.known.get_mut(&id) {
                    known.deadline = Some(deadline);
                }
            }
            // It has its permit already; or it is over, and the journal cannot say so.
            OnCommand::Announce { .. } => self.say_accepted(id, false),
            OnCommand::ResendStarted => self.say_started(id),
            OnCommand::ResendResult => self.effects.push_back(Effect::Resend(id)),
            OnCommand::SecurityEvent => {
                let detail = format!("command {id} came again with another digest");
                self.say(AgentMessage::Event(Event {
                    kind: "digest_mismatch".to_owned(),
                    detail: detail.clone(),
                }));
                self.reject(id, RejectCode::DigestMismatch, &detail);
            }
            OnCommand::Reject(code) => self.reject(id, code, code.name()),
            // The rules accept only what is not known.
            OnCommand::Accept { .. } => {}
        }
    }

    /// Asks the catalogue about a command that the journal does not hold.
    fn look_up(&mut self, command: Box<Command>, digest: [u8; 32], deadline: Monotonic) {
        let id = command.command_id;
        let entry = Entry {
            command_id: id,
            order: command.order,
            digest,
            name: command.name.clone(),
            arguments: command.arguments.clone(),
            timeout_ms: command.timeout_ms,
            idempotent: false,
            state: EntryState::Accepted,
            agent_run_id: self.run,
            outcome: None,
        };
        self.effects.push_back(Effect::Check(command.clone()));
        let known = Known {
            entry,
            stage: Stage::Checking(command, deadline),
            deadline: Some(deadline),
            started_at: None,
            held: self
                .known
                .remove(&id)
                .map_or_else(VecDeque::new, |it| it.held),
        };
        self.known.insert(id, known);
        self.checks += 1;
    }

    pub(super) fn checked(
        &mut self,
        id: CommandId,
        verdict: &Result<Idempotent, Refused>,
        now: Now,
    ) {
        let Some(Stage::Checking(command, deadline)) = self.stage(id) else {
            return;
        };
        let (order, permitted) = (command.order, command.permitted);
        let local = LocalView {
            verdict: match verdict {
                Ok(_) if self.is_stopping() => Err(RejectCode::Busy),
                Ok(idempotent) => Ok(*idempotent),
                Err(refused) => Err(refused.code),
            },
            unreported: self.unreported(),
            low_water: self.low_water,
            expired: *deadline <= now.clock,
        };
        self.checks -= 1;
        match on_new_command(self.rules, order, permitted, &local) {
            OnCommand::Accept { start, idempotent } => {
                let Some(known) = self.known.get_mut(&id) else {
                    return;
                };
                known.entry.idempotent = idempotent;
                if start {
                    known.stage = Stage::Opening;
                    let entry = Box::new(known.entry.clone());
                    self.effects.push_back(Effect::Prepare(entry));
                } else {
                    self.accept(id, Permitted::No, now);
                }
            }
            OnCommand::Reject(code) => {
                let detail = match verdict {
                    Err(refused) if refused.code == code => refused.detail.as_str(),
                    Ok(_) | Err(_) => code.name(),
                };
                self.reject(id, code, detail);
                self.forgo(id, now);
            }
            // The rules answer so only about what is known.
            OnCommand::Announce { .. }
            | OnCommand::ResendStarted
            | OnCommand::ResendResult
            | OnCommand::SecurityEvent => {}
        }
    }

    /// Writes that it is accepted, and nothing more yet.
    pub(super) fn accept(&mut self, id: CommandId, permitted: Permitted, now: Now) {
        let Some(known) = self.known.get_mut(&id) else {
            return;
        };
        known.stage = Stage::Accepting(permitted);
        let entry = Box::new(known.entry.clone());
        self.write(Step::Accept(entry));
        self.presume(id, now);
    }

    fn permitted(&mut self, id: CommandId, deadline: Monotonic, now: Now) {
        let known = self.known.get(&id);
        if matches!(
            known.map(|it| &it.stage),
            Some(Stage::Preparing | Stage::Unwritten(..) | Stage::Unkept)
        ) {
            return;
        }
        match on_go(self.rules, known.map(|known| &known.entry)) {
            OnGo::Start => self.permit(id, deadline, now),
            OnGo::ResendResult => self.effects.push_back(Effect::Resend(id)),
            OnGo::Ignore => {}
        }
    }

    fn dropped(&mut self, id: CommandId) {
        let waits = self
            .known
            .get(&id)
            .filter(|it| matches!(it.stage, Stage::Waiting));
        match on_drop(waits.map(|known| &known.entry)) {
            OnDrop::Discard => {
                self.set_stage(id, Stage::Discarding);
                self.write(Step::Discard(id));
            }
            OnDrop::Ignore => {}
        }
    }

    fn cancelled(&mut self, id: CommandId) {
        let known = self.known.get(&id);
        let known = known.filter(|it| !matches!(it.stage, Stage::Unwritten(..) | Stage::Unkept));
        match on_cancel(known.map(|known| &known.entry)) {
            OnCancel::FinishCancelled => {
                self.finish_unstarted(id, OutcomeState::Cancelled, CANCELLED);
            }
            OnCancel::End => self.end(id),
            OnCancel::ResendResult => self.effects.push_back(Effect::Resend(id)),
            OnCancel::Ignore => {}
        }
    }

    fn acknowledged(&mut self, id: CommandId, low_water: u64, now: Now) {
        match self.stage(id) {
            Some(Stage::Finished) => {
                self.set_stage(id, Stage::Reporting(low_water));
                self.write(Step::Report(id));
            }
            Some(Stage::Unkept) => {
                self.forget(low_water);
                self.forgo(id, now);
            }
            // An unknown or unfinished one has nothing to note.
            Some(_) | None => self.forget(low_water),
        }
    }

    pub(super) fn reject(&mut self, command_id: CommandId, code: RejectCode, detail: &str) {
        let end = detail.floor_char_boundary(limits::DETAIL_BYTES_MAX);
        self.say(AgentMessage::CommandRejected(CommandRejected {
            command_id,
            code,
            detail: detail[..end].to_owned(),
        }));
    }

    pub(super) fn say_accepted(&mut self, command_id: CommandId, awaiting_permit: bool) {
        let Some(known) = self.known.get(&command_id) else {
            return;
        };
        let idempotent = known.entry.idempotent;
        self.say(AgentMessage::CommandAccepted(CommandAccepted {
            command_id,
            idempotent,
            awaiting_permit,
        }));
    }

    /// Of what was launched; that the journal says *started* may have come to nothing since.
    pub(super) fn say_started(&mut self, command_id: CommandId) {
        let known = self.known.get(&command_id);
        if let Some(started_at) = known.and_then(|known| known.started_at) {
            self.say(AgentMessage::CommandStarted(CommandStarted {
                command_id,
                started_at,
            }));
        }
    }
}
