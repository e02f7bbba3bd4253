//! Certificates in whose place their key got another one at the door: whoever shows one, or is known by one, is known
//! as the same key.

use viworks_backend_agent::data::{
    Actor, AdmitOutcome, AdmitRequest, AuditOutcome, CertificateRef, CertificateRevocation,
    ConfirmOutcome, ForkDecision, ForkResolution, NewCertificate, Page, ReissueOutcome,
    ReissueRefusal, RenewalOutcome, RevokedCertificate, WithdrawnCertificate,
};
use viworks_common::code::CloseCode;

use super::bed::{Bed, Session, agent, at, process};
use super::forks::{copied, decide, forks, keep};
use super::gateways::new_certificate;
use super::reissues::{asked, reissue};
use super::renewals::{certificate, renewal};

const DAY: i64 = 24 * 3_600;

/// The first certificate of a key is `key * 10 + 1`, by its fingerprint and its serial number; the next ones follow.
async fn register(bed: &Bed, key: u8, ends: i64) {
    let first = NewCertificate {
        not_after: at(ends),
        ..certificate_of(key, key * 10 + 1)
    };
    let actor = Actor::local("test");
    let registered = bed
        .store
        .register_certificate(&bed.tenant, first, &actor, at(0));
    registered.await.unwrap();
}

fn certificate_of(key: u8, text: u8) -> NewCertificate {
    NewCertificate {
        fingerprint: [text; 32],
        serial: format!("{text:04}"),
        ..new_certificate(1, key)
    }
}

/// A HELLO of process 1 that shows this certificate.
fn hello(bed: &Bed, text: u8, epoch: u64) -> AdmitRequest {
    AdmitRequest {
        fingerprint: [text; 32],
        ..bed.hello(1, 1, epoch)
    }
}

/// Gateway 1 with a session that showed certificate 11, which ends within ten minutes.
async fn connected(bed: &Bed) -> Session {
    bed.gateway(1).await;
    register(bed, 1, 600).await;
    bed.open(hello(bed, 11, 0)).await
}

/// The door gives a key this certificate, which ends after so many seconds.
async fn reissued(bed: &Bed, (key, text): (u8, u8), ends: i64, now: i64) {
    let epoch = bed.gateway_now(1).await.confirmed;
    let mut asks = reissue(key, u64::from(text), epoch, text);
    asks.certificate = NewCertificate {
        not_after: at(ends),
        ..certificate_of(key, text)
    };
    assert_eq!(asked(bed, asks, now).await, ReissueOutcome::Issued);
}

async fn revocation(bed: &Bed, which: CertificateRef) -> CertificateRevocation {
    let actor = Actor::local("test");
    let revoked =
        bed.store
            .revoke_certificate(&bed.tenant, agent(1), &which, "copied", &actor, at(5));
    revoked.await.unwrap()
}

async fn revoked_by(bed: &Bed, which: CertificateRef) -> RevokedCertificate {
    match revocation(bed, which).await {
        CertificateRevocation::Revoked(revoked) => *revoked,
        other @ (CertificateRevocation::Unknown | CertificateRevocation::Ambiguous) => {
            panic!("{other:?}")
        }
    }
}

async fn revoked(bed: &Bed, text: u8) -> RevokedCertificate {
    revoked_by(bed, CertificateRef::Fingerprint([text; 32])).await
}

