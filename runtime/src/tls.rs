//! TLS as this product does it: version 1.3 with both sides authenticated, no resumption, no early data.
//!
//! Resumption is off on purpose: a resumed session would skip the check of the client's certificate.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, ConnectionCommon, RootCertStore, ServerConfig, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::files::{self, FileError};

mod pem;

/// What both ends offer and accept as the application protocol.
const ALPN: &[u8] = b"http/1.1";

/// The largest file of certificates that is read.
const CERTIFICATES_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The label of the channel binding, RFC 9266.
const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// Why TLS material cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It could not be read, or is not private.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not PEM.
    #[error("failed to read {} as PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: std::io::Error,
    },
    /// The file holds no certificate.
    #[error("{} holds no certificate", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The file does not hold exactly one private key.
    #[error("{} holds {found} private keys instead of one", path.display())]
    NotOneKey {
        /// The file.
        path: PathBuf,
        /// How many it holds.
        found: usize,
    },
    /// The bytes are not one X.509 certificate.
    #[error("failed to parse a certificate: {reason}")]
    Certificate {
        /// What is wrong with them.
        reason: String,
    },
    /// The authority's certificate cannot anchor trust.
    #[error("failed to use a certificate as a trust anchor")]
    Root(#[source] rustls::Error),
    /// The verifier of client certificates cannot be made.
    #[error("failed to prepare the verification of client certificates")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    /// Certificate and key do not fit, or the TLS library refuses them.
    #[error("failed to use the certificate with its key")]
    Identity(#[source] rustls::Error),
    /// The connection has no keying material to export, for example before the handshake is over.
    #[error("failed to export the channel binding")]
    Exporter(#[source] rustls::Error),
}

/// Makes aws-lc-rs the provider of this process. Call it first thing in `main`; more calls do no harm.
pub fn install_provider() {
    if CryptoProvider::get_default().is_none() {
        // Losing a race to another caller leaves the same provider in place.
        drop(aws_lc_rs::default_provider().install_default());
    }
}

/// A certificate chain with the private key of its first certificate.
#[derive(Debug)]
pub struct Identity {
    /// The certificate itself, then those that lead to the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key.
    pub key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Reads both files; refuses a key file that others can read.
    ///
    /// # Errors
    ///
    /// When one is missing, unsafe or not what it should be.
    pub fn load(chain: &Path, key: &Path) -> Result<Self, TlsError> {
        Ok(Self {
            chain: load_certificates(chain)?,
            key: load_key(key)?,
        })
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

/// Reads the certificates of a PEM file, at least one.
///
/// # Errors
///
/// When it is missing, not PEM, or holds none.
pub fn load_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = files::read_at_most(path, CERTIFICATES_BYTES_MAX)?;
    let certificates = pem::certificates(&text).map_err(|source| TlsError::Pem {
        path: path.to_owned(),
        source,
    })?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate {
            path: path.to_owned(),
        });
    }
    Ok(certificates)
}

/// Reads the one private key of a PEM file that nobody else can read.
///
/// # Errors
///
/// When it is missing, readable by others, not PEM, or does not hold exactly one key.
pub fn load_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = files::read_private(path)?;
    let mut keys = pem::keys(&text).map_err(|source| TlsError::Pem {
        path: path.to_owned(),
        source,
    })?;
    match (keys.pop(), keys.len()) {
        (Some(key), 0) => Ok(key),
        (None, _) => Err(TlsError::NotOneKey {
            path: path.to_owned(),
            found: 0,
        }),
        (Some(_), others) => Err(TlsError::NotOneKey {
            path: path.to_owned(),
            found: others + 1,
        }),
    }
}

/// The given certificates as trust anchors.
///
/// # Errors
///
/// When one of them cannot be one.
pub fn roots(
    certificates: impl IntoIterator<Item = CertificateDer<'static>>,
) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates {
        store.add(certificate).map_err(TlsError::Root)?;
    }
    Ok(store)
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
            reason: format!("{} more bytes behind it", rest.len()),
        });
    }
    Ok(Sha256::digest(certificate.tbs_certificate.subject_pki.raw).into())
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

/// The listener's side: shows `identity` and requires a client certificate that leads to `client_roots`.
///
/// # Errors
///
/// When the roots are empty, or certificate and key do not fit.
pub fn server_config(
    identity: Identity,
    client_roots: RootCertStore,
) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = client_verifier(client_roots)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsError::Identity)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain, identity.key)
        .map_err(TlsError::Identity)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
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
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsError::Identity)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(identity.chain, identity.key)
        .map_err(TlsError::Identity)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(Arc::new(config))
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
