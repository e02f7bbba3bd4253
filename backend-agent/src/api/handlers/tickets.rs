//! Enrolment tickets: create, list, show, revoke.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use viworks_api::{
    EPHEMERAL_MS_MAX, EPHEMERAL_MS_MIN, GatewayRef, Kind, ReplaceRequest, Scope,
    TICKET_LIFE_MS_DEFAULT, TICKET_LIFE_MS_MAX, Ticket, TicketCreated, TicketList, TicketRequest,
    TicketStatus,
};
use viworks_common::enrolment::{
    NAME_PREFIX_BYTES_MAX, NameRule, TICKET_NETWORKS_MAX, TICKET_USES_MAX,
};
use viworks_common::id::{LabelKey, TicketId, check_label_value};
use viworks_common::limits::LABELS_MAX;
use viworks_common::network::IpNetwork;
use viworks_common::time::Timestamp;

use super::gateways;
use crate::api::ApiState;
use crate::api::extract::{Caller, JsonBody, NoParams, PageParams, Params, Segment};
use crate::api::problem::{ApiError, ApiResult};
use crate::api::request::{Api, RequestId};
use crate::auth::Principal;
use crate::data::{Actor, StoredTicket};
use crate::enrolment::IssueTicket;

/// The shortest that a ticket may be valid.
const LIFE_MS_MIN: u64 = 1_000;

/// Makes a ticket. Its string is in this answer and nowhere else, and works from this moment.
#[utoipa::path(post, path = "/v1/tickets", operation_id = "createTicket", tag = "tickets",
    request_body = TicketRequest,
    responses((status = 201, description = "The ticket with its string", body = TicketCreated),
        (status = 409, description = "This backend has no door for new gateways, does not know where they reach it, or there are as many tickets as may be", body = viworks_api::Problem, content_type = "application/problem+json")))]
pub(in crate::api) async fn create(
    State(state): Api,
    Caller(principal): Caller,
    RequestId(request_id): RequestId,
    _params: Params<NoParams>,
    body: JsonBody<TicketRequest>,
) -> ApiResult<(StatusCode, Json<TicketCreated>)> {
    let wanted = check(body.value)?;
    if wanted.allow_replace && !principal.may(Scope::GatewaysWrite) {
        return Err(ApiError::forbidden(Scope::GatewaysWrite));
    }
    let actor = principal.actor(&request_id);
    issue(&state, wanted, &principal, &actor).await
}

/// Makes a ticket by which one machine takes the place of this gateway: the same gateway, with its name, its labels and
/// its history, and another key. Nothing changes before it is redeemed; then the machine before is cut off, and what of
/// its commands may have run ends as indeterminate. A revoked gateway comes back by it. Needs `tickets:write` as well.
#[utoipa::path(post, path = "/v1/gateways/{gateway}/replace", operation_id = "replaceGateway", tag = "gateways",
    params(("gateway" = String, Path, description = "Its id or its name")),
    request_body = ReplaceRequest,
    responses((status = 201, description = "The ticket with its string", body = TicketCreated),
        (status = 409, description = "This backend has no door for new gateways, does not know where they reach it, or there are as many tickets as may be", body = viworks_api::Problem, content_type = "application/problem+json")))]
pub(in crate::api) async fn replace(
    State(state): Api,
    Caller(principal): Caller,
    RequestId(request_id): RequestId,
    Segment(which): Segment<GatewayRef>,
    _params: Params<NoParams>,
    body: JsonBody<ReplaceRequest>,
) -> ApiResult<(StatusCode, Json<TicketCreated>)> {
    if !principal.may(Scope::TicketsWrite) {
        return Err(ApiError::forbidden(Scope::TicketsWrite));
    }
    let ReplaceRequest {
        expires_in_ms,
        networks,
    } = body.value;
    let mut wanted = check(TicketRequest {
        uses: 1,
        expires_in_ms: Some(expires_in_ms),
        networks,
        ..TicketRequest::default()
    })?;
    let found = gateways::find(&state, which).await?;
    wanted.naming = NameRule::Fixed(found.name);
    wanted.replaces = Some(found.agent_id);
    let actor = principal.actor(&request_id);
    issue(&state, wanted, &principal, &actor).await
}

