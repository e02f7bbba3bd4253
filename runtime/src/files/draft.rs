//! A new file that has its name only once what it stands for is there.

use std::ffi::OsString;
use std::path::Path;

use rustix::fs::{self, AtFlags};
use rustix::io::Errno;

use super::folder::{Folder, Holder};
use super::{FileError, folder_for, rename_new, write_beside};

/// One that is written and has no name yet; it is gone when it is dropped. What is killed meanwhile leaves a hidden
/// file behind, and none that looks whole.
#[derive(Debug)]
pub struct Draft {
    folder: Folder,
    name: OsString,
    temporary: OsString,
    is_kept: bool,
}

impl Draft {
    /// Writes one for a name that nothing has, with these permissions, durably.
    ///
    /// # Errors
    ///
    /// [`FileError::is_taken`] when something has that name, a link included, or when a step fails; nothing is left
    /// then.
    pub fn write(path: &Path, contents: &[u8], mode: u32) -> Result<Self, FileError> {
        let (folder, name) = folder_for(path, Holder::Closed)?;
        match fs::statat(folder.place(), &name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Ok(_) => return Err(FileError::io("create", path)(Errno::EXIST.into())),
            Err(error) => return Err(FileError::io("create", path)(error.into())),
        }
        let (temporary, _file) = write_beside(&folder, &name, contents, mode)?;
        Ok(Self {
            folder,
            name,
            temporary,
            is_kept: false,
        })
    }

    /// Gives it its name, durably.
    ///
    /// # Errors
    ///
    /// [`FileError::is_taken`] when something has that name by now, or when a step fails.
    pub fn keep(mut self) -> Result<(), FileError> {
        let (temporary, name) = (Path::new(&self.temporary), Path::new(&self.name));
        rename_new(self.folder.place(), temporary, name).map_err(|error| {
            FileError::io("create", &self.folder.asked(&self.name))(error.into())
        })?;
        self.is_kept = true;
        let synced = self.folder.sync();
        if synced.is_err() {
            // Best effort: a name that may be gone after a crash is told of as none.
            drop(self.folder.remove(&self.name));
        }
        synced
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_kept {
            // Best effort: whoever drops it has a failure that matters.
            drop(self.folder.remove(&self.temporary));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::files::names;

    #[test]
    fn a_draft_has_its_name_once_it_is_kept_and_leaves_nothing_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("operator.key");
        let draft = Draft::write(&path, b"secret", 0o600).unwrap();
        assert!(!path.exists());
        drop(draft);
        assert!(names(folder.path()).unwrap().is_empty());
        Draft::write(&path, b"secret", 0o600)
            .unwrap()
            .keep()
            .unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"secret");
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(names(folder.path()).unwrap(), ["operator.key"]);
    }

    #[test]
    fn a_draft_takes_the_name_of_nothing_whenever_that_came() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("operator.key");
        let draft = Draft::write(&path, b"secret", 0o600).unwrap();
        std::fs::write(&path, "theirs").unwrap();
        assert!(draft.keep().unwrap_err().is_taken());
        assert!(
            Draft::write(&path, b"secret", 0o600)
                .unwrap_err()
                .is_taken()
        );
        assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
        let link = folder.path().join("link");
        symlink("nowhere", &link).unwrap();
        assert!(
            Draft::write(&link, b"secret", 0o600)
                .unwrap_err()
                .is_taken()
        );
        let mut left = names(folder.path()).unwrap();
        left.sort_unstable();
        assert_eq!(left, ["link", "operator.key"]);
        let slash = folder.path().join("new/");
        assert!(Draft::write(&slash, b"secret", 0o600).is_err());
    }
}
