//! Files that must survive a crash, must not be shared, or must not be changed or read by others.
//!
//! Whatever is read or written for a promise goes through here: nothing is opened through a link, and what was opened
//! is judged, with every folder above it. Who could change a file decides whether it is trusted, so its owner counts
//! as much as its mode.

use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    self, AtFlags, CWD, OFlags, RenameFlags, Stat, Statx, StatxAttributes, StatxFlags,
};
use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::random;

mod draft;
mod error;
mod folder;
mod guard;

pub use draft::Draft;
pub use error::{FileError, output_fix, quoted};
pub use folder::{Folder, Owners, is_hidden};
pub use guard::{Guard, Lost, Prober};

use folder::{Holder, Named};

/// Where systemd keeps what it hands to services: root's, whole, and each file opened to the service's user alone.
const CREDENTIALS: &str = "/run/credentials";

/// The largest private file that is read: a key, a token, a certificate chain.
const PRIVATE_BYTES_MAX: u64 = 1024 * 1024;

/// The name of the file that [`lock_folder`] locks.
const LOCK_FILE: &str = ".lock";

/// What SQLite keeps beside a database.
const DATABASE_SUFFIXES: [&str; 4] = ["", "-wal", "-shm", "-journal"];

/// Replaces `path` with `contents`, readable by the owner only: after a crash the old or the new contents are there,
/// whole, and once this returns it is the new ones. A link of that name is replaced, not followed.
///
/// # Errors
///
/// When a step fails; the old file is then still in place.
pub fn write_atomic(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    write_atomic_as(path, contents, 0o600)
}

/// The same with these permissions.
///
/// # Errors
///
/// As [`write_atomic`].
pub fn write_atomic_as(path: &Path, contents: &[u8], mode: u32) -> Result<(), FileError> {
    let (folder, name) = folder_for(path, Holder::Sticky)?;
    let (temporary, _file) = write_beside(&folder, &name, contents, mode)?;
    let written = folder.rename(&temporary, &name);
    if written.is_err() {
        // Best effort: the failure that matters is the one about to be returned.
        drop(folder.remove(&temporary));
    }
    written?;
    folder.sync()
}

/// Replaces `path` with `contents` as [`write_atomic_as`] does, where `may` says so of what has the name; it is not
/// asked where nothing has it. What it judges has lost the name to the new file by then, so that nothing can be moved
/// there between the two; what is refused gets its name back.
///
/// # Errors
///
/// What `may` says, or as [`write_atomic_as`].
pub fn replace_judged(
    path: &Path,
    contents: &[u8],
    mode: u32,
    may: impl FnOnce(&Path) -> Result<(), FileError>,
) -> Result<(), FileError> {
    let (folder, name) = folder_for(path, Holder::Sticky)?;
    let (temporary, file) = write_beside(&folder, &name, contents, mode)?;
    let named = match folder.take_name(&temporary, &name) {
        Ok(Named::Anew) => return folder.sync(),
        Ok(Named::Exchanged) => {
            let before = folder.path().join(&temporary);
            if let Err(refused) = may(&before) {
                give_back(&folder, &temporary, &name, &file)?;
                return Err(refused);
            }
            folder.remove(&temporary)
        }
        // As close to it as such a file system lets it be.
        Ok(Named::Unable) => match may(&folder.path().join(&name)) {
            Err(error) if !error.is_missing() => Err(error),
            Ok(()) | Err(_) => folder.rename(&temporary, &name),
        },
        Err(error) => Err(error),
    };
    if named.is_err() {
        // Best effort, as above.
        drop(folder.remove(&temporary));
    }
    named?;
    folder.sync()
}

/// Gives a name back to what had it before `new`, which goes.
fn give_back(
    folder: &Folder,
    temporary: &OsStr,
    name: &OsStr,
    new: &File,
) -> Result<(), FileError> {
    let given = folder.take_name(temporary, name);
    given.map_err(|error| match error.into_io() {
        Ok((_path, source)) => {
            FileError::io("give its name back to", &folder.asked(temporary))(source)
        }
        Err(error) => error,
    })?;
    // Somebody may have put something there meanwhile: it stays, under the name of a temporary file.
    if folder.is_there(temporary, new) {
        folder.remove(temporary)?;
    }
    folder.sync()
}

