//! Two versions on one database: what a later one adds under a running backend costs nobody anything, and what it
//! changes is not met by a program that does not know it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use viworks_runtime::clock::{Clock as _, SystemClock};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::dump::{change, note_migration, note_migration_on_server};
use viworks_testkit::gateway::{ONCE, local_request, mark_starts, started};
use viworks_testkit::postgres::Own;
use viworks_testkit::process::eventually;

use crate::verb::backend;

pub(super) const STREAM: &str = "app.pump";

/// What this version's schema on this store has: the number of its newest migration.
fn version(store: &str) -> i64 {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../backend-agent/migrations");
    let files = std::fs::read_dir(folder.join(store)).unwrap();
    let numbers = files.filter_map(|file| {
        let name = file.unwrap().file_name();
        name.to_str()?.split('_').next()?.parse().ok()
    });
    numbers.max().expect("it has migrations")
}

/// As expansions are written: a column more, with a default or without, a table, an index.
const EXPANSIONS: [&str; 5] = [
    "ALTER TABLE gateways ADD COLUMN IF NOT EXISTS later text",
    "ALTER TABLE commands ADD COLUMN IF NOT EXISTS later bigint NOT NULL DEFAULT 0",
    "ALTER TABLE telemetry ADD COLUMN IF NOT EXISTS later bigint",
    "CREATE TABLE IF NOT EXISTS later (tenant text, id bigint, PRIMARY KEY (id, tenant))",
    "CREATE INDEX IF NOT EXISTS runs_by_later ON runs (name, tenant)",
];

