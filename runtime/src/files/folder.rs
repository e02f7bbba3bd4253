//! A folder that only trusted users can change, reached and used without following anybody else's links.
//!
//! Looking first and opening by name afterwards is a race with whoever can write a folder on the way. So the way is
//! walked once, from the root, each folder opened beneath the one before it and judged as it was opened; what is done
//! in the last one is done relative to the open folder.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;
use viworks_common::group::Accounts;

use super::error::FileError;

/// Links on one way; more are a circle.
const LINKS_MAX: usize = 40;

/// In a folder with this bit nobody can remove or rename what belongs to somebody else.
const STICKY: u32 = 0o1000;

/// Where lists of permissions beyond the mode are kept.
const LISTS: [&str; 2] = ["system.posix_acl_access", "system.nfs4_acl"];

/// Whose files are trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// Root's only.
    Root,
    /// Root's, and those of the user that this process runs as.
    RootAndOwn,
}

impl Owners {
    fn trust(self, owner: u32) -> bool {
        match self {
            Self::Root => owner == 0,
            Self::RootAndOwn => owner == 0 || owner == rustix::process::geteuid().as_raw(),
        }
    }

    fn refuse_owner(self, path: &Path, stat: &Stat) -> Result<(), FileError> {
        if self.trust(stat.st_uid) {
            return Ok(());
        }
        Err(FileError::Owner {
            path: path.to_owned(),
            owner: stat.st_uid,
            own_is_trusted: self == Self::RootAndOwn,
        })
    }

    /// Refuses what anybody else could change.
    pub(super) fn refuse(self, path: &Path, stat: &Stat) -> Result<(), FileError> {
        self.refuse_owner(path, stat)?;
        refuse_writable(path, stat)
    }
}

/// Something may come to a name, or go, between two looks at it; more often than this it does not by chance.
const NAMINGS_MAX: usize = 16;

/// How a file got its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    /// Nothing had the name.
    Anew,
    /// What had the name has the other one now.
    Exchanged,
    /// It did not: such a file system can neither exchange names nor leave alone what has one.
    Unable,
}

/// What is asked of the folder in which something lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// Nobody else may write it, sticky or not: in a sticky folder others can still add names.
    Closed,
    /// A sticky one will do, for a file that is made there anew and is then nobody else's to exchange.
    Sticky,
}

/// An open folder, with every folder above it judged.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    path: PathBuf,
    /// As it was asked for, which is what problems with its files name.
    asked: PathBuf,
    owners: Owners,
    made: Vec<PathBuf>,
}

impl Folder {
    /// Opens a folder that nobody but `owners` can change, directly or through a folder above it; above it, a folder
    /// that all may write must be sticky, as `/tmp` is. Links to folders are followed when they belong to `owners`
    /// themselves, as `/var/run` does.
    ///
    /// # Errors
    ///
    /// When it is missing, not a folder, or somebody else could change or exchange it.
    pub fn open(path: &Path, owners: Owners) -> Result<Self, FileError> {
        walk(path, owners, Holder::Closed, false)
    }

    /// The same, with what is missing made, for the owner only.
    ///
    /// # Errors
    ///
    /// As [`Self::open`], or when it cannot be made.
    pub fn create(path: &Path, owners: Owners) -> Result<Self, FileError> {
        walk(path, owners, Holder::Closed, true)
    }

    /// What was not there before, of it and of those above it: made by this call itself, and by nobody else meanwhile;
    /// the one that is farthest above first.
    pub(super) fn into_made(self) -> Vec<PathBuf> {
        self.made
    }

