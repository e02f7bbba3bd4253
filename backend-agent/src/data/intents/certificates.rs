//! The certificates registered for gateways.

use std::time::Duration;

use serde_json::json;
use viworks_common::id::AgentId;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Row, params};

use super::agents;
use super::row::Reader;
use super::sessions::fence;
use super::tx::{Tx, View};
use crate::data::{
    Actor, Certificate, GatewayRef, NewCertificate, Renewal, RenewalOutcome, StoreError,
    StoreResult,
};

pub(super) const REGISTER: &str = "\
INSERT INTO certificates (tenant, spki, agent_id, serial, not_after, fingerprint, registered_at)
VALUES (:tenant, :spki, :agent_id, :serial, :not_after, :fingerprint, :now) ON CONFLICT DO NOTHING";

pub(super) const LOAD: &str = "\
SELECT c.serial, c.not_after, c.fingerprint, g.revoked_at IS NOT NULL AS revoked, g.confirmed,
       c.retired_at IS NOT NULL AS retired, c.replaced_at IS NOT NULL AS replaced,
       c.unproved IS NOT NULL AS unproved, g.name AS gateway
FROM certificates AS c
JOIN gateways AS g ON g.tenant = c.tenant AND g.agent_id = c.agent_id
WHERE c.tenant = :tenant AND c.spki = :spki AND c.agent_id = :agent_id";

/// What came of a key that is asked for.
pub(super) const BY_KEY: &str = "\
SELECT agent_id, not_after, fingerprint, unproved FROM certificates WHERE tenant = :tenant AND spki = :spki";

/// How many certificates a gateway got over its sessions since then, and how many were in no session so far.
pub(super) const RENEWALS: &str = "\
SELECT count(*) FILTER (WHERE renewed_at > :since) AS renewals,
       min(renewed_at) FILTER (WHERE renewed_at > :since) AS first, max(renewed_at) AS last,
       count(*) FILTER (WHERE unproved IS NOT NULL) AS unproved
FROM certificates WHERE tenant = :tenant AND agent_id = :agent_id";

pub(super) const RENEW: &str = "\
INSERT INTO certificates (tenant, spki, agent_id, serial, not_after, fingerprint, registered_at, renewed_at, unproved)
VALUES (:tenant, :spki, :agent_id, :serial, :not_after, :fingerprint, :now, :now, :pem)";

pub(super) const PROVED: &str = "\
UPDATE certificates SET unproved = NULL
WHERE tenant = :tenant AND spki = :spki AND agent_id = :agent_id AND unproved IS NOT NULL";

pub(super) const RETIRE: &str = "\
UPDATE certificates SET retired_at = :now, unproved = NULL
WHERE tenant = :tenant AND agent_id = :agent_id AND spki <> :spki AND retired_at IS NULL
      AND registered_at <= (SELECT o.registered_at FROM certificates AS o WHERE o.tenant = :tenant AND o.spki = :spki)";

/// Whatever a gateway has, when another machine takes its place with this key: also what retired before belongs to a
/// machine that is not the gateway any more.
pub(super) const REPLACE: &str = "\
UPDATE certificates SET retired_at = coalesce(retired_at, :now), replaced_at = :now, unproved = NULL
WHERE tenant = :tenant AND agent_id = :agent_id AND spki <> :spki AND replaced_at IS NULL";

/// TLS refuses them by their end, long before they are forgotten; so are those that were in no session.
pub(super) const FORGET: &str = "\
DELETE FROM certificates
WHERE tenant = :tenant AND agent_id = :agent_id AND (retired_at IS NOT NULL OR unproved IS NOT NULL)
      AND not_after < :until";

/// How soon a gateway gets another certificate, and how many in an hour.
const RENEWAL_PAUSE: Duration = Duration::from_secs(60);
const RENEWAL_SPAN: Duration = Duration::from_secs(3_600);
const RENEWALS_MAX: u64 = 6;

/// A gateway with so many that were in no session gets one an hour: it uses none of them, whatever the reason.
const UNPROVED_MAX: u64 = 32;

/// How long a certificate that ended, and is retired or was in no session, is remembered.
const RETIRED_KEPT: Duration = Duration::from_secs(30 * 24 * 3_600);

pub(super) const REGISTERED: &str =
    "SELECT agent_id FROM certificates WHERE tenant = :tenant AND spki = :spki";

/// Whether a key is somebody's.
pub(super) fn is_registered(view: &View<'_>, spki: &[u8; 32]) -> StoreResult<bool> {
    let found = view.optional(REGISTERED, params! { spki }, |_row| Ok(()))?;
    Ok(found.is_some())
}

/// Registers a key for one gateway, forever.
pub(super) fn register(tx: &Tx<'_>, new: &NewCertificate, actor: &Actor) -> StoreResult<()> {
    let NewCertificate {
        agent_id,
        spki,
        serial,
        not_after,
        fingerprint,
    } = new;
    if agents::load(tx, &GatewayRef::Id(*agent_id))?.is_none() {
        return Err(StoreError::Missing {
            what: format!("gateway {agent_id}"),
        });
    }
    let params = params! { spki, agent_id, serial, not_after, fingerprint };
    if tx.execute(REGISTER, params)? == 0 {
        // Registered before, and the answer to that was lost; or somebody else has the key.
        return match load(tx, *agent_id, spki)? {
            Some(known) if known.fingerprint == *fingerprint => Ok(()),
            Some(_) | None => Err(StoreError::Conflict {
                what: "a certificate for this key".to_owned(),
            }),
        };
    }
    let detail = json!({ "serial": serial, "not_after": not_after });
    agents::note(tx, actor, "certificate.register", *agent_id, &detail)
}

