//! Gateways: list, show, revoke.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use viworks_api::{
    Fork, ForkList, ForkResolved, Gateway, GatewayAuthorities, GatewayKey, GatewayList, GatewayRef,
    GatewayRevocation, GatewayRevoked, GatewaySession, GatewaySpool, GatewayStatus, KeptBy, Kind,
    Label, LabelSource, ProblemCode, REASON_BYTES_MAX, ResolveForkRequest, RevokeRequest,
};
use viworks_common::command::CommandState;
use viworks_common::fork::Apart;
use viworks_common::id::{AgentId, AgentRunId, InstanceId, TicketId};
use viworks_common::time::Timestamp;

use crate::api::ApiState;
use crate::api::extract::{Caller, JsonBody, NoParams, Params, Segment, page};
use crate::api::problem::{ApiError, ApiResult, stored_ref};
use crate::api::request::{Api, RequestId};
use crate::data::{self, ForkDecision, ForkResolution, GatewayFilter};

mod holders;
mod refusal;

use self::holders::{Heard, holder, side_by_side};

/// Which gateways.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct ListParams {
    /// Only those with a session (`true`) or without one (`false`).
    online: Option<bool>,
    /// Only those that are revoked (`true`) or not (`false`).
    revoked: Option<bool>,
    /// Only those with this label, as `key=value`.
    #[param(pattern = "^[^=]+=.*$")]
    label: Option<String>,
    /// Only those that came of this ticket.
    #[param(value_type = Option<String>)]
    ticket: Option<TicketId>,
    /// Where to go on: `next` of the page before.
    cursor: Option<String>,
    /// Most rows wanted, 1 to 1000; 100 when absent.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// Gateways in the order of their registration.
#[utoipa::path(get, path = "/v1/gateways", operation_id = "listGateways", tag = "gateways",
    params(ListParams),
    responses((status = 200, description = "One page", body = GatewayList)))]
pub(in crate::api) async fn list(
    State(state): Api,
    Params(params): Params<ListParams>,
) -> ApiResult<Json<GatewayList>> {
    let label = match params.label.as_deref().map(|label| label.split_once('=')) {
        None => None,
        Some(Some((key, value))) if !key.is_empty() => Some((key.to_owned(), value.to_owned())),
        Some(_) => return Err(ApiError::parameter("label", "not a label", "key=value")),
    };
    let filter = GatewayFilter {
        connected: params.online,
        revoked: params.revoked,
        label,
        ticket: params.ticket,
    };
    let page = page(params.cursor.as_deref(), params.limit)?;
    let listing = state
        .store
        .list_gateways(&state.tenant, &filter, page)
        .await?;
    let beside = Beside::of(&state, &listing.items).await?;
    let mut items = Vec::with_capacity(listing.items.len());
    for gateway in listing.items {
        items.push(view(&state, gateway, &beside).await?);
    }
    Ok(Json(GatewayList::new(
        items,
        listing.next.map(|id| id.to_string()),
    )))
}

/// One gateway.
#[utoipa::path(get, path = "/v1/gateways/{gateway}", operation_id = "showGateway", tag = "gateways",
    params(("gateway" = String, Path, description = "Its id or its name")),
    responses((status = 200, description = "The gateway", body = Gateway)))]
pub(in crate::api) async fn show(
    State(state): Api,
    Segment(which): Segment<GatewayRef>,
    _params: Params<NoParams>,
) -> ApiResult<Json<Gateway>> {
    let found = find(&state, which).await?;
    Ok(Json(whole(&state, found).await?))
}

/// Throws a gateway out at once: its session ends, wherever it is, its commands end with it, and it gets no other one
/// unless a machine takes its place by a ticket for that. Its name can go to a new identity. Revoking twice is
/// revoking once.
#[utoipa::path(post, path = "/v1/gateways/{gateway}/revoke", operation_id = "revokeGateway", tag = "gateways",
    params(("gateway" = String, Path, description = "Its id or its name")),
    request_body = RevokeRequest,
    responses((status = 200, description = "What became of it; the gateway as it stands", body = GatewayRevoked)))]
