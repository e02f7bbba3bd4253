//! The keys of the server, and which gateways trust them.

use serde_json::Value;
use viworks_backend_agent::data::{
    Actor, AdmitOutcome, CertificateRef, NewCertificate, NewGateway, OwnPins, Page, PinChange,
    PinOutcome, PinStep, PinsKnown, RedeemOutcome, Redemption, Untrusting,
};
use viworks_common::pin::rotation::RotationRefusal;
use viworks_common::pin::{PinSet, SpkiPin};

use super::bed::{Bed, Session, agent, at, process};
use super::enrolments::{challenge, create, new_ticket, redeem, redemption};
use super::forks::{keep, retired_by_a_copy};
use super::gateways::{new_certificate, new_gateway};
use super::instances::two_backends;
use super::postgres_only::finish;
use super::replacements::{newcomer_for, ticket_for};

pub(crate) fn pin(n: u8) -> SpkiPin {
    SpkiPin::from_digest([n; 32])
}

fn set(version: u64, pins: &[u8]) -> PinSet {
    PinSet {
        version,
        pins: pins.iter().copied().map(pin).collect(),
    }
}

/// A backend whose configuration names the keys 1 and 2, and which shows this one.
pub(crate) fn showing(live: u8) -> OwnPins {
    OwnPins {
        configured: set(1, &[1, 2]),
        live: pin(live),
    }
}

fn step(step: PinStep, n: u8, own: OwnPins) -> PinChange {
    PinChange {
        step,
        pin: pin(n),
        reason: None,
        own,
    }
}

pub(crate) fn stage(n: u8) -> PinChange {
    step(PinStep::Stage, n, showing(1))
}

fn promote(n: u8) -> PinChange {
    step(PinStep::Promote { forced: false }, n, showing(1))
}

async fn change(bed: &Bed, change: PinChange) -> PinOutcome {
    let actor = Actor::local("test");
    let changed = bed.store.change_pins(&bed.tenant, change, &actor, at(5));
    changed.await.unwrap()
}

async fn known(bed: &Bed, own: OwnPins) -> PinsKnown {
    bed.store.pins(&bed.tenant, own, at(6)).await.unwrap()
}

async fn untrusting(bed: &Bed, from: u64, to: u64) -> Vec<Untrusting> {
    let asked = bed.store.untrusting(&bed.tenant, from, to, None, 10);
    asked.await.unwrap()
}

async fn trusts(bed: &Bed, session: &Session, version: u64) {
    let (agent_id, epoch) = (session.holder.agent_id, session.holder.epoch);
    let reported = bed.store.report_pins(&bed.tenant, agent_id, epoch, version);
    reported.await.unwrap();
}

/// Gateways 1 and 2 with sessions; both trust version 1.
async fn two(bed: &Bed) -> [Session; 2] {
    bed.gateway(1).await;
    bed.gateway(2).await;
    [bed.session(1, 1).await, bed.session(2, 2).await]
}

async fn recorded(bed: &Bed) -> Vec<(String, Value)> {
    let audited = bed.store.list_audit(&bed.tenant, Page::first(100)).await;
    let audited = audited.unwrap().items.into_iter().map(|row| row.record);
    let of_pins = audited.filter(|record| record.action.starts_with("pin."));
    of_pins
        .map(|record| (record.action, record.detail))
        .collect()
}

pub(crate) async fn a_key_of_the_server_is_staged_promoted_and_the_one_before_is_retired(
    bed: &Bed,
) {
    let sessions = two(bed).await;
    let before = known(bed, showing(1)).await;
    assert!(!before.stepped);
    assert_eq!(before.rotation.set(), set(1, &[1, 2]));
    assert_eq!(change(bed, stage(3)).await, PinOutcome::Done);
    assert_eq!(change(bed, stage(3)).await, PinOutcome::Before);
    let staged = known(bed, showing(1)).await;
    assert!(staged.stepped && !staged.rotation.may_show(&pin(3)));
    assert_eq!(staged.rotation.set(), set(2, &[1, 2, 3]));
    for session in &sessions {
        trusts(bed, session, 2).await;
    }
    let trust = bed.store.pin_trust(&bed.tenant).await.unwrap();
    assert_eq!(trust, [(2, 2)].into());
    assert_eq!(change(bed, promote(3)).await, PinOutcome::Done);
    assert_eq!(change(bed, promote(3)).await, PinOutcome::Before);
    assert!(known(bed, showing(1)).await.rotation.may_show(&pin(3)));
    // What this backend said of itself before does not count against what it shows now.
    let said = bed.store.show_pin(&bed.tenant, pin(1), at(6));
    said.await.unwrap();
    let early = change(bed, step(PinStep::Retire, 1, showing(1))).await;
    assert_eq!(early, PinOutcome::Refused(RotationRefusal::Shown));
    let retire = step(PinStep::Retire, 1, showing(3));
    assert_eq!(change(bed, retire.clone()).await, PinOutcome::Done);
    assert_eq!(change(bed, retire).await, PinOutcome::Before);
    let last = known(bed, showing(3)).await;
    assert_eq!(last.rotation.set(), set(3, &[2, 3]));
    assert_eq!(last.shown, [pin(3)].into());
    let actions = recorded(bed).await;
    let actions: Vec<&str> = actions.iter().map(|(action, _)| action.as_str()).collect();
    assert_eq!(actions.len(), 3, "{actions:?}");
    for action in ["pin.stage", "pin.promote", "pin.retire"] {
        assert!(actions.contains(&action), "{actions:?}");
    }
}

