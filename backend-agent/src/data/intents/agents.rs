//! Gateways: made, named, listed and revoked.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use viworks_common::code::CloseCode;
use viworks_common::id::{AgentId, GatewayName};
use viworks_common::ledger::end;
use viworks_common::limits::GATEWAY_NAME_BYTES_MAX;
use viworks_runtime::sqlite::{Constraint, Row, params};

use super::inbox::Post;
use super::keys::name_of_key;
use super::link::{LinkError, Sql, conflict_or};
use super::page::{following, listing, rows_wanted};
use super::row::{Reader, to_json};
use super::tx::{Tx, View};
use super::{audit, authorities, certificates, pins, sessions, settle, tickets};
use crate::data::{
    Actor, AuditOutcome, Gateway, GatewayFilter, GatewayRef, GatewaySession, HeartbeatFigures,
    Label, LabelSource, Letter, Listing, NewGateway, Page, Revocation, Revoked, StoreError,
    StoreResult, StoredTicket,
};

/// The columns that [`read`] reads.
macro_rules! rows {
    ($labels:literal, $rest:literal) => {
        concat!("SELECT g.agent_id, g.name, g.created_at, g.revoked_at, g.confirmed, g.issued, g.key_generation, \
         g.key_wanted, g.takes_keys, g.key_master, g.authorities, g.authorities_at, \
         g.last_seen_at, g.agent_version, g.pin_set_version, g.open_commands, g.next_order, g.low_water, \
         g.round_trip_us, g.clock_skew_ms, g.spool_records, g.spool_bytes, g.commands_running, g.session_epoch, g.session_instance, \
         s.session_id, s.agent_run_id, s.peer_address, s.confirmed_at, c.digest AS catalogue_digest, \
         (SELECT ", $labels, " FROM labels AS l \
          WHERE l.tenant = g.tenant AND l.agent_id = g.agent_id) AS labels, \
         (SELECT max(k.not_after) FROM certificates AS k WHERE k.tenant = g.tenant AND k.agent_id = g.agent_id \
          AND k.retired_at IS NULL AND k.unproved IS NULL AND k.revoked_at IS NULL) AS certificate_not_after, \
         (SELECT max(coalesce(k.renewed_at, k.registered_at)) FROM certificates AS k WHERE k.tenant = g.tenant AND k.agent_id = g.agent_id \
          AND k.retired_at IS NULL AND k.unproved IS NULL AND k.revoked_at IS NULL) AS certificate_since, \
         (SELECT CASE WHEN count(*) = count(k.retired_at) THEN max(k.revoked_at) END FROM certificates AS k \
          WHERE k.tenant = g.tenant AND k.agent_id = g.agent_id) AS certificate_revoked_at, \
         (SELECT count(*) FROM forks AS f WHERE f.tenant = g.tenant AND f.agent_id = g.agent_id) AS forks, \
         (SELECT count(*) FROM forks AS f WHERE f.tenant = g.tenant AND f.agent_id = g.agent_id \
          AND f.resolved_at IS NULL) AS undecided_forks, \
         (SELECT count(*) FROM orphan_results AS o INDEXED BY orphan_results_by_gateway \
          WHERE o.tenant = g.tenant AND o.agent_id = g.agent_id) AS orphans \
         FROM gateways AS g \
         LEFT JOIN sessions AS s ON s.tenant = g.tenant AND s.agent_id = g.agent_id AND s.epoch = g.session_epoch \
         LEFT JOIN catalogues AS c ON c.tenant = g.tenant AND c.agent_id = g.agent_id \
         WHERE g.tenant = :tenant ", $rest)
    };
}

macro_rules! both {
    ($rest:literal) => {
        both!($rest, $rest)
    };
    ($sqlite:literal, $postgres:literal) => {
        Sql {
            sqlite: rows!("json_group_array(json_array(key, value, source))", $sqlite),
            postgres: rows!(
                "coalesce(json_agg(json_build_array(key, value, source)), '[]')",
                $postgres
            ),
        }
    };
}