pub(in crate::api) async fn revoke(
    State(state): Api,
    Caller(principal): Caller,
    RequestId(request_id): RequestId,
    Segment(which): Segment<GatewayRef>,
    _params: Params<NoParams>,
    body: JsonBody<RevokeRequest>,
) -> ApiResult<Json<GatewayRevoked>> {
    let reason = given_reason(&body.value)?;
    let found = find(&state, which).await?;
    let id = GatewayRef::Id(found.agent_id);
    let actor = principal.actor(&request_id);
    let revoked = state
        .commands
        .revoke_gateway(found.agent_id, reason, &actor)
        .await
        .map_err(ApiError::of_revocation)?
        .ok_or_else(|| ApiError::not_found("gateway"))?;
    let ended_as = |how: CommandState| {
        let so = revoked.ended.iter().filter(|ended| ended.state == how);
        u64::try_from(so.count()).unwrap_or(u64::MAX)
    };
    Ok(Json(GatewayRevoked {
        kind: Kind::GatewayRevoked,
        already: revoked.already,
        session_ended: revoked.live_session.is_some(),
        cancelled: ended_as(CommandState::Cancelled),
        indeterminate: ended_as(CommandState::Indeterminate),
        gateway: whole(&state, find(&state, id).await?).await?,
    }))
}

/// Why something is revoked: that must be said, and be short enough to be kept.
pub(super) fn given_reason(request: &RevokeRequest) -> ApiResult<&str> {
    let reason = request.reason.trim();
    if reason.is_empty() || reason.len() > REASON_BYTES_MAX {
        let problem = if reason.is_empty() {
            "missing"
        } else {
            "too long"
        };
        let allowed = format!("why, in 1 to {REASON_BYTES_MAX} bytes");
        return Err(ApiError::body_field("reason", problem, allowed));
    }
    Ok(reason)
}

/// One gateway with all that is known of it.
pub(in crate::api) async fn whole(state: &ApiState, found: data::Gateway) -> ApiResult<Gateway> {
    let beside = Beside::of(state, std::slice::from_ref(&found)).await?;
    let mut gateway = view(state, found, &beside).await?;
    if gateway.status == GatewayStatus::Revoked {
        let known = state.store.revocation(&state.tenant, gateway.id).await?;
        gateway.revocation = known.map(|known| GatewayRevocation {
            by: known.by,
            by_name: known.by_name,
            reason: known.reason,
        });
    }
    let looked = state.store.last_refusal(&state.tenant, gateway.id).await?;
    if let Some(last) = looked.last {
        let forks = if last.why == refusal::FORK {
            state.store.list_forks(&state.tenant, gateway.id).await?
        } else {
            Vec::new()
        };
        let revoked = gateway.status == GatewayStatus::Revoked;
        gateway.last_refusal = Some(refusal::told(last, &gateway.name, &forks, revoked));
    }
    let at_door = looked.at_door;
    gateway.last_refusal_at_door = at_door.map(|last| refusal::at_door(last, &gateway.name));
    let among = looked.among.map(u64::try_from);
    gateway.no_refusal_among = among.map(|records| records.unwrap_or(u64::MAX));
    Ok(gateway)
}

/// Which page of the forks.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct ForkParams {
    /// Where to go on: `next` of the page before.
    cursor: Option<String>,
    /// Most rows wanted, 1 to 1000; 100 when absent.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// Every second holder of a gateway's identity beside the one that was accepted, the latest first.
#[utoipa::path(get, path = "/v1/gateways/{gateway}/forks", operation_id = "listGatewayForks", tag = "gateways",
    params(("gateway" = String, Path, description = "Its id or its name"), ForkParams),
    responses((status = 200, description = "One page", body = ForkList)))]
