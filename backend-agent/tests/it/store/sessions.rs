//! Sessions: who is admitted, which one of a gateway counts, and what ends with those that do not.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use viworks_backend_agent::data::{
    Actor, AdmitOutcome, ConfirmOutcome, HeartbeatFigures, Page, SessionRecord, SessionTouch,
    StoreError,
};
use viworks_common::claims::Probed;
use viworks_common::code::CloseCode;
use viworks_common::command::CommandState;
use viworks_common::limits::COUNTER_MAX;
use viworks_common::telemetry::Position;

use super::bed::{Bed, LEASE, agent, at, process};
use super::records::bearer;

pub(crate) async fn an_unknown_gateway_is_not_admitted(bed: &Bed) {
    assert_eq!(bed.admit(bed.hello(1, 1, 0)).await, AdmitOutcome::Unknown);
}

pub(crate) async fn the_first_session_gets_epoch_one(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    assert!(
        session.admitted.presented == 0
            && session.admitted.issued == 1
            && !session.admitted.rolled_back
    );
    let gateway = bed.gateway_now(1).await;
    assert!(
        gateway.confirmed == 1
            && gateway.issued == 1
            && gateway.agent_version.as_deref() == Some("1.2.3")
    );
    let live = gateway.session.unwrap();
    assert!(
        live.session_id == session.session_id
            && live.epoch == 1
            && live.peer_address == "192.0.2.1:4000"
    );
}

pub(crate) async fn of_two_concurrent_confirms_one_wins(bed: &Bed) {
    bed.gateway(1).await;
    let (left, right) = (bed.hello(1, 1, 0), bed.hello(1, 2, 0));
    let (admitted_left, admitted_right) =
        futures_util::join!(bed.admitted(left.clone()), bed.admitted(right.clone()));
    assert_ne!(admitted_left.issued, admitted_right.issued);
    let (first, second) = futures_util::join!(
        bed.confirm(bed.confirm_of(&left, &admitted_left)),
        bed.confirm(bed.confirm_of(&right, &admitted_right)),
    );
    let won = |outcome: &ConfirmOutcome| matches!(outcome, ConfirmOutcome::Confirmed(_));
    assert!(won(&first) != won(&second), "{first:?} {second:?}");
}

pub(crate) async fn lost_welcomes_never_look_like_a_fork(bed: &Bed) {
    bed.gateway(1).await;
    for run in 1..=5 {
        assert_eq!(bed.admitted(bed.hello(1, run, 0)).await.issued, run);
    }
    // The third WELCOME arrived after all, and its CONFIRM was lost.
    assert_eq!(bed.admitted(bed.hello(1, 6, 3)).await.presented, 3);
    assert!(
        bed.store
            .list_forks(&bed.tenant, agent(1))
            .await
            .unwrap()
            .is_empty()
    );
}

pub(crate) async fn a_left_behind_copy_is_a_fork_with_both_parties_recorded(bed: &Bed) {
    bed.gateway(1).await;
    let live = bed.session(1, 1).await;
    bed.session(1, 1).await;
    let mut copy = bed.hello(1, 9, live.admitted.issued);
    copy.fingerprint = [9; 32];
    assert_eq!(bed.admit(copy.clone()).await, AdmitOutcome::Fork);
    let forks = bed.store.list_forks(&bed.tenant, agent(1)).await.unwrap();
    assert!(forks.len() == 1 && forks[0].times == 1 && forks[0].at == at(1));
    assert!(
        forks[0].refused.agent_run_id == copy.agent_run_id
            && forks[0].refused.fingerprint == [9; 32]
    );
    let accepted = forks[0].accepted.clone().unwrap();
    assert!(
        accepted.epoch == 2
            && accepted.agent_run_id == live.holder.agent_run_id
            && accepted.fingerprint == [3; 32]
    );
    assert!(
        bed.gateway_now(1).await.session.is_some()
            && bed.audited().await.contains(&"identity.fork".to_owned())
    );
}

