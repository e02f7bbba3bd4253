//! Takes connections on the unix socket and serves them within their bounds.

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{self, Body};
use axum::extract::{ConnectInfo, Request};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use http_body_util::LengthLimitError;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tower::ServiceExt;
use viworks_common::limits;
use viworks_runtime::lifecycle::Lifecycle;

use super::Peer;
use super::problem::Problem;

/// The pause after a failed accept: out of descriptors is not cured by trying faster.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What local programs may take up. Both times are well below the grace period of a shutdown, so that a caller who
/// stalls does not hold it up.
#[derive(Debug, Clone, Copy)]
pub struct ServeLimits {
    /// Connections that are served at once; more wait in the kernel's backlog until one ends.
    pub connections_max: usize,
    /// How long a request's head may take, and a connection may be idle.
    pub header_timeout: Duration,
    /// How long a request's whole body may take.
    pub body_timeout: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            connections_max: 32,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
        }
    }
}

pub(super) async fn run(
    listener: UnixListener,
    router: Router,
    limits: ServeLimits,
    lifecycle: Lifecycle,
) -> io::Result<()> {
    let body_timeout = limits.body_timeout;
    let router = router.layer(middleware::from_fn(move |request: Request, next: Next| {
        whole_body(request, next, body_timeout)
    }));
    let permits = Arc::new(Semaphore::new(limits.connections_max));
    loop {
        let accepted = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            biased;
            () = lifecycle.stopping() => return Ok(()),
            accepted = accepted => accepted,
        };
        let permit = permit.map_err(io::Error::other)?;
        match accepted {
            Ok((socket, _address)) => {
                let served = connection(socket, router.clone(), limits, lifecycle.clone(), permit);
                drop(lifecycle.spawn("api connection", served));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the local API could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    socket: UnixStream,
    router: Router,
    limits: ServeLimits,
    lifecycle: Lifecycle,
    _permit: OwnedSemaphorePermit,
) {
    let peer = Peer::of(&socket);
    let service = hyper::service::service_fn(move |mut request: http::Request<_>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request)
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .serve_connection(TokioIo::new(socket), service);
    let mut serving = std::pin::pin!(serving);
    let result = tokio::select! {
        biased;
        result = serving.as_mut() => result,
        () = lifecycle.stopping() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection to the local API ended early");
    }
}

/// Takes the whole body in before anything else is done, so that a caller who stalls holds nothing but its own
/// connection.
async fn whole_body(request: Request, next: Next, within: Duration) -> Response {
    let (head, body) = request.into_parts();
    let read = body::to_bytes(body, limits::REQUEST_BODY_BYTES_MAX);
    let problem = match timeout(within, read).await {
        Ok(Ok(bytes)) => return next.run(Request::from_parts(head, Body::from(bytes))).await,
        Ok(Err(error))
            if error
                .source()
                .is_some_and(|cause| cause.is::<LengthLimitError>()) =>
        {
            Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                "The body is too large",
                format!("at most {} bytes", limits::REQUEST_BODY_BYTES_MAX),
            )
        }
        Ok(Err(error)) => Problem::new(
            StatusCode::BAD_REQUEST,
            "malformed_body",
            "The body cannot be read",
            error.to_string(),
        ),
        Err(_elapsed) => Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_timeout",
            "The body did not arrive in time",
            format!("a whole body must arrive within {within:?}"),
        ),
    };
    problem.into_response()
}
