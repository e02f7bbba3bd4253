//! The door behind a proxy that passes TLS through: a ticket's networks, the bounds of one address and the audit trail
//! are about whoever connects to the proxy.

use serde_json::json;
use tokio::net::TcpStream;
use viworks_common::enrolment::Ticket;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::door;
use viworks_testkit::nginx::Nginx;
use viworks_testkit::process::{Said, eventually, finish};

use super::{LIMIT, enroll, folder, gateways, latest_attempt, ticket, with_door};
use crate::behind_nginx::{PROXY, behind, nginx_before, nginx_before_door};

/// A backend whose door is told by a proxy at this address who connects.
fn told_by(start: Start, proxy: &str) -> Start {
    start
        .with("VIWORKS__ENROLMENT__LISTEN", "127.0.0.1:0")
        .with("VIWORKS__ENROLMENT__PROXY_PROTOCOL", "require")
        .with("VIWORKS__ENROLMENT__TRUSTED_PROXIES", proxy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_enrols_through_nginx_and_is_known_by_its_own_address() {
    if !Nginx::is_installed() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    system.start_backend(told_by(behind(), PROXY)).await;
    let (front, agents) = (nginx_before_door(&system), nginx_before(&[&system]));
    let through = async |name: &str, ticket: &str| -> Said {
        // The same ticket with the address that nginx has in this test.
        let ticket = Ticket {
            url: format!("https://localhost:{}", front.port()),
            ..ticket.parse().unwrap()
        };
        let home = folder(&system, name);
        let mut command = enroll(&system, &home, &ticket.expose(), &["--name", name]);
        command.env("VIWORKS__OUTBOUND__URL", agents.agents_url());
        finish(command, LIMIT).await
    };
    // The proxy's own address is nobody's.
    let of_proxy = ticket(&system, &json!({"uses": 1, "networks": [PROXY]})).await;
    let said = through("gw-proxy", &of_proxy).await.ended_with(77);
    let told = "not for machines at this address";
    assert!(said.stderr.contains(told), "{said:?}");
    let attempt = latest_attempt(&system).await;
    assert_eq!(attempt["outcome"], "refused", "{attempt}");
    assert_eq!(attempt["detail"]["why"], "other_network", "{attempt}");
    assert_eq!(attempt["detail"]["peer"], "127.0.0.1", "{attempt}");
    assert!(gateways(&system).await.is_empty());
    let own = ticket(&system, &json!({"uses": 1, "networks": ["127.0.0.1"]})).await;
    let said = through("gw-1", &own).await.ended_with(0);
    let told = "takes this gateway's certificate";
    assert!(said.stdout.contains(told), "{said:?}");
    let attempt = latest_attempt(&system).await;
    assert_eq!(attempt["outcome"], "done", "{attempt}");
    assert_eq!(attempt["detail"]["peer"], "127.0.0.1", "{attempt}");
    // Whoever goes past nginx is not heard.
    let past = ticket(&system, &json!({"uses": 1})).await;
    let home = folder(&system, "gw-past");
    let said = finish(enroll(&system, &home, &past, &[]), LIMIT).await;
    let said = said.ended_with(69);
    assert!(said.stderr.contains("is not reached"), "{said:?}");
    eventually("the log says so", PATIENCE, async || {
        let log = system.backend().log();
        let told = "does not come through a proxy of enrolment.trusted_proxies";
        log.contains(told).then_some(())
    })
    .await;
}

/// The binary header (version 2) of a proxy for whoever has this address.
fn binary(client: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend(client);
    header.extend(b"\xc6\x33\x64\x01\xc3\x50\x01\xbb");
    header
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_at_the_door_are_counted_for_the_client_and_not_for_the_proxy() {
    let mut system = Deployment::new(Binaries::shipped());
    let start = told_by(Start::default(), "127.0.0.1");
    let start = start
        .with("VIWORKS__ENROLMENT__REQUESTS_PER_MINUTE", "2")
        .with("VIWORKS__ENROLMENT__CONNECTIONS_MAX", "16");
    system.start_backend(start).await;
    let body = b"{}";
    let authority = system.authority();
    let from = async |header: &[u8]| {
        let asked = door::ask(system.door_address(), &authority, header, body, None);
        asked
            .await
            .map(|(status, said)| (status, said["code"].clone()))
    };
    // Whoever may connect as a proxy and says nothing keeps nobody out.
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(system.door_address()).await.unwrap());
    }
    let one = binary([203, 0, 113, 9]);
    let wrong = (400, json!("bad_request"));
    for expected in [&wrong, &wrong, &(429, json!("rate_limited"))] {
        assert_eq!(from(&one).await.unwrap(), *expected);
    }
    let other = b"PROXY TCP4 203.0.113.10 198.51.100.1 50000 443\r\n";
    assert_eq!(from(other).await.unwrap(), wrong);
    drop(silent);
    // Without a header nobody is served.
    from(b"").await.unwrap_err();
    eventually("the log says so", PATIENCE, async || {
        let log = system.backend().log();
        let told = "with enrolment.proxy_protocol = \"require\"";
        log.contains(told).then_some(())
    })
    .await;
    // And a header is no beginning where none is expected.
    let mut system = Deployment::new(Binaries::shipped());
    system.start_backend(with_door()).await;
    let (address, authority) = (system.door_address().to_owned(), system.authority());
    let asked = door::ask(&address, &authority, &one, body, None).await;
    asked.unwrap_err();
    let asked = door::ask(&address, &authority, b"", body, None).await;
    assert_eq!(asked.unwrap().0, 400);
    eventually("the log says so", PATIENCE, async || {
        let log = system.backend().log();
        let told = "needs enrolment.proxy_protocol = \"require\"";
        log.contains(told).then_some(())
    })
    .await;
}
