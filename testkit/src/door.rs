//! A machine at the door for new gateways that says whatever it is told to, and a door that is none.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use viworks_common::enrolment::{PATH, PROOF_HEADER};
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::tls;

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

/// Somebody who has the server's key, poses as the door, and gives authorities without having any gateway's key; ended
/// when it is dropped.
#[derive(Debug)]
pub struct FalseDoor {
    /// Where it listens.
    pub url: String,
    lifecycle: Lifecycle,
}

impl Drop for FalseDoor {
    fn drop(&mut self) {
        self.lifecycle.abort();
    }
}

impl FalseDoor {
    /// Listens with the certificate and key of the backend in `folder`, and gives this bundle, PEM.
    ///
    /// # Errors
    /// When those cannot be used or nothing can be listened on.
    pub async fn start(folder: &Path, bundle: &str) -> anyhow::Result<Self> {
        let server = tls::Identity::load(&folder.join("server.crt"), &folder.join("server.key"))?;
        let acceptor = TlsAcceptor::from(tls::open_server_config(server)?);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("https://{}", listener.local_addr()?);
        let refusal = json!({
            "code": "not_lapsed",
            "detail": "it is good",
            "authorities": { "bundle": bundle, "mac": "07".repeat(32) },
        });
        let lifecycle = Lifecycle::new();
        lifecycle.spawn("false door", async move {
            while let Ok((stream, _address)) = listener.accept().await {
                // One after the other; whoever hangs up in between is none of its business.
                let refuse = refuse(&acceptor, stream, &refusal);
                drop(timeout(PATIENCE, refuse).await);
            }
        });
        Ok(Self { url, lifecycle })
    }
}

/// Gives a challenge, and refuses whatever comes of it.
async fn refuse(acceptor: &TlsAcceptor, stream: TcpStream, refusal: &Value) -> anyhow::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let challenge = json!({ "challenge": "05".repeat(32), "time": SystemClock.wall() });
    for (status, body) in [("200 OK", &challenge), ("409 Conflict", refusal)] {
        read_request(&mut stream).await?;
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        stream.flush().await?;
    }
    Ok(stream.shutdown().await?)
}

/// Reads one request to its end.
async fn read_request<S: AsyncRead + Unpin>(stream: &mut S) -> anyhow::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head)?.to_lowercase();
    let length = head.split_once("content-length: ");
    let length = length.and_then(|(_before, rest)| rest.split("\r\n").next());
    let length: usize = length.context("there is no length")?.parse()?;
    stream.read_exact(&mut vec![0; length]).await?;
    Ok(())
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
