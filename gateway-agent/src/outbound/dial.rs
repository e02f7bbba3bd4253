//! Name, TCP, TLS, upgrade: a WebSocket to the backend, or a classified failure.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use viworks_common::key::{Binding, BindingMode};
use viworks_common::limits::SocketBounds;
use viworks_common::pin::SpkiPin;
use viworks_common::wire::SUBPROTOCOL;
use viworks_runtime::blocking::{self, Unanswered};
use viworks_runtime::{tls, websocket};

use super::addresses::in_order;
use super::failure::{DialFailure, Step};
use super::pinning::PinVerifier;
use crate::config::{OutboundConfig, Timeouts};

/// Bytes that may wait in the kernel: more would put a command behind a backlog of telemetry.
const NOTSENT_LOWAT_BYTES: u32 = 16 * 1024;

/// Names that are looked up at once.
const LOOKUPS_MAX: usize = 4;

/// How long an address has before the next one is tried beside it (RFC 8305).
const HEAD_START: Duration = Duration::from_millis(250);

/// The socket of a session.
pub type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// An upgraded connection.
#[derive(Debug)]
pub struct Dialled {
    /// The socket.
    pub socket: Socket,
    /// What the session is bound to.
    pub binding: Binding,
    /// The key that the server showed.
    pub pin: SpkiPin,
}

/// What stays the same between attempts.
#[derive(Debug)]
pub struct Dialler {
    config: OutboundConfig,
    roots: Arc<RootCertStore>,
    identity: tls::Identity,
    fingerprint: [u8; 32],
    /// Where the last attempt ended up.
    last: Mutex<Option<SocketAddr>>,
}

impl Dialler {
    /// A dialler that shows `identity`, whose certificate has this SHA-256, and trusts `roots`.
    #[must_use]
    pub fn new(
        config: OutboundConfig,
        roots: Arc<RootCertStore>,
        identity: tls::Identity,
        fingerprint: [u8; 32],
    ) -> Self {
        Self {
            config,
            roots,
            identity,
            fingerprint,
            last: Mutex::default(),
        }
    }

    fn last(&self) -> MutexGuard<'_, Option<SocketAddr>> {
        // Nothing panics while it is held.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One attempt, trusting `pins`.
    ///
    /// # Errors
    ///
    /// Why there is no connection.
    pub async fn dial(&self, pins: BTreeSet<SpkiPin>) -> Result<Dialled, DialFailure> {
        let last = *self.last();
        let OutboundConfig {
            host,
            port,
            timeouts,
            ..
        } = &self.config;
        let tcp = connect(host, *port, last, timeouts).await?;
        *self.last() = tcp.peer_addr().ok();
        self.open(tcp, pins).await
    }

    /// The rest of an attempt, on a TCP connection: TLS and the upgrade.
    ///
    /// # Errors
    ///
    /// Why it becomes no session's socket.
    pub async fn open(
        &self,
        tcp: TcpStream,
        pins: BTreeSet<SpkiPin>,
    ) -> Result<Dialled, DialFailure> {
        let OutboundConfig { path, timeouts, .. } = &self.config;
        let (stream, pin) = self.secure(tcp, pins).await?;
        let value = match self.config.binding {
            BindingMode::Exporter => {
                tls::exporter(stream.get_ref().1).map_err(|error| DialFailure::Tls {
                    reason: error.to_string(),
                })?
            }
            BindingMode::Certificate => self.fingerprint,
        };
        let binding = Binding {
            mode: self.config.binding,
            value,
        };
        let target = Target {
            authority: self.config.authority(),
            path,
            subprotocol: Some(SUBPROTOCOL),
            bounds: SocketBounds::SESSION,
        };
        let socket = upgrade(stream, &target, timeouts.upgrade).await?;
        Ok(Dialled {
            socket,
            binding,
            pin,
        })
    }

