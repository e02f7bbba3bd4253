//! Files that must survive a crash, must not be shared, or must not be readable by others.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::random;

/// The largest private file that is read: a key, a token, a certificate chain.
const PRIVATE_BYTES_MAX: u64 = 1024 * 1024;

/// The name of the file that [`lock_folder`] locks.
const LOCK_FILE: &str = ".lock";

/// Why a file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("failed to {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: io::Error,
    },
    /// Others than the owner can read a file that must be private.
    #[error("{} can be read by others (mode {mode:04o}); run: chmod 600 {}", path.display(), path.display())]
    OthersCanRead {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Others than root and this user can change a file that decides something.
    #[error("{} can be changed by others (mode {mode:04o}, owner {owner}); it must belong to root or the agent's user and run: chmod go-w {}", path.display(), path.display())]
    OthersCanWrite {
        /// The file, or its folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The user id of its owner.
        owner: u32,
    },
    /// It is a folder, a device or something else that is not read like a file.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What is there.
        path: PathBuf,
    },
    /// It is far larger than anything that belongs there.
    #[error("{} is larger than {limit} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound.
        limit: u64,
    },
    /// Another process holds the folder.
    #[error("{} is in use by {}", path.display(), holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}")))]
    Locked {
        /// The folder.
        path: PathBuf,
        /// The process that holds it, as it wrote into the lock file.
        holder: Option<u32>,
    },
}

impl FileError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// Replaces `path` with `contents`, readable by the owner only: after a crash the old or the new contents are there,
/// whole, and once this returns it is the new ones.
///
/// # Errors
///
/// When a step fails; the old file is then still in place.
pub fn write_atomic(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    let folder = folder_of(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let suffix = u32::from_ne_bytes(random::bytes());
    let temporary = folder.join(format!(".{name}.{suffix:08x}.tmp"));
    let written = write_new(&temporary, contents)
        .and_then(|()| fs::rename(&temporary, path).map_err(FileError::io("replace", path)));
    if written.is_err() {
        // Best effort: the failure that matters is the one about to be returned.
        drop(fs::remove_file(&temporary));
    }
    written?;
    sync_folder(folder)
}

/// Makes the names in `folder` durable.
///
/// # Errors
///
/// When the folder cannot be opened or synchronised.
pub fn sync_folder(folder: &Path) -> Result<(), FileError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(FileError::io("synchronise", folder))
}

/// Makes `folder` and its parents where missing, with access for the owner only.
///
/// # Errors
///
/// When it cannot be made, or is there and something else than a folder.
pub fn create_private_folder(folder: &Path) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(FileError::io("create the folder", folder))
}

/// Exclusive use of a folder by this process, until dropped or the process dies.
#[derive(Debug)]
#[must_use = "the folder is free again as soon as this is dropped"]
pub struct FolderLock {
    _file: File,
}

/// Takes `folder` for this process alone.
///
/// # Errors
///
/// [`FileError::Locked`] names the process that has it.
pub fn lock_folder(folder: &Path) -> Result<FolderLock, FileError> {
    let path = folder.join(LOCK_FILE);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(FileError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let read = (&file).take(16).read_to_string(&mut holder);
            let holder = read.ok().and_then(|_| holder.trim().parse().ok());
            return Err(FileError::Locked {
                path: folder.to_owned(),
                holder,
            });
        }
        Err(TryLockError::Error(source)) => return Err(FileError::io("lock", &path)(source)),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(FileError::io("write", &path))?;
    Ok(FolderLock { _file: file })
}

/// Reads a private file whole, and refuses it if others can read it. The check is made on the opened file, so that
/// it cannot be exchanged in between.
///
/// # Errors
///
/// When it is missing, not a file, too large, or readable by others.
pub fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let file = File::open(path).map_err(FileError::io("open", path))?;
    let metadata = file.metadata().map_err(FileError::io("examine", path))?;
    check_private(path, &metadata)?;
    read_bounded(path, file, PRIVATE_BYTES_MAX).map(Zeroizing::new)
}

/// Reads a file of at most `limit` bytes whole.
///
/// # Errors
///
/// When it is missing, not a file, or larger.
pub fn read_at_most(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let file = File::open(path).map_err(FileError::io("open", path))?;
    let metadata = file.metadata().map_err(FileError::io("examine", path))?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile {
            path: path.to_owned(),
        });
    }
    read_bounded(path, file, limit)
}

/// The metadata of a regular file.
///
/// # Errors
///
/// When it is missing or something else.
pub fn examine_file(path: &Path) -> Result<fs::Metadata, FileError> {
    let metadata = fs::metadata(path).map_err(FileError::io("examine", path))?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile {
            path: path.to_owned(),
        });
    }
    Ok(metadata)
}