pub(crate) async fn a_fork_that_keeps_knocking_is_one_row(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    for _ in 0..3 {
        assert_eq!(bed.admit(bed.hello(1, 9, 0)).await, AdmitOutcome::Fork);
    }
    bed.store
        .settle_probed(&bed.tenant, &bed.hello(1, 8, 1), 1, Probed::Alive, at(3))
        .await
        .unwrap();
    let forks = bed.store.list_forks(&bed.tenant, agent(1)).await.unwrap();
    assert_eq!(
        forks.iter().map(|fork| fork.times).collect::<Vec<_>>(),
        [1, 3]
    );
    assert_eq!(bed.gateway_now(1).await.forks, 2);
}

pub(crate) async fn an_overtaken_message_of_the_same_process_is_late(bed: &Bed) {
    bed.gateway(1).await;
    bed.session(1, 1).await;
    assert_eq!(bed.admit(bed.hello(1, 1, 0)).await, AdmitOutcome::Late);
    assert!(
        bed.store
            .list_forks(&bed.tenant, agent(1))
            .await
            .unwrap()
            .is_empty()
    );
}

pub(crate) async fn a_wrong_token_is_refused_and_audited(bed: &Bed) {
    bed.gateway(1).await;
    let mut hello = bed.hello(1, 1, 0);
    hello.token_valid = false;
    assert_eq!(bed.admit(hello).await, AdmitOutcome::BadToken);
    assert_eq!(bed.gateway_now(1).await.issued, 0);
    assert_eq!(bed.audited().await.last().unwrap(), "session.open");
}

pub(crate) async fn a_stale_key_generation_is_refused(bed: &Bed) {
    bed.gateway(1).await;
    let mut rotated = bed.hello(1, 1, 0);
    rotated.key_generation = 2;
    bed.open(rotated).await;
    assert_eq!(bed.admit(bed.hello(1, 1, 1)).await, AdmitOutcome::StaleKey);
}

pub(crate) async fn a_newer_session_fences_the_older(bed: &Bed) {
    bed.gateway(1).await;
    let older = bed.session(1, 1).await;
    let hello = bed.hello(1, 1, older.admitted.issued);
    let admitted = bed.admitted(hello.clone()).await;
    // Before CONFIRM nothing has changed for the older session.
    bed.store
        .lease_commands(&bed.tenant, &older.holder, LEASE, at(3))
        .await
        .unwrap();
    let ConfirmOutcome::Confirmed(confirmed) = bed.confirm(bed.confirm_of(&hello, &admitted)).await
    else {
        panic!("superseded");
    };
    assert_eq!(confirmed.fenced, Some(older.session_id));
    let fenced = bed
        .store
        .lease_commands(&bed.tenant, &older.holder, LEASE, at(3))
        .await;
    assert!(matches!(fenced, Err(StoreError::Fenced)));
    let sessions = bed
        .store
        .list_sessions(&bed.tenant, agent(1), 10)
        .await
        .unwrap();
    assert!(sessions[0].ended_at.is_none() && sessions[1].code == Some(CloseCode::Superseded));
}

pub(crate) async fn a_late_close_does_not_touch_the_newer_session(bed: &Bed) {
    bed.gateway(1).await;
    let older = bed.session(1, 1).await;
    let newer = bed.session(1, 1).await;
    let end = async |epoch| {
        bed.store
            .end_session(
                &bed.tenant,
                agent(1),
                epoch,
                CloseCode::HeartbeatTimeout,
                at(9),
            )
            .await
            .unwrap()
    };
    assert!(!end(older.holder.epoch).await);
    assert_eq!(
        bed.gateway_now(1).await.session.unwrap().session_id,
        newer.session_id
    );
    assert!(end(newer.holder.epoch).await);
    assert_eq!(bed.gateway_now(1).await.session, None);
    let sessions = bed
        .store
        .list_sessions(&bed.tenant, agent(1), 10)
        .await
        .unwrap();
    let codes: Vec<_> = sessions.iter().map(|session| session.code).collect();
    assert_eq!(
        codes,
        [
            Some(CloseCode::HeartbeatTimeout),
            Some(CloseCode::Superseded)
        ]
    );
}

