//! What sessions and reconcilers do with commands: lease, permit, refuse, start, complete, expire.

use std::time::Duration;

use serde_json::json;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use viworks_common::command::{
    Arguments, CommandEvent, CommandState, Outcome, OutcomeState, Transition, digest,
};
use viworks_common::id::{AgentId, CommandId, CommandName, Tenant};
use viworks_common::limits;
use viworks_common::time::Timestamp;
use viworks_runtime::fault;

use super::page::{Fetched, rows_wanted};
use super::row::{Reader, int, to_json};
use super::settle::{self, CommandRow, Note};
use super::{audit, outputs};
use crate::data::{
    AcceptOutcome, Accepted, Actor, AuditOutcome, CommandResult, CompleteOutcome, Holder,
    LeaseLimits, Leased, LeasedCommand, Listing, Page, Rejected, Settled, StoreError, StoreResult,
};

/// Outcomes of unknown commands kept for one gateway; the oldest go first.
const ORPHANS_PER_GATEWAY_MAX: i64 = 1_024;

/// The low-water mark of the gateway, which a fenced session does not get, and what waits for it.
pub(super) const QUEUED: &str = "\
SELECT low_water FROM gateways WHERE tenant = $1 AND agent_id = $2 AND confirmed = $3 AND revoked_at IS NULL;
SELECT c.command_id, c.run_id, c.agent_id, c.state, c.idempotent, c.attempt, c.available_at, c.deadline,
       c.released_to, c.released_at, c.started_at, c.cancel_requested_at, c.result IS NOT NULL AS has_result,
       c.late_outcome IS NOT NULL AS has_late_outcome, c.order_no, r.name, r.arguments, r.traceparent
FROM commands AS c JOIN runs AS r ON r.tenant = c.tenant AND r.run_id = c.run_id
WHERE c.tenant = $1 AND c.agent_id = $2 AND c.state = 'queued'
  AND c.order_no <= $4 + (SELECT low_water FROM gateways WHERE tenant = $1 AND agent_id = $2 AND confirmed = $3
                          AND revoked_at IS NULL)
  AND c.available_at <= $5 AND c.deadline > $5
ORDER BY c.order_no LIMIT $6";

pub(super) const QUEUED_AGENTS: &str = "\
SELECT DISTINCT agent_id FROM commands
WHERE tenant = ?1 AND agent_id > ?2 AND state = 'queued' AND available_at <= ?3 AND deadline > ?3
ORDER BY agent_id LIMIT ?4";

pub(super) const KEEP_LATE_OUTCOME: &str = "\
UPDATE commands SET late_outcome = ?3
WHERE tenant = ?1 AND command_id = ?2 AND state = 'indeterminate' AND late_outcome IS NULL";

pub(super) const KEEP_ORPHAN: &str = "\
INSERT INTO orphan_results (tenant, agent_id, command_id, received_at, outcome) VALUES (?1, ?2, ?3, ?4, ?5)
ON CONFLICT DO NOTHING";

pub(super) const TRIM_ORPHANS: &str = "\
DELETE FROM orphan_results WHERE tenant = ?1 AND agent_id = ?2 AND command_id IN (
    SELECT command_id FROM orphan_results WHERE tenant = ?1 AND agent_id = ?2
    ORDER BY received_at DESC, command_id LIMIT -1 OFFSET ?3)";

/// Takes the next commands in order.
pub(super) async fn lease(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    holder: Holder,
    limits: LeaseLimits,
    now: Timestamp,
) -> StoreResult<Leased> {
    let rows = sqlx::query(QUEUED)
        .bind(tenant.as_str())
        .bind(holder.agent_id.to_string())
        .bind(int(holder.epoch))
        .bind(int(limits::ORDER_WINDOW))
        .bind(now.unix_micros())
        .bind(i64::try_from(limits.commands).unwrap_or(i64::MAX))
        .fetch_all(&mut *connection)
        .await?;
    let (_gateway, rows) = rows.split_first().ok_or(StoreError::Fenced)?;
    let mut leased = Leased::default();
    for row in rows {
        let mut command = CommandRow::read(row)?;
        if command.attempt >= limits.attempts_max {
            let note = Note {
                reason: Some("the allowed number of deliveries is used up"),
                ..Note::default()
            };
            let event = CommandEvent::AttemptsExhausted;
            settle::apply(
                connection,
                tenant,
                &mut command,
                event,
                note,
                &Actor::system(),
                now,
            )
            .await?;
            leased.dead.push(command.settled());
            continue;
        }
        command.attempt += 1;
        let event = if command.idempotent {
            command.released_to = Some(holder.agent_run_id);
            CommandEvent::Released
        } else {
            CommandEvent::Dispatched
        };
        let actor = Actor::system();
        settle::apply(
            connection,
            tenant,
            &mut command,
            event,
            Note::default(),
            &actor,
            now,
        )
        .await?;
        leased.commands.push(offer(row, &command)?);
    }
    if leased.commands.iter().any(|command| command.permitted) {
        fault::point("store.release.before_commit");
    }
    Ok(leased)
}

