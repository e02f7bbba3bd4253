//! Certificates that gateways ask for at the door, because their own have ended.

use std::time::Duration;

use uuid::Uuid;
use viworks_backend_agent::data::{
    Actor, AdmitOutcome, AdmitRequest, AnsweredChallenge, CertificateRef, CertificateRevocation,
    ForkDecision, ForkResolution, NewCertificate, Page, RefusedReissue, Reissue, ReissueOutcome,
    ReissueRefusal, Renewal, RenewalOutcome,
};
use viworks_common::admission::{NotTheGateway, Shown};
use viworks_common::id::BootId;

use super::bed::{Bed, Session, agent, at, process};
use super::enrolments::challenge;
use super::gateways::new_certificate;
use super::renewals::{certificate, confirmed_with};

const DAY: i64 = 24 * 3_600;

/// The records of what the door answered.
const RENEWED: &str = "certificate.renew_at_door";

/// A certificate for the key of gateway 1, over challenge `n`: it is told by `text` from others for the same key.
pub(crate) fn reissue(key: u8, n: u64, epoch: u64, text: u8) -> Reissue {
    Reissue {
        challenge: AnsweredChallenge {
            expires_at: at(500 * DAY),
            ..challenge(n)
        },
        peer: "192.0.2.7".parse().unwrap(),
        shown: Shown {
            epoch,
            token_valid: true,
            key_generation: 1,
        },
        wall: at(100),
        certificate: NewCertificate {
            fingerprint: [text; 32],
            not_after: at(400 * DAY),
            ..new_certificate(1, key)
        },
        pem: format!("certificate {text}"),
    }
}

/// Gateway 1 with a session, and a certificate for key 1 that ends after so many seconds.
pub(crate) async fn connected(bed: &Bed, ends: i64) -> Session {
    bed.gateway(1).await;
    let (tenant, actor) = (&bed.tenant, Actor::local("test"));
    let first = NewCertificate {
        not_after: at(ends),
        ..new_certificate(1, 1)
    };
    let registered = bed.store.register_certificate(tenant, first, &actor, at(0));
    registered.await.unwrap();
    bed.session(1, 1).await
}

/// What came of it by clocks that agree, which a look has told before.
pub(super) async fn asked(bed: &Bed, reissue: Reissue, seconds: i64) -> ReissueOutcome {
    asked_by(bed, reissue, seconds, seconds).await
}

/// The same by a wall clock that is not where the time line is.
async fn asked_by(bed: &Bed, reissue: Reissue, wall: i64, seconds: i64) -> ReissueOutcome {
    let wall = at(wall);
    let reissue = Reissue { wall, ..reissue };
    let NewCertificate { agent_id, spki, .. } = reissue.certificate;
    let (tenant, shown, now) = (&bed.tenant, reissue.shown, at(seconds));
    let foreseen = bed
        .store
        .foresee_reissue(tenant, agent_id, spki, shown, wall, now);
    let foreseen = foreseen.await.unwrap();
    let done = bed.store.reissue_certificate(tenant, reissue, now);
    let done = done.await.unwrap();
    // Whether a challenge was answered before is no matter of a look.
    if done != no(ReissueRefusal::Challenge) {
        let foreseen = foreseen.unwrap_or(ReissueOutcome::Issued);
        assert_eq!(foreseen, done);
    }
    done
}

/// A refusal of gateway `who`, over challenge `n` if one was answered.
pub(crate) fn refusal(n: Option<u64>, who: u64) -> RefusedReissue {
    RefusedReissue {
        agent_id: agent(who),
        challenge: n.map(challenge),
        peer: "192.0.2.7".parse().unwrap(),
        why: Some("csr_key"),
    }
}

fn no(refusal: ReissueRefusal) -> ReissueOutcome {
    ReissueOutcome::Refused(refusal)
}

fn not_it(why: NotTheGateway) -> ReissueOutcome {
    no(ReissueRefusal::NotTheGateway(why))
}

