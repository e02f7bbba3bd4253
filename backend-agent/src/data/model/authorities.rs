//! The authorities that gateways are given, and which gateways have them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use viworks_common::id::{AgentId, GatewayName};
use viworks_common::time::Timestamp;

/// How long a bundle is kept that no gateway reported: longer than the pause between two times that a backend says
/// which one it gives, so that one that was given a moment ago is known when it is reported.
pub const BUNDLE_KEPT_FOR: Duration = Duration::from_secs(600);

/// A bundle of authorities, as a backend gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityBundle {
    /// SHA-256 of it, as gateways report it, 64 hexadecimal digits.
    pub digest: String,
    /// SHA-256 of each certificate, 64 hexadecimal digits.
    pub authorities: BTreeSet<String>,
}

/// How many gateways have one bundle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BundleHolders {
    /// Its digest; none for those that reported none.
    pub digest: Option<String>,
    /// Gateways that are not revoked.
    pub gateways: u64,
    /// Those of them that have a session.
    pub connected: u64,
}

/// What is known of which gateways have which authorities.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthorityTrust {
    /// What is in which bundle, by its digest.
    pub bundles: BTreeMap<String, BTreeSet<String>>,
    /// Who has which.
    pub holders: Vec<BundleHolders>,
}

/// Gateways, and how many of them are connected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// All of them.
    pub gateways: u64,
    /// Those that have a session.
    pub connected: u64,
}

impl Tally {
    /// Those that have none.
    #[must_use]
    pub const fn off(&self) -> u64 {
        self.gateways.saturating_sub(self.connected)
    }
}

impl AuthorityTrust {
    /// All gateways.
    #[must_use]
    pub fn all(&self) -> Tally {
        self.of(|_digest| true)
    }

    /// Those that do not have one of these. Of a bundle that nobody knows it is not known what is in it: whoever has
    /// that counts as having nothing.
    #[must_use]
    pub fn lacking(&self, wanted: &BTreeSet<String>) -> Tally {
        self.of(|digest| !self.has(digest, wanted))
    }

    /// Those of them that reported what they have: of the others it is not known that they lack anything.
    #[must_use]
    pub fn known_to_lack(&self, wanted: &BTreeSet<String>) -> Tally {
        self.of(|digest| digest.is_some() && !self.has(digest, wanted))
    }

    fn has(&self, digest: Option<&str>, wanted: &BTreeSet<String>) -> bool {
        let bundle = digest.and_then(|digest| self.bundles.get(digest));
        bundle.map_or(wanted.is_empty(), |bundle| wanted.is_subset(bundle))
    }

    fn of(&self, which: impl Fn(Option<&str>) -> bool) -> Tally {
        let counted = self.holders.iter();
        let counted = counted.filter(|holders| which(holders.digest.as_deref()));
        counted.fold(Tally::default(), |sum, holders| Tally {
            gateways: sum.gateways.saturating_add(holders.gateways),
            connected: sum.connected.saturating_add(holders.connected),
        })
    }
}

/// A gateway that does not have an authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unaware {
    /// Its id.
    pub agent_id: AgentId,
    /// Its name.
    pub name: GatewayName,
    /// The bundle that it has, by its digest, once it reported one.
    pub authorities: Option<String>,
    /// Since when it has that.
    pub authorities_at: Option<Timestamp>,
    /// Whether it has a session.
    pub connected: bool,
    /// When something was last heard of it.
    pub last_seen_at: Option<Timestamp>,
}

/// How many gateways have a good certificate of one authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// SHA-256 of the name and the key of the authority; none where it is not known which one signed.
    pub issuer: Option<[u8; 32]>,
    /// The gateways.
    pub tally: Tally,
}

/// A gateway that has a good certificate of one authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedFor {
    /// Its id.
    pub agent_id: AgentId,
    /// Its name.
    pub name: GatewayName,
    /// When the certificate ends that is registered.
    pub not_after: Timestamp,
    /// Whether it has a session.
    pub connected: bool,
    /// When something was last heard of it.
    pub last_seen_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn whoever_has_a_bundle_with_all_of_them_lacks_none() {
        let holders = |digest: Option<&str>, gateways, connected| BundleHolders {
            digest: digest.map(str::to_owned),
            gateways,
            connected,
        };
        let trust = AuthorityTrust {
            bundles: [
                ("old".to_owned(), set(&["a"])),
                ("both".to_owned(), set(&["a", "b"])),
            ]
            .into(),
            holders: vec![
                holders(None, 1, 0),
                holders(Some("old"), 4, 3),
                holders(Some("both"), 8, 2),
                holders(Some("foreign"), 16, 16),
            ],
        };
        let tally = |gateways, connected| Tally {
            gateways,
            connected,
        };
        assert_eq!(trust.all(), tally(29, 21));
        assert_eq!(trust.lacking(&set(&["a", "b"])), tally(21, 19));
        assert_eq!(trust.lacking(&set(&["b"])).off(), 2);
        assert_eq!(trust.lacking(&set(&["a"])), tally(17, 16));
        assert_eq!(trust.lacking(&set(&["c"])), trust.all());
        assert_eq!(trust.known_to_lack(&set(&["a"])), tally(16, 16));
        assert_eq!(trust.known_to_lack(&set(&["b"])), tally(20, 19));
        assert_eq!(trust.lacking(&set(&[])), Tally::default());
    }
}
