//! The life of a command between its lease and its final state.

use std::time::Duration;

use futures_util::future::join_all;
use viworks_backend_agent::data::{
    AcceptOutcome, Accepted, Actor, CompleteOutcome, LeaseLimits, Orphan, Page, Rejected,
    StoreError, Submission,
};
use viworks_common::claims::Probed;
use viworks_common::code::{CloseCode, RejectCode};
use viworks_common::command::{CommandState, Outcome, OutcomeState, digest};
use viworks_common::limits::ORDER_WINDOW;
use viworks_common::timeline::shared::TOGETHER;

use super::bed::{Bed, LEASE, agent, at, outcome, process};

pub(crate) async fn a_lease_takes_commands_in_order_and_once(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let ids = [
        bed.command(1, false).await,
        bed.command(1, false).await,
        bed.command(1, false).await,
    ];
    let limits = LeaseLimits {
        commands: 2,
        ..LEASE
    };
    let leased = bed
        .store
        .lease_commands(&bed.tenant, &session.holder, limits, at(20))
        .await
        .unwrap();
    let taken: Vec<_> = leased
        .commands
        .iter()
        .map(|leased| {
            (
                leased.command_id,
                leased.order,
                leased.attempt,
                leased.permitted,
            )
        })
        .collect();
    assert_eq!(taken, [(ids[0], 1, 1, false), (ids[1], 2, 1, false)]);
    let first = &leased.commands[0];
    assert_eq!(first.digest, digest(&first.name, &first.arguments));
    let rest: Vec<_> = bed
        .lease(&session)
        .await
        .iter()
        .map(|leased| leased.command_id)
        .collect();
    assert_eq!(rest, ids[2..]);
    assert!(bed.lease(&session).await.is_empty());
}

/// Another backend's reading of the time line may be behind by as much.
pub(crate) async fn a_command_is_there_at_once_for_whose_line_is_a_moment_behind(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let command_id = bed.command(1, false).await;
    let behind = at(10).saturating_sub(2 * TOGETHER);
    let (tenant, holder) = (&bed.tenant, session.holder);
    let leased = bed.store.lease_commands(tenant, &holder, LEASE, behind);
    let leased = leased.await.unwrap().commands;
    let leased: Vec<_> = leased.iter().map(|command| command.command_id).collect();
    assert_eq!(leased, [command_id]);
}

pub(crate) async fn a_lease_respects_the_order_window(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let blocker = bed.released(1, &session).await;
    for _ in 0..ORDER_WINDOW {
        bed.command(1, true).await;
    }
    let mut offered = 0;
    loop {
        let leased = bed.lease(&session).await;
        if leased.is_empty() {
            break;
        }
        offered = leased.last().unwrap().order;
    }
    assert_eq!(offered, ORDER_WINDOW);
    bed.complete(&session, blocker, OutcomeState::Succeeded)
        .await;
    assert_eq!(bed.lease(&session).await.len(), 1);
}

pub(crate) async fn an_idempotent_command_brings_its_permit_along(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let command_id = bed.command(1, true).await;
    assert!(bed.lease(&session).await[0].permitted);
    let command = bed.command_now(command_id).await;
    assert!(
        command.state == CommandState::Released
            && command.released_at == Some(at(20))
            && command.attempt == 1
    );
    let used = Accepted {
        command_id,
        idempotent: true,
        awaiting_permit: false,
    };
    let answer = bed
        .store
        .accept_command(&bed.tenant, &session.holder, used, at(21))
        .await
        .unwrap();
    assert_eq!(answer, AcceptOutcome::Wait);
    // Its frame never arrived: the same process does not know it, so it is offered again.
    let next = bed.session_with(1, 1, &[]).await;
    assert_eq!(bed.lease(&next).await[0].attempt, 2);
}

pub(crate) async fn a_command_past_its_deadline_is_not_leased(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let mut new = bed.new_run(&[1], false);
    new.deadline = at(20);
    bed.submit(new).await;
    assert!(bed.lease(&session).await.is_empty());
}

