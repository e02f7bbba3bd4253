//! Between opening a file and trusting it: its settings, the library behind it, and its schema.
//!
//! What was applied is noted as sqlx notes it (`_sqlx_migrations`, with the SHA-384 of each file), which made these
//! databases first.

use std::path::Path;
use std::sync::Arc;

use rusqlite::OpenFlags;
use sha2::{Digest, Sha384};

use super::{Connection, Error, Options, Params, Row, params};

/// Earlier versions can corrupt the file when a reset of the write-ahead log meets a crash.
const LIBRARY_MIN: i32 = 3_051_003;

const MAKE_TABLE: &str = "\
CREATE TABLE IF NOT EXISTS _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    success BOOLEAN NOT NULL,
    checksum BLOB NOT NULL,
    execution_time BIGINT NOT NULL
)";

const NOTE: &str = "\
INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
VALUES (:version, :description, TRUE, :checksum, -1)";

/// One step of a schema, as [`migration!`](crate::migration) reads it from its file.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// The file's name, `NNNN_what_it_does.sql`.
    pub file: &'static str,
    /// What it holds.
    pub sql: &'static str,
}

/// The migration in a file whose path is relative to the calling one.
#[macro_export]
macro_rules! migration {
    ($folder:literal, $file:literal) => {
        $crate::sqlite::Migration {
            file: $file,
            sql: ::std::include_str!(::std::concat!($folder, "/", $file)),
        }
    };
}

/// Why a schema cannot be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// An earlier attempt was left in the middle.
    #[error("migration {0} was begun and not finished")]
    Unfinished(i64),
    /// One that this program does not have, below the newest one that it has.
    #[error("migration {0} was applied, and this program does not have it")]
    Missing(i64),
    /// A file that was changed after it was applied.
    #[error("migration {0} was applied, and was another one then")]
    Changed(i64),
    /// Its statements cannot be executed.
    #[error("migration {version} cannot be applied")]
    Failed {
        /// Which one.
        version: i64,
        /// What SQLite says.
        #[source]
        source: rusqlite::Error,
    },
}

impl Migration {
    /// Its number.
    #[must_use]
    pub fn version(&self) -> i64 {
        let digits = self.file.split('_').next();
        digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
    }

    /// What it does.
    #[must_use]
    pub fn description(&self) -> String {
        let (_, rest) = self.file.split_once('_').unwrap_or_default();
        rest.trim_end_matches(".sql").replace('_', " ")
    }

    fn checksum(&self) -> Vec<u8> {
        Sha384::digest(self.sql.as_bytes()).to_vec()
    }
}

/// Opens the file to write, and refuses it unless everything is as it must be.
pub(super) fn open(options: &Options, migrations: &[Migration]) -> Result<Connection, Error> {
    check_library(rusqlite::version_number())?;
    let connection = connect(options)?;
    check_settings(&connection)?;
    migrate(&connection, migrations)?;
    Ok(connection)
}

pub(super) fn connect(options: &Options) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let inner = rusqlite::Connection::open_with_flags(&options.path, flags)?;
    let connection = Connection::new(inner, options)?;
    let Options {
        page_size,
        journal_bytes_max,
        ..
    } = options;
    // A log of as many pages as may be kept: the longer it is, the fewer pages are written twice.
    let log_pages = journal_bytes_max / page_size.max(&1);
    // The size of a page and what a file does with free ones are settled when it is made, which the log's mode does.
    connection.inner().execute_batch(&format!(
        "PRAGMA page_size = {page_size};
         PRAGMA auto_vacuum = INCREMENTAL;
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA foreign_keys = ON;
         PRAGMA temp_store = MEMORY;
         PRAGMA wal_autocheckpoint = {log_pages};
         PRAGMA journal_size_limit = {journal_bytes_max};"
    ))?;
    if let Some(pages) = options.max_page_count {
        let bound = format!("PRAGMA max_page_count = {pages}");
        connection.inner().execute_batch(&bound)?;
    }
    Ok(connection)
}

/// Refuses a library with known faults.
fn check_library(found: i32) -> Result<(), Error> {
    if found >= LIBRARY_MIN {
        return Ok(());
    }
    let text = |number: i32| {
        format!(
            "{}.{}.{}",
            number / 1_000_000,
            number / 1_000 % 1_000,
            number % 1_000
        )
    };
    Err(Error::LibraryTooOld {
        found: text(found),
        needed: text(LIBRARY_MIN),
    })
}

/// Refuses a connection that does not have the settings durability and integrity rest on. SQLite ignores a pragma it
/// cannot follow, so asking is the only way to know.
pub(super) fn check_settings(connection: &Connection) -> Result<(), Error> {
    for (setting, sql, needed) in [
        (
            "journal_mode",
            "SELECT CAST(journal_mode AS TEXT) FROM pragma_journal_mode",
            "wal",
        ),
        (
            "synchronous",
            "SELECT CAST(synchronous AS TEXT) FROM pragma_synchronous",
            "2",
        ),
        (
            "foreign_keys",
            "SELECT CAST(foreign_keys AS TEXT) FROM pragma_foreign_keys",
            "1",
        ),
        (
            "trusted_schema",
            "SELECT CAST(trusted_schema AS TEXT) FROM pragma_trusted_schema",
            "0",
        ),
    ] {
        let read = |row: &Row<'_>| Ok::<_, Error>(row.name().unwrap_or_default().to_owned());
        let found = connection.one(sql, &[], read)?;
        if found != needed {
            return Err(Error::Setting {
                setting,
                found,
                needed,
            });
        }
    }
    Ok(())
}

