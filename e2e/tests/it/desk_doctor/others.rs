//! Who else may answer in place of a backend: servers that say one thing, and ends of TLS with odd certificates.

use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::lifecycle::Lifecycle;

const DAY: i64 = 86_400;

/// When a certificate is valid.
#[derive(Debug, Clone, Copy)]
pub(super) enum Life {
    Good,
    Over,
    Early,
}

/// A site's authority.
pub(super) struct Site {
    pem: String,
    key: KeyPair,
}

impl Site {
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, key }
    }

    pub(super) fn authority(&self) -> String {
        self.pem.clone()
    }

    /// A server with this name, or address.
    pub(super) fn server(&self, name: &str, life: Life) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let now = SystemClock.wall().unix_millis() / 1_000;
        let (from, to) = match life {
            Life::Good => (now - DAY, now + DAY),
            Life::Over => (now - 2 * DAY, now - DAY),
            Life::Early => (now + DAY, now + 2 * DAY),
        };
        params.not_before = OffsetDateTime::from_unix_timestamp(from).unwrap();
        params.not_after = OffsetDateTime::from_unix_timestamp(to).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&self.pem, &self.key).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let secret = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], secret);
        Arc::new(config.unwrap())
    }
}

/// Ends TLS before an API, as a proxy does; where that is.
pub(super) async fn tls_before(api: &str, server: Arc<ServerConfig>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (acceptor, api) = (TlsAcceptor::from(server), api.to_owned());
    let lifecycle = Lifecycle::new();
    let serving = lifecycle.clone();
    drop(lifecycle.spawn("TLS before an API", async move {
        while let Ok((stream, _peer)) = listener.accept().await {
            let (acceptor, api) = (acceptor.clone(), api.clone());
            drop(serving.spawn("a connection", async move {
                let mut inside = acceptor.accept(stream).await.ok()?;
                let mut behind = TcpStream::connect(api).await.ok()?;
                copy_bidirectional(&mut inside, &mut behind).await.ok()
            }));
        }
    }));
    address
}

/// Whoever asks is answered this, a status and headers; where that is.
pub(super) fn says(head: &str, body: &str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let head = head.trim_end();
    let answer = format!(
        "HTTP/1.1 {head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let listener = TcpListener::from_std(listener).unwrap();
    let lifecycle = Lifecycle::new();
    let serving = lifecycle.clone();
    drop(lifecycle.spawn("whoever answers", async move {
        while let Ok((mut stream, _peer)) = listener.accept().await {
            let answer = answer.clone();
            drop(serving.spawn("a connection", async move {
                let mut asked = [0; 4_096];
                let _length = stream.read(&mut asked).await?;
                stream.write_all(answer.as_bytes()).await
            }));
        }
    }));
    address.to_string()
}
