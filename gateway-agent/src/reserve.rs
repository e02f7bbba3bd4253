//! Disk space that is held back so that commands can be journalled, and keys and certificates kept, when everything
//! else has filled the disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tracing::{error, info, warn};
use viworks_runtime::files::{self, FileError};

/// Bytes that are held back.
pub const RESERVE_BYTES: u64 = 16 * 1024 * 1024;

/// The file that holds the space, in the state folder.
pub const FILE: &str = "journal.db.reserve";

/// Bytes that a start has to find: what the databases write while they are opened, and the first session.
const START_BYTES: u64 = 1024 * 1024;

/// The file that holds the space.
#[derive(Debug, Clone)]
pub struct Reserve {
    path: Arc<Path>,
}

impl Reserve {
    /// A reserve at that place; nothing is held back yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path: path.into() }
    }

    /// Holds the space back; false, with a warning, if there is none.
    pub fn set_aside(&self) -> bool {
        match self.allocate() {
            Ok(()) => true,
            Err(error) => {
                warn!(%error, path = %self.path.display(), "no room for the journal's reserve");
                drop(fs::remove_file(&self.path));
                false
            }
        }
    }

    /// Holds the space back again if it was given up and the disk has twice as much: the reserve must not be what
    /// fills it.
    pub fn restore(&self) {
        let has_room = |free: u64| free >= 2 * RESERVE_BYTES;
        if self.path.exists() || !self.free_bytes().is_some_and(has_room) {
            return;
        }
        if self.set_aside() {
            info!(path = %self.path.display(), "the journal's reserve is held back again");
        }
    }

    /// Gives the space up where there is hardly any other; false if there is, or there was none to give.
    pub fn make_room_to_start(&self) -> bool {
        self.is_held() && is_short(self.free_bytes()) && self.give_up()
    }

    /// Gives the space up after a write failed, where it failed for want of room: the disk may have broken, or a quota
    /// may be met, and SQLite does not say which. False where there is room, or none was held back.
    pub fn give_up_if_full(&self) -> bool {
        self.is_held() && self.finds_no_room() && self.give_up()
    }

    /// Bytes that this process could still write there; `None` when nobody can tell.
    fn free_bytes(&self) -> Option<u64> {
        let folder = self.path.parent().unwrap_or(&self.path);
        let disk = statvfs(folder).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Whether the system refuses a little room here, because of the disk or of a quota, which no count of free bytes
    /// shows.
    fn finds_no_room(&self) -> bool {
        let probe = files::with_suffix(&self.path, ".probe");
        // One that a process left when it was killed has its room already.
        drop(fs::remove_file(&probe));
        let tried = files::open_write(&probe).and_then(|file| {
            let tried = fallocate(&file, FallocateFlags::empty(), 0, START_BYTES);
            tried.map_err(|error| FileError::Io {
                action: "allocate",
                path: probe.clone(),
                source: error.into(),
            })
        });
        drop(fs::remove_file(&probe));
        tried.is_err_and(|error| error.is_no_room())
    }

    /// Whether the space is held back.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.path.exists()
    }

    /// Gives the space up; false if there was none to give.
    pub fn give_up(&self) -> bool {
        match fs::remove_file(&self.path) {
            Ok(()) => {
                error!(path = %self.path.display(), "the disk is full: gave up the journal's reserve");
                true
            }
            Err(_none) => false,
        }
    }

    fn allocate(&self) -> std::io::Result<()> {
        let file = files::open_write(&self.path).map_err(std::io::Error::other)?;
        // Real blocks, not a hole: a sparse file would free nothing when it is removed.
        Ok(fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES)?)
    }
}

/// Whether there is less room than a start takes. Where nobody can tell, there may be enough: what is held back is for
/// want of room alone.
fn is_short(free: Option<u64>) -> bool {
    free.is_some_and(|free| free < START_BYTES)
}

/// Writes a small file of the state folder without which a gateway is lost one day, such as a key: when the disk is
/// full, in the room that the reserve gives up.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    written_by(path, || files::write_atomic(path, contents))
}

fn written_by(
    path: &Path,
    mut write: impl FnMut() -> Result<(), FileError>,
) -> Result<(), FileError> {
    let written = write();
    let no_room = written.as_ref().is_err_and(FileError::is_no_room);
    if no_room && Reserve::new(path.with_file_name(FILE)).give_up() {
        return write();
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_reserve_holds_real_blocks_until_it_is_given_up_once() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = Reserve::new(folder.path().join("r"));
        assert!(reserve.set_aside());
        let blocks = fs::metadata(folder.path().join("r")).unwrap().blocks();
        assert!(blocks * 512 >= RESERVE_BYTES);
        assert!(reserve.give_up());
        assert!(!reserve.give_up());
        reserve.restore();
        let back = fs::metadata(folder.path().join("r")).unwrap();
        assert!(back.blocks() * 512 >= RESERVE_BYTES);
        reserve.restore();
        assert_eq!(
            fs::metadata(folder.path().join("r")).unwrap().ino(),
            back.ino()
        );
    }

    #[test]
    fn the_reserve_is_kept_where_a_write_fails_and_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let reserve = Reserve::new(folder.path().join(FILE));
        assert!(!reserve.give_up_if_full(), "there is none");
        assert!(reserve.set_aside());
        assert!(!reserve.give_up_if_full());
        assert!(!reserve.make_room_to_start());
        assert!(reserve.is_held());
        // What was tried is gone.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(is_short(Some(0)) && is_short(Some(START_BYTES - 1)));
        assert!(!is_short(Some(START_BYTES)) && !is_short(None));
        let nowhere = Reserve::new(folder.path().join("missing/reserve"));
        assert_eq!(nowhere.free_bytes(), None);
        assert!(!nowhere.finds_no_room());
    }

    #[test]
    fn a_file_that_finds_no_room_takes_that_of_the_reserve_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("renewal.key");
        let reserve = Reserve::new(folder.path().join(FILE));
        assert!(reserve.set_aside());
        let full = || FileError::Io {
            action: "write",
            path: path.clone(),
            source: std::io::ErrorKind::StorageFull.into(),
        };
        let denied = || FileError::Io {
            action: "write",
            path: path.clone(),
            source: std::io::ErrorKind::PermissionDenied.into(),
        };
        assert!(written_by(&path, || Err(denied())).is_err());
        assert!(reserve.is_held());
        let mut attempts = 0;
        let written = written_by(&path, || {
            attempts += 1;
            if reserve.is_held() {
                Err(full())
            } else {
                Ok(())
            }
        });
        assert!(written.is_ok() && attempts == 2, "{attempts}");
        let mut attempts = 0;
        let refused = written_by(&path, || {
            attempts += 1;
            Err(full())
        });
        assert!(refused.unwrap_err().is_no_room() && attempts == 1);
        write(&path, b"a key").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"a key");
    }
}
