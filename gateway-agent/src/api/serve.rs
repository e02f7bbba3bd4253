//! Takes connections on the unix socket and serves them within their bounds.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::http::header::{CONTENT_ENCODING, HOST};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use tower::ServiceExt;
use viworks_common::human;
use viworks_common::limits;
use viworks_common::places::PlaceLimits;
use viworks_common::rate::Lately;
use viworks_runtime::answers::{ALWAYS, no_place};
use viworks_runtime::clock::{Clock, sleep_until};
use viworks_runtime::conditions::{Conditions, Severity};
use viworks_runtime::door::{Door, LetIn, Seat};
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::progress::Progress;
use viworks_runtime::shares::{Full, Share, Shares};
use viworks_runtime::throttle::{LOG_LINES, Throttle};

use super::intake::Intakes;
use super::problem::{HeldBack, Problem};
use super::{Peer, Socket};

/// The pause after a failed accept: out of descriptors is not cured by trying faster.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of a body that is too large that are read all the same.
const DISCARDED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The condition while connections are cut or refused.
const CROWDED: &str = "socket.crowded";

/// How long after the last one that is told.
const CROWDED_TIME: Duration = Duration::from_secs(60);

/// How long the refusal of somebody who comes too often is held back; not longer than anybody is told to wait.
const HELD_BACK: Duration = Duration::from_secs(1);

/// Bytes of bodies that a user may always have under way, whatever others have.
const BODIES_FLOOR: usize = 64 * 1024;

/// The largest request head.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Connections at once, and of one user.
const CONNECTIONS_MAX: usize = 32;
const PER_USER_MAX: usize = 16;

/// How long a head, a body and the taking of an answer may last, in milliseconds.
const HEADER_MS: u64 = 10_000;
const BODY_MS: u64 = 10_000;
const SEND_MS: u64 = 10_000;

/// Bytes of bodies that are held at once.
const BODIES_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What local programs may take up. Both times are well below the grace period of a shutdown, so that a caller who
/// stalls does not hold it up.
#[derive(Debug, Clone, Copy)]
pub struct ServeLimits {
    /// Connections at once. Beyond, and at three quarters for users who may not run commands, a newcomer takes the
    /// place of the one that has been idle longest.
    pub connections_max: usize,
    /// Connections of one user.
    pub per_user_max: usize,
    /// How long a request's head may take, and a connection may be idle.
    pub header_timeout: Duration,
    /// How long a caller may leave untouched what is sent to it.
    pub send_timeout: Duration,
    /// How long a request's whole body may take.
    pub body_timeout: Duration,
    /// Bytes of bodies that are held at once. Half of it is for those who may run commands, the rest for all others, of
    /// whom one has at most half of what the rest of them leave.
    pub bodies_bytes_max: usize,
    /// How often is looked whether the socket's file still stands.
    pub socket_check: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            connections_max: CONNECTIONS_MAX,
            per_user_max: PER_USER_MAX,
            send_timeout: Duration::from_millis(SEND_MS),
            header_timeout: Duration::from_millis(HEADER_MS),
            body_timeout: Duration::from_millis(BODY_MS),
            bodies_bytes_max: BODIES_BYTES_MAX,
            socket_check: Duration::from_secs(5),
        }
    }
}

/// What the server needs of the process.
pub(super) struct Shell {
    pub(super) lifecycle: Lifecycle,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) conditions: Conditions,
    pub(super) intakes: Arc<Intakes>,
}

