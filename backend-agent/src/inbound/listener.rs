//! Accepts agents: admission control, TLS, who it is, the upgrade. Then a fresh, small task has the connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use rustls::InvalidMessage;
use rustls::pki_types::{CertificateDer, UnixTime};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_util::either::Either;
use tracing::{debug, info, warn};
use viworks_common::code::CloseCode;
use viworks_common::id::GatewayName;
use viworks_common::key::{Binding, BindingMode};
use viworks_common::limits::SEND_PROGRESS_TIMEOUT;
use viworks_runtime::random;
use viworks_runtime::throttle::{LOG_LINES, Throttle};
use viworks_runtime::tls;
use viworks_runtime::websocket::{Progress, Socket};

use super::connection::{self, Opening};
use super::fix;
use super::forwarded::{self, Forwarded};
use super::held::Held;
use super::limits::{Admitted, Arrival, Gate, Turn};
use super::opening::security_event;
use super::proxy::{self, Proxies, Unarrived};
use super::upgrade::{self, Rules, Verdict};
use super::{AgentStream, Inbound};
use crate::agent::authorities::Side;
use crate::agent::registry::{Peer, Unrecognised};

/// Unsent bytes in the kernel above which the socket takes no more, so that a command never waits behind telemetry.
const UNSENT_BYTES_MAX: u32 = 16 * 1024;

/// The pause after the process ran out of file descriptors or memory.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(200);

