//! What came of asking for another certificate, in the agent's own folder: the files that `[identity]` names are
//! root's.
//!
//! A certificate and its key are one file, certificate first, so that no crash leaves one beside the other's: it is
//! written whole, and moved whole. In which order they are read and moved matters: whoever reads while one is moved
//! sees it in one of both places.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _,
};
use sha2::{Digest as _, Sha256};
use viworks_common::certificate::{self, Unnamed};
use viworks_common::id::TrustDomain;
use viworks_common::key::Identity as Name;
use viworks_common::pem;
use viworks_common::renewal::Life;
use viworks_common::time::Timestamp;
use viworks_runtime::fault;
use viworks_runtime::files::{self, FileError};
use viworks_runtime::tls::{self, TlsError};
use zeroize::Zeroizing;

use crate::reserve;

/// The key for which a certificate is asked.
const ASKED: &str = "renewal.key";
/// A certificate that was issued, and was in no session so far, with its key.
const ISSUED: &str = "renewal.pem";
/// The one in use.
const RENEWED: &str = "renewed.pem";
/// The one in use before, for a backend that was set back to a time at which it knew no later one.
const BEFORE: &str = "renewed-before.pem";

/// Every file, as the state folder may have it.
pub const FILES: [&str; 4] = [ASKED, ISSUED, RENEWED, BEFORE];

/// Where a certificate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The configuration names it.
    Configured,
    /// It was issued over a session, or at the door, and is still to be tried.
    Issued,
    /// It was issued over a session, and a session was confirmed with it.
    Renewed,
    /// As that one, and before it.
    Before,
}

impl Origin {
    /// Those that the state folder has, in the order in which they are read.
    pub const KEPT: [Self; 3] = [Self::Issued, Self::Renewed, Self::Before];

    /// The word in status and health.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::Issued => "issued",
            Self::Renewed => "renewed",
            Self::Before => "renewed_before",
        }
    }

    /// Its file, for all that the state folder has.
    #[must_use]
    pub fn path(self, folder: &Path) -> Option<PathBuf> {
        let name = match self {
            Self::Configured => return None,
            Self::Issued => ISSUED,
            Self::Renewed => RENEWED,
            Self::Before => BEFORE,
        };
        Some(folder.join(name))
    }
}