pub(crate) async fn an_earlier_certificate_names_its_key_and_ends_a_session_with_it(bed: &Bed) {
    let session = connected(bed).await;
    reissued(bed, (1, 12), 400 * DAY, 3).await;
    let first = revoked(bed, 11).await;
    assert!(!first.already && first.session_ended, "{first:?}");
    assert_eq!(first.epoch, Some(session.holder.epoch));
    assert_eq!(first.certificate.fingerprint, [12; 32]);
    assert_eq!(first.certificate.revoked_at, Some(at(5)));
    let named = first.named.unwrap();
    assert_eq!(
        (&*named.serial, named.fingerprint, named.not_after),
        ("0011", [11; 32], at(600))
    );
    assert_eq!(named.reissued_at, at(3));
    assert!(bed.gateway_now(1).await.session.is_none());
    let sessions = bed.store.list_sessions(&bed.tenant, agent(1), 10);
    assert_eq!(sessions.await.unwrap()[0].code, Some(CloseCode::Revoked));
    // By its serial number as other programs print it.
    let again = revoked_by(bed, CertificateRef::Serial("11".to_owned())).await;
    assert!(again.already && again.epoch == first.epoch, "{again:?}");
    assert_eq!(again.named.unwrap().fingerprint, [11; 32]);
    let present = revoked(bed, 12).await;
    assert!(present.already && present.named.is_none(), "{present:?}");
    let never = CertificateRef::Fingerprint([13; 32]);
    let never = revocation(bed, never).await;
    assert_eq!(never, CertificateRevocation::Unknown);

    let audit = bed.store.list_audit(&bed.tenant, Page::first(100)).await;
    let records = audit.unwrap().items.into_iter().map(|entry| entry.record);
    let mut revocations = records.filter(|record| record.action == "certificate.revoke");
    let (detail, other) = (revocations.next().unwrap().detail, revocations.next());
    assert_eq!(detail["fingerprint"], hex::encode([12_u8; 32]), "{detail}");
    assert_eq!(detail["named"]["fingerprint"], hex::encode([11_u8; 32]));
    assert_eq!(detail["named"]["serial"], "0011");
    assert!(other.is_none(), "{other:?}");
}

pub(crate) async fn a_session_with_an_earlier_certificate_of_another_key_goes_on(bed: &Bed) {
    connected(bed).await;
    register(bed, 2, 600).await;
    reissued(bed, (1, 12), 400 * DAY, 3).await;
    let other = revoked(bed, 21).await;
    assert!(!other.session_ended && other.epoch.is_none(), "{other:?}");
    assert!(bed.gateway_now(1).await.session.is_some());
}

pub(crate) async fn earlier_certificates_are_withdrawn_with_their_key_until_they_end(bed: &Bed) {
    let session = connected(bed).await;
    let withdrawn = async |seconds| {
        let listed = bed.store.withdrawn_certificates(&bed.tenant, at(seconds));
        let listed = listed.await.unwrap().into_iter();
        let one = |it: WithdrawnCertificate| (it.serial, it.since, it.revoked);
        listed.map(one).collect::<Vec<_>>()
    };
    reissued(bed, (1, 12), 400 * DAY, 3).await;
    assert!(withdrawn(4).await.is_empty(), "the key is good");
    // With a later key it retires, with all that was issued for it.
    let later = bed
        .store
        .renew_certificate(&bed.tenant, renewal(session.holder.epoch, 8), at(100));
    assert_eq!(later.await.unwrap(), RenewalOutcome::Issued);
    let hello = hello(bed, 8, session.holder.epoch);
    let admitted = bed.admitted(hello.clone()).await;
    let mut confirm = bed.confirm_of(&hello, &admitted);
    confirm.proves = Some([8; 32]);
    bed.confirm(confirm).await;
    let both =
        |since, revoked| ["0012", "0011"].map(|serial| (serial.to_owned(), at(since), revoked));
    assert_eq!(withdrawn(101).await, both(2, false));
    revoked(bed, 12).await;
    assert_eq!(withdrawn(101).await, both(5, true));
    let [present, _] = both(5, true);
    assert_eq!(withdrawn(600).await, [present], "the other one has ended");
    assert!(withdrawn(400 * DAY).await.is_empty());
}

