//! Commands that are offered in the transaction that submits them.

use viworks_backend_agent::data::{
    Actor, CompleteOutcome, LeasedCommand, NewRun, Offered, Place, Remembered, Run, Submission,
};
use viworks_common::code::CloseCode;
use viworks_common::command::{CommandState, OutcomeState, digest};
use viworks_common::limits::ORDER_WINDOW;

use super::bed::{Bed, Session, agent, at, outcome};

/// A run for gateway 1 whose session has kept room.
fn with_room(bed: &Bed, session: &Session, idempotent: bool) -> NewRun {
    let mut new = bed.new_run(&[1], idempotent);
    new.targets[0].place = Some(Place {
        epoch: session.holder.epoch,
        run: session.holder.agent_run_id,
    });
    new
}

async fn submitted(bed: &Bed, new: NewRun) -> (Run, Vec<Offered>) {
    match bed.store.submit_run(&bed.tenant, new, at(10)).await {
        Ok(Submission::Submitted { run, offered }) => (run, offered),
        other => panic!("not submitted: {other:?}"),
    }
}

pub(crate) async fn a_command_is_offered_at_its_birth_to_the_session_that_kept_room(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    for (order, idempotent) in [(1, true), (2, false)] {
        let new = with_room(bed, &session, idempotent);
        let (command_id, name, arguments) = (
            new.targets[0].command_id,
            new.name.clone(),
            new.arguments.clone(),
        );
        let (run, offered) = submitted(bed, new.clone()).await;
        let expected = LeasedCommand {
            command_id,
            run_id: new.run_id,
            order,
            digest: digest(&name, &arguments),
            name,
            arguments,
            attempt: 1,
            traceparent: None,
            deadline: new.deadline,
            permitted: idempotent,
            timeout_ms: None,
        };
        let offer = Offered {
            agent_id: agent(1),
            epoch: session.holder.epoch,
            command: expected,
        };
        assert_eq!(offered, [offer]);
        let state = if idempotent {
            CommandState::Released
        } else {
            CommandState::Dispatched
        };
        assert_eq!(run.states, [(state, 1)].into());
        let stored = bed.command_now(command_id).await;
        assert_eq!((stored.state, stored.attempt), (state, 1));
        assert_eq!(stored.released_at, idempotent.then_some(at(10)));
        assert_eq!(
            bed.store.run(&bed.tenant, run.run_id).await.unwrap(),
            Some(run),
            "the answer says what is stored"
        );
    }
    assert!(bed.lease(&session).await.is_empty(), "none waits");
}

pub(crate) async fn a_birth_for_a_session_that_is_gone_waits(bed: &Bed) {
    bed.gateway(1).await;
    let older = bed.session(1, 1).await;
    let newer = bed.session(1, 1).await;
    let (run, offered) = submitted(bed, with_room(bed, &older, true)).await;
    assert!(offered.is_empty());
    assert_eq!(run.states, [(CommandState::Queued, 1)].into());
    assert_eq!(bed.lease(&newer).await.len(), 1);
    let epoch = newer.holder.epoch;
    let ended = bed
        .store
        .end_session(&bed.tenant, agent(1), epoch, CloseCode::Draining, at(11));
    assert!(ended.await.unwrap());
    let (_run, offered) = submitted(bed, with_room(bed, &newer, true)).await;
    assert!(offered.is_empty());
}

pub(crate) async fn a_birth_passes_by_nothing_that_waits(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let waiting = bed.command(1, true).await;
    let new = with_room(bed, &session, true);
    let second = new.targets[0].command_id;
    let (_run, offered) = submitted(bed, new).await;
    assert!(offered.is_empty());
    let leased = bed.lease(&session).await;
    let order: Vec<_> = leased.iter().map(|leased| leased.command_id).collect();
    assert_eq!(order, [waiting, second]);
}

