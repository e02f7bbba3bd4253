//! One mutually authenticated connection, and the WebSocket on it, the same for both kinds of agents.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use viworks_backend_agent::pki::issue::Material;
use viworks_common::limits::{self, SocketBounds};
use viworks_common::wire::{CONNECT_PATH, SUBPROTOCOL};
use viworks_runtime::websocket;

/// How long an attempt may take.
const WITHIN: Duration = Duration::from_secs(30);

/// A connection of an agent.
pub(crate) type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// Both ends' buffers and limits.
pub(crate) fn settings() -> WebSocketConfig {
    websocket::settings(SocketBounds::SESSION, limits::READ_BUFFER_BYTES)
}

/// The gateway's side of TLS.
pub(crate) fn client(material: &Material) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(
        material.authority.as_bytes(),
    )?)?;
    let certificate = CertificateDer::from_pem_slice(material.certificate.certificate.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(material.certificate.key.as_bytes())?;
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Connects.
pub(crate) async fn dial(address: &str, tls: Arc<ClientConfig>) -> anyhow::Result<Socket> {
    timeout(WITHIN, async {
        let stream = connect(address, tls).await?;
        let mut request = format!("wss://localhost{CONNECT_PATH}").into_client_request()?;
        request
            .headers_mut()
            .insert("sec-websocket-protocol", SUBPROTOCOL.parse()?);
        let (socket, _response) =
            client_async_with_config(request, stream, Some(settings())).await?;
        Ok(socket)
    })
    .await
    .context("no connection in time")?
}

/// TLS alone, for whoever speaks another protocol on it.
pub(crate) async fn connect(
    address: &str,
    tls: Arc<ClientConfig>,
) -> anyhow::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from("localhost")?;
    Ok(TlsConnector::from(tls).connect(name, stream).await?)
}