pub(in crate::api) async fn forks(
    State(state): Api,
    Segment(which): Segment<GatewayRef>,
    Params(params): Params<ForkParams>,
) -> ApiResult<Json<ForkList>> {
    let page = page::<AgentRunId>(params.cursor.as_deref(), params.limit)?;
    let gateway = find(&state, which).await?;
    // Bounded where they are recorded.
    let forks = state
        .store
        .list_forks(&state.tenant, gateway.agent_id)
        .await?;
    let seen = page.after.map_or(0, |after| {
        forks
            .iter()
            .position(|fork| fork.refused.agent_run_id == after)
            .map_or(0, |last| last + 1)
    });
    let more = forks.len().saturating_sub(seen) > page.limit;
    let heard = Heard::of(&gateway, &forks);
    let items: Vec<Fork> = forks
        .iter()
        .skip(seen)
        .take(page.limit)
        .map(|fork| side_by_side(fork.clone(), heard))
        .collect();
    let next = items
        .last()
        .filter(|_last| more)
        .map(|last| last.refused.agent_run_id.to_string());
    Ok(Json(ForkList::new(items, next)))
}

/// Decides between two holders of a gateway's identity. With `keep` the one that is named keeps it: a session of the
/// other ends, wherever it is, and the one that is kept is let in although the other has moved on. With `replace` the
/// one that was accepted goes on, and the other is to get an identity of its own. Deciding twice is deciding once.
#[utoipa::path(post, path = "/v1/gateways/{gateway}/forks/resolve", operation_id = "resolveGatewayFork",
    tag = "gateways",
    params(("gateway" = String, Path, description = "Its id or its name")),
    request_body = ResolveForkRequest,
    responses((status = 200, description = "Who keeps the identity; the gateway as it stands", body = ForkResolved),
        (status = 409, description = "No second holder was seen, or the gateway was revoked", body = viworks_api::Problem, content_type = "application/problem+json")))]
pub(in crate::api) async fn resolve_fork(
    State(state): Api,
    Caller(principal): Caller,
    RequestId(request_id): RequestId,
    Segment(which): Segment<GatewayRef>,
    _params: Params<NoParams>,
    body: JsonBody<ResolveForkRequest>,
) -> ApiResult<Json<ForkResolved>> {
    let decision = match (body.value.keep, body.value.replace) {
        (Some(holder), false) => ForkDecision::Keep(holder),
        (None, true) => ForkDecision::Replace,
        (Some(_), true) => {
            let allowed = "keep, or replace, and not both";
            return Err(ApiError::body_field("replace", "one too many", allowed));
        }
        (None, false) => {
            let allowed = "the process or the installation of a holder, or \"replace\": true";
            return Err(ApiError::body_field("keep", "missing", allowed));
        }
    };
    let found = find(&state, which).await?;
    let id = GatewayRef::Id(found.agent_id);
    let actor = principal.actor(&request_id);
    let resolution = state
        .commands
        .resolve_fork(found.agent_id, decision, &actor)
        .await?
        .ok_or_else(|| ApiError::not_found("gateway"))?;
    let name = &found.name;
    let conflict =
        |detail: &str, fix: String| Err(ApiError::new(ProblemCode::Conflict, detail).fixed_by(fix));
    let resolved = match resolution {
        ForkResolution::Resolved(resolved) => resolved,
        ForkResolution::Revoked => {
            return conflict(
                "this gateway was revoked: nobody keeps it",
                format!("to let one of the machines in again: viworks gateway replace {name}"),
            );
        }
        ForkResolution::NoFork => {
            return conflict(
                "no second holder of this identity was seen: there is nothing to decide",
                format!("nothing; viworks gateway show {name} says who has its session"),
            );
        }
        ForkResolution::HolderIsOut => {
            return conflict(
                "the certificate of this holder was revoked, or another machine took the gateway's place since: it could not come back, and the one that has the identity would be cut off; nothing was changed",
                format!(
                    "keep the other one (viworks gateway forks {name} shows both), or let this machine in anew: \
                     viworks gateway replace {name}"
                ),
            );
        }
        ForkResolution::NoSuchHolder => {
            let allowed = "a process or an installation that viworks gateway forks shows; one that was started anew is another process, which is there once it was refused";
            let what = "no holder of this gateway's identity has this id";
            let see = format!("viworks gateway forks {name} shows both holders with their ids");
            return Err(ApiError::new(ProblemCode::NotFound, what)
                .with("keep", "no holder has it", Some(allowed.to_owned()))
                .fixed_by(see));
        }
        ForkResolution::BothHolders => {
            let allowed = "the process of one of the two, because both have this installation";
            return Err(ApiError::body_field(
                "keep",
                "both holders have it",
                allowed,
            ));
        }
    };
    let gateway = find(&state, id).await?;
    // What was accepted last is what the gateway was last heard as.
    let seen = resolved.seen.or(found.last_seen_at);
    Ok(Json(ForkResolved {
        kind: Kind::ForkResolved,
        already: resolved.already,
        kept: resolved.kept.map(|party| holder(party, None, seen)),
        kept_by: resolved.told_by.map(|told_by| match told_by {
            Apart::Install => KeptBy::Install,
            Apart::Boot => KeptBy::Boot,
            Apart::Process => KeptBy::Process,
        }),
        out: resolved.out.map(|party| holder(party, None, None)),
        session_ended: resolved.session_ended,
        gateway: whole(&state, gateway).await?,
    }))
}

