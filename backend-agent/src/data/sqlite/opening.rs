//! Opening sessions: HELLO and CONFIRM, and what they find of earlier sessions.

use std::collections::BTreeSet;

use serde_json::json;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Column, Row, Sqlite, SqliteConnection};
use viworks_common::admission::{
    Admission, Confirmation, HelloFacts, IdentityRow, admit as decide, confirm as decide_confirm,
};
use viworks_common::code::CloseCode;
use viworks_common::command::{CommandEvent, CommandState};
use viworks_common::id::{AgentId, CommandId, SessionId, Tenant};
use viworks_common::time::Timestamp;

use super::row::{Reader, int, to_json};
use super::sessions::requeue;
use super::settle::{self, CommandRow, Note};
use super::{audit, forks, telemetry};
use crate::data::{
    Actor, AdmitOutcome, AdmitRequest, Admitted, AuditOutcome, ConfirmOutcome, ConfirmRequest,
    Confirmed, LabelSource, LiveSession, OpenCommand, StoreError, StoreResult,
};

/// No order that a gateway claims to have seen raises its counter further: a lie cannot exhaust the numbers.
const ORDER_MAX: u64 = 1 << 53;

/// With a session's epoch and id, also whether that session is admitted and waits to be confirmed.
pub(super) const IDENTITY: &str = "\
SELECT g.agent_id, g.confirmed, g.issued, g.key_generation, g.last_agent_run_id, g.revoked_at, g.next_order,
       g.low_water, g.session_epoch, s.session_id, s.agent_run_id, c.digest AS catalogue_digest,
       EXISTS (SELECT 1 FROM sessions AS n WHERE n.tenant = g.tenant AND n.agent_id = g.agent_id AND n.epoch = ?3
               AND n.session_id = ?4 AND n.ended_at IS NULL) AS admitted
FROM gateways AS g
LEFT JOIN sessions AS s ON s.tenant = g.tenant AND s.agent_id = g.agent_id AND s.epoch = g.session_epoch
LEFT JOIN catalogues AS c ON c.tenant = g.tenant AND c.agent_id = g.agent_id
WHERE g.tenant = ?1 AND g.agent_id = ?2";

/// The compare-and-swap of an identity's counters, with whatever else changes in the row.
macro_rules! swap {
    ($more:literal) => {
        concat!(
            "UPDATE gateways SET confirmed = $5, issued = $6, key_generation = $7, last_agent_run_id = $8, \
             next_order = $9, low_water = $10",
            $more,
            " WHERE tenant = $1 AND agent_id = $2 AND confirmed = $3 AND issued = $4 AND revoked_at IS NULL \
             RETURNING low_water"
        )
    };
}

/// What a HELLO that is accepted changes. Its row is the low-water mark; none when somebody else moved the counters.
pub(super) const ADMIT: &str = concat!(
    swap!(", last_seen_at = $11"),
    "; INSERT INTO sessions (tenant, agent_id, epoch, session_id, agent_run_id, install_id, boot_id, peer_address, \
                             fingerprint, agent_version, labels, pin_set_version, admitted_at) \
       VALUES ($1, $2, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $11)"
);

/// What a confirmation changes: the session is the gateway's live one, what its HELLO said takes effect, and the one
/// before it has ended. Its first row is as that of [`ADMIT`], the others are the gateway's open commands.
pub(super) const CONFIRM: &str = concat!(
    swap!(
        ", last_seen_at = $11, session_epoch = $12, \
         (agent_version, pin_set_version) = (SELECT n.agent_version, n.pin_set_version FROM sessions AS n \
             WHERE n.tenant = $1 AND n.agent_id = $2 AND n.epoch = $12), \
         round_trip_us = NULL, clock_skew_ms = NULL, spool_records = 0, spool_bytes = 0, commands_running = 0"
    ),
    "; UPDATE sessions SET confirmed_at = $11 WHERE tenant = $1 AND agent_id = $2 AND epoch = $12; \
     UPDATE sessions SET ended_at = $11, code = $14 \
     WHERE tenant = $1 AND agent_id = $2 AND epoch = $13 AND ended_at IS NULL; \
     DELETE FROM labels WHERE tenant = $1 AND agent_id = $2 AND source = $15; \
     INSERT INTO labels (tenant, agent_id, key, source, value) \
     SELECT $1, $2, label.key, $15, label.value \
     FROM sessions AS n, json_each(n.labels) AS label WHERE n.tenant = $1 AND n.agent_id = $2 AND n.epoch = $12; ",
    settle::open_of_gateway!()
);

