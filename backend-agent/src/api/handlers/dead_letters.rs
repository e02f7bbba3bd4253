//! Commands that could not be delivered: list, show, retry, discard.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use viworks_api::{
    DeadLetter, DeadLetterList, DeadLetterState, GatewayRef, Kind, NamedGateway, ProblemCode, Run,
};
use viworks_common::id::{CommandId, RunId};
use viworks_runtime::random;

use super::runs::{self, named, submitted, traceparent};
use crate::api::ApiState;
use crate::api::extract::{Caller, NoParams, Params, Segment, listed, page};
use crate::api::problem::{ApiError, ApiResult, stored_ref};
use crate::api::request::{Api, RequestId};
use crate::command::submit::{SubmitError, SubmitRequest, Submitted};
use crate::data::{self, DeadLetterFilter, DeadLetterRequest, TargetSelection};

/// Which of them, and which page.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct ListParams {
    /// Only those of this gateway: its id or its name.
    #[param(value_type = Option<String>, pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    gateway: Option<GatewayRef>,
    /// Also those that were retried or discarded.
    #[serde(default)]
    #[param(value_type = Option<bool>)]
    resolved: bool,
    /// Where to go on: `next` of the page before.
    cursor: Option<String>,
    /// Most rows wanted, 1 to 1000; 100 when absent.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// Commands that were delivered as often as they may be and never accepted, the one that was submitted last first;
/// those that nobody has decided about unless `resolved` is true.
#[utoipa::path(get, path = "/v1/dead-letters", operation_id = "listDeadLetters", tag = "runs",
    params(ListParams),
    responses((status = 200, description = "One page", body = DeadLetterList)))]
pub(in crate::api) async fn list(
    State(state): Api,
    Params(params): Params<ListParams>,
) -> ApiResult<Json<DeadLetterList>> {
    let page = page(params.cursor.as_deref(), params.limit)?;
    let agent_id = match params.gateway {
        Some(which) => Some(super::gateways::find(&state, which).await?.agent_id),
        None => None,
    };
    let filter = DeadLetterFilter {
        agent_id,
        resolved_too: params.resolved,
    };
    let listing = state
        .store
        .list_dead_letters(&state.tenant, filter, page)
        .await?;
    Ok(listed(listing, view, DeadLetterList::new))
}

/// One of them.
#[utoipa::path(get, path = "/v1/dead-letters/{command}", operation_id = "showDeadLetter", tag = "runs",
    params(("command" = String, Path, format = Uuid, description = "The command's id")),
    responses((status = 200, description = "The dead letter", body = DeadLetter)))]
pub(in crate::api) async fn show(
    State(state): Api,
    Segment(command_id): Segment<CommandId>,
    _params: Params<NoParams>,
) -> ApiResult<Json<DeadLetter>> {
    Ok(Json(view(find(&state, command_id).await?)))
}

/// Submits the same command for the same gateway again, as a run of its own: with the arguments, the time limit and the
/// reason of its run, and as much time for its start from now on. Everything is checked as at any submission.
/// Repeating it is harmless: the answer is the first one's run.
#[utoipa::path(post, path = "/v1/dead-letters/{command}/retry", operation_id = "retryDeadLetter", tag = "runs",
    params(("command" = String, Path, format = Uuid, description = "The command's id")),
    responses((status = 201, description = "Accepted; `Location` names the run", body = Run),
        (status = 200, description = "It was retried before: that run, as it stands", body = Run),
        (status = 409, description = "It was discarded; nothing was sent", body = viworks_api::Problem, content_type = "application/problem+json"),
        (status = 422, description = "Its gateway does not take it any more; `errors` says why", body = viworks_api::Problem, content_type = "application/problem+json"),
        (status = 429, description = "A bound on waiting commands was reached, or the key has no requests left; nothing was sent", body = viworks_api::Problem, content_type = "application/problem+json")))]