pub(super) const CREATE: &str = "\
INSERT INTO gateways (tenant, agent_id, name, created_at, key_generation, pin_set_version, authorities, authorities_at)
VALUES (:tenant, :agent_id, :name, :now, :key_generation, :version, :digest, :given_at)
ON CONFLICT (tenant, agent_id) DO NOTHING";

macro_rules! add_labels {
    ($each:literal) => {
        concat!(
            "INSERT INTO labels (tenant, agent_id, key, source, value) \
             SELECT :tenant, :agent_id, key, :source, value FROM ",
            $each,
            "(:labels)"
        )
    };
}

pub(super) const ADD_LABELS: Sql = Sql {
    sqlite: add_labels!("json_each"),
    postgres: add_labels!("json_each_text"),
};

pub(super) const BY_ID: Sql = both!("AND g.agent_id = :agent_id");

pub(super) const BY_NAME: Sql = both!("AND g.name = :name");

pub(super) const LIST: Sql = both!(
    "AND g.agent_id > :after \
     AND (:connected IS NULL OR (g.session_epoch IS NOT NULL) = :connected) \
     AND (:revoked IS NULL OR (g.revoked_at IS NOT NULL) = :revoked) \
     AND (:ticket IS NULL OR g.ticket_id = :ticket OR EXISTS (SELECT 1 FROM enrolments AS e \
          WHERE e.tenant = g.tenant AND e.ticket_id = :ticket AND e.agent_id = g.agent_id)) \
     AND (:key IS NULL OR EXISTS (SELECT 1 FROM labels AS l WHERE l.tenant = g.tenant AND l.agent_id = g.agent_id \
          AND l.key = :key AND l.value = :value)) \
     ORDER BY g.agent_id LIMIT :limit",
    "AND g.agent_id > :after \
     AND (:connected::boolean IS NULL OR (g.session_epoch IS NOT NULL) = :connected) \
     AND (:revoked::boolean IS NULL OR (g.revoked_at IS NOT NULL) = :revoked) \
     AND (:ticket::text IS NULL OR g.ticket_id = :ticket OR EXISTS (SELECT 1 FROM enrolments AS e \
          WHERE e.tenant = g.tenant AND e.ticket_id = :ticket AND e.agent_id = g.agent_id)) \
     AND (:key::text IS NULL OR EXISTS (SELECT 1 FROM labels AS l WHERE l.tenant = g.tenant AND l.agent_id = g.agent_id \
          AND l.key = :key AND l.value = :value)) \
     ORDER BY g.agent_id LIMIT :limit"
);

pub(super) const RENAME: &str =
    "UPDATE gateways SET name = :name WHERE tenant = :tenant AND agent_id = :agent_id";

pub(super) const REVOKE: &str = "\
UPDATE gateways SET revoked_at = :now, revoked_by = :by, revoked_reason = :reason, issued = issued + 1,
       confirmed = issued + 1, session_epoch = NULL, session_instance = NULL, favoured_run = NULL,
       favoured_until = NULL, take_overs = '[]'
WHERE tenant = :tenant AND agent_id = :agent_id AND revoked_at IS NULL";

/// Of a gateway that a program of before revoked, nothing stands here.
pub(super) const REVOCATION: &str = concat!(
    "SELECT g.agent_id, g.revoked_by, g.revoked_reason, ",
    name_of_key!("g", "g.revoked_by"),
    " AS revoker FROM gateways AS g
WHERE g.tenant = :tenant AND g.agent_id = :agent_id AND g.revoked_at IS NOT NULL"
);

pub(super) const CAME_OF: &str = "\
UPDATE gateways SET ticket_id = :id, ephemeral_ms = :ephemeral_ms WHERE tenant = :tenant AND agent_id = :agent_id";

/// Names that are tried for a revoked gateway whose name goes to another.
const RETIRED_NAMES_MAX: u32 = 1_000;

