//! Many intents at the same moment: each comes to its own end, whatever becomes of those that it goes together with.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::sync::Barrier;
use viworks_backend_agent::data::postgres::{Address, PostgresStore, Role};
use viworks_backend_agent::data::{
    AcceptOutcome, Accepted, Actor, AdmitOutcome, AdmitRequest, CommandOutput, CompleteOutcome,
    ConfirmOutcome, ConfirmRequest, Idempotency, NewRun, Place, StoreError, Submission,
};
use viworks_common::command::{CommandState, Outcome, OutcomeState, RetainedOutput};
use viworks_common::id::CommandId;
use viworks_testkit::deployment::PATIENCE;
use viworks_testkit::postgres::Server;
use viworks_testkit::process::eventually;
use viworks_testkit::thief::Thief;

use super::bed::{Bed, LEASE, Session, agent, at, outcome, process};
use super::instances::two_backends;
use super::postgres_only::finish;
use super::{database, make};

/// Gateways with a session each: enough for some to wait while others are written.
const GATEWAYS: u64 = 24;

async fn fleet(bed: &Bed, gateways: u64) -> Vec<Session> {
    let mut sessions = Vec::new();
    for n in 1..=gateways {
        bed.gateway(n).await;
        sessions.push(bed.session(n, 1).await);
    }
    sessions
}

/// Which gateway of a fleet a session is of.
fn number(session: &Session) -> u64 {
    let n = (1..=GATEWAYS).find(|n| agent(*n) == session.holder.agent_id);
    n.expect("one of the fleet")
}

/// A run for the gateway of a session that has kept room.
fn with_room(bed: &Bed, session: &Session, idempotent: bool) -> NewRun {
    let mut new = bed.new_run(&[number(session)], idempotent);
    new.targets[0].place = Some(Place {
        epoch: session.holder.epoch,
        run: session.holder.agent_run_id,
    });
    new
}

/// When everything happens: what is remembered is of a moment ago, and not of one that is to come.
const NOW: i64 = 10;

async fn accepted(bed: &Bed, session: &Session, command_id: CommandId) -> AcceptOutcome {
    let accepted = Accepted {
        command_id,
        idempotent: false,
        awaiting_permit: true,
    };
    let told = bed
        .store
        .accept_command(&bed.tenant, &session.holder, accepted, at(NOW))
        .await;
    told.unwrap()
}

async fn ended(
    bed: &Bed,
    session: &Session,
    command_id: CommandId,
    told: Outcome,
) -> Result<CompleteOutcome, StoreError> {
    bed.store
        .complete_command(&bed.tenant, &session.holder, command_id, told, at(NOW))
        .await
}

async fn succeeded(bed: &Bed, session: &Session, command_id: CommandId) -> CompleteOutcome {
    let ended = ended(bed, session, command_id, outcome(OutcomeState::Succeeded)).await;
    ended.unwrap()
}

/// Submits a run whose command is offered at once; the order that it has.
async fn offered(bed: &Bed, new: NewRun) -> u64 {
    let submitted = bed.store.submit_run(&bed.tenant, new, at(NOW)).await;
    let Ok(Submission::Submitted { offered, .. }) = submitted else {
        panic!("{submitted:?}");
    };
    assert_eq!(offered.len(), 1);
    offered[0].command.order
}

/// A command from its submission to its end; the order that it had.
async fn whole(bed: &Bed, session: &Session, idempotent: bool) -> u64 {
    let new = with_room(bed, session, idempotent);
    let (run_id, command_id) = (new.run_id, new.targets[0].command_id);
    let order = offered(bed, new).await;
    if !idempotent {
        let permit = accepted(bed, session, command_id).await;
        assert!(matches!(permit, AcceptOutcome::Go { .. }), "{permit:?}");
    }
    let ended = succeeded(bed, session, command_id).await;
    let CompleteOutcome::Completed { settled, run, .. } = ended else {
        panic!("{ended:?}");
    };
    let run = run.expect("it was the only command of its run");
    assert!(settled.run_finished && run.finished_at == Some(at(NOW)));
    assert_eq!(run.states, [(CommandState::Succeeded, 1)].into());
    let stored = bed.store.run(&bed.tenant, run_id).await.unwrap();
    assert_eq!(stored, Some(*run), "the answer says what is stored");
    order
}

