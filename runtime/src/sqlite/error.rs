//! What can go wrong in the database, by what the caller can do about it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::MigrateError;
use crate::files::FileError;
use crate::migrations::Mismatch;

/// A failure of the database. It can be cloned, because a failed commit fails every job in it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The page limit or the disk: free something and try again.
    ///
    /// What SQLite tells of it is the same once more, and its number.
    #[error("the database is full")]
    Full(Arc<rusqlite::Error>),
    /// Another process holds the file: try again.
    #[error("the database is locked by another process")]
    Busy(#[source] Arc<rusqlite::Error>),
    /// All readers were busy for too long: try again.
    #[error("no reader became free in time")]
    ReadersBusy,
    /// It took longer than it may: ask for less, or again when there is less to do.
    #[error("it took longer than it may")]
    TooLong(#[source] Arc<rusqlite::Error>),
    /// The statement would have broken a rule of the schema.
    #[error("a constraint of the schema refused the statement: {kind:?} {names}")]
    Constraint {
        /// The kind of rule.
        kind: Constraint,
        /// The columns (`table.column, …`) or the name of the check; empty for a foreign key.
        names: String,
        /// As SQLite tells it.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// The file is damaged or is no database.
    #[error("the database {} is damaged, or is no SQLite database", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// As SQLite tells it.
        #[source]
        source: Arc<rusqlite::Error>,
    },
    /// The disk failed.
    #[error("failed to read or write the database file")]
    Io(#[source] Arc<rusqlite::Error>),
    /// The file cannot be opened or made, or the system has no thread for it.
    #[error("failed to open the database {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// Others could change the file or exchange it.
    #[error(transparent)]
    Unsafe(Arc<FileError>),
    /// Another program has migrated the file, and changed what this one needs or gone on without it; going back needs a
    /// backup.
    #[error(transparent)]
    SchemaTooNew(Mismatch),
    /// The schema cannot be brought up to date.
    #[error("failed to migrate the database schema")]
    Migrate(#[source] Arc<MigrateError>),
    /// The linked SQLite has known faults.
    #[error("SQLite {found} is too old, {needed} or later is needed")]
    LibraryTooOld {
        /// The linked version.
        found: String,
        /// The oldest that will do.
        needed: String,
    },
    /// SQLite did not take a setting that durability rests on.
    #[error("the database setting {setting} is {found}, but must be {needed}")]
    Setting {
        /// The pragma.
        setting: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        needed: &'static str,
    },
    /// The job panicked; nothing of it remains.
    #[error("a database job panicked")]
    Panicked,
    /// The database was closed.
    #[error("the database is closed")]
    Closed,
    /// Anything else, most likely a bug.
    #[error("the database failed")]
    Other(#[source] Arc<rusqlite::Error>),
}

/// The kinds of rules a schema has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Constraint {
    /// A unique index.
    Unique,
    /// The primary key or the row id.
    PrimaryKey,
    /// A reference to another table.
    ForeignKey,
    /// A column that must have a value.
    NotNull,
    /// A check expression.
    Check,
    /// A trigger, a data type, or one that SQLite added since.
    Other,
}

impl Error {
    /// Whether a rule of this kind refused a statement; for answers such as "exists already".
    #[must_use]
    pub fn is_constraint(&self, wanted: Constraint) -> bool {
        matches!(self, Self::Constraint { kind, .. } if *kind == wanted)
    }

    /// Whether it is about what it was given and not about the file: the same with something else may work.
    #[must_use]
    pub fn is_about_what_it_was_given(&self) -> bool {
        match self {
            Self::Constraint { .. } | Self::Panicked => true,
            // Too large for a row, or not of the type that is wanted.
            Self::Other(source) => {
                let code = source.sqlite_error().map(|error| error.extended_code);
                matches!(code.map(|code| code & 0xff), Some(18 | 20))
            }
            Self::Full(_)
            | Self::Busy(_)
            | Self::ReadersBusy
            | Self::TooLong(_)
            | Self::Corrupt { .. }
            | Self::Io(_)
            | Self::Open { .. }
            | Self::Unsafe(_)
            | Self::SchemaTooNew(_)
            | Self::Migrate(_)
            | Self::LibraryTooOld { .. }
            | Self::Setting { .. }
            | Self::Closed => false,
        }
    }

    /// Whether SQLite answered it to a statement: what it says may be a trigger's words, or about what one names.
    #[must_use]
    pub const fn is_an_answer(&self) -> bool {
        matches!(self, Self::Constraint { .. } | Self::Other(_))
    }

    /// By which code SQLite refused something: no value is in it, as there may be in what a trigger says.
    #[must_use]
    pub fn refused_by(&self) -> Option<String> {
        let (Self::Constraint { source, .. } | Self::Other(source)) = self else {
            return None;
        };
        let code = source.sqlite_error()?.extended_code;
        Some(code.to_string())
    }

    /// Whether the same may work a little later without anybody doing anything.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Busy(_) | Self::ReadersBusy)
    }

    /// Whether it stays until somebody changes the program, the file or its place: a process that ends by it is not
    /// worth another start.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Unsafe(_)
            | Self::SchemaTooNew { .. }
            | Self::Corrupt { .. }
            | Self::LibraryTooOld { .. }
            | Self::Setting { .. } => true,
            Self::Migrate(error) => match &**error {
                MigrateError::Mismatch(_) => true,
                // A disk that is full now, or a lock, is none of the statements' doing.
                MigrateError::Failed { source, .. } => {
                    let code = source.sqlite_error().map(|error| error.extended_code);
                    !matches!(code.map(|code| code & 0xff), Some(5 | 6 | 8 | 10 | 13 | 14))
                }
            },
            Self::Full(_)
            | Self::Busy(_)
            | Self::ReadersBusy
            | Self::TooLong(_)
            | Self::Constraint { .. }
            | Self::Io(_)
            | Self::Open { .. }
            | Self::Panicked
            | Self::Closed
            | Self::Other(_) => false,
        }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        let Some(code) = error.sqlite_error().map(|error| error.extended_code) else {
            return Self::Other(Arc::new(error));
        };
        // The low byte is the primary result code, the rest says more about it.
        match code & 0xff {
            5 | 6 => Self::Busy(Arc::new(error)),
            9 => Self::TooLong(Arc::new(error)),
            8 | 10 | 14 => Self::Io(Arc::new(error)),
            11 | 26 => Self::Corrupt {
                // Who knows the file says it: `in_file`.
                path: PathBuf::from("file"),
                source: Arc::new(error),
            },
            13 => Self::Full(Arc::new(error)),
            19 => Self::constraint(code, error),
            _ => Self::Other(Arc::new(error)),
        }
    }
}

