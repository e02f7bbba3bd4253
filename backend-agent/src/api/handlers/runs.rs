//! Runs: submit, list, show, commands with their output, cancel, wait.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use viworks_api::{
    CommandList, CommandOutcome, CommandView, DEADLINE_MS_DEFAULT, DEADLINE_MS_MAX,
    IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAYED, Kind, NamedGateway, PlannedGateway, ProblemCode, Run,
    RunCancelled, RunList, RunPlan, RunRequest, RunState, RunWait, SkippedGateway, SkippedList,
    Targets, WAIT_MS_DEFAULT, WAIT_MS_MAX,
};
use viworks_common::id::{CommandId, RunId};
use viworks_common::limits::{DETAIL_BYTES_MAX, IDEMPOTENCY_KEY_BYTES_MAX};
use viworks_common::wire::is_traceparent;
use viworks_runtime::random;

use crate::api::ApiState;
use crate::api::extract::{
    Caller, JsonBody, NoParams, PageParams, Params, Segment, Segments, listed,
};
use crate::api::problem::{ApiError, ApiResult, RETRY_SOON, stored_ref};
use crate::api::request::{Api, RequestId, share};
use crate::auth::Principal;
use crate::command::bus::{Heard, Subscription};
use crate::command::submit::{SubmitRequest, Submitted};
use crate::data::{self, CommandOutput, Idempotency, TargetSelection};

/// The shortest time a command may be given to start.
const DEADLINE_MS_MIN: u64 = 100;

/// Whether to wait for the end of what is submitted.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct SubmitParams {
    /// Milliseconds to wait for the run to finish, at most 60000; not at all when absent.
    #[param(minimum = 0, maximum = 60000)]
    wait_ms: Option<u64>,
}

/// Submits a run. It is accepted whole or refused whole; repeating it with the same `Idempotency-Key` is harmless. With
/// `wait_ms` the answer comes when the run is finished, or after so long.
#[utoipa::path(post, path = "/v1/runs", operation_id = "submitRun", tag = "runs",
    request_body = RunRequest,
    params(SubmitParams, ("Idempotency-Key" = String, Header, pattern = "^[!-~]{1,255}$", description = "1 to 255 printable ASCII characters; makes the submission safe to repeat for 24 hours")),
    responses((status = 201, description = "Accepted, and finished if `wait_ms` was given; `Location` names the run", body = Run),
        (status = 202, description = "Accepted, and not finished within `wait_ms`; `Location` names the run, and `Link` where to wait on", body = Run),
        (status = 200, description = "The same submission had been accepted before: that run, as it stands after `wait_ms` at most", body = Run),
        (status = 409, description = "Not the expected number of gateways; nothing was sent", body = viworks_api::Problem, content_type = "application/problem+json"),
        (status = 422, description = "Something in it is not right; `errors` names each field", body = viworks_api::Problem, content_type = "application/problem+json"),
        (status = 429, description = "A bound on waiting commands was reached, or the key has no requests left; nothing was sent", body = viworks_api::Problem, content_type = "application/problem+json")))]
pub(in crate::api) async fn submit(
    State(state): Api,
    Caller(principal): Caller,
    RequestId(request_id): RequestId,
    Params(params): Params<SubmitParams>,
    headers: HeaderMap,
    body: JsonBody<RunRequest>,
) -> ApiResult<Response> {
    let wait = wait_time("wait_ms", params.wait_ms)?;
    let key = idempotency_key(&headers)?;
    let actor = principal.actor(&request_id);
    let mut request = submission(&state, body.value, &principal, actor)?;
    request.traceparent = traceparent(&headers);
    request.idempotency = key.map(|key| Idempotency {
        principal: request.actor.to_string(),
        route: "POST /v1/runs".to_owned(),
        key,
        request_hash: body.sha256,
    });
    // Before anything is sent: whoever may not wait is told so, and nothing it could have waited for is missed.
    let waits = match wait {
        Some(wait) => {
            let share = share(&state, &state.waits, &principal, RETRY_SOON)?;
            Some((
                wait,
                share,
                state.commands.bus().subscribe(request.run_id, None),
            ))
        }
        None => None,
    };
    let Submitted { mut run, replayed } = state.commands.submit(request).await?;
    if let Some((wait, _share, notices)) = waits {
        let notices = if replayed { None } else { Some(notices) };
        run = ended(&state, run.run_id, notices, wait).await?;
    }
    named(&mut run, replayed, &principal);
    let finished = run.is_finished();
    let status = match (replayed, wait) {
        (true, _) => StatusCode::OK,
        (false, Some(_)) if !finished => StatusCode::ACCEPTED,
        (false, _) => StatusCode::CREATED,
    };
    Ok(submitted(status, run, replayed))
}

