//! What only a server brings along: two who write at once, and databases that cannot be used.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tempfile::TempDir;
use viworks_backend_agent::data::postgres::{Address, Error, PostgresStore, Role};
use viworks_backend_agent::data::{
    Actor, CompleteOutcome, ConfirmOutcome, HeartbeatFigures, Idempotency, SessionTouch, Store,
    StoreError, Submission, UpkeepStore as _,
};
use viworks_common::command::{CommandState, OutcomeState};
use viworks_testkit::process::eventually;

use super::bed::{Bed, LEASE, agent, at, outcome};
use super::{database, make};

/// Two stores on one database, as two processes have them.
pub(super) async fn two(folder: &TempDir) -> Option<(Bed, Bed)> {
    let (server, database) = database(folder)?;
    make(server, &database);
    let open = async || {
        let address = Address::parse(&server.url(&database), None, None).unwrap();
        let store = PostgresStore::open(address.connections_max(8), Role::Beside, true);
        let store: Arc<dyn Store> = Arc::new(store.await.unwrap());
        Bed::new(store)
    };
    Some((open().await, open().await))
}

pub(super) async fn finish(folder: &TempDir, one: Bed, other: Bed) {
    one.store.close().await;
    other.store.close().await;
    super::postgres_counts_are_right(folder);
}

#[tokio::test]
async fn runs_that_two_submit_at_once_count_on_without_holes() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other)) = two(&folder).await else {
        return;
    };
    for n in 1..=3 {
        one.gateway(n).await;
    }
    // Ids are of one bed only; each run is for all gateways, named in another order by each.
    for _round in 0..20 {
        let (a, b) = (
            one.new_run(&[1, 2, 3], false),
            one.new_run(&[3, 2, 1], false),
        );
        let submitted = tokio::join!(
            one.store.submit_run(&one.tenant, a, at(1)),
            other.store.submit_run(&one.tenant, b, at(1)),
        );
        for submission in [submitted.0.unwrap(), submitted.1.unwrap()] {
            assert!(
                matches!(submission, Submission::Submitted { .. }),
                "{submission:?}"
            );
        }
    }
    for n in 1..=3 {
        let gateway = one.gateway_now(n).await;
        assert_eq!((gateway.next_order, gateway.open_commands), (41, 40));
    }
    finish(&folder, one, other).await;
}

#[tokio::test]
async fn two_that_submit_at_once_stay_within_the_bound_of_all() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other)) = two(&folder).await else {
        return;
    };
    for n in 1..=12 {
        one.gateway(n).await;
    }
    let new = |n: u64| {
        let mut new = one.new_run(&[n], false);
        new.limits.global = 10;
        new
    };
    let runs: Vec<_> = (1..=12).chain(1..=12).map(new).collect();
    let (a, b) = runs.split_at(12);
    let submit = |bed: &Bed, runs: &[viworks_backend_agent::data::NewRun]| {
        let store = Arc::clone(&bed.store);
        let (tenant, runs) = (bed.tenant.clone(), runs.to_vec());
        async move {
            join_all(
                runs.into_iter()
                    .map(|run| store.submit_run(&tenant, run, at(1))),
            )
            .await
        }
    };
    let (a, b) = tokio::join!(submit(&one, a), submit(&other, b));
    let accepted = a.iter().chain(&b).filter(|it| it.is_ok()).count();
    assert_eq!(accepted, 10);
    let full = |it: &&Result<_, _>| matches!(it, Err(StoreError::QueueFull { .. }));
    assert_eq!(a.iter().chain(&b).filter(full).count(), 14);
    finish(&folder, one, other).await;
}

#[tokio::test]
async fn one_key_used_by_two_at_once_is_one_run() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other)) = two(&folder).await else {
        return;
    };
    one.gateway(1).await;
    for round in 0..20 {
        let new = |bed: &Bed| {
            let mut new = bed.new_run(&[1], false);
            new.idempotency = Some(Idempotency {
                principal: "api_key:1".to_owned(),
                route: "POST /v1/runs".to_owned(),
                key: format!("key-{round}"),
                request_hash: [7; 32],
            });
            new
        };
        let (a, b) = (new(&one), new(&one));
        let (a, b) = tokio::join!(
            one.store.submit_run(&one.tenant, a, at(1)),
            other.store.submit_run(&one.tenant, b, at(1)),
        );
        let replayed = [a.unwrap(), b.unwrap()].into_iter();
        let replayed = replayed.filter(|one| matches!(one, Submission::Replayed(_)));
        assert_eq!(replayed.count(), 1);
    }
    assert_eq!(one.gateway_now(1).await.open_commands, 20);
    finish(&folder, one, other).await;
}

