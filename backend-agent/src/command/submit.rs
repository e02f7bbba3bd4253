//! Submitting a run: gateways selected, the run accepted whole or not, and its commands on their way.

mod delivery;
mod known;
mod selection;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use viworks_api::SkipCode;
use viworks_common::catalogue::{ArgumentProblem, CatalogueEntry, Risk};
use viworks_common::command::Arguments;
use viworks_common::human;
use viworks_common::id::{AgentId, CommandId, CommandName, GatewayName, RunId};
use viworks_common::limits;
use viworks_runtime::random;

use super::Commands;
use crate::data::{
    Actor, GatewayRef, Idempotency, NewCommand, NewRun, Remembered, Run, Skip, StoreError,
    Submission, Target, TargetSelection,
};
use delivery::Delivery;
pub(super) use known::Known;
use selection::Selection;

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubmitRequest {
    /// The id that the run gets, a fresh `UUIDv7`.
    pub run_id: RunId,
    /// The command's name.
    pub command: CommandName,
    /// Its arguments as given.
    pub arguments: Arguments,
    /// Which gateways.
    pub targets: TargetSelection,
    /// How long a command may wait for its start.
    pub deadline: Duration,
    /// A time limit below the catalogue's.
    pub timeout: Option<Duration>,
    /// Whether gateways that cannot take it are left out, instead of refusing the run.
    pub skip_unable: bool,
    /// Refuse unless exactly so many gateways get the command.
    pub expect_targets: Option<u64>,
    /// Why, in the operator's words.
    pub reason: Option<String>,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// The request's `Idempotency-Key`.
    pub idempotency: Option<Idempotency>,
    /// The dead letter that it retries.
    pub retry_of: Option<CommandId>,
    /// The risks the operator may take.
    pub risks: BTreeSet<Risk>,
    /// Who.
    pub actor: Actor,
}

/// An accepted submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitted {
    /// The run.
    pub run: Run,
    /// Whether the same request had been accepted before.
    pub replayed: bool,
}

/// What a submission would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// As they would be stored with the run.
    pub arguments: Arguments,
    /// Those that would get the command.
    pub gateways: Vec<PlannedGateway>,
    /// Those that are meant and would not.
    pub skipped: Vec<NotOffered>,
}

/// A gateway that would get the command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedGateway {
    /// Which gateway.
    pub agent_id: AgentId,
    /// Its name.
    pub gateway: GatewayName,
    /// What the command can do there, as the gateway says.
    pub risk: Risk,
}

/// A gateway that cannot take the command, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotOffered {
    /// Which gateway.
    pub agent_id: AgentId,
    /// Its name.
    pub gateway: GatewayName,
    /// Why, as a word.
    pub code: SkipCode,
    /// Why, in a sentence.
    pub problem: String,
}

impl NotOffered {
    fn skip(self) -> Skip {
        let mut detail = self.problem;
        detail.truncate(detail.floor_char_boundary(limits::DETAIL_BYTES_MAX));
        Skip {
            agent_id: self.agent_id,
            code: self.code,
            detail,
        }
    }
}

