//! A database of an agent that another process holds, as a program that copies files or a person with `sqlite3` may.

use std::path::Path;
use std::time::Duration;

/// Held until it is dropped; whoever it belongs to reads it and cannot write.
#[derive(Debug)]
pub struct HeldDatabase {
    _connection: rusqlite::Connection,
}

impl HeldDatabase {
    /// Takes it as soon as it is not being written.
    ///
    /// # Panics
    /// When it is no database, or is written all the time.
    #[must_use]
    pub fn take(file: &Path) -> Self {
        let connection = rusqlite::Connection::open(file).expect("the database opens");
        let patient = connection.busy_timeout(Duration::from_secs(30));
        patient.expect("it can be waited for");
        let taken = connection.execute_batch("BEGIN IMMEDIATE");
        taken.expect("the database can be held");
        Self {
            _connection: connection,
        }
    }
}