/// Refuses a file that anybody but its owner can read or change.
///
/// # Errors
///
/// [`FileError::OthersCanRead`], or why it could not be examined.
pub fn refuse_if_others_can_read(path: &Path) -> Result<(), FileError> {
    let metadata = fs::metadata(path).map_err(FileError::io("examine", path))?;
    check_private(path, &metadata)
}

/// Refuses a file that anybody but root and this process's user can change, directly or by exchanging it in its
/// folder.
///
/// # Errors
///
/// [`FileError::OthersCanWrite`], or why it could not be examined.
pub fn refuse_if_others_can_write(path: &Path) -> Result<(), FileError> {
    let real = fs::canonicalize(path).map_err(FileError::io("examine", path))?;
    check_unwritable(&real)?;
    check_unwritable(folder_of(&real))
}

fn check_unwritable(path: &Path) -> Result<(), FileError> {
    let metadata = fs::metadata(path).map_err(FileError::io("examine", path))?;
    let mode = metadata.permissions().mode();
    let owner = metadata.uid();
    let trusted = owner == 0 || owner == rustix::process::geteuid().as_raw();
    // In a sticky folder nobody can remove or rename what belongs to somebody else.
    let sticky = metadata.is_dir() && mode & 0o1000 != 0;
    if !trusted || (mode & 0o022 != 0 && !sticky) {
        return Err(FileError::OthersCanWrite {
            path: path.to_owned(),
            mode: mode & 0o7777,
            owner,
        });
    }
    Ok(())
}

fn check_private(path: &Path, metadata: &fs::Metadata) -> Result<(), FileError> {
    if !metadata.is_file() {
        return Err(FileError::NotAFile {
            path: path.to_owned(),
        });
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::OthersCanRead {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

fn read_bounded(path: &Path, file: File, limit: u64) -> Result<Vec<u8>, FileError> {
    let mut contents = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut contents)
        .map_err(FileError::io("read", path))?;
    if u64::try_from(contents.len()).is_ok_and(|length| length <= limit) {
        return Ok(contents);
    }
    Err(FileError::TooLarge {
        path: path.to_owned(),
        limit,
    })
}

fn write_new(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(FileError::io("create", path))?;
    file.write_all(contents)
        .and_then(|()| file.sync_all())
        .map_err(FileError::io("write", path))
}

/// The folder that holds `path`; a bare name stands in the working folder.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn an_atomic_write_replaces_the_contents_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        write_atomic(&path, b"old").unwrap();
        write_atomic(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_atomic_write_keeps_the_old_contents_and_cleans_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        let error = write_atomic(&path, b"new").unwrap_err();
        assert!(
            matches!(
                error,
                FileError::Io {
                    action: "replace",
                    ..
                }
            ),
            "{error:?}"
        );
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_second_lock_names_the_process_that_has_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock_folder(folder.path()).unwrap();
        let error = lock_folder(folder.path()).unwrap_err();
        let holder = std::process::id();
        assert!(
            error
                .to_string()
                .ends_with(&format!("is in use by process {holder}")),
            "{error}"
        );
        drop(first);
        drop(lock_folder(folder.path()).unwrap());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        fs::write(&path, "secret").unwrap();
        for mode in [0o640, 0o604, 0o610, 0o602] {
            set_mode(&path, mode);
            assert!(
                matches!(read_private(&path), Err(FileError::OthersCanRead { mode: found, .. }) if found == mode)
            );
            assert!(refuse_if_others_can_read(&path).is_err());
        }
        set_mode(&path, 0o400);
        assert_eq!(read_private(&path).unwrap().as_slice(), b"secret");
        refuse_if_others_can_read(&path).unwrap();
    }

    #[test]
    fn a_folder_is_not_a_key() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            read_private(folder.path()),
            Err(FileError::NotAFile { .. })
        ));
    }

    #[test]
    fn a_file_others_can_change_is_refused_and_so_is_one_in_such_a_folder() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("commands.d");
        fs::create_dir(&folder).unwrap();
        let path = folder.join("commands.toml");
        fs::write(&path, "").unwrap();
        set_mode(&folder, 0o755);
        set_mode(&path, 0o644);
        refuse_if_others_can_write(&path).unwrap();
        set_mode(&path, 0o664);
        assert!(matches!(
            refuse_if_others_can_write(&path),
            Err(FileError::OthersCanWrite { mode: 0o664, .. })
        ));
        set_mode(&path, 0o644);
        set_mode(&folder, 0o777);
        assert!(matches!(
            refuse_if_others_can_write(&path),
            Err(FileError::OthersCanWrite { mode: 0o777, .. })
        ));
        set_mode(&folder, 0o1777);
        refuse_if_others_can_write(&path).unwrap();
    }

    #[test]
    fn a_file_above_the_limit_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("big");
        fs::write(&path, [0; 11]).unwrap();
        assert!(matches!(
            read_at_most(&path, 10),
            Err(FileError::TooLarge { limit: 10, .. })
        ));
        assert_eq!(read_at_most(&path, 11).unwrap().len(), 11);
    }
}