    /// The folder in which `path` lies, and the name that it has there.
    pub(super) fn holding(
        path: &Path,
        owners: Owners,
        holder: Holder,
    ) -> Result<(Self, OsString), FileError> {
        let name = path.file_name().ok_or_else(|| FileError::NotAFile {
            path: path.to_owned(),
        })?;
        let above = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        };
        let walked = walk(above, owners, holder, false);
        if walked.as_ref().is_err_and(FileError::is_missing) {
            // The file is missing, whichever folder it misses.
            return Err(FileError::io("open", path)(Errno::NOENT.into()));
        }
        let mut folder = walked?;
        folder.asked = path.parent().map(Path::to_owned).unwrap_or_default();
        Ok((folder, name.to_owned()))
    }

    /// Where it is, without the links on the way.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder itself, whatever has its name meanwhile.
    pub(super) fn place(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The path of a file in it, as problems name it.
    #[must_use]
    pub fn asked(&self, name: &OsStr) -> PathBuf {
        self.asked.join(name)
    }

    /// The names in it.
    ///
    /// # Errors
    ///
    /// When it cannot be listed.
    pub fn names(&self) -> Result<Vec<OsString>, FileError> {
        let failed = |error: Errno| FileError::io("list", &self.path)(error.into());
        let opened = fs::openat(&self.fd, ".", FOLDER | OFlags::RDONLY, Mode::empty());
        let listed = opened.and_then(fs::Dir::read_from);
        let mut names = Vec::new();
        for entry in listed.map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name.to_vec()));
            }
        }
        Ok(names)
    }

    /// Opens a file to be read, and refuses one that somebody else could change.
    ///
    /// # Errors
    ///
    /// When it is missing, a link or no regular file, or its owner or mode lets somebody else change it.
    pub fn open_file(&self, name: &OsStr) -> Result<(File, Stat), FileError> {
        let file = self.open_as(name, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let stat = self.judge(name, &file)?;
        Ok((file, stat))
    }

    /// Opens or makes a file of its own to be written, private to this user if it is made.
    pub(super) fn open_own(&self, name: &OsStr, flags: OFlags) -> Result<File, FileError> {
        let file = self.open_as(name, flags | OFlags::CREATE | OFlags::NONBLOCK)?;
        self.judge(name, &file)?;
        Ok(file)
    }

    /// Makes a file that must not be there yet, with these permissions.
    pub(super) fn create_new(&self, name: &OsStr, mode: u32) -> Result<File, FileError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | LEAF;
        fs::openat(&self.fd, name, flags, Mode::from_raw_mode(mode))
            .map(File::from)
            .map_err(|error| FileError::io("create", &self.asked.join(name))(error.into()))
    }

    /// What is there, without reading it: for those who may not. A link is refused.
    pub(super) fn examine(&self, name: &OsStr) -> Result<Stat, FileError> {
        let file = self.open_as(name, OFlags::PATH)?;
        self.judge(name, &file)
    }

    pub(super) fn rename(&self, from: &OsStr, to: &OsStr) -> Result<(), FileError> {
        fs::renameat(&self.fd, from, &self.fd, to)
            .map_err(|error| FileError::io("replace", &self.asked.join(to))(error.into()))
    }

    /// Gives a file a name without taking it from anything that is not kept: what has it gets the other one.
    pub(super) fn take_name(&self, from: &OsStr, to: &OsStr) -> Result<Named, FileError> {
        let rename = |flags| fs::renameat_with(&self.fd, from, &self.fd, to, flags);
        let refused = |error: Errno| FileError::io("replace", &self.asked.join(to))(error.into());
        for _ in 0..NAMINGS_MAX {
            match rename(RenameFlags::EXCHANGE) {
                Ok(()) => return Ok(Named::Exchanged),
                Err(Errno::NOENT) => {}
                Err(Errno::INVAL | Errno::NOSYS) => return Ok(Named::Unable),
                Err(error) => return Err(refused(error)),
            }
            match rename(RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(Named::Anew),
                Err(Errno::EXIST) => {}
                Err(Errno::INVAL | Errno::NOSYS) => return Ok(Named::Unable),
                Err(error) => return Err(refused(error)),
            }
        }
        Err(refused(Errno::BUSY))
    }

    /// Whether a name is that of an open file.
    pub(super) fn is_there(&self, name: &OsStr, file: &File) -> bool {
        let named = fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        let (Ok(named), Ok(opened)) = (named, fs::fstat(file)) else {
            return false;
        };
        (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)
    }

    pub(super) fn remove(&self, name: &OsStr) -> Result<(), FileError> {
        fs::unlinkat(&self.fd, name, AtFlags::empty())
            .map_err(|error| FileError::io("remove", &self.asked.join(name))(error.into()))
    }

    /// Makes the names in it durable.
    pub(super) fn sync(&self) -> Result<(), FileError> {
        let synced = self.readable()?.sync_all();
        synced.map_err(FileError::io("synchronise", &self.path))
    }

    /// The folder itself, open for what cannot be done with a mere place.
    pub(super) fn readable(&self) -> Result<File, FileError> {
        fs::openat(&self.fd, ".", FOLDER | OFlags::RDONLY, Mode::empty())
            .map(File::from)
            .map_err(|error| FileError::io("open", &self.path)(error.into()))
    }

    /// Refuses a folder in which this process cannot make files.
    pub(super) fn refuse_unless_writable(&self) -> Result<(), FileError> {
        self.refuse_access(OsStr::new("."), "write to", &self.path)
    }

    /// Refuses a file that this process cannot change.
    pub(super) fn refuse_unless_file_writable(&self, name: &OsStr) -> Result<(), FileError> {
        self.refuse_access(name, "write to", &self.asked.join(name))
    }

    fn refuse_access(
        &self,
        name: &OsStr,
        action: &'static str,
        path: &Path,
    ) -> Result<(), FileError> {
        fs::accessat(&self.fd, name, fs::Access::WRITE_OK, AtFlags::EACCESS)
            .map_err(|error| FileError::io(action, path)(error.into()))
    }

    fn open_as(&self, name: &OsStr, flags: OFlags) -> Result<File, FileError> {
        let path = || self.asked.join(name);
        match fs::openat(&self.fd, name, flags | LEAF, Mode::from_raw_mode(0o600)) {
            Ok(fd) => Ok(File::from(fd)),
            Err(Errno::LOOP) => Err(FileError::Link { path: path() }),
            // A socket, or a device without a driver.
            Err(Errno::NXIO) => Err(FileError::NotAFile { path: path() }),
            Err(error) => Err(FileError::io("open", &path())(error.into())),
        }
    }

    /// Judges what was opened, so that it cannot be exchanged in between.
    fn judge(&self, name: &OsStr, file: &File) -> Result<Stat, FileError> {
        let path = self.asked.join(name);
        let stat = stat(file, &path)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::Symlink => return Err(FileError::Link { path }),
            FileType::Directory
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => return Err(FileError::NotAFile { path }),
        }
        self.owners.refuse(&path, &stat)?;
        Ok(stat)
    }
}

