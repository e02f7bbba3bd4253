//! A database of the first schema, with rows in it, opens and goes on.
//!
//! `fixtures/backend_schema_0001.sqlite` was made by that schema's statements alone: a gateway that was connected,
//! one that was revoked, a finished run and one that waits, telemetry with a gap and a refusal, a key, a fork, and an
//! audit trail.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use viworks_testkit::binaries::{Binaries, workspace};
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, run, text};
use viworks_testkit::dump::note_later_migration;
use viworks_testkit::gateway::{ONCE, mark_starts};
use viworks_testkit::postgres::Own;
use viworks_testkit::process::{eventually, finish};

use crate::verb;

const OLD: &[u8] = include_bytes!("../fixtures/backend_schema_0001.sqlite");

async fn viworks(system: &Deployment, key: &Path, arguments: &[&str], code: i32) -> Value {
    let mut command = Command::new(system.binaries().cli());
    command.args(arguments).args(["-o", "json"]);
    system.ask_with(key, &mut command);
    finish(command, PATIENCE).await.ended_with(code).json()
}

/// What both old sites have: a finished run with its output, a gateway of each kind, and telemetry. The gaps of that.
async fn shows_what_was_there(
    system: &Deployment,
    key: &Path,
    done: &Value,
    (stream, stored): (&str, usize),
) -> Value {
    let shown = ["runs", "show", done["id"].as_str().unwrap()];
    let shown = viworks(system, key, &shown, 0).await;
    let command = &shown["commands"][0];
    assert_eq!(command["gateway"]["name"], "gw-old", "{shown:#}");
    assert_eq!(
        command["outcome"]["stdout"]["head"]["text"], "old\n",
        "{shown:#}"
    );
    let gateways = viworks(system, key, &["gateway", "ls"], 0).await;
    for (name, status) in [("gw-old", "offline"), ("gw-gone", "revoked")] {
        let all = gateways["items"].as_array().unwrap();
        let found = all.iter().find(|gateway| gateway["name"] == name).unwrap();
        assert_eq!(found["status"], status, "{gateways:#}");
    }
    let records = [
        "telemetry",
        "-g",
        "gw-old",
        "--stream",
        stream,
        "--since",
        "3650d",
    ];
    let records = viworks(system, key, &records, 0).await;
    let found = records["items"].as_array().unwrap().len();
    assert_eq!(found, stored, "{records:#}");
    viworks(system, key, &["telemetry", "-g", "gw-old", "--gaps"], 0).await
}

/// What waited for its start is late by now, and says so; then a new gateway runs what a new key asks for.
async fn goes_on(system: &mut Deployment, key: &Path, folder: &Path, waiting: &str) {
    eventually("the late command is expired", PATIENCE, async || {
        let shown = viworks(system, key, &["runs", "show", waiting], 0).await;
        (shown["run"]["counts"]["expired"] == 1).then_some(())
    })
    .await;
    let mut gateway = system.start_gateway(folder, Start::default());
    eventually("the new gateway is online", PATIENCE, async || {
        let shown = viworks(system, key, &["gateway", "show", "gw-new"], 0).await;
        (shown["status"] == "online" && !shown["catalogue_digest"].is_null()).then_some(())
    })
    .await;
    let result = ["run", ONCE, "-g", "gw-new", "--yes"];
    let result = viworks(system, key, &result, 0).await;
    assert_eq!(result["commands"][0]["state"], "succeeded", "{result:#}");
    let by = &result["run"]["created_by_name"];
    assert_eq!(by, "the new key", "{result:#}");
    assert!(gateway.stop(PATIENCE).await.success());
    assert!(system.backend().stop(PATIENCE).await.success());
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
    let gaps = shows_what_was_there(&system, &key, done, ("host.cpu", 3)).await;
    assert_eq!(gaps["items"][0]["records"], 3, "{gaps:#}");
    assert_eq!(gaps["refusals"][0]["records"], 1, "{gaps:#}");
    let forks = viworks(&system, &key, &["gateway", "forks", "gw-old"], 0).await;
    assert_eq!(forks["items"].as_array().unwrap().len(), 1, "{forks:#}");

    let waiting = old.iter().find(|run| run["id"] != done["id"]).unwrap();
    let waiting = waiting["id"].as_str().unwrap();
    goes_on(&mut system, &key, &folder, waiting).await;
}

