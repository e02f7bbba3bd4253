//! Renewed certificates: taken over without a restart, and their end is told before it comes.

use std::path::Path;
use std::time::Duration;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustix::process::Signal;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use time::OffsetDateTime;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::process::eventually;
use viworks_testkit::rogue::{Material, upgrade};

use crate::reissued::renew;
use crate::told::status_where;

fn condition<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    let listed = status["conditions"].as_array()?;
    listed.iter().find(|condition| condition["name"] == name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_takes_a_renewed_certificate_over_and_tells_its_end_before_it_comes() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    let socket = folder.join("state/api.sock");
    // Nobody but the operator renews it.
    system.without_authority();
    system.start_backend(Start::default()).await;
    renew(&system, &folder, time::Duration::seconds(20));
    let mut gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let (status, exit) = status_where("its end is told", system.binaries(), &socket, |status| {
        condition(status, "certificate").is_some()
    })
    .await;
    let told = condition(&status, "certificate").unwrap();
    assert_eq!(
        (exit, &told["severity"]),
        (0, &Value::from("warn")),
        "{status:#}"
    );
    assert!(
        told["cause"]
            .as_str()
            .unwrap()
            .contains("certificate ends in "),
        "{status:#}"
    );
    assert!(
        gateway.log().contains("certificate ends in"),
        "{}",
        gateway.log()
    );
    assert!(
        system
            .backend()
            .log()
            .contains("a gateway's certificate ends in")
    );

    // The session ends with its certificate, authentically; nobody sends a signal.
    let (status, _exit) = status_where("it has ended", system.binaries(), &socket, |status| {
        status["connection"]["last_failure"]["code"] == "cert_untrusted"
    })
    .await;
    let cause = status["connection"]["last_failure"]["cause"]
        .as_str()
        .unwrap();
    assert!(
        cause.contains("has expired") && !cause.contains("not signed"),
        "{status:#}"
    );
    renew(&system, &folder, time::Duration::days(90));
    let (status, exit) = status_where("it is back", system.binaries(), &socket, |status| {
        status["connection"]["connected"] == true
    })
    .await;
    assert_eq!(
        (exit, condition(&status, "certificate")),
        (0, None),
        "{status:#}"
    );

    // A file that cannot be used changes nothing, and is told.
    let right = std::fs::read(folder.join("gateway.crt")).unwrap();
    std::fs::write(folder.join("gateway.crt"), "nothing of the kind\n").unwrap();
    gateway.signal(Signal::HUP);
    let (status, exit) = status_where("it is told", system.binaries(), &socket, |status| {
        condition(status, "reload.certificate").is_some()
    })
    .await;
    assert_eq!(
        (exit, &status["connection"]["connected"]),
        (0, &Value::from(true))
    );
    std::fs::write(folder.join("gateway.crt"), right).unwrap();
    gateway.signal(Signal::HUP);
    status_where("it is mended", system.binaries(), &socket, |status| {
        condition(status, "reload.certificate").is_none()
    })
    .await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}

