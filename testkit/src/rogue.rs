//! A peer that speaks to the agents' port with whatever material it is given, and breaks the rules on purpose.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};
use uuid::Uuid;
use viworks_common::id::{AgentId, AgentRunId, BootId, InstallId, Tenant};
use viworks_common::key::{AgentKey, Binding, BindingMode, Identity, Schedule, Secret};
use viworks_common::session::{AgentEvent, AgentSession, AgentSessionConfig};
use viworks_common::wire::envelope::{HEADER_BYTES, NONCE_BYTES, Packed, SESSION_ID_BYTES, seal};
use viworks_common::wire::message::{
    AgentMessage, Heartbeat, Hello, RESULT_REFUSALS, TELEMETRY_REFUSALS,
};
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::{random, tls};

/// How long the other end may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// A certificate with its key, PEM.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The certificate.
    pub chain: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
}

/// What a gateway's folder holds, read before the gateway ever ran.
#[derive(Debug, Clone)]
pub struct Material {
    /// Its certificate.
    pub certificate: Certificate,
    /// The authority's certificate, PEM.
    pub authority: Vec<u8>,
    /// Who it is.
    pub identity: Identity,
    /// The key it shares with the backend.
    pub agent_key: Secret,
    /// The token of epoch 0.
    pub token: String,
}

impl Material {
    /// Reads a gateway's folder.
    ///
    /// # Errors
    /// When it does not hold what was issued.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let identity: Value =
            serde_json::from_slice(&std::fs::read(folder.join("identity.json"))?)?;
        let text = |name: &str| identity[name].as_str().context("a field is missing");
        let agent_id: Uuid = text("agent_id")?.parse()?;
        Ok(Self {
            certificate: Certificate {
                chain: std::fs::read(folder.join("gateway.crt"))?,
                key: std::fs::read(folder.join("gateway.key"))?,
            },
            authority: std::fs::read(folder.join("ca.crt"))?,
            identity: Identity {
                tenant: text("tenant")?.parse::<Tenant>()?,
                agent_id: AgentId::from_uuid(agent_id),
            },
            agent_key: Secret::from_hex(text("agent_key")?).context("a key is 64 digits")?,
            token: text("token")?.to_owned(),
        })
    }
}

/// How a connection came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// TLS did not get that far.
    Tls,
    /// The upgrade was answered with this status.
    Http(u16),
    /// A close frame with this number.
    Closed(u16),
    /// The connection just ended.
    Cut,
}

/// An upgraded connection.
pub struct Rogue {
    socket: WebSocketStream<TlsStream<TcpStream>>,
    session: AgentSession,
    /// Its own address, by which the backend's log names it.
    pub address: SocketAddr,
    token: String,
    schedule: Schedule,
    challenge: Vec<u8>,
    /// Every message it sent.
    pub sent: Vec<Vec<u8>>,
}

/// An enrolled gateway with an established session that sends whatever it likes, with good tags.
pub struct Hostile {
    socket: WebSocketStream<TlsStream<TcpStream>>,
    session: AgentSession,
    key: Secret,
    next: u64,
    /// What the next session of this gateway has to present.
    pub ratchet: (u64, String),
}

