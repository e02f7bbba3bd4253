//! A backend that becomes another instance at a moment when nobody expects it, and a server whose clock is set while
//! leases run.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use uuid::Uuid;
use viworks_backend_agent::agent::doors::Doors;
use viworks_backend_agent::agent::instance::keep;
use viworks_backend_agent::agent::manager::Manager;
use viworks_backend_agent::agent::shelf::Shelf;
use viworks_backend_agent::data::{InstanceLoad, MasterIds, Owner};
use viworks_backend_agent::metrics::BackendMetrics;
use viworks_common::code::CloseCode;
use viworks_common::id::{InstanceId, SessionId, Tenant};
use viworks_common::key::Identity;
use viworks_common::ledger::lease::Place;
use viworks_common::time::Timestamp;
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::metrics::Metrics;
use viworks_testkit::process::eventually;

use super::bed::{Bed, agent, at, process};
use super::instances::{Hand, instance, two_backends};
use super::postgres_only::finish;

const PATIENCE: Duration = Duration::from_secs(20);

/// A backend as far as its instance is concerned.
struct House {
    manager: Arc<Manager>,
    lifecycle: Lifecycle,
    state: TempDir,
}

impl House {
    fn of(bed: &Bed) -> Self {
        let metrics = Metrics::new("test", "0", Timestamp::from_unix_micros(0));
        let counters = BackendMetrics::register(&metrics);
        let manager = Arc::new(Manager::new(Doors::new(10), counters));
        manager.go_on_as(Some(instance(bed)));
        Self {
            manager,
            lifecycle: Lifecycle::new(),
            state: tempfile::tempdir().unwrap(),
        }
    }

    fn keep(&self, bed: &Bed) {
        let metrics = Metrics::new("test", "0", Timestamp::from_unix_micros(0));
        let kept = keep(
            Arc::clone(&bed.store),
            Arc::clone(&self.manager),
            BackendMetrics::register(&metrics),
            self.state.path().to_owned(),
            self.lifecycle.clone(),
        );
        drop(self.lifecycle.spawn("instance", kept));
    }

    /// A session of gateway `n` that was confirmed for this instance.
    fn enter(&self, n: u64, epoch: u64) -> Arc<Shelf> {
        let place = Place {
            epoch,
            run: process(1),
        };
        let shelf = Arc::new(Shelf::new(place, 1, BTreeSet::new(), true));
        let identity = Identity {
            tenant: Tenant::default_tenant(),
            agent_id: agent(n),
        };
        let now = self.manager.instance();
        assert!(self.manager.register(&identity, session(n), &shelf, now));
        shelf
    }

    /// Waits until it goes on as the instance that its store is by now, and has written it down.
    async fn follows(&self, bed: &Bed) {
        eventually("it goes on as the later instance", PATIENCE, async || {
            let text = std::fs::read_to_string(self.state.path().join("instance")).ok()?;
            let noted: InstanceId = text.lines().next()?.parse().ok()?;
            let now = Some(instance(bed));
            (self.manager.instance() == now && Some(noted) == now).then_some(())
        })
        .await;
    }
}

fn session(n: u64) -> SessionId {
    SessionId::from_uuid(Uuid::from_u128(n.into()))
}

/// Another backend took this one for dead: the next thing that it writes makes it another instance.
async fn lose_lease(hand: &Hand, bed: &Bed, gateway: u64) {
    let lost = instance(bed);
    hand.set(lost, "ended = true");
    bed.gateway(gateway).await;
    assert_ne!(instance(bed), lost);
}

#[tokio::test]
async fn whatever_instance_a_backend_is_the_others_know_which_master_keys_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, database)) = two_backends(&folder).await else {
        return;
    };
    let hand = Hand { database };
    let masters = MasterIds {
        makes: [7; 8],
        beside: Some([8; 8]),
    };
    other.store.note_masters(masters).await.unwrap();
    let known = async |all: [Option<MasterIds>; 2]| {
        eventually("it is known", PATIENCE, async || {
            let holders = one.store.key_holders().await.unwrap();
            let told: BTreeSet<_> = holders.iter().map(|it| it.masters.is_some()).collect();
            let expected: BTreeSet<_> = all.iter().map(Option::is_some).collect();
            let right = holders.iter().all(|it| all.contains(&it.masters));
            (holders.len() == 2 && right && told == expected).then_some(())
        })
        .await;
    };
    known([Some(masters), None]).await;
    lose_lease(&hand, &other, 1).await;
    known([Some(masters), None]).await;
    one.store.note_masters(masters).await.unwrap();
    known([Some(masters), Some(masters)]).await;
    finish(&folder, one, other).await;
}

#[tokio::test]
async fn whatever_instance_a_backend_is_the_others_know_which_authorities_it_gives() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, database)) = two_backends(&folder).await else {
        return;
    };
    let hand = Hand { database };
    let (bundle, another) = ("a".repeat(64), "b".repeat(64));
    one.store.note_authorities(&bundle);
    let differs = async |expected: bool| {
        eventually("it is known", PATIENCE, async || {
            let all = one.store.list_instances().await.unwrap();
            let others = all.iter();
            let others = others.filter(|it| it.gives_others(instance(&one), &bundle));
            let told: Vec<_> = others.map(|it| it.authorities.as_deref()).collect();
            let right = if expected {
                told == [Some(another.as_str())]
            } else {
                told.is_empty()
            };
            (all.len() >= 2 && right).then_some(())
        })
        .await;
    };
    // Of one that said nothing it is not known that they differ.
    differs(false).await;
    other.store.note_authorities(&another);
    differs(true).await;
    lose_lease(&hand, &other, 1).await;
    differs(true).await;
    other.store.note_authorities(&bundle);
    differs(false).await;
    finish(&folder, one, other).await;
}

