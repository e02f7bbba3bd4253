//! The agents' port as a gateway meets it, and as somebody does who is none.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{AlertDescription, ClientConfig, RootCertStore};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};
use viworks_common::certificate;
use viworks_common::id::{AgentRunId, BootId, InstallId};
use viworks_common::key::{AgentKey, Binding, BindingMode};
use viworks_common::pin::SpkiPin;
use viworks_common::session::{AgentEvent, AgentSession, AgentSessionConfig};
use viworks_common::wire::SUBPROTOCOL;
use viworks_common::wire::envelope::VERSION;
use viworks_common::wire::message::Hello;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::{random, tls};

use super::papers::Papers;
use crate::failure::chain;

/// How long the other end may take for anything.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long the other end may take at least to say that a certificate is none, where it says that in TLS.
const ALERT_WITHIN: Duration = Duration::from_secs(1);

/// Whom the caller claims to be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shown {
    /// The gateway itself.
    Own,
    /// Nobody: no certificate.
    Nothing,
    /// Somebody with a certificate that has the gateway's name, and is of another authority.
    Foreign,
}

/// Why there was no session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    /// Nobody took the connection.
    Tcp(String),
    /// TLS did not get that far.
    Tls(String),
    /// It did not because the other end wants another certificate, and says so.
    Certificate(String),
    /// The upgrade was answered with this status.
    Http(u16),
    /// A close frame with this number.
    Closed(u16),
    /// The connection just ended, or nothing came.
    Cut,
}

impl Refused {
    /// In a few words.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Tcp(why) => format!("no connection: {why}"),
            Self::Tls(why) | Self::Certificate(why) => {
                let alert = why.split_once("received fatal alert: ");
                alert.map_or_else(
                    || format!("refused in TLS ({why})"),
                    |(_io, alert)| format!("refused in TLS ({alert})"),
                )
            }
            Self::Http(status) => format!("refused with HTTP {status}"),
            Self::Closed(code) => format!("refused with {code}"),
            Self::Cut => "the connection ended without a word".to_owned(),
        }
    }
}

/// An upgraded connection.
pub(super) struct Upgraded {
    socket: WebSocketStream<TlsStream<TcpStream>>,
    /// From the first packet to 101.
    pub(super) took: Duration,
    /// What was agreed on, such as `TLSv1_3`.
    pub(super) version: String,
    /// The key that the server showed.
    pub(super) pin: Option<SpkiPin>,
}

/// Connects as a gateway does.
pub(super) async fn upgrade(papers: &Papers) -> Result<Upgraded, Refused> {
    match timeout(PATIENCE, upgraded(papers, Shown::Own, ALERT_WITHIN)).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => Err(Refused::Cut),
    }
}

/// Connects as somebody does who is none. `took` is how long the gateway itself took.
pub(super) async fn intrude(
    papers: &Papers,
    shown: Shown,
    took: Duration,
) -> Result<Upgraded, Refused> {
    match timeout(PATIENCE, upgraded(papers, shown, alert_within(took))).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => Err(Refused::Cut),
    }
}

/// How long to wait for a word on the certificate, where a whole upgrade takes `took`: longer on a slow line, and not
/// so long that there is no time for the rest.
fn alert_within(took: Duration) -> Duration {
    took.saturating_mul(4).clamp(ALERT_WITHIN, PATIENCE / 2)
}

