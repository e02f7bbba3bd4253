//! The authorities that gateways are given, which gateways have them, and whose certificates they signed.

use std::collections::{BTreeMap, BTreeSet};

use viworks_backend_agent::data::{
    Actor, AdmitRequest, Admitted, AuthorityBundle, AuthorityTrust, CertificateRef, ConfirmOutcome,
    NewCertificate, NewGateway, RedeemOutcome, Redemption, ReissueOutcome, RenewalOutcome,
    SignedBy, StoreError, Tally, Unaware,
};
use viworks_common::id::AgentId;

use super::bed::{Bed, Session, agent, at};
use super::gateways::{new_certificate, new_gateway};
use super::renewals::{certificate, confirmed_with, renewal};
use super::replacements::{newcomer_for, ticket_for};
use super::{enrolments, reissues};

/// A digest of which one letter is known.
fn digest(letter: &str) -> String {
    letter.repeat(64)
}

/// The bundle of this digest, with these authorities.
pub(crate) fn bundle(letter: &str, authorities: &[&str]) -> AuthorityBundle {
    AuthorityBundle {
        digest: digest(letter),
        authorities: set(authorities),
    }
}

fn set(authorities: &[&str]) -> BTreeSet<String> {
    authorities.iter().map(|letter| digest(letter)).collect()
}

async fn note(bed: &Bed, given: AuthorityBundle, seconds: i64) {
    let noted = bed.store.note_bundle(&bed.tenant, given, at(seconds));
    noted.await.unwrap();
}

async fn report(bed: &Bed, session: &Session, letter: Option<&str>) -> Result<(), StoreError> {
    let (agent_id, epoch) = (session.holder.agent_id, session.holder.epoch);
    let has = letter.map(digest);
    let reported = bed
        .store
        .report_bundle(&bed.tenant, agent_id, epoch, has, at(5));
    reported.await
}

async fn trust(bed: &Bed) -> AuthorityTrust {
    bed.store.authority_trust(&bed.tenant).await.unwrap()
}

async fn unaware(bed: &Bed, authority: &str) -> Vec<Unaware> {
    let asked = bed
        .store
        .unaware(&bed.tenant, digest(authority), false, None, 10);
    asked.await.unwrap()
}

/// The first so many of those that reported what they have.
async fn known_unaware(bed: &Bed, authority: &str, limit: usize) -> Vec<Unaware> {
    let asked = bed
        .store
        .unaware(&bed.tenant, digest(authority), true, None, limit);
    asked.await.unwrap()
}

fn names(gateways: &[Unaware]) -> Vec<&str> {
    gateways.iter().map(|one| one.name.as_str()).collect()
}

/// Gateways 1 to 3, of which the first two have sessions; both authorities are given.
async fn three(bed: &Bed) -> [Session; 2] {
    for n in 1..=3 {
        bed.gateway(n).await;
    }
    note(bed, bundle("0", &["a"]), 1).await;
    note(bed, bundle("1", &["a", "b"]), 2).await;
    [bed.session(1, 1).await, bed.session(2, 2).await]
}

pub(crate) async fn a_gateway_has_what_it_reported_whether_it_is_connected_or_not(bed: &Bed) {
    let [first, second] = three(bed).await;
    assert_eq!(first.confirmed.authorities, None);
    report(bed, &first, Some("1")).await.unwrap();
    report(bed, &second, Some("0")).await.unwrap();
    let shown = bed.gateway_now(1).await;
    assert_eq!(
        (shown.authorities, shown.authorities_at),
        (Some(digest("1")), Some(at(5)))
    );
    let tally = |gateways, connected| Tally {
        gateways,
        connected,
    };
    let known = trust(bed).await;
    assert_eq!(known.all(), tally(3, 2));
    assert_eq!(known.lacking(&set(&["a", "b"])), tally(2, 1));
    assert_eq!(known.lacking(&set(&["a"])), tally(1, 0));
    let without = unaware(bed, "b").await;
    assert_eq!(names(&without), ["gw-2", "gw-3"]);
    assert_eq!(without[0].authorities, Some(digest("0")));
    assert!(without[0].connected && !without[1].connected);
    assert_eq!(names(&unaware(bed, "a").await), ["gw-3"]);
    assert_eq!(names(&known_unaware(bed, "b", 10).await), ["gw-2"]);
    assert!(known_unaware(bed, "a", 10).await.is_empty());
    let behind = bed
        .store
        .unaware(&bed.tenant, digest("b"), false, Some(agent(2)), 10)
        .await
        .unwrap();
    assert_eq!(names(&behind), ["gw-3"]);

    // What it has outlives its session, and the next one begins with it.
    let epoch = first.holder.epoch;
    let code = viworks_common::code::CloseCode::Draining;
    let ended = bed
        .store
        .end_session(&bed.tenant, agent(1), epoch, code, at(6));
    assert!(ended.await.unwrap());
    assert_eq!(trust(bed).await.lacking(&set(&["b"])), tally(2, 1));
    let again = bed.session(1, 1).await;
    assert_eq!(again.confirmed.authorities, Some(digest("1")));
    // An agent of an earlier version has none of it, and takes nobody's place among those that are named.
    report(bed, &again, None).await.unwrap();
    assert_eq!(names(&known_unaware(bed, "b", 1).await), ["gw-2"]);
    assert_eq!(bed.gateway_now(1).await.authorities, None);
    assert_eq!(trust(bed).await.lacking(&set(&["b"])), tally(3, 2));
}