/// Judges a program that is executed by its path: links on the way, the last one included, are followed where they
/// belong to `owners` and lie where nobody else can exchange them.
pub(super) fn resolve_file(path: &Path, owners: Owners) -> Result<Stat, FileError> {
    let (_, found, stat) = step_through(path, owners, true, &mut |_, _, _, _| Ok(false))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(FileError::NotAFile { path: found });
    }
    owners.refuse(&found, &stat)?;
    let above = found.parent().unwrap_or_else(|| Path::new("/"));
    walk(above, owners, Holder::Closed, false)?;
    Ok(stat)
}

/// The place that a path leads to, without the links on the way, the last one included: each belongs to `owners`.
pub(super) fn led_to(path: &Path, owners: Owners) -> Result<PathBuf, FileError> {
    let mut free = None;
    let found = step_through(path, owners, true, &mut |_, _, place, is_last| {
        if is_last {
            free = Some(place.to_owned());
        }
        Ok(false)
    });
    match (found, free) {
        (Ok((_, found, _)), _) => Ok(found),
        (Err(error), Some(free)) if error.is_missing() => Ok(free),
        (Err(error), _) => Err(error),
    }
}

/// How every folder is opened: neither read nor written, and never through a link.
const FOLDER: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// How every file is opened.
const LEAF: OFlags = OFlags::NOFOLLOW
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOCTTY);

fn walk(asked: &Path, owners: Owners, holder: Holder, create: bool) -> Result<Folder, FileError> {
    let mut made = Vec::new();
    let mut make = |above: &OwnedFd, name: &OsStr, path: &Path, _is_last: bool| {
        if !create {
            return Ok(false);
        }
        match fs::mkdirat(above, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {
                made.push(path.to_owned());
                Ok(true)
            }
            // Made by somebody else meanwhile: judged like any other.
            Err(Errno::EXIST) => Ok(true),
            Err(error) => Err(FileError::io("create the folder", path)(error.into())),
        }
    };
    let (fd, path, stat) = step_through(asked, owners, false, &mut make)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(FileError::NotAFolder { path });
    }
    if holder == Holder::Closed || stat.st_mode & STICKY == 0 {
        refuse_writable_folder(&fd, &path, &stat)?;
    }
    Ok(Folder {
        fd,
        path,
        asked: asked.to_owned(),
        owners,
        made,
    })
}

/// Called with the folder above, the name in it, its whole path, and whether it is the last part, where nothing is
/// there; true when it is there now.
type Missing<'a> = dyn FnMut(&OwnedFd, &OsStr, &Path, bool) -> Result<bool, FileError> + 'a;

/// Goes from the root to `path`, and opens and judges every folder above it. The last part is opened, as far as that
/// takes no permission, and is for the caller to judge.
fn step_through(
    path: &Path,
    owners: Owners,
    last_may_be_file: bool,
    missing: &mut Missing<'_>,
) -> Result<(OwnedFd, PathBuf, Stat), FileError> {
    let absolute = std::path::absolute(path).map_err(FileError::io("find", path))?;
    let mut parts = components(&absolute);
    let mut links = 0;
    let (mut above, mut at, mut judged) = root(owners)?;
    while let Some(name) = parts.pop_front() {
        let next = at.join(&name);
        let opened = open_part(&above, &name, &next, parts.is_empty(), missing)?;
        let stat = stat(&opened, &next)?;
        owners.refuse_owner(&next, &stat)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Symlink {
            links += 1;
            if links > LINKS_MAX {
                return Err(FileError::io("open", path)(Errno::LOOP.into()));
            }
            let target = fs::readlinkat(&opened, "", Vec::new())
                .map_err(|error| FileError::io("read the link", &next)(error.into()))?;
            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
            if target.is_absolute() {
                (above, at, judged) = root(owners)?;
            }
            for part in components(&target).into_iter().rev() {
                parts.push_front(part);
            }
            continue;
        }
        let is_last = parts.is_empty();
        if kind != FileType::Directory && !(is_last && last_may_be_file) {
            return Err(FileError::NotAFolder { path: next });
        }
        if !is_last && stat.st_mode & STICKY == 0 {
            refuse_writable_folder(&opened, &next, &stat)?;
        }
        at = if name == ".." {
            at.parent()
                .map_or_else(|| PathBuf::from("/"), Path::to_owned)
        } else {
            next
        };
        (above, judged) = (opened, stat);
    }
    Ok((above, at, judged))
}