pub(crate) async fn a_certificate_ends_by_the_wall_clock_at_the_door_as_it_does_in_tls(bed: &Bed) {
    let epoch = connected(bed, 30 * DAY).await.holder.epoch;
    let good = no(ReissueRefusal::NotLapsed(at(30 * DAY)));
    // A clock that was set back makes it good again, wherever the time line is.
    let back = asked_by(bed, reissue(1, 1, epoch, 2), DAY, 40 * DAY).await;
    assert_eq!(back, good);
    // One that was set forward ends it at once.
    let forward = asked_by(bed, reissue(1, 2, epoch, 2), 31 * DAY, 40 * DAY + 60).await;
    assert_eq!(forward, ReissueOutcome::Issued);
}

pub(crate) async fn a_gateway_whose_certificate_has_ended_gets_another_for_the_same_key(bed: &Bed) {
    let session = connected(bed, 90 * DAY).await;
    let epoch = session.holder.epoch;
    let good = no(ReissueRefusal::NotLapsed(at(90 * DAY)));
    assert_eq!(asked(bed, reissue(1, 1, epoch, 2), DAY).await, good);
    let now = 380 * DAY;
    let issued = asked(bed, reissue(1, 2, epoch, 2), now).await;
    assert_eq!(issued, ReissueOutcome::Issued);
    let known = certificate(bed, 1).await.unwrap();
    assert_eq!(
        (known.fingerprint, known.not_after),
        ([2; 32], at(400 * DAY))
    );
    assert!(known.unproved && !known.retired);
    // It begins where it was issued, and not where its key was registered.
    let listed = bed.store.list_certificates(&bed.tenant, agent(1));
    let since: Vec<_> = listed
        .await
        .unwrap()
        .iter()
        .map(|listed| (listed.fingerprint[0], listed.issued_at))
        .collect();
    assert_eq!(since, [(2, at(now))]);
    // The epoch is where it was.
    assert_eq!(bed.gateway_now(1).await.confirmed, epoch);
    // The answer was lost: the same one again, however often, until a session was confirmed with it.
    let again = ReissueOutcome::Before("certificate 2".to_owned());
    assert_eq!(asked(bed, reissue(1, 3, epoch, 3), now + 1).await, again);
    assert_eq!(asked(bed, reissue(1, 4, epoch, 4), now + 2).await, again);
    confirmed_with(bed, 1, true).await;
    let confirmed = bed.gateway_now(1).await;
    assert_eq!(confirmed.certificate_since, Some(at(now)));
    let epoch = confirmed.confirmed;
    let good = no(ReissueRefusal::NotLapsed(at(400 * DAY)));
    assert_eq!(asked(bed, reissue(1, 5, epoch, 5), now + 3).await, good);
    let audited = bed.audited().await;
    let count = |action: &str| audited.iter().filter(|it| it.contains(action)).count();
    assert_eq!(count("certificate.renew_at_door"), 3, "{audited:?}");
    assert_eq!(count("certificate.prove"), 1, "{audited:?}");
}

pub(crate) async fn the_holder_that_is_kept_gets_another_until_it_has_come_back(bed: &Bed) {
    let session = connected(bed, DAY).await;
    let left = session.holder.epoch;
    let copy = AdmitRequest {
        boot_id: BootId::from_uuid(Uuid::from_u128(99)),
        ..bed.hello(1, 9, left)
    };
    bed.open(copy).await;
    assert_eq!(bed.admit(bed.hello(1, 1, left)).await, AdmitOutcome::Fork);
    let (behind, now) = (not_it(NotTheGateway::BadToken), 2 * DAY);
    assert_eq!(asked(bed, reissue(1, 1, left, 2), now).await, behind);
    let (actor, keep) = (Actor::local("test"), ForkDecision::Keep(process(1)));
    let kept = bed
        .store
        .resolve_fork(&bed.tenant, agent(1), keep, &actor, at(now));
    let kept = kept.await.unwrap();
    assert!(
        matches!(kept, Some(ForkResolution::Resolved(_))),
        "{kept:?}"
    );
    // Its certificate ended while it was kept out, and it renews none without a session.
    let issued = asked(bed, reissue(1, 2, left, 2), now).await;
    assert_eq!(issued, ReissueOutcome::Issued);
    bed.open(bed.hello(1, 1, left)).await;
    assert_eq!(asked(bed, reissue(1, 3, left, 3), now).await, behind);
}