pub(crate) async fn used_up_deliveries_are_dead(bed: &Bed) {
    bed.gateway(1).await;
    let command_id = bed.command(1, false).await;
    let limits = LeaseLimits {
        attempts_max: 2,
        ..LEASE
    };
    for attempt in 1..=3 {
        let session = bed.session(1, 1).await;
        let leased = bed
            .store
            .lease_commands(&bed.tenant, &session.holder, limits, at(20))
            .await
            .unwrap();
        if attempt < 3 {
            assert_eq!(leased.commands[0].attempt, attempt);
        } else {
            assert!(
                leased.commands.is_empty()
                    && leased.dead[0].command_id == command_id
                    && leased.dead[0].run_finished
            );
        }
    }
    assert_eq!(bed.state(command_id).await, CommandState::Dead);
}

pub(crate) async fn an_accepted_command_is_released_to_that_process(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let command_id = bed.command(1, false).await;
    bed.lease(&session).await;
    assert_eq!(bed.state(command_id).await, CommandState::Dispatched);
    assert_eq!(
        bed.accept(&session, command_id, false).await,
        AcceptOutcome::Go {
            deadline: at(3_600)
        }
    );
    assert_eq!(bed.state(command_id).await, CommandState::Released);
    assert_eq!(
        bed.accept(&session, command_id, false).await,
        AcceptOutcome::Go {
            deadline: at(3_600)
        }
    );
}

pub(crate) async fn the_gateway_s_stricter_opinion_is_stored_with_the_release(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let command_id = bed.command(1, true).await;
    assert!(bed.lease(&session).await[0].permitted);
    assert_eq!(
        bed.accept(&session, command_id, false).await,
        AcceptOutcome::Go {
            deadline: at(3_600)
        }
    );
    assert!(!bed.command_now(command_id).await.idempotent);
    let other = bed.session_with(1, 2, &[command_id]).await;
    assert_eq!(
        bed.accept(&other, command_id, true).await,
        AcceptOutcome::Drop
    );
    assert_eq!(bed.state(command_id).await, CommandState::Indeterminate);
}

pub(crate) async fn acceptance_by_another_process_is_indeterminate_and_dropped(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let command_id = bed.released(1, &session).await;
    let restored = bed.session_with(1, 2, &[command_id]).await;
    assert!(restored.confirmed.released.is_empty());
    assert_eq!(bed.state(command_id).await, CommandState::Released);
    assert_eq!(
        bed.accept(&restored, command_id, false).await,
        AcceptOutcome::Drop
    );
    assert_eq!(bed.state(command_id).await, CommandState::Indeterminate);
}

pub(crate) async fn an_idempotent_command_is_released_again_to_another_process(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let command_id = bed.command(1, true).await;
    bed.lease(&session).await;
    let restarted = bed.session_with(1, 2, &[command_id]).await;
    assert_eq!(
        bed.accept(&restarted, command_id, true).await,
        AcceptOutcome::Go {
            deadline: at(3_600)
        }
    );
    // The gateway says first again whether it may run twice, and is told then.
    let next = bed.session_with(1, 2, &[command_id]).await;
    assert!(next.confirmed.released.is_empty());
    let go = AcceptOutcome::Go {
        deadline: at(3_600),
    };
    assert_eq!(bed.accept(&next, command_id, true).await, go);
}

pub(crate) async fn an_accepted_unknown_or_final_command_is_dropped(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    assert_eq!(
        bed.accept(&session, bed.command_id(), false).await,
        AcceptOutcome::Drop
    );
    let command_id = bed.released(1, &session).await;
    bed.complete(&session, command_id, OutcomeState::Failed)
        .await;
    assert_eq!(
        bed.accept(&session, command_id, false).await,
        AcceptOutcome::Drop
    );
    assert_eq!(bed.state(command_id).await, CommandState::Failed);
}

pub(crate) async fn acceptance_after_the_deadline_expires_the_command(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let mut new = bed.new_run(&[1], false);
    new.deadline = at(21);
    let command_id = new.targets[0].command_id;
    bed.submit(new).await;
    bed.lease(&session).await;
    assert_eq!(
        bed.accept(&session, command_id, false).await,
        AcceptOutcome::Drop
    );
    assert_eq!(bed.state(command_id).await, CommandState::Expired);
}

