//! Who a gateway's certificate speaks for: its one URI name, and nothing else in it.

use std::time::Duration;

use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::id::{AgentId, Tenant, TrustDomain};
use crate::key::Identity;
use crate::time::Timestamp;

/// What a certificate says about its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayCertificate {
    /// The trust domain of the URI.
    pub trust_domain: TrustDomain,
    /// Tenant and agent id of the URI.
    pub identity: Identity,
    /// The first moment at which it is valid.
    pub not_before: Timestamp,
    /// The last moment at which it is valid.
    pub not_after: Timestamp,
    /// SHA-256 over its subject public key info: what stays the same when it is renewed for the same key.
    pub spki_sha256: [u8; 32],
}

/// Why a certificate names no gateway.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unnamed {
    /// The bytes are not exactly one certificate.
    #[error("it is not one X.509 certificate")]
    Malformed,
    /// It does not allow its holder to authenticate as a client.
    #[error("it is not for client authentication")]
    NotForClients,
    /// There is no URI name, or more than one name.
    #[error("it must have exactly one alternative name, a URI")]
    NotOneName,
    /// The URI has another form.
    #[error(
        "its URI {0:?} is not of the form spiffe://DOMAIN/tenant/TENANT/gateway/AGENT_ID in lower case"
    )]
    OtherForm(String),
}

/// The longest time before a certificate's end at which somebody is told.
const WARNING_MAX: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Where a certificate is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It has not begun.
    NotYet,
    /// Nobody needs to do anything.
    Good,
    /// It ends soon: in 30 days, or in a quarter of its life if that is less. A gateway has begun to renew it by then.
    EndsSoon {
        /// How much is left.
        left: Duration,
    },
    /// It is over.
    Ended,
}

/// Where a certificate of this validity is in its life at `now`.
#[must_use]
pub fn life(not_before: Timestamp, not_after: Timestamp, now: Timestamp) -> Life {
    if now < not_before {
        return Life::NotYet;
    }
    if now > not_after {
        return Life::Ended;
    }
    let left = not_after.saturating_since(now);
    let whole = not_after.saturating_since(not_before);
    if left <= WARNING_MAX.min(whole / 4) {
        Life::EndsSoon { left }
    } else {
        Life::Good
    }
}

/// The URI that names a gateway.
#[must_use]
pub fn uri(trust_domain: &TrustDomain, identity: &Identity) -> String {
    format!(
        "spiffe://{trust_domain}/tenant/{}/gateway/{}",
        identity.tenant, identity.agent_id
    )
}

/// Reads the name of a gateway from its certificate, DER. The common name is for people and is not looked at.
///
/// # Errors
///
/// When it does not name exactly one gateway.
pub fn read(der: &[u8]) -> Result<GatewayCertificate, Unnamed> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|_malformed| Unnamed::Malformed)?;
    if !rest.is_empty() {
        return Err(Unnamed::Malformed);
    }
    // The chain verifier lets a certificate without this extension pass for every purpose.
    let for_clients = certificate
        .extended_key_usage()
        .map_err(|_repeated| Unnamed::NotForClients)?
        .is_some_and(|usage| usage.value.client_auth);
    if !for_clients {
        return Err(Unnamed::NotForClients);
    }
    let names = certificate
        .subject_alternative_name()
        .map_err(|_repeated| Unnamed::NotOneName)?
        .ok_or(Unnamed::NotOneName)?;
    let [GeneralName::URI(text)] = names.value.general_names.as_slice() else {
        return Err(Unnamed::NotOneName);
    };
    let (trust_domain, identity) =
        parse_uri(text).ok_or_else(|| Unnamed::OtherForm((*text).to_owned()))?;
    let moment = |seconds: i64| Timestamp::from_unix_micros(seconds.saturating_mul(1_000_000));
    let validity = certificate.validity();
    Ok(GatewayCertificate {
        trust_domain,
        identity,
        not_before: moment(validity.not_before.timestamp()),
        not_after: moment(validity.not_after.timestamp()),
        spki_sha256: Sha256::digest(certificate.tbs_certificate.subject_pki.raw).into(),
    })
}

