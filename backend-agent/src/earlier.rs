//! Which instance the process with this state folder was, where it is certain that it is gone.
//!
//! A folder has one process at a time, which a lock keeps. So whoever has the folder knows that the process before it
//! in the *same* folder is gone. A copy of the folder is another folder: whoever copied it may have left the original
//! running, and an instance that lives is nobody's to end.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tracing::{info, warn};
use viworks_common::id::InstanceId;
use viworks_runtime::clock;
use viworks_runtime::files::{self, FileError};

/// In the state folder: the instance, the boot of the machine, and the folder itself, each on a line of its own.
pub(crate) const FILE: &str = "instance";
/// More than that ever is.
const BYTES_MAX: u64 = 256;

/// What follows where that is not done.
pub(crate) const NOT_NOTED: &str =
    "the next start waits until this backend's lease of the database has run out";

/// What is known of the instance that this folder names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Earlier {
    /// The process before this one was it, and is gone.
    Gone(InstanceId),
    /// It may be alive: the folder is a copy, or the machine is, or it was started again since.
    Unsure(InstanceId),
}

impl Earlier {
    /// The one that is certainly gone.
    pub(crate) const fn gone(self) -> Option<InstanceId> {
        match self {
            Self::Gone(instance) => Some(instance),
            Self::Unsure(_) => None,
        }
    }
}

/// Which of several backends the process before this one was, where it is certain that it is gone.
pub(crate) fn predecessor(state_folder: &Path) -> Option<InstanceId> {
    let earlier = instance(state_folder)?;
    if let Earlier::Unsure(instance) = earlier {
        info!(%instance, "the backend that this state folder names may be alive elsewhere, as the machine was started or the folder copied since; what it left is ended when its lease of the database has run out");
    }
    earlier.gone()
}

/// Writes down which of several backends this one is, for the process that has this folder after it.
pub(crate) fn note_instance(state_folder: &Path, instance: Option<InstanceId>) {
    if let Some(instance) = instance
        && let Err(error) = note(state_folder, instance)
    {
        warn!(%error, "{}", NOT_NOTED);
    }
}

/// Writes down which instance this process is.
pub(crate) fn note(state_folder: &Path, instance: InstanceId) -> Result<(), FileError> {
    let place = place(state_folder).unwrap_or_default();
    let text = format!("{instance}\n{place}");
    files::write_atomic(&state_folder.join(FILE), text.as_bytes())
}

/// Which one the process before this one was. Where that is not known, its lease of the database runs out by itself.
/// The folder is locked.
pub(crate) fn instance(state_folder: &Path) -> Option<Earlier> {
    let text = files::read_trusted(&state_folder.join(FILE), BYTES_MAX).ok()?;
    let text = std::str::from_utf8(&text).ok()?;
    let (instance, noted) = text.split_once('\n').unwrap_or((text, ""));
    let instance = instance.parse().ok()?;
    let same = place(state_folder).is_some_and(|place| place == noted);
    Some(if same {
        Earlier::Gone(instance)
    } else {
        Earlier::Unsure(instance)
    })
}

/// Where a folder is, in words that a copy of it does not share: nothing else has its number within one boot.
fn place(folder: &Path) -> Option<String> {
    let (boot, known) = (clock::boot_id()?, fs::metadata(folder).ok()?);
    Some(format!("{boot}\n{} {}\n", known.dev(), known.ino()))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn one() -> InstanceId {
        InstanceId::from_uuid(Uuid::from_u128(1))
    }

    #[test]
    fn the_process_before_this_one_in_the_same_folder_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(instance(folder.path()), None);
        note(folder.path(), one()).unwrap();
        assert_eq!(instance(folder.path()), Some(Earlier::Gone(one())));
        // It may be moved, as long as it stays what it is.
        let moved = folder.path().with_extension("moved");
        fs::rename(folder.path(), &moved).unwrap();
        assert_eq!(instance(&moved), Some(Earlier::Gone(one())));
        fs::rename(&moved, folder.path()).unwrap();
    }

    #[test]
    fn of_a_copied_folder_nobody_knows_whether_its_instance_lives() {
        let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        note(folder.path(), one()).unwrap();
        let file = fs::read(folder.path().join(FILE)).unwrap();
        files::write_atomic(&copy.path().join(FILE), &file).unwrap();
        assert_eq!(instance(copy.path()), Some(Earlier::Unsure(one())));
    }

    #[test]
    fn neither_does_anybody_know_it_after_a_boot_or_of_a_file_that_says_less() {
        let folder = tempfile::tempdir().unwrap();
        note(folder.path(), one()).unwrap();
        let path = folder.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap();
        let boot = clock::boot_id().unwrap().to_string();
        let other = Uuid::from_u128(7).to_string();
        for text in [text.replace(&boot, &other), one().to_string()] {
            files::write_atomic(&path, text.as_bytes()).unwrap();
            assert_eq!(instance(folder.path()), Some(Earlier::Unsure(one())));
        }
    }
}