pub(crate) async fn the_first_session_with_it_retires_the_earlier_ones(bed: &Bed) {
    let session = connected(bed, 90 * DAY).await;
    let epoch = session.holder.epoch;
    let renewal = Renewal {
        epoch,
        certificate: NewCertificate {
            fingerprint: [2; 32],
            not_after: at(150 * DAY),
            ..new_certificate(1, 2)
        },
        pem: "certificate 2".to_owned(),
    };
    let renewed = bed
        .store
        .renew_certificate(&bed.tenant, renewal, at(60 * DAY));
    assert_eq!(renewed.await.unwrap(), RenewalOutcome::Issued);
    confirmed_with(bed, 2, true).await;
    let epoch = bed.gateway_now(1).await.confirmed;
    let now = 380 * DAY;
    // The key that it had before is retired, whatever became of its certificate.
    let retired = no(ReissueRefusal::RetiredKey);
    assert_eq!(asked(bed, reissue(1, 1, epoch, 7), now).await, retired);
    let issued = asked(bed, reissue(2, 2, epoch, 8), now).await;
    assert_eq!(issued, ReissueOutcome::Issued);
    confirmed_with(bed, 2, true).await;
    assert!(!certificate(bed, 2).await.unwrap().unproved);
    assert!(certificate(bed, 1).await.unwrap().retired);
}

pub(crate) async fn the_key_of_a_revoked_certificate_is_called_revoked(bed: &Bed) {
    let epoch = connected(bed, 90 * DAY).await.holder.epoch;
    let (actor, now) = (Actor::local("test"), 380 * DAY);
    let which = CertificateRef::Fingerprint(certificate(bed, 1).await.unwrap().fingerprint);
    let revoked =
        bed.store
            .revoke_certificate(&bed.tenant, agent(1), &which, "copied", &actor, at(now));
    let revoked = revoked.await.unwrap();
    assert!(
        matches!(revoked, CertificateRevocation::Revoked(_)),
        "{revoked:?}"
    );
    // No later one was in use, and its gateway was not revoked.
    let answer = no(ReissueRefusal::CertificateRevoked);
    assert_eq!(asked(bed, reissue(1, 1, epoch, 2), now + 1).await, answer);
    let page = Page::first(200);
    let audit = bed.store.list_audit(&bed.tenant, page).await.unwrap();
    let mut records = audit.items.into_iter().map(|entry| entry.record);
    let noted = records.find(|record| record.action == RENEWED).unwrap();
    assert_eq!(noted.detail["why"], "certificate_revoked", "{noted:?}");
}

pub(crate) async fn whoever_is_not_the_gateway_of_today_gets_none(bed: &Bed) {
    let session = connected(bed, 90 * DAY).await;
    let epoch = session.holder.epoch;
    let now = 380 * DAY;
    let with = |n, change: fn(&mut Reissue)| {
        let mut asked = reissue(1, n, epoch, 2);
        change(&mut asked);
        asked
    };
    let cases: [(Reissue, ReissueOutcome); 6] = [
        (
            with(1, |it| it.shown.token_valid = false),
            not_it(NotTheGateway::BadToken),
        ),
        // A copy that fell behind.
        (
            with(2, |it| it.shown.epoch -= 1),
            not_it(NotTheGateway::BadToken),
        ),
        (
            with(3, |it| it.shown.key_generation = 0),
            not_it(NotTheGateway::StaleKey),
        ),
        (
            with(4, |it| it.certificate.spki = [9; 32]),
            no(ReissueRefusal::UnknownKey),
        ),
        // Another gateway with its own key asks for this one's.
        (
            with(5, |it| it.certificate.agent_id = agent(2)),
            no(ReissueRefusal::UnknownKey),
        ),
        // Nobody.
        (
            with(6, |it| it.certificate.agent_id = agent(3)),
            not_it(NotTheGateway::BadToken),
        ),
    ];
    bed.gateway(2).await;
    for (case, expected) in cases {
        let told = format!("{case:?}");
        assert_eq!(asked(bed, case, now).await, expected, "{told}");
    }
    // Each consumed its challenge.
    let challenge = no(ReissueRefusal::Challenge);
    assert_eq!(asked(bed, reissue(1, 1, epoch, 77), now).await, challenge);
    let (tenant, actor) = (&bed.tenant, Actor::local("test"));
    let revoked = bed
        .store
        .revoke_gateway(tenant, agent(1), None, &actor, at(now));
    revoked.await.unwrap().unwrap();
    let revoked = not_it(NotTheGateway::Revoked);
    assert_eq!(asked(bed, reissue(1, 7, epoch, 2), now).await, revoked);
    let known = certificate(bed, 1).await.unwrap();
    assert_eq!(known.not_after, at(90 * DAY), "nothing has changed");
}

