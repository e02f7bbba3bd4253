//! Authorities: which of them gateways are given, and which gateways have them.

use axum::Json;
use axum::extract::State;
use viworks_api::{Authority, AuthorityBackend, AuthorityGateway, AuthorityStatus, Kind};

use crate::api::ApiState;
use crate::api::extract::{NoParams, Params};
use crate::api::problem::ApiResult;
use crate::api::request::Api;
use crate::data::Unaware;

/// Gateways that are named for each authority.
const NAMED_MAX: usize = 50;

/// The authorities that gateways are given, and which gateways do not have which of them, connected or not.
#[utoipa::path(get, path = "/v1/authorities", operation_id = "showAuthorities", tag = "pins",
    responses((status = 200, description = "The authorities and who has them", body = AuthorityStatus)))]
pub(in crate::api) async fn show(
    State(state): Api,
    _params: Params<NoParams>,
) -> ApiResult<Json<AuthorityStatus>> {
    let current = state.trust.current();
    let known = state.store.authority_trust(&state.tenant).await?;
    let gateways = known.all().gateways;
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
        authorities.push(Authority {
            authority: authority.id.clone(),
            subject: authority.subject.clone(),
            not_after: authority.not_after,
            known_to: gateways.saturating_sub(lacking.gateways),
            missing_off: lacking.off(),
            missing,
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
    }))
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
