//! Certificate requests of machines that become gateways: only their key is wanted, and it must be theirs.

use rcgen::{
    CertificateSigningRequestParams, IsCa, PKCS_ECDSA_P256_SHA256, PublicKey, PublicKeyData,
};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest, Sha256};
use viworks_common::pem;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::FromDer as _;

/// Bytes of an uncompressed point of P-256.
const POINT_BYTES: usize = 65;

/// A request that was found good.
#[derive(Debug, Clone)]
pub struct CertificateRequest {
    /// The key that it is for.
    pub key: PublicKey,
    /// SHA-256 of the DER SubjectPublicKeyInfo.
    pub spki: [u8; 32],
}

/// Why no certificate is made for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// It is none, or not one alone.
    #[error(
        "the certificate request cannot be read: send one PKCS #10 request, PEM, and nothing beside it"
    )]
    Malformed,
    /// Whoever made it does not have the key.
    #[error(
        "the certificate request is not signed by the key that it is for: make it with that key"
    )]
    Signature,
    /// The key is of another kind.
    #[error("the certificate request is for another kind of key than ECDSA P-256: make such a key")]
    Key,
    /// It is signed in another way.
    #[error("the certificate request is signed in another way than ECDSA with SHA-256: sign it so")]
    Algorithm,
    /// It asks for what is not its own to choose.
    #[error(
        "the certificate request asks for names or uses: leave them out, they come from the ticket and the backend"
    )]
    Names,
}

impl BadRequest {
    /// The word for programs, the audit trail and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "csr_malformed",
            Self::Signature => "csr_signature",
            Self::Key => "csr_key",
            Self::Algorithm => "csr_algorithm",
            Self::Names => "csr_names",
        }
    }

    fn of(error: &rcgen::Error) -> Self {
        let known = [
            (
                rcgen::Error::InvalidCertificationRequestSignature,
                Self::Signature,
            ),
            (rcgen::Error::UnsupportedExtension, Self::Names),
            (rcgen::Error::UnsupportedSignatureAlgorithm, Self::Algorithm),
        ];
        let found = known.into_iter().find(|(known, _)| known == error);
        found.map_or(Self::Malformed, |(_, why)| why)
    }
}

impl CertificateRequest {
    /// Reads and verifies a request, PEM.
    ///
    /// # Errors
    ///
    /// Why it is not good.
    pub fn read(text: &str) -> Result<Self, BadRequest> {
        // Of several nobody can say which one is meant, and what else is sent, such as a key, is not to be.
        if pem::labels(text).count() != 1 {
            return Err(BadRequest::Malformed);
        }
        let der = CertificateSigningRequestDer::from_pem_slice(text.as_bytes())
            .map_err(|_no_request| BadRequest::Malformed)?;
        // Before its signature, which for a weak key cannot be verified, and would be told of instead.
        if !is_p256(&der)? {
            return Err(BadRequest::Key);
        }
        let read = CertificateSigningRequestParams::from_der(&der);
        let CertificateSigningRequestParams { params, public_key } =
            read.map_err(|error| BadRequest::of(&error))?;
        if PublicKeyData::algorithm(&public_key) != &PKCS_ECDSA_P256_SHA256 {
            return Err(BadRequest::Algorithm);
        }
        let asks = params.distinguished_name.iter().next().is_some()
            || !params.subject_alt_names.is_empty()
            || !params.key_usages.is_empty()
            || !params.extended_key_usages.is_empty()
            || params.is_ca != IsCa::NoCa;
        if asks {
            return Err(BadRequest::Names);
        }
        Ok(Self {
            spki: Sha256::digest(public_key.subject_public_key_info()).into(),
            key: public_key,
        })
    }
}

