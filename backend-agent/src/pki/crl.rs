//! The list of certificates that are not accepted any more, signed by the authority: for whoever looks at certificates
//! in front of the backend, which asks its database.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::info;
use viworks_common::human;
use viworks_common::id::Tenant;
use viworks_common::time::Timestamp;
use viworks_runtime::clock::Timeline;
use viworks_runtime::conditions::{Conditions, Severity};
use viworks_runtime::config::Problem;
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::{blocking, tls};
use x509_parser::extensions::ParsedExtension;

use super::authority::Authority;
use super::issue::{authority_in_force, open_authority};
use super::{PkiError, signing, unwritten};
use crate::agent::authorities::Side;
use crate::config::Config;
use crate::data::{Store, WithdrawnCertificate, in_full};

mod place;

pub use place::{may_replace, strange_place};

/// How long a list is valid. With one that has ended nginx refuses every gateway, so that a backend may be away for
/// weeks; what is revoked meanwhile is refused by the backend itself.
pub const LIFE: Duration = Duration::from_secs(30 * 24 * 3_600);

/// How often the database is asked whether the list has changed.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// How old a list gets that nothing changes.
const WRITE_EVERY: Duration = Duration::from_secs(24 * 3_600);

/// How long reading the authority's files, signing and writing may take.
const WRITE_TIME: Duration = Duration::from_secs(30);

/// The condition of a list that is not written.
const CRL: &str = "pki.crl";

/// The condition of a list that is not of every authority.
const OTHERS: &str = "pki.crl.authorities";

/// Longer than reading a small file takes.
const READ_TIME: Duration = Duration::from_secs(10);

const FIX: &str = "the backend itself refuses what is revoked, whatever the list says; put right what the cause names, \
                   before the list that is there ends: nginx refuses every gateway by one that has ended";

/// That gateways have certificates of authorities of which this list is none, if that may be: nginx that goes by it
/// refuses them all. The authorities above the one that signs are no others: gateways have no certificates of them.
#[must_use]
pub fn warning(config: &Config) -> Option<Problem> {
    config.keys.crl_file.as_ref()?;
    let file = &config.agents.client_ca_file;
    let others = others(&tls::load_certificates(file).ok()?);
    if others.is_empty() {
        return None;
    }
    let message = format!(
        "the list of revoked certificates is of the first authority in this file alone: nginx that goes by it \
         (ssl_crl) refuses every gateway with a certificate of {}",
        others.join(" or ")
    );
    let help = "leave ssl_crl out of nginx as long as both are in the file: the backend itself refuses what is revoked";
    Some(Problem::of_file(file, message, help))
}

/// The names of those beside the first, which signs: neither it nor one above it.
fn others(certificates: &[CertificateDer<'_>]) -> Vec<String> {
    let mut left: Vec<Holder> = certificates.iter().filter_map(Holder::of).collect();
    let Some(own) = left.first() else {
        return Vec::new();
    };
    // What signs itself is above nothing, whoever else vouches for it.
    let (name, is_root) = (own.subject.clone(), own.subject == own.issuer);
    let own = take(&mut left, 0);
    let mut above = if is_root { Vec::new() } else { issuers_of(own) };
    // Each step takes one out of those that are left, or asks for none, so there is an end.
    while let Some(issuer) = above.pop() {
        if let Some(place) = left.iter().position(|it| it.subject == issuer) {
            above.extend(issuers_of(take(&mut left, place)));
        }
    }
    let named = left.into_iter().map(|Holder { subject, .. }| {
        if subject == name {
            format!("{subject} with another key")
        } else {
            subject
        }
    });
    // Of one there may be several certificates.
    let named: BTreeSet<String> = named.collect();
    named.into_iter().collect()
}

/// Takes out one, and what else there is of the same name and key: an authority is not another one for a certificate
/// that was renewed, or that somebody else signed.
fn take(left: &mut Vec<Holder>, place: usize) -> Vec<Holder> {
    let one = left.remove(place);
    let (mut same, others): (Vec<_>, Vec<_>) = std::mem::take(left)
        .into_iter()
        .partition(|it| (&it.subject, &it.key) == (&one.subject, &one.key));
    same.push(one);
    *left = others;
    same
}

/// The names of those that are above.
fn issuers_of(certificates: Vec<Holder>) -> Vec<String> {
    let signed = certificates
        .into_iter()
        .filter(|it| it.subject != it.issuer);
    signed.map(|it| it.issuer).collect()
}

/// What a certificate says of whose it is, and of who signed it.
struct Holder {
    subject: String,
    /// The public key, DER.
    key: Vec<u8>,
    issuer: String,
}

impl Holder {
    fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_rest, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        Some(Self {
            subject: parsed.subject().to_string(),
            key: parsed.public_key().raw.to_vec(),
            issuer: parsed.issuer().to_string(),
        })
    }
}