fn offer(row: &SqliteRow, command: &CommandRow) -> StoreResult<LeasedCommand> {
    let reader = Reader::new("runs", row);
    let name: CommandName = reader.parse("name")?;
    let arguments: Arguments = reader.json("arguments")?;
    Ok(LeasedCommand {
        command_id: command.command_id,
        run_id: command.run_id,
        order: reader.count("order_no")?,
        digest: digest(&name, &arguments),
        name,
        arguments,
        attempt: command.attempt,
        traceparent: reader.get("traceparent")?,
        deadline: command.deadline,
        permitted: command.state == CommandState::Released,
    })
}

/// The answer about a command that was permitted with its offer and is not waiting: mostly nothing is to be written, and
/// then a look will do. `None` when it will not.
pub(super) async fn accepted_before(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    holder: Holder,
    accepted: Accepted,
) -> StoreResult<Option<AcceptOutcome>> {
    let held = settle::load(connection, tenant, holder, accepted.command_id).await?;
    Ok(held
        .command
        .filter(|command| {
            command.state == CommandState::Released
                && command.released_to == Some(holder.agent_run_id)
                && (accepted.idempotent || !command.idempotent)
        })
        .map(|command| permitted(&command, accepted)))
}

/// What a gateway is told about a command that its process may start.
const fn permitted(command: &CommandRow, accepted: Accepted) -> AcceptOutcome {
    if command.cancel_requested {
        AcceptOutcome::Cancel
    } else if accepted.awaiting_permit {
        AcceptOutcome::Go {
            deadline: command.deadline,
        }
    } else {
        AcceptOutcome::Wait
    }
}

/// Decides about the start permit of a command that its gateway has journalled.
pub(super) async fn accept(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    holder: Holder,
    accepted: Accepted,
    now: Timestamp,
) -> StoreResult<AcceptOutcome> {
    let held = settle::load(connection, tenant, holder, accepted.command_id).await?;
    let Some(mut command) = held.command else {
        return Ok(AcceptOutcome::Drop);
    };
    if command.state.is_final() {
        return Ok(AcceptOutcome::Drop);
    }
    let stricter = command.idempotent && !accepted.idempotent;
    command.idempotent &= accepted.idempotent;
    match command.state {
        CommandState::Queued | CommandState::Dispatched => {
            release(connection, tenant, &mut command, holder, now).await
        }
        CommandState::Released | CommandState::Running
            if command.released_to != Some(holder.agent_run_id) =>
        {
            release_again(connection, tenant, &mut command, holder, now).await
        }
        CommandState::Released => {
            // Mostly there is nothing to write: the permit was given with the offer.
            if stricter {
                settle::rewrite(connection, tenant, &command).await?;
            }
            Ok(permitted(&command, accepted))
        }
        CommandState::Running
        | CommandState::Succeeded
        | CommandState::Failed
        | CommandState::TimedOut
        | CommandState::Rejected
        | CommandState::Expired
        | CommandState::Cancelled
        | CommandState::Dead
        | CommandState::Indeterminate => Ok(AcceptOutcome::Wait),
    }
}

/// The first permit of a command, for exactly this process.
async fn release(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    command: &mut CommandRow,
    holder: Holder,
    now: Timestamp,
) -> StoreResult<AcceptOutcome> {
    let actor = Actor::system();
    if command.deadline <= now {
        let note = Note {
            reason: Some("its deadline passed before it could start"),
            ..Note::default()
        };
        let event = CommandEvent::DeadlinePassed;
        settle::apply(connection, tenant, command, event, note, &actor, now).await?;
        return Ok(AcceptOutcome::Drop);
    }
    if command.state == CommandState::Queued {
        // The offer came from an older session, or its lease was given up meanwhile; the gateway kept it.
        let event = CommandEvent::Dispatched;
        settle::apply(
            connection,
            tenant,
            command,
            event,
            Note::default(),
            &actor,
            now,
        )
        .await?;
    }
    command.released_to = Some(holder.agent_run_id);
    let event = CommandEvent::Released;
    settle::apply(
        connection,
        tenant,
        command,
        event,
        Note::default(),
        &actor,
        now,
    )
    .await?;
    fault::point("store.release.before_commit");
    Ok(AcceptOutcome::Go {
        deadline: command.deadline,
    })
}

