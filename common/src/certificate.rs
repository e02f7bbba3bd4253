//! The identity in a gateway's certificate: the one URI name, read without trusting anything else in it.

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::id::{AgentId, Tenant, TrustDomain};
use crate::time::Timestamp;

/// What a gateway's certificate says; the chain is verified elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateIdentity {
    /// The authority's realm.
    pub trust_domain: TrustDomain,
    /// Who owns the gateway.
    pub tenant: Tenant,
    /// The gateway.
    pub agent_id: AgentId,
    /// The first second of its validity.
    pub not_before: Timestamp,
    /// The last second of its validity.
    pub not_after: Timestamp,
    /// The serial number, lower-case hexadecimal without separators.
    pub serial: String,
}

impl CertificateIdentity {
    /// The URI name that says this identity.
    #[must_use]
    pub fn uri(&self) -> String {
        uri(&self.trust_domain, &self.tenant, &self.agent_id)
    }
}

/// The URI name of a gateway's certificate.
#[must_use]
pub fn uri(trust_domain: &TrustDomain, tenant: &Tenant, agent_id: &AgentId) -> String {
    format!("spiffe://{trust_domain}/tenant/{tenant}/gateway/{agent_id}")
}

/// Why a certificate is not a gateway's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateProblem {
    /// The bytes are not exactly one X.509 certificate.
    #[error("the bytes are not one X.509 certificate: {0}")]
    Malformed(String),
    /// It does not allow its holder to authenticate as a client.
    #[error("the certificate is not for client authentication")]
    NotForClients,
    /// It carries no or several URI names, so it does not say one identity.
    #[error("the certificate has {0} URI names instead of one")]
    NotOneUri(usize),
    /// Its URI name is not that of a gateway.
    #[error("the URI name {0:?} is not spiffe://<trust-domain>/tenant/<tenant>/gateway/<agent-id>")]
    NotAGateway(String),
}

/// Reads the identity from a DER certificate. The common name is ignored.
///
/// # Errors
/// The first rule that the certificate breaks.
pub fn parse(der: &[u8]) -> Result<CertificateIdentity, CertificateProblem> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|error| CertificateProblem::Malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(CertificateProblem::Malformed(format!("{} more bytes behind it", rest.len())));
    }
    let malformed = |error: x509_parser::error::X509Error| CertificateProblem::Malformed(error.to_string());
    let for_clients = certificate
        .extended_key_usage()
        .map_err(malformed)?
        .is_some_and(|usage| usage.value.client_auth);
    if !for_clients {
        return Err(CertificateProblem::NotForClients);
    }
    let names = certificate.subject_alternative_name().map_err(malformed)?;
    let general = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let uris: Vec<&str> = general.iter().filter_map(uri_of).collect();
    let [uri] = uris.as_slice() else {
        return Err(CertificateProblem::NotOneUri(uris.len()));
    };
    let (trust_domain, tenant, agent_id) = split(uri)
        .ok_or_else(|| CertificateProblem::NotAGateway(uri.chars().take(200).collect()))?;
    let validity = certificate.validity();
    Ok(CertificateIdentity {
        trust_domain,
        tenant,
        agent_id,
        not_before: timestamp(validity.not_before.timestamp()),
        not_after: timestamp(validity.not_after.timestamp()),
        serial: hex::encode(certificate.raw_serial()),
    })
}

fn uri_of<'a>(name: &GeneralName<'a>) -> Option<&'a str> {
    if let GeneralName::URI(uri) = name { Some(uri) } else { None }
}

fn split(uri: &str) -> Option<(TrustDomain, Tenant, AgentId)> {
    let parts: Vec<&str> = uri.strip_prefix("spiffe://")?.split('/').collect();
    let [trust_domain, "tenant", tenant, "gateway", agent_id] = parts.as_slice() else {
        return None;
    };
    Some((trust_domain.parse().ok()?, tenant.parse().ok()?, agent_id.parse().ok()?))
}

fn timestamp(seconds: i64) -> Timestamp {
    Timestamp::from_unix_micros(seconds.saturating_mul(1_000_000))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType, SerialNumber, date_time_ymd};

    use super::*;

    const URI: &str = "spiffe://fleet.example/tenant/default/gateway/01900000-0000-7000-8000-0000000000ab";

    fn certificate(uris: &[&str], usage: Vec<ExtendedKeyUsagePurpose>) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["gateway.example".to_owned()]).unwrap();
        params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
        params.extended_key_usages = usage;
        params.serial_number = Some(SerialNumber::from(vec![0x0a, 0xbc]));
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2027, 1, 1);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn client(uris: &[&str]) -> Result<CertificateIdentity, CertificateProblem> {
        parse(&certificate(uris, vec![ExtendedKeyUsagePurpose::ClientAuth]))
    }

    #[test]
    fn the_uri_name_says_who_it_is_and_how_long() {
        let identity = client(&[URI]).unwrap();
        assert_eq!(identity.trust_domain.as_str(), "fleet.example");
        assert_eq!(identity.tenant, Tenant::default_tenant());
        assert_eq!(identity.agent_id.to_string(), "01900000-0000-7000-8000-0000000000ab");
        assert_eq!(identity.not_before.unix_micros(), 1_767_225_600_000_000);
        assert_eq!(identity.not_after.unix_micros(), 1_798_761_600_000_000);
        assert_eq!(identity.serial, "0abc");
        assert_eq!(identity.uri(), URI);
    }

    #[test]
    fn no_or_two_uri_names_are_no_identity() {
        assert_eq!(client(&[]), Err(CertificateProblem::NotOneUri(0)));
        assert_eq!(client(&[URI, URI]), Err(CertificateProblem::NotOneUri(2)));
    }

    #[test]
    fn a_certificate_that_is_not_for_clients_is_refused() {
        for usage in [vec![], vec![ExtendedKeyUsagePurpose::ServerAuth]] {
            assert_eq!(parse(&certificate(&[URI], usage)), Err(CertificateProblem::NotForClients));
        }
    }

    #[test]
    fn another_uri_is_not_a_gateway() {
        for uri in [
            "https://fleet.example/tenant/default/gateway/01900000-0000-7000-8000-0000000000ab",
            "spiffe://fleet.example/tenant/default/gateway/01900000-0000-7000-8000-0000000000ab/",
            "spiffe://fleet.example/tenant/default/gateway/01900000-0000-7000-8000-0000000000AB",
            "spiffe://fleet.example/tenant//gateway/01900000-0000-7000-8000-0000000000ab",
            "spiffe:///tenant/default/gateway/01900000-0000-7000-8000-0000000000ab",
            "spiffe://fleet.example/tenant/default/backend/01900000-0000-7000-8000-0000000000ab",
        ] {
            assert_eq!(client(&[uri]), Err(CertificateProblem::NotAGateway(uri.to_owned())));
        }
    }

    #[test]
    fn more_or_fewer_bytes_are_no_certificate() {
        let mut der = certificate(&[URI], vec![ExtendedKeyUsagePurpose::ClientAuth]);
        assert!(matches!(parse(&der[..40]), Err(CertificateProblem::Malformed(_))));
        der.push(0);
        assert_eq!(parse(&der), Err(CertificateProblem::Malformed("1 more bytes behind it".to_owned())));
    }
}
