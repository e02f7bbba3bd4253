//! Where the database is, and the files that go with that.

use std::path::PathBuf;

use viworks_runtime::config::Section;
use viworks_runtime::settings;

use super::server::Named;
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
        let server = Named {
            instead: "the embedded database",
            shortest: "postgres://USER@HOST/DATABASE",
            like: "url = \"sqlite:\" or \"postgres://USER@HOST:5432/DATABASE\"",
            password_file: self.password_file.as_deref(),
            ca_file: self.ca_file.as_deref(),
        };
        server.check(section, self.address(), AddressError::file);
    }
}
