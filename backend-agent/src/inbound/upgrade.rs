//! From HTTP/1.1 to a WebSocket with our subprotocol; what is refused is told in a problem document.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_tungstenite::tungstenite::protocol::Role;
use tracing::debug;
use viworks_common::code::CloseCode;
use viworks_common::limits::{self, SocketBounds};
use viworks_common::wire::{CONNECT_PATH, SUBPROTOCOL};
use viworks_runtime::websocket;

use super::held::{Held, Hold};

/// Headers of a request.
const HEADERS_MAX: usize = 32;

/// When to come back when the backend cannot look a certificate up.
const UNAVAILABLE_RETRY_SECONDS: u64 = 5;

/// The largest request head.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// What a request is held to, and the socket that it becomes.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// The one path, and the one subprotocol. Without them every path will do, and none is spoken.
    pub place: Option<Place>,
    /// How large messages and buffers may become.
    pub bounds: SocketBounds,
    /// Whoever takes the socket over sends first: the answer leaves with that message.
    pub sends_first: bool,
}

/// A path with what is spoken there.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    path: &'static str,
    subprotocol: &'static str,
}

impl Rules {
    /// The rules for agents.
    pub const AGENTS: Self = Self {
        place: Some(Place {
            path: CONNECT_PATH,
            subprotocol: SUBPROTOCOL,
        }),
        bounds: SocketBounds::SESSION,
        sends_first: true,
    };
}

