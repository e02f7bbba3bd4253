//! The catalogue over all gateways.

use std::sync::Arc;

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use viworks_api::{CatalogueCommand, CatalogueGateway, CatalogueList, Kind, NamedGateway};
use viworks_common::catalogue::CatalogueEntry;
use viworks_common::id::CommandName;

use crate::api::extract::{NoParams, PageParams, Params, Segment};
use crate::api::problem::{ApiError, ApiResult};
use crate::api::request::Api;
use crate::data::{MergedEntry, Page, Target, TargetSelection};

/// Every command that any gateway allows, by name.
#[utoipa::path(get, path = "/v1/catalogue", operation_id = "listCatalogue", tag = "catalogue",
    params(PageParams),
    responses((status = 200, description = "One page", body = CatalogueList)))]
pub(in crate::api) async fn list(
    State(state): Api,
    Params(params): Params<PageParams>,
) -> ApiResult<Json<CatalogueList>> {
    let Page { after, limit } = params.page::<CommandName>()?;
    let mut by_name: BTreeMap<CommandName, Vec<MergedEntry>> = BTreeMap::new();
    for merged in state.store.merged_catalogue(&state.tenant).await? {
        by_name
            .entry(merged.entry.name.clone())
            .or_default()
            .push(merged);
    }
    let behind = by_name
        .into_iter()
        .filter(|(name, _entries)| after.as_ref().is_none_or(|after| name > after));
    let mut page: Vec<_> = behind.take(limit.saturating_add(1)).collect();
    let more = page.len() > limit;
    page.truncate(limit);
    let last = page.last().filter(|_last| more);
    let next = last.map(|(name, _entries)| name.to_string());
    let items = page
        .into_iter()
        .filter_map(|(name, entries)| merge(name, &entries))
        .collect();
    Ok(Json(CatalogueList::new(items, next)))
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
    let targets = state
        .store
        .resolve_targets(&state.tenant, &TargetSelection::All, &name)
        .await?;
    let mut entries: Vec<MergedEntry> = Vec::new();
    let mut gateways = Vec::new();
    for target in targets {
        let Target::Known {
            agent_id,
            name,
            revoked: false,
            report: Some(report),
        } = target
        else {
            continue;
        };
        let Some(entry) = report.entry else {
            continue;
        };
        gateways.push(CatalogueGateway {
            gateway: NamedGateway { id: agent_id, name },
            risk: Some(entry.risk),
            unavailable: entry.unavailable.clone(),
        });
        match entries.iter_mut().find(|known| known.entry == *entry) {
            Some(known) => known.gateways += 1,
            None => entries.push(MergedEntry {
                entry: Arc::unwrap_or_clone(entry),
                gateways: 1,
            }),
        }
    }
    let mut merged =
        merge(name, &entries).ok_or_else(|| ApiError::not_found("command in any catalogue"))?;
    merged.gateways = Some(gateways);
    Ok(Json(merged))
}

/// One view of all definitions of a name.
fn merge(name: CommandName, entries: &[MergedEntry]) -> Option<CatalogueCommand> {
    // Whether a tool is there is a fact about the gateway, not another definition.
    let definition = |entry: &CatalogueEntry| CatalogueEntry {
        unavailable: None,
        ..entry.clone()
    };
    let mut definitions: Vec<(CatalogueEntry, u64)> = Vec::new();
    for merged in entries {
        let own = definition(&merged.entry);
        match definitions.iter_mut().find(|(known, _count)| *known == own) {
            Some((_known, count)) => *count = count.saturating_add(merged.gateways),
            None => definitions.push((own, merged.gateways)),
        }
    }
    let count = |available: bool| {
        entries
            .iter()
            .filter(|merged| merged.entry.unavailable.is_none() == available)
            .map(|merged| merged.gateways)
            .sum()
    };
    let mut risks = BTreeMap::new();
    for merged in entries {
        let gateways: &mut u64 = risks.entry(merged.entry.risk).or_default();
        *gateways = gateways.saturating_add(merged.gateways);
    }
    let (shown, _count) = definitions.iter().max_by_key(|(_known, count)| *count)?;
    Some(CatalogueCommand {
        kind: Kind::CatalogueCommand,
        name,
        title: shown.title.clone(),
        risk: *risks.keys().next_back()?,
        risks,
        idempotent: definitions.iter().all(|(entry, _count)| entry.idempotent),
        arguments: shown.arguments.clone(),
        timeout_ms: shown.timeout_ms,
        definitions: u64::try_from(definitions.len()).unwrap_or(u64::MAX),
        available: count(true),
        unavailable: count(false),
        gateways: None,
    })
}
