//! The audit trail.

use axum::Json;
use axum::extract::State;
use viworks_api::{AuditList, AuditRecord};

use crate::api::extract::{CursorNumber, PageParams, Params, listed};
use crate::api::problem::ApiResult;
use crate::api::request::Api;
use crate::data::{self, Page};

/// Audit records, latest first.
#[utoipa::path(get, path = "/v1/audit", operation_id = "listAudit", tag = "audit",
    params(PageParams),
    responses((status = 200, description = "One page", body = AuditList)))]
pub(in crate::api) async fn list(
    State(state): Api,
    Params(params): Params<PageParams>,
) -> ApiResult<Json<AuditList>> {
    let Page { after, limit } = params.page()?;
    let after = after.map(|CursorNumber(seq)| seq);
    let page = Page { after, limit };
    let listing = state.store.list_audit(&state.tenant, page).await?;
    let view = |stored: data::AuditRecord| AuditRecord {
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
    };
    Ok(listed(listing, view, AuditList::new))
}