/// Case 3 of the ten: whatever is released under an epoch is released before the next one is confirmed.
#[tokio::test]
async fn nothing_is_released_under_an_epoch_that_another_one_follows() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other)) = two(&folder).await else {
        return;
    };
    one.gateway(1).await;
    let mut session = one.session(1, 1).await;
    let (mut first, mut fenced) = (0, 0);
    for round in 2..150 {
        let command = one.command(1, true).await;
        let hello = one.hello(1, round, session.admitted.issued);
        let admitted = one.admitted(hello.clone()).await;
        let confirm = one.confirm_of(&hello, &admitted);
        // With an open command a confirmation asks first and is the later one, unless the lease is late.
        let late = Duration::from_micros(200 * (round % 30));
        let (leased, confirmed) = tokio::join!(
            async {
                tokio::time::sleep(late).await;
                one.store
                    .lease_commands(&one.tenant, &session.holder, LEASE, at(20))
                    .await
            },
            other.store.confirm_session(&one.tenant, confirm, at(20)),
        );
        let ConfirmOutcome::Confirmed(confirmed) = confirmed.unwrap() else {
            panic!("not confirmed");
        };
        let now = one.command_now(command).await;
        match leased {
            // Then the confirmation saw it, and took it back from the process that is gone.
            Ok(leased) => {
                first += 1;
                assert_eq!((leased.commands.len(), now.attempt), (1, 1));
                assert_ne!(now.state, CommandState::Released, "{confirmed:?}");
            }
            Err(StoreError::Fenced) => {
                fenced += 1;
                assert_eq!((now.state, now.attempt), (CommandState::Queued, 0));
            }
            Err(error) => panic!("{error:?}"),
        }
        let opened = one.open(one.hello(1, round, admitted.issued)).await;
        one.store
            .cancel_run(&one.tenant, now.run_id, &Actor::local("test"), at(30))
            .await
            .unwrap();
        for left in one.lease(&opened).await {
            one.complete(&opened, left.command_id, OutcomeState::Succeeded)
                .await;
        }
        session = opened;
    }
    assert!(
        first > 0 && fenced > 0,
        "each came first at times: {first} and {fenced}"
    );
    finish(&folder, one, other).await;
}

#[tokio::test]
async fn results_and_cancels_of_two_at_once_come_to_one_end_each() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other)) = two(&folder).await else {
        return;
    };
    one.gateway(1).await;
    let session = one.session(1, 1).await;
    for _round in 0..60 {
        let command = one.command(1, true).await;
        let run = one.command_now(command).await.run_id;
        one.lease(&session).await;
        let actor = Actor::local("test");
        let (completed, cancelled, overdue) = tokio::join!(
            one.store.complete_command(
                &one.tenant,
                &session.holder,
                command,
                outcome(OutcomeState::Succeeded),
                at(10),
            ),
            other.store.cancel_run(&one.tenant, run, &actor, at(10)),
            other
                .store
                .end_overdue(&one.tenant, Duration::ZERO, 100, at(1_000_000)),
        );
        cancelled.unwrap().unwrap();
        let ended = overdue
            .unwrap()
            .iter()
            .filter(|it| it.command_id == command)
            .count();
        match completed.unwrap() {
            CompleteOutcome::Completed { .. } => assert_eq!(ended, 0),
            CompleteOutcome::LateOutcome { .. } => assert_eq!(ended, 1),
            other @ (CompleteOutcome::Repeated { .. } | CompleteOutcome::Orphan { .. }) => {
                panic!("{other:?}")
            }
        }
    }
    assert_eq!(one.gateway_now(1).await.open_commands, 0);
    finish(&folder, one, other).await;
}

#[tokio::test]
async fn runs_for_many_gateways_named_in_other_orders_do_not_wait_in_a_circle() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other)) = two(&folder).await else {
        return;
    };
    let numbers: Vec<u64> = (1..=8).collect();
    for n in &numbers {
        one.gateway(*n).await;
    }
    let mut backwards = numbers.clone();
    backwards.reverse();
    for _round in 0..15 {
        let a = (0..4).map(|_| {
            one.store
                .submit_run(&one.tenant, one.new_run(&numbers, false), at(1))
        });
        let b = (0..4).map(|_| {
            other
                .store
                .submit_run(&one.tenant, one.new_run(&backwards, false), at(1))
        });
        let (a, b) = tokio::join!(join_all(a), join_all(b));
        assert!(a.iter().chain(&b).all(Result::is_ok));
    }
    assert_eq!(one.gateway_now(8).await.next_order, 121);
    finish(&folder, one, other).await;
}