pub(super) async fn run(
    mut socket: Socket,
    router: Router,
    limits: ServeLimits,
    shell: Shell,
) -> io::Result<()> {
    let lifecycle = &shell.lifecycle;
    let body_timeout = limits.body_timeout;
    let bodies = Bodies::new(limits.bodies_bytes_max, Arc::clone(&shell.intakes));
    let router = router
        .layer(middleware::from_fn(move |request: Request, next: Next| {
            whole_body(request, next, body_timeout, bodies.clone())
        }))
        .layer(middleware::map_response(finish));
    let no_place = no_place();
    let mut crowd = Crowd::default();
    let unaccepted = Throttle::new(LOG_LINES);
    let door = Door::new(PlaceLimits {
        total: limits.connections_max,
        per_source: limits.per_user_max,
        // A user is known from the start.
        per_known: limits.per_user_max,
    });
    let next_look = || shell.clock.now().saturating_add(limits.socket_check);
    let mut look = next_look();
    loop {
        let accepted = tokio::select! {
            biased;
            () = lifecycle.stopping() => return Ok(()),
            () = sleep_until(&*shell.clock, look) => {
                look = next_look();
                crowd.look(&shell);
                shell.intakes.look();
                socket.keep(&shell.conditions).await;
                continue;
            }
            accepted = socket.listener.accept() => accepted,
        };
        let socket = match accepted {
            Ok((socket, _address)) => socket,
            Err(error) => {
                if let Some(left_out) = unaccepted.take(shell.clock.now()) {
                    tracing::warn!(%error, left_out, "a connection to the local API could not be accepted");
                }
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let peer = Peer::of(&socket);
        match door.enter(&peer.uid, peer.may_run_commands()) {
            Ok(LetIn { seat, ousted }) => {
                if let Some(bound) = ousted {
                    crowd.turned_away(peer, &shell);
                    tracing::debug!(
                        actor = peer.actor(),
                        bound = bound.name(),
                        "a connection to the local API was cut for a newcomer"
                    );
                }
                let served = connection(
                    socket,
                    peer,
                    router.clone(),
                    limits,
                    lifecycle.clone(),
                    seat,
                );
                drop(lifecycle.spawn("api connection", served));
            }
            Err(bound) => {
                crowd.turned_away(peer, &shell);
                tracing::debug!(
                    actor = peer.actor(),
                    bound = bound.name(),
                    "no place for a connection to the local API"
                );
                // A fresh socket has room for so much; one that has not is of no use to anybody.
                drop(socket.try_write(no_place.as_bytes()));
            }
        }
    }
}

/// Tells of connections that were cut or refused for want of a place, while it goes on.
#[derive(Debug, Default)]
struct Crowd {
    turned_away: u64,
    lately: Lately,
}

impl Crowd {
    fn turned_away(&mut self, last: Peer, shell: &Shell) {
        self.turned_away = self.turned_away.saturating_add(1);
        let cause = format!(
            "the local API has no place left: {} cut or refused since this process started, the last because of {}",
            human::counted_all(self.turned_away, "connection was", "connections were"),
            last.actor()
        );
        let fix = "find the program of that user that opens connections and keeps them: ss -xp shows who holds the other end; one connection is enough for many requests";
        shell.conditions.raise(CROWDED, Severity::Warn, &cause, fix);
        self.look(shell);
    }

    fn look(&mut self, shell: &Shell) {
        let now = shell.clock.now();
        if self.lately.is_over(self.turned_away, CROWDED_TIME, now) {
            shell.conditions.clear(CROWDED);
        }
    }
}

/// Bytes of bodies that may still be taken in, by user.
#[derive(Clone)]
struct Bodies {
    /// For those who may run commands: nobody else's bodies keep theirs out.
    known: Shares<Option<u32>>,
    others: Shares<Option<u32>>,
    /// Where refusals are counted.
    intakes: Arc<Intakes>,
}

impl Bodies {
    fn new(bytes_max: usize, intakes: Arc<Intakes>) -> Self {
        let known = bytes_max / 2;
        let others = bytes_max - known;
        let shares =
            |all, of_user| Shares::new(("user", "bytes of bodies"), all, of_user, BODIES_FLOOR);
        Self {
            // There are two of them at most, who trust each other.
            known: shares(known, known),
            others: shares(others, (others / 2).max(limits::REQUEST_BODY_BYTES_MAX)),
            intakes,
        }
    }

    /// Room for a body of `peer`, of which nothing is taken yet.
    fn of(&self, peer: Option<Peer>) -> Result<Share<Option<u32>>, Full> {
        let user = peer.and_then(|peer| peer.uid);
        if peer.is_some_and(Peer::may_run_commands) {
            self.known.enter(user, 0)
        } else {
            self.others.enter(user, 0)
        }
    }
}

async fn connection(
    socket: UnixStream,
    peer: Peer,
    router: Router,
    limits: ServeLimits,
    lifecycle: Lifecycle,
    seat: Seat<Option<u32>>,
) {
    let cut = seat.cut();
    let seat = Arc::new(seat);
    let service = hyper::service::service_fn(move |mut request: http::Request<_>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        let (router, seat) = (router.clone(), Arc::clone(&seat));
        async move {
            seat.busy(true);
            let answer = router.oneshot(request).await;
            seat.busy(false);
            answer
        }
    });
    let socket = Progress::new(socket, limits.send_timeout, cut.clone());
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(socket), service);
    let mut serving = std::pin::pin!(serving);
    let result = tokio::select! {
        biased;
        result = serving.as_mut() => result,
        () = cut.cancelled() => return,
        () = lifecycle.stopping() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection to the local API ended early");
    }
}

