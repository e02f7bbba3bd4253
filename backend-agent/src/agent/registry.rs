//! Who exists: from a certificate to the gateway it is registered for.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use viworks_common::certificate::{self, GatewayCertificate, Unnamed};
use viworks_common::code::CloseCode;
use viworks_common::id::{GatewayName, TrustDomain};
use viworks_common::key::Identity;
use viworks_common::time::Timestamp;

use super::authorities::Authorities;
use crate::data::{Certificate, GatewayRef, SignedBy, Store, StoreError};

/// Looks gateways up by what they show.
#[derive(Clone)]
pub struct Registry {
    store: Arc<dyn Store>,
    trust_domain: TrustDomain,
}

/// Who is at the other end, by a certificate that is registered for exactly this gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The gateway.
    pub identity: Identity,
    /// Its name.
    pub name: GatewayName,
    /// SHA-256 of the certificate.
    pub fingerprint: [u8; 32],
    /// The first moment of the certificate's life.
    pub not_before: Timestamp,
    /// The end of it.
    pub not_after: Timestamp,
    /// How long the certificate is still valid.
    pub remaining: Duration,
    /// The gateway's confirmed epoch when it was recognised.
    pub confirmed: u64,
    /// The certificate's key (SHA-256), while no session was confirmed with it of those that were issued over one.
    pub unproved: Option<[u8; 32]>,
    /// The certificate's key (SHA-256).
    pub spki: [u8; 32],
    /// Which authority signed the certificate, where something else is stored of it, or nothing.
    pub signed_by: Option<SignedBy>,
}

/// Why a certificate that leads to our authority is still not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Unrecognised {
    /// It has no name of ours, or more than one.
    #[error("the certificate names no gateway: {0}")]
    NoName(#[from] Unnamed),
    /// The connection shows none.
    #[error("no certificate was shown")]
    NotShown,
    /// It names a gateway of another trust domain.
    #[error("the certificate belongs to the trust domain {0}")]
    ForeignTrustDomain(TrustDomain),
    /// The key is not registered for the gateway it names, which is this one where there is such a one.
    #[error("the certificate's key is not registered for the gateway it names{}", named(.0.as_deref()))]
    NotRegistered(Option<Box<Peer>>),
    /// The gateway was revoked.
    #[error("the gateway {} was revoked", .0.name)]
    Revoked(Box<Peer>),
    /// The certificate was revoked, and its gateway was not.
    #[error("the certificate of the gateway {} was revoked", .0.name)]
    CertificateRevoked(Box<Peer>),
    /// A session of the gateway was confirmed with a later certificate.
    #[error("the certificate of the gateway {} was replaced by a later one", .0.name)]
    Retired(Box<Peer>),
    /// Another machine took the gateway's place since.
    #[error("another machine took the place of the gateway {}, whose certificate this was", .0.name)]
    Replaced(Box<Peer>),
    /// The store cannot be asked.
    #[error("failed to look the certificate up")]
    Store(#[from] StoreError),
}

/// The gateway that a certificate names, for behind the sentence about it.
fn named(peer: Option<&Peer>) -> String {
    peer.map_or_else(
        || ", which is not in this database".to_owned(),
        |peer| format!(", {}", peer.name),
    )
}

impl Unrecognised {
    /// What its holder is told.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoName(_) => "the certificate names no gateway",
            Self::NotShown => "no certificate was shown",
            Self::ForeignTrustDomain(_) => "the certificate belongs to another trust domain",
            Self::NotRegistered(_) => {
                "the certificate's key is not registered for the gateway it names"
            }
            Self::Revoked(_) => "this gateway was revoked",
            Self::CertificateRevoked(_) => {
                "this certificate was revoked; the gateway itself was not: it connects with another certificate of its own, or is enrolled again"
            }
            Self::Retired(_) => {
                "this certificate was replaced by a later one of the same gateway, which has connected with that: a copy of its files was made before"
            }
            Self::Replaced(_) => {
                "another machine has this gateway's place now (viworks gateway replace): this one is no gateway any more"
            }
            Self::Store(_) => "the backend cannot look the certificate up at the moment",
        }
    }

    /// The gateway whose certificate it is, or was, where there is such a one.
    #[must_use]
    pub fn gateway(&self) -> Option<&GatewayName> {
        match self {
            Self::NotRegistered(peer) => peer.as_deref().map(|peer| &peer.name),
            Self::Revoked(peer)
            | Self::CertificateRevoked(peer)
            | Self::Retired(peer)
            | Self::Replaced(peer) => Some(&peer.name),
            Self::NoName(_) | Self::NotShown | Self::ForeignTrustDomain(_) | Self::Store(_) => None,
        }
    }

    /// The code that says so.
    #[must_use]
    pub const fn code(&self) -> CloseCode {
        match self {
            Self::NotShown
            | Self::NoName(_)
            | Self::ForeignTrustDomain(_)
            | Self::Retired(_)
            | Self::Replaced(_)
            | Self::NotRegistered(_) => CloseCode::CertUntrusted,
            Self::Revoked(_) | Self::CertificateRevoked(_) => CloseCode::Revoked,
            Self::Store(_) => CloseCode::Internal,
        }
    }
}

