//! Forks: second holders of an identity.

use serde_json::json;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use viworks_common::id::{AgentId, Tenant};
use viworks_common::time::Timestamp;

use super::audit;
use super::row::{Reader, int};
use crate::data::{AdmitRequest, AuditOutcome, Fork, ForkParty, StoreResult};

/// Second holders of one identity that are kept.
const KEPT_MAX: i64 = 256;

pub(super) const RECORD: &str = "\
INSERT INTO forks (tenant, agent_id, refused_agent_run_id, at, refused_epoch, refused_peer_address,
    refused_fingerprint, refused_install_id, refused_boot_id, accepted_epoch, accepted_peer_address,
    accepted_fingerprint, accepted_install_id, accepted_boot_id, accepted_agent_run_id, first_at, accepted_since)
SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, s.epoch, s.peer_address, s.fingerprint, s.install_id, s.boot_id, s.agent_run_id,
       ?4, s.confirmed_at
FROM (SELECT 1) LEFT JOIN (SELECT * FROM sessions WHERE tenant = ?1 AND agent_id = ?2
    ORDER BY confirmed_at IS NULL, epoch DESC LIMIT 1) AS s
WHERE true
ON CONFLICT DO UPDATE SET at = excluded.at, times = times + 1, refused_epoch = excluded.refused_epoch,
    refused_peer_address = excluded.refused_peer_address, refused_fingerprint = excluded.refused_fingerprint";

/// Keeps the newest: a copy that starts again and again is a new process each time.
pub(super) const KEEP_NEWEST: &str = "\
DELETE FROM forks WHERE tenant = ?1 AND agent_id = ?2 AND refused_agent_run_id IN (
    SELECT refused_agent_run_id FROM forks WHERE tenant = ?1 AND agent_id = ?2
    ORDER BY at DESC, refused_agent_run_id LIMIT -1 OFFSET ?3)";

pub(super) const LIST: &str = "\
SELECT agent_id, refused_agent_run_id, at, times, refused_epoch, refused_peer_address, refused_fingerprint,
       refused_install_id, refused_boot_id, accepted_epoch, accepted_peer_address, accepted_fingerprint,
       accepted_install_id, accepted_boot_id, accepted_agent_run_id, first_at, accepted_since
FROM forks WHERE tenant = ?1 AND agent_id = ?2 ORDER BY at DESC, refused_agent_run_id";

/// Records a second holder, once for each of its processes, beside the last session that was accepted.
pub(super) async fn record(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    request: &AdmitRequest,
    now: Timestamp,
) -> StoreResult<()> {
    sqlx::query(RECORD)
        .bind(tenant.as_str())
        .bind(request.agent_id.to_string())
        .bind(request.agent_run_id.to_string())
        .bind(now.unix_micros())
        .bind(int(request.epoch))
        .bind(&request.peer_address)
        .bind(request.fingerprint.as_slice())
        .bind(request.install_id.to_string())
        .bind(request.boot_id.to_string())
        .execute(&mut *connection)
        .await?;
    sqlx::query(KEEP_NEWEST)
        .bind(tenant.as_str())
        .bind(request.agent_id.to_string())
        .bind(KEPT_MAX)
        .execute(&mut *connection)
        .await?;
    let detail = json!({
        "peer_address": request.peer_address, "epoch": request.epoch, "install_id": request.install_id,
        "boot_id": request.boot_id, "agent_run_id": request.agent_run_id,
    });
    audit::of_gateway(
        connection,
        tenant,
        request.agent_id,
        "identity.fork",
        AuditOutcome::Refused,
        detail,
        now,
    )
    .await?;
    Ok(())
}

/// The recorded forks.
pub(super) async fn list(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    agent_id: AgentId,
) -> StoreResult<Vec<Fork>> {
    let rows = sqlx::query(LIST)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .fetch_all(connection)
        .await?;
    rows.iter().map(read).collect()
}

fn read(row: &SqliteRow) -> StoreResult<Fork> {
    let reader = Reader::new("forks", row);
    let accepted = match reader.count_optional("accepted_epoch")? {
        Some(epoch) => Some(ForkParty {
            epoch,
            peer_address: reader.get("accepted_peer_address")?,
            fingerprint: reader.digest("accepted_fingerprint")?,
            install_id: reader.parse("accepted_install_id")?,
            boot_id: reader.parse("accepted_boot_id")?,
            agent_run_id: reader.parse("accepted_agent_run_id")?,
        }),
        None => None,
    };
    Ok(Fork {
        at: reader.time("at")?,
        first_at: reader.time_optional("first_at")?,
        accepted_since: reader.time_optional("accepted_since")?,
        times: reader.count("times")?,
        refused: ForkParty {
            epoch: reader.count("refused_epoch")?,
            peer_address: reader.get("refused_peer_address")?,
            fingerprint: reader.digest("refused_fingerprint")?,
            install_id: reader.parse("refused_install_id")?,
            boot_id: reader.parse("refused_boot_id")?,
            agent_run_id: reader.parse("refused_agent_run_id")?,
        },
        accepted,
    })
}