async fn issue(
    state: &ApiState,
    wanted: IssueTicket,
    principal: &Principal,
    actor: &Actor,
) -> ApiResult<(StatusCode, Json<TicketCreated>)> {
    let (store, tenant, clock) = (&*state.store, &state.tenant, &state.clock);
    let issued = state.tickets.issue(store, tenant, wanted, actor, clock);
    let (mut stored, secret) = issued.await?;
    // Who makes one knows its own name: what has only just been written is not read again for it.
    stored.creator = Some(principal.name.clone());
    Ok((
        StatusCode::CREATED,
        Json(TicketCreated {
            kind: Kind::TicketCreated,
            ticket: view(state, stored, clock.line()),
            secret: secret.to_string(),
        }),
    ))
}

/// Every ticket, latest first.
#[utoipa::path(get, path = "/v1/tickets", operation_id = "listTickets", tag = "tickets",
    params(PageParams),
    responses((status = 200, description = "One page", body = TicketList)))]
pub(in crate::api) async fn list(
    State(state): Api,
    Params(params): Params<PageParams>,
) -> ApiResult<Json<TicketList>> {
    let now = state.clock.line();
    let page = params.page::<TicketId>()?;
    let listing = state.store.list_tickets(&state.tenant, page).await?;
    let items = listing.items.into_iter();
    let items = items.map(|ticket| view(&state, ticket, now));
    Ok(Json(TicketList::new(
        items.collect(),
        listing.next.map(|id| id.to_string()),
    )))
}

/// One ticket.
#[utoipa::path(get, path = "/v1/tickets/{ticket}", operation_id = "showTicket", tag = "tickets",
    params(("ticket" = String, Path, description = "Its id")),
    responses((status = 200, description = "The ticket", body = Ticket)))]
pub(in crate::api) async fn show(
    State(state): Api,
    Segment(id): Segment<TicketId>,
    _params: Params<NoParams>,
) -> ApiResult<Json<Ticket>> {
    let found = state.store.ticket(&state.tenant, id).await?;
    let found = found.ok_or_else(|| ApiError::not_found("ticket"))?;
    Ok(Json(view(&state, found, state.clock.line())))
}

/// Revokes a ticket at once. Gateways that came of it stay.
#[utoipa::path(delete, path = "/v1/tickets/{ticket}", operation_id = "revokeTicket", tag = "tickets",
    params(("ticket" = String, Path, description = "Its id")),
    responses((status = 204, description = "No gateway comes of it any more")))]
pub(in crate::api) async fn revoke(
    State(state): Api,
    Caller(principal): Caller,
    RequestId(request_id): RequestId,
    Segment(id): Segment<TicketId>,
    _params: Params<NoParams>,
) -> ApiResult<StatusCode> {
    let actor = principal.actor(&request_id);
    let now = state.clock.line();
    let revoked = state.store.revoke_ticket(&state.tenant, id, &actor, now);
    revoked
        .await?
        .ok_or_else(|| ApiError::not_found("ticket"))?;
    Ok(StatusCode::NO_CONTENT)
}

