//! The health document: each part of the agent with its figures, and what is wrong.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use axum::Json;
use axum::extract;
use axum::http::StatusCode;
use serde_json::{Value, json};
use viworks_common::time::Timestamp;
use viworks_runtime::blocking::{CALLS_MAX, PerKey};
use viworks_runtime::conditions::{Condition, Severity};

use super::status::can_run;
use super::{CertificateStatus, State};
use crate::watch::{ROOM_BYTES, room};

/// How long a look at the disk may take.
const LOOK_TIME: Duration = Duration::from_secs(2);

/// Of a disk there is one look at a time, however many ask while it does not answer: the bytes that are free, and
/// whether the journal holds its reserve.
static DISKS: LazyLock<PerKey<PathBuf, (u64, bool)>> =
    LazyLock::new(|| PerKey::new("health disk", CALLS_MAX));

pub(super) async fn health(
    extract::State(state): extract::State<State>,
) -> (StatusCode, Json<Value>) {
    let parts = &state.parts;
    let now = parts.clock.wall();
    let connection = parts.status.connection();
    let spool = spool(&state, now).await;
    let stopping = parts.lifecycle.is_stopping();
    let failing = parts.conditions.worst() == Some(Severity::Fail);
    let healthy = connection.connected && spool["healthy"] == true && !stopping && !failing;
    let status = if healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let conditions = parts.conditions.list();
    let mut body = json!({
        "healthy": healthy,
        "version": parts.facts.version,
        "parts": {
            "connection": {
                "healthy": connection.connected,
                "state": connection.state,
                "url": connection.url,
                "since": connection.since,
                "round_trip_us": connection.round_trip_us,
                "clock_skew_ms": connection.clock_skew_ms,
                "next_attempt": connection.next_attempt,
                "failure": connection.last_failure,
                "earlier_failure": connection.earlier_failure,
            },
            "spool": spool,
            "journal": journal(&state),
            "disk": disk(&state).await,
            "certificate": certificate(&state, now),
            "pins": { "healthy": true, "version": parts.pins.current().version, "trusted": parts.pins.current().pins.len() },
            "commands": {
                "healthy": true,
                "running": parts.executor.running(),
                "allowed": can_run(&parts.catalogue.get().entries()),
            },
            "process": { "healthy": !stopping, "uptime_ms": millis_since(parts.facts.started_at, now) },
        },
        "conditions": conditions,
        "past": parts.conditions.past(),
    });
    worsen(&mut body["parts"], &conditions);
    (status, Json(body))
}

/// A part is not healthy while one of its conditions fails: whoever watches the part alone sees it.
fn worsen(parts: &mut Value, conditions: &[Condition]) {
    let failing = conditions
        .iter()
        .filter(|found| found.severity == Severity::Fail);
    let failing: Vec<&Condition> = failing.collect();
    for (name, part) in parts.as_object_mut().into_iter().flatten() {
        if failing.iter().any(|found| found.is_of(name)) {
            part["healthy"] = json!(false);
        }
    }
}

/// Reading from the spool proves that its file can be read.
async fn spool(state: &State, now: Timestamp) -> Value {
    let spool = &state.parts.spool;
    let (oldest, failure) = match spool.oldest().await {
        Ok(oldest) => (oldest, None),
        Err(error) => (None, Some(error.to_string())),
    };
    let figures = spool.figures();
    json!({
        "healthy": failure.is_none(),
        "failure": failure,
        "waiting_records": figures.records,
        "oldest_age_ms": oldest.map(|oldest| millis_since(oldest, now)),
        "bytes": figures.bytes,
        "bytes_max": figures.bytes_max,
        "dropped_records": figures.dropped,
        "refused_by_disk_records": spool.refused(),
        "refused_by_backend_records": spool.unstored().values().sum::<u64>(),
    })
}

fn journal(state: &State) -> Value {
    let journal = &state.parts.journal;
    let failure = journal.trouble().map(|trouble| trouble.to_string());
    let (entries, entries_max) = journal.entries();
    json!({
        "healthy": failure.is_none(),
        "failure": failure,
        "entries": entries,
        "entries_max": entries_max,
    })
}

async fn disk(state: &State) -> Value {
    let (folder, journal) = (
        state.parts.state_folder.clone(),
        state.parts.journal.clone(),
    );
    let look = move |folder: &PathBuf| (room(folder), journal.holds_reserve());
    match DISKS.ask(folder, LOOK_TIME, look).await {
        Ok((free, reserve)) => json!({
            "healthy": free >= ROOM_BYTES,
            "free_bytes": free,
            "reserve_held": reserve,
        }),
        Err(error) => json!({ "healthy": false, "failure": error.to_string() }),
    }
}

fn certificate(state: &State, now: Timestamp) -> Value {
    let CertificateStatus {
        not_before,
        not_after,
        origin,
        renewal,
    } = (state.parts.certificate)();
    let remaining_ms = not_after.unix_millis() - now.unix_millis();
    json!({
        "healthy": not_before <= now && now <= not_after,
        "not_after": not_after,
        "remaining_s": remaining_ms / 1_000,
        "origin": origin,
        "renewal": renewal,
    })
}

/// A clock that was set back since knows no better than that it is so now.
fn millis_since(since: Timestamp, now: Timestamp) -> i64 {
    (now.unix_millis() - since.unix_millis()).max(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_not_healthy_while_one_of_its_conditions_fails() {
        let found = |name: &str, severity| Condition {
            name: name.to_owned(),
            severity,
            cause: "it is full".to_owned(),
            fix: String::new(),
            since: Timestamp::from_unix_micros(1_800_000_000_000_000),
        };
        let mut parts = json!({
            "disk": { "healthy": true, "free_bytes": 7 },
            "spool": { "healthy": true },
            "certificate": { "healthy": true },
        });
        let conditions = [
            found("disk.reserve", Severity::Fail),
            found("certificate", Severity::Warn),
            found("spooler", Severity::Fail),
        ];
        worsen(&mut parts, &conditions);
        let wanted = json!({
            "disk": { "healthy": false, "free_bytes": 7 },
            "spool": { "healthy": true },
            "certificate": { "healthy": true },
        });
        assert_eq!(parts, wanted);
    }
}
