//! A machine at the door for new gateways that says whatever it is told to.

use std::time::Duration;

use anyhow::Context;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use viworks_common::enrolment::{PATH, PROOF_HEADER};

use crate::rogue::config;

/// How long the door may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends one request to the door at `address`, whose certificate `authority` signed (PEM), over a connection that begins
/// with `preface`. Returns the status and the body of the answer.
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
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(preface).await?;
    let connector = TlsConnector::from(config(authority, None)?);
    let mut stream = connector
        .connect(ServerName::try_from("localhost")?, stream)
        .await?;
    let proof = proof.map_or_else(String::new, |proof| format!("{PROOF_HEADER}: {proof}\r\n"));
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n{proof}\r\n",
        body.len()
    );
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
