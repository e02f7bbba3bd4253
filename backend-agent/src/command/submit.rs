//! Submitting a run: targets resolved, arguments checked against every gateway's own declaration, accepted whole or not.

use std::collections::BTreeSet;
use std::time::Duration;

use viworks_api::SkipCode;
use viworks_common::catalogue::{Argument, ArgumentProblem, CatalogueEntry, Risk, check_arguments};
use viworks_common::command::Arguments;
use viworks_common::id::{AgentId, CommandId, CommandName, GatewayName, RunId};
use viworks_common::limits;
use viworks_runtime::random;

use super::Commands;
use crate::auth::risk_scope;
use crate::data::{
    Actor, GatewayRef, Idempotency, NewCommand, NewRun, Run, Skip, StoreError, Submission, Target,
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
    #[error("{0} gateways are more than one run may have")]
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
    #[error("{found} gateways can take the command and {expected} were expected")]
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
    name: GatewayName,
    entry: CatalogueEntry,
}

/// What a run is for, sorted by what becomes of it.
struct Selection {
    candidates: Vec<Candidate>,
    /// As they are stored with the run.
    arguments: Arguments,
    skipped: Vec<NotOffered>,
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
        let Selection {
            candidates,
            arguments,
            skipped,
        } = self.admit(&request).await?;
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
            skipped: skipped.into_iter().map(NotOffered::skip).collect(),
            skip_full: request.skip_unable,
            deadline: now.saturating_add(request.deadline),
            timeout_ms: request.timeout.map(millis),
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

    /// What a submission would do, by the same checks; nothing is stored. Whether queues have room shows only when it is
    /// submitted.
    ///
    /// # Errors
    /// Why nothing would be submitted.
    pub async fn plan(&self, request: &SubmitRequest) -> Result<Planned, SubmitError> {
        let selection = self.admit(request).await?;
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

    /// Everything that is checked before something is stored.
    async fn admit(&self, request: &SubmitRequest) -> Result<Selection, SubmitError> {
        let selection = within_its_risks(self.select(request).await?, request)?;
        let candidates = &selection.candidates;
        let found = u64::try_from(candidates.len()).unwrap_or(u64::MAX);
        if let Some(expected) = request.expect_targets.filter(|expected| *expected != found) {
            return Err(SubmitError::TargetCount { expected, found });
        }
        Ok(selection)
    }

    /// The gateways that will get the command, and those that are meant and will not. Explicitly named gateways must
    /// all be able to take it unless the request leaves out those that cannot; of `all`, those that do not have the
    /// command are skipped, and one that has it and refuses these arguments refuses the run, by name.
    async fn select(&self, request: &SubmitRequest) -> Result<Selection, SubmitError> {
        let (named, explicit) = match &request.targets {
            TargetSelection::All => (0, false),
            TargetSelection::AllExcept(left_out) => (left_out.len(), false),
            TargetSelection::Gateways(named) if named.is_empty() => {
                return Err(SubmitError::NoTarget("the list of gateways is empty"));
            }
            TargetSelection::Gateways(named) => (named.len(), true),
        };
        if named > limits::RUN_TARGETS_MAX {
            return Err(SubmitError::TooManyTargets(named));
        }
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
        if explicit && !request.skip_unable && !sorted.not_offered.is_empty() {
            return Err(SubmitError::NotOffered(sorted.not_offered));
        }
        if sorted.candidates.is_empty() {
            let left_out = matches!(request.targets, TargetSelection::AllExcept(_));
            return Err(if !sorted.any && left_out {
                SubmitError::NoTarget(
                    "no gateway is left: all that are registered are to be left out",
                )
            } else if !sorted.any {
                SubmitError::NoTarget("no gateway is registered")
            } else if !sorted.reported && left_out {
                SubmitError::NoTarget(
                    "none of the gateways that are left has connected and reported its catalogue",
                )
            } else if !sorted.reported {
                SubmitError::NoTarget("no gateway has connected and reported its catalogue")
            } else {
                SubmitError::NotOffered(sorted.not_offered)
            });
        }
        if sorted.candidates.len() > limits::RUN_TARGETS_MAX {
            return Err(SubmitError::TooManyTargets(sorted.candidates.len()));
        }
        let Checked {
            arguments,
            candidates,
            misfits,
        } = check_all(&request.arguments, sorted.candidates)?;
        if !request.skip_unable && !misfits.is_empty() {
            return Err(SubmitError::BadArgumentsThere(misfits));
        }
        let mut skipped = sorted.not_offered;
        skipped.extend(misfits);
        Ok(Selection {
            candidates,
            arguments,
            skipped,
        })
    }
}

/// Why a request may not do what has this risk.
fn objection(risk: Risk, request: &SubmitRequest) -> Option<String> {
    let name = risk.name();
    if !request.risks.contains(&risk) {
        let scope = risk_scope(risk);
        return Some(format!(
            "its risk there is {name}, which needs the scope {scope}"
        ));
    }
    let unexplained = risk == Risk::Danger && request.reason.is_none();
    unexplained.then(|| format!("its risk there is {name}, which needs a reason"))
}

/// What a gateway says about the risk is its own affair: where it is more than the request may take, that gateway is
/// named, and left out when gateways may be.
fn within_its_risks(
    selection: Selection,
    request: &SubmitRequest,
) -> Result<Selection, SubmitError> {
    let Selection {
        candidates,
        arguments,
        mut skipped,
    } = selection;
    let lowest = candidates
        .iter()
        .map(|candidate| candidate.entry.risk)
        .min();
    let (mut fitting, mut refused) = (Vec::with_capacity(candidates.len()), Vec::new());
    for candidate in candidates {
        match objection(candidate.entry.risk, request) {
            None => fitting.push(candidate),
            Some(problem) => refused.push((candidate, problem)),
        }
    }
    let risks = refused
        .iter()
        .map(|(candidate, _problem)| candidate.entry.risk);
    let Some(highest) = risks.max() else {
        return Ok(Selection {
            candidates: fitting,
            arguments,
            skipped,
        });
    };
    let not_offered = refused
        .into_iter()
        .map(|(candidate, problem)| NotOffered {
            agent_id: candidate.agent_id,
            gateway: candidate.name,
            code: SkipCode::RiskNotAllowed,
            problem,
        })
        .collect();
    if request.skip_unable && !fitting.is_empty() {
        skipped.extend::<Vec<_>>(not_offered);
        return Ok(Selection {
            candidates: fitting,
            arguments,
            skipped,
        });
    }
    // Where it is the same everywhere, a list of every gateway would say no more.
    let gateways = if lowest == Some(highest) {
        Vec::new()
    } else {
        not_offered
    };
    Err(if request.risks.contains(&highest) {
        SubmitError::ReasonMissing(gateways)
    } else {
        SubmitError::RiskNotAllowed {
            risk: highest,
            gateways,
        }
    })
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
        let (code, problem) = match entry {
            Some(entry) => match entry.unavailable {
                None => {
                    self.candidates.push(Candidate {
                        agent_id,
                        name: gateway,
                        entry,
                    });
                    return;
                }
                Some(why) => (
                    SkipCode::CommandUnavailable,
                    format!("unavailable there: {why}"),
                ),
            },
            None if reported => (
                SkipCode::NotInCatalogue,
                "not in this gateway's catalogue".to_owned(),
            ),
            None => (
                SkipCode::NeverConnected,
                "this gateway has not connected yet, so what it allows is not known".to_owned(),
            ),
        };
        self.not_offered.push(NotOffered {
            agent_id,
            gateway,
            code,
            problem,
        });
    }
}