struct Identity {
    row: IdentityRow,
    live: Option<(SessionId, u64)>,
    live_run: Option<viworks_common::id::AgentRunId>,
    catalogue_digest: Option<String>,
    /// The session that was asked about is admitted and waits to be confirmed.
    admitted: bool,
}

async fn identity(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    agent_id: AgentId,
    session: Option<(u64, SessionId)>,
) -> StoreResult<Option<Identity>> {
    let row = sqlx::query(IDENTITY)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .bind(session.map(|(epoch, _)| int(epoch)))
        .bind(session.map(|(_, session_id)| session_id.to_string()))
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    let reader = Reader::new("gateways", &row);
    let live = match reader.count_optional("session_epoch")? {
        Some(epoch) => Some((reader.parse("session_id")?, epoch)),
        None => None,
    };
    Ok(Some(Identity {
        row: IdentityRow {
            confirmed: reader.count("confirmed")?,
            issued: reader.count("issued")?,
            key_generation: reader.small("key_generation")?,
            last_agent_run_id: reader.parse_optional("last_agent_run_id")?,
            revoked: reader.time_optional("revoked_at")?.is_some(),
            next_order: reader.count("next_order")?,
            low_water: reader.count("low_water")?,
        },
        live,
        live_run: reader.parse_optional("agent_run_id")?,
        catalogue_digest: reader.get("catalogue_digest")?,
        admitted: reader.get("admitted")?,
    }))
}

/// A HELLO to be judged.
#[derive(Debug, Clone)]
pub(super) struct Hello {
    pub(super) request: AdmitRequest,
    pub(super) now: Timestamp,
}

/// Judges HELLOs that came together.
pub(super) async fn admit_all(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    hellos: &[Hello],
) -> StoreResult<Vec<StoreResult<AdmitOutcome>>> {
    let mut answers = Vec::with_capacity(hellos.len());
    for Hello { request, now } in hellos {
        answers.push(Ok(admit(connection, tenant, request, *now).await?));
    }
    Ok(answers)
}

/// A CONFIRM to be judged.
#[derive(Debug, Clone)]
pub(super) struct Confirm {
    pub(super) request: ConfirmRequest,
    pub(super) now: Timestamp,
}

/// Confirms epochs whose gateways said so together.
pub(super) async fn confirm_all(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    confirms: &[Confirm],
) -> StoreResult<Vec<StoreResult<ConfirmOutcome>>> {
    let mut answers = Vec::with_capacity(confirms.len());
    for Confirm { request, now } in confirms {
        answers.push(Ok(confirm(connection, tenant, request, *now).await?));
    }
    Ok(answers)
}

/// Judges a HELLO.
async fn admit(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    request: &AdmitRequest,
    now: Timestamp,
) -> StoreResult<AdmitOutcome> {
    let Some(known) = identity(connection, tenant, request.agent_id, None).await? else {
        return Ok(AdmitOutcome::Unknown);
    };
    let facts = HelloFacts {
        epoch: request.epoch,
        token_valid: request.token_valid,
        agent_run_id: request.agent_run_id,
        key_generation: request.key_generation,
        highest_order: request.highest_order.min(ORDER_MAX),
        low_water: request.low_water.min(ORDER_MAX),
        confirmed_at_challenge: request.confirmed_at_challenge,
    };
    let (presented, issued, after, rolled_back_to) = match decide(&known.row, &facts) {
        Admission::Accept {
            presented,
            issued,
            row,
        } => (presented, issued, row, None),
        Admission::RolledBack {
            presented,
            issued,
            row,
            highest_order,
        } => (presented, issued, row, Some(highest_order)),
        Admission::Late => return Ok(AdmitOutcome::Late),
        Admission::Fork => {
            forks::record(connection, tenant, request, now).await?;
            return Ok(AdmitOutcome::Fork);
        }
        Admission::BadToken => {
            return refuse(
                connection,
                tenant,
                request,
                AdmitOutcome::BadToken,
                "bad_token",
                now,
            )
            .await;
        }
        Admission::Revoked => {
            return refuse(
                connection,
                tenant,
                request,
                AdmitOutcome::Revoked,
                "revoked",
                now,
            )
            .await;
        }
        Admission::StaleKey => {
            return refuse(
                connection,
                tenant,
                request,
                AdmitOutcome::StaleKey,
                "stale_key",
                now,
            )
            .await;
        }
    };
    let mut low_water =
        insert(connection, tenant, request, &known.row, &after, issued, now).await?;
    if let Some(highest_order) = rolled_back_to {
        low_water = settle_rolled_back(connection, tenant, request, highest_order, now).await?;
    }
    let committed = telemetry::settle_positions(
        connection,
        tenant,
        request.agent_id,
        &request.telemetry,
        now,
    )
    .await?;
    if committed.missing > 0 {
        let detail =
            json!({ "epoch": request.epoch, "telemetry_records_missing": committed.missing });
        audit::of_gateway(
            connection,
            tenant,
            request.agent_id,
            "telemetry.rolled_back",
            AuditOutcome::Noted,
            detail,
            now,
        )
        .await?;
    }
    Ok(AdmitOutcome::Accepted(Box::new(Admitted {
        presented,
        issued,
        low_water,
        committed: committed.positions,
        catalogue_known: known.catalogue_digest.as_deref() == Some(&request.catalogue_digest),
        rolled_back: rolled_back_to.is_some() || committed.missing > 0,
        live_session: known.live.map(|(session_id, epoch)| LiveSession {
            session_id,
            epoch,
            same_agent_run: known.live_run == Some(request.agent_run_id),
        }),
    })))
}

