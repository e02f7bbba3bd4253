//! Why a backend could not start, and what its process ends with.

use std::net::SocketAddr;
use std::path::PathBuf;

use viworks_runtime::exit::ExitCode;
use viworks_runtime::files::FileError;
use viworks_runtime::sqlite;

use crate::command::queue::redis;
use crate::config::queue::QueueAddressError;
use crate::data::StoreError;
use crate::data::moving::marker::LeftBehind;
use crate::data::postgres::{self, AddressError};
use crate::pki::site::SiteError;

/// What to do where somebody else has an address, or nobody can.
fn listen_fix(error: &std::io::Error) -> Option<&'static str> {
    let kind = error.kind();
    if kind == std::io::ErrorKind::AddrInUse {
        return Some(
            "another program listens there: `ss -ltnp` says which; end it, or configure another `listen`",
        );
    }
    if kind == std::io::ErrorKind::AddrNotAvailable {
        return Some(
            "no interface of this machine has that address now: `ip address` says which there are; configure one of \
             them as `listen`",
        );
    }
    None
}

/// Why the backend could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another backend uses the folder, or it cannot be used.
    #[error(transparent)]
    Folder(#[from] FileError),
    /// The database cannot be opened.
    #[error("failed to open the database")]
    Database(#[from] sqlite::Error),
    /// The database server cannot be used.
    #[error("failed to open the database {address}")]
    Server {
        /// Which one.
        address: String,
        /// Why.
        #[source]
        source: postgres::Error,
    },
    /// The server's database has no gateway, and the embedded one has.
    #[error(
        "{url} has no gateway yet, and {} has a whole site: move it with `viworks-backend-agent migrate-store --to {url}`, \
         set `url` in [store] back, or move that file away to begin anew",
        file.display()
    )]
    AnotherSite {
        /// The embedded database.
        file: PathBuf,
        /// The server's, as the configuration names it; it holds no secret.
        url: String,
    },
    /// The embedded database is what was left behind by a move.
    #[error(transparent)]
    Moved(#[from] LeftBehind),
    /// The address of the database server cannot be used.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The database does not answer.
    #[error("failed to prepare the database")]
    Store(#[from] StoreError),
    /// The address of the queue cannot be used.
    #[error(transparent)]
    QueueAddress(#[from] QueueAddressError),
    /// The server of the queue cannot be used.
    #[error("failed to open the queue at {address}")]
    Queue {
        /// Which one.
        address: String,
        /// Why.
        #[source]
        source: redis::Error,
    },
    /// The database belongs to another master key.
    #[error(transparent)]
    Site(#[from] SiteError),
    /// An address cannot be listened on.
    #[error("failed to listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl StartError {
    /// What the process ends with.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Folder(error) => error.exit_code(),
            Self::Address(_)
            | Self::QueueAddress(_)
            | Self::AnotherSite { .. }
            | Self::Moved(_)
            | Self::Site(SiteError::OtherMasterKey { .. }) => ExitCode::Config,
            Self::Database(source) if source.is_lasting() => ExitCode::Config,
            Self::Server { source, .. } if source.is_lasting() => ExitCode::Config,
            Self::Queue { source, .. } if source.is_lasting() => ExitCode::Config,
            Self::Server { .. } | Self::Queue { .. } => ExitCode::Unavailable,
            // Whoever has the address may end, and a network come up, while the service manager tries again.
            Self::Listen { source, .. } if listen_fix(source).is_some() => ExitCode::Unavailable,
            Self::Database(_)
            | Self::Store(_)
            | Self::Site(SiteError::Store(_))
            | Self::Listen { .. } => ExitCode::Error,
        }
    }

    /// What to do about an address that cannot be listened on, or a disk without room.
    #[must_use]
    pub fn fix(&self) -> Option<&'static str> {
        match self {
            Self::Listen { source, .. } => listen_fix(source),
            Self::Folder(error) if error.is_no_room() => {
                Some("make room on the disk of [data] state_folder, and try again")
            }
            Self::Folder(_)
            | Self::Database(_)
            | Self::Server { .. }
            | Self::AnotherSite { .. }
            | Self::Moved(_)
            | Self::Address(_)
            | Self::Store(_)
            | Self::QueueAddress(_)
            | Self::Queue { .. }
            | Self::Site(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_an_address_is_no_failure_of_the_database() {
        let wrong = AddressError::Syntax("it cannot be read".to_owned());
        let told = format!("{:#}", anyhow::Error::from(StartError::from(wrong)));
        assert_eq!(
            told,
            "not a URL of a PostgreSQL database: it cannot be read"
        );
        let wrong = StartError::from(QueueAddressError::NoHost);
        let told = format!("{:#}", anyhow::Error::from(wrong));
        assert_eq!(told, "the URL names no host");
    }

    #[test]
    fn a_password_is_named_by_a_key_or_by_a_flag() {
        let told = AddressError::Password.to_string();
        for way in [
            "password_file in [store]",
            "--password-file of migrate-store",
        ] {
            assert!(told.contains(way), "{told}");
        }
    }
}
