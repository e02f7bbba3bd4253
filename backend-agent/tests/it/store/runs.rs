//! Submission, idempotency, listing and cancelling.

use std::time::Duration;

use viworks_backend_agent::data::{
    Actor, AuditOutcome, CommandRef, Idempotency, Page, QueueLimits, StoreError, StoreResult,
    Submission,
};
use viworks_common::command::{CommandState, OutcomeState};

use futures_util::future::join_all;

use super::bed::{Bed, LEASE, LIMITS, agent, at, outcome};

async fn nothing_but_the_refusal_is_left(
    bed: &Bed,
    refused: StoreResult<Submission>,
) -> StoreError {
    let counts = bed.store.counts(&bed.tenant, at(40)).await.unwrap();
    assert!(
        counts.open_runs == 0 && counts.open_commands.is_empty(),
        "{counts:?}"
    );
    assert!(
        bed.store
            .list_runs(&bed.tenant, Page::first(9))
            .await
            .unwrap()
            .items
            .is_empty()
    );
    let last = bed
        .store
        .list_audit(&bed.tenant, Page::first(1))
        .await
        .unwrap()
        .items
        .remove(0);
    assert!(last.record.action == "run.submit" && last.record.outcome == AuditOutcome::Refused);
    refused.unwrap_err()
}

pub(crate) async fn a_run_is_accepted_whole(bed: &Bed) {
    bed.gateway(1).await;
    bed.gateway(2).await;
    let new = bed.new_run(&[1, 2], false);
    let run = bed.submit(new.clone()).await;
    assert_eq!(
        run.states.iter().collect::<Vec<_>>(),
        [(&CommandState::Queued, &2)]
    );
    assert!(run.arguments == new.arguments && run.deadline == new.deadline && !run.is_finished());
    let commands = bed
        .store
        .run_commands(&bed.tenant, run.run_id, Page::first(10))
        .await
        .unwrap()
        .items;
    let ids: Vec<_> = commands.iter().map(|command| command.command_id).collect();
    assert_eq!(
        ids,
        new.targets
            .iter()
            .map(|target| target.command_id)
            .collect::<Vec<_>>()
    );
    assert!(commands.iter().all(|command| command.order == 1
        && command.timeout_ms == 60_000
        && command.created_at == at(10)));
}

pub(crate) async fn a_run_over_a_gateway_s_bound_leaves_only_its_audit_record(bed: &Bed) {
    bed.gateway(1).await;
    bed.gateway(2).await;
    let mut new = bed.new_run(&[1, 2], false);
    new.limits = QueueLimits {
        per_gateway: 0,
        ..LIMITS
    };
    let refused = bed.store.submit_run(&bed.tenant, new, at(10)).await;
    let error = nothing_but_the_refusal_is_left(bed, refused).await;
    assert!(
        matches!(error, StoreError::QueueFull { limit: 0, retry_after, .. } if retry_after == Duration::from_secs(5))
    );
    assert_eq!(bed.command_now(bed.command(1, false).await).await.order, 1);
    let mut second = bed.new_run(&[2, 1], false);
    second.limits = QueueLimits {
        per_gateway: 1,
        ..LIMITS
    };
    let full = bed.store.submit_run(&bed.tenant, second, at(10)).await;
    assert!(
        matches!(full, Err(StoreError::QueueFull { gateways, .. }) if gateways == [bed.gateway_now(1).await.name])
    );
    assert_eq!(bed.gateway_now(2).await.open_commands, 0);
}

pub(crate) async fn a_run_over_the_global_bound_is_refused_whole(bed: &Bed) {
    bed.gateway(1).await;
    bed.gateway(2).await;
    let mut new = bed.new_run(&[1, 2], false);
    new.limits = QueueLimits {
        global: 1,
        ..LIMITS
    };
    let refused = bed.store.submit_run(&bed.tenant, new, at(10)).await;
    let error = nothing_but_the_refusal_is_left(bed, refused).await;
    assert!(matches!(error, StoreError::QueueFull { limit: 1, .. }));
}

pub(crate) async fn a_run_with_a_revoked_gateway_is_refused_whole(bed: &Bed) {
    bed.gateway(1).await;
    bed.gateway(2).await;
    bed.store
        .revoke_gateway(&bed.tenant, agent(2), None, &Actor::local("test"), at(5))
        .await
        .unwrap();
    let refused = bed
        .store
        .submit_run(&bed.tenant, bed.new_run(&[1, 2], false), at(10))
        .await;
    let error = nothing_but_the_refusal_is_left(bed, refused).await;
    assert!(matches!(error, StoreError::Missing { what } if what.contains(&agent(2).to_string())));
}

pub(crate) async fn a_run_with_a_gateway_twice_is_refused(bed: &Bed) {
    bed.gateway(1).await;
    let refused = bed
        .store
        .submit_run(&bed.tenant, bed.new_run(&[1, 1], false), at(10))
        .await;
    let error = nothing_but_the_refusal_is_left(bed, refused).await;
    assert!(matches!(error, StoreError::Conflict { .. }));
}