pub(crate) async fn only_the_session_of_a_gateway_that_is_not_revoked_reports_what_it_has(
    bed: &Bed,
) {
    let [first, second] = three(bed).await;
    report(bed, &first, Some("1")).await.unwrap();
    let later = bed.session(1, 1).await;
    let fenced = report(bed, &first, Some("0")).await;
    assert!(matches!(fenced, Err(StoreError::Fenced)), "{fenced:?}");
    assert_eq!(bed.gateway_now(1).await.authorities, Some(digest("1")));
    report(bed, &later, Some("0")).await.unwrap();
    for n in 1..=3 {
        let actor = Actor::local("test");
        let revoked = bed
            .store
            .revoke_gateway(&bed.tenant, agent(n), None, &actor, at(7));
        revoked.await.unwrap();
    }
    let fenced = report(bed, &second, Some("1")).await;
    assert!(matches!(fenced, Err(StoreError::Fenced)), "{fenced:?}");
    assert_eq!(trust(bed).await.all(), Tally::default());
    assert!(unaware(bed, "b").await.is_empty());
}

pub(crate) async fn a_bundle_is_forgotten_once_no_gateway_has_it_and_no_backend_gives_it(
    bed: &Bed,
) {
    let [first, _second] = three(bed).await;
    report(bed, &first, Some("0")).await.unwrap();
    let digests = async || trust(bed).await.bundles.into_keys().collect::<Vec<_>>();
    // Given by another backend a moment ago, and reported by nobody yet.
    note(bed, bundle("2", &["b"]), 500).await;
    assert_eq!(digests().await, ["0", "1", "2"].map(digest));
    note(bed, bundle("2", &["b"]), 1_000).await;
    assert_eq!(digests().await, ["0", "2"].map(digest));
    // Nobody made the bundle that it has by what it says.
    report(bed, &first, Some("9")).await.unwrap();
    note(bed, bundle("2", &["b"]), 1_100).await;
    assert_eq!(digests().await, ["2"].map(digest));
    assert_eq!(names(&unaware(bed, "b").await), ["gw-1", "gw-2", "gw-3"]);
}

/// Gateway `n`, made by hand with these authorities.
async fn made_with(bed: &Bed, n: u64, authorities: Option<AuthorityBundle>, seconds: i64) {
    let new = NewGateway {
        authorities,
        ..new_gateway(n, &format!("gw-{n}"))
    };
    let actor = Actor::local("test");
    let made = bed
        .store
        .create_gateway(&bed.tenant, new, &actor, at(seconds));
    made.await.unwrap();
}

pub(crate) async fn a_gateway_has_the_authorities_that_it_became_one_with(bed: &Bed) {
    note(bed, bundle("1", &["a"]), 1).await;
    made_with(bed, 1, Some(bundle("1", &["a"])), 2).await;
    made_with(bed, 2, None, 2).await;
    // The files have more than any backend gives so far.
    made_with(bed, 3, Some(bundle("2", &["a", "b"])), 3).await;
    let shown = bed.gateway_now(3).await;
    assert_eq!(
        (shown.authorities, shown.authorities_at),
        (Some(digest("2")), Some(at(3)))
    );
    let shown = bed.gateway_now(2).await;
    assert_eq!((shown.authorities, shown.authorities_at), (None, None));
    assert_eq!(names(&unaware(bed, "a").await), ["gw-2"]);
    assert_eq!(names(&unaware(bed, "b").await), ["gw-1", "gw-2"]);
    assert_eq!(names(&known_unaware(bed, "b", 10).await), ["gw-1"]);
    let known = trust(bed).await;
    assert_eq!(known.known_to_lack(&set(&["a"])), Tally::default());
    assert_eq!(known.lacking(&set(&["a", "b"])).gateways, 2);

    // It is known what is in it for as long as somebody has it, also when no backend has ever given it.
    let digests = async || trust(bed).await.bundles.into_keys().collect::<Vec<_>>();
    note(bed, bundle("1", &["a"]), 1_000).await;
    assert_eq!(digests().await, ["1", "2"].map(digest));
    assert_eq!(names(&unaware(bed, "b").await), ["gw-1", "gw-2"]);

    // What it says itself takes the place of that.
    let session = bed.session(3, 1).await;
    assert_eq!(session.confirmed.authorities, Some(digest("2")));
    report(bed, &session, Some("1")).await.unwrap();
    assert_eq!(names(&unaware(bed, "b").await), ["gw-1", "gw-2", "gw-3"]);
    note(bed, bundle("1", &["a"]), 1_100).await;
    assert_eq!(digests().await, ["1"].map(digest));
}