/// What the arguments come to on each gateway.
struct Checked {
    arguments: Arguments,
    candidates: Vec<Candidate>,
    /// Those whose own declaration the arguments do not fit.
    misfits: Vec<NotOffered>,
}

/// Checks the arguments against every distinct declaration; what fits none of them is the operator's mistake. Defaults
/// are filled in where all declarations agree on them; otherwise each gateway fills in its own.
fn check_all(given: &Arguments, candidates: Vec<Candidate>) -> Result<Checked, SubmitError> {
    let mut declarations: Vec<(Vec<Argument>, Result<Arguments, Vec<ArgumentProblem>>)> =
        Vec::new();
    let (mut fitting, mut misfits) = (Vec::with_capacity(candidates.len()), Vec::new());
    for candidate in candidates {
        let entry = &candidate.entry;
        let known = declarations
            .iter()
            .position(|(declared, _)| *declared == entry.arguments);
        let number = known.unwrap_or_else(|| {
            let checked = check_arguments(entry, given);
            declarations.push((entry.arguments.clone(), checked));
            declarations.len() - 1
        });
        match declarations.get(number).map(|(_, checked)| checked) {
            Some(Err(problems)) => misfits.push(NotOffered {
                agent_id: candidate.agent_id,
                gateway: candidate.name,
                code: SkipCode::BadArguments,
                problem: in_words(problems),
            }),
            Some(Ok(_)) | None => fitting.push(candidate),
        }
    }
    let mut agreed: Option<Arguments> = None;
    let mut differ = false;
    let mut refused = Vec::new();
    for (_, checked) in declarations {
        match (checked, &agreed) {
            (Ok(checked), None) => agreed = Some(checked),
            (Ok(checked), Some(first)) => differ |= *first != checked,
            (Err(problems), _) => refused = problems,
        }
    }
    let Some(agreed) = agreed else {
        return Err(SubmitError::BadArguments(refused));
    };
    Ok(Checked {
        arguments: if differ { given.clone() } else { agreed },
        candidates: fitting,
        misfits,
    })
}

fn in_words(problems: &[ArgumentProblem]) -> String {
    let each = problems.iter().map(|found| {
        format!(
            "{}: {} (allowed: {})",
            found.argument, found.problem, found.allowed
        )
    });
    each.collect::<Vec<_>>().join("; ")
}

fn time_limit(entry: &CatalogueEntry, wanted: Option<Duration>) -> u64 {
    wanted
        .map_or(entry.timeout_ms, millis)
        .min(entry.timeout_ms)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
