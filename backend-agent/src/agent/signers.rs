//! Which authorities signed the gateways' certificates: who would be cut off by taking one out of `client_ca_file`, and
//! who is cut off by one that is out already.

use std::collections::BTreeSet;

use viworks_common::human;
use viworks_common::id::{GatewayName, Tenant};
use viworks_common::time::Timestamp;

use super::authorities::Authorities;
use crate::data::{Signed, SignedFor, Store, StoreResult, Tally};

/// Gateways that are named at once.
pub const NAMED_MAX: usize = 5;

/// What helps those whose certificates are of an authority that is out.
pub const CUT_OFF_FIX: &str = "put its certificate back behind the others in the file of client_ca_file and reload \
                               (SIGHUP): they are in again and renew under the first one there; where it was taken out \
                               on purpose, have a certificate signed by hand for each of them \
                               (docs/errors/cert_untrusted.md), wait until theirs have ended, from when on a door \
                               gives them another one, or revoke those that are gone";

/// What keeps them in where no backend has taken such a file yet, or brings them back.
pub const WOULD_BE_CUT_OFF_FIX: &str = "put its certificate back behind the others in the file of client_ca_file until \
                                        viworks authority status says that no gateway needs it; where it was taken \
                                        out on purpose, such as because its key was stolen, have a certificate signed \
                                        by hand for each of them (docs/errors/cert_untrusted.md), or revoke those \
                                        that are gone";

/// Gateways whose certificates some authorities signed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holders {
    /// How many.
    pub tally: Tally,
    /// The first few of them.
    pub named: BTreeSet<GatewayName>,
}

impl Holders {
    /// Those whose certificates these signed, by what a store has.
    ///
    /// # Errors
    ///
    /// When it cannot be asked.
    pub async fn of(
        store: &dyn Store,
        tenant: &Tenant,
        signed: &[Signed],
        wall: Timestamp,
    ) -> StoreResult<Self> {
        let mut holders = Self::default();
        for one in signed {
            let first = store.signed_for(tenant, one.issuer, wall, NAMED_MAX);
            holders.add(one, first.await?);
        }
        Ok(holders)
    }

    /// Counts those of one authority, of which these are the first.
    pub fn add(&mut self, signed: &Signed, first: Vec<SignedFor>) {
        let (own, more) = (&mut self.tally, signed.tally);
        own.gateways = own.gateways.saturating_add(more.gateways);
        own.connected = own.connected.saturating_add(more.connected);
        self.named.extend(first.into_iter().map(|one| one.name));
    }

    /// Whether there are none.
    #[must_use]
    pub const fn are_none(&self) -> bool {
        self.tally.gateways == 0
    }

    /// The first few by their names, and how many others there are.
    #[must_use]
    pub fn names(&self) -> String {
        let first = self.named.iter().take(NAMED_MAX).map(ToString::to_string);
        let first: Vec<String> = first.collect();
        let told = u64::try_from(first.len()).unwrap_or(u64::MAX);
        match self.tally.gateways.saturating_sub(told) {
            0 => first.join(", "),
            more => format!("{} and {} more", first.join(", "), human::count(more)),
        }
    }

    /// That they are cut off, because what signed their certificates is not trusted here.
    #[must_use]
    pub fn cut_off(&self) -> String {
        let gateways = human::counted_all(self.tally.gateways, "gateway is", "gateways are");
        format!("{gateways} cut off: {}", self.signed_by_another())
    }

    /// That they would be, of authorities that a file has and of which it is not known whether a backend took them.
    #[must_use]
    pub fn would_be_cut_off(&self) -> String {
        let gateways = human::counted_all(self.tally.gateways, "gateway", "gateways");
        format!(
            "{gateways} would be cut off by a start with this file: {}",
            self.signed_by_another()
        )
    }

    fn signed_by_another(&self) -> String {
        let names = self.names();
        format!(
            "an authority that is not in client_ca_file signed the registered certificate: {names}"
        )
    }
}

/// Of what signed certificates, that which is none of these authorities. Of what it is not known what signed it, it is
/// not known either that it is none of them.
#[must_use]
pub fn others(signed: Vec<Signed>, trusted: &Authorities) -> Vec<Signed> {
    let known = signed.into_iter();
    known
        .filter(|one| one.issuer.is_some_and(|issuer| !trusted.include(&issuer)))
        .collect()
}

/// Whether authorities may take the place of others, by what signed certificates: who would be cut off by one that is
/// missing then, and who may be, because it is not known what signed theirs. Whoever is cut off already is no reason
/// against it.
#[must_use]
pub fn needing(
    signed: Vec<Signed>,
    before: &Authorities,
    after: &Authorities,
) -> (Vec<Signed>, Vec<Signed>) {
    let is_taken = |issuer: &[u8; 32]| before.include(issuer) && !after.include(issuer);
    if !before.all().iter().any(|one| is_taken(&one.issuer)) {
        return (Vec::new(), Vec::new());
    }
    let concerned = signed
        .into_iter()
        .filter(|one| one.issuer.as_ref().is_none_or(is_taken));
    concerned.partition(|one| one.issuer.is_some())
}

