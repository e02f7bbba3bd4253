//! Submitting runs: those that come at the same moment are judged in their order and written together.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use sqlx::{Column, QueryBuilder, Row, Sqlite, SqliteConnection};
use viworks_common::api::SkipCode;
use viworks_common::command::CommandState;
use viworks_common::id::{AgentId, GatewayName, Tenant};
use viworks_common::time::Timestamp;
use viworks_runtime::fault;

use super::audit;
use super::row::{Reader, int, to_json};
use super::runs::replays;
use crate::data::{
    AuditOutcome, Idempotency, NewAuditRecord, NewRun, Run, StoreError, StoreResult, Submission,
};

/// The waiting commands of all gateways, then the named gateways as they stand.
pub(super) const STANDING: &str = "\
SELECT coalesce(sum(open_commands), 0) AS waiting FROM gateways WHERE tenant = $1;
SELECT g.agent_id, g.name, g.next_order, g.open_commands FROM json_each($2) AS e
CROSS JOIN gateways AS g ON g.tenant = $1 AND g.agent_id = e.value WHERE g.revoked_at IS NULL";

/// One run. Several in one statement would make SQLite look for commands that wait for their run, by a walk over all.
const INSERT_RUN: &str = "INSERT INTO runs (tenant, run_id, name, arguments, deadline, traceparent, reason, \
                          submitted_by, created_at, open_commands, skipped, timeout_ms) VALUES (";

/// All that belongs to accepted runs, as one script: each statement by itself would be a journey to the driver's thread
/// and back. Parameter 2 is a document about runs, parameter 3 one of their commands, parameter 4 one of who is skipped.
pub(super) const SUBMIT: &str = "\
UPDATE gateways SET next_order = next_order + e.more, open_commands = open_commands + e.more
FROM (SELECT value ->> 2 AS agent_id, count(*) AS more FROM json_each($3) GROUP BY 1) AS e
WHERE tenant = $1 AND gateways.agent_id = e.agent_id;
INSERT INTO commands (tenant, command_id, run_id, agent_id, order_no, state, idempotent, risk, timeout_ms,
                      available_at, deadline, created_at)
SELECT $1, value ->> 0, value ->> 1, value ->> 2, value ->> 3, 'queued', value ->> 4, value ->> 5, value ->> 6,
       value ->> 7, value ->> 8, value ->> 7 FROM json_each($3);
INSERT INTO run_skips (tenant, run_id, agent_id, code, detail)
SELECT $1, value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each($4);
INSERT OR REPLACE INTO idempotency_keys (tenant, principal, route, key, request_hash, run_id, created_at)
SELECT $1, value ->> 2, value ->> 3, value ->> 4, unhex(value ->> 5), value ->> 0, value ->> 1
FROM json_each($2) WHERE value ->> 2 IS NOT NULL;
INSERT INTO audit_log (tenant, seq, at, actor_kind, actor_id, action, object, outcome, detail, request_id)
SELECT $1, coalesce((SELECT max(seq) FROM audit_log WHERE tenant = $1), 0) + 1 + key,
       (value ->> 1) + coalesce((SELECT wall_ahead FROM time_line WHERE one = 1), 0),
       value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11, value ->> 12
FROM json_each($2)";

/// A run to be submitted.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) new: NewRun,
    pub(super) now: Timestamp,
}

/// What became of a run; a refusal is the inner error, and only its audit record remains.
pub(super) type Answer = Result<Submission, StoreError>;

/// Accepts runs, each as a whole or not at all.
pub(super) async fn submit(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    asked: &[Asked],
) -> StoreResult<Vec<StoreResult<Answer>>> {
    let mut standing = standing(connection, tenant, asked).await?;
    let mut earlier = earlier(connection, tenant, asked).await?;
    let mut answers = Vec::with_capacity(asked.len());
    let mut accepted = Accepted::default();
    let mut keys = BTreeMap::new();
    for (number, Asked { new, now }) in asked.iter().enumerate() {
        if let Some(key) = &new.idempotency {
            if let Some(answer) = replayed(&keys, key) {
                answers.push(Ok(Ok(answer)));
                continue;
            }
            if let Some(earlier) = earlier.remove(&number) {
                answers.push(Ok(Ok(earlier)));
                continue;
            }
        }
        let full = match standing.judge(new) {
            Ok(full) => full,
            Err(refusal) => {
                let detail = json!({ "name": new.name, "targets": new.targets.len(), "reason": refusal.to_string() });
                let record = record(new, AuditOutcome::Refused, detail);
                audit::append(connection, tenant, &record, *now).await?;
                answers.push(Ok(Err(refusal)));
                continue;
            }
        };
        accepted.add(new, *now, &full, &mut standing);
        let run = run(new, *now, &full);
        if let Some(key) = &new.idempotency {
            keys.insert(name(key), (key.request_hash, run.clone()));
        }
        answers.push(Ok(Ok(Submission::Submitted(run))));
    }
    accepted.write(connection, tenant).await?;
    Ok(answers)
}