pub(super) async fn open(url: &str, role: Role) -> Result<PostgresStore, Error> {
    PostgresStore::open(Address::parse(url, None, None).unwrap(), role, true).await
}

#[tokio::test]
async fn a_database_that_cannot_be_used_is_refused_in_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = database(&folder) else {
        return;
    };
    let url = server.url(&database);
    let refused = async |why: &str, lasting: bool| {
        let error = open(&url, Role::Backend).await.unwrap_err();
        let (said, cause) = (error.to_string(), format!("{error:?}"));
        assert!(
            said.contains(why) || cause.contains(why),
            "{why}: {said}: {cause}"
        );
        assert_eq!(error.is_lasting(), lasting, "{said}");
    };
    refused("does not exist", true).await;
    server.make_empty(&database);
    server
        .psql(&database, "CREATE TABLE notes (text text)")
        .unwrap();
    refused("1 table of something else", true).await;
    server.psql(&database, "DROP TABLE notes").unwrap();
    open(&url, Role::Backend).await.unwrap().close().await;
    let newer = "INSERT INTO _sqlx_migrations VALUES (9999, 'later', now(), true, '\\x00', 0)";
    server.psql(&database, newer).unwrap();
    refused("version 9999", true).await;
    server
        .psql(
            &database,
            "DELETE FROM _sqlx_migrations WHERE version = 9999",
        )
        .unwrap();
    server
        .psql(&database, "UPDATE _sqlx_migrations SET checksum = '\\x00'")
        .unwrap();
    refused("is not the one of this program", true).await;
    server.drop(&database);
    server.make_empty(&database);
    server.psql(&database, "CREATE ROLE reader LOGIN").unwrap();
    let reader = url.replace("viworks@", "reader@");
    let error = open(&reader, Role::Backend).await.unwrap_err();
    assert!(
        matches!(&error, Error::Schema(said) if said.contains("the user reader may make no tables in the schema public")),
        "{error:?}"
    );
    let set = "ALTER ROLE reader SET default_transaction_read_only = on";
    server.psql(&database, set).unwrap();
    let error = open(&reader, Role::Backend).await.unwrap_err();
    assert!(
        matches!(&error, Error::Unfit(said) if said.contains("takes no writes")),
        "{error:?}"
    );
    server.psql(&database, "DROP ROLE reader").unwrap();
    // One that is there, and belongs to somebody else.
    open(&url, Role::Backend).await.unwrap().close().await;
    server.psql(&database, "CREATE ROLE guest LOGIN").unwrap();
    let guest = url.replace("viworks@", "guest@");
    let error = open(&guest, Role::Backend).await.unwrap_err();
    assert!(matches!(error, Error::Forbidden(_)), "{error:?}");
    assert!(
        error.to_string().contains("permission denied for table"),
        "{error}"
    );
    server.psql(&database, "DROP ROLE guest").unwrap();
    let nobody = url.replace("viworks@", "nobody@");
    let error = open(&nobody, Role::Backend).await.unwrap_err();
    assert!(error.is_lasting(), "{error:?}");
    let unreachable = "postgres://viworks@127.0.0.1:1/viworks?sslmode=disable";
    let error = open(unreachable, Role::Backend).await.unwrap_err();
    assert!(!error.is_lasting(), "{error:?}");
    server.drop(&database);
}

#[tokio::test]
async fn the_audit_log_on_a_server_cannot_be_changed_or_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other)) = two(&folder).await else {
        return;
    };
    let (server, database) = database(&folder).unwrap();
    one.gateway(1).await;
    for sql in [
        "UPDATE audit_log SET action = 'x'",
        "DELETE FROM audit_log",
        "TRUNCATE audit_log",
    ] {
        let refused = server.psql(&database, sql).unwrap_err();
        assert!(refused.contains("append-only"), "{sql}: {refused}");
    }
    assert_eq!(one.audited().await, ["gateway.create"]);
    finish(&folder, one, other).await;
}

/// The server ends every connection, as at a restart: what comes next is carried out on new ones.
#[tokio::test]
async fn connections_that_the_server_ends_are_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other)) = two(&folder).await else {
        return;
    };
    let (server, database) = database(&folder).unwrap();
    one.gateway(1).await;
    for round in 0..5 {
        let end = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{database}' AND pid <> pg_backend_pid()"
        );
        server.psql("postgres", &end).unwrap();
        one.command(1, false).await;
        assert_eq!(one.gateway_now(1).await.open_commands, round + 1);
    }
    finish(&folder, one, other).await;
}

