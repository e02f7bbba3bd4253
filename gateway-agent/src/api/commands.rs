//! Runs a command for a local user, through the same executor as the connection.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{self, ConnectInfo, Path};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use viworks_common::code::RejectCode;
use viworks_common::command::{Arguments, Outcome};
use viworks_common::id::{CommandId, CommandName};
use viworks_runtime::random;

use super::problem::Problem;
use super::{Peer, State, telemetry};
use crate::audit::AuditRecord;
use crate::catalogue::Refusal;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    #[serde(default, deserialize_with = "viworks_common::unique::map")]
    arguments: Arguments,
}

#[derive(Serialize)]
pub(super) struct Ran {
    command_id: CommandId,
    outcome: Outcome,
}

/// Answers when the command has ended. A caller who goes away ends it.
pub(super) async fn run(
    extract::State(state): extract::State<State>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(name): Path<String>,
    body: Result<Json<Request>, JsonRejection>,
) -> Result<Json<Ran>, Problem> {
    let parts = &state.parts;
    if !peer.may_run_commands() {
        // One who asks without end must not push everybody else's entries out of the log.
        if let Some(left_out) = state.not_permitted.take(peer.uid, parts.clock.now()) {
            let detail = match left_out {
                0 => "not permitted".to_owned(),
                more => format!("not permitted; {more} more of this user were left out before it"),
            };
            audit(&state, peer, &name, "refused", &detail).await?;
        }
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "not_permitted",
            "Not permitted",
            "only root and the agent's own user may run commands here",
        ));
    }
    let Json(request) = body.map_err(|rejection| telemetry::malformed(&rejection))?;
    let parsed: CommandName = name.parse().map_err(|_invalid| unknown(&name))?;
    let catalogue = parts.catalogue.get();
    let checked = match catalogue.check(&parsed, &request.arguments) {
        Ok(allowed) => allowed.available().await.map(|()| allowed),
        Err(refusal) => Err(refusal),
    };
    let allowed = match checked {
        Ok(allowed) => allowed,
        Err(refusal) => {
            audit(&state, peer, &name, "refused", &refusal.detail).await?;
            return Err(refused(refusal));
        }
    };
    let Some(slot) = parts.executor.try_slot() else {
        return Err(Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "busy",
            "Too many commands at once",
            "as many commands as may run at once are running",
        )
        .retry_after(1));
    };
    let command_id = CommandId::from_uuid(random::uuid_v7(parts.clock.wall()));
    let launch = allowed.launch(command_id);
    audit(&state, peer, &name, "started", &command_id.to_string()).await?;
    let outcome = slot.run(launch, parts.lifecycle.stop_token(), None).await;
    let state_name = outcome.state.command_state().name();
    audit(&state, peer, &name, state_name, &command_id.to_string()).await?;
    Ok(Json(Ran {
        command_id,
        outcome,
    }))
}

/// What cannot be recorded is not done.
async fn audit(
    state: &State,
    peer: Peer,
    subject: &str,
    result: &str,
    detail: &str,
) -> Result<(), Problem> {
    let record = AuditRecord {
        at: state.parts.clock.wall(),
        actor: peer.actor(),
        action: "local_command",
        subject: subject.chars().take(100).collect(),
        result: result.to_owned(),
        detail: detail.to_owned(),
    };
    state.parts.audit.append(record).await.map_err(|error| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "audit_unavailable",
            "The audit log cannot be written",
            error.to_string(),
        )
        .retry_after(5)
    })
}

fn refused(refusal: Refusal) -> Problem {
    let (status, title) = match refusal.code {
        RejectCode::NotAllowed => (StatusCode::NOT_FOUND, "No such command"),
        RejectCode::BadArguments => (StatusCode::UNPROCESSABLE_ENTITY, "Bad arguments"),
        RejectCode::Unavailable
        | RejectCode::Stale
        | RejectCode::DigestMismatch
        | RejectCode::Busy
        | RejectCode::JournalUnavailable => {
            (StatusCode::SERVICE_UNAVAILABLE, "The command cannot run")
        }
    };
    Problem::new(status, refusal.code.name(), title, refusal.detail)
        .with_arguments(refusal.problems)
}

fn unknown(name: &str) -> Problem {
    let shown: String = name.chars().take(80).collect();
    Problem::new(
        StatusCode::NOT_FOUND,
        RejectCode::NotAllowed.name(),
        "No such command",
        format!("{shown:?} is no command name"),
    )
}