pub(in crate::api) async fn retry(
    State(state): Api,
    Caller(principal): Caller,
    RequestId(request_id): RequestId,
    Segment(command_id): Segment<CommandId>,
    _params: Params<NoParams>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let letter = find(&state, command_id).await?;
    // Whatever has become of its gateway since: it was done.
    if let Some(run_id) = letter.retry_run_id {
        let run = runs::find(&state, run_id).await?;
        return Ok(submitted(StatusCode::OK, run, true));
    }
    let DeadLetterRequest {
        arguments,
        deadline,
        timeout_ms,
        reason,
    } = letter.request;
    let request = SubmitRequest {
        run_id: RunId::from_uuid(random::uuid_v7(state.clock.line())),
        command: letter.name,
        arguments,
        targets: TargetSelection::Gateways(vec![stored_ref(GatewayRef::Id(letter.agent_id))]),
        deadline,
        timeout: timeout_ms.map(Duration::from_millis),
        skip_unable: false,
        expect_targets: None,
        reason,
        traceparent: traceparent(&headers),
        idempotency: None,
        retry_of: Some(command_id),
        risks: principal.risks(),
        actor: principal.actor(&request_id),
    };
    let sent = state.commands.submit(request).await;
    let Submitted { mut run, replayed } = sent.map_err(|error| {
        let is_resolved = matches!(error, SubmitError::Resolved);
        let told = ApiError::from(error);
        if is_resolved {
            told.fixed_by(format!(
                "see what was decided: viworks dlq show {command_id}"
            ))
        } else {
            told
        }
    })?;
    named(&mut run, replayed, &principal);
    let status = if replayed {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    Ok(submitted(status, run, replayed))
}

/// Marks one as done with; nothing is sent. Discarding twice is discarding once.
#[utoipa::path(post, path = "/v1/dead-letters/{command}/discard", operation_id = "discardDeadLetter", tag = "runs",
    params(("command" = String, Path, format = Uuid, description = "The command's id")),
    responses((status = 200, description = "The dead letter as it stands", body = DeadLetter),
        (status = 409, description = "It was retried", body = viworks_api::Problem, content_type = "application/problem+json")))]
pub(in crate::api) async fn discard(
    State(state): Api,
    Caller(principal): Caller,
    RequestId(request_id): RequestId,
    Segment(command_id): Segment<CommandId>,
    _params: Params<NoParams>,
) -> ApiResult<Json<DeadLetter>> {
    let (actor, now) = (principal.actor(&request_id), state.clock.line());
    let letter = state
        .store
        .discard_dead_letter(&state.tenant, command_id, &actor, now)
        .await?
        .ok_or_else(missing)?;
    if let Some(run_id) = letter.retry_run_id {
        let detail = format!("it was retried already, by run {run_id}");
        let fix = format!("see what came of that: viworks runs show {run_id}");
        return Err(ApiError::new(ProblemCode::Conflict, detail).fixed_by(fix));
    }
    Ok(Json(view(letter)))
}

async fn find(state: &ApiState, command_id: CommandId) -> ApiResult<data::DeadLetter> {
    state
        .store
        .dead_letter(&state.tenant, command_id)
        .await?
        .ok_or_else(missing)
}

fn missing() -> ApiError {
    ApiError::not_found("dead letter")
}

fn view(letter: data::DeadLetter) -> DeadLetter {
    DeadLetter {
        kind: Kind::DeadLetter,
        id: letter.command_id,
        run_id: letter.run_id,
        gateway: NamedGateway {
            id: letter.agent_id,
            name: letter.gateway,
        },
        command: letter.name,
        arguments: letter.request.arguments,
        attempts: letter.attempts,
        cause: letter.cause,
        dead_at: letter.dead_at,
        state: match (letter.retry_run_id, letter.resolved_at) {
            (Some(_run), _) => DeadLetterState::Retried,
            (None, Some(_at)) => DeadLetterState::Discarded,
            (None, None) => DeadLetterState::Open,
        },
        resolved_at: letter.resolved_at,
        resolved_by: letter.resolved_by,
        resolved_by_name: letter.resolver,
        retry_run_id: letter.retry_run_id,
    }
}
