//! How a command ends, once: by its outcome, by a refusal, by its time, or with the process that had it.

use std::time::Duration;

use viworks_backend_agent::data::CompleteOutcome;
use viworks_common::code::RejectCode;
use viworks_common::command::{CommandState, Outcome, OutcomeState};

use super::bed::{Bed, at, outcome, rejected};

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
