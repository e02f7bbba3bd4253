//! The drill: the authority of the gateways' certificates is rotated. The old one and the new one are trusted at once,
//! gateways learn it over their sessions and renew under it, the old one is taken away, and nobody is cut off. No
//! file of a gateway is touched.

use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustix::process::Signal;
use serde_json::json;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::process::eventually;
use viworks_testkit::rogue::{Material, upgrade};

use crate::causes::{renew, renew_of, status_where};
use crate::renewals::renew_server;

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
async fn reload(system: &mut Deployment) {
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

async fn answers(system: &Deployment, names: &[&str]) {
    let body = json!({ "command": "gateway.info", "targets": { "gateways": names } });
    let run = system.post("/v1/runs", &body).await;
    let run = system.finished(run["id"].as_str().unwrap()).await;
    assert_eq!(run["counts"]["succeeded"], names.len(), "{run}");
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
