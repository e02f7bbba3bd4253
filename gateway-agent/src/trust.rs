//! The authorities that the backend gives over a session, in the agent's own folder: trusted beside those of `ca_file`.
//!
//! They are added and never take the place of the configured ones: whatever comes, a server that `ca_file` accepts is
//! accepted, and a file that is lost or broken costs the next authority alone.

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use viworks_common::command::format_digest;
use viworks_common::{limits, pem};
use viworks_runtime::config::Problem;
use viworks_runtime::files::{self, FileError};
use viworks_runtime::tls;

use crate::reserve;

/// The file, as the state folder may have it.
pub const FILE: &str = "authorities.pem";

/// Why a bundle is not taken over; nothing changes then.
#[derive(Debug, thiserror::Error)]
pub enum TrustRefusal {
    /// Something in it is no certificate.
    #[error("something in it is no certificate")]
    Unreadable,
    /// There is nobody in it.
    #[error("it holds no certificate")]
    Empty,
    /// It has other things beside certificates, such as a key, or words.
    #[error("it holds something else than certificates")]
    NotOnlyCertificates,
    /// More bytes than are kept.
    #[error("it is too large")]
    TooLarge,
    /// More certificates than are kept.
    #[error("it holds too many certificates")]
    TooMany,
    /// A certificate in it may not sign others.
    #[error("a certificate in it is not an authority's")]
    NotAnAuthority,
    /// It cannot be kept.
    #[error(transparent)]
    NotKept(#[from] FileError),
}

impl TrustRefusal {
    /// The word for it in `TRUST_REPORT`.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Empty => "empty",
            Self::NotOnlyCertificates => "not_only_certificates",
            Self::TooLarge => "too_large",
            Self::TooMany => "too_many",
            Self::NotAnAuthority => "not_an_authority",
            Self::NotKept(_) => "not_kept",
        }
    }
}

/// What became of a bundle.
#[derive(Debug)]
pub struct Taken {
    /// Whether something is accepted by it that was not before, or not any more; why it is not kept.
    pub outcome: Result<bool, TrustRefusal>,
    /// SHA-256 of the bundle that is kept by now, or that the configuration has as it is.
    pub digest: String,
}

/// The trust anchors in the PEM text of a bundle.
///
/// # Errors
///
/// The first rule that speaks against it.
pub fn judge(bundle: &[u8]) -> Result<RootCertStore, TrustRefusal> {
    if bundle.len() > limits::AUTHORITIES_BYTES_MAX {
        return Err(TrustRefusal::TooLarge);
    }
    let mut authorities = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(bundle) {
        let certificate = certificate.map_err(|_unreadable| TrustRefusal::Unreadable)?;
        if authorities.len() == limits::AUTHORITIES_MAX {
            return Err(TrustRefusal::TooMany);
        }
        if !tls::can_anchor(&certificate) {
            return Err(TrustRefusal::NotAnAuthority);
        }
        authorities.push(certificate);
    }
    if authorities.is_empty() {
        return Err(TrustRefusal::Empty);
    }
    // It is kept as it came, and no key of anybody is written beside the authorities, where whoever may read them does.
    if !pem::has_nothing_else(&String::from_utf8_lossy(bundle), pem::CERTIFICATE) {
        return Err(TrustRefusal::NotOnlyCertificates);
    }
    tls::roots(authorities).map_err(|_unreadable| TrustRefusal::Unreadable)
}

/// What is accepted with both: what either accepts.
#[must_use]
pub fn beside(configured: &RootCertStore, given: RootCertStore) -> RootCertStore {
    let mut both = configured.clone();
    for anchor in given.roots {
        if !both.roots.contains(&anchor) {
            both.roots.push(anchor);
        }
    }
    both
}

/// The authorities that came over a session; none before the first.
///
/// # Errors
///
/// When they cannot be read: then those of the configuration are good without them.
pub fn read(folder: &Path) -> Result<Option<RootCertStore>, Problem> {
    let path = folder.join(FILE);
    let bundle = match files::read_private(&path) {
        Ok(bundle) => bundle,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(error.problem()),
    };
    judge(&bundle).map(Some).map_err(|refused| {
        let message = format!("{} is not used: {refused}", path.display());
        let help = "remove it: the backend gives it again in the next session";
        Problem::of_file(&path, message, help)
    })
}

/// Takes over a bundle that came over a session, as far as the rules go; durable once this returns. One that is kept
/// already is not written again, and the first one is not where `configured` has all of it: so has a gateway that was
/// enrolled with it.
#[must_use]
pub fn take(folder: &Path, configured: &RootCertStore, offered: &[u8]) -> Taken {
    let path = folder.join(FILE);
    // One that cannot be read is as good as none: it is written anew.
    let before = files::read_private(&path).unwrap_or_default();
    let outcome = replace(&path, configured, &before, offered);
    let kept: &[u8] = if outcome.is_ok() { offered } else { &before };
    Taken {
        digest: format_digest(&Sha256::digest(kept).into()),
        outcome,
    }
}

fn replace(
    path: &Path,
    configured: &RootCertStore,
    before: &[u8],
    offered: &[u8],
) -> Result<bool, TrustRefusal> {
    let given = judge(offered)?;
    if before == offered {
        return Ok(false);
    }
    let mut anchors = given.roots.iter();
    if files::is_absent(path) && anchors.all(|anchor| configured.roots.contains(anchor)) {
        return Ok(false);
    }
    let before = judge(before).map_or_else(
        |_none| configured.clone(),
        |before| beside(configured, before),
    );
    let is_other = !are_alike(&before, &beside(configured, given));
    reserve::write(path, offered)?;
    Ok(is_other)
}