pub(crate) async fn a_lost_session_queues_what_was_dispatched(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let command_id = bed.command(1, false).await;
    bed.lease(&session).await;
    bed.store
        .end_session(
            &bed.tenant,
            agent(1),
            session.holder.epoch,
            CloseCode::Draining,
            at(22),
        )
        .await
        .unwrap();
    assert_eq!(bed.state(command_id).await, CommandState::Queued);
    // The gateway had journalled it and announces it in its next session, before it is leased again.
    let next = bed.session_with(1, 1, &[command_id]).await;
    assert_eq!(
        bed.accept(&next, command_id, false).await,
        AcceptOutcome::Go {
            deadline: at(3_600)
        }
    );
}

pub(crate) async fn a_gone_process_ends_what_it_may_have_run(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let released = bed.released(1, &session).await;
    let running = bed.released(1, &session).await;
    assert!(
        bed.store
            .start_command(&bed.tenant, &session.holder, running, at(25), at(25))
            .await
            .unwrap()
    );
    assert!(
        !bed.store
            .start_command(&bed.tenant, &session.holder, running, at(25), at(25))
            .await
            .unwrap()
    );
    let repeatable = bed.command(1, true).await;
    bed.lease(&session).await;
    let next = bed.session_with(1, 2, &[]).await;
    // Whoever follows their runs is told of both.
    let ended = next.confirmed.ended.iter();
    let ended: Vec<_> = ended.map(|it| (it.command_id, it.state)).collect();
    let lost = |command_id| (command_id, CommandState::Indeterminate);
    assert_eq!(ended, [lost(released), lost(running)]);
    for settled in &next.confirmed.ended {
        let of = bed.command_now(settled.command_id).await.run_id;
        assert_eq!(settled.run_id, of);
        assert!(settled.moved && settled.run_finished && settled.reason.is_some());
    }
    assert_eq!(bed.state(running).await, CommandState::Indeterminate);
    assert_eq!(bed.state(repeatable).await, CommandState::Queued);
}

pub(crate) async fn a_permit_of_the_same_process_is_given_again_after_confirm(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let command_id = bed.released(1, &session).await;
    let next = bed.session_with(1, 1, &[command_id]).await;
    assert!(
        next.confirmed.released[0].command_id == command_id
            && next.confirmed.released[0].deadline == at(3_600)
    );
}