/// The listener for agents.
pub struct Listener {
    listener: TcpListener,
    /// What a reload replaces; connections that are there keep theirs.
    side: watch::Receiver<Arc<Side>>,
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
        side: watch::Receiver<Arc<Side>>,
        gate: Gate,
        proxies: Proxies,
        inbound: Arc<Inbound>,
    ) -> Self {
        Self {
            listener,
            side,
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
            side: Arc::clone(&self.side.borrow()),
            lines: Arc::clone(&self.lines),
            inbound: Arc::clone(&self.inbound),
            address,
        };
        let lifecycle = &self.inbound.lifecycle;
        let ends_tls = self.proxies.end_tls();
        if ends_tls || self.proxies.send_headers() {
            if !self.proxies.trusts(address.ip()) {
                return handshake.not_a_proxy();
            }
            let gate = self.gate.clone();
            match self.gate.arrive() {
                Ok(arrived) if ends_tls => {
                    let task = Box::pin(handshake.terminated(stream, arrived, gate));
                    drop(lifecycle.spawn("agent handshake", task));
                }
                Ok(arrived) => {
                    let task = Box::pin(handshake.arrive(stream, arrived, gate));
                    drop(lifecycle.spawn("agent handshake", task));
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

/// Who may open a session, with the room for that.
#[derive(Debug)]
struct Recognised {
    peer: Peer,
    binding: Binding,
    opening: Turn,
}

struct Handshake {
    side: Arc<Side>,
    lines: Arc<Lines>,
    inbound: Arc<Inbound>,
    address: SocketAddr,
}

impl Handshake {
    /// Finds out for whom a proxy connects, and whether there is room for that one.
    async fn arrive(mut self, mut stream: TcpStream, arrived: Arrival, gate: Gate) {
        let proxy = self.address;
        let metrics = &self.inbound.metrics;
        let limit = self.inbound.terms.tls_timeout;
        let admit = |client| gate.admit(client);
        match proxy::arrive(&mut stream, proxy, arrived, admit, limit).await {
            Ok((client, admitted)) => {
                self.address = client;
                self.run(stream, admitted).await;
            }
            Err(Unarrived::Header(error)) => {
                metrics.handshake("proxy_header_refused");
                self.strangers(|left_out| {
                    warn!(%proxy, %error, left_out, "refused a connection of a proxy: with agents.proxy_protocol = \"require\", each has to begin with a header (nginx: proxy_protocol on)");
                });
            }
            Err(Unarrived::Late) => {
                metrics.handshake("proxy_header_timeout");
                self.strangers(|left_out| {
                    info!(%proxy, left_out, "a proxy connected and did not say for whom");
                });
            }
            Err(Unarrived::Ousted) => metrics.handshake("proxy_ousted"),
            Err(Unarrived::Turned(turned)) => metrics.refused(turned.name()),
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
            TlsAcceptor::from(Arc::clone(&self.side.tls.config))
                .accept(stream)
                .await
                .map(|stream| (stream, turn))
        });
        // Boxed: it would be there twice.
        let (secured, refused) = tls::noting_refused(Box::pin(secured)).await;
        let (stream, turn) = match secured {
            Ok(Ok(secured)) => secured,
            Ok(Err(error)) => {
                metrics.handshake("tls_failed");
                let named = self.whose_ended(&error, refused).await;
                self.strangers(|left_out| {
                    if is_no_tls(&error) {
                        info!(%address, %error, left_out, "a TLS handshake failed: what came is no TLS; plain HTTP is not taken here: gateways dial wss://, and the API listens elsewhere ([api] listen); a proxy that sends a header of the PROXY protocol needs agents.proxy_protocol = \"require\"");
                    } else {
                        let fix = fix::of_tls(&error);
                        let gateway = named.as_ref().map(GatewayName::as_str);
                        info!(%address, %error, gateway, fix, left_out, "a TLS handshake failed");
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
        self.record_certificate(&recognised, address).await;
        let verdict = self.verdict(recognised, address, &admitted);
        // What is wrong with a certificate was said already.
        let is_welcome = matches!(verdict, Verdict::Welcome(_));
        let judge = |headers| self.unforged(headers, verdict);
        let Some((socket, recognised)) =
            self.upgrade(Either::Left(stream), judge, is_welcome).await
        else {
            return;
        };
        drop(turn);
        self.open(socket, recognised, address, admitted);
    }

    /// Serves what a proxy that ends TLS says about its client.
    async fn terminated(self, stream: TcpStream, arrived: Arrival, gate: Gate) {
        prepare(&stream);
        let judge = once_spoken(&arrived, |headers| self.forwarded(headers, gate));
        let cut = arrived.cut();
        let upgraded = tokio::select! {
            biased;
            upgraded = self.upgrade(Either::Right(stream), judge, true) => upgraded,
            () = cut.cancelled() => return self.inbound.metrics.handshake("proxy_ousted"),
        };
        let Some((socket, (recognised, address, admitted))) = upgraded else {
            return;
        };
        drop(arrived);
        self.open(socket, recognised, address, admitted);
    }

    /// Reads the request and answers it. A line is written about one that is not upgraded where nobody else did.
    async fn upgrade<T, J, F>(
        &self,
        stream: AgentStream,
        judge: J,
        is_news: bool,
    ) -> Option<(WebSocketStream<Held<AgentStream>>, T)>
    where
        T: Send,
        J: FnOnce(HeaderMap) -> F + Send,
        F: Future<Output = Verdict<T>> + Send,
    {
        let metrics = &self.inbound.metrics;
        let address = self.address;
        let limit = self.inbound.terms.upgrade_timeout;
        let upgraded = Box::pin(upgrade::serve(stream, &Rules::AGENTS, judge));
        match timeout(limit, upgraded).await {
            Ok(Some(upgraded)) => {
                metrics.handshake("upgraded");
                return Some(upgraded);
            }
            Ok(None) => {
                metrics.handshake("not_upgraded");
                if is_news {
                    self.strangers(|left_out| {
                        info!(%address, left_out, "a request of an agent was answered and not upgraded");
                    });
                }
            }
            Err(_elapsed) => {
                metrics.handshake("upgrade_timeout");
                self.strangers(|left_out| info!(%address, left_out, "an upgrade took too long"));
            }
        }
        None
    }

    fn open(
        &self,
        socket: WebSocketStream<Held<AgentStream>>,
        recognised: Recognised,
        address: SocketAddr,
        admitted: Admitted,
    ) {
        let Recognised {
            peer,
            binding,
            opening,
        } = recognised;
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

    fn verdict(
        &self,
        recognised: Result<(Peer, Binding), Unrecognised>,
        address: SocketAddr,
        admitted: &Admitted,
    ) -> Verdict<Recognised> {
        match (recognised, admitted.opening()) {
            (Err(unrecognised), _) => {
                self.inbound.metrics.refused(unrecognised.code().name());
                self.tell(&unrecognised, address);
                Verdict::Refuse(unrecognised.code(), unrecognised.reason())
            }
            (Ok(_), None) => {
                self.inbound.metrics.refused("openings_full");
                self.later()
            }
            (Ok((peer, binding)), Some(opening)) => Verdict::Welcome(Recognised {
                peer,
                binding,
                opening,
            }),
        }
    }

    fn later<T>(&self) -> Verdict<T> {
        let random = u64::from_ne_bytes(random::bytes());
        let now = self.inbound.clock.now();
        Verdict::Later(self.inbound.manager.turned_away(random, now))
    }

    /// Where TLS ends here, nobody is believed who passes a certificate on.
    async fn unforged(
        &self,
        headers: HeaderMap,
        verdict: Verdict<Recognised>,
    ) -> Verdict<Recognised> {
        if !forwarded::claims(&headers) {
            return verdict;
        }
        let (inbound, address) = (&*self.inbound, self.address);
        inbound.metrics.refused("forged_certificate");
        if let Some(left_out) = self.lines.refused.take(inbound.clock.now()) {
            warn!(%address, left_out, "refused a request that passes a client certificate on: TLS ends at this backend (agents.tls_ends_at), and nobody is believed about that");
        }
        if let Verdict::Welcome(Recognised { peer, .. }) = &verdict {
            security_event(inbound, peer, address, "gateway.forged_certificate").await;
        }
        Verdict::BadHeader("TLS ends at this backend, and no certificate is taken from a header")
    }

    /// Judges what a proxy says as TLS would judge what it shows.
    async fn forwarded(
        &self,
        headers: HeaderMap,
        gate: Gate,
    ) -> Verdict<(Recognised, SocketAddr, Admitted)> {
        let (inbound, proxy) = (&*self.inbound, self.address);
        let Forwarded { leaf, address } = match forwarded::read(&headers) {
            Ok(forwarded) => forwarded,
            Err(error) => {
                inbound.metrics.refused("proxy_header");
                self.strangers(|left_out| {
                    warn!(%proxy, %error, left_out, "refused a request of a proxy");
                });
                return Verdict::BadHeader(error.reason());
            }
        };
        // A proxy does not say which port.
        let client = SocketAddr::new(address, 0);
        let admitted = match gate.admit(address) {
            Ok(admitted) => admitted,
            Err(turned) => {
                inbound.metrics.refused(turned.name());
                return self.later();
            }
        };
        let now = inbound.clock.wall();
        let since_epoch = Duration::from_micros(u64::try_from(now.unix_micros()).unwrap_or(0));
        let moment = UnixTime::since_unix_epoch(since_epoch);
        let Side {
            tls, authorities, ..
        } = &*self.side;
        if let Err(error) = tls.clients.verify_client_cert(&leaf, &[], moment) {
            inbound.metrics.refused("untrusted_certificate");
            self.strangers(|left_out| {
                info!(address = %client, %error, left_out, "refused a client certificate that a proxy passed on");
            });
            let reason =
                "the certificate does not lead to the gateways' authority, or is out of its time";
            return Verdict::Refuse(CloseCode::CertUntrusted, reason);
        }
        let registry = &inbound.registry;
        let peer = registry.recognise(&leaf, &[], authorities, now).await;
        self.record_certificate(&peer, client).await;
        let recognised = peer.map(|peer| {
            let mode = BindingMode::Certificate;
            let value = peer.fingerprint;
            (peer, Binding { mode, value })
        });
        match self.verdict(recognised, client, &admitted) {
            Verdict::Welcome(recognised) => Verdict::Welcome((recognised, client, admitted)),
            Verdict::Later(after) => Verdict::Later(after),
            Verdict::Refuse(code, reason) => Verdict::Refuse(code, reason),
            Verdict::BadHeader(reason) => Verdict::BadHeader(reason),
        }
    }

    /// Records that somebody shows a certificate that its gateway has left behind, or that was revoked: a copy of its
    /// files, or whoever put old ones back; or one that our authority made and nobody registered.
    async fn record_certificate<T: Sync>(
        &self,
        recognised: &Result<T, Unrecognised>,
        address: SocketAddr,
    ) {
        let (peer, action) = match recognised {
            Err(Unrecognised::Retired(peer)) => (peer, "gateway.retired_certificate"),
            Err(Unrecognised::Replaced(peer)) => (peer, "gateway.replaced_certificate"),
            Err(Unrecognised::NotRegistered(Some(peer))) => {
                (peer, "gateway.unregistered_certificate")
            }
            Err(Unrecognised::CertificateRevoked(peer) | Unrecognised::Revoked(peer)) => {
                (peer, "gateway.revoked_certificate")
            }
            Ok(_) | Err(_) => return,
        };
        security_event(&self.inbound, peer, address, action).await;
    }

    /// The gateway of a certificate that is over. Whoever shows it has not proved to have its key.
    async fn whose_ended(
        &self,
        error: &io::Error,
        refused: Option<CertificateDer<'static>>,
    ) -> Option<GatewayName> {
        let leaf = refused.filter(|_leaf| fix::is_of_an_end(error))?;
        let (from, to) = tls::validity(&leaf).ok()?;
        // While it was good, it was of our authority.
        let then = from.saturating_add(to.saturating_since(from) / 2);
        let since_epoch = u64::try_from(then.unix_micros()).unwrap_or(0);
        let moment = UnixTime::since_unix_epoch(Duration::from_micros(since_epoch));
        let Side {
            tls, authorities, ..
        } = &*self.side;
        tls.clients.verify_client_cert(&leaf, &[], moment).ok()?;
        let registry = &self.inbound.registry;
        let peer = registry.recognise(&leaf, &[], authorities, then).await;
        Some(peer.ok()?.name)
    }

    /// Says why a client certificate is refused.
    fn tell(&self, unrecognised: &Unrecognised, address: SocketAddr) {
        if let Unrecognised::Store(error) = unrecognised
            && error.is_outage()
        {
            // Nothing may be wrong with it; what is wrong with the database is said by the store.
            debug!(%address, "whose certificate was shown cannot be looked up while the database is away");
        } else if let Some(left_out) = self.lines.refused.take(self.inbound.clock.now()) {
            let fix = fix::of_certificate(unrecognised);
            let fix = fix::about(fix, unrecognised.gateway());
            warn!(%address, error = %unrecognised, fix, left_out, "refused a client certificate");
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
        let shown = connection.peer_certificates().unwrap_or_default();
        let (leaf, between) = shown.split_first().ok_or(Unrecognised::NotShown)?;
        let now = self.inbound.clock.wall();
        // Those that judged it: a reload may have come between.
        let (registry, authorities) = (&self.inbound.registry, &self.side.authorities);
        let peer = registry.recognise(leaf, between, authorities, now).await?;
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

/// A judge before whom an arrival that has said all it has to say gives way to nobody any more: it waits for us, and
/// for no longer than an upgrade may take.
fn once_spoken<F>(
    arrived: &Arrival,
    judge: impl FnOnce(HeaderMap) -> F + Send,
) -> impl FnOnce(HeaderMap) -> F + Send {
    move |headers| {
        arrived.busy(true);
        judge(headers)
    }
}

/// Whether the first bytes were of another protocol.
pub fn is_no_tls(error: &io::Error) -> bool {
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

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::io::AsyncWriteExt;
    use tokio::sync::oneshot;
    use viworks_common::wire::{CONNECT_PATH, SUBPROTOCOL};

    use super::*;
    use crate::inbound::limits::{Arrivals, Turned};

    #[tokio::test]
    async fn an_arrival_that_has_spoken_stays_while_it_is_judged() {
        let arrivals = Arrivals::new(1);
        let arrived = arrivals.enter().unwrap();
        let (mut proxy, ours) = tokio::io::duplex(4_096);
        let (told, judged) = oneshot::channel();
        let judge = once_spoken(&arrived, |_headers| {
            told.send(()).unwrap();
            // Such as a database that does not answer.
            pending::<Verdict<()>>()
        });
        let request = format!(
            "GET {CONNECT_PATH} HTTP/1.1\r\nHost: backend\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
        );
        proxy.write_all(request.as_bytes()).await.unwrap();
        tokio::select! {
            _served = upgrade::serve(ours, &Rules::AGENTS, judge) => panic!("it was answered"),
            judged = judged => judged.unwrap(),
        }
        assert_eq!(arrivals.enter().unwrap_err(), Turned::Full);
        assert!(!arrived.cut().is_cancelled());
        drop(arrived);
        // One that has said nothing yet does give way.
        let silent = arrivals.enter().unwrap();
        let _newcomer = arrivals.enter().unwrap();
        assert!(silent.cut().is_cancelled());
    }
}
