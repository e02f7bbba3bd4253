//! The key that a gateway shares with the backend: rotated.

use axum::Json;
use axum::extract::State;
use viworks_api::{GatewayKeyRotated, GatewayRef, Kind, ProblemCode};

use super::gateways::{find, whole};
use crate::api::extract::{Caller, NoParams, Params, Segment};
use crate::api::problem::{ApiError, ApiResult};
use crate::api::request::{Api, RequestId};
use crate::data::KeyRotation;

/// Gives a gateway another agent key, over its session, wherever that is, or over its next one. The key before is good
/// until the gateway has opened a session with the new one. Asking again before that is asking once.
#[utoipa::path(post, path = "/v1/gateways/{gateway}/rotate-key", operation_id = "rotateGatewayKey", tag = "gateways",
    params(("gateway" = String, Path, description = "Its id or its name")),
    responses((status = 200, description = "The generation that it is to get; the gateway as it stands", body = GatewayKeyRotated),
        (status = 409, description = "It is revoked, or its key is of the last generation that there is", body = viworks_api::Problem, content_type = "application/problem+json")))]
pub(in crate::api) async fn rotate(
    State(state): Api,
    Caller(principal): Caller,
    RequestId(request_id): RequestId,
    Segment(which): Segment<GatewayRef>,
    _params: Params<NoParams>,
) -> ApiResult<Json<GatewayKeyRotated>> {
    let found = find(&state, which).await?;
    let (id, name) = (GatewayRef::Id(found.agent_id), found.name);
    let actor = principal.actor(&request_id);
    let rotated = state.commands.rotate_key(found.agent_id, &actor).await?;
    let conflict = |why: &str, fix: String| {
        let detail = format!("{name} {why}");
        Err(ApiError::new(ProblemCode::Conflict, detail).fixed_by(fix))
    };
    let wanted = match rotated.ok_or_else(|| ApiError::not_found("gateway"))? {
        KeyRotation::Wanted(generation) => generation,
        KeyRotation::Revoked => {
            let fix = format!(
                "nothing, if it is out for good; a machine that is let in again gets another key: viworks gateway \
                 replace {name}"
            );
            return conflict("is revoked", fix);
        }
        KeyRotation::Exhausted => {
            let fix = format!(
                "make a gateway of another name of its machine (viworks ticket create, and viworks-gateway-agent \
                 enroll into another folder), and then viworks gateway revoke {name}"
            );
            return conflict(
                "has the key of the last generation: give it a new identity",
                fix,
            );
        }
    };
    Ok(Json(GatewayKeyRotated {
        kind: Kind::GatewayKeyRotated,
        wanted,
        gateway: whole(&state, find(&state, id).await?).await?,
    }))
}
