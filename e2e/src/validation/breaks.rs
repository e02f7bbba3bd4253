//! Faults that are arranged so that a check has something to find, one for each check.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use clap::ValueEnum;
use futures_util::StreamExt;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use viworks_runtime::tls;

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Break {
    Health,
    Configuration,
    Upgrade,
    Mtls,
    NoCertificate,
    ForeignCertificate,
    Replay,
    Registration,
    Duplicate,
    RoundTrip,
    DataFlow,
    Restart,
    Limits,
    Enrolment,
    Renewal,
    Pins,
    Revocation,
    BackendConfiguration,
    BackendStart,
    BackendRecovery,
    RedisRecovery,
    PostgresRecovery,
    NginxRecovery,
    Rollback,
    GatewayRollback,
}

impl Break {
    /// The check that is to find it.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Something that listens in the place of a backend; gone when it is dropped.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) address: String,
    _serving: JoinSet<()>,
}

/// A server with the backend's key that asks nobody for a certificate, and lets everybody in.
pub(crate) async fn open_door(backend: &Path) -> anyhow::Result<Door> {
    let tls::Identity { chain, key } =
        tls::Identity::load(&backend.join("server.crt"), &backend.join("server.key"))?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((stream, _peer)) = listener.accept().await {
            let acceptor = acceptor.clone();
            open.spawn(async move {
                // Whoever hangs up has seen what it was to see.
                drop(let_in(acceptor, stream).await);
            });
        }
    });
    Ok(Door {
        address,
        _serving: serving,
    })
}

async fn let_in(acceptor: TlsAcceptor, stream: TcpStream) -> anyhow::Result<()> {
    let stream = acceptor.accept(stream).await?;
    #[expect(
        clippy::result_large_err,
        reason = "the type of a refusal is the library's"
    )]
    let answer = |_request: &Request, mut response: Response| {
        if let Ok(chosen) = "viworks.agent.v1".parse() {
            response
                .headers_mut()
                .insert("sec-websocket-protocol", chosen);
        }
        Ok(response)
    };
    let mut socket = tokio_tungstenite::accept_hdr_async(stream, answer).await?;
    socket.next().await.context("it hung up")??;
    Ok(())
}

/// A server of plain HTTP that takes everything in.
pub(crate) async fn taker() -> anyhow::Result<Door> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((mut stream, _peer)) = listener.accept().await {
            open.spawn(async move {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
                let mut taken = vec![0; 64 * 1024];
                // All that comes at once, and until nothing does.
                while let Ok(Ok(1..)) = tokio::time::timeout(
                    std::time::Duration::from_millis(500),
                    stream.read(&mut taken),
                )
                .await
                {}
                drop(stream.write_all(answer).await);
            });
        }
    });
    Ok(Door {
        address,
        _serving: serving,
    })
}

/// The API at this address, of which revocations are answered with `answer`, and not done.
pub(crate) async fn forgetful(api: String, answer: String) -> anyhow::Result<Door> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((stream, _peer)) = listener.accept().await {
            let (api, answer) = (api.clone(), answer.clone());
            open.spawn(async move {
                // Whoever hangs up has what it wanted.
                drop(forget(stream, &api, &answer).await);
            });
        }
    });
    Ok(Door {
        address,
        _serving: serving,
    })
}

async fn forget(mut near: TcpStream, api: &str, answer: &str) -> anyhow::Result<()> {
    let mut far = TcpStream::connect(api).await?;
    let (mut said, mut told) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            count = near.read(&mut said) => {
                let piece = said.get(..count?).unwrap_or_default();
                let line = piece.split(|byte| *byte == b'\r').next().unwrap_or_default();
                let line = String::from_utf8_lossy(line);
                if line.starts_with("POST ") && line.contains("/revoke ") {
                    break;
                }
                if piece.is_empty() {
                    return Ok(());
                }
                far.write_all(piece).await?;
            }
            count = far.read(&mut told) => {
                let piece = told.get(..count?).unwrap_or_default();
                if piece.is_empty() {
                    return Ok(());
                }
                near.write_all(piece).await?;
            }
        }
    }
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        answer.len()
    );
    near.write_all(head.as_bytes()).await?;
    near.write_all(answer.as_bytes()).await?;
    near.shutdown().await?;
    // A rest of the request that nobody reads would take the answer away.
    while near.read(&mut said).await? > 0 {}
    Ok(())
}
