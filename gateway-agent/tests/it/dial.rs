//! Dialling small servers on this machine: each way to fail has its own name, and only the pinned key gets through.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use viworks_common::key::BindingMode;
use viworks_common::pin::SpkiPin;
use viworks_common::session::backoff::FailureClass;
use viworks_gateway_agent::config::{OutboundConfig, Timeouts};
use viworks_gateway_agent::outbound::dial::Dialler;
use viworks_gateway_agent::outbound::failure::{DialFailure, Step};
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::tls::{self, Identity};

/// An authority with one server and one gateway.
struct World {
    authority: CertificateDer<'static>,
    server: Identity,
    gateway: Identity,
}

fn world() -> World {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let issue = |name: &str, usage| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &issuer).unwrap();
        Identity {
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        }
    };
    World {
        server: issue("localhost", ExtendedKeyUsagePurpose::ServerAuth),
        gateway: issue("gateway.test", ExtendedKeyUsagePurpose::ClientAuth),
        authority: issuer.der().clone(),
    }
}

fn pin_of(identity: &Identity) -> SpkiPin {
    SpkiPin::from_digest(tls::spki_sha256(&identity.chain[0]).unwrap())
}

fn config(address: SocketAddr) -> OutboundConfig {
    let long = Duration::from_secs(30);
    OutboundConfig {
        backoff: viworks_common::session::backoff::BackoffSettings::default(),
        host: "127.0.0.1".to_owned(),
        port: address.port(),
        path: "/agent/v1/connect".to_owned(),
        server_name: "localhost".to_owned(),
        binding: BindingMode::Exporter,
        pins: BTreeSet::new(),
        door_url: None,
        ca_file: "unused".into(),
        version_floor: 1,
        timeouts: Timeouts {
            resolve: long,
            connect: long,
            tls: long,
            upgrade: long,
            opening: long,
            send: long,
        },
    }
}

fn dialler(world: &World, trusted: &World, address: SocketAddr) -> Dialler {
    dialler_with(config(address), world, trusted)
}

fn dialler_with(config: OutboundConfig, world: &World, trusted: &World) -> Dialler {
    let roots = tls::roots([trusted.authority.clone()]).unwrap();
    Dialler::new(config, Arc::new(roots), world.gateway.clone(), [0; 32])
}

/// Serves every connection the same answer to the upgrade, over TLS.
async fn serve(world: &World, answer: &'static str) -> (SocketAddr, Lifecycle) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let roots = tls::roots([world.authority.clone()]).unwrap();
    let config = tls::server_config(world.server.clone(), roots).unwrap();
    let lifecycle = Lifecycle::new();
    lifecycle.spawn("server", async move {
        let acceptor = TlsAcceptor::from(config);
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(tcp).await else {
                continue;
            };
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => request.push(byte),
                    Err(_) => break,
                }
            }
            if stream.write_all(answer.as_bytes()).await.is_ok() {
                drop(stream.shutdown().await);
            }
        }
    });
    (address, lifecycle)
}

async fn fail(world: &World, trusted: &World, pin: SpkiPin, answer: &'static str) -> DialFailure {
    let (address, lifecycle) = serve(world, answer).await;
    let result = dialler(world, trusted, address)
        .dial(BTreeSet::from([pin]))
        .await;
    lifecycle.abort();
    lifecycle.shutdown(Duration::ZERO).await;
    result.unwrap_err()
}

#[tokio::test]
async fn a_port_where_nobody_listens_refuses() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let world = world();
    let failure = dialler(&world, &world, address)
        .dial(BTreeSet::from([pin_of(&world.server)]))
        .await
        .unwrap_err();
    assert_eq!(
        failure,
        DialFailure::Refused {
            address: address.to_string()
        }
    );
    assert_eq!(failure.class(), FailureClass::Transient);
}

#[tokio::test]
async fn a_good_chain_with_another_key_is_a_pin_mismatch_that_proves_nothing() {
    let world = world();
    let other = SpkiPin::from_digest([7; 32]);
    let failure = fail(&world, &world, other, "").await;
    assert_eq!(
        failure,
        DialFailure::PinMismatch {
            seen: pin_of(&world.server)
        }
    );
    assert_eq!(failure.class(), FailureClass::PermanentUnproved);
}