/// Why they may not.
#[must_use]
pub fn refusal(needing: &Holders, unknown: &Holders) -> String {
    let mut told = Vec::new();
    if !needing.are_none() {
        let gateways = human::counted_all(
            needing.tally.gateways,
            "gateway still has a certificate",
            "gateways still have certificates",
        );
        told.push(format!(
            "{gateways} of an authority that client_ca_file does not have any more, and would be cut off: {}",
            needing.names()
        ));
    }
    if !unknown.are_none() {
        let gateways = human::counted_all(unknown.tally.gateways, "gateway", "gateways");
        told.push(format!(
            "of the certificates of {gateways} it is unknown until each next connects which authority signed them, and \
             client_ca_file lacks one that it had: {}",
            unknown.names()
        ));
    }
    told.join("; ")
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, GeneralSubtree, IsCa, KeyPair, NameConstraints,
    };
    use rustls::pki_types::CertificateDer;

    use super::*;

    /// A certificate of an authority with this name and this key.
    fn authority(name: &str, key: &KeyPair) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::OrganizationName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.self_signed(key).unwrap().der().clone()
    }

    fn signed(issuer: Option<[u8; 32]>, gateways: u64) -> Signed {
        Signed {
            issuer,
            tally: Tally {
                gateways,
                connected: 0,
            },
        }
    }

    fn holders(gateways: u64, names: &[&str]) -> Holders {
        Holders {
            tally: Tally {
                gateways,
                connected: 0,
            },
            named: names.iter().map(|name| name.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn an_authority_is_needed_as_long_as_somebody_has_a_good_certificate_of_it_or_may_have() {
        let (one, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let (old, new) = (authority("old", &one), authority("new", &other));
        let both = Authorities::of(&[old.clone(), new.clone()]);
        let (only_old, only_new) = (Authorities::of(&[old]), Authorities::of(&[new]));
        let [of_old] = only_old.all() else {
            panic!("there is one");
        };
        let (of_old, foreign) = (of_old.issuer, [9; 32]);
        let stored = || {
            vec![
                signed(Some(of_old), 6),
                signed(None, 2),
                signed(Some(foreign), 1),
            ]
        };
        let (needed, unknown) = needing(stored(), &both, &only_new);
        assert_eq!(needed, [signed(Some(of_old), 6)]);
        assert_eq!(unknown, [signed(None, 2)]);
        // Nothing is taken away, or only what nobody has.
        let nothing = (Vec::new(), Vec::new());
        assert_eq!(needing(stored(), &only_old, &both), nothing);
        assert_eq!(needing(stored(), &both, &both), nothing);
        assert_eq!(
            needing(vec![signed(Some(of_old), 6)], &both, &only_old),
            nothing
        );
        assert_eq!(
            others(stored(), &only_new),
            [signed(Some(of_old), 6), signed(Some(foreign), 1)]
        );
        assert_eq!(others(stored(), &both), [signed(Some(foreign), 1)]);
    }

    #[test]
    fn another_certificate_of_an_authority_is_the_same_authority_and_another_name_or_key_is_not() {
        let (one, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let before = Authorities::of(&[authority("site", &one)]);
        let renewed = Authorities::of(&[authority("site", &one)]);
        assert_ne!(before, renewed, "another signature");
        let stored = || before.issuers().into_iter().map(|one| signed(Some(one), 3));
        let of = |after: &Authorities| needing(stored().collect(), &before, after).0.len();
        assert_eq!(of(&renewed), 0);
        assert_eq!(of(&Authorities::of(&[authority("other", &one)])), 1);
        assert_eq!(of(&Authorities::of(&[authority("site", &other)])), 1);
    }

    #[test]
    fn a_certificate_of_an_authority_that_lets_others_in_is_another_authority() {
        let key = KeyPair::generate().unwrap();
        let of_names = |excluded: &[&str]| {
            let mut params = CertificateParams::default();
            params
                .distinguished_name
                .push(DnType::OrganizationName, "site");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let excluded = excluded.iter().map(|name| {
                let name = (*name).to_owned();
                GeneralSubtree::DnsName(name)
            });
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: Vec::new(),
                excluded_subtrees: excluded.collect(),
            });
            params.self_signed(&key).unwrap().der().clone()
        };
        let before = Authorities::of(&[authority("site", &key)]);
        let stored = || before.issuers().into_iter().map(|one| signed(Some(one), 3));
        let after = Authorities::of(&[of_names(&["internal"])]);
        assert_eq!(needing(stored().collect(), &before, &after).0.len(), 1);
        let renewed = Authorities::of(&[of_names(&["internal"])]);
        assert_eq!(after.issuers(), renewed.issuers());
        assert_ne!(
            after.issuers(),
            Authorities::of(&[of_names(&["other"])]).issuers()
        );
    }

    #[test]
    fn the_first_few_are_named_and_the_others_counted() {
        let six = ["gw-1", "gw-2", "gw-3", "gw-4", "gw-5", "gw-6"];
        assert_eq!(
            refusal(&holders(7, &six), &Holders::default()),
            "7 gateways still have certificates of an authority that client_ca_file does not have any more, and would \
             be cut off: gw-1, gw-2, gw-3, gw-4, gw-5 and 2 more"
        );
        let told = refusal(&holders(1, &["gw-1"]), &holders(1, &["gw-2"]));
        assert!(
            told.starts_with("1 gateway still has a certificate of "),
            "{told}"
        );
        assert!(told.contains("cut off: gw-1; of the"), "{told}");
        assert!(
            told.contains("1 gateway it is unknown until each next connects"),
            "{told}"
        );
        assert_eq!(
            holders(1, &["gw-1"]).cut_off(),
            "1 gateway is cut off: an authority that is not in client_ca_file signed the registered certificate: gw-1"
        );
        assert_eq!(
            holders(2, &["gw-1", "gw-2"]).would_be_cut_off(),
            "2 gateways would be cut off by a start with this file: an authority that is not in client_ca_file signed \
             the registered certificate: gw-1, gw-2"
        );
    }
}