/// Why something did not work out.
#[derive(Debug, thiserror::Error)]
pub enum RenewedError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Moving or removing one.
    #[error("failed to {what} {}", path.display())]
    Io {
        /// Which step.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// No key, or no request for it, could be made.
    #[error("no certificate request can be made")]
    Request(#[from] rcgen::Error),
    /// What came is no certificate.
    #[error("the backend's answer is no certificate")]
    NotOne(#[from] TlsError),
    /// It names no gateway.
    #[error("the certificate names no gateway")]
    Unnamed(#[from] Unnamed),
    /// It is not what was asked for.
    #[error("the certificate {0}")]
    Other(&'static str),
    /// It is not good by this machine's clock.
    #[error("the certificate {0}: compare the clocks of both")]
    Untimely(&'static str),
}

/// What a certificate must fit that is taken over.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Who it is for.
    pub name: Name,
    /// In which trust domain.
    pub trust_domain: TrustDomain,
    /// The life of the one in use.
    pub life: Life,
}

/// A certificate request, PEM, for the key that was asked for before, or for a new one, which is durable then.
///
/// # Errors
///
/// When there is none, or it cannot be kept.
pub fn request(folder: &Path) -> Result<String, RenewedError> {
    let path = folder.join(ASKED);
    let key = match read_key(&path)? {
        Some(key) => key,
        None => {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let pem = Zeroizing::new(key.serialize_pem());
            reserve::write(&path, pem.as_bytes())?;
            key
        }
    };
    fault::point("renewal.key_kept");
    request_for(&key)
}

/// A certificate request, PEM, for this key.
///
/// # Errors
///
/// When none can be made.
pub fn request_for(key: &KeyPair) -> Result<String, RenewedError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(key)?.pem()?)
}

/// The key that is asked for; none where nothing is, or where it is broken and another one will do.
fn read_key(path: &Path) -> Result<Option<KeyPair>, RenewedError> {
    let bytes = match files::read_private(path) {
        Ok(bytes) => bytes,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let text = Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned());
    Ok(KeyPair::from_pem(&text).ok())
}

/// The next request is for another key.
///
/// # Errors
///
/// When the old one cannot be removed.
pub fn forget_key(folder: &Path) -> Result<(), RenewedError> {
    remove(&folder.join(ASKED))?;
    Ok(files::sync_folder(folder)?)
}

/// Keeps a certificate that was issued, PEM, with its key, while this machine's clock shows `wall`: durable once this
/// returns the end of its life. One that will not do is not asked for again: for the same key the answer would be the
/// same.
///
/// # Errors
///
/// When it is not what was asked for, or cannot be kept; what is in use stays.
pub fn keep(
    folder: &Path,
    wanted: &Wanted,
    wall: Timestamp,
    issued: &str,
) -> Result<Timestamp, RenewedError> {
    let asked = folder.join(ASKED);
    let key = read_key(&asked)?.ok_or(RenewedError::Other("was not asked for"))?;
    let not_after = match judge(issued, wanted, &key, wall) {
        Ok(not_after) => not_after,
        Err(refused) => {
            forget_key(folder)?;
            return Err(refused);
        }
    };
    write_issued(folder, issued, &key)?;
    fault::point("renewal.issued_kept");
    forget_key(folder)?;
    Ok(not_after)
}

/// Keeps a certificate that the door issued, PEM, for a `key` whose own has ended, while this machine's clock shows
/// `wall`: durable once this returns the end of its life.
///
/// # Errors
///
/// When it is not what was asked for, or cannot be kept; what was there stays.
pub fn keep_reissued(
    folder: &Path,
    wanted: &Wanted,
    wall: Timestamp,
    issued: &str,
    key: &KeyPair,
) -> Result<Timestamp, RenewedError> {
    let not_after = judge(issued, wanted, key, wall)?;
    write_issued(folder, issued, key)?;
    fault::point("door.kept");
    Ok(not_after)
}

fn write_issued(folder: &Path, issued: &str, key: &KeyPair) -> Result<(), RenewedError> {
    let pem = Zeroizing::new(format!("{}\n{}", issued.trim_end(), key.serialize_pem()));
    Ok(reserve::write(&folder.join(ISSUED), pem.as_bytes())?)
}

fn judge(
    issued: &str,
    wanted: &Wanted,
    key: &KeyPair,
    wall: Timestamp,
) -> Result<Timestamp, RenewedError> {
    let leaf = tls::one_certificate(issued.as_bytes())?;
    // It is kept as it came, before its key, and a file with two of these opens no session.
    if !pem::has_no_other(issued, pem::CERTIFICATE) {
        return Err(RenewedError::Other("comes with something else"));
    }
    let says = certificate::read(&leaf)?;
    let spki: [u8; 32] = Sha256::digest(key.subject_public_key_info()).into();
    if says.spki_sha256 != spki {
        return Err(RenewedError::Other("is for another key"));
    }
    if says.identity != wanted.name || says.trust_domain != wanted.trust_domain {
        return Err(RenewedError::Other("is for another gateway"));
    }
    if (says.not_before, says.not_after) <= wanted.life {
        return Err(RenewedError::Other("is no later one than that in use"));
    }
    // The one before is retired by the first session with this one: were it issued by a clock that is wrong, nothing
    // would be left once that is right again.
    if says.not_before > wall {
        return Err(RenewedError::Untimely(
            "begins later than this machine's clock shows",
        ));
    }
    if says.not_after < wall {
        return Err(RenewedError::Untimely(
            "ended before what this machine's clock shows",
        ));
    }
    Ok(says.not_after)
}

/// Notes that a session was confirmed with the certificate that was issued last. Doing it again changes nothing.
///
/// # Errors
///
/// When a file cannot be moved. The certificate is good where it is, and this is done by the next session.
pub fn prove(folder: &Path) -> Result<(), RenewedError> {
    let [issued, renewed, before] = [ISSUED, RENEWED, BEFORE].map(|name| folder.join(name));
    if files::is_absent(&issued) {
        return Ok(());
    }
    // One that has its certificate, where a crash left it behind.
    remove(&folder.join(ASKED))?;
    rename(&renewed, &before)?;
    fault::point("renewal.moving");
    rename(&issued, &renewed)?;
    Ok(files::sync_folder(folder)?)
}

/// Gives up what was issued, was in no session and is refused, once a session was confirmed with one that is older:
/// the backend knows no later one then. What was in a session once is never given up.
///
/// # Errors
///
/// When it cannot be removed.
pub fn give_up(folder: &Path) -> Result<(), RenewedError> {
    // Its key first, where a crash left that behind: the answer to it would be this very certificate.
    remove(&folder.join(ASKED))?;
    remove(&folder.join(ISSUED))?;
    Ok(files::sync_folder(folder)?)
}

fn rename(from: &Path, to: &Path) -> Result<(), RenewedError> {
    let failed = |source| RenewedError::Io {
        what: "move",
        path: from.to_owned(),
        source,
    };
    missing_is_fine(fs::rename(from, to)).map_err(failed)
}

fn remove(path: &Path) -> Result<(), RenewedError> {
    let failed = |source| RenewedError::Io {
        what: "remove",
        path: path.to_owned(),
        source,
    };
    missing_is_fine(fs::remove_file(path)).map_err(failed)
}

fn missing_is_fine(done: std::io::Result<()>) -> std::io::Result<()> {
    match done {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use rcgen::{CertificateSigningRequestParams, ExtendedKeyUsagePurpose, Issuer, SanType};
    use time::OffsetDateTime;
    use uuid::Uuid;
    use viworks_common::id::AgentId;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn wanted() -> Wanted {
        Wanted {
            name: Name {
                tenant: "default".parse().unwrap(),
                agent_id: AgentId::from_uuid(Uuid::from_u128(7)),
            },
            trust_domain: "viworks.test".parse().unwrap(),
            life: (at(0), at(10)),
        }
    }

    fn at(hours: u32) -> Timestamp {
        Timestamp::from_unix_micros(1_790_000_000_000_000).saturating_add(HOUR * hours)
    }

    fn date(at: Timestamp) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(at.unix_micros() / 1_000_000).unwrap()
    }

    /// What an authority makes of a request.
    fn issued(csr: &str, wanted: &Wanted, (from, to): (u32, u32)) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(csr).unwrap();
        let uri = certificate::uri(&wanted.trust_domain, &wanted.name);
        request.params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        request.params.not_before = date(at(from));
        request.params.not_after = date(at(to));
        let authority = KeyPair::generate().unwrap();
        let issuer = Issuer::new(CertificateParams::default(), authority);
        request.signed_by(&issuer).unwrap().pem()
    }

    /// What this machine's clock shows.
    fn wall() -> Timestamp {
        at(10)
    }

    /// Keeps what was issued for this request.
    fn taken(folder: &Path, csr: &str, life: (u32, u32)) {
        keep(folder, &wanted(), wall(), &issued(csr, &wanted(), life)).unwrap();
    }

    fn names(folder: &Path) -> Vec<String> {
        let names = files::names(folder).unwrap().into_iter();
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    /// The certificate that a file has, if its key is the certificate's.
    fn held(folder: &Path, origin: Origin) -> Vec<u8> {
        let path = origin.path(folder).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        let identity = tls::Identity::load(&path, &path).unwrap();
        identity.chain[0].to_vec()
    }

    #[test]
    fn a_key_is_kept_before_it_is_asked_for_and_asked_for_until_it_has_a_certificate() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let first = request(folder).unwrap();
        assert_eq!(names(folder), [ASKED]);
        let key = |csr: &str| {
            let read = CertificateSigningRequestParams::from_pem(csr).unwrap();
            read.public_key.der_bytes().to_vec()
        };
        assert_eq!(key(&first), key(&request(folder).unwrap()));
        taken(folder, &first, (6, 20));
        assert_eq!(names(folder), [ISSUED]);
        assert_ne!(key(&first), key(&request(folder).unwrap()));
        forget_key(folder).unwrap();
        forget_key(folder).unwrap();
    }

    #[test]
    fn what_was_not_asked_for_changes_nothing_and_another_key_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let elsewhere = tempfile::tempdir().unwrap();
        let own = request(folder).unwrap();
        let asked = fs::read(folder.join(ASKED)).unwrap();
        let foreign = request(elsewhere.path()).unwrap();
        let other = Wanted {
            name: Name {
                agent_id: AgentId::from_uuid(Uuid::from_u128(8)),
                ..wanted().name
            },
            ..wanted()
        };
        for (issued, told) in [
            (issued(&foreign, &wanted(), (6, 20)), "another key"),
            (issued(&own, &other, (6, 20)), "another gateway"),
            (issued(&own, &wanted(), (0, 9)), "no later one"),
            (issued(&own, &wanted(), (0, 10)), "no later one"),
            ("nothing".to_owned(), "no certificate"),
            (issued(&own, &wanted(), (11, 30)), "begins later"),
            (issued(&own, &wanted(), (6, 9)), "ended before"),
        ] {
            files::write_atomic(&folder.join(ASKED), &asked).unwrap();
            let refused = keep(folder, &wanted(), wall(), &issued).unwrap_err();
            let refused = refused.to_string();
            assert!(refused.contains(told), "{refused}");
            assert_eq!(names(folder), [""; 0], "{told}");
        }
        let refused = keep(folder, &wanted(), wall(), &issued(&own, &wanted(), (6, 20)));
        assert!(refused.unwrap_err().to_string().contains("not asked for"));
    }

    #[test]
    fn the_one_in_use_gives_way_to_the_one_that_proved_itself_and_is_kept_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        prove(folder).unwrap();
        let mut made = Vec::new();
        for round in 1..=3 {
            let csr = request(folder).unwrap();
            taken(folder, &csr, (6 + round, 20 + round));
            made.push(held(folder, Origin::Issued));
            prove(folder).unwrap();
            prove(folder).unwrap();
            assert_eq!(held(folder, Origin::Renewed), *made.last().unwrap());
        }
        assert_eq!(names(folder), [BEFORE, RENEWED]);
        assert_eq!(held(folder, Origin::Before), made[1]);
        let csr = request(folder).unwrap();
        let left = fs::read(folder.join(ASKED)).unwrap();
        taken(folder, &csr, (10, 30));
        // As a crash leaves it behind.
        files::write_atomic(&folder.join(ASKED), &left).unwrap();
        give_up(folder).unwrap();
        give_up(folder).unwrap();
        assert_eq!(names(folder), [BEFORE, RENEWED]);
    }

    #[test]
    fn a_move_that_a_crash_cut_in_half_is_ended_by_the_next_session() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for hours in [6, 7] {
            let csr = request(folder).unwrap();
            taken(folder, &csr, (hours, 20));
            if hours == 6 {
                prove(folder).unwrap();
            }
        }
        let (old, new) = (held(folder, Origin::Renewed), held(folder, Origin::Issued));
        fs::rename(folder.join(RENEWED), folder.join(BEFORE)).unwrap();
        prove(folder).unwrap();
        assert_eq!(held(folder, Origin::Renewed), new);
        assert_eq!(held(folder, Origin::Before), old);
    }

    #[test]
    fn a_key_that_a_crash_left_beside_its_certificate_is_not_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let csr = request(folder).unwrap();
        let left = fs::read(folder.join(ASKED)).unwrap();
        taken(folder, &csr, (6, 20));
        files::write_atomic(&folder.join(ASKED), &left).unwrap();
        prove(folder).unwrap();
        assert_eq!(names(folder), [RENEWED]);
    }

    #[test]
    fn what_the_door_issued_for_a_key_stands_beside_that_and_takes_the_place_of_the_one_that_ended()
    {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let csr = request(folder).unwrap();
        taken(folder, &csr, (6, 20));
        prove(folder).unwrap();
        let path = Origin::Renewed.path(folder).unwrap();
        let ended = tls::Identity::load(&path, &path).unwrap();
        let key = KeyPair::try_from(&ended.key).unwrap();
        let pem = issued(&request_for(&key).unwrap(), &wanted(), (30, 60));
        let of_its_life = Wanted {
            life: (at(6), at(20)),
            ..wanted()
        };
        let other = KeyPair::generate().unwrap();
        let two = format!("{pem}{}", other.serialize_pem());
        let refused = keep_reissued(folder, &of_its_life, at(31), &two, &key).unwrap_err();
        assert!(refused.to_string().contains("something else"), "{refused}");
        let refused = keep_reissued(folder, &of_its_life, at(31), &pem, &other).unwrap_err();
        assert!(refused.to_string().contains("another key"), "{refused}");
        assert_eq!(names(folder), [RENEWED]);
        let not_after = keep_reissued(folder, &of_its_life, at(31), &pem, &key).unwrap();
        assert_eq!(not_after, at(60));
        assert_ne!(held(folder, Origin::Issued), held(folder, Origin::Renewed));
        prove(folder).unwrap();
        assert_eq!(names(folder), [BEFORE, RENEWED]);
        assert_eq!(held(folder, Origin::Before), ended.chain[0].to_vec());
    }

    #[test]
    fn a_key_that_a_disk_broke_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        files::write_atomic(&folder.path().join(ASKED), b"nothing").unwrap();
        let csr = request(folder.path()).unwrap();
        taken(folder.path(), &csr, (6, 20));
    }
}