pub(crate) async fn a_birth_beyond_the_order_window_waits(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    for order in 1..=ORDER_WINDOW + 1 {
        let mut new = with_room(bed, &session, true);
        new.limits.per_gateway = 2 * ORDER_WINDOW;
        new.limits.global = 2 * ORDER_WINDOW;
        let (_run, offered) = submitted(bed, new).await;
        assert_eq!(offered.len(), usize::from(order <= ORDER_WINDOW), "{order}");
    }
}

pub(crate) async fn what_was_offered_at_its_birth_and_never_arrived_is_offered_again(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let (once, again) = (
        with_room(bed, &session, false),
        with_room(bed, &session, true),
    );
    let ids = [once.targets[0].command_id, again.targets[0].command_id];
    submitted(bed, once).await;
    submitted(bed, again).await;
    let next = bed.session_with(1, 1, &[]).await;
    let leased = bed.lease(&next).await;
    let seen: Vec<_> = leased
        .iter()
        .map(|it| (it.command_id, it.attempt))
        .collect();
    assert_eq!(seen, [(ids[0], 2), (ids[1], 2)]);
}

pub(crate) async fn a_gateway_that_is_not_what_was_remembered_gets_nothing(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let name = bed.gateway_now(1).await.name;
    let (epoch, digest) = (session.holder.epoch, "00".repeat(32));
    let report = |seconds| {
        let tenant = bed.tenant.clone();
        let digest = digest.clone();
        async move {
            let saved = bed.store.save_catalogue(
                &tenant,
                agent(1),
                epoch,
                &digest,
                Vec::new(),
                at(seconds),
            );
            saved.await.unwrap();
        }
    };
    let remembering = |name, seconds| {
        let mut new = with_room(bed, &session, true);
        new.targets[0].remembered = Some(Remembered {
            name,
            reported_at: at(seconds),
        });
        new
    };
    let answer = |new| async {
        bed.store
            .submit_run(&bed.tenant, new, at(10))
            .await
            .unwrap()
    };
    // It has never reported a catalogue.
    assert_eq!(
        answer(remembering(name.clone(), 1)).await,
        Submission::Outdated
    );
    report(1).await;
    let renamed = "another".parse().unwrap();
    assert_eq!(answer(remembering(renamed, 1)).await, Submission::Outdated);
    // The same digest again is another report.
    report(2).await;
    assert_eq!(
        answer(remembering(name.clone(), 1)).await,
        Submission::Outdated
    );
    assert!(bed.lease(&session).await.is_empty());
    assert!(
        bed.store
            .list_runs(&bed.tenant, viworks_backend_agent::data::Page::first(10))
            .await
            .unwrap()
            .items
            .is_empty()
    );
    let accepted = answer(remembering(name.clone(), 2)).await;
    assert!(matches!(accepted, Submission::Submitted { offered, .. } if offered.len() == 1));
    // Whoever asks again is told which one is gone.
    let actor = Actor::local("test");
    let revoked = bed
        .store
        .revoke_gateway(&bed.tenant, agent(1), None, &actor, at(11));
    revoked.await.unwrap();
    assert_eq!(answer(remembering(name, 2)).await, Submission::Outdated);
}

pub(crate) async fn the_last_result_of_a_run_answers_with_the_run_as_it_ended(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let new = with_room(bed, &session, true);
    let (run_id, command_id) = (new.run_id, new.targets[0].command_id);
    submitted(bed, new).await;
    let complete = || async {
        bed.store
            .complete_command(
                &bed.tenant,
                &session.holder,
                command_id,
                outcome(OutcomeState::Succeeded),
                at(30),
            )
            .await
            .unwrap()
    };
    let CompleteOutcome::Completed { run: Some(run), .. } = complete().await else {
        panic!("it ends the run");
    };
    assert!(run.is_finished());
    assert_eq!(
        bed.store.run(&bed.tenant, run_id).await.unwrap(),
        Some(*run)
    );
    assert!(matches!(complete().await, CompleteOutcome::Repeated { .. }));
}