/// A redemption whose answer has these authorities.
fn with(authorities: AuthorityBundle, mut redemption: Redemption) -> Redemption {
    redemption.gateway.authorities = Some(authorities);
    redemption
}

pub(crate) async fn the_authorities_of_the_last_answer_at_the_door_are_those_that_count(bed: &Bed) {
    let has = async || bed.gateway_now(1).await.authorities;
    enrolments::create(bed, enrolments::new_ticket(1, 1)).await;
    let first = with(bundle("1", &["a"]), enrolments::redemption(1, 1));
    let made = enrolments::redeem(bed, first, 1).await;
    assert_eq!(made, RedeemOutcome::Enrolled);
    assert_eq!(has().await, Some(digest("1")));
    // The answer was lost, and comes again with the authorities of by now.
    let again = Redemption {
        challenge: enrolments::challenge(50),
        ..with(bundle("2", &["a", "b"]), enrolments::redemption(1, 1))
    };
    let answered = enrolments::redeem(bed, again, 2).await;
    assert!(matches!(answered, RedeemOutcome::Before(_)), "{answered:?}");
    assert_eq!(has().await, Some(digest("2")));
    assert!(unaware(bed, "b").await.is_empty());
    // Of a machine that takes a place nothing is known but what it was given.
    let session = bed.session(1, 1).await;
    report(bed, &session, Some("1")).await.unwrap();
    let both = bundle("3", &["a", "b"]);
    for (n, given, expected) in [(2, None, None), (3, Some(both), Some(digest("3")))] {
        enrolments::create(bed, ticket_for(1, n)).await;
        let mut newcomer = newcomer_for(1, n, 50 + n);
        newcomer.gateway.authorities = given;
        let taken = enrolments::redeem(bed, newcomer, 3).await;
        assert!(matches!(taken, RedeemOutcome::Replaced(_)), "{taken:?}");
        assert_eq!(has().await, expected);
    }
    assert!(unaware(bed, "b").await.is_empty());
}

/// A certificate of gateway `n` for a key, which this authority signed.
fn signed_by(n: u64, key: u8, issuer: Option<u8>) -> NewCertificate {
    NewCertificate {
        fingerprint: [key; 32],
        issuer: issuer.map(|letter| [letter; 32]),
        ..new_certificate(n, key)
    }
}

async fn register(bed: &Bed, new: NewCertificate) {
    let actor = Actor::local("test");
    let registered = bed
        .store
        .register_certificate(&bed.tenant, new, &actor, at(0));
    registered.await.unwrap();
}

/// How many gateways get in at a moment with a certificate of which authority, and how many of them are connected.
async fn signed(bed: &Bed, seconds: i64) -> BTreeMap<Option<u8>, (u64, u64)> {
    let signed = bed.store.signed(&bed.tenant, at(seconds)).await.unwrap();
    let told = signed.into_iter().map(|one| {
        let tally = one.tally;
        (
            one.issuer.map(|issuer| issuer[0]),
            (tally.gateways, tally.connected),
        )
    });
    told.collect()
}

/// The first of those, by their names.
async fn signed_for(bed: &Bed, issuer: Option<u8>, limit: usize) -> Vec<String> {
    let issuer = issuer.map(|letter| [letter; 32]);
    let named = bed.store.signed_for(&bed.tenant, issuer, at(10), limit);
    let named = named.await.unwrap().into_iter();
    named.map(|one| one.name.to_string()).collect()
}

/// What signed the certificates with which some gateways get in at a moment, as far as that is known.
async fn signers(bed: &Bed, gateways: &[u64], seconds: i64) -> BTreeSet<(AgentId, u8)> {
    let gateways = gateways.iter().map(|n| agent(*n)).collect();
    let signers = bed.store.signers(&bed.tenant, gateways, at(seconds));
    let signers = signers.await.unwrap().into_iter();
    signers
        .map(|(gateway, issuer)| (gateway, issuer[0]))
        .collect()
}

