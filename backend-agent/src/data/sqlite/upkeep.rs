//! What keeps the store small and tells whether it works.

use std::time::Duration;

use sqlx::SqliteConnection;
use viworks_common::id::Tenant;
use viworks_common::time::Timestamp;

use super::runs::KEY_LIFE;
use crate::data::{Purged, StoreHealth, StoreResult};

/// How long ended sessions are kept for a gateway's history.
const SESSION_LIFE: Duration = Duration::from_secs(30 * 24 * 3_600);

pub(super) const PURGE_KEYS: &str =
    "DELETE FROM idempotency_keys WHERE tenant = ?1 AND created_at <= ?2";

pub(super) const PURGE_SESSIONS: &str =
    "DELETE FROM sessions WHERE tenant = ?1 AND admitted_at <= ?2 AND ended_at <= ?2";

pub(super) const BEAT: &str = "\
INSERT INTO heartbeat (tenant, beats) VALUES (?1, 1) ON CONFLICT DO UPDATE SET beats = beats + 1";

pub(super) const VERSION: &str =
    "SELECT coalesce(max(version), 0) FROM _sqlx_migrations WHERE success";

/// Deletes what has served.
pub(super) async fn purge(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    now: Timestamp,
) -> StoreResult<Purged> {
    let keys = sqlx::query(PURGE_KEYS)
        .bind(tenant.as_str())
        .bind(now.saturating_sub(KEY_LIFE).unix_micros())
        .execute(&mut *connection)
        .await?;
    let sessions = sqlx::query(PURGE_SESSIONS)
        .bind(tenant.as_str())
        .bind(now.saturating_sub(SESSION_LIFE).unix_micros())
        .execute(connection)
        .await?;
    Ok(Purged {
        idempotency_keys: keys.rows_affected(),
        sessions: sessions.rows_affected(),
    })
}

/// Commits something, so that "healthy" means that a commit went through.
pub(super) async fn health(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
) -> StoreResult<StoreHealth> {
    sqlx::query(BEAT)
        .bind(tenant.as_str())
        .execute(&mut *connection)
        .await?;
    let schema_version = sqlx::query_scalar(VERSION).fetch_one(connection).await?;
    Ok(StoreHealth {
        kind: "sqlite",
        schema_version,
        problem: None,
    })
}
