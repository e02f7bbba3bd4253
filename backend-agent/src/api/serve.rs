//! Takes connections and serves them within their bounds.

use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceExt;
use viworks_runtime::lifecycle::Lifecycle;

use super::limits::ApiLimits;
use super::request::Peer;

/// The pause after a failed accept: out of descriptors is not cured by trying faster.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the lifecycle stops; connections then finish the request they are in. Connections over the bound wait
/// in the kernel's backlog.
pub async fn serve(
    listener: TcpListener,
    router: axum::Router,
    limits: ApiLimits,
    lifecycle: Lifecycle,
) {
    let permits = Arc::new(Semaphore::new(limits.connections_max));
    loop {
        let accepted = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            biased;
            () = lifecycle.stopping() => return,
            accepted = accepted => accepted,
        };
        let Ok(permit) = permit else { return };
        match accepted {
            Ok((socket, peer)) => {
                let served = connection(
                    socket,
                    Peer(peer),
                    router.clone(),
                    limits,
                    lifecycle.clone(),
                    permit,
                );
                drop(lifecycle.spawn("api connection", served));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the API could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    socket: TcpStream,
    peer: Peer,
    router: axum::Router,
    limits: ApiLimits,
    lifecycle: Lifecycle,
    _permit: OwnedSemaphorePermit,
) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "a connection was gone before it was served");
        return;
    }
    let service = hyper::service::service_fn(move |mut request: http::Request<_>| {
        request.extensions_mut().insert(peer);
        router.clone().oneshot(request)
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(limits.headers_max)
        .max_buf_size(limits.head_bytes_max)
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
        tracing::debug!(%error, peer = %peer.0, "an API connection ended early");
    }
}
