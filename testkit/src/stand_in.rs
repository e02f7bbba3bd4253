//! Stands in for a backend with its server key and master key, and answers every gateway what a test wants to be said.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use viworks_common::certificate;
use viworks_common::code::CloseCode;
use viworks_common::id::SessionId;
use viworks_common::key::{Binding, BindingMode, Identity, MasterKey, Secret};
use viworks_common::session::{BackendEvent, BackendSession, BackendSessionConfig};
use viworks_common::time::Timestamp;
use viworks_common::wire::envelope;
use viworks_common::wire::message::{
    BackendMessage, Challenge, Credits, Drain, Hello, Refuse, Welcome,
};
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::{random, tls};

/// How long the other end may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// What every connection is answered.
#[derive(Debug, Clone)]
pub enum Answer {
    /// This, instead of an upgrade.
    Http(String),
    /// A close frame right after the upgrade, which nobody signed.
    CloseFrame(CloseCode),
    /// A CHALLENGE for these versions and this binding.
    Challenge(u8, u8, BindingMode),
    /// A CHALLENGE by a clock that is so many seconds ahead, or behind.
    Clock(i64),
    /// REFUSE to HELLO, with this code and reason.
    Refuse(CloseCode, String),
    /// A session, and DRAIN with this delay as its first message.
    Drain(Duration),
    /// WELCOME, and the same once more.
    Twice,
}

/// A running stand-in; ended when it is dropped.
#[derive(Debug)]
pub struct StandIn {
    /// Where it listens.
    pub url: String,
    answer: Arc<Mutex<Answer>>,
    lifecycle: Lifecycle,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.lifecycle.abort();
    }
}

impl StandIn {
    /// Listens with the material of the backend in `folder`.
    ///
    /// # Errors
    /// When the material cannot be used or nothing can be listened on.
    pub async fn start(folder: &Path, answer: Answer) -> anyhow::Result<Self> {
        let server = tls::Identity::load(&folder.join("server.crt"), &folder.join("server.key"))?;
        let roots = tls::roots(tls::load_certificates(&folder.join("ca.crt"))?)?;
        let config = tls::server_config(server, roots)?;
        let master = std::fs::read_to_string(folder.join("master.key"))?;
        let master = Secret::from_hex(master.trim()).context("a key is 64 digits")?;
        let master = Arc::new(MasterKey::new(master));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("wss://{}/agent/v1/connect", listener.local_addr()?);
        let answer = Arc::new(Mutex::new(answer));
        let answers = Arc::clone(&answer);
        let lifecycle = Lifecycle::new();
        let serving = lifecycle.clone();
        lifecycle.spawn("stand-in", async move {
            while let Ok((stream, _address)) = listener.accept().await {
                let acceptor = TlsAcceptor::from(Arc::clone(&config));
                let answer = answers
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
                let serve = serve(acceptor, stream, Arc::clone(&master), answer);
                serving.spawn("stand-in connection", async move {
                    // A gateway that hangs up in between is none of its business.
                    drop(timeout(PATIENCE, serve).await);
                });
            }
        });
        Ok(Self {
            url,
            answer,
            lifecycle,
        })
    }

    /// What connections are answered from now on.
    pub fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }
}

async fn serve(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    master: Arc<MasterKey>,
    answer: Answer,
) -> anyhow::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    if let Answer::Http(text) = &answer {
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await?;
        return Ok(());
    }
    let (_, tls) = stream.get_ref();
    let leaf = tls.peer_certificates().and_then(<[_]>::first);
    let identity = certificate::read(leaf.context("no certificate")?)?.identity;
    let binding = Binding {
        mode: BindingMode::Exporter,
        value: tls::exporter(tls)?,
    };
    let request = String::from_utf8_lossy(&request).into_owned();
    let key = request
        .lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"))
        .map(|(_, value)| derive_accept_key(value.trim().as_bytes()));
    let upgraded = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Protocol: viworks.agent.v1\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        key.context("no key")?
    );
    stream.write_all(upgraded.as_bytes()).await?;
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    match answer {
        Answer::Http(_) => {}
        Answer::CloseFrame(code) => close(&mut socket, code, "said without a signature").await?,
        Answer::Challenge(version_min, version_max, binding) => {
            challenge(&mut socket, 0, (version_min, version_max), binding).await?;
        }
        Answer::Clock(ahead) => {
            challenge(&mut socket, ahead, (1, 1), BindingMode::Exporter).await?;
        }
        Answer::Refuse(code, reason) => {
            let mut session = session(identity, master, binding);
            let said = |_hello: Box<Hello>, session: &mut BackendSession| {
                let refuse = Refuse {
                    code,
                    reason: reason.clone(),
                    retry_after_ms: None,
                };
                session.refuse(refuse, SystemClock.now());
            };
            drive(&mut socket, &mut session, said, |_session| {}).await?;
            close(&mut socket, code, "after REFUSE").await?;
        }
        Answer::Drain(after) => {
            let own = identity.clone();
            let mut session = session(identity, Arc::clone(&master), binding);
            let said = |hello: Box<Hello>, session: &mut BackendSession| {
                let epoch = hello.epoch + 1;
                let token = master.token(&own, epoch).expose_hex();
                session.welcome(welcome(epoch, token), SystemClock.now());
            };
            let confirmed = |session: &mut BackendSession| {
                session.established(SystemClock.now());
                let drain = Drain {
                    reconnect_after_ms: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
                };
                // A session that ended meanwhile needs none.
                let _sent = session.send(BackendMessage::Drain(drain), SystemClock.now());
            };
            drive(&mut socket, &mut session, said, confirmed).await?;
        }
        Answer::Twice => {
            let own = identity.clone();
            let mut session = session(identity, Arc::clone(&master), binding);
            let said = |hello: Box<Hello>, session: &mut BackendSession| {
                let epoch = hello.epoch + 1;
                let token = master.token(&own, epoch).expose_hex();
                session.welcome(welcome(epoch, token), SystemClock.now());
            };
            twice(&mut socket, &mut session, said).await?;
        }
    }
    // Until the gateway has closed, too.
    while let Some(Ok(_)) = socket.next().await {}
    Ok(())
}

