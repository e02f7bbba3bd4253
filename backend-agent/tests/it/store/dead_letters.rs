//! Commands that could not be delivered, and what is decided about them.

use std::time::Duration;

use viworks_backend_agent::data::{
    Actor, DeadLetter, DeadLetterFilter, LeaseLimits, Leased, NewRun, Page, Submission,
};
use viworks_common::command::CommandState;
use viworks_common::id::{CommandId, RunId};

use super::DEAD_LETTERS_MAX;
use super::bed::{Bed, LEASE, Session, agent, at};
use super::records::bearer;

/// A lease that delivers nothing, because one delivery was too many.
const USED_UP: LeaseLimits = LeaseLimits {
    attempts_max: 0,
    ..LEASE
};

const ALL: DeadLetterFilter = DeadLetterFilter {
    agent_id: None,
    resolved_too: true,
};

/// Has everything die that waits for the session's gateway.
async fn kill(bed: &Bed, session: &Session) -> Leased {
    let leased = bed
        .store
        .lease_commands(&bed.tenant, &session.holder, USED_UP, at(20))
        .await
        .unwrap();
    assert!(leased.commands.is_empty(), "{leased:?}");
    leased
}

/// A command of gateway `n` that has died.
async fn dead(bed: &Bed, n: u64, session: &Session) -> CommandId {
    let command_id = bed.command(n, false).await;
    let killed = kill(bed, session).await.dead;
    let killed: Vec<CommandId> = killed.iter().map(|dead| dead.command_id).collect();
    assert_eq!(killed, [command_id]);
    command_id
}

/// A run that retries one of gateway `n`.
fn retry(bed: &Bed, n: u64, dead: CommandId) -> NewRun {
    NewRun {
        retry_of: Some(dead),
        ..bed.new_run(&[n], false)
    }
}

async fn letter(bed: &Bed, command_id: CommandId) -> Option<DeadLetter> {
    bed.store
        .dead_letter(&bed.tenant, command_id)
        .await
        .unwrap()
}

async fn listed(bed: &Bed, filter: DeadLetterFilter) -> Vec<CommandId> {
    let (mut found, mut page) = (Vec::new(), Page::first(3));
    loop {
        let listing = bed
            .store
            .list_dead_letters(&bed.tenant, filter, page)
            .await
            .unwrap();
        assert!(listing.items.len() <= 3);
        found.extend(listing.items.into_iter().map(|letter| letter.command_id));
        match listing.next {
            Some(next) => page = Page::after(next, 3),
            None => return found,
        }
    }
}

async fn discard(bed: &Bed, command_id: CommandId) -> Option<DeadLetter> {
    let actor = Actor::local("desk");
    bed.store
        .discard_dead_letter(&bed.tenant, command_id, &actor, at(40))
        .await
        .unwrap()
}

/// How often something of this name is in the audit log.
async fn audited(bed: &Bed, action: &str) -> usize {
    let log = bed.store.list_audit(&bed.tenant, Page::first(1_000)).await;
    let records = log.unwrap().items;
    records
        .iter()
        .filter(|record| record.record.action == action)
        .count()
}

pub(crate) async fn what_could_not_be_delivered_is_kept_with_its_request(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let new = NewRun {
        reason: Some("the disk is full".to_owned()),
        timeout_ms: Some(7_000),
        ..bed.new_run(&[1], false)
    };
    let (command_id, arguments) = (new.targets[0].command_id, new.arguments.clone());
    let run = bed.submit(new).await;
    assert_eq!(listed(bed, ALL).await, [], "it waits");
    let killed = kill(bed, &session).await.dead;
    let killed: Vec<CommandId> = killed.iter().map(|dead| dead.command_id).collect();
    assert_eq!(killed, [command_id]);
    assert_eq!(bed.state(command_id).await, CommandState::Dead);
    let kept = letter(bed, command_id).await.unwrap();
    assert_eq!(
        (kept.command_id, kept.run_id, kept.agent_id),
        (command_id, run.run_id, agent(1))
    );
    assert_eq!((kept.gateway.as_str(), kept.name), ("gw-1", run.name));
    assert_eq!((kept.attempts, kept.dead_at), (0, at(20)));
    assert!(kept.cause.unwrap().contains("deliveries"));
    assert_eq!((kept.resolved_at, kept.retry_run_id), (None, None));
    assert_eq!(kept.request.arguments, arguments);
    assert_eq!(kept.request.reason.as_deref(), Some("the disk is full"));
    assert_eq!(kept.request.timeout_ms, Some(7_000));
    // The run was submitted at 10 and may start until 3600.
    assert_eq!(kept.request.deadline, Duration::from_secs(3_590));
    let counts = bed.store.counts(&bed.tenant, at(40)).await.unwrap();
    assert_eq!(counts.dead_letters, 1);
    // Whoever ends in another way is none.
    let late = bed.command(1, false).await;
    let ended = bed.store.expire_commands(&bed.tenant, 10, at(3_601)).await;
    assert_eq!(ended.unwrap()[0].command_id, late);
    assert_eq!(letter(bed, late).await, None);
}

