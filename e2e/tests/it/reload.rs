//! SIGHUP: a gateway reads its catalogue again, as a whole or not at all; both agents say what of their configuration
//! cannot be used or waits for a restart, and neither dies from it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use viworks_runtime::ask;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::gateway::{ONCE, mark_starts, started};
use viworks_testkit::process::{eventually, finish};

use super::told::status_where;

const ADDED: &str = "[[command]]\nname = \"test.added\"\ntitle = \"came later\"\nrisk = \"read\"\n\
                     idempotent = true\nargv = [\"/bin/true\"]\ntimeout_ms = 20000\n";

fn write(folder: &Path, name: &str, text: &str) {
    let file = folder.join("commands.d").join(name);
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
}

async fn outcome(system: &Deployment, command: &str, key: &str) -> String {
    let run = system.submit(command, key).await;
    system.finished(&run).await;
    let commands = system.commands(&run).await;
    commands[0]["state"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_reads_its_catalogue_again_on_sighup_as_a_whole_or_not_at_all() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    let before = system.online("gw-1").await["catalogue_digest"].clone();

    // A file with a mistake changes nothing, not even by the good file beside it.
    write(&folder, "added.toml", ADDED);
    write(
        &folder,
        "broken.toml",
        "[[command]]\nname = \"test.broken\"\nargw = []\n",
    );
    gateway.signal(Signal::HUP);
    eventually("the mistake is logged", PATIENCE, async || {
        let log = gateway.log();
        (log.contains("the one in force stays") && log.contains("argw")).then_some(())
    })
    .await;
    assert_eq!(system.online("gw-1").await["catalogue_digest"], before);
    assert_eq!(outcome(&system, ONCE, "1").await, "succeeded");

    // Without it the catalogue changes for the backend and for what runs, in the session that there is.
    std::fs::remove_file(folder.join("commands.d/broken.toml")).unwrap();
    std::fs::remove_file(folder.join("commands.d/test.toml")).unwrap();
    let epoch = system.online("gw-1").await["session"]["epoch"].clone();
    gateway.signal(Signal::HUP);
    let after = eventually("the backend knows", PATIENCE, async || {
        let gateway = system.get("/v1/gateways/gw-1").await;
        (gateway["catalogue_digest"] != before).then_some(gateway)
    })
    .await;
    assert_eq!(after["session"]["epoch"], epoch);
    assert_eq!(outcome(&system, "test.added", "2").await, "succeeded");
    let gone = serde_json::json!({ "command": ONCE, "targets": "all" });
    let refused = system
        .request("POST", "/v1/runs", Some(&gone))
        .await
        .unwrap();
    assert!((400..500).contains(&refused.0), "{refused:?}");
    assert_eq!(started(&folder).len(), 1);

    system.backend().signal(Signal::HUP);
    eventually("the backend says so", PATIENCE, async || {
        system
            .backend()
            .log()
            .contains("read the server's certificate, its key and the gateways' authority again")
            .then_some(())
    })
    .await;
    assert_eq!(outcome(&system, "test.added", "3").await, "succeeded");
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}

/// What the backend's health says of a condition, if it is there.
async fn told_by_backend(system: &Deployment, name: &str) -> Option<String> {
    let health = system.get("/v1/health").await;
    let checks = health["checks"].as_array()?.clone();
    let found = checks.into_iter().find(|check| check["name"] == name)?;
    assert_eq!(found["status"], "warn", "{found}");
    found["detail"].as_str().map(str::to_owned)
}

/// What a gateway's status says of a condition, if it is there.
fn told_by_gateway<'a>(status: &'a Value, name: &str) -> Option<&'a str> {
    let listed = status["conditions"].as_array()?;
    let found = listed.iter().find(|condition| condition["name"] == name)?;
    found["cause"].as_str()
}