pub(crate) async fn which_authority_signed_a_certificate_is_kept_however_it_was_issued(bed: &Bed) {
    let signer = async |key| certificate(bed, key).await.unwrap().issuer;
    let epoch = reissues::connected(bed, 1_000).await.holder.epoch;
    assert_eq!(signer(1).await, Some([1; 32]));
    let mut asks = renewal(epoch, 2);
    asks.certificate.issuer = Some([2; 32]);
    let renewed = bed.store.renew_certificate(&bed.tenant, asks, at(10));
    assert_eq!(renewed.await.unwrap(), RenewalOutcome::Issued);
    assert_eq!(signer(2).await, Some([2; 32]));

    // At the door another authority may have signed for the same key.
    let mut asks = reissues::reissue(1, 1, epoch, 9);
    asks.certificate.issuer = Some([3; 32]);
    let reissued = reissues::asked(bed, asks, 20_000).await;
    assert_eq!(reissued, ReissueOutcome::Issued);
    assert_eq!(signer(1).await, Some([3; 32]));

    enrolments::create(bed, enrolments::new_ticket(1, 1)).await;
    drop(enrolments::enrol(bed, 1, 7, 20).await);
    let spki = enrolments::bytes(7);
    let known = bed.store.certificate(&bed.tenant, agent(7), &spki).await;
    assert_eq!(known.unwrap().unwrap().issuer, Some([5; 32]));
}

pub(crate) async fn who_signed_a_certificate_is_learned_with_a_session_of_its_gateway_alone(
    bed: &Bed,
) {
    for n in 1..=2 {
        bed.gateway(n).await;
        let key = u8::try_from(n).unwrap();
        register(bed, signed_by(n, key, None)).await;
    }
    assert_eq!(signed(bed, 10).await, BTreeMap::from([(None, (2, 0))]));
    assert_eq!(signed_for(bed, None, 1).await, ["gw-1"]);
    let confirmed = async |n: u64, key: u8| {
        let hello = bed.hello(n, n, bed.gateway_now(n).await.confirmed);
        let admitted = bed.admitted(hello.clone()).await;
        let mut confirm = bed.confirm_of(&hello, &admitted);
        confirm.signed_by = Some(SignedBy {
            spki: [key; 32],
            registered: [key; 32],
            issuer: [4; 32],
            shown_until: None,
        });
        bed.confirm(confirm).await
    };
    // Of somebody else's key a gateway says nothing.
    drop(confirmed(2, 1).await);
    assert_eq!(signed(bed, 10).await, BTreeMap::from([(None, (2, 1))]));
    drop(confirmed(1, 1).await);
    let expected = BTreeMap::from([(None, (1, 1)), (Some(4), (1, 1))]);
    assert_eq!(signed(bed, 10).await, expected);
    assert_eq!(signed_for(bed, Some(4), 10).await, ["gw-1"]);
    assert_eq!(signed_for(bed, None, 10).await, ["gw-2"]);
}

pub(crate) async fn who_signed_the_certificate_of_before_is_not_stored_of_one_from_the_door(
    bed: &Bed,
) {
    let epoch = reissues::connected(bed, 1_000).await.holder.epoch;
    let before = certificate(bed, 1).await.unwrap().fingerprint;
    // It is let in by the certificate of before, and gets another one at the door until it confirms.
    let hello = bed.hello(1, 1, epoch);
    let admitted = bed.admitted(hello.clone()).await;
    let mut asks = reissues::reissue(1, 1, epoch, 9);
    asks.certificate.issuer = Some([3; 32]);
    let reissued = reissues::asked(bed, asks, 20_000).await;
    assert_eq!(reissued, ReissueOutcome::Issued);
    let confirmed = async |hello: &AdmitRequest, admitted: &Admitted, registered| {
        let mut confirm = bed.confirm_of(hello, admitted);
        confirm.signed_by = Some(SignedBy {
            spki: [1; 32],
            registered,
            issuer: [4; 32],
            shown_until: None,
        });
        let confirmed = bed
            .store
            .confirm_session(&bed.tenant, confirm, at(20_001))
            .await;
        assert!(matches!(confirmed, Ok(ConfirmOutcome::Confirmed(_))));
        certificate(bed, 1).await.unwrap().issuer
    };
    assert_eq!(
        confirmed(&hello, &admitted, before).await,
        Some([3; 32]),
        "it is of the one before"
    );
    let hello = bed.hello(1, 1, bed.gateway_now(1).await.confirmed);
    let admitted = bed.admitted(hello.clone()).await;
    assert_eq!(
        confirmed(&hello, &admitted, [9; 32]).await,
        Some([4; 32]),
        "it is of the one that is registered"
    );
}

