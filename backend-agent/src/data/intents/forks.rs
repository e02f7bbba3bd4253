//! Forks: second holders of an identity.

use serde_json::json;
use viworks_common::id::AgentId;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Row, params};

use super::audit;
use super::inbox::Post;
use super::row::Reader;
use super::tx::{Tx, View};
use crate::data::{AdmitRequest, AuditOutcome, Fork, ForkEnd, ForkParty, Letter, StoreResult};

/// Second holders of one identity that are kept.
pub(super) const KEPT_MAX: i64 = 256;

/// Of a holder that is to stay out nobody is told anew when it starts anew; the one that was kept is a fork again when
/// it is refused again.
pub(super) const RECORD: &str = "\
INSERT INTO forks (tenant, agent_id, refused_agent_run_id, at, refused_epoch, refused_peer_address,
    refused_fingerprint, refused_install_id, refused_boot_id, accepted_epoch, accepted_peer_address,
    accepted_fingerprint, accepted_install_id, accepted_boot_id, accepted_agent_run_id, first_at, accepted_since,
    resolved_at, resolution, told_by)
SELECT :tenant, :agent_id, :agent_run_id, :now, :epoch, :peer_address, :fingerprint, :install_id, :boot_id,
       s.epoch, s.peer_address, s.fingerprint, s.install_id, s.boot_id, s.agent_run_id, :now, s.confirmed_at,
       settled.resolved_at, settled.resolution, settled.told_by
FROM (SELECT 1 AS one) AS here LEFT JOIN (SELECT * FROM sessions WHERE tenant = :tenant AND agent_id = :agent_id
    ORDER BY confirmed_at IS NULL, epoch DESC LIMIT 1) AS s ON true
LEFT JOIN (SELECT resolved_at, resolution, told_by FROM forks WHERE tenant = :tenant AND agent_id = :agent_id
    AND resolution IN ('out', 'replaced') AND refused_install_id = :install_id
    AND (told_by = 'install' OR told_by = 'boot' AND refused_boot_id = :boot_id)
    ORDER BY resolved_at DESC LIMIT 1) AS settled ON true
WHERE true
ON CONFLICT (tenant, agent_id, refused_agent_run_id) DO UPDATE SET at = excluded.at, times = forks.times + 1, refused_epoch = excluded.refused_epoch,
    refused_peer_address = excluded.refused_peer_address, refused_fingerprint = excluded.refused_fingerprint,
    resolved_at = CASE WHEN forks.resolution = 'kept' THEN NULL ELSE forks.resolved_at END,
    resolution = CASE WHEN forks.resolution = 'kept' THEN NULL ELSE forks.resolution END";

/// Keeps the newest: a copy that starts again and again is a new process each time.
pub(super) const KEEP_NEWEST: &str = "\
DELETE FROM forks WHERE tenant = :tenant AND agent_id = :agent_id AND refused_agent_run_id IN (
    SELECT refused_agent_run_id FROM forks WHERE tenant = :tenant AND agent_id = :agent_id
    ORDER BY at DESC, refused_agent_run_id LIMIT 1000000 OFFSET :kept)";

/// Each with the certificate that it showed, and where its key has got another one at the door since, that one.
pub(super) const LIST: &str = "\
SELECT f.agent_id, f.refused_agent_run_id, f.at, f.times, f.refused_epoch, f.refused_peer_address,
       f.refused_fingerprint, f.refused_install_id, f.refused_boot_id, f.accepted_epoch, f.accepted_peer_address, f.accepted_fingerprint,
       f.accepted_install_id, f.accepted_boot_id, f.accepted_agent_run_id, f.first_at, f.accepted_since,
       f.resolved_at, f.resolution,
       coalesce(r.serial, re.serial) AS refused_serial, coalesce(r.not_after, re.not_after) AS refused_not_after,
       rn.serial AS refused_now_serial, rn.not_after AS refused_now_not_after,
       coalesce(a.serial, ae.serial) AS accepted_serial, coalesce(a.not_after, ae.not_after) AS accepted_not_after,
       an.serial AS accepted_now_serial, an.not_after AS accepted_now_not_after
FROM forks AS f
LEFT JOIN certificates AS r INDEXED BY certificates_by_gateway
    ON r.tenant = f.tenant AND r.agent_id = f.agent_id AND r.fingerprint = f.refused_fingerprint
LEFT JOIN reissued AS re
    ON re.tenant = f.tenant AND re.agent_id = f.agent_id AND re.fingerprint = f.refused_fingerprint