const BROKEN: &str = "reload.configuration";
const WAITS: &str = "restart.configuration";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_that_is_broken_or_waits_for_a_restart_is_told_and_changes_nothing() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;

    let (file, socket) = (system.backend_config(), folder.join("state/api.sock"));
    let sound = std::fs::read_to_string(&file).unwrap();
    let line = sound.lines().count() + 2;
    std::fs::write(&file, format!("{sound}[queue]\ntotl = 50000\n")).unwrap();
    system.backend().signal(Signal::HUP);
    let told = eventually("the backend tells the mistake", PATIENCE, async || {
        told_by_backend(&system, BROKEN).await
    })
    .await;
    let cause = format!("backend.toml:{line}:1: unknown key \"totl\" in [queue]");
    assert!(told.contains(&cause), "{told}");
    let log = system.backend().log();
    assert!(log.contains(&format!("backend.toml:{line}:1")), "{log}");
    assert_eq!(outcome(&system, ONCE, "broken").await, "succeeded");

    std::fs::write(&file, format!("{sound}[queue]\ntotal = 50000\n")).unwrap();
    system.backend().signal(Signal::HUP);
    let told = eventually("the backend names the key", PATIENCE, async || {
        told_by_backend(&system, WAITS).await
    })
    .await;
    assert!(told.contains("in force: [queue] total"), "{told}");
    assert!(system.backend().log().contains("[queue] total"));
    assert_eq!(told_by_backend(&system, BROKEN).await, None);
    std::fs::write(&file, &sound).unwrap();
    system.backend().signal(Signal::HUP);
    eventually("nothing waits any more", PATIENCE, async || {
        let told = told_by_backend(&system, WAITS).await;
        told.is_none().then_some(())
    })
    .await;

    // A gateway says the same in the same words.
    let file = folder.join("gateway.toml");
    let sound = std::fs::read_to_string(&file).unwrap();
    let line = sound.lines().count() + 2;
    std::fs::write(&file, format!("{sound}[spool]\nbytes_mx = 5\n")).unwrap();
    gateway.signal(Signal::HUP);
    let (status, exit) = status_where("it is told", system.binaries(), &socket, |status| {
        told_by_gateway(status, BROKEN).is_some()
    })
    .await;
    assert_eq!(exit, 0, "{status:#}");
    let told = told_by_gateway(&status, BROKEN).unwrap();
    let cause = format!("gateway.toml:{line}:1: unknown key \"bytes_mx\" in [spool]");
    assert!(told.contains(&cause), "{told}");
    assert!(!told.contains("in the configuration"), "{told}");
    // Who asks by the file that cannot be used is answered by the agent that runs, and told.
    for verb in ["status", "health"] {
        let mut command = Command::new(system.binaries().gateway());
        command.arg(verb).arg("--config").arg(&file);
        let said = finish(command, PATIENCE).await.ended_with(0);
        assert!(said.stdout.contains("connected"), "{said:#?}");
        assert!(said.stderr.contains("warning: "), "{said:#?}");
        assert!(said.stderr.contains(&cause), "{said:#?}");
    }
    std::fs::write(&file, format!("{sound}[spool]\nbytes_max = 16777216\n")).unwrap();
    gateway.signal(Signal::HUP);
    let (status, _exit) = status_where("it is named", system.binaries(), &socket, |status| {
        told_by_gateway(status, WAITS).is_some()
    })
    .await;
    let told = told_by_gateway(&status, WAITS).unwrap();
    assert!(told.contains("in force: [spool] bytes_max"), "{told}");
    assert_eq!(told_by_gateway(&status, BROKEN), None, "{status:#}");
    assert_eq!(outcome(&system, ONCE, "waits").await, "succeeded");
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    // Without an agent the mistake is all that there is to say.
    std::fs::write(&file, format!("{sound}[spool]\nbytes_mx = 5\n")).unwrap();
    for verb in ["status", "health"] {
        let mut command = Command::new(system.binaries().gateway());
        command.arg(verb).arg("--config").arg(&file);
        let said = finish(command, PATIENCE).await.ended_with(78);
        assert!(said.stderr.contains(&cause), "{said:#?}");
    }
}

/// A file of `conf.d` that says what is logged.
fn filter(folder: &Path, filter: &str) {
    let conf = folder.join("conf.d");
    std::fs::create_dir_all(&conf).unwrap();
    std::fs::write(
        conf.join("log.toml"),
        format!("[log]\nfilter = {filter:?}\n"),
    )
    .unwrap();
    for path in [conf.join("log.toml"), conf] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_filter_is_taken_over_from_conf_d_without_a_restart() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    let backend = system.backend_config().parent().unwrap().to_owned();
    filter(&folder, "error");
    filter(&backend, "error");
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    assert!(!gateway.log().contains("INFO"), "{}", gateway.log());
    filter(&folder, "info");
    filter(&backend, "info");
    gateway.signal(Signal::HUP);
    system.backend().signal(Signal::HUP);
    // It is told at a level that only the new filter lets through.
    let words = "took over the log filter";
    eventually("the gateway takes it over", PATIENCE, async || {
        gateway.log().contains(words).then_some(())
    })
    .await;
    eventually("the backend takes it over", PATIENCE, async || {
        system.backend().log().contains(words).then_some(())
    })
    .await;
    assert_eq!(told_by_backend(&system, WAITS).await, None);
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}

