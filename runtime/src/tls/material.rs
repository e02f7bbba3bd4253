//! Certificates and keys as files hold them: read, judged and fitted to each other before anything is started with
//! them.

use std::path::Path;

use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use viworks_common::human;
use viworks_common::time::Timestamp;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{TlsError, pem};
use crate::files;

/// The largest file of certificates that is read.
const CERTIFICATES_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A certificate chain with the private key of its first certificate.
#[derive(Debug)]
pub struct Identity {
    /// The certificate itself, then those that lead to the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

impl Identity {
    /// Reads both files; refuses a key file that others can read, and a key that is not the certificate's.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub fn load(chain: &Path, key: &Path) -> Result<Self, TlsError> {
        let (identity, error) = Self::read(chain, key);
        match (identity, error.into_iter().next()) {
            (Some(identity), None) => Ok(identity),
            (_, Some(error)) => Err(error),
            (None, None) => Err(TlsError::NoCertificate {
                path: chain.to_owned(),
            }),
        }
    }

    /// The same, and that the certificate is for `purpose`; everything that is wrong at once.
    ///
    /// # Errors
    ///
    /// All of it.
    pub fn load_for(purpose: Purpose, chain: &Path, key: &Path) -> Result<Self, Vec<TlsError>> {
        let (identity, mut errors) = Self::read(chain, key);
        let leaf = identity
            .as_ref()
            .and_then(|identity| identity.chain.first());
        errors.extend(leaf.and_then(|leaf| purpose.check(chain, leaf).err()));
        match identity {
            Some(identity) if errors.is_empty() => Ok(identity),
            Some(_) | None => Err(errors),
        }
    }

    /// None only with an error.
    fn read(chain_file: &Path, key_file: &Path) -> (Option<Self>, Vec<TlsError>) {
        let (chain, key) = match (load_certificates(chain_file), load_key(key_file)) {
            (Ok(chain), Ok(key)) => (chain, key),
            (chain, key) => return (None, chain.err().into_iter().chain(key.err()).collect()),
        };
        let identity = Self { chain, key };
        let errors = identity
            .fit(chain_file, key_file)
            .err()
            .into_iter()
            .collect();
        (Some(identity), errors)
    }

    fn fit(&self, certificate: &Path, key: &Path) -> Result<(), TlsError> {
        let provider = aws_lc_rs::default_provider();
        match CertifiedKey::from_der(self.chain.clone(), self.key.clone_key(), &provider) {
            Ok(_) => Ok(()),
            Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                Err(TlsError::KeyMismatch {
                    certificate: certificate.to_owned(),
                    key: key.to_owned(),
                })
            }
            Err(source) => Err(TlsError::Unusable {
                certificate: certificate.to_owned(),
                key: key.to_owned(),
                source,
            }),
        }
    }
}

/// What a certificate is shown for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// By a listener.
    Server,
    /// By a caller.
    Client,
}

impl Purpose {
    /// Refuses a certificate that every peer would refuse, whenever it is shown. Its dates are not looked at: the clock
    /// that reads them may be wrong.
    ///
    /// # Errors
    ///
    /// [`TlsError::Purpose`].
    pub fn check(self, path: &Path, certificate: &[u8]) -> Result<(), TlsError> {
        let refused = |reason| TlsError::Purpose {
            path: path.to_owned(),
            reason,
        };
        let (_, certificate) = X509Certificate::from_der(certificate)
            .map_err(|_malformed| refused("cannot be read"))?;
        if certificate.is_ca() {
            return Err(refused(
                "is an authority's; the certificate itself comes first in its file",
            ));
        }
        let usage = certificate
            .extended_key_usage()
            .map_err(|_repeated| refused("says twice what it is for"))?;
        if let Some(usage) = usage {
            let usage = usage.value;
            match self {
                Self::Server if !usage.server_auth => {
                    return Err(refused("is not for server authentication"));
                }
                Self::Client if !usage.client_auth => {
                    return Err(refused("is not for client authentication"));
                }
                Self::Server | Self::Client => {}
            }
        }
        if self == Self::Server && !names_a_server(&certificate) {
            return Err(refused(
                "has no alternative name that is a DNS name or an address, without which nobody accepts it",
            ));
        }
        Ok(())
    }
}

fn names_a_server(certificate: &X509Certificate<'_>) -> bool {
    let names = certificate.subject_alternative_name();
    names.ok().flatten().is_some_and(|names| {
        names
            .value
            .general_names
            .iter()
            .any(|name| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_)))
    })
}

