//! Authorities: which of them gateways are given, which gateways have them, and whose certificates they signed.

use axum::Json;
use axum::extract::State;
use viworks_api::{
    Authority, AuthorityBackend, AuthorityGateway, AuthoritySigners, AuthorityStatus, Kind,
};
use viworks_common::id::GatewayName;
use viworks_common::time::Timestamp;

use crate::agent::authorities::Authorities;
use crate::agent::signers;
use crate::api::ApiState;
use crate::api::extract::{NoParams, Params};
use crate::api::problem::ApiResult;
use crate::api::request::Api;
use crate::data::{Signed, Tally, Unaware};

/// Gateways that are named for each authority.
const NAMED_MAX: usize = 50;

/// The authorities that gateways are given, which gateways do not have which of them, connected or not, and which ones
/// would be refused without one because it signed their own certificate.
#[utoipa::path(get, path = "/v1/authorities", operation_id = "showAuthorities", tag = "pins",
    responses((status = 200, description = "The authorities and who has them", body = AuthorityStatus)))]
pub(in crate::api) async fn show(
    State(state): Api,
    _params: Params<NoParams>,
) -> ApiResult<Json<AuthorityStatus>> {
    let current = state.trust.current();
    let known = state.store.authority_trust(&state.tenant).await?;
    let gateways = known.all().gateways;
    let wall = state.clock.wall();
    let signed = state.store.signed(&state.tenant, wall).await?;
    let mut authorities = Vec::with_capacity(current.all().len());
    for authority in current.all() {
        let lacking = known.lacking(&[authority.id.clone()].into());
        let mut missing = Vec::new();
        if lacking.gateways > 0 {
            let id = authority.id.clone();
            let named = state
                .store
                .unaware(&state.tenant, id, false, None, NAMED_MAX);
            missing.extend(named.await?.into_iter().map(gateway));
        }
        let needed = needed(&current, authority.issuer, &signed);
        let needed_by_first = if current.are_several() && needed.gateways > 0 {
            first(&state, Some(authority.issuer), wall).await?
        } else {
            Vec::new()
        };
        authorities.push(Authority {
            authority: authority.id.clone(),
            subject: authority.subject.clone(),
            not_after: authority.not_after,
            known_to: gateways.saturating_sub(lacking.gateways),
            missing_off: lacking.off(),
            missing,
            needed_by: Some(needed.gateways),
            needed_by_off: Some(needed.off()),
            needed_by_first,
        });
    }
    let lacking = known.lacking(&current.ids());
    Ok(Json(AuthorityStatus {
        kind: Kind::AuthorityStatus,
        bundle: current.digest().to_owned(),
        gateways,
        lacking: lacking.gateways,
        lacking_off: lacking.off(),
        authorities,
        backends: backends(&state, current.digest()).await?,
        signers: Some(signers_of(&state, signed, &current, wall).await?),
    }))
}

/// The gateways that would be refused without one authority, by what is stored with the certificates that it signed:
/// nobody where another certificate of it is trusted as well.
fn needed(current: &Authorities, issuer: [u8; 32], signed: &[Signed]) -> Tally {
    let of_it = current.all().iter().filter(|one| one.issuer == issuer);
    if of_it.count() > 1 {
        return Tally::default();
    }
    let mut signed = signed.iter();
    let found = signed.find(|one| one.issuer == Some(issuer));
    found.map(|one| one.tally).unwrap_or_default()
}

/// Whose certificates are of none of these, and of which it is not known.
async fn signers_of(
    state: &ApiState,
    signed: Vec<Signed>,
    current: &Authorities,
    wall: Timestamp,
) -> ApiResult<AuthoritySigners> {
    let unknown = signed.iter().find(|one| one.issuer.is_none());
    let unknown = unknown.map_or(0, |one| one.tally.gateways);
    let unknown_first = if unknown > 0 {
        first(state, None, wall).await?
    } else {
        Vec::new()
    };
    let (mut cut_off, mut cut_off_first) = (0_u64, Vec::new());
    for one in signers::others(signed, current) {
        cut_off = cut_off.saturating_add(one.tally.gateways);
        if cut_off_first.len() < NAMED_MAX {
            cut_off_first.extend(first(state, one.issuer, wall).await?);
        }
    }
    cut_off_first.truncate(NAMED_MAX);
    Ok(AuthoritySigners {
        cut_off,
        cut_off_first,
        unknown,
        unknown_first,
    })
}

/// The names of the first gateways whose certificates an authority signed; none stands for that it is not known.
async fn first(
    state: &ApiState,
    issuer: Option<[u8; 32]>,
    wall: Timestamp,
) -> ApiResult<Vec<GatewayName>> {
    let named = state
        .store
        .signed_for(&state.tenant, issuer, wall, NAMED_MAX);
    Ok(named.await?.into_iter().map(|one| one.name).collect())
}

/// The other backends of the database that give another bundle than this one.
async fn backends(state: &ApiState, bundle: &str) -> ApiResult<Vec<AuthorityBackend>> {
    let own = *state.store.instance().borrow();
    let Some(own) = own else {
        return Ok(Vec::new());
    };
    let all = state.store.list_instances().await?.into_iter();
    let others = all.filter(|one| one.gives_others(own, bundle));
    let told = others.map(|one| AuthorityBackend {
        name: one.name,
        bundle: one.authorities.unwrap_or_default(),
    });
    Ok(told.collect())
}

fn gateway(found: Unaware) -> AuthorityGateway {
    AuthorityGateway {
        id: found.agent_id,
        name: found.name,
        bundle: found.authorities,
        since: found.authorities_at,
        online: found.connected,
        last_seen: found.last_seen_at,
    }
}
