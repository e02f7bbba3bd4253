//! The bounds of both listeners for whoever is slow or sends too much: such a one is ended, and holds a place for no
//! longer than that.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::{Instant, interval, timeout};
use viworks_backend_agent::config::Config;
use viworks_runtime::clock::SystemClock;

use crate::inbound::Backend;
use crate::pki;

const PATIENCE: Duration = Duration::from_secs(20);

/// How long each step may take here.
const LIMIT: Duration = Duration::from_millis(400);

async fn started(change: impl FnOnce(&mut Config)) -> Backend {
    Backend::start_changed(pki::initialised(), Arc::new(SystemClock), change).await
}

/// What a connection that is written to by `write` says until it ends, and after how long that is.
async fn until_its_end<S>(
    socket: S,
    write: impl AsyncFnOnce(&mut WriteHalf<S>),
) -> (String, Duration)
where
    S: AsyncRead + AsyncWrite,
{
    let begun = Instant::now();
    let (mut read, mut written) = tokio::io::split(socket);
    let mut said = Vec::new();
    let ends = async {
        // However it ends, by a word or without one.
        let _end = read.read_to_end(&mut said).await;
    };
    let both = async {
        let writes = async {
            write(&mut written).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = ends => {}
            () = writes => {}
        }
    };
    timeout(PATIENCE, both).await.expect("the connection ends");
    (String::from_utf8_lossy(&said).into_owned(), begun.elapsed())
}

#[tokio::test]
async fn whoever_says_nothing_is_ended_at_the_limit_of_tls() {
    let backend = started(|config| config.agents.tls_timeout = LIMIT).await;
    let socket = TcpStream::connect(backend.app.agents).await.unwrap();
    let (said, took) = until_its_end(socket, async |_silent| {}).await;
    assert_eq!(said, "");
    assert!(took >= LIMIT, "{took:?}");
    backend.stop().await;
}

/// Sends a head byte by byte, and never comes to its end.
async fn dawdle<S: AsyncWrite + Unpin>(slow: &mut S) {
    let mut pace = interval(LIMIT / 20);
    let head = "GET /agent/v1/connect HTTP/1.1\r\nx: ".bytes();
    for byte in head.chain(std::iter::repeat(b'x')) {
        pace.tick().await;
        if slow.write_all(&[byte]).await.is_err() || slow.flush().await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_gets_no_more_time_than_one_that_does_not_come() {
    let backend = started(|config| {
        config.agents.upgrade_timeout = LIMIT;
        config.api.header_timeout = LIMIT;
    })
    .await;
    let material = backend.join("gw-1").await;
    let agent = backend.tls(Some(&material.certificate)).await.unwrap();
    let agent = until_its_end(agent, async |slow| dawdle(slow).await).await;
    let operator = TcpStream::connect(backend.app.api).await.unwrap();
    let operator = until_its_end(operator, async |slow| dawdle(slow).await).await;
    for (said, took) in [agent, operator] {
        assert!(!said.contains("101") && !said.contains("200"), "{said}");
        assert!(took >= LIMIT && took < 10 * LIMIT, "{took:?}");
    }
    let _gateway = backend.dial(&material).await;
    backend.stop().await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_and_the_next_one_gets_in() {
    let backend = started(|_config| {}).await;
    let material = backend.join("gw-1").await;
    let long = |bytes: usize| format!("x: {}\r\n", "x".repeat(bytes));
    let many = |number: usize| "x: 1\r\n".repeat(number);
    for headers in [long(9_000), many(33)] {
        let socket = backend.tls(Some(&material.certificate)).await.unwrap();
        refused(socket, &headers).await;
    }
    for headers in [long(17_000), many(65)] {
        let socket = TcpStream::connect(backend.app.api).await.unwrap();
        refused(socket, &headers).await;
    }
    let _gateway = backend.dial(&material).await;
    backend.stop().await;
}

/// Sends a head with these headers, and is told that they are too many or too large.
async fn refused<S: AsyncRead + AsyncWrite>(socket: S, headers: &str) {
    let (said, _took) = until_its_end(socket, async |large| {
        let head = format!("GET /agent/v1/connect HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
        // It may be cut before it is whole.
        let _sent = large.write_all(head.as_bytes()).await;
        let _sent = large.flush().await;
    })
    .await;
    assert!(said.starts_with("HTTP/1.1 431 "), "{said}");
}

#[tokio::test]
async fn whoever_is_upgraded_and_says_no_hello_is_ended_with_its_code() {
    let backend = started(|config| config.agents.hello_timeout = LIMIT).await;
    let material = backend.join("gw-1").await;
    let mut gateway = backend.dial(&material).await;
    assert_eq!(gateway.close_number().await, Some(4_408));
    backend.stop().await;
}
