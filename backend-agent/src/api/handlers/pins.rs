//! Pins: where their rotation stands, and its steps.

use axum::Json;
use axum::extract::State;
use viworks_api::{
    Kind, Pin, PinChanged, PinGateway, PinPromotion, PinRequest, PinState, PinStatus, ProblemCode,
    REASON_BYTES_MAX,
};
use viworks_common::human;
use viworks_common::pin::SpkiPin;
use viworks_common::pin::rotation::{KeyState, RotationRefusal, ServerKey};

use crate::api::ApiState;
use crate::api::extract::{Caller, JsonBody, NoParams, Params};
use crate::api::problem::{ApiError, ApiResult};
use crate::api::request::{Api, RequestId};
use crate::data::{Actor, PinChange, PinOutcome, PinStep, PinTrust, PinsKnown, Untrusting};

/// Gateways that are named for each key.
const NAMED_MAX: usize = 50;

/// Where the rotation of the server's keys stands, and which gateways have confirmed which of them.
#[utoipa::path(get, path = "/v1/pins", operation_id = "showPins", tag = "pins",
    responses((status = 200, description = "The keys and who trusts them", body = PinStatus)))]
pub(in crate::api) async fn show(
    State(state): Api,
    _params: Params<NoParams>,
) -> ApiResult<Json<PinStatus>> {
    Ok(Json(standing(&state).await?))
}

/// Stages a key: from now on every gateway that connects or is connected is told to trust it as well. The server may
/// not show it before it is promoted. Staging twice is staging once.
#[utoipa::path(post, path = "/v1/pins/stage", operation_id = "stagePin", tag = "pins",
    request_body = PinRequest,
    responses((status = 200, description = "Where the rotation stands", body = PinChanged),
        (status = 409, description = "The set is full, or does not have the key that the server shows", body = viworks_api::Problem, content_type = "application/problem+json")))]
pub(in crate::api) async fn stage(
    State(state): Api,
    Caller(principal): Caller,
    RequestId(request_id): RequestId,
    _params: Params<NoParams>,
    body: JsonBody<PinRequest>,
) -> ApiResult<Json<PinChanged>> {
    let PinRequest { pin, reason } = body.value;
    let actor = principal.actor(&request_id);
    take(&state, PinStep::Stage, &pin, reason, &actor).await
}

/// Promotes a key: the server may show it. Refused while a gateway that is not revoked has not confirmed that it trusts
/// it, unless that is forced.
#[utoipa::path(post, path = "/v1/pins/promote", operation_id = "promotePin", tag = "pins",
    request_body = PinPromotion,
    responses((status = 200, description = "Where the rotation stands", body = PinChanged),
        (status = 409, description = "It is not staged, or gateways that are named would be cut off", body = viworks_api::Problem, content_type = "application/problem+json")))]
pub(in crate::api) async fn promote(
    State(state): Api,
    Caller(principal): Caller,
    RequestId(request_id): RequestId,
    _params: Params<NoParams>,
    body: JsonBody<PinPromotion>,
) -> ApiResult<Json<PinChanged>> {
    let PinPromotion { pin, force, reason } = body.value;
    if force && reason.is_none() {
        let allowed = format!("why, in 1 to {REASON_BYTES_MAX} bytes, where it is forced");
        return Err(ApiError::body_field("reason", "missing", allowed));
    }
    let step = PinStep::Promote { forced: force };
    take(&state, step, &pin, reason, &principal.actor(&request_id)).await
}

/// Retires a key: gateways are told not to trust it any more. Refused while a backend shows it.
#[utoipa::path(post, path = "/v1/pins/retire", operation_id = "retirePin", tag = "pins",
    request_body = PinRequest,
    responses((status = 200, description = "Where the rotation stands", body = PinChanged),
        (status = 404, description = "It is in no set: there is nothing to retire", body = viworks_api::Problem, content_type = "application/problem+json"),
        (status = 409, description = "A backend shows it, or too few pins would be left", body = viworks_api::Problem, content_type = "application/problem+json")))]
