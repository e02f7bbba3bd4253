//! One certificate of a gateway that is revoked: what ends with it, and what goes on.

use viworks_backend_agent::data::{
    Actor, AdmitRequest, AuditOutcome, Certificate, CertificateRef, CertificateRevocation,
    ConfirmOutcome, NewAuditRecord, NewCertificate, Page, RenewalOutcome, RevokedCertificate,
    StoreError,
};
use viworks_common::code::CloseCode;
use viworks_common::time::Timestamp;

use super::bed::{Bed, LEASE, agent, at};
use super::gateways::new_certificate;
use super::renewals::renewal;

/// Gateway 1 with certificates of these keys, whose fingerprints are of the same bytes.
async fn gateway(bed: &Bed, keys: &[u8]) {
    bed.gateway(1).await;
    for key in keys {
        let new = NewCertificate {
            fingerprint: [*key; 32],
            serial: format!("{key:04x}"),
            ..new_certificate(1, *key)
        };
        let actor = Actor::local("test");
        let registered = bed
            .store
            .register_certificate(&bed.tenant, new, &actor, at(0));
        registered.await.unwrap();
    }
}

/// A HELLO that shows the certificate of this key.
async fn hello(bed: &Bed, key: u8) -> AdmitRequest {
    let epoch = bed.gateway_now(1).await.confirmed;
    AdmitRequest {
        fingerprint: [key; 32],
        ..bed.hello(1, 1, epoch)
    }
}

async fn asked(bed: &Bed, which: CertificateRef) -> CertificateRevocation {
    let actor = Actor::local("test");
    let revoked =
        bed.store
            .revoke_certificate(&bed.tenant, agent(1), &which, "copied", &actor, at(5));
    revoked.await.unwrap()
}

async fn revoked(bed: &Bed, key: u8) -> RevokedCertificate {
    match asked(bed, CertificateRef::Fingerprint([key; 32])).await {
        CertificateRevocation::Revoked(revoked) => *revoked,
        other @ (CertificateRevocation::Unknown | CertificateRevocation::Ambiguous) => {
            panic!("{other:?}")
        }
    }
}

async fn certificate(bed: &Bed, key: u8) -> Certificate {
    let spki = [key; 32];
    let known = bed.store.certificate(&bed.tenant, agent(1), &spki);
    known.await.unwrap().unwrap()
}

/// When the last certificate of gateway 1 was revoked, where it has none any more.
async fn none_since(bed: &Bed) -> Option<Timestamp> {
    bed.gateway_now(1).await.certificate_revoked_at
}

pub(crate) async fn a_revoked_certificate_ends_its_session_and_no_other(bed: &Bed) {
    gateway(bed, &[1, 2]).await;
    let session = bed.open(hello(bed, 2).await).await;
    let waiting = bed.command(1, false).await;
    // Somebody else's: nothing of the session with the other one ends.
    let other = revoked(bed, 1).await;
    assert!(!other.already && !other.session_ended && other.epoch.is_none());
    let held = bed.gateway_now(1).await.session.unwrap();
    assert_eq!(held.session_id, session.session_id);

    assert_eq!(none_since(bed).await, None, "the other one is good");

    let epoch = session.holder.epoch;
    let first = revoked(bed, 2).await;
    assert!(!first.already && first.session_ended && first.epoch == Some(epoch));
    assert_eq!(first.certificate.revoked_at, Some(at(5)));
    let gateway = bed.gateway_now(1).await;
    assert!(gateway.session.is_none() && gateway.revoked_at.is_none());
    assert_eq!(gateway.certificate_not_after, None);
    assert_eq!(gateway.certificate_revoked_at, Some(at(5)));
    assert_eq!(
        gateway.open_commands, 1,
        "{waiting} waits for the gateway, not for a certificate"
    );
    let leased = bed
        .store
        .lease_commands(&bed.tenant, &session.holder, LEASE, at(6));
    assert!(matches!(leased.await, Err(StoreError::Fenced)));
    let sessions = bed.store.list_sessions(&bed.tenant, agent(1), 10);
    assert_eq!(sessions.await.unwrap()[0].code, Some(CloseCode::Revoked));
    for key in [1, 2] {
        let known = certificate(bed, key).await;
        assert!(known.revoked && known.gateway_goes_on, "{key}");
        // That is what a backend of before, beside this one, refuses it by.
        assert!(known.retired, "{key}");
    }
    let again = revoked(bed, 2).await;
    assert!(again.already && !again.session_ended);
    // Whoever has that session may not have heard.
    assert_eq!(again.epoch, Some(epoch));
    let audited = bed.audited().await;
    let count = |action: &str| audited.iter().filter(|it| *it == action).count();
    assert_eq!(count("certificate.revoke"), 2, "{audited:?}");
    assert_eq!(count("gateway.revoke"), 0, "{audited:?}");
    // The gateway goes on with another one.
    bed.open(hello(bed, 3).await).await;
}