#[tokio::test]
async fn the_pinned_key_under_another_authority_is_not_trusted_and_told_from_another_key() {
    let (world, stranger) = (world(), world());
    let pin = pin_of(&world.server);
    let failure = fail(&world, &stranger, pin, "").await;
    assert!(
        matches!(failure, DialFailure::AuthorityUnknown { seen, .. } if seen == pin),
        "{failure:?}"
    );
    assert_eq!(failure.class(), FailureClass::PermanentUnproved);
    assert!(failure.fix().contains("door_url"), "{}", failure.fix());
    let other = SpkiPin::from_digest([7; 32]);
    let failure = fail(&world, &stranger, other, "").await;
    assert!(
        matches!(failure, DialFailure::Stranger { seen, .. } if seen == pin),
        "{failure:?}"
    );
    assert_eq!(failure.class(), FailureClass::PermanentUnproved);
    assert!(!failure.fix().contains("door_url"), "{}", failure.fix());
}

#[tokio::test]
async fn a_gateway_of_another_authority_is_told_by_an_alert() {
    let (mut world, stranger) = (world(), world());
    world.gateway = stranger.gateway;
    let failure = fail(&world, &world, pin_of(&world.server), "").await;
    assert!(
        matches!(
            failure,
            DialFailure::TlsAlert {
                certificate: true,
                ..
            }
        ),
        "{failure:?}"
    );
    assert_eq!(failure.class(), FailureClass::PermanentUnproved);
}

#[tokio::test]
async fn a_busy_backend_says_when_to_come_back() {
    let world = world();
    let answer = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n";
    let failure = fail(&world, &world, pin_of(&world.server), answer).await;
    let after = Duration::from_secs(7);
    assert_eq!(
        failure,
        DialFailure::HttpStatus {
            code: 503,
            retry_after: Some(after)
        }
    );
    assert_eq!(failure.class(), FailureClass::Told { after });
}

#[tokio::test]
async fn an_ordinary_web_server_is_recognised() {
    let world = world();
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let failure = fail(&world, &world, pin_of(&world.server), answer).await;
    assert_eq!(
        failure,
        DialFailure::HttpStatus {
            code: 200,
            retry_after: None
        }
    );
}

#[tokio::test]
async fn a_server_that_never_shakes_hands_runs_into_the_time_limit_of_that_step() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let world = world();
    let mut config = config(address);
    config.timeouts.tls = Duration::from_millis(100);
    let failure = dialler_with(config, &world, &world)
        .dial(BTreeSet::from([pin_of(&world.server)]))
        .await
        .unwrap_err();
    assert_eq!(
        failure,
        DialFailure::Timeout {
            step: Step::Tls,
            limit: Duration::from_millis(100)
        }
    );
}

#[tokio::test]
async fn a_server_that_never_answers_the_upgrade_runs_into_the_time_limit_of_that_step() {
    let world = world();
    let (address, lifecycle) = serve_silence(&world).await;
    let limit = Duration::from_millis(200);
    let mut config = config(address);
    config.timeouts.upgrade = limit;
    let result = dialler_with(config, &world, &world)
        .dial(BTreeSet::from([pin_of(&world.server)]))
        .await;
    lifecycle.abort();
    lifecycle.shutdown(Duration::ZERO).await;
    assert_eq!(
        result.unwrap_err(),
        DialFailure::Timeout {
            step: Step::Upgrade,
            limit
        }
    );
}

/// Shakes hands and then reads without ever answering.
async fn serve_silence(world: &World) -> (SocketAddr, Lifecycle) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let roots = tls::roots([world.authority.clone()]).unwrap();
    let config = tls::server_config(world.server.clone(), roots).unwrap();
    let lifecycle = Lifecycle::new();
    lifecycle.spawn("silent server", async move {
        let acceptor = TlsAcceptor::from(config);
        while let Ok((tcp, _)) = listener.accept().await {
            if let Ok(mut stream) = acceptor.accept(tcp).await {
                drop(tokio::io::copy(&mut stream, &mut tokio::io::sink()).await);
            }
        }
    });
    (address, lifecycle)
}