pub(crate) async fn commands_of_many_gateways_all_end(bed: &Bed) {
    let sessions = fleet(bed, GATEWAYS).await;
    for round in 1..=4 {
        let all = sessions
            .iter()
            .map(|session| whole(bed, session, round % 2 == 0));
        for order in join_all(all).await {
            assert_eq!(order, round);
        }
    }
    for session in &sessions {
        let gateway = bed.gateway_now(number(session)).await;
        assert_eq!(gateway.low_water, 4);
        assert!(bed.lease(session).await.is_empty(), "none waits");
    }
    let audited = bed.audited().await;
    for action in ["run.submit", "command.end"] {
        let told = audited.iter().filter(|told| *told == action).count();
        assert_eq!(told, 4 * sessions.len(), "{action}");
    }
}

pub(crate) async fn commands_of_one_gateway_keep_their_order(bed: &Bed) {
    let sessions = fleet(bed, 1).await;
    for _round in 0..3 {
        join_all((0..8).map(|n| whole(bed, &sessions[0], n % 2 == 0))).await;
    }
    let orders = join_all((0..8).map(|_| offered(bed, with_room(bed, &sessions[0], true)))).await;
    let orders: BTreeSet<u64> = orders.into_iter().collect();
    assert_eq!(orders, (25..=32).collect());
    assert_eq!(bed.gateway_now(1).await.low_water, 24);
}

pub(crate) async fn one_that_may_not_stops_no_other(bed: &Bed) {
    let sessions = fleet(bed, GATEWAYS).await;
    let key = Idempotency {
        principal: "test".to_owned(),
        route: "runs".to_owned(),
        key: "one".to_owned(),
        request_hash: [1; 32],
    };
    let mut first = with_room(bed, &sessions[0], true);
    first.idempotency = Some(key.clone());
    let first_id = first.run_id;
    offered(bed, first).await;
    join_all(
        sessions
            .iter()
            .skip(1)
            .map(|session| whole(bed, session, true)),
    )
    .await;

    // The key was used, the gateway was revoked, its session is another one, its run is there already.
    let mut used = with_room(bed, &sessions[0], true);
    used.idempotency = Some(key);
    let revoked = with_room(bed, &sessions[1], true);
    let actor = Actor::local("test");
    bed.store
        .revoke_gateway(&bed.tenant, agent(2), None, &actor, at(NOW))
        .await
        .unwrap();
    let fenced = with_room(bed, &sessions[2], true);
    bed.session(3, 1).await;
    let mut again = with_room(bed, &sessions[3], true);
    again.run_id = first_id;
    let odd = [used, revoked, fenced, again];
    let others = sessions
        .iter()
        .skip(4)
        .map(|session| with_room(bed, session, true));
    let all: Vec<NewRun> = odd.into_iter().chain(others).collect();
    let submit = |new| bed.store.submit_run(&bed.tenant, new, at(NOW));
    let answers = join_all(all.into_iter().map(submit)).await;

    assert!(matches!(&answers[0], Ok(Submission::Replayed(run)) if run.run_id == first_id));
    assert!(matches!(&answers[1], Err(StoreError::Missing { .. })));
    assert!(matches!(&answers[2], Ok(Submission::Submitted { offered, .. }) if offered.is_empty()));
    assert!(matches!(&answers[3], Ok(Submission::Replayed(run)) if run.run_id == first_id));
    for answer in &answers[4..] {
        let told =
            matches!(answer, Ok(Submission::Submitted { offered, .. }) if offered.len() == 1);
        assert!(told, "{answer:?}");
    }
}

pub(crate) async fn what_was_printed_is_kept_and_nothing_is_nothing(bed: &Bed) {
    let sessions = fleet(bed, 3).await;
    for round in 0..2 {
        let all = join_all(sessions.iter().map(async |session| {
            let new = with_room(bed, session, true);
            let command_id = new.targets[0].command_id;
            offered(bed, new).await;
            let prints = number(session) == 2;
            let quiet = Outcome {
                stdout: RetainedOutput::default(),
                ..outcome(OutcomeState::Succeeded)
            };
            let told = if prints {
                outcome(OutcomeState::Succeeded)
            } else {
                quiet
            };
            let unheard = bed.store.command_output(&bed.tenant, command_id).await;
            assert_eq!(unheard.unwrap(), None);
            let completed = ended(bed, session, command_id, told.clone()).await;
            assert!(matches!(completed, Ok(CompleteOutcome::Completed { .. })));
            (command_id, told)
        }))
        .await;
        for (command_id, told) in all {
            let kept = bed.store.command_output(&bed.tenant, command_id).await;
            let expected = CommandOutput {
                stdout: told.stdout,
                stderr: told.stderr,
            };
            assert_eq!(kept.unwrap(), Some(expected), "round {round}");
        }
    }
}

