//! Whoever lies to nginx about where a request comes from, or where it ends: both read the same, and the audit trail
//! has no address that somebody made up.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE};
use viworks_testkit::nginx::{API_NAME, Nginx};

use super::behind_nginx::{PROXY, behind, nginx_before, token};

/// Where nobody is.
const CLAIMED: &str = "203.0.113.9";

/// A request that makes an API key, with these headers beside those that it needs.
fn creating(token: &str, name: &str, headers: &str) -> String {
    let body = format!(r#"{{"name": "{name}", "scopes": ["runs:read"]}}"#);
    format!(
        "POST /v1/apikeys HTTP/1.1\r\nhost: {API_NAME}\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    )
}

/// What a request says about its end that two readers could read differently. LENGTH is that of all that follows.
const ENDS: [&str; 14] = [
    "content-length: LENGTH\r\ntransfer-encoding: chunked\r\n",
    "transfer-encoding: chunked\r\ncontent-length: LENGTH\r\n",
    "content-length: 5\r\ncontent-length: LENGTH\r\n",
    "content-length: LENGTH\r\ntransfer-encoding: xchunked\r\n",
    "content-length: LENGTH\r\ntransfer-encoding: chunked, identity\r\n",
    "content-length: LENGTH\r\ntransfer-encoding: \x0bchunked\r\n",
    "content-length: LENGTH\r\ntransfer-encoding : chunked\r\n",
    "content-length: LENGTH\r\nx-a: b\r\n transfer-encoding: chunked\r\n",
    "content-length: LENGTH\r\nx-a: b\rtransfer-encoding: chunked\r\n",
    "content-length: LENGTH\r\nx-a: b\ntransfer-encoding: chunked\r\n",
    "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
    "content-length: +5\r\n",
    "content-length: 5, 5\r\n",
    "host: elsewhere\r\ncontent-length: 5\r\n",
];

/// A request with such an end, in which another one is hidden.
fn hiding(token: &str, end: &str) -> String {
    let claim = format!("x-real-ip: {CLAIMED}\r\nconnection: close\r\n");
    let hidden = creating(token, "hidden", &claim);
    let end = end.replace("LENGTH", &(hidden.len() + 5).to_string());
    format!(
        "POST /v1/runs HTTP/1.1\r\nhost: {API_NAME}\r\nauthorization: Bearer {token}\r\n{end}\r\n0\r\n\r\n{hidden}"
    )
}

/// Every address that the audit trail has for the making of keys, newest first.
async fn origins(system: &Deployment) -> Vec<Value> {
    let audit = system.get("/v1/audit?limit=100").await;
    assert!(!audit.to_string().contains(CLAIMED), "{audit}");
    let records = audit["items"].as_array().unwrap().iter();
    let made = records.filter(|record| record["action"] == "api_key.create");
    made.map(|record| record["detail"]["peer"].clone())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_through_nginx_comes_from_where_it_claims() {
    if !Nginx::is_installed() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    system.start_backend(behind()).await;
    let nginx = nginx_before(&[&system]);
    let token = token(&system);
    let before = origins(&system).await.len();
    let mut made = 0;
    for (headers, status) in [
        (format!("x-real-ip: {CLAIMED}\r\n"), "201"),
        (
            format!("X-REAL-IP: {CLAIMED}\r\nx-real-ip: {CLAIMED}\r\n"),
            "201",
        ),
        (format!("x_real_ip: {CLAIMED}\r\n"), "201"),
        (
            format!("x-forwarded-for: {CLAIMED}\r\nforwarded: for={CLAIMED}\r\n"),
            "201",
        ),
        (format!("x-real-ip : {CLAIMED}\r\n"), "400"),
        (format!("x-a: b\r\n x-real-ip: {CLAIMED}\r\n"), ""),
        // More than nginx reads, in one header and in many.
        (format!("x-real-ip: {}\r\n", "1".repeat(40_000)), "400"),
        (format!("x-a: {}\r\n", "1".repeat(4_000)).repeat(20), "400"),
    ] {
        let request = creating(&token, "plain", &format!("{headers}connection: close\r\n"));
        let answer = nginx.speak(request.as_bytes()).await.unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{headers}: {answer}"
        );
        made += usize::from(answer.starts_with("HTTP/1.1 201"));
    }
    for end in ENDS {
        let answer = nginx.speak(hiding(&token, end).as_bytes()).await.unwrap();
        // What nginx takes for a second request is one, and it says where that came from.
        made += answer.matches("HTTP/1.1 201").count();
    }
    let origins = origins(&system).await;
    assert_eq!(origins.len() - before, made, "{origins:#?}");
    let made = origins.iter().take(made);
    assert!(made.clone().all(|peer| peer == "127.0.0.1"), "{origins:#?}");

    // A header of the PROXY protocol where nginx expects TLS.
    let mut stream = TcpStream::connect(("127.0.0.1", nginx.port()))
        .await
        .unwrap();
    let line = format!("PROXY TCP4 {CLAIMED} 127.0.0.1 50000 443\r\n");
    stream.write_all(line.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    drop(ended.expect("it is closed"));
    assert!(
        !String::from_utf8_lossy(&answer).contains("HTTP/1.1 2"),
        "{answer:?}"
    );
    assert!(!system.backend().log().contains(CLAIMED));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_with_two_ends_is_refused_even_from_the_proxy() {
    let mut system = Deployment::new(Binaries::shipped());
    system.start_backend(behind()).await;
    let token = token(&system);
    let before = origins(&system).await.len();
    let api = system
        .api_url()
        .trim_start_matches("http://")
        .parse()
        .unwrap();
    for end in ENDS {
        let request = hiding(&token, end);
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{PROXY}:0").parse().unwrap()).unwrap();
        let mut stream = socket.connect(api).await.unwrap();
        drop(stream.write_all(request.as_bytes()).await);
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        drop(ended.expect("it is closed"));
        let answer = String::from_utf8_lossy(&answer);
        let answers = answer.matches("HTTP/1.1 ").count();
        assert!(
            answer.starts_with("HTTP/1.1 4") && answers == 1,
            "{request}\n{answer}"
        );
    }
    assert_eq!(origins(&system).await.len(), before);
}
