//! The authorities that gateways are given over their sessions, so that they know another one before the server shows a
//! certificate of it, and at the door, for those that were off meanwhile; and which of them signed a certificate.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use viworks_common::command::format_digest;
use viworks_common::limits;
use viworks_common::pem;
use viworks_common::time::Timestamp;
use viworks_runtime::tls::{self, ServerSide};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::data::AuthorityBundle;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// SHA-256 of its certificate, 64 hexadecimal digits.
    pub id: String,
    /// Whose it is, as the certificate says.
    pub subject: String,
    /// When it ends, where that can be read.
    pub not_after: Option<Timestamp>,
    /// What is stored with the certificates that it signed: SHA-256 of its name and its key. Two certificates may be
    /// one authority's, such as before and after that was renewed.
    pub issuer: [u8; 32],
    /// The certificate.
    certificate: CertificateDer<'static>,
    /// Its name, DER.
    name: Vec<u8>,
}

impl Authority {
    fn of(certificate: &[u8]) -> Self {
        let parsed = X509Certificate::from_der(certificate).map(|(_rest, parsed)| {
            (
                parsed.subject().to_string(),
                parsed.subject().as_raw().to_vec(),
            )
        });
        let (subject, name) = parsed.unwrap_or_default();
        Self {
            id: format_digest(&Sha256::digest(certificate).into()),
            subject,
            not_after: tls::validity(certificate).ok().map(|(_from, to)| to),
            issuer: tls::anchor_sha256(certificate).unwrap_or_default(),
            certificate: CertificateDer::from(certificate.to_vec()),
            name,
        }
    }

    /// Whether a certificate leads to it, as TLS judges at a moment.
    fn is_led_to(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        at: UnixTime,
    ) -> bool {
        let verifier = tls::roots([self.certificate.clone()]).and_then(tls::client_verifier);
        verifier.is_ok_and(|verifier| verifier.verify_client_cert(leaf, between, at).is_ok())
    }

    /// Whether a server's certificate leads to it, as a gateway judges that has nothing else.
    fn is_led_to_by_server(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        at: UnixTime,
    ) -> bool {
        let roots = tls::roots([self.certificate.clone()]);
        roots.is_ok_and(|roots| tls::server_leads_to(&roots, leaf, between, at))
    }
}

/// What gateways are given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorities {
    /// The certificates, PEM; none where there are more than gateways take.
    bundle: Option<String>,
    /// SHA-256 of the bundle.
    digest: String,
    /// Each of them.
    all: Vec<Authority>,
}