pub(in crate::api) async fn retire(
    State(state): Api,
    Caller(principal): Caller,
    RequestId(request_id): RequestId,
    _params: Params<NoParams>,
    body: JsonBody<PinRequest>,
) -> ApiResult<Json<PinChanged>> {
    let PinRequest { pin, reason } = body.value;
    let actor = principal.actor(&request_id);
    take(&state, PinStep::Retire, &pin, reason, &actor).await
}

async fn take(
    state: &ApiState,
    step: PinStep,
    pin: &str,
    reason: Option<String>,
    actor: &Actor,
) -> ApiResult<Json<PinChanged>> {
    let pin: SpkiPin = pin.parse().map_err(|_invalid| {
        let allowed = "sha256/ and the Base64 of 32 bytes";
        ApiError::body_field("pin", "not a pin", allowed)
    })?;
    let reason = reason.map(|reason| reason.trim().to_owned());
    if let Some(reason) = &reason
        && (reason.is_empty() || reason.len() > REASON_BYTES_MAX)
    {
        let allowed = format!("why, in 1 to {REASON_BYTES_MAX} bytes");
        return Err(ApiError::body_field("reason", "out of range", allowed));
    }
    let change = PinChange {
        step,
        pin,
        reason,
        own: state.pins.own(),
    };
    let now = state.clock.line();
    let changed = state.store.change_pins(&state.tenant, change, actor, now);
    let outcome = changed.await?;
    // The sessions of this backend follow it at once.
    let known = state.pins.refresh().await?;
    let already = match outcome {
        PinOutcome::Done => false,
        PinOutcome::Before => true,
        PinOutcome::Refused(refusal) => {
            return Err(refused(state, &known, &pin, refusal).await?);
        }
    };
    Ok(Json(PinChanged {
        kind: Kind::PinChanged,
        already,
        status: standing(state).await?,
    }))
}

/// Why a step was not taken, with the gateways that it would cut off.
async fn refused(
    state: &ApiState,
    known: &PinsKnown,
    pin: &SpkiPin,
    refusal: RotationRefusal,
) -> ApiResult<ApiError> {
    let what_to_do = || fix(refusal, pin, known);
    let refused = |code| ApiError::new(code, refusal.to_string()).fixed_by(what_to_do());
    if refusal == RotationRefusal::NothingToRetire {
        return Ok(refused(ProblemCode::NotFound));
    }
    let Some(from) = known.rotation.trusted_from(pin) else {
        return Ok(refused(ProblemCode::Conflict));
    };
    if refusal != RotationRefusal::CutOff {
        return Ok(refused(ProblemCode::Conflict));
    }
    let to = known.rotation.set().version;
    let trust = state.store.pin_trust(&state.tenant).await?;
    let missing = total(&trust).saturating_sub(confirmed(&trust, from, to));
    let named = state
        .store
        .untrusting(&state.tenant, from, to, None, NAMED_MAX)
        .await?;
    let gateways = human::counted_all(
        missing,
        "gateway does not trust this key yet and would be cut off",
        "gateways do not trust this key yet and would be cut off",
    );
    let detail = format!("{gateways}; nothing was changed");
    let mut error = ApiError::new(ProblemCode::Conflict, detail).fixed_by(what_to_do());
    let more = missing.saturating_sub(u64::try_from(named.len()).unwrap_or(u64::MAX));
    for gateway in named {
        let session = if gateway.connected {
            "is connected"
        } else {
            "is not connected"
        };
        let problem = format!("trusts version {} and {session}", gateway.version);
        error = error.with(format!("gateways: {}", gateway.name), problem, None);
    }
    if more > 0 {
        let more = human::counted_all(more, "more gateway", "more gateways");
        error = error.with("gateways", format!("and {more}"), None);
    }
    Ok(error)
}