/// Many are stored at once, and what somebody else has locked is waited for beside that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heartbeat_of_a_gateway_that_is_locked_is_stored_when_it_is_free() {
    let folder = tempfile::tempdir().unwrap();
    let Some((one, other)) = two(&folder).await else {
        return;
    };
    let (server, database) = database(&folder).unwrap();
    let mut touches = Vec::new();
    for n in 1..=3 {
        one.gateway(n).await;
        let session = one.session(n, n).await;
        touches.push(SessionTouch {
            agent_id: agent(n),
            epoch: session.holder.epoch,
            figures: HeartbeatFigures::default(),
        });
    }
    // Of a session that is none any more.
    touches[2].epoch += 1;
    let holder = server.database(&database);
    let hold = "SET application_name = 'holder'; \
                SELECT pg_sleep(600) FROM (SELECT 1 FROM gateways WHERE name = 'gw-1' FOR UPDATE) AS locked";
    let holding = tokio::task::spawn_blocking(move || holder.ask(hold));
    let held = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'holder' AND wait_event = 'PgSleep'";
    eventually("it is held", Duration::from_secs(10), async || {
        (server.psql(&database, held).unwrap() == "1").then_some(())
    })
    .await;
    let seen = async |n| one.gateway_now(n).await.last_seen_at;
    let before = seen(3).await;
    let beside = async {
        eventually(
            "the others are stored",
            Duration::from_secs(10),
            async || (seen(2).await == Some(at(77))).then_some(()),
        )
        .await;
        assert_ne!(seen(1).await, Some(at(77)));
        let free = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holder'";
        server.psql(&database, free).unwrap();
    };
    let stored = one.store.touch_sessions(&one.tenant, touches, at(77));
    let (stored, ()) = tokio::join!(stored, beside);
    stored.unwrap();
    assert_eq!((seen(1).await, seen(3).await), (Some(at(77)), before));
    // It was ended.
    holding.await.unwrap().unwrap_err();
    finish(&folder, one, other).await;
}

/// Whoever migrates holds the others up as long as that takes, and they start then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_waits_for_a_migration_of_another_however_long_that_takes() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = database(&folder) else {
        return;
    };
    server.make_empty(&database);
    // The lock of the library, by its number, for longer than a lock of a table is waited for.
    let number = 0x3d32_ad9e_i64 * i64::from(crc(&database));
    let hold = format!("SELECT pg_advisory_lock({number}), pg_sleep(7)");
    let (holder, url) = (server.database(&database), server.url(&database));
    let holding = tokio::task::spawn_blocking(move || holder.ask(&hold));
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted \
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    eventually("it is held", Duration::from_secs(10), async || {
        (server.psql(&database, held).unwrap() == "1").then_some(())
    })
    .await;
    let store = open(&url, Role::Beside).await.unwrap();
    holding.await.unwrap().unwrap();
    store.close().await;
    server.drop(&database);
}

/// The sum that the library makes of a name.
fn crc(name: &str) -> u32 {
    let mut sum = !0_u32;
    for byte in name.bytes() {
        sum ^= u32::from(byte);
        for _bit in 0..8 {
            sum = if sum & 1 == 1 {
                (sum >> 1) ^ 0xEDB8_8320
            } else {
                sum >> 1
            };
        }
    }
    !sum
}

#[tokio::test]
async fn what_passes_by_itself_during_a_migration_is_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = database(&folder) else {
        return;
    };
    server.make_empty(&database);
    // The server is told to end whoever makes the table.
    let end = "CREATE FUNCTION end_it() RETURNS event_trigger LANGUAGE plpgsql AS $$ \
               BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); END $$";
    server.psql(&database, end).unwrap();
    let trigger = "CREATE EVENT TRIGGER end_it ON ddl_command_start WHEN TAG IN ('CREATE VIEW') EXECUTE FUNCTION end_it()";
    server.psql(&database, trigger).unwrap();
    let url = server.url(&database);
    let error = open(&url, Role::Beside).await.unwrap_err();
    assert!(!error.is_lasting(), "{error:?}");
    server.psql(&database, "DROP EVENT TRIGGER end_it").unwrap();
    open(&url, Role::Beside).await.unwrap().close().await;
    server.drop(&database);
}
