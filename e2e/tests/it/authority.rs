//! The drill: the authority of the gateways' certificates is rotated. The old one and the new one are trusted at once,
//! gateways learn it over their sessions and renew under it, the old one is taken away, and nobody is cut off. A
//! gateway that was off through all of it learns it at the door. No file of a gateway is touched.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use viworks_common::pin::SpkiPin;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::door::FalseDoor;
use viworks_testkit::process::eventually;
use viworks_testkit::rogue::{Material, upgrade};

use crate::lapsed::{audited, condition, in_haste, knowing, socket, with_door};
use crate::reissued::{renew, renew_of};
use crate::renewals::renew_server;
use crate::told::status_where;

/// What is in the subject of the authority that signs for a new site.
pub(crate) const OLD: &str = "ViWorkS authority";

/// An authority: its certificate and its key, PEM.
pub(crate) struct Authority {
    certificate: String,
    key: String,
}

impl Authority {
    /// Another one, with a name of its own.
    pub(crate) fn create(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap().pem();
        Self {
            certificate,
            key: key.serialize_pem(),
        }
    }

    /// The one that signs for this backend.
    pub(crate) fn of(backend: &Path) -> Self {
        let read = |name: &str| std::fs::read_to_string(backend.join(name)).unwrap();
        Self {
            certificate: read("ca.crt"),
            key: read("ca.key"),
        }
    }

    /// Its certificate, PEM.
    pub(crate) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Lets this one sign from now on, while the others are trusted beside it. The files keep their modes.
    pub(crate) fn signs_beside(&self, backend: &Path, others: &[&Self]) {
        let mut trusted = self.certificate.clone();
        for other in others {
            trusted.push_str(&other.certificate);
        }
        std::fs::write(backend.join("ca.crt"), trusted).unwrap();
        std::fs::write(backend.join("ca.key"), &self.key).unwrap();
    }
}

/// Has the running backend read its files again.
pub(crate) async fn reload(system: &mut Deployment) {
    const READ: &str = "and the gateways' authority again";
    let before = system.backend().log().matches(READ).count();
    system.backend().signal(Signal::HUP);
    eventually("the files are read again", PATIENCE, async || {
        let times = system.backend().log().matches(READ).count();
        (times > before).then_some(())
    })
    .await;
}

/// A gateway keeps both authorities that it was given over its session.
async fn learned_both(folder: &Path) {
    let path = folder.join("state/authorities.pem");
    eventually("it has both authorities", PATIENCE, async || {
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        (kept.matches("BEGIN CERTIFICATE").count() == 2).then_some(())
    })
    .await;
}

pub(crate) async fn answers(system: &Deployment, names: &[&str]) {
    let body = json!({ "command": "gateway.info", "targets": { "gateways": names } });
    let run = system.post("/v1/runs", &body).await;
    let run = system.finished(run["id"].as_str().unwrap()).await;
    assert_eq!(run["counts"]["succeeded"], names.len(), "{run}");
}