/// What was submitted before with the keys of these runs, by the places of the runs.
async fn earlier(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    asked: &[Asked],
) -> StoreResult<BTreeMap<usize, Submission>> {
    let (mut numbers, mut keys) = (Vec::new(), Vec::new());
    for (number, Asked { new, now }) in asked.iter().enumerate() {
        if let Some(key) = &new.idempotency {
            numbers.push(number);
            keys.push((key.clone(), *now));
        }
    }
    let mut earlier = BTreeMap::new();
    for (number, replay) in numbers
        .into_iter()
        .zip(replays(connection, tenant, &keys).await?)
    {
        if let Some(replay) = replay? {
            earlier.insert(number, replay);
        }
    }
    Ok(earlier)
}

fn name(key: &Idempotency) -> (&str, &str, &str) {
    (&key.principal, &key.route, &key.key)
}

/// The answer to a submission whose key was used a moment ago, in the same transaction.
fn replayed(
    keys: &BTreeMap<(&str, &str, &str), ([u8; 32], Run)>,
    key: &Idempotency,
) -> Option<Submission> {
    let (request_hash, run) = keys.get(&name(key))?;
    Some(if *request_hash == key.request_hash {
        Submission::Replayed(run.clone())
    } else {
        Submission::IdempotencyMismatch
    })
}

/// The gateways that runs are for. There is one writer, so nothing can move before the rows are written.
struct Standing {
    waiting: u64,
    /// Each that is not revoked.
    gateways: BTreeMap<AgentId, Counters>,
}

/// What counts for a gateway's next command.
struct Counters {
    name: GatewayName,
    next_order: u64,
    open: u64,
}

/// Targets whose queue is full.
type FullQueues = BTreeSet<AgentId>;

async fn standing(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    asked: &[Asked],
) -> StoreResult<Standing> {
    let targets = asked.iter().flat_map(|asked| &asked.new.targets);
    let agents: BTreeSet<_> = targets.map(|target| target.agent_id).collect();
    let rows = sqlx::query(STANDING)
        .bind(tenant.as_str())
        .bind(to_json(&agents))
        .fetch_all(connection)
        .await?;
    let mut standing = Standing {
        waiting: 0,
        gateways: BTreeMap::new(),
    };
    for row in &rows {
        let reader = Reader::new("gateways", row);
        if row.column(0).name() == "waiting" {
            standing.waiting = reader.count("waiting")?;
        } else {
            let counters = Counters {
                name: reader.parse("name")?,
                next_order: reader.count("next_order")?,
                open: reader.count("open_commands")?,
            };
            standing
                .gateways
                .insert(reader.parse("agent_id")?, counters);
        }
    }
    Ok(standing)
}

impl Standing {
    /// The first reason against a run; otherwise the targets that are skipped because their queues are full.
    fn judge(&self, new: &NewRun) -> Result<FullQueues, StoreError> {
        let agents: BTreeSet<_> = new.targets.iter().map(|target| target.agent_id).collect();
        if agents.len() < new.targets.len() {
            let what = "a command of this run for one of its gateways".to_owned();
            return Err(StoreError::Conflict { what });
        }
        if agents.is_empty() {
            let what = "a gateway for this run".to_owned();
            return Err(StoreError::Missing { what });
        }
        if let Some(missing) = agents.iter().find(|id| !self.gateways.contains_key(id)) {
            let what = format!("gateway {missing}");
            return Err(StoreError::Missing { what });
        }
        let retry_after = new.limits.retry_after;
        let full: Vec<_> = agents
            .iter()
            .filter_map(|id| self.gateways.get_key_value(id))
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
        if self.waiting.saturating_add(count(new, &full)) > new.limits.global {
            return Err(StoreError::QueueFull {
                scope: "the backend".to_owned(),
                gateways: Vec::new(),
                limit: new.limits.global,
                retry_after,
            });
        }
        Ok(full)
    }

    /// The order of a gateway's next command.
    fn next_order(&mut self, agent_id: AgentId) -> u64 {
        self.waiting += 1;
        let Some(gateway) = self.gateways.get_mut(&agent_id) else {
            // Judged a moment ago: a run with a target that is not here was refused.
            return 0;
        };
        gateway.open += 1;
        let order = gateway.next_order;
        gateway.next_order += 1;
        order
    }
}

