//! A database of the first schema, with rows in it, opens and goes on.
//!
//! `fixtures/backend_schema_0001.sqlite` was made by that schema's statements alone: a gateway that was connected,
//! one that was revoked, a finished run and one that waits, telemetry with a gap and a refusal, a key, a fork, and an
//! audit trail.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, run, text};
use viworks_testkit::dump::note_later_migration;
use viworks_testkit::gateway::{ONCE, mark_starts};
use viworks_testkit::process::{eventually, finish};

const OLD: &[u8] = include_bytes!("../fixtures/backend_schema_0001.sqlite");

async fn viworks(system: &Deployment, key: &Path, arguments: &[&str], code: i32) -> Value {
    let mut command = Command::new(system.binaries().cli());
    command
        .args(arguments)
        .args(["-o", "json"])
        .env("HOME", system.path())
        .env("VIWORKS_CONFIG_DIR", system.path().join("config"))
        .env("VIWORKS_SERVER", system.api_url())
        .env("VIWORKS_TOKEN_FILE", key)
        .env_remove("VIWORKS_CONTEXT")
        .env_remove("VIWORKS_OUTPUT");
    finish(command, PATIENCE).await.ended_with(code).json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_the_first_schema_opens_and_goes_on() {
    let mut system = Deployment::new(Binaries::shipped());
    let database = system.path().join("backend/state/backend.sqlite");
    for suffix in ["-wal", "-shm"] {
        drop(std::fs::remove_file(format!(
            "{}{suffix}",
            database.display()
        )));
    }
    // Its mode stays: the file is private.
    std::fs::write(&database, OLD).unwrap();
    let folder = system.issue("gw-new");
    mark_starts(&folder);
    let key = system.path().join("new.key");
    let config = system.backend_config();
    let (config, out) = (text(&config), text(&key));
    let create = [
        "apikey",
        "create",
        "--config",
        config,
        "--name",
        "the new key",
        "--scopes",
        "all",
        "--out",
        out,
    ];
    run(&system.binaries().backend(), &create);
    system.start_backend(Start::default()).await;

    // What was there is there.
    let runs = viworks(&system, &key, &["runs", "ls"], 0).await;
    let old = runs["items"].as_array().unwrap();
    let old: Vec<&Value> = old
        .iter()
        .filter(|run| run["command"] == "sys.uptime")
        .collect();
    assert_eq!(old.len(), 2, "{runs:#}");
    for run in &old {
        assert_eq!(run["created_by_name"], "the old key", "{runs:#}");
    }
    let done = old
        .iter()
        .find(|run| run["counts"]["succeeded"] == 1)
        .unwrap();
    assert_eq!(done["reason"], "an old run", "{runs:#}");
    let shown = ["runs", "show", done["id"].as_str().unwrap()];
    let shown = viworks(&system, &key, &shown, 0).await;
    let command = &shown["commands"][0];
    assert_eq!(command["gateway"]["name"], "gw-old", "{shown:#}");
    assert_eq!(
        command["outcome"]["stdout"]["head"]["text"], "old\n",
        "{shown:#}"
    );
    let gateways = viworks(&system, &key, &["gateway", "ls"], 0).await;
    let status = |name: &str| {
        let all = gateways["items"].as_array().unwrap();
        let found = all.iter().find(|gateway| gateway["name"] == name).unwrap();
        found["status"].as_str().unwrap().to_owned()
    };
    assert_eq!(status("gw-old"), "offline", "{gateways:#}");
    assert_eq!(status("gw-gone"), "revoked", "{gateways:#}");
    let forks = viworks(&system, &key, &["gateway", "forks", "gw-old"], 0).await;
    assert_eq!(forks["items"].as_array().unwrap().len(), 1, "{forks:#}");
    let records = [
        "telemetry",
        "-g",
        "gw-old",
        "--stream",
        "host.cpu",
        "--since",
        "3650d",
    ];
    let records = viworks(&system, &key, &records, 0).await;
    assert_eq!(records["items"].as_array().unwrap().len(), 3, "{records:#}");
    let gaps = viworks(&system, &key, &["telemetry", "-g", "gw-old", "--gaps"], 0).await;
    assert_eq!(gaps["items"][0]["records"], 3, "{gaps:#}");
    assert_eq!(gaps["refusals"][0]["records"], 1, "{gaps:#}");

    // What waited for its start is late by now, and says so.
    let waiting = old.iter().find(|run| run["id"] != done["id"]).unwrap();
    let waiting = waiting["id"].as_str().unwrap();
    eventually("the late command is expired", PATIENCE, async || {
        let shown = viworks(&system, &key, &["runs", "show", waiting], 0).await;
        (shown["run"]["counts"]["expired"] == 1).then_some(())
    })
    .await;

    // And it goes on.
    let mut gateway = system.start_gateway(&folder, Start::default());
    eventually("the new gateway is online", PATIENCE, async || {
        let shown = viworks(&system, &key, &["gateway", "show", "gw-new"], 0).await;
        (shown["status"] == "online" && !shown["catalogue_digest"].is_null()).then_some(())
    })
    .await;
    let result = ["run", ONCE, "-g", "gw-new", "--yes"];
    let result = viworks(&system, &key, &result, 0).await;
    assert_eq!(result["commands"][0]["state"], "succeeded", "{result:#}");
    assert_eq!(
        result["run"]["created_by_name"], "the new key",
        "{result:#}"
    );
    assert!(gateway.stop(PATIENCE).await.success());
    assert!(system.backend().stop(PATIENCE).await.success());
}

/// What a rollback finds: it does not start, is not worth another start, and leaves everything as it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_of_a_later_version_are_refused_for_good_and_left_alone() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    assert!(gateway.stop(PATIENCE).await.success());
    assert!(system.backend().stop(PATIENCE).await.success());

    let mut serve = Command::new(system.binaries().backend());
    serve
        .args(["serve", "--config"])
        .arg(system.backend_config());
    let backend = (system.state_folder().join("backend.sqlite"), serve);
    let of_gateway = |file: &str| {
        let mut run = Command::new(system.binaries().gateway());
        run.args(["run", "--config"])
            .arg(folder.join("gateway.toml"));
        (folder.join("state").join(file), run)
    };
    // The spool first: a journal that is refused comes before it.
    for (database, command) in [backend, of_gateway("spool.db"), of_gateway("journal.db")] {
        note_later_migration(&database);
        let before = std::fs::read(&database).unwrap();
        let said = finish(command, PATIENCE).await.ended_with(78);
        let why = "use the newer program or restore a backup";
        assert!(said.stderr.contains(why), "{said:#?}");
        let after = std::fs::read(&database).unwrap();
        assert!(before == after, "{} was changed", database.display());
    }
}
