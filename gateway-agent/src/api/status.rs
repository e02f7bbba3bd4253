//! Status and catalogue.

use axum::Json;
use axum::extract;
use serde_json::{Value, json};
use viworks_common::catalogue::CatalogueEntry;
use viworks_common::pin::PinSet;

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
        "certificate": (parts.certificate)(),
        "conditions": parts.conditions.list(),
        "pins": pins(&parts.pins.current()),
        "spool": spool(&state),
        "intake": { "refused_requests": state.intakes.refusals() },
        "commands": {
            "running": parts.executor.running(),
            "allowed": can_run(&catalogue),
            "unavailable": unavailable,
        },
    }))
}

/// How many of the catalogue's commands can run: one whose program is not there is allowed in vain.
pub(super) fn can_run(catalogue: &[CatalogueEntry]) -> usize {
    let can = catalogue.iter().filter(|entry| entry.unavailable.is_none());
    can.count()
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