/// The answer to a statement that carried out several is lost: nobody knows of any of them, and each is safe to repeat.
#[tokio::test]
async fn of_those_whose_answer_is_lost_each_is_safe_to_repeat() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = database(&folder) else {
        return;
    };
    make(server, &database);
    let thief = Thief::before(server.port()).await.unwrap();
    let bed = beside(thief.port(), &database).await;
    let sessions = fleet(&bed, GATEWAYS).await;
    let warm = async || {
        join_all(sessions.iter().map(|session| whole(&bed, session, false))).await;
    };
    warm().await;
    warm().await;

    let new: Vec<NewRun> = sessions
        .iter()
        .map(|session| with_room(&bed, session, false))
        .collect();
    let middle = agent(GATEWAYS / 2).to_string();
    thief.arm_for(&middle);
    let submit = |new: &NewRun| bed.store.submit_run(&bed.tenant, new.clone(), at(NOW));
    let submitted = join_all(new.iter().map(submit));
    let answers = once_they_wait(server, &database, "open_commands", submitted).await;
    let lost = answers.iter().filter(|answer| is_unknown(answer)).count();
    assert!(lost > 1, "{lost} went together");
    for (new, answer) in new.iter().zip(&answers) {
        assert!(is_unknown(answer) || matches!(answer, Ok(Submission::Submitted { .. })));
        // Unless it is here before what nobody waits for any more.
        let known = match submit(new).await {
            Ok(Submission::Replayed(run)) => run.run_id,
            Ok(Submission::Submitted { run, .. }) if is_unknown(answer) => run.run_id,
            other => panic!("{other:?}"),
        };
        assert_eq!(known, new.run_id);
    }
    warm().await;

    let commands = join_all(sessions.iter().map(async |session| {
        let new = with_room(&bed, session, false);
        let command_id = new.targets[0].command_id;
        offered(&bed, new).await;
        accepted(&bed, session, command_id).await;
        (session, command_id)
    }))
    .await;
    thief.arm_for(&middle);
    let complete = async |(session, command_id): &(&Session, CommandId)| {
        ended(&bed, session, *command_id, outcome(OutcomeState::Succeeded)).await
    };
    let completed = join_all(commands.iter().map(complete));
    let ended = once_they_wait(server, &database, "open_commands", completed).await;
    let lost = ended.iter().filter(|answer| is_unknown(answer)).count();
    assert!(lost > 1, "{lost} went together");
    for (one, answer) in commands.iter().zip(&ended) {
        match complete(one).await {
            Ok(CompleteOutcome::Repeated { .. }) => {}
            Ok(CompleteOutcome::Completed { .. }) if is_unknown(answer) => {}
            other => panic!("{other:?}"),
        }
    }
    let audited = bed.audited().await;
    for (action, times) in [("run.submit", 5), ("command.end", 4)] {
        let told = audited.iter().filter(|told| *told == action).count();
        assert_eq!(told, times * sessions.len(), "{action}");
    }
    bed.store.close().await;
    super::postgres_counts_are_right(&folder);
}

