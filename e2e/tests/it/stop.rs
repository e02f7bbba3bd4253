//! Agents that stop, by SIGTERM for good and by SIGSTOP for a while, and what they say of it.

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, Start};
use viworks_testkit::gateway::{ONCE, mark_starts};
use viworks_testkit::process::finish;

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
    gateway.signal(Signal::CONT);
    let said = status().await.ended_with(0);
    assert!(said.stdout.contains("connected"), "{said:?}");
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    let said = status().await.ended_with(69);
    assert!(said.stderr.contains("does not answer at"), "{said:?}");
}
