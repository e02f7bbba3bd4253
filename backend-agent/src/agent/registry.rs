//! Who exists: from a certificate to the gateway it is registered for.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use viworks_common::code::CloseCode;
use viworks_common::id::{AgentId, Tenant, TrustDomain};
use viworks_common::key::Identity;
use viworks_common::time::Timestamp;
use viworks_runtime::tls;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::data::{Store, StoreError};

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
    /// SHA-256 of the certificate.
    pub fingerprint: [u8; 32],
    /// How long the certificate is still valid.
    pub remaining: Duration,
}

/// Why a certificate that leads to our authority is still not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Unrecognised {
    /// It has no name of ours, or more than one.
    #[error("the certificate names no gateway: {0}")]
    NoName(&'static str),
    /// The key is not registered for the gateway it names.
    #[error("the certificate's key is not registered for the gateway it names")]
    NotRegistered,
    /// The certificate or the gateway was revoked.
    #[error("the gateway or its certificate was revoked")]
    Revoked,
    /// The store cannot be asked.
    #[error("failed to look the certificate up")]
    Store(#[from] StoreError),
}

impl Unrecognised {
    /// The code that says so.
    #[must_use]
    pub const fn code(&self) -> CloseCode {
        match self {
            Self::NoName(_) | Self::NotRegistered => CloseCode::CertUntrusted,
            Self::Revoked => CloseCode::Revoked,
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

    /// The gateway that a certificate belongs to. The chain was verified by TLS.
    ///
    /// # Errors
    ///
    /// When it names no gateway, is not registered, was revoked, or the store is away.
    pub async fn recognise(&self, leaf: &[u8], now: Timestamp) -> Result<Peer, Unrecognised> {
        let (identity, not_after) = read(leaf, &self.trust_domain)?;
        let spki = tls::spki_sha256(leaf)
            .map_err(|_malformed| Unrecognised::NoName("it cannot be read"))?;
        let known = self
            .store
            .certificate(&identity.tenant, identity.agent_id, &spki)
            .await?
            .ok_or(Unrecognised::NotRegistered)?;
        if known.revoked {
            return Err(Unrecognised::Revoked);
        }
        Ok(Peer {
            identity,
            fingerprint: Sha256::digest(leaf).into(),
            remaining: not_after.saturating_since(now),
        })
    }
}

/// The identity in the one URI name, and the end of validity.
fn read(leaf: &[u8], trust_domain: &TrustDomain) -> Result<(Identity, Timestamp), Unrecognised> {
    let malformed = |_error| Unrecognised::NoName("it cannot be read");
    let (rest, certificate) = X509Certificate::from_der(leaf).map_err(malformed)?;
    if !rest.is_empty() {
        return Err(Unrecognised::NoName("something follows it"));
    }
    let names = certificate
        .subject_alternative_name()
        .map_err(|_twice| Unrecognised::NoName("its names cannot be read"))?
        .ok_or(Unrecognised::NoName("it has no alternative name"))?;
    let [GeneralName::URI(uri)] = names.value.general_names.as_slice() else {
        return Err(Unrecognised::NoName("it must have exactly one name, a URI"));
    };
    let identity = parse_uri(uri, trust_domain).ok_or(Unrecognised::NoName(
        "its URI is of another trust domain or form",
    ))?;
    let seconds = certificate.validity().not_after.timestamp();
    Ok((
        identity,
        Timestamp::from_unix_micros(seconds.saturating_mul(1_000_000)),
    ))
}

fn parse_uri(uri: &str, trust_domain: &TrustDomain) -> Option<Identity> {
    let path = uri
        .strip_prefix("spiffe://")?
        .strip_prefix(trust_domain.as_str())?
        .strip_prefix("/tenant/")?;
    let (tenant, agent_id) = path.split_once("/gateway/")?;
    Some(Identity {
        tenant: tenant.parse::<Tenant>().ok()?,
        agent_id: agent_id.parse::<AgentId>().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_form_of_our_own_trust_domain_names_a_gateway() {
        let domain: TrustDomain = "viworks.test".parse().unwrap();
        let id = "01900000-0000-7000-8000-0000000000ab";
        let good = format!("spiffe://viworks.test/tenant/default/gateway/{id}");
        assert_eq!(parse_uri(&good, &domain).unwrap().agent_id.to_string(), id);
        for bad in [
            good.replace("viworks.test", "viworks.test.evil"),
            good.replace("viworks.test", "evil"),
            good.replace("spiffe", "https"),
            good.replace("/tenant/default", ""),
            good.replace("default", "Default"),
            good.replace("gateway/", "operator/"),
            format!("{good}/"),
            format!("{good}?x"),
            good.to_uppercase(),
        ] {
            assert_eq!(parse_uri(&bad, &domain), None, "{bad}");
        }
    }
}
