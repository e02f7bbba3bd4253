//! Where the queue is: in memory, or a Redis server, Cluster or Sentinel, and how it is spoken to.

use std::fmt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::credentials::{CredentialError, is_local, read_authority, read_password};

/// The URL of the queue in the memory of this process.
pub(super) const MEMORY: &str = "memory";

/// What is wrong with the URL of a queue. None of it repeats what could be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueueAddressError {
    /// It cannot be read.
    #[error("not a URL of a queue: {0}")]
    Syntax(&'static str),
    /// A secret in a URL ends up in logs and process lists.
    #[error(
        "the URL holds a password; put it into a file for the owner only and name that as password_file"
    )]
    Password,
    /// Nothing says where it is.
    #[error("the URL names no host")]
    NoHost,
    /// Sentinels look after several servers.
    #[error("the URL names no master; redis-sentinel://HOST,HOST/MASTER does")]
    NoMaster,
    /// A cluster has one database only.
    #[error("a Redis Cluster has no numbered databases; leave the part behind the hosts out")]
    Database,
    /// Anybody on the way could read the password and what commands write.
    #[error(
        "{0} is not on this machine, and {1}:// encrypts nothing and verifies nobody; use {2}://, with ca_file where a private authority signs"
    )]
    Unverified(String, &'static str, &'static str),
    /// An authority of certificates where there are none.
    #[error("ca_file is for an encrypted connection; use {0}://")]
    NotEncrypted(&'static str),
    /// A file that goes with it cannot be used.
    #[error(transparent)]
    File(#[from] CredentialError),
}

impl QueueAddressError {
    /// What is wrong with a file that goes with the URL, where it is that.
    pub(crate) const fn file(&self) -> Option<&CredentialError> {
        if let Self::File(error) = self {
            Some(error)
        } else {
            None
        }
    }
}

/// What answers at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topology {
    /// One server, or whatever stands in front of several and looks like one.
    Single,
    /// Nodes that share the keys among themselves.
    Cluster,
    /// Sentinels that know where the server of this name is.
    Sentinel(String),
}

/// The address of a queue, with what it takes to get in. Shows no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueAddress {
    /// Host and port of each server; one where it is single.
    pub hosts: Vec<(String, u16)>,
    /// What answers there.
    pub topology: Topology,
    /// Who asks; the server's default user where nobody is named.
    pub user: Option<String>,
    /// The number of the database.
    pub database: i64,
    /// Whether the connection is encrypted and the server verified.
    pub encrypted: bool,
    password_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
}

impl fmt::Display for QueueAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.topology {
            Topology::Single => {}
            Topology::Cluster => f.write_str("the cluster at ")?,
            Topology::Sentinel(master) => write!(f, "{master} of the sentinels at ")?,
        }
        for (index, (host, port)) in self.hosts.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            if host.contains(':') {
                write!(f, "{comma}[{host}]:{port}")?;
            } else {
                write!(f, "{comma}{host}:{port}")?;
            }
        }
        Ok(())
    }
}

/// What a scheme says: its name, the encrypted form of it, and the port that is meant where none is named.
const SCHEMES: [(&str, &str, u16); 3] = [
    ("redis", "rediss", 6379),
    ("redis-cluster", "rediss-cluster", 6379),
    ("redis-sentinel", "rediss-sentinel", 26379),
];

impl QueueAddress {
    /// Reads `redis://USER@HOST:PORT/DATABASE`, `redis-cluster://USER@HOST,HOST` and
    /// `redis-sentinel://USER@HOST,HOST/MASTER`, each with `rediss` for an encrypted connection.
    ///
    /// # Errors
    /// When the URL cannot be used, or would not be safe.
    pub fn parse(
        url: &str,
        password_file: Option<&Path>,
        ca_file: Option<&Path>,
    ) -> Result<Self, QueueAddressError> {
        use QueueAddressError::{Database, NoMaster, NotEncrypted, Password, Syntax, Unverified};
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let known = SCHEMES
            .iter()
            .find(|(plain, encrypted, _port)| *plain == scheme || *encrypted == scheme);
        let Some(&(plain, with_tls, port)) = known else {
            return Err(Syntax(
                "it is neither memory nor begins with redis://, redis-cluster:// or redis-sentinel://",
            ));
        };
        if rest.contains(['?', '#']) {
            return Err(Syntax("it has parameters, and none means something here"));
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        if user.contains(':') {
            return Err(Password);
        }
        if !is_name(user) {
            return Err(Syntax("its user is not a name"));
        }
        let hosts: Vec<_> = hosts
            .split(',')
            .map(|host| read_host(host, port))
            .collect::<Result<_, _>>()?;
        let mut database = 0;
        let topology = match plain {
            "redis-cluster" if !path.is_empty() => return Err(Database),
            "redis-cluster" => Topology::Cluster,
            "redis-sentinel" => {
                let (master, number) = path.split_once('/').unwrap_or((path, ""));
                if master.is_empty() || !is_name(master) {
                    return Err(NoMaster);
                }
                database = read_database(number)?;
                Topology::Sentinel(master.to_owned())
            }
            _ if hosts.len() > 1 => {
                return Err(Syntax(
                    "several hosts are a redis-cluster:// or a redis-sentinel://",
                ));
            }
            _ => {
                database = read_database(path)?;
                Topology::Single
            }
        };
        let encrypted = scheme == with_tls;
        if !encrypted && ca_file.is_some() {
            return Err(NotEncrypted(with_tls));
        }
        if let Some((elsewhere, _port)) = hosts.iter().find(|(host, _port)| !is_local(host))
            && !encrypted
        {
            return Err(Unverified(elsewhere.clone(), plain, with_tls));
        }
        let address = Self {
            hosts,
            topology,
            user: (!user.is_empty()).then(|| user.to_owned()),
            database,
            encrypted,
            password_file: password_file.map(Path::to_owned),
            ca_file: ca_file.map(Path::to_owned),
        };
        // Read again with each connection; what is wrong with them is to be known at once.
        let _readable = (address.password()?, address.authority()?);
        Ok(address)
    }

    /// The password as the file has it now: one that was changed is in force with the next connection.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn password(&self) -> Result<Option<Zeroizing<String>>, CredentialError> {
        self.password_file.as_deref().map(read_password).transpose()
    }

