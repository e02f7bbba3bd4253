//! A strict peer of RFC 6455 that writes and reads single frames, for suites that break its rules on purpose.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

pub mod cases;

/// How long the other end may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// The largest frame that is read.
const FRAME_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Any mask will do; this one has no zero byte that would hide a missing one.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// The key of the example in RFC 6455.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Which end the peer plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that masks.
    Client,
    /// The one that does not.
    Server,
}

/// One frame as it was read, unmasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// FIN, the reserved bits and the opcode.
    pub first: u8,
    /// The payload.
    pub payload: Vec<u8>,
}

/// One end of a connection.
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
    side: Side,
}

impl Peer {
    /// Asks for the upgrade, as a client.
    ///
    /// # Errors
    ///
    /// When the answer is not the one that RFC 6455 prescribes.
    pub async fn request(mut stream: TcpStream) -> anyhow::Result<Self> {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let answer = head(&mut stream).await?;
        ensure!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        let accepted = header(&answer, "sec-websocket-accept");
        ensure!(accepted == Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
        ensure!(
            header(&answer, "sec-websocket-extensions").is_none(),
            "{answer}"
        );
        Ok(Self {
            stream,
            side: Side::Client,
        })
    }

    /// Answers a request for the upgrade, as a server; says which path was asked for.
    ///
    /// # Errors
    ///
    /// When it is not a request that RFC 6455 prescribes.
    pub async fn answer(mut stream: TcpStream) -> anyhow::Result<(Self, String)> {
        let request = head(&mut stream).await?;
        let path = request
            .strip_prefix("GET ")
            .and_then(|rest| rest.split(' ').next())
            .context("not a GET request")?
            .to_owned();
        ensure!(
            header(&request, "sec-websocket-version") == Some("13"),
            "{request}"
        );
        let key = header(&request, "sec-websocket-key").context("no key")?;
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            derive_accept_key(key.as_bytes())
        );
        stream.write_all(answer.as_bytes()).await?;
        let side = Side::Server;
        Ok((Self { stream, side }, path))
    }

    /// Writes one frame, masked as this end must. An error is what reading will show.
    pub async fn send(&mut self, first: u8, payload: &[u8]) {
        let bytes = encode(first, payload, self.side == Side::Client);
        self.send_raw(&bytes).await;
    }

    /// Writes one frame, masked as this end must not.
    pub async fn send_wrongly_masked(&mut self, first: u8, payload: &[u8]) {
        let bytes = encode(first, payload, self.side == Side::Server);
        self.send_raw(&bytes).await;
    }

    /// Writes one frame, a byte at a time.
    pub async fn send_in_bytes(&mut self, first: u8, payload: &[u8]) {
        for byte in encode(first, payload, self.side == Side::Client) {
            self.send_raw(&[byte]).await;
        }
    }

    /// Writes the head of a frame that claims this length, and nothing of its payload.
    pub async fn claim(&mut self, first: u8, length: u64) {
        let masked = if self.side == Side::Client { 0x80 } else { 0 };
        let mut bytes = vec![first, 127 | masked];
        bytes.extend(length.to_be_bytes());
        if masked != 0 {
            bytes.extend(MASK);
        }
        self.send_raw(&bytes).await;
    }

    async fn send_raw(&mut self, bytes: &[u8]) {
        // Whoever has given up this connection no longer reads; what it said before that is still to be read.
        drop(timeout(PATIENCE, self.stream.write_all(bytes)).await);
    }

    /// Reads one frame; none when the other end has ended the connection.
    ///
    /// # Errors
    ///
    /// When nothing comes, or a frame that no endpoint may send.
    pub async fn next(&mut self) -> anyhow::Result<Option<Frame>> {
        timeout(PATIENCE, self.read())
            .await
            .context("nothing came for too long")?
    }

