//! Agents that stop, by SIGTERM for good and by SIGSTOP for a while, and what they say of it.

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::gateway::{ONCE, mark_starts, started};
use viworks_testkit::process::{eventually, finish};

use super::drain::{GATED, GATED_AGAIN, gated, open_gate};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_agents_stop_by_themselves_when_they_are_asked_to() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let run = system.submit(ONCE, "1").await;
    system.finished(&run).await;
    let backend = system.backend();
    for process in [backend, &mut gateway] {
        // Also refuses one that had to drop a task when its grace period was over.
        let status = process.stop(Duration::from_secs(30)).await;
        assert!(status.success(), "{status}: {}", process.log());
        let log = process.log();
        let last = log.lines().last().unwrap_or_default();
        assert!(last.contains("stopped"), "{log}");
    }
}

/// An upgrade or a restart costs no more than a crash.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_stops_leaves_what_may_run_twice_to_its_next_process() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    gated(&folder);
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let once = system.submit(GATED, "once").await;
    let again = system.submit(GATED_AGAIN, "again").await;
    eventually("both run", PATIENCE, async || {
        (started(&folder).len() == 2).then_some(())
    })
    .await;

    let status = gateway.stop(Duration::from_secs(60)).await;
    assert!(status.success(), "{status}: {}", gateway.log());
    let left = system.commands(&again).await;
    assert_eq!(left[0]["state"], "running", "{left:#?}");

    open_gate(&folder);
    let mut gateway = system.start_gateway(&folder, Start::default());
    // Where its end was written too late to be told, the next process tells it.
    let _ended = system.finished(&once).await;
    let told = system.commands(&once).await;
    assert_eq!(told[0]["state"], "cancelled", "{told:#?}");
    let reason = told[0]["outcome"]["reason"].as_str().unwrap_or_default();
    let wanted = "the gateway agent was told to stop, and 10 s were not enough";
    assert!(reason.starts_with(wanted), "{told:#?}");
    let ended = system.finished(&again).await;
    assert_eq!(ended["counts"], json!({"succeeded": 1}), "{ended:#}");
    let times = |command: &Value| started(&folder)[command["id"].as_str().unwrap()];
    assert_eq!((times(&told[0]), times(&left[0])), (1, 2));
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_stands_still_is_told_from_one_that_is_gone() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let status = async || {
        let mut command = Command::new(Binaries::shipped().gateway());
        let socket = folder.join("state/api.sock");
        command.args(["status", "--socket"]).arg(socket);
        // Much less than somebody waits in front of a machine that is in trouble.
        finish(command, Duration::from_secs(20)).await
    };
    gateway.signal(Signal::STOP);
    let said = status().await.ended_with(69);
    assert!(
        said.stderr.contains("takes the connection") && said.stderr.contains("  fix: "),
        "{said:?}"
    );
    assert!(said.stderr.contains("not answer within 4 s"), "{said:?}");
    gateway.signal(Signal::CONT);
    let said = status().await.ended_with(0);
    assert!(said.stdout.contains("connected"), "{said:?}");
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    let said = status().await.ended_with(69);
    assert!(said.stderr.contains("does not answer at"), "{said:?}");
}