/// Whether it is for an uncompressed point of P-256.
fn is_p256(der: &[u8]) -> Result<bool, BadRequest> {
    let (rest, request) =
        X509CertificationRequest::from_der(der).map_err(|_other| BadRequest::Malformed)?;
    if !rest.is_empty() {
        return Err(BadRequest::Malformed);
    }
    let key = &request.certification_request_info.subject_pki;
    let curve = key.algorithm.parameters.as_ref();
    let curve = curve.and_then(|curve| curve.as_oid().ok());
    Ok(key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
        && curve.is_some_and(|curve| curve == OID_EC_P256)
        && key.subject_public_key.data.len() == POINT_BYTES)
}

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair,
        PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType,
    };
    use viworks_testkit::foreign::ForeignSigner;

    use super::*;

    fn plain() -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
    }

    fn made(params: &CertificateParams, key: &KeyPair) -> String {
        params.serialize_request(key).unwrap().pem().unwrap()
    }

    #[test]
    fn a_request_for_a_key_of_its_own_is_good() {
        let key = KeyPair::generate().unwrap();
        let read = CertificateRequest::read(&made(&plain(), &key)).unwrap();
        let spki: [u8; 32] = Sha256::digest(key.subject_public_key_info()).into();
        assert_eq!(read.spki, spki);
    }

    #[test]
    fn one_request_is_one_and_nothing_beside_it() {
        let (first, second) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let request = made(&plain(), &first);
        for more in [
            made(&plain(), &second),
            request.clone(),
            second.serialize_pem(),
            "-----BEGIN CERTIFICATE REQUEST-----\n".to_owned(),
        ] {
            for text in [format!("{request}{more}"), format!("{more}{request}")] {
                let refused = CertificateRequest::read(&text).unwrap_err();
                assert_eq!(refused, BadRequest::Malformed, "{text}");
                assert!(refused.to_string().contains("send one PKCS #10 request"));
            }
        }
        // As OpenSSL prints it with `-text`.
        let told = format!("Certificate Request:\n    Data:\n{request}");
        assert!(CertificateRequest::read(&told).is_ok());
    }

    /// Of OpenSSL: RSA with 2048 and with 1024 bits, secp256k1 and P-224.
    const OTHERS: [&str; 4] = [
        "-----BEGIN CERTIFICATE REQUEST-----\nMIICRTCCAS0CAQAwADCCASIwDQYJKoZIhvcNAQEBBQADggEPADCCAQoCggEBAJUA\nhVG/TI1oU2OsaRcrx+ThShTKMu5TpOggqMWXUUj8JIla5I0RN26DozuoVIiSqTXj\n50T1v5pRr8L1f0Wey/gdrQBTCh8iGHi4Tr4vxB8BAxj0Db9K2gve8T73xGxWongT\nP1dhhI7BIXj7OYFnsxvlk3FCRLb996n34WAdhvm4upkp+ifNA1119B6HxXr2c+ok\nNQEcj8oUkyHZJ1fMcxVwiuLWXwpJbj0xts4xAArc7Ru0CZ/p5wHEg6ms5oMnUO7v\n/U8pQSeTEHf8o2sQW6Nq1xZ/HU9sLz/TBlebp07Okv+vsnXjYS33cLn6lDFDCrcv\nHIAi1JdOABElZIVS8S0CAwEAAaAAMA0GCSqGSIb3DQEBCwUAA4IBAQCMZprlZk9V\no/2kKyDny/HfAa6witSEeyacsJHzdmTa7MGSn9HdRWtElmPvlksTKLNpc/0OkFx1\nDtAxExPsaRYn5izVE5B1giCF/Q6uhdPZuwA+fcaY7nMcDlMe3TASRHznBftu8eDl\nLY7vBPEplF6PfvD+Y147v/NpXZgHRJO+oTx8zk0pr4j0VIbewOc5AUql9aPrHD8o\n7oc6yCQ0CC76BU/GX8/+sQlYaBsrMawbYacTYRAzCwEXyVu0+58n78wX1SochmjW\nx0xqWpBdn3wZdXDHaTpRooQAfQYlnswjl9FKwKv+cDYFApjVMACQaDBPDkGGhC41\n51I95TEiENnx\n-----END CERTIFICATE REQUEST-----",
        "-----BEGIN CERTIFICATE REQUEST-----\nMIIBPzCBqQIBADAAMIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCbNcUH5EBR\nf/4ylHuBnSDlDEUX5Ms2Vz7jUwJGFwEwiWwhAw8KAGz1tqQEPTf6zlPTh9Kn6+kW\n7Liq0wAKdiVNykWQfauR7heawWud+5WAOIvwn7DwDCjaGwriBLYY3PgYgQxaEhA8\ni/W8R6JY34x8BbtYdn2TT4QRfaD7QG0ITQIDAQABoAAwDQYJKoZIhvcNAQELBQAD\ngYEAb5jvFXUm1mqXY7VPbSo+bLqRXo2w1d4JyMlvE2MB5M7r4ZY+jJoSK0tJw9oR\nCmy6ekRmMnUMB5HVoJvre+W000CW2+KOmngU53F4CRn0t3L1adUM2oONrgpGc8ze\nAesO5J/CIHA4EBBZ7vcpLRWWZKl+xICeedAZYqipKx+RiGY=\n-----END CERTIFICATE REQUEST-----",
        "-----BEGIN CERTIFICATE REQUEST-----\nMIG3MF8CAQAwADBWMBAGByqGSM49AgEGBSuBBAAKA0IABJugcSRJtWrpi9N15H7h\nO03b+MRrDDrmOaAtZL0lsdN7QEpwN9lNhYRNQP1UARKICfkuhJdbH4OvuWrN25kT\ngCygADAKBggqhkjOPQQDAgNIADBFAiEAjw+SRF8cpIYHcIL8j2fLIJRor+Enx/rk\nSTyIOh86eAICICZ68X16VH1H2xz79QhE/kmHThkNYzHzpowWJwT8Iz9b\n-----END CERTIFICATE REQUEST-----",
        "-----BEGIN CERTIFICATE REQUEST-----\nMIGmMFcCAQAwADBOMBAGByqGSM49AgEGBSuBBAAhAzoABDPyDpjhJd8v52EL2gDy\n6E9w3ACzdGKYu8rDiVjBbrsnLbXjWtg+hqVHtd3YJKmCsrz44jq2Khk4oAAwCgYI\nKoZIzj0EAwIDPwAwPAIcUjPSxMzX1AwRtsqSjpG8YO9mB6+G5Evn0FRYYgIcdr4J\nUZXJ2BCNPah4wF78JNwQbswcVyMoBtDzOg==\n-----END CERTIFICATE REQUEST-----",
    ];

    /// Of OpenSSL: P-256, signed with SHA-384.
    const OTHERWISE: &str = "-----BEGIN CERTIFICATE REQUEST-----\nMIG6MGICAQAwADBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABNSg3FZcjZ3SjS6l\n3N2fzFl7RvYgTCbkg6MVvljcf7GAHT2d+8hQUjfi4+JtiGBaXQ9Q5UjEya65em0D\nGs2lkHCgADAKBggqhkjOPQQDAwNIADBFAiEA7P0tZXhbDjGPA7bwvPD0k6JNVcF6\ntAVesBYapLNnuHkCIEUIPhrLjJHPWr5u3ZGZbJ+o6RulPl8DuEQlb+9jsGM8\n-----END CERTIFICATE REQUEST-----";

    #[test]
    fn another_kind_of_key_is_refused() {
        for request in OTHERS {
            let refused = CertificateRequest::read(request).unwrap_err();
            assert_eq!(refused, BadRequest::Key, "{request}");
        }
        let refused = CertificateRequest::read(OTHERWISE).unwrap_err();
        assert_eq!(refused, BadRequest::Algorithm);
        for kind in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let key = KeyPair::generate_for(kind).unwrap();
            let refused = CertificateRequest::read(&made(&plain(), &key)).unwrap_err();
            assert_eq!(refused, BadRequest::Key, "{kind:?}");
        }
    }

    #[test]
    fn a_request_that_asks_for_names_or_uses_is_refused() {
        let key = KeyPair::generate().unwrap();
        let mut named = plain();
        named.distinguished_name.push(DnType::CommonName, "admin");
        let mut reached = plain();
        reached.subject_alt_names = vec![SanType::DnsName("a.test".try_into().unwrap())];
        let mut serving = plain();
        serving.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let mut signing = plain();
        signing.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        for params in [named, reached, serving, signing] {
            let refused = CertificateRequest::read(&made(&params, &key)).unwrap_err();
            assert_eq!(refused, BadRequest::Names, "{params:?}");
        }
    }

    #[test]
    fn a_request_of_somebody_without_the_key_is_refused() {
        let (shown, own) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let request = plain()
            .serialize_request(&ForeignSigner { shown, own })
            .unwrap();
        let refused = CertificateRequest::read(&request.pem().unwrap()).unwrap_err();
        assert_eq!(refused, BadRequest::Signature);
        for text in [
            "",
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----",
        ] {
            assert_eq!(
                CertificateRequest::read(text).unwrap_err(),
                BadRequest::Malformed
            );
        }
    }
}
