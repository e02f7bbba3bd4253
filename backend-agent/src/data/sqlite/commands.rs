//! What sessions and reconcilers do with commands: lease, permit, refuse, start, complete, expire.

use std::collections::BTreeSet;
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

use super::budget::{self, ORPHANS};
use super::page::{Fetched, rows_wanted};
use super::row::{Reader, int, to_json};
use super::settle::{self, Change, CommandRow, Held, Note};
use super::{audit, outputs};
use crate::data::{
    AcceptOutcome, Accepted, Actor, AuditOutcome, CommandResult, CompleteOutcome, Holder,
    LeaseLimits, Leased, LeasedCommand, Listing, Page, Rejected, Settled, StoreError, StoreResult,
};

/// Outcomes of unknown commands kept for one gateway, and bytes of them; the oldest go first.
const ORPHANS_PER_GATEWAY_MAX: i64 = 1_024;
const ORPHAN_BYTES_PER_GATEWAY_MAX: i64 = 8 * 1024 * 1024;

/// For each `[agent_id, epoch, now]`: nothing where the session is fenced, a row without a command where nothing waits,
/// and otherwise the first of what waits. The last parameter bounds the commands of each.
pub(super) const QUEUED: &str = "\
SELECT e.key AS number, c.command_id, c.run_id, c.agent_id, c.state, c.idempotent, c.attempt, c.available_at,
       c.deadline, c.released_to, c.released_at, c.started_at, c.cancel_requested_at,
       c.result IS NOT NULL AS has_result, c.late_outcome IS NOT NULL AS has_late_outcome, c.order_no,
       r.name, r.arguments, r.traceparent, r.timeout_ms
FROM json_each($2) AS e
CROSS JOIN gateways AS g ON g.tenant = $1 AND g.agent_id = e.value ->> 0 AND g.confirmed = e.value ->> 1
     AND g.revoked_at IS NULL
LEFT JOIN commands AS c ON c.tenant = $1 AND c.command_id IN (
    SELECT q.command_id FROM commands AS q
    WHERE q.tenant = $1 AND q.agent_id = g.agent_id AND q.state = 'queued' AND q.order_no <= g.low_water + $3
      AND q.available_at <= e.value ->> 2 AND q.deadline > e.value ->> 2
    ORDER BY q.order_no LIMIT $4)
LEFT JOIN runs AS r ON r.tenant = $1 AND r.run_id = c.run_id";

pub(super) const QUEUED_AGENTS: &str = "\
SELECT DISTINCT agent_id FROM commands
WHERE tenant = ?1 AND agent_id > ?2 AND state = 'queued' AND available_at <= ?3 AND deadline > ?3
ORDER BY agent_id LIMIT ?4";

pub(super) const KEEP_LATE_OUTCOME: &str = "\
UPDATE commands SET late_outcome = ?3
WHERE tenant = ?1 AND command_id = ?2 AND state = 'indeterminate' AND late_outcome IS NULL";

pub(super) const KEEP_ORPHAN: &str = "\
INSERT INTO orphan_results (tenant, agent_id, command_id, received_at, outcome, bytes) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";

pub(super) const HAS_ORPHAN: &str = "\
SELECT 1 FROM orphan_results WHERE tenant = ?1 AND agent_id = ?2 AND command_id = ?3";

pub(super) const TRIM_ORPHANS: &str = "\
DELETE FROM orphan_results WHERE tenant = ?1 AND agent_id = ?2 AND command_id IN (
    SELECT command_id FROM (
        SELECT command_id, row_number() OVER newest AS place, sum(bytes) OVER newest AS sum
        FROM orphan_results INDEXED BY orphan_results_by_gateway WHERE tenant = ?1 AND agent_id = ?2
        WINDOW newest AS (ORDER BY received_at DESC, command_id DESC ROWS UNBOUNDED PRECEDING))
    WHERE place > ?3 OR sum > ?4)";

/// A session that can take commands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taker {
    pub(super) holder: Holder,
    pub(super) limits: LeaseLimits,
    pub(super) now: Timestamp,
}