pub(crate) async fn of_withdrawn_certificates_the_revoked_ones_come_first(bed: &Bed) {
    let session = connected(bed).await;
    reissued(bed, (1, 12), 400 * DAY, 3).await;
    let later = bed
        .store
        .renew_certificate(&bed.tenant, renewal(session.holder.epoch, 8), at(100));
    assert_eq!(later.await.unwrap(), RenewalOutcome::Issued);
    let hello = hello(bed, 8, session.holder.epoch);
    let admitted = bed.admitted(hello.clone()).await;
    let mut confirm = bed.confirm_of(&hello, &admitted);
    confirm.proves = Some([8; 32]);
    bed.confirm(confirm).await;
    // Those of key 1 are only replaced, and one of them ends last of all.
    revoked(bed, 8).await;
    let listed = bed.store.withdrawn_certificates(&bed.tenant, at(101));
    let listed = listed.await.unwrap().into_iter();
    let revoked: Vec<bool> = listed.map(|it| it.revoked).collect();
    assert_eq!(revoked, [true, false, false]);
}

/// Another holder came first: it has a certificate for a key of its own, and with its session the key of process 1
/// retires. That one is refused with certificate 11.
async fn overtaken(bed: &Bed) {
    connected(bed).await;
    reissued(bed, (1, 12), 400 * DAY, 3).await;
    let copy = bed.open(copied(bed, 9, 1)).await;
    let epoch = copy.holder.epoch;
    let renewed = bed
        .store
        .renew_certificate(&bed.tenant, renewal(epoch, 8), at(100));
    assert_eq!(renewed.await.unwrap(), RenewalOutcome::Issued);
    let proving = AdmitRequest {
        fingerprint: [8; 32],
        ..copied(bed, 9, epoch)
    };
    let admitted = bed.admitted(proving.clone()).await;
    let mut confirm = bed.confirm_of(&proving, &admitted);
    confirm.proves = Some([8; 32]);
    bed.confirm(confirm).await;
    assert!(certificate(bed, 1).await.unwrap().retired);
    let refused = bed.admit(hello(bed, 11, 1)).await;
    assert_eq!(refused, AdmitOutcome::Fork);
}

pub(crate) async fn a_holder_that_is_known_by_an_earlier_certificate_is_kept(bed: &Bed) {
    overtaken(bed).await;
    let refused = forks(bed).await[0].refused.clone();
    assert_eq!(refused.fingerprint, [11; 32]);
    assert_eq!(refused.certificate, Some(("0011".to_owned(), at(600))));
    let now = Some(("0012".to_owned(), at(400 * DAY)));
    assert_eq!(refused.reissued, now);
    let accepted = forks(bed).await[0].accepted.clone().unwrap();
    assert!(accepted.certificate.is_some() && accepted.reissued.is_none());
    keep(bed, process(1)).await;
    let known = certificate(bed, 1).await.unwrap();
    assert!(!known.retired && known.fingerprint == [12; 32], "{known:?}");
    bed.open(hello(bed, 12, 1)).await;
}

/// The answer with certificate 12 was lost, and its text is gone since the other holder came in: 11 ends, and nobody
/// has another one.
pub(crate) async fn a_holder_that_is_kept_and_lost_its_certificate_gets_another_one_at_the_door(
    bed: &Bed,
) {
    overtaken(bed).await;
    let epoch = bed.gateway_now(1).await.confirmed;
    let asks = || reissue(1, 13, epoch, 13);
    let refused = asked(bed, asks(), 700).await;
    let why = ReissueRefusal::RetiredKey;
    assert_eq!(refused, ReissueOutcome::Refused(why));
    keep(bed, process(1)).await;
    reissued(bed, (1, 14), 400 * DAY, 700).await;
    // What made room for it is good for long, and the record does not say otherwise.
    let audit = bed.store.list_audit(&bed.tenant, Page::first(100)).await;
    let mut records = audit.unwrap().items.into_iter().map(|entry| entry.record);
    let made = records
        .find(|it| it.action == "certificate.renew_at_door" && it.outcome == AuditOutcome::Done);
    let detail = made.unwrap().detail;
    assert!(detail["ends"].is_string(), "{detail}");
    assert!(detail["ended"].is_null(), "{detail}");
    bed.open(hello(bed, 14, 1)).await;
    // It has come: from now on the door is for those whose certificate has ended.
    let epoch = bed.gateway_now(1).await.confirmed;
    bed.open(hello(bed, 14, epoch)).await;
    let epoch = bed.gateway_now(1).await.confirmed;
    let known = certificate(bed, 1).await.unwrap();
    let confirmed = ReissueRefusal::NotLapsed(known.not_after);
    let refused = asked(bed, reissue(1, 15, epoch, 15), 900).await;
    assert!(
        refused == ReissueOutcome::Refused(confirmed)
            || matches!(refused, ReissueOutcome::Before(_)),
        "{refused:?}"
    );
}