pub(crate) async fn a_gateway_counts_by_the_certificates_with_which_it_gets_in(bed: &Bed) {
    for n in 1..=4 {
        bed.gateway(n).await;
    }
    register(bed, signed_by(1, 1, Some(1))).await;
    let epoch = bed.session(1, 1).await.holder.epoch;
    let mut asks = renewal(epoch, 2);
    asks.certificate.issuer = Some([2; 32]);
    let renewed = bed.store.renew_certificate(&bed.tenant, asks, at(5));
    assert_eq!(renewed.await.unwrap(), RenewalOutcome::Issued);
    register(bed, signed_by(2, 3, Some(1))).await;
    register(bed, signed_by(3, 4, Some(1))).await;
    // With the renewed one no session was confirmed: the answer may be lost.
    assert_eq!(signed(bed, 10).await, BTreeMap::from([(Some(1), (3, 1))]));
    assert_eq!(signed_for(bed, Some(1), 2).await, ["gw-1", "gw-2"]);
    let expected = BTreeSet::from([(agent(1), 1), (agent(2), 1)]);
    assert_eq!(signers(bed, &[1, 2, 4, 9], 10).await, expected);
    assert!(signers(bed, &[], 10).await.is_empty());
    drop(confirmed_with(bed, 2, true).await);
    let expected = BTreeMap::from([(Some(1), (2, 0)), (Some(2), (1, 1))]);
    assert_eq!(signed(bed, 10).await, expected);
    let expected = BTreeSet::from([(agent(1), 2), (agent(3), 1)]);
    assert_eq!(signers(bed, &[1, 3], 10).await, expected);

    // What is revoked opens nothing.
    let (tenant, actor) = (&bed.tenant, Actor::local("test"));
    let revoked = bed
        .store
        .revoke_gateway(tenant, agent(2), None, &actor, at(7));
    revoked.await.unwrap();
    let which = CertificateRef::Fingerprint([4; 32]);
    let revoked = bed
        .store
        .revoke_certificate(tenant, agent(3), &which, "test", &actor, at(8));
    revoked.await.unwrap();
    assert_eq!(signed(bed, 10).await, BTreeMap::from([(Some(2), (1, 1))]));
    let expected = BTreeSet::from([(agent(1), 2)]);
    assert_eq!(signers(bed, &[1, 2, 3], 10).await, expected);

    // What has ended neither, unless another one was shown for the same key, which is good yet.
    assert!(signed(bed, 1_000).await.is_empty());
    register(bed, signed_by(4, 5, Some(3))).await;
    assert_eq!(signed(bed, 999).await.get(&Some(3)), Some(&(1, 0)));
    assert_eq!(signed(bed, 1_001).await.get(&Some(3)), None);
    let shows = async |shown_until| {
        let hello = bed.hello(4, 4, bed.gateway_now(4).await.confirmed);
        let admitted = bed.admitted(hello.clone()).await;
        let mut confirm = bed.confirm_of(&hello, &admitted);
        confirm.signed_by = Some(SignedBy {
            spki: [5; 32],
            registered: [5; 32],
            issuer: [4; 32],
            shown_until,
        });
        let confirmed = bed.store.confirm_session(tenant, confirm, at(900)).await;
        assert!(matches!(confirmed, Ok(ConfirmOutcome::Confirmed(_))));
    };
    shows(Some(at(5_000))).await;
    assert_eq!(signed(bed, 4_999).await.get(&Some(4)), Some(&(1, 1)));
    assert_eq!(signed(bed, 4_999).await.get(&Some(3)), None);
    assert_eq!(signed(bed, 5_000).await.get(&Some(4)), None);
    let known = bed.store.certificate(tenant, agent(4), &[5; 32]).await;
    assert_eq!(known.unwrap().unwrap().shown_until, Some(at(5_000)));
    // However long that session lasts, and whoever finds it to be over: this says nothing of what was shown.
    let abandoned = bed.store.end_abandoned_sessions(tenant, None, at(6_000));
    abandoned.await.unwrap();
    let still = signed(bed, 4_999).await;
    assert_eq!(still.get(&Some(4)).map(|(gateways, _)| *gateways), Some(1));
    assert!(signed(bed, 6_000).await.is_empty());
    // With the registered one shown again, that counts.
    shows(None).await;
    assert_eq!(signed(bed, 1_001).await.get(&Some(4)), None);
}
