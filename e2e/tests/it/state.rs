//! State folders by flag: what an agent keeps lies where its command line says, whatever the configuration says.

use std::process::Command;

use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, run, text};
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
