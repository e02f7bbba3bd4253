//! Databases of earlier versions, kept as text.

use std::collections::BTreeMap;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::postgres::Database;

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

/// Changes a database that nobody uses.
///
/// # Panics
/// When it does not take that.
pub fn change(path: &Path, sql: &str) {
    let database = rusqlite::Connection::open(path).expect("the database opens");
    database.execute_batch(sql).expect("it takes the change");
}

/// Notes a migration in a database of this version that only a later one has, and that leaves earlier programs nothing.
///
/// # Panics
/// When the file is no such database.
pub fn note_later_migration(path: &Path) {
    note_migration(path, 9_999, None);
}

/// Notes a migration in a database of this version that only a later one has. Programs that know version `usable_from`
/// of the schema can go on after it; with `None` it does not say who can.
///
/// # Panics
/// When the file is no such database.
pub fn note_migration(path: &Path, version: i64, usable_from: Option<i64>) {
    let database = rusqlite::Connection::open(path).expect("the database opens");
    let noted = database.execute(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time, usable_from) \
         VALUES (?1, 'make more of it', 1, x'00', 0, ?2)",
        rusqlite::params![version, usable_from],
    );
    noted.expect("it has a table of migrations");
}

/// The same in a database of a server.
///
/// # Panics
/// When it is none of ours.
pub fn note_migration_on_server(database: &Database, version: i64, usable_from: Option<i64>) {
    let usable_from = usable_from.map_or_else(|| "NULL".to_owned(), |version| version.to_string());
    let note = format!(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time, usable_from) \
         VALUES ({version}, 'make more of it', true, '\\x00', 0, {usable_from})"
    );
    database.ask(&note).expect("it has a table of migrations");
}

/// Holds the files of a folder against the sums that are written down beside them, `checksums.txt`, as `sha256sum`
/// writes it; answers what is wrong. A file that others may have applied is never changed.
///
/// # Panics
/// When the folder cannot be read.
#[must_use]
pub fn changed_migrations(folder: &Path) -> Vec<String> {
    let mut sums = BTreeMap::new();
    let written = std::fs::read_to_string(folder.join("checksums.txt"));
    for line in written.expect("the sums are written down").lines() {
        let (sum, name) = line.split_once("  ").expect("a sum, and a name");
        sums.insert(name.to_owned(), sum.to_owned());
    }
    let mut wrong = Vec::new();
    let kinds = std::fs::read_dir(folder).expect("the folder is there");
    for kind in kinds.map(|entry| entry.expect("it can be listed").path()) {
        let files = std::fs::read_dir(&kind).into_iter().flatten();
        for path in files.map(|entry| entry.expect("it can be listed").path()) {
            let Ok(name) = path.strip_prefix(folder) else {
                continue;
            };
            let name = name.display().to_string();
            if !name.ends_with(".sql") {
                continue;
            }
            let text = std::fs::read(&path).expect("the file can be read");
            let sum: String = Sha256::digest(&text)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            match sums.remove(&name) {
                Some(known) if known == sum => {}
                Some(_) => wrong.push(format!(
                    "{name} was changed, and others have applied it as it was; add another file"
                )),
                None => wrong.push(format!("{name} is new; add the line `{sum}  {name}`")),
            }
        }
    }
    wrong.extend(
        sums.into_keys()
            .map(|name| format!("{name} is gone, and others have applied it")),
    );
    wrong
}
