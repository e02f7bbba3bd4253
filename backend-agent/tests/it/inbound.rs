//! The agents' listener against real TLS and WebSocket clients: who gets in, who does not, and that it survives both.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};
use uuid::Uuid;
use viworks_backend_agent::app::App;
use viworks_backend_agent::config::Config;
use viworks_backend_agent::data::{GatewayRef, Store};
use viworks_backend_agent::material::ServerMaterial;
use viworks_backend_agent::pki::authority::{Authority, Issued};
use viworks_backend_agent::pki::issue::{GATEWAY_LIFE, Material, Office};
use viworks_backend_agent::start_error::StartError;
use viworks_common::code::CloseCode;
use viworks_common::id::{AgentRunId, BootId, InstallId, Tenant};
use viworks_common::key::{AgentKey, Binding, BindingMode, Secret};
use viworks_common::session::{AgentEvent, AgentSession, AgentSessionConfig};
use viworks_common::telemetry::{Batch, Record};
use viworks_common::wire::message::{AgentMessage, Heartbeat, Hello};
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::{random, tls};

use crate::pki;

mod commands;
mod replayed;

const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Backend {
    folder: TempDir,
    pub(crate) app: App,
    lifecycle: Lifecycle,
    office: Office,
    /// A second handle on the same file, as another process has it.
    pub(crate) store: Arc<dyn Store>,
    /// What goes before every TLS connection.
    pub(crate) preface: Vec<u8>,
}

impl Backend {
    async fn start() -> Self {
        Self::start_on(pki::initialised(), Arc::new(SystemClock)).await
    }

    pub(crate) async fn start_on(folder: TempDir, clock: Arc<dyn Clock>) -> Self {
        // What is tested here must not need the reconciler.
        let rarely = Duration::from_secs(3_600);
        Self::start_changed(folder, clock, |config| config.jobs.offer = rarely).await
    }

    /// The same with other settings.
    pub(crate) async fn start_changed(
        folder: TempDir,
        clock: Arc<dyn Clock>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = pki::config(&folder);
        config.agents.listen.set_port(0);
        config.api.listen.set_port(0);
        config.jobs.expire = Duration::from_millis(100);
        change(&mut config);
        let lifecycle = Lifecycle::new();
        let material = ServerMaterial::load(&config).unwrap();
        let app = App::start_by(&config, material.clone(), &lifecycle, clock);
        let app = app.await.unwrap();
        let second = App::start(&config, material, &lifecycle).await.err();
        assert!(
            matches!(second, Some(StartError::Folder(_))),
            "a second backend on the same state must not start"
        );
        let office = Office::open(&config).unwrap();
        let store = pki::store(&config).await;
        Self {
            folder,
            app,
            lifecycle,
            office,
            store,
            preface: Vec::new(),
        }
    }

    pub(crate) async fn join(&self, name: &str) -> Material {
        self.join_for(name, GATEWAY_LIFE).await
    }

    /// The same with a certificate that lives for so long.
    pub(crate) async fn join_for(&self, name: &str, life: Duration) -> Material {
        let joined = pki::join(&*self.store, &self.office, name, life);
        joined.await.unwrap()
    }

    pub(crate) async fn tls(
        &self,
        identity: Option<&Issued>,
    ) -> Result<TlsStream<TcpStream>, std::io::Error> {
        let mut roots = RootCertStore::empty();
        let authority = self.office.authority.certificate().as_bytes();
        roots
            .add(CertificateDer::from_pem_slice(authority).unwrap())
            .unwrap();
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(issued) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap(),
                )
                .unwrap(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut stream = TcpStream::connect(self.app.agents).await?;
        stream.write_all(&self.preface).await?;
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }

    /// The status of the answer to an upgrade, or none when TLS did not get that far.
    pub(crate) async fn status(
        &self,
        identity: Option<&Issued>,
        path: &str,
        subprotocol: bool,
    ) -> Option<u16> {
        let stream = self.tls(identity).await.ok()?;
        match client_async(request(path, subprotocol), stream).await {
            Ok((_, response)) => Some(response.status().as_u16()),
            Err(tungstenite::Error::Http(response)) => {
                assert_eq!(
                    response.headers()["content-type"],
                    "application/problem+json"
                );
                Some(response.status().as_u16())
            }
            Err(_) => None,
        }
    }

