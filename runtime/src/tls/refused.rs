//! Which client certificate a handshake was refused for: the error of the handshake says why, and not whose it was.

use std::cell::RefCell;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

tokio::task_local! {
    static REFUSED: RefCell<Option<CertificateDer<'static>>>;
}

/// Runs a handshake of a listener of ours to its end; beside that, the certificate that it refused, if it did. Nobody
/// proved to have the key of that one.
pub async fn noting_refused<T: Send>(
    handshake: impl Future<Output = T> + Send,
) -> (T, Option<CertificateDer<'static>>) {
    let noted = async {
        let ended = handshake.await;
        (ended, REFUSED.with(RefCell::take))
    };
    REFUSED.scope(RefCell::new(None), noted).await
}

/// Judges as another one does, and notes what that refuses.
#[derive(Debug)]
pub(super) struct Noting(pub(super) Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Noting {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let judged = self.0.verify_client_cert(end_entity, intermediates, now);
        if judged.is_err() {
            let leaf = end_entity.clone().into_owned();
            // Where nobody asked for it, nothing is noted.
            drop(REFUSED.try_with(|refused| refused.replace(Some(leaf))));
        }
        judged
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.0.requires_raw_public_keys()
    }
}
