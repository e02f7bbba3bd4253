//! Probes, the health document, metrics and the API's own description.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use viworks_api::{Health, ProblemCode, Standing, StandingCheck};
use viworks_runtime::metrics::CONTENT_TYPE as OPENMETRICS;

use crate::api::Shared;
use crate::api::extract::{NoParams, Params};
use crate::api::health::health as health_document;
use crate::api::problem::{ApiError, ApiResult};
use crate::api::request::Api;

/// Is the process alive?
#[utoipa::path(get, path = "/livez", operation_id = "livez", tag = "probes",
    responses((status = 200, description = "It is", body = String, content_type = "text/plain")))]
pub(in crate::api) async fn livez(_params: Params<NoParams>) -> &'static str {
    "ok\n"
}

/// Does the backend take requests? Each part says why it does not.
#[utoipa::path(get, path = "/readyz", operation_id = "readyz", tag = "probes",
    responses((status = 200, description = "It does", body = Standing),
        (status = 503, description = "It does not", body = Standing)))]
pub(in crate::api) async fn readyz(State(state): Api, _params: Params<NoParams>) -> Response {
    let report = state.readiness.report();
    let ready = report.ready && !state.stopping.is_cancelled();
    let parts = report.checks.into_iter().map(|check| StandingCheck {
        name: check.name.to_owned(),
        ok: check.ok,
        reason: check.reason,
    });
    let standing = Standing {
        ready,
        checks: parts.collect(),
    };
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(standing)).into_response()
}

/// Has the backend finished starting?
#[utoipa::path(get, path = "/startupz", operation_id = "startupz", tag = "probes",
    responses((status = 200, description = "It has", body = String, content_type = "text/plain"),
        (status = 503, description = "It has not", body = String, content_type = "text/plain")))]
pub(in crate::api) async fn startupz(State(state): Api, _params: Params<NoParams>) -> Response {
    probe(state.readiness.report().started)
}

fn probe(well: bool) -> Response {
    if well {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
    }
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