impl Authorities {
    /// Those of the certificates that are authorities', in an order of their own: which of them signs is no news to
    /// gateways. What else their file has is not passed on.
    #[must_use]
    pub fn of(certificates: &[CertificateDer<'static>]) -> Self {
        let all = certificates.iter().map(AsRef::<[u8]>::as_ref);
        let mut authorities: Vec<&[u8]> = all.filter(|one| tls::can_anchor(one)).collect();
        authorities.sort_unstable();
        authorities.dedup();
        let text: String = authorities
            .iter()
            .map(|one| pem::certificate(one))
            .collect();
        let fits = (1..=limits::AUTHORITIES_MAX).contains(&authorities.len())
            && text.len() <= limits::AUTHORITIES_BYTES_MAX;
        Self {
            digest: format_digest(&Sha256::digest(&text).into()),
            bundle: fits.then_some(text),
            all: authorities.into_iter().map(Authority::of).collect(),
        }
    }

    /// The certificates, PEM; none where there are more than gateways take.
    #[must_use]
    pub fn bundle(&self) -> Option<&str> {
        self.bundle.as_deref()
    }

    /// SHA-256 of the bundle, as gateways report it.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Each of them.
    #[must_use]
    pub fn all(&self) -> &[Authority] {
        &self.all
    }

    /// What tells each from any other.
    #[must_use]
    pub fn ids(&self) -> BTreeSet<String> {
        self.all.iter().map(|one| one.id.clone()).collect()
    }

    /// What is stored with the certificates that they signed.
    #[must_use]
    pub fn issuers(&self) -> BTreeSet<[u8; 32]> {
        self.all.iter().map(|one| one.issuer).collect()
    }

    /// Whether it is one of them by which this is stored with a certificate.
    #[must_use]
    pub fn include(&self, issuer: &[u8; 32]) -> bool {
        self.all.iter().any(|one| one.issuer == *issuer)
    }

    /// Which of them signed a certificate that TLS found to lead to one of them, through these where it was so. Its
    /// name says which one it is, unless two have the same, or there are others in between.
    #[must_use]
    pub fn signer_of(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        at: Timestamp,
    ) -> Option<[u8; 32]> {
        let (_rest, parsed) = X509Certificate::from_der(leaf).ok()?;
        let name = parsed.issuer().as_raw();
        let named = self.all.iter().filter(|one| one.name == name);
        let named: BTreeSet<[u8; 32]> = named.map(|one| one.issuer).collect();
        if let (Some(only), 1) = (named.first(), named.len()) {
            return Some(*only);
        }
        let at = moment(at);
        let found = self.all.iter().find(|one| one.is_led_to(leaf, between, at));
        found.map(|one| one.issuer)
    }

    /// Whether the certificate of a server leads to one of them, through these where it needs any.
    #[must_use]
    pub fn vouch_for_server(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        at: Timestamp,
    ) -> bool {
        let at = moment(at);
        let mut all = self.all.iter();
        all.any(|one| one.is_led_to_by_server(leaf, between, at))
    }

    /// What is in the bundle, where there is one.
    #[must_use]
    pub fn noted(&self) -> Option<AuthorityBundle> {
        self.bundle.as_ref().map(|_given| AuthorityBundle {
            digest: self.digest.clone(),
            authorities: self.ids(),
        })
    }

    /// Whether one of them is replacing another.
    #[must_use]
    pub const fn are_several(&self) -> bool {
        self.all.len() > 1
    }
}

fn moment(at: Timestamp) -> UnixTime {
    let since_epoch = u64::try_from(at.unix_micros()).unwrap_or(0);
    UnixTime::since_unix_epoch(Duration::from_micros(since_epoch))
}

/// What callers are met with. Both are of one reading of the files.
#[derive(Debug)]
pub struct Side {
    /// TLS, and how it judges what they show.
    pub tls: ServerSide,
    /// The authorities by which it judges.
    pub authorities: Arc<Authorities>,
    /// The certificates of their file in its own order, PEM: that of the one that signs comes first, those above it
    /// follow.
    pub signing: String,
}

/// What gateways are given. Of one process.
#[derive(Debug)]
pub struct Trust {
    current: watch::Sender<Arc<Authorities>>,
}

impl Trust {
    /// Gateways are given these.
    #[must_use]
    pub fn new(authorities: Arc<Authorities>) -> Self {
        Self {
            current: watch::Sender::new(authorities),
        }
    }

    /// Gateways are given these from now on, those that are connected at once.
    pub fn give(&self, authorities: &Arc<Authorities>) {
        self.current.send_if_modified(|current| {
            let changes = *current != *authorities;
            if changes {
                *current = Arc::clone(authorities);
            }
            changes
        });
    }

    /// What is given at this moment, PEM; none where there are more than gateways take.
    #[must_use]
    pub fn bundle(&self) -> Option<String> {
        self.current.borrow().bundle().map(str::to_owned)
    }

    /// What they are given now.
    #[must_use]
    pub fn current(&self) -> Arc<Authorities> {
        Arc::clone(&self.current.borrow())
    }

    /// What they are given, and every change of it.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Authorities>> {
        self.current.subscribe()
    }
}

/// The authorities as far as one session goes.
#[derive(Debug)]
pub struct Giving {
    known: watch::Receiver<Arc<Authorities>>,
    /// Whether the gateway takes them.
    takes: bool,
    /// How often it was given some and has not reported of them.
    unreported: u32,
}

impl Giving {
    /// In a session of a gateway, which may be one that takes none.
    #[must_use]
    pub fn new(trust: &Trust, takes: bool) -> Self {
        let mut known = trust.subscribe();
        // They are news to every session.
        known.mark_changed();
        Self {
            known,
            takes,
            unreported: 0,
        }
    }