/// Frees the name of a revoked gateway, so that it can be issued again as a new identity: the old one keeps its id, its
/// history and a name that says what became of it.
fn release_name(tx: &Tx<'_>, name: &GatewayName, actor: &Actor) -> StoreResult<()> {
    let taken = try_release_name(tx, name, actor)?;
    taken.map_or(Ok(()), |agent_id| {
        Err(StoreError::Conflict {
            what: format!("every name for the revoked gateway {agent_id}"),
        })
    })
}

/// The same; answers the gateway that keeps its name because every other one for it is taken. That is found by looking,
/// so that the transaction can go on: behind a name that the database refuses, because it was taken in between, it can
/// do nothing more.
pub(super) fn try_release_name(
    tx: &Tx<'_>,
    name: &GatewayName,
    actor: &Actor,
) -> StoreResult<Option<AgentId>> {
    let holder = load(tx, &GatewayRef::Name(name.clone()))?;
    let Some(holder) = holder.filter(|holder| holder.revoked_at.is_some()) else {
        return Ok(None);
    };
    // Whoever knows the id could have taken the first name in advance.
    for number in 1..=RETIRED_NAMES_MAX {
        let kept = retired_name(name, holder.agent_id, number);
        if load(tx, &GatewayRef::Name(kept.clone()))?.is_none() {
            return rename(tx, holder.agent_id, &kept, actor).map(|_renamed| None);
        }
    }
    Ok(Some(holder.agent_id))
}

/// The name of a revoked gateway whose name went to another: as long as a name may be, with the end of the id, and with
/// a number behind the first.
fn retired_name(name: &GatewayName, agent_id: AgentId, number: u32) -> GatewayName {
    let id = agent_id.to_string();
    let end_of_id = id.rsplit('-').next().unwrap_or_default();
    let tail = match number {
        1 => format!("-revoked-{end_of_id}"),
        more => format!("-revoked-{end_of_id}-{more}"),
    };
    let room = GATEWAY_NAME_BYTES_MAX.saturating_sub(tail.len());
    let end = name.as_str().floor_char_boundary(room);
    format!("{}{tail}", &name.as_str()[..end])
        .parse()
        .unwrap_or_else(|_never| name.clone())
}

/// Creates a gateway with its operator's labels. The name of a revoked one is free.
pub(super) fn create(tx: &Tx<'_>, new: &NewGateway, actor: &Actor) -> StoreResult<()> {
    let NewGateway {
        agent_id,
        name,
        key_generation,
        ..
    } = new;
    release_name(tx, name, actor)?;
    let version = pins::given(tx, new.pins.as_ref())?;
    let (digest, given_at) = authorities::given(tx, new.authorities.as_ref())?;
    let params = params! { agent_id, name, key_generation, version, digest, given_at };
    let made = tx.try_execute(CREATE, params);
    if made.map_err(|error| name_conflict(error, name))? == 0 {
        let known = load(tx, &GatewayRef::Id(*agent_id))?;
        // Made before, and the answer to that was lost; or somebody else has the id.
        return match known {
            Some(known) if known.name == *name && known.created_at == tx.now => Ok(()),
            Some(_) | None => Err(StoreError::Conflict {
                what: format!("gateway id {agent_id}"),
            }),
        };
    }
    let (source, labels) = (LabelSource::Operator.name(), to_json(&new.labels));
    tx.execute(ADD_LABELS, params! { agent_id, source, labels })?;
    let detail = json!({ "name": new.name, "labels": new.labels });
    note(tx, actor, "gateway.create", *agent_id, &detail)?;
    match &new.certificate {
        Some(first) => certificates::register(tx, first, actor),
        None => Ok(()),
    }
}

/// The gateway with an id or a name.
pub(super) fn load(view: &View<'_>, which: &GatewayRef) -> StoreResult<Option<Gateway>> {
    match which {
        GatewayRef::Id(agent_id) => view.optional(BY_ID, params! { agent_id }, read),
        GatewayRef::Name(name) => view.optional(BY_NAME, params! { name }, read),
    }
}