async fn upgraded(
    papers: &Papers,
    shown: Shown,
    alert_within: Duration,
) -> Result<Upgraded, Refused> {
    let begun = Instant::now();
    let tcp = connect(papers).await?;
    let config = config(papers, shown).map_err(Refused::Tls)?;
    let name = ServerName::try_from(papers.server_name.clone());
    let name = name.map_err(|error| Refused::Tls(error.to_string()))?;
    let stream = TlsConnector::from(config).connect(name, tcp).await;
    let mut stream = stream.map_err(|error| of_tls(&error))?;
    if !matches!(shown, Shown::Own) {
        // In TLS 1.3 a client learns only now that its certificate was refused, and a request that is on its way by
        // then would be answered with a reset, which takes the alert away.
        let mut nothing = [0; 1];
        match timeout(alert_within, stream.read(&mut nothing)).await {
            Ok(Ok(_end)) => return Err(Refused::Cut),
            Ok(Err(error)) => return Err(of_tls(&error)),
            Err(_silent) => {}
        }
    }
    let (_tcp, connection) = stream.get_ref();
    let version = connection.protocol_version();
    let version = version.map_or_else(String::new, |version| format!("{version:?}"));
    let leaf = connection.peer_certificates().and_then(<[_]>::first);
    let pin = leaf.and_then(|leaf| tls::spki_sha256(leaf).ok());
    let mut request = format!("wss://{}{}", papers.server_name, papers.path)
        .into_client_request()
        .map_err(|error| Refused::Tls(error.to_string()))?;
    if let Ok(offered) = SUBPROTOCOL.parse() {
        request
            .headers_mut()
            .insert("sec-websocket-protocol", offered);
    }
    match client_async(request, stream).await {
        Ok((socket, _response)) => Ok(Upgraded {
            socket,
            took: begun.elapsed(),
            version,
            pin: pin.map(SpkiPin::from_digest),
        }),
        Err(Error::Http(response)) => Err(Refused::Http(response.status().as_u16())),
        Err(Error::Io(error)) => Err(of_tls(&error)),
        Err(error) => Err(Refused::Tls(error.to_string())),
    }
}

/// Why TLS ended, by what the other end said.
pub(super) fn of_tls(error: &std::io::Error) -> Refused {
    let inner = error.get_ref();
    let inner = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::HandshakeFailure,
        )) => Refused::Certificate(error.to_string()),
        _ => Refused::Tls(error.to_string()),
    }
}

async fn connect(papers: &Papers) -> Result<TcpStream, Refused> {
    let stream = TcpStream::connect((papers.host.as_str(), papers.port)).await;
    stream.map_err(|error| Refused::Tcp(error.to_string()))
}

pub(super) fn config(papers: &Papers, shown: Shown) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    for authority in &papers.authority {
        roots
            .add(authority.clone())
            .map_err(|error| error.to_string())?;
    }
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let mut config = match shown {
        Shown::Nothing => builder.with_no_client_auth(),
        Shown::Own => {
            let tls::Identity { chain, key } = papers.shown.clone();
            let config = builder.with_client_auth_cert(chain, key);
            config.map_err(|error| error.to_string())?
        }
        Shown::Foreign => {
            let (certificate, key) = foreign(papers)?;
            let config = builder.with_client_auth_cert(vec![certificate], key);
            config.map_err(|error| error.to_string())?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The gateway's name, as its certificate has it, signed by nobody that the backend knows.
fn foreign(papers: &Papers) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), String> {
    let failed = |error: rcgen::Error| error.to_string();
    let leaf = papers.shown.chain.first().ok_or("it has no certificate")?;
    let own = certificate::read(leaf).map_err(|error| error.to_string())?;
    let uri = certificate::uri(&own.trust_domain, &own.identity);
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().map_err(failed)?)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.self_signed(&key).map_err(failed)?.der().clone();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    Ok((certificate, PrivateKeyDer::from(key)))
}

/// How long a connection that says nothing is kept, at most `limit`; `None` when it is kept longer.
pub(super) async fn silent(papers: &Papers, limit: Duration) -> Result<Option<Duration>, Refused> {
    let mut stream = connect(papers).await?;
    let begun = Instant::now();
    let mut rest = Vec::new();
    // A reset is an end as well.
    let ended = timeout(limit, stream.read_to_end(&mut rest)).await;
    Ok(ended.is_ok().then(|| begun.elapsed()))
}

/// What became of an opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Opened {
    /// The backend welcomed it.
    Welcomed,
    /// It did not.
    Refused(Refused),
}

