//! Takes connections of machines that are nobody yet, within bounds on everything that they can take up.
//!
//! Nobody waits for a place: at a bound the connection goes that has waited longest. So whoever holds connections
//! without using them keeps nobody else out. One on which somebody has proved that it has a ticket counts against that
//! ticket from then on and is worked on to its end.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};
use viworks_common::id::{AgentId, TicketId};
use viworks_common::places::{Bound, PlaceLimits, network};
use viworks_runtime::door::{Door as Places, LetIn, Seat};
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::throttle::{LOG_LINES, Throttle};

use super::quota::Buckets;
use super::redeem::Enrolment;
use super::talk::Talk;
use crate::agent::authorities::Side;
use crate::config::EnrolmentConfig;
use crate::inbound::limits::{Arrival, Arrivals, Turned};
use crate::inbound::listener::{is_no_tls, prepare};
use crate::inbound::proxy::{self, Proxies, Unarrived};
use crate::metrics::BackendMetrics;

/// The pause after a failed accept: out of descriptors is not cured by trying faster.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// For the TLS handshake: well below what a machine waits for its answer.
const TLS_TIME: Duration = Duration::from_secs(3);

/// Against whom a connection counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holder {
    /// As long as nothing is proved.
    Network(IpAddr),
    /// The ticket that somebody has proved to have.
    Ticket(TicketId),
    /// The gateway that somebody has proved to be.
    Gateway(AgentId),
}

/// The listener by which machines become gateways.
pub struct Door {
    listener: TcpListener,
    proxies: Proxies,
    arrivals: Arrivals,
    shared: Arc<Shared>,
}

/// What every connection uses.
pub(super) struct Shared {
    places: Places<Holder>,
    pub(super) enrolment: Enrolment,
    side: watch::Receiver<Arc<Side>>,
    /// What is not right counts against its address.
    pub(super) wrong: Buckets<IpAddr>,
    pub(super) metrics: BackendMetrics,
    lines: Throttle,
    timeout: Duration,
    lifecycle: Lifecycle,
}

impl Door {
    /// Takes over a bound socket; shows what `side` has at each moment.
    #[must_use]
    pub fn new(
        listener: TcpListener,
        side: watch::Receiver<Arc<Side>>,
        enrolment: Enrolment,
        config: &EnrolmentConfig,
        metrics: BackendMetrics,
        lifecycle: Lifecycle,
    ) -> Self {
        Self {
            listener,
            proxies: Proxies::from(config),
            arrivals: Arrivals::new(config.connections_max),
            shared: Arc::new(Shared {
                places: Places::new(PlaceLimits {
                    total: config.connections_max,
                    per_source: config.of_one_source(),
                    per_known: config.of_one_source(),
                }),
                enrolment,
                side,
                wrong: Buckets::new(config.requests_per_minute),
                metrics,
                lines: Throttle::new(LOG_LINES),
                timeout: config.timeout,
                lifecycle,
            }),
        }
    }

