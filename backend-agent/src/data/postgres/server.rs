//! Whether a server keeps what it commits, takes writes, and is new enough: asked on every connection, because the next
//! one may lead to another server than the last.

use sqlx::{PgConnection, Row as _};

use super::error::Error;

/// The oldest server that the statements are written for.
const OLDEST: i32 = 150_000;

/// Refuses a server that does not keep what it commits, takes no writes, or that the statements are too new for.
pub(super) async fn check(inner: &mut PgConnection) -> Result<(), Error> {
    const SETTINGS: &str = "\
        SELECT current_setting('server_version_num')::int4 AS version, current_setting('server_version') AS named,
               current_setting('fsync') AS fsync, current_setting('full_page_writes') AS pages,
               current_setting('server_encoding') AS encoding, current_setting('synchronous_commit') AS commits,
               current_setting('transaction_read_only') AS read_only, pg_is_in_recovery() AS standby";
    let row = sqlx::query(SETTINGS).fetch_one(inner).await?;
    let unfit = |why: String| Err(Error::Unfit(why));
    let version: i32 = row.try_get("version")?;
    if version < OLDEST {
        let named: String = row.try_get("named")?;
        return unfit(format!(
            "PostgreSQL {named} is too old, 15 or later is needed"
        ));
    }
    if row.try_get("standby")? {
        return unfit("the server is a standby and takes no writes; name the primary".to_owned());
    }
    if row.try_get::<String, _>("read_only")? == "on" {
        return unfit("the database takes no writes: it is read-only for this user".to_owned());
    }
    if row.try_get::<String, _>("commits")? == "off" {
        return unfit(
            "the server's synchronous_commit is off: what is committed would not be safe"
                .to_owned(),
        );
    }
    for (column, needed) in [("fsync", "on"), ("pages", "on"), ("encoding", "UTF8")] {
        let found: String = row.try_get(column)?;
        if found != needed {
            let setting = if column == "pages" {
                "full_page_writes"
            } else {
                column
            };
            return unfit(format!(
                "the server's {setting} is {found}, but must be {needed}: what it commits would not be safe"
            ));
        }
    }
    Ok(())
}
