//! A state folder that is lost: what the gateway tells of it, and the ways out.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use viworks_common::code::CloseCode;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, run, text};
use viworks_testkit::gateway::{AGAIN, ONCE, mark_starts, started};
use viworks_testkit::process::{eventually, finish};

use super::desk::viworks;
use super::told::{cause, fails_with, failure, status_where, told_there};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_state_folder_is_named_beside_the_copy_and_the_name_can_be_issued_again() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    let first = system.online("gw-1").await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    std::fs::remove_dir_all(folder.join("state")).unwrap();
    let mut refused = system.start_gateway(&folder, Start::default());
    let status = fails_with(system.binaries(), &folder, "identity_fork").await;
    let cause = cause(&status).to_owned();
    assert!(cause.contains("state was lost or restored"), "{status:#}");
    assert!(cause.contains("holds no session yet"), "{status:#}");
    assert_eq!(failure(&status)["fix"], CloseCode::IdentityFork.advice());
    told_there(
        &mut system,
        &["refused a session", "gw-1", "gateway forks shows both"],
    )
    .await;

    // Both holders are seen, by the API and by the command line.
    let forks = system.get("/v1/gateways/gw-1/forks").await;
    let fork = &forks["items"][0];
    assert_ne!(
        fork["refused"]["install_id"],
        fork["accepted"]["install_id"]
    );
    assert_eq!(fork["refused"]["boot_id"], fork["accepted"]["boot_id"]);
    let token = system.path().join("operator.key");
    for verb in ["show", "forks"] {
        let command = viworks(&system, &token, &["gateway", verb, "gw-1"]);
        let said = finish(command, PATIENCE).await.ended_with(0);
        for side in ["refused", "accepted"] {
            let install = fork[side]["install_id"].as_str().unwrap();
            assert!(said.stdout.contains(install), "{said:#?}");
        }
        let all = format!("{}{}", said.stdout, said.stderr);
        assert!(all.contains("state folder was lost"), "{said:#?}");
    }

    // The way out that the page describes.
    let config = system.backend_config();
    let backend = system.binaries().backend();
    let revoke = [
        "gateway",
        "revoke",
        "gw-1",
        "--reason",
        "its disk was lost",
        "--config",
        text(&config),
    ];
    run(&backend, &revoke);
    let mut twice = Command::new(&backend);
    twice.args(revoke);
    let said = finish(twice, PATIENCE).await.ended_with(0);
    let told = "gw-1 was revoked already, ";
    assert!(said.stdout.starts_with(told), "{said:#?}");
    let again = system.path().join("gateways/again");
    run(
        &backend,
        &[
            "pki",
            "issue-gateway",
            "gw-1",
            "--config",
            text(&config),
            "--out",
            text(&again),
            "--demo",
        ],
    );
    let _new = system.start_gateway(&again, Start::default());
    let now = system.online("gw-1").await;
    assert_ne!(now["id"], first["id"]);
    let old = system
        .get(&format!("/v1/gateways/{}", first["id"].as_str().unwrap()))
        .await;
    assert_eq!(old["status"], "revoked");
    assert_eq!(old["revocation"]["reason"], "its disk was lost");
    assert!(
        old["name"].as_str().unwrap().starts_with("gw-1-revoked-"),
        "{old:#}"
    );
    assert!(refused.stop(Duration::from_secs(30)).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_folder_that_is_lost_under_a_running_agent_is_noticed_and_starts_nothing_twice() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    system.start_backend(Start::default()).await;
    let socket = system.path().join("gw.sock");
    let start = Start::default().with("VIWORKS__GATEWAY__SOCKET", text(&socket));
    let mut gateway = system.start_gateway(&folder, start);
    system.online("gw-1").await;
    let aside = folder.join("aside");
    std::fs::rename(folder.join("state"), &aside).unwrap();
    let condition = |status: &Value| {
        status["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|condition| condition["name"] == "state_folder" && condition["severity"] == "fail")
    };
    let (status, exit) = status_where("it is noticed", system.binaries(), &socket, condition).await;
    assert_eq!(
        (exit, &status["connection"]["connected"]),
        (20, &Value::from(true))
    );

    let once = system.submit(ONCE, "once").await;
    let again = system.submit(AGAIN, "again").await;
    system.finished(&again).await;
    assert_eq!(system.commands(&again).await[0]["state"], "succeeded");
    eventually("it is refused with a reason", PATIENCE, async || {
        let log = gateway.log();
        log.contains("the state folder is lost").then_some(())
    })
    .await;
    assert_eq!(started(&folder).len(), 1);
    assert_ne!(system.commands(&once).await[0]["state"], "succeeded");

    // Whoever only has the command's end learns why it never started.
    let body = serde_json::json!({ "command": ONCE, "targets": "all", "deadline_ms": 4_000 });
    let late = system.post("/v1/runs", &body).await;
    let late = late["id"].as_str().unwrap();
    system.finished(late).await;
    let late = &system.commands(late).await[0];
    assert_eq!(late["state"], "expired", "{late:#}");
    let reason = late["reason"].as_str().unwrap();
    for words in [
        "its deadline passed before it could start; the gateway refused it: ",
        "the state folder is lost",
    ] {
        assert!(reason.contains(words), "{reason}");
    }

    // And so does whoever waits for it, while they wait.
    let key = system.path().join("operator.key");
    let words = ["run", ONCE, "-g", "gw-1", "--yes", "--expires", "4s"];
    let said = finish(viworks(&system, &key, &words), PATIENCE).await;
    let waiting = said
        .stderr
        .lines()
        .find(|line| line.contains("waiting for"));
    let waiting = waiting.unwrap_or_else(|| panic!("{said:#?}"));
    assert!(
        waiting.contains("the gateway refused it: the state folder is lost"),
        "{said:#?}"
    );
    assert!(!waiting.contains("about to start"), "{said:#?}");

    // Back where it was: nothing has to be restarted.
    std::fs::rename(&aside, folder.join("state")).unwrap();
    system.finished(&once).await;
    let ran = &system.commands(&once).await[0];
    assert_eq!(ran["state"], "succeeded");
    assert_eq!(ran["reason"], Value::Null, "a refusal that is over");
    assert_eq!(started(&folder).len(), 2);
    let (_status, exit) = status_where("all is well", system.binaries(), &socket, |status| {
        !condition(status)
    })
    .await;
    assert_eq!(exit, 0);
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}