/// Takes the next commands of several gateways in order.
pub(super) async fn lease(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    takers: &[Taker],
) -> StoreResult<Vec<StoreResult<Leased>>> {
    let document: Vec<_> = takers
        .iter()
        .map(|taker| {
            let holder = &taker.holder;
            (holder.agent_id, int(holder.epoch), taker.now.unix_micros())
        })
        .collect();
    let most = takers.iter().map(|taker| taker.limits.commands).max();
    let rows = sqlx::query(QUEUED)
        .bind(tenant.as_str())
        .bind(to_json(&document))
        .bind(int(limits::ORDER_WINDOW))
        .bind(i64::try_from(most.unwrap_or(0)).unwrap_or(i64::MAX))
        .fetch_all(&mut *connection)
        .await?;
    let mut answers: Vec<_> = takers.iter().map(|_| Err(StoreError::Fenced)).collect();
    let (mut changes, mut offers) = (Vec::new(), Vec::new());
    let mut taken = vec![0; takers.len()];
    let mut seen = BTreeSet::new();
    for (number, _order, row) in in_order(&rows)? {
        let reader = Reader::new("commands", row);
        let (Some(taker), Some(answer), Some(taken)) = (
            takers.get(number),
            answers.get_mut(number),
            taken.get_mut(number),
        ) else {
            continue;
        };
        if answer.is_err() {
            *answer = Ok(Leased::default());
        }
        let waits = reader.get::<Option<&str>>("command_id")?.is_some();
        if !waits || *taken >= taker.limits.commands {
            continue;
        }
        let command = CommandRow::read(row)?;
        // A session asks once at a time; should one ask twice, the first gets it.
        if seen.insert(command.command_id) {
            *taken += 1;
            changes.push(take(command, taker));
            offers.push((number, row));
        }
    }
    settle::write_all(connection, tenant, &mut changes).await?;
    for (change, (number, row)) in changes.iter().zip(&offers) {
        if let Some(Ok(leased)) = answers.get_mut(*number) {
            if change.row.state.is_final() {
                leased.dead.push(change.row.settled());
            } else {
                leased.commands.push(offer(row, &change.row)?);
            }
        }
    }
    if changes
        .iter()
        .any(|change| change.row.state == CommandState::Released)
    {
        fault::point("store.release.before_commit");
    }
    Ok(answers)
}

/// Rows by taker and order.
fn in_order(rows: &[SqliteRow]) -> StoreResult<Vec<(usize, Option<u64>, &SqliteRow)>> {
    let mut ordered = Vec::with_capacity(rows.len());
    for row in rows {
        let reader = Reader::new("commands", row);
        ordered.push((
            reader.index("number")?,
            reader.count_optional("order_no")?,
            row,
        ));
    }
    ordered.sort_by_key(|(number, order, _row)| (*number, *order));
    Ok(ordered)
}

/// Decides what becomes of a waiting command whose turn it is.
fn take(mut command: CommandRow, taker: &Taker) -> Change {
    let exhausted = command.attempt >= taker.limits.attempts_max;
    let note = Note {
        reason: exhausted.then_some("the allowed number of deliveries is used up"),
        ..Note::default()
    };
    let event = if exhausted {
        CommandEvent::AttemptsExhausted
    } else {
        command.attempt += 1;
        if command.idempotent {
            command.released_to = Some(taker.holder.agent_run_id);
            CommandEvent::Released
        } else {
            CommandEvent::Dispatched
        }
    };
    settle::change(command, event, note, &Actor::system(), taker.now)
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
        timeout_ms: reader.count_optional("timeout_ms")?,
    })
}