    /// Accepts until the process stops.
    pub async fn run(self) {
        let stopping = self.shared.lifecycle.stop_token();
        loop {
            let accepted = tokio::select! {
                () = stopping.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer),
                Err(error) => {
                    self.shared.line(|left_out| {
                        warn!(%error, left_out, "a connection at the door for new gateways could not be accepted");
                    });
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Lets a connection in, or drops its socket.
    fn admit(&self, stream: TcpStream, peer: SocketAddr) {
        let shared = Arc::clone(&self.shared);
        let lifecycle = &self.shared.lifecycle;
        let taken = if !self.proxies.send_headers() {
            shared.enter(peer.ip()).map(|seat| {
                let served = Box::pin(shared.serve(stream, peer, seat));
                drop(lifecycle.spawn("enrolment", served));
            })
        } else if self.proxies.trusts(peer.ip()) {
            self.arrivals.enter().map(|arrived| {
                let served = Box::pin(shared.arrive(stream, peer, arrived));
                drop(lifecycle.spawn("enrolment", served));
            })
        } else {
            return shared.not_a_proxy(peer);
        };
        if let Err(turned) = taken {
            self.shared.metrics.enrolment(turned.name());
        }
    }
}

impl Shared {
    /// Writes a line that anybody who reaches the port can cause, unless there were too many of them.
    pub(super) fn line(&self, line: impl FnOnce(u64)) {
        if let Some(left_out) = self.lines.take(self.enrolment.clock().now()) {
            line(left_out);
        }
    }

    /// Finds a place for somebody at this address.
    fn enter(&self, peer: IpAddr) -> Result<Seat<Holder>, Turned> {
        let entered = self.places.enter(&Holder::Network(network(peer)), false);
        let LetIn { seat, .. } = entered.map_err(|bound| match bound {
            Bound::Full => Turned::Full,
            Bound::SourceFull | Bound::KnownFull => Turned::SourceFull,
        })?;
        Ok(seat)
    }

    /// Somebody else than a proxy connects where only proxies may.
    fn not_a_proxy(&self, peer: SocketAddr) {
        self.metrics.enrolment("not_a_proxy");
        self.line(|left_out| {
            warn!(%peer, left_out, "refused a connection at the door for new gateways that does not come through a proxy of enrolment.trusted_proxies");
        });
    }

    /// Finds out for whom a proxy connects, and serves that one.
    async fn arrive(self: Arc<Self>, mut stream: TcpStream, proxy: SocketAddr, arrived: Arrival) {
        let admit = |client| self.enter(client);
        let arriving = proxy::arrive(&mut stream, proxy, arrived, admit, TLS_TIME);
        let arrived = tokio::select! {
            biased;
            () = self.lifecycle.stopping() => return,
            arrived = arriving => arrived,
        };
        match arrived {
            Ok((client, seat)) => self.serve(stream, client, seat).await,
            Err(Unarrived::Header(error)) => {
                self.metrics.enrolment("proxy_header_refused");
                self.line(|left_out| {
                    warn!(%proxy, %error, left_out, "refused a connection of a proxy at the door for new gateways: with enrolment.proxy_protocol = \"require\", each has to begin with a header (nginx: proxy_protocol on)");
                });
            }
            Err(Unarrived::Late) => {
                self.metrics.enrolment("proxy_header_timeout");
                self.line(|left_out| {
                    info!(%proxy, left_out, "a proxy connected at the door for new gateways and did not say for whom");
                });
            }
            Err(Unarrived::Ousted) => self.metrics.enrolment("ousted"),
            Err(Unarrived::Turned(turned)) => self.metrics.enrolment(turned.name()),
        }
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, seat: Seat<Holder>) {
        let cut = seat.cut();
        let served = timeout(self.timeout, self.serve_one(stream, peer, &seat));
        let served = tokio::select! {
            biased;
            served = served => served,
            () = cut.cancelled() => return self.metrics.enrolment("ousted"),
        };
        if served.is_err() {
            self.metrics.enrolment("timeout");
            self.line(|left_out| {
                info!(%peer, left_out, "a connection at the door for new gateways took too long");
            });
        }
    }

    async fn serve_one(&self, stream: TcpStream, peer: SocketAddr, seat: &Seat<Holder>) {
        prepare(&stream);
        let config = Arc::clone(&self.side.borrow().tls.open);
        let securing = timeout(TLS_TIME, TlsAcceptor::from(config).accept(stream));
        let secured = tokio::select! {
            biased;
            secured = securing => secured,
            () = self.lifecycle.stopping() => return,
        };
        match secured {
            Ok(Ok(stream)) => Talk::new(self, peer.ip(), seat).serve(stream).await,
            Ok(Err(error)) => {
                self.metrics.enrolment("tls_failed");
                self.line(|left_out| {
                    if is_no_tls(&error) {
                        info!(%peer, %error, left_out, "a TLS handshake at the door for new gateways failed: what came is no TLS; plain HTTP is not taken here: machines come by https:// with a ticket (viworks-gateway-agent enroll); a proxy that sends a header of the PROXY protocol needs enrolment.proxy_protocol = \"require\"");
                    } else {
                        info!(%peer, %error, left_out, "a TLS handshake at the door for new gateways failed");
                    }
                });
            }
            Err(_elapsed) => {
                self.metrics.enrolment("tls_timeout");
                self.line(|left_out| {
                    info!(%peer, left_out, "a TLS handshake at the door for new gateways took too long");
                });
            }
        }
    }

    /// Completes when the process stops.
    pub(super) async fn stopping(&self) {
        self.lifecycle.stopping().await;
    }
}
