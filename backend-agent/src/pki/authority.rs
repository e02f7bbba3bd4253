//! Certificates: an authority, and what it signs for servers and gateways. Accepted by rustls and by OpenSSL.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, RevocationReason, RevokedCertParams,
    SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use viworks_common::certificate;
use viworks_common::id::{GatewayName, TrustDomain};
use viworks_common::key::Identity;
use viworks_common::pem;
use viworks_common::pin::SpkiPin;
use viworks_common::time::Timestamp;
use viworks_runtime::{random, tls};
use x509_parser::extensions::ParsedExtension;
use zeroize::Zeroizing;

use super::PkiError;
use super::signer::{AskedKey, Signer, Unsigned};
use crate::data::WithdrawnCertificate;

/// Certificates begin a little in the past, because the clock of a new gateway may be behind: so much, and no more than
/// this part of their life, of which gateways renew them by a share.
const BACKDATE: Duration = Duration::from_secs(3_600);
const BACKDATE_PART: u32 = 8;

/// How long the authority itself lives. Its key signs a few certificates and never meets a network; when it ends, every
/// gateway and every backend needs a new root at once, so that it must outlive a rollout by years.
pub const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// A key that can sign certificates, with its certificate.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, Signer>,
    certificate: String,
    /// When it ends itself: nothing that it signs is worth anything later.
    not_after: OffsetDateTime,
}

/// A certificate that was made together with its key.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate, PEM.
    pub certificate: String,
    /// The private key, PEM.
    pub key: Zeroizing<String>,
    /// What the store keeps of it.
    pub facts: Facts,
}

/// What identifies a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// SHA-256 of the DER SubjectPublicKeyInfo.
    pub spki: [u8; 32],
    /// SHA-256 of the whole certificate.
    pub fingerprint: [u8; 32],
    /// The serial number, in hexadecimal.
    pub serial: String,
    /// When it ends.
    pub not_after: Timestamp,
    /// What TLS knows its authority by: SHA-256 of that one's name and key.
    pub issuer: [u8; 32],
}

/// A key pair that waits for its turn: pinned now, certified later.
#[derive(Debug)]
pub struct Standby {
    /// The private key, PEM.
    pub key: Zeroizing<String>,
    /// Its pin.
    pub pin: SpkiPin,
}