pub(crate) async fn a_key_is_promoted_against_whoever_does_not_trust_it_only_by_force(bed: &Bed) {
    let [first, _second] = two(bed).await;
    change(bed, stage(3)).await;
    trusts(bed, &first, 2).await;
    let refused = PinOutcome::Refused(RotationRefusal::CutOff);
    assert_eq!(change(bed, promote(3)).await, refused);
    let named = untrusting(bed, 2, 2).await;
    assert_eq!(named.len(), 1, "{named:?}");
    assert_eq!((named[0].agent_id, named[0].version), (agent(2), 1));
    assert!(named[0].connected && named[0].name.as_str() == "gw-2");
    let forced = PinChange {
        reason: Some("it was sold".to_owned()),
        ..step(PinStep::Promote { forced: true }, 3, showing(1))
    };
    assert_eq!(change(bed, forced).await, PinOutcome::Done);
    let recorded = recorded(bed).await;
    let promoted = recorded.iter().find(|(action, _)| action == "pin.promote");
    let (_action, detail) = promoted.unwrap();
    assert_eq!(detail["cut_off"], 1, "{detail}");
    assert_eq!(detail["reason"], "it was sold", "{detail}");
}

pub(crate) async fn a_gateway_that_is_revoked_or_trusts_what_nobody_made_confirms_nothing(
    bed: &Bed,
) {
    let [first, _second] = two(bed).await;
    change(bed, stage(3)).await;
    trusts(bed, &first, 9).await;
    assert_eq!(untrusting(bed, 2, 2).await.len(), 2);
    let behind = bed
        .store
        .untrusting(&bed.tenant, 2, 2, Some(agent(1)), 10)
        .await
        .unwrap();
    assert_eq!(behind.len(), 1, "{behind:?}");
    for n in 1..=2 {
        let actor = Actor::local("test");
        let revoked = bed
            .store
            .revoke_gateway(&bed.tenant, agent(n), None, &actor, at(5));
        revoked.await.unwrap();
    }
    assert!(untrusting(bed, 2, 2).await.is_empty());
    assert_eq!(change(bed, promote(3)).await, PinOutcome::Done);
}

pub(crate) async fn a_gateway_whose_only_certificate_was_revoked_is_not_cut_off_by_a_step(
    bed: &Bed,
) {
    let [first, _second] = two(bed).await;
    change(bed, stage(3)).await;
    trusts(bed, &first, 2).await;
    let (tenant, actor) = (&bed.tenant, Actor::local("test"));
    for key in [3, 4] {
        let new = NewCertificate {
            fingerprint: [key; 32],
            ..new_certificate(2, key)
        };
        let registered = bed.store.register_certificate(tenant, new, &actor, at(4));
        registered.await.unwrap();
    }
    let refused = PinOutcome::Refused(RotationRefusal::CutOff);
    // With another certificate it may come back.
    for (key, left) in [(3, 1), (4, 0)] {
        assert_eq!(change(bed, promote(3)).await, refused);
        let which = CertificateRef::Fingerprint([key; 32]);
        let revoked = bed
            .store
            .revoke_certificate(tenant, agent(2), &which, "test", &actor, at(5));
        revoked.await.unwrap();
        assert_eq!(untrusting(bed, 2, 2).await.len(), left, "{key}");
    }
    let trust = bed.store.pin_trust(tenant).await.unwrap();
    assert_eq!(trust, [(2, 1)].into());
    assert_eq!(change(bed, promote(3)).await, PinOutcome::Done);
}

