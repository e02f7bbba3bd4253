//! Keeps a site that is being moved into a database and the backends of that database apart: a lock that the server
//! drops with its connection. Backends share it.

use std::time::Duration;

use sqlx::Row as _;
use viworks_runtime::clock::{Clock as _, SystemClock};

use super::connection::Connection;
use super::error::Error;
use super::rest;

/// How long somebody waits for whoever has the lock, whose connection the server may not have missed yet.
const TAKE_TIME: Duration = Duration::from_secs(5);

/// Takes it as one of the backends.
pub(super) fn share(connection: &Connection) -> Result<(), Error> {
    // Intents use the form with one number.
    take(
        connection,
        "SELECT pg_try_advisory_lock_shared(1448692050, 1) AS taken",
    )
}

/// Takes it for a move, which no backend may see half done.
pub(super) fn own(connection: &Connection) -> Result<(), Error> {
    take(
        connection,
        "SELECT pg_try_advisory_lock(1448692050, 1) AS taken",
    )
}

fn take(connection: &Connection, lock: &'static str) -> Result<(), Error> {
    const HOLDER: &str = "\
        SELECT coalesce(a.application_name, '') || ' from ' || coalesce(host(a.client_addr), 'this machine')
               || ', process ' || a.pid || ' of the server' AS holder
        FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
        WHERE l.locktype = 'advisory' AND l.classid = 1448692050 AND l.objid = 1 AND a.pid <> pg_backend_pid()
              AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        LIMIT 1";
    let begun = SystemClock.now();
    loop {
        let holder = connection.with(async |inner| {
            let taken = sqlx::query(lock).fetch_one(&mut *inner).await?;
            if taken.try_get::<bool, _>("taken")? {
                return Ok(None);
            }
            let holder = sqlx::query(HOLDER).fetch_optional(&mut *inner).await?;
            let name = holder.map(|row| row.try_get("holder")).transpose()?;
            Ok(Some(name.unwrap_or_else(|| "it just left".to_owned())))
        })?;
        let Some(holder) = holder else { return Ok(()) };
        if SystemClock.now().saturating_since(begun) > TAKE_TIME {
            return Err(Error::InUse(holder));
        }
        rest(Duration::from_millis(100));
    }
}
