//! Which protocol a server speaks that did not behave as the one that was expected: asked in the languages it may know.
//! A server that closes the connection or says nothing may be away for a moment, or be another product for good.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long all questions together may take.
pub(crate) const ASK_TIME: Duration = Duration::from_secs(2);

/// As much of an answer as it takes to recognise it.
const ANSWER_MAX: usize = 64;

/// What a server speaks. What comes first says more than what comes after it: a server that encrypts may say so in
/// plain text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Protocol {
    /// It knows the first word of PostgreSQL.
    Postgres,
    /// It answers commands of Redis in plain text.
    Redis,
    /// A web server.
    Http,
    /// Whatever it is, it encrypts.
    Tls,
    /// It talks, and nothing that is known here.
    Other,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "PostgreSQL",
            Self::Redis => "Redis",
            Self::Http => "a web server",
            Self::Tls => "a server that encrypts from the first byte",
            Self::Other => "something else",
        })
    }
}

/// A question that some servers answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    /// The first word of PostgreSQL's clients: whether it encrypts.
    Postgres,
    /// A command of Redis without arguments.
    Redis,
    /// The first word of TLS.
    Tls,
}

/// What the server at this address speaks instead of what was `expected`; `None` where it speaks that, or nothing.
pub(crate) async fn other_than(expected: Protocol, host: &str, port: u16) -> Option<Protocol> {
    let ask = async |question| {
        let answer = timeout(ASK_TIME, ask(question, host, port)).await.ok()??;
        recognise(question, &answer)
    };
    let (postgres, redis, tls) = tokio::join!(
        ask(Question::Postgres),
        ask(Question::Redis),
        ask(Question::Tls)
    );
    let found = [postgres, redis, tls].into_iter().flatten().min()?;
    (found != expected).then_some(found)
}

/// The first that is said to a question; nothing when it is not reached, or goes away without a word.
async fn ask(question: Question, host: &str, port: u16) -> Option<Vec<u8>> {
    let said = match question {
        Question::Postgres => vec![0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f],
        Question::Redis => b"PING\r\n".to_vec(),
        Question::Tls => client_hello()?,
    };
    let host = host.trim_matches(['[', ']']);
    let mut stream = TcpStream::connect((host, port)).await.ok()?;
    stream.write_all(&said).await.ok()?;
    let mut answer = vec![0; ANSWER_MAX];
    let length = stream.read(&mut answer).await.ok()?;
    answer.truncate(length);
    Some(answer)
}

fn client_hello() -> Option<Vec<u8>> {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .ok()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    // The handshake goes no further, so nobody looks whom it was for.
    let name = ServerName::try_from("localhost").ok()?;
    let mut connection = ClientConnection::new(Arc::new(config), name).ok()?;
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).ok()?;
    Some(hello)
}

/// Who answers a question like that; `None` for no answer.
fn recognise(question: Question, answer: &[u8]) -> Option<Protocol> {
    /// The kinds of records of TLS that come first: an alert, a handshake.
    const RECORDS: [&[u8]; 2] = [&[0x15, 0x03], &[0x16, 0x03]];
    if answer.is_empty() {
        return None;
    }
    let begins = |start: &[u8]| answer.starts_with(start);
    let (speaks, understood) = match question {
        // It encrypts or does not, or has no process left to say so.
        Question::Postgres => (
            Protocol::Postgres,
            matches!(answer, [b'S' | b'N'] | [b'E', ..]),
        ),
        Question::Redis => (Protocol::Redis, begins(b"+PONG") || is_redis_error(answer)),
        Question::Tls => (Protocol::Tls, RECORDS.into_iter().any(begins)),
    };
    Some(if understood {
        speaks
    } else if begins(b"HTTP/") {
        Protocol::Http
    } else if RECORDS.into_iter().any(begins) {
        Protocol::Tls
    } else {
        // It may only not have understood; what it answered to another question says more.
        Protocol::Other
    })
}

/// `-WORD text`, as Redis refuses whoever has not said a password yet.
fn is_redis_error(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let word = text
        .strip_prefix('-')
        .and_then(|rest| rest.split(' ').next());
    word.is_some_and(|word| word.len() > 2 && word.chars().all(|sign| sign.is_ascii_uppercase()))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[test]
    fn an_answer_tells_who_gave_it() {
        use Protocol::{Http, Other, Postgres, Redis, Tls};
        for (question, answer, found) in [
            (Question::Postgres, &b"S"[..], Some(Postgres)),
            (Question::Postgres, b"N", Some(Postgres)),
            (
                Question::Postgres,
                b"E\0\0\0\x0bcould not fork",
                Some(Postgres),
            ),
            (Question::Postgres, b"", None),
            (
                Question::Postgres,
                b"SSH-2.0-OpenSSH_9.2p1\r\n",
                Some(Other),
            ),
            (Question::Redis, b"+PONG\r\n", Some(Redis)),
            (
                Question::Redis,
                b"-NOAUTH Authentication required.\r\n",
                Some(Redis),
            ),
            (
                Question::Redis,
                b"-DENIED Redis is running in protected mode",
                Some(Redis),
            ),
            (Question::Redis, b"+OK POP3 ready\r\n", Some(Other)),
            (Question::Redis, b"HTTP/1.1 400 Bad Request\r\n", Some(Http)),
            (Question::Tls, b"\x16\x03\x03\0\x7a", Some(Tls)),
            (Question::Tls, b"\x15\x03\x03\0\x02\x02\x28", Some(Tls)),
            (Question::Tls, b"-ERR unknown command", Some(Other)),
        ] {
            assert_eq!(
                recognise(question, answer),
                found,
                "{question:?} {answer:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_may_be_the_right_one() {
        let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = silent.local_addr().unwrap().port();
        // Each that comes is sent away without a word.
        let _going = std::thread::spawn(move || silent.incoming().for_each(drop));
        for expected in [Protocol::Postgres, Protocol::Redis, Protocol::Tls] {
            assert_eq!(other_than(expected, "127.0.0.1", port).await, None);
        }
    }
}