    pub(crate) async fn dial(&self, material: &Material) -> Gateway {
        let stream = self.tls(Some(&material.certificate)).await.unwrap();
        let value = tls::exporter(stream.get_ref().1).unwrap();
        let (socket, response) = client_async(request("/agent/v1/connect", true), stream)
            .await
            .unwrap();
        assert_eq!(
            response.headers()["sec-websocket-protocol"],
            "viworks.agent.v1"
        );
        let config = AgentSessionConfig {
            identity: material.identity.clone(),
            key: AgentKey::new(material.agent_key.clone()),
            key_generation: u8::try_from(material.key_generation).unwrap(),
            binding: Binding {
                mode: BindingMode::Exporter,
                value,
            },
            version_floor: 1,
            opening_timeout: PATIENCE,
        };
        Gateway {
            capabilities: Vec::new(),
            socket,
            session: AgentSession::new(config, SystemClock.now()),
            sent: Vec::new(),
        }
    }

    /// Stops it; its folder can be started on again.
    pub(crate) async fn stop(self) -> TempDir {
        self.store.close().await;
        let outcome = self.lifecycle.shutdown(Duration::from_secs(20)).await;
        assert!(outcome.aborted.is_empty(), "{outcome:?}");
        self.app.close().await;
        self.folder
    }
}

fn request(path: &str, subprotocol: bool) -> tungstenite::handshake::client::Request {
    let mut request = format!("wss://localhost{path}")
        .into_client_request()
        .unwrap();
    if subprotocol {
        request.headers_mut().insert(
            "sec-websocket-protocol",
            "viworks.agent.v1".parse().unwrap(),
        );
    }
    request
}

pub(crate) struct Gateway {
    /// What its HELLO announces.
    pub(crate) capabilities: Vec<String>,
    socket: WebSocketStream<TlsStream<TcpStream>>,
    pub(crate) session: AgentSession,
    sent: Vec<Vec<u8>>,
}

impl Gateway {
    pub(crate) async fn event(&mut self) -> Option<AgentEvent> {
        loop {
            while let Some(bytes) = self.session.poll_transmit(SystemClock.now()) {
                self.sent.push(bytes.clone());
                self.socket.send(Message::binary(bytes)).await.ok()?;
            }
            if let Some(event) = self.session.poll_event() {
                return Some(event);
            }
            let message = tokio::time::timeout(PATIENCE, self.socket.next())
                .await
                .unwrap()?
                .ok()?;
            let Message::Binary(bytes) = message else {
                return None;
            };
            self.session.handle_frame(&bytes, SystemClock.now());
        }
    }

