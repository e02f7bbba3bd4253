//! What Redis did not do, and whether waiting helps.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::credentials::CredentialError;

/// Why Redis did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file with what it takes to get in cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// What the server or the connection to it says.
    #[error("{0}")]
    Server(#[from] RedisError),
    /// It did not answer in time.
    #[error("it did not answer in time")]
    Late,
    /// It lacks what is needed.
    #[error("it is version {0}, and 6.2 is the oldest that can be used")]
    TooOld(String),
    /// It was not asked, because it failed a moment ago.
    #[error("it does not answer, and is tried again in a moment")]
    NotAsked,
}

/// What certificates that do not hold are called by the library beneath.
const BAD_CERTIFICATE: &str = "invalid peer certificate";

impl Error {
    /// Whether it stays as it is until somebody changes something here.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Credentials(_) | Self::TooOld(_) => true,
            Self::Late | Self::NotAsked => false,
            Self::Server(error) => refuses(error),
        }
    }
}

fn refuses(error: &RedisError) -> bool {
    // Several nodes may have been asked; what they said is told in one text.
    let text = error.to_string();
    let said = |word: &str| text.contains(word);
    matches!(
        error.kind(),
        ErrorKind::AuthenticationFailed
            | ErrorKind::InvalidClientConfig
            | ErrorKind::MasterNameNotFoundBySentinel
            | ErrorKind::RESP3NotSupported
            | ErrorKind::Parse
            | ErrorKind::Server(ServerErrorKind::NoPerm)
    ) || matches!(error.code(), Some("WRONGPASS" | "NOAUTH" | "NOPERM"))
        || ["WRONGPASS", "NOAUTH", "NOPERM", BAD_CERTIFICATE]
            .into_iter()
            .any(said)
}
