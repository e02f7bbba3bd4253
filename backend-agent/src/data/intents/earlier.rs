//! Earlier certificates of keys. One that is issued at the door takes the place of the one before in the row of its
//! key; what that was is kept here, because it may be good still, for some minutes or, of a holder that was kept in a
//! fork, for as long as it was issued for, and because sessions and forks are known by what was shown.

use std::time::Duration;

use viworks_common::id::AgentId;
use viworks_runtime::sqlite::{Row, params};

use super::row::Reader;
use super::tx::{Tx, View};
use crate::data::{CertificateRef, EarlierCertificate, StoreResult};

/// The key that the certificate `$fingerprint` of the gateway `$agent_id` is an earlier one of.
macro_rules! key_of_earlier {
    ($agent_id:literal, $fingerprint:literal) => {
        concat!(
            "(SELECT e.spki FROM reissued AS e WHERE e.tenant = :tenant AND e.agent_id = ",
            $agent_id,
            " AND e.fingerprint = ",
            $fingerprint,
            ")"
        )
    };
}
pub(super) use key_of_earlier;

/// What is registered for a key, before another one takes its place.
pub(super) const KEEP: &str = "\
INSERT INTO reissued (tenant, agent_id, fingerprint, spki, serial, not_after, reissued_at)
SELECT c.tenant, c.agent_id, c.fingerprint, c.spki, c.serial, c.not_after, :now FROM certificates AS c
WHERE c.tenant = :tenant AND c.spki = :spki AND c.agent_id = :agent_id
ON CONFLICT (tenant, agent_id, fingerprint) DO NOTHING";

/// Whether a key had another certificate before the present one, as far as that is remembered.
pub(super) const HAS: &str = "\
SELECT EXISTS (SELECT 1 FROM reissued AS e
               WHERE e.tenant = :tenant AND e.agent_id = :agent_id AND e.spki = :spki) AS had";

/// As other programs print a serial number: see [`super::certificates::MEANT`].
pub(super) const MEANT: &str = "\
SELECT serial, fingerprint, not_after, reissued_at FROM reissued
WHERE tenant = :tenant AND agent_id = :agent_id AND spki = :spki
      AND (fingerprint = :fingerprint OR ltrim(serial, '0') = ltrim(CAST(:serial AS text), '0'))
ORDER BY reissued_at DESC, fingerprint LIMIT 1";

/// Those that ended and made room long ago, unless a holder in a fork is known by one; and those of keys that are
/// forgotten. What ended long before it made room is known in sessions and forks for as long as others.
pub(super) const FORGET: &str = "\
DELETE FROM reissued WHERE tenant = :tenant AND agent_id = :agent_id AND (
    not_after < :until AND reissued_at < :until AND NOT EXISTS (
        SELECT 1 FROM forks AS f WHERE f.tenant = :tenant AND f.agent_id = :agent_id
        AND (f.refused_fingerprint = reissued.fingerprint OR f.accepted_fingerprint = reissued.fingerprint))
    OR NOT EXISTS (SELECT 1 FROM certificates AS c WHERE c.tenant = :tenant AND c.spki = reissued.spki))";

/// Keeps the latest.
pub(super) const KEEP_LATEST: &str = "\
DELETE FROM reissued WHERE tenant = :tenant AND agent_id = :agent_id AND fingerprint IN (
    SELECT e.fingerprint FROM reissued AS e WHERE e.tenant = :tenant AND e.agent_id = :agent_id
    ORDER BY e.reissued_at DESC, e.fingerprint LIMIT 1000000 OFFSET :kept)";

/// Earlier certificates of one gateway that are kept, of all its keys.
const KEPT_MAX: i64 = 64;

/// How long one that ended is remembered, and so is a certificate that ended and is not in use.
pub(super) const ENDED_KEPT: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Keeps what is registered for a key of this gateway. Another certificate takes its place in this transaction.
pub(super) fn keep(tx: &Tx<'_>, agent_id: AgentId, spki: &[u8; 32]) -> StoreResult<()> {
    tx.execute(KEEP, params! { agent_id, spki })?;
    forget(tx, agent_id)?;
    tx.execute(KEEP_LATEST, params! { agent_id, kept: KEPT_MAX })
        .map(drop)
}

/// Forgets those of this gateway that nothing needs any more.
pub(super) fn forget(tx: &Tx<'_>, agent_id: AgentId) -> StoreResult<()> {
    let until = tx.now.saturating_sub(ENDED_KEPT);
    tx.execute(FORGET, params! { agent_id, until }).map(drop)
}

/// Whether a key had another certificate before the present one that is remembered: then the present one was issued at
/// the door.
pub(super) fn has(view: &View<'_>, agent_id: AgentId, spki: &[u8; 32]) -> StoreResult<bool> {
    let had = view.optional(HAS, params! { agent_id, spki }, |row| {
        Reader::new("reissued", row).get("had")
    })?;
    Ok(had.unwrap_or_default())
}

/// The earlier certificate of a key that is named, if one is.
pub(super) fn meant(
    view: &View<'_>,
    agent_id: AgentId,
    spki: &[u8; 32],
    which: &CertificateRef,
) -> StoreResult<Option<EarlierCertificate>> {
    let (fingerprint, serial) = which.parts();
    let params = params! { agent_id, spki, fingerprint, serial };
    view.optional(MEANT, params, read)
}

fn read(row: &Row<'_>) -> StoreResult<EarlierCertificate> {
    let row = Reader::new("reissued", row);
    Ok(EarlierCertificate {
        serial: row.get("serial")?,
        fingerprint: row.get("fingerprint")?,
        not_after: row.get("not_after")?,
        reissued_at: row.get("reissued_at")?,
    })
}