pub(crate) async fn a_dead_letter_is_retried_once(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let command_id = dead(bed, 1, &session).await;
    // At the same moment as well.
    let submit = |new| bed.store.submit_run(&bed.tenant, new, at(15));
    let (one, other) = tokio::join!(
        submit(retry(bed, 1, command_id)),
        submit(retry(bed, 1, command_id))
    );
    let mut runs: Vec<RunId> = Vec::new();
    let mut fresh = 0;
    for answer in [one, other, submit(retry(bed, 1, command_id)).await] {
        match answer.unwrap() {
            Submission::Submitted { run, .. } => {
                fresh += 1;
                runs.push(run.run_id);
                assert_eq!(run.retry_of, Some(command_id));
            }
            Submission::Replayed(run) => runs.push(run.run_id),
            other @ (Submission::IdempotencyMismatch
            | Submission::Outdated
            | Submission::Resolved) => panic!("{other:?}"),
        }
    }
    assert_eq!(fresh, 1);
    assert!(runs.iter().all(|run| *run == runs[0]), "{runs:?}");
    let kept = letter(bed, command_id).await.unwrap();
    assert_eq!(
        (kept.retry_run_id, kept.resolved_at),
        (Some(runs[0]), Some(at(15)))
    );
    assert_eq!(kept.resolved_by.as_deref(), Some("local:test"));
    assert_eq!(kept.resolver, None, "it was no key");
    let run = bed.store.run(&bed.tenant, runs[0]).await.unwrap().unwrap();
    assert_eq!((run.retry_of, run.commands()), (Some(command_id), 1));
    assert_eq!(bed.lease(&session).await.len(), 1, "it is on its way, once");
    assert_eq!(listed(bed, DeadLetterFilter::default()).await, []);
    assert_eq!(listed(bed, ALL).await, [command_id]);
    let counts = bed.store.counts(&bed.tenant, at(40)).await.unwrap();
    assert_eq!(counts.dead_letters, 0);
    assert_eq!(discard(bed, command_id).await, Some(kept));
    assert_eq!(audited(bed, "dead_letter.retry").await, 1);
    assert_eq!(audited(bed, "dead_letter.discard").await, 0);
}

pub(crate) async fn a_refused_retry_leaves_the_dead_letter_open(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let command_id = dead(bed, 1, &session).await;
    let mut full = retry(bed, 1, command_id);
    full.limits.per_gateway = 0;
    let refused = bed.store.submit_run(&bed.tenant, full, at(30)).await;
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(listed(bed, DeadLetterFilter::default()).await, [command_id]);
    bed.submit(retry(bed, 1, command_id)).await;
}

pub(crate) async fn a_discarded_dead_letter_is_not_retried(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let command_id = dead(bed, 1, &session).await;
    for _ in 0..2 {
        let kept = discard(bed, command_id).await.unwrap();
        assert_eq!(
            (kept.resolved_at, kept.resolved_by.as_deref()),
            (Some(at(40)), Some("local:desk"))
        );
        assert_eq!(kept.retry_run_id, None);
    }
    assert_eq!(audited(bed, "dead_letter.discard").await, 1);
    let unknown = bed.command_id();
    assert_eq!(discard(bed, unknown).await, None);
    for of in [command_id, unknown] {
        let new = retry(bed, 1, of);
        let run_id = new.run_id;
        let answer = bed.store.submit_run(&bed.tenant, new, at(50)).await;
        assert_eq!(answer.unwrap(), Submission::Resolved);
        assert_eq!(bed.store.run(&bed.tenant, run_id).await.unwrap(), None);
    }
    assert_eq!(audited(bed, "dead_letter.retry").await, 0);

    let (key, other) = (bearer(bed).await, dead(bed, 1, &session).await);
    let discarded = bed
        .store
        .discard_dead_letter(&bed.tenant, other, &key, at(41));
    let discarded = discarded.await.unwrap().unwrap();
    assert_eq!(discarded.resolver.as_deref(), Some("ci"));
}

