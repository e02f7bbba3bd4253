//! The catalogue over all gateways.

use axum::Json;
use axum::extract::State;
use viworks_api::{CatalogueCommand, CatalogueGateway, CatalogueList, Kind, NamedGateway};
use viworks_common::id::CommandName;

use crate::api::extract::{NoParams, PageParams, Params, Segment};
use crate::api::problem::{ApiError, ApiResult};
use crate::api::request::Api;
use crate::data::{MergedCommand, Target, TargetSelection};

/// Every command that any gateway allows, by name.
#[utoipa::path(get, path = "/v1/catalogue", operation_id = "listCatalogue", tag = "catalogue",
    params(PageParams),
    responses((status = 200, description = "One page", body = CatalogueList)))]
pub(in crate::api) async fn list(
    State(state): Api,
    Params(params): Params<PageParams>,
) -> ApiResult<Json<CatalogueList>> {
    let page = params.page::<CommandName>()?;
    let listing = state.store.merged_catalogue(&state.tenant, page).await?;
    Ok(Json(CatalogueList::new(
        listing.items.into_iter().map(view).collect(),
        listing.next.map(|name| name.to_string()),
    )))
}

/// One command, and which gateways have it.
#[utoipa::path(get, path = "/v1/catalogue/{command}", operation_id = "showCatalogueCommand", tag = "catalogue",
    params(("command" = String, Path, description = "The command's name")),
    responses((status = 200, description = "The command", body = CatalogueCommand)))]
pub(in crate::api) async fn show(
    State(state): Api,
    Segment(name): Segment<CommandName>,
    _params: Params<NoParams>,
) -> ApiResult<Json<CatalogueCommand>> {
    let merged = state.store.merged_command(&state.tenant, &name).await?;
    let merged = merged.ok_or_else(|| ApiError::not_found("command in any catalogue"))?;
    let targets = state
        .store
        .resolve_targets(&state.tenant, &TargetSelection::All, &name)
        .await?;
    let gateways = targets.into_iter().filter_map(gateway).collect();
    Ok(Json(CatalogueCommand {
        gateways: Some(gateways),
        ..view(merged)
    }))
}

/// What a gateway says of the command, if it has it and may be sent it.
fn gateway(target: Target) -> Option<CatalogueGateway> {
    let Target::Known {
        agent_id: id,
        name,
        revoked: false,
        report: Some(report),
    } = target
    else {
        return None;
    };
    let entry = report.entry?;
    Some(CatalogueGateway {
        gateway: NamedGateway { id, name },
        risk: Some(entry.risk),
        unavailable: entry.unavailable.clone(),
    })
}

fn view(merged: MergedCommand) -> CatalogueCommand {
    let MergedCommand {
        entry,
        definitions,
        idempotent,
        risks,
        available,
        unavailable,
    } = merged;
    CatalogueCommand {
        kind: Kind::CatalogueCommand,
        name: entry.name,
        title: entry.title,
        // One definition at least, so this is never the one that stands in.
        risk: risks.keys().next_back().copied().unwrap_or(entry.risk),
        risks,
        idempotent,
        arguments: entry.arguments,
        timeout_ms: entry.timeout_ms,
        definitions,
        available,
        unavailable,
        gateways: None,
    }
}