/// Adds what every answer has, and holds it back where that was asked for.
async fn finish(mut answer: Response) -> Response {
    if answer.extensions_mut().remove::<HeldBack>().is_some() {
        sleep(HELD_BACK).await;
    }
    for (name, value) in ALWAYS {
        answer.headers_mut().insert(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
    answer
}

/// Takes the whole body in before anything else is done, so that a caller who stalls holds nothing but its own
/// connection.
async fn whole_body(request: Request, next: Next, within: Duration, bodies: Bodies) -> Response {
    let headers = request.headers();
    if headers.get_all(HOST).iter().count() > 1 {
        let detail = "a request has one Host";
        return Problem::new(
            StatusCode::BAD_REQUEST,
            "bad_request",
            "Bad request",
            detail,
        )
        .into_response();
    }
    if headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .any(|value| value != "identity")
    {
        return Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_encoding",
            "The body has an encoding that is not taken off here",
            "send it without Content-Encoding",
        )
        .into_response();
    }
    let (head, body) = request.into_parts();
    let peer = head.extensions.get().map(|ConnectInfo(peer)| *peer);
    let problem = match timeout(within, collect(body, bodies.of(peer))).await {
        Ok(Ok(Collected::Whole(bytes, held))) => {
            let request = Request::from_parts(head, Body::from(bytes));
            let answer = next.run(request).await;
            drop(held);
            return answer;
        }
        Ok(Ok(Collected::NoRoom)) => {
            if let Some(peer) = peer {
                bodies.intakes.bodies_full(peer);
            }
            Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "bodies_full",
                "Too much is being sent at once",
                "as many bytes of bodies as may be held are held, of this user or of all",
            )
            .retry_after(1)
            .held_back()
        }
        Ok(Ok(Collected::TooLarge)) => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            "The body is too large",
            format!("at most {} bytes", limits::REQUEST_BODY_BYTES_MAX),
        ),
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

/// What became of a body.
enum Collected {
    /// It is here, and takes so much of the room.
    Whole(Vec<u8>, Share<Option<u32>>),
    TooLarge,
    NoRoom,
}

/// The whole body. Some of one that is not taken is read all the same, because a socket that is closed with something
/// unread in it takes the answer along.
async fn collect(
    mut body: Body,
    room: Result<Share<Option<u32>>, Full>,
) -> Result<Collected, axum::Error> {
    let mut taken = room.map_or(Collected::NoRoom, |room| Collected::Whole(Vec::new(), room));
    let mut length: usize = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        length = length.saturating_add(data.len());
        if length > limits::REQUEST_BODY_BYTES_MAX + DISCARDED_BYTES_MAX {
            return Ok(Collected::TooLarge);
        }
        let Collected::Whole(bytes, held) = &mut taken else {
            continue;
        };
        if length > limits::REQUEST_BODY_BYTES_MAX {
            taken = Collected::TooLarge;
            continue;
        }
        if held.resize(length).is_err() {
            taken = Collected::NoRoom;
            continue;
        }
        bytes.extend_from_slice(&data);
    }
    Ok(taken)
}
