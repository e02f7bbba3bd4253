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
use viworks_common::enrolment::{PATH, PROOF_HEADER, RENEW_PATH, REQUEST_BYTES_MAX};
use viworks_common::places::network;
use viworks_runtime::door::Seat;

use super::answer::{Answered, json};
use super::door::{Holder, Shared};
use super::redeem::Asked;
use super::refusal::Refusal;
use super::reissue::{Asked as AskedAgain, NotRight};
use crate::inbound::upgrade::problem_of;

/// For the head of a request, and again for its body.
const READ_TIME: Duration = Duration::from_secs(3);
/// Headers of a request.
const HEADERS_MAX: usize = 32;
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// A machine asks for a challenge and answers it.
const REQUESTS_MAX: u32 = 2;

/// What somebody comes to the door for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To become a gateway.
    Enrol,
    /// For another certificate of a gateway.
    Renew,
}

impl Purpose {
    fn of(path: &str) -> Option<Self> {
        match path {
            PATH => Some(Self::Enrol),
            RENEW_PATH => Some(Self::Renew),
            _ => None,
        }
    }
}

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
        let purpose = Purpose::of(request.uri().path());
        let judged = match purpose {
            Some(Purpose::Renew) => self.judge_gateway(request).await,
            Some(Purpose::Enrol) => self.judge(request).await,
            None => Err(self.wrong(nothing_here())),
        };
        let (mut response, closes) = match judged {
            Ok(Answered {
                body,
                proof,
                outcome,
            }) => {
                let is_done = proof.is_some();
                self.count(purpose, outcome);
                let response = answer(StatusCode::OK, "application/json", body, proof);
                (response, is_done || is_last)
            }
            Err(refusal) => {
                self.count(purpose, refusal.code);
                let peer = self.peer;
                let what = match purpose {
                    Some(Purpose::Renew) if refusal.authorities.is_some() => {
                        "a gateway got no certificate at the door, and the authorities of the server's"
                    }
                    Some(Purpose::Renew) => "a gateway got no certificate at the door",
                    Some(Purpose::Enrol) | None => "a machine did not become a gateway",
                };
                self.shared.line(|left_out| {
                    info!(%peer, code = refusal.code, detail = refusal.detail, left_out, "{what}");
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

    fn count(&self, purpose: Option<Purpose>, outcome: &'static str) {
        match purpose {
            Some(Purpose::Renew) => self.shared.metrics.renewal(outcome),
            Some(Purpose::Enrol) | None => self.shared.metrics.enrolment(outcome),
        }
    }

    /// The same of a gateway whose certificate has ended.
    async fn judge_gateway(&self, request: Request<Incoming>) -> Result<Answered, Refusal> {
        let reissues = self.shared.enrolment.reissues();
        let asked = match read(request).await {
            Ok((proof, body)) => {
                let proof = proof.as_ref().map(HeaderValue::as_bytes);
                reissues.ask(proof, body)
            }
            Err(refusal) => Err(refusal.into()),
        };
        let proved = match asked {
            Ok(AskedAgain::Proved(proved)) => proved,
            Ok(AskedAgain::Challenged(answered)) => return Ok(answered),
            Err(NotRight { refusal, claims }) => {
                let code = refusal.code;
                let refusal = self.wrong(refusal);
                // Not of an address that is told nothing more.
                let claims = claims.filter(|_claimed| refusal.code == code);
                if let Some(claimed) = claims
                    && !reissues.suspect(claimed, self.peer).await
                {
                    self.shared.metrics.refused("security_events");
                }
                return Err(refusal);
            }
        };
        self.is_proved.store(true, Ordering::Relaxed);
        self.seat.busy(true);
        let _vouched = self.seat.vouch(&Holder::Gateway(proved.agent_id()));
        reissues.renew(&proved, self.peer).await
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
                "too many requests that are not right come from this address; ask again later",
                after,
            ),
        }
    }
}

fn nothing_here() -> Refusal {
    let detail = format!(
        "machines become gateways at {PATH}, gateways whose certificates have ended get another at {RENEW_PATH}, and \
         there is nothing else here"
    );
    Refusal::new(StatusCode::NOT_FOUND, "no_such_path", detail)
}

/// The proof and the body of a request that is one for the door.
async fn read(request: Request<Incoming>) -> Result<(Option<HeaderValue>, Bytes), Refusal> {
    if request.method() != Method::POST {
        return Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            format!("{} takes POST", request.uri().path()),
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
        authorities,
    } = refusal;
    let mut document = problem_of(status, code, &detail);
    if let Some(authorities) = authorities {
        document["authorities"] = serde_json::json!(authorities);
    }
    let media_type = "application/problem+json";
    let mut response = answer(status, media_type, json(&document), None);
    if let Some(after) = retry_after {
        let seconds = u64::try_from(after.as_millis().div_ceil(1_000)).unwrap_or(u64::MAX);
        let headers = response.headers_mut();
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    response
}
