//! Signing a gateway's certificate at the door.

use std::sync::Arc;
use std::time::Duration;

use viworks_common::id::GatewayName;
use viworks_common::key::Identity;
use viworks_common::time::Timestamp;
use viworks_runtime::blocking;

use super::office::TicketOffice;
use crate::pki::authority::Facts;
use crate::pki::issue::Office;
use crate::pki::request::CertificateRequest;
use crate::pki::{PkiError, signer, signing};

/// Makes the certificate of a gateway for the key that is asked for. Nobody accepts it before it is registered.
pub(super) async fn sign(
    tickets: &TicketOffice,
    office: &Office,
    csr: &CertificateRequest,
    identity: &Identity,
    name: &GatewayName,
    now: Timestamp,
) -> Result<(String, Facts), PkiError> {
    let life = tickets.certificate_life();
    let signed = by_authority(office, csr, identity, name, now, life).await;
    signing::tell(tickets.conditions(), &signed);
    signed
}

async fn by_authority(
    office: &Office,
    csr: &CertificateRequest,
    identity: &Identity,
    name: &GatewayName,
    now: Timestamp,
    life: Duration,
) -> Result<(String, Facts), PkiError> {
    let (domain, authority) = (&office.trust_domain, &office.authority);
    if !authority.is_asked() {
        return authority.gateway_of(&csr.key, domain, identity, name, now, life);
    }
    // Whoever has the key may take its time.
    let (authority, key) = (Arc::clone(authority), csr.key.clone());
    let (domain, identity, name) = (domain.clone(), identity.clone(), name.clone());
    let sign = move || authority.gateway_of(&key, &domain, &identity, &name, now, life);
    let signed = blocking::call("enrolment signatures", signer::WAIT, sign).await;
    signed.unwrap_or_else(|error| {
        let reason = error.to_string();
        Err(PkiError::Unsigned { reason })
    })
}
