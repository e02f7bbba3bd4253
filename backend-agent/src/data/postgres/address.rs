//! Where the server is and how it is spoken to.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::credentials::{CredentialError, is_local, read_authority, read_password};

/// Where a server listens unless something else is said.
const PORT: u16 = 5432;

/// What is wrong with the URL of a database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It cannot be read.
    #[error("not a URL of a PostgreSQL database: {0}")]
    Syntax(String),
    /// A secret in a URL ends up in logs and process lists.
    #[error(
        "the URL holds a password; put it into a file for the owner only and name that as password_file in [store], or \
         by --password-file of migrate-store"
    )]
    Password,
    /// A parameter that means nothing here.
    #[error("the URL has a parameter {0}; only sslmode means something")]
    Parameter(String),
    /// Nothing says who asks, or whom.
    #[error("the URL names no user and host (postgres://USER@HOST/DATABASE)")]
    NoUser,
    /// Nothing says which database.
    #[error("the URL names no database (postgres://USER@HOST/DATABASE)")]
    NoDatabase,
    /// Anybody on the way could read and change everything.
    #[error(
        "{host} is not on this machine, and sslmode={mode} does not verify who answers; use sslmode=verify-full, with ca_file where a private authority signs"
    )]
    Unverified {
        /// Where the server is.
        host: String,
        /// What the URL says.
        mode: String,
    },
    /// A file that goes with it cannot be used.
    #[error(transparent)]
    File(#[from] CredentialError),
}

impl AddressError {
    /// What is wrong with a file that goes with the URL, where it is that.
    pub(crate) const fn file(&self) -> Option<&CredentialError> {
        if let Self::File(error) = self {
            Some(error)
        } else {
            None
        }
    }
}

/// The address of a database, with what it takes to get in. Shows no secret.
#[derive(Clone)]
pub struct Address {
    options: PgConnectOptions,
    password_file: Option<PathBuf>,
    /// Most connections at once.
    pub connections_max: u32,
    /// How long connecting may take.
    pub connect_timeout: Duration,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Address").field(&self.to_string()).finish()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.options;
        let database = options.get_database().unwrap_or_default();
        match options.get_socket() {
            Some(socket) => write!(f, "{database} at {}", socket.display()),
            None => write!(
                f,
                "{database} at {}:{}",
                options.get_host(),
                options.get_port()
            ),
        }
    }
}

impl Address {
    /// Reads `postgres://USER@HOST:PORT/DATABASE?sslmode=…`.
    ///
    /// # Errors
    ///
    /// When the URL cannot be used, or would not be safe.
    pub fn parse(
        url: &str,
        password_file: Option<&Path>,
        ca_file: Option<&Path>,
    ) -> Result<Self, AddressError> {
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(AddressError::Syntax(
                "it does not begin with postgres://".to_owned(),
            ));
        }
        if has_password(url) {
            return Err(AddressError::Password);
        }
        if let Some(stray) = stray_parameter(url) {
            return Err(AddressError::Parameter(stray));
        }
        // The library's message may repeat what was given, so only its kind is told.
        let options = PgConnectOptions::from_str(url)
            .map_err(|_told| AddressError::Syntax("it cannot be read".to_owned()))?;
        if options.get_database().is_none_or(str::is_empty) {
            return Err(AddressError::NoDatabase);
        }
        if !names_user(url) {
            return Err(AddressError::NoUser);
        }
        let host = options.get_host().trim_matches(['[', ']']).to_owned();
        let mut options = options.host(&host);
        if !names_port(url) {
            // Not what a variable of libpq says.
            options = options.port(PORT);
        }
        let local = options.get_socket().is_some() || is_local(options.get_host());
        let asked = url.contains("sslmode=") || url.contains("ssl-mode=");
        let mut options = options.application_name("viworks-backend-agent");
        if !asked {
            options = options.ssl_mode(if local {
                PgSslMode::Prefer
            } else {
                PgSslMode::VerifyFull
            });
        }
        if !local && !matches!(options.get_ssl_mode(), PgSslMode::VerifyFull) {
            return Err(AddressError::Unverified {
                host: options.get_host().to_owned(),
                mode: mode_of(url),
            });
        }
        if let Some(ca_file) = ca_file {
            options = options.ssl_root_cert_from_pem(read_authority(ca_file)?);
        }
        if let Some(path) = password_file {
            let _readable = read_password(path)?;
        }
        Ok(Self {
            options,
            password_file: password_file.map(Path::to_owned),
            connections_max: 16,
            connect_timeout: Duration::from_secs(5),
        })
    }

    /// Host and port; `None` where the server is reached by a socket of this machine.
    pub(super) fn host(&self) -> Option<(&str, u16)> {
        let by_network = self.options.get_socket().is_none();
        by_network.then(|| (self.options.get_host(), self.options.get_port()))
    }

    /// Whether a file with a password is named.
    pub(super) const fn has_password(&self) -> bool {
        self.password_file.is_some()
    }

    /// The same, with at most this many connections.
    #[must_use]
    pub const fn connections_max(mut self, connections: u32) -> Self {
        self.connections_max = connections;
        self
    }

    /// What every connection begins with: a statement that stands still must not stand for ever, and plans that the
    /// compiler of the server spends more on than they take are not compiled. The password is read each time: one that
    /// was changed is in force with the next connection.
    pub(super) fn options(&self) -> Result<PgConnectOptions, AddressError> {
        let mut options = self.options.clone();
        if let Some(path) = &self.password_file {
            options = options.password(&read_password(path)?);
        }
        Ok(options
            .disable_statement_logging()
            .statement_cache_capacity(512)
            .options([
                ("statement_timeout", "30s"),
                ("lock_timeout", "5s"),
                // What a backend holds that stands still, others wait for.
                ("idle_in_transaction_session_timeout", "10s"),
                // A backend whose machine is gone shall not keep the next one out for hours.
                ("tcp_keepalives_idle", "20"),
                ("tcp_keepalives_interval", "5"),
                ("tcp_keepalives_count", "4"),
                ("tcp_user_timeout", "45s"),
                ("jit", "off"),
                // A plan may stay for longer than the table is small.
                ("enable_seqscan", "off"),
            ]))
    }
}

