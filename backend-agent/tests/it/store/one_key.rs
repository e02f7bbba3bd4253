//! One idempotency key at two backends at the same moment, and runs whose gateways are at two: each counts once.

use futures_util::future::join_all;
use tokio::sync::Barrier;
use viworks_backend_agent::data::{CompleteOutcome, Idempotency, NewRun, Place, Submission};
use viworks_common::command::OutcomeState;
use viworks_common::id::CommandId;

use super::bed::{Bed, Session, at, outcome};
use super::instances::two_backends;
use super::postgres_only::finish;

/// When everything happens.
const NOW: i64 = 10;

/// A run for one gateway, whose session has kept room for it.
fn with_room(bed: &Bed, n: u64, session: &Session) -> NewRun {
    let mut new = bed.new_run(&[n], true);
    new.targets[0].place = Some(Place {
        epoch: session.holder.epoch,
        run: session.holder.agent_run_id,
    });
    new
}

fn key(round: usize) -> Idempotency {
    Idempotency {
        principal: "test".to_owned(),
        route: "runs".to_owned(),
        key: format!("key {round}"),
        request_hash: [1; 32],
    }
}

/// Whoever asks at the backend with the session is written by one statement, whoever asks at the other one by a
/// transaction.
#[tokio::test]
async fn one_key_at_two_backends_is_one_run() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, _)) = two_backends(&folder).await else {
        return;
    };
    for n in 1..=2 {
        one.gateway(n).await;
    }
    let session = one.session(1, 1).await;
    for round in 0..200 {
        // Remembered, so that it takes the short way.
        let warm = with_room(&one, 1, &session);
        one.store
            .submit_run(&one.tenant, warm, at(NOW))
            .await
            .unwrap();
        let mut here = with_room(&one, 1, &session);
        // Another gateway: nothing but the key keeps one from the other. The ids are of one bed.
        let mut there = one.new_run(&[2], true);
        here.idempotency = Some(key(round));
        there.idempotency = Some(key(round));
        let barrier = Barrier::new(2);
        let submit = async |bed: &Bed, new: NewRun| {
            barrier.wait().await;
            bed.store.submit_run(&bed.tenant, new, at(NOW)).await
        };
        let answers = tokio::join!(submit(&one, here), submit(&other, there));
        let runs = [answers.0, answers.1].map(|answer| match answer {
            Ok(Submission::Submitted { run, .. }) => (run.run_id, 1),
            Ok(Submission::Replayed(run)) => (run.run_id, 0),
            odd => panic!("round {round}: {odd:?}"),
        });
        assert_eq!(runs[0].0, runs[1].0, "round {round}: one run for one key");
        assert_eq!(
            runs[0].1 + runs[1].1,
            1,
            "round {round}: it was submitted once"
        );
    }
    finish(&folder, one, other).await;
}

/// The last report, wherever it comes, ends the run.
#[tokio::test]
async fn a_run_whose_gateways_are_at_two_backends_ends_with_the_last_of_them() {
    const GATEWAYS: u64 = 6;
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, _)) = two_backends(&folder).await else {
        return;
    };
    let mut sessions = Vec::new();
    for n in 1..=GATEWAYS {
        one.gateway(n).await;
        let bed = if n % 2 == 0 { &one } else { &other };
        // The ids are of one bed.
        sessions.push((n, bed, bed.open(one.hello(n, 1, 0)).await));
    }
    for round in 0..40 {
        // One that the backend knows, so that the short way is open to it.
        join_all(sessions.iter().map(async |(n, bed, session)| {
            let new = with_room(&one, *n, session);
            let command_id = new.targets[0].command_id;
            bed.store
                .submit_run(&bed.tenant, new, at(NOW))
                .await
                .unwrap();
            complete(bed, session, command_id).await
        }))
        .await;
        let gateways: Vec<u64> = (1..=GATEWAYS).collect();
        let new = one.new_run(&gateways, true);
        let (run_id, targets) = (new.run_id, new.targets.clone());
        one.submit(new).await;
        let ended = join_all(sessions.iter().zip(&targets).map(
            async |((_, bed, session), target)| {
                let leased = bed.lease(session).await;
                assert_eq!(leased.len(), 1, "round {round}");
                complete(bed, session, target.command_id).await
            },
        ));
        let finished = ended.await.into_iter().filter(|finished| *finished).count();
        assert_eq!(
            finished, 1,
            "round {round}: one of them was told that the run is over"
        );
        let run = other
            .store
            .run(&other.tenant, run_id)
            .await
            .unwrap()
            .unwrap();
        assert!(run.finished_at.is_some(), "round {round}: {run:?}");
    }
    finish(&folder, one, other).await;
}

/// Whether the run ended with it.
async fn complete(bed: &Bed, session: &Session, command_id: CommandId) -> bool {
    let told = outcome(OutcomeState::Succeeded);
    let ended = bed
        .store
        .complete_command(&bed.tenant, &session.holder, command_id, told, at(NOW))
        .await;
    let ended = ended.unwrap();
    let CompleteOutcome::Completed { settled, .. } = ended else {
        panic!("{ended:?}");
    };
    settled.run_finished
}
