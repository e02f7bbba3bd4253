//! One HTTP question to an agent on this machine, with an end: what `health`, `status` and `doctor` ask it.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::logging;
use crate::problem::Problems;

pub mod verdict;
pub mod walk;

/// How many seconds an agent has for its answer, which it has in memory, and `doctor` for all of its steps: whoever
/// asks about one that stands still knows it within five, the start of the program included.
pub const ANSWER_SECONDS: u64 = 4;

/// The same as a duration.
pub const ANSWER_TIME: Duration = Duration::from_secs(ANSWER_SECONDS);

/// The largest answer that is read.
const BYTES_MAX: usize = 1024 * 1024;

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body, at most 1 MiB of it.
    pub body: Vec<u8>,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// Nobody takes the connection.
    #[error("nobody takes the connection: {0}")]
    NobodyThere(io::Error),
    /// The connection was taken, or not even refused, and no whole answer came in time.
    #[error("no answer came within {} ms", .0.as_millis())]
    Late(Duration),
    /// What came is no HTTP, or too much.
    #[error("what answers is no agent: {0}")]
    Broken(String),
}

/// Tells what is wrong with the configuration beside the answer of the agent, which goes on without it. Where no agent
/// answers, it is what is wrong.
///
/// # Errors
///
/// The problems, where no agent answers.
pub fn beside(
    problems: Option<Problems>,
    answer: &Result<Answer, NoAnswer>,
) -> Result<(), Problems> {
    let Some(problems) = problems else {
        return Ok(());
    };
    match answer {
        // One that stands still has a process all the same.
        Ok(_) | Err(NoAnswer::Late(_)) => {
            logging::say(&problems.beside_an_answer());
            Ok(())
        }
        Err(NoAnswer::NobodyThere(_) | NoAnswer::Broken(_)) => Err(problems),
    }
}

/// Asks whoever listens on the unix socket at `socket`.
///
/// # Errors
///
/// When there is no whole answer within `limit`.
pub async fn unix(socket: &Path, path: &str, limit: Duration) -> Result<Answer, NoAnswer> {
    // Connecting waits, too, once as many callers wait as the socket has room for.
    let asked = async {
        let stream = UnixStream::connect(socket).await;
        let stream = stream.map_err(NoAnswer::NobodyThere)?;
        read(stream, "localhost", path, None).await
    };
    within(limit, asked).await
}

/// Asks whoever listens at `address`, without TLS.
///
/// # Errors
///
/// When there is no whole answer within `limit`.
pub async fn tcp(address: SocketAddr, path: &str, limit: Duration) -> Result<Answer, NoAnswer> {
    tcp_with(address, path, None, limit).await
}

/// The same with a key.
///
/// # Errors
///
/// When there is no whole answer within `limit`.
pub async fn tcp_with(
    address: SocketAddr,
    path: &str,
    key: Option<&str>,
    limit: Duration,
) -> Result<Answer, NoAnswer> {
    let asked = async {
        let stream = TcpStream::connect(address).await;
        let stream = stream.map_err(NoAnswer::NobodyThere)?;
        read(stream, &address.to_string(), path, key).await
    };
    within(limit, asked).await
}

async fn within(
    limit: Duration,
    asked: impl Future<Output = Result<Answer, NoAnswer>>,
) -> Result<Answer, NoAnswer> {
    let late = |_elapsed| Err(NoAnswer::Late(limit));
    timeout(limit, asked).await.unwrap_or_else(late)
}

async fn read<S>(stream: S, host: &str, path: &str, key: Option<&str>) -> Result<Answer, NoAnswer>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let broken = |error: &dyn std::fmt::Display| NoAnswer::Broken(error.to_string());
    let (mut requests, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(&error))?;
    let mut request = http::Request::get(path).header("Host", host);
    if let Some(key) = key {
        request = request.header("Authorization", format!("Bearer {key}"));
    }
    let request = request
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| broken(&error))?;
    let ask = async {
        let answer = requests.send_request(request).await;
        let answer = answer.map_err(|error| broken(&error))?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), BYTES_MAX).collect().await;
        let body = body.map_err(|error| broken(&error))?;
        drop(requests);
        Ok(Answer {
            status,
            body: body.to_bytes().to_vec(),
        })
    };
    // How the connection ends says nothing once the answer is there.
    let (answer, _served) = tokio::join!(ask, connection);
    answer
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::thread;

    use super::*;
    use crate::problem::Problem;

    const LIMIT: Duration = Duration::from_millis(300);

    #[test]
    fn a_mistake_stands_beside_an_answer_and_in_the_place_of_none() {
        let mistake = || {
            let found = Problem::of_file(Path::new("/x.toml"), "it is wrong", "mend it");
            Some(Problems::new(vec![found]))
        };
        let answer = Answer {
            status: 200,
            body: Vec::new(),
        };
        for answered in [Ok(answer), Err(NoAnswer::Late(LIMIT))] {
            beside(mistake(), &answered).unwrap();
        }
        let nobody = NoAnswer::NobodyThere(io::ErrorKind::NotFound.into());
        for nobody in [nobody, NoAnswer::Broken("no HTTP".to_owned())] {
            let nobody = Err(nobody);
            assert!(beside(mistake(), &nobody).is_err(), "{nobody:?}");
            beside(None, &nobody).unwrap();
        }
    }

    /// Answers the first connection with `text`, or takes it and says nothing until the other end is closed.
    fn server(text: Option<&'static str>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _peer) = listener.accept().unwrap();
            let mut head = [0; 256];
            let _length = stream.read(&mut head).unwrap();
            match text {
                Some(text) => stream.write_all(text.as_bytes()).unwrap(),
                None => while stream.read(&mut head).is_ok_and(|length| length > 0) {},
            }
        });
        address
    }

    #[tokio::test]
    async fn an_answer_is_told_by_its_status_and_body() {
        let text = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nnot\n";
        let answer = tcp(server(Some(text)), "/readyz", LIMIT).await.unwrap();
        assert_eq!(
            (answer.status, answer.body.as_slice()),
            (503, b"not\n".as_slice())
        );
    }

    #[tokio::test]
    async fn who_is_away_who_is_silent_and_who_is_something_else_are_told_apart() {
        let silent = tcp(server(None), "/readyz", LIMIT).await;
        assert!(matches!(silent, Err(NoAnswer::Late(_))), "{silent:?}");
        let other = tcp(server(Some("SSH-2.0-OpenSSH_9.2\r\n")), "/readyz", LIMIT).await;
        assert!(matches!(other, Err(NoAnswer::Broken(_))), "{other:?}");
        let away = unix(Path::new("/nowhere/api.sock"), "/v1/health", LIMIT).await;
        assert!(matches!(away, Err(NoAnswer::NobodyThere(_))), "{away:?}");
    }
}