pub(crate) async fn a_gateway_of_which_a_holder_can_be_kept_with_a_retired_certificate_is_cut_off_by_a_step(
    bed: &Bed,
) {
    retired_by_a_copy(bed).await;
    change(bed, stage(3)).await;
    let (tenant, actor) = (&bed.tenant, Actor::local("test"));
    // The copy is put out by its own.
    let which = CertificateRef::Fingerprint([8; 32]);
    let revoked = bed
        .store
        .revoke_certificate(tenant, agent(1), &which, "copied", &actor, at(11));
    revoked.await.unwrap();
    assert!(untrusting(bed, 2, 2).await.is_empty(), "nobody is known");
    // The original is there, and comes back once somebody decides for it.
    assert_eq!(bed.admit(bed.hello(1, 1, 1)).await, AdmitOutcome::Fork);
    let refused = PinOutcome::Refused(RotationRefusal::CutOff);
    assert_eq!(untrusting(bed, 2, 2).await.len(), 1);
    assert_eq!(change(bed, promote(3)).await, refused);
    keep(bed, process(1)).await;
    assert_eq!(untrusting(bed, 2, 2).await.len(), 1);
    assert_eq!(change(bed, promote(3)).await, refused);
}

pub(crate) async fn a_pin_set_that_is_configured_under_a_higher_version_takes_the_place_of_the_stored_one(
    bed: &Bed,
) {
    change(bed, stage(3)).await;
    let newer = OwnPins {
        configured: set(7, &[2, 8]),
        live: pin(2),
    };
    assert_eq!(
        known(bed, newer.clone()).await.rotation.set(),
        set(7, &[2, 8])
    );
    assert_eq!(
        change(bed, step(PinStep::Stage, 9, newer)).await,
        PinOutcome::Done
    );
    // From here on it is stored, for the backends whose configuration is older as well.
    assert_eq!(
        known(bed, showing(2)).await.rotation.set(),
        set(8, &[2, 8, 9])
    );
}

/// Stores what a backend has in its configuration, as it does when it starts; whether it did.
async fn note(bed: &Bed, own: OwnPins) -> bool {
    let actor = Actor::system();
    let noted = bed.store.note_pins(&bed.tenant, own, &actor, at(4));
    noted.await.unwrap()
}

async fn version_of(bed: &Bed, n: u64) -> u64 {
    bed.gateway_now(n).await.pin_set_version
}

/// Gateway `n`, made by hand with these pins; which version it has confirmed by that.
async fn made_with(bed: &Bed, n: u64, pins: PinSet) -> u64 {
    let new = NewGateway {
        pins: Some(pins),
        ..new_gateway(n, &format!("gw-{n}"))
    };
    let actor = Actor::local("test");
    let made = bed.store.create_gateway(&bed.tenant, new, &actor, at(5));
    made.await.unwrap();
    version_of(bed, n).await
}

pub(crate) async fn a_gateway_has_confirmed_the_pins_that_it_became_one_with(bed: &Bed) {
    // While nothing is stored another set may come to have that version.
    assert_eq!(made_with(bed, 1, set(1, &[1, 2])).await, 0);
    assert!(note(bed, showing(1)).await);
    assert_eq!(made_with(bed, 2, set(1, &[1, 2])).await, 1);
    assert_eq!(made_with(bed, 3, set(1, &[1])).await, 0, "one is missing");
    assert_eq!(change(bed, stage(3)).await, PinOutcome::Done);
    assert_eq!(made_with(bed, 4, set(2, &[1, 2, 3])).await, 2);
    assert_eq!(made_with(bed, 5, set(2, &[1, 2])).await, 0);
    // Whoever has an older set would be cut off, whether it has ever connected or not.
    let named = untrusting(bed, 2, 2).await;
    let named: Vec<_> = named.iter().map(|it| (it.agent_id, it.version)).collect();
    let expected = [(1, 0), (2, 1), (3, 0), (5, 0)].map(|(n, version)| (agent(n), version));
    assert_eq!(named, expected);
    let refused = PinOutcome::Refused(RotationRefusal::CutOff);
    assert_eq!(change(bed, promote(3)).await, refused);
    for n in [1, 2, 3, 5] {
        let actor = Actor::local("test");
        let revoked = bed
            .store
            .revoke_gateway(&bed.tenant, agent(n), None, &actor, at(5));
        revoked.await.unwrap();
    }
    assert_eq!(change(bed, promote(3)).await, PinOutcome::Done);
    // What it says itself takes the place of that.
    bed.session(4, 1).await;
    assert_eq!(version_of(bed, 4).await, 1);
}

/// A redemption whose answer has these pins.
fn with(pins: PinSet, mut redemption: Redemption) -> Redemption {
    redemption.gateway.pins = Some(pins);
    redemption
}

