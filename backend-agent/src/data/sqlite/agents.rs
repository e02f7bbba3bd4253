//! Gateways and the certificates registered for them.

use serde_json::json;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use viworks_common::code::CloseCode;
use viworks_common::command::CommandEvent;
use viworks_common::id::{AgentId, GatewayName, SessionId, Tenant};
use viworks_common::limits::GATEWAY_NAME_BYTES_MAX;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::Constraint;

use super::page::{Fetched, rows_wanted};
use super::row::{Reader, to_json};
use super::settle::{self, Note};
use super::{audit, conflict_or, sessions};
use crate::data::{
    Actor, AuditOutcome, Certificate, Gateway, GatewayFilter, GatewayRef, GatewaySession,
    HeartbeatFigures, Label, LabelSource, Listing, NewCertificate, NewGateway, Page, Revoked,
    StoreError, StoreResult,
};

/// The columns that [`read`] reads.
macro_rules! rows {
    () => {
        "SELECT g.agent_id, g.name, g.created_at, g.revoked_at, g.confirmed, g.issued, g.key_generation, \
         g.last_seen_at, g.agent_version, g.pin_set_version, g.open_commands, g.next_order, g.low_water, \
         g.round_trip_us, g.clock_skew_ms, g.spool_records, g.spool_bytes, g.commands_running, g.session_epoch, \
         s.session_id, s.agent_run_id, s.peer_address, s.confirmed_at, c.digest AS catalogue_digest, \
         (SELECT json_group_array(json_array(key, value, source)) FROM labels AS l \
          WHERE l.tenant = g.tenant AND l.agent_id = g.agent_id) AS labels, \
         (SELECT count(*) FROM forks AS f WHERE f.tenant = g.tenant AND f.agent_id = g.agent_id) AS forks \
         FROM gateways AS g \
         LEFT JOIN sessions AS s ON s.tenant = g.tenant AND s.agent_id = g.agent_id AND s.epoch = g.session_epoch \
         LEFT JOIN catalogues AS c ON c.tenant = g.tenant AND c.agent_id = g.agent_id \
         WHERE g.tenant = ?1 "
    };
}

pub(super) const CREATE: &str = "\
INSERT INTO gateways (tenant, agent_id, name, created_at, key_generation) VALUES (?1, ?2, ?3, ?4, ?5)";

pub(super) const ADD_LABELS: &str = "\
INSERT INTO labels (tenant, agent_id, key, source, value)
SELECT ?1, ?2, key, ?3, value FROM json_each(?4)";

pub(super) const REMOVE_LABELS: &str =
    "DELETE FROM labels WHERE tenant = ?1 AND agent_id = ?2 AND source = ?3";

pub(super) const BY_ID: &str = concat!(rows!(), "AND g.agent_id = ?2");

pub(super) const BY_NAME: &str = concat!(rows!(), "AND g.name = ?2");

pub(super) const LIST: &str = concat!(
    rows!(),
    "AND g.agent_id > ?2 \
     AND (?3 IS NULL OR (g.session_epoch IS NOT NULL) = ?3) \
     AND (?4 IS NULL OR (g.revoked_at IS NOT NULL) = ?4) \
     AND (?5 IS NULL OR EXISTS (SELECT 1 FROM labels AS l WHERE l.tenant = g.tenant AND l.agent_id = g.agent_id \
          AND l.key = ?5 AND l.value = ?6)) \
     ORDER BY g.agent_id LIMIT ?7"
);

pub(super) const RENAME: &str = "UPDATE gateways SET name = ?3 WHERE tenant = ?1 AND agent_id = ?2";

pub(super) const REVOKE: &str = "\
UPDATE gateways SET revoked_at = ?3, issued = issued + 1, confirmed = issued + 1, session_epoch = NULL
WHERE tenant = ?1 AND agent_id = ?2 AND revoked_at IS NULL";

pub(super) const REGISTER: &str = "\
INSERT INTO certificates (tenant, spki, agent_id, serial, not_after, fingerprint, registered_at)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

