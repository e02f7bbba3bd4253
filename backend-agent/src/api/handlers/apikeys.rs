//! API keys: create, list, revoke.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use viworks_common::api::{ApiKeyCreated, ApiKeyList, ApiKeyRequest, Kind};
use viworks_common::id::ApiKeyId;

use crate::api::extract::{Caller, JsonBody, NoParams, Params, Segment};
use crate::api::problem::{ApiError, ApiResult};
use crate::api::request::{Api, RequestId};
use crate::auth::apikey::{self, CreateKey};

/// Makes a key. Its secret is in this answer and nowhere else. A key cannot grant what it does not have itself.
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
    let (key, secret) = apikey::issue(
        &*state.store,
        &state.tenant,
        CreateKey {
            name: request.name,
            scopes: request.scopes.into_iter().collect(),
            expires_in: request.expires_in_ms.map(Duration::from_millis),
        },
        &principal.actor(&request_id),
        state.clock.line(),
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
    responses((status = 200, description = "All of them", body = ApiKeyList)))]
pub(in crate::api) async fn list(
    State(state): Api,
    _params: Params<NoParams>,
) -> ApiResult<Json<ApiKeyList>> {
    let keys = apikey::list(&*state.store, &state.tenant, state.clock.line()).await?;
    Ok(Json(ApiKeyList::new(keys, None)))
}

/// Revokes a key at once.
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
