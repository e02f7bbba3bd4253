//! Where the database is, and the files that go with that.

use std::path::{Path, PathBuf};

use viworks_runtime::config::Section;
use viworks_runtime::{files, settings};

use crate::credentials::CredentialError;
use crate::data::postgres::{Address, AddressError};

settings! {
    /// The database: the embedded one, or PostgreSQL 15 or later where a site outgrows that.
    [store]
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct StoreConfig from section {
        /// `sqlite:` for the file that [data] names, or postgres://USER@HOST:PORT/DATABASE, never with a password. A
        /// server that is not on this machine is verified (sslmode=verify-full).
        url: String = str(EMBEDDED),
        /// The password of USER, readable by the backend only.
        password_file: Option<PathBuf> = optional_secret_file() like "postgresql.password",
        /// The authority that signed the server's certificate, PEM, where that is a private one.
        ca_file: Option<PathBuf> = optional_file() like "postgresql-ca.crt",
        /// Connections to PostgreSQL, at most.
        connections_max: u32 = integer(16, 4..=500),
        /// Whether a start brings the schema of PostgreSQL up to date. Otherwise it has to be so, by `migrate`.
        migrate_at_start: bool = bool(true),
    }
    check StoreConfig::check
}

/// A file that goes with a URL cannot be used. What is wrong with it as a file was said where it is named.
pub(super) fn file_problem(
    section: &mut Section<'_>,
    error: &CredentialError,
    password: Option<&Path>,
) {
    let is_password = password == Some(error.path());
    let examine = if is_password {
        files::examine_private
    } else {
        files::examine
    };
    if examine(error.path()).is_err() {
        return;
    }
    let (key, help) = if is_password {
        (
            "password_file",
            "password_file names a file with the password on one line, and nothing else in it",
        )
    } else {
        (
            "ca_file",
            "ca_file names the certificate of the authority that signed the server's, PEM",
        )
    };
    section.problem(key, error.to_string(), help);
}

/// The URL of the embedded database.
const EMBEDDED: &str = "sqlite:";

impl StoreConfig {
    /// Where PostgreSQL is; `None` where the embedded database is meant.
    ///
    /// # Errors
    ///
    /// When the URL cannot be used, or a file that goes with it.
    pub fn address(&self) -> Result<Option<Address>, AddressError> {
        if self.is_embedded() {
            return Ok(None);
        }
        let (password, ca) = (self.password_file.as_deref(), self.ca_file.as_deref());
        let address = Address::parse(&self.url, password, ca)?;
        Ok(Some(address.connections_max(self.connections_max)))
    }

    /// Whether the database is the embedded one.
    #[must_use]
    pub fn is_embedded(&self) -> bool {
        self.url == EMBEDDED
    }

    fn check(&self, section: &mut Section<'_>) {
        match self.address() {
            Ok(Some(_)) => {}
            Ok(None) => {
                if self.password_file.is_some() || self.ca_file.is_some() {
                    section.problem(
                        "url",
                        "the embedded database has no password and no certificate",
                        "name a server as url = \"postgres://USER@HOST/DATABASE\", or leave both out",
                    );
                }
            }
            Err(AddressError::File(error)) => {
                file_problem(section, &error, self.password_file.as_deref());
            }
            Err(error) => section.problem(
                "url",
                error.to_string(),
                "url = \"sqlite:\" or \"postgres://USER@HOST:5432/DATABASE\"",
            ),
        }
    }
}