/// For each `[agent_id, spki]` the certificate; nothing where that key is not registered for that gateway.
pub(super) const CERTIFICATES: &str = "\
SELECT e.key AS number, c.serial, c.not_after, c.fingerprint, g.revoked_at IS NOT NULL AS revoked, g.confirmed,
       g.name AS gateway
FROM json_each($2) AS e
CROSS JOIN certificates AS c ON c.tenant = $1 AND c.spki = unhex(e.value ->> 1) AND c.agent_id = e.value ->> 0
CROSS JOIN gateways AS g ON g.tenant = $1 AND g.agent_id = c.agent_id";

/// Frees the name of a revoked gateway, so that it can be issued again as a new identity: the old one keeps its id, its
/// history and a name that says what became of it.
async fn release_name(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    name: &GatewayName,
    actor: &Actor,
    now: Timestamp,
) -> StoreResult<()> {
    let holder = load(connection, tenant, &GatewayRef::Name(name.clone())).await?;
    let Some(holder) = holder.filter(|holder| holder.revoked_at.is_some()) else {
        return Ok(());
    };
    let kept = retired_name(name, holder.agent_id);
    rename(connection, tenant, &kept, actor, holder.agent_id, now)
        .await
        .map(drop)
}

/// The name of a revoked gateway whose name went to another: as long as a name may be, and with the end of the id, which
/// no other gateway has.
fn retired_name(name: &GatewayName, agent_id: AgentId) -> GatewayName {
    let id = agent_id.to_string();
    let tail = format!("-revoked-{}", id.rsplit('-').next().unwrap_or_default());
    let room = GATEWAY_NAME_BYTES_MAX.saturating_sub(tail.len());
    let end = name.as_str().floor_char_boundary(room);
    format!("{}{tail}", &name.as_str()[..end])
        .parse()
        .unwrap_or_else(|_never| name.clone())
}

/// Creates a gateway with its operator's labels. The name of a revoked one is free.
pub(super) async fn create(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    new: &NewGateway,
    actor: &Actor,
    now: Timestamp,
) -> StoreResult<()> {
    release_name(connection, tenant, &new.name, actor, now).await?;
    sqlx::query(CREATE)
        .bind(tenant.as_str())
        .bind(new.agent_id.to_string())
        .bind(new.name.as_str())
        .bind(now.unix_micros())
        .bind(i64::from(new.key_generation))
        .execute(&mut *connection)
        .await
        .map_err(conflict_or(&[Constraint::PrimaryKey], || {
            format!("gateway id {}", new.agent_id)
        }))
        .or_else(|error| name_conflict(error, &new.name))?;
    let labels = to_json(&new.labels);
    set_labels(
        connection,
        tenant,
        new.agent_id,
        LabelSource::Operator,
        &labels,
    )
    .await?;
    let detail = json!({ "name": new.name, "labels": new.labels });
    note(
        connection,
        tenant,
        actor,
        "gateway.create",
        new.agent_id,
        detail,
        now,
    )
    .await?;
    match &new.certificate {
        Some(first) => register_certificate(connection, tenant, first, actor, now).await,
        None => Ok(()),
    }
}

/// Replaces the labels of one source by a JSON object.
pub(super) async fn set_labels(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    agent_id: AgentId,
    source: LabelSource,
    labels: &str,
) -> StoreResult<()> {
    sqlx::query(REMOVE_LABELS)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .bind(source.name())
        .execute(&mut *connection)
        .await?;
    sqlx::query(ADD_LABELS)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .bind(source.name())
        .bind(labels)
        .execute(connection)
        .await?;
    Ok(())
}

/// The gateway with an id or a name.
pub(super) async fn load(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    which: &GatewayRef,
) -> StoreResult<Option<Gateway>> {
    let (sql, key) = match which {
        GatewayRef::Id(id) => (BY_ID, id.to_string()),
        GatewayRef::Name(name) => (BY_NAME, name.to_string()),
    };
    let row = sqlx::query(sql)
        .bind(tenant.as_str())
        .bind(key)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(read).transpose()
}

