//! From the gateways that a run is meant for to those that get its command, by what each of them declares.

use std::collections::BTreeSet;
use std::sync::Arc;

use viworks_api::SkipCode;
use viworks_common::catalogue::{Argument, ArgumentProblem, CatalogueEntry, Risk, check_arguments};
use viworks_common::command::Arguments;
use viworks_common::id::{AgentId, GatewayName};
use viworks_common::limits;
use viworks_common::time::Timestamp;

use super::{NotOffered, SubmitError, SubmitRequest};
use crate::auth::risk_scope;
use crate::data::{GatewayRef, Report, Target, TargetSelection};

/// One gateway that can take the command.
pub(super) struct Candidate {
    pub(super) agent_id: AgentId,
    pub(super) name: GatewayName,
    /// When it reported its catalogue.
    pub(super) reported_at: Timestamp,
    /// What that says about the command.
    pub(super) entry: Arc<CatalogueEntry>,
}

/// What a run is for, sorted by what becomes of it.
pub(super) struct Selection {
    pub(super) candidates: Vec<Candidate>,
    /// As they are stored with the run.
    pub(super) arguments: Arguments,
    pub(super) skipped: Vec<NotOffered>,
}

/// Checks what can be checked before anybody is asked.
///
/// # Errors
/// Why nothing can be selected.
pub(super) fn check_request(request: &SubmitRequest) -> Result<(), SubmitError> {
    let named = match &request.targets {
        TargetSelection::All => 0,
        TargetSelection::AllExcept(left_out) => left_out.len(),
        TargetSelection::Gateways(named) if named.is_empty() => {
            return Err(SubmitError::NoTarget("the list of gateways is empty"));
        }
        TargetSelection::Gateways(named) => named.len(),
    };
    if named > limits::RUN_TARGETS_MAX {
        return Err(SubmitError::TooManyTargets(named));
    }
    Ok(())
}

/// Everything that is checked before something is stored.
///
/// # Errors
/// Why nothing is to be stored.
pub(super) fn select(
    targets: Vec<Target>,
    request: &SubmitRequest,
) -> Result<Selection, SubmitError> {
    let selection = within_its_risks(sort(targets, request)?, request)?;
    let found = u64::try_from(selection.candidates.len()).unwrap_or(u64::MAX);
    if let Some(expected) = request.expect_targets.filter(|expected| *expected != found) {
        return Err(SubmitError::TargetCount { expected, found });
    }
    Ok(selection)
}

/// The gateways that will get the command, and those that are meant and will not. Explicitly named gateways must
/// all be able to take it unless the request leaves out those that cannot; of `all`, those that do not have the
/// command are skipped, and one that has it and refuses these arguments refuses the run, by name.
fn sort(targets: Vec<Target>, request: &SubmitRequest) -> Result<Selection, SubmitError> {
    let explicit = matches!(request.targets, TargetSelection::Gateways(_));
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
            SubmitError::NoTarget("no gateway is left: all that are registered are to be left out")
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

/// Whether any of these gateways has the command.
pub(super) fn is_declared(targets: Vec<Target>) -> bool {
    Sorted::new(targets, false).declared
}

/// Those of these gateways that cannot take the command.
pub(super) fn lacking(targets: Vec<Target>) -> Vec<NotOffered> {
    Sorted::new(targets, true).not_offered
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
                    report,
                } => {
                    sorted.any = true;
                    sorted.reported |= report.is_some();
                    sorted.declared |= report.as_ref().is_some_and(|report| report.entry.is_some());
                    if seen.insert(agent_id) {
                        sorted.known(agent_id, name, report);
                    }
                }
            }
        }
        sorted
    }

    fn known(&mut self, agent_id: AgentId, gateway: GatewayName, report: Option<Report>) {
        let (code, problem) = match report {
            Some(Report {
                entry: Some(entry),
                reported_at,
            }) => match &entry.unavailable {
                None => {
                    self.candidates.push(Candidate {
                        agent_id,
                        name: gateway,
                        reported_at,
                        entry,
                    });
                    return;
                }
                Some(why) => (
                    SkipCode::CommandUnavailable,
                    format!("unavailable there: {why}"),
                ),
            },
            Some(Report { entry: None, .. }) => (
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
