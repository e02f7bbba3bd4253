//! TLS as this product does it: version 1.3 with both sides authenticated, no resumption, no early data.
//!
//! Resumption is off on purpose: a resumed session would skip the check of the client's certificate.

use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WantsClientCert, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, ConfigBuilder, ConnectionCommon, RootCertStore, ServerConfig, version};
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use x509_parser::oid_registry::OID_X509_EXT_NAME_CONSTRAINTS;
use x509_parser::prelude::{FromDer, X509Certificate};

mod error;
mod material;
mod pem;
mod refused;

pub use error::TlsError;
pub use material::{
    Identity, Purpose, can_anchor, load_certificates, load_key, load_roots, one_certificate, roots,
    validity,
};
pub use refused::noting_refused;

use refused::Noting;

/// What both ends offer and accept as the application protocol.
const ALPN: &[u8] = b"http/1.1";

/// The label of the channel binding, RFC 9266.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// Makes aws-lc-rs the provider of this process. Call it first thing in `main`; more calls do no harm.
pub fn install_provider() {
    if CryptoProvider::get_default().is_none() {
        // Losing a race to another caller leaves the same provider in place.
        drop(aws_lc_rs::default_provider().install_default());
    }
}

/// The pin of a certificate: SHA-256 over its subject public key info, which stays the same when the certificate is
/// renewed for the same key.
///
/// # Errors
///
/// When the bytes are not exactly one certificate.
pub fn spki_sha256(certificate: &[u8]) -> Result<[u8; 32], TlsError> {
    let (rest, certificate) =
        X509Certificate::from_der(certificate).map_err(|error| TlsError::Certificate {
            reason: error.to_string(),
        })?;
    if !rest.is_empty() {
        return Err(TlsError::Certificate {
            reason: material::bytes_behind(rest.len()),
        });
    }
    Ok(Sha256::digest(certificate.tbs_certificate.subject_pki.raw).into())
}

/// What TLS knows an authority by: SHA-256 over its name and its key, which are the same in every certificate that
/// there is of it, and over the constraints of names in this one, if it has any: with others it lets others in.
///
/// # Errors
///
/// When the bytes are no certificate.
pub fn anchor_sha256(certificate: &[u8]) -> Result<[u8; 32], TlsError> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|error| TlsError::Certificate {
            reason: error.to_string(),
        })?;
    // Each says where it ends.
    let mut known_by = Sha256::new()
        .chain_update(certificate.subject().as_raw())
        .chain_update(certificate.tbs_certificate.subject_pki.raw);
    let mut extensions = certificate.extensions().iter();
    if let Some(names) = extensions.find(|it| it.oid == OID_X509_EXT_NAME_CONSTRAINTS) {
        known_by.update(names.value);
    }
    Ok(known_by.finalize().into())
}

/// What a listener asks of a client certificate: that it leads to one of `roots`, is valid now, and is for clients.
/// Whom it names is for the caller to read.
///
/// # Errors
///
/// When the roots are empty.
pub fn client_verifier(roots: RootCertStore) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(TlsError::Verifier)
}

/// Whether a server's certificate leads to one of `roots`, through those between where it needs any, as callers judge
/// it at a moment. Which names it has is not looked at.
#[must_use]
pub fn server_leads_to(
    roots: &RootCertStore,
    leaf: &CertificateDer<'_>,
    between: &[CertificateDer<'_>],
    at: UnixTime,
) -> bool {
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    let Ok(leaf) = ParsedCertificate::try_from(leaf) else {
        return false;
    };
    verify_server_cert_signed_by_trust_anchor(&leaf, roots, between, at, algorithms.all).is_ok()
}

/// The listener's side: shows `identity` and requires a client certificate that leads to `client_roots`.
///
/// # Errors
///
/// When the roots are empty, or certificate and key do not fit.
pub fn server_config(
    identity: Identity,
    client_roots: RootCertStore,
) -> Result<Arc<ServerConfig>, TlsError> {
    let clients = client_verifier(client_roots)?;
    shown_to(Arc::new(Noting(clients)), identity)
}

/// The side of a listener that takes callers without a certificate: shows `identity` and asks for nothing.
///
/// # Errors
///
/// When certificate and key do not fit.
pub fn open_server_config(identity: Identity) -> Result<Arc<ServerConfig>, TlsError> {
    shown_to(WebPkiClientVerifier::no_client_auth(), identity)
}

fn shown_to(
    clients: Arc<dyn ClientCertVerifier>,
    identity: Identity,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsError::Identity)?
        .with_client_cert_verifier(clients)
        .with_single_cert(identity.chain, identity.key)
        .map_err(TlsError::Identity)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// What a listener meets its callers with.
#[derive(Debug)]
pub struct ServerSide {
    /// For those whose TLS ends here.
    pub config: Arc<ServerConfig>,
    /// The same judgement of certificates, for those whose TLS has ended in a proxy that passes them on.
    pub clients: Arc<dyn ClientCertVerifier>,
    /// For those who have no certificate yet: the same identity, and nothing is asked of them.
    pub open: Arc<ServerConfig>,
}

impl ServerSide {
    /// Shows `identity` and requires a client certificate that leads to `client_roots`.
    ///
    /// # Errors
    ///
    /// When the roots are empty, or certificate and key do not fit.
    pub fn new(identity: Identity, client_roots: RootCertStore) -> Result<Self, TlsError> {
        let clients = client_verifier(client_roots.clone())?;
        let open = open_server_config(identity.clone())?;
        let config = server_config(identity, client_roots)?;
        Ok(Self {
            config,
            clients,
            open,
        })
    }
}

/// The caller's side: shows `identity` and leaves the judgement of the server's certificate to `verifier`.
///
/// # Errors
///
/// When certificate and key do not fit.
pub fn client_config(
    identity: Identity,
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let config = judged_by(verifier)?
        .with_client_auth_cert(identity.chain, identity.key)
        .map_err(TlsError::Identity)?;
    Ok(of_client(config))
}

/// The same for a caller who has no certificate yet.
///
/// # Errors
///
/// When the library does not take these settings.
pub fn open_client_config(
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<Arc<ClientConfig>, TlsError> {
    Ok(of_client(judged_by(verifier)?.with_no_client_auth()))
}

fn judged_by(
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsError::Identity)?
        .dangerous()
        .with_custom_certificate_verifier(verifier))
}

fn of_client(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Arc::new(config)
}

/// The channel binding of an established connection (RFC 9266): equal on both ends and on no other connection.
/// Takes a [`rustls::ServerConnection`] as well as a [`rustls::ClientConnection`].
///
/// # Errors
///
/// Before the handshake is over.
pub fn exporter<Side>(connection: &ConnectionCommon<Side>) -> Result<[u8; 32], TlsError> {
    connection
        .export_keying_material([0; 32], EXPORTER_LABEL, Some(&[]))
        .map_err(TlsError::Exporter)
}

#[cfg(test)]
mod tests;