/// The same of sessions that open together: whoever asks again has the one that was asked for.
#[tokio::test]
async fn of_openings_whose_answer_is_lost_each_is_safe_to_repeat() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = database(&folder) else {
        return;
    };
    make(server, &database);
    let thief = Thief::before(server.port()).await.unwrap();
    let bed = beside(thief.port(), &database).await;
    let before = fleet(&bed, GATEWAYS).await;

    // The gateway in the middle was started anew: its process is named by nothing but what writes.
    const ANEW: u64 = 77;
    let hellos: Vec<_> = before
        .iter()
        .map(|session| {
            let n = number(session);
            let run = if n == GATEWAYS / 2 { ANEW } else { 1 };
            bed.hello(n, run, session.holder.epoch)
        })
        .collect();
    thief.arm_for(&process(ANEW).to_string());
    let admit = async |hello: &AdmitRequest| {
        let hello = hello.clone();
        bed.store.admit(&bed.tenant, hello, at(NOW)).await
    };
    let admitted = join_all(hellos.iter().map(admit));
    let answers = once_they_wait(server, &database, "sessions", admitted).await;
    let lost = answers.iter().filter(|answer| is_unknown(answer)).count();
    assert!(lost > 1, "{lost} went together");
    // Nobody knows which epoch was issued: the gateway dials again and presents the one that it has.
    let mut confirms = Vec::new();
    for (hello, answer) in hellos.iter().zip(answers) {
        let mut hello = hello.clone();
        let admitted = match answer {
            Ok(AdmitOutcome::Accepted(admitted)) => *admitted,
            Err(StoreError::Unknown(_)) => {
                hello.session_id = bed.hello(1, 1, 1).session_id;
                bed.admitted(hello.clone()).await
            }
            other => panic!("{other:?}"),
        };
        confirms.push(bed.confirm_of(&hello, &admitted));
    }

    thief.arm_for(&process(ANEW).to_string());
    let confirm = async |request: &ConfirmRequest| {
        let request = request.clone();
        bed.store
            .confirm_session(&bed.tenant, request, at(NOW))
            .await
    };
    let confirmed = join_all(confirms.iter().map(confirm));
    let answers = once_they_wait(server, &database, "sessions", confirmed).await;
    let lost = answers.iter().filter(|answer| is_unknown(answer)).count();
    assert!(lost > 1, "{lost} went together");
    for (request, answer) in confirms.iter().zip(answers) {
        assert!(is_unknown(&answer) || matches!(answer, Ok(ConfirmOutcome::Confirmed(_))));
        let again = confirm(request).await;
        assert!(
            matches!(again, Ok(ConfirmOutcome::Confirmed(_))),
            "{again:?}"
        );
    }
    for (session, request) in before.iter().zip(&confirms) {
        let now = bed.gateway_now(number(session)).await;
        assert_eq!(now.confirmed, request.issued);
        let live = now.session.unwrap();
        assert_eq!(live.session_id, request.session_id);
        let sessions = bed
            .store
            .list_sessions(&bed.tenant, request.agent_id, 10)
            .await;
        let open = sessions.unwrap();
        let open = open
            .iter()
            .filter(|one| one.confirmed_at.is_some() && one.ended_at.is_none());
        assert_eq!(open.count(), 1);
    }
    bed.store.close().await;
    super::postgres_counts_are_right(&folder);
}

/// A row that cannot be read is told to its own gateway, and keeps no other out that opens at the same moment.
#[tokio::test]
async fn a_gateway_whose_row_cannot_be_read_keeps_no_other_out() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = database(&folder) else {
        return;
    };
    make(server, &database);
    let bed = beside(server.port(), &database).await;
    let before = fleet(&bed, GATEWAYS).await;
    let broken = agent(GATEWAYS / 2);
    let spoil = format!("UPDATE gateways SET take_overs = '{{}}' WHERE agent_id = '{broken}'");
    server.psql(&database, &spoil).unwrap();
    let hellos = before
        .iter()
        .map(|session| bed.hello(number(session), 1, session.holder.epoch));
    let admitted = join_all(hellos.map(|hello| bed.store.admit(&bed.tenant, hello, at(NOW))));
    for (session, answer) in before.iter().zip(admitted.await) {
        if session.holder.agent_id == broken {
            assert!(
                matches!(answer, Err(StoreError::Inconsistent { .. })),
                "{answer:?}"
            );
        } else {
            assert!(
                matches!(answer, Ok(AdmitOutcome::Accepted(_))),
                "{answer:?}"
            );
        }
    }
    bed.store.close().await;
}

/// Telemetry of the older session that is being written is written before the newer one is confirmed, or not at all.
#[tokio::test]
async fn a_confirm_waits_for_telemetry_that_is_being_written() {
    const HAS_IT: &str = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    const WAITS: &str = "\
        SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'";
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = database(&folder) else {
        return;
    };
    make(server, &database);
    let bed = Arc::new(beside(server.port(), &database).await);
    fleet(&bed, 1).await;
    let hello = bed.hello(1, 1, 1);
    let admitted = bed.admitted(hello.clone()).await;
    let take = format!(
        "BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('{} telemetry {}', 0)); SELECT pg_sleep(600)",
        bed.tenant,
        agent(1)
    );
    let name = database.clone();
    let holder = std::thread::spawn(move || server.psql(&name, &take));
    let ask = |question: &str| server.psql(&database, question).unwrap().trim().to_owned();
    let holds = eventually("somebody writes", PATIENCE, async || {
        Some(ask(HAS_IT)).filter(|pid| !pid.is_empty())
    })
    .await;
    let (same, request) = (Arc::clone(&bed), bed.confirm_of(&hello, &admitted));
    let mut confirm = std::pin::pin!(async move { same.confirm(request).await });
    let waits = eventually("it waits", PATIENCE, async || {
        (ask(WAITS) == "1").then_some(())
    });
    tokio::select! {
        biased;
        confirmed = &mut confirm => panic!("it did not wait: {confirmed:?}"),
        () = waits => {}
    }
    ask(&format!("SELECT pg_terminate_backend({holds})"));
    holder.join().unwrap().unwrap_err();
    assert!(matches!(confirm.await, ConfirmOutcome::Confirmed(_)));
    bed.store.close().await;
}