/// Why nothing was submitted.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The selection comes to nothing.
    #[error("{0}")]
    NoTarget(&'static str),
    /// More gateways than one run may have.
    #[error("{} more than one run may have", human::counted(*.0, "gateway is", "gateways are"))]
    TooManyTargets(usize),
    /// Named gateways that do not exist or were revoked.
    #[error("unknown or revoked gateways")]
    UnknownGateways(Vec<(GatewayRef, &'static str)>),
    /// No gateway has this command.
    #[error("no gateway has this command in its catalogue")]
    UnknownCommand,
    /// Gateways that cannot take it.
    #[error("{} of the gateways that are meant cannot take this command; nothing was sent", .0.len())]
    NotOffered(Vec<NotOffered>),
    /// Arguments that fit no gateway's declaration.
    #[error("the arguments do not fit the command's declaration")]
    BadArguments(Vec<ArgumentProblem>),
    /// Arguments that do not fit what some of the gateways declare.
    #[error("the arguments do not fit what {} of the gateways declare; nothing was sent", .0.len())]
    BadArgumentsThere(Vec<NotOffered>),
    /// The operator may not take this risk.
    #[error("this command's risk is {}", risk.name())]
    RiskNotAllowed {
        /// The highest that is not allowed.
        risk: Risk,
        /// Where it is, when that is not the same everywhere.
        gateways: Vec<NotOffered>,
    },
    /// A dangerous command needs a reason; where it is dangerous, when that is not everywhere.
    #[error("a dangerous command needs a reason")]
    ReasonMissing(Vec<NotOffered>),
    /// Another number of gateways than expected.
    #[error("gateways that can take the command: {found}; expected: {expected}")]
    TargetCount {
        /// How many were expected.
        expected: u64,
        /// How many there are.
        found: u64,
    },
    /// The `Idempotency-Key` was used for another request.
    #[error("the idempotency key was used for another request")]
    IdempotencyMismatch,
    /// The dead letter is none any more.
    #[error("the command was discarded, or is no longer kept as a dead letter; nothing was sent")]
    Resolved,
    /// The store said no.
    #[error("failed to submit the run")]
    Store(#[from] StoreError),
}

/// The store's answer in an operator's terms.
fn answered(submission: Submission) -> Result<Submitted, SubmitError> {
    match submission {
        Submission::Submitted { run, .. } => Ok(Submitted {
            run,
            replayed: false,
        }),
        Submission::Replayed(run) => Ok(Submitted {
            run,
            replayed: true,
        }),
        Submission::IdempotencyMismatch => Err(SubmitError::IdempotencyMismatch),
        Submission::Resolved => Err(SubmitError::Resolved),
        Submission::Outdated => {
            let cause = "what was read is said to be remembered".into();
            Err(SubmitError::Store(StoreError::Unavailable(cause)))
        }
    }
}

impl Commands {
    /// Accepts a run whole, or refuses it whole. Where the session of a gateway has room, its command is offered in
    /// the same transaction and sent at once; for the others dispatch is woken.
    ///
    /// # Errors
    /// Why nothing was submitted.
    pub async fn submit(&self, request: SubmitRequest) -> Result<Submitted, SubmitError> {
        // A repeated submission gets its run even when gateways or catalogues have changed since.
        if let Some(idempotency) = &request.idempotency {
            let now = self.clock.line();
            let earlier = self
                .store
                .earlier_submission(&self.tenant, idempotency, now)
                .await?;
            if let Some(earlier) = earlier {
                return answered(earlier);
            }
        }
        selection::check_request(&request)?;
        // What is remembered may accept a run, because the transaction looks whether it is still so. It refuses none.
        if let Some(targets) = self.known.targets(&request.targets, &request.command)
            && let Ok(selection) = selection::select(targets, &request)
        {
            let submission = self.store_run(&request, selection, true).await?;
            if !matches!(submission, Submission::Outdated) {
                return answered(submission);
            }
        }
        let selection = self.select(&request).await?;
        answered(self.store_run(&request, selection, false).await?)
    }

    /// What a submission would do, by the same checks; nothing is stored. Whether queues have room shows only when it
    /// is submitted.
    ///
    /// # Errors
    /// Why nothing would be submitted.
    pub async fn plan(&self, request: &SubmitRequest) -> Result<Planned, SubmitError> {
        selection::check_request(request)?;
        let selection = self.select(request).await?;
        Ok(Planned {
            arguments: selection.arguments,
            gateways: selection
                .candidates
                .into_iter()
                .map(|candidate| PlannedGateway {
                    agent_id: candidate.agent_id,
                    gateway: candidate.name,
                    risk: candidate.entry.risk,
                })
                .collect(),
            skipped: selection.skipped,
        })
    }

    /// What the request comes to. That some gateways lack a command which others have is no misspelling: those that are
    /// meant are named.
    async fn select(&self, request: &SubmitRequest) -> Result<Selection, SubmitError> {
        let selected = selection::select(self.targets(request).await?, request);
        let some_are_meant = !matches!(request.targets, TargetSelection::All);
        if !matches!(selected, Err(SubmitError::UnknownCommand)) || !some_are_meant {
            return selected;
        }
        let everywhere = self
            .store
            .resolve_targets(&self.tenant, &TargetSelection::All, &request.command)
            .await?;
        if !selection::is_declared(everywhere) {
            return selected;
        }
        let meant = self.targets(request).await?;
        Err(SubmitError::NotOffered(selection::lacking(meant)))
    }

    async fn targets(&self, request: &SubmitRequest) -> Result<Vec<Target>, StoreError> {
        let SubmitRequest {
            targets, command, ..
        } = request;
        let found = self
            .store
            .resolve_targets(&self.tenant, targets, command)
            .await?;
        self.known.remember(targets, command, &found);
        Ok(found)
    }

    async fn store_run(
        &self,
        request: &SubmitRequest,
        selection: Selection,
        remembered: bool,
    ) -> Result<Submission, StoreError> {
        let now = self.clock.line();
        let mut delivery = Delivery::new(Arc::clone(&self.nudge));
        let commands = selection
            .candidates
            .into_iter()
            .map(|candidate| NewCommand {
                agent_id: candidate.agent_id,
                command_id: CommandId::from_uuid(random::uuid_v7(now)),
                idempotent: candidate.entry.idempotent,
                risk: candidate.entry.risk,
                timeout_ms: time_limit(&candidate.entry, request.timeout),
                place: delivery.keep(candidate.agent_id, request.timeout.is_some()),
                remembered: remembered.then_some(Remembered {
                    name: candidate.name,
                    reported_at: candidate.reported_at,
                }),
            });
        let new = NewRun {
            run_id: request.run_id,
            name: request.command.clone(),
            arguments: selection.arguments,
            targets: commands.collect(),
            skipped: selection
                .skipped
                .into_iter()
                .map(NotOffered::skip)
                .collect(),
            skip_full: request.skip_unable,
            deadline: now.saturating_add(request.deadline),
            timeout_ms: request.timeout.map(millis),
            traceparent: request.traceparent.clone(),
            reason: request.reason.clone(),
            actor: request.actor.clone(),
            idempotency: request.idempotency.clone(),
            retry_of: request.retry_of,
            limits: self.limits,
        };
        let waiting = new.targets.iter();
        let waiting = waiting
            .map(|target| (target.agent_id, target.command_id))
            .collect();
        let (store, tenant) = (Arc::clone(&self.store), self.tenant.clone());
        let work = async move {
            let mut submission = store.submit_run(&tenant, new, now).await;
            match &mut submission {
                Ok(Submission::Submitted { offered, .. }) => {
                    delivery.deliver(std::mem::take(offered), waiting);
                }
                // What may have been offered to a session has to come to its gateway by way of the next one.
                Err(StoreError::Unknown(_)) => delivery.give_up(),
                Ok(_) | Err(_) => {}
            }
            submission
        };
        // Whoever asked may hang up at any moment; what was committed is sent all the same.
        let answer = self.lifecycle.spawn("submit", work).await;
        answer.unwrap_or_else(|| Err(StoreError::Unavailable("the submission was cut off".into())))
    }
}

fn time_limit(entry: &CatalogueEntry, wanted: Option<Duration>) -> u64 {
    wanted
        .map_or(entry.timeout_ms, millis)
        .min(entry.timeout_ms)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