/// Brings the schema up to date, and refuses one that a newer program has made.
fn migrate(connection: &Connection, migrations: &[Migration]) -> Result<(), Error> {
    connection.inner().execute_batch(MAKE_TABLE)?;
    for own in missing(connection, migrations)? {
        apply(connection, &own)?;
    }
    Ok(())
}

/// The migrations that a file still lacks; all of them, where there is no file. Changes nothing.
///
/// # Errors
///
/// When the file cannot be read, or has a schema that this program does not know.
pub fn pending(file: &Path, migrations: &[Migration]) -> Result<Vec<Migration>, Error> {
    if !file.exists() {
        return Ok(migrations.to_vec());
    }
    let connection = open_to_read(file)?;
    let noted = "SELECT name FROM sqlite_schema WHERE name = '_sqlx_migrations'";
    if connection
        .optional(noted, &[], |_row| Ok::<_, Error>(()))?
        .is_none()
    {
        return Ok(migrations.to_vec());
    }
    missing(&connection, migrations)
}

/// Whether a question to a file has an answer. Changes nothing.
///
/// # Errors
///
/// When the file cannot be read, or has no table of what is asked for.
pub fn is_answered(file: &Path, question: &'static str, params: Params<'_>) -> Result<bool, Error> {
    let answer = open_to_read(file)?.optional(question, params, |_row| Ok::<_, Error>(()))?;
    Ok(answer.is_some())
}

fn open_to_read(file: &Path) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let inner = rusqlite::Connection::open_with_flags(file, flags)?;
    Connection::new(inner, &Options::new(file))
}

/// What was not applied; refuses what is not known.
fn missing(connection: &Connection, migrations: &[Migration]) -> Result<Vec<Migration>, Error> {
    let applied = connection.all(
        "SELECT version, success, checksum FROM _sqlx_migrations ORDER BY version",
        &[],
        |row| {
            let version: i64 = row.get("version").unwrap_or_default();
            let success: bool = row.get("success").unwrap_or_default();
            let checksum: Vec<u8> = row.get("checksum").unwrap_or_default();
            Ok::<_, Error>((version, success, checksum))
        },
    )?;
    let known = migrations.iter().map(Migration::version).max();
    for (found, success, checksum) in &applied {
        let own = migrations.iter().find(|own| own.version() == *found);
        let problem = match own {
            None if Some(*found) > known => {
                let (found, known) = (*found, known.unwrap_or_default());
                return Err(Error::SchemaTooNew { found, known });
            }
            None => MigrateError::Missing(*found),
            Some(_) if !success => MigrateError::Unfinished(*found),
            Some(own) if own.checksum() != *checksum => MigrateError::Changed(*found),
            Some(_) => continue,
        };
        return Err(problem.into());
    }
    let is_applied = |version| applied.iter().any(|(found, ..)| *found == version);
    let missing = migrations.iter().filter(|own| !is_applied(own.version()));
    Ok(missing.copied().collect())
}

/// Applies a migration and notes it, both or neither.
fn apply(connection: &Connection, migration: &Migration) -> Result<(), Error> {
    let version = migration.version();
    connection.execute("BEGIN IMMEDIATE", &[])?;
    let applied = connection.inner().execute_batch(migration.sql);
    let noted = match applied {
        Ok(()) => {
            let (description, checksum) = (migration.description(), migration.checksum());
            connection.execute(NOTE, params! { version, description, checksum })
        }
        Err(source) => Err(MigrateError::Failed { version, source }.into()),
    };
    let committed = noted.and_then(|_noted| connection.execute("COMMIT", &[]));
    if committed.is_err() {
        // Where SQLite has ended it already, there is nothing left to undo.
        drop(connection.execute("ROLLBACK", &[]));
    }
    committed.map(drop)
}

impl From<MigrateError> for Error {
    fn from(error: MigrateError) -> Self {
        Self::Migrate(Arc::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_with_known_faults_is_refused_and_named() {
        assert!(check_library(LIBRARY_MIN).is_ok());
        let error = check_library(3_009_000).unwrap_err().to_string();
        assert_eq!(error, "SQLite 3.9.0 is too old, 3.51.3 or later is needed");
    }

    #[test]
    fn a_file_s_name_says_its_version_and_what_it_does() {
        let migration = Migration {
            file: "0012_keep_it.sql",
            sql: "",
        };
        assert_eq!(migration.version(), 12);
        assert_eq!(migration.description(), "keep it");
    }
}
