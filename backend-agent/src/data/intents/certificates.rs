//! The certificates registered for gateways.

use serde_json::json;
use viworks_common::id::AgentId;
use viworks_runtime::sqlite::{Row, params};

use super::agents;
use super::row::Reader;
use super::tx::{Tx, View};
use crate::data::{Actor, Certificate, GatewayRef, NewCertificate, StoreError, StoreResult};

pub(super) const REGISTER: &str = "\
INSERT INTO certificates (tenant, spki, agent_id, serial, not_after, fingerprint, registered_at)
VALUES (:tenant, :spki, :agent_id, :serial, :not_after, :fingerprint, :now) ON CONFLICT DO NOTHING";

pub(super) const LOAD: &str = "\
SELECT c.serial, c.not_after, c.fingerprint, g.revoked_at IS NOT NULL AS revoked, g.confirmed,
       g.name AS gateway
FROM certificates AS c
JOIN gateways AS g ON g.tenant = c.tenant AND g.agent_id = c.agent_id
WHERE c.tenant = :tenant AND c.spki = :spki AND c.agent_id = :agent_id";

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
        confirmed: row.get("confirmed")?,
    })
}