/// The same on a server. `fixtures/postgres_schema_0001.sql` is what `pg_dump` wrote of a site that the programs of
/// that schema ran: a gateway that was connected, one that was revoked, a finished run with its output, one that waits
/// and one that could not be delivered, telemetry with a gap and a refusal, a ticket, a key, and an audit trail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_the_first_schema_on_a_server_is_migrated_and_goes_on() {
    let Some(own) = Own::start() else { return };
    own.server().make_empty("viworks");
    let database = own.server().database("viworks");
    database.restore(&workspace().join("e2e/tests/fixtures/postgres_schema_0001.sql"));
    let mut system = Deployment::new(Binaries::shipped());
    let config = system.backend_config();
    let written = std::fs::read_to_string(&config).unwrap();
    let store = format!(
        "{written}\n[store]\nurl = \"{}\"\nmigrate_at_start = false\n",
        database.url()
    );
    std::fs::write(&config, store).unwrap();
    let backend = async |arguments: &[&str], code: i32| {
        verb::backend(&system, arguments).await.ended_with(code)
    };

    let listed = backend(&["migrate", "--dry-run"], 0).await.stdout;
    assert!(listed.contains("would apply 0002 "), "{listed}");
    assert!(
        listed.contains("for programs that know schema 1 or later"),
        "{listed}"
    );
    assert!(
        listed.contains(
            "backends that know schema 1 and run go on; none of them starts again afterwards"
        ),
        "{listed}"
    );
    let refused = backend(&["serve"], 78).await.stderr;
    assert!(
        refused.contains("13 migrations of the schema are not applied"),
        "{refused}"
    );
    let done = backend(&["migrate"], 0).await.stdout;
    assert!(done.contains("postgres schema 14"), "{done}");
    let noted = database.ask("SELECT version, usable_from FROM _sqlx_migrations ORDER BY version");
    assert_eq!(
        noted.unwrap(),
        "1|\n2|1\n3|1\n4|1\n5|1\n6|1\n7|1\n8|1\n9|1\n10|1\n11|1\n12|1\n13|1\n14|1"
    );
    // Its master key was not kept.
    backend(&["pki", "replace-master-key"], 0).await;
    let key = system.path().join("new.key");
    let create = [
        "apikey",
        "create",
        "--name",
        "the new key",
        "--scopes",
        "all",
        "--out",
        text(&key),
    ];
    backend(&create, 0).await;
    let folder = system.issue("gw-new");
    mark_starts(&folder);
    system.start_backend(Start::default()).await;

    // What was there is there.
    let runs = viworks(&system, &key, &["runs", "ls"], 0).await;
    let old = |reason: &str| {
        let all = runs["items"].as_array().unwrap();
        let found = all.iter().find(|run| run["reason"] == reason);
        found.unwrap_or_else(|| panic!("{runs:#}")).clone()
    };
    let done = old("an old run");
    assert_eq!(done["command"], "test.say", "{done:#}");
    assert_eq!(done["created_by_name"], "tests", "{done:#}");
    let gaps = shows_what_was_there(&system, &key, &done, ("app.pump", 5)).await;
    assert_eq!(
        gaps["items"][0]["reason"], "backend_rolled_back",
        "{gaps:#}"
    );
    assert_eq!(gaps["refusals"][0]["reason"], "stream_limit", "{gaps:#}");
    let letters = viworks(&system, &key, &["dlq", "ls"], 0).await;
    let letter = letters["items"][0]["id"].as_str().unwrap().to_owned();
    let tickets = viworks(&system, &key, &["ticket", "ls"], 0).await;
    assert_eq!(tickets["items"].as_array().unwrap().len(), 1, "{tickets:#}");
    let audited = database.ask("SELECT count(*) FROM audit_log WHERE action = 'ticket.create'");
    assert_eq!(audited.unwrap(), "1");

    // What could not be delivered is decided about.
    viworks(&system, &key, &["dlq", "discard", &letter], 0).await;
    let waiting = old("it waits")["id"].as_str().unwrap().to_owned();
    goes_on(&mut system, &key, &folder, &waiting).await;
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

    let serve = verb::command(&system, &["serve"]);
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
