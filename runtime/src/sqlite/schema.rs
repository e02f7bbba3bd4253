//! Between opening a file and trusting it: its settings, the library behind it, and its schema.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{OpenFlags, ffi};
use tracing::info;

use super::{Connection, Error, Options, Params, Row, params};
use crate::files::{self, with_suffix};
use crate::migrations::{Applied, Migration, Mismatch, Standing};
use crate::problem::Problem;

/// Earlier versions can corrupt the file when a reset of the write-ahead log meets a crash.
const LIBRARY_MIN: i32 = 3_051_003;

/// How long a check of a configuration looks at the pages of a database.
const LOOK_TIME: Duration = Duration::from_secs(10);

const MAKE_TABLE: &str = "\
CREATE TABLE IF NOT EXISTS _sqlx_migrations (
    version BIGINT PRIMARY KEY,
    description TEXT NOT NULL,
    installed_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    success BOOLEAN NOT NULL,
    checksum BLOB NOT NULL,
    execution_time BIGINT NOT NULL,
    usable_from BIGINT
)";

/// Earlier programs made the table without it.
const ADD_USABLE_FROM: &str = "ALTER TABLE _sqlx_migrations ADD COLUMN usable_from BIGINT";

const HAS_USABLE_FROM: &str =
    "SELECT name FROM pragma_table_info('_sqlx_migrations') WHERE name = 'usable_from'";

const APPLIED: &str =
    "SELECT version, success, checksum, usable_from FROM _sqlx_migrations ORDER BY version";

const APPLIED_BEFORE: &str =
    "SELECT version, success, checksum, NULL AS usable_from FROM _sqlx_migrations ORDER BY version";

const NOTE: &str = "\
INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time, usable_from)
VALUES (:version, :description, TRUE, :checksum, -1, :usable_from)";

/// Why a schema cannot be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// What was applied is not what this program has.
    #[error(transparent)]
    Mismatch(Mismatch),
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

/// Opens the file to write, and refuses it unless everything is as it must be.
pub(super) fn open(options: &Options, migrations: &[Migration]) -> Result<Connection, Error> {
    check_library(rusqlite::version_number())?;
    prepare(options, migrations).map_err(|error| error.in_file(&options.path))
}

