//! Whether the certificate that the server shows is of an authority that gateways are given: whoever becomes one knows
//! no other, so that a server whose authority has left `client_ca_file` is reached by those alone that know it already.

use rustls::pki_types::CertificateDer;
use viworks_common::time::Timestamp;
use viworks_runtime::tls;

use super::authorities::Authorities;

/// The condition while it is of none of them.
pub const SERVER: &str = "trust.server";

/// That it is so.
pub const UNKNOWN: &str = "the server's certificate is of no authority in client_ca_file, which is what machines are \
                           given that enrol from now on, or for which pki issue-gateway is called: they do not \
                           connect; gateways that know its authority otherwise, from before or by hand, do";

/// What helps then.
pub const UNKNOWN_FIX: &str = "put a certificate of an authority that client_ca_file has in place of the server's, for \
                               the same key (scripts/rotate_certificates.sh), or its authority back behind the others \
                               in that file, and reload (SIGHUP); where it is of another one on purpose, put that one \
                               into ca_file of each machine that becomes a gateway";

/// Why a reload that would make it so is refused.
pub const LOST: &str = "the server's certificate would be of no authority in client_ca_file, and is of one that is in \
                        force now: machines that enrol would be given what that file has, and would not connect";

/// What to do first.
pub const LOST_FIX: &str = "put a server's certificate of an authority that stays in client_ca_file in place first, \
                            for the same key (step 4 of \"Another authority\" in docs/certificate_management.md, \
                            scripts/rotate_certificates.sh), or put the authority back into that file, and send \
                            SIGHUP; where it is so on purpose, restart this backend, which takes the files as they \
                            are: the condition trust.server tells of it then";

/// What gateways are shown of the server.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The certificate itself, then those that lead to its authority. Nothing where a proxy shows its own.
    chain: Vec<CertificateDer<'static>>,
}

impl Shown {
    /// This chain, the certificate itself first.
    #[must_use]
    pub const fn by_the_backend(chain: Vec<CertificateDer<'static>>) -> Self {
        Self { chain }
    }

    /// That of a proxy, which is not known here.
    #[must_use]
    pub const fn by_a_proxy() -> Self {
        Self { chain: Vec::new() }
    }

    /// Whether whoever has these authorities and no other takes it, or it is not known what they are shown. That it has
    /// ended, or is not valid yet, is told otherwise: it is judged as if it were valid.
    #[must_use]
    pub fn is_known_by(&self, authorities: &Authorities, now: Timestamp) -> bool {
        let Some((leaf, between)) = self.chain.split_first() else {
            return true;
        };
        let at = tls::validity(leaf).map_or(now, |(from, to)| now.min(to).max(from));
        authorities.vouch_for_server(leaf, between, at)
    }
}

/// Whether what is shown and given after a reload leaves those who become gateways without the authority of the
/// server's certificate, and what is shown and given before it does not. Where it was so before, it is so on purpose,
/// or told of already.
#[must_use]
pub fn is_lost(
    before: (&Shown, &Authorities),
    after: (&Shown, &Authorities),
    now: Timestamp,
) -> bool {
    let is_known = |(shown, given): (&Shown, &Authorities)| shown.is_known_by(given, now);
    is_known(before) && !is_known(after)
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
        IsCa, Issuer, KeyPair,
    };
    use time::OffsetDateTime;

    use super::*;

    struct Signing {
        certificate: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    impl Signing {
        fn new(name: &str) -> Self {
            let (params, key) = (params(name), KeyPair::generate().unwrap());
            let certificate = params.self_signed(&key).unwrap().der().clone();
            let issuer = Issuer::new(params, key);
            Self {
                certificate,
                issuer,
            }
        }

        fn below(&self, name: &str) -> Self {
            let (params, key) = (params(name), KeyPair::generate().unwrap());
            let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
            let issuer = Issuer::new(params, key);
            Self {
                certificate,
                issuer,
            }
        }

        /// A server's certificate, which ends at the end of 2026.
        fn server(&self) -> CertificateDer<'static> {
            let names = vec!["backend.test".to_owned()];
            let mut params = CertificateParams::new(names).unwrap();
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.not_before = OffsetDateTime::from_unix_timestamp(1_767_225_600).unwrap();
            params.not_after = OffsetDateTime::from_unix_timestamp(1_798_761_599).unwrap();
            let key = KeyPair::generate().unwrap();
            params.signed_by(&key, &self.issuer).unwrap().der().clone()
        }
    }

    fn now() -> Timestamp {
        Timestamp::parse("2026-06-01T00:00:00Z").unwrap()
    }

    fn given(all: &[&Signing]) -> Authorities {
        let all: Vec<_> = all.iter().map(|one| one.certificate.clone()).collect();
        Authorities::of(&all)
    }

    fn shown(by: &Signing) -> Shown {
        Shown::by_the_backend(vec![by.server()])
    }

    #[test]
    fn the_old_authority_does_not_leave_before_the_server_shows_a_certificate_of_the_new_one() {
        let (old, new) = (Signing::new("old"), Signing::new("new"));
        let (both, only_new) = (given(&[&old, &new]), given(&[&new]));
        let (of_old, of_new) = (shown(&old), shown(&new));
        assert!(is_lost((&of_old, &both), (&of_old, &only_new), now()));
        // Step 4 first, or both at once.
        assert!(!is_lost((&of_old, &both), (&of_new, &both), now()));
        assert!(!is_lost((&of_new, &both), (&of_new, &only_new), now()));
        assert!(!is_lost((&of_old, &both), (&of_new, &only_new), now()));
        // A certificate of an authority that is not given comes to the same.
        let foreign = shown(&Signing::new("another"));
        assert!(is_lost((&of_old, &both), (&foreign, &both), now()));
    }

    #[test]
    fn what_was_so_before_keeps_nothing_from_being_taken() {
        let (old, new) = (Signing::new("old"), Signing::new("new"));
        let (only_old, only_new) = (given(&[&old]), given(&[&new]));
        let foreign = shown(&Signing::new("another"));
        assert!(!foreign.is_known_by(&only_old, now()));
        assert!(!is_lost(
            (&foreign, &only_old),
            (&foreign, &only_new),
            now()
        ));
        assert!(!is_lost(
            (&foreign, &only_old),
            (&shown(&new), &only_old),
            now()
        ));
        // What a proxy shows is not known.
        let proxy = Shown::by_a_proxy();
        assert!(!is_lost((&proxy, &only_old), (&proxy, &only_new), now()));
    }

    #[test]
    fn those_between_count_and_the_same_name_with_another_key_does_not() {
        let root = Signing::new("site");
        let between = root.below("between");
        let whole = vec![between.server(), between.certificate.clone()];
        let whole = Shown::by_the_backend(whole);
        assert!(whole.is_known_by(&given(&[&root]), now()));
        assert!(!shown(&between).is_known_by(&given(&[&root]), now()));
        assert!(shown(&between).is_known_by(&given(&[&between]), now()));
        assert!(!shown(&root).is_known_by(&given(&[&Signing::new("site")]), now()));
    }

    #[test]
    fn a_certificate_that_has_ended_is_of_its_authority_all_the_same() {
        let (own, other) = (Signing::new("own"), Signing::new("other"));
        for now in ["2025-01-01T00:00:00Z", "2028-01-01T00:00:00Z"] {
            let now = Timestamp::parse(now).unwrap();
            assert!(shown(&own).is_known_by(&given(&[&own]), now));
            assert!(!shown(&own).is_known_by(&given(&[&other]), now));
        }
    }
}
