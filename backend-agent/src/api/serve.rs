//! Takes connections and serves them within their bounds.
//!
//! Nobody waits for a place: at a bound the stranger goes who has held one longest without a request being worked on.
//! Whoever shows a valid key keeps its place, as far as that key, and all keys together, may have places.

use std::error::Error as _;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;
use viworks_common::id::ApiKeyId;
use viworks_common::places::{Bound, PlaceLimits, network};
use viworks_runtime::answers::no_place;
use viworks_runtime::clock::{Clock as _, SystemClock};
use viworks_runtime::door::{Door, LetIn, Seat};
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::metrics::Metrics;
use viworks_runtime::progress::Progress;
use viworks_runtime::throttle::{LOG_LINES, Throttle};

use super::limits::ApiLimits;
use super::pace::Pace;
use super::request::Peer;
use super::{ApiServer, ApiState};

/// The pause after a failed accept: out of descriptors is not cured by trying faster.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Against whom a connection counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// As long as it has shown no valid key.
    Network(IpAddr),
    /// The key it has shown.
    Key(ApiKeyId),
}

/// The place of a connection, as its requests see it.
#[derive(Debug, Clone)]
pub(super) struct ApiSeat {
    seat: Arc<Seat<Source>>,
    pace: Arc<Pace>,
    counters: Counters,
}

impl ApiSeat {
    /// It showed a valid key.
    ///
    /// # Errors
    ///
    /// The bound, when there is no room for another connection that has.
    pub(super) fn vouch(&self, key: ApiKeyId) -> Result<(), Bound> {
        self.pace.know();
        match self.seat.vouch(&Source::Key(key)) {
            Ok(None) => Ok(()),
            Ok(Some(bound)) => {
                self.counters.cut(bound.name());
                Ok(())
            }
            Err(bound) => {
                self.counters.refused(bound);
                Err(bound)
            }
        }
    }
}

/// What is counted about connections.
#[derive(Debug, Clone, Default)]
struct Counters {
    open: Gauge,
    refused: Family<[(&'static str, &'static str); 1], Counter>,
    cut: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Counters {
    fn register(metrics: &Metrics) -> Self {
        let own = Self::default();
        metrics.register(|registry| {
            registry.register(
                "viworks_api_connections",
                "Open connections of operators",
                own.open.clone(),
            );
            registry.register(
                "viworks_api_connections_refused",
                "Connections of operators for which there was no place, by bound",
                own.refused.clone(),
            );
            registry.register(
                "viworks_api_connections_cut",
                "Connections of operators that were cut: at which bound a newcomer took the place, or a peer that did not read",
                own.cut.clone(),
            );
        });
        own
    }

    fn refused(&self, bound: Bound) {
        self.refused.get_or_create(&[("bound", bound.name())]).inc();
    }

    fn cut(&self, reason: &'static str) {
        self.cut.get_or_create(&[("reason", reason)]).inc();
    }
}

/// Serves until the lifecycle stops; connections then finish the request they are in.
pub async fn serve(
    listener: TcpListener,
    state: Arc<ApiState>,
    limits: ApiLimits,
    lifecycle: Lifecycle,
) {
    let counters = Counters::register(&state.metrics);
    let router = ApiServer::router(Arc::clone(&state));
    let door = Door::new(PlaceLimits {
        total: limits.connections_max,
        per_source: limits.per_source_max,
        per_known: limits.per_key_max,
    });
    let no_place = no_place();
    let unaccepted = Throttle::new(LOG_LINES);
    loop {
        let accepted = tokio::select! {
            biased;
            () = lifecycle.stopping() => return,
            accepted = listener.accept() => accepted,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(left_out) = unaccepted.take(SystemClock.now()) {
                    tracing::warn!(%error, left_out, "a connection to the API could not be accepted");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match door.enter(&Source::Network(network(peer.ip())), false) {
            Ok(LetIn { seat, ousted }) => {
                if let Some(bound) = ousted {
                    counters.cut(bound.name());
                }
                let connection = Connection {
                    peer: Peer(peer),
                    limits,
                    seat: ApiSeat {
                        seat: Arc::new(seat),
                        pace: Arc::new(Pace::new()),
                        counters: counters.clone(),
                    },
                };
                let served = connection.serve(socket, router.clone(), lifecycle.clone());
                drop(lifecycle.spawn("api connection", served));
            }
            Err(bound) => {
                counters.refused(bound);
                if bound == Bound::Full {
                    state.crowd.full("connections");
                }
                // A fresh socket has room for so much; one that has not is of no use to anybody.
                drop(socket.try_write(no_place.as_bytes()));
            }
        }
    }
}

struct Connection {
    peer: Peer,
    limits: ApiLimits,
    seat: ApiSeat,
}

impl Connection {
    async fn serve(self, socket: TcpStream, router: axum::Router, lifecycle: Lifecycle) {
        let Self { peer, limits, seat } = self;
        let counters = seat.counters.clone();
        if let Err(error) = prepare(&socket, limits.send_timeout) {
            tracing::debug!(%error, "a connection was gone before it was served");
            return;
        }
        counters.open.inc();
        let cut = seat.seat.cut();
        let service = hyper::service::service_fn(move |mut request: http::Request<_>| {
            let (router, place) = (router.clone(), Arc::clone(&seat.seat));
            let pace = Arc::clone(&seat.pace);
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(seat.clone());
            async move {
                pace.next().await;
                place.busy(true);
                let answer = router.oneshot(request).await;
                place.busy(false);
                answer
            }
        });
        let socket = Progress::new(socket, limits.send_timeout, cut.clone());
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            .max_headers(limits.headers_max)
            .max_buf_size(limits.head_bytes_max)
            .serve_connection(TokioIo::new(socket), service);
        let mut serving = std::pin::pin!(serving);
        let result = tokio::select! {
            biased;
            result = serving.as_mut() => Some(result),
            () = cut.cancelled() => None,
            () = lifecycle.stopping() => {
                serving.as_mut().graceful_shutdown();
                Some(serving.await)
            }
        };
        counters.open.dec();
        if let Some(Err(error)) = result {
            if timed_out(&error) {
                counters.cut("send_timeout");
            }
            tracing::debug!(%error, peer = %peer.0, "an API connection ended early");
        }
    }
}

/// A peer that acknowledges nothing is given up by the operating system as well.
fn prepare(socket: &TcpStream, send_timeout: Duration) -> io::Result<()> {
    socket.set_nodelay(true)?;
    SockRef::from(socket).set_tcp_user_timeout(Some(send_timeout))
}

/// Whether the peer did not take what was sent to it.
fn timed_out(error: &hyper::Error) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        let io = cause.downcast_ref::<io::Error>();
        if io.is_some_and(|cause| cause.kind() == io::ErrorKind::TimedOut) {
            return true;
        }
        source = cause.source();
    }
    false
}