/// Gateways by id, which is by age.
pub(super) async fn list(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    filter: &GatewayFilter,
    page: Page<AgentId>,
) -> StoreResult<Listing<Gateway, AgentId>> {
    let (key, value) = filter.label.clone().unzip();
    let rows = sqlx::query(LIST)
        .bind(tenant.as_str())
        .bind(
            page.after
                .map_or_else(String::new, |after| after.to_string()),
        )
        .bind(filter.connected)
        .bind(filter.revoked)
        .bind(key)
        .bind(value)
        .bind(rows_wanted(page.limit))
        .fetch_all(connection)
        .await?;
    Fetched::new(rows, page.limit).listing(read, |gateway| gateway.agent_id)
}

/// Gives another name.
pub(super) async fn rename(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    name: &GatewayName,
    actor: &Actor,
    agent_id: AgentId,
    now: Timestamp,
) -> StoreResult<Option<()>> {
    let done = sqlx::query(RENAME)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .bind(name.as_str())
        .execute(&mut *connection)
        .await
        .map_err(StoreError::from)
        .or_else(|error| name_conflict(error, name))?;
    if done.rows_affected() == 0 {
        return Ok(None);
    }
    let detail = json!({ "name": name });
    note(
        connection,
        tenant,
        actor,
        "gateway.rename",
        agent_id,
        detail,
        now,
    )
    .await?;
    Ok(Some(()))
}

/// Revokes: every epoch ever issued is fenced, the session ends, and so does every command.
pub(super) async fn revoke(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    actor: &Actor,
    agent_id: AgentId,
    now: Timestamp,
) -> StoreResult<Option<Revoked>> {
    let Some(gateway) = load(connection, tenant, &GatewayRef::Id(agent_id)).await? else {
        return Ok(None);
    };
    if gateway.revoked_at.is_some() {
        return Ok(Some(Revoked {
            already: true,
            live_session: None,
        }));
    }
    sqlx::query(REVOKE)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .bind(now.unix_micros())
        .execute(&mut *connection)
        .await?;
    let mut live_session = None;
    if let Some(session) = gateway.session {
        live_session = Some(session.session_id);
        let code = CloseCode::Revoked;
        sessions::mark_ended(connection, tenant, agent_id, session.epoch, code, now).await?;
    }
    for mut command in settle::load_open(connection, tenant, agent_id, u64::MAX).await? {
        // Without a permit it never ran; with one, nobody will ever be heard again who could tell.
        let event = if command.released_to.is_some() {
            CommandEvent::WaitExhausted
        } else {
            CommandEvent::CancelRequested
        };
        let reason = Note {
            reason: Some("its gateway was revoked"),
            ..Note::default()
        };
        settle::apply(connection, tenant, &mut command, event, reason, actor, now).await?;
    }
    note(
        connection,
        tenant,
        actor,
        "gateway.revoke",
        agent_id,
        json!({}),
        now,
    )
    .await?;
    Ok(Some(Revoked {
        already: false,
        live_session,
    }))
}

/// Registers a key for one gateway, forever.
pub(super) async fn register_certificate(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    new: &NewCertificate,
    actor: &Actor,
    now: Timestamp,
) -> StoreResult<()> {
    if load(connection, tenant, &GatewayRef::Id(new.agent_id))
        .await?
        .is_none()
    {
        return Err(StoreError::Missing {
            what: format!("gateway {}", new.agent_id),
        });
    }
    sqlx::query(REGISTER)
        .bind(tenant.as_str())
        .bind(new.spki.as_slice())
        .bind(new.agent_id.to_string())
        .bind(&new.serial)
        .bind(new.not_after.unix_micros())
        .bind(new.fingerprint.as_slice())
        .bind(now.unix_micros())
        .execute(&mut *connection)
        .await
        .map_err(conflict_or(&[Constraint::PrimaryKey], || {
            "a certificate for this key".to_owned()
        }))?;
    let detail = json!({ "serial": new.serial, "not_after": new.not_after });
    note(
        connection,
        tenant,
        actor,
        "certificate.register",
        new.agent_id,
        detail,
        now,
    )
    .await
}