/// The first bytes of plain HTTP, without TLS.
///
/// # Errors
/// When nobody listens.
pub async fn plain_http(agents: &str) -> anyhow::Result<SocketAddr> {
    let mut stream = TcpStream::connect(agents).await?;
    let address = stream.local_addr()?;
    stream
        .write_all(b"GET /agent/v1/connect HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await?;
    let mut answer = Vec::new();
    // An alert or nothing; a reset says the same.
    drop(timeout(PATIENCE, stream.read_to_end(&mut answer)).await?);
    anyhow::ensure!(
        !answer.starts_with(b"HTTP/1.1 101"),
        "plain HTTP was upgraded"
    );
    Ok(address)
}

/// Connects with `certificate`, to `path`, offering `subprotocol`.
///
/// # Errors
/// How far it got, with its own address.
pub async fn upgrade(
    agents: &str,
    authority: &[u8],
    certificate: Option<&Certificate>,
    path: &str,
    subprotocol: &str,
) -> Result<(WebSocketStream<TlsStream<TcpStream>>, SocketAddr), (Refused, SocketAddr)> {
    upgrade_claiming(agents, authority, certificate, path, subprotocol, &[]).await
}

/// The same with headers in which it claims something.
///
/// # Errors
/// How far it got, with its own address.
pub async fn upgrade_claiming(
    agents: &str,
    authority: &[u8],
    certificate: Option<&Certificate>,
    path: &str,
    subprotocol: &str,
    claims: &[(&'static str, &str)],
) -> Result<(WebSocketStream<TlsStream<TcpStream>>, SocketAddr), (Refused, SocketAddr)> {
    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let stream = TcpStream::connect(agents)
        .await
        .map_err(|_refused| (Refused::Cut, nowhere))?;
    let address = stream.local_addr().unwrap_or(nowhere);
    let config = config(authority, certificate).map_err(|_unusable| (Refused::Tls, address))?;
    let name = ServerName::try_from("localhost").map_err(|_invalid| (Refused::Tls, address))?;
    let stream = TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|_refused| (Refused::Tls, address))?;
    let mut request = format!("wss://localhost{path}")
        .into_client_request()
        .map_err(|_invalid| (Refused::Cut, address))?;
    if let Ok(offered) = subprotocol.parse() {
        request
            .headers_mut()
            .insert("sec-websocket-protocol", offered);
    }
    for (name, value) in claims {
        let value = value.parse().map_err(|_invalid| (Refused::Cut, address))?;
        request.headers_mut().append(*name, value);
    }
    match timeout(PATIENCE, client_async(request, stream)).await {
        Ok(Ok((socket, _response))) => Ok((socket, address)),
        Ok(Err(tokio_tungstenite::tungstenite::Error::Http(response))) => {
            Err((Refused::Http(response.status().as_u16()), address))
        }
        // In TLS 1.3 a client learns only now that its certificate was refused.
        Ok(Err(_)) => Err((Refused::Tls, address)),
        Err(_elapsed) => Err((Refused::Cut, address)),
    }
}

/// What TLS is spoken with by somebody who believes this authority, PEM.
pub(crate) fn config(
    authority: &[u8],
    certificate: Option<&Certificate>,
) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority)?)?;
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some(certificate) => builder.with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(&certificate.chain)?],
            PrivateKeyDer::from_pem_slice(&certificate.key)?,
        )?,
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl Rogue {
    /// Connects as `material` says and reads the challenge.
    ///
    /// # Errors
    /// When the backend does not challenge it.
    pub async fn challenged(agents: &str, material: &Material) -> anyhow::Result<Self> {
        let certificate = Some(&material.certificate);
        let (socket, address) = upgrade(
            agents,
            &material.authority,
            certificate,
            "/agent/v1/connect",
            "viworks.agent.v1",
        )
        .await
        .map_err(|refused| anyhow!("not upgraded: {refused:?}"))?;
        let value = tls::exporter(socket.get_ref().get_ref().1)?;
        let binding = Binding {
            mode: BindingMode::Exporter,
            value,
        };
        let config = AgentSessionConfig {
            identity: material.identity.clone(),
            key: AgentKey::new(material.agent_key.clone()),
            key_generation: 1,
            binding: binding.clone(),
            version_floor: 1,
            opening_timeout: PATIENCE,
        };
        let mut socket = socket;
        let challenge = read(&mut socket).await.context("no challenge")?;
        let nonce = HEADER_BYTES + SESSION_ID_BYTES;
        let nonce = challenge
            .get(nonce..)
            .and_then(|rest| rest.first_chunk::<NONCE_BYTES>())
            .context("a challenge has a nonce")?;
        let key = AgentKey::new(material.agent_key.clone());
        let schedule = Schedule::new(nonce, &key, material.identity.clone(), &binding);
        let mut rogue = Self {
            socket,
            session: AgentSession::new(config, SystemClock.now()),
            address,
            token: material.token.clone(),
            schedule,
            challenge,
            sent: Vec::new(),
        };
        rogue
            .session
            .handle_frame(&rogue.challenge, SystemClock.now());
        anyhow::ensure!(matches!(
            rogue.session.poll_event(),
            Some(AgentEvent::Challenged { .. })
        ));
        Ok(rogue)
    }

    /// Says HELLO as a process of the gateway would.
    pub async fn hello(&mut self) {
        self.hello_with(|_| {}).await;
    }

    /// Opens a session, with the epoch and token of the one before.
    ///
    /// # Errors
    /// When the backend does not welcome it.
    pub async fn establish(mut self, ratchet: Option<(u64, String)>) -> anyhow::Result<Hostile> {
        let ratchet = ratchet.unwrap_or_else(|| (0, self.token.clone()));
        self.hello_again(ratchet).await;
        let hello = self.sent.last().context("HELLO was sent")?;
        let key = self
            .schedule
            .session_keys(&self.challenge, hello)
            .agent_to_backend;
        let answer = read(&mut self.socket).await.context("no answer to HELLO")?;
        self.session.handle_frame(&answer, SystemClock.now());
        let ratchet = match self.session.poll_event() {
            Some(AgentEvent::Welcomed(welcome)) => (welcome.epoch, welcome.token),
            other => return Err(anyhow!("not welcomed: {other:?}")),
        };
        self.session.confirm(SystemClock.now());
        while let Some(bytes) = self.session.poll_transmit(SystemClock.now()) {
            self.socket.send(Message::binary(bytes)).await?;
        }
        Ok(Hostile {
            socket: self.socket,
            session: self.session,
            key,
            // Behind HELLO and CONFIRM.
            next: 3,
            ratchet,
        })
    }

    async fn hello_again(&mut self, (epoch, token): (u64, String)) {
        self.hello_with(|hello| {
            hello.epoch = epoch;
            hello.token = token;
        })
        .await;
    }

    /// Says HELLO with something changed in it.
    pub async fn hello_with(&mut self, change: impl FnOnce(&mut Hello)) {
        let run = random::uuid_v4();
        let mut hello = Hello {
            install_id: InstallId::from_uuid(run),
            boot_id: BootId::from_uuid(run),
            agent_run_id: AgentRunId::from_uuid(run),
            epoch: 0,
            token: self.token.clone(),
            agent_version: "rogue".to_owned(),
            version: 1,
            capabilities: [TELEMETRY_REFUSALS, RESULT_REFUSALS]
                .map(str::to_owned)
                .to_vec(),
            catalogue_digest: "00".repeat(32),
            labels: [].into(),
            unreported: Vec::new(),
            highest_order: 0,
            low_water: 0,
            pin_set_version: 0,
            telemetry: Vec::new(),
        };
        change(&mut hello);
        self.session
            .hello(hello, random::bytes(), SystemClock.now());
        self.transmit().await;
    }

    /// Completes the opening after HELLO: until the backend has answered the first heartbeat, which says that the
    /// confirmation is committed.
    ///
    /// # Errors
    /// When the backend ends it.
    pub async fn confirm(&mut self) -> anyhow::Result<()> {
        loop {
            match self.event().await? {
                AgentEvent::Welcomed(_) => {
                    self.session.confirm(SystemClock.now());
                    self.transmit().await;
                }
                AgentEvent::HeartbeatDue => {
                    self.say(AgentMessage::Heartbeat(Heartbeat {
                        sent_at_ms: 1,
                        round_trip_us: None,
                        clock_skew_ms: None,
                        spool_records: 0,
                        spool_bytes: 0,
                        commands_running: 0,
                    }))
                    .await?;
                }
                AgentEvent::RoundTrip { .. } => return Ok(()),
                AgentEvent::Refused { code, reason, .. } => {
                    return Err(anyhow!("refused: {code}: {reason}"));
                }
                AgentEvent::Challenged { .. }
                | AgentEvent::Established
                | AgentEvent::AuthoritiesOffered(_)
                | AgentEvent::TelemetryAcknowledged(_)
                | AgentEvent::Command(_)
                | AgentEvent::Go(_)
                | AgentEvent::Drop(_)
                | AgentEvent::Cancel(_)
                | AgentEvent::ResultAcknowledged { .. }
                | AgentEvent::Draining { .. }
                | AgentEvent::TelemetryRefused(_)
                | AgentEvent::CertificateAnswered(_)
                | AgentEvent::PinsOffered(_)
                | AgentEvent::KeyOffered { .. }
                | AgentEvent::Closed(_) => {}
            }
        }
    }

    /// Says something in an established session.
    ///
    /// # Errors
    /// When the session does not take it.
    pub async fn say(&mut self, message: AgentMessage) -> anyhow::Result<()> {
        self.session.send(message, SystemClock.now())?;
        self.transmit().await;
        Ok(())
    }

    /// The next thing that happens.
    ///
    /// # Errors
    /// When the connection ends first.
    pub async fn event(&mut self) -> anyhow::Result<AgentEvent> {
        loop {
            if let Some(event) = self.session.poll_event() {
                return Ok(event);
            }
            let bytes = read(&mut self.socket)
                .await
                .context("the connection ended")?;
            self.session.handle_frame(&bytes, SystemClock.now());
            self.transmit().await;
        }
    }

    async fn transmit(&mut self) {
        while let Some(bytes) = self.session.poll_transmit(SystemClock.now()) {
            self.sent.push(bytes.clone());
            self.send(Message::binary(bytes)).await;
        }
    }

    /// Sends one message as it is. When the other end has hung up, [`Rogue::end`] tells how.
    pub async fn send(&mut self, message: Message) {
        drop(self.socket.send(message).await);
    }

    /// How it ends, whatever comes before that.
    pub async fn end(self) -> Refused {
        end(self.socket).await
    }
}

