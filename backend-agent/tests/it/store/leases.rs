//! How commands are offered to their gateway: in order, once, and again when one did not arrive or was not taken.

use viworks_backend_agent::data::{AcceptOutcome, LeaseLimits, Page};
use viworks_common::code::{CloseCode, RejectCode};
use viworks_common::command::{CommandState, OutcomeState, digest};
use viworks_common::limits::ORDER_WINDOW;
use viworks_common::timeline::shared::TOGETHER;

use super::bed::{Bed, LEASE, agent, at, process, rejected};

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
