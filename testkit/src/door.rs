//! A machine at the door for new gateways that says whatever it is told to.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use viworks_common::enrolment::{PATH, PROOF_HEADER};

use crate::deployment::Deployment;
use crate::rogue::config;

/// How long the door may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// Connects to the door at `address` from `from`, one of this machine's addresses, and sends nothing.
///
/// # Errors
/// When that is not let in.
pub async fn reach(address: &str, from: IpAddr) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    Ok(socket.connect(address.parse()?).await?)
}

/// The same, with TLS, and sends nothing behind that.
///
/// # Errors
/// When that is not let in.
pub async fn connect(
    address: &str,
    authority: &[u8],
    from: IpAddr,
) -> anyhow::Result<TlsStream<TcpStream>> {
    let connector = TlsConnector::from(config(authority, None)?);
    let stream = reach(address, from).await?;
    let name = ServerName::try_from("localhost")?;
    Ok(connector.connect(name, stream).await?)
}

/// The head of a request with a body of so many bytes, over a connection that is to be closed behind the answer.
#[must_use]
pub fn head(body_bytes: usize, proof: Option<&str>) -> String {
    head_at(PATH, body_bytes, proof)
}

fn head_at(path: &str, body_bytes: usize, proof: Option<&str>) -> String {
    let proof = proof.map_or_else(String::new, |proof| format!("{PROOF_HEADER}: {proof}\r\n"));
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {body_bytes}\r\n{proof}\r\n"
    )
}

/// Sends one request to the door at `address`, whose certificate `authority` signed (PEM), over a connection that
/// begins with `preface`. Returns the status and the body of the answer.
///
/// # Errors
/// When there is no answer.
pub async fn ask(
    address: &str,
    authority: &[u8],
    preface: &[u8],
    body: &[u8],
    proof: Option<&str>,
) -> anyhow::Result<(u16, Value)> {
    ask_at(PATH, address, authority, preface, body, proof).await
}

/// The same at another place of the door.
///
/// # Errors
/// When there is no answer.
pub async fn ask_at(
    path: &str,
    address: &str,
    authority: &[u8],
    preface: &[u8],
    body: &[u8],
    proof: Option<&str>,
) -> anyhow::Result<(u16, Value)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(preface).await?;
    let connector = TlsConnector::from(config(authority, None)?);
    let mut stream = connector
        .connect(ServerName::try_from("localhost")?, stream)
        .await?;
    let head = head_at(path, body.len(), proof);
    let mut answer = Vec::new();
    timeout(PATIENCE, async {
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body).await?;
        stream.read_to_end(&mut answer).await
    })
    .await??;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("there is no head")?;
    let status = head.split(' ').nth(1).context("there is no status")?;
    Ok((status.parse()?, serde_json::from_str(body)?))
}

impl Deployment {
    /// Where machines enrol.
    ///
    /// # Panics
    /// When the backend was never started with a door.
    #[must_use]
    pub fn door_address(&self) -> &str {
        self.door.as_deref().expect("the backend has a door")
    }

    /// The authority of the backend's certificate, PEM.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn authority(&self) -> Vec<u8> {
        let file = self.backend_config().with_file_name("ca.crt");
        std::fs::read(file).expect("it was made")
    }
}
