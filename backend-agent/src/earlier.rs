//! Which instance the process with this state folder was: it is gone for certain once another one has the folder.

use std::path::Path;

use viworks_common::id::InstanceId;
use viworks_runtime::files::{self, FileError};

/// In the state folder.
pub(crate) const FILE: &str = "instance";
/// More than any id has.
const BYTES_MAX: u64 = 64;

/// What follows where that is not done.
pub(crate) const NOT_NOTED: &str =
    "the next start waits until this backend's lease of the database has run out";

/// Writes down which instance this process is.
pub(crate) fn note(state_folder: &Path, instance: InstanceId) -> Result<(), FileError> {
    files::write_atomic(&state_folder.join(FILE), instance.to_string().as_bytes())
}

/// Which one the process before this one was. Where that is not known, its lease of the database runs out by itself.
pub(crate) fn instance(state_folder: &Path) -> Option<InstanceId> {
    let text = files::read_trusted(&state_folder.join(FILE), BYTES_MAX).ok()?;
    std::str::from_utf8(&text).ok()?.parse().ok()
}