/// Who submits knows its own name: a run that has only just been written is not read again for it.
pub(super) fn named(run: &mut data::Run, replayed: bool, principal: &Principal) {
    if !replayed && run.submitter.is_none() {
        run.submitter = Some(principal.name.clone());
    }
}

/// The answer to a submission: the run, and where it is.
pub(super) fn submitted(status: StatusCode, run: data::Run, replayed: bool) -> Response {
    let location = format!("/v1/runs/{}", run.run_id);
    let mut response = (status, Json(view(run))).into_response();
    let headers = response.headers_mut();
    if status == StatusCode::ACCEPTED
        && let Ok(value) = HeaderValue::try_from(format!("<{location}/wait>; rel=\"monitor\""))
    {
        headers.insert(http::header::LINK, value);
    }
    if let Ok(value) = HeaderValue::try_from(location) {
        headers.insert(http::header::LOCATION, value);
    }
    if replayed {
        headers.insert(
            HeaderName::from_static(IDEMPOTENCY_REPLAYED),
            HeaderValue::from_static("true"),
        );
    }
    response
}

/// What a submission would do: which gateways would get the command, or why it would be refused. Nothing is run.
#[utoipa::path(post, path = "/v1/runs/plan", operation_id = "planRun", tag = "runs",
    request_body = RunRequest,
    responses((status = 200, description = "What would be submitted", body = RunPlan),
        (status = 409, description = "Not the expected number of gateways", body = viworks_api::Problem, content_type = "application/problem+json"),
        (status = 422, description = "Something in it is not right; `errors` names each field", body = viworks_api::Problem, content_type = "application/problem+json")))]
pub(in crate::api) async fn plan(
    State(state): Api,
    Caller(principal): Caller,
    RequestId(request_id): RequestId,
    _params: Params<NoParams>,
    body: JsonBody<RunRequest>,
) -> ApiResult<Json<RunPlan>> {
    let actor = principal.actor(&request_id);
    let request = submission(&state, body.value, &principal, actor)?;
    let planned = state.commands.plan(&request).await?;
    Ok(Json(RunPlan {
        kind: Kind::RunPlan,
        arguments: planned.arguments,
        gateways: planned
            .gateways
            .into_iter()
            .map(|planned| PlannedGateway {
                gateway: NamedGateway {
                    id: planned.agent_id,
                    name: planned.gateway,
                },
                risk: planned.risk,
            })
            .collect(),
        skipped: planned
            .skipped
            .into_iter()
            .map(|left_out| SkippedGateway {
                gateway: NamedGateway {
                    id: left_out.agent_id,
                    name: left_out.gateway,
                },
                code: left_out.code,
                detail: left_out.problem,
            })
            .collect(),
    }))
}

/// What the body asks for, by whoever asks.
fn submission(
    state: &ApiState,
    request: RunRequest,
    principal: &Principal,
    actor: data::Actor,
) -> ApiResult<SubmitRequest> {
    let (deadline, timeout) = times(&request)?;
    let reason = request.reason.filter(|reason| !reason.trim().is_empty());
    if reason
        .as_ref()
        .is_some_and(|reason| reason.len() > DETAIL_BYTES_MAX)
    {
        let allowed = format!("at most {DETAIL_BYTES_MAX} bytes");
        return Err(ApiError::body_field("reason", "too long", allowed));
    }
    Ok(SubmitRequest {
        run_id: RunId::from_uuid(random::uuid_v7(state.clock.line())),
        command: request.command,
        arguments: request.arguments.0,
        targets: match request.targets {
            Targets::All => TargetSelection::All,
            Targets::AllExcept(left_out) => {
                TargetSelection::AllExcept(left_out.into_iter().map(stored_ref).collect())
            }
            Targets::Gateways(gateways) => {
                TargetSelection::Gateways(gateways.into_iter().map(stored_ref).collect())
            }
        },
        deadline,
        timeout,
        skip_unable: request.skip_unable,
        expect_targets: request.expect_targets,
        reason,
        traceparent: None,
        idempotency: None,
        retry_of: None,
        risks: principal.risks(),
        actor,
    })
}