/// A file of `conf.d` that says something of a site's own.
fn piece(folder: &Path, text: &str) {
    let conf = folder.join("conf.d");
    std::fs::create_dir_all(&conf).unwrap();
    std::fs::write(conf.join("50-piece.toml"), text).unwrap();
    for path in [conf.join("50-piece.toml"), conf] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_takes_labels_over_and_tells_the_backend_in_another_session() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    let before = system.online("gw-1").await;
    piece(&folder, "[gateway.labels]\nrack = \"7\"\n");
    gateway.signal(Signal::HUP);
    let after = eventually("the backend knows the label", PATIENCE, async || {
        let gateway = system.get("/v1/gateways/gw-1").await;
        let labels = gateway["labels"].as_array()?;
        let mut labels = labels.iter();
        let told = labels.any(|label| label["key"] == "rack" && label["value"] == "7");
        told.then_some(gateway)
    })
    .await;
    assert_ne!(after["session"]["epoch"], before["session"]["epoch"]);
    let log = gateway.log();
    assert!(log.contains("took over from the configuration"), "{log}");
    let mut lines = log.lines();
    let anew = lines.find(|line| line.contains("and the gateway connects anew"));
    // Nothing is to be done about that, and nothing is said of a fix.
    let anew = anew.unwrap_or_else(|| panic!("{log}"));
    assert!(!anew.contains("fix"), "{anew}");
    assert_eq!(outcome(&system, ONCE, "after").await, "succeeded");
    let socket = folder.join("state/api.sock");
    let (status, _exit) = status_where("nothing waits", system.binaries(), &socket, |status| {
        told_by_gateway(status, WAITS).is_none()
    })
    .await;
    assert_eq!(told_by_gateway(&status, BROKEN), None, "{status:#}");
    // What a session is not about ends none.
    let epoch = system.online("gw-1").await["session"]["epoch"].clone();
    let more = "[gateway.labels]\nrack = \"7\"\n[intake]\nrecords_per_minute = 77\n";
    piece(&folder, more);
    gateway.signal(Signal::HUP);
    eventually("the rate is taken over", PATIENCE, async || {
        let log = gateway.log();
        log.contains("[intake] records_per_minute").then_some(())
    })
    .await;
    assert_eq!(outcome(&system, ONCE, "rate").await, "succeeded");
    let now = system.online("gw-1").await;
    assert_eq!(now["session"]["epoch"], epoch);
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_mends_what_a_gateway_was_refused_for_makes_it_dial_at_once() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    // Without the reload it would wait for an hour or two.
    let patient = "permanent_backoff_min_ms = 7200000\npermanent_backoff_max_ms = 7200000\n\
                   unproved_backoff_base_ms = 7200000\n";
    let wrong = format!("[outbound]\nbinding = \"certificate\"\n{patient}");
    piece(&folder, &wrong);
    let mut gateway = system.start_gateway(&folder, Start::default());
    let socket = folder.join("state/api.sock");
    let (status, exit) = status_where("it is refused", system.binaries(), &socket, |status| {
        status["connection"]["state"] == "waiting"
    })
    .await;
    assert_eq!(exit, 69, "{status:#}");
    let failure = &status["connection"]["last_failure"];
    assert_eq!(failure["code"], "binding_mismatch", "{status:#}");
    // A file that is worse changes nothing, and is told of in both documents.
    piece(&folder, "[outbound]\nbinding = \"neither\"\n");
    gateway.signal(Signal::HUP);
    let (status, _exit) = status_where("it is told", system.binaries(), &socket, |status| {
        told_by_gateway(status, BROKEN).is_some()
    })
    .await;
    assert_eq!(status["connection"]["connected"], false, "{status:#}");
    let health = ask::unix(&socket, "/v1/health", PATIENCE).await.unwrap();
    let health: Value = serde_json::from_slice(&health.body).unwrap();
    let told = told_by_gateway(&health, BROKEN).unwrap();
    assert!(told.contains("binding is \"neither\""), "{health:#}");
    piece(&folder, &wrong.replace("\"certificate\"", "\"exporter\""));
    gateway.signal(Signal::HUP);
    system.online("gw-1").await;
    let (status, _exit) = status_where("all is well", system.binaries(), &socket, |status| {
        told_by_gateway(status, BROKEN).is_none()
    })
    .await;
    assert_eq!(status["connection"]["connected"], true, "{status:#}");
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}

/// What a request of the operator is answered with.
async fn asked(system: &Deployment) -> u16 {
    let answer = system.request("GET", "/v1/gateways", None).await;
    answer.unwrap().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_takes_the_rate_of_keys_and_the_bounds_of_telemetry_over() {
    let mut system = Deployment::new(Binaries::shipped());
    let backend = system.backend_config().parent().unwrap().to_owned();
    system.start_backend(Start::default()).await;
    piece(
        &backend,
        "[api]\nkey_requests_per_minute = 1\nkey_requests_burst = 2\n[telemetry]\nretention_days = 7\n",
    );
    system.backend().signal(Signal::HUP);
    eventually("the backend takes it over", PATIENCE, async || {
        let log = system.backend().log();
        let keys =
            "[api] key_requests_burst, [api] key_requests_per_minute, [telemetry] retention_days";
        log.contains(keys).then_some(())
    })
    .await;
    for status in [200, 200, 429] {
        assert_eq!(asked(&system).await, status);
    }
    piece(&backend, "");
    system.backend().signal(Signal::HUP);
    eventually("it is as it was", PATIENCE, async || {
        (asked(&system).await == 200).then_some(())
    })
    .await;
    assert_eq!(told_by_backend(&system, WAITS).await, None);
}
