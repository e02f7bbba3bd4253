//! The API on a socket: slow clients, many clients, and the end.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use viworks_backend_agent::api::{ApiLimits, serve};
use viworks_runtime::lifecycle::Lifecycle;

use super::harness::Backend;

const PATIENCE: Duration = Duration::from_secs(30);

async fn start(backend: &Backend, limits: ApiLimits) -> (SocketAddr, Lifecycle) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let lifecycle = Lifecycle::new();
    let serving = serve(listener, backend.router.clone(), limits, lifecycle.clone());
    drop(lifecycle.spawn("api", serving));
    (address, lifecycle)
}

async fn read_all(socket: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let read = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut text))
        .await
        .unwrap();
    // A peer that resets instead of closing has closed as well.
    drop(read);
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn a_request_over_a_socket_is_answered() {
    let backend = Backend::new().await;
    let (address, lifecycle) = start(&backend, backend.limits).await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket
        .write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    assert!(read_all(&mut socket).await.starts_with("HTTP/1.1 200"));
    lifecycle.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn a_client_that_dawdles_over_its_head_is_cut_off() {
    let backend = Backend::new().await;
    let limits = ApiLimits {
        header_timeout: Duration::from_millis(100),
        ..backend.limits
    };
    let (address, lifecycle) = start(&backend, limits).await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket
        .write_all(b"GET /livez HTTP/1.1\r\nhost:")
        .await
        .unwrap();
    assert!(!read_all(&mut socket).await.contains("200 OK"));
    lifecycle.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn a_body_that_never_comes_ends_at_the_request_timeout() {
    let backend =
        Backend::with(|limits, _queue| limits.request_timeout = Duration::from_millis(300)).await;
    let (address, lifecycle) = start(&backend, backend.limits).await;
    let key = backend
        .key_with(&[viworks_common::api::Scope::RunsWrite])
        .await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/runs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let answer = read_all(&mut socket).await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("VW-H-009"),
        "{answer}"
    );
    lifecycle.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn too_many_headers_are_refused() {
    let backend = Backend::new().await;
    let (address, lifecycle) = start(&backend, backend.limits).await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    let headers: String = (0..100)
        .map(|number| format!("x-{number}: 1\r\n"))
        .collect();
    let head = format!("GET /livez HTTP/1.1\r\n{headers}\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    assert!(read_all(&mut socket).await.starts_with("HTTP/1.1 431"));
    lifecycle.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn connections_over_the_bound_wait_for_a_place() {
    let backend = Backend::new().await;
    let limits = ApiLimits {
        connections_max: 1,
        ..backend.limits
    };
    let (address, lifecycle) = start(&backend, limits).await;
    let request = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(request).await.unwrap();
    let mut byte = [0; 1];
    first.read_exact(&mut byte).await.unwrap();
    let mut second = TcpStream::connect(address).await.unwrap();
    second.write_all(request).await.unwrap();
    let early =
        tokio::time::timeout(Duration::from_millis(200), second.read_exact(&mut byte)).await;
    assert!(early.is_err(), "there was no place for the second");
    drop(first);
    tokio::time::timeout(PATIENCE, second.read_exact(&mut byte))
        .await
        .unwrap()
        .unwrap();
    lifecycle.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn an_idle_connection_does_not_hold_up_the_end() {
    let backend = Backend::new().await;
    let (address, lifecycle) = start(&backend, backend.limits).await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket
        .write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut byte = [0; 1];
    socket.read_exact(&mut byte).await.unwrap();
    let outcome = lifecycle.shutdown(PATIENCE).await;
    assert!(outcome.aborted.is_empty(), "{outcome:?}");
    assert!(TcpStream::connect(address).await.is_err());
}
