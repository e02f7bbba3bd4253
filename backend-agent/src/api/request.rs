//! What every request passes: its id, its answer's headers, its log line, its counter, and the guard of its route.

use std::any::Any;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use tracing::Instrument;
use viworks_api::{ProblemCode, REQUEST_ID, Scope, WAIT_MS_MAX};
use viworks_common::id::ApiKeyId;
use viworks_common::places::Bound;
use viworks_common::rate::Taken;
use viworks_runtime::answers::ALWAYS;
use viworks_runtime::random;
use viworks_runtime::shares::{Share, Shares};

use super::client::Client;
use super::problem::{ApiError, ApiResult, RETRY_SOON};
use super::router::Weight;
use super::serve::ApiSeat;
use super::{ApiState, Shared};
use crate::auth::Principal;
use crate::auth::bearer::{AuthError, Purpose, authenticate};
use crate::data::{Actor, ActorKind, AuditOutcome, NewAuditRecord};

/// Characters of a request id that a client may bring.
const REQUEST_ID_CHARS_MAX: usize = 64;

/// The request's id in log, answer and audit trail.
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub(super) String);

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for RequestId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| ApiError::new(ProblemCode::Internal, "the request has no id"))
    }
}

/// The address at the other end of the connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// The outermost layer.
pub(super) async fn finish(
    State(state): State<Shared>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = given_id(request.headers())
        .unwrap_or_else(|| format!("req_{}", random::uuid_v7(state.clock.line()).simple()));
    request.extensions_mut().insert(RequestId(id.clone()));
    let client = Client::of(
        request.extensions(),
        request.headers(),
        &state.trusted_proxies,
    );
    if let Some(client) = client {
        request.extensions_mut().insert(client);
    }
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());
    let started = state.clock.now();
    let peer = client.map(|Client(address)| tracing::field::display(address));
    let span = tracing::info_span!("http", request_id = id, %method, route, peer);
    let mut response = next.run(request).instrument(span.clone()).await;
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        error.render(&mut response, &id);
    }
    let headers = response.headers_mut();
    for (name, value) in ALWAYS {
        headers.insert(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
    if let Ok(value) = HeaderValue::try_from(&id) {
        headers.insert(HeaderName::from_static(REQUEST_ID), value);
    }
    let status = response.status();
    // Methods are open-ended words; a counter's labels are not.
    let counted = match method.as_str() {
        "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS" => method.to_string(),
        _ => "other".to_owned(),
    };
    state
        .requests
        .get_or_create(&[
            ("method", counted),
            ("route", route),
            ("status", status.as_str().to_owned()),
        ])
        .inc();
    let took = state.clock.now().saturating_since(started);
    span.in_scope(|| tracing::debug!(status = status.as_u16(), ?took, "answered"));
    response
}

/// An id that a client or a proxy brought, when it is harmless in every log.
fn given_id(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(REQUEST_ID)?.to_str().ok()?;
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let valid = (1..=REQUEST_ID_CHARS_MAX).contains(&text.len()) && text.bytes().all(harmless);
    valid.then(|| text.to_owned())
}

/// Refuses what a proxy and we might read differently: more than one host, or two lengths; and a body in an encoding
/// that nobody here takes off. Its connection ends with it: what follows could be another's request.
pub(super) async fn well_formed(request: Request, next: Next) -> Response {
    let Some(error) = oddity(&request) else {
        return next.run(request).await;
    };
    let is_connected = request.extensions().get::<Peer>().is_some();
    let mut answer = error.into_response();
    if is_connected {
        let headers = answer.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

fn oddity(request: &Request) -> Option<ApiError> {
    let headers = request.headers();
    let mut hosts = headers.get_all(HOST).iter();
    let odd = |detail: &str, field: &str, allowed: &str| {
        ApiError::new(ProblemCode::BadRequest, detail).with(
            field,
            "not valid",
            Some(allowed.to_owned()),
        )
    };
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => {
            return Some(odd(
                "the request has more than one Host",
                "Host",
                "one Host header",
            ));
        }
        (Some(host), None) if !is_host(host.as_bytes()) => {
            return Some(odd(
                "the Host is not valid",
                "Host",
                "a name or an address, with a port or without",
            ));
        }
        // A request that came over a socket knows where it came from, and whom it is for.
        (None, None)
            if request.version() == Version::HTTP_11
                && request.extensions().get::<Peer>().is_some() =>
        {
            return Some(odd("the request has no Host", "Host", "one Host header"));
        }
        (Some(_) | None, None) => {}
    }
    if headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH) {
        return Some(odd(
            "the request has two lengths",
            "Content-Length",
            "Content-Length or Transfer-Encoding",
        ));
    }
    let encoded = headers.get_all(CONTENT_ENCODING).iter().any(|value| {
        value
            .to_str()
            .map_or(true, |text| !text.trim().eq_ignore_ascii_case("identity"))
    });
    encoded.then(|| {
        ApiError::new(
            ProblemCode::UnsupportedMediaType,
            "the body has an encoding that is not taken off here",
        )
        .with(
            "Content-Encoding",
            "not supported",
            Some("identity, or none".to_owned()),
        )
    })
}

/// Whether these are bytes of a host: no list, no blank, no user.
fn is_host(host: &[u8]) -> bool {
    let fits = |byte: &u8| {
        byte.is_ascii_alphanumeric()
            || matches!(*byte, b'.' | b'-' | b'_' | b'~' | b':' | b'[' | b']' | b'%')
    };
    host.iter().all(fits)
}

/// The guard of a route: a principal with its scope, or no handler.
pub(super) async fn authorise(
    State((state, scope, weight)): State<(Shared, Scope, Weight)>,
    request: Request,
    next: Next,
) -> Response {
    let (mut parts, body) = request.into_parts();
    let found = authenticate(
        &*state.store,
        &state.tenant,
        &state.principals,
        &parts.headers,
        purpose(scope),
        &state.clock,
    )
    .await;
    let found = found.map(|principal| Principal {
        address: address(&parts),
        ..principal
    });
    if let Ok(principal) = &found
        && let Some(seat) = parts.extensions.get::<ApiSeat>()
    {
        // Whoever shows a key keeps its place, when there is one.
        if let Err(bound) = seat.vouch(principal.key_id) {
            return no_room(&state, principal, bound);
        }
    }
    match found {
        Ok(principal) if principal.may(scope) => {
            let taken = state.quotas.take(principal.key_id, state.clock.now());
            let mut answer = if let Taken::Refused { retry_after } = taken {
                state.limited.inc();
                ApiError::rate_limited(retry_after).into_response()
            } else {
                parts.extensions.insert(principal.clone());
                let request = Request::from_parts(parts, body);
                work(&state, principal, weight, request, next).await
            };
            state.quotas.describe(taken, answer.headers_mut());
            answer
        }
        Ok(principal) => {
            let actor = Actor::api_key(principal.key_id);
            refused(&state, &parts, actor, scope, "scope missing").await;
            ApiError::forbidden(scope).into_response()
        }
        Err(error) => {
            if matches!(error, AuthError::Refused) {
                let actor = Actor {
                    kind: ActorKind::Anonymous,
                    id: address(&parts).map_or_else(|| "unknown".to_owned(), |it| it.to_string()),
                    request_id: None,
                    address: None,
                };
                refused(&state, &parts, actor, scope, "bearer token not accepted").await;
            }
            ApiError::from(error).into_response()
        }
    }
}

/// What a key is shown for where this scope is needed.
const fn purpose(scope: Scope) -> Purpose {
    match scope {
        Scope::HealthRead | Scope::MetricsRead => Purpose::Watch,
        Scope::GatewaysRead
        | Scope::GatewaysWrite
        | Scope::RunsRead
        | Scope::RunsWrite
        | Scope::RunsWriteChange
        | Scope::RunsWriteDanger
        | Scope::TelemetryRead
        | Scope::CatalogueRead
        | Scope::AuditRead
        | Scope::ApikeysAdmin
        | Scope::TicketsRead
        | Scope::TicketsWrite
        | Scope::PinsRead
        | Scope::PinsWrite => Purpose::Work,
    }
}

/// Lets the handler work on a request, where it reads much in its turn and once there is room for what it reads.
async fn work(
    state: &ApiState,
    principal: Principal,
    weight: Weight,
    request: Request,
    next: Next,
) -> Response {
    let (mut turn, mut room) = (None, None);
    if weight == Weight::Large {
        turn = Some(state.turns.next(principal.key_id).await);
        match state.budget.reserve(&principal) {
            Ok(reserved) => room = Some(reserved),
            Err(full) => return full.into_response(),
        }
    }
    let answer = next.run(request).await;
    let answer = state.budget.answer(answer, room, &principal).await;
    drop(turn);
    answer
}

/// Refuses a key's request for want of a place, and ends its connection.
fn no_room(state: &ApiState, principal: &Principal, bound: Bound) -> Response {
    let error = if bound == Bound::KnownFull {
        state.crowd.key_full(&principal.name, "connections");
        ApiError::new(
            ProblemCode::RateLimited,
            "this key has all the connections it may have, and each has a request that is being worked on; nothing was done",
        )
    } else {
        state.crowd.full("connections");
        ApiError::new(
            ProblemCode::Overloaded,
            "too many connections have requests that are being worked on; nothing was done",
        )
    };
    let mut answer = error.retry_after(RETRY_SOON).into_response();
    answer
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// Takes one of what there may be so many of; where a key, or all together, have all of them, health says so.
pub(super) fn share(
    state: &ApiState,
    shares: &Shares<ApiKeyId>,
    principal: &Principal,
    retry_after: Duration,
) -> ApiResult<Share<ApiKeyId>> {
    shares.enter(principal.key_id, 1).map_err(|full| {
        state.crowd.refused(full, &principal.name);
        ApiError::new(ProblemCode::Overloaded, full.to_string()).retry_after(retry_after)
    })
}

/// Leaves a trace of a refusal, at a rate that nobody can raise from outside.
async fn refused(state: &ApiState, parts: &Parts, actor: Actor, scope: Scope, why: &str) {
    let request_id = parts.extensions.get::<RequestId>().map(|id| id.0.clone());
    let actor = Actor {
        request_id,
        address: address(parts),
        ..actor
    };
    let detail = serde_json::json!({
        "why": why,
        "method": parts.method.as_str(),
    });
    record_refusal(
        state,
        actor,
        "api.request",
        format!("scope:{scope}"),
        detail,
    )
    .await;
}

/// Appends a refusal to the audit trail, and says how many were left out before it.
pub(super) async fn record_refusal(
    state: &ApiState,
    actor: Actor,
    action: &str,
    object: String,
    mut detail: serde_json::Value,
) {
    let Some(left_out) = state.refusals.take(state.clock.now()) else {
        return;
    };
    detail["left_out_before"] = left_out.into();
    let why = detail["why"].as_str().unwrap_or_default();
    tracing::warn!(%actor, action, object, why, left_out, "a request was refused");
    let record = NewAuditRecord {
        actor,
        action: action.to_owned(),
        object,
        outcome: AuditOutcome::Refused,
        detail,
    };
    let stored = state
        .store
        .append_audit(&state.tenant, record, state.clock.line())
        .await;
    if let Err(error) = stored {
        tracing::error!(%error, "a refusal was not recorded in the audit trail");
    }
}

/// Where a request came from.
fn address(parts: &Parts) -> Option<IpAddr> {
    let client = parts.extensions.get::<Client>();
    client.map(|Client(address)| *address)
}

/// Bounds the time of a request. One that asks to be kept waiting gets so much more.
pub(super) async fn in_time(State(state): State<Shared>, request: Request, next: Next) -> Response {
    let limit = state.limits.request_timeout + asked_wait(request.uri().query());
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_elapsed) => ApiError::new(
            ProblemCode::Timeout,
            format!("the request took longer than {} ms", limit.as_millis()),
        )
        .retry_after(limit)
        .into_response(),
    }
}