pub(crate) async fn revocation_fences_at_once_and_ends_every_command(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let released = bed.released(1, &session).await;
    let queued = bed.command(1, false).await;
    let actor = Actor::local("test");
    let revoked = bed
        .store
        .revoke_gateway(&bed.tenant, agent(1), Some("stolen"), &actor, at(40))
        .await
        .unwrap()
        .unwrap();
    assert!(!revoked.already && revoked.live_session == Some(session.session_id));
    let ended = revoked.ended.iter();
    let ended: Vec<_> = ended
        .map(|ended| (ended.command_id, ended.state, ended.run_finished))
        .collect();
    assert_eq!(
        ended,
        [
            (released, CommandState::Indeterminate, true),
            (queued, CommandState::Cancelled, true)
        ]
    );
    let fenced = bed
        .store
        .lease_commands(&bed.tenant, &session.holder, LEASE, at(41))
        .await;
    assert!(matches!(fenced, Err(StoreError::Fenced)));
    assert_eq!(bed.state(released).await, CommandState::Indeterminate);
    assert_eq!(bed.state(queued).await, CommandState::Cancelled);
    let gateway = bed.gateway_now(1).await;
    assert!(
        gateway.open_commands == 0
            && gateway.session.is_none()
            && gateway.revoked_at == Some(at(40))
    );
    assert_eq!(
        bed.admit(bed.hello(1, 1, gateway.confirmed)).await,
        AdmitOutcome::Revoked
    );
    assert!(
        bed.store
            .revoke_gateway(&bed.tenant, agent(1), Some("again"), &actor, at(50))
            .await
            .unwrap()
            .unwrap()
            .already
    );
    let of = async |n| bed.store.revocation(&bed.tenant, agent(n)).await.unwrap();
    let known = of(1).await.unwrap();
    assert_eq!(known.by, actor.to_string());
    assert_eq!(known.by_name, None, "it was no key");
    assert_eq!(known.reason.as_deref(), Some("stolen"));
    bed.gateway(2).await;
    assert_eq!(of(2).await, None);
    let key = bearer(bed).await;
    bed.store
        .revoke_gateway(&bed.tenant, agent(2), None, &key, at(50))
        .await
        .unwrap();
    assert_eq!(of(2).await.unwrap().by_name.as_deref(), Some("ci"));
    assert_eq!(
        bed.store
            .revoke_gateway(&bed.tenant, agent(9), None, &actor, at(50))
            .await
            .unwrap(),
        None
    );
}

/// Of stores that are no instance: what they open, nobody has.
pub(crate) async fn abandoned_sessions_are_ended(bed: &Bed, many: bool) {
    if many {
        whatever_many_sessions_left_open_is_ended(bed).await;
    } else {
        an_abandoned_session_is_ended(bed).await;
    }
}

async fn an_abandoned_session_is_ended(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let command_id = bed.command(1, false).await;
    bed.lease(&session).await;
    assert_eq!(
        bed.store
            .end_abandoned_sessions(&bed.tenant, None, at(50))
            .await
            .unwrap(),
        1
    );
    assert_eq!(bed.gateway_now(1).await.session, None);
    assert_eq!(bed.state(command_id).await, CommandState::Queued);
    assert_eq!(
        bed.store
            .end_abandoned_sessions(&bed.tenant, None, at(51))
            .await
            .unwrap(),
        0
    );
}

pub(crate) async fn heartbeats_of_a_fenced_session_are_dropped(bed: &Bed) {
    bed.gateway(1).await;
    let older = bed.session(1, 1).await;
    let newer = bed.session(1, 1).await;
    let touch = |epoch, spool_records| SessionTouch {
        agent_id: agent(1),
        epoch,
        figures: HeartbeatFigures {
            spool_records,
            clock_skew_ms: Some(-7),
            ..HeartbeatFigures::default()
        },
    };
    let touches = vec![touch(newer.holder.epoch, 5), touch(older.holder.epoch, 99)];
    bed.store
        .touch_sessions(&bed.tenant, touches, at(60))
        .await
        .unwrap();
    let gateway = bed.gateway_now(1).await;
    let figures = gateway.session.unwrap().figures;
    assert!(
        figures.spool_records == 5
            && figures.clock_skew_ms == Some(-7)
            && gateway.last_seen_at == Some(at(60))
    );
}