async fn challenge(
    socket: &mut WebSocketStream<TlsStream<TcpStream>>,
    ahead_seconds: i64,
    (version_min, version_max): (u8, u8),
    binding: BindingMode,
) -> anyhow::Result<()> {
    let ahead = ahead_seconds.saturating_mul(1_000_000);
    let now = SystemClock.wall().unix_micros().saturating_add(ahead);
    let terms = BackendMessage::Challenge(Challenge {
        server_time: Timestamp::from_unix_micros(now),
        version_min,
        version_max,
        binding,
    });
    let challenge = envelope::challenge(&[1; 16], &random::bytes(), &terms.encode());
    Ok(socket.send(Message::binary(challenge)).await?)
}

fn session(identity: Identity, master: Arc<MasterKey>, binding: Binding) -> BackendSession {
    let config = BackendSessionConfig {
        identity,
        master,
        binding,
        session_id: SessionId::from_uuid(random::uuid_v4()),
        server_nonce: random::bytes(),
        server_time: SystemClock.wall(),
        hello_timeout: PATIENCE,
        certificate_remaining: None,
    };
    BackendSession::new(config, SystemClock.now())
}

/// Moves messages until the session is over and all of them are sent.
async fn drive(
    socket: &mut WebSocketStream<TlsStream<TcpStream>>,
    session: &mut BackendSession,
    mut hello: impl FnMut(Box<Hello>, &mut BackendSession),
    mut confirmed: impl FnMut(&mut BackendSession),
) -> anyhow::Result<()> {
    loop {
        while let Some(event) = session.poll_event() {
            if let BackendEvent::Hello { hello: said, .. } = event {
                hello(said, session);
            } else if matches!(event, BackendEvent::Confirmed { .. }) {
                confirmed(session);
            }
        }
        while let Some(bytes) = session.poll_transmit(SystemClock.now()) {
            socket.send(Message::binary(bytes)).await?;
        }
        if session.closed().is_some() {
            return Ok(());
        }
        let Message::Binary(bytes) = socket.next().await.context("hung up")?? else {
            return Ok(());
        };
        session.handle_frame(&bytes, SystemClock.now());
    }
}

/// Answers HELLO, and says again what it was answered with.
async fn twice(
    socket: &mut WebSocketStream<TlsStream<TcpStream>>,
    session: &mut BackendSession,
    hello: impl FnOnce(Box<Hello>, &mut BackendSession),
) -> anyhow::Result<()> {
    while let Some(bytes) = session.poll_transmit(SystemClock.now()) {
        socket.send(Message::binary(bytes)).await?;
    }
    let Message::Binary(bytes) = socket.next().await.context("hung up")?? else {
        return Ok(());
    };
    session.handle_frame(&bytes, SystemClock.now());
    if let Some(BackendEvent::Hello { hello: said, .. }) = session.poll_event() {
        hello(said, session);
    }
    let answer = session.poll_transmit(SystemClock.now());
    let answer = answer.context("no HELLO came")?;
    socket.send(Message::binary(answer.clone())).await?;
    Ok(socket.send(Message::binary(answer)).await?)
}

async fn close(
    socket: &mut WebSocketStream<TlsStream<TcpStream>>,
    code: CloseCode,
    reason: &str,
) -> anyhow::Result<()> {
    let frame = CloseFrame {
        code: code.number().into(),
        reason: format!("{}: {reason}", code.name()).into(),
    };
    Ok(socket.close(Some(frame)).await?)
}

fn welcome(epoch: u64, token: String) -> Welcome {
    Welcome {
        epoch,
        token,
        heartbeat_interval_ms: 15_000,
        silence_ms: 45_000,
        credits: Credits {
            commands: 4,
            telemetry_bytes: 64 * 1024,
            output_bytes: 64 * 1024,
        },
        low_water: 0,
        committed: Vec::new(),
        catalogue_known: true,
        pins: None,
        server_time: SystemClock.wall(),
        reconnect_slot_ms: 1_000,
        renews_certificates: false,
    }
}
