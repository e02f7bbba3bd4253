//! Where the running backend listens, for its other verbs: a port may be another one than is configured.

use std::net::SocketAddr;
use std::path::Path;

use viworks_runtime::files::{self, FileError};

/// In the state folder, while the backend runs.
const FILE: &str = "agents.addr";
/// More than any address has.
const BYTES_MAX: u64 = 128;

/// Writes down where agents connect.
pub(crate) fn note(state_folder: &Path, agents: SocketAddr) -> Result<(), FileError> {
    files::write_atomic(&state_folder.join(FILE), agents.to_string().as_bytes())
}

/// Removes that again.
pub(crate) fn forget(state_folder: &Path) {
    // What stays behind is recognised by the missing lock.
    drop(std::fs::remove_file(state_folder.join(FILE)));
}

/// Where agents connect, when a backend runs.
pub(crate) fn agents(state_folder: &Path) -> Option<SocketAddr> {
    let text = files::read_trusted(&state_folder.join(FILE), BYTES_MAX).ok()?;
    // Who gets the lock is alone: what is written there is of a backend that was killed.
    match files::lock_folder(state_folder) {
        Err(FileError::Locked { .. }) => std::str::from_utf8(&text).ok()?.parse().ok(),
        Ok(_) | Err(_) => None,
    }
}