/// The certificates with these keys, each where its key stands.
pub(super) async fn certificates(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    wanted: &[(AgentId, [u8; 32])],
) -> StoreResult<Vec<StoreResult<Option<Certificate>>>> {
    let document: Vec<_> = wanted
        .iter()
        .map(|(agent_id, spki)| (agent_id, hex::encode(spki)))
        .collect();
    let rows = sqlx::query(CERTIFICATES)
        .bind(tenant.as_str())
        .bind(to_json(&document))
        .fetch_all(connection)
        .await?;
    let mut answers: Vec<_> = wanted.iter().map(|_| Ok(None)).collect();
    for row in &rows {
        let reader = Reader::new("certificates", row);
        if let Some(answer) = answers.get_mut(reader.index("number")?) {
            *answer = read_certificate(&reader).map(Some);
        }
    }
    Ok(answers)
}

fn read_certificate(reader: &Reader<'_>) -> StoreResult<Certificate> {
    Ok(Certificate {
        gateway: reader.parse("gateway")?,
        serial: reader.get("serial")?,
        not_after: reader.time("not_after")?,
        fingerprint: reader.digest("fingerprint")?,
        revoked: reader.get("revoked")?,
        confirmed: reader.count("confirmed")?,
    })
}

fn name_conflict<T>(error: StoreError, name: &GatewayName) -> StoreResult<T> {
    Err(conflict_or(&[Constraint::Unique], || {
        format!("gateway name {name}")
    })(error))
}

async fn note(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    actor: &Actor,
    action: &str,
    agent_id: AgentId,
    detail: serde_json::Value,
    now: Timestamp,
) -> StoreResult<()> {
    let object = format!("gateway:{agent_id}");
    let record = audit::record(actor, action, object, AuditOutcome::Done, detail);
    audit::append(connection, tenant, &record, now).await
}

fn read(row: &SqliteRow) -> StoreResult<Gateway> {
    let reader = Reader::new("gateways", row);
    let figures = HeartbeatFigures {
        round_trip_us: reader.count_optional("round_trip_us")?,
        clock_skew_ms: reader.get("clock_skew_ms")?,
        spool_records: reader.count("spool_records")?,
        spool_bytes: reader.count("spool_bytes")?,
        commands_running: reader.small("commands_running")?,
    };
    Ok(Gateway {
        agent_id: reader.parse("agent_id")?,
        name: reader.parse("name")?,
        labels: labels(&reader)?,
        created_at: reader.time("created_at")?,
        revoked_at: reader.time_optional("revoked_at")?,
        confirmed: reader.count("confirmed")?,
        issued: reader.count("issued")?,
        key_generation: reader.small("key_generation")?,
        session: session(&reader, figures)?,
        last_seen_at: reader.time_optional("last_seen_at")?,
        agent_version: reader.get("agent_version")?,
        catalogue_digest: reader.get("catalogue_digest")?,
        pin_set_version: reader.count("pin_set_version")?,
        open_commands: reader.count("open_commands")?,
        next_order: reader.count("next_order")?,
        low_water: reader.count("low_water")?,
        forks: reader.count("forks")?,
    })
}

fn session(reader: &Reader<'_>, figures: HeartbeatFigures) -> StoreResult<Option<GatewaySession>> {
    let Some(epoch) = reader.count_optional("session_epoch")? else {
        return Ok(None);
    };
    let session_id: SessionId = reader.parse("session_id")?;
    Ok(Some(GatewaySession {
        session_id,
        epoch,
        agent_run_id: reader.parse("agent_run_id")?,
        peer_address: reader.get("peer_address")?,
        confirmed_at: reader.time("confirmed_at")?,
        figures,
    }))
}

fn labels(reader: &Reader<'_>) -> StoreResult<Vec<Label>> {
    let mut labels = Vec::new();
    for (key, value, source) in reader.json::<Vec<(String, String, String)>>("labels")? {
        let source = [LabelSource::Operator, LabelSource::Gateway]
            .into_iter()
            .find(|known| known.name() == source)
            .ok_or_else(|| reader.inconsistent("labels"))?;
        labels.push(Label { key, value, source });
    }
    labels.sort_unstable();
    Ok(labels)
}