pub(crate) async fn a_rolled_back_database_raises_its_counters(bed: &Bed) {
    bed.gateway(1).await;
    let forgotten = bed.command(1, false).await;
    let journalled = bed.command(1, false).await;
    let repeatable = bed.command(1, true).await;
    let mut hello = bed.hello(1, 1, 40);
    hello.highest_order = 90;
    hello.low_water = 80;
    hello.unreported = vec![journalled];
    let session = bed.open(hello).await;
    assert!(session.admitted.rolled_back && session.admitted.issued == 41);
    assert_eq!(bed.state(forgotten).await, CommandState::Indeterminate);
    assert_eq!(bed.state(journalled).await, CommandState::Queued);
    assert_eq!(bed.state(repeatable).await, CommandState::Queued);
    assert_eq!(bed.command_now(bed.command(1, false).await).await.order, 91);
    assert!(
        bed.audited()
            .await
            .contains(&"database.rolled_back".to_owned())
    );
}

pub(crate) async fn a_gateway_that_claims_every_number_gets_orders_that_it_takes(bed: &Bed) {
    bed.gateway(1).await;
    let mut hello = bed.hello(1, 1, 1);
    hello.highest_order = COUNTER_MAX;
    hello.low_water = COUNTER_MAX;
    bed.open(hello).await;
    let command = bed.command(1, true).await;
    assert!(bed.command_now(command).await.order < COUNTER_MAX);
}

pub(crate) async fn a_hello_learns_about_the_live_session(bed: &Bed) {
    bed.gateway(1).await;
    let first = bed.session(1, 1).await;
    assert_eq!(first.admitted.live_session, None);
    let same = bed.admitted(bed.hello(1, 1, 1)).await.live_session.unwrap();
    assert!(same.session_id == first.session_id && same.same_agent_run);
    let other = bed.admitted(bed.hello(1, 2, 1)).await.live_session.unwrap();
    assert!(other.epoch == first.holder.epoch && !other.same_agent_run);
}

pub(crate) async fn gateways_that_come_back_together_each_get_their_own_answer(bed: &Bed) {
    const GATEWAYS: u64 = 12;
    let mut before = Vec::new();
    for n in 1..=GATEWAYS {
        bed.gateway(n).await;
        before.push(bed.session(n, n).await);
    }
    // Every second one has a command that was offered and not permitted.
    let mut offered = Vec::new();
    for session in before.iter().skip(1).step_by(2) {
        let n = u64::try_from(offered.len()).unwrap() * 2 + 2;
        offered.push((n, bed.command(n, false).await));
        bed.lease(session).await;
    }
    let spool_epoch = process(500);
    let mut hellos: Vec<_> = (1..=GATEWAYS).map(|n| bed.hello(n, 100 + n, 1)).collect();
    for (n, hello) in (1_u64..).zip(&mut hellos) {
        hello.labels = [("number".to_owned(), n.to_string())].into();
        hello.agent_version = format!("2.0.{n}");
        hello.telemetry = vec![Position {
            spool_epoch,
            seq: n - 1,
        }];
    }
    // The first one twice, by two processes; strangers in between.
    hellos.insert(3, bed.hello(1, 200, 1));
    hellos.insert(5, bed.hello(99, 1, 0));
    let mut guess = bed.hello(2, 201, 1);
    guess.token_valid = false;
    hellos.insert(7, guess);
    let answers = join_all(hellos.iter().map(|hello| bed.admit(hello.clone()))).await;
    assert_eq!(answers[5], AdmitOutcome::Unknown);
    assert_eq!(answers[7], AdmitOutcome::BadToken);
    let mut admitted = Vec::new();
    for (hello, answer) in hellos.iter().zip(&answers) {
        if let AdmitOutcome::Accepted(answer) = answer {
            admitted.push((hello, answer));
        }
    }
    assert_eq!(admitted.len(), 13);
    for (n, (hello, answer)) in (1_u64..).zip(
        admitted
            .iter()
            .filter(|(hello, _)| !hello.labels.is_empty()),
    ) {
        assert_eq!(hello.agent_id, agent(n));
        let (presented, issued) = (answer.presented, answer.issued);
        assert!(presented == 1 && issued >= 2, "{presented} {issued}");
        assert_eq!(
            answer.committed, hello.telemetry,
            "what was acknowledged and is gone becomes a gap"
        );
        assert_eq!(answer.rolled_back, n > 1);
        let live = answer.live_session.as_ref().unwrap();
        assert_eq!(live.epoch, 1);
        assert!(!live.same_agent_run);
        let gaps = bed
            .store
            .telemetry_gaps(&bed.tenant, agent(n), Page::first(1_000))
            .await
            .unwrap()
            .items;
        assert_eq!(gaps.len(), usize::from(n > 1));
    }
    let twins: Vec<_> = admitted
        .iter()
        .filter(|(hello, _)| hello.agent_id == agent(1))
        .collect();
    assert_ne!(
        twins[0].1.issued, twins[1].1.issued,
        "no epoch is issued twice"
    );

    let confirmed = join_all(
        admitted
            .iter()
            .map(|(hello, answer)| bed.confirm(bed.confirm_of(hello, answer))),
    )
    .await;
    let of = |n| {
        admitted
            .iter()
            .zip(&confirmed)
            .filter(move |((hello, _), _)| hello.agent_id == agent(n))
            .filter(|(_, outcome)| matches!(outcome, ConfirmOutcome::Confirmed(_)))
            .map(|((hello, answer), _)| (*hello, answer.issued))
            .collect::<Vec<_>>()
    };
    for n in 1..=GATEWAYS {
        let winners = of(n);
        assert_eq!(winners.len(), 1, "gateway {n}");
        let (hello, issued) = winners[0];
        let now = bed.gateway_now(n).await;
        let live = now.session.unwrap();
        assert_eq!(
            (live.session_id, live.epoch, now.confirmed),
            (hello.session_id, issued, issued)
        );
        assert_eq!(now.agent_version.as_ref(), Some(&hello.agent_version));
        let labels: BTreeMap<_, _> = now
            .labels
            .into_iter()
            .map(|label| (label.key, label.value))
            .collect();
        assert_eq!(labels, hello.labels);
        let sessions = bed
            .store
            .list_sessions(&bed.tenant, agent(n), 10)
            .await
            .unwrap();
        let first = sessions.last().unwrap();
        assert_eq!((first.epoch, first.code), (1, Some(CloseCode::Superseded)));
    }
    for ((hello, _), outcome) in admitted.iter().zip(&confirmed) {
        if let ConfirmOutcome::Confirmed(confirmed) = outcome {
            let waits = |(n, _): &(u64, _)| agent(*n) == hello.agent_id;
            assert_eq!(confirmed.waiting, offered.iter().any(waits));
        }
    }
    for (_, command_id) in offered {
        assert_eq!(bed.state(command_id).await, CommandState::Queued);
    }
}