/// The folder for a file that is to be made. A path that ends as that of a folder is none of a file.
fn folder_for(path: &Path, holder: Holder) -> Result<(Folder, OsString), FileError> {
    let written = path.as_os_str().as_encoded_bytes();
    if written.ends_with(b"/") || written.ends_with(b"/.") {
        return Err(FileError::NotAFile {
            path: path.to_owned(),
        });
    }
    let held = Folder::holding(path, Owners::RootAndOwn, holder);
    held.map_err(|mut error| {
        // Nothing was to be opened but the way to it.
        if let FileError::Io {
            action, path: at, ..
        } = &mut error
            && *action == "open"
        {
            *action = if at == path { "create" } else { "reach" };
        }
        error
    })
}

/// Makes a file with these contents under a name that nobody looks for, durably.
fn write_beside(
    folder: &Folder,
    name: &OsStr,
    contents: &[u8],
    mode: u32,
) -> Result<(OsString, File), FileError> {
    let suffix = u32::from_ne_bytes(random::bytes());
    let temporary = format!(".{}.{suffix:08x}.tmp", name.to_string_lossy());
    let temporary = OsString::from(temporary);
    let mut file = folder.create_new(&temporary, mode)?;
    let written = file.write_all(contents).and_then(|()| file.sync_all());
    if let Err(source) = written {
        // Best effort, as above.
        drop(folder.remove(&temporary));
        return Err(FileError::io("write", &folder.asked(name))(source));
    }
    Ok((temporary, file))
}

/// Where a file is that a path leads to by links, the last one included: each must be root's or this user's own. It
/// need not be there. A path whose last part is no link is itself.
///
/// # Errors
///
/// When a link is somebody else's, or leads in a circle, or nowhere a file can be.
pub fn led_to(path: &Path) -> Result<PathBuf, FileError> {
    match path.symlink_metadata() {
        Ok(found) if found.is_symlink() => folder::led_to(path, Owners::RootAndOwn),
        Ok(_) | Err(_) => Ok(path.to_owned()),
    }
}

/// Writes a file that must not be there yet, with these permissions, durably.
///
/// # Errors
///
/// When something is there already, a link included, or a step fails; nothing is left then.
pub fn write_new(path: &Path, contents: &[u8], mode: u32) -> Result<(), FileError> {
    let (folder, name) = folder_for(path, Holder::Closed)?;
    let mut file = folder.create_new(&name, mode)?;
    let written = file.write_all(contents).and_then(|()| file.sync_all());
    if let Err(source) = written {
        // Best effort, as above.
        drop(folder.remove(&name));
        return Err(FileError::io("write", path)(source));
    }
    folder.sync()
}

/// Moves a file to a name that nothing has yet, on the same disk; what has the name is never replaced.
///
/// # Errors
///
/// [`FileError::is_taken`] when something has that name, [`FileError::is_missing`] when nothing is there to be moved,
/// or when a step fails.
pub fn move_new(from: &Path, to: &Path) -> Result<(), FileError> {
    let moved = rename_new(CWD, from, to);
    moved.map_err(|error| FileError::io("move", from)(error.into()))
}