fn check(request: TicketRequest) -> ApiResult<IssueTicket> {
    let refused = |field: &str, problem: &str, allowed: String| {
        Err(ApiError::body_field(field, problem, allowed))
    };
    let uses = request.uses;
    if !(1..=TICKET_USES_MAX).contains(&uses) {
        return refused("uses", "out of range", format!("1 to {TICKET_USES_MAX}"));
    }
    let life = request.expires_in_ms.unwrap_or(TICKET_LIFE_MS_DEFAULT);
    if !(LIFE_MS_MIN..=TICKET_LIFE_MS_MAX).contains(&life) {
        let allowed = format!("{LIFE_MS_MIN} to {TICKET_LIFE_MS_MAX}, which is ninety days");
        return refused("expires_in_ms", "out of range", allowed);
    }
    if request.labels.len() > LABELS_MAX {
        return refused("labels", "too many", format!("at most {LABELS_MAX}"));
    }
    for (key, value) in &request.labels {
        let checked = key.parse::<LabelKey>().map(drop);
        if let Err(invalid) = checked.and_then(|()| check_label_value(value)) {
            return refused("labels", &invalid.to_string(), invalid.expected.to_owned());
        }
    }
    let naming = match (request.name, request.name_prefix) {
        (None, None) => NameRule::Free,
        (Some(name), None) if uses == 1 => NameRule::Fixed(name),
        (Some(_), None) => {
            let allowed = "a name with one use, or name_prefix";
            return refused("name", "one name for several gateways", allowed.to_owned());
        }
        (None, Some(prefix)) if NameRule::is_prefix(&prefix) => NameRule::Prefix(prefix),
        (None, Some(_)) => {
            let allowed = format!(
                "the beginning of a gateway's name: up to {NAME_PREFIX_BYTES_MAX} lower-case letters, digits and hyphens"
            );
            return refused("name_prefix", "no name begins like this", allowed);
        }
        (Some(_), Some(_)) => {
            let problem = "it is given beside name";
            return refused("name_prefix", problem, "name or name_prefix".to_owned());
        }
    };
    if request.networks.len() > TICKET_NETWORKS_MAX {
        let allowed = format!("at most {TICKET_NETWORKS_MAX}");
        return refused("networks", "too many", allowed);
    }
    let mut networks = Vec::new();
    for text in &request.networks {
        match text.parse::<IpNetwork>() {
            Ok(network) => networks.push(network),
            Err(error) => {
                let problem = format!("{text:?}: {error}");
                let allowed = "addresses and networks such as 192.0.2.0/24";
                return refused("networks", &problem, allowed.to_owned());
            }
        }
    }
    let possible = EPHEMERAL_MS_MIN..=EPHEMERAL_MS_MAX;
    if let Some(absence) = request.ephemeral_ms
        && !possible.contains(&absence)
    {
        let allowed = format!("{EPHEMERAL_MS_MIN} to {EPHEMERAL_MS_MAX}, a minute to a year");
        return refused("ephemeral_ms", "out of range", allowed);
    }
    Ok(IssueTicket {
        uses,
        life: Duration::from_millis(life),
        labels: request.labels,
        naming,
        networks,
        replaces: None,
        allow_replace: request.allow_replace,
        ephemeral: request.ephemeral_ms.map(Duration::from_millis),
    })
}

fn view(state: &ApiState, ticket: StoredTicket, now: Timestamp) -> Ticket {
    let status = if ticket.revoked_at.is_some() {
        TicketStatus::Revoked
    } else if ticket.expires_at <= now {
        TicketStatus::Expired
    } else if ticket.uses >= ticket.uses_max {
        TicketStatus::UsedUp
    } else if !state.tickets.knows(&state.tenant, &ticket) {
        TicketStatus::KeyGone
    } else {
        TicketStatus::Active
    };
    let (name, name_prefix) = match ticket.naming {
        NameRule::Free => (None, None),
        NameRule::Prefix(prefix) => (None, Some(prefix)),
        NameRule::Fixed(name) => (Some(name), None),
    };
    Ticket {
        kind: Kind::Ticket,
        id: ticket.id,
        status,
        uses: ticket.uses,
        uses_max: ticket.uses_max,
        refusals: ticket.refusals,
        labels: ticket.labels,
        name,
        name_prefix,
        networks: ticket.networks.iter().map(IpNetwork::to_string).collect(),
        replaces: ticket.replaces,
        allow_replace: ticket.allow_replace,
        ephemeral_ms: ticket
            .ephemeral
            .map(|absence| u64::try_from(absence.as_millis()).unwrap_or(u64::MAX)),
        created_at: ticket.created_at,
        created_by: ticket.created_by,
        created_by_name: ticket.creator,
        expires_at: ticket.expires_at,
        revoked_at: ticket.revoked_at,
    }
}