async fn whatever_many_sessions_left_open_is_ended(bed: &Bed) {
    let mut commands = Vec::new();
    for n in 1..=5 {
        bed.gateway(n).await;
        let session = bed.session(n, n).await;
        commands.push((bed.command(n, false).await, CommandState::Queued));
        commands.push((bed.command(n, true).await, CommandState::Released));
        bed.lease(&session).await;
    }
    let ended = bed
        .store
        .end_abandoned_sessions(&bed.tenant, None, at(50))
        .await
        .unwrap();
    assert_eq!(ended, 5);
    for (command_id, state) in commands {
        assert_eq!(bed.state(command_id).await, state);
    }
    for n in 1..=5 {
        let gateway = bed.gateway_now(n).await;
        assert!(gateway.session.is_none() && gateway.last_seen_at == Some(at(50)));
        let sessions = bed
            .store
            .list_sessions(&bed.tenant, agent(n), 10)
            .await
            .unwrap();
        assert_eq!(sessions[0].code, Some(CloseCode::Internal));
    }
}

pub(crate) async fn sessions_that_are_never_confirmed_are_bounded_too(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let hellos = (0..1_100).map(|_| bed.admitted(bed.hello(1, 1, 1)));
    join_all(hellos).await;
    let sessions = bed.store.list_sessions(&bed.tenant, agent(1), 5_000).await;
    let sessions = sessions.unwrap();
    assert!(sessions.len() <= 1_001, "{}", sessions.len());
    let live = |known: &SessionRecord| known.epoch == session.holder.epoch;
    assert!(sessions.iter().any(live), "the live one stays");
    bed.store
        .purge(&bed.tenant, 500, at(40 * 24 * 3_600))
        .await
        .unwrap();
    let sessions = bed.store.list_sessions(&bed.tenant, agent(1), 5_000).await;
    assert!(sessions.unwrap().iter().all(live), "and is all that stays");
}