fn key(hash: u8) -> Idempotency {
    Idempotency {
        principal: "api_key:1".to_owned(),
        route: "POST /v1/runs".to_owned(),
        key: "k".to_owned(),
        request_hash: [hash; 32],
    }
}

pub(crate) async fn the_same_idempotency_key_and_request_answers_the_same_run(bed: &Bed) {
    bed.gateway(1).await;
    let mut first = bed.new_run(&[1], false);
    first.idempotency = Some(key(1));
    let run = bed.submit(first).await;
    let mut again = bed.new_run(&[1], false);
    again.idempotency = Some(key(1));
    // Even when the queue is full by now: it was accepted already.
    again.limits.per_gateway = 0;
    let replayed = bed
        .store
        .submit_run(&bed.tenant, again, at(11))
        .await
        .unwrap();
    assert_eq!(replayed, Submission::Replayed(run));
    assert_eq!(bed.gateway_now(1).await.open_commands, 1);
}

pub(crate) async fn one_key_at_the_same_moment_is_one_run(bed: &Bed) {
    bed.gateway(1).await;
    let asked: Vec<_> = (0..6)
        .map(|n| {
            let mut new = bed.new_run(&[1], false);
            // The last one is another request with the same key.
            new.idempotency = Some(key(if n == 5 { 2 } else { 1 }));
            new
        })
        .collect();
    let answers = join_all(
        asked
            .into_iter()
            .map(|new| bed.store.submit_run(&bed.tenant, new, at(11))),
    )
    .await;
    let submitted = answers
        .iter()
        .filter(|answer| matches!(answer, Ok(Submission::Submitted { .. })));
    assert_eq!(submitted.count(), 1, "{answers:?}");
    assert!(
        matches!(answers[5], Ok(Submission::IdempotencyMismatch)),
        "{answers:?}"
    );
    assert_eq!(bed.gateway_now(1).await.open_commands, 1);
}

pub(crate) async fn the_same_idempotency_key_with_another_request_is_a_mismatch(bed: &Bed) {
    bed.gateway(1).await;
    let mut first = bed.new_run(&[1], false);
    first.idempotency = Some(key(1));
    bed.submit(first).await;
    let mut other = bed.new_run(&[1], false);
    other.idempotency = Some(key(2));
    let mismatch = bed
        .store
        .submit_run(&bed.tenant, other, at(11))
        .await
        .unwrap();
    assert_eq!(mismatch, Submission::IdempotencyMismatch);
    let mut elsewhere = bed.new_run(&[1], false);
    elsewhere.idempotency = Some(Idempotency {
        principal: "api_key:2".to_owned(),
        ..key(2)
    });
    bed.submit(elsewhere).await;
}

pub(crate) async fn a_key_is_forgotten_after_a_day(bed: &Bed) {
    bed.gateway(1).await;
    let mut first = bed.new_run(&[1], false);
    first.idempotency = Some(key(1));
    bed.submit(first).await;
    let day = at(10 + 24 * 3_600);
    let purged = bed
        .store
        .purge(&bed.tenant, 500, at(9 + 24 * 3_600))
        .await
        .unwrap();
    assert_eq!(purged.idempotency_keys, 0);
    let mut next = bed.new_run(&[1], false);
    next.idempotency = Some(key(2));
    let submitted = bed.store.submit_run(&bed.tenant, next, day).await.unwrap();
    assert!(matches!(submitted, Submission::Submitted { .. }));
    let purged = bed
        .store
        .purge(&bed.tenant, 500, at(11 + 48 * 3_600))
        .await
        .unwrap();
    assert_eq!(purged.idempotency_keys, 1);
}

pub(crate) async fn what_has_served_is_deleted_in_steps(bed: &Bed) {
    bed.gateway(1).await;
    for n in 0..5 {
        let mut new = bed.new_run(&[1], false);
        new.idempotency = Some(Idempotency {
            key: format!("key-{n}"),
            ..key(1)
        });
        let submitted = bed.store.submit_run(&bed.tenant, new, at(n)).await;
        assert!(matches!(submitted, Ok(Submission::Submitted { .. })));
    }
    let later = at(3 + 24 * 3_600);
    let mut steps = Vec::new();
    loop {
        let purged = bed.store.purge(&bed.tenant, 3, later).await.unwrap();
        steps.push(purged.idempotency_keys);
        if !purged.has_reached(3) {
            break;
        }
    }
    assert_eq!(steps, [3, 1], "one of the five is not old enough");
}

