//! `health` of both agents, as a service manager or a container asks: an exit code and one line, in time, whatever the
//! agent does.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, text};
use viworks_testkit::gateway::local_request;
use viworks_testkit::process::{Process, Said, eventually, finish};

/// What is told of each part, without what is over.
pub(crate) fn at_this_moment(health: &Value) -> String {
    let mut checks = health["checks"].clone();
    for check in checks.as_array_mut().into_iter().flatten() {
        check["last_failure"].take();
    }
    checks.to_string()
}

/// A check with a limit of one second ends by then, and a busy machine is given some more.
const IN_TIME: Duration = Duration::from_secs(4);

async fn health(program: &Path, arguments: &[&str]) -> Said {
    let mut command = Command::new(program);
    command.arg("health").args(arguments);
    finish(command, PATIENCE).await
}

/// The configuration of a backend that answers operators there.
fn backend_config(system: &Deployment, listen: &str) -> String {
    let written = std::fs::read_to_string(system.backend_config()).unwrap();
    assert!(written.contains("127.0.0.1:8080"), "{written}");
    let path = system.path().join("backend/asked.toml");
    std::fs::write(&path, written.replace("127.0.0.1:8080", listen)).unwrap();
    text(&path).to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_is_well_not_ready_silent_or_away_and_each_has_its_code() {
    let mut system = Deployment::new(Binaries::shipped());
    let program = system.binaries().backend();
    system.start_backend(Start::default()).await;
    let address = system.api_url().replace("http://", "");
    let config = backend_config(&system, &address);
    for probe in ["live", "ready", "startup"] {
        let said = health(&program, &["--config", &config, "--probe", probe]).await;
        let said = said.ended_with(0);
        assert!(
            said.stdout.starts_with(&format!("{probe}: ok")),
            "{said:#?}"
        );
        assert_eq!(said.stderr, "", "{said:#?}");
    }

    // A mistake in the file is no mistake of the backend that runs.
    let sound = std::fs::read_to_string(&config).unwrap();
    let broken = system.path().join("backend/broken.toml");
    std::fs::write(&broken, format!("{sound}[queue]\ntotl = 5\n")).unwrap();
    let by_broken = ["--config", text(&broken)];
    let said = health(&program, &by_broken).await.ended_with(0);
    assert!(said.stdout.starts_with("ready: ok"), "{said:#?}");
    assert!(said.stderr.contains("unknown key \"totl\""), "{said:#?}");

    // Its store does not take writes: it lives, and is not ready.
    let (state, aside) = (
        system.path().join("backend/state"),
        system.path().join("backend/aside"),
    );
    std::fs::rename(&state, &aside).unwrap();
    let asked = ["--address", &address, "-o", "json"];
    let told = eventually("it is not ready", PATIENCE, async || {
        let said = health(&program, &asked).await;
        (said.code == Some(20)).then(|| said.json())
    })
    .await;
    assert_eq!(
        (&told["status"], &told["probe"]),
        (&"fail".into(), &"ready".into())
    );
    let said = health(&program, &["--address", &address]).await;
    let said = said.ended_with(20);
    assert!(said.stderr.contains("not ready"), "{said:#?}");
    assert!(said.stderr.contains("fix: GET /v1/health"), "{said:#?}");
    let live = ["--address", &address, "--probe", "live"];
    let _said = health(&program, &live).await.ended_with(0);
    std::fs::rename(&aside, &state).unwrap();

    // It stands still.
    system.backend().signal(Signal::STOP);
    let said = health(&program, &["--address", &address, "--timeout", "1"]).await;
    system.backend().signal(Signal::CONT);
    let said = said.ended_with(69);
    assert!(said.took < IN_TIME, "{said:#?}");
    assert!(
        said.stderr.contains("no answer came within 1000 ms"),
        "{said:#?}"
    );
    assert!(said.stderr.contains("stands still"), "{said:#?}");

    // It is gone.
    system.kill_backend();
    let said = health(&program, &asked).await.ended_with(69);
    let told = said.json();
    assert_eq!(told["status"], "unreachable", "{told:#}");
    assert!(
        told["fix"].as_str().unwrap().contains("systemctl status"),
        "{told:#}"
    );

    let said = health(&program, &by_broken).await.ended_with(78);
    assert!(said.stderr.contains("unknown key \"totl\""), "{said:#?}");

    // Nobody can know where it listens, and nobody said.
    let anywhere = backend_config(&system, "127.0.0.1:0");
    let said = health(&program, &["--config", &anywhere])
        .await
        .ended_with(78);
    assert!(said.stderr.contains("--address"), "{said:#?}");
    // Where nobody names a configuration, that of the package is meant.
    if !Path::new("/etc/viworks/backend/backend.toml").exists() {
        let said = health(&program, &[]).await.ended_with(78);
        let fix = "name the configuration with --config, or with --address";
        assert!(said.stderr.contains(fix), "{said:#?}");
    }
    let named = ["--address", "localhost:8080"];
    let said = health(&program, &named).await.ended_with(2);
    let fix = "such as 127.0.0.1:8080";
    assert!(said.stderr.contains(fix), "{said:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_is_well_not_connected_silent_or_away_and_each_has_its_code() {
    let mut system = Deployment::new(Binaries::shipped());
    let program = system.binaries().gateway();
    let folder = system.issue("gw-1");
    let config = folder.join("gateway.toml");
    let by_config = ["--config", text(&config)];
    let said = health(&program, &by_config).await.ended_with(69);
    assert!(
        said.stderr.contains("nobody takes the connection"),
        "{said:#?}"
    );
    assert!(
        said.stderr.contains("fix: see whether it runs"),
        "{said:#?}"
    );

    system.start_backend(Start::default()).await;
    let gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let said = well(&program, &by_config).await;
    assert!(said.stdout.starts_with("ready: connected"), "{said:#?}");
    system.kill_backend();
    let told = eventually("it is not connected", PATIENCE, async || {
        let said = health(&program, &[&by_config[..], &["-o", "json"]].concat()).await;
        (said.code == Some(69)).then(|| said.json())
    })
    .await;
    let detail = told["detail"].as_str().unwrap();
    assert!(detail.starts_with("not connected"), "{told:#}");
    let live = [&by_config[..], &["--probe", "live"]].concat();
    let _said = health(&program, &live).await.ended_with(0);

    stands_still(&program, &by_config, &gateway).await;
}

async fn well(program: &Path, arguments: &[&str]) -> Said {
    eventually("it is well", PATIENCE, async || {
        let said = health(program, arguments).await;
        (said.code == Some(0)).then_some(said)
    })
    .await
}

async fn stands_still(program: &Path, arguments: &[&str], agent: &Process) {
    agent.signal(Signal::STOP);
    let said = health(program, &[arguments, &["--timeout", "1"]].concat()).await;
    agent.signal(Signal::CONT);
    let said = said.ended_with(69);
    assert!(said.took < IN_TIME, "{said:#?}");
    assert!(said.stderr.contains("stands still"), "{said:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documents_of_both_have_figures() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    let often = Start::default().with("VIWORKS__AGENTS__HEARTBEAT_INTERVAL_MS", "100");
    system.start_backend(often).await;
    let _gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;

    let health = system.get("/v1/health").await;
    let checks = health["checks"].as_array().unwrap();
    let figure = |part: &str, name: &str| {
        let part = checks.iter().find(|check| check["name"] == part);
        part.unwrap_or_else(|| panic!("{health:#}"))["figures"][name]
            .as_i64()
            .unwrap_or_else(|| panic!("{name}: {health:#}"))
    };
    for certificate in ["server_remaining_s", "ca_remaining_s"] {
        assert!(figure("certificate", certificate) > 86_400, "{health:#}");
    }
    assert_eq!(figure("sessions", "sessions"), 1);
    assert_eq!(figure("queued", "queued_commands"), 0);
    assert!(health["past"].is_array(), "{health:#}");

    let local = async || {
        let answer = local_request(&folder, "GET", "/v1/health", &Value::Null).await;
        let (status, text) = answer.unwrap();
        (status, serde_json::from_str::<Value>(&text).unwrap())
    };
    let document = eventually("the round trip is measured", PATIENCE, async || {
        let (status, document) = local().await;
        let measured = document["parts"]["connection"]["round_trip_us"].is_u64();
        (status == 200 && measured).then_some(document)
    })
    .await;
    let parts = &document["parts"];
    let skew = parts["connection"]["clock_skew_ms"].as_i64().unwrap();
    assert!(skew.abs() < 5_000, "{document:#}");
    assert!(parts["certificate"]["remaining_s"].as_i64().unwrap() > 86_400);
    assert_eq!(parts["disk"]["reserve_held"], true, "{document:#}");
    assert_eq!(parts["journal"]["entries_max"], 1_024, "{document:#}");
}
