//! State folders: what an agent keeps lies where its command line says, and a backend that lost its own says so.

use std::process::Command;

use serde_json::{Value, json};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, run, text};
use viworks_testkit::gateway::{ONCE, mark_starts, started};
use viworks_testkit::held_database::HeldDatabase;
use viworks_testkit::process::{Process, eventually, finish};

use super::told::status_where;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_agents_keep_their_state_where_the_flag_says() {
    let system = Deployment::new(Binaries::shipped());
    let elsewhere = system.path().join("else where");
    run(
        &system.binaries().backend(),
        &[
            "migrate",
            "--config",
            text(&system.backend_config()),
            "--state-folder",
            text(&elsewhere),
        ],
    );
    assert!(elsewhere.join("backend.sqlite").is_file());

    let folder = system.issue("gw-1");
    let own = system.path().join("own state");
    let mut command = Command::new(system.binaries().gateway());
    command
        .args([
            "run",
            "--config",
            text(&folder.join("gateway.toml")),
            "--state-folder",
            text(&own),
        ])
        .env(
            "VIWORKS__OUTBOUND__URL",
            "wss://127.0.0.1:1/agent/v1/connect",
        );
    let gateway = Process::start(&mut command, &folder.join("gateway.log")).unwrap();
    eventually("the gateway keeps its state there", PATIENCE, async || {
        own.join("api.sock").exists().then_some(())
    })
    .await;
    assert!(!folder.join("state/api.sock").exists(), "{}", gateway.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_whose_state_folder_is_gone_acknowledges_nothing_until_it_is_back() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let before = system.submit(ONCE, "before").await;
    system.finished(&before).await;

    let (state, aside) = (
        system.path().join("backend/state"),
        system.path().join("backend/aside"),
    );
    std::fs::rename(&state, &aside).unwrap();
    eventually("the backend is not ready", PATIENCE, async || {
        let (status, _body) = system.request("GET", "/readyz", None).await.ok()?;
        (status == 503).then_some(())
    })
    .await;
    let health = system.get("/v1/health").await.to_string();
    assert!(
        health.contains("store.commits") && health.contains("was removed while this process runs"),
        "{health}"
    );
    let body = json!({"command": ONCE, "targets": "all", "reason": "lost"});
    let (status, answer) = system
        .request("POST", "/v1/runs", Some(&body))
        .await
        .unwrap();
    assert_eq!(status, 503, "{answer}");

    std::fs::rename(&aside, &state).unwrap();
    eventually("the backend is ready again", PATIENCE, async || {
        let (status, _body) = system.request("GET", "/readyz", None).await.ok()?;
        (status == 200).then_some(())
    })
    .await;
    system.online("gw-1").await;
    let after = system.submit(ONCE, "after").await;
    system.finished(&after).await;
    system.finished(&before).await;
    assert!(gateway.stop(PATIENCE).await.success());
    assert!(system.backend().stop(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_whose_journal_another_process_holds_refuses_commands_until_it_is_let_go() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let socket = folder.join("state/api.sock");
    let told = |status: &Value| {
        let listed = status["conditions"].as_array().cloned().unwrap_or_default();
        listed.into_iter().find(|found| found["name"] == "journal")
    };

    let held = HeldDatabase::take(&folder.join("state/journal.db"));
    let run = system.submit(ONCE, "held").await;
    let (status, exit) = status_where("it is told", system.binaries(), &socket, |status| {
        told(status).is_some()
    })
    .await;
    assert_eq!(exit, 20, "{status:#}");
    let condition = told(&status).unwrap();
    assert_eq!(condition["severity"], "fail", "{status:#}");
    let cause = condition["cause"].as_str().unwrap();
    for words in [
        "state/journal.db cannot be written",
        "locked by another process",
    ] {
        assert!(cause.contains(words), "{cause}");
    }
    eventually("the command is refused", PATIENCE, async || {
        let log = gateway.log();
        let refused =
            |line: &str| line.contains("refused a command") && line.contains("journal_unavailable");
        log.lines().any(refused).then_some(())
    })
    .await;
    assert_eq!(started(&folder).len(), 0);
    assert_eq!(status["connection"]["connected"], true, "{status:#}");

    drop(held);
    system.finished(&run).await;
    assert_eq!(system.commands(&run).await[0]["state"], "succeeded");
    assert_eq!(started(&folder).len(), 1);
    let healed = status_where("it is over", system.binaries(), &socket, |status| {
        told(status).is_none()
    });
    assert_eq!(healed.await.1, 0);
    assert!(gateway.stop(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_with_another_master_key_than_its_gateways_is_refused() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    let file = system.path().join("backend/master.key");
    let own = std::fs::read(&file).unwrap();
    // Over what is there: its mode stays.
    std::fs::write(&file, "ab".repeat(32)).unwrap();
    let (config, out) = (system.backend_config(), system.path().join("gw-2"));
    let serve = vec!["serve", "--config", text(&config)];
    let mut issue = vec!["pki", "issue-gateway", "gw-2", "--config", text(&config)];
    issue.extend(["--out", text(&out), "--demo"]);
    let check = vec!["check-config", "--config", text(&config), "--connect"];
    for refused in [serve, check, issue] {
        let mut command = Command::new(system.binaries().backend());
        command.args(&refused);
        let said = finish(command, PATIENCE).await.ended_with(78);
        assert!(said.stderr.contains("another master key"), "{said:#?}");
        assert!(said.stderr.contains("master.key"), "{said:#?}");
        assert!(said.stderr.contains("replace-master-key"), "{said:#?}");
    }

    std::fs::write(&file, own).unwrap();
    system.start_backend(Start::default()).await;
    let gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    drop(gateway);
    system.kill_backend();

    // The old one is lost, and somebody says so.
    std::fs::write(&file, "cd".repeat(32)).unwrap();
    let replace = ["pki", "replace-master-key", "--config", text(&config)];
    run(&system.binaries().backend(), &replace);
    system.start_backend(Start::default()).await;
    let names = system.get("/v1/gateways").await;
    assert_eq!(names["items"][0]["name"], "gw-1", "{names:#}");
}