impl Hostile {
    /// Sends a body of any kind; `false` when the other end has hung up or does not read.
    pub async fn send(&mut self, kind: u8, body: &Packed) -> bool {
        let sealed = seal(kind, 0, self.next, body, &self.key);
        self.next += 1;
        let sent = timeout(PATIENCE, self.socket.send(Message::binary(sealed))).await;
        matches!(sent, Ok(Ok(())))
    }

    /// Reads until `wanted` says yes to an event; `None` when the session ends before.
    pub async fn read_until<T>(
        &mut self,
        mut wanted: impl FnMut(&AgentEvent) -> Option<T>,
    ) -> Option<T> {
        loop {
            while let Some(event) = self.session.poll_event() {
                if let Some(found) = wanted(&event) {
                    return Some(found);
                }
            }
            let bytes = read(&mut self.socket).await?;
            self.session.handle_frame(&bytes, SystemClock.now());
        }
    }

    /// How it ends, whatever comes before that.
    pub async fn end(self) -> Refused {
        end(self.socket).await
    }
}

async fn read(socket: &mut WebSocketStream<TlsStream<TcpStream>>) -> Option<Vec<u8>> {
    match timeout(PATIENCE, socket.next()).await.ok()?? {
        Ok(Message::Binary(bytes)) => Some(bytes.to_vec()),
        Ok(_) | Err(_) => None,
    }
}

async fn end(mut socket: WebSocketStream<TlsStream<TcpStream>>) -> Refused {
    loop {
        match timeout(PATIENCE, socket.next()).await {
            Ok(Some(Ok(Message::Close(Some(frame))))) => {
                return Refused::Closed(frame.code.into());
            }
            Ok(Some(Ok(_))) => {}
            Ok(Some(Err(_)) | None) | Err(_) => return Refused::Cut,
        }
    }
}