/// One run after another on `gw-1`, and records, until it is told to stop; how many of each. Each load of a site has a
/// name of its own.
pub(super) async fn load(
    system: &Deployment,
    folder: &Path,
    name: &str,
    until: &AtomicBool,
) -> (usize, usize) {
    let (mut runs, mut fed) = (0, 0);
    while !until.load(Ordering::Relaxed) {
        let body = json!({"command": ONCE, "targets": {"gateways": ["gw-1"]}});
        // Once: no caller has to try again.
        let (status, run) = system.submit_once(&body, &format!("{name}-{runs}")).await;
        assert!((200..300).contains(&status), "{status} {run}");
        let run = system.finished(run["id"].as_str().unwrap()).await;
        assert_eq!(run["counts"], json!({"succeeded": 1}), "{run}");
        runs += 1;
        let record = json!({"stream": STREAM, "observed_at": SystemClock.wall().to_string(), "fields": {"n": runs}});
        let records = json!({ "records": [record] });
        let fed_one = local_request(folder, "POST", "/v1/telemetry", &records).await;
        assert_eq!(fed_one.unwrap().0, 200);
        fed += 1;
    }
    (runs, fed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_later_version_adds_is_added_under_a_running_backend() {
    let Some(own) = Own::start() else { return };
    own.server().make_empty("viworks");
    let database = own.server().database("viworks");
    let mut system = Deployment::on(Binaries::shipped(), database.clone());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    system.start_backend(Start::default()).await;
    let gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;

    let is_over = AtomicBool::new(false);
    let expand = async {
        let ran = async |least: usize| {
            let many = async || (started(&folder).len() >= least).then_some(());
            eventually("commands run", PATIENCE, many).await;
        };
        ran(5).await;
        for expansion in EXPANSIONS {
            // What meets a transaction that waits for it is tried again, as a migration is.
            eventually("it is added", PATIENCE, async || {
                let later = database.clone();
                let added = tokio::task::spawn_blocking(move || later.ask(expansion));
                added.await.unwrap().ok()
            })
            .await;
            ran(started(&folder).len() + 2).await;
        }
        let known = version("postgres");
        note_migration_on_server(&database, 9_998, Some(known));
        ran(started(&folder).len() + 10).await;
        is_over.store(true, Ordering::Relaxed);
    };
    let ((mut runs, fed), ()) = tokio::join!(load(&system, &folder, "load", &is_over), expand);
    eventually("health is well", PATIENCE, async || {
        let (status, health) = system.request("GET", "/v1/health", None).await.ok()?;
        (status == 200 && health.to_string().contains("postgres, schema 9998")).then_some(())
    })
    .await;

    // It is started again, and another one beside it.
    assert!(system.backend().stop(PATIENCE).await.success());
    system.start_backend(Start::default()).await;
    assert!(
        system.backend().log().contains("a later version has added"),
        "{}",
        system.backend().log()
    );
    let mut other = system.another("other");
    other.start_backend(Start::default()).await;
    system.online("gw-1").await;
    for one in [&system, &other] {
        let run = one.submit(ONCE, &format!("after-{runs}")).await;
        let run = one.finished(&run).await;
        assert_eq!(run["counts"], json!({"succeeded": 1}), "{run}");
        runs += 1;
    }
    eventually("every record is stored", PATIENCE, async || {
        (system.stored_telemetry(STREAM).records == fed).then_some(())
    })
    .await;
    let marks = started(&folder);
    assert_eq!(marks.len(), runs);
    assert!(marks.values().all(|times| *times == 1), "{marks:?}");
    for (verb, said) in [
        (
            &["check-config", "--connect"][..],
            "a later version has added",
        ),
        (&["migrate", "--dry-run"], "a later version has added"),
        (&["migrate"], "postgres schema 9998"),
    ] {
        let told = backend(&system, verb).await.ended_with(0);
        assert!(told.stdout.contains(said), "{verb:?}: {told:#?}");
    }

    // What is not for this version is met by no start of it.
    note_migration_on_server(&database, 9_999, Some(9_998));
    assert!(other.backend().stop(PATIENCE).await.success());
    assert!(system.backend().stop(PATIENCE).await.success());
    for verb in [
        &["serve"][..],
        &["check-config", "--connect"],
        &["migrate"],
        &["migrate", "--dry-run"],
        &["apikey", "ls"],
    ] {
        let refused = backend(&system, verb).await.ended_with(78);
        let why = format!(
            "has version 9999, which takes a program that knows version 9998; this program knows versions up to {}; \
             use the newer program or restore a backup",
            version("postgres")
        );
        assert!(refused.stderr.contains(&why), "{verb:?}: {refused:#?}");
        assert!(refused.took < Duration::from_secs(20), "{refused:#?}");
    }
    drop(gateway);
}

/// The way back to the version before, where the one after it has only added something.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_database_is_used_after_a_later_version_has_added_to_it() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let before = system.submit(ONCE, "before").await;
    system.finished(&before).await;
    assert!(gateway.stop(PATIENCE).await.success());
    assert!(system.backend().stop(PATIENCE).await.success());
    let file = system.state_folder().join("backend.sqlite");
    let agents = [
        folder.join("state/journal.db"),
        folder.join("state/spool.db"),
    ];
    let known = version("sqlite");
    for (file, known) in [(&file, known), (&agents[0], 2), (&agents[1], 2)] {
        change(file, "CREATE TABLE later (id INTEGER PRIMARY KEY)");
        note_migration(file, 9_998, Some(known));
    }
    change(
        &file,
        "ALTER TABLE commands ADD COLUMN later INTEGER NOT NULL DEFAULT 0",
    );

    let told = backend(&system, &["migrate", "--dry-run"])
        .await
        .ended_with(0);
    assert!(
        told.stdout.contains("a later version has added"),
        "{told:#?}"
    );
    let _sound = backend(&system, &["check-config"]).await.ended_with(0);
    system.start_backend(Start::default()).await;
    let gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let run = system.get(&format!("/v1/runs/{before}")).await;
    assert_eq!(run["counts"], json!({"succeeded": 1}), "{run}");
    let after = system.submit(ONCE, "after").await;
    let run = system.finished(&after).await;
    assert_eq!(run["counts"], json!({"succeeded": 1}), "{run}");
    assert_eq!(started(&folder).len(), 2);
    drop(gateway);
    assert!(system.backend().stop(PATIENCE).await.success());

    // A site is moved by the programs that know all of it.
    if let Some(own) = Own::start() {
        own.server().make_empty("viworks");
        let url = own.server().url("viworks");
        let refused = backend(&system, &["migrate-store", "--to", &url]).await;
        let refused = refused.ended_with(78);
        assert!(
            refused.stderr.contains("a later version has added"),
            "{refused:#?}"
        );
    }
    note_migration(&file, 9_999, None);
    for verb in [&["serve"][..], &["check-config"], &["migrate", "--dry-run"]] {
        let refused = backend(&system, verb).await.ended_with(78);
        let why = "use the newer program or restore a backup";
        assert!(refused.stderr.contains(why), "{verb:?}: {refused:#?}");
    }
}
