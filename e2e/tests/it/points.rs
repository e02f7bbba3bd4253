//! A crash at every durable step of either agent: afterwards every command is final and none that must not run twice
//! did.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use viworks_runtime::fault::{POINTS, VARIABLE};
use viworks_runtime::files::is_hidden;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::gateway::{AGAIN, ONCE, mark_starts, started};
use viworks_testkit::process::finish;

use crate::enrolment::{ENROLMENT_POINTS, again};
use crate::keys::KEY_POINTS;
use crate::lapsed::DOOR_POINTS;
use crate::renewed::RENEWAL_POINTS;

fn quick() -> Start {
    Start::default()
        .with("VIWORKS__OUTBOUND__BACKOFF_MAX_MS", "300")
        .with("VIWORKS__COLLECT__INTERVAL_MS", "100")
}

fn system() -> (Deployment, PathBuf) {
    let system = Deployment::new(Binaries::with_fault_points());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    (system, folder)
}

/// Every command final, and each that must not run twice started at most once.
async fn settled(
    system: &Deployment,
    folder: &std::path::Path,
    runs: &[(&str, String)],
    point: &str,
) {
    for (command, run) in runs {
        system.finished(run).await;
        for one in system.commands(run).await {
            let id = one["id"].as_str().unwrap();
            let starts = started(folder).get(id).copied().unwrap_or(0);
            let state = one["state"].as_str().unwrap();
            match (*command, state) {
                (ONCE, "succeeded") => assert_eq!(starts, 1, "{point}: {id}"),
                (ONCE, "indeterminate") => {
                    assert!(starts <= 1, "{point}: {id} started {starts} times");
                }
                (AGAIN, "succeeded") => assert!(starts >= 1, "{point}: {id}"),
                (command, other) => panic!("{point}: {command} {id} is {other}: {one}"),
            }
        }
    }
}

