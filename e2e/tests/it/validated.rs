//! What a validation must not say or leave behind: a pass for a reason of its own, and an agent that runs on.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use viworks_testkit::binaries::{Binaries, workspace};
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, run, text};
use viworks_testkit::process::{Process, eventually, finish};

/// A validation that finds nothing out takes far less.
const WITHIN: Duration = Duration::from_secs(200);

/// What `check` comes to when something else is broken.
async fn found(arguments: &[&str], check: &str) -> Value {
    one_of(&report(arguments, check).await, check)
}

/// One of the checks of a report.
fn one_of(report: &Value, check: &str) -> Value {
    let mut checks = report["checks"].as_array().unwrap().iter();
    checks.find(|one| one["name"] == check).unwrap().clone()
}

/// What these checks come to.
async fn report(arguments: &[&str], checks: &str) -> Value {
    let folder = TempDir::new().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_production_validation"));
    command
        .args(["--embedded", "--only", checks, "--report"])
        .arg(folder.path())
        .args(arguments);
    let said = finish(command, WITHIN).await;
    let written = std::fs::read(folder.path().join("validation.json"));
    serde_json::from_slice(&written.unwrap_or_else(|_| panic!("{said:#?}"))).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_could_not_find_anything_out_is_no_pass() {
    for (broken, check) in [
        // Nobody is there: nobody lets anybody in.
        ("upgrade", "no_certificate"),
        ("upgrade", "foreign_certificate"),
        // Nobody is there: nobody takes a large body.
        ("health", "limits"),
        // Who refuses everything refuses a bad configuration as well.
        ("registration", "configuration"),
        ("backend_start", "backend_configuration"),
    ] {
        let found = found(&["--break", broken], check).await;
        assert_eq!(found["result"], "fail", "{broken}: {found}");
    }
}

/// The programs of this version in the place of the one before, of which `program` behaves as `then` says at its second
/// start by `verb`: that is after the rollback, on what the newer version has left.
fn previous(folder: &Path, program: &Path, verb: &str, then: &str) {
    let binaries = Binaries::shipped();
    let all = [
        binaries.backend(),
        binaries.gateway(),
        binaries.helper(),
        binaries.cli(),
    ];
    for one in all.iter().filter(|one| *one != program) {
        symlink(one, folder.join(one.file_name().unwrap())).unwrap();
    }
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = {verb} ]; then\n  echo >>{starts}\n  if [ \"$(wc -l <{starts})\" -eq 2 ]; then\n    \
         {then}\n  fi\nfi\nexec {program} \"$@\"\n",
        starts = folder.join("starts").display(),
        program = program.display(),
    );
    let script_file = folder.join(program.file_name().unwrap());
    std::fs::write(&script_file, script).unwrap();
    std::fs::set_permissions(&script_file, PermissionsExt::from_mode(0o755)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_takes_the_copy_for_a_schema_that_moved_on_and_for_nothing_else() {
    let schema = "echo 'error: the database schema has version 99, this program knows versions up to 98' >&2";
    let refused = format!("{schema}; exit 78");
    // As the first versions did.
    let failed = format!("{schema}; exit 1");
    // It was not that in the end.
    let other = format!("{schema}; echo 'error: no memory' >&2; exit 1");
    let (backend, gateway) = (Binaries::shipped().backend(), Binaries::shipped().gateway());
    let back = "back on the same database, 2 of 2 earlier runs read";
    let with_copy = "back with the copy from before the upgrade, 1 of 1 earlier runs read";
    let gateway_back = "back on the same journal, connected, and a command ended well";
    for (program, verb, then, of_backend, of_gateway) in [
        (
            &backend,
            "serve",
            refused.as_str(),
            ("pass", with_copy),
            ("pass", gateway_back),
        ),
        // Not put back, and no failure: the backend of before works with it.
        (
            &gateway,
            "run",
            failed.as_str(),
            ("pass", back),
            ("skipped", "–"),
        ),
        (
            &gateway,
            "run",
            other.as_str(),
            ("pass", back),
            ("fail", "not put back"),
        ),
        (
            &backend,
            "serve",
            other.as_str(),
            ("fail", "not read"),
            ("skipped", "–"),
        ),
        (
            &backend,
            "serve",
            "echo 'error: no such key' >&2; exit 78",
            ("fail", "not read"),
            ("skipped", "–"),
        ),
    ] {
        let folder = TempDir::new().unwrap();
        previous(folder.path(), program, verb, then);
        let arguments = ["--previous", folder.path().to_str().unwrap()];
        let report = report(&arguments, "rollback,gateway_rollback").await;
        for (check, (result, measured)) in
            [("rollback", of_backend), ("gateway_rollback", of_gateway)]
        {
            let found = one_of(&report, check);
            assert_eq!(found["result"], result, "{then}: {found}");
            assert_eq!(found["measured"], measured, "{then}: {found}");
            let reason = found["reason"].as_str().unwrap_or_default();
            assert_eq!(reason.is_empty(), result == "pass", "{then}: {found}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_could_not_be_put_back_is_a_no_go_where_it_is_strict() {
    let folder = TempDir::new().unwrap();
    let gateway = Binaries::shipped().gateway();
    let schema = "echo 'error: the database schema has version 99, this program knows versions up to 98' >&2; exit 78";
    previous(folder.path(), &gateway, "run", schema);
    let arguments = ["--previous", folder.path().to_str().unwrap()];
    let strict = [&arguments[..], &["--strict"]].concat();
    let report = report(&strict, "rollback,gateway_rollback").await;
    assert_eq!(report["verdict"], "no_go", "{report:#}");
    let reason = one_of(&report, "gateway_rollback")["reason"].clone();
    let reason = reason.as_str().unwrap();
    assert!(reason.contains("its schema has moved on"), "{reason}");
    assert!(reason.contains("has version 99"), "{reason}");
}

/// Ends a validation in the middle, and sees that nothing of it is left in its folder of temporary files, and nobody
/// connected.
async fn is_stopped(system: &Deployment, mut command: Command, signal: Signal) {
    let scratch = TempDir::new_in(system.path()).unwrap();
    command
        .env("TMPDIR", scratch.path())
        .env("VIWORKS_CONFIG_DIR", system.path().join("config"));
    let mut running = Process::start(&mut command, &system.path().join("validation.log")).unwrap();
    let online = async || {
        let gateways = system.get("/v1/gateways").await;
        let items = gateways["items"].as_array().unwrap().clone();
        items.iter().any(|gateway| gateway["status"] == "online")
    };
    eventually("its gateway is online", PATIENCE, async || {
        assert!(running.ended().is_none(), "{}", running.log());
        online().await.then_some(())
    })
    .await;
    running.signal(signal);
    let status = running.wait(PATIENCE).await;
    assert_eq!(status.code(), Some(130), "{}", running.log());
    let left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    eventually("its gateway is not online", PATIENCE, async || {
        (!online().await).then_some(())
    })
    .await;
}

/// `viworks validate` with the gateway of a folder.
fn validate(system: &Deployment, gateway: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(system.binaries().cli());
    command
        .env("VIWORKS_CONFIG_DIR", system.path().join("config"))
        .args(["validate", "--server", &system.api_url(), "--token-file"])
        .arg(system.path().join("operator.key"))
        .arg("--gateway")
        .arg(gateway)
        .args(arguments);
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_validation_that_is_stopped_leaves_nothing_behind() {
    let mut system = Deployment::new(Binaries::shipped());
    // The agent runs from the first on, and the second waits for the end of a connection that says nothing: no
    // validation is over before its signal.
    let start = Start::default().with("VIWORKS__AGENTS__TLS_TIMEOUT_MS", "60000");
    system.start_backend(start).await;
    let long = ["--only", "registration,limits"];
    for (name, signal) in [
        ("probe-1", Signal::TERM),
        ("probe-2", Signal::INT),
        ("probe-3", Signal::HUP),
    ] {
        // Issued while the backend runs, a gateway knows the port that it got.
        let probe = system.issue(name);
        is_stopped(&system, validate(&system, &probe, &long), signal).await;
    }

    // The script as well, which has issued a gateway.
    let programs = system.binaries().cli();
    let programs = programs.parent().unwrap();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut command = Command::new(workspace().join("scripts/production_validation.sh"));
    command
        .env("PATH", format!("{}:{}", programs.display(), path.display()))
        .args(["--url", &system.api_url(), "--key"])
        .arg(system.path().join("operator.key"))
        .arg("--backend-config")
        .arg(system.backend_config())
        .args(long);
    is_stopped(&system, command, Signal::TERM).await;
    let gateways = system.get("/v1/gateways").await;
    let items = gateways["items"].as_array().unwrap();
    let issued = items
        .iter()
        .find(|gateway| gateway["name"].as_str().unwrap().starts_with("validation-"));
    assert_eq!(issued.unwrap()["status"], "revoked", "{gateways}");
    assert!(system.backend().stop(PATIENCE).await.success());
}

/// What is done before the validation is done to its end, and only then cleaned up: a gateway that is issued afterwards
/// would stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_while_the_gateway_is_issued_leaves_nothing_behind() {
    let mut system = Deployment::new(Binaries::shipped());
    system.start_backend(Start::default()).await;
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let programs = TempDir::new_in(system.path()).unwrap();
        let here = programs.path().display();
        let program = |name: &str, script: String| {
            let file = programs.path().join(name);
            std::fs::write(&file, script).unwrap();
            std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        };
        // It waits in the middle of what it does, for as long as this folder is there.
        program(
            "viworks-backend-agent",
            format!(
                "#!/bin/sh\nif [ \"$1\" = pki ]; then\n  touch {here}/issuing\n  \
                 while [ -d {here} ] && [ ! -e {here}/go ]; do sleep 0.05; done\nfi\nexec {} \"$@\"\n",
                system.binaries().backend().display()
            ),
        );
        program("viworks", format!("#!/bin/sh\ntouch {here}/validated\n"));
        let scratch = TempDir::new_in(system.path()).unwrap();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut command = Command::new(workspace().join("scripts/production_validation.sh"));
        command
            .env("PATH", format!("{here}:{}", path.display()))
            .env("TMPDIR", scratch.path())
            .args(["--url", &system.api_url(), "--key"])
            .arg(system.path().join("operator.key"))
            .arg("--backend-config")
            .arg(system.backend_config());
        let log = programs.path().join("log");
        let mut running = Process::start(&mut command, &log).unwrap();
        eventually("the gateway is being issued", PATIENCE, async || {
            assert!(running.ended().is_none(), "{}", running.log());
            programs.path().join("issuing").exists().then_some(())
        })
        .await;
        running.signal(signal);
        std::fs::write(programs.path().join("go"), "").unwrap();
        let status = running.wait(PATIENCE).await;
        assert_eq!(status.code(), Some(130), "{signal:?}: {}", running.log());
        assert!(!programs.path().join("validated").exists(), "{signal:?}");
        let left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().collect();
        assert!(left.is_empty(), "{signal:?}: {left:?}");
    }
    let gateways = system.get("/v1/gateways").await;
    let items = gateways["items"].as_array().unwrap();
    assert_eq!(items.len(), 3, "{gateways:#}");
    for gateway in items {
        assert_eq!(gateway["status"], "revoked", "{gateways:#}");
    }
    assert!(system.backend().stop(PATIENCE).await.success());
}

/// A live gateway would be told of a second holder of its identity, and checks would pass for what it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_has_another_life_is_not_validated_with() {
    let mut system = Deployment::new(Binaries::shipped());
    system.start_backend(Start::default()).await;
    let folder = system.issue("gw-1");
    let unused = system.issue("probe-1");
    let mut gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let refused = async |folder: &Path, what: &str| {
        let command = validate(&system, folder, &[]);
        let said = finish(command, PATIENCE).await.ended_with(78);
        assert!(said.stderr.contains(what), "{said:#?}");
        assert!(
            said.stderr.contains("issue one for this run alone"),
            "{said:#?}"
        );
    };
    refused(&folder, "the gateway gw-1 is in use, or was").await;
    let forks = system.get("/v1/gateways/gw-1/forks").await;
    assert_eq!(forks["items"].as_array().map(Vec::len), Some(0), "{forks}");
    assert!(gateway.stop(PATIENCE).await.success());
    refused(&folder, "the gateway gw-1 is in use, or was").await;
    run(
        &system.binaries().backend(),
        &[
            "gateway",
            "revoke",
            "probe-1",
            "--config",
            text(&system.backend_config()),
        ],
    );
    refused(&unused, "the gateway probe-1 is revoked").await;

    let mut other = Deployment::new(Binaries::shipped());
    other.start_backend(Start::default()).await;
    let stranger = other.issue("gw-1");
    refused(&stranger, "does not know the gateway of").await;
    for mut one in [other, system] {
        assert!(one.backend().stop(PATIENCE).await.success());
    }
}

#[tokio::test]
async fn what_is_not_for_a_live_installation_is_refused_before_a_gateway_is_issued() {
    for own in [&["--strict"][..], &["--previous", "/nonexistent"]] {
        let mut command = Command::new(workspace().join("scripts/production_validation.sh"));
        command
            .args([
                "--url",
                "http://127.0.0.1:1",
                "--key",
                "none",
                "--backend-config",
                "/nonexistent",
            ])
            .args(own);
        let said = finish(command, PATIENCE).await.ended_with(2);
        assert!(said.stderr.contains("is for --self-contained"), "{said:#?}");
    }
}