/// A permit that belongs to another process: it may have been used there.
async fn release_again(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    command: &mut CommandRow,
    holder: Holder,
    now: Timestamp,
) -> StoreResult<AcceptOutcome> {
    let note = Note {
        reason: Some("its start permit belonged to a process of the gateway agent that is gone"),
        ..Note::default()
    };
    let actor = Actor::system();
    let event = CommandEvent::RunGone;
    settle::apply(connection, tenant, command, event, note, &actor, now).await?;
    if command.state.is_final() {
        return Ok(AcceptOutcome::Drop);
    }
    if command.cancel_requested {
        let note = Note {
            reason: Some("cancelled by an operator"),
            ..Note::default()
        };
        let event = CommandEvent::CancelRequested;
        settle::apply(connection, tenant, command, event, note, &actor, now).await?;
        return Ok(AcceptOutcome::Drop);
    }
    release(connection, tenant, command, holder, now).await
}

/// The gateway refused a command on arrival.
pub(super) async fn reject(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    rejected: &Rejected,
    holder: Holder,
    now: Timestamp,
) -> StoreResult<Option<Settled>> {
    let held = settle::load(connection, tenant, holder, rejected.command_id).await?;
    let Some(mut command) = held.command else {
        return Ok(None);
    };
    if rejected.code.is_transient() {
        command.available_at = rejected.again_at;
    }
    let result = to_json(&CommandResult {
        state: OutcomeState::Rejected,
        exit_code: None,
        signal: None,
        started_at: None,
        duration_ms: 0,
        reason: Some(rejected.detail.clone()),
        reject_code: Some(rejected.code),
    });
    let stays = command.state != CommandState::Released && rejected.code.is_transient();
    let note = Note {
        reason: Some(&rejected.detail),
        result: (!stays).then_some(result.as_str()),
    };
    let event = CommandEvent::Rejected(rejected.code);
    let actor = Actor::gateway(holder.agent_id);
    settle::apply(connection, tenant, &mut command, event, note, &actor, now).await?;
    Ok(Some(command.settled()))
}

/// The gateway started a command.
pub(super) async fn start(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    holder: Holder,
    command_id: CommandId,
    started_at: Timestamp,
    now: Timestamp,
) -> StoreResult<bool> {
    let held = settle::load(connection, tenant, holder, command_id).await?;
    let Some(mut command) = held.command else {
        return Ok(false);
    };
    command.started_at = Some(started_at);
    let actor = Actor::gateway(holder.agent_id);
    let event = CommandEvent::Started;
    let decision = settle::apply(
        connection,
        tenant,
        &mut command,
        event,
        Note::default(),
        &actor,
        now,
    )
    .await?;
    Ok(matches!(decision, Transition::To(_)))
}

/// The gateway reported an outcome.
pub(super) async fn complete(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    outcome: &Outcome,
    holder: Holder,
    command_id: CommandId,
    now: Timestamp,
) -> StoreResult<CompleteOutcome> {
    let held = settle::load(connection, tenant, holder, command_id).await?;
    let low_water = held.low_water;
    let Some(mut command) = held.command else {
        keep_orphan(
            connection,
            tenant,
            outcome,
            holder.agent_id,
            command_id,
            now,
        )
        .await?;
        return Ok(CompleteOutcome::Orphan { low_water });
    };
    let result = to_json(&without_output(outcome));
    let note = Note {
        reason: None,
        result: Some(&result),
    };
    command.started_at = outcome.started_at.or(command.started_at);
    let actor = Actor::gateway(holder.agent_id);
    let event = CommandEvent::Ended(outcome.state);
    let decision =
        settle::apply(connection, tenant, &mut command, event, note, &actor, now).await?;
    let news = match decision {
        Transition::To(_) => true,
        Transition::LateOutcome => !command.has_result && !command.has_late_outcome,
        Transition::Stay | Transition::Refused => false,
    };
    if news {
        outputs::keep(connection, tenant, command_id, outcome).await?;
    }
    if news && decision == Transition::LateOutcome {
        keep_late_outcome(connection, tenant, &command, &result, now).await?;
    }
    let low_water = command.low_water.unwrap_or(low_water);
    fault::point("store.result.before_commit");
    Ok(match decision {
        Transition::To(_) => CompleteOutcome::Completed {
            settled: command.settled(),
            low_water,
        },
        Transition::LateOutcome if news => CompleteOutcome::LateOutcome { low_water },
        Transition::LateOutcome | Transition::Stay | Transition::Refused => {
            CompleteOutcome::Repeated { low_water }
        }
    })
}