/// A command that may run twice has its permit with it, and is accepted and started by one commit (*begun*); one that
/// must not is accepted first.
const GATEWAY_POINTS: [&str; 12] = [
    "journal.accepted.before_commit",
    "journal.accepted.after_commit",
    "journal.begun.before_commit",
    "journal.begun.after_commit",
    "journal.started.before_commit",
    "journal.started.after_commit",
    "journal.finished.before_commit",
    "journal.finished.after_commit",
    "journal.reported.before_commit",
    "journal.reported.after_commit",
    "spool.trimmed.before_commit",
    "spool.trimmed.after_commit",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_dies_at_any_durable_step_leaves_every_command_decided() {
    let (mut system, folder) = system();
    system.start_backend(Start::default()).await;
    // Once, so that its catalogue is known: some of the points are passed before anybody sees it online.
    let mut first = system.start_gateway(&folder, quick());
    system.online("gw-1").await;
    assert!(first.stop(Duration::from_secs(30)).await.success());
    for (n, point) in GATEWAY_POINTS.into_iter().enumerate() {
        let mut dying = system.start_gateway(&folder, quick().dying_at(&format!("{point}:2")));
        let mut runs = Vec::new();
        for (m, command) in [ONCE, AGAIN, ONCE, AGAIN].into_iter().enumerate() {
            runs.push((command, system.submit(command, &format!("{n}-{m}")).await));
        }
        let status = dying.wait(Duration::from_secs(60)).await;
        assert!(
            !status.success(),
            "{point} was never reached: {}",
            dying.log()
        );
        let mut healthy = system.start_gateway(&folder, quick());
        settled(&system, &folder, &runs, point).await;
        assert!(healthy.stop(Duration::from_secs(30)).await.success());
    }
}

const BACKEND_POINTS: [&str; 12] = [
    "store.submit.before_commit",
    "store.submit.after_commit",
    "queue.offered.before_lease",
    "store.release.before_commit",
    "store.release.after_commit",
    "release.committed.before_go",
    "store.result.before_commit",
    "store.result.after_commit",
    "result.committed.before_acknowledgement",
    "store.telemetry.before_commit",
    "store.telemetry.after_commit",
    "telemetry.committed.before_acknowledgement",
];

/// Between the confirmation of a session and the look for what waits, with something between the backends.
pub(crate) const ENTRY_POINTS: [&str; 3] = [
    "session.confirmed.before_entry",
    "session.entered.before_route",
    "session.routed.before_look",
];

/// While an operator's key is made on the backend's machine.
const API_KEY_POINTS: [&str; 2] = ["api_key.written", "api_key.stored"];

#[test]
fn every_crash_point_of_the_product_is_passed_by_a_test() {
    let tested = GATEWAY_POINTS.into_iter().chain(BACKEND_POINTS);
    let tested = tested
        .chain(ENTRY_POINTS)
        .chain(RENEWAL_POINTS)
        .chain(DOOR_POINTS)
        .chain(KEY_POINTS)
        .chain(API_KEY_POINTS);
    let tested = tested.chain(ENROLMENT_POINTS.map(|(point, _times)| point));
    let tested: BTreeSet<_> = tested.chain(again::BACKEND_POINTS).collect();
    assert_eq!(tested, POINTS.iter().copied().collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_dies_at_any_durable_step_loses_and_repeats_nothing() {
    let (mut system, folder) = system();
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, quick());
    system.online("gw-1").await;
    for (n, point) in BACKEND_POINTS.into_iter().enumerate() {
        assert!(
            system
                .backend()
                .stop(Duration::from_secs(30))
                .await
                .success()
        );
        // Only what no session takes at its birth is offered by the queue.
        let is_away = point == "queue.offered.before_lease";
        if is_away {
            gateway.signal(Signal::STOP);
        }
        system
            .start_backend(Start::default().dying_at(&format!("{point}:2")))
            .await;
        let mut runs = Vec::new();
        let mut crashed = false;
        for (m, command) in [ONCE, AGAIN, ONCE, AGAIN].into_iter().enumerate() {
            let key = format!("{n}-{m}");
            let answered = tokio::select! {
                run = system.submit(command, &key) => Some(run),
                () = died(&system) => None,
            };
            let run = if let Some(run) = answered {
                run
            } else {
                // A submission without an answer is repeated with its key.
                revive(&mut system, &mut crashed).await;
                system.submit(command, &key).await
            };
            runs.push((command, run));
        }
        if is_away {
            gateway.signal(Signal::CONT);
        }
        if !crashed {
            tokio::select! {
                () = settled(&system, &folder, &runs, point) => {}
                () = died(&system) => {}
            }
            revive(&mut system, &mut crashed).await;
        }
        settled(&system, &folder, &runs, point).await;
    }
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_for_operators_has_its_file_once_it_opens_something_and_is_made_again() {
    let (mut system, _folder) = system();
    system.start_backend(Start::default()).await;
    let key = system.path().join("keys/second.key");
    std::fs::create_dir(system.path().join("keys")).unwrap();
    let config = system.path().join("backend/backend.toml");
    let create = |point: Option<&str>| {
        let mut command = Command::new(system.binaries().backend());
        command.args(["apikey", "create", "--name", "second", "--scopes", "all"]);
        command.arg("--config").arg(&config).arg("--out").arg(&key);
        command.envs(point.map(|point| (VARIABLE, point)));
        command
    };
    for point in API_KEY_POINTS {
        let said = finish(create(Some(point)), PATIENCE).await;
        assert_eq!(said.code, None, "{point}: {said:#?}");
        assert!(!key.exists(), "{point}");
    }
    drop(finish(create(None), PATIENCE).await.ended_with(0));
    let mut asked = Command::new(system.binaries().cli());
    system.ask_with(&key, asked.args(["gateway", "ls"]));
    drop(finish(asked, PATIENCE).await.ended_with(0));
    // What the killed ones left is no key to anybody who looks for one.
    let names = std::fs::read_dir(system.path().join("keys")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name());
    let seen: Vec<_> = names.filter(|name| !is_hidden(name)).collect();
    assert_eq!(seen, ["second.key"]);
}

/// Waits for the crash and starts a backend without one.
async fn revive(system: &mut Deployment, crashed: &mut bool) {
    let status = system.backend().wait(Duration::from_secs(60)).await;
    assert!(!status.success(), "it was killed: {status}");
    *crashed = true;
    system.start_backend(Start::default()).await;
}

/// Until the API stops answering: the backend died at its point.
async fn died(system: &Deployment) {
    while system.request("GET", "/livez", None).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