impl Authority {
    /// A new authority with its private key in PEM.
    ///
    /// # Errors
    ///
    /// When the certificate cannot be made.
    pub fn create(now: Timestamp) -> Result<(Self, Zeroizing<String>), PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let pem = Zeroizing::new(key.serialize_pem());
        // A name of its own, so that two authorities are never mistaken for each other by name.
        let name = format!("ViWorkS authority {}", hex::encode(random::bytes::<4>()));
        let mut params = params(&name, now, AUTHORITY_LIFE)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = false;
        let certificate = params.self_signed(&key)?.pem();
        let not_after = params.not_after;
        let issuer = Issuer::new(params, Signer::Held(Box::new(key)));
        Ok((
            Self {
                issuer,
                certificate,
                not_after,
            },
            pem,
        ))
    }

    /// The authority with these PEM texts.
    ///
    /// # Errors
    ///
    /// When one of them is not what it should be.
    pub fn load(certificate: &str, key: &str) -> Result<Self, PkiError> {
        let key = KeyPair::from_pem(key)?;
        Self::signing(certificate, Signer::Held(Box::new(key)))
    }

    /// The authority of this certificate, PEM, whose key a program has: it is given what is to be signed, and answers
    /// the signature.
    ///
    /// # Errors
    ///
    /// When the certificate cannot be read, or is for a kind of key that is not supported.
    pub fn asking(certificate: &str, command: &[String]) -> Result<Self, PkiError> {
        let der = first_of(certificate)?;
        let key = AskedKey::of(&der, command).map_err(|reason| PkiError::Signer { reason })?;
        Self::signing(certificate, Signer::Asked(key))
    }

    fn signing(certificate: &str, signer: Signer) -> Result<Self, PkiError> {
        let der = first_of(certificate)?;
        let Ok((_rest, parsed)) = x509_parser::parse_x509_certificate(&der) else {
            return Err(rcgen::Error::CouldNotParseCertificate.into());
        };
        let ends = parsed.validity().not_after.timestamp();
        let Ok(not_after) = OffsetDateTime::from_unix_timestamp(ends) else {
            return Err(rcgen::Error::CouldNotParseCertificate.into());
        };
        Ok(Self {
            not_after,
            issuer: Issuer::from_ca_cert_der(&der, signer)?,
            certificate: encoded_anew(certificate)?,
        })
    }

    /// Whether somebody else signs, which takes its time.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        matches!(self.issuer.key(), Signer::Asked(_))
    }

    /// Why something could not be signed.
    fn unsigned(&self, error: rcgen::Error) -> PkiError {
        match self.issuer.key().failed() {
            Some(Unsigned::Lasting(reason)) => PkiError::Signer { reason },
            Some(Unsigned::Attempt(reason)) => PkiError::Unsigned { reason },
            None => error.into(),
        }
    }

    /// Its certificate, PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A server certificate for DNS names and addresses.
    ///
    /// # Errors
    ///
    /// When a name has no place in a certificate.
    pub fn server(
        &self,
        names: &[String],
        now: Timestamp,
        life: Duration,
    ) -> Result<Issued, PkiError> {
        let mut params = params("ViWorkS backend", now, life)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in names {
            let san = match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_no_address) => SanType::DnsName(host_name(name)?),
            };
            params.subject_alt_names.push(san);
        }
        self.sign(&params)
    }

    /// A gateway's certificate: its identity is the one URI name, its common name is for people.
    ///
    /// # Errors
    ///
    /// When the certificate cannot be made.
    pub fn gateway(
        &self,
        trust_domain: &TrustDomain,
        identity: &Identity,
        name: &GatewayName,
        now: Timestamp,
        life: Duration,
    ) -> Result<Issued, PkiError> {
        let params = gateway_params(trust_domain, identity, name, now, life)?;
        self.sign(&params)
    }

    /// The same for a key that stays where it was made.
    ///
    /// # Errors
    ///
    /// When the certificate cannot be made.
    pub fn gateway_of(
        &self,
        key: &impl PublicKeyData,
        trust_domain: &TrustDomain,
        identity: &Identity,
        name: &GatewayName,
        now: Timestamp,
        life: Duration,
    ) -> Result<(String, Facts), PkiError> {
        let params = gateway_params(trust_domain, identity, name, now, life)?;
        self.certify(&params, key)
    }

    /// A list of certificates that are not accepted any more, PEM.
    ///
    /// # Errors
    ///
    /// When this authority may sign none.
    pub fn revocations(
        &self,
        withdrawn: &[WithdrawnCertificate],
        now: Timestamp,
        life: Duration,
    ) -> Result<String, PkiError> {
        let mut revoked_certs = Vec::with_capacity(withdrawn.len());
        for certificate in withdrawn {
            // What is no number is in no certificate.
            let Ok(serial) = hex::decode(&certificate.serial) else {
                continue;
            };
            let replaced = Some(RevocationReason::Superseded).filter(|_| !certificate.revoked);
            revoked_certs.push(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&serial),
                revocation_time: date(certificate.since)?,
                reason_code: replaced,
                invalidity_date: None,
            });
        }
        let params = CertificateRevocationListParams {
            // As certificates do: who reads it may have a clock that is behind.
            this_update: date(now.saturating_sub(BACKDATE))?,
            next_update: date(now.saturating_add(life))?,
            crl_number: SerialNumber::from(u64::try_from(now.unix_micros()).unwrap_or_default()),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: self.key_identifier()?,
        };
        let signed = params.signed_by(&self.issuer);
        Ok(signed.map_err(|error| self.unsigned(error))?.pem()?)
    }

    /// How its own certificate names its key: OpenSSL takes no list that names it otherwise.
    fn key_identifier(&self) -> Result<KeyIdMethod, PkiError> {
        let der = first_of(&self.certificate)?;
        let Ok((_rest, parsed)) = x509_parser::parse_x509_certificate(&der) else {
            return Err(rcgen::Error::CouldNotParseCertificate.into());
        };
        let named = parsed.iter_extensions().find_map(|extension| {
            if let ParsedExtension::SubjectKeyIdentifier(id) = extension.parsed_extension() {
                Some(KeyIdMethod::PreSpecified(id.0.to_vec()))
            } else {
                None
            }
        });
        Ok(named.unwrap_or(KeyIdMethod::Sha256))
    }

    fn sign(&self, params: &CertificateParams) -> Result<Issued, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let (certificate, facts) = self.certify(params, &key)?;
        Ok(Issued {
            facts,
            certificate,
            key: Zeroizing::new(key.serialize_pem()),
        })
    }

    fn certify(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<(String, Facts), PkiError> {
        let mut params = params.clone();
        // It would end with its authority all the same, and nobody would be told in time.
        params.not_after = params.not_after.min(self.not_after);
        let not_after = params.not_after;
        let serial = params
            .serial_number
            .as_ref()
            .map(|serial| hex::encode(serial.to_bytes()))
            .unwrap_or_default();
        let signed = params.signed_by(key, &self.issuer);
        let certificate = signed.map_err(|error| self.unsigned(error))?;
        let issuer = tls::anchor_sha256(&first_of(&self.certificate)?)?;
        let facts = facts(&certificate, serial, not_after, issuer)?;
        Ok((certificate.pem(), facts))
    }
}

