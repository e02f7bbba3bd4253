//! Why a file cannot be used, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::exit::ExitCode;
use crate::problem::Problem;

/// Why a file could not be used.
#[derive(Debug)]
pub enum FileError {
    /// The operating system refused.
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
    /// Others than the owner can read a file that must be private.
    OthersCanRead {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Others can change a file that decides something, or exchange it in a folder above it.
    OthersCanWrite {
        /// The file, or the folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Whether it is a file that others must not read either.
        is_private: bool,
    },
    /// It belongs to a user who is not trusted with it, and who could change it at any time.
    Owner {
        /// The file, or a folder above it, or a link on the way.
        path: PathBuf,
        /// The user id of its owner.
        owner: u32,
        /// Whether this process's own user would be trusted, or only root.
        own_is_trusted: bool,
    },
    /// It is a link where only the file itself will do.
    Link {
        /// The link.
        path: PathBuf,
    },
    /// It is a folder, a device or something else that is not read like a file.
    NotAFile {
        /// What is there.
        path: PathBuf,
    },
    /// It is a file or something else where a folder is needed.
    NotAFolder {
        /// What is there.
        path: PathBuf,
    },
    /// It is far larger than anything that belongs there.
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound.
        limit: u64,
    },
    /// It begins with a mark of its encoding, which would hide its first line.
    Marked {
        /// The file.
        path: PathBuf,
        /// The encoding.
        encoding: &'static str,
    },
    /// Another process holds the folder.
    Locked {
        /// The folder.
        path: PathBuf,
        /// The process that holds it, as it wrote into the lock file.
        holder: Option<u32>,
    },
}

