//! Status, health and catalogue.

use axum::Json;
use axum::extract;
use axum::http::StatusCode;
use serde_json::{Value, json};
use viworks_common::pin::PinSet;
use viworks_runtime::conditions::Severity;

use super::State;

pub(super) async fn status(extract::State(state): extract::State<State>) -> Json<Value> {
    let parts = &state.parts;
    let catalogue = parts.catalogue.get().entries();
    let unavailable: Vec<Value> = catalogue
        .iter()
        .filter_map(|entry| {
            let reason = entry.unavailable.as_ref()?;
            Some(json!({ "name": entry.name, "reason": reason }))
        })
        .collect();
    Json(json!({
        "agent": parts.facts,
        "connection": parts.status.connection(),
        "conditions": parts.conditions.list(),
        "pins": pins(&parts.pins.current()),
        "spool": spool(&state),
        "intake": { "refused_requests": state.intakes.refusals() },
        "commands": {
            "running": parts.executor.running(),
            "allowed": catalogue.len(),
            "unavailable": unavailable,
        },
    }))
}

pub(super) async fn health(
    extract::State(state): extract::State<State>,
) -> (StatusCode, Json<Value>) {
    let parts = &state.parts;
    let connection = parts.status.connection();
    // Reading from the spool proves that its file can be read.
    let spool_failure = parts.spool.positions().await.err().map(|e| e.to_string());
    let stopping = parts.lifecycle.is_stopping();
    let conditions = parts.conditions.list();
    let failing = parts.conditions.worst() == Some(Severity::Fail);
    let healthy = connection.connected && spool_failure.is_none() && !stopping && !failing;
    let status = if healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = json!({
        "healthy": healthy,
        "parts": {
            "connection": { "healthy": connection.connected, "state": connection.state, "failure": connection.last_failure },
            "spool": { "healthy": spool_failure.is_none(), "failure": spool_failure },
            "process": { "healthy": !stopping },
        },
        "conditions": conditions,
    });
    (status, Json(body))
}

pub(super) async fn catalogue(extract::State(state): extract::State<State>) -> Json<Value> {
    Json(json!({ "commands": state.parts.catalogue.get().entries() }))
}

/// A set that counts one version up is newer; version 0 is the configured one.
fn pins(current: &PinSet) -> Value {
    json!({ "version": current.version, "pins": current.pins })
}

fn spool(state: &State) -> Value {
    let figures = state.parts.spool.figures();
    json!({
        "records": figures.records,
        "bytes": figures.bytes,
        "bytes_max": figures.bytes_max,
        "local_bytes": figures.local_bytes,
        "local_bytes_max": figures.local_bytes_max,
        "dropped": figures.dropped,
        "refused_by_disk": state.parts.spool.refused(),
        "refused_by_backend": state.parts.spool.unstored(),
    })
}
