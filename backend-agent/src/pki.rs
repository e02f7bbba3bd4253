//! The product's own authority: who may be a gateway, and what a gateway and a backend need to know each other.

use std::path::{Path, PathBuf};

use viworks_runtime::config::Problem;
use viworks_runtime::files::{self, FileError};
use viworks_runtime::tls::TlsError;

use crate::data::StoreError;

pub mod answer;
pub mod authority;
pub mod crl;
pub mod init;
pub mod issue;
pub mod place;
pub mod renew;
pub mod request;
pub mod signer;
pub mod signing;
pub mod site;
mod template;

pub use viworks_common::enrolment::Home;

/// Why material could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Something is there already, and would have been lost.
    #[error("{} exists already and is not overwritten; choose another place, or move it away", path.display())]
    Exists {
        /// What is there.
        path: PathBuf,
    },
    /// A file or folder could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file could not be written.
    #[error("failed to write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// A certificate could not be made.
    #[error("failed to make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// A certificate could not be read back.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A name has no place in a certificate.
    #[error("{name:?} cannot stand in a certificate: {reason}")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        reason: String,
    },
    /// A key file holds no key.
    #[error("{} does not hold 64 hexadecimal digits", path.display())]
    MasterKey {
        /// The file.
        path: PathBuf,
    },
    /// A file does not hold a key that can be used.
    #[error("the key in {} cannot be used: {reason}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The authority's key is not its certificate's.
    #[error("the key in {} does not fit the first certificate in {}", key.display(), certificate.display())]
    Authority {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// Gateways would not find the backend by this.
    #[error("{message}; {help}")]
    Url {
        /// What is wrong with it.
        message: String,
        /// What to do about that.
        help: String,
    },
    /// A registered gateway's folder is not complete.
    #[error("the gateway is registered, and {} is not complete; run the same command again, it goes on where this one ended", folder.display())]
    Unfinished {
        /// The folder.
        folder: PathBuf,
        /// What went wrong.
        #[source]
        source: Box<Self>,
    },
    /// No certificate is made for a request.
    #[error("{}: {why}", path.display())]
    Request {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: request::BadRequest,
    },
    /// The answer to a request is there.
    #[error(
        "{} is the answer to this request: bring it to the machine that made the request, and run enroll --answer there",
        path.display()
    )]
    Answered {
        /// The answer.
        path: PathBuf,
    },
    /// The key of a request is a gateway's.
    #[error(
        "the key of this request is a gateway's already: the request was signed before; take the answer of then, or \
         make another request (remove .enrolling on the machine, and run enroll --request-out there)"
    )]
    KeyInUse,
    /// The authority's key is another one than that of the authority that is in force.
    #[error(
        "the key in {} is not that of the authority that is in force, which is the first in client_ca_file as it was \
         read last: put that key back, or send SIGHUP once the certificate of this one is first in that file",
        key.display()
    )]
    NotInForce {
        /// The key's file.
        key: PathBuf,
    },
    /// The authority's private key is not on this machine.
    #[error(
        "this backend has no authority of its own; set ca_key_file or ca_sign_command in [keys]"
    )]
    NoAuthority,
    /// The program that has the authority's key cannot sign, or not with that key, until somebody puts that right.
    #[error("the program of ca_sign_command in [keys] did not sign: {reason}")]
    Signer {
        /// Why not.
        reason: String,
    },
    /// The program that has the authority's key did not sign this time.
    #[error("the program of ca_sign_command in [keys] did not sign: {reason}")]
    Unsigned {
        /// Why not.
        reason: String,
    },
    /// Nobody looks for a program that signs.
    #[error(
        "--ca-sign-command takes the whole path of a program, from / on, and {program:?} is none; its arguments follow, \
         each by the same flag again"
    )]
    SignerPath {
        /// What was named.
        program: String,
    },
    /// What is to be given to a program that signs has no place in a configuration.
    #[error("--ca-sign-command takes visible characters and spaces, and {word:?} has others")]
    SignerWord {
        /// What was typed.
        word: String,
    },
    /// A certificate is none that can sign others.
    #[error("{} cannot be an authority of gateways: {reason}", path.display())]
    NotAnAuthority {
        /// Its file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The database refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl PkiError {
    /// As a problem of the file that is to blame, or of `otherwise` where none is.
    #[must_use]
    pub fn problem(&self, otherwise: &Path) -> Problem {
        match self {
            Self::File(error) => error.problem(),
            Self::Tls(error) => error.problem(otherwise),
            Self::MasterKey { path } => Problem::of_file(
                path,
                self.to_string(),
                "it must be the file that pki init wrote: with another key no gateway is recognised",
            ),
            Self::Key { path, .. } | Self::NotInForce { key: path } => {
                Problem::of_file(path, self.to_string(), "")
            }
            Self::Authority { key, .. } => Problem::of_file(
                key,
                self.to_string(),
                "both must come from the same pki init; the authority's own certificate comes first in its file",
            ),
            Self::NotAnAuthority { path, .. } => Problem::of_file(
                path,
                self.to_string(),
                "name the certificate of an authority, first in its file, and those above it behind it",
            ),
            Self::Exists { .. }
            | Self::Answered { .. }
            | Self::Signer { .. }
            | Self::Unsigned { .. }
            | Self::SignerPath { .. }
            | Self::SignerWord { .. }
            | Self::Write { .. }
            | Self::Certificate(_)
            | Self::Name { .. }
            | Self::Url { .. }
            | Self::Unfinished { .. }
            | Self::Request { .. }
            | Self::KeyInUse
            | Self::NoAuthority
            | Self::Store(_) => Problem::of_file(otherwise, self.to_string(), ""),
        }
    }
}

/// A folder that files are written into.
#[derive(Debug)]
#[must_use = "it may go again as soon as this is dropped"]
struct Room {
    /// What this call itself made of it and of those above it.
    made: Vec<PathBuf>,
}

impl Drop for Room {
    /// Folders that were made for nothing go again; where anything is in one, it stays.
    fn drop(&mut self) {
        files::remove_made(&self.made);
    }
}

/// Makes a folder for its owner alone; one that is there must hold nothing yet of what is going to be written.
fn private_folder(folder: &Path, names: &[&str]) -> Result<Room, PkiError> {
    for name in names {
        let path = folder.join(name);
        if path.symlink_metadata().is_ok() {
            return Err(PkiError::Exists { path });
        }
    }
    let made = files::make_private_folder(folder)?;
    Ok(Room { made })
}

/// Whether others may read a new file.
#[derive(Debug, Clone, Copy)]
enum Secrecy {
    Public,
    Secret,
}

/// Writes a file that must not be there yet, durably.
fn write_new(path: &Path, contents: &[u8], secrecy: Secrecy) -> Result<(), PkiError> {
    let mode = match secrecy {
        Secrecy::Public => 0o644,
        Secrecy::Secret => 0o600,
    };
    files::write_new(path, contents, mode).map_err(unwritten)
}

/// Why a file was not written.
fn unwritten(error: FileError) -> PkiError {
    match error.into_io() {
        Ok((path, source)) if source.kind() == std::io::ErrorKind::AlreadyExists => {
            PkiError::Exists { path }
        }
        Ok((path, source)) => PkiError::Write { path, source },
        Err(error) => error.into(),
    }
}
