//! The gateway's journal as pure rules: what an entry allows, whatever is delivered twice, late or after a restart.

use std::sync::Arc;

use crate::code::RejectCode;
use crate::command::{Arguments, Outcome};
use crate::id::{AgentRunId, CommandId, CommandName};
use crate::limits;
use crate::rules::{Rule, Rulebook};

/// How far a journalled command has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryState {
    /// Durable; waits for its permit or its turn.
    Accepted,
    /// About to run, running, or interrupted while it ran.
    Started,
    /// Its outcome is durable.
    Finished,
    /// The backend has committed its outcome.
    Reported,
}

impl EntryState {
    /// The word in the journal.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Started => "started",
            Self::Finished => "finished",
            Self::Reported => "reported",
        }
    }

    /// The state with a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [
            Self::Accepted,
            Self::Started,
            Self::Finished,
            Self::Reported,
        ]
        .into_iter()
        .find(|state| state.name() == name)
    }
}

/// One command in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The command.
    pub command_id: CommandId,
    /// Its order on this gateway.
    pub order: u64,
    /// SHA-256 of name and arguments.
    pub digest: [u8; 32],
    /// Its name.
    pub name: CommandName,
    /// Its arguments, as offered.
    pub arguments: Arguments,
    /// The time limit that it was offered with, in milliseconds: it can only shorten the catalogue's.
    pub timeout_ms: Option<u64>,
    /// Whether the gateway's catalogue called it idempotent when it was accepted.
    pub idempotent: bool,
    /// How far it has come.
    pub state: EntryState,
    /// The process that accepted it or, once started, started it.
    pub agent_run_id: AgentRunId,
    /// How it ended, once it has.
    pub outcome: Option<Outcome>,
}

/// What the gateway knows when a command arrives, beyond the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalView {
    /// What the catalogue says of name and arguments: allowed, and whether idempotent, or why not.
    pub verdict: Result<Idempotent, RejectCode>,
    /// Journal entries that are not reported.
    pub unreported: usize,
    /// The highest low-water mark ever told.
    pub low_water: u64,
    /// Whether the deadline has passed already.
    pub expired: bool,
}

/// Whether running a command twice does no harm, in the gateway's own opinion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Idempotent(pub bool);

/// What to do with an offered command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCommand {
    /// Journal it as accepted and say so. `start` when the inline permit may be used: the gateway, too, calls it
    /// idempotent.
    Accept {
        /// Whether it may start without GO.
        start: bool,
        /// The gateway's own opinion.
        idempotent: bool,
    },
    /// Say again that it is accepted. `start` as above.
    Announce {
        /// Whether it may start without GO.
        start: bool,
    },
    /// Say again that it started.
    ResendStarted,
    /// Send its outcome again.
    ResendResult,
    /// Refuse it; nothing is journalled.
    Reject(RejectCode),
    /// Refuse it, and tell an operator: a known id came with another digest.
    SecurityEvent,
}

/// Decides about COMMAND with an id that the journal holds: it is answered from there.
#[must_use]
pub fn on_known_command(entry: &Entry, digest: &[u8; 32], permitted: bool) -> OnCommand {
    if entry.digest != *digest {
        return OnCommand::SecurityEvent;
    }
    match entry.state {
        EntryState::Accepted => OnCommand::Announce {
            start: permitted && entry.idempotent,
        },
        EntryState::Started => OnCommand::ResendStarted,
        EntryState::Finished | EntryState::Reported => OnCommand::ResendResult,
    }
}

/// Decides about COMMAND with an id that the journal does not hold.
#[must_use]
pub fn on_new_command(
    rules: impl Rulebook,
    order: u64,
    permitted: bool,
    local: &LocalView,
) -> OnCommand {
    // Everything up to the mark is final: an unknown id there ran and was forgotten.
    if order <= local.low_water && rules.keeps(Rule::LowWaterForgetting) {
        return OnCommand::Reject(RejectCode::Stale);
    }
    match local.verdict {
        Err(code) => OnCommand::Reject(code),
        Ok(_) if local.unreported >= limits::COMMANDS_UNREPORTED_MAX => {
            OnCommand::Reject(RejectCode::Busy)
        }
        Ok(Idempotent(idempotent)) => OnCommand::Accept {
            start: (permitted && idempotent && !local.expired) || !rules.keeps(Rule::Permit),
            idempotent,
        },
    }
}

