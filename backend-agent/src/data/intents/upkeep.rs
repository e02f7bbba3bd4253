//! What keeps the store small and tells whether it works.

use std::time::Duration;

use viworks_runtime::sqlite::params;

use super::row::column;
use super::runs::KEY_LIFE;
use super::tx::{Tx, View};
use crate::data::{Purged, StoreHealth, StoreResult};

/// How long sessions that have ended, or were never confirmed, are kept for a gateway's history.
const SESSION_LIFE: Duration = Duration::from_secs(30 * 24 * 3_600);

pub(super) const PURGE_KEYS: &str =
    "DELETE FROM idempotency_keys WHERE tenant = :tenant AND created_at <= :until";

pub(super) const PURGE_SESSIONS: &str = "\
DELETE FROM sessions
WHERE tenant = :tenant AND admitted_at <= :until AND (ended_at <= :until OR confirmed_at IS NULL)";

pub(super) const BEAT: &str = "\
INSERT INTO heartbeat (tenant, beats) VALUES (:tenant, 1) ON CONFLICT (tenant) DO UPDATE SET beats = heartbeat.beats + 1";

pub(super) const VERSION: &str =
    "SELECT coalesce(max(version), 0) AS version FROM _sqlx_migrations WHERE success";

/// Deletes what has served.
pub(super) fn purge(tx: &Tx<'_>) -> StoreResult<Purged> {
    let until = tx.now.saturating_sub(KEY_LIFE);
    let idempotency_keys = tx.execute(PURGE_KEYS, params! { until })?;
    let until = tx.now.saturating_sub(SESSION_LIFE);
    let sessions = tx.execute(PURGE_SESSIONS, params! { until })?;
    let count = |rows| u64::try_from(rows).unwrap_or(u64::MAX);
    Ok(Purged {
        idempotency_keys: count(idempotency_keys),
        sessions: count(sessions),
    })
}

/// Commits something, so that "healthy" means that a commit went through.
pub(in crate::data) fn health(view: &View<'_>, kind: &'static str) -> StoreResult<StoreHealth> {
    view.execute(BEAT, &[])?;
    Ok(StoreHealth {
        kind,
        schema_version: view.one(VERSION, &[], column("_sqlx_migrations", "version"))?,
        problem: None,
    })
}