async fn refuse(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    request: &AdmitRequest,
    outcome: AdmitOutcome,
    why: &str,
    now: Timestamp,
) -> StoreResult<AdmitOutcome> {
    let detail =
        json!({ "why": why, "peer_address": request.peer_address, "epoch": request.epoch });
    audit::of_gateway(
        connection,
        tenant,
        request.agent_id,
        "session.open",
        AuditOutcome::Refused,
        detail,
        now,
    )
    .await?;
    Ok(outcome)
}

/// Binds the parameters of a compare-and-swap.
fn swap<'q>(
    sql: &'static str,
    tenant: &'q Tenant,
    agent_id: AgentId,
    before: &IdentityRow,
    after: &IdentityRow,
    now: Timestamp,
) -> Query<'q, Sqlite, SqliteArguments> {
    sqlx::query(sql)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .bind(int(before.confirmed))
        .bind(int(before.issued))
        .bind(int(after.confirmed))
        .bind(int(after.issued))
        .bind(i64::from(after.key_generation))
        .bind(after.last_agent_run_id.map(|run| run.to_string()))
        .bind(int(after.next_order))
        .bind(int(after.low_water))
        .bind(now.unix_micros())
}

/// Takes the rows of a compare-and-swap apart: the low-water mark, and what else was asked for.
fn swapped(rows: &[SqliteRow]) -> StoreResult<(u64, &[SqliteRow])> {
    let (gateway, more) = rows.split_first().ok_or(StoreError::Fenced)?;
    // Nobody's row, when somebody else moved the counters and commands are open.
    if gateway.column(0).name() != "low_water" {
        return Err(StoreError::Fenced);
    }
    Ok((Reader::new("gateways", gateway).count("low_water")?, more))
}

async fn insert(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    request: &AdmitRequest,
    before: &IdentityRow,
    after: &IdentityRow,
    epoch: u64,
    now: Timestamp,
) -> StoreResult<u64> {
    let admit = swap(ADMIT, tenant, request.agent_id, before, after, now)
        .bind(int(epoch))
        .bind(request.session_id.to_string())
        .bind(request.agent_run_id.to_string())
        .bind(request.install_id.to_string())
        .bind(request.boot_id.to_string())
        .bind(&request.peer_address)
        .bind(request.fingerprint.as_slice())
        .bind(&request.agent_version)
        .bind(to_json(&request.labels))
        .bind(int(request.pin_set_version));
    let rows = admit.fetch_all(connection).await?;
    Ok(swapped(&rows)?.0)
}

/// The database forgot what happened since a backup: whatever may have run meanwhile can never be offered again.
async fn settle_rolled_back(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    request: &AdmitRequest,
    highest_order: u64,
    now: Timestamp,
) -> StoreResult<u64> {
    let unreported: BTreeSet<_> = request.unreported.iter().copied().collect();
    let mut ended = 0_u64;
    for mut command in
        settle::load_open(connection, tenant, request.agent_id, highest_order).await?
    {
        if unreported.contains(&command.command_id) {
            continue;
        }
        let reason = Note {
            reason: Some("the backend's database was rolled back past it"),
            ..Note::default()
        };
        let event = CommandEvent::RolledBack;
        settle::apply(
            connection,
            tenant,
            &mut command,
            event,
            reason,
            &Actor::system(),
            now,
        )
        .await?;
        ended += u64::from(command.state.is_final());
    }
    let low_water = settle::raise_low_water(connection, tenant, request.agent_id).await?;
    let detail = json!({ "epoch": request.epoch, "highest_order": highest_order, "ended": ended });
    audit::of_gateway(
        connection,
        tenant,
        request.agent_id,
        "database.rolled_back",
        AuditOutcome::Noted,
        detail,
        now,
    )
    .await?;
    Ok(low_water)
}