LEFT JOIN certificates AS rn ON rn.tenant = re.tenant AND rn.spki = re.spki AND rn.agent_id = re.agent_id
LEFT JOIN certificates AS a INDEXED BY certificates_by_gateway
    ON a.tenant = f.tenant AND a.agent_id = f.agent_id AND a.fingerprint = f.accepted_fingerprint
LEFT JOIN reissued AS ae
    ON ae.tenant = f.tenant AND ae.agent_id = f.agent_id AND ae.fingerprint = f.accepted_fingerprint
LEFT JOIN certificates AS an ON an.tenant = ae.tenant AND an.spki = ae.spki AND an.agent_id = ae.agent_id
WHERE f.tenant = :tenant AND f.agent_id = :agent_id ORDER BY f.at DESC, f.refused_agent_run_id";

/// Records a second holder, once for each of its processes, beside the last session that was accepted.
pub(super) fn record(tx: &Tx<'_>, request: &AdmitRequest) -> StoreResult<()> {
    let AdmitRequest {
        agent_id,
        agent_run_id,
        epoch,
        peer_address,
        fingerprint,
        install_id,
        boot_id,
        ..
    } = request;
    tx.lock([*agent_id])?;
    tx.execute(
        RECORD,
        params! { agent_id, agent_run_id, epoch, peer_address, fingerprint, install_id, boot_id },
    )?;
    tx.execute(KEEP_NEWEST, params! { agent_id, kept: KEPT_MAX })?;
    let detail = json!({
        "peer_address": peer_address, "epoch": epoch, "install_id": install_id,
        "boot_id": boot_id, "agent_run_id": agent_run_id,
    });
    audit::of_gateway(
        tx,
        *agent_id,
        "identity.fork",
        AuditOutcome::Refused,
        detail,
    )
    .map(drop)
}

/// The same of one that the live session's gateway was probed for: that gateway is to connect again, wherever its
/// session is.
pub(super) fn record_probed(tx: &Tx<'_>, request: &AdmitRequest) -> StoreResult<()> {
    record(tx, request)?;
    tx.post(Post {
        to: None,
        agent_id: request.agent_id,
        letter: Letter::Drain,
    });
    Ok(())
}

/// The recorded forks.
pub(super) fn list(view: &View<'_>, agent_id: AgentId) -> StoreResult<Vec<Fork>> {
    view.all(LIST, params! { agent_id }, read)
}

fn read(row: &Row<'_>) -> StoreResult<Fork> {
    let row = Reader::new("forks", row);
    let accepted = match row.get("accepted_epoch")? {
        Some(epoch) => Some(ForkParty {
            epoch,
            peer_address: row.get("accepted_peer_address")?,
            fingerprint: row.get("accepted_fingerprint")?,
            install_id: row.get("accepted_install_id")?,
            boot_id: row.get("accepted_boot_id")?,
            agent_run_id: row.get("accepted_agent_run_id")?,
            certificate: certificate(&row, "accepted_serial", "accepted_not_after")?,
            reissued: certificate(&row, "accepted_now_serial", "accepted_now_not_after")?,
        }),
        None => None,
    };
    Ok(Fork {
        at: row.get("at")?,
        first_at: row.get("first_at")?,
        accepted_since: row.get("accepted_since")?,
        times: row.get("times")?,
        refused: ForkParty {
            epoch: row.get("refused_epoch")?,
            peer_address: row.get("refused_peer_address")?,
            fingerprint: row.get("refused_fingerprint")?,
            install_id: row.get("refused_install_id")?,
            boot_id: row.get("refused_boot_id")?,
            agent_run_id: row.get("refused_agent_run_id")?,
            certificate: certificate(&row, "refused_serial", "refused_not_after")?,
            reissued: certificate(&row, "refused_now_serial", "refused_now_not_after")?,
        },
        accepted,
        resolved: match row.get("resolved_at")? {
            Some(at) => Some((at, row.word("resolution", ForkEnd::from_name)?)),
            None => None,
        },
    })
}

/// The serial number and the end of a certificate, as long as it is known.
fn certificate(
    row: &Reader<'_>,
    serial: &'static str,
    not_after: &'static str,
) -> StoreResult<Option<(String, Timestamp)>> {
    match row.get(serial)? {
        Some(serial) => Ok(Some((serial, row.get(not_after)?))),
        None => Ok(None),
    }
}