fn times(request: &RunRequest) -> ApiResult<(Duration, Option<Duration>)> {
    let deadline = request.deadline_ms.unwrap_or(DEADLINE_MS_DEFAULT);
    if !(DEADLINE_MS_MIN..=DEADLINE_MS_MAX).contains(&deadline) {
        let allowed = format!("{DEADLINE_MS_MIN} to {DEADLINE_MS_MAX} milliseconds");
        return Err(ApiError::body_field("deadline_ms", "out of range", allowed));
    }
    if request.timeout_ms == Some(0) {
        return Err(ApiError::body_field(
            "timeout_ms",
            "out of range",
            "1 millisecond or more",
        ));
    }
    Ok((
        Duration::from_millis(deadline),
        request.timeout_ms.map(Duration::from_millis),
    ))
}

fn idempotency_key(headers: &HeaderMap) -> ApiResult<Option<String>> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let text = value
        .to_str()
        .ok()
        .filter(|text| (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&text.len()));
    match (text, values.next()) {
        (Some(text), None) => Ok(Some(text.to_owned())),
        (Some(_) | None, _) => Err(ApiError::new(
            ProblemCode::InvalidHeader,
            "the Idempotency-Key is not valid",
        )
        .with(
            "Idempotency-Key",
            "not valid",
            Some(format!(
                "once, 1 to {IDEMPOTENCY_KEY_BYTES_MAX} printable ASCII characters"
            )),
        )),
    }
}

/// A W3C trace context, when it has the right shape; anything else is somebody else's problem, not this request's.
pub(super) fn traceparent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    is_traceparent(text).then(|| text.to_owned())
}

/// Runs, latest first.
#[utoipa::path(get, path = "/v1/runs", operation_id = "listRuns", tag = "runs",
    params(PageParams),
    responses((status = 200, description = "One page", body = RunList)))]
pub(in crate::api) async fn list(
    State(state): Api,
    Params(params): Params<PageParams>,
) -> ApiResult<Json<RunList>> {
    let listing = state.store.list_runs(&state.tenant, params.page()?).await?;
    Ok(listed(listing, view, RunList::new))
}

/// One run.
#[utoipa::path(get, path = "/v1/runs/{run}", operation_id = "showRun", tag = "runs",
    params(("run" = String, Path, format = Uuid, description = "Its id")),
    responses((status = 200, description = "The run", body = Run)))]
pub(in crate::api) async fn show(
    State(state): Api,
    Segment(run_id): Segment<RunId>,
    _params: Params<NoParams>,
) -> ApiResult<Json<Run>> {
    Ok(Json(view(find(&state, run_id).await?)))
}

/// The commands of a run, without their output.
#[utoipa::path(get, path = "/v1/runs/{run}/commands", operation_id = "listCommands", tag = "runs",
    params(("run" = String, Path, format = Uuid, description = "The run's id"), PageParams),
    responses((status = 200, description = "One page", body = CommandList)))]
pub(in crate::api) async fn commands(
    State(state): Api,
    Segment(run_id): Segment<RunId>,
    Params(params): Params<PageParams>,
) -> ApiResult<Json<CommandList>> {
    let page = params.page()?;
    find(&state, run_id).await?;
    let listing = state
        .store
        .run_commands(&state.tenant, run_id, page)
        .await?;
    let view = |command| command_view(command, None);
    Ok(listed(listing, view, CommandList::new))
}

/// The gateways that the run was meant for and that got no command, each with the reason.
#[utoipa::path(get, path = "/v1/runs/{run}/skipped", operation_id = "listSkippedGateways", tag = "runs",
    params(("run" = String, Path, format = Uuid, description = "The run's id"), PageParams),
    responses((status = 200, description = "One page", body = SkippedList)))]
