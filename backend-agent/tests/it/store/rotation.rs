//! Agent keys of later generations: who is to get one, and who can take one.

use std::time::Duration;

use viworks_backend_agent::data::{
    Actor, AdmitOutcome, GatewayRef, KeyRotation, MasterIds, StoreError,
};
use viworks_testkit::process::eventually;

use super::bed::{Bed, agent, at};

async fn rotated(bed: &Bed, n: u64) -> Option<KeyRotation> {
    let actor = Actor::local("test");
    let rotated = bed.store.rotate_key(&bed.tenant, agent(n), &actor, at(3));
    rotated.await.unwrap()
}

async fn notes(bed: &Bed, action: &str) -> usize {
    let actions = bed.audited().await.into_iter();
    actions.filter(|noted| noted == action).count()
}

pub(crate) async fn a_key_that_is_asked_for_is_wanted_until_a_session_uses_it(bed: &Bed) {
    assert_eq!(rotated(bed, 1).await, None);
    bed.gateway(1).await;
    let first = bed.session(1, 1).await;
    assert_eq!(first.confirmed.keys.generation, 1);
    assert_eq!(first.confirmed.keys.pending(), None);
    for _asked_again in 0..2 {
        assert_eq!(rotated(bed, 1).await, Some(KeyRotation::Wanted(2)));
    }
    assert_eq!(notes(bed, "gateway.rotate_key").await, 1);
    let keys = bed.gateway_now(1).await.keys();
    assert_eq!((keys.generation, keys.pending()), (1, Some(2)));

    // Whoever has the session is told, and so is the next one.
    let second = bed.session(1, 1).await;
    assert_eq!(second.confirmed.keys.pending(), Some(2));
    assert_eq!(notes(bed, "gateway.key_in_use").await, 0);
    let mut hello = bed.hello(1, 1, bed.gateway_now(1).await.confirmed);
    hello.key_generation = 2;
    let third = bed.open(hello).await;
    assert_eq!(third.confirmed.keys.generation, 2);
    assert_eq!(third.confirmed.keys.pending(), None);
    assert_eq!(notes(bed, "gateway.key_in_use").await, 1);
    let old = bed.hello(1, 1, bed.gateway_now(1).await.confirmed);
    assert_eq!(bed.admit(old).await, AdmitOutcome::StaleKey);
    assert_eq!(rotated(bed, 1).await, Some(KeyRotation::Wanted(3)));
}

pub(crate) async fn who_takes_keys_is_known_since_the_last_session(bed: &Bed) {
    bed.gateway(1).await;
    assert_eq!(bed.gateway_now(1).await.keys().takes_one, None);
    let first = bed.session(1, 1).await;
    let (tenant, epoch) = (&bed.tenant, first.holder.epoch);
    for takes in [true, true, false] {
        let master = takes.then_some([7; 8]);
        let noted = bed.store.note_keys(tenant, agent(1), epoch, takes, master);
        noted.await.unwrap();
        let keys = bed.gateway_now(1).await.keys();
        assert_eq!((keys.takes_one, keys.master), (Some(takes), master));
    }
    let second = bed.session(1, 1).await;
    assert_eq!(second.confirmed.keys.takes_one, Some(false));
    let fenced = bed.store.note_keys(tenant, agent(1), epoch, true, None);
    assert!(matches!(fenced.await, Err(StoreError::Fenced)));
}

pub(crate) async fn a_revoked_gateway_gets_no_key_and_generations_end(bed: &Bed) {
    bed.gateway(1).await;
    bed.gateway(2).await;
    let mut last = bed.hello(2, 1, 0);
    last.key_generation = 255;
    bed.open(last).await;
    assert_eq!(rotated(bed, 2).await, Some(KeyRotation::Exhausted));
    let actor = Actor::local("test");
    let revoked = bed
        .store
        .revoke_gateway(&bed.tenant, agent(1), None, &actor, at(2));
    revoked.await.unwrap().unwrap();
    assert_eq!(rotated(bed, 1).await, Some(KeyRotation::Revoked));
    let which = GatewayRef::Id(agent(1));
    let gateway = bed.store.gateway(&bed.tenant, &which).await.unwrap();
    assert_eq!(gateway.unwrap().keys().wanted, None);
    assert_eq!(notes(bed, "gateway.rotate_key").await, 0);
}

pub(crate) async fn which_master_keys_a_backend_has_is_known_to_others(bed: &Bed) {
    let told = async || {
        let holders = bed.store.key_holders().await.unwrap();
        let [holder] = holders.as_slice() else {
            panic!("there is one: {holders:?}");
        };
        holder.masters
    };
    assert_eq!(told().await, None);
    let (makes, beside) = ([7; 8], Some([8; 8]));
    for masters in [
        MasterIds { makes, beside },
        MasterIds {
            makes,
            beside: None,
        },
    ] {
        for _said_again in 0..2 {
            bed.store.note_masters(masters).await.unwrap();
        }
        eventually("it is known", Duration::from_secs(20), async || {
            (told().await == Some(masters)).then_some(())
        })
        .await;
    }
}
