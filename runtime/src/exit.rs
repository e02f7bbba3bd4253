//! The exit codes, one table for every binary.

use std::fmt;
use std::io;

use rustix::io::Errno;

/// How a process ended, for scripts and service managers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// Everything asked for happened.
    Ok = 0,
    /// Unexpected: a bug or something unclassified.
    Error = 1,
    /// The flags or arguments were wrong.
    Usage = 2,
    /// At least one target ran it and failed.
    Failed = 3,
    /// Not authenticated, or the session expired.
    Login = 4,
    /// The id is unknown, or the selector matched nothing.
    NotFound = 5,
    /// It exists already, is a duplicate, or was changed meanwhile.
    Conflict = 6,
    /// None failed, but at least one target did not answer in time, was offline, or the command expired.
    NoAnswer = 7,
    /// Waiting ended while work was still in progress.
    Pending = 8,
    /// The prompt was answered with no, or would have been needed where there is no terminal for one.
    Declined = 9,
    /// At least one required check failed.
    NoGo = 20,
    /// The backend cannot be reached, or a disk takes nothing: the same may do the next time.
    Unavailable = 69,
    /// Queue full, rate limited or draining: try again.
    Busy = 75,
    /// Authenticated, but the scope is missing.
    Forbidden = 77,
    /// The configuration, or a file that is named, is missing, invalid, incomplete or unsafe; a start was refused.
    Config = 78,
    /// Interrupted from the keyboard.
    Interrupted = 130,
    /// Who read the standard output went away, as `head` does: 128 and SIGPIPE, as for every other program.
    ReaderGone = 141,
}

impl ExitCode {
    /// Every code, in ascending order.
    pub const ALL: [Self; 17] = [
        Self::Ok,
        Self::Error,
        Self::Usage,
        Self::Failed,
        Self::Login,
        Self::NotFound,
        Self::Conflict,
        Self::NoAnswer,
        Self::Pending,
        Self::Declined,
        Self::NoGo,
        Self::Unavailable,
        Self::Busy,
        Self::Forbidden,
        Self::Config,
        Self::Interrupted,
        Self::ReaderGone,
    ];

    /// What a process ends with that the operating system refuses a file or a folder, the same for every program: a
    /// service manager or a script tries again what may pass, and not what somebody has to name otherwise.
    #[must_use]
    pub fn of_file(refused: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        let kind = refused.kind();
        if kind == Kind::AlreadyExists {
            return Self::Conflict;
        }
        let stays = matches!(
            kind,
            Kind::NotFound
                | Kind::PermissionDenied
                | Kind::NotADirectory
                | Kind::IsADirectory
                | Kind::ReadOnlyFilesystem
                | Kind::InvalidInput
                | Kind::InvalidFilename
                | Kind::Unsupported
        );
        if stays {
            return Self::Config;
        }
        // The links on the way lead in a circle; the kind has no name that may be written here.
        if kind == io::Error::from(Errno::LOOP).kind() {
            return Self::Config;
        }
        let is_full = matches!(kind, Kind::StorageFull | Kind::QuotaExceeded);
        if is_full || Errno::from_io_error(refused) == Some(Errno::IO) {
            return Self::Unavailable;
        }
        Self::Error
    }

    /// The number the process ends with.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The stable name, as documented.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Usage => "usage",
            Self::Failed => "failed",
            Self::Login => "login",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::NoAnswer => "no_answer",
            Self::Pending => "pending",
            Self::Declined => "declined",
            Self::NoGo => "no_go",
            Self::Unavailable => "unavailable",
            Self::Busy => "busy",
            Self::Forbidden => "forbidden",
            Self::Config => "config",
            Self::Interrupted => "interrupted",
            Self::ReaderGone => "reader_gone",
        }
    }

    /// When a process ends with it, in one line.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "everything asked for happened",
            Self::Error => "unexpected (a bug or unclassified)",
            Self::Usage => "wrong flags or arguments",
            Self::Failed => "at least one target ran it and failed",
            Self::Login => "not authenticated or session expired",
            Self::NotFound => "id unknown, or the selector matched nothing",
            Self::Conflict => "exists already, duplicate, or changed meanwhile",
            Self::NoAnswer => {
                "none failed, but at least one target did not answer in time, was offline, or expired"
            }
            Self::Pending => "waiting ended, work still in progress",
            Self::Declined => {
                "you said no at the prompt, or a prompt was needed and there was no terminal for it"
            }
            Self::NoGo => "at least one required check failed",
            Self::Unavailable => "backend not reachable, or a disk has no room or fails",
            Self::Busy => "queue full, rate limited or draining: try again",
            Self::Forbidden => "authenticated, but the scope is missing",
            Self::Config => {
                "configuration, or a file that is named, missing, invalid or unsafe: start refused"
            }
            Self::Interrupted => "interrupted with Ctrl-C",
            Self::ReaderGone => "who read the output went away before its end, as head does",
        }
    }
}

impl fmt::Display for ExitCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.number(), self.name())
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_complete_ascending_and_without_twins() {
        let numbers: Vec<_> = ExitCode::ALL.iter().map(|code| code.number()).collect();
        assert_eq!(
            numbers,
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 69, 75, 77, 78, 130, 141]
        );
        let names: std::collections::BTreeSet<_> =
            ExitCode::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), ExitCode::ALL.len());
    }

    #[test]
    fn what_a_file_is_refused_for_is_mended_or_tried_again() {
        let of = |errno: Errno| ExitCode::of_file(&io::Error::from(errno));
        for errno in [
            Errno::NOENT,
            Errno::ACCESS,
            Errno::NOTDIR,
            Errno::ROFS,
            Errno::LOOP,
            Errno::NAMETOOLONG,
        ] {
            assert_eq!(of(errno), ExitCode::Config, "{errno}");
            // As one that says more in its own words.
            let told = io::Error::new(io::Error::from(errno).kind(), "why");
            assert_eq!(ExitCode::of_file(&told), ExitCode::Config, "{errno}");
        }
        for errno in [Errno::NOSPC, Errno::DQUOT, Errno::IO] {
            assert_eq!(of(errno), ExitCode::Unavailable, "{errno}");
        }
        assert_eq!(of(Errno::EXIST), ExitCode::Conflict);
        assert_eq!(of(Errno::MFILE), ExitCode::Error);
    }

    #[test]
    fn a_process_ends_with_the_number_of_its_code() {
        assert_eq!(
            std::process::ExitCode::from(ExitCode::Config),
            std::process::ExitCode::from(78)
        );
        assert_eq!(ExitCode::Config.to_string(), "78 config");
    }
}