pub(crate) async fn a_command_completes_once(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let command_id = bed.released(1, &session).await;
    let first = bed
        .complete(&session, command_id, OutcomeState::Succeeded)
        .await;
    assert!(
        matches!(first, CompleteOutcome::Completed { settled, low_water: 1, run: Some(_) } if settled.run_finished && settled.state == CommandState::Succeeded)
    );
    let again = bed
        .complete(&session, command_id, OutcomeState::Failed)
        .await;
    assert_eq!(again, CompleteOutcome::Repeated { low_water: 1 });
    let command = bed.command_now(command_id).await;
    assert!(
        command.state == CommandState::Succeeded
            && command.finished_at == Some(at(30))
            && command.started_at == Some(at(25))
    );
    assert_eq!(command.result.unwrap().duration_ms, 12);
    let run = bed
        .store
        .run(&bed.tenant, command.run_id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(run.finished_at, Some(at(30)));
}

pub(crate) async fn output_is_kept_beside_the_command(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let command_id = bed.released(1, &session).await;
    assert_eq!(
        bed.store
            .command_output(&bed.tenant, command_id)
            .await
            .unwrap(),
        None
    );
    bed.complete(&session, command_id, OutcomeState::Succeeded)
        .await;
    let kept = bed
        .store
        .command_output(&bed.tenant, command_id)
        .await
        .unwrap()
        .unwrap();
    let reported = outcome(OutcomeState::Succeeded);
    assert!(kept.stdout == reported.stdout && kept.stderr == reported.stderr);
}

pub(crate) async fn an_outcome_that_denies_what_another_process_started_takes_no_room(bed: &Bed) {
    bed.gateway(1).await;
    let started = bed.session(1, 1).await;
    let command_id = bed.released(1, &started).await;
    bed.store
        .start_command(&bed.tenant, &started.holder, command_id, at(25), at(25))
        .await
        .unwrap();
    // The disk was set back: the journal has it, and not that it started.
    let older = bed.session_with(1, 2, &[command_id]).await;
    let denial = || Outcome {
        started_at: None,
        ..outcome(OutcomeState::Rejected)
    };
    let deny = async || {
        let holder = &older.holder;
        let denied = bed
            .store
            .complete_command(&bed.tenant, holder, command_id, denial(), at(30));
        denied.await.unwrap()
    };
    let ended = deny().await;
    assert!(
        matches!(ended, CompleteOutcome::Completed { .. }),
        "{ended:?}"
    );
    let again = deny().await;
    assert!(
        matches!(again, CompleteOutcome::Repeated { .. }),
        "{again:?}"
    );
    let command = bed.command_now(command_id).await;
    assert_eq!(command.state, CommandState::Indeterminate);
    assert!(command.result.is_none() && command.late_outcome.is_none());
    let output = || bed.store.command_output(&bed.tenant, command_id);
    assert_eq!(output().await.unwrap(), None);

    // The newer disk was put back.
    let newer = bed.session_with(1, 3, &[command_id]).await;
    bed.complete(&newer, command_id, OutcomeState::Succeeded)
        .await;
    let command = bed.command_now(command_id).await;
    assert_eq!(command.state, CommandState::Indeterminate);
    assert_eq!(command.late_outcome.unwrap().state, OutcomeState::Succeeded);
    assert_eq!(output().await.unwrap().unwrap().stdout.head, b"out\0\xff");
}

pub(crate) async fn an_outcome_after_indeterminate_is_kept_beside_it(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let command_id = bed.released(1, &session).await;
    let next = bed.session_with(1, 2, &[]).await;
    let late = bed
        .complete(&next, command_id, OutcomeState::Succeeded)
        .await;
    assert!(matches!(
        late,
        CompleteOutcome::LateOutcome { low_water: 1 }
    ));
    let again = bed.complete(&next, command_id, OutcomeState::Failed).await;
    assert!(matches!(again, CompleteOutcome::Repeated { .. }));
    let command = bed.command_now(command_id).await;
    assert!(command.state == CommandState::Indeterminate && command.result.is_none());
    assert_eq!(command.late_outcome.unwrap().state, OutcomeState::Succeeded);
    assert!(
        bed.store
            .command_output(&bed.tenant, command_id)
            .await
            .unwrap()
            .is_some()
    );
}

pub(crate) async fn an_unknown_result_is_an_orphan(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let unknown = bed.command_id();
    for _ in 0..2 {
        let orphan = bed
            .complete(&session, unknown, OutcomeState::Succeeded)
            .await;
        assert_eq!(
            orphan,
            CompleteOutcome::Orphan {
                low_water: 0,
                kept: true
            }
        );
    }
    assert_eq!(
        bed.store.counts(&bed.tenant, at(40)).await.unwrap().orphans,
        1
    );
    assert_eq!(bed.gateway_now(1).await.orphans, 1);
}

pub(crate) async fn orphans_are_listed_by_page_the_latest_first(bed: &Bed) {
    bed.gateway(1).await;
    bed.gateway(2).await;
    let session = bed.session(1, 1).await;
    let other = bed.session(2, 2).await;
    let mut reported = Vec::new();
    for _ in 0..5 {
        reported.push(bed.command_id());
    }
    for unknown in &reported {
        bed.complete(&session, *unknown, OutcomeState::Failed).await;
    }
    let theirs = bed.command_id();
    bed.complete(&other, theirs, OutcomeState::Succeeded).await;
    let mut listed = Vec::new();
    let mut page = Page::first(2);
    loop {
        let found = bed.store.orphans(&bed.tenant, agent(1), page).await;
        let found = found.unwrap();
        assert!(found.items.len() <= 2);
        listed.extend(found.items);
        let Some(next) = found.next else {
            break;
        };
        page = Page {
            after: Some(next),
            limit: 2,
        };
    }
    let place = |orphan: &Orphan| (orphan.received_at, orphan.command_id);
    assert!(listed.is_sorted_by(|one, next| place(one) > place(next)));
    assert!(
        listed
            .iter()
            .all(|orphan| orphan.outcome.state == OutcomeState::Failed)
    );
    let mut ids: Vec<_> = listed.iter().map(|orphan| orphan.command_id).collect();
    ids.sort_unstable();
    reported.sort_unstable();
    assert_eq!(ids, reported);
}

pub(crate) async fn of_results_that_nobody_asked_for_so_many_are_kept_and_the_others_counted(
    bed: &Bed,
) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let mut large = outcome(OutcomeState::Succeeded);
    large.stdout.head = vec![b'x'; 96 * 1_024];
    let report = async |seconds| {
        let (command_id, outcome) = (bed.command_id(), large.clone());
        bed.store
            .complete_command(
                &bed.tenant,
                &session.holder,
                command_id,
                outcome,
                at(seconds),
            )
            .await
            .unwrap()
    };
    let told = |kept| CompleteOutcome::Orphan { low_water: 0, kept };
    for number in 0..300 {
        assert_eq!(report(30).await, told(number < 256), "{number}");
    }
    let counts = bed.store.counts(&bed.tenant, at(40)).await.unwrap();
    assert_eq!(counts.orphans, 63, "eight mebibytes of them");
    let orphans = async || {
        let page = Page::first(1_000);
        let listed = bed.store.list_audit(&bed.tenant, page).await.unwrap();
        let records = listed.items.into_iter().map(|stored| stored.record);
        let orphans = records.filter(|record| record.action == "command.orphan");
        orphans.map(|record| record.detail).collect::<Vec<_>>()
    };
    assert_eq!(orphans().await.len(), 200);
    assert_eq!(report(91).await, told(true));
    let found = orphans().await;
    assert!(
        found.len() == 201 && found[0]["left_out"] == 56,
        "{}",
        found[0]
    );
    assert_eq!(found[0]["results_not_kept_before"], 44);
}

