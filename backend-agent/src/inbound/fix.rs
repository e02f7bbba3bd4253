//! What whoever runs the backend does about a gateway that is refused: each refusal has its own.

use std::io;

use rustls::{CertificateError, Error as TlsError};
use viworks_common::code::{CloseCode, RETIRED};
use viworks_common::id::GatewayName;
use viworks_common::session::HELLO_UNPROVED;

use crate::agent::registry::Unrecognised;

/// Of a handshake that failed, where its error says what is wrong with the other end's certificate.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the TLS library adds errors; what is not named here is told by its words alone"
)]
pub(super) fn of_tls(error: &io::Error) -> Option<&'static str> {
    let error: &TlsError = error.get_ref()?.downcast_ref()?;
    match error {
        TlsError::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => Some(
            "the gateway's certificate has ended: it gets another one by itself at the door of [enrolment], if its door_url is set and it reaches it; otherwise see which one in `viworks gateway expiring`, which says what to do, or compare both clocks",
        ),
        TlsError::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => Some("the gateway's certificate is not valid yet: compare both clocks"),
        TlsError::InvalidCertificate(_) => Some(
            "the certificate is of another authority than client_ca_file in [agents]: give the gateway one of this authority, or look who dials",
        ),
        TlsError::NoCertificatesPresented => Some(
            "no certificate was shown: no gateway dials so; a proxy in front has to pass TLS through (docs/operations/reverse_proxy.md)",
        ),
        _ => None,
    }
}

/// Whether a handshake failed because the other end's certificate is over.
pub(super) fn is_of_an_end(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(
        error,
        Some(TlsError::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. }
        ))
    )
}

/// The same about a gateway whose name is known.
pub(super) fn about(fix: &str, gateway: Option<&GatewayName>) -> String {
    gateway.map_or_else(|| fix.to_owned(), |name| fix.replace("NAME", name.as_str()))
}

/// Of a certificate that leads to our authority.
pub(super) const fn of_certificate(unrecognised: &Unrecognised) -> &'static str {
    match unrecognised {
        Unrecognised::NoName(_) | Unrecognised::NotShown => {
            "give the gateway a certificate that this backend's authority made for it"
        }
        Unrecognised::ForeignTrustDomain(_) => {
            "see that trust_domain in [agents] is the one of the gateways' certificates, and that the gateway dials its own backend"
        }
        Unrecognised::NotRegistered(_) => {
            "see that this backend uses the database in which the gateway is; if it does, somebody made a certificate without registering it, or the database is older than the gateway: let the machine in anew"
        }
        Unrecognised::CertificateRevoked(_) => {
            "no action if it was revoked on purpose and the gateway goes on with another one; otherwise let the machine in anew: viworks gateway replace NAME"
        }
        Unrecognised::Replaced(_) => {
            "no action if the machine behind the address was replaced by another one: switch its agent off; otherwise look for whoever has the gateway's files"
        }
        Unrecognised::Revoked(_) => {
            "no action if it was thrown out on purpose; to let the machine in again: viworks gateway replace NAME"
        }
        Unrecognised::Retired(_) => RETIRED,
        Unrecognised::Store(_) => "see that the database answers",
    }
}

/// Of an opening that came to nothing.
pub(super) fn of_opening(code: Option<CloseCode>, reason: &str) -> &'static str {
    match code {
        Some(CloseCode::BadEnvelope) if reason == HELLO_UNPROVED => {
            "whoever dials has the gateway's certificate and not its agent key: see that its identity file is the one that came with the certificate and that this backend has its master key; otherwise somebody took the certificate: revoke the gateway"
        }
        Some(code) => code.advice_for(reason),
        None => "",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use uuid::Uuid;
    use viworks_common::id::{AgentId, Tenant};
    use viworks_common::key::Identity;
    use viworks_common::time::Timestamp;

    use super::*;
    use crate::agent::registry::Peer;

    fn peer() -> Box<Peer> {
        Box::new(Peer {
            identity: Identity {
                tenant: Tenant::default_tenant(),
                agent_id: AgentId::from_uuid(Uuid::nil()),
            },
            name: "gw-1".parse().unwrap(),
            fingerprint: [0; 32],
            not_before: Timestamp::from_unix_micros(0),
            not_after: Timestamp::from_unix_micros(0),
            remaining: Duration::ZERO,
            confirmed: 0,
            unproved: None,
            spki: [0; 32],
            signed_by: None,
        })
    }

    /// What the gateway shows of the reasons that this backend gives.
    #[test]
    fn a_gateway_shows_the_way_back_that_fits_the_reason() {
        let told = |it: &Unrecognised| it.code().advice_for(it.reason());
        let all = [
            told(&Unrecognised::Revoked(peer())),
            told(&Unrecognised::CertificateRevoked(peer())),
            told(&Unrecognised::Replaced(peer())),
            told(&Unrecognised::Retired(peer())),
            told(&Unrecognised::NotRegistered(None)),
        ];
        assert_eq!(BTreeSet::from(all).len(), all.len(), "{all:#?}");
        // Whoever knocks may be a thief: nothing is offered to him first.
        let place = |word: &str| all[2].find(word).unwrap();
        assert!(
            place("stop the agent here") < place("ticket create"),
            "{}",
            all[2]
        );
        assert!(all[2].contains("is yours"), "{}", all[2]);
        // As it is typed, and for whom there is no fork as well.
        for way in ["resolve NAME --keep ID", "gateway replace NAME"] {
            assert!(all[3].contains(way), "{}", all[3]);
        }
        assert_eq!(all[3], of_certificate(&Unrecognised::Retired(peer())));
    }

    #[test]
    fn a_gateway_that_is_known_is_named_in_the_command() {
        let fix = of_certificate(&Unrecognised::Revoked(peer()));
        let told = about(fix, Unrecognised::Revoked(peer()).gateway());
        assert!(told.ends_with("viworks gateway replace gw-1"), "{told}");
        assert_eq!(about(fix, None), fix);
    }

    fn tls(error: CertificateError) -> &'static str {
        let error = TlsError::InvalidCertificate(error);
        of_tls(&io::Error::new(io::ErrorKind::InvalidData, error)).unwrap()
    }

    #[test]
    fn every_refusal_has_a_fix_of_its_own() {
        let fixes = [
            of_certificate(&Unrecognised::Revoked(peer())),
            of_certificate(&Unrecognised::Replaced(peer())),
            of_certificate(&Unrecognised::Retired(peer())),
            of_certificate(&Unrecognised::CertificateRevoked(peer())),
            of_certificate(&Unrecognised::NotRegistered(None)),
            of_opening(Some(CloseCode::BadEnvelope), HELLO_UNPROVED),
            of_opening(Some(CloseCode::IdentityFork), "whatever it says"),
            tls(CertificateError::Expired),
            tls(CertificateError::UnknownIssuer),
            tls(CertificateError::NotValidYet),
        ];
        let own = BTreeSet::from(fixes);
        assert_eq!(own.len(), fixes.len(), "{fixes:#?}");
        assert!(fixes.iter().all(|fix| fix.len() > 20), "{fixes:#?}");
        let over = TlsError::InvalidCertificate(CertificateError::Expired);
        assert!(is_of_an_end(&io::Error::other(over)));
        let other = io::Error::other("reset");
        assert!(!is_of_an_end(&other));
        assert_eq!(of_tls(&other), None);
    }
}
