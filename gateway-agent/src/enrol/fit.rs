//! Whether a certificate that was answered is this machine's: for its key, with its name, and of the authority that
//! comes with it. Nothing is written before that is known, whichever way the answer came.

use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, UnixTime};
use sha2::{Digest as _, Sha256};
use viworks_common::certificate;
use viworks_common::enrolment::EnrolmentAnswer;
use viworks_common::human;
use viworks_common::key::Identity;
use viworks_common::pem;
use viworks_common::text;
use viworks_common::time::Timestamp;
use viworks_runtime::tls;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

/// Most certificates in a chain or among the authorities.
const CERTIFICATES_MAX: usize = 16;

/// SHA-256 of the public key that a request is for, PEM.
pub(super) fn key_of(request: &str) -> Option<[u8; 32]> {
    let der = CertificateSigningRequestDer::from_pem_slice(request.as_bytes()).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&der).ok()?;
    let key = request.certification_request_info.subject_pki.raw;
    Some(Sha256::digest(key).into())
}

/// Holds the certificate of an answer against the key that the request was for; the first and the last moment of its
/// life.
///
/// # Errors
///
/// What does not fit, on one line.
pub(super) fn examine(
    answer: &EnrolmentAnswer,
    key: Option<[u8; 32]>,
) -> Result<(Timestamp, Timestamp), String> {
    let chain = certificates("its certificate", &answer.certificate)?;
    let authorities = certificates("its authority", &answer.authority)?;
    let Some((leaf, between)) = chain.split_first() else {
        return Err("its certificate is empty".to_owned());
    };
    let says = certificate::read(leaf)
        .map_err(|unnamed| format!("its certificate is no gateway's: {unnamed}"))?;
    let identity = Identity {
        tenant: answer.tenant.clone(),
        agent_id: answer.agent_id,
    };
    if says.identity != identity || says.trust_domain != answer.trust_domain {
        let (named, meant) = (
            certificate::uri(&says.trust_domain, &says.identity),
            certificate::uri(&answer.trust_domain, &identity),
        );
        return Err(format!(
            "its certificate names {named}, and it is about {meant}"
        ));
    }
    if Some(says.spki_sha256) != key {
        return Err(
            "its certificate is for another key than the one that was made here: it is another \
             machine's, or of another request"
                .to_owned(),
        );
    }
    leads_to(
        leaf,
        between,
        authorities,
        (says.not_before, says.not_after),
    )?;
    Ok((says.not_before, says.not_after))
}