fn root(owners: Owners) -> Result<(OwnedFd, PathBuf, Stat), FileError> {
    let path = PathBuf::from("/");
    let fd = fs::openat(CWD, "/", FOLDER | OFlags::PATH, Mode::empty())
        .map_err(|error| FileError::io("open", &path)(error.into()))?;
    let found = stat(&fd, &path)?;
    owners.refuse_owner(&path, &found)?;
    if found.st_mode & STICKY == 0 {
        refuse_writable(&path, &found)?;
    }
    Ok((fd, path, found))
}

fn open_part(
    above: &OwnedFd,
    name: &OsStr,
    path: &Path,
    is_last: bool,
    missing: &mut Missing<'_>,
) -> Result<OwnedFd, FileError> {
    let open = || {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fs::openat(above, name, flags, Mode::empty())
    };
    let opened = match open() {
        Err(Errno::NOENT) if missing(above, name, path, is_last)? => open(),
        opened => opened,
    };
    opened.map_err(|error| FileError::io("open", path)(error.into()))
}

/// The parts of a path that lead somewhere.
fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

fn stat(file: impl std::os::fd::AsFd, path: &Path) -> Result<Stat, FileError> {
    fs::fstat(file).map_err(|error| FileError::io("examine", path)(io::Error::from(error)))
}

/// Refuses a folder that others can write. The private group of this process's own user is nobody else.
fn refuse_writable_folder(fd: &OwnedFd, path: &Path, stat: &Stat) -> Result<(), FileError> {
    let refused = refuse_writable(path, stat);
    if refused.is_err() && stat.st_mode & 0o002 == 0 && is_own_groups_alone(fd, stat) {
        return Ok(());
    }
    refused
}

/// Whether whoever may write a folder as its group is for certain this process's user, who is not root.
fn is_own_groups_alone(fd: &OwnedFd, stat: &Stat) -> bool {
    let me = rustix::process::geteuid();
    if me.is_root() || stat.st_uid != me.as_raw() || stat.st_gid != stat.st_uid {
        return false;
    }
    // With such a list the group's bits are the most that anybody in it may do, and say nothing about the group.
    let itself = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let has_list = LISTS.iter().any(|name| {
        let mut nothing = [0_u8; 0];
        let found = fs::getxattr(itself.as_str(), *name, &mut nothing[..]);
        !matches!(found, Err(Errno::NODATA | Errno::NOTSUP))
    });
    let read = |path: &str| std::fs::read_to_string(path);
    let (Ok(passwd), Ok(group)) = (read("/etc/passwd"), read("/etc/group")) else {
        return false;
    };
    let nsswitch = match read("/etc/nsswitch.conf") {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(_unreadable) => return false,
    };
    let accounts = Accounts {
        passwd: &passwd,
        group: &group,
        nsswitch: &nsswitch,
    };
    !has_list && accounts.are_private(stat.st_uid)
}

fn refuse_writable(path: &Path, stat: &Stat) -> Result<(), FileError> {
    if stat.st_mode & 0o022 == 0 {
        return Ok(());
    }
    Err(FileError::OthersCanWrite {
        path: path.to_owned(),
        mode: stat.st_mode & 0o7777,
        is_private: false,
    })
}

/// Whether bytes begin with a mark of their encoding, which every parser takes for something else.
pub(super) fn marked(contents: &[u8]) -> Option<&'static str> {
    let marks: [(&[u8], &'static str); 3] = [
        (&[0xef, 0xbb, 0xbf], "UTF-8"),
        (&[0xff, 0xfe], "UTF-16"),
        (&[0xfe, 0xff], "UTF-16"),
    ];
    marks
        .into_iter()
        .find(|(mark, _)| contents.starts_with(mark))
        .map(|(_, encoding)| encoding)
}

/// Whether a name is hidden, as drafts and editors' files are.
#[must_use]
pub fn is_hidden(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".")
}
