//! Probes, the health document, metrics and the API's own description.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use viworks_api::{Health, NotReady, NotReadyStatus, ProblemCode};
use viworks_runtime::metrics::CONTENT_TYPE as OPENMETRICS;

use crate::api::{ApiState, Shared};
use crate::api::extract::{NoParams, Params};
use crate::api::health::{health as health_document, in_the_way};
use crate::api::problem::{ApiError, ApiResult};
use crate::api::request::Api;

/// Is the process alive?
#[utoipa::path(get, path = "/livez", operation_id = "livez", tag = "probes",
    responses((status = 200, description = "It is", body = String, content_type = "text/plain")))]
pub(in crate::api) async fn livez(_params: Params<NoParams>) -> &'static str {
    "ok\n"
}

/// Does the backend take requests?
#[utoipa::path(get, path = "/readyz", operation_id = "readyz", tag = "probes",
    responses((status = 200, description = "It does", body = String, content_type = "text/plain"),
        (status = 503, description = "It does not", body = NotReady)))]
pub(in crate::api) async fn readyz(State(state): Api, _params: Params<NoParams>) -> Response {
    if state.stopping.is_cancelled() {
        return unready(&state, NotReadyStatus::Stopping);
    }
    if state.readiness.report().ready {
        return "ok\n".into_response();
    }
    unready(&state, NotReadyStatus::NotReady)
}

/// Has the backend finished starting?
#[utoipa::path(get, path = "/startupz", operation_id = "startupz", tag = "probes",
    responses((status = 200, description = "It has", body = String, content_type = "text/plain"),
        (status = 503, description = "It has not", body = NotReady)))]
pub(in crate::api) async fn startupz(State(state): Api, _params: Params<NoParams>) -> Response {
    if state.readiness.report().started {
        return "ok\n".into_response();
    }
    unready(&state, NotReadyStatus::Starting)
}

/// Names are all that is said without a key: what they mean may tell of addresses.
fn unready(state: &ApiState, status: NotReadyStatus) -> Response {
    let reasons = in_the_way(state);
    (StatusCode::SERVICE_UNAVAILABLE, Json(NotReady { status, reasons })).into_response()
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", operation_id = "openapi", tag = "probes",
    responses((status = 200, description = "OpenAPI 3.1", body = Object, content_type = "application/json")))]
pub(in crate::api) async fn openapi(State(state): Api, _params: Params<NoParams>) -> Response {
    ([(CONTENT_TYPE, "application/json")], state.openapi.clone()).into_response()
}

/// How long writing out the metrics may take.
const ENCODE_TIME: std::time::Duration = std::time::Duration::from_secs(10);

/// Everything that is counted and measured.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics", tag = "health",
    responses((status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text")))]
pub(in crate::api) async fn metrics(
    State(state): Api,
    _params: Params<NoParams>,
) -> ApiResult<Response> {
    // It reads `/proc`, and writes out every series there is.
    let metrics = state.metrics.clone();
    let encode = move || metrics.encode();
    let text = viworks_runtime::blocking::call("metrics", ENCODE_TIME, encode)
        .await
        .ok()
        .and_then(Result::ok)
        .ok_or_else(|| ApiError::new(ProblemCode::Internal, "the metrics could not be written"))?;
    Ok(([(CONTENT_TYPE, OPENMETRICS)], text).into_response())
}

/// The backend's health, part by part.
#[utoipa::path(get, path = "/v1/health", operation_id = "health", tag = "health",
    responses((status = 200, description = "The document, whatever it says", body = Health)))]
pub(in crate::api) async fn health(
    State(state): State<Shared>,
    _params: Params<NoParams>,
) -> Json<Health> {
    Json(health_document(&state).await)
}