pub(in crate::api) async fn skipped(
    State(state): Api,
    Segment(run_id): Segment<RunId>,
    Params(params): Params<PageParams>,
) -> ApiResult<Json<SkippedList>> {
    let page = params.page()?;
    find(&state, run_id).await?;
    let listing = state.store.run_skipped(&state.tenant, run_id, page).await?;
    let view = |found: data::SkippedGateway| SkippedGateway {
        gateway: NamedGateway {
            id: found.skip.agent_id,
            name: found.gateway,
        },
        code: found.skip.code,
        detail: found.skip.detail,
    };
    Ok(listed(listing, view, SkippedList::new))
}

/// One command with what was kept of its output.
#[utoipa::path(get, path = "/v1/runs/{run}/commands/{command}", operation_id = "showCommand", tag = "runs",
    params(("run" = String, Path, format = Uuid, description = "The run's id"), ("command" = String, Path, format = Uuid, description = "The command's id")),
    responses((status = 200, description = "The command", body = CommandView)))]
pub(in crate::api) async fn command(
    State(state): Api,
    Segments(run_id, command_id): Segments<RunId, CommandId>,
    _params: Params<NoParams>,
) -> ApiResult<Json<CommandView>> {
    let found = state
        .store
        .command(&state.tenant, command_id)
        .await?
        .filter(|command| command.run_id == run_id)
        .ok_or_else(|| ApiError::not_found("command in this run"))?;
    let output = state
        .store
        .command_output(&state.tenant, command_id)
        .await?;
    Ok(Json(command_view(found, output.as_ref())))
}

/// Cancels a run: what may not start yet never starts, the gateways of the rest are asked to end it.
#[utoipa::path(post, path = "/v1/runs/{run}/cancel", operation_id = "cancelRun", tag = "runs",
    params(("run" = String, Path, format = Uuid, description = "Its id")),
    responses((status = 200, description = "What that did", body = RunCancelled)))]
pub(in crate::api) async fn cancel(
    State(state): Api,
    Caller(principal): Caller,
    RequestId(request_id): RequestId,
    Segment(run_id): Segment<RunId>,
    _params: Params<NoParams>,
) -> ApiResult<Json<RunCancelled>> {
    let done = state
        .commands
        .cancel(run_id, &principal.actor(&request_id))
        .await?
        .ok_or_else(|| ApiError::not_found("run"))?;
    let count = |commands: &[data::CommandRef]| u64::try_from(commands.len()).unwrap_or(u64::MAX);
    let cancelled = count(&done.cancelled);
    let requested = count(&done.requested);
    Ok(Json(RunCancelled {
        kind: Kind::RunCancelled,
        cancelled,
        requested,
        final_before: done
            .run
            .commands()
            .saturating_sub(cancelled)
            .saturating_sub(requested),
        run: view(done.run),
    }))
}

/// How long to wait.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct WaitParams {
    /// Milliseconds, at most 60000; 30000 when absent.
    #[param(minimum = 0, maximum = 60000)]
    timeout_ms: Option<u64>,
}

/// Waits until a run is finished, or for the given time.
#[utoipa::path(get, path = "/v1/runs/{run}/wait", operation_id = "waitForRun", tag = "runs",
    params(("run" = String, Path, format = Uuid, description = "Its id"), WaitParams),
    responses((status = 200, description = "The run as it stands, finished or not", body = RunWait)))]
pub(in crate::api) async fn wait(
    State(state): Api,
    Caller(principal): Caller,
    Segment(run_id): Segment<RunId>,
    Params(params): Params<WaitParams>,
) -> ApiResult<Json<RunWait>> {
    let wait = wait_time("timeout_ms", params.timeout_ms)?;
    let wait = wait.unwrap_or(Duration::from_millis(WAIT_MS_DEFAULT));
    // Held until the answer: whoever waits is worked on, so nobody can take its connection away.
    let _share = share(&state, &state.waits, &principal, RETRY_SOON)?;
    let run = ended(&state, run_id, None, wait).await?;
    Ok(Json(RunWait {
        kind: Kind::RunWait,
        finished: run.is_finished(),
        run: view(run),
    }))
}

fn wait_time(parameter: &'static str, millis: Option<u64>) -> ApiResult<Option<Duration>> {
    if millis.is_some_and(|millis| millis > WAIT_MS_MAX) {
        let allowed = format!("0 to {WAIT_MS_MAX}");
        return Err(ApiError::parameter(parameter, "out of range", allowed));
    }
    Ok(millis.map(Duration::from_millis))
}

