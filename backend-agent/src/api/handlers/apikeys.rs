//! API keys: create, list, revoke.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde_json::json;
use viworks_api::{ApiKeyCreated, ApiKeyList, ApiKeyRequest, Kind, ProblemCode};
use viworks_common::id::ApiKeyId;

use crate::api::ApiState;
use crate::api::extract::{Caller, JsonBody, NoParams, PageParams, Params, Segment};
use crate::api::problem::{ApiError, ApiResult};
use crate::api::request::{Api, RequestId, record_refusal};
use crate::auth::Principal;
use crate::auth::apikey::{self, CreateKey};
use crate::data::Actor;

/// Makes a key. Its secret is in this answer and nowhere else. A key cannot grant what it does not have itself, nor for
/// longer than it has it itself.
#[utoipa::path(post, path = "/v1/apikeys", operation_id = "createApiKey", tag = "apikeys",
    request_body = ApiKeyRequest,
    responses((status = 201, description = "The key with its secret", body = ApiKeyCreated)))]
pub(in crate::api) async fn create(
    State(state): Api,
    Caller(principal): Caller,
    RequestId(request_id): RequestId,
    _params: Params<NoParams>,
    body: JsonBody<ApiKeyRequest>,
) -> ApiResult<(StatusCode, Json<ApiKeyCreated>)> {
    let request = body.value;
    let now = state.clock.line();
    let expires_in = request.expires_in_ms.map(Duration::from_millis);
    let expires_at = expires_in.map(|span| now.saturating_add(span));
    let scopes = request.scopes.iter().map(|scope| scope.name());
    if let Some(why) = principal.is_weaker_than(scopes, expires_at) {
        let object = format!("api_key {:?}", request.name);
        return Err(too_strong(
            &state,
            &principal,
            &request_id,
            "api_key.create",
            object,
            why,
        )
        .await);
    }
    let (key, secret) = apikey::issue(
        &*state.store,
        &state.tenant,
        CreateKey {
            name: request.name,
            scopes: request.scopes.into_iter().collect(),
            expires_in,
        },
        &principal.actor(&request_id),
        now,
    )
    .await?;
    Ok((
        StatusCode::CREATED,
        Json(ApiKeyCreated {
            kind: Kind::ApiKeyCreated,
            key,
            secret: secret.expose().to_owned(),
        }),
    ))
}

/// Refuses what is about a key that is stronger than the one that asks, and leaves a trace of it.
async fn too_strong(
    state: &ApiState,
    principal: &Principal,
    request_id: &str,
    action: &str,
    object: String,
    why: String,
) -> ApiError {
    let detail = json!({ "why": why });
    record_refusal(state, principal.actor(request_id), action, object, detail).await;
    ApiError::new(ProblemCode::Forbidden, why)
}

/// Every key, latest first.
#[utoipa::path(get, path = "/v1/apikeys", operation_id = "listApiKeys", tag = "apikeys",
    params(PageParams),
    responses((status = 200, description = "One page", body = ApiKeyList)))]
pub(in crate::api) async fn list(
    State(state): Api,
    Params(params): Params<PageParams>,
) -> ApiResult<Json<ApiKeyList>> {
    let now = state.clock.line();
    let listing = apikey::list(&*state.store, &state.tenant, params.page()?, now).await?;
    Ok(Json(ApiKeyList::new(
        listing.items,
        listing.next.map(|id| id.to_string()),
    )))
}

/// Revokes a key at once. A key cannot revoke one that may do what it may not do itself, nor one that ends later.
#[utoipa::path(delete, path = "/v1/apikeys/{key}", operation_id = "revokeApiKey", tag = "apikeys",
    params(("key" = String, Path, description = "Its id")),
    responses((status = 204, description = "It opens nothing any more")))]
pub(in crate::api) async fn revoke(
    State(state): Api,
    Caller(principal): Caller,
    RequestId(request_id): RequestId,
    Segment(id): Segment<ApiKeyId>,
    _params: Params<NoParams>,
) -> ApiResult<StatusCode> {
    let found = state
        .store
        .api_key(&state.tenant, id)
        .await?
        .ok_or_else(|| ApiError::not_found("API key"))?;
    let scopes = found.scopes.iter().map(String::as_str);
    if let Some(why) = principal.is_weaker_than(scopes, found.expires_at) {
        let object = Actor::api_key(id).to_string();
        return Err(too_strong(
            &state,
            &principal,
            &request_id,
            "api_key.revoke",
            object,
            why,
        )
        .await);
    }
    let revoked = apikey::revoke(
        &*state.store,
        &state.tenant,
        id,
        &principal.actor(&request_id),
        state.clock.line(),
    )
    .await;
    // Whatever became of it: nobody is believed without another look.
    state.principals.forget();
    revoked?.ok_or_else(|| ApiError::not_found("API key"))?;
    Ok(StatusCode::NO_CONTENT)
}