#[tokio::test]
async fn a_backend_that_becomes_another_instance_while_it_starts_goes_on_as_that() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, database)) = two_backends(&folder).await else {
        return;
    };
    let hand = Hand { database };
    let house = House::of(&one);
    let shelf = house.enter(1, 1);
    // After the manager was told who it is, and before anybody listens to changes.
    lose_lease(&hand, &one, 1).await;
    house.keep(&one);
    house.follows(&one).await;
    let ending = shelf.take().ending.unwrap();
    assert_eq!(ending.code, CloseCode::Draining);
    house.manager.remove(agent(1), session(1));
    let outcome = house.lifecycle.shutdown(PATIENCE).await;
    assert!(outcome.aborted.is_empty(), "{outcome:?}");
    finish(&folder, one, other).await;
}

#[tokio::test]
async fn a_backend_that_drains_keeps_its_lease_and_follows_what_becomes_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, database)) = two_backends(&folder).await else {
        return;
    };
    let hand = Hand { database };
    let house = House::of(&one);
    let shelf = house.enter(1, 1);
    house.keep(&one);
    house.lifecycle.stop();
    let own = instance(&one);
    let told = async |what: &str, sessions: u64| {
        eventually(what, PATIENCE, async || {
            let listed = other.store.list_instances().await.unwrap();
            let found = listed.into_iter().find(|it| it.id == own)?;
            (found.draining && found.sessions == sessions).then_some(found)
        })
        .await
    };
    told("it says that it drains", 1).await;
    // As if that went on for longer than a lease: it is renewed all the while, and nobody ends its sessions.
    hand.age(instance(&other));
    hand.set(own, "lease_until = clock_timestamp() + interval '1 second'");
    house.enter(2, 1);
    let found = told("it says what it has left", 2).await;
    assert!(found.lease > Duration::from_secs(10), "{found:?}");
    let ended = other.store.end_dead_instances(&other.tenant, at(1)).await;
    assert_eq!(ended.unwrap().instances, 0);
    // Somebody took it for dead all the same, as when it stands still: its sessions are not its own any more.
    lose_lease(&hand, &one, 1).await;
    house.follows(&one).await;
    assert_eq!(shelf.take().ending.unwrap().code, CloseCode::Draining);
    for n in [1, 2] {
        house.manager.remove(agent(n), session(n));
    }
    let outcome = house.lifecycle.shutdown(PATIENCE).await;
    assert!(outcome.aborted.is_empty(), "{outcome:?}");
    finish(&folder, one, other).await;
}

#[tokio::test]
async fn a_server_whose_clock_is_set_back_does_not_keep_the_sessions_of_the_dead() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, database)) = two_backends(&folder).await else {
        return;
    };
    let hand = Hand { database };
    one.gateway(1).await;
    let session = one.session(1, 1).await;
    let (dead, own) = (instance(&one), instance(&other));
    hand.age(own);
    // Nobody gives the lease of the dead one back, and all rows are an hour ahead of the clock.
    hand.stop_renewals();
    for instance in [dead, own] {
        hand.set(
            instance,
            "since = since + interval '1 hour', lease_until = lease_until + interval '1 hour'",
        );
    }
    let end = async || {
        let ended = other.store.end_dead_instances(&other.tenant, at(40));
        ended.await.unwrap()
    };
    assert_eq!(
        end().await.instances,
        0,
        "its own lease says no more than the other's"
    );
    let asked = async || {
        let newcomer = other.hello(1, 2, 0).session_id;
        let epoch = session.holder.epoch;
        let asked = other
            .store
            .ask_owner(&other.tenant, agent(1), epoch, newcomer, at(40));
        asked.await.unwrap()
    };
    assert_eq!(asked().await, Owner::Unsure);
    hand.says(&format!(
        "CREATE FUNCTION stays_dead() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF NEW.ended OR NEW.instance <> '{dead}' THEN RETURN NEW; END IF; RAISE EXCEPTION 'it is dead'; END $$; \
         CREATE TRIGGER stays_dead BEFORE UPDATE ON instances FOR EACH ROW EXECUTE FUNCTION stays_dead()"
    ));
    hand.go_on();
    // Whoever lives renews its lease by the clock as it is now, and has it from then on.
    let renewed = format!(
        "SELECT count(*) FROM instances WHERE instance = '{own}' AND since <= clock_timestamp() \
         AND lease_until < clock_timestamp() + interval '1 minute'"
    );
    other.store.note_load(InstanceLoad {
        draining: true,
        ..InstanceLoad::default()
    });
    eventually("its lease is renewed", PATIENCE, async || {
        (hand.says(&renewed) == "1").then_some(())
    })
    .await;
    eventually("the dead one is no neighbour", PATIENCE, async || {
        other.store.neighbours().borrow().is_empty().then_some(())
    })
    .await;
    assert_eq!(end().await.instances, 0, "it has not had it for long");
    assert_eq!(asked().await, Owner::Unsure);
    hand.age(own);
    assert_eq!(asked().await, Owner::Gone);
    assert_eq!(end().await.given_up.len(), 1);
    assert_eq!(end().await.instances, 1);
    assert_eq!(other.gateway_now(1).await.session, None);
    hand.says("DROP TRIGGER stays_dead ON instances; DROP FUNCTION stays_dead");
    finish(&folder, one, other).await;
}
