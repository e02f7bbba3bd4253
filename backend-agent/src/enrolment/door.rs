//! Takes connections of machines that are nobody yet, within bounds on everything that they can take up.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};
use viworks_common::enrolment::{PATH, PROOF_HEADER, REQUEST_BYTES_MAX};
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::throttle::{LOG_LINES, Throttle};
use viworks_runtime::tls::ServerSide;

use super::quota::Sources;
use super::redeem::{Answered, Enrolment};
use super::refusal::Refusal;
use crate::config::EnrolmentConfig;
use crate::inbound::limits::{AdmissionLimits, Admitted, Gate, Turn};
use crate::inbound::listener::{is_no_tls, prepare};
use crate::inbound::proxy::{self, Proxies, Unarrived};
use crate::inbound::upgrade::problem_document;
use crate::metrics::BackendMetrics;

/// The pause after a failed accept: out of descriptors is not cured by trying faster.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Redemptions and handshakes at once: each is a signature or two.
const OPENINGS_MAX: usize = 64;
/// Headers of a request.
const HEADERS_MAX: usize = 32;
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The listener by which machines become gateways.
pub struct Door {
    listener: TcpListener,
    gate: Gate,
    proxies: Proxies,
    shared: Arc<Shared>,
    lifecycle: Lifecycle,
}

struct Shared {
    enrolment: Enrolment,
    side: watch::Receiver<Arc<ServerSide>>,
    sources: Sources,
    metrics: BackendMetrics,
    lines: Throttle,
    timeout: Duration,
}

impl Door {
    /// Takes over a bound socket; shows what `side` has at each moment.
    #[must_use]
    pub fn new(
        listener: TcpListener,
        side: watch::Receiver<Arc<ServerSide>>,
        enrolment: Enrolment,
        config: &EnrolmentConfig,
        metrics: BackendMetrics,
        lifecycle: Lifecycle,
    ) -> Self {
        Self {
            listener,
            gate: Gate::new(AdmissionLimits {
                connections: config.connections_max,
                per_source: config.per_source_max,
                openings: OPENINGS_MAX,
            }),
            proxies: Proxies::from(config),
            shared: Arc::new(Shared {
                enrolment,
                side,
                sources: Sources::new(config.requests_per_minute),
                metrics,
                lines: Throttle::new(LOG_LINES),
                timeout: config.timeout,
            }),
            lifecycle,
        }
    }