pub(crate) async fn dead_letters_are_listed_in_pages_the_latest_first(bed: &Bed) {
    let (mut all, mut of_one) = (Vec::new(), Vec::new());
    for n in [1, 2] {
        bed.gateway(n).await;
    }
    let sessions = [bed.session(1, 1).await, bed.session(2, 2).await];
    for round in 0..8 {
        let n = 1 + round % 2;
        let session = if n == 1 { &sessions[0] } else { &sessions[1] };
        let command_id = dead(bed, n, session).await;
        all.insert(0, command_id);
        if n == 1 {
            of_one.insert(0, command_id);
        }
    }
    discard(bed, all[2]).await.unwrap();
    discard(bed, of_one[1]).await.unwrap();
    assert_eq!(listed(bed, ALL).await, all);
    let one = DeadLetterFilter {
        agent_id: Some(agent(1)),
        resolved_too: true,
    };
    assert_eq!(listed(bed, one).await, of_one);
    let is_open = |id: &CommandId| *id != all[2] && *id != of_one[1];
    let open = |ids: &[CommandId]| ids.iter().copied().filter(is_open).collect::<Vec<_>>();
    assert_eq!(listed(bed, DeadLetterFilter::default()).await, open(&all));
    let one = DeadLetterFilter {
        agent_id: Some(agent(1)),
        resolved_too: false,
    };
    assert_eq!(listed(bed, one).await, open(&of_one));
}

pub(crate) async fn of_dead_letters_so_many_are_kept_and_what_is_resolved_goes_first(bed: &Bed) {
    for n in [1, 2] {
        bed.gateway(n).await;
    }
    let sessions = [bed.session(1, 1).await, bed.session(2, 2).await];
    let elsewhere = dead(bed, 2, &sessions[1]).await;
    let first = dead(bed, 1, &sessions[0]).await;
    let second = dead(bed, 1, &sessions[0]).await;
    discard(bed, second).await.unwrap();
    for _ in 0..99 {
        bed.command(1, false).await;
    }
    let killed = kill(bed, &sessions[0]).await;
    assert_eq!((killed.dead.len(), killed.dead_letters_dropped), (99, 0));
    assert_eq!(letter(bed, second).await, None, "it was decided about");
    assert!(letter(bed, first).await.is_some(), "there is room for 100");
    bed.command(1, false).await;
    bed.command(1, false).await;
    let killed = kill(bed, &sessions[0]).await;
    assert_eq!((killed.dead.len(), killed.dead_letters_dropped), (2, 2));
    assert_eq!(letter(bed, first).await, None);
    assert_eq!(listed(bed, ALL).await.len(), 101);
    assert!(letter(bed, elsewhere).await.is_some());
    // Nothing is lost with it: its run has it still.
    assert_eq!(bed.state(first).await, CommandState::Dead);
    // Of all gateways together there is a bound as well, and a job that keeps it.
    let purge = async |limit| {
        let purged = bed.store.purge(&bed.tenant, limit, at(50)).await.unwrap();
        (purged.dead_letters, purged.dead_letters_dropped)
    };
    while listed(bed, ALL).await.len() < DEAD_LETTERS_MAX {
        dead(bed, 2, &sessions[1]).await;
    }
    assert_eq!(purge(10).await, (0, 0), "as many as there may be");
    let resolved = dead(bed, 2, &sessions[1]).await;
    discard(bed, resolved).await.unwrap();
    dead(bed, 2, &sessions[1]).await;
    dead(bed, 2, &sessions[1]).await;
    let (few, rest) = (purge(1).await, purge(10).await);
    assert_eq!((few.0, rest.0), (1, 2), "a few at a time");
    assert_eq!(few.1 + rest.1, 2, "nobody had decided about those");
    assert_eq!(letter(bed, resolved).await, None, "it goes first");
    assert_eq!(letter(bed, elsewhere).await, None, "the oldest");
    assert_eq!(purge(10).await, (0, 0));
    assert_eq!(listed(bed, ALL).await.len(), DEAD_LETTERS_MAX);
}

pub(crate) async fn what_is_decided_about_is_forgotten_after_a_month(bed: &Bed) {
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let open = dead(bed, 1, &session).await;
    for _ in 0..3 {
        let resolved = dead(bed, 1, &session).await;
        discard(bed, resolved).await.unwrap();
    }
    let month = 30 * 24 * 3_600;
    for (limit, now, purged) in [(10, 39, 0), (2, 41, 2), (2, 41, 1), (2, 41, 0)] {
        let done = bed.store.purge(&bed.tenant, limit, at(month + now)).await;
        let done = done.unwrap();
        assert_eq!(done.dead_letters, purged);
        assert_eq!(done.has_reached(limit), purged == 2, "{done:?}");
    }
    assert_eq!(listed(bed, ALL).await, [open]);
}
