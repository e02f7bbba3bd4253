//! Certificates that gateways ask for over their sessions.

use std::time::Duration;

use viworks_backend_agent::data::{
    Actor, Certificate, ConfirmOutcome, NewCertificate, Renewal, RenewalOutcome, StoreError,
};
use viworks_common::time::Timestamp;

use super::bed::{Bed, Session, agent, at};
use super::gateways::new_certificate;
use super::instances::two_backends;
use super::postgres_only::finish;

/// A certificate for gateway 1, with a key and a text of its own.
pub(crate) fn renewal(epoch: u64, key: u8) -> Renewal {
    Renewal {
        epoch,
        certificate: NewCertificate {
            fingerprint: [key; 32],
            ..new_certificate(1, key)
        },
        pem: format!("certificate {key}"),
    }
}

/// Gateway 1 with a session, and the certificate 1 that it enrolled with.
async fn connected(bed: &Bed) -> Session {
    bed.gateway(1).await;
    let (tenant, actor) = (&bed.tenant, Actor::local("test"));
    let first = new_certificate(1, 1);
    let registered = bed.store.register_certificate(tenant, first, &actor, at(0));
    registered.await.unwrap();
    bed.session(1, 1).await
}

async fn renewed(bed: &Bed, renewal: Renewal, now: Timestamp) -> RenewalOutcome {
    let renewed = bed.store.renew_certificate(&bed.tenant, renewal, now);
    renewed.await.unwrap()
}

pub(super) async fn certificate(bed: &Bed, key: u8) -> Option<Certificate> {
    let spki = [key; 32];
    let known = bed.store.certificate(&bed.tenant, agent(1), &spki);
    known.await.unwrap()
}

/// Whether it is retired, and whether it was in no session so far.
async fn standing(bed: &Bed, key: u8) -> (bool, bool) {
    let known = certificate(bed, key).await.unwrap();
    (known.retired, known.unproved)
}

/// Opens a session with a certificate of this key, and answers what its CONFIRM came to.
pub(super) async fn confirmed_with(bed: &Bed, key: u8, proves: bool) -> ConfirmOutcome {
    let epoch = bed.gateway_now(1).await.confirmed;
    let hello = bed.hello(1, 1, epoch);
    let admitted = bed.admitted(hello.clone()).await;
    let mut confirm = bed.confirm_of(&hello, &admitted);
    confirm.proves = proves.then_some([key; 32]);
    bed.confirm(confirm).await
}

pub(crate) async fn with_the_first_session_of_a_renewed_certificate_the_earlier_ones_retire(
    bed: &Bed,
) {
    let session = connected(bed).await;
    let epoch = session.holder.epoch;
    assert_eq!(
        renewed(bed, renewal(epoch, 2), at(10)).await,
        RenewalOutcome::Issued
    );
    // One that came to nothing: the gateway lost its key, and asked with another one.
    assert_eq!(
        renewed(bed, renewal(epoch, 3), at(100)).await,
        RenewalOutcome::Issued
    );
    for (key, expected) in [(1, (false, false)), (2, (false, true)), (3, (false, true))] {
        assert_eq!(standing(bed, key).await, expected, "{key}");
    }
    // A session with an earlier one changes nothing.
    let confirmed = confirmed_with(bed, 1, false).await;
    assert!(matches!(confirmed, ConfirmOutcome::Confirmed(_)));
    assert_eq!(standing(bed, 2).await, (false, true));
    let confirmed = confirmed_with(bed, 3, true).await;
    assert!(matches!(confirmed, ConfirmOutcome::Confirmed(_)));
    for (key, expected) in [(1, (true, false)), (2, (true, false)), (3, (false, false))] {
        assert_eq!(standing(bed, key).await, expected, "{key}");
    }
    // Another time it proves nothing more.
    let confirmed = confirmed_with(bed, 3, true).await;
    assert!(matches!(confirmed, ConfirmOutcome::Confirmed(_)));
    let audited = bed.audited().await;
    let count = |action: &str| audited.iter().filter(|it| it.contains(action)).count();
    assert_eq!(count("certificate.renew"), 2, "{audited:?}");
    assert_eq!(count("certificate.prove"), 1, "{audited:?}");
}

