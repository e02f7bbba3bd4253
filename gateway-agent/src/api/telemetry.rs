//! Telemetry intake: what local programs observed goes into the spool.

use axum::Json;
use axum::body::HttpBody;
use axum::extract::rejection::JsonRejection;
use axum::extract::{self, ConnectInfo, FromRequest, Request};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tracing::warn;
use viworks_common::human;
use viworks_common::id::StreamName;
use viworks_common::limits;
use viworks_common::telemetry::{Fields, Record, is_own};
use viworks_common::time::Timestamp;
use viworks_common::unique::Checked;

use super::problem::Problem;
use super::{Peer, State};
use crate::spool;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Intake {
    /// Read one by one, so that a malformed one does not refuse the others.
    records: Vec<Checked<true>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenRecord {
    stream: StreamName,
    /// Without one it was observed now.
    observed_at: Option<Timestamp>,
    fields: Fields,
}

#[derive(Serialize)]
pub(super) struct Taken {
    accepted: usize,
    refused: Vec<Refused>,
}

#[derive(Serialize)]
struct Refused {
    /// Its position in the request, from 0.
    index: usize,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// Answers only when everything accepted is durable.
pub(super) async fn intake(
    extract::State(state): extract::State<State>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
) -> Result<Json<Taken>, Problem> {
    // It is here as a whole, so that is its length.
    let bytes = request.body().size_hint().lower();
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    let _turn = state.intakes.enter(peer, bytes)?;
    let Json(Intake { records }) = Json::from_request(request, &())
        .await
        .map_err(|rejection| malformed(&rejection))?;
    if records.len() > limits::BATCH_RECORDS_MAX {
        return Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_many_records",
            "Too many records",
            format!(
                "at most {} in one request",
                human::counted(limits::BATCH_RECORDS_MAX, "record", "records")
            ),
        ));
    }
    state.intakes.hand_in(peer, records.len(), bytes)?;
    let now = state.parts.clock.wall();
    let mut sound = Vec::with_capacity(records.len());
    let mut refused = Vec::new();
    for (index, value) in records.into_iter().enumerate() {
        match judge(value, now, peer.may_run_commands()) {
            Ok(record) => sound.push(record),
            Err((reason, detail)) => refused.push(Refused {
                index,
                reason,
                detail,
            }),
        }
    }
    state.parts.spool.append(&sound).await.map_err(|error| {
        let full = error.is_full();
        let error = format!("{:#}", anyhow::Error::new(error));
        if let Some(left_out) = state.unspooled.take(state.parts.clock.now()) {
            warn!(%error, left_out, "the spool refused telemetry from a local program");
        }
        let code = if full {
            "disk_full"
        } else {
            "spool_unavailable"
        };
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            code,
            "The spool cannot take telemetry",
            error,
        )
        .retry_after(5)
    })?;
    Ok(Json(Taken {
        accepted: sound.len(),
        refused,
    }))
}

/// Whoever could be the agent may write into its own streams.
fn judge(
    value: Checked<true>,
    now: Timestamp,
    is_trusted: bool,
) -> Result<Record, (&'static str, Option<String>)> {
    if let Some(way) = value.repeated {
        return Err(("malformed", Some(format!("duplicate field `{way}`"))));
    }
    let given: GivenRecord = serde_json::from_value(value.value)
        .map_err(|error| ("malformed", Some(error.to_string())))?;
    if is_own(&given.stream) && !is_trusted {
        let detail = "streams that begin with host. are the agent's own: name another one";
        return Err(("reserved_stream", Some(detail.to_owned())));
    }
    let record = Record {
        stream: given.stream,
        observed_at: given.observed_at.unwrap_or(now),
        fields: given.fields,
    };
    spool::check(&record).map_err(|refusal| (refusal.name(), None))?;
    Ok(record)
}

pub(super) fn malformed(rejection: &JsonRejection) -> Problem {
    let status = rejection.status();
    Problem::new(
        status,
        "malformed_body",
        "The body cannot be read",
        rejection.body_text(),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn streams_of_the_agent_are_written_by_whoever_could_be_it() {
        let now = Timestamp::from_unix_micros(1_795_000_000_000_000);
        let judged = |stream, is_trusted| {
            let given = Checked {
                value: json!({"stream": stream, "fields": {"one": 1}}),
                repeated: None,
            };
            judge(given, now, is_trusted).map_err(|(reason, _detail)| reason)
        };
        assert!(judged("host.cpu", true).is_ok());
        assert_eq!(judged("host.cpu", false), Err("reserved_stream"));
        assert!(judged("hosts", false).is_ok() && judged("app.host.cpu", false).is_ok());
    }
}