    /// Waits until there is something to give.
    pub async fn changed(&mut self) {
        if !self.takes || self.known.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The bundle to give now.
    pub fn bundle(&mut self) -> Option<String> {
        let bundle = self.known.borrow_and_update().bundle().map(str::to_owned);
        self.unreported = self.unreported.saturating_add(u32::from(bundle.is_some()));
        bundle
    }

    /// Notes that the gateway reported which bundle it has. `false` when it was given none that it could report of: it
    /// reports no more often than it is given some, and nothing else bounds that.
    pub const fn reported(&mut self) -> bool {
        let Some(left) = self.unreported.checked_sub(1) else {
            return false;
        };
        self.unreported = left;
        true
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
        IsCa, Issuer, KeyPair,
    };

    use super::*;

    fn authority() -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    fn leaf() -> CertificateDer<'static> {
        let issuer = Issuer::new(CertificateParams::default(), KeyPair::generate().unwrap());
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "not an authority");
        let key = KeyPair::generate().unwrap();
        params.signed_by(&key, &issuer).unwrap().der().clone()
    }

    #[test]
    fn authorities_are_given_whole_and_nothing_else_of_their_file() {
        let (one, other) = (authority(), authority());
        let given = Authorities::of(&[one.clone(), leaf(), other.clone()]);
        assert_eq!(given, Authorities::of(&[other, one.clone(), one.clone()]));
        assert!(given.are_several());
        let text = given.bundle().unwrap();
        assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 2);
        assert!(text.contains(&pem::certificate(&one)));
        let read = tls::one_certificate(pem::certificate(&one).as_bytes());
        assert_eq!(read.unwrap(), one);
    }

    #[test]
    fn more_than_gateways_take_are_given_to_none() {
        let many: Vec<_> = std::iter::repeat_with(authority)
            .take(limits::AUTHORITIES_MAX + 1)
            .collect();
        assert_eq!(Authorities::of(&many).bundle(), None);
        assert_eq!(Authorities::of(&[leaf()]).bundle(), None);
        assert!(Authorities::of(&many[1..]).bundle().is_some());
    }

    #[test]
    fn a_gateway_reports_no_more_often_than_it_was_given_some() {
        let trust = Trust::new(Arc::new(Authorities::of(&[authority()])));
        let mut giving = Giving::new(&trust, true);
        assert!(!giving.reported(), "it was given none");
        assert!(giving.bundle().is_some());
        assert!(giving.reported());
        assert!(!giving.reported(), "once for each");
        let new = Arc::new(Authorities::of(&[authority(), authority()]));
        trust.give(&new);
        let at_the_door = trust.bundle();
        assert_eq!(at_the_door.as_deref(), new.bundle());
        assert_eq!(giving.bundle().as_deref(), new.bundle());
        assert!(giving.reported());
        assert_eq!(trust.current(), new);
    }

    #[test]
    fn each_is_told_from_any_other_by_its_certificate() {
        let (one, other) = (authority(), authority());
        let both = Authorities::of(&[one.clone(), other]);
        let single = Authorities::of(&[one]);
        assert!(single.ids().is_subset(&both.ids()));
        assert_eq!(both.ids().len(), 2);
        let noted = single.noted().unwrap();
        assert_eq!(
            (noted.digest.as_str(), noted.authorities.len()),
            (single.digest(), 1)
        );
        assert!(single.all()[0].not_after.is_some());
        assert!(single.all()[0].subject.contains("CN="), "{single:?}");
        let many: Vec<_> = std::iter::repeat_with(authority)
            .take(limits::AUTHORITIES_MAX + 1)
            .collect();
        assert_eq!(Authorities::of(&many).noted(), None);
    }

    /// What an authority of this name is made of.
    fn named(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    /// An authority of this name with a key of its own, and what signs for it.
    fn signing(name: &str) -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
        let (params, key) = (named(name), KeyPair::generate().unwrap());
        let certificate = params.self_signed(&key).unwrap().der().clone();
        (certificate, Issuer::new(params, key))
    }

    /// The certificate of a client.
    fn signed(issuer: &Issuer<'static, KeyPair>) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        params.signed_by(&key, issuer).unwrap().der().clone()
    }

    #[test]
    fn who_signed_a_certificate_is_known_by_name_and_where_two_have_it_by_the_key() {
        let now = Timestamp::parse("2026-01-02T02:00:00Z").unwrap();
        let ((one, first), (other, second)) = (signing("site"), signing("site"));
        let (third, by_third) = signing("another");
        let trusted = Authorities::of(&[one.clone(), other.clone(), third.clone()]);
        let issuer = |certificate: &[u8]| Some(tls::anchor_sha256(certificate).unwrap());
        for (by, expected) in [(&first, &one), (&second, &other), (&by_third, &third)] {
            let signer = trusted.signer_of(&signed(by), &[], now);
            assert_eq!(signer, issuer(expected));
        }
        assert!(trusted.include(&issuer(&one).unwrap()));
        let (foreign, by_foreign) = signing("nobody");
        assert_eq!(trusted.signer_of(&signed(&by_foreign), &[], now), None);
        assert!(!trusted.include(&issuer(&foreign).unwrap()));

        // Through one in between, which a gateway shows beside its own.
        let (params, key) = (named("between"), KeyPair::generate().unwrap());
        let between = params.signed_by(&key, &second).unwrap().der().clone();
        let leaf = signed(&Issuer::new(params, key));
        assert_eq!(trusted.signer_of(&leaf, &[between], now), issuer(&other));
        assert_eq!(trusted.signer_of(&leaf, &[], now), None);
    }
}