pub(crate) async fn a_certificate_is_answered_again_until_it_is_in_use(bed: &Bed) {
    let session = connected(bed).await;
    let epoch = session.holder.epoch;
    assert_eq!(
        renewed(bed, renewal(epoch, 2), at(10)).await,
        RenewalOutcome::Issued
    );
    // Signed anew, and too soon for another one: the gateway has not heard.
    let mut again = renewal(epoch, 2);
    again.certificate.fingerprint = [9; 32];
    again.pem = "another".to_owned();
    assert_eq!(
        renewed(bed, again.clone(), at(11)).await,
        RenewalOutcome::Before("certificate 2".to_owned())
    );
    assert_eq!(certificate(bed, 2).await.unwrap().fingerprint, [2; 32]);
    // Of no use any more by then.
    assert_eq!(
        renewed(bed, again.clone(), at(2_000)).await,
        RenewalOutcome::KeyInUse
    );
    confirmed_with(bed, 2, true).await;
    let epoch = bed.gateway_now(1).await.confirmed;
    again.epoch = epoch;
    assert_eq!(renewed(bed, again, at(20)).await, RenewalOutcome::KeyInUse);
    // That of the enrolment, and another gateway's.
    assert_eq!(
        renewed(bed, renewal(epoch, 1), at(200)).await,
        RenewalOutcome::KeyInUse
    );
    bed.gateway(2).await;
    let other = bed.session(2, 2).await;
    let mut stolen = renewal(other.holder.epoch, 2);
    stolen.certificate.agent_id = agent(2);
    assert_eq!(
        renewed(bed, stolen, at(300)).await,
        RenewalOutcome::KeyInUse
    );
}

pub(crate) async fn a_gateway_gets_one_certificate_a_minute_and_six_an_hour(bed: &Bed) {
    let session = connected(bed).await;
    let epoch = session.holder.epoch;
    let wait = |seconds| RenewalOutcome::TooSoon(Duration::from_secs(seconds));
    for number in 0..6_u8 {
        let now = i64::from(number) * 60;
        let issued = renewed(bed, renewal(epoch, 10 + number), at(now)).await;
        assert_eq!(issued, RenewalOutcome::Issued, "{number}");
        let refused = renewed(bed, renewal(epoch, 50), at(now + 1)).await;
        assert!(matches!(refused, RenewalOutcome::TooSoon(_)), "{number}");
    }
    assert_eq!(renewed(bed, renewal(epoch, 50), at(600)).await, wait(3_000));
    assert_eq!(certificate(bed, 50).await, None);
    assert_eq!(
        renewed(bed, renewal(epoch, 50), at(3_600)).await,
        RenewalOutcome::Issued
    );
}

pub(crate) async fn a_gateway_that_uses_none_of_many_certificates_gets_one_an_hour(bed: &Bed) {
    const QUARTER: i64 = 900;
    let session = connected(bed).await;
    let epoch = session.holder.epoch;
    for number in 0..32_u8 {
        let now = i64::from(number) * QUARTER;
        let mut issued = renewal(epoch, 10 + number);
        issued.certificate.not_after = at(100_000);
        let outcome = renewed(bed, issued, at(now)).await;
        assert_eq!(outcome, RenewalOutcome::Issued, "{number}");
    }
    let last = 31 * QUARTER;
    let refused = renewed(bed, renewal(epoch, 50), at(last + QUARTER)).await;
    assert_eq!(
        refused,
        RenewalOutcome::TooSoon(Duration::from_secs(3_600 - 900))
    );
    // It is shut out for no longer: the fault may be mended.
    let issued = renewed(bed, renewal(epoch, 50), at(last + 3_600)).await;
    assert_eq!(issued, RenewalOutcome::Issued);
    // One that is used settles all the others.
    confirmed_with(bed, 50, true).await;
    let epoch = bed.gateway_now(1).await.confirmed;
    let issued = renewed(bed, renewal(epoch, 51), at(last + 3_660)).await;
    assert_eq!(issued, RenewalOutcome::Issued);
}