/// Whether the chain holds, at a moment at which the certificate is good: what time it is, is another question. Not at
/// its very first, which is set back, so that those above it may not have begun.
fn leads_to(
    leaf: &CertificateDer<'_>,
    between: &[CertificateDer<'_>],
    authorities: Vec<CertificateDer<'static>>,
    (from, to): (Timestamp, Timestamp),
) -> Result<(), String> {
    let told = |error: &dyn std::error::Error| {
        let error = error.to_string();
        format!(
            "its certificate does not lead to the authority that comes with it: {}",
            text::line(&error)
        )
    };
    let roots = tls::roots(authorities).map_err(|error| told(&error))?;
    let verifier = tls::client_verifier(roots).map_err(|error| told(&error))?;
    let good = from.saturating_add(to.saturating_since(from) / 4);
    let seconds = good.unix_micros().div_euclid(1_000_000);
    let moment = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let moment = UnixTime::since_unix_epoch(moment);
    let judged = verifier.verify_client_cert(leaf, between, moment);
    judged.map(drop).map_err(|error| told(&error))
}

/// The certificates of a PEM text, one at least.
fn certificates(what: &str, text: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let certificate = certificate.map_err(|error| format!("{what} is no PEM: {error}"))?;
        // Whatever it says is read here once, so that no agent meets it for the first time.
        tls::validity(&certificate).map_err(|error| {
            let error = error.to_string();
            format!("{what} cannot be read: {}", text::line(&error))
        })?;
        if found.len() == CERTIFICATES_MAX {
            let most = human::counted(CERTIFICATES_MAX, "certificate", "certificates");
            return Err(format!("{what} has more than {most}"));
        }
        found.push(certificate);
    }
    if found.is_empty() {
        return Err(format!("{what} has no certificate in it"));
    }
    if !pem::has_no_other(text, pem::CERTIFICATE) {
        return Err(format!("{what} has something else than certificates in it"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rcgen::{
        BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa,
        Issuer, KeyPair, PublicKeyData as _, SanType,
    };
    use uuid::Uuid;
    use viworks_common::id::AgentId;
    use viworks_common::key::BindingMode;
    use viworks_common::pin::{PinSet, SpkiPin};

    use super::*;

    struct Site {
        issuer: Issuer<'static, KeyPair>,
        authority: String,
    }

    fn site(name: &str) -> Site {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let authority = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Site { issuer, authority }
    }

    fn signed(
        site: &Site,
        key: &KeyPair,
        names: &[&str],
        usage: ExtendedKeyUsagePurpose,
    ) -> String {
        let mut params = CertificateParams::default();
        let name = |name: &&str| SanType::URI((*name).try_into().unwrap());
        params.subject_alt_names = names.iter().map(name).collect();
        params.extended_key_usages = vec![usage];
        params.signed_by(key, &site.issuer).unwrap().pem()
    }

    fn answer(certificate: &str, authority: &str) -> EnrolmentAnswer {
        EnrolmentAnswer {
            tenant: "default".parse().unwrap(),
            agent_id: AgentId::from_uuid(Uuid::from_u128(7)),
            name: "gw-1".parse().unwrap(),
            trust_domain: "viworks.test".parse().unwrap(),
            certificate: certificate.to_owned(),
            not_after: Timestamp::from_unix_micros(1_000_000),
            authority: authority.to_owned(),
            key_generation: 1,
            epoch: 0,
            sealed: String::new(),
            pins: PinSet {
                version: 1,
                pins: BTreeSet::from([SpkiPin::from_digest([5; 32])]),
            },
            binding: BindingMode::Exporter,
            labels: [].into(),
            url: "wss://a.test".to_owned(),
        }
    }

    #[test]
    fn a_certificate_that_is_not_this_machines_is_refused_before_anything_is_written() {
        let (own, other) = (site("own"), site("other"));
        let key = KeyPair::generate().unwrap();
        let spki: [u8; 32] = Sha256::digest(key.subject_public_key_info()).into();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key).unwrap().pem().unwrap();
        assert_eq!(key_of(&request), Some(spki));
        assert_eq!(key_of("a request"), None);

        let mine =
            "spiffe://viworks.test/tenant/default/gateway/00000000-0000-0000-0000-000000000007";
        let yours =
            "spiffe://viworks.test/tenant/default/gateway/00000000-0000-0000-0000-000000000008";
        let client = || ExtendedKeyUsagePurpose::ClientAuth;
        let good = signed(&own, &key, &[mine], client());
        let stranger = KeyPair::generate().unwrap();
        let examined = |certificate: &str, authority: &str| {
            examine(&answer(certificate, authority), Some(spki))
        };
        assert!(examined(&good, &own.authority).is_ok());
        let cut = good.replace("\n-----END", "AAAA\n-----END");
        let server = ExtendedKeyUsagePurpose::ServerAuth;
        let authority = own.authority.as_str();
        let none = "certificate".to_owned();
        let with_key = format!("{}{}", own.authority, stranger.serialize_pem());
        for (certificate, authority, told) in [
            (none, authority, "its certificate has no certificate"),
            (cut, authority, "its certificate"),
            (
                good.clone(),
                "authority",
                "its authority has no certificate",
            ),
            (good.clone(), &*with_key, "its authority has something else"),
            (
                good.clone(),
                &*other.authority,
                "does not lead to the authority",
            ),
            (
                signed(&other, &key, &[mine], client()),
                authority,
                "does not lead to",
            ),
            (
                signed(&own, &key, &[yours], client()),
                authority,
                "names spiffe",
            ),
            (
                signed(&own, &key, &[mine, yours], client()),
                authority,
                "exactly one",
            ),
            (
                signed(&own, &key, &[mine], server),
                authority,
                "not for client",
            ),
            (
                signed(&own, &stranger, &[mine], client()),
                authority,
                "another key",
            ),
        ] {
            let refused = examined(&certificate, authority).unwrap_err();
            assert!(refused.contains(told), "{told}: {refused}");
            assert!(!refused.contains(char::is_control), "{refused:?}");
        }
        // Whoever has no key of a request fits nothing.
        assert!(examine(&answer(&good, &own.authority), None).is_err());
    }
}