/// Whether both accept the same, in whatever order they have it.
fn are_alike(one: &RootCertStore, other: &RootCertStore) -> bool {
    let has = |store: &RootCertStore, of: &RootCertStore| {
        let mut anchors = of.roots.iter();
        anchors.all(|anchor| store.roots.contains(anchor))
    };
    has(one, other) && has(other, one)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{
        BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    };

    use super::*;

    fn authority() -> String {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().pem()
    }

    fn digest(bundle: &str) -> String {
        format_digest(&Sha256::digest(bundle).into())
    }

    /// As a gateway does whose configuration has nobody in common with what comes.
    fn taken(folder: &Path, offered: &str) -> Taken {
        take(folder, &RootCertStore::empty(), offered.as_bytes())
    }

    /// One that an authority signed, and that may not sign.
    fn leaf() -> String {
        let issuer = Issuer::new(CertificateParams::default(), KeyPair::generate().unwrap());
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "not an authority");
        let key = KeyPair::generate().unwrap();
        params.signed_by(&key, &issuer).unwrap().pem()
    }

    #[test]
    fn a_bundle_is_taken_once_and_the_next_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path()).unwrap().is_none());
        let both = authority() + &authority();
        let came = taken(folder.path(), &both);
        assert!(came.outcome.unwrap());
        assert_eq!(came.digest, digest(&both));
        assert_eq!(read(folder.path()).unwrap().unwrap().len(), 2);
        let again = taken(folder.path(), &both);
        assert!(!again.outcome.unwrap(), "written again");
        let next = authority();
        assert!(taken(folder.path(), &next).outcome.unwrap());
        assert_eq!(read(folder.path()).unwrap().unwrap().len(), 1);
    }

    #[test]
    fn the_authorities_that_the_configuration_has_are_no_news_and_are_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let [own, next] = [authority(), authority()];
        let configured = judge(own.as_bytes()).unwrap();
        let offer = |bundle: &str| take(folder.path(), &configured, bundle.as_bytes());
        let same = offer(&own);
        assert!(!same.outcome.unwrap());
        assert_eq!(same.digest, digest(&own), "it has them all the same");
        assert!(read(folder.path()).unwrap().is_none(), "written");
        // Once another one came, the bundle of before takes its place again.
        let both = own.clone() + &next;
        assert!(offer(&both).outcome.unwrap());
        assert!(offer(&own).outcome.unwrap());
        assert_eq!(read(folder.path()).unwrap().unwrap().len(), 1);
    }

    #[test]
    fn the_same_authorities_in_other_words_are_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let [own, one, two] = [authority(), authority(), authority()];
        let configured = judge(own.as_bytes()).unwrap();
        let offer = |bundle: &str| take(folder.path(), &configured, bundle.as_bytes());
        assert!(offer(&format!("{one}{two}")).outcome.unwrap());
        for same in [format!("{two}{one}"), format!("{own}{one}{two}")] {
            let came = offer(&same);
            assert!(!came.outcome.unwrap());
            // It is what the backend hears that is kept.
            assert_eq!(came.digest, digest(&same));
            let kept = fs::read_to_string(folder.path().join(FILE)).unwrap();
            assert_eq!(kept, same);
        }
        assert!(offer(&own).outcome.unwrap(), "two are accepted no more");
    }

    #[test]
    fn what_is_no_bundle_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let one = authority();
        assert!(taken(folder.path(), &one).outcome.unwrap());
        let broken = "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n";
        let key = KeyPair::generate().unwrap().serialize_pem();
        let many = one.repeat(limits::AUTHORITIES_MAX + 1);
        for (offered, word) in [
            (String::new(), "empty"),
            (broken.to_owned(), "unreadable"),
            (
                one.clone() + &"#".repeat(limits::AUTHORITIES_BYTES_MAX),
                "too_large",
            ),
            (one.clone() + &leaf(), "not_an_authority"),
            (many, "too_many"),
            (one.clone() + &key, "not_only_certificates"),
            (format!("{key}{one}"), "not_only_certificates"),
            (format!("{one}words\n{one}"), "not_only_certificates"),
        ] {
            let came = taken(folder.path(), &offered);
            assert_eq!(came.outcome.unwrap_err().word(), word);
            assert_eq!(came.digest, digest(&one));
        }
        assert_eq!(read(folder.path()).unwrap().unwrap().len(), 1);
    }

    #[test]
    fn what_is_given_never_takes_the_place_of_what_is_configured() {
        let [configured, given] = [authority(), authority()];
        let root = judge(configured.as_bytes()).unwrap();
        let both = beside(&root, judge(given.as_bytes()).unwrap());
        assert_eq!(both.len(), 2);
        assert!(both.roots.contains(&root.roots[0]));
        let same = beside(&root, judge(configured.as_bytes()).unwrap());
        assert_eq!(same.len(), 1);
    }

    #[test]
    fn a_file_that_is_broken_is_told_and_mended_by_the_next_offer() {
        let folder = tempfile::tempdir().unwrap();
        files::write_atomic(&folder.path().join(FILE), b"nothing").unwrap();
        assert!(read(folder.path()).is_err());
        assert!(taken(folder.path(), &authority()).outcome.unwrap());
        assert!(read(folder.path()).unwrap().is_some());
        fs::remove_file(folder.path().join(FILE)).unwrap();
        assert!(read(folder.path()).unwrap().is_none());
    }
}