    /// The authority that the server's certificate has to come from, PEM; any that the machine trusts where none is
    /// named.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn authority(&self) -> Result<Option<Vec<u8>>, CredentialError> {
        self.ca_file.as_deref().map(read_authority).transpose()
    }
}

/// What users and masters are called.
fn is_name(text: &str) -> bool {
    text.chars()
        .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

fn read_host(text: &str, port: u16) -> Result<(String, u16), QueueAddressError> {
    let not_a_host = || QueueAddressError::Syntax("a host is written HOST:PORT, or [ADDRESS]:PORT");
    let (host, after) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or_else(not_a_host)?,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    if host.is_empty() {
        return Err(QueueAddressError::NoHost);
    }
    let is_address = text.starts_with('[');
    if !(is_name(host) || is_address && host.parse::<std::net::Ipv6Addr>().is_ok()) {
        return Err(not_a_host());
    }
    let port = match after.strip_prefix(':') {
        Some(port) => port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(not_a_host)?,
        None if after.is_empty() => port,
        None => return Err(not_a_host()),
    };
    Ok((host.to_owned(), port))
}

fn read_database(text: &str) -> Result<i64, QueueAddressError> {
    if text.is_empty() {
        return Ok(0);
    }
    let number = text.parse::<u16>().map(i64::from);
    number.map_err(|_not_one| QueueAddressError::Syntax("a database of Redis is a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<QueueAddress, QueueAddressError> {
        QueueAddress::parse(url, None, None)
    }

    #[test]
    fn servers_clusters_and_sentinels_are_told_apart() {
        for (url, shown, database) in [
            ("redis://127.0.0.1", "127.0.0.1:6379", 0),
            ("redis://vw@localhost:7000/3", "localhost:7000", 3),
            ("rediss://[2001:db8::1]:7000", "[2001:db8::1]:7000", 0),
            (
                "rediss-cluster://vw@a,b:7001",
                "the cluster at a:6379, b:7001",
                0,
            ),
            (
                "rediss-sentinel://vw@a,b:1/site-1/2",
                "site-1 of the sentinels at a:26379, b:1",
                2,
            ),
        ] {
            let address = parse(url).unwrap();
            assert_eq!(
                (address.to_string().as_str(), address.database),
                (shown, database)
            );
            assert_eq!(address.user.as_deref(), url.contains('@').then_some("vw"));
            assert_eq!(address.encrypted, url.starts_with("rediss"));
        }
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_not_repeated() {
        for url in [
            "redis://:hunter2@127.0.0.1",
            "redis://vw:hunter2@127.0.0.1/0",
        ] {
            assert_eq!(parse(url), Err(QueueAddressError::Password));
        }
        for url in [
            "amqp://vw:hunter2@h",
            "redis://h/hunter2",
            "redis://h?password=hunter2",
            "redis://hunter 2@h",
            "redis://h:hunter2",
        ] {
            let error = parse(url).unwrap_err().to_string();
            assert!(!error.contains("hunter"), "{error}");
        }
    }

    #[test]
    fn a_server_elsewhere_is_verified() {
        for url in [
            "redis://queue.example.net",
            "redis-cluster://127.0.0.1,queue.example.net",
            "redis-sentinel://queue.example.net/site",
        ] {
            let error = parse(url).unwrap_err().to_string();
            assert!(
                error.contains("queue.example.net is not on this machine"),
                "{error}"
            );
            parse(&url.replacen("redis", "rediss", 1)).unwrap();
        }
    }

    #[test]
    fn what_names_nothing_is_refused() {
        use QueueAddressError::{Database, NoHost, NoMaster, Syntax};
        assert_eq!(parse("redis://"), Err(NoHost));
        assert_eq!(parse("redis-sentinel://127.0.0.1"), Err(NoMaster));
        assert_eq!(parse("redis-cluster://127.0.0.1/1"), Err(Database));
        for url in [
            "",
            "redis",
            "redis://a,b",
            "redis://127.0.0.1:0",
            "redis://[::1",
            "redis://127.0.0.1/x",
        ] {
            assert!(matches!(parse(url), Err(Syntax(_))), "{url}");
        }
    }
}