/// The first and the last moment at which a certificate is valid.
///
/// # Errors
///
/// When the bytes are no certificate.
pub fn validity(certificate: &[u8]) -> Result<(Timestamp, Timestamp), TlsError> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|error| TlsError::Certificate {
            reason: error.to_string(),
        })?;
    let moment = |seconds: i64| Timestamp::from_unix_micros(seconds.saturating_mul(1_000_000));
    let validity = certificate.validity();
    Ok((
        moment(validity.not_before.timestamp()),
        moment(validity.not_after.timestamp()),
    ))
}

/// Reads the certificates of a PEM file, at least one.
///
/// # Errors
///
/// When it is missing, others can change it, it is not PEM or holds none, or one of them cannot be read.
pub fn load_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = files::read_trusted(path, CERTIFICATES_BYTES_MAX)?;
    let certificates = pem::certificates(&text).map_err(|source| TlsError::Pem {
        path: path.to_owned(),
        source,
    })?;
    let found = pem::certificate_blocks(&text);
    if found > certificates.len() {
        return Err(TlsError::Skipped {
            path: path.to_owned(),
            found,
            read: certificates.len(),
        });
    }
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate {
            path: path.to_owned(),
        });
    }
    for certificate in &certificates {
        check_certificate(path, certificate)?;
    }
    if pem::mentions_a_key(&text)
        && let Err(files::FileError::OthersCanRead { path, mode }) = files::examine_private(path)
    {
        return Err(TlsError::KeyInside { path, mode });
    }
    Ok(certificates)
}

/// Reads the one certificate of a PEM text that somebody passed on.
///
/// # Errors
///
/// When it holds none, more than one, or one that cannot be read.
pub fn one_certificate(text: &[u8]) -> Result<CertificateDer<'static>, TlsError> {
    let unreadable = |reason: &str| TlsError::Certificate {
        reason: reason.to_owned(),
    };
    let certificates = pem::certificates(text).map_err(|error| unreadable(&error.to_string()))?;
    let [certificate] = <[_; 1]>::try_from(certificates).map_err(|found: Vec<_>| {
        let found = human::counted(found.len(), "certificate", "certificates");
        unreadable(&format!("the text has {found}"))
    })?;
    match X509Certificate::from_der(&certificate) {
        Ok(([], _)) => Ok(certificate),
        Ok(_) => Err(unreadable("there are more bytes behind it")),
        Err(error) => Err(unreadable(&error.to_string())),
    }
}

/// What comes behind a certificate and is none.
pub(super) fn bytes_behind(bytes: usize) -> String {
    human::counted(bytes, "more byte behind it", "more bytes behind it")
}

fn check_certificate(path: &Path, certificate: &[u8]) -> Result<(), TlsError> {
    let broken = |reason: String| TlsError::BrokenCertificate {
        path: path.to_owned(),
        reason,
    };
    match X509Certificate::from_der(certificate) {
        Ok(([], _)) => Ok(()),
        Ok((rest, _)) => Err(broken(bytes_behind(rest.len()))),
        Err(error) => Err(broken(error.to_string())),
    }
}

/// Reads the one private key of a PEM file that nobody else can read.
///
/// # Errors
///
/// When it is missing, readable by others, not PEM, encrypted, or does not hold exactly one key.
pub fn load_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = files::read_private(path)?;
    if pem::mentions_an_encrypted_key(&text) {
        return Err(TlsError::EncryptedKey {
            path: path.to_owned(),
        });
    }
    let mut keys = pem::keys(&text).map_err(|source| TlsError::Pem {
        path: path.to_owned(),
        source,
    })?;
    match (keys.pop(), keys.len()) {
        (Some(key), 0) => Ok(key),
        (None, _) if pem::certificate_blocks(&text) > 0 => Err(TlsError::CertificateAsKey {
            path: path.to_owned(),
        }),
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

/// Reads a file of authorities' certificates as trust anchors.
///
/// # Errors
///
/// As [`load_certificates`], or when none of them is an authority's.
pub fn load_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let certificates = load_certificates(path)?;
    if !certificates
        .iter()
        .any(|certificate| can_anchor(certificate))
    {
        return Err(TlsError::NoAuthority {
            path: path.to_owned(),
        });
    }
    roots(certificates).map_err(|error| TlsError::BrokenCertificate {
        path: path.to_owned(),
        reason: std::error::Error::source(&error)
            .map_or_else(|| error.to_string(), ToString::to_string),
    })
}

/// Whether a certificate is an authority's. It says so; one that is older than the extension signed itself.
#[must_use]
pub fn can_anchor(certificate: &[u8]) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, certificate)| {
        certificate.is_ca() || certificate.subject().as_raw() == certificate.issuer().as_raw()
    })
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
