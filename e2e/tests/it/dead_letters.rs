//! A command that no delivery brings to its gateway: told of, retried once, discarded, by the shipped programs.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::gateway::{ONCE, mark_starts, started};
use viworks_testkit::postgres::Own;
use viworks_testkit::process::{Said, eventually, finish};

/// Where a gateway dies that has got a command and not taken it on.
const BEFORE_IT_IS_TAKEN: &str = "journal.accepted.before_commit";

async fn viworks(system: &Deployment, arguments: &[&str]) -> Said {
    let mut command = Command::new(Binaries::shipped().cli());
    command.args(arguments);
    system.ask(&mut command);
    finish(command, PATIENCE).await
}

async fn document(system: &Deployment, arguments: &[&str]) -> Value {
    let mut all = arguments.to_vec();
    all.extend(["-o", "json"]);
    viworks(system, &all).await.ended_with(0).json()
}

/// Submits a command that kills its gateway whenever it comes, as often as may be; its id, once it is dead.
async fn dead(system: &Deployment, folder: &Path, key: &str) -> String {
    let quick = || Start::default().with("VIWORKS__OUTBOUND__BACKOFF_MAX_MS", "300");
    let mut gateway = system.start_gateway(folder, quick().dying_at(BEFORE_IT_IS_TAKEN));
    system.online("gw-1").await;
    let run = system.submit(ONCE, key).await;
    for _delivery in 0..2 {
        assert!(!gateway.wait(PATIENCE).await.success());
        gateway = system.start_gateway(folder, quick().dying_at(BEFORE_IT_IS_TAKEN));
    }
    let run = system.finished(&run).await;
    assert_eq!(run["counts"], json!({"dead": 1}), "{run}");
    assert!(gateway.ended().is_none(), "it was not delivered once more");
    let commands = system.commands(run["id"].as_str().unwrap()).await;
    commands[0]["id"].as_str().unwrap().to_owned()
}

async fn told(system: &Deployment) -> bool {
    let health = system.get("/v1/health").await;
    let checks = health["checks"].as_array().unwrap();
    let mut names = checks.iter().map(|check| &check["name"]);
    names.any(|name| name == "queued.dead_letters")
}

async fn decided_about(mut system: Deployment) {
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    let twice = Start::default().with("VIWORKS__QUEUE__ATTEMPTS_MAX", "2");
    system.start_backend(twice).await;
    let one = dead(&system, &folder, "one").await;
    let other = dead(&system, &folder, "other").await;
    eventually("health speaks of them", PATIENCE, async || {
        told(&system).await.then_some(())
    })
    .await;
    let list = document(&system, &["dlq", "ls"]).await;
    let ids = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap();
        let ids = items.iter().map(|item| item["id"].as_str().unwrap());
        ids.map(str::to_owned).collect()
    };
    assert_eq!(ids(&list), [other.clone(), one.clone()], "{list:#}");
    let shown = viworks(&system, &["dlq", "ls", "-g", "gw-1"])
        .await
        .ended_with(0);
    assert!(
        shown.stdout.contains(&one) && shown.stdout.contains("deliveries is used up"),
        "{shown:#?}"
    );
    assert!(shown.stderr.contains("2 commands wait for a decision"));
    let shown = viworks(&system, &["dlq", "show", &one]).await.ended_with(0);
    assert!(shown.stdout.contains("after 2 deliveries"), "{shown:#?}");
    assert!(started(&folder).is_empty(), "neither has run");

    // What stood in the way is mended.
    let mut gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let run = document(&system, &["dlq", "retry", &one]).await;
    let id = run["id"].as_str().unwrap();
    assert_eq!(run["retry_of"], one.as_str());
    let done = system.finished(id).await;
    assert_eq!(done["counts"], json!({"succeeded": 1}), "{done}");
    let again = viworks(&system, &["dlq", "retry", &one])
        .await
        .ended_with(0);
    assert_eq!(again.stdout.trim(), id);
    assert!(again.stderr.contains("nothing new was run"), "{again:#?}");
    let head = viworks(&system, &["runs", "show", id]).await.ended_with(0);
    assert!(
        head.stdout.contains(&format!("retries   {one}")),
        "{head:#?}"
    );
    let refused = viworks(&system, &["dlq", "discard", &one]).await;
    assert!(refused.ended_with(6).stderr.contains("VW-N-002"));
    let gone = viworks(&system, &["dlq", "discard", &other]).await;
    assert!(gone.ended_with(0).stdout.contains("is discarded"));
    let shown = viworks(&system, &["dlq", "show", &other])
        .await
        .ended_with(0);
    assert!(shown.stdout.contains(" by tests\n"), "{shown:#?}");
    let refused = viworks(&system, &["dlq", "retry", &other]).await;
    assert!(refused.ended_with(6).stderr.contains("VW-N-002"));
    assert_eq!(ids(&document(&system, &["dlq", "ls"]).await), [""; 0]);
    let all = document(&system, &["dlq", "ls", "--all"]).await;
    let states: Vec<&Value> = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| &item["state"])
        .collect();
    assert_eq!(states, ["discarded", "retried"]);
    // It is well again at once, and a look that was under way meanwhile may still have found them.
    eventually("health is well again", PATIENCE, async || {
        (!told(&system).await).then_some(())
    })
    .await;
    let marks = started(&folder);
    assert_eq!(marks.len(), 1);
    assert!(marks.values().all(|times| *times == 1), "{marks:?}");
    let unknown = "01940f5e-8a11-7000-8000-0000000000c1";
    let absent = viworks(&system, &["dlq", "show", unknown]).await;
    assert!(absent.ended_with(5).stderr.contains("no such dead letter"));
    assert!(gateway.stop(PATIENCE).await.success());
    assert!(system.backend().stop(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_delivered_is_retried_once_or_discarded() {
    decided_about(Deployment::new(Binaries::with_fault_points())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_on_a_server() {
    let Some(own) = Own::start() else { return };
    own.server().make_empty("viworks");
    let database = own.server().database("viworks");
    decided_about(Deployment::on(Binaries::with_fault_points(), database)).await;
}