/// Gateways by id, which is by age.
pub(super) fn list(
    view: &View<'_>,
    filter: &GatewayFilter,
    page: Page<AgentId>,
) -> StoreResult<Listing<Gateway, AgentId>> {
    let GatewayFilter {
        connected,
        revoked,
        label,
        ticket,
    } = filter;
    let (key, value) = label.as_ref().map(|(key, value)| (key, value)).unzip();
    let (after, limit) = (following(page.after), rows_wanted(page.limit));
    let params = params! { after, connected, revoked, key, value, ticket, limit };
    let rows = view.page(LIST, params, read)?;
    Ok(listing(rows, page.limit, |gateway| gateway.agent_id))
}

/// Gives another name.
pub(super) fn rename(
    tx: &Tx<'_>,
    agent_id: AgentId,
    name: &GatewayName,
    actor: &Actor,
) -> StoreResult<Option<()>> {
    let renamed = tx
        .try_execute(RENAME, params! { agent_id, name })
        .map_err(|error| name_conflict(error, name))?;
    if renamed == 0 {
        return Ok(None);
    }
    let detail = json!({ "name": name });
    note(tx, actor, "gateway.rename", agent_id, &detail).map(Some)
}

/// Revokes: every epoch ever issued is fenced, the session ends, and so does every command.
pub(super) fn revoke(
    tx: &Tx<'_>,
    agent_id: AgentId,
    reason: Option<&str>,
    actor: &Actor,
) -> StoreResult<Option<Revoked>> {
    tx.lock_telemetry([agent_id])?;
    tx.lock([agent_id])?;
    let Some(gateway) = load(tx, &GatewayRef::Id(agent_id))? else {
        return Ok(None);
    };
    if gateway.revoked_at.is_some() {
        return Ok(Some(Revoked {
            already: true,
            live_session: None,
            ended: Vec::new(),
        }));
    }
    let by = actor.to_string();
    tx.execute(REVOKE, params! { agent_id, by, reason })?;
    let mut live_session = None;
    if let Some(session) = gateway.session {
        live_session = Some(session.session_id);
        if session.instance.is_some() {
            tx.post(Post {
                to: session.instance,
                agent_id,
                letter: Letter::Revoked,
            });
        }
        sessions::mark_ended(tx, agent_id, session.epoch, CloseCode::Revoked)?;
    }
    let mut ended = Vec::new();
    for standing in settle::load_open(tx, agent_id, u64::MAX)? {
        let change = end::revoke(standing, tx.now);
        let written = settle::write(tx, &change, actor)?;
        let command = change.as_ref().map(|change| &change.command);
        ended.extend(command.map(|command| settle::settled(command, written.run_finished)));
    }
    let detail = reason.map_or_else(|| json!({}), |reason| json!({ "reason": reason }));
    note(tx, actor, "gateway.revoke", agent_id, &detail)?;
    Ok(Some(Revoked {
        already: false,
        live_session,
        ended,
    }))
}

/// Who revoked a gateway, and why.
pub(super) fn revocation(view: &View<'_>, agent_id: AgentId) -> StoreResult<Option<Revocation>> {
    let kept = view.optional(REVOCATION, params! { agent_id }, |row| {
        let row = Reader::new("gateways", row);
        let by = row.get::<Option<String>>("revoked_by")?;
        let (by_name, reason) = (row.get("revoker")?, row.get("revoked_reason")?);
        Ok(by.map(|by| Revocation {
            by,
            by_name,
            reason,
        }))
    })?;
    match kept {
        None => Ok(None),
        Some(Some(kept)) => Ok(Some(kept)),
        Some(None) => audit::revocation(view, agent_id),
    }
}