fn without_output(outcome: &Outcome) -> CommandResult {
    CommandResult {
        state: outcome.state,
        exit_code: outcome.exit_code,
        signal: outcome.signal,
        started_at: outcome.started_at,
        duration_ms: outcome.duration_ms,
        reason: outcome.reason.clone(),
        reject_code: outcome.reject_code,
    }
}

async fn keep_late_outcome(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    command: &CommandRow,
    result: &str,
    now: Timestamp,
) -> StoreResult<()> {
    sqlx::query(KEEP_LATE_OUTCOME)
        .bind(tenant.as_str())
        .bind(command.command_id.to_string())
        .bind(result)
        .execute(&mut *connection)
        .await?;
    let object = format!("command:{}", command.command_id);
    let detail = json!({ "run_id": command.run_id, "agent_id": command.agent_id });
    let actor = Actor::gateway(command.agent_id);
    let record = audit::record(
        &actor,
        "command.late_outcome",
        object,
        AuditOutcome::Noted,
        detail,
    );
    audit::append(connection, tenant, &record, now).await
}

async fn keep_orphan(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    outcome: &Outcome,
    agent_id: AgentId,
    command_id: CommandId,
    now: Timestamp,
) -> StoreResult<()> {
    let kept = sqlx::query(KEEP_ORPHAN)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .bind(command_id.to_string())
        .bind(now.unix_micros())
        .bind(to_json(outcome))
        .execute(&mut *connection)
        .await?;
    if kept.rows_affected() == 0 {
        return Ok(());
    }
    sqlx::query(TRIM_ORPHANS)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .bind(ORPHANS_PER_GATEWAY_MAX)
        .execute(&mut *connection)
        .await?;
    let object = format!("command:{command_id}");
    let detail = json!({ "agent_id": agent_id, "state": outcome.state });
    let actor = Actor::gateway(agent_id);
    let record = audit::record(
        &actor,
        "command.orphan",
        object,
        AuditOutcome::Noted,
        detail,
    );
    audit::append(connection, tenant, &record, now).await
}

/// Gateways with commands to lease.
pub(super) async fn queued_agents(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    page: Page<AgentId>,
    now: Timestamp,
) -> StoreResult<Listing<AgentId, AgentId>> {
    let rows = sqlx::query(QUEUED_AGENTS)
        .bind(tenant.as_str())
        .bind(
            page.after
                .map_or_else(String::new, |after| after.to_string()),
        )
        .bind(now.unix_micros())
        .bind(rows_wanted(page.limit))
        .fetch_all(connection)
        .await?;
    let read = |row: &SqliteRow| Reader::new("commands", row).parse("agent_id");
    Fetched::new(rows, page.limit).listing(read, |agent_id| *agent_id)
}

/// Ends what could not start in time.
pub(super) async fn expire(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    limit: usize,
    now: Timestamp,
) -> StoreResult<Vec<Settled>> {
    let rows = sqlx::query(settle::LOAD_UNSTARTED_PAST_DEADLINE)
        .bind(tenant.as_str())
        .bind(now.unix_micros())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&mut *connection)
        .await?;
    let reason = "its deadline passed before it could start";
    end_all(
        connection,
        tenant,
        &rows,
        CommandEvent::DeadlinePassed,
        reason,
        now,
    )
    .await
}

/// Ends what was permitted and never heard of again.
pub(super) async fn end_overdue(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    wait: Duration,
    limit: usize,
    now: Timestamp,
) -> StoreResult<Vec<Settled>> {
    let rows = sqlx::query(settle::LOAD_OVERDUE)
        .bind(tenant.as_str())
        .bind(now.saturating_sub(wait).unix_micros())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&mut *connection)
        .await?;
    let reason = "its gateway did not report an outcome in the allowed time";
    end_all(
        connection,
        tenant,
        &rows,
        CommandEvent::WaitExhausted,
        reason,
        now,
    )
    .await
}

async fn end_all(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    rows: &[SqliteRow],
    event: CommandEvent,
    reason: &str,
    now: Timestamp,
) -> StoreResult<Vec<Settled>> {
    let mut settled = Vec::with_capacity(rows.len());
    for row in rows {
        let mut command = CommandRow::read(row)?;
        let note = Note {
            reason: Some(reason),
            ..Note::default()
        };
        settle::apply(
            connection,
            tenant,
            &mut command,
            event,
            note,
            &Actor::system(),
            now,
        )
        .await?;
        settled.push(command.settled());
    }
    Ok(settled)
}