impl FileError {
    /// Whether there is no room for it, on the disk or for this user.
    #[must_use]
    pub fn is_no_room(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    /// What a process that cannot start because of it ends with, the same for every program: a service manager tries
    /// again what may pass, and not what somebody has to mend.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Locked { .. } => ExitCode::Conflict,
            Self::Io { source, .. } => ExitCode::of_file(source),
            Self::OthersCanRead { .. }
            | Self::OthersCanWrite { .. }
            | Self::Owner { .. }
            | Self::Link { .. }
            | Self::NotAFile { .. }
            | Self::NotAFolder { .. }
            | Self::TooLarge { .. }
            | Self::Marked { .. } => ExitCode::Config,
        }
    }

    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// The file or folder that is to blame.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. }
            | Self::OthersCanRead { path, .. }
            | Self::OthersCanWrite { path, .. }
            | Self::Owner { path, .. }
            | Self::Link { path }
            | Self::NotAFile { path }
            | Self::NotAFolder { path }
            | Self::TooLarge { path, .. }
            | Self::Marked { path, .. }
            | Self::Locked { path, .. } => path,
        }
    }

    /// As a problem of that file or folder.
    #[must_use]
    pub fn problem(&self) -> Problem {
        Problem::of_file(self.path(), self.cause(), self.fix())
    }

    /// What the operating system refused, and where.
    ///
    /// # Errors
    ///
    /// Itself, when it was not the operating system that refused.
    pub fn into_io(self) -> Result<(PathBuf, io::Error), Self> {
        if let Self::Io { path, source, .. } = self {
            Ok((path, source))
        } else {
            Err(self)
        }
    }

    /// Whether nothing is there.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether this user may not.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Whether something has the name already.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists)
    }

    /// What is wrong, in one sentence with the system's own words, without what to do about it.
    #[must_use]
    pub fn cause(&self) -> String {
        match self {
            Self::Io { source, .. } => format!("{}: {source}", self.what()),
            Self::OthersCanRead { .. }
            | Self::OthersCanWrite { .. }
            | Self::Owner { .. }
            | Self::Link { .. }
            | Self::NotAFile { .. }
            | Self::NotAFolder { .. }
            | Self::TooLarge { .. }
            | Self::Marked { .. }
            | Self::Locked { .. } => self.what(),
        }
    }

    /// What to do about it; empty where the cause says it all.
    #[must_use]
    pub fn fix(&self) -> String {
        match self {
            Self::OthersCanRead { path, .. } => format!("run: chmod 600 {}", quoted(path)),
            Self::OthersCanWrite { mode, .. } if mode & 0o1000 != 0 => {
                "use a folder of its own, such as one in there".to_owned()
            }
            Self::OthersCanWrite {
                path, is_private, ..
            } => {
                let mode = if *is_private { "600" } else { "go-w" };
                format!("run: chmod {mode} {}", quoted(path))
            }
            Self::Owner {
                path,
                own_is_trusted,
                owner,
            } => {
                let path = quoted(path);
                let own = rustix::process::geteuid();
                if own.is_root() {
                    // It may be right for the user that a service has, whom a change of owner would lock out.
                    return format!(
                        "if it is user {owner}'s on purpose, run this as that user: setpriv --reuid {owner} --regid {owner} --clear-groups; if it is to be root's, run: chown -h root {path}"
                    );
                }
                if *own_is_trusted {
                    return format!(
                        "it must belong to root or to user {}, as whom this runs; if root is right for it, run: chown -h root {path}",
                        own.as_raw()
                    );
                }
                "it must belong to root: use a folder of root's, or, to try things as a user of your own, set allow_own_commands = \"for_demo_only\" in [executor]".to_owned()
            }
            Self::Link { .. } => {
                "put the file itself in its place, or name what the link leads to".to_owned()
            }
            Self::Marked { .. } => "save it as UTF-8 without a byte-order mark".to_owned(),
            Self::Io { .. }
            | Self::NotAFile { .. }
            | Self::NotAFolder { .. }
            | Self::TooLarge { .. }
            | Self::Locked { .. } => String::new(),
        }
    }

    /// What to do about it where whoever called named the file: something else where it was to be read than where it
    /// was to be made, and nothing where the cause says it.
    #[must_use]
    pub fn named_fix(&self) -> Option<&'static str> {
        match self {
            Self::Io { action, source, .. } if LOOKS.contains(action) => input_fix(source),
            Self::Io { source, .. } => output_fix(source),
            Self::NotAFile { .. } => Some("name a file: not a folder, a device or a pipe"),
            Self::TooLarge { .. } => Some("name the file that is meant: this one is another"),
            Self::OthersCanRead { .. }
            | Self::OthersCanWrite { .. }
            | Self::Owner { .. }
            | Self::Link { .. }
            | Self::NotAFolder { .. }
            | Self::Marked { .. }
            | Self::Locked { .. } => None,
        }
    }

    fn what(&self) -> String {
        let path = self.path().display();
        match self {
            Self::Io { action, .. } => format!("failed to {action} {path}"),
            Self::OthersCanRead { mode, .. } => {
                format!("{path} can be read by others (mode {mode:04o})")
            }
            Self::OthersCanWrite { mode, .. } => {
                format!("{path} can be changed by others (mode {mode:04o})")
            }
            Self::Owner { owner, .. } => {
                format!("{path} belongs to user {owner}, who could change it")
            }
            Self::Link { .. } => format!("{path} is a link, and links are not followed here"),
            Self::NotAFile { .. } => format!("{path} is not a regular file"),
            Self::NotAFolder { .. } => format!("{path} is not a folder"),
            Self::TooLarge { limit, .. } => format!("{path} is larger than {limit} bytes"),
            Self::Marked { encoding, .. } => {
                format!("{path} begins with a byte-order mark ({encoding})")
            }
            Self::Locked { holder, .. } => {
                let holder = holder.map_or_else(
                    || "another process".to_owned(),
                    |pid| format!("process {pid}"),
                );
                format!("{path} is in use by {holder}")
            }
        }
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what())?;
        let fix = self.fix();
        if fix.is_empty() {
            return Ok(());
        }
        write!(f, "; {fix}")
    }
}

impl std::error::Error for FileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        if let Self::Io { source, .. } = self {
            Some(source)
        } else {
            None
        }
    }
}

/// What is done with a file that should be there.
const LOOKS: [&str; 5] = ["open", "read", "read the link", "examine", "list"];

/// What to do about a file that was to be read; nothing where somebody else has to know.
fn input_fix(refused: &io::Error) -> Option<&'static str> {
    let code = ExitCode::of_file(refused);
    if code == ExitCode::Unavailable {
        return Some("see its disk (dmesg), and try again");
    }
    (code == ExitCode::Config).then_some("name a file that is there, and that this user may open")
}

/// What to do about a new file that the operating system refuses; nothing where that is for the caller to know, such as
/// a name that is taken.
#[must_use]
pub fn output_fix(refused: &io::Error) -> Option<&'static str> {
    use io::ErrorKind::{InvalidFilename, QuotaExceeded, StorageFull};
    if refused.kind() == InvalidFilename {
        return Some(
            "name a file with a shorter name, of 200 bytes at most: it has a longer one at first",
        );
    }
    if matches!(refused.kind(), StorageFull | QuotaExceeded) {
        return Some("make room on its disk, or name a place on another one, and try again");
    }
    let code = ExitCode::of_file(refused);
    if code == ExitCode::Unavailable {
        return Some("see its disk (dmesg), or name a place on another one, and try again");
    }
    (code == ExitCode::Config).then_some("name a file in a folder that is there and yours")
}

/// A path as a shell takes it.
#[must_use]
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}