pub(crate) async fn health_speaks_of_gateways_that_are_not_revoked_and_of_a_day(bed: &Bed) {
    let counted = async |seconds| {
        let counts = bed.store.counts(&bed.tenant, at(seconds)).await.unwrap();
        (counts.orphans, counts.forks)
    };
    for n in [1, 2] {
        bed.gateway(n).await;
        let session = bed.session(n, n).await;
        let unknown = bed.command_id();
        bed.complete(&session, unknown, OutcomeState::Succeeded)
            .await;
        bed.store
            .settle_probed(&bed.tenant, &bed.hello(n, 8, 1), 1, Probed::Alive, at(30))
            .await
            .unwrap();
    }
    assert_eq!(counted(40).await, (2, 2));
    bed.store
        .revoke_gateway(&bed.tenant, agent(1), None, &Actor::local("test"), at(41))
        .await
        .unwrap();
    assert_eq!(counted(42).await, (1, 1));
    assert_eq!(counted(30 + 24 * 3_600).await, (0, 0));
}

pub(crate) async fn health_knows_since_when_the_oldest_queued_command_waits(bed: &Bed) {
    let waits = async || {
        let counts = bed.store.counts(&bed.tenant, at(40)).await.unwrap();
        let queued = counts.open_commands.get(&CommandState::Queued).copied();
        (queued, counts.oldest_queued_at)
    };
    bed.gateway(1).await;
    assert_eq!(waits().await, (None, None));
    let first = bed.submit(bed.new_run(&[1], false)).await;
    let later = bed.new_run(&[1], false);
    let later = bed.store.submit_run(&bed.tenant, later, at(30)).await;
    assert!(matches!(later, Ok(Submission::Submitted { .. })));
    assert_eq!(waits().await, (Some(2), Some(at(10))));
    bed.store
        .cancel_run(&bed.tenant, first.run_id, &Actor::local("test"), at(31))
        .await
        .unwrap();
    assert_eq!(waits().await, (Some(1), Some(at(30))));
}