/// What is decided about a request that is right in itself.
#[derive(Debug)]
pub enum Verdict<T> {
    /// Upgrade; this belongs to the connection from then on.
    Welcome(T),
    /// Come back after this time.
    Later(Duration),
    /// Not with this certificate, for this reason.
    Refuse(CloseCode, &'static str),
    /// What it says about a certificate is not to be believed, or cannot be read.
    BadHeader(&'static str),
}

/// Reads one request, has it judged when it is right in itself, and answers it. `None` when it did not become a
/// WebSocket.
pub async fn serve<S, T, J, F>(
    stream: S,
    rules: &Rules,
    judge: J,
) -> Option<(WebSocketStream<Held<S>>, T)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: Send,
    J: FnOnce(HeaderMap) -> F + Send,
    F: Future<Output = Verdict<T>> + Send,
{
    let Rules {
        place,
        bounds,
        sends_first,
    } = *rules;
    let hold = Hold::default();
    let judge = Mutex::new(Some(judge));
    let agreed: Mutex<Option<(OnUpgrade, T)>> = Mutex::new(None);
    let service = service_fn(|mut request: Request<Incoming>| {
        let right = well_formed(&request, place);
        // There is one request: what refuses it closes the connection.
        let judge = judge.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (agreed, hold) = (&agreed, &hold);
        async move {
            let answer = match (right, judge) {
                (Err(refused), _) => *refused,
                (Ok(_), None) => problem(StatusCode::BAD_REQUEST, "bad_request", "one request"),
                (Ok(upgraded), Some(judge)) => match judge(request.headers().clone()).await {
                    Verdict::Welcome(kept) => {
                        let upgrade = hyper::upgrade::on(&mut request);
                        let mut agreed = agreed.lock().unwrap_or_else(PoisonError::into_inner);
                        *agreed = Some((upgrade, kept));
                        if sends_first {
                            hold.begin();
                        }
                        upgraded
                    }
                    Verdict::Later(after) => later(after),
                    Verdict::Refuse(code, reason) => refused(code, reason),
                    Verdict::BadHeader(reason) => {
                        problem(StatusCode::BAD_REQUEST, "bad_request", reason)
                    }
                },
            };
            Ok::<_, Infallible>(answer)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(Held::new(stream, hold.clone())), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        debug!(%error, "an HTTP connection of an agent failed");
    }
    let agreed = agreed.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (upgrade, kept) = agreed?;
    let upgraded = upgrade.await.ok()?;
    let parts = upgraded.downcast::<TokioIo<Held<S>>>().ok()?;
    let (mut stream, read) = (parts.io.into_inner(), parts.read_buf.to_vec());
    stream.let_go();
    let config = websocket::settings(bounds, limits::READ_BUFFER_BYTES);
    let socket =
        WebSocketStream::from_partially_read(stream, read, Role::Server, Some(config)).await;
    Some((socket, kept))
}

type Answer = Response<http_body_util::Either<Empty<Bytes>, Full<Bytes>>>;

/// The answer to a request that is right in itself, or what is wrong with it.
fn well_formed(request: &Request<Incoming>, place: Option<Place>) -> Result<Answer, Box<Answer>> {
    if request.headers().get_all(HOST).iter().count() > 1 {
        let detail = "a request has one Host";
        return Err(Box::new(problem(
            StatusCode::BAD_REQUEST,
            "bad_request",
            detail,
        )));
    }
    if let Some(Place { path, .. }) = place
        && request.uri().path() != path
    {
        let detail = format!("agents connect at {path}");
        return Err(Box::new(problem(
            StatusCode::NOT_FOUND,
            "no_such_path",
            &detail,
        )));
    }
    let upgraded =
        create_response_with_body(request, || http_body_util::Either::Left(Empty::new()));
    let mut upgraded = match upgraded {
        Ok(upgraded) => upgraded,
        Err(error) => {
            let mut answer = problem(
                StatusCode::UPGRADE_REQUIRED,
                "not_an_upgrade",
                &error.to_string(),
            );
            answer
                .headers_mut()
                .insert(UPGRADE, HeaderValue::from_static("websocket"));
            answer
                .headers_mut()
                .append(CONNECTION, HeaderValue::from_static("upgrade"));
            return Err(Box::new(answer));
        }
    };
    if let Some(Place { subprotocol, .. }) = place
        && !offers(request, subprotocol)
    {
        let detail = format!("the subprotocol {subprotocol} must be offered");
        let code = CloseCode::ProtocolTooOld.name();
        return Err(Box::new(problem(StatusCode::BAD_REQUEST, code, &detail)));
    }
    if let Some(Place { subprotocol, .. }) = place {
        let agreed = HeaderValue::from_static(subprotocol);
        upgraded
            .headers_mut()
            .insert(SEC_WEBSOCKET_PROTOCOL, agreed);
    }
    Ok(upgraded)
}

fn later(after: Duration) -> Answer {
    let detail = "too many gateways are connecting at once";
    let code = CloseCode::RateLimited.name();
    let mut answer = problem(StatusCode::SERVICE_UNAVAILABLE, code, detail);
    let after = HeaderValue::from(after.as_secs());
    answer.headers_mut().insert(RETRY_AFTER, after);
    answer
}

fn refused(code: CloseCode, reason: &str) -> Answer {
    if code != CloseCode::Internal {
        return problem(StatusCode::FORBIDDEN, code.name(), reason);
    }
    let mut answer = problem(StatusCode::SERVICE_UNAVAILABLE, code.name(), reason);
    let after = HeaderValue::from(UNAVAILABLE_RETRY_SECONDS);
    answer.headers_mut().insert(RETRY_AFTER, after);
    answer
}

fn offers(request: &Request<Incoming>, subprotocol: &str) -> bool {
    let offered = request.headers().get_all(SEC_WEBSOCKET_PROTOCOL);
    offered
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|name| name.trim() == subprotocol)
}

/// A refusal as a gateway reads it: the body of `application/problem+json`, RFC 9457.
pub(crate) fn problem_of(status: StatusCode, code: &str, detail: &str) -> serde_json::Value {
    serde_json::json!({
        "type": format!("urn:viworks:problem:{code}"),
        "title": code.replace('_', " "),
        "status": status.as_u16(),
        "code": code,
        "detail": detail,
    })
}

fn problem(status: StatusCode, code: &str, detail: &str) -> Answer {
    let body = problem_of(status, code, detail).to_string();
    let mut answer = Response::new(http_body_util::Either::Right(Full::from(body)));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}
