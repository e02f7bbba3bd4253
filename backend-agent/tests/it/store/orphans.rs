//! Results of commands that their gateway does not have, as the store knows: kept within bounds, counted and listed.

use viworks_backend_agent::data::{AcceptOutcome, CompleteOutcome, Orphan, Page};
use viworks_common::command::{CommandState, OutcomeState};

use super::bed::{Bed, agent, at, outcome};

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
