//! Sessions that are open: the fence, heartbeats, and the end.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use viworks_common::code::CloseCode;
use viworks_common::command::{CommandEvent, CommandState};
use viworks_common::id::{AgentId, Tenant};
use viworks_common::time::Timestamp;

use super::row::{CHUNK_ROWS, Reader, int, to_json};
use super::settle::{self, CommandRow, Note};
use crate::data::{Actor, SessionRecord, SessionTouch, StoreError, StoreResult};

/// The places of those `[agent_id, epoch]` that are current.
pub(super) const FENCE: &str = "\
SELECT e.key AS number FROM json_each($2) AS e
CROSS JOIN gateways AS g ON g.tenant = $1 AND g.agent_id = e.value ->> 0 AND g.confirmed = e.value ->> 1
     AND g.revoked_at IS NULL";

pub(super) const ENDED: &str = "\
UPDATE sessions SET ended_at = ?4, code = ?5
WHERE tenant = ?1 AND agent_id = ?2 AND epoch = ?3 AND ended_at IS NULL";

pub(super) const VACATE: &str = "\
UPDATE gateways SET session_epoch = NULL, last_seen_at = ?4
WHERE tenant = ?1 AND agent_id = ?2 AND session_epoch = ?3";

pub(super) const VACATE_ALL: &str = "\
UPDATE gateways SET session_epoch = NULL, last_seen_at = ?2 WHERE tenant = ?1 AND session_epoch IS NOT NULL";

pub(super) const END_ALL: &str =
    "UPDATE sessions SET ended_at = ?2, code = ?3 WHERE tenant = ?1 AND ended_at IS NULL";

/// Stores the figures of `[agent_id, epoch, …]`; those of fenced sessions change nothing.
pub(super) const TOUCH: &str = "\
UPDATE gateways SET last_seen_at = $3, round_trip_us = e.value ->> 2, clock_skew_ms = e.value ->> 3,
       spool_records = e.value ->> 4, spool_bytes = e.value ->> 5, commands_running = e.value ->> 6
FROM (SELECT value ->> 0 AS id, value FROM json_each($2) LIMIT -1) AS e
WHERE tenant = $1 AND gateways.agent_id = e.id AND confirmed = e.value ->> 1 AND session_epoch = e.value ->> 1
      AND revoked_at IS NULL";

pub(super) const PINS: &str = "\
UPDATE gateways SET pin_set_version = e.value ->> 1
FROM (SELECT value ->> 0 AS id, value FROM json_each($2) LIMIT -1) AS e
WHERE tenant = $1 AND gateways.agent_id = e.id";

pub(super) const LIST: &str = "\
SELECT session_id, epoch, agent_run_id, peer_address, admitted_at, confirmed_at, ended_at, code
FROM sessions WHERE tenant = ?1 AND agent_id = ?2 ORDER BY epoch DESC LIMIT ?3";

/// Which of these sessions are the current ones of their gateways; anything else is done on behalf of a fenced one. With
/// one writer, what this has seen holds until the transaction ends.
pub(super) async fn current(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    sessions: &[(AgentId, u64)],
) -> StoreResult<BTreeSet<usize>> {
    let document: Vec<_> = sessions
        .iter()
        .map(|(agent_id, epoch)| (agent_id, int(*epoch)))
        .collect();
    let rows = sqlx::query(FENCE)
        .bind(tenant.as_str())
        .bind(to_json(&document))
        .fetch_all(connection)
        .await?;
    let read = |row| Reader::new("gateways", row).index("number");
    rows.iter().map(read).collect()
}

/// One answer for each of so many questions: those of fenced sessions were not carried out.
pub(super) fn unless_fenced(current: &BTreeSet<usize>, questions: usize) -> Vec<StoreResult<()>> {
    let answer = |number| {
        if current.contains(&number) {
            Ok(())
        } else {
            Err(StoreError::Fenced)
        }
    };
    (0..questions).map(answer).collect()
}

/// Ends a session; only what still belongs to it is touched.
pub(super) async fn end(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    agent_id: AgentId,
    epoch: u64,
    code: CloseCode,
    now: Timestamp,
) -> StoreResult<bool> {
    mark_ended(connection, tenant, agent_id, epoch, code, now).await?;
    let vacated = sqlx::query(VACATE)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .bind(int(epoch))
        .bind(now.unix_micros())
        .execute(&mut *connection)
        .await?;
    if vacated.rows_affected() == 0 {
        return Ok(false);
    }
    for mut command in settle::load_open(connection, tenant, agent_id, u64::MAX).await? {
        if command.state == CommandState::Dispatched {
            requeue(connection, tenant, &mut command, now).await?;
        }
    }
    Ok(true)
}