pub(crate) async fn certificates_that_nobody_used_are_forgotten_long_after_their_end(bed: &Bed) {
    const DAY: i64 = 24 * 3_600;
    let session = connected(bed).await;
    let epoch = session.holder.epoch;
    for (key, now) in [(2, 10), (3, 29 * DAY), (4, 31 * DAY)] {
        let outcome = renewed(bed, renewal(epoch, key), at(now)).await;
        assert_eq!(outcome, RenewalOutcome::Issued, "{key}");
        assert_eq!(certificate(bed, 2).await.is_some(), key < 4, "{key}");
    }
    // In use, whatever its end says.
    assert!(certificate(bed, 1).await.is_some());
}

pub(crate) async fn only_the_session_of_a_gateway_that_is_not_revoked_renews(bed: &Bed) {
    let session = connected(bed).await;
    let fenced = async |epoch, key| {
        let renewal = renewal(epoch, key);
        let refused = bed.store.renew_certificate(&bed.tenant, renewal, at(10));
        assert!(matches!(refused.await, Err(StoreError::Fenced)), "{epoch}");
        assert_eq!(certificate(bed, key).await, None);
    };
    fenced(session.holder.epoch + 1, 2).await;
    let later = bed.session(1, 1).await;
    fenced(session.holder.epoch, 2).await;
    let actor = Actor::local("test");
    let revoked = bed
        .store
        .revoke_gateway(&bed.tenant, agent(1), None, &actor, at(5));
    revoked.await.unwrap().unwrap();
    fenced(later.holder.epoch, 2).await;
}

pub(crate) async fn certificates_that_ended_long_ago_are_forgotten_once_they_are_retired(
    bed: &Bed,
) {
    const DAY: i64 = 24 * 3_600;
    let session = connected(bed).await;
    assert_eq!(
        renewed(bed, renewal(session.holder.epoch, 2), at(10)).await,
        RenewalOutcome::Issued
    );
    confirmed_with(bed, 2, true).await;
    let epoch = bed.gateway_now(1).await.confirmed;
    let mut next = renewal(epoch, 3);
    next.certificate.not_after = at(90 * DAY);
    assert_eq!(
        renewed(bed, next, at(29 * DAY)).await,
        RenewalOutcome::Issued
    );
    assert!(certificate(bed, 1).await.is_some());
    assert_eq!(
        renewed(bed, renewal(epoch, 4), at(31 * DAY)).await,
        RenewalOutcome::Issued
    );
    assert_eq!(certificate(bed, 1).await, None);
    // In use, whatever its end says.
    assert!(certificate(bed, 2).await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_gateways_that_ask_two_backends_for_one_key_one_gets_it() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, _database)) = two_backends(&folder).await else {
        return;
    };
    for n in [1, 2] {
        one.gateway(n).await;
    }
    let first = one.session(1, 1).await.holder.epoch;
    let second = other.session(2, 2).await.holder.epoch;
    for key in 10..30 {
        // Each gets as many in an hour as it may.
        let now = at(3_600 * i64::from(key));
        let of_second = renewal(second, key);
        let of_second = Renewal {
            certificate: NewCertificate {
                agent_id: agent(2),
                fingerprint: [key + 100; 32],
                ..of_second.certificate
            },
            ..of_second
        };
        let outcomes = tokio::join!(
            renewed(&one, renewal(first, key), now),
            renewed(&other, of_second, now)
        );
        let (issued, in_use) = (RenewalOutcome::Issued, RenewalOutcome::KeyInUse);
        let [here, there] = [outcomes.0, outcomes.1];
        assert!(
            (here == issued && there == in_use) || (here == in_use && there == issued),
            "{key}: {here:?} and {there:?}"
        );
    }
    finish(&folder, one, other).await;
}