fn prepare(options: &Options, migrations: &[Migration]) -> Result<Connection, Error> {
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

/// Brings the schema up to date, and refuses one in which a newer program has changed what this one needs.
fn migrate(connection: &Connection, migrations: &[Migration]) -> Result<(), Error> {
    connection.inner().execute_batch(MAKE_TABLE)?;
    let standing = look(connection, migrations)?;
    if standing.is_ahead {
        info!(
            schema = standing.version,
            "a later version has added to the database; this program goes on with what it knows of it"
        );
    }
    if !standing.missing.is_empty() && !has_usable_from(connection)? {
        connection.inner().execute_batch(ADD_USABLE_FROM)?;
    }
    for own in standing.missing {
        apply(connection, &own)?;
    }
    Ok(())
}

/// Where a file stands; where there is none, it lacks all migrations. Changes nothing.
///
/// # Errors
///
/// When the file cannot be read, may not be opened to write either, or has a schema that this program cannot go on
/// with.
pub fn standing(file: &Path, migrations: &[Migration]) -> Result<Standing, Error> {
    let nothing = || Standing::of(migrations, &[]).map_err(Error::from);
    if !files::examine_database(file)? {
        return nothing();
    }
    ask(file, |connection| {
        let noted = "SELECT name FROM sqlite_schema WHERE name = '_sqlx_migrations'";
        if connection
            .optional(noted, &[], |_row| Ok::<_, Error>(()))?
            .is_none()
        {
            return nothing();
        }
        look(connection, migrations)
    })
}

/// Whether a question to a file has an answer. Changes nothing.
///
/// # Errors
///
/// When the file cannot be read, or has no table of what is asked for.
pub fn is_answered(file: &Path, question: &'static str, params: Params<'_>) -> Result<bool, Error> {
    let answer = ask(file, |connection| {
        connection.optional(question, params, |_row| Ok::<_, Error>(()))
    })?;
    Ok(answer.is_some())
}

/// Every answer that a file has to a question. Changes nothing.
///
/// # Errors
///
/// When the file cannot be read, or has no table of what is asked for.
pub fn answers<T>(
    file: &Path,
    question: &'static str,
    params: Params<'_>,
    read: impl Fn(&Row<'_>) -> T,
) -> Result<Vec<T>, Error> {
    ask(file, |connection| {
        connection.all(question, params, |row| Ok::<_, Error>(read(row)))
    })
}

/// What a look over a whole file came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looked {
    /// Every page is as it has to be, or there is no file.
    Sound,
    /// The time was over before the end; what was read until then is sound.
    Unfinished,
}

/// Reads all pages of a file, for so long at most: damage comes to light that no statement has met yet. Changes
/// nothing.
///
/// # Errors
///
/// [`Error::Corrupt`] with the first damage, or why the file cannot be read.
pub fn look_over(file: &Path, limit: Duration) -> Result<Looked, Error> {
    if !file.exists() {
        return Ok(Looked::Sound);
    }
    let told = |row: &Row<'_>| Ok::<_, Error>(row.name().unwrap_or_default().to_owned());
    let looked = ask(file, |connection| {
        let found =
            connection.within(limit, || connection.one("PRAGMA quick_check(1)", &[], told))?;
        if found == "ok" {
            return Ok(Looked::Sound);
        }
        let found = found.trim_start_matches("*** in database main ***").trim();
        let damage = rusqlite::Error::SqliteFailure(
            ffi::Error::new(ffi::SQLITE_CORRUPT),
            Some(found.replace('\n', " ")),
        );
        Err(Error::of(damage, file))
    });
    match looked {
        Err(Error::TooLong(_)) => Ok(Looked::Unfinished),
        looked => looked,
    }
}

/// What a check of a configuration says of all pages of a file: nothing, a warning where the time was not enough, or a
/// problem with this fix where it is damaged. A file that cannot be read is for the start to find out.
///
/// # Errors
///
/// The damage.
pub fn examine(file: &Path, damaged_fix: &str) -> Result<Option<Problem>, Problem> {
    match look_over(file, LOOK_TIME) {
        Ok(Looked::Sound) => Ok(None),
        Ok(Looked::Unfinished) => Ok(Some(unfinished(file))),
        Err(ref error @ Error::Corrupt { ref source, .. }) => {
            let told = format!("{error}: {source}");
            Err(Problem::of_file(file, told, damaged_fix))
        }
        Err(_unreadable) => Ok(None),
    }
}

fn unfinished(file: &Path) -> Problem {
    let seconds = LOOK_TIME.as_secs();
    let message = format!(
        "{} is large: {seconds} s were not enough to look at all of it for damage, and what was looked at is sound",
        file.display()
    );
    let help = format!(
        "to look at the rest: sqlite3 -readonly {} 'PRAGMA quick_check', with the agent stopped",
        files::quoted(file)
    );
    Problem::of_file(file, message, help)
}

/// Asks a file that is only read. Where nothing lies beside it nobody has it open, and it is read as one that does not
/// change: SQLite would leave a log and its index there.
fn ask<T>(file: &Path, question: impl Fn(&Connection) -> Result<T, Error>) -> Result<T, Error> {
    if is_open(file) {
        return question(&open_to_read(file, false)?);
    }
    let answer = open_to_read(file, true).and_then(|connection| question(&connection));
    // Who opened it meanwhile may have written what was being read.
    if answer.is_err() && is_open(file) {
        return question(&open_to_read(file, false)?);
    }
    answer
}

/// Whether somebody has a file open, or has not closed it.
fn is_open(file: &Path) -> bool {
    let beside = ["-wal", "-shm", "-journal"].map(|suffix| with_suffix(file, suffix));
    beside.iter().any(|beside| beside.exists())
}

fn open_to_read(file: &Path, is_still: bool) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = if is_still {
        let flags = flags | OpenFlags::SQLITE_OPEN_URI;
        rusqlite::Connection::open_with_flags(still(file), flags)
    } else {
        rusqlite::Connection::open_with_flags(file, flags)
    };
    Connection::new(opened?, &Options::new(file))
}

