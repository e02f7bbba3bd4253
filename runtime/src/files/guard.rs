//! Notices that a state folder is lost under a running process: removed, replaced, or no longer writable.
//!
//! What was opened stays usable after its name is gone, so nothing fails by itself: only a look at the names tells.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, access};
use rustix::io::Errno;

/// Why the folder is no longer what the process opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Nothing is there.
    #[error("{} was removed while this process runs", .0.display())]
    Removed(PathBuf),
    /// Something else is there.
    #[error("{} was replaced by another while this process runs", .0.display())]
    Replaced(PathBuf),
    /// It is there, and nothing can be written.
    #[error("{} cannot be written any more: {reason}", path.display())]
    ReadOnly {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// It cannot be looked at.
    #[error("{} cannot be examined any more: {reason}", path.display())]
    Unreadable {
        /// The folder or file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
}

/// Which file it is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(path: &Path) -> io::Result<Self> {
        // The file itself: a link in its place is another file.
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

/// Remembers what was opened. Clones share it.
#[derive(Debug, Clone)]
pub struct Guard {
    folder: Arc<Path>,
    opened: Arc<[(PathBuf, FileId)]>,
}

impl Guard {
    /// Remembers `file`, which was just opened, and its folder.
    ///
    /// # Errors
    ///
    /// When one of them is gone already.
    pub fn new(file: &Path) -> io::Result<Self> {
        let folder = file.parent().unwrap_or(file);
        // A link to the folder may point elsewhere tomorrow; what counts is where it leads then.
        let real = fs::canonicalize(folder)?;
        let opened = [real, file.to_owned()]
            .into_iter()
            .map(|path| FileId::of(&path).map(|id| (path, id)))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            folder: folder.into(),
            opened,
        })
    }

    /// Whether everything is where it was and can be written. It looks at the disk: not for a runtime thread.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn check(&self) -> Result<(), Lost> {
        for (path, id) in &*self.opened {
            match FileId::of(path) {
                Ok(found) if found == *id => {}
                Ok(_other) => return Err(Lost::Replaced(path.clone())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(Lost::Removed(path.clone()));
                }
                Err(error) => {
                    return Err(Lost::Unreadable {
                        path: path.clone(),
                        reason: error.to_string(),
                    });
                }
            }
        }
        // Asked of the name: a mount that was laid over it is what a restart would find.
        match access(&*self.folder, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) => Ok(()),
            Err(Errno::ROFS) => Err(self.read_only("the file system is read-only".to_owned())),
            Err(error) => Err(self.read_only(error.to_string())),
        }
    }

    fn read_only(&self, reason: String) -> Lost {
        Lost::ReadOnly {
            path: self.folder.to_path_buf(),
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> (tempfile::TempDir, PathBuf, Guard) {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("state");
        fs::create_dir(&folder).unwrap();
        let file = folder.join("journal.db");
        fs::write(&file, "x").unwrap();
        let guard = Guard::new(&file).unwrap();
        assert_eq!(guard.check(), Ok(()));
        (outer, folder, guard)
    }

    #[test]
    fn a_folder_or_file_that_is_gone_is_noticed_and_so_is_one_that_came_back() {
        let (outer, folder, guard) = opened();
        let aside = outer.path().join("aside");
        fs::rename(&folder, &aside).unwrap();
        assert_eq!(guard.check(), Err(Lost::Removed(folder.clone())));
        fs::create_dir(&folder).unwrap();
        assert_eq!(guard.check(), Err(Lost::Replaced(folder.clone())));
        fs::remove_dir(&folder).unwrap();
        fs::rename(&aside, &folder).unwrap();
        assert_eq!(guard.check(), Ok(()));
        let file = folder.join("journal.db");
        fs::remove_file(&file).unwrap();
        assert_eq!(guard.check(), Err(Lost::Removed(file)));
    }

    #[test]
    fn a_file_that_was_copied_back_is_another_file() {
        let (_outer, folder, guard) = opened();
        let file = folder.join("journal.db");
        fs::copy(&file, folder.join("copy")).unwrap();
        fs::rename(folder.join("copy"), &file).unwrap();
        assert_eq!(guard.check(), Err(Lost::Replaced(file)));
    }
}