impl Error {
    /// What SQLite says of a file.
    pub(super) fn of(error: rusqlite::Error, file: &Path) -> Self {
        Self::from(error).in_file(file)
    }

    /// The same, with the file that is damaged: somebody has to put another one in its place.
    pub(super) fn in_file(self, file: &Path) -> Self {
        let Self::Corrupt { source, .. } = self else {
            return self;
        };
        Self::Corrupt {
            path: file.to_owned(),
            source,
        }
    }

    fn constraint(code: i32, error: rusqlite::Error) -> Self {
        let kind = match code >> 8 {
            1 => Constraint::Check,
            3 => Constraint::ForeignKey,
            5 => Constraint::NotNull,
            6 | 10 => Constraint::PrimaryKey,
            8 => Constraint::Unique,
            _ => Constraint::Other,
        };
        let message = error.to_string();
        let names = message
            .split_once("constraint failed: ")
            .map_or("", |(_, names)| names)
            .to_owned();
        Self::Constraint {
            kind,
            names,
            source: Arc::new(error),
        }
    }

    pub(super) fn no_thread(path: PathBuf, error: std::io::Error) -> Self {
        Self::Open {
            path,
            source: Arc::new(error),
        }
    }
}

impl From<FileError> for Error {
    fn from(error: FileError) -> Self {
        match error.into_io() {
            Ok((path, source)) => Self::Open {
                path,
                source: Arc::new(source),
            },
            Err(error) => Self::Unsafe(Arc::new(error)),
        }
    }
}
