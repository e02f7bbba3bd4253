//! For how long backends keep telemetry, as they promised it. A promise outlives whoever made it: nothing is deleted
//! because that one is stopped, starts again or is cut off.
//!
//! What ends it is time in which others were there and nobody told it, counted in small steps: a site that is switched
//! off, and a server's clock that somebody sets, end none.

use viworks_common::id::InstanceId;

use super::connection::Connection;
use super::error::Error;
use super::lease::{RENEW_TIME, stored};
use crate::data::Retention;

/// For how long a promise lasts that nobody tells any more.
pub(super) const LASTS_SECONDS: i64 = (Retention::PROMISED_DAYS * 24 * 3_600).cast_signed();

/// What one look counts at most: whatever the server's clock says, nobody looks more seldom while it is there.
const STEP_SECONDS: i64 = 120;

/// What somebody looked at so lately is left for the next one.
const FRESH_SECONDS: i64 = 20;

/// Tells this backend's own promise, counts for how long nobody told the others, and forgets those that are over.
pub(super) fn look(
    connection: &Connection,
    own: InstanceId,
    retention: Option<Retention>,
) -> Result<(), Error> {
    const TELL: &str = "\
        INSERT INTO telemetry_promises (instance, records_days, rollup_days) VALUES ($1, $2, $3)
        ON CONFLICT (instance) DO UPDATE SET records_days = excluded.records_days, rollup_days = excluded.rollup_days,
               untold_seconds = 0, looked_at = clock_timestamp()";
    // Nobody waits for anybody: what another one has is counted there.
    const COUNT: &str = "\
        UPDATE telemetry_promises SET looked_at = clock_timestamp(), untold_seconds = untold_seconds
               + least(greatest(extract(epoch FROM clock_timestamp() - looked_at), 0), CAST($1 AS bigint))::bigint
        WHERE instance IN (
            SELECT instance FROM telemetry_promises
            WHERE looked_at NOT BETWEEN clock_timestamp() - CAST($2 AS bigint) * interval '1 second'
                  AND clock_timestamp()
            FOR NO KEY UPDATE SKIP LOCKED)";
    const FORGET: &str = "\
        DELETE FROM telemetry_promises WHERE instance IN (
            SELECT instance FROM telemetry_promises WHERE untold_seconds > $1 FOR UPDATE SKIP LOCKED)";
    connection.with_within(RENEW_TIME, async |inner| {
        if let Some(retention) = retention {
            let query = sqlx::query(TELL).bind(own.to_string());
            let query = query.bind(stored(retention.records_days));
            let query = query.bind(stored(retention.rollups_days));
            query.execute(&mut *inner).await?;
        }
        let query = sqlx::query(COUNT).bind(STEP_SECONDS).bind(FRESH_SECONDS);
        query.execute(&mut *inner).await?;
        let query = sqlx::query(FORGET).bind(LASTS_SECONDS);
        query.execute(&mut *inner).await?;
        Ok(())
    })
}

/// What a backend promised is its promise, whichever instance it is now.
pub(super) fn hand_over(
    connection: &Connection,
    from: InstanceId,
    to: InstanceId,
) -> Result<(), Error> {
    const HAND_OVER: &str = "UPDATE telemetry_promises SET instance = $2 WHERE instance = $1";
    connection.with_within(RENEW_TIME, async |inner| {
        let query = sqlx::query(HAND_OVER).bind(from.to_string());
        query.bind(to.to_string()).execute(inner).await?;
        Ok(())
    })
}