/// The door gave another one for the same key a few minutes before the one in the session ends.
pub(crate) async fn a_session_with_an_earlier_certificate_of_the_key_ends_as_well(bed: &Bed) {
    gateway(bed, &[1]).await;
    let session = bed.open(hello(bed, 9).await).await;
    let told = revoked(bed, 1).await;
    assert!(told.session_ended && told.epoch == Some(session.holder.epoch));
    assert!(bed.gateway_now(1).await.session.is_none());
    let sessions = bed.store.list_sessions(&bed.tenant, agent(1), 10);
    assert_eq!(sessions.await.unwrap()[0].code, Some(CloseCode::Revoked));
}

pub(crate) async fn whoever_revokes_a_certificate_is_told_of_a_renewal_that_is_not_proved(
    bed: &Bed,
) {
    gateway(bed, &[1]).await;
    let epoch = bed.open(hello(bed, 1).await).await.holder.epoch;
    let mut new = renewal(epoch, 2);
    new.certificate.serial = "0002".to_owned();
    let renewed = bed.store.renew_certificate(&bed.tenant, new, at(3));
    assert_eq!(renewed.await.unwrap(), RenewalOutcome::Issued);
    let first = revoked(bed, 1).await;
    assert_eq!(first.unproved.len(), 1, "{first:?}");
    let (other, good) = (&first.unproved[0], certificate(bed, 2).await);
    assert!(other.unproved && other.fingerprint == [2; 32], "{other:?}");
    assert!(!good.revoked && !good.retired, "it is only told");
    // The answer may have been lost.
    let again = revoked(bed, 1).await;
    assert!(
        again.already && again.unproved == first.unproved,
        "{again:?}"
    );
    assert!(revoked(bed, 2).await.unproved.is_empty());
}

pub(crate) async fn a_session_that_waits_to_be_confirmed_is_not_with_a_revoked_certificate(
    bed: &Bed,
) {
    gateway(bed, &[1]).await;
    let before = hello(bed, 1).await;
    let admitted = bed.admitted(before.clone()).await;
    let told = revoked(bed, 1).await;
    assert!(!told.session_ended && told.epoch.is_none());
    let confirmed = bed.confirm(bed.confirm_of(&before, &admitted)).await;
    assert_eq!(confirmed, ConfirmOutcome::Superseded);
    // Its certificate was looked up before, and its HELLO came after.
    let after = hello(bed, 1).await;
    let admitted = bed.admitted(after.clone()).await;
    let confirmed = bed.confirm(bed.confirm_of(&after, &admitted)).await;
    assert_eq!(confirmed, ConfirmOutcome::Superseded);
}

pub(crate) async fn a_certificate_is_found_as_other_programs_print_its_serial_number(bed: &Bed) {
    gateway(bed, &[1, 2]).await;
    let serial = |text: &str| CertificateRef::Serial(text.to_owned());
    // It is stored as 0002.
    let found = asked(bed, serial("02")).await;
    assert!(matches!(found, CertificateRevocation::Revoked(_)));
    assert!(certificate(bed, 2).await.revoked && !certificate(bed, 1).await.revoked);
    assert_eq!(
        asked(bed, serial("03")).await,
        CertificateRevocation::Unknown
    );
    let twin = NewCertificate {
        fingerprint: [4; 32],
        serial: "0001".to_owned(),
        ..new_certificate(1, 4)
    };
    let actor = Actor::local("test");
    let registered = bed
        .store
        .register_certificate(&bed.tenant, twin, &actor, at(0));
    registered.await.unwrap();
    let both = asked(bed, serial("1")).await;
    assert_eq!(both, CertificateRevocation::Ambiguous);
    assert!(!certificate(bed, 1).await.revoked);
    // Another gateway's is none of this one's.
    bed.gateway(2).await;
    let (actor, which) = (Actor::local("test"), CertificateRef::Fingerprint([1; 32]));
    let foreign =
        bed.store
            .revoke_certificate(&bed.tenant, agent(2), &which, "copied", &actor, at(5));
    assert_eq!(foreign.await.unwrap(), CertificateRevocation::Unknown);
}