/// What to do with GO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnGo {
    /// Check it again and start it: this consumes the permit.
    Start,
    /// It waits for nothing, or is unknown.
    Ignore,
    /// It is over: send its outcome again.
    ResendResult,
}

/// Decides about GO, which only ever reaches the run it was given to, on an authenticated session of that run.
#[must_use]
pub fn on_go(rules: impl Rulebook, known: Option<&Entry>) -> OnGo {
    match known.map(|entry| entry.state) {
        Some(EntryState::Accepted) => OnGo::Start,
        Some(EntryState::Finished | EntryState::Reported) if !rules.keeps(Rule::PermitConsumed) => {
            OnGo::Start
        }
        // Acknowledged, and permitted all the same: the backend's database was restored to before that.
        Some(EntryState::Finished | EntryState::Reported) => OnGo::ResendResult,
        Some(EntryState::Started) | None => OnGo::Ignore,
    }
}

/// What to do with `COMMAND_DROP`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDrop {
    /// It is never started; the entry counts as reported, because the backend has decided without it.
    Discard,
    /// It has no waiting entry.
    Ignore,
}

/// Decides about `COMMAND_DROP`: only what was never started can be dropped.
#[must_use]
pub fn on_drop(known: Option<&Entry>) -> OnDrop {
    match known.map(|entry| entry.state) {
        Some(EntryState::Accepted) => OnDrop::Discard,
        Some(EntryState::Started | EntryState::Finished | EntryState::Reported) | None => {
            OnDrop::Ignore
        }
    }
}

/// What to do with `COMMAND_CANCEL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCancel {
    /// Not started: finish it as cancelled.
    FinishCancelled,
    /// Running: end its processes; the outcome says cancelled.
    End,
    /// Over: send its outcome again.
    ResendResult,
    /// Unknown.
    Ignore,
}

/// Decides about `COMMAND_CANCEL`.
#[must_use]
pub fn on_cancel(known: Option<&Entry>) -> OnCancel {
    match known.map(|entry| entry.state) {
        Some(EntryState::Accepted) => OnCancel::FinishCancelled,
        Some(EntryState::Started) => OnCancel::End,
        Some(EntryState::Finished | EntryState::Reported) => OnCancel::ResendResult,
        None => OnCancel::Ignore,
    }
}

/// What a new process does with an entry it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRestart {
    /// Nothing: it waits for a fresh permit, or for its acknowledgement.
    Keep,
    /// It was interrupted and may run again: back to accepted, waiting for a fresh permit.
    AwaitPermitAgain,
    /// It was interrupted, and whether it did its work cannot be known.
    FinishIndeterminate,
}

/// Decides about an entry of an earlier process.
#[must_use]
pub fn on_restart(rules: impl Rulebook, entry: &Entry) -> OnRestart {
    let again = entry.idempotent || !rules.keeps(Rule::InterruptedIsIndeterminate);
    match entry.state {
        EntryState::Accepted | EntryState::Finished | EntryState::Reported => OnRestart::Keep,
        EntryState::Started if again => OnRestart::AwaitPermitAgain,
        EntryState::Started => OnRestart::FinishIndeterminate,
    }
}

/// What becomes of a command that the agent ended because it stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStop {
    /// Nothing here: its entry stays started, and the next process runs it again.
    RunAgain,
    /// It is over.
    Finish,
}

/// Decides about a started entry at an orderly stop, which must cost no more than a crash: what the next process would
/// run again then, it is to run again now.
#[must_use]
pub fn on_stop(rules: impl Rulebook, entry: &Entry) -> OnStop {
    match on_restart(rules, entry) {
        OnRestart::AwaitPermitAgain => OnStop::RunAgain,
        // That it was ended is known here, which after a crash it is not.
        OnRestart::FinishIndeterminate | OnRestart::Keep => OnStop::Finish,
    }
}

/// Whether an entry may be forgotten: by the low-water mark, never by time.
#[must_use]
pub fn may_forget(rules: impl Rulebook, state: EntryState, order: u64, low_water: u64) -> bool {
    let marked = order <= low_water || !rules.keeps(Rule::LowWaterForgetting);
    state == EntryState::Reported && marked
}