/// Renames a file in a folder to a name that nothing has there.
fn rename_new(folder: BorrowedFd<'_>, from: &Path, to: &Path) -> Result<(), Errno> {
    match fs::renameat_with(folder, from, folder, to, RenameFlags::NOREPLACE) {
        // Not every file system can; a second name for a file can be given by all that matter, and replaces nothing.
        Err(Errno::INVAL | Errno::NOSYS) => fs::linkat(folder, from, folder, to, AtFlags::empty())
            .and_then(|()| fs::unlinkat(folder, from, AtFlags::empty())),
        renamed => renamed,
    }
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
/// When it cannot be made, is there and something else than a folder, or others can change it or a folder above it.
pub fn create_private_folder(folder: &Path) -> Result<(), FileError> {
    make_private_folder(folder).map(drop)
}

/// The same; answers which folders this call made itself, for [`remove_made`]: none that was there, or that somebody
/// else made meanwhile.
///
/// # Errors
///
/// As [`create_private_folder`].
pub fn make_private_folder(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    Folder::create(folder, Owners::RootAndOwn).map(Folder::into_made)
}

/// Removes folders that were made for nothing. One in which anything is stays, with those above it.
pub fn remove_made(made: &[PathBuf]) {
    for folder in made.iter().rev() {
        if std::fs::remove_dir(folder).is_err() {
            return;
        }
    }
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
    let opened = Folder::open(folder, Owners::RootAndOwn)?;
    let mut file = opened.open_own(Path::new(LOCK_FILE).as_os_str(), OFlags::RDWR)?;
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

/// The same without a file in it: the folder itself is locked, and does not say by whom.
///
/// # Errors
///
/// [`FileError::Locked`] while another process has it, [`FileError::is_missing`] when it is not there, or was removed
/// on the way to the lock.
pub fn hold_folder(folder: &Path) -> Result<FolderLock, FileError> {
    let file = Folder::open(folder, Owners::RootAndOwn)?.readable()?;
    hold_opened(folder, file)
}

fn hold_opened(folder: &Path, file: File) -> Result<FolderLock, FileError> {
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(FileError::Locked {
                path: folder.to_owned(),
                holder: None,
            });
        }
        Err(TryLockError::Error(source)) => return Err(FileError::io("lock", folder)(source)),
    }
    // Whoever had it before may have removed it between the opening and the lock, and somebody else may have made
    // another one since: the lock of a folder that is gone keeps nobody out.
    let failed = |error: Errno| FileError::io("examine", folder)(error.into());
    let held = fs::fstat(&file).map_err(failed)?;
    let there = fs::stat(folder).map_err(failed)?;
    if (held.st_dev, held.st_ino) != (there.st_dev, there.st_ino) {
        return Err(FileError::io("lock", folder)(Errno::NOENT.into()));
    }
    Ok(FolderLock { _file: file })
}

/// Opens a file to append to it, and makes it for the owner only if it is missing.
///
/// # Errors
///
/// When it is a link or no file, or others can change it, exchange it or put another one into its folder.
pub fn open_append(path: &Path) -> Result<File, FileError> {
    let (folder, name) = Folder::holding(path, Owners::RootAndOwn, Holder::Closed)?;
    folder.open_own(&name, OFlags::WRONLY | OFlags::APPEND)
}

/// Opens a file to write it from its start, and makes it for the owner only if it is missing.
///
/// # Errors
///
/// As [`open_append`].
pub fn open_write(path: &Path) -> Result<File, FileError> {
    let (folder, name) = Folder::holding(path, Owners::RootAndOwn, Holder::Closed)?;
    folder.open_own(&name, OFlags::WRONLY)
}

/// Makes a database's file before SQLite does, which would let others read it, and refuses to have it opened where
/// somebody else could change or exchange it or what SQLite keeps beside it.
///
/// # Errors
///
/// As [`open_append`].
pub fn prepare_database(path: &Path) -> Result<(), FileError> {
    let (folder, name) = Folder::holding(path, Owners::RootAndOwn, Holder::Closed)?;
    for file in database_files(&name) {
        examine_if_there(&folder, &file)?;
    }
    folder.open_own(&name, OFlags::WRONLY).map(drop)
}

/// Whether a database's file is there; refuses, without opening it, what [`prepare_database`] would refuse of it.
///
/// # Errors
///
/// When it or what SQLite keeps beside it is a link or not a file, or others can change it, or exchange it in a folder
/// above it, or nobody can tell.
pub fn examine_database(path: &Path) -> Result<bool, FileError> {
    let (folder, name) = match Folder::holding(path, Owners::RootAndOwn, Holder::Closed) {
        Ok(held) => held,
        Err(error) if error.is_missing() => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut is_there = false;
    for file in database_files(&name) {
        let found = examine_if_there(&folder, &file)?;
        is_there |= found && file == name;
    }
    Ok(is_there)
}

/// Reads a private file whole, and refuses it if others can read or change it, or exchange it in a folder above it.
///
/// # Errors
///
/// When it is missing, a link, not a file, too large, or not private.
pub fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let (folder, name) = Folder::holding(path, Owners::RootAndOwn, Holder::Closed)?;
    let (file, stat) = folder.open_file(&name).map_err(as_private)?;
    check_private(&folder, path, &stat)?;
    read_text(path, file, PRIVATE_BYTES_MAX).map(Zeroizing::new)
}

