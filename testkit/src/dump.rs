//! Databases of earlier versions, kept as text.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Makes the database that a dump holds, for the owner only, as the programs make theirs.
///
/// # Panics
/// When the file cannot be made or the dump is none.
pub fn restore(path: &Path, dump: &str) {
    std::fs::File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .expect("the database's file can be made");
    let database = rusqlite::Connection::open(path).expect("the database opens");
    database
        .execute_batch("PRAGMA auto_vacuum = INCREMENTAL; PRAGMA foreign_keys = OFF")
        .expect("the settings are known");
    database.execute_batch(dump).expect("the dump is complete");
}

/// Notes a migration in a database of this version that only a later one has.
///
/// # Panics
/// When the file is no such database.
pub fn note_later_migration(path: &Path) {
    let database = rusqlite::Connection::open(path).expect("the database opens");
    let noted = database.execute(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'make more of it', 1, x'00', 0)",
        [],
    );
    noted.expect("it has a table of migrations");
}
