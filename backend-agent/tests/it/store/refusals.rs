//! What is recorded of refused sessions, within bounds, and found again.

use viworks_backend_agent::data::{Actor, AdmitOutcome, AuditOutcome, NewAuditRecord, Page};

use super::bed::{Bed, agent, at};
use super::reissues;

pub(crate) async fn refused_hellos_without_end_leave_so_many_audit_records(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    let refused = async || {
        let mut guessed = bed.hello(1, 1, 1);
        guessed.token_valid = false;
        assert_eq!(bed.admit(guessed).await, AdmitOutcome::BadToken);
        let copy = bed.hello(1, 9, 0);
        assert_eq!(bed.admit(copy).await, AdmitOutcome::Fork);
    };
    for _ in 0..150 {
        refused().await;
    }
    let audited = bed.audited().await;
    let of = |action: &str| audited.iter().filter(|it| *it == action).count();
    assert_eq!((of("session.open"), of("identity.fork")), (60, 60));
}

pub(crate) async fn what_a_gateway_reports_leaves_room_in_the_audit_log_for_what_it_does_wrong(
    bed: &Bed,
) {
    let agent_id = bed.gateway(1).await;
    bed.session(1, 1).await;
    let note = async |action: &str| {
        let actor = Actor::gateway(agent_id);
        let record = NewAuditRecord {
            object: actor.to_string(),
            actor,
            action: action.to_owned(),
            outcome: AuditOutcome::Noted,
            detail: serde_json::json!({}),
        };
        let noted = bed.store.note_gateway(&bed.tenant, agent_id, record, at(0));
        noted.await.unwrap()
    };
    while note("gateway.event").await {}
    assert!(note("gateway.hello_replayed").await && note("gateway.wrong_agent_key").await);
    assert!(note("gateway.frame_foreign").await && note("gateway.frame_replayed").await);
    let mut guessed = bed.hello(1, 1, 1);
    guessed.token_valid = false;
    // Nor does one thing that it does wrong hide another.
    for _ in 0..100 {
        assert_eq!(bed.admit(guessed.clone()).await, AdmitOutcome::BadToken);
    }
    assert_eq!(bed.admit(bed.hello(1, 9, 0)).await, AdmitOutcome::Fork);
    let mut raised = bed.hello(1, 1, 1);
    raised.highest_order = 1_000;
    bed.admitted(raised).await;
    let audited = bed.audited().await;
    for action in ["session.open", "identity.fork", "database.rolled_back"] {
        assert!(audited.iter().any(|it| it == action), "{action}");
    }
}

pub(crate) async fn why_a_gateway_was_last_refused_is_found(bed: &Bed) {
    let agent_id = bed.gateway(1).await;
    bed.gateway(2).await;
    bed.session(1, 1).await;
    let last = async |n| {
        let looked = bed.store.last_refusal(&bed.tenant, agent(n)).await.unwrap();
        assert_eq!(looked.among, None, "there are no older records");
        looked.last
    };
    let newest = async || {
        let log = bed.store.list_audit(&bed.tenant, Page::first(1)).await;
        log.unwrap().items[0].at
    };
    assert_eq!(last(1).await, None);
    let mut guessed = bed.hello(1, 1, 1);
    guessed.token_valid = false;
    let address = guessed.peer_address.clone();
    assert_eq!(bed.admit(guessed).await, AdmitOutcome::BadToken);
    let told = last(1).await.unwrap();
    assert_eq!((&*told.why, told.at), ("bad_token", newest().await));
    assert_eq!(told.peer_address, Some(address));
    assert_eq!(bed.admit(bed.hello(1, 9, 0)).await, AdmitOutcome::Fork);
    assert_eq!(last(1).await.unwrap().why, "fork");
    // As the listener records what it refuses itself.
    let note = async |action: &str, outcome, seconds| {
        let actor = Actor::gateway(agent_id);
        let record = NewAuditRecord {
            object: actor.to_string(),
            actor,
            action: action.to_owned(),
            outcome,
            detail: serde_json::json!({ "address": "192.0.2.7:4000", "left_out": 0 }),
        };
        let noted = bed
            .store
            .note_gateway(&bed.tenant, agent_id, record, at(seconds));
        assert!(noted.await.unwrap());
    };
    note("gateway.wrong_agent_key", AuditOutcome::Refused, 70).await;
    let told = last(1).await.unwrap();
    assert_eq!((&*told.why, told.at), ("wrong_agent_key", newest().await));
    assert_eq!(told.peer_address.as_deref(), Some("192.0.2.7:4000"));
    // What it reports, or is refused within a session, is something else.
    note("gateway.event", AuditOutcome::Noted, 71).await;
    note("gateway.frame_replayed", AuditOutcome::Refused, 72).await;
    assert_eq!(last(1).await.unwrap(), told);
    assert_eq!(last(2).await, None);
    // The door refuses a certificate, which hides no refusal of a session, and the other way round.
    let at_door = async |n| {
        let looked = bed.store.last_refusal(&bed.tenant, agent(n)).await.unwrap();
        looked.at_door
    };
    assert_eq!(at_door(1).await, None);
    for n in [1, 2] {
        let refused = reissues::refusal(None, n);
        let noted = bed.store.refuse_reissue(&bed.tenant, refused, at(73));
        assert!(noted.await.unwrap());
        let door = at_door(n).await.unwrap();
        assert_eq!((&*door.why, door.at), ("csr_key", newest().await));
        assert_eq!(door.peer_address.as_deref(), Some("192.0.2.7"));
    }
    assert_eq!(last(1).await.unwrap(), told);
    assert_eq!(last(2).await, None);
}
