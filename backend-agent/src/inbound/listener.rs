//! Accepts agents: admission control, TLS, who it is, the upgrade. Then a fresh, small task has the connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::{InvalidMessage, ServerConfig};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info, warn};
use viworks_common::key::{Binding, BindingMode};
use viworks_common::limits::SEND_PROGRESS_TIMEOUT;
use viworks_runtime::throttle::{LOG_LINES, Throttle};
use viworks_runtime::websocket::{Progress, Socket};
use viworks_runtime::{random, tls};

use super::Inbound;
use super::connection::{self, Opening};
use super::limits::{Admitted, Gate, Turn};
use super::proxy::{self, Proxies};
use super::upgrade::{self, Rules, Verdict};
use crate::agent::registry::{Peer, Unrecognised};

/// Unsent bytes in the kernel above which the socket takes no more, so that a command never waits behind telemetry.
const UNSENT_BYTES_MAX: u32 = 16 * 1024;

/// The pause after the process ran out of file descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(200);

/// The listener for agents.
pub struct Listener {
    listener: TcpListener,
    /// What a reload replaces; connections that are there keep theirs.
    config: watch::Receiver<Arc<ServerConfig>>,
    gate: Gate,
    proxies: Proxies,
    inbound: Arc<Inbound>,
    lines: Arc<Lines>,
}

impl Listener {
    /// Takes over a bound socket. The configuration must require client certificates: [`tls::server_config`] does.
    #[must_use]
    pub fn new(
        listener: TcpListener,
        config: watch::Receiver<Arc<ServerConfig>>,
        gate: Gate,
        proxies: Proxies,
        inbound: Arc<Inbound>,
    ) -> Self {
        Self {
            listener,
            config,
            gate,
            proxies,
            inbound,
            lines: Arc::new(Lines {
                strangers: Throttle::new(LOG_LINES),
                refused: Throttle::new(LOG_LINES),
                unaccepted: Throttle::new(LOG_LINES),
            }),
        }
    }

    /// Accepts until the process stops.
    pub async fn run(self) {
        let stopping = self.inbound.lifecycle.stop_token();
        loop {
            let accepted = tokio::select! {
                () = stopping.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => self.admit(stream, address),
                Err(error) => self.failed(&error).await,
            }
        }
    }

    /// Lets a connection in, or drops its socket: that costs nothing, and an answer would.
    fn admit(&self, stream: TcpStream, address: SocketAddr) {
        let handshake = Handshake {
            acceptor: TlsAcceptor::from(Arc::clone(&self.config.borrow())),
            lines: Arc::clone(&self.lines),
            inbound: Arc::clone(&self.inbound),
            address,
        };
        let lifecycle = &self.inbound.lifecycle;
        if self.proxies.send_headers() {
            if !self.proxies.trusts(address.ip()) {
                return handshake.not_a_proxy();
            }
            match self.gate.arrive() {
                Ok(arrived) => {
                    let task = handshake.arrive(stream, arrived, self.gate.clone());
                    drop(lifecycle.spawn("agent handshake", Box::pin(task)));
                }
                Err(turned) => self.inbound.metrics.refused(turned.name()),
            }
            return;
        }
        match self.gate.admit(address.ip()) {
            Ok(admitted) => {
                let task = Box::pin(handshake.run(stream, admitted));
                drop(lifecycle.spawn("agent handshake", task));
            }
            Err(turned) => self.inbound.metrics.refused(turned.name()),
        }
    }

    /// An error of `accept` concerns one connection or all of them; neither ends the listener.
    async fn failed(&self, error: &io::Error) {
        self.inbound.metrics.refused("accept_failed");
        let concerns_one = matches!(
            error.kind(),
            io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::Interrupted
        );
        if !concerns_one {
            if let Some(left_out) = self.lines.unaccepted.take(self.inbound.clock.now()) {
                warn!(%error, left_out, "cannot accept connections; trying again");
            }
            sleep(EXHAUSTED_PAUSE).await;
        }
    }
}

/// Bounds of what connections without a session write into the log; the metrics count all of them.
struct Lines {
    /// Those without a certificate of ours.
    strangers: Throttle,
    /// Those with one that is refused: a flood of the others must not hide them.
    refused: Throttle,
    /// About connections that could not be accepted.
    unaccepted: Throttle,
}

struct Handshake {
    acceptor: TlsAcceptor,
    lines: Arc<Lines>,
    inbound: Arc<Inbound>,
    address: SocketAddr,
}

impl Handshake {
    /// Finds out for whom a proxy connects, and whether there is room for that one.
    async fn arrive(mut self, mut stream: TcpStream, arrived: Turn, gate: Gate) {
        let proxy = self.address;
        let metrics = &self.inbound.metrics;
        let limit = self.inbound.terms.tls_timeout;
        match timeout(limit, proxy::client(&mut stream, proxy)).await {
            Ok(Ok(client)) => self.address = client,
            Ok(Err(error)) => {
                metrics.handshake("proxy_header_refused");
                self.strangers(|left_out| {
                    warn!(%proxy, %error, left_out, "refused a connection of a proxy: with agents.proxy_protocol = \"require\", each has to begin with a header (nginx: proxy_protocol on)");
                });
                return;
            }
            Err(_elapsed) => {
                metrics.handshake("proxy_header_timeout");
                self.strangers(|left_out| {
                    info!(%proxy, left_out, "a proxy connected and did not say for whom");
                });
                return;
            }
        }
        let admitted = gate.admit(self.address.ip());
        drop(arrived);
        match admitted {
            Ok(admitted) => self.run(stream, admitted).await,
            Err(turned) => metrics.refused(turned.name()),
        }
    }