/// What to do about a step that was not taken.
fn fix(refusal: RotationRefusal, pin: &SpkiPin, known: &PinsKnown) -> String {
    let fix = match refusal {
        RotationRefusal::Unknown | RotationRefusal::Retired => {
            return format!("viworks pin stage {pin}, and once gateways trust it the same again");
        }
        RotationRefusal::NothingToRetire => "viworks pin status lists the keys that there are",
        RotationRefusal::TooMany => {
            "viworks pin retire PIN, with one that viworks pin status lists and no backend shows"
        }
        RotationRefusal::TooFew => {
            "viworks pin stage PIN, with the key that is to be the next (docs/certificate_management.md), and the same \
             again"
        }
        RotationRefusal::LiveKeyMissing => {
            let set = known.rotation.set();
            let missing = known.shown.iter().find(|shown| !set.contains(shown));
            if let Some(missing) = missing {
                return format!(
                    "viworks pin stage {missing}, which a backend shows, and the same again"
                );
            }
            "viworks pin status names the key that a backend shows: viworks pin stage PIN"
        }
        RotationRefusal::CutOff => {
            "connect those that are named, or revoke those that are gone, and try again"
        }
        RotationRefusal::Shown => {
            "put the next key in place on each backend (rotate_certificates.sh), and the same again"
        }
        RotationRefusal::Unsaid => {
            "ask again in half a minute; viworks pin status says who has not said it"
        }
        RotationRefusal::VersionsUsedUp => {
            "viworks pin status shows it; other pins have to be put into the gateways' configurations by hand"
        }
    };
    fix.to_owned()
}

fn total(trust: &PinTrust) -> u64 {
    trust
        .values()
        .fold(0, |sum, count| sum.saturating_add(*count))
}

/// How many gateways trust a version from `from` to `to`.
fn confirmed(trust: &PinTrust, from: u64, to: u64) -> u64 {
    // A set that has a key is never older than the first one that has.
    let versions = trust.range(from..=to.max(from));
    versions.fold(0, |sum, (_version, count)| sum.saturating_add(*count))
}

async fn standing(state: &ApiState) -> ApiResult<PinStatus> {
    let known = state.pins.refresh().await?;
    let trust = state.store.pin_trust(&state.tenant).await?;
    let version = known.rotation.set().version;
    let mut keys: Vec<&ServerKey> = known.rotation.keys().collect();
    keys.sort_by_key(|key| (rank(key.state), key.staged_in, key.pin));
    let mut pins = Vec::with_capacity(keys.len());
    for key in keys {
        let mut cut_off = Vec::new();
        if key.state == KeyState::Staged {
            let named = state
                .store
                .untrusting(&state.tenant, key.staged_in, version, None, NAMED_MAX)
                .await?;
            cut_off.extend(named.into_iter().map(gateway));
        }
        let from = known.rotation.trusted_from(&key.pin);
        pins.push(Pin {
            pin: key.pin.to_string(),
            state: word(key.state),
            shown: known.shown.contains(&key.pin),
            staged_in: key.staged_in,
            retired_in: key.retired_in,
            since: key.since,
            confirmed_by: from.map_or(0, |from| confirmed(&trust, from, version)),
            cut_off,
        });
    }
    Ok(PinStatus {
        kind: Kind::PinStatus,
        version,
        gateways: total(&trust),
        pins,
    })
}

const fn rank(state: KeyState) -> u8 {
    match state {
        KeyState::Promoted => 0,
        KeyState::Staged => 1,
        KeyState::Retired => 2,
    }
}

const fn word(state: KeyState) -> PinState {
    match state {
        KeyState::Staged => PinState::Staged,
        KeyState::Promoted => PinState::Promoted,
        KeyState::Retired => PinState::Retired,
    }
}

fn gateway(found: Untrusting) -> PinGateway {
    PinGateway {
        id: found.agent_id,
        name: found.name,
        pin_set_version: found.version,
        online: found.connected,
        last_seen: found.last_seen_at,
    }
}

#[cfg(test)]
mod tests {
    use viworks_common::pin::PinSet;
    use viworks_common::pin::rotation::Rotation;

    use super::*;

    #[test]
    fn the_key_that_is_to_be_staged_first_is_named() {
        let pin = |n| SpkiPin::from_digest([n; 32]);
        let configured = PinSet {
            version: 1,
            pins: [pin(1), pin(2)].into(),
        };
        let known = PinsKnown {
            rotation: Rotation::of(&configured, pin(1), Vec::new()),
            shown: [pin(1), pin(9)].into(),
            stepped: false,
        };
        let fix = fix(RotationRefusal::LiveKeyMissing, &pin(4), &known);
        let named = format!("viworks pin stage {}", pin(9));
        assert!(fix.contains(&named), "{fix}");
    }
}