pub(crate) async fn a_revoked_certificate_is_neither_handed_out_again_nor_in_use(bed: &Bed) {
    gateway(bed, &[1]).await;
    let session = bed.open(hello(bed, 1).await).await;
    let epoch = session.holder.epoch;
    let mut new = renewal(epoch, 2);
    new.certificate.serial = "0002".to_owned();
    new.certificate.not_after = at(2_000);
    let renewed = bed.store.renew_certificate(&bed.tenant, new.clone(), at(3));
    assert_eq!(renewed.await.unwrap(), RenewalOutcome::Issued);
    let listed = bed.store.list_certificates(&bed.tenant, agent(1));
    let listed = listed.await.unwrap();
    let found: Vec<_> = listed
        .iter()
        .map(|known| (known.fingerprint[0], known.unproved, known.registered_at))
        .collect();
    assert_eq!(found, [(2, true, at(3)), (1, false, at(0))]);
    let both = revoked(bed, 2).await;
    assert!(!both.session_ended && both.unproved.is_empty(), "{both:?}");
    let again = bed.store.renew_certificate(&bed.tenant, new, at(6));
    assert_eq!(again.await.unwrap(), RenewalOutcome::KeyInUse);
    let now = bed.gateway_now(1).await;
    assert_eq!(now.certificate_not_after, Some(at(1_000)));
    assert!(revoked(bed, 1).await.session_ended);
    let now = bed.gateway_now(1).await;
    assert_eq!(now.certificate_not_after, None);
}

/// Records that the gateway with this number was refused, as the listener does; whether it was kept.
async fn refused(bed: &Bed, action: &str, seconds: i64) -> bool {
    let actor = Actor::gateway(agent(1));
    let record = NewAuditRecord {
        object: actor.to_string(),
        actor,
        action: action.to_owned(),
        outcome: AuditOutcome::Refused,
        // As many as the process has left out itself.
        detail: serde_json::json!({ "address": "192.0.2.7:4000", "left_out": 7 }),
    };
    let noted = bed
        .store
        .note_gateway(&bed.tenant, agent(1), record, at(seconds));
    noted.await.unwrap()
}

pub(crate) async fn whoever_was_revoked_or_replaced_is_recorded_once_an_hour(bed: &Bed) {
    const HOUR: i64 = 3_600;
    bed.gateway(1).await;
    for action in [
        "gateway.revoked_certificate",
        "gateway.replaced_certificate",
    ] {
        for n in 0..10 {
            assert!(refused(bed, action, n).await, "{action} {n}");
        }
        let mut kept = 0;
        // Three times an hour, for ten hours.
        for n in 1..=30 {
            kept += u32::from(refused(bed, action, n * HOUR / 3).await);
        }
        assert_eq!(kept, 10, "{action}");
        let log = bed.store.list_audit(&bed.tenant, Page::first(1)).await;
        let latest = log.unwrap().items.remove(0).record;
        assert_eq!(latest.action, action);
        // Two that are left out here, each with its seven, and the seven of its own.
        assert_eq!(latest.detail["left_out"], 2 * (1 + 7) + 7, "{latest:?}");
        // After a long time all are back.
        let later = 30 * HOUR;
        for n in 0..10 {
            assert!(refused(bed, action, later + n).await, "{action} {n}");
        }
        assert!(!refused(bed, action, later + 10).await);
    }
    // It uses up nothing of what an auditor looks for.
    for n in 0..60 {
        assert!(refused(bed, "gateway.wrong_agent_key", n).await, "{n}");
    }
}

pub(crate) async fn a_knock_that_is_expected_does_not_hide_a_graver_refusal(bed: &Bed) {
    bed.gateway(1).await;
    let last = async || {
        let looked = bed.store.last_refusal(&bed.tenant, agent(1)).await;
        looked.unwrap().last.unwrap().why
    };
    assert!(refused(bed, "gateway.wrong_agent_key", 100).await);
    assert!(refused(bed, "gateway.replaced_certificate", 200).await);
    assert_eq!(last().await, "wrong_agent_key");
    assert!(refused(bed, "gateway.revoked_certificate", 3_700).await);
    assert_eq!(last().await, "wrong_agent_key");
    // Long ago it says nothing about today.
    assert!(refused(bed, "gateway.replaced_certificate", 3_701).await);
    assert_eq!(last().await, "replaced_certificate");
    assert!(refused(bed, "identity.fork", 3_702).await);
    assert!(refused(bed, "gateway.replaced_certificate", 3_703).await);
    assert_eq!(last().await, "fork");
    // An operator has done something about it since.
    let actor = Actor::system();
    let revoked = bed
        .store
        .revoke_gateway(&bed.tenant, agent(1), None, &actor, at(3_704));
    revoked.await.unwrap();
    assert!(refused(bed, "gateway.revoked_certificate", 3_705).await);
    assert_eq!(last().await, "revoked_certificate");
}