/// Reads the URI that names a gateway; only its one canonical form will do.
#[must_use]
pub fn parse_uri(text: &str) -> Option<(TrustDomain, Identity)> {
    let rest = text.strip_prefix("spiffe://")?;
    let (domain, rest) = rest.split_once("/tenant/")?;
    let (tenant, agent_id) = rest.split_once("/gateway/")?;
    let trust_domain: TrustDomain = domain.parse().ok()?;
    let identity = Identity {
        tenant: tenant.parse::<Tenant>().ok()?,
        agent_id: agent_id.parse::<AgentId>().ok()?,
    };
    // A second spelling of the same id would be a second name of the same gateway.
    (uri(&trust_domain, &identity) == text).then_some((trust_domain, identity))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType, date_time_ymd};

    use super::*;

    const URI: &str =
        "spiffe://viworks.test/tenant/default/gateway/01900000-0000-7000-8000-0000000000ab";

    fn certificate(uris: &[&str], usage: &[ExtendedKeyUsagePurpose]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris
            .iter()
            .map(|uri| SanType::URI((*uri).try_into().unwrap()))
            .collect();
        params.extended_key_usages = usage.to_vec();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2027, 1, 1);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    fn client(uris: &[&str]) -> Result<GatewayCertificate, Unnamed> {
        read(&certificate(uris, &[ExtendedKeyUsagePurpose::ClientAuth]))
    }

    #[test]
    fn a_certificate_says_who_it_speaks_for_and_how_long() {
        let read = client(&[URI]).unwrap();
        assert_eq!(uri(&read.trust_domain, &read.identity), URI);
        assert_eq!(read.not_before.unix_micros(), 1_767_225_600_000_000);
        assert_eq!(read.not_after.unix_micros(), 1_798_761_600_000_000);
        let other = client(&[URI]).unwrap();
        assert_ne!(read.spki_sha256, other.spki_sha256, "of another key");
    }

    #[test]
    fn the_end_is_told_thirty_days_or_a_quarter_of_the_life_before_whichever_is_later() {
        let day = Duration::from_secs(24 * 3_600);
        let start = Timestamp::from_unix_micros(1_000_000);
        let at = |days: u32| start.saturating_add(day * days);
        let judged = |lives: u32, days: u32| life(start, at(lives), at(days));
        assert_eq!(judged(397, 366), Life::Good);
        assert_eq!(judged(397, 367), Life::EndsSoon { left: day * 30 });
        assert_eq!(judged(90, 67), Life::Good);
        assert_eq!(judged(90, 68), Life::EndsSoon { left: day * 22 });
        assert_eq!(judged(9, 6), Life::Good);
        assert_eq!(judged(9, 7), Life::EndsSoon { left: day * 2 });
        assert_eq!(
            judged(9, 9),
            Life::EndsSoon {
                left: Duration::ZERO
            }
        );
        assert_eq!(judged(9, 10), Life::Ended);
        assert_eq!(life(at(1), at(2), at(0)), Life::NotYet);
    }

    #[test]
    fn a_certificate_that_is_not_for_clients_names_nobody() {
        for usage in [&[][..], &[ExtendedKeyUsagePurpose::ServerAuth]] {
            let refused = read(&certificate(&[URI], usage));
            assert_eq!(refused, Err(Unnamed::NotForClients), "{usage:?}");
        }
    }

    #[test]
    fn no_name_and_two_names_are_both_no_identity() {
        assert_eq!(client(&[]), Err(Unnamed::NotOneName));
        assert_eq!(client(&[URI, URI]), Err(Unnamed::NotOneName));
    }

    #[test]
    fn bytes_behind_a_certificate_are_refused() {
        let mut der = certificate(&[URI], &[ExtendedKeyUsagePurpose::ClientAuth]);
        der.push(0);
        assert_eq!(read(&der), Err(Unnamed::Malformed));
    }

    #[test]
    fn only_the_canonical_form_names_a_gateway() {
        let id = "01900000-0000-7000-8000-0000000000ab";
        let good = format!("spiffe://viworks.test/tenant/default/gateway/{id}");
        let (domain, identity) = parse_uri(&good).unwrap();
        assert_eq!(domain.as_str(), "viworks.test");
        assert_eq!(identity.agent_id.to_string(), id);
        for bad in [
            good.replace("spiffe", "https"),
            good.replace("/tenant/default", ""),
            good.replace("default", "Default"),
            good.replace("gateway/", "operator/"),
            good.replace("0000000000ab", "0000000000AB"),
            format!("{good}/"),
            format!("{good}?x"),
            good.to_uppercase(),
        ] {
            assert_eq!(parse_uri(&bad), None, "{bad}");
        }
    }

    #[test]
    fn bytes_that_are_no_certificate_name_nobody() {
        assert_eq!(read(b"not a certificate"), Err(Unnamed::Malformed));
    }
}
