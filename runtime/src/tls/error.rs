//! Why TLS material cannot be used, and what to do about it.

use std::path::{Path, PathBuf};

use viworks_common::{human, text};

use crate::files::FileError;
use crate::problem::Problem;

/// Why TLS material cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It could not be read, is not private, or others could change it.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not PEM.
    #[error("failed to read {} as PEM: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// The file holds no certificate.
    #[error("{} holds no certificate", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// Some of what the file holds would be skipped in silence.
    #[error(
        "{} holds {}, of which only {read} can be read",
        path.display(),
        human::counted(*.found, "block of certificates", "blocks of certificates")
    )]
    Skipped {
        /// The file.
        path: PathBuf,
        /// Blocks that begin.
        found: usize,
        /// Blocks that could be read.
        read: usize,
    },
    /// A file that anybody may read holds a private key beside its certificates.
    #[error("{} holds a private key and can be read by others (mode {mode:04o})", path.display())]
    KeyInside {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file does not hold exactly one private key.
    #[error("{} holds {} instead of one", path.display(), human::counted(*.found, "private key", "private keys"))]
    NotOneKey {
        /// The file.
        path: PathBuf,
        /// How many it holds.
        found: usize,
    },
    /// The key is encrypted, and nobody is asked for a passphrase.
    #[error("{} holds an encrypted private key, for which nobody can be asked a passphrase", path.display())]
    EncryptedKey {
        /// The file.
        path: PathBuf,
    },
    /// The file holds a certificate where a key belongs.
    #[error("{} holds a certificate instead of a private key", path.display())]
    CertificateAsKey {
        /// The file.
        path: PathBuf,
    },
    /// The bytes are not one X.509 certificate.
    #[error("failed to parse a certificate: {reason}")]
    Certificate {
        /// What is wrong with them.
        reason: String,
    },
    /// A file holds something that is not a certificate.
    #[error("{} holds a certificate that cannot be read: {reason}", path.display())]
    BrokenCertificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The key is not the first certificate's.
    #[error("the key in {} does not fit the first certificate in {}", key.display(), certificate.display())]
    KeyMismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The library does not take the key or the certificate.
    #[error("the key in {} cannot be used with the certificate in {}: {source}", key.display(), certificate.display())]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// The certificate is for something else.
    #[error("the certificate in {} {reason}", path.display())]
    Purpose {
        /// The file.
        path: PathBuf,
        /// What it is or is not.
        reason: &'static str,
    },
    /// No certificate of the file is an authority's.
    #[error("{} holds no authority's certificate", path.display())]
    NoAuthority {
        /// The file.
        path: PathBuf,
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

impl TlsError {
    /// As a problem of the file that is to blame, or of `otherwise` where none is.
    #[must_use]
    pub fn problem(&self, otherwise: &Path) -> Problem {
        if let Self::File(error) = self {
            return error.problem();
        }
        let path = self.path().unwrap_or(otherwise);
        Problem::of_file(path, text::in_full(self), self.fix())
    }

    fn path(&self) -> Option<&Path> {
        match self {
            Self::File(error) => Some(error.path()),
            Self::Pem { path, .. }
            | Self::NoCertificate { path }
            | Self::Skipped { path, .. }
            | Self::KeyInside { path, .. }
            | Self::NotOneKey { path, .. }
            | Self::EncryptedKey { path }
            | Self::CertificateAsKey { path }
            | Self::BrokenCertificate { path, .. }
            | Self::Purpose { path, .. }
            | Self::NoAuthority { path } => Some(path),
            Self::KeyMismatch { key, .. } | Self::Unusable { key, .. } => Some(key),
            Self::Certificate { .. }
            | Self::Root(_)
            | Self::Verifier(_)
            | Self::Identity(_)
            | Self::Exporter(_) => None,
        }
    }

    /// What to do about it; empty where the error says it all.
    #[must_use]
    pub fn fix(&self) -> String {
        let text = match self {
            Self::File(error) => return error.fix(),
            Self::KeyInside { path, .. } => {
                return format!(
                    "move the key to a file of its own, and make it anew if somebody may have read {}",
                    path.display()
                );
            }
            Self::Skipped { .. } => {
                "each block begins with -----BEGIN CERTIFICATE----- at the start of a line"
            }
            Self::EncryptedKey { .. } => {
                "decrypt it into a file of its own, of mode 600: openssl pkey -in … -out …"
            }
            Self::CertificateAsKey { .. } | Self::NotOneKey { .. } => {
                "it holds one block -----BEGIN PRIVATE KEY-----"
            }
            Self::KeyMismatch { .. } => {
                "both must come from the same issue; the certificate itself comes first in its file"
            }
            Self::Unusable { .. } => {
                "use a key of ECDSA P-256, P-384 or P-521, Ed25519, or RSA of at least 2048 bits, and an X.509 certificate of version 3"
            }
            Self::NoAuthority { .. } => {
                "it must hold the certificate of the authority that signed, not a certificate that was signed"
            }
            Self::Pem { .. }
            | Self::NoCertificate { .. }
            | Self::Certificate { .. }
            | Self::BrokenCertificate { .. }
            | Self::Purpose { .. }
            | Self::Root(_)
            | Self::Verifier(_)
            | Self::Identity(_)
            | Self::Exporter(_) => "",
        };
        text.to_owned()
    }
}
