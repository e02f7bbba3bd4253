//! Sessions that are entered, superseded, probed and drained.

use std::collections::BTreeSet;

use futures_util::FutureExt;
use uuid::Uuid;
use viworks_common::id::Tenant;
use viworks_runtime::metrics::Metrics;

use super::*;

fn manager() -> Manager {
    let metrics = Metrics::new("test", "0", Timestamp::from_unix_micros(0));
    Manager::new(Doors::new(10), BackendMetrics::register(&metrics))
}

fn identity() -> Identity {
    Identity {
        tenant: Tenant::default_tenant(),
        agent_id: AgentId::from_uuid(Uuid::from_u128(1)),
    }
}

fn run(n: u128) -> AgentRunId {
    AgentRunId::from_uuid(Uuid::from_u128(n))
}

fn session(n: u128) -> SessionId {
    SessionId::from_uuid(Uuid::from_u128(n))
}

fn shelf(epoch: u64) -> Arc<Shelf> {
    let place = Place { epoch, run: run(1) };
    Arc::new(Shelf::new(place, 1, BTreeSet::new(), true))
}

#[test]
fn a_newer_session_closes_the_older_one_and_a_late_removal_does_not_touch_it() {
    let manager = manager();
    let (older, newer) = (shelf(1), shelf(2));
    assert!(manager.register(&identity(), session(1), &older, None));
    assert!(manager.register(&identity(), session(2), &newer, None));
    let ending = older.take().ending.unwrap();
    assert_eq!(ending.code, CloseCode::Superseded);
    assert!(!manager.register(&identity(), session(3), &shelf(1), None));
    manager.remove(identity().agent_id, session(1));
    assert_eq!(manager.len(), 1);
    assert_eq!(newer.take().ending, None);
    manager.remove(identity().agent_id, session(2));
    assert!(manager.is_empty());
}