    /// The number of the close frame that comes, whatever comes before it.
    pub(crate) async fn close_number(&mut self) -> Option<u16> {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.socket.next())
                .await
                .unwrap()?
                .ok()?;
            if let Message::Close(frame) = message {
                return frame.map(|frame| frame.code.into());
            }
        }
    }

    pub(crate) async fn hello(&mut self, run: u128, epoch: u64, token: &Secret) {
        assert!(matches!(
            self.event().await,
            Some(AgentEvent::Challenged { .. })
        ));
        let hello = Hello {
            install_id: InstallId::from_uuid(Uuid::from_u128(run)),
            boot_id: BootId::from_uuid(Uuid::from_u128(run)),
            agent_run_id: AgentRunId::from_uuid(Uuid::from_u128(run)),
            epoch,
            token: token.expose_hex(),
            agent_version: "0.1.0".to_owned(),
            version: 1,
            capabilities: self.capabilities.clone(),
            catalogue_digest: "00".repeat(32),
            labels: [].into(),
            unreported: Vec::new(),
            highest_order: 0,
            low_water: 0,
            pin_set_version: 0,
            telemetry: Vec::new(),
        };
        self.session
            .hello(hello, random::bytes(), SystemClock.now());
    }

    /// The gateway calls a session established when it has sent CONFIRM; an answer says that the backend committed it.
    pub(crate) async fn round_trip(&mut self) {
        let heartbeat = Heartbeat {
            sent_at_ms: 1,
            round_trip_us: None,
            clock_skew_ms: None,
            spool_records: 0,
            spool_bytes: 0,
            commands_running: 0,
        };
        self.session
            .send(AgentMessage::Heartbeat(heartbeat), SystemClock.now())
            .unwrap();
        loop {
            match self.event().await {
                Some(AgentEvent::RoundTrip { .. }) => return,
                Some(_) => {}
                None => panic!("the session ended"),
            }
        }
    }

    /// Opens the session; the issued epoch with its token, or the refusal.
    pub(crate) async fn open(
        &mut self,
        run: u128,
        epoch: u64,
        token: &Secret,
    ) -> Result<(u64, Secret), CloseCode> {
        self.hello(run, epoch, token).await;
        match self.event().await {
            Some(AgentEvent::Welcomed(welcome)) => {
                self.session.confirm(SystemClock.now());
                assert!(matches!(self.event().await, Some(AgentEvent::Established)));
                self.round_trip().await;
                Ok((welcome.epoch, Secret::from_hex(&welcome.token).unwrap()))
            }
            Some(AgentEvent::Refused { code, .. }) => Err(code),
            other => panic!("neither welcomed nor refused: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_gateway_connects_delivers_telemetry_and_comes_back_with_its_next_epoch() {
    let backend = Backend::start().await;
    let material = backend.join("gw-1").await;
    let mut gateway = backend.dial(&material).await;
    let (epoch, token) = gateway.open(1, 0, &material.token).await.unwrap();
    assert_eq!(epoch, 1);
    let record = Record {
        stream: "host.cpu".parse().unwrap(),
        observed_at: SystemClock.wall(),
        fields: [(
            "load".parse().unwrap(),
            viworks_common::telemetry::FieldValue::Number(0.5),
        )]
        .into(),
    };
    let spool_epoch = AgentRunId::from_uuid(Uuid::from_u128(1));
    let batch = Batch {
        spool_epoch,
        from_seq: 1,
        to_seq: 2,
        gaps: Vec::new(),
        records: vec![(1, record.clone()), (2, record)],
    };
    gateway
        .session
        .send(AgentMessage::Telemetry(batch.into()), SystemClock.now())
        .unwrap();
    let acknowledged = loop {
        match gateway.event().await {
            Some(AgentEvent::TelemetryAcknowledged(position)) => break position,
            Some(_) => {}
            None => panic!("the session ended"),
        }
    };
    assert_eq!(acknowledged.seq, 2);
    let positions = backend
        .store
        .telemetry_positions(&Tenant::default_tenant(), material.identity.agent_id)
        .await
        .unwrap();
    assert_eq!(positions, [acknowledged], "acknowledged means committed");
    // The same process takes over from its own old connection at once.
    let mut next = backend.dial(&material).await;
    assert_eq!(next.open(1, epoch, &token).await.unwrap().0, 2);
    assert_eq!(gateway.close_number().await, Some(4409));
    drop((gateway, next));
    drop(backend.stop().await);
}

#[tokio::test]
async fn a_certificate_that_is_not_registered_here_gets_no_session() {
    let backend = Backend::start().await;
    let (one, other) = (backend.join("gw-1").await, backend.join("gw-2").await);
    let path = "/agent/v1/connect";
    let now = SystemClock.wall();
    let foreign = Authority::create(now).unwrap().0;
    let domain = &backend.office.trust_domain;
    let name = "gw-1".parse().unwrap();
    let foreign = foreign
        .gateway(domain, &one.identity, &name, now, GATEWAY_LIFE)
        .unwrap();
    let then = now.saturating_sub(Duration::from_secs(7_200));
    let expired = backend
        .office
        .authority
        .gateway(domain, &one.identity, &name, then, Duration::from_secs(60))
        .unwrap();
    let unregistered = backend
        .office
        .authority
        .gateway(domain, &one.identity, &name, now, GATEWAY_LIFE)
        .unwrap();
    assert_eq!(
        backend.status(None, path, true).await,
        None,
        "no certificate"
    );
    assert_eq!(
        backend.status(Some(&foreign), path, true).await,
        None,
        "a foreign authority"
    );
    assert_eq!(
        backend.status(Some(&expired), path, true).await,
        None,
        "expired"
    );
    assert_eq!(
        backend.status(Some(&unregistered), path, true).await,
        Some(403),
        "a key that nobody registered"
    );
    assert_eq!(
        backend.status(Some(&one.certificate), "/", true).await,
        Some(404)
    );
    assert_eq!(
        backend.status(Some(&one.certificate), path, false).await,
        Some(400)
    );
    // Another agent's certificate carries another identity: the keys do not fit.
    let crossed = Material {
        certificate: other.certificate.clone(),
        ..backend_copy(&one)
    };
    let mut gateway = backend.dial(&crossed).await;
    gateway.hello(1, 0, &one.token).await;
    assert_eq!(flush_and_close(&mut gateway).await, Some(4400));
    // And after all that the honest one gets in.
    let mut gateway = backend.dial(&one).await;
    gateway.open(1, 0, &one.token).await.unwrap();
    drop(gateway);
    drop(backend.stop().await);
}

fn backend_copy(material: &Material) -> Material {
    Material {
        identity: material.identity.clone(),
        trust_domain: material.trust_domain.clone(),
        certificate: material.certificate.clone(),
        authority: material.authority.clone(),
        key_generation: material.key_generation,
        agent_key: material.agent_key.clone(),
        token: material.token.clone(),
    }
}

async fn flush_and_close(gateway: &mut Gateway) -> Option<u16> {
    while let Some(bytes) = gateway.session.poll_transmit(SystemClock.now()) {
        gateway.sent.push(bytes.clone());
        gateway.socket.send(Message::binary(bytes)).await.unwrap();
    }
    gateway.close_number().await
}

#[tokio::test]
async fn what_is_no_message_of_ours_closes_the_connection_and_nothing_else() {
    let backend = Backend::start().await;
    let material = backend.join("gw-1").await;
    for (message, number) in [
        (Message::binary(vec![7; 100]), 4400),
        (Message::binary(Vec::new()), 4400),
        (Message::text("hello"), 4400),
        (Message::binary(vec![1; 20 * 1024]), 4413),
        (Message::binary(vec![1; 300 * 1024]), 4413),
    ] {
        let mut gateway = backend.dial(&material).await;
        assert!(matches!(
            gateway.event().await,
            Some(AgentEvent::Challenged { .. })
        ));
        gateway.socket.send(message).await.unwrap();
        assert_eq!(gateway.close_number().await, Some(number));
    }
    let mut wrong = backend_copy(&material);
    wrong.agent_key = Secret::from_bytes([9; 32]);
    let mut gateway = backend.dial(&wrong).await;
    gateway.hello(1, 0, &material.token).await;
    assert_eq!(
        flush_and_close(&mut gateway).await,
        Some(4400),
        "a wrong key"
    );
    let mut gateway = backend.dial(&material).await;
    gateway.open(1, 0, &material.token).await.unwrap();
    // Its HELLO, recorded and sent again on another connection.
    let recorded = gateway.sent[0].clone();
    let mut replaying = backend.dial(&material).await;
    assert!(matches!(
        replaying.event().await,
        Some(AgentEvent::Challenged { .. })
    ));
    replaying
        .socket
        .send(Message::binary(recorded))
        .await
        .unwrap();
    assert_eq!(replaying.close_number().await, Some(4400));
    let audit = backend
        .store
        .list_audit(
            &Tenant::default_tenant(),
            viworks_backend_agent::data::Page::first(50),
        )
        .await
        .unwrap();
    assert!(
        audit
            .items
            .iter()
            .any(|entry| entry.record.action == "gateway.hello_replayed")
    );
    drop((gateway, replaying));
    drop(backend.stop().await);
}

#[tokio::test]
async fn a_second_machine_with_the_same_identity_is_refused_while_the_first_is_alive() {
    let backend = Backend::start().await;
    let material = backend.join("gw-1").await;
    let mut live = backend.dial(&material).await;
    let (epoch, token) = live.open(1, 0, &material.token).await.unwrap();
    let mut copy = backend.dial(&material).await;
    // The original goes on answering while the copy opens.
    let drained = async {
        loop {
            match live.event().await {
                Some(AgentEvent::Draining { reconnect_after }) => break reconnect_after,
                Some(_) => {}
                None => panic!("the live session was ended"),
            }
        }
    };
    let (refused, drained) = tokio::join!(copy.open(2, epoch, &token), drained);
    assert_eq!(refused.unwrap_err(), CloseCode::IdentityFork);
    assert_eq!(drained, Duration::ZERO);
    let tenant = Tenant::default_tenant();
    let forks = backend
        .store
        .list_forks(&tenant, material.identity.agent_id)
        .await
        .unwrap();
    assert_eq!(forks.len(), 1);
    // Until the original is back it looks like its copy, and the copy must not be faster.
    let mut copy = backend.dial(&material).await;
    assert_eq!(
        copy.open(2, epoch, &token).await.unwrap_err(),
        CloseCode::RateLimited
    );
    // The original moves on, and what the copy has is worth nothing any more.
    let mut moved = backend.dial(&material).await;
    moved.open(1, epoch, &token).await.unwrap();
    let mut copy = backend.dial(&material).await;
    assert_eq!(
        copy.open(2, epoch, &token).await.unwrap_err(),
        CloseCode::IdentityFork
    );
    drop((live, copy, moved));
    drop(backend.stop().await);
}

#[tokio::test]
async fn revocation_cuts_the_live_session_and_refuses_the_next() {
    let backend = Backend::start().await;
    let material = backend.join("gw-1").await;
    let mut gateway = backend.dial(&material).await;
    gateway.open(1, 0, &material.token).await.unwrap();
    let tenant = Tenant::default_tenant();
    let found = backend
        .store
        .gateway(&tenant, &GatewayRef::Id(material.identity.agent_id))
        .await
        .unwrap()
        .unwrap();
    assert!(found.session.is_some());
    let actor = viworks_backend_agent::data::Actor::system();
    backend
        .store
        .revoke_gateway(&tenant, found.agent_id, None, &actor, SystemClock.wall())
        .await
        .unwrap();
    assert_eq!(gateway.close_number().await, Some(4403));
    assert_eq!(
        backend
            .status(Some(&material.certificate), "/agent/v1/connect", true)
            .await,
        Some(403)
    );
    drop(backend.stop().await);
}