pub(crate) async fn the_pins_of_the_last_answer_at_the_door_are_those_that_count(bed: &Bed) {
    assert!(note(bed, showing(1)).await);
    create(bed, new_ticket(1, 1)).await;
    let first = with(set(1, &[1, 2]), redemption(1, 1));
    assert_eq!(redeem(bed, first, 1).await, RedeemOutcome::Enrolled);
    assert_eq!(version_of(bed, 1).await, 1);
    assert_eq!(change(bed, stage(3)).await, PinOutcome::Done);
    // The answer was lost, and comes again with the pins of by now.
    let again = Redemption {
        challenge: challenge(50),
        ..with(set(2, &[1, 2, 3]), redemption(1, 1))
    };
    let answered = redeem(bed, again, 2).await;
    assert!(matches!(answered, RedeemOutcome::Before(_)), "{answered:?}");
    assert_eq!(version_of(bed, 1).await, 2);
    // Of a machine that takes a place nothing is known but what it was given.
    bed.session(1, 1).await;
    assert_eq!(version_of(bed, 1).await, 1);
    for (n, pins, version) in [(2, None, 0), (3, Some(set(2, &[1, 2, 3])), 2)] {
        create(bed, ticket_for(1, n)).await;
        let mut newcomer = newcomer_for(1, n, 50 + n);
        newcomer.gateway.pins = pins;
        let taken = redeem(bed, newcomer, 3).await;
        assert!(matches!(taken, RedeemOutcome::Replaced(_)), "{taken:?}");
        assert_eq!(version_of(bed, 1).await, version);
    }
}

fn other(version: u64) -> OwnPins {
    OwnPins {
        configured: set(version, &[1, 8]),
        live: pin(1),
    }
}

pub(crate) async fn the_configured_set_is_stored_by_the_first_and_replaced_by_a_higher_version_alone(
    bed: &Bed,
) {
    let single = OwnPins {
        configured: set(1, &[7]),
        live: pin(7),
    };
    assert!(!note(bed, single).await, "it is never offered");
    assert!(note(bed, showing(1)).await);
    assert!(!note(bed, showing(1)).await);
    // Another configuration under the same version is not the one that counts, at none of them.
    assert!(!note(bed, other(1)).await);
    for own in [showing(1), other(1)] {
        let known = known(bed, own).await;
        assert!(!known.stepped);
        assert_eq!(known.rotation.set(), set(1, &[1, 2]));
    }
    // The key that took the place of the first one before any step was put there.
    assert!(known(bed, showing(2)).await.rotation.may_show(&pin(2)));
    assert!(recorded(bed).await.is_empty());
    assert!(note(bed, other(4)).await);
    assert!(!note(bed, other(4)).await);
    assert!(!note(bed, showing(1)).await);
    assert_eq!(known(bed, showing(1)).await.rotation.set(), set(4, &[1, 8]));
    let told = recorded(bed).await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].0, "pin.configure", "{told:?}");
    // The same keys under a higher version are another set.
    assert!(note(bed, other(6)).await);
    assert_eq!(known(bed, showing(1)).await.rotation.set(), set(6, &[1, 8]));
    assert_eq!(change(bed, stage(3)).await, PinOutcome::Done);
    assert!(!note(bed, other(6)).await);
    assert_eq!(
        known(bed, other(6)).await.rotation.set(),
        set(7, &[1, 3, 8])
    );
}

#[tokio::test]
async fn of_backends_with_different_keys_that_start_at_once_one_stores_its_set() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, two, _hand)) = two_backends(&folder).await else {
        return;
    };
    let noted = tokio::join!(note(&one, showing(1)), note(&two, other(1)));
    assert_ne!(noted.0, noted.1, "one of them stores its set");
    let (first, second) = (known(&one, showing(1)).await, known(&two, other(1)).await);
    assert_eq!(first.rotation, second.rotation);
    finish(&folder, one, two).await;
}

#[tokio::test]
async fn no_key_is_retired_while_a_backend_does_not_say_which_one_it_shows() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, _hand)) = two_backends(&folder).await else {
        return;
    };
    assert_eq!(change(&one, stage(3)).await, PinOutcome::Done);
    assert_eq!(change(&one, promote(3)).await, PinOutcome::Done);
    // As one of a version before, which may show the key of before for all that is known.
    let retire = step(PinStep::Retire, 1, showing(3));
    let unsaid = PinOutcome::Refused(RotationRefusal::Unsaid);
    assert_eq!(change(&one, retire.clone()).await, unsaid);
    assert_eq!(
        known(&one, showing(3)).await.rotation.set(),
        set(2, &[1, 2, 3])
    );
    let said = other.store.show_pin(&other.tenant, pin(3), at(6));
    said.await.unwrap();
    assert_eq!(change(&one, retire).await, PinOutcome::Done);
    finish(&folder, one, other).await;
}