    async fn secure(
        &self,
        tcp: TcpStream,
        pins: BTreeSet<SpkiPin>,
    ) -> Result<(TlsStream<TcpStream>, SpkiPin), DialFailure> {
        let refused = |reason: String| DialFailure::Tls { reason };
        let verifier = PinVerifier::new(Arc::clone(&self.roots), pins)
            .map_err(|error| refused(error.to_string()))?;
        let config = tls::client_config(self.identity.clone(), Arc::clone(&verifier) as Arc<_>)
            .map_err(|error| refused(error.to_string()))?;
        let name = ServerName::try_from(self.config.server_name.clone())
            .map_err(|error| refused(error.to_string()))?;
        let limit = self.config.timeouts.tls;
        let stream = timeout(limit, TlsConnector::from(config).connect(name, tcp))
            .await
            .map_err(|_elapsed| late(Step::Tls, limit))?
            .map_err(|error| match verifier.unchained() {
                Some(unchained) => DialFailure::of_unchained(unchained),
                None => DialFailure::of_io(&error, Step::Tls),
            })?;
        // Resumption is off, so every handshake has gone through the verifier.
        let pin = verifier
            .seen()
            .ok_or_else(|| refused("the server's certificate was not verified".to_owned()))?;
        Ok((stream, pin))
    }
}

/// A TCP connection with our options, to the first address that takes one; the one that the `last` attempt ended up
/// with is tried after all others.
///
/// # Errors
///
/// Why there is none.
pub async fn connect(
    host: &str,
    port: u16,
    last: Option<SocketAddr>,
    times: &Timeouts,
) -> Result<TcpStream, DialFailure> {
    let host = host.trim_matches(['[', ']']);
    let failed = |reason: String| DialFailure::Dns {
        host: host.to_owned(),
        reason,
    };
    let addresses = timeout(times.resolve, resolve(host, port, times.resolve))
        .await
        .map_err(|_elapsed| late(Step::Resolve, times.resolve))?
        .map_err(|error| match error {
            Unresolved::Unanswered(Unanswered::Late(limit)) => late(Step::Resolve, limit),
            // No thread at the moment, such as under a limit on processes: the next attempt asks again.
            Unresolved::Unanswered(error) => failed(error.to_string()),
            Unresolved::Refused(error) => failed(error.to_string()),
        })?;
    let stream = reach(in_order(addresses, last), times)
        .await
        .unwrap_or_else(|| Err(failed("it has no address".to_owned())))?;
    tune(&stream, times.send).map_err(|error| DialFailure::Network {
        step: Step::Connect,
        reason: error.to_string(),
    })?;
    Ok(stream)
}

/// A connection to the first of these addresses that takes one, each with a head start before the next; `None` without
/// any.
async fn reach(
    addresses: Vec<SocketAddr>,
    times: &Timeouts,
) -> Option<Result<TcpStream, DialFailure>> {
    let mut addresses = addresses.into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut failure = None;
    loop {
        if let Some(address) = addresses.next() {
            attempts.push(open(address, times.connect));
        }
        let more = addresses.len() > 0;
        tokio::select! {
            attempt = attempts.next() => match attempt {
                Some(Ok(stream)) => return Some(Ok(stream)),
                Some(Err(other)) => failure = Some(Err(other)),
                None => return failure,
            },
            () = sleep(HEAD_START), if more => {}
        }
    }
}

/// Why a name has no addresses.
enum Unresolved {
    /// The resolver said so.
    Refused(io::Error),
    /// It did not say anything.
    Unanswered(Unanswered),
}

/// The addresses of a name. The system's resolver cannot be interrupted: one that hangs keeps its thread, so only a few
/// are asked at once, however often somebody dials.
async fn resolve(host: &str, port: u16, limit: Duration) -> Result<Vec<SocketAddr>, Unresolved> {
    static LOOKUPS: Semaphore = Semaphore::const_new(LOOKUPS_MAX);
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let slot = LOOKUPS
        .acquire()
        .await
        .map_err(|error| Unresolved::Refused(io::Error::other(error)))?;
    let host = host.to_owned();
    let look_up = move || {
        let found = (host.as_str(), port)
            .to_socket_addrs()
            .map(Iterator::collect);
        drop(slot);
        found
    };
    blocking::call("resolve", limit, look_up)
        .await
        .map_err(Unresolved::Unanswered)?
        .map_err(Unresolved::Refused)
}

