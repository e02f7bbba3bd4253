//! Where the server is and how it is spoken to.

use std::fmt;
use std::path::Path;
use std::str::FromStr as _;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// What is wrong with the URL of a database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// It cannot be read.
    #[error("not a URL of a PostgreSQL database: {0}")]
    Syntax(String),
    /// A secret in a URL ends up in logs and process lists.
    #[error(
        "the URL holds a password; put it into a file for the owner only and name that as password_file"
    )]
    Password,
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
    /// The file with the password cannot be read.
    #[error("{path}: {problem}")]
    PasswordFile {
        /// Which file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// The address of a database, with what it takes to get in. Shows no secret.
#[derive(Clone)]
pub struct Address {
    options: PgConnectOptions,
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
        // The library's message may repeat what was given, so only its kind is told.
        let options = PgConnectOptions::from_str(url)
            .map_err(|_told| AddressError::Syntax("it cannot be read".to_owned()))?;
        if has_password(url) {
            return Err(AddressError::Password);
        }
        if options.get_database().is_none_or(str::is_empty) {
            return Err(AddressError::NoDatabase);
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
            options = options.ssl_root_cert(ca_file);
        }
        if let Some(path) = password_file {
            options = options.password(&read_password(path)?);
        }
        Ok(Self {
            options,
            connections_max: 16,
            connect_timeout: Duration::from_secs(5),
        })
    }

    /// The same, with at most this many connections.
    #[must_use]
    pub const fn connections_max(mut self, connections: u32) -> Self {
        self.connections_max = connections;
        self
    }

    /// What every connection begins with: a statement that stands still must not stand for ever, plans that the
    /// compiler of the server spends more on than they take are not compiled, and a commit is on the disk.
    pub(super) fn options(&self) -> PgConnectOptions {
        self.options.clone().statement_cache_capacity(512).options([
            ("statement_timeout", "30s"),
            ("lock_timeout", "10s"),
            ("idle_in_transaction_session_timeout", "60s"),
            ("jit", "off"),
            ("synchronous_commit", "on"),
        ])
    }
}

fn has_password(url: &str) -> bool {
    let authority = url.split_once("://").map_or("", |(_, rest)| rest);
    let authority = authority.split(['/', '?']).next().unwrap_or_default();
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    user.contains(':') || url.contains("password=")
}

fn mode_of(url: &str) -> String {
    let modes = url.split(['?', '&']);
    let mut modes = modes.filter_map(|part| part.split_once('='));
    let found = modes.find(|(key, _)| matches!(*key, "sslmode" | "ssl-mode"));
    found.map_or("prefer", |(_, mode)| mode).to_owned()
}

fn is_local(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost"
        || host.starts_with('/')
        || address.is_ok_and(|address| address.is_loopback())
}

fn read_password(path: &Path) -> Result<String, AddressError> {
    let failed = |problem: String| AddressError::PasswordFile {
        path: path.display().to_string(),
        problem,
    };
    let text =
        viworks_runtime::files::read_private(path).map_err(|error| failed(error.to_string()))?;
    let text = str::from_utf8(&text).map_err(|_not_utf8| failed("it is not text".to_owned()))?;
    let password = text.trim_end_matches(['\n', '\r']);
    if password.is_empty() {
        return Err(failed("it is empty".to_owned()));
    }
    Ok(password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Address, AddressError> {
        Address::parse(url, None, None)
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_not_repeated() {
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
    fn a_server_elsewhere_is_verified() {
        assert!(parse("postgres://vw@db.example.net/viworks").is_ok());
        assert!(parse("postgres://vw@db.example.net/viworks?sslmode=verify-full").is_ok());
        for mode in ["disable", "prefer", "require", "verify-ca"] {
            let url = format!("postgres://vw@db.example.net/viworks?sslmode={mode}");
            let error = parse(&url).unwrap_err();
            assert!(error.to_string().contains(mode), "{error}");
        }
        for local in ["127.0.0.1", "[::1]", "localhost"] {
            assert!(parse(&format!("postgres://vw@{local}/viworks?sslmode=disable")).is_ok());
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
