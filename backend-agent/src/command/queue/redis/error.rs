//! What Redis did not do, and whether waiting helps.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::config::queue::{QueueAddress, Topology};
use crate::credentials::CredentialError;
use crate::protocol::Protocol;

/// Why Redis did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file with what it takes to get in cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// What the server or the connection to it says.
    #[error("{}", said(.0))]
    Server(RedisError),
    /// It did not answer in time.
    #[error("it did not answer in time")]
    Late,
    /// It lacks what is needed.
    #[error("it is version {0}, and 6.2 is the oldest that can be used")]
    TooOld(String),
    /// Another kind of server is there.
    #[error("{0}")]
    Another(String),
    /// It was not asked, because it failed a moment ago.
    #[error("it does not answer, and is tried again in a moment")]
    NotAsked,
}

impl From<RedisError> for Error {
    fn from(error: RedisError) -> Self {
        Self::Server(error)
    }
}

/// A word of the server, and what it means for whoever wrote the configuration.
const MEANINGS: [(&str, &str); 5] = [
    (
        NO_DATABASE,
        "it does not let this user switch to the database whose number url of [queue] names: grant the user +select, \
         name a number that the server has, or leave the number out",
    ),
    (
        "WRONGPASS",
        "it does not let this user in with this password (WRONGPASS): see url and password_file of [queue]",
    ),
    (
        "NOAUTH",
        "it wants a password (NOAUTH): name a user in url, and a password_file, in [queue]",
    ),
    (
        "MISCONF",
        "it takes no writes, because it cannot keep them on its disk (MISCONF): make room there; its log says more",
    ),
    (
        NO_CLUSTER,
        "it is no node of a Redis Cluster: redis:// names a single server",
    ),
];

/// What a server says that is asked as a node of a cluster and is none.
const NO_CLUSTER: &str = "cluster support disabled";

/// What the library says in place of the server's word where that refused the number of the database: the user may not
/// ask for any, or the server has fewer.
const NO_DATABASE: &str = "refused to switch database";

/// Where the rights are listed that the user needs.
const RIGHTS: &str = "docs/operations/scaling.md lists the rights that this user needs";

/// What the library says, once and in one line.
fn said(error: &RedisError) -> String {
    let text = error.to_string();
    let meant = MEANINGS.iter().find(|(word, _meaning)| text.contains(word));
    match meant {
        Some((_word, meaning)) => (*meaning).to_owned(),
        None if error.kind() == ErrorKind::Parse => {
            "what answers there is no Redis; check host and port in url of [queue]".to_owned()
        }
        None => {
            let line = text.lines().next().unwrap_or_default();
            // What the server says of it names the right that is lacking.
            if is_forbidden(error, &text) {
                format!("{line}; {RIGHTS}")
            } else {
                line.to_owned()
            }
        }
    }
}

/// Whether the user lacks a right.
fn is_forbidden(error: &RedisError, text: &str) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm) || text.contains("NOPERM")
}

/// What certificates that do not hold are called by the library beneath.
const BAD_CERTIFICATE: &str = "invalid peer certificate";

impl Error {
    /// Whether it stays as it is until somebody changes something here.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Credentials(_) | Self::TooOld(_) | Self::Another(_) => true,
            Self::Late | Self::NotAsked => false,
            Self::Server(error) => refuses(error),
        }
    }

    /// Another kind of server than the one that is named is there.
    pub(super) fn of_another(found: Protocol, address: &QueueAddress) -> Self {
        let scheme = match address.topology {
            Topology::Single => "redis",
            Topology::Cluster => "redis-cluster",
            Topology::Sentinel(_) => "redis-sentinel",
        };
        let encrypted = scheme.replacen("redis", "rediss", 1);
        Self::Another(match found {
            Protocol::Tls => format!(
                "what answers there encrypts from the first byte: write {encrypted}:// in url of [queue], or name the port of a \
                 Redis that does not"
            ),
            Protocol::Redis => format!(
                "what answers there is Redis that does not encrypt: write {scheme}:// in url of [queue], or name the port at \
                 which it does"
            ),
            Protocol::Postgres | Protocol::Http | Protocol::Other => format!(
                "what answers there is no Redis but {found}; check host and port in url of [queue]"
            ),
        })
    }

    /// Whether it is about what was asked, such as a key that holds something else, and says nothing of the server.
    pub(super) fn is_about_what_was_asked(&self) -> bool {
        let Self::Server(error) = self else {
            return false;
        };
        let is_said = matches!(
            error.kind(),
            ErrorKind::Extension | ErrorKind::Server(ServerErrorKind::ResponseError)
        );
        is_said && !self.is_of_the_server()
    }

    /// Whether the server says it of itself, whatever it is asked: for instance, that it takes no writes for want of
    /// room.
    pub(super) fn is_of_the_server(&self) -> bool {
        let Self::Server(error) = self else {
            return false;
        };
        let ErrorKind::Server(kind) = error.kind() else {
            return names_the_server(error);
        };
        // The library keeps the word of these to itself.
        matches!(
            kind,
            ServerErrorKind::BusyLoading
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::NoPerm
                | ServerErrorKind::ReadOnly
        ) || names_the_server(error)
    }

    /// Whether nothing can be expected of this connection any more: it is cut, or leads to a server that was demoted.
    pub(super) fn is_loss(&self) -> bool {
        let Self::Server(error) = self else {
            return false;
        };
        (error.is_connection_dropped() || error.is_io_error() && !error.is_timeout())
            || matches!(
                error.kind(),
                ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown)
            )
    }
}