pub(crate) async fn another_gateway_s_result_is_an_orphan(bed: &Bed) {
    bed.gateway(1).await;
    bed.gateway(2).await;
    let (one, two) = (bed.session(1, 1).await, bed.session(2, 2).await);
    let command_id = bed.released(1, &one).await;
    assert!(matches!(
        bed.complete(&two, command_id, OutcomeState::Failed).await,
        CompleteOutcome::Orphan { .. }
    ));
    assert_eq!(bed.state(command_id).await, CommandState::Released);
    assert_eq!(
        bed.accept(&two, command_id, false).await,
        AcceptOutcome::Drop
    );
}

fn rejected(command_id: viworks_common::id::CommandId, code: RejectCode) -> Rejected {
    Rejected {
        command_id,
        code,
        detail: "because".to_owned(),
        again_at: at(100),
    }
}

pub(crate) async fn a_busy_gateway_gets_the_command_again_later(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    // What is idempotent was offered with its permit; it waits again like everything else.
    for idempotent in [false, true] {
        let command_id = bed.command(1, idempotent).await;
        assert_eq!(bed.lease(&session).await[0].permitted, idempotent);
        let busy = rejected(command_id, RejectCode::Busy);
        let settled = bed
            .store
            .reject_command(&bed.tenant, &session.holder, busy, at(22))
            .await
            .unwrap()
            .unwrap();
        assert!(settled.state == CommandState::Queued && !settled.run_finished);
        assert!(bed.lease(&session).await.is_empty());
        let later = bed
            .store
            .lease_commands(&bed.tenant, &session.holder, LEASE, at(100))
            .await
            .unwrap();
        assert_eq!(later.commands[0].attempt, 2);
    }
}

pub(crate) async fn a_refused_command_is_final_with_its_code(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let command_id = bed.command(1, false).await;
    bed.lease(&session).await;
    let refused = rejected(command_id, RejectCode::NotAllowed);
    let settled = bed
        .store
        .reject_command(&bed.tenant, &session.holder, refused, at(22))
        .await
        .unwrap()
        .unwrap();
    assert!(settled.state == CommandState::Rejected && settled.run_finished && settled.moved);
    // Said again, it is as it was.
    let refused = rejected(command_id, RejectCode::NotAllowed);
    let again = bed
        .store
        .reject_command(&bed.tenant, &session.holder, refused, at(23))
        .await
        .unwrap()
        .unwrap();
    assert!(again.state == CommandState::Rejected && !again.run_finished && !again.moved);
    let result = bed.command_now(command_id).await.result.unwrap();
    assert!(
        result.reject_code == Some(RejectCode::NotAllowed)
            && result.reason.as_deref() == Some("because")
    );
    let unknown = rejected(bed.command_id(), RejectCode::Stale);
    assert_eq!(
        bed.store
            .reject_command(&bed.tenant, &session.holder, unknown, at(22))
            .await
            .unwrap(),
        None
    );
}

pub(crate) async fn expiry_ends_only_what_has_no_permit(bed: &Bed) {
    bed.gateway(1).await;
    bed.gateway(2).await;
    let session = bed.session(1, 1).await;
    let released = bed.released(1, &session).await;
    let (queued, dispatched) = (bed.command(2, true).await, bed.command(1, false).await);
    bed.lease(&session).await;
    assert!(
        bed.store
            .expire_commands(&bed.tenant, 100, at(3_599))
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        bed.store
            .expire_commands(&bed.tenant, 1, at(3_600))
            .await
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        bed.store
            .expire_commands(&bed.tenant, 100, at(3_600))
            .await
            .unwrap()
            .len(),
        1
    );
    for command_id in [queued, dispatched] {
        assert_eq!(bed.state(command_id).await, CommandState::Expired);
    }
    assert_eq!(bed.state(released).await, CommandState::Released);
}

