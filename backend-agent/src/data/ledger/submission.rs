//! Whether a run may be submitted, as a whole or not at all, and what it is when it was.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use viworks_api::SkipCode;
use viworks_common::command::{CommandState, digest};
use viworks_common::human;
use viworks_common::id::AgentId;
use viworks_common::ledger::Command;
use viworks_common::ledger::submit::{self, Bounds, Counters, Refusal};
use viworks_common::time::Timestamp;
use viworks_common::timeline::shared::TOGETHER;

use crate::data::{LeasedCommand, NewCommand, NewRun, Run, Skip, StoreError};

/// Targets whose queue is full.
pub type FullQueues = BTreeSet<AgentId>;

/// The first reason against a run; otherwise the targets that are skipped because their queues are full. `gateways` knows
/// those of the targets that exist and are not revoked, `waiting` are the tenant's commands that are not final.
///
/// # Errors
/// The refusal.
pub fn judge<'g>(
    new: &NewRun,
    gateways: impl Fn(AgentId) -> Option<&'g Counters>,
    waiting: u64,
) -> Result<FullQueues, StoreError> {
    let targets = new.targets.iter().map(|target| target.agent_id);
    let bounds = Bounds {
        per_gateway: new.limits.per_gateway,
        global: new.limits.global,
    };
    submit::judge(targets, new.skip_full, bounds, gateways, waiting)
        .map_err(|refusal| refused(new, refusal))
}

fn refused(new: &NewRun, refusal: Refusal) -> StoreError {
    let limits = &new.limits;
    let retry_after = limits.retry_after;
    match refusal {
        Refusal::Doubled => StoreError::Conflict {
            what: "a command of this run for one of its gateways".to_owned(),
        },
        Refusal::Nobody => StoreError::Missing {
            what: "a gateway for this run".to_owned(),
        },
        Refusal::Unknown(missing) => StoreError::Missing {
            what: format!("gateway {missing}"),
        },
        Refusal::Full(gateways) => StoreError::QueueFull {
            scope: gateways
                .first()
                .map_or_else(String::new, |first| format!("gateway {first}")),
            gateways,
            limit: limits.per_gateway,
            retry_after,
        },
        Refusal::AllFull => StoreError::QueueFull {
            scope: "the backend".to_owned(),
            gateways: Vec::new(),
            limit: limits.global,
            retry_after,
        },
    }
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
    let waiting = human::counted_all(limit, "command waits", "commands wait");
    let of_full = full.iter().map(|agent_id| Skip {
        agent_id: *agent_id,
        code: SkipCode::QueueFull,
        detail: format!("{waiting} for it, which is as many as may"),
    });
    new.skipped.iter().cloned().chain(of_full).collect()
}

/// An accepted run as it stands.
#[must_use]
pub fn run(new: &NewRun, now: Timestamp, states: BTreeMap<CommandState, u64>, skipped: u64) -> Run {
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
        states,
        skipped,
        retry_of: new.retry_of,
    }
}

/// One of its commands before anything has happened to it.
#[must_use]
pub fn command(new: &NewRun, target: &NewCommand, now: Timestamp) -> Command {
    // For every process at once, also for one whose reading of the line is a moment behind.
    let available_at = now.saturating_sub(TOGETHER.saturating_mul(2));
    let timeout = Duration::from_millis(target.timeout_ms);
    Command::queued(
        (target.command_id, new.run_id, target.agent_id),
        target.idempotent,
        available_at,
        (new.deadline, timeout),
    )
}

/// What is sent of a command that was offered at its birth.
#[must_use]
pub fn offer(new: &NewRun, command: &Command, order: u64) -> LeasedCommand {
    LeasedCommand {
        command_id: command.command_id,
        run_id: new.run_id,
        order,
        name: new.name.clone(),
        arguments: new.arguments.clone(),
        digest: digest(&new.name, &new.arguments),
        attempt: command.attempt,
        traceparent: new.traceparent.clone(),
        deadline: new.deadline,
        permitted: command.state == CommandState::Released,
        timeout_ms: new.timeout_ms,
    }
}