/// Says HELLO with the papers as they were issued. Answers what was said, to be said again, and what came of it.
pub(super) async fn hello(papers: &Papers) -> Result<(Vec<u8>, Opened), Refused> {
    let mut socket = upgrade(papers).await?.socket;
    let mut session = AgentSession::new(session_config(papers, &socket)?, SystemClock.now());
    let challenge = read(&mut socket).await?;
    session.handle_frame(&challenge, SystemClock.now());
    if !matches!(session.poll_event(), Some(AgentEvent::Challenged { .. })) {
        return Err(Refused::Cut);
    }
    session.hello(first_hello(papers), random::bytes(), SystemClock.now());
    let mut said = Vec::new();
    while let Some(bytes) = session.poll_transmit(SystemClock.now()) {
        said.clone_from(&bytes);
        // When it hung up, reading tells how.
        drop(socket.send(Message::binary(bytes)).await);
    }
    let answer = match read(&mut socket).await {
        Ok(answer) => answer,
        Err(refused) => return Ok((said, Opened::Refused(refused))),
    };
    session.handle_frame(&answer, SystemClock.now());
    if matches!(session.poll_event(), Some(AgentEvent::Welcomed(_))) {
        return Ok((said, Opened::Welcomed));
    }
    let refused = read(&mut socket).await.err().unwrap_or(Refused::Cut);
    Ok((said, Opened::Refused(refused)))
}

/// Says what was said before, on a connection of its own.
pub(super) async fn say_again(papers: &Papers, said: Vec<u8>) -> Result<Opened, Refused> {
    let mut socket = upgrade(papers).await?.socket;
    read(&mut socket).await?;
    drop(socket.send(Message::binary(said)).await);
    Ok(match read(&mut socket).await {
        // A signed word before the close frame; what counts is that it ends.
        Ok(_said) => match read(&mut socket).await {
            Ok(_goes_on) => Opened::Welcomed,
            Err(refused) => Opened::Refused(refused),
        },
        Err(refused) => Opened::Refused(refused),
    })
}

fn session_config(
    papers: &Papers,
    socket: &WebSocketStream<TlsStream<TcpStream>>,
) -> Result<AgentSessionConfig, Refused> {
    let failed = |error: tls::TlsError| Refused::Tls(chain(&error));
    let value = match (papers.binding, papers.shown.chain.first()) {
        (BindingMode::Certificate, Some(leaf)) => Sha256::digest(leaf).into(),
        (BindingMode::Exporter | BindingMode::Certificate, _) => {
            tls::exporter(socket.get_ref().get_ref().1).map_err(failed)?
        }
    };
    Ok(AgentSessionConfig {
        identity: papers.identity.clone(),
        key: AgentKey::new(papers.agent_key.clone()),
        key_generation: 1,
        binding: Binding {
            mode: papers.binding,
            value,
        },
        version_floor: 1,
        opening_timeout: PATIENCE,
    })
}

fn first_hello(papers: &Papers) -> Hello {
    let run = random::uuid_v4();
    Hello {
        install_id: InstallId::from_uuid(run),
        boot_id: BootId::from_uuid(run),
        agent_run_id: AgentRunId::from_uuid(run),
        epoch: 0,
        token: papers.token.clone(),
        agent_version: concat!("validation/", env!("CARGO_PKG_VERSION")).to_owned(),
        version: VERSION,
        capabilities: Vec::new(),
        catalogue_digest: "00".repeat(32),
        labels: [].into(),
        unreported: Vec::new(),
        highest_order: 0,
        low_water: 0,
        pin_set_version: 0,
        telemetry: Vec::new(),
    }
}

/// The next message, or how it ended.
async fn read(socket: &mut WebSocketStream<TlsStream<TcpStream>>) -> Result<Vec<u8>, Refused> {
    loop {
        match timeout(PATIENCE, socket.next()).await {
            Ok(Some(Ok(Message::Binary(bytes)))) => return Ok(bytes.to_vec()),
            Ok(Some(Ok(Message::Close(Some(frame))))) => {
                return Err(Refused::Closed(frame.code.into()));
            }
            Ok(Some(Ok(Message::Ping(_) | Message::Pong(_)))) => {}
            Ok(
                Some(Ok(Message::Text(_) | Message::Close(None) | Message::Frame(_)) | Err(_))
                | None,
            )
            | Err(_) => return Err(Refused::Cut),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_line_is_given_time_to_refuse_a_certificate() {
        let seconds = Duration::from_secs;
        assert_eq!(alert_within(Duration::from_millis(3)), ALERT_WITHIN);
        // Two journeys there and back, and the refusal takes one.
        assert_eq!(alert_within(seconds(1)), seconds(4));
        assert!(alert_within(seconds(60)) < PATIENCE);
    }
}