fn gateway_params(
    trust_domain: &TrustDomain,
    identity: &Identity,
    name: &GatewayName,
    now: Timestamp,
    life: Duration,
) -> Result<CertificateParams, PkiError> {
    let mut params = params(name.as_str(), now, life)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let uri = certificate::uri(trust_domain, identity);
    params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into()?)];
    Ok(params)
}

impl Standby {
    /// A new key.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn create() -> Result<Self, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Ok(Self::of(&key))
    }

    /// The key in a PEM text.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn load(key: &str) -> Result<Self, PkiError> {
        Ok(Self::of(&KeyPair::from_pem(key)?))
    }

    fn of(key: &KeyPair) -> Self {
        let spki = key.subject_public_key_info();
        Self {
            key: Zeroizing::new(key.serialize_pem()),
            pin: SpkiPin::from_digest(Sha256::digest(spki).into()),
        }
    }
}

/// The first certificate of a PEM text: the authority's own.
fn first_of(certificates: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(certificates.as_bytes())
        .map_err(|_no_certificate| rcgen::Error::CouldNotParseCertificate.into())
}

/// The certificates of a PEM text and nothing else of it. Gateways are given them, and a file that nobody else may read
/// may have the key beside them, be it on the line where one of them ends.
fn encoded_anew(certificates: &str) -> Result<String, PkiError> {
    let mut encoded = String::new();
    for certificate in CertificateDer::pem_slice_iter(certificates.as_bytes()) {
        let certificate =
            certificate.map_err(|_unreadable| rcgen::Error::CouldNotParseCertificate)?;
        encoded.push_str(&pem::certificate(&certificate));
    }
    Ok(encoded)
}

/// A name as verifiers know it: a host's, with or without a first label that stands for all.
fn host_name(name: &str) -> Result<rcgen::string::Ia5String, PkiError> {
    let refused = || {
        PkiError::Name {
        name: name.to_owned(),
        reason: "it is neither a host name nor an IP address, so no gateway could verify it; name the backend as gateways dial it, such as backend.example or 192.0.2.7".to_owned(),
    }
    };
    let host = name.strip_prefix("*.").unwrap_or(name);
    let is_known = rustls::pki_types::DnsName::try_from(host).is_ok();
    if !is_known || host.ends_with('.') {
        return Err(refused());
    }
    name.try_into().map_err(|_not_ascii| refused())
}

fn facts(
    certificate: &Certificate,
    serial: String,
    not_after: OffsetDateTime,
    issuer: [u8; 32],
) -> Result<Facts, PkiError> {
    let micros = i64::try_from(not_after.unix_timestamp_nanos() / 1_000).unwrap_or(i64::MAX);
    Ok(Facts {
        spki: tls::spki_sha256(certificate.der())?,
        fingerprint: Sha256::digest(certificate.der()).into(),
        serial,
        not_after: Timestamp::from_unix_micros(micros),
        issuer,
    })
}

/// What every certificate has: its own name and serial number, dates, and the identifiers that OpenSSL looks for.
fn params(name: &str, now: Timestamp, life: Duration) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "ViWorkS");
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    params.not_before = date(now.saturating_sub(BACKDATE.min(life / BACKDATE_PART)))?;
    params.not_after = date(now.saturating_add(life))?;
    let mut serial = random::bytes::<16>();
    // Positive and of full length in DER.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn date(at: Timestamp) -> Result<OffsetDateTime, PkiError> {
    OffsetDateTime::from_unix_timestamp(at.unix_micros().div_euclid(1_000_000)).map_err(|error| {
        PkiError::Name {
            name: at.to_string(),
            reason: error.to_string(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An authority of that text, whose first certificate is for that key.
    fn passed_on(text: &str, key: &str) -> String {
        let authority = Authority::load(text, key).unwrap();
        authority.certificate().to_owned()
    }

    fn made() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        (pem::certificate(certificate.der()), key.serialize_pem())
    }

    #[test]
    fn a_key_beside_the_certificate_of_an_authority_goes_to_nobody() {
        let (certificate, key) = made();
        let joined = certificate.trim_end();
        for text in [
            format!("{key}{certificate}"),
            format!("{certificate}{key}"),
            // Two files, of which the first has no last line end.
            format!("{joined}{key}"),
            format!("{joined} # mine\n{key}"),
        ] {
            assert_eq!(passed_on(&text, &key), certificate, "{text}");
        }
    }

    #[test]
    fn the_certificates_of_an_authority_are_passed_on_however_their_file_is_written() {
        let ((own, key), (above, _)) = (made(), made());
        let both = format!("{own}{above}");
        for text in [
            both.clone(),
            format!("subject: mine\n{own}\nissuer: above\n{above}the end"),
            both.replace('\n', "\r\n"),
            both.replace('\n', "\r"),
            both.replace("-----\n", "----- \n"),
            both.trim_end().to_owned(),
        ] {
            assert_eq!(passed_on(&text, &key), both, "{text}");
        }
    }
}
