//! The audit trail.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use viworks_api::{AuditList, AuditRecord, GatewayRef};
use viworks_common::time::Timestamp;

use crate::api::extract::{CursorNumber, Params, listed, page};
use crate::api::problem::{ApiError, ApiResult};
use crate::api::request::Api;
use crate::data::{self, AuditFilter, Page};

/// Records that are looked at for one page: the log has no index but its numbers, and is kept for good.
const LOOKED_AT: u64 = 50_000;

/// Letters of what is looked for.
const SOUGHT_MAX: usize = 256;

/// Which records, and which page.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct ListParams {
    /// By this gateway or on it: its id or its name.
    #[param(value_type = Option<String>, pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    gateway: Option<GatewayRef>,
    /// By this one: as `actor` of a record has it, or the name of an API key or gateway.
    #[param(min_length = 1, max_length = 256)]
    actor: Option<String>,
    /// On this: as `object` of a record has it, or the name of an API key or gateway.
    #[param(min_length = 1, max_length = 256)]
    object: Option<String>,
    /// This action, or all of a family: `gateway` for `gateway.revoke` and the others that begin like it.
    #[param(
        min_length = 1,
        max_length = 256,
        pattern = "^[a-z0-9_]+([.][a-z0-9_]+)*$"
    )]
    action: Option<String>,
    /// What ended like this: `done`, `refused` or `noted`.
    #[param(value_type = Option<String>, pattern = "^(done|refused|noted)$")]
    outcome: Option<Outcome>,
    /// Recorded at this time or later, RFC 3339.
    since: Option<Timestamp>,
    /// Where to go on: `next` of the page before.
    cursor: Option<String>,
    /// Most rows wanted, 1 to 1000; 100 when absent.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Done,
    Refused,
    Noted,
}

impl From<Outcome> for data::AuditOutcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::Done,
            Outcome::Refused => Self::Refused,
            Outcome::Noted => Self::Noted,
        }
    }
}

/// Audit records, latest first: those that are all that is asked for. A page looks at 50000 records of the log, and so
/// may have fewer rows than wanted, or none, and a `next` all the same.
#[utoipa::path(get, path = "/v1/audit", operation_id = "listAudit", tag = "audit",
    params(ListParams),
    responses((status = 200, description = "One page", body = AuditList)))]
pub(in crate::api) async fn list(
    State(state): Api,
    Params(params): Params<ListParams>,
) -> ApiResult<Json<AuditList>> {
    let Page { after, limit } = page(params.cursor.as_deref(), params.limit)?;
    let after = after.map(|CursorNumber(seq)| seq);
    let agent_id = match params.gateway {
        Some(which) => Some(super::gateways::find(&state, which).await?.agent_id),
        None => None,
    };
    let filter = AuditFilter {
        agent_id,
        actor: sought("actor", params.actor)?,
        object: sought("object", params.object)?,
        action: action(params.action)?,
        outcome: params.outcome.map(Into::into),
        since: params.since,
    };
    let page = Page { after, limit };
    let listing = if filter == AuditFilter::default() {
        state.store.list_audit(&state.tenant, page).await?
    } else {
        let found = state
            .store
            .find_audit(&state.tenant, filter, LOOKED_AT, page);
        found.await?
    };
    Ok(listed(listing, view, AuditList::new))
}

fn sought(name: &str, text: Option<String>) -> ApiResult<Option<String>> {
    match text {
        Some(text) if !(1..=SOUGHT_MAX).contains(&text.chars().count()) => {
            let allowed = format!("1 to {SOUGHT_MAX} characters");
            Err(ApiError::parameter(name, "too short or too long", allowed))
        }
        text => Ok(text),
    }
}

/// An action, or a family of them. What no action is written like is found in no record, and a mistake.
fn action(text: Option<String>) -> ApiResult<Option<String>> {
    let text = sought("action", text)?;
    let is_part = |part: &str| {
        let letter = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
        !part.is_empty() && part.bytes().all(letter)
    };
    match text {
        Some(text) if !text.split('.').all(is_part) => {
            let allowed = "an action such as gateway.revoke, or a whole family such as gateway";
            Err(ApiError::parameter(
                "action",
                "no action is written so",
                allowed,
            ))
        }
        text => Ok(text),
    }
}

fn view(stored: data::AuditRecord) -> AuditRecord {
    AuditRecord {
        id: stored.seq,
        at: stored.at,
        actor: stored.record.actor.to_string(),
        actor_name: stored.actor_name,
        action: stored.record.action,
        object: stored.record.object,
        object_name: stored.object_name,
        outcome: stored.record.outcome.name().to_owned(),
        request_id: stored.record.actor.request_id,
        detail: stored.record.detail,
    }
}