/// An authority as far as lists go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Signatory {
    /// Its name.
    pub name: String,
    /// What its certificate calls its key, or its list, where that says so.
    pub key_id: Option<Vec<u8>>,
}

impl Signatory {
    /// Whether OpenSSL takes a list of the one for one of the other.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let mut keys = self.key_id.iter().zip(&other.key_id);
        self.name == other.name && keys.all(|(key, other)| key == other)
    }
}

/// The authorities whose certificates are in a PEM text.
///
/// # Errors
///
/// Why it cannot be read.
pub fn authorities(text: &[u8]) -> Result<BTreeSet<Signatory>, String> {
    let mut found = BTreeSet::new();
    for certificate in CertificateDer::pem_slice_iter(text) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        let parsed = x509_parser::parse_x509_certificate(&certificate);
        let (_rest, parsed) = parsed.map_err(|_unreadable| "a certificate cannot be read")?;
        let key_id = parsed.iter_extensions().find_map(|extension| {
            if let ParsedExtension::SubjectKeyIdentifier(id) = extension.parsed_extension() {
                Some(id.0.to_vec())
            } else {
                None
            }
        });
        found.insert(Signatory {
            name: parsed.subject().to_string(),
            key_id,
        });
    }
    Ok(found)
}

/// The authorities whose lists are in a PEM text.
///
/// # Errors
///
/// Why it cannot be read.
pub fn issuers(text: &[u8]) -> Result<BTreeSet<Signatory>, String> {
    let mut found = BTreeSet::new();
    for list in CertificateRevocationListDer::pem_slice_iter(text) {
        let list = list.map_err(|error| error.to_string())?;
        let parsed = x509_parser::parse_x509_crl(&list);
        let (_rest, parsed) = parsed.map_err(|error| format!("a list cannot be read: {error}"))?;
        let key_id = parsed.extensions().iter().find_map(|extension| {
            if let ParsedExtension::AuthorityKeyIdentifier(id) = extension.parsed_extension() {
                id.key_identifier.as_ref().map(|id| id.0.to_vec())
            } else {
                None
            }
        });
        found.insert(Signatory {
            name: parsed.issuer().to_string(),
            key_id,
        });
    }
    Ok(found)
}

/// Signs the list, and puts it where it belongs: the old one or the new one is there, whole.
///
/// # Errors
///
/// When something else than a list is there, this backend has no authority, or a file is not what it should be.
pub fn write(
    config: &Config,
    withdrawn: &[WithdrawnCertificate],
    out: &Path,
    now: Timestamp,
) -> Result<(), PkiError> {
    sign(withdrawn, out, now, || open_authority(config))
}

/// The same by an authority that is opened only for that.
fn sign(
    withdrawn: &[WithdrawnCertificate],
    out: &Path,
    now: Timestamp,
    authority: impl FnOnce() -> Result<Authority, PkiError>,
) -> Result<(), PkiError> {
    // Before anybody is asked to sign, which may take its time.
    may_replace(out)?;
    let authority = authority()?;
    let list = authority.revocations(withdrawn, now, LIFE)?;
    place::put(out, list.as_bytes()).map_err(|error| {
        // It says by what.
        if error.is_taken() {
            error.into()
        } else {
            unwritten(error)
        }
    })
}