/// The run once it is finished, or as it stands after `wait`. `notices` are those of a run that has just been
/// submitted.
async fn ended(
    state: &ApiState,
    run_id: RunId,
    notices: Option<Subscription>,
    wait: Duration,
) -> ApiResult<data::Run> {
    let end = state.clock.now().saturating_add(wait);
    // Subscribed before the first look, so that nothing falls between look and wait.
    let is_new = notices.is_some();
    let mut notices = notices.unwrap_or_else(|| state.commands.bus().subscribe(run_id, None));
    // A run that is known to be under way is not looked at before it has moved.
    let mut look = !is_new && !notices.is_under_way();
    let mut early = false;
    loop {
        let left = end.saturating_since(state.clock.now());
        let over = left.is_zero() || state.stopping.is_cancelled();
        if look || over {
            let run = find(state, run_id).await?;
            if run.is_finished() || over {
                return Ok(run);
            }
        }
        look = true;
        // The bus may have announced the end before the store showed it, or may have forgotten the run: then the look
        // is repeated at the pace of the recheck, never in a spin.
        tokio::select! {
            () = state.stopping.cancelled() => {}
            () = tokio::time::sleep(left.min(state.limits.recheck)) => {}
            heard = notices.finished(), if !early => match heard {
                // What ended while somebody waited is known as it was committed.
                Heard::Finished(Some(run)) => return Ok(Arc::unwrap_or_clone(run)),
                Heard::Finished(None) | Heard::Forgotten => {
                    notices = state.commands.bus().subscribe(run_id, None);
                    early = true;
                }
                Heard::Look => {}
            },
        }
    }
}

pub(in crate::api) async fn find(state: &ApiState, run_id: RunId) -> ApiResult<data::Run> {
    state
        .store
        .run(&state.tenant, run_id)
        .await?
        .ok_or_else(|| ApiError::not_found("run"))
}

pub(in crate::api) fn view(run: data::Run) -> Run {
    Run {
        kind: Kind::Run,
        id: run.run_id,
        total: run.commands(),
        skipped: run.skipped,
        state: if run.is_finished() {
            RunState::Finished
        } else {
            RunState::Running
        },
        command: run.name,
        arguments: run.arguments,
        counts: run.states,
        created_at: run.created_at,
        created_by: run.submitted_by,
        created_by_name: run.submitter,
        deadline: run.deadline,
        reason: run.reason,
        finished_at: run.finished_at,
        cancelled_at: run.cancel_requested_at,
        retry_of: run.retry_of,
    }
}

/// How a command ended, without its output.
pub(super) fn outcome_view(result: data::CommandResult) -> CommandOutcome {
    CommandOutcome {
        exit_code: result.exit_code,
        signal: result.signal,
        started_at: result.started_at,
        duration_ms: result.duration_ms,
        stdout: None,
        stderr: None,
        reason: result.reason,
        reject_code: result.reject_code,
        stdout_bytes: result.stdout_bytes,
        stderr_bytes: result.stderr_bytes,
        late: false,
        late_state: None,
    }
}

fn command_view(command: data::Command, output: Option<&CommandOutput>) -> CommandView {
    // What came late is what became of it: whatever ended it did not know.
    let late = command.late_outcome.is_some();
    let result = command.late_outcome.or(command.result);
    let outcome = result.map(|result| CommandOutcome {
        stdout: output.map(|output| (&output.stdout).into()),
        stderr: output.map(|output| (&output.stderr).into()),
        late,
        late_state: late.then(|| result.state.command_state()),
        ..outcome_view(result)
    });
    CommandView {
        kind: Kind::Command,
        id: command.command_id,
        run_id: command.run_id,
        gateway: NamedGateway {
            id: command.agent_id,
            name: command.gateway,
        },
        state: command.state,
        attempt: command.attempt,
        order: command.order,
        risk: command.risk,
        idempotent: command.idempotent,
        timeout_ms: command.timeout_ms,
        deadline: command.deadline,
        created_at: command.created_at,
        released_at: command.released_at,
        started_at: command.started_at,
        finished_at: command.finished_at,
        cancel_requested_at: command.cancel_requested_at,
        reason: command.reason,
        outcome,
    }
}