pub(super) async fn mark_ended(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    agent_id: AgentId,
    epoch: u64,
    code: CloseCode,
    now: Timestamp,
) -> StoreResult<()> {
    sqlx::query(ENDED)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .bind(int(epoch))
        .bind(now.unix_micros())
        .bind(code.name())
        .execute(connection)
        .await?;
    Ok(())
}

/// Ends what the process before this one left open.
pub(super) async fn end_abandoned(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    now: Timestamp,
) -> StoreResult<u64> {
    let vacated = sqlx::query(VACATE_ALL)
        .bind(tenant.as_str())
        .bind(now.unix_micros())
        .execute(&mut *connection)
        .await?;
    sqlx::query(END_ALL)
        .bind(tenant.as_str())
        .bind(now.unix_micros())
        .bind(CloseCode::Internal.name())
        .execute(&mut *connection)
        .await?;
    let lost: Vec<_> = settle::load_dispatched(connection, tenant).await?;
    for some in lost.chunks(CHUNK_ROWS) {
        let mut changes: Vec<_> = some
            .iter()
            .map(|command| {
                let (event, note) = (CommandEvent::SessionLost, Note::default());
                settle::change(command.clone(), event, note, &Actor::system(), now)
            })
            .collect();
        settle::write_all(connection, tenant, &mut changes).await?;
    }
    Ok(vacated.rows_affected())
}

/// Stores heartbeats.
pub(super) async fn touch(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    touches: &[SessionTouch],
    now: Timestamp,
) -> StoreResult<()> {
    for some in touches.chunks(CHUNK_ROWS) {
        let document: Vec<_> = some
            .iter()
            .map(|touch| {
                let figures = &touch.figures;
                (
                    touch.agent_id,
                    int(touch.epoch),
                    figures.round_trip_us.map(int),
                    figures.clock_skew_ms,
                    int(figures.spool_records),
                    int(figures.spool_bytes),
                    figures.commands_running,
                )
            })
            .collect();
        sqlx::query(TOUCH)
            .bind(tenant.as_str())
            .bind(to_json(&document))
            .bind(now.unix_micros())
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// A reported version of the trusted pin set.
#[derive(Debug, Clone, Copy)]
pub(super) struct PinReport {
    pub(super) agent_id: AgentId,
    pub(super) epoch: u64,
    pub(super) version: u64,
}

/// Stores versions of trusted pin sets.
pub(super) async fn report_pins(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    reports: &[PinReport],
) -> StoreResult<Vec<StoreResult<()>>> {
    let sessions: Vec<_> = reports
        .iter()
        .map(|report| (report.agent_id, report.epoch))
        .collect();
    let current = current(connection, tenant, &sessions).await?;
    // Of two reports of one session the later one counts.
    let versions: BTreeMap<_, _> = reports
        .iter()
        .enumerate()
        .filter(|(number, _)| current.contains(number))
        .map(|(_, report)| (report.agent_id, int(report.version)))
        .collect();
    let document: Vec<_> = versions.into_iter().collect();
    sqlx::query(PINS)
        .bind(tenant.as_str())
        .bind(to_json(&document))
        .execute(connection)
        .await?;
    Ok(unless_fenced(&current, reports.len()))
}

/// The latest sessions.
pub(super) async fn list(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    agent_id: AgentId,
    limit: usize,
) -> StoreResult<Vec<SessionRecord>> {
    let rows = sqlx::query(LIST)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(connection)
        .await?;
    rows.iter().map(read_session).collect()
}

fn read_session(row: &SqliteRow) -> StoreResult<SessionRecord> {
    let reader = Reader::new("sessions", row);
    let code = match reader.get::<Option<&str>>("code")? {
        Some(name) => Some(CloseCode::from_name(name).ok_or_else(|| reader.inconsistent("code"))?),
        None => None,
    };
    Ok(SessionRecord {
        session_id: reader.parse("session_id")?,
        epoch: reader.count("epoch")?,
        agent_run_id: reader.parse("agent_run_id")?,
        peer_address: reader.get("peer_address")?,
        admitted_at: reader.time("admitted_at")?,
        confirmed_at: reader.time_optional("confirmed_at")?,
        ended_at: reader.time_optional("ended_at")?,
        code,
    })
}

pub(super) async fn requeue(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    command: &mut CommandRow,
    now: Timestamp,
) -> StoreResult<()> {
    let event = CommandEvent::SessionLost;
    let actor = Actor::system();
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
    Ok(())
}
