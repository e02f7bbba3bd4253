//! Whether a run may be submitted, as a whole or not at all.

use std::collections::{BTreeMap, BTreeSet};

use viworks_common::api::SkipCode;
use viworks_common::command::CommandState;
use viworks_common::id::{AgentId, GatewayName};
use viworks_common::time::Timestamp;

use crate::data::{NewRun, Run, Skip, StoreError};

/// What counts for a gateway's next command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters {
    /// Its name.
    pub name: GatewayName,
    /// The order of the next command.
    pub next_order: u64,
    /// Commands of it that are not final.
    pub open: u64,
}

/// Targets whose queue is full.
pub type FullQueues = BTreeSet<AgentId>;

/// The first reason against a run; otherwise the targets that are skipped because their queues are full. `gateways` are
/// those of the targets that exist and are not revoked, `waiting` are the tenant's commands that are not final.
///
/// # Errors
/// The refusal.
pub fn judge(
    new: &NewRun,
    gateways: &BTreeMap<AgentId, Counters>,
    waiting: u64,
) -> Result<FullQueues, StoreError> {
    let agents: BTreeSet<_> = new.targets.iter().map(|target| target.agent_id).collect();
    if agents.len() < new.targets.len() {
        let what = "a command of this run for one of its gateways".to_owned();
        return Err(StoreError::Conflict { what });
    }
    if agents.is_empty() {
        let what = "a gateway for this run".to_owned();
        return Err(StoreError::Missing { what });
    }
    if let Some(missing) = agents.iter().find(|id| !gateways.contains_key(id)) {
        let what = format!("gateway {missing}");
        return Err(StoreError::Missing { what });
    }
    let retry_after = new.limits.retry_after;
    let full: Vec<_> = agents
        .iter()
        .filter_map(|id| gateways.get_key_value(id))
        .filter(|(_, gateway)| gateway.open >= new.limits.per_gateway)
        .collect();
    if let Some((_, first)) = full.first()
        && (!new.skip_full || full.len() == agents.len())
    {
        return Err(StoreError::QueueFull {
            scope: format!("gateway {}", first.name),
            gateways: full.iter().map(|(_, full)| full.name.clone()).collect(),
            limit: new.limits.per_gateway,
            retry_after,
        });
    }
    let full: FullQueues = full.into_iter().map(|(id, _)| *id).collect();
    if waiting.saturating_add(count(new, &full)) > new.limits.global {
        return Err(StoreError::QueueFull {
            scope: "the backend".to_owned(),
            gateways: Vec::new(),
            limit: new.limits.global,
            retry_after,
        });
    }
    Ok(full)
}

/// How many commands a run gets when these targets are skipped.
#[must_use]
pub fn count(new: &NewRun, full: &FullQueues) -> u64 {
    u64::try_from(new.targets.len().saturating_sub(full.len())).unwrap_or(u64::MAX)
}

/// Everybody whom it skips, and why.
#[must_use]
pub fn skips(new: &NewRun, full: &FullQueues) -> Vec<Skip> {
    let limit = new.limits.per_gateway;
    let of_full = full.iter().map(|agent_id| Skip {
        agent_id: *agent_id,
        code: SkipCode::QueueFull,
        detail: format!("{limit} commands wait for it, which is as many as may"),
    });
    new.skipped.iter().cloned().chain(of_full).collect()
}

/// An accepted run as it stands.
#[must_use]
pub fn run(new: &NewRun, now: Timestamp, commands: u64, skipped: u64) -> Run {
    Run {
        run_id: new.run_id,
        name: new.name.clone(),
        arguments: new.arguments.clone(),
        deadline: new.deadline,
        traceparent: new.traceparent.clone(),
        reason: new.reason.clone(),
        submitted_by: new.actor.to_string(),
        submitter: None,
        created_at: now,
        cancel_requested_at: None,
        finished_at: None,
        states: [(CommandState::Queued, commands)].into(),
        skipped,
    }
}