    /// Accepts until the process stops.
    pub async fn run(self) {
        let stopping = self.lifecycle.stop_token();
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
        let taken = if !self.proxies.send_headers() {
            self.gate.admit(peer.ip()).map(|admitted| {
                let served = Box::pin(shared.serve(stream, peer, admitted));
                drop(self.lifecycle.spawn("enrolment", served));
            })
        } else if self.proxies.trusts(peer.ip()) {
            self.gate.arrive().map(|arrived| {
                let served = Box::pin(shared.arrive(stream, peer, arrived, self.gate.clone()));
                drop(self.lifecycle.spawn("enrolment", served));
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
    fn line(&self, line: impl FnOnce(u64)) {
        if let Some(left_out) = self.lines.take(self.enrolment.clock().now()) {
            line(left_out);
        }
    }

    /// Somebody else than a proxy connects where only proxies may.
    fn not_a_proxy(&self, peer: SocketAddr) {
        self.metrics.enrolment("not_a_proxy");
        self.line(|left_out| {
            warn!(%peer, left_out, "refused a connection at the door for new gateways that does not come through a proxy of enrolment.trusted_proxies");
        });
    }

    /// Finds out for whom a proxy connects, and serves that one.
    async fn arrive(
        self: Arc<Self>,
        mut stream: TcpStream,
        proxy: SocketAddr,
        arrived: Turn,
        gate: Gate,
    ) {
        match proxy::arrive(&mut stream, proxy, arrived, &gate, self.timeout).await {
            Ok((client, admitted)) => self.serve(stream, client, admitted).await,
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
            Err(Unarrived::Turned(turned)) => self.metrics.enrolment(turned.name()),
        }
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, admitted: Admitted) {
        let limit = self.timeout;
        if timeout(limit, self.serve_one(stream, peer, &admitted))
            .await
            .is_err()
        {
            self.metrics.enrolment("timeout");
            self.line(|left_out| {
                info!(%peer, left_out, "a connection at the door for new gateways took too long");
            });
        }
    }

    async fn serve_one(&self, stream: TcpStream, peer: SocketAddr, admitted: &Admitted) {
        prepare(&stream);
        let turn = admitted.handshake().await;
        let config = Arc::clone(&self.side.borrow().open);
        let secured = TlsAcceptor::from(config).accept(stream).await;
        drop(turn);
        let stream = match secured {
            Ok(stream) => stream,
            Err(error) => {
                self.metrics.enrolment("tls_failed");
                return self.line(|left_out| {
                    if is_no_tls(&error) {
                        info!(%peer, %error, left_out, "a TLS handshake at the door for new gateways failed: what came is no TLS; a proxy that sends a header of the PROXY protocol needs enrolment.proxy_protocol = \"require\"");
                    } else {
                        info!(%peer, %error, left_out, "a TLS handshake at the door for new gateways failed");
                    }
                });
            }
        };
        let service = service_fn(|request| async move {
            Ok::<_, Infallible>(self.respond(peer.ip(), request, admitted).await)
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = Box::pin(served).await {
            debug!(%peer, %error, "a connection at the door for new gateways ended early");
        }
    }

    async fn respond(
        &self,
        peer: IpAddr,
        request: Request<Incoming>,
        admitted: &Admitted,
    ) -> Response<Full<Bytes>> {
        match self.judge(peer, request, admitted).await {
            Ok(Answered { body, proof }) => {
                self.metrics.enrolment(if proof.is_some() {
                    "enrolled"
                } else {
                    "challenged"
                });
                answer(StatusCode::OK, "application/json", body, proof)
            }
            Err(refusal) => {
                self.metrics.enrolment(refusal.code);
                self.line(|left_out| {
                    info!(%peer, code = refusal.code, detail = refusal.detail, left_out, "a machine did not become a gateway");
                });
                problem(refusal)
            }
        }
    }

    async fn judge(
        &self,
        peer: IpAddr,
        request: Request<Incoming>,
        admitted: &Admitted,
    ) -> Result<Answered, Refusal> {
        if let Err(after) = self.sources.take(peer, self.enrolment.clock().now()) {
            let detail = "too many requests come from this address; run enroll again later";
            return Err(Refusal::later(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limited",
                detail,
                after,
            ));
        }
        if request.uri().path() != PATH {
            let detail =
                format!("machines become gateways at {PATH}, and there is nothing else here");
            return Err(Refusal::new(StatusCode::NOT_FOUND, "no_such_path", detail));
        }
        if request.method() != Method::POST {
            let detail = format!("{PATH} takes POST");
            return Err(Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                detail,
            ));
        }
        let Some(_turn) = admitted.opening() else {
            let detail = "too many machines are enrolling at once; run enroll again in a moment";
            let after = Duration::from_secs(2);
            return Err(Refusal::later(
                StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                detail,
                after,
            ));
        };
        let (head, body) = request.into_parts();
        let body = Limited::new(body, REQUEST_BYTES_MAX).collect().await;
        let body = body.map_err(|error| {
            Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                format!(
                    "the request has to come whole and within {REQUEST_BYTES_MAX} bytes: {error}"
                ),
            )
        })?;
        let proof = head.headers.get(PROOF_HEADER).map(HeaderValue::as_bytes);
        self.enrolment.answer(peer, proof, &body.to_bytes()).await
    }
}

fn answer(
    status: StatusCode,
    media_type: &'static str,
    body: Vec<u8>,
    proof: Option<String>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    if let Some(proof) = proof.and_then(|proof| HeaderValue::try_from(proof).ok()) {
        headers.insert(HeaderName::from_static(PROOF_HEADER), proof);
    }
    response
}

fn problem(refusal: Refusal) -> Response<Full<Bytes>> {
    let Refusal {
        status,
        code,
        detail,
        retry_after,
    } = refusal;
    let body = problem_document(status, code, &detail);
    let media_type = "application/problem+json";
    let mut response = answer(status, media_type, body.into_bytes(), None);
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    if let Some(after) = retry_after {
        let seconds = u64::try_from(after.as_millis().div_ceil(1_000)).unwrap_or(u64::MAX);
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    response
}