/// The answers about commands that were permitted with their offers and are not waiting: mostly nothing is to be written, and
/// then a look will do. `None` when it will not.
pub(super) async fn accepted_before(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    asked: &[(Holder, Accepted)],
) -> StoreResult<Vec<StoreResult<Option<AcceptOutcome>>>> {
    let wanted: Vec<_> = asked
        .iter()
        .map(|(holder, accepted)| (*holder, accepted.command_id))
        .collect();
    let mut held = settle::load_all(connection, tenant, &wanted).await?;
    let answers = asked
        .iter()
        .enumerate()
        .map(|(number, (holder, accepted))| {
            let held = held.remove(&number).ok_or(StoreError::Fenced)?;
            Ok(held
                .command
                .filter(|command| {
                    command.state == CommandState::Released
                        && command.released_to == Some(holder.agent_run_id)
                        && (accepted.idempotent || !command.idempotent)
                })
                .map(|command| permitted(&command, *accepted)))
        });
    Ok(answers.collect())
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
                settle::rewrite(connection, tenant, &command, now).await?;
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
        stdout_bytes: Some(0),
        stderr_bytes: Some(0),
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

/// A reported outcome.
#[derive(Debug, Clone)]
pub(super) struct Report {
    pub(super) holder: Holder,
    pub(super) command_id: CommandId,
    pub(super) outcome: Outcome,
    pub(super) now: Timestamp,
}

/// Gateways reported outcomes.
pub(super) async fn complete(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    reports: &[Report],
) -> StoreResult<Vec<StoreResult<CompleteOutcome>>> {
    let wanted: Vec<_> = reports
        .iter()
        .map(|report| (report.holder, report.command_id))
        .collect();
    let mut held = settle::load_all(connection, tenant, &wanted).await?;
    let mut round = Round::default();
    for (number, report) in reports.iter().enumerate() {
        round.judge(held.remove(&number), report);
    }
    settle::write_all(connection, tenant, &mut round.changes).await?;
    outputs::keep(connection, tenant, &round.outputs).await?;
    for (command, report, result) in &round.late {
        keep_late_outcome(connection, tenant, command, result, report.now).await?;
    }
    for (place, report) in std::mem::take(&mut round.orphans) {
        if !keep_orphan(connection, tenant, report).await?
            && let Some(Judged::Known(CompleteOutcome::Orphan { kept, .. })) =
                round.judged.get_mut(place)
        {
            *kept = false;
        }
    }
    fault::point("store.result.before_commit");
    Ok(round.answers())
}

/// What outcomes that came together change.
#[derive(Default)]
struct Round<'a> {
    judged: Vec<Judged>,
    changes: Vec<Change>,
    outputs: Vec<(CommandId, &'a Outcome)>,
    late: Vec<(CommandRow, &'a Report, String)>,
    /// Each with its place among the answers.
    orphans: Vec<(usize, &'a Report)>,
    seen: BTreeSet<CommandId>,
}

/// What one of them comes to.
enum Judged {
    Fenced,
    /// The change with this number ends the command.
    Ends(usize, u64),
    Known(CompleteOutcome),
}

impl<'a> Round<'a> {
    fn judge(&mut self, held: Option<Held>, report: &'a Report) {
        let Some(Held { low_water, command }) = held else {
            return self.judged.push(Judged::Fenced);
        };
        let Some(mut command) = command else {
            self.orphans.push((self.judged.len(), report));
            let orphan = CompleteOutcome::Orphan {
                low_water,
                kept: true,
            };
            return self.judged.push(Judged::Known(orphan));
        };
        let repeated = Judged::Known(CompleteOutcome::Repeated { low_water });
        // A gateway may say the same again before it was answered; the first time counts.
        if !self.seen.insert(report.command_id) {
            return self.judged.push(repeated);
        }
        let outcome = &report.outcome;
        let result = to_json(&without_output(outcome));
        let note = Note {
            reason: None,
            result: Some(&result),
        };
        command.started_at = outcome.started_at.or(command.started_at);
        let actor = Actor::gateway(report.holder.agent_id);
        let event = CommandEvent::Ended(outcome.state);
        let judged = match settle::step(command, event, note, &actor, report.now) {
            (_, Ok(change)) => {
                self.outputs.push((report.command_id, outcome));
                self.changes.push(change);
                Judged::Ends(self.changes.len() - 1, low_water)
            }
            (Transition::LateOutcome, Err(command))
                if !command.has_result && !command.has_late_outcome =>
            {
                self.outputs.push((report.command_id, outcome));
                self.late.push((command, report, result));
                Judged::Known(CompleteOutcome::LateOutcome { low_water })
            }
            (_, Err(_)) => repeated,
        };
        self.judged.push(judged);
    }

    fn answers(self) -> Vec<StoreResult<CompleteOutcome>> {
        let changes = self.changes;
        self.judged
            .into_iter()
            .map(|judged| match judged {
                Judged::Fenced => Err(StoreError::Fenced),
                Judged::Known(outcome) => Ok(outcome),
                Judged::Ends(number, low_water) => {
                    let row = &changes
                        .get(number)
                        .ok_or_else(|| StoreError::Inconsistent {
                            table: "commands",
                            column: "state",
                            row: number.to_string(),
                        })?
                        .row;
                    Ok(CompleteOutcome::Completed {
                        settled: row.settled(),
                        low_water: row.low_water.unwrap_or(low_water),
                    })
                }
            })
            .collect()
    }
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
        stdout_bytes: Some(outcome.stdout.total_bytes()),
        stderr_bytes: Some(outcome.stderr.total_bytes()),
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

/// Keeps the outcome of a command that nobody knows; `false` when its gateway left too many, and it is only counted.
async fn keep_orphan(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    report: &Report,
) -> StoreResult<bool> {
    let Report {
        holder,
        command_id,
        outcome,
        now,
    } = report;
    let (agent_id, now) = (holder.agent_id, *now);
    let known = sqlx::query(HAS_ORPHAN)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .bind(command_id.to_string())
        .fetch_optional(&mut *connection)
        .await?;
    if known.is_some() {
        return Ok(true);
    }
    let Some(left_out) = budget::take(connection, tenant, agent_id, ORPHANS, now).await? else {
        return Ok(false);
    };
    let text = to_json(outcome);
    let bytes = i64::try_from(text.len()).unwrap_or(i64::MAX);
    sqlx::query(KEEP_ORPHAN)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .bind(command_id.to_string())
        .bind(now.unix_micros())
        .bind(text)
        .bind(bytes)
        .execute(&mut *connection)
        .await?;
    sqlx::query(TRIM_ORPHANS)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .bind(ORPHANS_PER_GATEWAY_MAX)
        .bind(ORPHAN_BYTES_PER_GATEWAY_MAX)
        .execute(&mut *connection)
        .await?;
    let record = audit::record(
        &Actor::gateway(agent_id),
        "command.orphan",
        format!("command:{command_id}"),
        AuditOutcome::Noted,
        json!({ "agent_id": agent_id, "state": outcome.state, "results_not_kept_before": left_out }),
    );
    audit::note(connection, tenant, &record, agent_id, now).await?;
    Ok(true)
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
