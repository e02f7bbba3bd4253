//! The bound that the system sets: files and sockets together. Both agents take as many as they need and may have, tell
//! when those are too few, and stay well when there are none left.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::process::{Process, eventually, finish};

use super::told::status;

/// What the condition is called.
const TOO_FEW: &str = "descriptors.limit";

/// The limits of open files of a process, soft and hard.
fn limits_of(process: &Process) -> (u64, u64) {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.pid())).unwrap();
    let mut lines = limits.lines();
    let line = lines.find(|line| line.starts_with("Max open files"));
    let words: Vec<&str> = line.unwrap().split_whitespace().collect();
    (words[3].parse().unwrap(), words[4].parse().unwrap())
}

/// What has this name among what is wrong.
fn told<'d>(found: &'d Value, name: &str) -> Option<&'d Value> {
    let mut found = found.as_array()?.iter();
    found.find(|one| one["name"] == name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_takes_all_the_files_it_may_have_and_tells_when_they_are_too_few() {
    let mut system = Deployment::new(Binaries::shipped());
    system
        .start_backend(
            Start::default()
                .with_files(256, 1_024)
                .with("VIWORKS__AGENTS__CONNECTIONS_MAX", "20000"),
        )
        .await;
    assert_eq!(limits_of(system.backend()), (1_024, 1_024));
    let health = system.get("/v1/health").await;
    let found = told(&health["checks"], TOO_FEW).unwrap_or_else(|| panic!("{health:#}"));
    assert_eq!(found["status"], "warn");
    let detail = found["detail"].as_str().unwrap();
    let fewer = "no more than 660 gateways and 220 operators";
    for words in [
        fewer,
        "1,024 files",
        "connections_max of [agents]",
        "LimitNOFILE",
    ] {
        assert!(detail.contains(words), "{words}: {detail}");
    }
    assert!(system.backend().stop(PATIENCE).await.success());

    let few = Start::default()
        .with_files(256, 1_024)
        .with("VIWORKS__AGENTS__CONNECTIONS_MAX", "400")
        .with("VIWORKS__API__CONNECTIONS_MAX", "400");
    system.start_backend(few).await;
    let health = system.get("/v1/health").await;
    assert_eq!(told(&health["checks"], TOO_FEW), None, "{health:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_proxy_as_many_sockets_again_are_counted_for_whom_it_is_about_to_connect() {
    let mut system = Deployment::new(Binaries::shipped());
    let behind = |gateways: &str| {
        Start::default()
            .with_files(256, 1_024)
            .with("VIWORKS__AGENTS__PROXY_PROTOCOL", "require")
            .with("VIWORKS__AGENTS__TRUSTED_PROXIES", "127.0.0.1")
            .with("VIWORKS__AGENTS__CONNECTIONS_MAX", gateways)
            .with("VIWORKS__API__CONNECTIONS_MAX", "220")
    };
    // As many as there are files for without a proxy.
    system.start_backend(behind("660")).await;
    let health = system.get("/v1/health").await;
    let found = told(&health["checks"], TOO_FEW).unwrap_or_else(|| panic!("{health:#}"));
    let detail = found["detail"].as_str().unwrap();
    for words in [
        "no more than 330 gateways and 220 operators",
        "come to 1,684",
    ] {
        assert!(detail.contains(words), "{words}: {detail}");
    }
    assert!(system.backend().stop(PATIENCE).await.success());

    system.start_backend(behind("330")).await;
    let health = system.get("/v1/health").await;
    assert_eq!(told(&health["checks"], TOO_FEW), None, "{health:#}");
    assert!(system.backend().stop(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_proxy_the_door_for_new_gateways_counts_as_many_sockets_again() {
    let mut system = Deployment::new(Binaries::shipped());
    let with_door = || {
        Start::default()
            .with_files(256, 1_024)
            .with("VIWORKS__AGENTS__CONNECTIONS_MAX", "330")
            .with("VIWORKS__API__CONNECTIONS_MAX", "220")
            .with("VIWORKS__ENROLMENT__LISTEN", "127.0.0.1:0")
            .with("VIWORKS__ENROLMENT__CONNECTIONS_MAX", "330")
    };
    // As many as there are files for without a proxy.
    system.start_backend(with_door()).await;
    let health = system.get("/v1/health").await;
    assert_eq!(told(&health["checks"], TOO_FEW), None, "{health:#}");
    assert!(system.backend().stop(PATIENCE).await.success());

    let behind = with_door()
        .with("VIWORKS__ENROLMENT__PROXY_PROTOCOL", "require")
        .with("VIWORKS__ENROLMENT__TRUSTED_PROXIES", "127.0.0.1");
    system.start_backend(behind).await;
    let health = system.get("/v1/health").await;
    let found = told(&health["checks"], TOO_FEW).unwrap_or_else(|| panic!("{health:#}"));
    let detail = found["detail"].as_str().unwrap();
    for words in [
        "no more than 165 gateways and 55 operators",
        "come to 1,354",
        "and of [enrolment]",
    ] {
        assert!(detail.contains(words), "{words}: {detail}");
    }
    assert!(system.backend().stop(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_takes_as_many_files_as_its_bounds_need() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let conditions = async |folder: &Path| {
        let socket = folder.join("state/api.sock");
        status(system.binaries(), &socket).await.json()["conditions"].clone()
    };

    let mut gateway = system.start_gateway(&folder, Start::default().with_files(64, 4_096));
    system.online("gw-1").await;
    let (soft, hard) = limits_of(&gateway);
    assert!((128..1_024).contains(&soft), "{soft}");
    assert_eq!(hard, 4_096);
    assert_eq!(told(&conditions(&folder).await, TOO_FEW), None);
    assert!(gateway.stop(PATIENCE).await.success());

    let gateway = system.start_gateway(&folder, Start::default().with_files(64, 100));
    system.online("gw-1").await;
    assert_eq!(limits_of(&gateway), (100, 100));
    let conditions = conditions(&folder).await;
    let found = told(&conditions, TOO_FEW).unwrap_or_else(|| panic!("{conditions:#}"));
    let fix = found["fix"].as_str().unwrap();
    assert!(fix.contains("parallel_max of [executor]"), "{fix}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_few_files_strangers_leave_enough_for_sessions_commands_and_operators() {
    const FILES: u32 = 256;
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    // Strangers hold their sockets for as long as the test lasts.
    let start = Start::default()
        .with_files(FILES, FILES)
        .with("VIWORKS__AGENTS__TLS_TIMEOUT_MS", "60000");
    system.start_backend(start).await;
    let _gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;

    let strangers: Vec<TcpStream> = (0..2 * FILES)
        .map(|_number| TcpStream::connect(system.agents_address()).unwrap())
        .collect();
    eventually("no further one is let in", PATIENCE, async || {
        let (_status, metrics) = system.request("GET", "/metrics", None).await.ok()?;
        let refused = "viworks_agent_refusals_total{reason=";
        metrics.as_str()?.contains(refused).then_some(())
    })
    .await;
    let run = system.submit("sys.uptime", "while-full").await;
    let _run = system.finished(&run).await;
    assert_eq!(system.commands(&run).await[0]["state"], "succeeded");
    let api = system.api_url().replace("http://", "");
    let _newcomer = finish(health(&system, &api), PATIENCE).await.ended_with(0);
    assert!(!system.backend().log().contains("cannot accept connections"));
    drop(strangers);
}

/// Asks a backend how it is, over a connection of its own.
fn health(system: &Deployment, api: &str) -> Command {
    let mut command = Command::new(system.binaries().backend());
    command.args(["health", "--address", api]);
    command
}
