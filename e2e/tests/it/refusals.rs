//! Whoever does not belong is refused with the documented code, logged once, counted, and harms nobody.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
    date_time_ymd,
};
use tokio_tungstenite::tungstenite::Message;
use viworks_common::key::Secret;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::gateway::{ONCE, mark_starts};
use viworks_testkit::process::eventually;
use viworks_testkit::rogue::{Certificate, Material, Refused, Rogue, plain_http, upgrade};

const PATH: &str = "/agent/v1/connect";
const SUBPROTOCOL: &str = "viworks.agent.v1";

struct Scene {
    system: Deployment,
    material: Material,
}

/// A certificate with the right name, signed by `issuer`, valid for `years`.
fn forged(material: &Material, issuer: &Issuer<'_, KeyPair>, years: Range<i32>) -> Certificate {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    let name = format!(
        "spiffe://viworks.internal/tenant/{}/gateway/{}",
        material.identity.tenant, material.identity.agent_id
    );
    params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = date_time_ymd(years.start, 1, 1);
    params.not_after = date_time_ymd(years.end, 1, 1);
    let certificate = params.signed_by(&key, issuer).unwrap();
    Certificate {
        chain: certificate.pem().into_bytes(),
        key: key.serialize_pem().into_bytes(),
    }
}

/// Somebody else's authority.
fn stranger() -> Issuer<'static, KeyPair> {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Issuer::new(authority, KeyPair::generate().unwrap())
}

/// The backend's own, whose key only a test takes in hand.
fn own(system: &Deployment) -> Issuer<'static, KeyPair> {
    let read = |name: &str| std::fs::read_to_string(system.path().join("backend").join(name));
    let key = KeyPair::from_pem(&read("ca.key").unwrap()).unwrap();
    Issuer::from_ca_cert_pem(&read("ca.crt").unwrap(), key).unwrap()
}

impl Scene {
    async fn metric(&self, line: &str) -> u64 {
        let (status, text) = self.system.request("GET", "/metrics", None).await.unwrap();
        assert_eq!(status, 200);
        let text = text.as_str().unwrap();
        let value = text.lines().find_map(|found| found.strip_prefix(line));
        value.map_or(0, |value| value.trim().parse().unwrap())
    }

    /// The log names the rogue's address exactly once, and the counter went up by one.
    async fn logged_once_and_counted(
        &mut self,
        what: &str,
        address: SocketAddr,
        line: &str,
        before: u64,
    ) {
        let address = address.to_string();
        let mut lines = Vec::new();
        eventually(
            &format!("{what}: a line in the log and {line}"),
            PATIENCE,
            async || {
                let counted = self.metric(line).await;
                let log = self.system.backend().log();
                lines = log
                    .lines()
                    .filter(|line| line.contains(&address))
                    .map(str::to_owned)
                    .collect();
                (counted == before + 1 && !lines.is_empty()).then_some(())
            },
        )
        .await;
        assert_eq!(lines.len(), 1, "{what}: {lines:#?}");
    }

    async fn refused_upgrade(
        &mut self,
        what: &str,
        certificate: Option<&Certificate>,
        path: &str,
        subprotocol: &str,
        expected: Refused,
        line: &str,
    ) {
        let before = self.metric(line).await;
        let agents = self.system.agents_address().to_owned();
        let authority = self.material.authority.clone();
        let outcome = upgrade(&agents, &authority, certificate, path, subprotocol).await;
        let (refused, address) = outcome.err().unwrap_or_else(|| panic!("{what} was let in"));
        assert_eq!(refused, expected, "{what}");
        self.logged_once_and_counted(what, address, line, before)
            .await;
    }