/// What came of a key before.
struct Known {
    agent_id: AgentId,
    not_after: Timestamp,
    fingerprint: [u8; 32],
    /// Its certificate, while no session was confirmed with that.
    unproved: Option<String>,
}

/// Registers a certificate that a gateway asked for over its session, beside the one in use.
pub(super) fn renew(tx: &Tx<'_>, renewal: &Renewal) -> StoreResult<RenewalOutcome> {
    let NewCertificate {
        agent_id,
        spki,
        serial,
        not_after,
        fingerprint,
    } = &renewal.certificate;
    fence(tx, *agent_id, renewal.epoch)?;
    if let Some(known) = tx.optional(BY_KEY, params! { spki }, read_known)? {
        return Ok(match known.unproved {
            // This very intent did it, and the answer to that was lost.
            Some(_) if known.fingerprint == *fingerprint => RenewalOutcome::Issued,
            // One that has ended is of no use to anybody.
            Some(pem) if known.agent_id == *agent_id && known.not_after > tx.now => {
                RenewalOutcome::Before(pem)
            }
            Some(_) | None => RenewalOutcome::KeyInUse,
        });
    }
    if let Some(wait) = pause(tx, *agent_id)? {
        return Ok(RenewalOutcome::TooSoon(wait));
    }
    let until = tx.now.saturating_sub(RETIRED_KEPT);
    tx.execute(FORGET, params! { agent_id, until })?;
    let pem = &renewal.pem;
    tx.execute(
        RENEW,
        params! { spki, agent_id, serial, not_after, fingerprint, pem },
    )?;
    let detail = json!({ "serial": serial, "not_after": not_after });
    let actor = Actor::gateway(*agent_id);
    agents::note(tx, &actor, "certificate.renew", *agent_id, &detail)?;
    Ok(RenewalOutcome::Issued)
}

/// How long a gateway has to wait for another certificate, because of those that it got.
pub(super) fn pause(tx: &Tx<'_>, agent_id: AgentId) -> StoreResult<Option<Duration>> {
    let since = tx.now.saturating_sub(RENEWAL_SPAN);
    let (renewals, first, last, unproved) =
        tx.one(RENEWALS, params! { agent_id, since }, |row| {
            let row = Reader::new("certificates", row);
            Ok((
                row.get::<u64>("renewals")?,
                row.get::<Option<Timestamp>>("first")?,
                row.get::<Option<Timestamp>>("last")?,
                row.get::<u64>("unproved")?,
            ))
        })?;
    let after = |at: Option<Timestamp>, span| {
        let left = at?.saturating_add(span).saturating_since(tx.now);
        (!left.is_zero()).then_some(left)
    };
    let full = (renewals >= RENEWALS_MAX)
        .then(|| after(first, RENEWAL_SPAN))
        .flatten();
    let between = if unproved >= UNPROVED_MAX {
        RENEWAL_SPAN
    } else {
        RENEWAL_PAUSE
    };
    Ok(full.max(after(last, between)))
}

/// Notes that a session is confirmed with a certificate that was issued over one: every earlier one retires.
pub(super) fn prove(tx: &Tx<'_>, agent_id: AgentId, spki: &[u8; 32]) -> StoreResult<()> {
    if tx.execute(PROVED, params! { agent_id, spki })? == 0 {
        return Ok(());
    }
    let retired = tx.execute(RETIRE, params! { agent_id, spki })?;
    let (actor, detail) = (Actor::gateway(agent_id), json!({ "retired": retired }));
    agents::note(tx, &actor, "certificate.prove", agent_id, &detail)
}

/// Retires every certificate of a gateway but the one of the machine that takes its place.
pub(super) fn replace(tx: &Tx<'_>, agent_id: AgentId, spki: &[u8; 32]) -> StoreResult<()> {
    tx.execute(REPLACE, params! { agent_id, spki }).map(drop)
}

fn read_known(row: &Row<'_>) -> StoreResult<Known> {
    let row = Reader::new("certificates", row);
    Ok(Known {
        agent_id: row.get("agent_id")?,
        not_after: row.get("not_after")?,
        fingerprint: row.get("fingerprint")?,
        unproved: row.get("unproved")?,
    })
}

/// What is known about a key presented for a gateway.
pub(super) fn load(
    view: &View<'_>,
    agent_id: AgentId,
    spki: &[u8; 32],
) -> StoreResult<Option<Certificate>> {
    view.optional(LOAD, params! { agent_id, spki }, read)
}

/// Reads what [`LOAD`] selects.
pub(super) fn read(row: &Row<'_>) -> StoreResult<Certificate> {
    let row = Reader::new("certificates", row);
    Ok(Certificate {
        gateway: row.get("gateway")?,
        serial: row.get("serial")?,
        not_after: row.get("not_after")?,
        fingerprint: row.get("fingerprint")?,
        revoked: row.get("revoked")?,
        retired: row.get("retired")?,
        replaced: row.get("replaced")?,
        unproved: row.get("unproved")?,
        confirmed: row.get("confirmed")?,
    })
}
