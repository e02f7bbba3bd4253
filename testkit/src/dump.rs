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