/// What is told of the authorities, once the one of this subject signed the certificates of so many gateways.
pub(crate) async fn needed_by(system: &Deployment, subject: &str, gateways: u64) -> Value {
    let what = format!("{gateways} have a certificate of {subject}");
    eventually(&what, PATIENCE, async || {
        let status = system.get("/v1/authorities").await;
        let mut all = status["authorities"].as_array()?.iter();
        let it = all.find(|one| one["subject"].to_string().contains(subject))?;
        (it["needed_by"] == gateways).then_some(())?;
        Some(status)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_authority_is_rotated_while_both_are_trusted_and_nobody_is_cut_off() {
    let mut system = Deployment::new(Binaries::shipped());
    let names = ["gw-1", "gw-2", "gw-3"];
    let folders = names.map(|name| system.issue(name));
    let backend = system.path().join("backend");
    let (old, new) = (
        Authority::of(&backend),
        Authority::create("the next authority"),
    );
    // Two are past two thirds of a certificate's life; of the third one nobody has to renew anything yet.
    for folder in &folders[..2] {
        let (since, lives) = (time::Duration::days(89), time::Duration::days(20));
        renew_of(&system, folder, since, lives);
    }
    let copied = Material::read(&folders[2]).unwrap();
    system.start_backend(Start::default()).await;
    let mut third = system.start_gateway(&folders[2], Start::default());
    let session = system.online("gw-3").await["session"]["id"].clone();

    // Both are trusted by the backend, the new one signs; who is connected stays so, and is given both.
    new.signs_beside(&backend, &[&old]);
    reload(&mut system).await;
    let mut gateways = Vec::new();
    for folder in &folders[..2] {
        gateways.push(system.start_gateway(folder, Start::default()));
    }
    for (name, folder) in names.iter().zip(&folders[..2]) {
        system.online(name).await;
        let socket = folder.join("state/api.sock");
        status_where("it has renewed", system.binaries(), &socket, |status| {
            status["certificate"]["origin"] == "renewed"
                && status["connection"]["connected"] == true
        })
        .await;
    }
    for folder in &folders {
        learned_both(folder).await;
    }
    answers(&system, &names).await;
    assert_eq!(system.online("gw-3").await["session"]["id"], session);

    // Whoever cannot wait until the third one renews puts a certificate there for its key.
    renew(&system, &folders[2], time::Duration::days(90));
    assert!(third.stop(Duration::from_secs(30)).await.success());
    let third = system.start_gateway(&folders[2], Start::default());
    gateways.push(third);
    eventually("it shows the other one", PATIENCE, async || {
        let now = system.online("gw-3").await;
        (now["session"]["id"] != session).then_some(())
    })
    .await;

    // Nobody's own certificate is of the old one any more.
    needed_by(&system, OLD, 0).await;

    // The server has a certificate of the new one, for the same key. The old one is taken away there, and
    // everybody comes back by what they were given.
    let key = std::fs::read_to_string(backend.join("server.key")).unwrap();
    let key = KeyPair::from_pem(&key).unwrap();
    renew_server(&backend, &key, time::Duration::days(60));
    new.signs_beside(&backend, &[]);
    reload(&mut system).await;
    for gateway in &mut gateways {
        assert!(gateway.stop(Duration::from_secs(30)).await.success());
    }
    gateways.clear();
    for folder in &folders {
        gateways.push(system.start_gateway(folder, Start::default()));
    }
    for (name, folder) in names.iter().zip(&folders) {
        let socket = folder.join("state/api.sock");
        status_where("it is back", system.binaries(), &socket, |status| {
            status["connection"]["connected"] == true
        })
        .await;
        system.online(name).await;
    }
    answers(&system, &names).await;

    // What the old one signed opens nothing any more.
    let refused = upgrade(
        system.agents_address(),
        new.certificate.as_bytes(),
        Some(&copied.certificate),
        "/agent/v1/connect",
        "viworks.agent.v1",
    );
    assert!(refused.await.is_err(), "the old authority is still trusted");
    for gateway in &mut gateways {
        assert!(gateway.stop(Duration::from_secs(30)).await.success());
    }
}

/// A backend whose authority was replaced before any of these gateways was ever connected: its certificate, for the
/// same key, is of the new one, and gateways' certificates are good by either.
async fn replaced_meanwhile(names: &[&str]) -> (Deployment, Vec<PathBuf>) {
    let mut system = Deployment::new(Binaries::shipped());
    let folders = names.iter().map(|name| system.issue(name)).collect();
    let backend = system.path().join("backend");
    let old = Authority::of(&backend);
    Authority::create("the next authority").signs_beside(&backend, &[&old]);
    let key = std::fs::read_to_string(backend.join("server.key")).unwrap();
    let key = KeyPair::from_pem(&key).unwrap();
    renew_server(&backend, &key, time::Duration::days(60));
    system.start_backend(with_door()).await;
    (system, folders)
}

fn last_failure<'a>(status: &'a Value, part: &str) -> &'a str {
    status["connection"]["last_failure"][part]
        .as_str()
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_was_off_while_the_authority_was_replaced_comes_back_by_itself() {
    let (system, folders) = replaced_meanwhile(&["gw-1"]).await;
    let folder = &folders[0];
    let configured = std::fs::read(folder.join("ca.crt")).unwrap();
    // Without the address of the door it is told what to do.
    let mut gateway = system.start_gateway(folder, in_haste());
    let socket = socket(folder);
    let (status, _exit) = status_where("it is told", system.binaries(), &socket, |status| {
        last_failure(status, "cause").contains("its authority is not known here")
    })
    .await;
    assert!(last_failure(&status, "cause").contains("is pinned"));
    let fix = last_failure(&status, "fix");
    assert!(fix.contains("door_url") && fix.contains("ca_file"), "{fix}");
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    assert!(!folder.join("state/authorities.pem").exists());

    let mut gateway = system.start_gateway(folder, knowing(&system));
    let (status, _exit) = status_where("it is back", system.binaries(), &socket, |status| {
        status["connection"]["connected"] == true
    })
    .await;
    assert_eq!(condition(&status, "authorities.door"), None, "{status:#}");
    learned_both(folder).await;
    system.online("gw-1").await;
    answers(&system, &["gw-1"]).await;
    let log = gateway.log();
    assert!(log.contains("the door gave other authorities"), "{log}");
    // It asked once, was given no certificate, and what is the operator's is as it was.
    let action = "certificate.renew_at_door";
    assert_eq!(audited(&system, action, "refused").await, 1);
    assert_eq!(audited(&system, action, "done").await, 0);
    assert_eq!(std::fs::read(folder.join("ca.crt")).unwrap(), configured);
    assert!(!folder.join("state/renewal.pem").exists());
    assert!(gateway.stop(Duration::from_secs(30)).await.success());

    // It has them from now on.
    let mut gateway = system.start_gateway(folder, in_haste());
    status_where("it is back again", system.binaries(), &socket, |status| {
        status["connection"]["connected"] == true
    })
    .await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    assert_eq!(audited(&system, action, "refused").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_pinned_is_asked_for_no_authority_and_a_false_door_gives_none() {
    let (system, folders) = replaced_meanwhile(&["gw-1", "gw-2"]).await;
    let [stranger, folder] = &folders[..] else {
        panic!("there are two");
    };
    // One pins two other keys: to that one the backend is somebody else.
    let path = stranger.join("gateway.toml");
    let toml = std::fs::read_to_string(&path).unwrap();
    let from = toml.find("pins = [").unwrap();
    let to = from + toml[from..].find(']').unwrap();
    let [one, other] = [[1; 32], [2; 32]].map(SpkiPin::from_digest);
    let pins = format!(
        "{}pins = [\"{one}\", \"{other}\"{}",
        &toml[..from],
        &toml[to..]
    );
    std::fs::write(&path, pins).unwrap();
    let mut gateway = system.start_gateway(stranger, knowing(&system));
    let own = socket(stranger);
    let (status, _exit) = status_where("it is told", system.binaries(), &own, |status| {
        last_failure(status, "cause").contains("is not pinned either")
    })
    .await;
    let fix = last_failure(&status, "fix");
    assert!(fix.contains("somebody else's server"), "{fix}");
    assert_eq!(condition(&status, "authorities.door"), None, "{status:#}");
    assert!(gateway.stop(Duration::from_secs(30)).await.success());

    // Somebody has the server's key and poses as the door: without the key that the gateway shares with the backend,
    // its authorities are nobody's.
    let rogue = Authority::create("nobody's authority");
    let door = FalseDoor::start(&system.path().join("backend"), &rogue.certificate)
        .await
        .unwrap();
    let start = in_haste().with("VIWORKS__OUTBOUND__DOOR_URL", &door.url);
    let mut gateway = system.start_gateway(folder, start);
    let own = socket(folder);
    let (status, _exit) = status_where("it is told", system.binaries(), &own, |status| {
        let told = condition(status, "authorities.door");
        told.is_some_and(|told| told["cause"].to_string().contains("are not the backend's"))
    })
    .await;
    assert_eq!(status["connection"]["connected"], false, "{status:#}");
    assert!(gateway.stop(Duration::from_secs(30)).await.success());

    for folder in &folders {
        assert!(!folder.join("state/authorities.pem").exists());
    }
    let action = "certificate.renew_at_door";
    assert_eq!(audited(&system, action, "refused").await, 0);
}