#[tokio::test]
async fn no_nudge_is_lost_while_a_session_is_being_entered() {
    let manager = manager();
    let agent = identity().agent_id;
    let before = manager.missed_nudges();
    assert!(!manager.nudge(agent), "it is not connected yet");
    let (older, newer) = (shelf(1), shelf(2));
    assert!(manager.register(&identity(), session(1), &older, None));
    assert_ne!(manager.missed_nudges(), before);
    assert!(older.changed().now_or_never().is_none());
    let before = manager.missed_nudges();
    assert!(manager.nudge(agent), "the older session hears it");
    assert!(manager.register(&identity(), session(2), &newer, None));
    assert_eq!(manager.missed_nudges(), before);
    assert!(newer.changed().now_or_never().is_some());
    assert!(newer.take().look);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_does_not_answer_a_probe_is_silent() {
    let manager = manager();
    assert_eq!(manager.probe(identity().agent_id, 1).await, None);
    assert!(manager.register(&identity(), session(1), &shelf(1), None));
    let probed = manager.probe(identity().agent_id, 1).await;
    assert_eq!(probed, Some(Probed::Silent));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_said_of_a_session_that_is_not_here() {
    let manager = Arc::new(manager());
    let agent = identity().agent_id;
    assert!(manager.register(&identity(), session(2), &shelf(2), None));
    for epoch in [1, 3] {
        assert_eq!(manager.probe(agent, epoch).await, None);
    }
    // The database may have it, and it is not entered yet.
    let confirming = manager.confirming(agent, 3);
    assert_eq!(manager.probe(agent, 3).await, Some(Probed::Unreachable));
    drop(confirming);
    assert_eq!(manager.probe(agent, 3).await, None);
}

#[test]
fn a_session_is_missing_that_is_neither_here_nor_about_to_be() {
    let manager = Arc::new(manager());
    let agent = identity().agent_id;
    assert!(manager.register(&identity(), session(2), &shelf(2), None));
    let confirming = manager.confirming(agent, 3);
    let stored = || vec![(agent, 1), (agent, 2), (agent, 3)];
    assert_eq!(manager.missing(stored()), BTreeSet::from([(agent, 1)]));
    drop(confirming);
    let missing = BTreeSet::from([(agent, 1), (agent, 3)]);
    assert_eq!(manager.missing(stored()), missing);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_answers_a_probe_is_alive() {
    let manager = manager();
    let shelf = shelf(1);
    assert!(manager.register(&identity(), session(1), &shelf, None));
    let answers = async {
        shelf.changed().await;
        let Some(Order::Probe(answered)) = shelf.take().orders.pop_front() else {
            panic!("a probe was ordered");
        };
        answered.send(()).unwrap();
    };
    let (probed, ()) = tokio::join!(manager.probe(identity().agent_id, 1), answers);
    assert_eq!(probed, Some(Probed::Alive));
}

#[test]
fn a_later_key_is_ordered_of_a_session_and_otherwise_counted_as_missed() {
    let manager = manager();
    let shelf = shelf(1);
    manager.rekey(identity().agent_id, 2);
    assert_eq!(manager.missed_keys(), 1);
    assert!(manager.register(&identity(), session(1), &shelf, None));
    manager.rekey(identity().agent_id, 2);
    assert_eq!(manager.missed_keys(), 1);
    assert!(matches!(
        shelf.take().orders.pop_front(),
        Some(Order::Rekey(2))
    ));
}

#[test]
fn gateways_of_a_lost_lease_are_told_when_to_come_back() {
    let manager = manager();
    let shelves = [1, 2].map(|number| {
        let shelf = shelf(1);
        let identity = Identity {
            agent_id: AgentId::from_uuid(Uuid::from_u128(number)),
            ..identity()
        };
        assert!(manager.register(&identity, session(number), &shelf, None));
        shelf
    });
    manager.go_on_as(Some(InstanceId::from_uuid(Uuid::from_u128(1))));
    let told = shelves.map(|shelf| shelf.take().ending.unwrap().after);
    assert_eq!(told, [Duration::ZERO, Duration::from_millis(10)].map(Some));
}

#[test]
fn the_certificates_that_end_soon_are_known_until_they_are_renewed() {
    let manager = manager();
    let at = |days: i64| Timestamp::from_unix_micros(days * 24 * 3_600 * 1_000_000);
    let agent = |n| AgentId::from_uuid(Uuid::from_u128(n));
    let name = |n: u128| format!("gw-{n}").parse::<GatewayName>().unwrap();
    let note = |n: u128, from, to| manager.note_certificate(agent(n), &name(n), at(from), at(to));
    note(1, 0, 100);
    note(2, 0, 90);
    note(3, 0, 300);
    assert!(manager.ending_certificates(at(50)).is_empty());
    let ending = [(name(2), at(90)), (name(1), at(100))];
    assert_eq!(manager.ending_certificates(at(80)), ending);
    note(2, 79, 200);
    assert_eq!(manager.ending_certificates(at(80)), ending[1..]);
    assert_eq!(manager.name_of(agent(2)), "gw-2");
    assert_eq!(manager.name_of(agent(4)), agent(4).to_string());
    manager.revoked(agent(1));
    assert!(manager.ending_certificates(at(80)).is_empty());
}

#[test]
fn of_the_hellos_without_a_key_one_a_minute_is_recorded_with_the_number_of_the_others() {
    let manager = manager();
    let at = |seconds| Monotonic::from_duration(Duration::from_secs(seconds));
    let agent = identity().agent_id;
    assert_eq!(manager.records(agent, "x", at(0)), Some(0));
    assert_eq!(manager.records(agent, "x", at(1)), None);
    assert_eq!(manager.records(agent, "x", at(59)), None);
    let other = AgentId::from_uuid(Uuid::from_u128(2));
    assert_eq!(manager.records(other, "x", at(59)), Some(0));
    assert_eq!(manager.records(agent, "x", at(60)), Some(2));
}

#[test]
fn of_the_lines_about_a_gateway_the_log_takes_so_many_and_the_number_of_the_others() {
    let manager = manager();
    let at = |seconds| Monotonic::from_duration(Duration::from_secs(seconds));
    let agent = identity().agent_id;
    let taken = (0..1_000).filter(|_| manager.may_log(agent, at(0)) == Some(0));
    assert_eq!(taken.count(), 60);
    assert_eq!(manager.may_log(agent, at(10)), Some(940));
    assert_eq!(manager.may_log(agent, at(10)), None);
}

#[test]
fn draining_gives_every_gateway_its_own_delay() {
    let manager = manager();
    let shelves = [1, 2].map(|number| {
        let shelf = shelf(1);
        let identity = Identity {
            agent_id: AgentId::from_uuid(Uuid::from_u128(number)),
            ..identity()
        };
        assert!(manager.register(&identity, session(number), &shelf, None));
        shelf
    });
    manager.drain_all();
    let delays = shelves.map(|shelf| match shelf.take().orders.pop_front() {
        Some(Order::Drain(after)) => after.as_millis(),
        other => panic!("a drain was ordered: {other:?}"),
    });
    assert_eq!(delays, [0, 10]);
}

fn gateway(number: usize) -> AgentId {
    AgentId::from_uuid(Uuid::from_u128(u128::try_from(number).unwrap()))
}

#[test]
fn the_certificates_of_so_many_gateways_are_remembered_and_no_more() {
    let manager = manager();
    let note = |number: usize, name: &str| {
        let (from, to) = (
            Timestamp::from_unix_micros(0),
            Timestamp::from_unix_micros(1),
        );
        manager.note_certificate(gateway(number), &name.parse().unwrap(), from, to);
        manager.name_of(gateway(number))
    };
    for number in 0..CERTIFICATES_MAX {
        note(number, "gw");
    }
    let beyond = gateway(CERTIFICATES_MAX).to_string();
    assert_eq!(note(CERTIFICATES_MAX, "gw"), beyond);
    assert_eq!(note(0, "renewed"), "renewed", "it is one of them");
    manager.revoked(gateway(1));
    assert_eq!(note(CERTIFICATES_MAX, "gw"), "gw");
}

#[test]
fn of_too_many_gateways_in_a_minute_nothing_is_recorded_that_costs_its_sender_nothing() {
    let manager = manager();
    let records = |number, seconds| {
        let now = Monotonic::from_duration(Duration::from_secs(seconds));
        manager.records(gateway(number), "hello", now)
    };
    for number in 0..IDENTITIES_MAX {
        assert_eq!(records(number, 0), Some(0));
    }
    assert_eq!(records(IDENTITIES_MAX, 59), None);
    assert_eq!(records(IDENTITIES_MAX, 60), Some(0));
}