pub(crate) async fn overdue_commands_end_as_indeterminate(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let command_id = bed.released(1, &session).await;
    let wait = Duration::from_secs(10);
    // Deadline 3600, time limit 60, wait 10.
    assert!(
        bed.store
            .end_overdue(&bed.tenant, wait, 100, at(3_669))
            .await
            .unwrap()
            .is_empty()
    );
    let ended = bed
        .store
        .end_overdue(&bed.tenant, wait, 100, at(3_670))
        .await
        .unwrap();
    assert!(
        ended.len() == 1 && ended[0].state == CommandState::Indeterminate && ended[0].run_finished
    );
    assert!(bed.command_now(command_id).await.reason.is_some());
}

pub(crate) async fn low_water_is_the_highest_order_below_which_all_are_final(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(bed.released(1, &session).await);
    }
    for (index, low_water) in [(1, 0), (0, 2), (2, 3)] {
        let completed = bed
            .complete(&session, ids[index], OutcomeState::Succeeded)
            .await;
        assert_eq!(completed.low_water(), low_water);
    }
    let gateway = bed.gateway_now(1).await;
    assert!(gateway.low_water == 3 && gateway.next_order == 4 && gateway.open_commands == 0);
}

pub(crate) async fn a_fenced_session_can_do_nothing(bed: &Bed) {
    bed.gateway(1).await;
    let older = bed.session(1, 1).await;
    let command_id = bed.released(1, &older).await;
    bed.session_with(1, 1, &[command_id]).await;
    let (tenant, holder) = (&bed.tenant, &older.holder);
    let accepted = Accepted {
        command_id,
        idempotent: false,
        awaiting_permit: true,
    };
    assert!(matches!(
        bed.store
            .accept_command(tenant, holder, accepted, at(30))
            .await,
        Err(StoreError::Fenced)
    ));
    assert!(matches!(
        bed.store
            .start_command(tenant, holder, command_id, at(30), at(30))
            .await,
        Err(StoreError::Fenced)
    ));
    let result = outcome(OutcomeState::Succeeded);
    assert!(matches!(
        bed.store
            .complete_command(tenant, holder, command_id, result, at(30))
            .await,
        Err(StoreError::Fenced)
    ));
    let refused = rejected(command_id, RejectCode::NotAllowed);
    assert!(matches!(
        bed.store
            .reject_command(tenant, holder, refused, at(30))
            .await,
        Err(StoreError::Fenced)
    ));
    assert!(matches!(
        bed.store
            .report_pins(tenant, agent(1), holder.epoch, 9)
            .await,
        Err(StoreError::Fenced)
    ));
    assert_eq!(bed.state(command_id).await, CommandState::Released);
}

pub(crate) async fn queued_gateways_are_offered_to_the_reconciler(bed: &Bed) {
    for n in 1..=3 {
        bed.gateway(n).await;
        bed.command(n, false).await;
    }
    let session = bed.session(2, 1).await;
    bed.lease(&session).await;
    let among = vec![agent(2), agent(3), agent(9)];
    let among = bed.store.queued_among(&bed.tenant, among).await;
    assert_eq!(among.unwrap(), [agent(3)]);
    let first = bed
        .store
        .queued_agents(&bed.tenant, Page::first(1), at(20))
        .await
        .unwrap();
    assert_eq!(first.items, [agent(1)]);
    let second = bed
        .store
        .queued_agents(&bed.tenant, Page::after(agent(1), 5), at(20))
        .await
        .unwrap();
    assert!(second.items == [agent(3)] && second.next.is_none());
    assert!(
        bed.store
            .queued_agents(&bed.tenant, Page::first(5), at(3_600))
            .await
            .unwrap()
            .items
            .is_empty()
    );
    assert_eq!(session.holder.agent_run_id, process(1));
}

