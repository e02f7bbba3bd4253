//! API keys: create, list, revoke.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use viworks_common::api::{ApiKeyCreated, ApiKeyList, ApiKeyRequest, Kind, ProblemCode};
use viworks_common::id::ApiKeyId;

use crate::api::extract::{Caller, JsonBody, NoParams, PageParams, Params, Segment};
use crate::api::problem::{ApiError, ApiResult};
use crate::api::request::{Api, RequestId};
use crate::auth::apikey::{self, CreateKey};

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
    if let Some(scope) = request.scopes.iter().find(|scope| !principal.may(**scope)) {
        return Err(ApiError::forbidden(*scope));
    }
    let now = state.clock.line();
    let expires_in = request.expires_in_ms.map(Duration::from_millis);
    let expires_at = expires_in.map(|span| now.saturating_add(span));
    if principal.is_outlived_by(expires_at) {
        return Err(ApiError::new(
            ProblemCode::Forbidden,
            "a key that ends cannot make one that ends later",
        ));
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

/// Revokes a key at once. A key cannot revoke one that may do what it may not do itself.
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
    if let Some(scope) = principal.lacks(found.scopes.iter().map(String::as_str)) {
        return Err(ApiError::new(
            ProblemCode::Forbidden,
            format!("that key has the scope {scope}, which this one has not"),
        ));
    }
    apikey::revoke(
        &*state.store,
        &state.tenant,
        id,
        &principal.actor(&request_id),
        state.clock.line(),
    )
    .await?
    .ok_or_else(|| ApiError::not_found("API key"))?;
    Ok(StatusCode::NO_CONTENT)
}
