//! Submitting a run: targets resolved, arguments checked against every gateway's own declaration, accepted whole or not.

use std::collections::BTreeSet;
use std::time::Duration;

use viworks_common::catalogue::{ArgumentProblem, CatalogueEntry, Risk, check_arguments};
use viworks_common::command::Arguments;
use viworks_common::id::{AgentId, CommandId, CommandName, GatewayName, RunId};
use viworks_common::limits;
use viworks_runtime::random;

use super::Commands;
use crate::data::{
    Actor, GatewayRef, Idempotency, NewCommand, NewRun, Run, StoreError, Submission, Target,
    TargetSelection,
};

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubmitRequest {
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
    /// Refuse unless exactly so many gateways are meant.
    pub expect_targets: Option<u64>,
    /// Why, in the operator's words.
    pub reason: Option<String>,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// The request's `Idempotency-Key`.
    pub idempotency: Option<Idempotency>,
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

/// A gateway that cannot take the command, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotOffered {
    /// Which gateway.
    pub gateway: GatewayName,
    /// Why.
    pub problem: String,
}

/// Why nothing was submitted.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The selection comes to nothing.
    #[error("{0}")]
    NoTarget(&'static str),
    /// More gateways than one run may have.
    #[error("{0} gateways are more than one run may have")]
    TooManyTargets(usize),
    /// Named gateways that do not exist or were revoked.
    #[error("unknown or revoked gateways")]
    UnknownGateways(Vec<(GatewayRef, &'static str)>),
    /// No gateway has this command.
    #[error("no gateway has this command in its catalogue")]
    UnknownCommand,
    /// Named gateways that cannot take it.
    #[error("not every named gateway can take this command")]
    NotOffered(Vec<NotOffered>),
    /// Arguments that do not fit.
    #[error("the arguments do not fit the command's declaration")]
    BadArguments(Vec<ArgumentProblem>),
    /// The operator may not take this risk.
    #[error("this command's risk is {0:?}")]
    RiskNotAllowed(Risk),
    /// A dangerous command needs a reason.
    #[error("a dangerous command needs a reason")]
    ReasonMissing,
    /// Another number of gateways than expected.
    #[error("{found} gateways are meant and {expected} were expected")]
    TargetCount {
        /// How many were expected.
        expected: u64,
        /// How many there are.
        found: u64,
    },
    /// The `Idempotency-Key` was used for another request.
    #[error("the idempotency key was used for another request")]
    IdempotencyMismatch,
    /// The store said no.
    #[error("failed to submit the run")]
    Store(#[from] StoreError),
}

/// The store's answer in an operator's terms.
fn answered(submission: Submission) -> Result<Submitted, SubmitError> {
    match submission {
        Submission::Submitted(run) => Ok(Submitted {
            run,
            replayed: false,
        }),
        Submission::Replayed(run) => Ok(Submitted {
            run,
            replayed: true,
        }),
        Submission::IdempotencyMismatch => Err(SubmitError::IdempotencyMismatch),
    }
}

/// One gateway that can take the command.
struct Candidate {
    agent_id: AgentId,
    entry: CatalogueEntry,
}

impl Commands {
    /// Accepts a run whole, or refuses it whole; then wakes dispatch.
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
        let candidates = self.candidates(&request).await?;
        let arguments = check_all(&request.arguments, &candidates)?;
        let risk = candidates
            .iter()
            .map(|candidate| candidate.entry.risk)
            .max()
            .unwrap_or(Risk::Danger);
        if !request.risks.contains(&risk) {
            return Err(SubmitError::RiskNotAllowed(risk));
        }
        if risk == Risk::Danger && request.reason.is_none() {
            return Err(SubmitError::ReasonMissing);
        }
        let found = u64::try_from(candidates.len()).unwrap_or(u64::MAX);
        if let Some(expected) = request.expect_targets.filter(|expected| *expected != found) {
            return Err(SubmitError::TargetCount { expected, found });
        }
        let now = self.clock.line();
        let new = NewRun {
            run_id: RunId::from_uuid(random::uuid_v7(now)),
            name: request.command,
            arguments,
            targets: candidates
                .iter()
                .map(|candidate| NewCommand {
                    agent_id: candidate.agent_id,
                    command_id: CommandId::from_uuid(random::uuid_v7(now)),
                    idempotent: candidate.entry.idempotent,
                    risk: candidate.entry.risk,
                    timeout_ms: time_limit(&candidate.entry, request.timeout),
                })
                .collect(),
            deadline: now.saturating_add(request.deadline),
            traceparent: request.traceparent,
            reason: request.reason,
            actor: request.actor,
            idempotency: request.idempotency,
            limits: self.limits,
        };
        let offers: Vec<_> = new
            .targets
            .iter()
            .map(|target| (target.agent_id, target.command_id))
            .collect();
        let submission = self.store.submit_run(&self.tenant, new, now).await?;
        if matches!(submission, Submission::Submitted(_)) {
            for (agent_id, command_id) in offers {
                self.nudge.offer(&agent_id, command_id);
            }
        }
        answered(submission)
    }

    /// The gateways that will get the command. Explicitly named gateways must all be able to take it; `all` means all
    /// that can.
    async fn candidates(&self, request: &SubmitRequest) -> Result<Vec<Candidate>, SubmitError> {
        let explicit = match &request.targets {
            TargetSelection::All => false,
            TargetSelection::Gateways(named) if named.is_empty() => {
                return Err(SubmitError::NoTarget("the list of gateways is empty"));
            }
            TargetSelection::Gateways(named) if named.len() > limits::RUN_TARGETS_MAX => {
                return Err(SubmitError::TooManyTargets(named.len()));
            }
            TargetSelection::Gateways(_) => true,
        };
        let targets = self
            .store
            .resolve_targets(&self.tenant, &request.targets, &request.command)
            .await?;
        let sorted = Sorted::new(targets, explicit);
        if !sorted.unknown.is_empty() {
            return Err(SubmitError::UnknownGateways(sorted.unknown));
        }
        // Where nobody has the command, a list of every gateway would hide the misspelling.
        if !sorted.declared && sorted.reported {
            return Err(SubmitError::UnknownCommand);
        }
        if explicit && !sorted.not_offered.is_empty() {
            return Err(SubmitError::NotOffered(sorted.not_offered));
        }
        if sorted.candidates.is_empty() {
            return Err(if !sorted.any {
                SubmitError::NoTarget("no gateway is registered")
            } else if !sorted.reported {
                SubmitError::NoTarget("no gateway has connected and reported its catalogue")
            } else {
                SubmitError::NotOffered(sorted.not_offered)
            });
        }
        if sorted.candidates.len() > limits::RUN_TARGETS_MAX {
            return Err(SubmitError::TooManyTargets(sorted.candidates.len()));
        }
        Ok(sorted.candidates)
    }
}

/// Resolved targets by what they mean for the submission.
#[derive(Default)]
struct Sorted {
    candidates: Vec<Candidate>,
    unknown: Vec<(GatewayRef, &'static str)>,
    not_offered: Vec<NotOffered>,
    any: bool,
    reported: bool,
    declared: bool,
}

impl Sorted {
    fn new(targets: Vec<Target>, explicit: bool) -> Self {
        let mut sorted = Self::default();
        let mut seen = BTreeSet::new();
        for target in targets {
            match target {
                Target::Unknown(which) => sorted.unknown.push((which, "there is no such gateway")),
                Target::Known {
                    revoked: true,
                    name,
                    ..
                } => {
                    if explicit {
                        let which = GatewayRef::Name(name);
                        sorted.unknown.push((which, "the gateway was revoked"));
                    }
                }
                Target::Known {
                    agent_id,
                    name,
                    revoked: false,
                    reported,
                    entry,
                } => {
                    sorted.any = true;
                    sorted.reported |= reported;
                    sorted.declared |= entry.is_some();
                    if seen.insert(agent_id) {
                        sorted.known(agent_id, name, reported, entry);
                    }
                }
            }
        }
        sorted
    }

    fn known(
        &mut self,
        agent_id: AgentId,
        gateway: GatewayName,
        reported: bool,
        entry: Option<CatalogueEntry>,
    ) {
        let problem = match entry {
            Some(entry) => match entry.unavailable {
                None => {
                    self.candidates.push(Candidate { agent_id, entry });
                    return;
                }
                Some(why) => format!("unavailable there: {why}"),
            },
            None if reported => "not in this gateway's catalogue".to_owned(),
            None => "this gateway has not connected yet, so what it allows is not known".to_owned(),
        };
        self.not_offered.push(NotOffered { gateway, problem });
    }
}

/// Checks the arguments against every distinct declaration. Defaults are filled in where all declarations agree on
/// them; otherwise each gateway fills in its own.
fn check_all(given: &Arguments, candidates: &[Candidate]) -> Result<Arguments, SubmitError> {
    let mut declarations: Vec<&CatalogueEntry> = Vec::new();
    let mut agreed: Option<Arguments> = None;
    let mut differ = false;
    for candidate in candidates {
        let entry = &candidate.entry;
        if declarations
            .iter()
            .any(|known| known.arguments == entry.arguments)
        {
            continue;
        }
        declarations.push(entry);
        let checked = check_arguments(entry, given).map_err(SubmitError::BadArguments)?;
        match &agreed {
            None => agreed = Some(checked),
            Some(first) => differ |= *first != checked,
        }
    }
    Ok(match agreed {
        Some(agreed) if !differ => agreed,
        Some(_) | None => given.clone(),
    })
}

fn time_limit(entry: &CatalogueEntry, wanted: Option<Duration>) -> u64 {
    wanted
        .map_or(entry.timeout_ms, |wanted| {
            u64::try_from(wanted.as_millis()).unwrap_or(u64::MAX)
        })
        .min(entry.timeout_ms)
}