/// How long a query asks to wait; what is no such time, its handler refuses.
fn asked_wait(query: Option<&str>) -> Duration {
    let mut pairs = query.unwrap_or_default().split('&');
    let millis = pairs.find_map(|pair| pair.strip_prefix("wait_ms="));
    let millis: u64 = millis.and_then(|text| text.parse().ok()).unwrap_or(0);
    Duration::from_millis(millis.min(WAIT_MS_MAX))
}

/// A handler panicked: one request fails, the process goes on.
pub(super) fn panicked(payload: Box<dyn Any + Send + 'static>) -> Response {
    let reason = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    drop(payload);
    tracing::error!(reason, "a handler panicked");
    ApiError::new(
        ProblemCode::Internal,
        "the request met a fault that is in the backend's log",
    )
    .into_response()
}

/// No route has this path.
pub(super) async fn no_such_path() -> ApiError {
    ApiError::new(ProblemCode::NoSuchPath, "there is nothing at this path")
}

/// The path has other methods.
pub(super) async fn method_not_allowed() -> ApiError {
    ApiError::new(
        ProblemCode::MethodNotAllowed,
        "this path does not have this method; the Allow header names those it has",
    )
}

/// For handlers that answer with their own state.
pub(super) type Api = State<Arc<ApiState>>;

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::routing::get;
    use http::StatusCode;
    use tower::ServiceExt;
    use tower_http::catch_panic::CatchPanicLayer;

    use super::*;

    #[tokio::test]
    async fn a_panic_in_a_handler_is_one_answer_that_says_nothing_of_it() {
        async fn faulty() {
            panic!("row 7 of the secret table");
        }
        let router: Router = Router::new()
            .route("/", get(faulty))
            .layer(CatchPanicLayer::custom(panicked));
        let request = Request::get("/").body(Body::empty()).unwrap();
        let mut response = router.oneshot(request).await.unwrap();
        let error = response.extensions_mut().remove::<ApiError>().unwrap();
        error.render(&mut response, "req_1");
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = axum::body::to_bytes(response.into_body(), 4_096)
            .await
            .unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(
            text.contains("VW-S-002") && text.contains("req_1"),
            "{text}"
        );
        assert!(!text.contains("secret"), "{text}");
    }
}