pub(crate) async fn the_door_and_the_session_have_one_bound(bed: &Bed) {
    let session = connected(bed, 600).await;
    let epoch = session.holder.epoch;
    let short = |n, text, ends| {
        let mut asked = reissue(1, n, epoch, text);
        asked.certificate.not_after = at(ends);
        asked
    };
    assert_eq!(
        asked(bed, short(1, 2, 1_000), 700).await,
        ReissueOutcome::Issued
    );
    // It ends so soon that it counts as ended already: one a minute.
    assert_eq!(
        asked(bed, short(2, 3, 1_000), 710).await,
        ReissueOutcome::TooSoon(Duration::from_secs(50))
    );
    assert_eq!(
        asked(bed, short(3, 4, 1_000), 760).await,
        ReissueOutcome::Issued
    );
    // Of those of an hour it counts once: it is one key.
    for (n, text, now) in [
        (4, 5, 820),
        (5, 6, 880),
        (6, 7, 940),
        (7, 8, 1_000),
        (8, 9, 1_060),
    ] {
        let issued = asked(bed, short(n, text, 1_000), now).await;
        assert_eq!(issued, ReissueOutcome::Issued, "{now}");
    }
}

pub(crate) async fn what_the_door_refuses_is_recorded_within_bounds_and_of_gateways_alone(
    bed: &Bed,
) {
    connected(bed, 90 * DAY).await;
    let refuse = async |refused: RefusedReissue| {
        let done = bed.store.refuse_reissue(&bed.tenant, refused, at(10));
        done.await.unwrap()
    };
    assert!(refuse(refusal(Some(1), 1)).await);
    assert!(!refuse(refusal(Some(1), 1)).await, "it is consumed");
    // What was issued before and is given again is no refusal.
    let again = RefusedReissue {
        why: None,
        ..refusal(Some(2), 1)
    };
    assert!(refuse(again.clone()).await);
    assert!(!refuse(again).await, "and that is one");
    for _ in 0..100 {
        assert!(refuse(refusal(None, 1)).await);
        assert!(refuse(refusal(None, 5)).await, "there is no such gateway");
    }
    let audited = bed.audited().await;
    let count = |action: &str| audited.iter().filter(|it| it.contains(action)).count();
    assert_eq!(count("certificate.renew_at_door"), 3, "{audited:?}");
    assert_eq!(count("gateway.unproved_renewal"), 60);
    // What anybody can cause hides nothing of what the gateway itself was told within the hour.
    let looked = async || bed.store.last_refusal(&bed.tenant, agent(1)).await.unwrap();
    let (own, stranger) = (
        ReissueRefusal::Challenge.name(),
        refusal(None, 1).why.unwrap(),
    );
    assert_ne!(own, stranger);
    assert_eq!(looked().await.at_door.unwrap().why, own);
    let later = refusal(None, 1);
    let done = bed.store.refuse_reissue(&bed.tenant, later, at(10 + 7_200));
    assert!(done.await.unwrap());
    assert_eq!(looked().await.at_door.unwrap().why, stranger);
}
