//! The verifiers of a server by its key: beside a chain to the configured authority, or where no authority is known
//! yet.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::VerifierBuilderError;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};
use viworks_common::pin::SpkiPin;
use viworks_runtime::tls;

/// The chain is good, the key is not pinned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server shows the key {seen}, which is not pinned")]
pub struct PinMismatch {
    /// The key it shows.
    pub seen: SpkiPin,
}

/// A server whose certificate is of an authority that is not known here. Nothing about it is proved yet, not even that
/// it has the key of its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unchained {
    /// The key in its certificate.
    pub seen: SpkiPin,
    /// Whether that is one of the pinned ones.
    pub is_pinned: bool,
    /// What is wrong with its chain, in words.
    pub reason: String,
}

/// Whether it is the authority alone that speaks against a chain: an unknown one, or one that has the name of a known
/// one and another key.
const fn is_of_the_authority(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)
    )
}

fn key_of(end_entity: &CertificateDer<'_>) -> Result<SpkiPin, Error> {
    let digest = tls::spki_sha256(end_entity)
        .map_err(|_malformed| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    Ok(SpkiPin::from_digest(digest))
}

/// The keys that a server may have, and the one that it showed.
#[derive(Debug)]
struct PinnedKeys {
    pins: BTreeSet<SpkiPin>,
    seen: Mutex<Option<SpkiPin>>,
}

impl PinnedKeys {
    const fn new(pins: BTreeSet<SpkiPin>) -> Self {
        Self {
            pins,
            seen: Mutex::new(None),
        }
    }

    fn seen(&self) -> Option<SpkiPin> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, end_entity: &CertificateDer<'_>) -> Result<(), Error> {
        let seen = key_of(end_entity)?;
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        if self.pins.contains(&seen) {
            return Ok(());
        }
        let mismatch = OtherError(Arc::new(PinMismatch { seen }));
        Err(Error::InvalidCertificate(CertificateError::Other(mismatch)))
    }
}

/// Verifies one server; made for one attempt, with the pins of that moment.
#[derive(Debug)]
pub struct PinVerifier {
    chain: Arc<WebPkiServerVerifier>,
    keys: PinnedKeys,
    unchained: Mutex<Option<Unchained>>,
}

impl PinVerifier {
    /// A verifier of `roots` and `pins`.
    ///
    /// # Errors
    ///
    /// When there are no roots.
    pub fn new(
        roots: Arc<RootCertStore>,
        pins: BTreeSet<SpkiPin>,
    ) -> Result<Arc<Self>, VerifierBuilderError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        Ok(Arc::new(Self {
            chain: WebPkiServerVerifier::builder_with_provider(roots, provider).build()?,
            keys: PinnedKeys::new(pins),
            unchained: Mutex::default(),
        }))
    }

    /// The key that the server showed, once its chain was found good.
    #[must_use]
    pub fn seen(&self) -> Option<SpkiPin> {
        self.keys.seen()
    }

    /// What the server showed, where it was refused because of its authority. The handshake tells the other end the
    /// cause as ever.
    #[must_use]
    pub fn unchained(&self) -> Option<Unchained> {
        let unchained = self.unchained.lock();
        unchained.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, end_entity: &CertificateDer<'_>, error: &Error) {
        if !is_of_the_authority(error) {
            return;
        }
        let noted = key_of(end_entity).ok().map(|seen| Unchained {
            seen,
            is_pinned: self.keys.pins.contains(&seen),
            reason: error.to_string(),
        });
        let mut unchained = self
            .unchained
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *unchained = noted;
    }
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.chain.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        let verified = verified.inspect_err(|error| self.note(end_entity, error))?;
        self.keys.check(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Verifies one server of which nothing but its keys is known: that it has one of these. Its certificate's names and
/// dates mean nothing without an authority, and the clock of a new machine may be wrong.
#[derive(Debug)]
pub struct KeyVerifier {
    keys: PinnedKeys,
    provider: Arc<CryptoProvider>,
}

impl KeyVerifier {
    /// A verifier of `pins`.
    #[must_use]
    pub fn new(pins: BTreeSet<SpkiPin>) -> Arc<Self> {
        Arc::new(Self {
            keys: PinnedKeys::new(pins),
            provider: Arc::new(aws_lc_rs::default_provider()),
        })
    }

    /// The key that the server showed.
    #[must_use]
    pub fn seen(&self) -> Option<SpkiPin> {
        self.keys.seen()
    }
}

impl ServerCertVerifier for KeyVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.keys.check(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