    /// Somebody else than a proxy connects where only proxies may.
    fn not_a_proxy(&self) {
        self.inbound.metrics.refused("not_a_proxy");
        let address = self.address;
        self.strangers(|left_out| {
            warn!(%address, left_out, "refused a connection that does not come through a proxy of agents.trusted_proxies");
        });
    }

    async fn run(self, stream: TcpStream, admitted: Admitted) {
        let metrics = &self.inbound.metrics;
        let address = self.address;
        prepare(&stream);
        let limit = self.inbound.terms.tls_timeout;
        let secured = timeout(limit, async {
            let turn = admitted.handshake().await;
            self.acceptor
                .accept(stream)
                .await
                .map(|stream| (stream, turn))
        });
        let (stream, turn) = match secured.await {
            Ok(Ok(secured)) => secured,
            Ok(Err(error)) => {
                metrics.handshake("tls_failed");
                self.strangers(|left_out| {
                    if is_no_tls(&error) {
                        info!(%address, %error, left_out, "a TLS handshake failed: what came is no TLS; a proxy that sends a header of the PROXY protocol needs agents.proxy_protocol = \"require\"");
                    } else {
                        info!(%address, %error, left_out, "a TLS handshake failed");
                    }
                });
                return;
            }
            Err(_elapsed) => {
                metrics.handshake("tls_timeout");
                self.strangers(
                    |left_out| info!(%address, left_out, "a TLS handshake took too long"),
                );
                return;
            }
        };
        let recognised = self.recognise(&stream).await;
        let opening = admitted.opening();
        let verdict = match (&recognised, &opening) {
            (Err(unrecognised), _) => {
                metrics.refused(unrecognised.code().name());
                self.tell(unrecognised);
                Verdict::Refuse(unrecognised.code(), unrecognised.reason())
            }
            (Ok(_), None) => {
                metrics.refused("openings_full");
                let random = u64::from_ne_bytes(random::bytes());
                let now = self.inbound.clock.now();
                Verdict::Later(self.inbound.manager.turned_away(random, now))
            }
            (Ok(_), Some(_)) => Verdict::Welcome,
        };
        let upgraded = timeout(
            self.inbound.terms.upgrade_timeout,
            Box::pin(upgrade::serve(stream, &Rules::AGENTS, verdict)),
        );
        let socket = match upgraded.await {
            Ok(Some(socket)) => socket,
            Ok(None) => {
                metrics.handshake("not_upgraded");
                // What is wrong with a certificate was said above.
                if recognised.is_ok() && opening.is_some() {
                    self.strangers(|left_out| {
                        info!(%address, left_out, "a request of an agent was answered and not upgraded");
                    });
                }
                return;
            }
            Err(_elapsed) => {
                metrics.handshake("upgrade_timeout");
                self.strangers(|left_out| info!(%address, left_out, "an upgrade took too long"));
                return;
            }
        };
        drop(turn);
        metrics.handshake("upgraded");
        let (Ok((peer, binding)), Some(opening)) = (recognised, opening) else {
            return;
        };
        let opening = Box::new(Opening::new(
            Arc::clone(&self.inbound),
            Socket::new(socket, SEND_PROGRESS_TIMEOUT, Progress::Gone),
            peer,
            binding,
            address,
            (admitted, opening),
        ));
        // A task of its own: this one's future carries the whole handshake and would keep its size.
        let session = Box::pin(connection::serve(opening));
        drop(self.inbound.lifecycle.spawn("agent session", session));
    }

    /// Says why a client certificate is refused.
    fn tell(&self, unrecognised: &Unrecognised) {
        let address = self.address;
        if let Unrecognised::Store(error) = unrecognised
            && error.is_outage()
        {
            // Nothing may be wrong with it; what is wrong with the database is said by the store.
            debug!(%address, "whose certificate was shown cannot be looked up while the database is away");
        } else if let Some(left_out) = self.lines.refused.take(self.inbound.clock.now()) {
            warn!(%address, error = %unrecognised, left_out, "refused a client certificate");
        }
    }

    /// Writes a line that anybody who reaches the port can cause, unless there were too many of them.
    fn strangers(&self, line: impl FnOnce(u64)) {
        if let Some(left_out) = self.lines.strangers.take(self.inbound.clock.now()) {
            line(left_out);
        }
    }

    async fn recognise(
        &self,
        stream: &TlsStream<TcpStream>,
    ) -> Result<(Peer, Binding), Unrecognised> {
        let (_, connection) = stream.get_ref();
        let leaf = connection
            .peer_certificates()
            .and_then(|chain| chain.first())
            .ok_or(Unrecognised::NotShown)?;
        let now = self.inbound.clock.wall();
        let peer = self.inbound.registry.recognise(leaf, now).await?;
        let mode = self.inbound.terms.binding;
        let value = match mode {
            BindingMode::Exporter => {
                tls::exporter(connection).map_err(|_early| Unrecognised::NotShown)?
            }
            BindingMode::Certificate => peer.fingerprint,
        };
        Ok((peer, Binding { mode, value }))
    }
}

/// Whether the first bytes were of another protocol.
fn is_no_tls(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    matches!(
        cause,
        Some(rustls::Error::InvalidMessage(
            InvalidMessage::InvalidContentType
        ))
    )
}

/// Options without which a session still works, only less well; so a kernel that lacks one is no reason to refuse.
pub fn prepare(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let options = [
        stream.set_nodelay(true),
        socket.set_tcp_user_timeout(Some(SEND_PROGRESS_TIMEOUT)),
        socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX),
    ];
    for error in options.into_iter().filter_map(Result::err) {
        warn!(%error, "failed to set a socket option");
    }
}
