//! Notices that a state folder is lost under a running process: removed, replaced, or no longer writable.
//!
//! What was opened stays usable after its name is gone, so nothing fails by itself: only a look at the names tells.
//! And a file system that turned read-only or lost its disk says so to nobody but who writes: permissions are as they
//! were.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Access, access};
use rustix::io::Errno;
use viworks_common::time::Monotonic;

/// The file that is written to find out whether anything can be.
const PROBE: &str = "write.probe";

/// What it holds: always the same, so that no room is needed once it is there.
const PROBE_TEXT: &[u8] =
    b"This file is written now and then to find out whether its disk still takes anything.\n";

/// How long what a write told holds: a look at the names is next to free, a write wears the disk.
const WRITE_HOLDS: Duration = Duration::from_secs(10);

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
            Err(error) => Err(self.read_only(why(&error.into()))),
        }
    }

    /// Like [`Self::check`], and writes to the disk to know. A disk without room is not lost: who needs more finds out.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn probe(&self) -> Result<(), Lost> {
        self.check()?;
        let written = match super::open_write(&self.folder.join(PROBE)) {
            Ok(mut file) => file.write_all(PROBE_TEXT).and_then(|()| file.sync_data()),
            Err(error) => match error.into_io() {
                Ok((_path, error)) => Err(error),
                // It is not this user's alone any more.
                Err(error) => {
                    return Err(Lost::Unreadable {
                        path: self.folder.to_path_buf(),
                        reason: error.to_string(),
                    });
                }
            },
        };
        match written {
            Err(error) if !is_out_of_room(&error) => Err(self.read_only(why(&error))),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn read_only(&self, reason: String) -> Lost {
        Lost::ReadOnly {
            path: self.folder.to_path_buf(),
            reason,
        }
    }
}

/// Looks by a guard as often as it is asked, and writes when it is time to. Not for a runtime thread either.
#[derive(Debug)]
pub struct Prober {
    guard: Guard,
    /// Until when a write need not be repeated; one that failed is repeated at every look, so that it is known at once
    /// when all is well again.
    holds_until: Option<Monotonic>,
}

impl Prober {
    /// One that has written nothing yet.
    #[must_use]
    pub const fn new(guard: Guard) -> Self {
        Self {
            guard,
            holds_until: None,
        }
    }

    /// Whether all is well as far as is known, with a write when the last one is too long ago.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn look(&mut self, now: Monotonic) -> Result<(), Lost> {
        if self.holds_until.is_some_and(|until| now < until) {
            return self.guard.check();
        }
        self.write(now)
    }

    /// Whether a write succeeds at this moment.
    ///
    /// # Errors
    ///
    /// What is wrong.
    pub fn write(&mut self, now: Monotonic) -> Result<(), Lost> {
        let probed = self.guard.probe();
        self.holds_until = probed.is_ok().then(|| now.saturating_add(WRITE_HOLDS));
        probed
    }
}

fn is_out_of_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn why(error: &io::Error) -> String {
    if error.raw_os_error() == Some(Errno::ROFS.raw_os_error()) {
        "the file system is read-only".to_owned()
    } else {
        error.to_string()
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
    fn a_write_tells_what_permissions_do_not() {
        let (_outer, folder, guard) = opened();
        assert_eq!(guard.probe(), Ok(()));
        assert_eq!(guard.probe(), Ok(()));
        let probe = folder.join(PROBE);
        assert_eq!(fs::read(&probe).unwrap(), PROBE_TEXT);
        // What cannot be written although everybody may, root included.
        fs::remove_file(&probe).unwrap();
        fs::create_dir(&probe).unwrap();
        assert_eq!(guard.check(), Ok(()));
        let lost = guard.probe().unwrap_err().to_string();
        assert!(lost.contains(&folder.display().to_string()), "{lost}");
    }

    #[test]
    fn a_pipe_in_place_of_the_probe_holds_nobody_up() {
        let (_outer, folder, guard) = opened();
        let probe = folder.join(PROBE);
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &probe, fifo, mode, 0).unwrap();
        let looked = |guard: Guard| {
            let (tell, told) = std::sync::mpsc::channel();
            std::thread::spawn(move || tell.send(guard.probe()));
            let lost = told.recv_timeout(Duration::from_secs(10));
            lost.expect("it does not wait for a reader").unwrap_err()
        };
        let lost = looked(guard.clone()).to_string();
        assert!(lost.contains("cannot be"), "{lost}");
        // With somebody at its other end it could be opened, and is no file all the same.
        let reading = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
        let _reader = rustix::fs::open(&probe, reading, rustix::fs::Mode::empty()).unwrap();
        let lost = looked(guard).to_string();
        assert!(lost.contains("cannot be"), "{lost}");
    }

    #[test]
    fn a_disk_without_room_is_not_lost_and_a_read_only_one_is_named() {
        let error = |errno: Errno| io::Error::from(errno);
        assert!(is_out_of_room(&error(Errno::NOSPC)) && is_out_of_room(&error(Errno::DQUOT)));
        assert!(!is_out_of_room(&error(Errno::ROFS)) && !is_out_of_room(&error(Errno::IO)));
        assert_eq!(why(&error(Errno::ROFS)), "the file system is read-only");
    }

    #[test]
    fn a_disk_is_written_to_at_a_pace_and_at_once_while_it_takes_nothing() {
        let (_outer, folder, guard) = opened();
        let mut prober = Prober::new(guard);
        let at = |secs| Monotonic::default().saturating_add(Duration::from_secs(secs));
        let probe = folder.join(PROBE);
        assert_eq!(prober.look(at(0)), Ok(()));
        // A folder stands where the file is to be written.
        fs::remove_file(&probe).unwrap();
        fs::create_dir(&probe).unwrap();
        assert_eq!(prober.look(at(9)), Ok(()));
        assert!(prober.write(at(9)).is_err());
        assert!(prober.look(at(10)).is_err());
        fs::remove_dir(&probe).unwrap();
        assert_eq!(prober.look(at(10)), Ok(()));
        assert!(probe.is_file());
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
