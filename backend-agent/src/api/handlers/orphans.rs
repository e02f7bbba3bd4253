//! Results of commands that the backend does not have.

use std::fmt;
use std::str::FromStr;

use axum::Json;
use axum::extract::State;
use viworks_api::{CommandOutcome, GatewayRef, OrphanList, OrphanResult};
use viworks_common::ledger::command::Ended;

use super::gateways;
use crate::api::extract::{CursorTime, PageParams, Params, Segment, listed};
use crate::api::problem::ApiResult;
use crate::api::request::Api;
use crate::data::{Orphan, OrphanCursor};

/// What a gateway reported of commands that the backend does not have, the latest first, as far as it is kept.
#[utoipa::path(get, path = "/v1/gateways/{gateway}/orphans", operation_id = "listOrphanResults", tag = "gateways",
    params(("gateway" = String, Path, description = "Its id or its name"), PageParams),
    responses((status = 200, description = "One page", body = OrphanList)))]
pub(in crate::api) async fn list(
    State(state): Api,
    Segment(which): Segment<GatewayRef>,
    Params(params): Params<PageParams>,
) -> ApiResult<Json<OrphanList>> {
    let page = params.page()?;
    let gateway = gateways::find(&state, which).await?;
    let listing = state
        .store
        .orphans(&state.tenant, gateway.agent_id, page)
        .await?;
    Ok(listed(listing, view, OrphanList::new))
}

fn view(orphan: Orphan) -> OrphanResult {
    let Orphan {
        command_id,
        received_at,
        outcome,
    } = orphan;
    OrphanResult {
        command_id,
        received_at,
        state: outcome.state.command_state(),
        outcome: CommandOutcome {
            stdout: Some((&outcome.stdout).into()),
            stderr: Some((&outcome.stderr).into()),
            ..super::runs::outcome_view(Ended::from(&outcome))
        },
    }
}

/// As text: time and command.
impl fmt::Display for OrphanCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let received_at = self.received_at.unix_micros();
        write!(f, "{received_at}_{}", self.command_id)
    }
}

impl FromStr for OrphanCursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (received_at, command_id) = text.split_once('_').ok_or(())?;
        Ok(Self {
            received_at: received_at.parse::<CursorTime>()?.0,
            command_id: command_id.parse().map_err(|_id| ())?,
        })
    }
}