/// The gateway with an id or a name.
pub(in crate::api) async fn find(state: &ApiState, which: GatewayRef) -> ApiResult<data::Gateway> {
    state
        .store
        .gateway(&state.tenant, &stored_ref(which))
        .await?
        .ok_or_else(|| ApiError::not_found("gateway"))
}

/// What is looked up once for however many gateways are shown.
struct Beside {
    /// The names of the backends, where one of them is needed.
    backends: BTreeMap<InstanceId, String>,
    /// Those that TLS refuses here, because authorities that are not in force signed all of their certificates, as far
    /// as that is known: whom the condition `trust.certificates` counts.
    cut_off: BTreeSet<AgentId>,
}

impl Beside {
    async fn of(state: &ApiState, gateways: &[data::Gateway]) -> ApiResult<Self> {
        let (store, wall) = (&state.store, state.clock.wall());
        let shown = gateways.iter().map(|gateway| gateway.agent_id).collect();
        let signers = store.signers(&state.tenant, shown, wall).await?;
        let trusted = state.trust.current();
        let (well, others): (Vec<_>, Vec<_>) = signers
            .into_iter()
            .partition(|(_gateway, issuer)| trusted.include(issuer));
        let mut cut_off: BTreeSet<_> = others.into_iter().map(|(gateway, _)| gateway).collect();
        for (gateway, _issuer) in well {
            cut_off.remove(&gateway);
        }
        Ok(Self {
            backends: backends(state, gateways).await?,
            cut_off,
        })
    }
}

/// The names of the backends, where one of some gateways says which of them has its session.
async fn backends(
    state: &ApiState,
    gateways: &[data::Gateway],
) -> ApiResult<BTreeMap<InstanceId, String>> {
    let mut sessions = gateways
        .iter()
        .filter_map(|gateway| gateway.session.as_ref());
    if !sessions.any(|session| session.instance.is_some()) {
        return Ok(BTreeMap::new());
    }
    let all = state.store.list_instances().await?.into_iter();
    Ok(all.map(|backend| (backend.id, backend.name)).collect())
}