/// How many commands a run gets when these targets are skipped.
fn count(new: &NewRun, full: &FullQueues) -> u64 {
    u64::try_from(new.targets.len().saturating_sub(full.len())).unwrap_or(u64::MAX)
}

/// How many gateways it skips.
fn count_skipped(new: &NewRun, full: &FullQueues) -> u64 {
    u64::try_from(new.skipped.len().saturating_add(full.len())).unwrap_or(u64::MAX)
}

/// What is written about accepted runs.
#[derive(Default)]
struct Accepted<'a> {
    runs: Vec<(&'a NewRun, Timestamp, u64, u64)>,
    /// Their keys and audit records.
    records: Vec<Value>,
    commands: Vec<Value>,
    skipped: Vec<Value>,
}

impl<'a> Accepted<'a> {
    fn add(&mut self, new: &'a NewRun, now: Timestamp, full: &FullQueues, standing: &mut Standing) {
        let (commands, skipped) = (count(new, full), count_skipped(new, full));
        let detail = json!({
            "name": new.name, "arguments": new.arguments, "targets": commands, "skipped": skipped,
            "deadline": new.deadline, "timeout_ms": new.timeout_ms, "reason": new.reason,
        });
        let record = record(new, AuditOutcome::Done, detail);
        let key = new.idempotency.as_ref();
        self.runs.push((new, now, commands, skipped));
        self.records.push(json!([
            new.run_id,
            now.unix_micros(),
            key.map(|key| &key.principal),
            key.map(|key| &key.route),
            key.map(|key| &key.key),
            key.map(|key| hex::encode(key.request_hash)),
            record.actor.kind.name(),
            record.actor.id,
            record.action,
            record.object,
            record.outcome.name(),
            to_json(&record.detail),
            record.actor.request_id,
        ]));
        for skip in &new.skipped {
            let (code, detail) = (skip.code.name(), &skip.detail);
            self.skipped
                .push(json!([new.run_id, skip.agent_id, code, detail]));
        }
        for target in &new.targets {
            if full.contains(&target.agent_id) {
                let limit = new.limits.per_gateway;
                let detail = format!("{limit} commands wait for it, which is as many as may");
                let code = SkipCode::QueueFull.name();
                self.skipped
                    .push(json!([new.run_id, target.agent_id, code, detail]));
                continue;
            }
            self.commands.push(json!([
                target.command_id,
                new.run_id,
                target.agent_id,
                int(standing.next_order(target.agent_id)),
                target.idempotent,
                target.risk,
                int(target.timeout_ms),
                now.unix_micros(),
                new.deadline.unix_micros(),
            ]));
        }
    }

    async fn write(&self, connection: &mut SqliteConnection, tenant: &Tenant) -> StoreResult<()> {
        if self.runs.is_empty() {
            return Ok(());
        }
        let mut runs: QueryBuilder<Sqlite> = QueryBuilder::new("");
        for (new, now, commands, skipped) in &self.runs {
            runs.push(INSERT_RUN);
            runs.separated(", ")
                .push_bind(tenant.as_str().to_owned())
                .push_bind(new.run_id.to_string())
                .push_bind(new.name.as_str().to_owned())
                .push_bind(to_json(&new.arguments))
                .push_bind(new.deadline.unix_micros())
                .push_bind(new.traceparent.clone())
                .push_bind(new.reason.clone())
                .push_bind(new.actor.to_string())
                .push_bind(now.unix_micros())
                .push_bind(int(*commands))
                .push_bind(int(*skipped))
                .push_bind(new.timeout_ms.map(int));
            runs.push("); ");
        }
        runs.build().execute(&mut *connection).await?;
        sqlx::query(SUBMIT)
            .bind(tenant.as_str())
            .bind(to_json(&self.records))
            .bind(to_json(&self.commands))
            .bind(to_json(&self.skipped))
            .execute(connection)
            .await?;
        fault::point("store.submit.before_commit");
        Ok(())
    }
}

fn record(new: &NewRun, outcome: AuditOutcome, detail: Value) -> NewAuditRecord {
    let object = format!("run:{}", new.run_id);
    audit::record(&new.actor, "run.submit", object, outcome, detail)
}

/// An accepted run as it stands.
fn run(new: &NewRun, now: Timestamp, full: &FullQueues) -> Run {
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
        states: [(CommandState::Queued, count(new, full))].into(),
        skipped: count_skipped(new, full),
    }
}
