//! What a connection asks of the store, and what it is told.

use viworks_common::code::RejectCode;
use viworks_common::command::Outcome;
use viworks_common::id::CommandId;
use viworks_common::ledger::permit::{Accepted, Permit};
use viworks_common::ledger::session::Older;
use viworks_common::telemetry::{Batch, Position};
use viworks_common::time::Timestamp;

use super::super::core::Core;
use super::super::store_model::{
    AdmitRequest, Admitted, ConfirmRequest, Fenced, Holder, Leased, Refusal, Store,
};

/// One transaction.
#[derive(Debug)]
pub(super) enum Intent {
    Admit(Box<AdmitRequest>),
    Fork(Box<AdmitRequest>),
    Confirm(Box<ConfirmRequest>),
    Lease(Holder, usize),
    Accept(Holder, CommandId, bool, bool),
    Reject(Holder, CommandId, RejectCode),
    Start(Holder, CommandId),
    Complete(Holder, CommandId, Box<Outcome>),
    Telemetry(Holder, Box<Batch>),
    End(Holder),
}

/// Its outcome.
#[derive(Debug)]
pub(super) enum Answer {
    Admitted(Box<Result<Admitted, Refusal>>),
    Confirmed(Option<Older>),
    Leased(Vec<Leased>),
    Accepted(Permit),
    Completed(u64),
    Committed(Position),
    Done,
    Fenced,
}

impl Intent {
    /// Commits it.
    pub(super) fn execute(&self, store: &mut Store, core: &mut Core, now: Timestamp) -> Answer {
        let recorder = &mut core.recorder;
        let answer = match self {
            Self::Admit(request) => Answer::Admitted(Box::new(store.admit(request, now, recorder))),
            Self::Fork(request) => {
                store.record_fork(request.agent, request.facts.agent_run_id, recorder);
                Answer::Done
            }
            Self::Confirm(request) => Answer::Confirmed(store.confirm(request, now, recorder)),
            Self::Lease(holder, room) => {
                let leased = store.lease(*holder, *room, now, recorder);
                leased.map_or(Answer::Fenced, Answer::Leased)
            }
            Self::Accept(holder, id, idempotent, awaiting) => {
                let said = Accepted {
                    idempotent: *idempotent,
                    awaiting_permit: *awaiting,
                };
                let accepted = store.accept(*holder, *id, said, now, recorder);
                accepted.map_or(Answer::Fenced, Answer::Accepted)
            }
            Self::Reject(holder, id, code) => {
                done(store.reject(*holder, *id, *code, now, recorder))
            }
            Self::Start(holder, id) => done(store.start(*holder, *id, now, recorder)),
            Self::Complete(holder, id, outcome) => {
                let completed = store.complete(*holder, *id, outcome, now, recorder);
                completed.map_or(Answer::Fenced, Answer::Completed)
            }
            Self::Telemetry(holder, batch) => {
                let position = store.commit_telemetry(*holder, batch, now, recorder);
                position.map_or(Answer::Fenced, Answer::Committed)
            }
            Self::End(holder) => {
                store.end_session(*holder, now);
                Answer::Done
            }
        };
        core.note(|| format!("store: {self:?} -> {answer:?}"));
        answer
    }
}

fn done(result: Result<(), Fenced>) -> Answer {
    match result {
        Ok(()) => Answer::Done,
        Err(Fenced) => Answer::Fenced,
    }
}