/// A parameter that means nothing here; its value may be anything, so it is not told.
fn stray_parameter(url: &str) -> Option<String> {
    let (_, query) = url.split_once('?')?;
    let names = query
        .split('&')
        .map(|part| part.split('=').next().unwrap_or_default());
    let mut strays = names.filter(|name| !matches!(*name, "" | "sslmode" | "ssl-mode"));
    strays.next().map(str::to_owned)
}

fn has_password(url: &str) -> bool {
    let authority = url.split_once("://").map_or("", |(_, rest)| rest);
    let authority = authority.split(['/', '?']).next().unwrap_or_default();
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    user.contains(':') || url.contains("password=")
}

fn names_user(url: &str) -> bool {
    let authority = url.split_once("://").map_or("", |(_, rest)| rest);
    let authority = authority.split(['/', '?']).next().unwrap_or_default();
    authority
        .split_once('@')
        .is_some_and(|(user, host)| !user.is_empty() && !host.is_empty())
}

fn names_port(url: &str) -> bool {
    let authority = url.split_once("://").map_or("", |(_, rest)| rest);
    let authority = authority.split(['/', '?']).next().unwrap_or_default();
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    // An IPv6 address has colons of its own.
    let behind = host.rsplit_once(']').map_or(host, |(_, behind)| behind);
    behind.contains(':')
}

fn mode_of(url: &str) -> String {
    let modes = url.split(['?', '&']);
    let mut modes = modes.filter_map(|part| part.split_once('='));
    let found = modes.find(|(key, _)| matches!(*key, "sslmode" | "ssl-mode"));
    found.map_or("prefer", |(_, mode)| mode).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Address, AddressError> {
        Address::parse(url, None, None)
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_not_repeated() {
        let stray = parse("postgres://vw@127.0.0.1/viworks?passwd=hunter2").unwrap_err();
        assert_eq!(stray, AddressError::Parameter("passwd".to_owned()));
        assert_eq!(
            parse("postgres://127.0.0.1/viworks").unwrap_err(),
            AddressError::NoUser
        );
        for url in [
            "postgres://vw:hunter2@127.0.0.1/viworks",
            "postgres://vw@127.0.0.1/viworks?password=hunter2",
        ] {
            let error = parse(url).unwrap_err();
            assert_eq!(error, AddressError::Password);
            assert!(!error.to_string().contains("hunter2"));
        }
        let error = parse("mysql://vw:hunter2@h/d").unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn a_url_says_its_port_or_means_the_usual_one() {
        for (url, named) in [
            ("postgres://vw@127.0.0.1/viworks", false),
            ("postgres://vw@127.0.0.1:5433/viworks", true),
            ("postgres://vw@[::1]/viworks", false),
            ("postgres://vw@[::1]:5433/viworks", true),
        ] {
            assert_eq!(names_port(url), named, "{url}");
            let port = if named { 5433 } else { PORT };
            assert_eq!(parse(url).unwrap().options.get_port(), port, "{url}");
        }
    }

    #[test]
    fn a_server_elsewhere_is_verified() {
        assert!(parse("postgres://vw@db.example.net/viworks").is_ok());
        assert!(parse("postgres://vw@db.example.net/viworks?sslmode=verify-full").is_ok());
        for mode in ["disable", "prefer", "require", "verify-ca"] {
            let url = format!("postgres://vw@db.example.net/viworks?sslmode={mode}");
            let error = parse(&url).unwrap_err();
            assert!(error.to_string().contains(mode), "{error}");
        }
        for local in ["127.0.0.1", "[::1]", "localhost"] {
            let address = parse(&format!("postgres://vw@{local}/viworks?sslmode=disable")).unwrap();
            assert!(!address.options.get_host().contains('['), "{address}");
        }
    }

    #[test]
    fn a_url_without_a_database_is_refused() {
        assert_eq!(
            parse("postgres://vw@127.0.0.1").unwrap_err(),
            AddressError::NoDatabase
        );
    }
}