/// What is asked for in the upgrade, and the socket that the connection becomes.
#[derive(Debug, Clone)]
pub struct Target<'a> {
    /// Host and port.
    pub authority: String,
    /// Where on the server, with a query if need be.
    pub path: &'a str,
    /// What both ends must agree to, if anything.
    pub subprotocol: Option<&'static str>,
    /// How large messages and buffers may become.
    pub bounds: SocketBounds,
}

/// Makes a WebSocket of a connection.
///
/// # Errors
///
/// When the other end does not.
pub async fn upgrade<S>(
    stream: S,
    target: &Target<'_>,
    limit: Duration,
) -> Result<WebSocketStream<S>, DialFailure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Target {
        authority,
        path,
        subprotocol,
        bounds,
    } = target;
    let mut request = http::Request::get(format!("wss://{authority}{path}"))
        .header("Host", authority)
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", generate_key());
    if let Some(subprotocol) = subprotocol {
        request = request.header("Sec-WebSocket-Protocol", *subprotocol);
    }
    let request = request
        .body(())
        .map_err(|error| DialFailure::NotWebSocket {
            reason: error.to_string(),
        })?;
    // Nothing is held back: a message that the session let go is on its way.
    let config = websocket::settings(*bounds, 0);
    // Boxed: the handshake is large and over soon.
    let handshake = Box::pin(client_async_with_config(request, stream, Some(config)));
    let (socket, answer) = timeout(limit, handshake)
        .await
        .map_err(|_elapsed| late(Step::Upgrade, limit))?
        .map_err(|error| DialFailure::of_upgrade(&error))?;
    let agreed = answer.headers().get("sec-websocket-protocol");
    let agreed = agreed.map(http::HeaderValue::as_bytes);
    if agreed == subprotocol.map(str::as_bytes) {
        Ok(socket)
    } else {
        Err(DialFailure::Subprotocol)
    }
}

async fn open(address: SocketAddr, limit: Duration) -> Result<TcpStream, DialFailure> {
    match timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Err(DialFailure::Refused {
                address: address.to_string(),
            })
        }
        Ok(Err(error)) => Err(DialFailure::Network {
            step: Step::Connect,
            reason: format!("{address}: {error}"),
        }),
        Err(_elapsed) => Err(late(Step::Connect, limit)),
    }
}

const fn late(step: Step, limit: Duration) -> DialFailure {
    DialFailure::Timeout { step, limit }
}

/// Small latency, small buffers, and a dead path is noticed.
fn tune(stream: &TcpStream, send: Duration) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(send.saturating_mul(3)))?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10)),
    )
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;

    use super::*;

    /// A stopped process takes connections as its kernel does, and says nothing on them.
    #[tokio::test]
    async fn an_attempt_goes_to_another_address_than_the_one_before() {
        let one = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = one.local_addr().unwrap().port();
        let beside = Ipv4Addr::new(127, 0, 0, 2);
        let _two = TcpListener::bind((beside, port)).await.unwrap();
        let long = Duration::from_secs(30);
        let times = Timeouts {
            resolve: long,
            connect: long,
            tls: long,
            upgrade: long,
            opening: long,
            send: long,
        };
        let both = vec![
            SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            SocketAddr::from((beside, port)),
        ];
        let mut last = None;
        for _ in 0..20 {
            let stream = reach(in_order(both.clone(), last), &times).await;
            let reached = stream.unwrap().unwrap().peer_addr().unwrap();
            assert_ne!(Some(reached), last);
            last = Some(reached);
        }
        assert!(reach(Vec::new(), &times).await.is_none());
    }
}
