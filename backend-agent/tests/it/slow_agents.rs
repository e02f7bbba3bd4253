//! The bounds of the agents' listener before there is a session: who is slow, or sends too much, is ended, and holds a
//! place for no longer than that.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, interval, timeout};
use viworks_backend_agent::config::AgentsConfig;
use viworks_runtime::clock::SystemClock;

use crate::inbound::Backend;
use crate::pki;

const PATIENCE: Duration = Duration::from_secs(20);

/// How long each step may take here.
const LIMIT: Duration = Duration::from_millis(400);

async fn started(change: impl FnOnce(&mut AgentsConfig)) -> Backend {
    let folder = pki::initialised();
    Backend::start_changed(folder, Arc::new(SystemClock), |config| change(&mut config.agents)).await
}

/// What a connection that is written to by `write` says until it ends, and after how long that is.
async fn until_its_end<S>(socket: S, write: impl AsyncFnOnce(&mut tokio::io::WriteHalf<S>)) -> (String, Duration)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite,
{
    let begun = Instant::now();
    let (mut read, mut written) = tokio::io::split(socket);
    let mut said = Vec::new();
    let ends = async {
        // However it ends, by a word or without one.
        let _end = read.read_to_end(&mut said).await;
    };
    let both = async {
        tokio::select! {
            () = ends => {}
            () = async { write(&mut written).await; std::future::pending().await } => {}
        }
    };
    timeout(PATIENCE, both).await.expect("the connection ends");
    (String::from_utf8_lossy(&said).into_owned(), begun.elapsed())
}

#[tokio::test]
async fn whoever_says_nothing_is_ended_at_the_limit_of_tls() {
    let backend = started(|agents| agents.tls_timeout = LIMIT).await;
    let socket = TcpStream::connect(backend.address()).await.unwrap();
    let (said, took) = until_its_end(socket, async |_silent| {}).await;
    assert_eq!(said, "");
    assert!(took >= LIMIT, "{took:?}");
    backend.stop().await;
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_gets_no_more_time_than_one_that_does_not_come() {
    let backend = started(|agents| agents.upgrade_timeout = LIMIT).await;
    let material = backend.join("gw-1").await;
    let socket = backend.tls(Some(&material.certificate)).await.unwrap();
    let (said, took) = until_its_end(socket, async |slow| {
        let mut pace = interval(LIMIT / 20);
        for byte in "GET /agent/v1/connect HTTP/1.1\r\nx: ".bytes().chain(std::iter::repeat(b'x')) {
            pace.tick().await;
            if slow.write_all(&[byte]).await.is_err() || slow.flush().await.is_err() {
                return;
            }
        }
    })
    .await;
    assert!(!said.contains("101"), "{said}");
    assert!(took >= LIMIT && took < 10 * LIMIT, "{took:?}");
    backend.stop().await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_and_the_next_gateway_gets_in() {
    let backend = started(|_agents| {}).await;
    let material = backend.join("gw-1").await;
    let long = format!("x: {}\r\n", "x".repeat(9_000));
    let many = (0..40).map(|number| format!("x-{number}: 1\r\n")).collect::<String>();
    for headers in [long, many] {
        let socket = backend.tls(Some(&material.certificate)).await.unwrap();
        let (said, _took) = until_its_end(socket, async |large| {
            let head = format!("GET /agent/v1/connect HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
            // It may be cut before it is whole.
            let _sent = large.write_all(head.as_bytes()).await;
            let _sent = large.flush().await;
        })
        .await;
        assert!(said.starts_with("HTTP/1.1 431 "), "{said}");
    }
    let _gateway = backend.dial(&material).await;
    backend.stop().await;
}

#[tokio::test]
async fn whoever_is_upgraded_and_says_no_hello_is_ended_with_its_code() {
    let backend = started(|agents| agents.hello_timeout = LIMIT).await;
    let material = backend.join("gw-1").await;
    let mut gateway = backend.dial(&material).await;
    assert_eq!(gateway.close_number().await, Some(4_009));
    backend.stop().await;
}
