//! The authorities that gateways are given over their sessions, so that they know another one before the server shows a
//! certificate of it, and at the door, for those that were off meanwhile; and which connected gateways do not have them yet.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use viworks_common::command::format_digest;
use viworks_common::id::{GatewayName, SessionId};
use viworks_common::limits;
use viworks_runtime::tls;

/// Bytes in one line of PEM.
const LINE: usize = 48;

/// What gateways are given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorities {
    /// The certificates, PEM; none where there are more than gateways take.
    bundle: Option<String>,
    /// SHA-256 of the bundle.
    digest: String,
    /// How many there are.
    count: usize,
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
        let text: String = authorities.iter().map(|one| pem(one)).collect();
        let count = authorities.len();
        let fits = (1..=limits::AUTHORITIES_MAX).contains(&count)
            && text.len() <= limits::AUTHORITIES_BYTES_MAX;
        Self {
            digest: format_digest(&Sha256::digest(&text).into()),
            bundle: fits.then_some(text),
            count,
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

    /// Whether one of them is replacing another.
    #[must_use]
    pub const fn are_several(&self) -> bool {
        self.count > 1
    }
}

fn pem(certificate: &[u8]) -> String {
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in certificate.chunks(LINE) {
        text.push_str(&STANDARD.encode(line));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// A gateway that is connected, and the bundle that it has, by its digest.
#[derive(Debug)]
struct Standing {
    gateway: GatewayName,
    has: Option<String>,
}

/// What gateways are given, and who has it. Of one process.
#[derive(Debug)]
pub struct Trust {
    current: watch::Sender<Arc<Authorities>>,
    connected: Mutex<BTreeMap<SessionId, Standing>>,
}

impl Trust {
    /// Gateways are given these.
    #[must_use]
    pub fn new(authorities: Arc<Authorities>) -> Self {
        Self {
            current: watch::Sender::new(authorities),
            connected: Mutex::default(),
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

    /// Whether one authority is replacing another.
    #[must_use]
    pub fn are_several(&self) -> bool {
        self.current.borrow().are_several()
    }

    /// The connected gateways that do not have what is given now, in the order of their names.
    #[must_use]
    pub fn lacking(&self) -> Vec<GatewayName> {
        let current = Arc::clone(&self.current.borrow());
        let connected = self.lock();
        let lacking = connected
            .values()
            .filter(|standing| standing.has.as_deref() != Some(current.digest()));
        let mut names: Vec<_> = lacking.map(|standing| standing.gateway.clone()).collect();
        names.sort_unstable();
        names
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SessionId, Standing>> {
        // Nothing panics while it is held.
        self.connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The authorities as far as one session goes.
#[derive(Debug)]
pub struct Giving {
    trust: Arc<Trust>,
    session_id: SessionId,
    known: watch::Receiver<Arc<Authorities>>,
    /// Whether the gateway takes them.
    takes: bool,
    /// How often it was given some and has not reported of them.
    unreported: u32,
}

impl Giving {
    /// In a session of this gateway, which may be one that takes none.
    #[must_use]
    pub fn new(
        trust: &Arc<Trust>,
        session_id: SessionId,
        gateway: &GatewayName,
        takes: bool,
    ) -> Self {
        let mut known = trust.current.subscribe();
        // They are news to every session.
        known.mark_changed();
        let standing = Standing {
            gateway: gateway.clone(),
            has: None,
        };
        trust.lock().insert(session_id, standing);
        Self {
            trust: Arc::clone(trust),
            session_id,
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

    /// Notes which bundle the gateway has, by its digest. `false` when it was given none that it could report of: it
    /// reports no more often than it is given some, and nothing else bounds that.
    pub fn reported(&mut self, digest: &str) -> bool {
        let Some(left) = self.unreported.checked_sub(1) else {
            return false;
        };
        self.unreported = left;
        if let Some(standing) = self.trust.lock().get_mut(&self.session_id) {
            standing.has = Some(digest.to_owned());
        }
        true
    }
}

impl Drop for Giving {
    fn drop(&mut self) {
        self.trust.lock().remove(&self.session_id);
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    };
    use uuid::Uuid;

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
        assert!(text.contains(&pem(&one)));
        assert_eq!(tls::one_certificate(pem(&one).as_bytes()).unwrap(), one);
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
    fn who_lacks_them_is_known_until_it_reports_or_leaves() {
        let old = Arc::new(Authorities::of(&[authority()]));
        let trust = Arc::new(Trust::new(Arc::clone(&old)));
        let session = |n: u128, name: &str, takes: bool| {
            let id = SessionId::from_uuid(Uuid::from_u128(n));
            Giving::new(&trust, id, &name.parse().unwrap(), takes)
        };
        let (mut able, earlier) = (session(1, "gw-1", true), session(2, "gw-2", false));
        let lacking = || {
            let names = trust.lacking();
            names.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(!able.reported(old.digest()), "it was given none");
        assert!(able.bundle().is_some());
        assert!(able.reported(old.digest()));
        assert!(!able.reported(old.digest()), "once for each");
        assert_eq!(lacking(), ["gw-2"]);
        let new = Arc::new(Authorities::of(&[authority(), authority()]));
        trust.give(&new);
        assert_eq!(lacking(), ["gw-1", "gw-2"]);
        assert_eq!(able.bundle().as_deref(), new.bundle());
        let at_the_door = trust.bundle();
        assert_eq!(at_the_door.as_deref(), new.bundle());
        assert!(able.reported(new.digest()));
        drop(earlier);
        assert!(lacking().is_empty());
    }
}