async fn view(state: &ApiState, gateway: data::Gateway, beside: &Beside) -> ApiResult<Gateway> {
    let (status, since) = status(state, &gateway).await?;
    let keys = gateway.keys();
    let revoked = status == GatewayStatus::Revoked;
    // A certificate that is accepted, or was until it ended, is what the door gives another one for.
    let door = state.tickets.door().is_some() && state.tickets.signs();
    let renews_at_door = door && !revoked && gateway.certificate_not_after.is_some();
    let figures = gateway.session.as_ref().map(|session| session.figures);
    Ok(Gateway {
        kind: Kind::Gateway,
        id: gateway.agent_id,
        name: gateway.name,
        status,
        since,
        created_at: gateway.created_at,
        agent_version: gateway.agent_version,
        certificate_not_after: gateway.certificate_not_after,
        certificate_since: gateway.certificate_since,
        certificate_revoked_at: gateway.certificate_revoked_at.filter(|_at| !revoked),
        certificate_unknown_ca: Some(beside.cut_off.contains(&gateway.agent_id)),
        renews_at_door: Some(renews_at_door),
        key_generation: gateway.key_generation,
        pin_set_version: gateway.pin_set_version,
        key: Some(GatewayKey {
            generation: keys.generation,
            wanted: keys.pending(),
            takes_later: keys.takes_one,
        }),
        authorities: gateway.authorities.map(|bundle| GatewayAuthorities {
            current: bundle == state.trust.current().digest(),
            since: gateway.authorities_at,
            bundle,
        }),
        labels: gateway
            .labels
            .into_iter()
            .map(|label| Label {
                key: label.key,
                value: label.value,
                source: match label.source {
                    data::LabelSource::Operator => LabelSource::Operator,
                    data::LabelSource::Gateway => LabelSource::Gateway,
                },
            })
            .collect(),
        last_seen: gateway.last_seen_at,
        round_trip_us: figures.and_then(|figures| figures.round_trip_us),
        clock_skew_ms: figures.and_then(|figures| figures.clock_skew_ms),
        session: gateway.session.map(|session| GatewaySession {
            id: session.session_id,
            epoch: session.epoch,
            peer_address: session.peer_address,
            backend: session
                .instance
                .and_then(|at| beside.backends.get(&at).cloned()),
        }),
        catalogue_digest: gateway.catalogue_digest,
        queued_commands: gateway.open_commands,
        running_commands: figures.map(|figures| figures.commands_running.into()),
        spool: figures.map(|figures| GatewaySpool {
            records: figures.spool_records,
            bytes: figures.spool_bytes,
        }),
        forks: gateway.forks,
        undecided_forks: if revoked { 0 } else { gateway.undecided_forks },
        orphans: gateway.orphans,
        revocation: None,
        last_refusal: None,
        no_refusal_among: None,
        last_refusal_at_door: None,
    })
}

/// What the gateway is, and since when.
async fn status(
    state: &ApiState,
    gateway: &data::Gateway,
) -> ApiResult<(GatewayStatus, Timestamp)> {
    if let Some(at) = gateway.revoked_at {
        return Ok((GatewayStatus::Revoked, at));
    }
    if let Some(session) = &gateway.session {
        return Ok((GatewayStatus::Online, session.confirmed_at));
    }
    if gateway.undecided_forks > 0 {
        // When the last thing heard of it was a second holder of its identity about which nobody has decided, it waits
        // for that.
        let forks = state
            .store
            .list_forks(&state.tenant, gateway.agent_id)
            .await?;
        let mut undecided = forks.iter().filter(|fork| fork.resolved.is_none());
        let latest = undecided.next().map(|fork| fork.at);
        if let Some(at) = latest.filter(|at| gateway.last_seen_at.is_none_or(|seen| *at >= seen)) {
            return Ok((GatewayStatus::Blocked, at));
        }
    }
    Ok(match gateway.last_seen_at {
        Some(at) if gateway.confirmed > 0 => (GatewayStatus::Offline, at),
        Some(_) | None => (GatewayStatus::Never, gateway.created_at),
    })
}
