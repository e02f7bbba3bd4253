//! Certificate requests of machines that become gateways: only their key is wanted, and it must be theirs.

use rcgen::{
    CertificateSigningRequestParams, IsCa, PKCS_ECDSA_P256_SHA256, PublicKey, PublicKeyData,
};
use sha2::{Digest, Sha256};

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
    /// It is none.
    #[error("the certificate request cannot be read: send one PKCS #10 request, PEM")]
    Malformed,
    /// Whoever made it does not have the key.
    #[error(
        "the certificate request is not signed by the key that it is for: make it with that key"
    )]
    Signature,
    /// The key is of another kind.
    #[error("the certificate request is for another kind of key than ECDSA P-256: make such a key")]
    Key,
    /// It asks for what is not its own to choose.
    #[error(
        "the certificate request asks for names or uses: leave them out, they come from the ticket and the backend"
    )]
    Names,
}

impl BadRequest {
    fn of(error: &rcgen::Error) -> Self {
        let known = [
            (
                rcgen::Error::InvalidCertificationRequestSignature,
                Self::Signature,
            ),
            (rcgen::Error::UnsupportedExtension, Self::Names),
            (rcgen::Error::UnsupportedSignatureAlgorithm, Self::Key),
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
    pub fn read(pem: &str) -> Result<Self, BadRequest> {
        let read = CertificateSigningRequestParams::from_pem(pem);
        let CertificateSigningRequestParams { params, public_key } =
            read.map_err(|error| BadRequest::of(&error))?;
        let is_p256 = PublicKeyData::algorithm(&public_key) == &PKCS_ECDSA_P256_SHA256
            && public_key.der_bytes().len() == POINT_BYTES;
        if !is_p256 {
            return Err(BadRequest::Key);
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

#[cfg(test)]
mod tests {
    use rcgen::{
        CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair,
        PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType,
    };

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
    fn another_kind_of_key_is_refused() {
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
        use rcgen::SigningKey;

        /// Shows one key and signs with another.
        struct Foreign {
            shown: KeyPair,
            own: KeyPair,
        }
        impl PublicKeyData for Foreign {
            fn der_bytes(&self) -> &[u8] {
                self.shown.der_bytes()
            }
            fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
                self.shown.algorithm()
            }
        }
        impl SigningKey for Foreign {
            fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
                self.own.sign(message)
            }
        }
        let (shown, own) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let request = plain().serialize_request(&Foreign { shown, own }).unwrap();
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