    async fn refused_session(
        &mut self,
        what: &str,
        material: &Material,
        code: (u16, &str),
        act: impl AsyncFnOnce(&mut Rogue),
    ) {
        let line = format!("viworks_agent_closes_total{{code=\"{}\"}}", code.1);
        let before = self.metric(&line).await;
        let agents = self.system.agents_address().to_owned();
        let mut rogue = Rogue::challenged(&agents, material).await.unwrap();
        let address = rogue.address;
        act(&mut rogue).await;
        assert_eq!(rogue.end().await, Refused::Closed(code.0), "{what}");
        self.logged_once_and_counted(what, address, &line, before)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_belong_is_refused_logged_once_and_counted() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    let material = Material::read(&folder).unwrap();
    let other = Material::read(&system.issue("gw-2")).unwrap();
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let mut scene = Scene {
        system,
        material: material.clone(),
    };
    let failed = "viworks_agent_handshakes_total{result=\"tls_failed\"}";

    let before = scene.metric(failed).await;
    let agents = scene.system.agents_address().to_owned();
    let address = plain_http(&agents).await.unwrap();
    scene
        .logged_once_and_counted("plain HTTP", address, failed, before)
        .await;
    let log = scene.system.backend().log();
    let told = |line: &str| line.contains(&address.to_string()) && line.contains("dial wss://");
    assert!(log.lines().any(told), "{log}");
    scene
        .refused_upgrade(
            "no certificate",
            None,
            PATH,
            SUBPROTOCOL,
            Refused::Tls,
            failed,
        )
        .await;
    let foreign = forged(&material, &stranger(), 2020..2099);
    scene
        .refused_upgrade(
            "a foreign certificate",
            Some(&foreign),
            PATH,
            SUBPROTOCOL,
            Refused::Tls,
            failed,
        )
        .await;
    let expired = forged(&material, &own(&scene.system), 2020..2021);
    scene
        .refused_upgrade(
            "an expired certificate",
            Some(&expired),
            PATH,
            SUBPROTOCOL,
            Refused::Tls,
            failed,
        )
        .await;
    let unknown = forged(&material, &own(&scene.system), 2020..2099);
    let untrusted = "viworks_agent_refusals_total{reason=\"cert_untrusted\"}";
    scene
        .refused_upgrade(
            "a key that nobody registered",
            Some(&unknown),
            PATH,
            SUBPROTOCOL,
            Refused::Http(403),
            untrusted,
        )
        .await;

    let certificate = material.certificate.clone();
    let not_upgraded = "viworks_agent_handshakes_total{result=\"not_upgraded\"}";
    scene
        .refused_upgrade(
            "a wrong path",
            Some(&certificate),
            "/",
            SUBPROTOCOL,
            Refused::Http(404),
            not_upgraded,
        )
        .await;
    scene
        .refused_upgrade(
            "a wrong subprotocol",
            Some(&certificate),
            PATH,
            "chat",
            Refused::Http(400),
            not_upgraded,
        )
        .await;

    let bad = (4_400, "bad_envelope");
    let wrong_key = Material {
        agent_key: Secret::from_bytes([9; 32]),
        ..material.clone()
    };
    scene
        .refused_session("a wrong MAC", &wrong_key, bad, async |rogue| {
            rogue.hello().await;
        })
        .await;
    let crossed = Material {
        certificate: other.certificate.clone(),
        ..material.clone()
    };
    scene
        .refused_session(
            "another agent's certificate",
            &crossed,
            bad,
            async |rogue| rogue.hello().await,
        )
        .await;
    for (what, message, code) in [
        ("a malformed frame", Message::binary(vec![7; 100]), bad),
        ("an empty frame", Message::binary(Vec::new()), bad),
        ("text", Message::text("hello"), bad),
        (
            "an oversized frame",
            Message::binary(vec![1; 300 * 1024]),
            (4_413, "too_large"),
        ),
        (
            "an oversized opening",
            Message::binary(vec![1; 20 * 1024]),
            (4_413, "too_large"),
        ),
    ] {
        scene
            .refused_session(what, &other, code, async |rogue| rogue.send(message).await)
            .await;
    }
    let mut recorded = Vec::new();
    scene
        .refused_session("HELLO twice, out of order", &other, bad, async |rogue| {
            rogue.hello().await;
            recorded.clone_from(&rogue.sent[0]);
            rogue.send(Message::binary(recorded.clone())).await;
        })
        .await;
    scene
        .refused_session(
            "a recorded HELLO",
            &other,
            (4_400, "replay"),
            async |rogue| {
                rogue.send(Message::binary(recorded.clone())).await;
            },
        )
        .await;
    // The gateway has long moved on from the epoch that its copied folder holds.
    scene
        .refused_session(
            "a second machine",
            &material,
            (4_410, "identity_fork"),
            async |rogue| {
                rogue.hello().await;
            },
        )
        .await;
    let audit = scene.system.get("/v1/audit?limit=1000").await.to_string();
    for action in ["gateway.hello_replayed", "identity.fork"] {
        assert!(audit.contains(action), "{action} is not in {audit}");
    }

    // And through all of it the backend served, and went on serving.
    let run = scene.system.submit(ONCE, "after").await;
    scene.system.finished(&run).await;
    assert_eq!(scene.system.commands(&run).await[0]["state"], "succeeded");
    assert_eq!(scene.system.online("gw-1").await["session"]["epoch"], 1);
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}