    async fn read(&mut self) -> anyhow::Result<Option<Frame>> {
        let mut start = [0; 2];
        // A reset ends the connection as well.
        if self.stream.read_exact(&mut start).await.is_err() {
            return Ok(None);
        }
        let [first, second] = start;
        ensure!(first & 0x70 == 0, "a reserved bit is set: {first:#04x}");
        let masked = second & 0x80 != 0;
        ensure!(masked == (self.side == Side::Server), "masked: {masked}");
        let length = match second & 0x7f {
            126 => u64::from(self.stream.read_u16().await?),
            127 => self.stream.read_u64().await?,
            length => u64::from(length),
        };
        let shortest = match length {
            0..126 => second & 0x7f < 126,
            126..65_536 => second & 0x7f == 126,
            _ => true,
        };
        ensure!(shortest, "{length} is not written in its shortest form");
        ensure!(length <= FRAME_BYTES_MAX, "a frame of {length} bytes");
        if first & 0x08 != 0 {
            ensure!(first & 0x80 != 0, "a fragmented control frame");
            ensure!(length <= 125, "a control frame of {length} bytes");
        }
        let mut mask = [0; 4];
        if masked {
            self.stream.read_exact(&mut mask).await?;
        }
        let mut payload = vec![0; usize::try_from(length)?];
        self.stream.read_exact(&mut payload).await?;
        apply(mask, &mut payload);
        Ok(Some(Frame { first, payload }))
    }

    /// Reads the frame that must come next.
    ///
    /// # Errors
    ///
    /// When another one comes, or none.
    pub async fn expect(&mut self, first: u8, payload: &[u8]) -> anyhow::Result<()> {
        let Some(frame) = self.next().await? else {
            bail!("the connection ended where {first:#04x} was expected");
        };
        ensure!(
            frame.first == first && frame.payload == payload,
            "expected {first:#04x} with {} bytes, got {:#04x} with {} bytes: {:?}",
            payload.len(),
            frame.first,
            frame.payload.len(),
            String::from_utf8_lossy(&frame.payload[..frame.payload.len().min(64)]),
        );
        Ok(())
    }

    /// Reads the end of a connection that the other end had to fail: a close frame with this number or none, and then
    /// nothing.
    ///
    /// # Errors
    ///
    /// When something else comes.
    pub async fn expect_failed(&mut self, number: u16) -> anyhow::Result<()> {
        match self.next().await? {
            None => return Ok(()),
            Some(Frame { first, payload }) => {
                ensure!(first == 0x88, "{first:#04x} where the end was expected");
                let said = payload.first_chunk().copied().map(u16::from_be_bytes);
                ensure!(
                    said == Some(number),
                    "closed with {said:?} instead of {number}"
                );
            }
        }
        // As an endpoint that has been told to end would.
        drop(self.stream.shutdown().await);
        match self.next().await? {
            None => Ok(()),
            Some(frame) => bail!("{frame:?} after the close frame"),
        }
    }

    /// Reads the end of a closed connection.
    ///
    /// # Errors
    ///
    /// When something else comes.
    pub async fn expect_end(&mut self) -> anyhow::Result<()> {
        if self.side == Side::Server {
            drop(self.stream.shutdown().await);
        }
        match self.next().await? {
            None => Ok(()),
            Some(frame) => bail!("{frame:?} where the end was expected"),
        }
    }
}

fn encode(first: u8, payload: &[u8], masked: bool) -> Vec<u8> {
    let bit = if masked { 0x80 } else { 0 };
    let mut bytes = vec![first];
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length @ 0..126), _) => bytes.push(length | bit),
        (_, Ok(length)) => {
            bytes.push(126 | bit);
            bytes.extend(length.to_be_bytes());
        }
        _ => {
            bytes.push(127 | bit);
            bytes.extend((payload.len() as u64).to_be_bytes());
        }
    }
    let mut payload = payload.to_vec();
    if masked {
        bytes.extend(MASK);
        apply(MASK, &mut payload);
    }
    bytes.append(&mut payload);
    bytes
}

fn apply(mask: [u8; 4], payload: &mut [u8]) {
    for (byte, mask) in payload.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= mask;
    }
}

async fn head(stream: &mut TcpStream) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        ensure!(bytes.len() < 8_192, "a head without an end");
        let byte = timeout(PATIENCE, stream.read_u8()).await;
        bytes.push(byte.context("no head came")?.context("no whole head")?);
    }
    String::from_utf8(bytes).context("a head that is no text")
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
