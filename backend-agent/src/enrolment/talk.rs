//! What is said over one connection at the door: two requests, and then it is closed.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info};
use viworks_common::enrolment::{PATH, PROOF_HEADER, REQUEST_BYTES_MAX};
use viworks_common::places::network;
use viworks_runtime::door::Seat;

use super::door::{Holder, Shared};
use super::redeem::{Answered, Asked};
use super::refusal::Refusal;
use crate::inbound::upgrade::problem_document;

/// For the head of a request, and again for its body.
const READ_TIME: Duration = Duration::from_secs(3);
/// Headers of a request.
const HEADERS_MAX: usize = 32;
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// A machine asks for a challenge and answers it.
const REQUESTS_MAX: u32 = 2;

/// One connection.
pub(super) struct Talk<'a> {
    shared: &'a Shared,
    peer: IpAddr,
    seat: &'a Seat<Holder>,
    requests: AtomicU32,
    /// Whether somebody has proved on it that it has a ticket: then it is worked on to its end.
    is_proved: AtomicBool,
}

impl<'a> Talk<'a> {
    pub(super) const fn new(shared: &'a Shared, peer: IpAddr, seat: &'a Seat<Holder>) -> Self {
        Self {
            shared,
            peer,
            seat,
            requests: AtomicU32::new(0),
            is_proved: AtomicBool::new(false),
        }
    }

    pub(super) async fn serve(&self, stream: TlsStream<TcpStream>) {
        let service =
            service_fn(|request| async move { Ok::<_, Infallible>(self.respond(request).await) });
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(READ_TIME)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let mut serving = Box::pin(serving);
        let served = tokio::select! {
            biased;
            served = serving.as_mut() => served,
            () = self.shared.stopping() => {
                // The stop of the process waits for no stranger.
                if !self.is_proved.load(Ordering::Relaxed) {
                    return;
                }
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = served {
            let peer = self.peer;
            debug!(%peer, %error, "a connection at the door for new gateways ended early");
        }
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let is_last = self.requests.fetch_add(1, Ordering::Relaxed) + 1 >= REQUESTS_MAX;
        let (mut response, closes) = match self.judge(request).await {
            Ok(Answered { body, proof }) => {
                let redeemed = proof.is_some();
                let outcome = if redeemed { "enrolled" } else { "challenged" };
                self.shared.metrics.enrolment(outcome);
                let response = answer(StatusCode::OK, "application/json", body, proof);
                (response, redeemed || is_last)
            }
            Err(refusal) => {
                self.shared.metrics.enrolment(refusal.code);
                let peer = self.peer;
                self.shared.line(|left_out| {
                    info!(%peer, code = refusal.code, detail = refusal.detail, left_out, "a machine did not become a gateway");
                });
                (problem(refusal), true)
            }
        };
        if closes {
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn judge(&self, request: Request<Incoming>) -> Result<Answered, Refusal> {
        let asked = match read(request).await {
            Ok((proof, body)) => {
                let proof = proof.as_ref().map(HeaderValue::as_bytes);
                self.shared.enrolment.ask(proof, body)
            }
            Err(refusal) => Err(refusal),
        };
        let proved = match asked {
            Ok(Asked::Proved(proved)) => proved,
            Ok(Asked::Challenged(answered)) => return Ok(answered),
            Err(refusal) => return Err(self.wrong(refusal)),
        };
        self.is_proved.store(true, Ordering::Relaxed);
        // Busy first: between the two, a newcomer of the same ticket could put an idle one out.
        self.seat.busy(true);
        // Where as many of this ticket are worked on as may have places of their own, it keeps that of its address.
        let _vouched = self.seat.vouch(&Holder::Ticket(proved.ticket()));
        self.shared.enrolment.redeem(&proved, self.peer).await
    }

    /// What is not right counts against its address, and so many are told why. What is right takes nothing of it, so
    /// whoever shares the address with machines that enrol does not keep them from that.
    fn wrong(&self, refusal: Refusal) -> Refusal {
        let now = self.shared.enrolment.clock().now();
        match self.shared.wrong.take(network(self.peer), now) {
            Ok(()) => refusal,
            Err(after) => Refusal::later(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limited",
                "too many requests that are not right come from this address; run enroll again later",
                after,
            ),
        }
    }
}

/// The proof and the body of a request that is one for the door.
async fn read(request: Request<Incoming>) -> Result<(Option<HeaderValue>, Bytes), Refusal> {
    if request.uri().path() != PATH {
        let detail = format!("machines become gateways at {PATH}, and there is nothing else here");
        return Err(Refusal::new(StatusCode::NOT_FOUND, "no_such_path", detail));
    }
    if request.method() != Method::POST {
        return Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            format!("{PATH} takes POST"),
        ));
    }
    let (mut head, body) = request.into_parts();
    let body = timeout(READ_TIME, Limited::new(body, REQUEST_BYTES_MAX).collect()).await;
    let body = body.map_err(|_elapsed| {
        let detail = format!("the request has to come whole within {READ_TIME:?}");
        Refusal::new(StatusCode::REQUEST_TIMEOUT, "body_late", detail)
    })?;
    let body = body.map_err(|error| {
        if error.is::<LengthLimitError>() {
            let detail = format!("the request has more than {REQUEST_BYTES_MAX} bytes");
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
        } else {
            let detail = format!("the request broke off: {error}");
            Refusal::new(StatusCode::BAD_REQUEST, "body_cut", detail)
        }
    })?;
    Ok((head.headers.remove(PROOF_HEADER), body.to_bytes()))
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
    if let Some(after) = retry_after {
        let seconds = u64::try_from(after.as_millis().div_ceil(1_000)).unwrap_or(u64::MAX);
        let headers = response.headers_mut();
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    response
}
