//! An agent in another language, written from `docs/protocol.md` alone, against the shipped backend.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, text};
use viworks_testkit::process::{Process, eventually, finish};

/// Set by `cargo xtask test` where there is no Python, after it said so; without it a missing Python fails these tests.
const WITHOUT_PYTHON: &str = "VIWORKS_WITHOUT_PYTHON";
/// Records that each process of the agent writes into its spool when it starts.
const RECORDS: usize = 500;

fn skipped() -> bool {
    std::env::var_os(WITHOUT_PYTHON).is_some()
}

fn program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testkit/python/reference_agent.py")
}

/// Python cannot export keys of TLS, so the listener binds sessions to the certificate.
fn by_certificate() -> Start {
    Start::default().with("VIWORKS__AGENTS__BINDING", "certificate")
}

fn pins(folder: &Path) -> Vec<String> {
    let config = std::fs::read_to_string(folder.join("gateway.toml")).unwrap();
    let pins: Vec<String> = config
        .split('"')
        .filter(|text| text.starts_with("sha256/"))
        .map(str::to_owned)
        .collect();
    assert!(!pins.is_empty(), "{config}");
    pins
}

fn start(system: &Deployment, folder: &Path) -> Process {
    let mut command = Command::new("python3");
    command
        .arg(program())
        .args(["run", "--identity", text(folder)])
        .args(["--state", text(&folder.join("python"))])
        .args(["--address", system.agents_address()])
        .args(["--records", &RECORDS.to_string()]);
    for pin in pins(folder) {
        command.args(["--pin", &pin]);
    }
    Process::start(&mut command, &folder.join("python.log")).expect("python3 starts the agent")
}

async fn run(system: &Deployment, command: &str, word: &str) -> Value {
    let body = json!({"command": command, "arguments": {"word": word}, "targets": {"gateways": ["gw-py"]}});
    let run = system.post("/v1/runs", &body).await;
    let id = run["id"].as_str().unwrap();
    system.finished(id).await;
    let command = system.commands(id).await.remove(0);
    let id = command["id"].as_str().unwrap();
    let run = run["id"].as_str().unwrap();
    system.get(&format!("/v1/runs/{run}/commands/{id}")).await
}

fn appended(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join("python/appended")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Until what the agent holds is acknowledged as committed.
async fn delivered(process: &Process, times: usize) {
    eventually("all telemetry is acknowledged", PATIENCE, async || {
        (process.log().matches("delivered ").count() >= times).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reference_agent_agrees_with_the_vectors() {
    if skipped() {
        return;
    }
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol/vectors.json");
    let mut command = Command::new("python3");
    command.arg(program()).arg("vectors").arg(vectors);
    let said = finish(command, PATIENCE).await.ended_with(0);
    assert!(said.stdout.contains("the vectors are right"), "{said:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_written_from_the_page_serves_through_restarts_of_both_ends() {
    if skipped() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-py");
    system.start_backend(by_certificate()).await;
    let mut agent = start(&system, &folder);
    let gateway = system.online("gw-py").await;
    assert_eq!(gateway["agent_version"], "reference 1");
    assert_eq!(gateway["session"]["epoch"], 1);

    let echoed = run(&system, "ref.echo", "hello").await;
    assert_eq!(echoed["state"], "succeeded", "{echoed}");
    assert_eq!(
        echoed["outcome"]["stdout"]["head"]["text"], "hello\n",
        "{echoed}"
    );
    let written = run(&system, "ref.append", "one").await;
    assert_eq!(written["state"], "succeeded", "{written}");
    let refused = system
        .request(
            "POST",
            "/v1/runs",
            Some(&json!({"command": "ref.append", "arguments": {"word": "NO"}, "targets": {"gateways": ["gw-py"]}})),
        )
        .await
        .unwrap();
    assert_eq!(
        refused.0, 422,
        "the backend knows its pattern: {}",
        refused.1
    );
    delivered(&agent, 1).await;

    // The agent dies and comes back with its state: the next epoch of the same identity.
    agent.kill();
    let mut agent = start(&system, &folder);
    eventually("its next epoch", PATIENCE, async || {
        let epoch = system.online("gw-py").await["session"]["epoch"].as_u64()?;
        (epoch == 2).then_some(())
    })
    .await;
    assert_eq!(
        run(&system, "ref.append", "two").await["state"],
        "succeeded"
    );
    delivered(&agent, 2).await;

    // The backend dies; the agent reconnects by itself.
    system.kill_backend();
    system.start_backend(by_certificate()).await;
    eventually("its third epoch", PATIENCE, async || {
        let epoch = system.online("gw-py").await["session"]["epoch"].as_u64()?;
        (epoch == 3).then_some(())
    })
    .await;
    assert_eq!(
        run(&system, "ref.append", "three").await["state"],
        "succeeded"
    );
    assert_eq!(appended(&folder), ["one", "two", "three"]);

    // A backend that stops says so; then nothing may be missing and nothing be twice.
    agent.signal(Signal::TERM);
    let ended = agent.wait(Duration::from_secs(30)).await;
    assert!(ended.success(), "{}", agent.log());
    assert!(
        system
            .backend()
            .stop(Duration::from_secs(30))
            .await
            .success()
    );
    let stored = system.stored_telemetry("ref.tick");
    assert_eq!(
        (stored.records, stored.keys, stored.in_gaps),
        (2 * RECORDS, 2 * RECORDS, 0)
    );
    assert_eq!(system.open_commands(), 0);
    let log = agent.log();
    assert!(
        !log.contains("broken") && !log.contains("Traceback"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_the_reference_agents_state_is_refused_for_good() {
    if skipped() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-py");
    system.start_backend(by_certificate()).await;
    let mut agent = start(&system, &folder);
    system.online("gw-py").await;
    agent.kill();
    // The state as it was issued, once the original has moved on.
    std::fs::rename(folder.join("python"), folder.join("python.moved")).unwrap();
    let mut copy = start(&system, &folder);
    assert_eq!(copy.wait(PATIENCE).await.code(), Some(1), "{}", copy.log());
    assert!(
        copy.log().contains("refused for good identity_fork"),
        "{}",
        copy.log()
    );
}
