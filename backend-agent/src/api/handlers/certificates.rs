//! The certificates of one gateway: list, revoke.

use axum::Json;
use axum::extract::State;
use viworks_api::{
    CertificateList, CertificateRef, CertificateRevoked, CertificateState, EarlierCertificate,
    GatewayCertificate, GatewayRef, Kind, NamedGateway, ProblemCode, RevokeRequest,
};
use viworks_common::time::Timestamp;

use super::gateways::{find, given_reason};
use crate::api::extract::{Caller, JsonBody, NoParams, PageParams, Params, Segment, Segments};
use crate::api::problem::{ApiError, ApiResult};
use crate::api::request::{Api, RequestId};
use crate::data::{self, CertificateRevocation, RegisteredCertificate};

/// The latest certificates of a gateway, the last one first.
#[utoipa::path(get, path = "/v1/gateways/{gateway}/certificates", operation_id = "listGatewayCertificates",
    tag = "gateways",
    params(("gateway" = String, Path, description = "Its id or its name"), PageParams),
    responses((status = 200, description = "One page", body = CertificateList)))]
pub(in crate::api) async fn list(
    State(state): Api,
    Segment(which): Segment<GatewayRef>,
    Params(params): Params<PageParams>,
) -> ApiResult<Json<CertificateList>> {
    let page = params.page::<CertificateRef>()?;
    let gateway = find(&state, which).await?;
    // Bounded by the store.
    let known = state
        .store
        .list_certificates(&state.tenant, gateway.agent_id)
        .await?;
    let mut all = known.iter().map(|known| view(known, gateway.revoked_at));
    if let Some(after) = &page.after {
        let after = after.to_string();
        let _seen = all.find(|certificate| certificate.fingerprint == after);
    }
    let items: Vec<GatewayCertificate> = all.by_ref().take(page.limit).collect();
    let more = all.next().is_some();
    let last = items.last().filter(|_last| more);
    let next = last.map(|last| last.fingerprint.clone());
    Ok(Json(CertificateList::new(items, next)))
}

/// Revokes one certificate of a gateway, at once: a session that was opened with it ends, wherever it is, and none is
/// opened with it any more. The gateway's other certificates go on. Revoking twice is revoking once.
#[utoipa::path(post, path = "/v1/gateways/{gateway}/certificates/{certificate}/revoke",
    operation_id = "revokeCertificate", tag = "gateways",
    params(("gateway" = String, Path, description = "Its id or its name"),
        ("certificate" = String, Path, description = "Its SHA-256 fingerprint, or its serial number, in hexadecimal")),
    request_body = RevokeRequest,
    responses((status = 200, description = "What became of it", body = CertificateRevoked)))]
pub(in crate::api) async fn revoke(
    State(state): Api,
    Caller(principal): Caller,
    RequestId(request_id): RequestId,
    Segments(which, certificate): Segments<GatewayRef, CertificateRef>,
    _params: Params<NoParams>,
    body: JsonBody<RevokeRequest>,
) -> ApiResult<Json<CertificateRevoked>> {
    let reason = given_reason(&body.value)?;
    let found = find(&state, which).await?;
    let actor = principal.actor(&request_id);
    let certificate = stored(certificate)?;
    let revoked = state
        .commands
        .revoke_certificate(found.agent_id, &certificate, reason, &actor)
        .await
        .map_err(ApiError::of_revocation)?;
    let revoked = match revoked {
        CertificateRevocation::Revoked(revoked) => *revoked,
        CertificateRevocation::Unknown => return Err(ApiError::not_found("certificate")),
        CertificateRevocation::Ambiguous => {
            return Err(ApiError::new(
                ProblemCode::NotFound,
                "the gateway has more than one certificate with this serial number; name one by its fingerprint",
            ));
        }
    };
    Ok(Json(CertificateRevoked {
        kind: Kind::CertificateRevoked,
        already: revoked.already,
        session_ended: revoked.session_ended,
        certificate: view(&revoked.certificate, found.revoked_at),
        named: revoked.named.map(|named| EarlierCertificate {
            serial: named.serial,
            fingerprint: hex::encode(named.fingerprint),
            not_after: named.not_after,
            reissued_at: named.reissued_at,
        }),
        to_be_proved: revoked
            .unproved
            .iter()
            .map(|known| view(known, found.revoked_at))
            .filter(|known| known.state == CertificateState::ToBeProved)
            .collect(),
        gateway: NamedGateway {
            id: found.agent_id,
            name: found.name,
        },
    }))
}

fn stored(certificate: CertificateRef) -> ApiResult<data::CertificateRef> {
    Ok(match certificate {
        CertificateRef::Serial(serial) => data::CertificateRef::Serial(serial),
        CertificateRef::Fingerprint(digits) => {
            let mut fingerprint = [0; 32];
            hex::decode_to_slice(digits, &mut fingerprint)
                .map_err(|_no_digits| ApiError::not_found("certificate"))?;
            data::CertificateRef::Fingerprint(fingerprint)
        }
    })
}

fn view(known: &RegisteredCertificate, gateway_revoked: Option<Timestamp>) -> GatewayCertificate {
    let revoked = known.revoked_at.or(gateway_revoked);
    let (state, since) = if revoked.is_some() {
        (CertificateState::Revoked, revoked)
    } else if known.retired_at.is_some() {
        (CertificateState::Retired, known.retired_at)
    } else if known.unproved {
        (CertificateState::ToBeProved, None)
    } else {
        (CertificateState::InUse, None)
    };
    GatewayCertificate {
        serial: known.serial.clone(),
        fingerprint: hex::encode(known.fingerprint),
        registered_at: known.issued_at,
        not_after: known.not_after,
        state,
        since,
    }
}
