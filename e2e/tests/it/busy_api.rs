//! A key that keeps the API busy: it is bounded, named in health, and keeps nobody else out.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use viworks_testkit::deployment::{PATIENCE, Start};
use viworks_testkit::process::eventually;

use super::desk::Desk;
use super::health::at_this_moment;

const WAITS: usize = 1_100;

/// The bound of one key's connections.
const PER_KEY: usize = 512;

/// Counts what the sockets of one key came to.
#[derive(Default)]
struct Seen {
    refused: AtomicUsize,
}

/// What the API answers on a connection of its own.
async fn answer(api: &str, path: &str, key: Option<&Path>) -> String {
    let key = key.map_or_else(String::new, |key| {
        let key = std::fs::read_to_string(key).unwrap();
        format!("authorization: Bearer {}\r\n", key.trim())
    });
    let mut socket = TcpStream::connect(api).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{key}connection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    // Whoever is refused at the door may find the connection reset.
    drop(socket.read_to_string(&mut text).await);
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_waits_eleven_hundred_times_stops_nobody() {
    busy(Start::default(), "HTTP/1.1 503").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_whose_every_connection_is_worked_on_gets_no_further_one() {
    let start = Start::default().with("VIWORKS__API__WAITS_PER_KEY_MAX", "10000");
    busy(start, "HTTP/1.1 429").await;
}

/// One key waits on eleven hundred connections; what is beyond its share is answered with `refusal`.
async fn busy(start: Start, refusal: &'static str) {
    const SLOW: &str = "[[command]]\nname = \"test.slow\"\ntitle = \"takes its time\"\nrisk = \"read\"\nidempotent = true\n\
                        argv = [\"/bin/sleep\", \"600\"]\ntimeout_ms = 900000\n";
    let start = start
        .with("VIWORKS__API__KEY_REQUESTS_BURST", "100000")
        .with("VIWORKS__API__KEY_REQUESTS_PER_MINUTE", "1000000");
    let desk = Desk::of(&["gw-1"], SLOW, start).await;
    let run = desk.system.submit("test.slow", "slow").await;
    let body = json!({"name": "a reader", "scopes": ["runs:read"]});
    let made = desk.system.post("/v1/apikeys", &body).await;
    let key = made["secret"].as_str().unwrap();
    let api = desk.system.api_url();
    let api = api.strip_prefix("http://").unwrap();
    let request = format!(
        "GET /v1/runs/{run}/wait?timeout_ms=60000 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n"
    );
    let seen = Arc::new(Seen::default());
    let mut readers = JoinSet::new();
    for number in 0..WAITS {
        let mut socket = TcpStream::connect(api).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let seen = Arc::clone(&seen);
        readers.spawn(async move {
            let mut answer = vec![0; 64 * 1024];
            let mut refused = false;
            while let Ok(bytes @ 1..) = socket.read(&mut answer).await {
                let text = String::from_utf8_lossy(&answer[..bytes]);
                if !refused && text.starts_with(refusal) {
                    refused = true;
                    seen.refused.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        if number % 50 == 0 {
            let lives = answer(api, "/livez", None).await;
            assert!(lives.starts_with("HTTP/1.1 200"), "{number}: {lives}");
            let listed = answer(api, "/v1/gateways", Some(&desk.token)).await;
            assert!(listed.starts_with("HTTP/1.1 200"), "{number}: {listed}");
        }
    }
    eventually(
        "what is beyond the bound is refused",
        PATIENCE,
        async || {
            let refused = seen.refused.load(Ordering::SeqCst);
            (refused >= WAITS - PER_KEY).then_some(())
        },
    )
    .await;
    let health = desk.system.get("/v1/health").await.to_string();
    assert!(health.contains("api.key_full"), "{health}");
    assert!(health.contains("a reader"), "{health}");
    let lives = answer(api, "/livez", None).await;
    assert!(lives.starts_with("HTTP/1.1 200"), "{lives}");
    readers.abort_all();
    eventually("health speaks of it no more", PATIENCE, async || {
        let health = desk.system.get("/v1/health").await;
        let health = at_this_moment(&health);
        (!health.contains("api.key_full")).then_some(())
    })
    .await;
}