/// One durable change of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A new entry, which also raises the highest order: *accepted*, or *started* with it when it can start at once.
    Accept(Box<Entry>),
    /// An accepted entry is about to run, in this process.
    Start(CommandId, AgentRunId),
    /// An entry ended, whether it ran or not.
    Finish(CommandId, Arc<Outcome>),
    /// The backend has committed its outcome.
    Report(CommandId),
    /// The backend withdrew an accepted entry: it never starts, and needs no report.
    Discard(CommandId),
    /// A started entry of an earlier process may run again, in this one, once it has a new permit.
    AwaitAgain(CommandId, AgentRunId),
    /// Everything up to this order is final: what is reported there is forgotten.
    LowWater(u64),
}

impl Step {
    /// The entry that it is about.
    #[must_use]
    pub fn command_id(&self) -> Option<CommandId> {
        match self {
            Self::Accept(entry) => Some(entry.command_id),
            Self::Start(id, _)
            | Self::Finish(id, _)
            | Self::Report(id)
            | Self::Discard(id)
            | Self::AwaitAgain(id, _) => Some(*id),
            Self::LowWater(_) => None,
        }
    }

    /// The state in which it leaves an entry that is there; `None` when it does not start from the state of that one.
    #[must_use]
    pub fn leaves(&self, rules: impl Rulebook, entry: &Entry) -> Option<EntryState> {
        use EntryState::{Accepted, Finished, Reported, Started};

        let next = match (self, entry.state) {
            (Self::Start(..), Accepted) => Started,
            (Self::Start(..), Finished | Reported) if !rules.keeps(Rule::PermitConsumed) => Started,
            (Self::Finish(..), Accepted | Started) => Finished,
            (Self::Report(_), Finished | Reported) => Reported,
            (Self::Discard(_), Accepted) => Reported,
            (Self::AwaitAgain(..), Started)
                if entry.idempotent || !rules.keeps(Rule::InterruptedIsIndeterminate) =>
            {
                Accepted
            }
            (Self::Accept(again), _) if !rules.keeps(Rule::KnownIdAnswered) => again.state,
            _ => return None,
        };
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::rules::Complete;

    const DIGEST: [u8; 32] = [7; 32];

    fn entry(state: EntryState, idempotent: bool) -> Entry {
        Entry {
            command_id: CommandId::from_uuid(Uuid::from_u128(1)),
            order: 5,
            digest: DIGEST,
            name: "sys.uptime".parse().unwrap(),
            arguments: Arguments::new(),
            timeout_ms: None,
            idempotent,
            state,
            agent_run_id: AgentRunId::from_uuid(Uuid::from_u128(2)),
            outcome: None,
        }
    }

    const FREE: LocalView = LocalView {
        verdict: Ok(Idempotent(false)),
        unreported: 0,
        low_water: 0,
        expired: false,
    };

    const STATES: [EntryState; 4] = [
        EntryState::Accepted,
        EntryState::Started,
        EntryState::Finished,
        EntryState::Reported,
    ];

    proptest! {
        #[test]
        fn an_inline_permit_never_starts_what_the_gateway_calls_not_idempotent(
            permitted in any::<bool>(), order in 1_u64..10, low_water in 0_u64..10, known in prop::option::of(0_usize..4)
        ) {
            let known = known.map(|state| entry(STATES[state], false));
            let decision = match &known {
                Some(entry) => on_known_command(entry, &DIGEST, permitted),
                None => on_new_command(Complete, order, permitted, &LocalView { low_water, ..FREE }),
            };
            let starts = matches!(decision, OnCommand::Accept { start: true, .. } | OnCommand::Announce { start: true });
            prop_assert!(!starts);
        }

        #[test]
        fn an_unknown_order_up_to_the_mark_is_never_accepted(order in 0_u64..20, low_water in 0_u64..20, permitted in any::<bool>()) {
            let decision = on_new_command(Complete, order, permitted, &LocalView { low_water, ..FREE });
            prop_assert_eq!(matches!(decision, OnCommand::Accept { .. }), order > low_water);
        }
    }

    #[test]
    fn a_known_id_is_answered_from_the_journal() {
        let decide = |state| on_known_command(&entry(state, true), &DIGEST, true);
        assert_eq!(
            decide(EntryState::Accepted),
            OnCommand::Announce { start: true }
        );
        assert_eq!(decide(EntryState::Started), OnCommand::ResendStarted);
        assert_eq!(decide(EntryState::Finished), OnCommand::ResendResult);
        assert_eq!(decide(EntryState::Reported), OnCommand::ResendResult);
        assert_eq!(
            on_known_command(&entry(EntryState::Finished, true), &[8; 32], true),
            OnCommand::SecurityEvent
        );
    }

    #[test]
    fn a_permit_is_consumed_by_the_start() {
        assert_eq!(
            on_go(Complete, Some(&entry(EntryState::Accepted, false))),
            OnGo::Start
        );
        assert_eq!(
            on_go(Complete, Some(&entry(EntryState::Started, false))),
            OnGo::Ignore
        );
        assert_eq!(
            on_go(Complete, Some(&entry(EntryState::Finished, false))),
            OnGo::ResendResult
        );
        assert_eq!(on_go(Complete, None), OnGo::Ignore);
    }

    #[test]
    fn whoever_asks_about_what_is_over_is_told_its_outcome_again() {
        for state in [EntryState::Finished, EntryState::Reported] {
            assert_eq!(
                on_go(Complete, Some(&entry(state, false))),
                OnGo::ResendResult,
                "a restored database permits it again"
            );
            assert_eq!(
                on_cancel(Some(&entry(state, false))),
                OnCancel::ResendResult
            );
        }
        assert_eq!(
            on_cancel(Some(&entry(EntryState::Accepted, false))),
            OnCancel::FinishCancelled
        );
        assert_eq!(
            on_cancel(Some(&entry(EntryState::Started, false))),
            OnCancel::End
        );
        assert_eq!(on_cancel(None), OnCancel::Ignore);
    }

    #[test]
    fn only_what_never_started_is_dropped() {
        for state in STATES {
            assert_eq!(
                on_drop(Some(&entry(state, false))) == OnDrop::Discard,
                state == EntryState::Accepted
            );
        }
    }

    #[test]
    fn an_interrupted_command_is_indeterminate_unless_it_may_run_twice() {
        assert_eq!(
            on_restart(Complete, &entry(EntryState::Started, false)),
            OnRestart::FinishIndeterminate
        );
        assert_eq!(
            on_restart(Complete, &entry(EntryState::Started, true)),
            OnRestart::AwaitPermitAgain
        );
        let stopped = |idempotent| on_stop(Complete, &entry(EntryState::Started, idempotent));
        assert_eq!(stopped(true), OnStop::RunAgain);
        assert_eq!(stopped(false), OnStop::Finish);
        assert_eq!(
            on_restart(Complete, &entry(EntryState::Accepted, false)),
            OnRestart::Keep
        );
    }

    #[test]
    fn nothing_is_forgotten_before_it_is_reported_and_final_everywhere() {
        assert!(may_forget(Complete, EntryState::Reported, 5, 5));
        assert!(!may_forget(Complete, EntryState::Reported, 6, 5));
        assert!(!may_forget(Complete, EntryState::Finished, 1, 5));
    }

    #[test]
    fn a_step_starts_only_from_where_it_belongs() {
        use EntryState::{Accepted, Finished, Reported, Started};

        let id = entry(Accepted, false).command_id;
        let run = AgentRunId::from_uuid(Uuid::from_u128(3));
        let outcome = Arc::new(Outcome::without_run(
            crate::command::OutcomeState::Expired,
            "late",
        ));
        let leaves = |step: &Step, idempotent| {
            STATES.map(|state| step.leaves(Complete, &entry(state, idempotent)))
        };
        let start = Step::Start(id, run);
        assert_eq!(leaves(&start, true), [Some(Started), None, None, None]);
        let finish = Step::Finish(id, outcome);
        assert_eq!(
            leaves(&finish, false),
            [Some(Finished), Some(Finished), None, None]
        );
        let report = Step::Report(id);
        assert_eq!(
            leaves(&report, false),
            [None, None, Some(Reported), Some(Reported)]
        );
        let discard = Step::Discard(id);
        assert_eq!(leaves(&discard, false), [Some(Reported), None, None, None]);
        let again = Step::AwaitAgain(id, run);
        assert_eq!(leaves(&again, true), [None, Some(Accepted), None, None]);
        assert_eq!(leaves(&again, false), [None; 4]);
        let accept = Step::Accept(Box::new(entry(Accepted, true)));
        assert_eq!(leaves(&accept, true), [None; 4], "a known id is not new");
    }
}
