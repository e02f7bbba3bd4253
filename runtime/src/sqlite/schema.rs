//! The checks and changes between opening a file and trusting it.

use std::sync::Arc;

use sqlx::SqliteConnection;
use sqlx::migrate::{MigrateError, Migrator};

use super::Error;

/// Earlier versions can corrupt the file when a reset of the write-ahead log meets a crash.
const LIBRARY_MIN: [u32; 3] = [3, 51, 3];

/// Refuses a library with known faults.
pub(super) async fn check_library(connection: &mut SqliteConnection) -> Result<(), Error> {
    let found: String = sqlx::query_scalar("SELECT sqlite_version()")
        .fetch_one(connection)
        .await?;
    if parse_version(&found) < Some(LIBRARY_MIN) {
        let needed = LIBRARY_MIN.map(|part| part.to_string()).join(".");
        return Err(Error::LibraryTooOld { found, needed });
    }
    Ok(())
}

/// Refuses a connection that does not have the settings durability and integrity rest on. SQLite ignores a pragma it
/// cannot follow, so asking is the only way to know.
pub(super) async fn check_settings(connection: &mut SqliteConnection) -> Result<(), Error> {
    let journal: String = sqlx::query_scalar("PRAGMA journal_mode")
        .fetch_one(&mut *connection)
        .await?;
    expect("journal_mode", journal, "wal")?;
    let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous")
        .fetch_one(&mut *connection)
        .await?;
    expect("synchronous", synchronous.to_string(), "2")?;
    let foreign_keys: i64 = sqlx::query_scalar("PRAGMA foreign_keys")
        .fetch_one(&mut *connection)
        .await?;
    expect("foreign_keys", foreign_keys.to_string(), "1")
}

/// Brings the schema up to date, and refuses one that a newer program has made.
pub(super) async fn migrate(
    connection: &mut SqliteConnection,
    migrator: &Migrator,
) -> Result<(), Error> {
    let Err(error) = migrator.run_direct(None, connection, false).await else {
        return Ok(());
    };
    let known = migrator
        .iter()
        .map(|migration| migration.version)
        .max()
        .unwrap_or_default();
    if let MigrateError::VersionMissing(found) = error
        && found > known
    {
        return Err(Error::SchemaTooNew { found, known });
    }
    Err(Error::Migrate(Arc::new(error)))
}

fn expect(setting: &'static str, found: String, needed: &'static str) -> Result<(), Error> {
    if found == needed {
        return Ok(());
    }
    Err(Error::Setting {
        setting,
        found,
        needed,
    })
}

fn parse_version(text: &str) -> Option<[u32; 3]> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some([parts.next()??, parts.next()??, parts.next()??])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(parse_version("3.9.0") < parse_version("3.51.3"));
        assert!(parse_version("3.51.3") == Some(LIBRARY_MIN));
        assert!(parse_version("4.0.0") > Some(LIBRARY_MIN));
        assert!(parse_version("garbage") < Some(LIBRARY_MIN));
    }
}