pub(crate) async fn a_holder_with_an_earlier_certificate_of_a_revoked_key_is_out(bed: &Bed) {
    overtaken(bed).await;
    revoked(bed, 12).await;
    let refused = decide(bed, ForkDecision::Keep(process(1))).await;
    assert_eq!(refused, ForkResolution::HolderIsOut);
    assert!(bed.gateway_now(1).await.session.is_some());
}

pub(crate) async fn a_session_that_waits_with_an_earlier_certificate_of_a_revoked_key_is_not_confirmed(
    bed: &Bed,
) {
    let session = connected(bed).await;
    reissued(bed, (1, 12), 400 * DAY, 3).await;
    // It is good for some minutes still.
    let session = bed.open(hello(bed, 11, session.holder.epoch)).await;
    let epoch = session.holder.epoch;
    let before = hello(bed, 11, epoch);
    let admitted = bed.admitted(before.clone()).await;
    revoked(bed, 12).await;
    let confirmed = bed.confirm(bed.confirm_of(&before, &admitted)).await;
    assert_eq!(confirmed, ConfirmOutcome::Superseded);
    // Its certificate was looked up before, and its HELLO came after.
    let after = hello(bed, 11, epoch);
    let admitted = bed.admitted(after.clone()).await;
    let confirmed = bed.confirm(bed.confirm_of(&after, &admitted)).await;
    assert_eq!(confirmed, ConfirmOutcome::Superseded);
}

pub(crate) async fn the_latest_earlier_certificates_are_kept(bed: &Bed) {
    connected(bed).await;
    // 66 that each make room for the next one.
    for (text, minute) in (100..166_u8).zip(1..) {
        let now = minute * 60;
        reissued(bed, (1, text), now + 300, now).await;
    }
    for gone in [11, 100] {
        let which = CertificateRef::Fingerprint([gone; 32]);
        let found = revocation(bed, which).await;
        assert_eq!(found, CertificateRevocation::Unknown, "{gone}");
    }
    let oldest = revoked(bed, 101).await;
    assert_eq!(oldest.named.unwrap().fingerprint, [101; 32]);
    assert_eq!(oldest.certificate.fingerprint, [165; 32]);
}

pub(crate) async fn what_ended_long_ago_is_forgotten_unless_a_fork_knows_a_holder_by_it(bed: &Bed) {
    connected(bed).await;
    bed.open(copied(bed, 9, 1)).await;
    let refused = bed.admit(hello(bed, 11, 1)).await;
    assert_eq!(refused, AdmitOutcome::Fork);
    reissued(bed, (1, 12), 900, 3).await;
    reissued(bed, (1, 13), 1_300, 700).await;
    // It ended long ago as well, and made room only now.
    reissued(bed, (1, 14), 400 * DAY, 31 * DAY).await;
    let found = revocation(bed, CertificateRef::Fingerprint([12; 32])).await;
    assert_eq!(found, CertificateRevocation::Unknown);
    for kept in [11, 13] {
        let found = revoked(bed, kept).await;
        assert_eq!(found.named.unwrap().fingerprint, [kept; 32]);
    }
}
