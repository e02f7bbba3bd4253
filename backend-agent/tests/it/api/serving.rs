//! The API on a socket: slow clients, many clients, and the end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use viworks_backend_agent::api::{ApiLimits, serve};
use viworks_backend_agent::command::bus::OutputChunk;
use viworks_common::id::RunId;
use viworks_common::wire::message::OutputStream;
use viworks_runtime::lifecycle::Lifecycle;
use viworks_testkit::process::eventually;

use super::harness::{Backend, PROXY, catalogue, now};

const PATIENCE: Duration = Duration::from_secs(30);

async fn start(backend: &Backend, limits: ApiLimits) -> (SocketAddr, Lifecycle) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let lifecycle = Lifecycle::new();
    let serving = serve(
        listener,
        Arc::clone(&backend.state),
        limits,
        lifecycle.clone(),
    );
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
    let key = backend.key_with(&[viworks_api::Scope::RunsWrite]).await;
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
    let head = format!("GET /livez HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    assert!(read_all(&mut socket).await.starts_with("HTTP/1.1 431"));
    lifecycle.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn a_follower_who_reads_nothing_is_cut_and_its_place_is_free_again() {
    let backend = Backend::with(|limits, _queue| {
        limits.send_timeout = Duration::from_millis(300);
        limits.streams_max = 1;
    })
    .await;
    let (address, lifecycle) = start(&backend, backend.limits).await;
    let holder = backend.connect("gw-1", catalogue()).await;
    let run = backend.submit_uptime().await;
    let commands = backend.get(&format!("/v1/runs/{run}/commands")).await;
    let command = commands.json()["items"][0]["id"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let key = backend.key_with(&[viworks_api::Scope::RunsRead]).await;
    let request = format!(
        "GET /v1/runs/{run}/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n"
    );
    let _silent = silent(address, &request).await;
    let run: RunId = run.parse().unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut offset = 0;
    loop {
        // More than the kernel takes for somebody who does not read.
        let data = vec![b'x'; 64 * 1024];
        let bytes = u64::try_from(data.len()).unwrap();
        let chunk = OutputChunk {
            at: now(),
            command_id: command,
            agent_id: holder.agent_id,
            stream: OutputStream::Stdout,
            offset,
            data,
        };
        offset += bytes;
        backend.bus.output(run, chunk);
        let text = backend.metrics.encode().unwrap();
        if text.contains("viworks_api_connections_cut_total{reason=\"send_timeout\"} 1") {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{text}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Anything but 200 fails in here.
    let path = format!("/v1/runs/{run}/events");
    drop(backend.follow(&path, None).await);
    lifecycle.shutdown(PATIENCE).await;
}

/// Answers of `/livez` so far.
fn probes_answered(backend: &Backend) -> u64 {
    let text = backend.metrics.encode().unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("viworks_api_requests_total") && line.contains("/livez"));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_stranger_that_asks_a_thousand_times_at_once_is_answered_at_its_pace() {
    let backend = Backend::new().await;
    let (address, lifecycle) = start(&backend, backend.limits).await;
    let key = backend.key_with(&[viworks_api::Scope::GatewaysRead]).await;
    let began = tokio::time::Instant::now();
    let requests = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1_000);
    let mut stranger = silent(address, &requests).await;
    let mut answers = [0; 64 * 1024];
    while probes_answered(&backend) < 20 {
        assert!(stranger.read(&mut answers).await.unwrap() > 0);
    }
    // Who has a key asks as often as its quota allows, on one connection.
    let request =
        format!("GET /v1/gateways HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n");
    let last = format!(
        "GET /v1/gateways HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\r\n"
    );
    let mut known = silent(address, &(request.repeat(99) + &last)).await;
    let text = read_all(&mut known).await;
    assert_eq!(text.matches("HTTP/1.1 200").count(), 100, "{text}");
    // Five in each second since, whatever the machine: the law of the pace, not its speed.
    let answered = probes_answered(&backend);
    let most = 21 + began.elapsed().as_millis() / 200;
    assert!(u128::from(answered) <= most, "{answered} of {most}");
    lifecycle.shutdown(PATIENCE).await;
}

/// Sends a request and reads nothing.
async fn silent(address: SocketAddr, request: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    socket
}

async fn status_of(address: SocketAddr, key: &str) -> String {
    let request = format!(
        "GET /v1/gateways HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n"
    );
    let mut socket = silent(address, &request).await;
    let answer = read_all(&mut socket).await;
    answer.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn strangers_who_read_nothing_keep_nobody_out_and_are_cut() {
    let backend = Backend::new().await;
    let limits = ApiLimits {
        connections_max: 16,
        per_source_max: 8,
        send_timeout: Duration::from_millis(500),
        header_timeout: Duration::from_secs(1),
        ..backend.limits
    };
    let (address, lifecycle) = start(&backend, limits).await;
    let request = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(64);
    let mut strangers = Vec::new();
    for _ in 0..40 {
        strangers.push(silent(address, &request).await);
        assert_eq!(status_of(address, backend.key()).await, "HTTP/1.1 200 OK");
    }
    let text = backend.metrics.encode().unwrap();
    let cut = |reason: &str| {
        let line = format!("viworks_api_connections_cut_total{{reason=\"{reason}\"}} ");
        text.contains(&line)
    };
    assert!(cut("source_full"), "{text}");
    for mut socket in strangers {
        // However it ends, it ends.
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut rest)).await;
        drop(ended.expect("a stranger's socket is closed"));
    }
    lifecycle.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn a_client_that_does_not_take_its_answer_is_cut_and_counted() {
    let backend = Backend::new().await;
    let limits = ApiLimits {
        send_timeout: Duration::from_millis(300),
        ..backend.limits
    };
    let (address, lifecycle) = start(&backend, limits).await;
    let request = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(200);
    let _silent = silent(address, &request).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let text = backend.metrics.encode().unwrap();
        if text.contains("viworks_api_connections_cut_total{reason=\"send_timeout\"} 1")
            && text.contains("viworks_api_connections 0")
        {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    lifecycle.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn whoever_showed_a_key_keeps_its_place_and_where_nobody_can_go_the_newcomer_is_told_so() {
    let backend = Backend::new().await;
    let limits = ApiLimits {
        connections_max: 2,
        ..backend.limits
    };
    let (address, lifecycle) = start(&backend, limits).await;
    let request = format!(
        "GET /v1/gateways HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        backend.key()
    );
    let mut holders = Vec::new();
    for _ in 0..2 {
        let mut holder = silent(address, &request).await;
        let mut byte = [0; 1];
        holder.read_exact(&mut byte).await.unwrap();
        holders.push(holder);
    }
    let mut late = silent(address, "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let answer = read_all(&mut late).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 503"),
        "{answer}"
    );
    let text = backend.metrics.encode().unwrap();
    assert!(
        text.contains("viworks_api_connections_refused_total{bound=\"full\"} 1"),
        "{text}"
    );
    let health = backend.get("/v1/health").await;
    assert!(health.text.contains("api.full"), "{}", health.text);
    drop(holders);
    lifecycle.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn one_key_that_reads_nothing_keeps_no_other_key_out() {
    let backend = Backend::new().await;
    let limits = ApiLimits {
        connections_max: 16,
        per_key_max: 4,
        ..backend.limits
    };
    let (address, lifecycle) = start(&backend, limits).await;
    let greedy = backend.key_with(&[viworks_api::Scope::GatewaysRead]).await;
    let request =
        format!("GET /v1/gateways HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {greedy}\r\n\r\n");
    let mut held = Vec::new();
    for _ in 0..40 {
        let mut socket = silent(address, &request).await;
        let mut byte = [0; 1];
        socket.read_exact(&mut byte).await.unwrap();
        held.push(socket);
        assert_eq!(status_of(address, backend.key()).await, "HTTP/1.1 200 OK");
    }
    let text = backend.metrics.encode().unwrap();
    assert!(
        text.contains("viworks_api_connections_cut_total{reason=\"key_full\"} 36"),
        "{text}"
    );
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

#[tokio::test]
async fn a_request_over_a_socket_has_exactly_one_host() {
    let backend = Backend::new().await;
    let (address, lifecycle) = start(&backend, backend.limits).await;
    for (hosts, status) in [
        ("", "400"),
        ("host: a\r\nhost: b\r\n", "400"),
        ("host: a\r\n", "200"),
    ] {
        let request = format!("GET /livez HTTP/1.1\r\n{hosts}connection: close\r\n\r\n");
        let mut socket = silent(address, &request).await;
        let answer = read_all(&mut socket).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{hosts}: {answer}"
        );
    }
    lifecycle.shutdown(PATIENCE).await;
}

#[tokio::test]
async fn keys_that_keep_every_place_of_keys_busy_together_are_told_of_in_health() {
    let backend = Backend::new().await;
    let limits = ApiLimits {
        connections_max: 16,
        ..backend.limits
    };
    let (address, lifecycle) = start(&backend, limits).await;
    let _holder = backend.connect("gw-1", catalogue()).await;
    let run = backend.submit_uptime().await;
    let wait = |key: &str, millis: u32| {
        format!(
            "GET /v1/runs/{run}/wait?timeout_ms={millis} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n"
        )
    };
    let mut waiting = Vec::new();
    // The last of the sixteen places is for newcomers. Whoever asks while a place is still free may get it before one
    // that is to wait there, which is then refused: so one more comes to wait with every attempt.
    let refusal = eventually("nobody else gets in", PATIENCE, async || {
        let missing = 15_usize.saturating_sub(waiting.len()).max(1);
        for _ in 0..missing {
            let key = backend.key_with(&[viworks_api::Scope::RunsRead]).await;
            waiting.push(silent(address, &wait(&key, 60_000)).await);
        }
        let mut socket = silent(address, &wait(backend.key(), 0)).await;
        let answer = read_all(&mut socket).await;
        let refused = answer.starts_with("HTTP/1.1 503 ") && answer.contains("VW-H-010");
        refused.then_some(answer)
    })
    .await;
    assert!(refusal.contains("too many connections"), "{refusal}");
    let health = backend.get("/v1/health").await;
    assert!(health.text.contains("api.full"), "{}", health.text);
    assert!(!health.text.contains("api.key_full"), "{}", health.text);
    drop(waiting);
    lifecycle.shutdown(PATIENCE).await;
}

/// The answer to a request that says of itself where it came from.
async fn claiming(api: SocketAddr, from: &str, key: &str, path: &str, body: &str) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    let mut socket = socket.connect(api).await.unwrap();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nx-real-ip: 203.0.113.9\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    read_all(&mut socket).await
}

#[tokio::test]
async fn the_audit_trail_says_where_a_request_came_from_as_far_as_whoever_says_so_is_believed() {
    const RUN: &str = r#"{"command": "sys.uptime", "targets": "all"}"#;
    const KEY: &str = r#"{"name": "ci", "scopes": ["runs:read"]}"#;
    let backend = Backend::new().await;
    let (address, lifecycle) = start(&backend, backend.limits).await;
    let _holder = backend.connect("gw-1", catalogue()).await;
    let weak = backend.key_with(&[viworks_api::Scope::RunsRead]).await;
    for (from, key, path, body, status, peer) in [
        (PROXY, backend.key(), "/v1/runs", RUN, "201", "203.0.113.9"),
        (
            "127.0.0.1",
            backend.key(),
            "/v1/runs",
            RUN,
            "201",
            "127.0.0.1",
        ),
        (
            PROXY,
            backend.key(),
            "/v1/apikeys",
            KEY,
            "201",
            "203.0.113.9",
        ),
        (PROXY, &weak, "/v1/apikeys", KEY, "403", "203.0.113.9"),
    ] {
        let answer = claiming(address, from, key, path, body).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
        let audit = backend.get("/v1/audit?limit=1").await.json();
        let record = &audit["items"][0];
        assert_eq!(record["detail"]["peer"], peer, "{path}: {audit}");
    }
    lifecycle.shutdown(PATIENCE).await;
}