/// Confirms an epoch: from here on every older session is fenced.
async fn confirm(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    request: &ConfirmRequest,
    now: Timestamp,
) -> StoreResult<ConfirmOutcome> {
    let asked = Some((request.issued, request.session_id));
    let Some(known) = identity(connection, tenant, request.agent_id, asked).await? else {
        return Ok(ConfirmOutcome::Superseded);
    };
    if known.row.revoked || !known.admitted {
        return Ok(ConfirmOutcome::Superseded);
    }
    let decision = decide_confirm(
        &known.row,
        request.presented,
        request.issued,
        request.agent_run_id,
    );
    let after = match decision {
        Confirmation::Confirmed(after) => after,
        Confirmation::Superseded => return Ok(ConfirmOutcome::Superseded),
    };
    let confirm = swap(CONFIRM, tenant, request.agent_id, &known.row, &after, now)
        .bind(int(request.issued))
        .bind(known.live.map(|(_, epoch)| int(epoch)))
        .bind(CloseCode::Superseded.name())
        .bind(LabelSource::Gateway.name());
    let rows = confirm.fetch_all(&mut *connection).await?;
    let (low_water, open) = swapped(&rows)?;
    let mut confirmed = settle_older(connection, tenant, request, (low_water, open), now).await?;
    confirmed.fenced = known.live.map(|(session_id, _)| session_id);
    Ok(ConfirmOutcome::Confirmed(Box::new(confirmed)))
}

/// What older sessions and processes left behind.
async fn settle_older(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    request: &ConfirmRequest,
    (low_water, open): (u64, &[SqliteRow]),
    now: Timestamp,
) -> StoreResult<Confirmed> {
    let unreported: BTreeSet<CommandId> = request.unreported.iter().copied().collect();
    let mut confirmed = Confirmed {
        released: Vec::new(),
        cancel_requested: Vec::new(),
        ended_indeterminate: Vec::new(),
        low_water,
        fenced: None,
    };
    for row in open {
        let mut command = CommandRow::read(row)?;
        let journalled = unreported.contains(&command.command_id);
        match command.state {
            CommandState::Dispatched => requeue(connection, tenant, &mut command, now).await?,
            CommandState::Released | CommandState::Running => {
                let here = command.released_to == Some(request.agent_run_id);
                // The same process without a trace of it: an inline permit that never arrived may be given again. One
                // that is not idempotent was journalled before its permit, so it is asked about once more.
                if !journalled && (!here || command.idempotent) {
                    run_gone(connection, tenant, &mut command, now).await?;
                }
                sort_open(&mut confirmed, &command, here);
            }
            CommandState::Queued
            | CommandState::Succeeded
            | CommandState::Failed
            | CommandState::TimedOut
            | CommandState::Rejected
            | CommandState::Expired
            | CommandState::Cancelled
            | CommandState::Dead
            | CommandState::Indeterminate => {}
        }
        confirmed.low_water = command.low_water.unwrap_or(confirmed.low_water);
    }
    Ok(confirmed)
}

fn sort_open(confirmed: &mut Confirmed, command: &CommandRow, here: bool) {
    if command.state == CommandState::Indeterminate {
        confirmed.ended_indeterminate.push(command.command_id);
    } else if command.released_to.is_some() && command.cancel_requested {
        confirmed.cancel_requested.push(command.command_id);
    } else if command.state == CommandState::Released && here {
        confirmed.released.push(OpenCommand {
            command_id: command.command_id,
            deadline: command.deadline,
        });
    }
}

async fn run_gone(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    command: &mut CommandRow,
    now: Timestamp,
) -> StoreResult<()> {
    let actor = Actor::system();
    // A command that goes back to the queue has no reason to end.
    let reason = (!command.idempotent).then_some(
        "the process of the gateway agent that held its permit is gone and left no trace of it",
    );
    let note = Note {
        reason,
        ..Note::default()
    };
    settle::apply(
        connection,
        tenant,
        command,
        CommandEvent::RunGone,
        note,
        &actor,
        now,
    )
    .await?;
    if command.state == CommandState::Queued && command.cancel_requested {
        let note = Note {
            reason: Some("cancelled by an operator"),
            ..Note::default()
        };
        let event = CommandEvent::CancelRequested;
        settle::apply(connection, tenant, command, event, note, &actor, now).await?;
    }
    Ok(())
}