/// The file as a URI by which SQLite takes no locks and makes no files.
fn still(file: &Path) -> String {
    let bytes = file.as_os_str().as_encoded_bytes().iter();
    let path: String = bytes.copied().map(escaped).collect();
    format!("file:{path}?immutable=1")
}

fn escaped(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte) {
        return char::from(byte).to_string();
    }
    format!("%{byte:02x}")
}

fn has_usable_from(connection: &Connection) -> Result<bool, Error> {
    let found = connection.optional(HAS_USABLE_FROM, &[], |_row| Ok::<_, Error>(()))?;
    Ok(found.is_some())
}

/// What was applied, against what this program has.
fn look(connection: &Connection, migrations: &[Migration]) -> Result<Standing, Error> {
    let applied = if has_usable_from(connection)? {
        APPLIED
    } else {
        APPLIED_BEFORE
    };
    let applied = connection.all(applied, &[], |row| {
        Ok::<_, Error>(Applied {
            version: row.get("version").unwrap_or_default(),
            finished: row.get("success").unwrap_or_default(),
            checksum: row.get("checksum").unwrap_or_default(),
            usable_from: row.get("usable_from").unwrap_or_default(),
        })
    })?;
    Ok(Standing::of(migrations, &applied)?)
}

/// Applies a migration and notes it, both or neither.
fn apply(connection: &Connection, migration: &Migration) -> Result<(), Error> {
    let version = migration.version();
    connection.execute("BEGIN IMMEDIATE", &[])?;
    let applied = connection.inner().execute_batch(migration.sql);
    let noted = match applied {
        Ok(()) => {
            let (description, checksum) = (migration.description(), migration.checksum());
            let usable_from = migration.usable_from();
            connection.execute(
                NOTE,
                params! { version, description, checksum, usable_from },
            )
        }
        Err(source) => Err(failed(version, source)),
    };
    let committed = noted.and_then(|_noted| connection.execute("COMMIT", &[]));
    if committed.is_err() {
        // Where SQLite has ended it already, there is nothing left to undo.
        drop(connection.execute("ROLLBACK", &[]));
    }
    committed.map(drop)
}

/// A file that is damaged is none of the statements' doing.
fn failed(version: i64, source: rusqlite::Error) -> Error {
    let code = source.sqlite_error().map(|error| error.extended_code);
    if matches!(code.map(|code| code & 0xff), Some(11 | 26)) {
        return source.into();
    }
    MigrateError::Failed { version, source }.into()
}

impl From<Mismatch> for Error {
    fn from(mismatch: Mismatch) -> Self {
        match mismatch {
            Mismatch::TooNew { .. } | Mismatch::Overtaken { .. } => Self::SchemaTooNew(mismatch),
            Mismatch::Unfinished(_) | Mismatch::Missing(_) | Mismatch::Changed(_) => {
                MigrateError::Mismatch(mismatch).into()
            }
        }
    }
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
    fn a_file_that_is_too_large_for_the_time_is_told_as_that() {
        let told = unfinished(Path::new("/srv/a.db")).to_string();
        assert!(
            told.contains("/srv/a.db is large: 10 s were not enough"),
            "{told}"
        );
        assert!(told.contains("PRAGMA quick_check"), "{told}");
    }

    #[test]
    fn a_file_of_any_name_is_one_uri() {
        let uri = still(Path::new("/srv/a b/50%?#ü.db"));
        assert_eq!(uri, "file:/srv/a%20b/50%25%3f%23%c3%bc.db?immutable=1");
    }
}