/// Keeps the file of `crl_file` in `[keys]` as the database is.
pub struct Keeper {
    /// Which file, and who signs.
    pub config: Arc<Config>,
    /// The authorities in force, of which the first signs.
    pub side: watch::Receiver<Arc<Side>>,
    /// The truth.
    pub store: Arc<dyn Store>,
    /// Whose certificates.
    pub tenant: Tenant,
    /// The time.
    pub clock: Arc<Timeline>,
    /// What is wrong with this process.
    pub conditions: Conditions,
}

/// What was written last, and when.
struct Written {
    listed: Vec<WithdrawnCertificate>,
    at: Timestamp,
}

impl Keeper {
    /// Runs until the backend stops.
    pub async fn run(self, lifecycle: Lifecycle) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut written = None;
        loop {
            tokio::select! {
                () = lifecycle.stopping() => return,
                _ = ticks.tick() => {}
            }
            match self.look(&mut written).await {
                Ok(()) => self.conditions.clear(CRL),
                Err(cause) => self.conditions.raise(CRL, Severity::Warn, &cause, FIX),
            }
            self.tell_others().await;
        }
    }

    /// Says whether there is an authority of which the list is not; the file may have been changed since the last time.
    async fn tell_others(&self) {
        let config = Arc::clone(&self.config);
        let asked = blocking::call("authorities", READ_TIME, move || warning(&config));
        match asked.await {
            Ok(Some(Problem { message, help, .. })) => {
                let file = self.config.agents.client_ca_file.display();
                let told = format!("{file}: {message}");
                self.conditions.raise(OTHERS, Severity::Warn, &told, &help);
            }
            Ok(None) => self.conditions.clear(OTHERS),
            // Whether there is one is not known: what was said stays.
            Err(_late) => {}
        }
    }

    async fn look(&self, written: &mut Option<Written>) -> Result<(), String> {
        let Some(out) = self.config.keys.crl_file.clone() else {
            return Ok(());
        };
        let now = self.clock.wall();
        let listed = self.store.withdrawn_certificates(&self.tenant, now).await;
        let listed = match listed {
            Ok(listed) => listed,
            // Health says what is wrong with the store; the list that is there stays there.
            Err(error) if error.is_outage() => return Ok(()),
            Err(error) => return Err(error.without_words()),
        };
        if let Some(written) = written
            && is_as_it_should_be(written, &listed, now)
            && out.try_exists().unwrap_or(true)
        {
            return Ok(());
        }
        let (config, names) = (Arc::clone(&self.config), listed.clone());
        let file = out.clone();
        let side = Arc::clone(&self.side.borrow());
        let done = blocking::call("revocation list", WRITE_TIME, move || {
            let authority = || authority_in_force(&config, &side.signing);
            sign(&names, &file, now, authority)
        });
        match done.await {
            // Who signed this signs certificates as well.
            Ok(Ok(())) => signing::tell(&self.conditions, &Ok(())),
            Ok(Err(error)) => {
                return Err(format!(
                    "failed to write {}: {}",
                    out.display(),
                    in_full(&error)
                ));
            }
            Err(error) => return Err(format!("failed to write {}: {error}", out.display())),
        }
        let certificates = human::counted(listed.len(), "certificate", "certificates");
        info!(file = %out.display(), certificates, "wrote the list of certificates that are not accepted any more");
        *written = Some(Written { listed, at: now });
        Ok(())
    }
}

