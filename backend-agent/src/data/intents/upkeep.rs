//! What keeps the store small and tells whether it works.

use std::time::Duration;

use viworks_runtime::sqlite::params;

use super::dead_letters;
use super::row::column;
use super::runs::KEY_LIFE;
use super::tx::{Tx, View};
use crate::data::{Purged, StoreHealth, StoreResult};

/// How long sessions that have ended, or were never confirmed, are kept for a gateway's history.
const SESSION_LIFE: Duration = Duration::from_secs(30 * 24 * 3_600);

/// The oldest of them, up to the time of the last that one step may take.
pub(super) const PURGE_KEYS: &str = "\
DELETE FROM idempotency_keys WHERE tenant = :tenant AND created_at <= coalesce((
    SELECT k.created_at FROM idempotency_keys AS k
    WHERE k.tenant = :tenant AND k.created_at <= :until ORDER BY k.created_at LIMIT 1 OFFSET :further), :until)";

pub(super) const PURGE_SESSIONS: &str = "\
DELETE FROM sessions WHERE tenant = :tenant AND (ended_at <= :until OR confirmed_at IS NULL) AND admitted_at <= coalesce((
    SELECT o.admitted_at FROM sessions AS o
    WHERE o.tenant = :tenant AND o.admitted_at <= :until AND (o.ended_at <= :until OR o.confirmed_at IS NULL)
    ORDER BY o.admitted_at LIMIT 1 OFFSET :further), :until)";

pub(super) const BEAT: &str = "\
INSERT INTO heartbeat (tenant, beats) VALUES (:tenant, 1) ON CONFLICT (tenant) DO UPDATE SET beats = heartbeat.beats + 1";

pub(super) const VERSION: &str =
    "SELECT coalesce(max(version), 0) AS version FROM _sqlx_migrations WHERE success";

/// Deletes what has served, about `limit` rows of a kind: what is of the same moment goes together.
pub(super) fn purge(tx: &Tx<'_>, dead_letters_max: usize, limit: usize) -> StoreResult<Purged> {
    let further = limit.saturating_sub(1);
    let until = tx.now.saturating_sub(KEY_LIFE);
    let idempotency_keys = tx.execute(PURGE_KEYS, params! { until, further })?;
    let until = tx.now.saturating_sub(SESSION_LIFE);
    let sessions = tx.execute(PURGE_SESSIONS, params! { until, further })?;
    let (dead_letters, dead_letters_dropped) = dead_letters::purge(tx, dead_letters_max, limit)?;
    let count = |rows| u64::try_from(rows).unwrap_or(u64::MAX);
    Ok(Purged {
        idempotency_keys: count(idempotency_keys),
        sessions: count(sessions),
        dead_letters: count(dead_letters),
        dead_letters_dropped,
    })
}

/// Commits something, so that "healthy" means that a commit went through.
pub(in crate::data) fn health(view: &View<'_>, kind: &'static str) -> StoreResult<StoreHealth> {
    view.execute(BEAT, &[])?;
    Ok(StoreHealth {
        kind,
        schema_version: view.one(VERSION, &[], column("_sqlx_migrations", "version"))?,
        problem: None,
        full: false,
        full_for_telemetry: false,
        lacks: None,
        refused: None,
        held: None,
    })
}