impl Registry {
    /// Over a store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, trust_domain: TrustDomain) -> Self {
        Self {
            store,
            trust_domain,
        }
    }

    /// The gateway that a certificate belongs to, which leads to one of these authorities through those in between. The
    /// chain was verified by TLS, which goes by the same authorities.
    ///
    /// # Errors
    ///
    /// When it names no gateway, is not registered, was revoked, or the store is away.
    pub async fn recognise(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        authorities: &Authorities,
        now: Timestamp,
    ) -> Result<Peer, Unrecognised> {
        let GatewayCertificate {
            trust_domain,
            identity,
            not_before,
            not_after,
            spki_sha256,
            ..
        } = certificate::read(leaf)?;
        if trust_domain != self.trust_domain {
            return Err(Unrecognised::ForeignTrustDomain(trust_domain));
        }
        let peer = |identity, name| Peer {
            identity,
            name,
            fingerprint: Sha256::digest(leaf).into(),
            not_before,
            not_after,
            remaining: not_after.saturating_since(now),
            confirmed: 0,
            unproved: None,
            spki: spki_sha256,
            signed_by: None,
        };
        let known = self
            .store
            .certificate(&identity.tenant, identity.agent_id, &spki_sha256)
            .await?;
        let Some(known) = known else {
            // Our authority's word that it is this gateway's: whoever looks has to know of which one.
            let which = GatewayRef::Id(identity.agent_id);
            let named = self.store.gateway(&identity.tenant, &which).await?;
            let named = named.map(|gateway| Box::new(peer(identity, gateway.name)));
            return Err(Unrecognised::NotRegistered(named));
        };
        let peer = peer(identity, known.gateway.clone());
        let signed_by = signed_by(&known, &peer, (leaf, between), (authorities, now));
        // An earlier one of its key proves nothing of the one that was issued at the door: the answer may be lost.
        let proves = known.unproved && known.fingerprint == peer.fingerprint;
        let peer = Peer {
            confirmed: known.confirmed,
            unproved: proves.then_some(spki_sha256),
            signed_by,
            ..peer
        };
        if known.revoked && !known.gateway_goes_on {
            return Err(Unrecognised::Revoked(Box::new(peer)));
        }
        if known.replaced {
            return Err(Unrecognised::Replaced(Box::new(peer)));
        }
        if known.revoked {
            return Err(Unrecognised::CertificateRevoked(Box::new(peer)));
        }
        if known.retired {
            return Err(Unrecognised::Retired(Box::new(peer)));
        }
        Ok(peer)
    }
}

/// Which authority signed what is shown, of those by which it was judged, where that is to be stored: of a certificate
/// that was registered before it was, and of one that was signed by hand for a registered key.
fn signed_by(
    known: &Certificate,
    peer: &Peer,
    (leaf, between): (&CertificateDer<'_>, &[CertificateDer<'_>]),
    (authorities, now): (&Authorities, Timestamp),
) -> Option<SignedBy> {
    let is_it = known.fingerprint == peer.fingerprint;
    let shown_until = (!is_it).then_some(peer.not_after);
    let is_as_before = known.shown_until == shown_until;
    if is_it && is_as_before && known.issuer.is_some_and(|one| authorities.include(&one)) {
        return None;
    }
    // An earlier one of its key says nothing of the one that was issued at the door.
    if !is_it && known.unproved {
        return None;
    }
    let issuer = authorities.signer_of(leaf, between, now)?;
    (known.issuer != Some(issuer) || !is_as_before).then_some(SignedBy {
        spki: peer.spki,
        registered: known.fingerprint,
        issuer,
        shown_until,
    })
}
