//! Which process of a gateway may start a command, and that a session with a newer one beside it permits nothing.

use viworks_backend_agent::data::{AcceptOutcome, Accepted, StoreError};
use viworks_common::code::RejectCode;
use viworks_common::command::{CommandState, OutcomeState};

use super::bed::{Bed, agent, at, outcome, rejected};

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