/// A store of somebody beside the backends, with few connections.
async fn beside(port: u16, database: &str) -> Bed {
    let url = format!("postgres://viworks@127.0.0.1:{port}/{database}?sslmode=disable");
    let address = Address::parse(&url, None, None).unwrap().connections_max(4);
    let store = PostgresStore::open(address, Role::Beside, true);
    Bed::new(Arc::new(store.await.unwrap()))
}

/// What becomes of intents of which the first wait for a table that somebody has, until all of them have come.
async fn once_they_wait<T>(
    server: &'static Server,
    database: &str,
    table: &str,
    intents: impl Future<Output = T>,
) -> T {
    const HAS_IT: &str = "\
        SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    const WAITS: &str = "\
        SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let (name, found) = (database.to_owned(), database.to_owned());
    let take = format!("BEGIN; LOCK TABLE {table} IN EXCLUSIVE MODE; SELECT pg_sleep(600)");
    let ask = move |question: &'static str| {
        server.asked_until(&found, question, |answer| !answer.is_empty())
    };
    let holder = std::thread::spawn(move || server.psql(&name, &take));
    let holds = ask(HAS_IT);
    let let_go = tokio::task::spawn_blocking({
        let database = database.to_owned();
        move || {
            ask(WAITS);
            let end = format!("SELECT pg_terminate_backend({holds})");
            server.psql(&database, &end).unwrap();
            holder.join().unwrap().unwrap_err();
        }
    });
    let (done, gone) = tokio::join!(intents, let_go);
    gone.unwrap();
    done
}

fn is_unknown<T>(answer: &Result<T, StoreError>) -> bool {
    matches!(answer, Err(StoreError::Unknown(_)))
}

/// What another backend changes of the same rows meanwhile is never written over.
#[tokio::test]
async fn a_cancel_at_another_backend_meets_the_end_of_a_command() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other, _)) = two_backends(&folder).await else {
        return;
    };
    let sessions = fleet(&one, 4).await;
    join_all(sessions.iter().map(|session| whole(&one, session, true))).await;
    for round in 0..100 {
        let idempotent = round % 2 == 0;
        let new: Vec<NewRun> = sessions
            .iter()
            .map(|session| with_room(&one, session, idempotent))
            .collect();
        join_all(new.iter().map(|new| offered(&one, new.clone()))).await;
        let barrier = Barrier::new(2);
        let report = async {
            barrier.wait().await;
            let all = sessions.iter().zip(&new).map(async |(session, new)| {
                let command_id = new.targets[0].command_id;
                let permit = if idempotent {
                    AcceptOutcome::Wait
                } else {
                    accepted(&one, session, command_id).await
                };
                if permit == AcceptOutcome::Drop {
                    return CommandState::Cancelled;
                }
                let ended = succeeded(&one, session, command_id).await;
                assert!(
                    matches!(ended, CompleteOutcome::Completed { .. }),
                    "{ended:?}"
                );
                CommandState::Succeeded
            });
            join_all(all).await
        };
        let cancel = async {
            barrier.wait().await;
            let actor = Actor::local("test");
            for run in &new {
                let (tenant, run_id) = (&other.tenant, run.run_id);
                let done = other
                    .store
                    .cancel_run(tenant, run_id, &actor, at(NOW))
                    .await;
                done.unwrap().expect("the run is there");
            }
        };
        let (ended, ()) = tokio::join!(report, cancel);
        for (run, state) in new.iter().zip(ended) {
            let stored = other.store.run(&other.tenant, run.run_id).await.unwrap();
            let stored = stored.expect("the run is there");
            assert_eq!(stored.states, [(state, 1)].into(), "round {round}");
            assert!(stored.finished_at.is_some());
        }
    }
    finish(&folder, one, other).await;
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