/// Whether it lists the same, and was written not too long ago. One that is of a later time was written by a clock that
/// was set since.
fn is_as_it_should_be(written: &Written, listed: &[WithdrawnCertificate], now: Timestamp) -> bool {
    written.at <= now && now.saturating_since(written.at) < WRITE_EVERY && written.listed == listed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_beside_the_one_that_signs_is_told_and_none_above_it() {
        let params = |name: &str| {
            let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            let common = rcgen::DnType::CommonName;
            params.distinguished_name.push(common, name);
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params
        };
        let key = || rcgen::KeyPair::generate().unwrap();
        let alone = |name: &str| params(name).self_signed(&key()).unwrap().der().clone();
        let root_key = key();
        let root = params("root").self_signed(&root_key).unwrap();
        let issuer = rcgen::Issuer::new(params("root"), root_key);
        let below = params("below").signed_by(&key(), &issuer).unwrap();
        let (root, below) = (root.der().clone(), below.der().clone());
        let (old, new) = (alone("old"), alone("new"));
        assert!(others(&[]).is_empty());
        assert!(others(std::slice::from_ref(&old)).is_empty());
        assert!(others(&[below.clone(), root.clone()]).is_empty());
        assert_eq!(others(&[new, old.clone()]), ["CN=old"]);
        assert_eq!(others(&[below.clone(), old, root.clone()]), ["CN=old"]);
        // It signs itself, so what it signed is another one.
        assert_eq!(others(&[root, below]), ["CN=below"]);
    }

    #[test]
    fn an_authority_is_told_from_another_by_name_and_key_and_not_by_its_certificate() {
        let params = |name: &str| {
            let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            let common = rcgen::DnType::CommonName;
            params.distinguished_name.push(common, name);
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params
        };
        let key = || rcgen::KeyPair::generate().unwrap();
        let (own_key, old_key, other_key) = (key(), key(), key());
        let alone = |name: &str, key: &rcgen::KeyPair, serial: u8| {
            let mut params = params(name);
            params.serial_number = Some(rcgen::SerialNumber::from_slice(&[serial]));
            params.self_signed(key).unwrap().der().clone()
        };
        let by = |name: &str, issuer: &str, issuer_key: &rcgen::KeyPair| {
            let issuer = rcgen::Issuer::new(params(issuer), issuer_key);
            let signed = params(name).signed_by(&own_key, &issuer).unwrap();
            signed.der().clone()
        };
        // Its certificate was renewed.
        let (renewed, root) = (alone("root", &own_key, 1), alone("root", &own_key, 2));
        assert_ne!(renewed, root);
        assert!(others(&[renewed, root.clone()]).is_empty());
        // Two roots stand above it.
        let (old, other) = (alone("old", &old_key, 3), alone("other", &other_key, 4));
        let (by_old, by_other) = (
            by("below", "old", &old_key),
            by("below", "other", &other_key),
        );
        let both = [by_old, by_other, old.clone(), other];
        assert!(others(&both).is_empty());
        // The old one vouches for it, and has gateways of its own.
        let vouched = by("root", "old", &old_key);
        let again = alone("old", &old_key, 5);
        assert_eq!(others(&[root.clone(), vouched, old, again]), ["CN=old"]);
        let twin = alone("root", &other_key, 6);
        assert_eq!(others(&[root, twin]), ["CN=root with another key"]);
    }

    #[test]
    fn a_list_is_of_an_authority_by_name_and_by_key_where_both_say_which() {
        let one = |key: Option<u8>| Signatory {
            name: "CN=root".to_owned(),
            key_id: key.map(|key| vec![key]),
        };
        assert!(one(Some(1)).is(&one(Some(1))));
        assert!(!one(Some(1)).is(&one(Some(2))));
        assert!(one(None).is(&one(Some(2))) && one(Some(1)).is(&one(None)));
        let other = Signatory {
            name: "CN=other".to_owned(),
            key_id: Some(vec![1]),
        };
        assert!(!one(Some(1)).is(&other));
    }

    #[test]
    fn a_list_is_written_anew_when_it_changes_ages_or_is_of_a_time_to_come() {
        let at = |seconds: i64| Timestamp::from_unix_micros(seconds * 1_000_000);
        let one = WithdrawnCertificate {
            serial: "0a".to_owned(),
            since: at(0),
            revoked: true,
        };
        let written = Written {
            listed: vec![one.clone()],
            at: at(100),
        };
        assert!(is_as_it_should_be(
            &written,
            std::slice::from_ref(&one),
            at(101)
        ));
        assert!(!is_as_it_should_be(&written, &[], at(101)));
        assert!(!is_as_it_should_be(
            &written,
            &[one.clone(), one.clone()],
            at(101)
        ));
        let day = 24 * 3_600;
        assert!(!is_as_it_should_be(
            &written,
            std::slice::from_ref(&one),
            at(100 + day)
        ));
        assert!(!is_as_it_should_be(&written, &[one], at(99)));
    }
}