/// What a server says of itself, whatever it was asked. Before version 7 it stands within the text of a script's error.
const OF_THE_SERVER: [&str; 11] = [
    "BUSY",
    "CLUSTERDOWN",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "NOAUTH",
    "NOPERM",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "WRONGPASS",
];

fn names_the_server(error: &RedisError) -> bool {
    let text = error.to_string();
    let mut words = text.split(|sign: char| !sign.is_ascii_alphabetic());
    text.contains(NO_DATABASE) || words.any(|word| OF_THE_SERVER.contains(&word))
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
        || [
            "WRONGPASS",
            "NOAUTH",
            "NOPERM",
            NO_CLUSTER,
            NO_DATABASE,
            BAD_CERTIFICATE,
        ]
        .into_iter()
        .any(said)
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::*;

    /// What the server answered, as the library reads it.
    fn answer(line: &str) -> Error {
        let text = format!("-{line}\r\n");
        let value = redis::parse_redis_value(text.as_bytes()).unwrap();
        assert!(matches!(value, Value::ServerError(_)), "{value:?}");
        Error::Server(value.extract_error().unwrap_err())
    }

    #[test]
    fn what_is_about_a_key_is_told_from_what_is_about_the_server() {
        for line in [
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "WRONGTYPE Operation against a key holding the wrong kind of value script: 7f, on @user_script:3.",
            "ERR The stream has exhausted the last possible ID, unable to add more items script: 7f, on @user_script:9.",
            "ERR Error running script (call to f_7f): @user_script:3: WRONGTYPE Operation against a key",
            "BUSYGROUP Consumer Group name already exists",
        ] {
            assert!(answer(line).is_about_what_was_asked(), "{line}");
            assert!(!answer(line).is_of_the_server(), "{line}");
        }
        for line in [
            "OOM command not allowed when used memory > 'maxmemory'. script: 7f, on @user_script:9.",
            "ERR Error running script (call to f_7f): @user_script:9: @user_script: 9: -OOM command not allowed",
            "MISCONF Redis is configured to save RDB snapshots, but it is currently not able to persist on disk.",
            "MISCONF Errors writing to the AOF file: No space left on device script: 7f, on @user_script:3.",
            "READONLY You can't write against a read only replica.",
            "LOADING Redis is loading the dataset in memory",
            "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
            "NOPERM this user has no permissions to run the 'evalsha' command",
            "CLUSTERDOWN The cluster is down",
        ] {
            assert!(!answer(line).is_about_what_was_asked(), "{line}");
            assert!(answer(line).is_of_the_server(), "{line}");
        }
        assert!(!Error::Late.is_about_what_was_asked());
        assert!(!Error::Late.is_of_the_server());
    }

    #[test]
    fn what_is_wrong_here_is_said_once_with_what_to_change() {
        for (line, word) in [
            (
                "WRONGPASS invalid username-password pair or user is disabled.",
                "password_file",
            ),
            (
                "NOAUTH HELLO must be called with the client already authenticated",
                "name a user",
            ),
            ("ERR This instance has cluster support disabled", "redis://"),
        ] {
            let error = answer(line);
            let text = error.to_string();
            assert!(text.contains(word) && text.lines().count() == 1, "{text}");
            assert!(error.is_lasting(), "{text}");
            assert!(std::error::Error::source(&error).is_none());
        }
    }

    #[test]
    fn a_database_that_the_user_may_not_use_stays_so_and_the_right_is_named() {
        // The library keeps the word of the server to itself.
        for said in [
            "this user has no permissions to run the 'select' command",
            "DB index is out of range",
        ] {
            let refused = (
                ErrorKind::Server(ServerErrorKind::ResponseError),
                "Redis server refused to switch database",
                said.to_owned(),
            );
            let error = Error::Server(refused.into());
            let text = error.to_string();
            assert!(text.contains("grant the user +select"), "{text}");
            assert!(error.is_lasting(), "{text}");
            assert!(error.is_of_the_server(), "{text}");
            assert!(!error.is_about_what_was_asked(), "{text}");
        }
    }

    #[test]
    fn a_right_that_is_lacking_is_named_with_where_all_are_listed() {
        let right = "this user has no permissions to run the 'subscribe' command";
        let error = answer(&format!("NOPERM {right}"));
        let text = error.to_string();
        assert!(text.contains(right) && text.contains(RIGHTS), "{text}");
        assert!(error.is_lasting(), "{text}");
    }

    #[test]
    fn a_disk_that_takes_nothing_is_said_and_waited_for() {
        let error = answer("MISCONF Errors writing to the AOF file: No space left on device");
        let text = error.to_string();
        assert!(text.contains("disk (MISCONF): make room there"), "{text}");
        assert!(!error.is_lasting(), "{text}");
    }
}
