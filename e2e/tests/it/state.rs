//! State folders: what an agent keeps lies where its command line says, and a backend that lost its own says so.

use std::process::Command;

use serde_json::json;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, run, text};
use viworks_testkit::gateway::{ONCE, mark_starts};
use viworks_testkit::process::{Process, eventually};

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
