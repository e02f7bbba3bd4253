//! The server's key is rotated and nobody is cut off: staged, confirmed, promoted, put in place, and the one before is
//! retired.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use rustix::process::Signal;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use viworks_common::pin::SpkiPin;
use viworks_runtime::tls;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::postgres::Own;
use viworks_testkit::process::{Process, Said, eventually, finish};
use viworks_testkit::rogue::Material;

use crate::enrolment::{backend, enroll, folder, ticket};
use crate::renewals::{renew_server, shown};
use crate::told::status_where;

/// `viworks pin …`.
pub(crate) async fn pin(system: &Deployment, arguments: &[&str]) -> Said {
    let mut command = Command::new(system.binaries().cli());
    command.arg("pin").args(arguments);
    system.ask(&mut command);
    finish(command, PATIENCE).await
}

/// The pin of a key.
pub(crate) fn pin_of(key: &KeyPair) -> String {
    let names = vec!["localhost".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().self_signed(key);
    let spki = tls::spki_sha256(certificate.unwrap().der());
    SpkiPin::from_digest(spki.unwrap()).to_string()
}

/// What is known of a key.
async fn standing(system: &Deployment, pin: &str) -> Option<Value> {
    let status = system.get("/v1/pins").await;
    let mut pins = status["pins"].as_array()?.iter();
    pins.find(|known| known["pin"] == pin).cloned()
}

pub(crate) async fn confirmed_by(system: &Deployment, pin: &str, gateways: u64) {
    let what = format!("{gateways} have confirmed it");
    eventually(&what, PATIENCE, async || {
        let found = standing(system, pin).await?;
        (found["confirmed_by"] == gateways).then_some(())
    })
    .await;
}

/// The pin of the key that the server shows.
pub(crate) async fn live(system: &Deployment) -> String {
    let status = system.get("/v1/pins").await;
    let pins = status["pins"].as_array().unwrap();
    let shown = pins.iter().find(|pin| pin["shown"] == true).unwrap();
    shown["pin"].as_str().unwrap().to_owned()
}

async fn session(system: &Deployment, name: &str) -> Value {
    system.online(name).await["session"]["id"].clone()
}

async fn again(system: &Deployment, folder: &Path, mut gateway: Process, name: &str) -> Process {
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    let before = system.get(&format!("/v1/gateways/{name}")).await;
    let gateway = system.start_gateway(folder, Start::default());
    eventually("it has another session", PATIENCE, async || {
        let now = system.online(name).await;
        (now["session"]["id"] != before["session"]["id"]).then_some(())
    })
    .await;
    gateway
}

/// Waits until a gateway trusts the last set, which has the new key and not the old one.
async fn has_given_up(system: &Deployment, folder: &Path, new: &str, old: &str) {
    let socket = folder.join("state/api.sock");
    let what = "it trusts the last set";
    let (status, _exit) = status_where(what, system.binaries(), &socket, |status| {
        status["pins"]["version"] == 3
    })
    .await;
    let pins = status["pins"]["pins"].to_string();
    assert!(pins.contains(new) && !pins.contains(old), "{status:#}");
}

/// Waits until a gateway accepts the keys of its newest set alone.
async fn trusts_the_last_set_alone(folder: &Path) {
    let kept = folder.join("state/pins.json");
    eventually("the set of before is let go", PATIENCE, async || {
        let kept = std::fs::read(&kept).ok()?;
        let kept: Value = serde_json::from_slice(&kept).ok()?;
        kept["previous"].is_null().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_key_is_rotated_and_nobody_is_cut_off() {
    let mut system = Deployment::new(Binaries::shipped());
    let folders = ["gw-1", "gw-2", "gw-3"].map(|name| system.issue(name));
    let material = Material::read(&folders[0]).unwrap();
    let backend = system.path().join("backend");
    system.start_backend(Start::default()).await;
    let first = system.start_gateway(&folders[0], Start::default());
    let mut second = system.start_gateway(&folders[1], Start::default());
    let sessions = [
        session(&system, "gw-1").await,
        session(&system, "gw-2").await,
    ];
    let old = live(&system).await;
    let key = KeyPair::generate().unwrap();
    let new = pin_of(&key);

    // Gateways that are connected trust it within seconds, over the session that they have.
    let early = pin(&system, &["promote", &new]).await.ended_with(6);
    assert!(early.stderr.contains("stage it first"), "{early:#?}");
    let none = pin(&system, &["retire", &new]).await.ended_with(5);
    assert!(none.stderr.contains("nothing to retire"), "{none:#?}");
    assert!(!none.stderr.contains("stage it"), "{none:#?}");
    let staged = pin(&system, &["stage", &new, "-o", "json"]).await;
    let staged = staged.ended_with(0).json();
    assert_eq!(staged["status"]["version"], 2, "{staged:#}");
    confirmed_by(&system, &new, 2).await;
    let now = [
        session(&system, "gw-1").await,
        session(&system, "gw-2").await,
    ];
    assert_eq!(now, sessions, "nobody had to connect anew");

    // One that is off does not, and is named. Its key does not get in by itself either.
    let refused = pin(&system, &["promote", &new]).await.ended_with(6);
    for words in ["1 gateway does not trust", "gw-3", "--force --reason"] {
        assert!(refused.stderr.contains(words), "{words}: {refused:#?}");
    }
    let status = pin(&system, &["status"]).await.ended_with(0);
    assert!(
        status.stdout.contains("would cut off gw-3 (never seen)"),
        "{status:#?}"
    );
    let pem = renew_server(&backend, &key, time::Duration::days(60));
    std::fs::write(backend.join("server.key"), key.serialize_pem()).unwrap();
    system.backend().signal(Signal::HUP);
    eventually("it is refused", PATIENCE, async || {
        let log = system.backend().log();
        log.contains("a key that was not promoted").then_some(())
    })
    .await;
    let third = system.start_gateway(&folders[2], Start::default());
    confirmed_by(&system, &new, 3).await;
    let promoted = pin(&system, &["promote", &new]).await.ended_with(0);
    assert!(promoted.stderr.contains("SIGHUP"), "{promoted:#?}");

    // Now it does, and everybody comes back to it.
    let early = pin(&system, &["retire", &old]).await.ended_with(6);
    assert!(early.stderr.contains("still shows this key"), "{early:#?}");
    system.backend().signal(Signal::HUP);
    let renewed = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    eventually("the new one is shown", PATIENCE, async || {
        (shown(&system, &material).await == renewed.as_ref()).then_some(())
    })
    .await;
    assert_eq!(live(&system).await, new);
    let first = again(&system, &folders[0], first, "gw-1").await;
    let mut third = again(&system, &folders[2], third, "gw-3").await;
    let _done = pin(&system, &["retire", &old]).await.ended_with(0);
    let next = standing(&system, &new).await.unwrap();
    assert_eq!(next["state"], "promoted", "{next:#}");
    // The second one's session was opened with the old key, in which it takes no set over without it: it opens another
    // one by itself.
    for folder in &folders {
        has_given_up(&system, folder, &new, &old).await;
        trusts_the_last_set_alone(folder).await;
    }
    assert_ne!(session(&system, "gw-2").await, sessions[1]);
    let mut first = again(&system, &folders[0], first, "gw-1").await;
    let audit = system.get("/v1/audit?limit=200").await.to_string();
    for action in ["pin.stage", "pin.promote", "pin.retire"] {
        assert_eq!(audit.matches(action).count(), 1, "{action}");
    }
    // A restart of the backend goes by what is stored.
    assert!(system.backend().stop(PATIENCE).await.success());
    system.start_backend(Start::default()).await;
    assert_eq!(system.get("/v1/pins").await["version"], 3);
    for gateway in [&mut first, &mut second, &mut third] {
        assert!(gateway.stop(Duration::from_secs(30)).await.success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_enrolled_with_the_pins_in_force_would_not_be_cut_off() {
    let system = backend().await;
    let enrolled = async |name: &str| {
        let made = ticket(&system, &json!({"uses": 1, "name": name})).await;
        let folder = folder(&system, name);
        let said = finish(enroll(&system, &folder, &made, &[]), PATIENCE).await;
        let _done = said.ended_with(0);
    };
    enrolled("gw-early").await;
    let new = pin_of(&KeyPair::generate().unwrap());
    let _done = pin(&system, &["stage", &new]).await.ended_with(0);
    enrolled("gw-late").await;
    // Neither has ever connected.
    let refused = pin(&system, &["promote", &new]).await.ended_with(6);
    for words in ["1 gateway does not trust", "gw-early"] {
        assert!(refused.stderr.contains(words), "{words}: {refused:#?}");
    }
    assert!(!refused.stderr.contains("gw-late"), "{refused:#?}");
    confirmed_by(&system, &new, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_staged_at_one_backend_reaches_the_gateways_of_another() {
    let Some(own) = Own::start() else { return };
    own.server().make_empty("viworks");
    let mut one = Deployment::on(Binaries::shipped(), own.server().database("viworks"));
    let mut other = one.another("backend-2");
    let folder = one.issue("gw-1");
    one.start_backend(Start::default()).await;
    other.start_backend(Start::default()).await;
    let mut gateway = other.start_gateway(&folder, Start::default());
    let before = session(&other, "gw-1").await;
    let new = pin_of(&KeyPair::generate().unwrap());
    let _done = pin(&one, &["stage", &new]).await.ended_with(0);
    confirmed_by(&one, &new, 1).await;
    assert_eq!(session(&other, "gw-1").await, before);
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}

/// What is wrong with the pins; nothing where all is well.
async fn health(system: &Deployment) -> String {
    let asked = system.request("GET", "/v1/health", None).await;
    let (_status, health) = asked.unwrap();
    let mut checks = health["checks"].as_array().unwrap().iter();
    let of_pins = checks.find(|check| check["name"] == "pins" && check["status"] != "pass");
    of_pins.map_or_else(String::new, |check| check["detail"].to_string())
}

/// The drill: every key that gateways pin is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pins_that_are_put_in_by_hand_bring_a_gateway_back_when_every_pinned_key_is_lost() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    let backend = system.path().join("backend");
    let socket = folder.join("state/api.sock");
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let old = live(&system).await;
    // What the backend sent is newer than what is configured.
    let staged = pin_of(&KeyPair::generate().unwrap());
    let _done = pin(&system, &["stage", &staged]).await.ended_with(0);
    confirmed_by(&system, &staged, 1).await;
    assert!(system.backend().stop(PATIENCE).await.success());

    let key = KeyPair::generate().unwrap();
    let new = pin_of(&key);
    renew_server(&backend, &key, time::Duration::days(60));
    std::fs::write(backend.join("server.key"), key.serialize_pem()).unwrap();
    system.start_backend(Start::default()).await;
    let refused = |status: &Value| {
        let cause = status["connection"]["last_failure"]["cause"].as_str();
        cause.is_some_and(|cause| cause.contains("pin"))
    };
    status_where("no pin fits", system.binaries(), &socket, refused).await;
    let told = health(&system).await;
    assert!(told.contains("which is not in version 2"), "{told}");

    let configuration = folder.join("gateway.toml");
    let written = std::fs::read_to_string(&configuration).unwrap();
    let first = written.split('"').find(|text| text.starts_with("sha256/"));
    let by_hand = written.replace(first.unwrap(), &new);
    std::fs::write(&configuration, by_hand).unwrap();
    system.online("gw-1").await;
    let _done = pin(&system, &["stage", &new]).await.ended_with(0);
    confirmed_by(&system, &new, 1).await;
    let _done = pin(&system, &["promote", &new]).await.ended_with(0);
    let _done = pin(&system, &["retire", &old]).await.ended_with(0);
    let (status, _exit) = status_where("it follows", system.binaries(), &socket, |status| {
        status["pins"]["version"] == 4
    })
    .await;
    let pins = status["pins"]["pins"].to_string();
    assert!(pins.contains(&new) && !pins.contains(&old), "{status:#}");
    eventually("health is well again", PATIENCE, async || {
        health(&system).await.is_empty().then_some(())
    })
    .await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}

/// The drill: the server's key was stolen. The next one, which every gateway trusts from the start, takes its place at
/// once, and whoever has the stolen one is no server any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_key_of_the_server_is_replaced_at_once_and_not_trusted_any_more() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    let material = Material::read(&folder).unwrap();
    let backend = system.path().join("backend");
    let socket = folder.join("state/api.sock");
    let read = |name: &str| std::fs::read_to_string(backend.join(name)).unwrap();
    let stolen = [read("server.crt"), read("server.key")];
    let key = KeyPair::from_pem(&read("next.key")).unwrap();
    let next = pin_of(&key);
    system.start_backend(Start::default()).await;
    let gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let old = live(&system).await;

    // A set has two keys at the least: the one after next comes first.
    let after_next = pin_of(&KeyPair::generate().unwrap());
    let _done = pin(&system, &["stage", &after_next]).await.ended_with(0);
    confirmed_by(&system, &after_next, 1).await;
    let _done = pin(&system, &["promote", &next]).await.ended_with(0);
    let pem = renew_server(&backend, &key, time::Duration::days(60));
    std::fs::write(backend.join("server.key"), key.serialize_pem()).unwrap();
    system.backend().signal(Signal::HUP);
    let renewed = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    eventually("the next one is shown", PATIENCE, async || {
        (shown(&system, &material).await == renewed.as_ref()).then_some(())
    })
    .await;
    let mut gateway = again(&system, &folder, gateway, "gw-1").await;
    let _done = pin(&system, &["retire", &old]).await.ended_with(0);
    has_given_up(&system, &folder, &next, &old).await;
    // By itself it opens the session that lets the set of before go.
    trusts_the_last_set_alone(&folder).await;

    // The thief, where the backend was.
    assert!(system.backend().stop(PATIENCE).await.success());
    for (name, content) in ["server.crt", "server.key"].iter().zip(&stolen) {
        std::fs::write(backend.join(name), content).unwrap();
    }
    system.start_backend(Start::default()).await;
    status_where("it is refused", system.binaries(), &socket, |status| {
        let cause = status["connection"]["last_failure"]["cause"].as_str();
        cause.is_some_and(|cause| cause.contains("not pinned"))
    })
    .await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}