/// Whatever a store gathers into one transaction, each caller gets its own answer, as if it had been alone.
pub(crate) async fn callers_at_the_same_moment_each_get_their_own_answer(bed: &Bed) {
    const GATEWAYS: u64 = 12;
    let gateways: Vec<_> = (1..=GATEWAYS).collect();
    let mut sessions = Vec::new();
    for n in &gateways {
        bed.gateway(*n).await;
        sessions.push(bed.session(*n, *n).await);
    }
    // One run for all of them, one for each, one for a gateway that does not exist, and one over its bound.
    let mut runs = vec![bed.new_run(&gateways, true)];
    runs.extend(gateways.iter().map(|n| bed.new_run(&[*n], true)));
    let shared = runs[0].run_id;
    let unknown = bed.new_run(&[99], true);
    let mut full = bed.new_run(&[1], true);
    full.limits.per_gateway = 0;
    runs.extend([unknown, full]);
    let submitted = join_all(
        runs.into_iter()
            .map(|new| bed.store.submit_run(&bed.tenant, new, at(10))),
    )
    .await;
    let (good, bad) = submitted.split_at(submitted.len() - 2);
    assert!(good.iter().all(Result::is_ok), "{good:?}");
    assert!(matches!(bad[0], Err(StoreError::Missing { .. })), "{bad:?}");
    assert!(
        matches!(bad[1], Err(StoreError::QueueFull { .. })),
        "{bad:?}"
    );

    let mut stranger = sessions[0].clone();
    stranger.holder.epoch += 7;
    let holders: Vec<_> = sessions.iter().chain([&stranger]).collect();
    let leased = join_all(holders.iter().map(|session| {
        bed.store
            .lease_commands(&bed.tenant, &session.holder, LEASE, at(20))
    }))
    .await;
    let (leased, fenced) = leased.split_at(sessions.len());
    assert!(matches!(fenced[0], Err(StoreError::Fenced)), "{fenced:?}");
    let mut reports = Vec::new();
    for (session, leased) in sessions.iter().zip(leased) {
        let leased = &leased.as_ref().unwrap().commands;
        let orders: Vec<_> = leased.iter().map(|command| command.order).collect();
        assert_eq!(orders, [1, 2], "in order, without holes");
        for command in leased {
            assert!(command.permitted);
            // Twice: a gateway repeats what it does not know to have arrived.
            reports.push((session.holder, command.command_id));
            reports.push((session.holder, command.command_id));
        }
    }
    reports.push((sessions[0].holder, bed.command_id()));
    reports.push((stranger.holder, reports[0].1));
    let answers = join_all(reports.iter().map(|(holder, command_id)| {
        let outcome = outcome(OutcomeState::Succeeded);
        bed.store
            .complete_command(&bed.tenant, holder, *command_id, outcome, at(30))
    }))
    .await;
    let (answers, odd) = answers.split_at(answers.len() - 2);
    assert!(
        matches!(odd[0], Ok(CompleteOutcome::Orphan { .. })),
        "{odd:?}"
    );
    assert!(matches!(odd[1], Err(StoreError::Fenced)), "{odd:?}");
    let ends = |run| {
        answers
            .iter()
            .filter(|answer| {
                matches!(answer, Ok(CompleteOutcome::Completed { settled, .. })
                    if settled.run_id == run && settled.run_finished)
            })
            .count()
    };
    assert_eq!(ends(shared), 1, "a run is finished by one of its commands");
    let completed = answers
        .iter()
        .filter(|answer| matches!(answer, Ok(CompleteOutcome::Completed { .. })));
    assert_eq!(completed.count(), 2 * sessions.len());
    let repeated = answers
        .iter()
        .filter(|answer| matches!(answer, Ok(CompleteOutcome::Repeated { .. })));
    assert_eq!(repeated.count(), 2 * sessions.len());
    for n in &gateways {
        let gateway = bed.gateway_now(*n).await;
        assert_eq!(
            (gateway.open_commands, gateway.low_water, gateway.next_order),
            (0, 2, 3)
        );
    }
    let run = bed.store.run(&bed.tenant, shared).await.unwrap().unwrap();
    assert_eq!(run.finished_at, Some(at(30)));
    let audited = bed.audited().await;
    let times = |action: &str| audited.iter().filter(|one| *one == action).count();
    assert_eq!(times("command.end"), 2 * sessions.len());
    assert_eq!(times("run.submit"), 1 + sessions.len() + 2);
    assert_eq!(times("command.orphan"), 1);
}