/// Reads a file of at most `limit` bytes whole, and refuses it if others than root and this user can change it, or
/// exchange it in a folder above it.
///
/// # Errors
///
/// When it is missing, a link, not a file, larger, or others can change it.
pub fn read_trusted(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let (folder, name) = Folder::holding(path, Owners::RootAndOwn, Holder::Closed)?;
    let (file, _) = folder.open_file(&name)?;
    read_text(path, file, limit)
}

/// Reads a file of at most `limit` bytes whole, whoever could change it.
///
/// # Errors
///
/// When it is missing, not a file, or larger.
pub fn read_at_most(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    // A pipe is no file, and would otherwise be waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = fs::open(path, flags, fs::Mode::empty());
    let opened = opened.map_err(|error| FileError::io("open", path)(error.into()))?;
    let file = File::from(opened);
    let metadata = file.metadata().map_err(FileError::io("examine", path))?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile {
            path: path.to_owned(),
        });
    }
    read_text(path, file, limit)
}

/// Whether nothing has this name: no link to something that is missing either.
#[must_use]
pub fn is_absent(path: &Path) -> bool {
    let found = path.symlink_metadata();
    found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// Whether something is mounted there, so that it cannot be renamed.
#[must_use]
pub fn is_mount_point(path: &Path) -> bool {
    let look = |path: &Path| {
        let flags = AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW;
        fs::statx(CWD, path, flags, StatxFlags::empty()).ok()
    };
    let Some(found) = look(path) else {
        return false;
    };
    if found
        .stx_attributes_mask
        .contains(StatxAttributes::MOUNT_ROOT)
    {
        return found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    }
    // A kernel that does not say it: most of what is mounted is another file system.
    let device = |found: &Statx| (found.stx_dev_major, found.stx_dev_minor);
    look(&path.join("..")).is_some_and(|above| device(&above) != device(&found))
}

/// The names in a folder, whoever could change it.
///
/// # Errors
///
/// When it is missing, not a folder, or cannot be listed.
pub fn names(path: &Path) -> Result<Vec<OsString>, FileError> {
    let listed = std::fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = listed.map_err(FileError::io("list", path))?;
    Ok(entries.iter().map(std::fs::DirEntry::file_name).collect())
}

/// Refuses a file that others could change, without reading it.
///
/// # Errors
///
/// When it is missing, a link, not a file, or others can change it, or exchange it in a folder above it.
pub fn examine(path: &Path) -> Result<(), FileError> {
    let (folder, name) = Folder::holding(path, Owners::RootAndOwn, Holder::Closed)?;
    folder.examine(&name).map(drop)
}

/// The same, and refuses a file that others can read.
///
/// # Errors
///
/// As [`examine`], or [`FileError::OthersCanRead`].
pub fn examine_private(path: &Path) -> Result<(), FileError> {
    let (folder, name) = Folder::holding(path, Owners::RootAndOwn, Holder::Closed)?;
    let stat = folder.examine(&name).map_err(as_private)?;
    check_private(&folder, path, &stat)
}

/// Refuses a program that could be exchanged by others than `owners`. Links are followed where they are themselves
/// `owners`', as those of distributions are.
///
/// # Errors
///
/// When it is missing, not a file, or others can change it or exchange something on the way to it.
pub fn examine_program(path: &Path, owners: Owners) -> Result<u32, FileError> {
    folder::resolve_file(path, owners).map(|stat| stat.st_mode & 0o7777)
}

/// Finds out, without changing anything, what would keep this process from using a folder of its own and the files of
/// these names in it; a folder that is missing must be possible to make.
#[must_use]
pub fn examine_state(path: &Path, files: &[&str], databases: &[&str]) -> Vec<FileError> {
    let folder = match Folder::open(path, Owners::RootAndOwn) {
        Ok(folder) => folder,
        Err(error) if error.is_missing() => {
            return examine_creatable(path).err().into_iter().collect();
        }
        Err(error) => return vec![error],
    };
    let mut errors: Vec<FileError> = folder.refuse_unless_writable().err().into_iter().collect();
    let files = files.iter().map(|name| (*name).into());
    let databases = databases
        .iter()
        .flat_map(|name| database_files(name.as_ref()));
    for name in files.chain(databases) {
        let examined = examine_if_there(&folder, &name).and_then(|there| {
            if there {
                folder.refuse_unless_file_writable(&name)
            } else {
                Ok(())
            }
        });
        errors.extend(examined.err());
    }
    errors
}

/// Finds out whether a folder could be made.
///
/// # Errors
///
/// Why not.
pub fn examine_creatable(path: &Path) -> Result<(), FileError> {
    let absolute = std::path::absolute(path).map_err(FileError::io("find", path))?;
    for above in absolute.ancestors().skip(1) {
        match Folder::open_for_new(above) {
            Ok(folder) => return folder.refuse_unless_writable(),
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The path of the other file of a pair, such as a draft: the same with `suffix` behind it.
#[must_use]
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

impl Folder {
    /// A folder in which another one may be made: a sticky one will do.
    fn open_for_new(path: &Path) -> Result<Self, FileError> {
        let below = path.join("new");
        Self::holding(&below, Owners::RootAndOwn, Holder::Sticky).map(|(folder, _)| folder)
    }

    /// Reads a file in it of at most `limit` bytes whole.
    ///
    /// # Errors
    ///
    /// As [`Self::open_file`], or when it is larger.
    pub fn read(&self, name: &OsStr, limit: u64) -> Result<Vec<u8>, FileError> {
        let (file, _) = self.open_file(name)?;
        read_text(&self.asked(name), file, limit)
    }
}

fn database_files(name: &OsStr) -> impl Iterator<Item = OsString> {
    let name = name.to_owned();
    DATABASE_SUFFIXES.iter().map(move |suffix| {
        let mut file = name.clone();
        file.push(suffix);
        file
    })
}

/// Whether there is such a file; refused if others can change it.
fn examine_if_there(folder: &Folder, name: &OsStr) -> Result<bool, FileError> {
    match folder.examine(name) {
        Ok(_) => Ok(true),
        Err(error) if error.is_missing() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Of a private file that others can change: they are not to read it either, and one step mends both.
fn as_private(mut error: FileError) -> FileError {
    if let FileError::OthersCanWrite { is_private, .. } = &mut error {
        *is_private = true;
    }
    error
}

fn check_private(folder: &Folder, path: &Path, stat: &Stat) -> Result<(), FileError> {
    let mode = stat.st_mode & 0o7777;
    let owners = (stat.st_uid, stat.st_gid);
    if mode & 0o077 != 0 && !is_handed_over(folder.path(), owners, mode) {
        return Err(FileError::OthersCanRead {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

/// Whether a file is a credential of systemd: root's, and opened to one user by a list of permissions, which shows as
/// the permission of a group that is root's own.
fn is_handed_over(folder: &Path, owners: (u32, u32), mode: u32) -> bool {
    folder.starts_with(CREDENTIALS) && owners == (0, 0) && mode & 0o7737 == 0o400
}

fn read_text(path: &Path, file: File, limit: u64) -> Result<Vec<u8>, FileError> {
    let mut contents = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut contents)
        .map_err(FileError::io("read", path))?;
    if !u64::try_from(contents.len()).is_ok_and(|length| length <= limit) {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            limit,
        });
    }
    if let Some(encoding) = folder::marked(&contents) {
        return Err(FileError::Marked {
            path: path.to_owned(),
            encoding,
        });
    }
    Ok(contents)
}

#[cfg(test)]
mod tests;