pub(crate) async fn orders_count_per_gateway_without_holes(bed: &Bed) {
    bed.gateway(1).await;
    bed.gateway(2).await;
    bed.submit(bed.new_run(&[1], false)).await;
    bed.submit(bed.new_run(&[2, 1], false)).await;
    let third = bed.submit(bed.new_run(&[1, 2], false)).await;
    let commands = bed
        .store
        .run_commands(&bed.tenant, third.run_id, Page::first(10))
        .await
        .unwrap()
        .items;
    let orders: Vec<_> = commands
        .iter()
        .map(|command| (command.agent_id, command.order))
        .collect();
    assert_eq!(orders, [(agent(1), 3), (agent(2), 2)]);
}

pub(crate) async fn runs_are_listed_newest_first_in_pages(bed: &Bed) {
    bed.gateway(1).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(bed.submit(bed.new_run(&[1], false)).await.run_id);
    }
    ids.reverse();
    let first = bed
        .store
        .list_runs(&bed.tenant, Page::first(3))
        .await
        .unwrap();
    assert_eq!(
        first.items.iter().map(|run| run.run_id).collect::<Vec<_>>(),
        ids[..3]
    );
    let second = bed
        .store
        .list_runs(&bed.tenant, Page::after(first.next.unwrap(), 3))
        .await
        .unwrap();
    assert_eq!(
        second
            .items
            .iter()
            .map(|run| run.run_id)
            .collect::<Vec<_>>(),
        ids[3..]
    );
    assert_eq!(second.next, None);
}

pub(crate) async fn a_cancel_before_the_permit_ends_the_command(bed: &Bed) {
    bed.gateway(1).await;
    bed.gateway(2).await;
    let session = bed.session(1, 1).await;
    let new = bed.new_run(&[1, 2], false);
    let (dispatched, run_id) = (new.targets[0].command_id, new.run_id);
    bed.submit(new).await;
    assert_eq!(bed.lease(&session).await.len(), 1);
    let cancelled = bed
        .store
        .cancel_run(&bed.tenant, run_id, &Actor::local("test"), at(22))
        .await
        .unwrap()
        .unwrap();
    assert!(cancelled.cancelled.len() == 2 && cancelled.requested.is_empty());
    assert!(cancelled.run.is_finished() && cancelled.run.cancel_requested_at == Some(at(22)));
    let again = bed
        .store
        .cancel_run(&bed.tenant, run_id, &Actor::local("test"), at(23))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(again.run.cancel_requested_at, Some(at(22)));
    assert_eq!(bed.state(dispatched).await, CommandState::Cancelled);
    let answer = bed.accept(&session, dispatched, false).await;
    assert_eq!(answer, viworks_backend_agent::data::AcceptOutcome::Drop);
}

pub(crate) async fn a_cancel_of_a_finished_run_leaves_it_as_it_ended(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let command_id = bed.command(1, true).await;
    let run_id = bed.command_now(command_id).await.run_id;
    bed.store
        .lease_commands(&bed.tenant, &session.holder, LEASE, at(20))
        .await
        .unwrap();
    bed.store
        .complete_command(
            &bed.tenant,
            &session.holder,
            command_id,
            outcome(OutcomeState::Succeeded),
            at(21),
        )
        .await
        .unwrap();
    let cancelled = bed
        .store
        .cancel_run(&bed.tenant, run_id, &Actor::local("test"), at(22))
        .await
        .unwrap()
        .unwrap();
    assert!(cancelled.cancelled.is_empty() && cancelled.requested.is_empty());
    assert!(cancelled.run.is_finished() && cancelled.run.cancel_requested_at.is_none());
}

pub(crate) async fn a_cancel_after_the_permit_is_a_request(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let command_id = bed.released(1, &session).await;
    let run_id = bed.command_now(command_id).await.run_id;
    let cancelled = bed
        .store
        .cancel_run(&bed.tenant, run_id, &Actor::local("test"), at(22))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        cancelled.requested,
        [CommandRef {
            command_id,
            agent_id: agent(1)
        }]
    );
    assert_eq!(bed.state(command_id).await, CommandState::Released);
    let next = bed.session_with(1, 1, &[command_id]).await;
    assert_eq!(next.confirmed.cancel_requested, [command_id]);
    assert_eq!(
        bed.accept(&next, command_id, false).await,
        viworks_backend_agent::data::AcceptOutcome::Cancel
    );
    bed.complete(&next, command_id, OutcomeState::Succeeded)
        .await;
    assert_eq!(bed.state(command_id).await, CommandState::Succeeded);
}

pub(crate) async fn an_unknown_run_is_none(bed: &Bed) {
    let unknown = bed.run_id();
    assert_eq!(bed.store.run(&bed.tenant, unknown).await.unwrap(), None);
    let actor = Actor::local("test");
    assert_eq!(
        bed.store
            .cancel_run(&bed.tenant, unknown, &actor, at(1))
            .await
            .unwrap(),
        None
    );
    assert!(
        bed.store
            .run_commands(&bed.tenant, unknown, Page::first(1))
            .await
            .unwrap()
            .items
            .is_empty()
    );
}
