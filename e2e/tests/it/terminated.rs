//! A site whose TLS ends in nginx: the certificate is passed on, believed from nginx only, and judged again;
//! claims from anywhere else are refused.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::nginx::{Backends, Nginx};
use viworks_testkit::process::eventually;
use viworks_testkit::rogue::{Material, Refused, upgrade, upgrade_claiming};

use super::behind_nginx::{PROXY, gateways_by, issue, run_everywhere};

const PATH: &str = "/agent/v1/connect";
const PROTOCOL: &str = "viworks.agent.v1";

fn backend() -> Start {
    Start::default()
        .with("VIWORKS__AGENTS__TLS_ENDS_AT", "proxy")
        .with("VIWORKS__AGENTS__BINDING", "certificate")
        .with("VIWORKS__AGENTS__TRUSTED_PROXIES", PROXY)
}

fn nginx_before(system: &Deployment) -> Nginx {
    let backends = Backends {
        agents: vec![system.agents_address().to_owned()],
        api: vec![system.api_url().trim_start_matches("http://").to_owned()],
        enrolment: Vec::new(),
    };
    Nginx::start_terminating(backends, &system.path().join("backend"), |shipped| {
        let bound = format!("proxy_http_version 1.1;\n    proxy_bind {PROXY};");
        shipped.replace("proxy_http_version 1.1;", &bound)
    })
}

/// PEM as nginx passes it on.
fn escaped(pem: &[u8]) -> String {
    let escape = |byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => char::from(*byte).to_string(),
        other => format!("%{other:02X}"),
    };
    pem.iter().map(escape).collect()
}

/// A gateway's own certificate, without the authority's behind it: all of a chain that nginx passes on.
fn leaf(chain: &[u8]) -> Vec<u8> {
    let text = String::from_utf8(chain.to_vec()).unwrap();
    let own = text.split_inclusive("-----END CERTIFICATE-----\n").next();
    own.unwrap().as_bytes().to_vec()
}

/// The first line of the answer to a request in plain text from an address.
async fn plain(system: &Deployment, from: &str, headers: &str) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    let agents = system.agents_address().parse().unwrap();
    let mut stream = socket.connect(agents).await.unwrap();
    let request = format!(
        "GET {PATH} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         sec-websocket-protocol: {PROTOCOL}\r\n{headers}\r\n"
    );
    // It may be closed before all of it has arrived.
    drop(stream.write_all(request.as_bytes()).await);
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut answer))
        .await
        .unwrap();
    let answer = String::from_utf8_lossy(&answer[..read.unwrap_or(0)]).into_owned();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_through_nginx_that_ends_tls_is_bound_to_the_certificate() {
    if !Nginx::is_installed() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    let folders = issue(&system, 2);
    let rogue = Material::read(&folders[1]).unwrap();
    system.start_backend(backend()).await;
    let nginx = nginx_before(&system);
    let binding = ("VIWORKS__OUTBOUND__BINDING", "certificate");
    let _gateways = gateways_by(&system, &nginx, &folders, binding).await;
    let shown = system.get("/v1/gateways/gw-1").await;
    assert_eq!(shown["session"]["peer_address"], "127.0.0.1:0", "{shown}");
    run_everywhere(&system, "one", 2).await;
    let front = format!("127.0.0.1:{}", nginx.port());
    // nginx asks for a certificate, and says itself what a client claims.
    let none = upgrade(&front, &rogue.authority, None, PATH, PROTOCOL).await;
    assert_eq!(none.err().unwrap().0, Refused::Http(400));
    let claim = [
        ("x-client-cert", "forged"),
        ("x_client_cert", "forged"),
        ("x-real-ip", "203.0.113.9"),
        ("client-cert", ":YQ==:"),
    ];
    let certificate = Some(&rogue.certificate);
    let claimed = upgrade_claiming(
        &front,
        &rogue.authority,
        certificate,
        PATH,
        PROTOCOL,
        &claim,
    );
    assert!(claimed.await.is_ok());
    assert!(!system.backend().log().contains("203.0.113.9"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_taken_from_the_proxy_only_and_judged_again() {
    let mut system = Deployment::new(Binaries::shipped());
    let rogue = Material::read(&system.issue("gw-rogue")).unwrap();
    system.start_backend(backend()).await;
    let own = escaped(&leaf(&rogue.certificate.chain));
    let claim =
        |certificate: &str| format!("x-client-cert: {certificate}\r\nx-real-ip: 203.0.113.9\r\n");
    // From elsewhere there is no answer at all.
    assert_eq!(plain(&system, "127.0.0.1", &claim(&own)).await, "");
    assert_eq!(
        plain(&system, PROXY, &claim(&own)).await,
        "HTTP/1.1 101 Switching Protocols"
    );
    // The proxy's word replaces TLS, and not what the certificate has to be.
    let key = rcgen::KeyPair::generate().unwrap();
    let foreign = rcgen::CertificateParams::new(["gw-rogue".to_owned()]).unwrap();
    let foreign = foreign.self_signed(&key).unwrap().pem();
    let foreign = plain(&system, PROXY, &claim(&escaped(foreign.as_bytes()))).await;
    assert_eq!(foreign, "HTTP/1.1 403 Forbidden");
    for headers in [
        String::new(),
        claim("nothing"),
        claim(&escaped(&rogue.certificate.chain)),
        claim(&own).replace("x-real-ip", "x-other"),
        format!("{}x-client-cert: {own}\r\n", claim(&own)),
    ] {
        let refused = plain(&system, PROXY, &headers).await;
        assert_eq!(refused, "HTTP/1.1 400 Bad Request", "{headers}");
    }
    eventually("each is told", PATIENCE, async || {
        let log = system.backend().log();
        let told = log.contains("does not come through a proxy of agents.trusted_proxies")
            && log.contains("refused a client certificate that a proxy passed on")
            && log.contains("refused a request of a proxy");
        told.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_tls_ends_at_the_backend_a_claimed_certificate_is_refused_and_recorded() {
    let mut system = Deployment::new(Binaries::shipped());
    let rogue = Material::read(&system.issue("gw-rogue")).unwrap();
    let other = Material::read(&system.issue("gw-other")).unwrap();
    system.start_backend(Start::default()).await;
    let agents = system.agents_address().to_owned();
    let certificate = Some(&rogue.certificate);
    let other = escaped(&other.certificate.chain);
    for claim in [("x-client-cert", other.as_str()), ("client-cert", ":YQ==:")] {
        let claims = [claim];
        let claimed = upgrade_claiming(
            &agents,
            &rogue.authority,
            certificate,
            PATH,
            PROTOCOL,
            &claims,
        );
        assert_eq!(claimed.await.err().unwrap().0, Refused::Http(400));
    }
    eventually("it is recorded", PATIENCE, async || {
        let audit = system.get("/v1/audit?limit=100").await;
        let mut records = audit["items"].as_array()?.iter();
        records
            .any(|record| record["action"] == "gateway.forged_certificate")
            .then_some(())
    })
    .await;
    assert!(
        upgrade(&agents, &rogue.authority, certificate, PATH, PROTOCOL)
            .await
            .is_ok()
    );
}