/// Another certificate for a key of the server, signed by its authority.
pub(crate) fn renew_server(backend: &Path, key: &KeyPair, lives: time::Duration) -> String {
    let read = |name: &str| std::fs::read_to_string(backend.join(name)).unwrap();
    let authority = KeyPair::from_pem(&read("ca.key")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.crt"), authority).unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(names).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let seconds = SystemClock.wall().unix_millis() / 1_000;
    let now = OffsetDateTime::from_unix_timestamp(seconds).unwrap();
    params.not_before = now - time::Duration::days(89);
    params.not_after = now + lives;
    let pem = params.signed_by(key, &issuer).unwrap().pem();
    std::fs::write(backend.join("server.crt"), &pem).unwrap();
    pem
}

pub(crate) async fn shown(system: &Deployment, material: &Material) -> Vec<u8> {
    let connected = upgrade(
        system.agents_address(),
        &material.authority,
        Some(&material.certificate),
        "/agent/v1/connect",
        "viworks.agent.v1",
    );
    let (socket, _address) = connected.await.unwrap();
    let (_, tls) = socket.get_ref().get_ref();
    tls.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_takes_a_renewed_certificate_over_on_sighup_and_refuses_a_key_that_nobody_pins() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    let material = Material::read(&folder).unwrap();
    let backend = system.path().join("backend");
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    let before = system.online("gw-1").await;
    let key = std::fs::read_to_string(backend.join("server.key")).unwrap();
    let pem = renew_server(
        &backend,
        &KeyPair::from_pem(&key).unwrap(),
        time::Duration::days(1),
    );
    let renewed = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    assert_ne!(shown(&system, &material).await, renewed.as_ref());
    system.backend().signal(Signal::HUP);
    eventually("the new one is shown", PATIENCE, async || {
        (shown(&system, &material).await == renewed.as_ref()).then_some(())
    })
    .await;
    // It ends soon: health and metrics say so. The session that was there stays.
    let health = eventually("health tells its end", PATIENCE, async || {
        let health = system.get("/v1/health").await;
        let listed = health["checks"].as_array()?.iter();
        listed
            .clone()
            .find(|check| check["name"] == "certificate.server" && check["status"] == "warn")
            .cloned()
    })
    .await;
    let detail = health["detail"].as_str().unwrap();
    assert!(detail.contains("ends in"), "{health:#}");
    // To the second for people, exact as data.
    let since = health["since"].as_str().unwrap();
    assert!(since.ends_with('Z'), "{health:#}");
    assert!(!detail.contains(since), "{health:#}");
    let (_status, metrics) = system.request("GET", "/metrics", None).await.unwrap();
    let metrics = metrics.as_str().unwrap();
    for name in ["server", "ca"] {
        let line = format!("viworks_certificate_not_after_seconds{{certificate=\"{name}\"}}");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    assert_eq!(
        system.online("gw-1").await["session"]["id"],
        before["session"]["id"]
    );

    // A key that no gateway pins would cut all of them off.
    let other = KeyPair::generate().unwrap();
    renew_server(&backend, &other, time::Duration::days(60));
    std::fs::write(backend.join("server.key"), other.serialize_pem()).unwrap();
    system.backend().signal(Signal::HUP);
    eventually("it is refused", PATIENCE, async || {
        let log = system.backend().log();
        log.contains("would be cut off").then_some(())
    })
    .await;
    assert_eq!(shown(&system, &material).await, renewed.as_ref());
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_pins_that_cannot_be_read_are_told_of_and_the_configured_ones_hold() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let told = "the kept pin set cannot be read, using the configured one";
    assert!(!gateway.log().contains(told), "{}", gateway.log());
    assert!(gateway.stop(Duration::from_secs(30)).await.success());

    let kept = folder.join("state/pins.json");
    // It keeps its mode.
    std::fs::write(&kept, "{\"set\": ").unwrap();
    let mut gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let log = gateway.log();
    let line = log.lines().find(|line| line.contains(told));
    let line = line.unwrap_or_else(|| panic!("{log}"));
    for words in ["WARN", "state/pins.json", "EOF while parsing"] {
        assert!(line.contains(words), "{words}: {line}");
    }
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_takes_mended_pins_over_without_being_told() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    let socket = folder.join("state/api.sock");
    let configuration = folder.join("gateway.toml");
    let sound = std::fs::read_to_string(&configuration).unwrap();
    let pins = sound.split('"').filter(|text| text.starts_with("sha256/"));
    let broken = pins.fold(sound.clone(), |text, pin| {
        let (start, end) = pin.split_at("sha256/AAAA".len());
        assert_ne!(start, "sha256/AAAA");
        text.replace(pin, &format!("sha256/AAAA{end}"))
    });
    assert_ne!(broken, sound);
    std::fs::write(&configuration, broken).unwrap();
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    let refused = |status: &Value| {
        let cause = status["connection"]["last_failure"]["cause"].as_str();
        cause.is_some_and(|cause| cause.contains("pin"))
    };
    status_where("no pin fits", system.binaries(), &socket, refused).await;
    std::fs::write(&configuration, sound).unwrap();
    system.online("gw-1").await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}