/// Notes of which ticket a gateway came, and after how long an absence it is removed.
pub(super) fn came_of(tx: &Tx<'_>, agent_id: AgentId, ticket: &StoredTicket) -> StoreResult<()> {
    let (id, ephemeral_ms) = (ticket.id, ticket.ephemeral.map(tickets::millis));
    tx.execute(CAME_OF, params! { agent_id, id, ephemeral_ms })
        .map(drop)
}

fn name_conflict(error: LinkError, name: &GatewayName) -> StoreError {
    conflict_or(&[Constraint::Unique], || format!("gateway name {name}"))(error)
}

/// Notes in the audit log what was done to a gateway.
pub(super) fn note(
    tx: &Tx<'_>,
    actor: &Actor,
    action: &str,
    agent_id: AgentId,
    detail: &Value,
) -> StoreResult<()> {
    let object = format!("gateway:{agent_id}");
    audit::append(tx, actor, action, &object, AuditOutcome::Done, detail)
}

fn read(row: &Row<'_>) -> StoreResult<Gateway> {
    let row = Reader::new("gateways", row);
    Ok(Gateway {
        agent_id: row.get("agent_id")?,
        name: row.get("name")?,
        labels: labels(&row)?,
        created_at: row.get("created_at")?,
        revoked_at: row.get("revoked_at")?,
        confirmed: row.get("confirmed")?,
        issued: row.get("issued")?,
        key_generation: row.get("key_generation")?,
        key_wanted: row.get("key_wanted")?,
        takes_keys: row.get("takes_keys")?,
        key_master: row.get("key_master")?,
        session: session(&row)?,
        last_seen_at: row.get("last_seen_at")?,
        agent_version: row.get("agent_version")?,
        certificate_not_after: row.get("certificate_not_after")?,
        certificate_since: row.get("certificate_since")?,
        certificate_revoked_at: row.get("certificate_revoked_at")?,
        catalogue_digest: row.get("catalogue_digest")?,
        pin_set_version: row.get("pin_set_version")?,
        authorities: row.get("authorities")?,
        authorities_at: row.get("authorities_at")?,
        open_commands: row.get("open_commands")?,
        next_order: row.get("next_order")?,
        low_water: row.get("low_water")?,
        forks: row.get("forks")?,
        undecided_forks: row.get("undecided_forks")?,
        orphans: row.get("orphans")?,
    })
}

fn session(row: &Reader<'_>) -> StoreResult<Option<GatewaySession>> {
    let Some(epoch) = row.get("session_epoch")? else {
        return Ok(None);
    };
    Ok(Some(GatewaySession {
        session_id: row.get("session_id")?,
        instance: row.get("session_instance")?,
        epoch,
        agent_run_id: row.get("agent_run_id")?,
        peer_address: row.get("peer_address")?,
        confirmed_at: row.get("confirmed_at")?,
        figures: HeartbeatFigures {
            round_trip_us: row.get("round_trip_us")?,
            clock_skew_ms: row.get("clock_skew_ms")?,
            spool_records: row.get("spool_records")?,
            spool_bytes: row.get("spool_bytes")?,
            commands_running: row.get("commands_running")?,
        },
    }))
}

/// The labels that the operator gave.
pub(super) fn labels_of_operator(gateway: &Gateway) -> BTreeMap<String, String> {
    let own = gateway.labels.iter();
    let own = own.filter(|label| label.source == LabelSource::Operator);
    own.map(|label| (label.key.clone(), label.value.clone()))
        .collect()
}

fn labels(row: &Reader<'_>) -> StoreResult<Vec<Label>> {
    let mut labels = Vec::new();
    for (key, value, source) in row.json::<Vec<(String, String, String)>>("labels")? {
        let source = [LabelSource::Operator, LabelSource::Gateway]
            .into_iter()
            .find(|known| known.name() == source)
            .ok_or_else(|| row.inconsistent("labels"))?;
        labels.push(Label { key, value, source });
    }
    labels.sort_unstable();
    Ok(labels)
}
