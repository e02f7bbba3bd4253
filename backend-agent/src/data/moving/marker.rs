//! What a move leaves beside the file that it read: nobody starts there by mistake.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use viworks_common::time::Timestamp;
use viworks_runtime::files::{self, FileError};

/// The most that such a file holds.
const BYTES_MAX: u64 = 64 * 1024;

/// Where the site went, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// The database, without a secret.
    pub to: String,
    /// When both were found to be equal.
    pub at: Timestamp,
}

/// An embedded database is what was left behind by a move: what happened since is not in it.
#[derive(Debug, thiserror::Error)]
#[error(
    "the site in {} has moved to {} (noted {}), and what happened since is not in the file: name that as `url` in [store]; \
     to go back to the file on purpose, and lose all that, remove {}",
    file.display(),
    moved.to,
    moved.at,
    marker.display()
)]
pub struct LeftBehind {
    file: PathBuf,
    marker: PathBuf,
    moved: Moved,
}

/// Refuses an embedded database whose site has moved.
///
/// # Errors
///
/// As [`find`]; within, when it has.
pub fn refuse(database: &Path) -> Result<Result<(), LeftBehind>, FileError> {
    Ok(match find(database)? {
        None => Ok(()),
        Some(moved) => Err(LeftBehind {
            file: database.to_owned(),
            marker: path(database),
            moved,
        }),
    })
}

/// The file that says so of an embedded database.
#[must_use]
pub fn path(database: &Path) -> PathBuf {
    files::with_suffix(database, ".moved")
}

/// Says that a site has moved.
///
/// # Errors
///
/// When the file cannot be written.
pub fn leave(database: &Path, moved: &Moved) -> Result<(), FileError> {
    let text = serde_json::json!(moved).to_string();
    files::write_atomic(&path(database), format!("{text}\n").as_bytes())
}

/// Where the site of an embedded database has moved; a marker that cannot be read tells no more than that it has.
///
/// # Errors
///
/// When there is one and others could have written it, or it cannot be opened.
pub fn find(database: &Path) -> Result<Option<Moved>, FileError> {
    let path = path(database);
    if !path.exists() {
        return Ok(None);
    }
    let text = files::read_at_most(&path, BYTES_MAX)?;
    let unknown = || Moved {
        to: "another database".to_owned(),
        at: Timestamp::from_unix_micros(0),
    };
    Ok(Some(
        serde_json::from_slice(&text).unwrap_or_else(|_| unknown()),
    ))
}
