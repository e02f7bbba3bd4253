//! The agents' listener behind a proxy that passes TLS through: who may say for whom a connection is, and what follows.

use std::sync::Arc;
use std::time::Duration;

use viworks_backend_agent::config::{AgentsConfig, ProxyProtocol};
use viworks_backend_agent::data::GatewayRef;
use viworks_common::id::Tenant;
use viworks_runtime::clock::SystemClock;

use crate::inbound::Backend;
use crate::pki;

/// A backend that is told by a proxy at one of `trusted` who connects.
async fn behind(trusted: &str, change: impl FnOnce(&mut AgentsConfig)) -> Backend {
    let (folder, clock) = (pki::initialised(), Arc::new(SystemClock));
    Backend::start_changed(folder, clock, |config| {
        config.agents.proxy_protocol = ProxyProtocol::Require;
        config.agents.trusted_proxies = vec![trusted.parse().unwrap()];
        change(&mut config.agents);
    })
    .await
}

/// The line that nginx sends.
fn line(client: &str) -> Vec<u8> {
    format!("PROXY TCP4 {client} 198.51.100.1 50000 443\r\n").into_bytes()
}

/// The binary header for 203.0.113.7, with an extension.
const BINARY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x12\xcb\0\x71\x07\xc6\x33\x64\x01\xc3\x50\x01\xbb\x04\0\x03pad";

#[tokio::test]
async fn a_session_through_a_proxy_has_the_address_of_its_gateway() {
    let mut backend = behind("127.0.0.0/8", |_agents| {}).await;
    let mut last = None;
    for (number, (header, client)) in [
        (line("203.0.113.9"), "203.0.113.9:50000"),
        (BINARY.to_vec(), "203.0.113.7:50000"),
    ]
    .into_iter()
    .enumerate()
    {
        backend.preface = header;
        let name = format!("gw-{number}");
        let material = backend.join(&name).await;
        let mut gateway = backend.dial(&material).await;
        gateway.open(1, 0, &material.token).await.unwrap();
        let which = GatewayRef::Name(name.parse().unwrap());
        let tenant = Tenant::default_tenant();
        let stored = backend
            .store
            .gateway(&tenant, &which)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(stored.session.unwrap().peer_address, client);
        last = Some(gateway);
    }
    // A proxy that looks whether we are there speaks for itself.
    backend.preface = b"PROXY UNKNOWN\r\n".to_vec();
    backend.tls(None).await.unwrap();
    drop(last);
    backend.stop().await;
}

#[tokio::test]
async fn without_a_header_nobody_gets_as_far_as_tls() {
    let mut backend = behind("127.0.0.1", |_agents| {}).await;
    let material = backend.join("gw-1").await;
    backend.tls(Some(&material.certificate)).await.unwrap_err();
    for header in [&b"PROXY TCP4 somebody\r\n"[..], b"GET / HTTP/1.1\r\n\r\n"] {
        backend.preface = header.to_vec();
        backend.tls(Some(&material.certificate)).await.unwrap_err();
    }
    backend.stop().await;
}

#[tokio::test]
async fn a_header_from_elsewhere_is_not_believed() {
    let mut backend = behind("192.0.2.1", |_agents| {}).await;
    let material = backend.join("gw-1").await;
    backend.preface = line("203.0.113.9");
    backend.tls(Some(&material.certificate)).await.unwrap_err();
    backend.stop().await;
}

#[tokio::test]
async fn a_header_is_no_beginning_where_no_proxy_is_expected() {
    let folder = pki::initialised();
    let mut backend = Backend::start_on(folder, Arc::new(SystemClock)).await;
    let material = backend.join("gw-1").await;
    backend.preface = line("203.0.113.9");
    backend.tls(Some(&material.certificate)).await.unwrap_err();
    backend.preface.clear();
    backend.tls(Some(&material.certificate)).await.unwrap();
    backend.stop().await;
}

#[tokio::test]
async fn connections_are_counted_for_the_client_and_not_for_the_proxy() {
    let mut backend = behind("127.0.0.1", |agents| agents.per_source_max = 1).await;
    let (one, other) = (backend.join("gw-1").await, backend.join("gw-2").await);
    backend.preface = line("203.0.113.9");
    let held = backend.tls(Some(&one.certificate)).await.unwrap();
    backend.tls(Some(&other.certificate)).await.unwrap_err();
    backend.preface = line("203.0.113.10");
    backend.tls(Some(&other.certificate)).await.unwrap();
    drop(held);
    backend.stop().await;
}

#[tokio::test]
async fn a_client_is_the_same_in_whatever_form_its_address_is_written() {
    let mut backend = behind("::ffff:127.0.0.1", |agents| agents.per_source_max = 1).await;
    let (one, other) = (backend.join("gw-1").await, backend.join("gw-2").await);
    backend.preface = line("203.0.113.9");
    let held = backend.tls(Some(&one.certificate)).await.unwrap();
    for again in ["::ffff:203.0.113.9", "::FFFF:cb00:7109"] {
        let again = format!("PROXY TCP6 {again} ::1 50000 443\r\n");
        backend.preface = again.into_bytes();
        backend.tls(Some(&other.certificate)).await.unwrap_err();
    }
    drop(held);
    backend.stop().await;
}

#[tokio::test]
async fn a_proxy_that_does_not_finish_its_header_is_not_waited_for() {
    let soon = Duration::from_millis(200);
    let mut backend = behind("127.0.0.1", |agents| agents.tls_timeout = soon).await;
    let material = backend.join("gw-1").await;
    // What looks like a binary header of which most is missing; TLS is taken for it.
    backend.preface = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x07\xf0".to_vec();
    backend.tls(Some(&material.certificate)).await.unwrap_err();
    backend.stop().await;
}
