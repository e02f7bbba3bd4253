//! The go / no-go run: a sound installation is a GO, and each check finds what it is about when that is broken.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use viworks_testkit::binaries::{Binaries, workspace};
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, run, text};
use viworks_testkit::nginx::Nginx;
use viworks_testkit::process::{Said, finish};
use viworks_testkit::{postgres, redis};

/// How long a run may take once its programs are built, in milliseconds: three minutes on two cores, which others have
/// here as well.
const CHECKED_WITHIN_MS: u64 = 180_000;

/// How long a run may take that builds its programs, and starts servers.
const WITHIN: Duration = Duration::from_secs(400);

/// The checks that a command line can make from outside, and what they need from those before them.
const LIVE: [(&str, &str); 17] = [
    ("health", ""),
    ("configuration", ""),
    ("upgrade", ""),
    ("mtls", ""),
    ("no_certificate", ""),
    ("foreign_certificate", ""),
    ("replay", ""),
    ("registration", ""),
    ("duplicate", "registration,"),
    ("round_trip", "registration,"),
    ("data_flow", "registration,"),
    ("restart", "registration,"),
    ("limits", ""),
    ("enrolment", ""),
    ("renewal", ""),
    ("pins", ""),
    ("revocation", "registration,"),
];

/// Those that only somebody may make who may kill everything; with the servers that they need.
const OWN: [(&str, bool); 8] = [
    ("backend_configuration", false),
    ("backend_start", false),
    ("backend_recovery", false),
    ("rollback", false),
    ("gateway_rollback", false),
    ("redis_recovery", true),
    ("postgres_recovery", true),
    ("nginx_recovery", true),
];

fn has_servers() -> bool {
    let nginx = Nginx::is_installed();
    nginx && postgres::Own::is_installed() && redis::Own::is_installed()
}

fn programs() -> String {
    let cli = Binaries::shipped().cli();
    cli.parent().unwrap().display().to_string()
}

async fn validation(report: &Path, arguments: &[&str]) -> (Said, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_production_validation"));
    command.arg("--report").arg(report).args(arguments);
    let said = finish(command, WITHIN).await;
    let written = std::fs::read(report.join("validation.json"));
    let written = written.unwrap_or_else(|error| panic!("{error}: {said:#?}"));
    (said, serde_json::from_slice(&written).unwrap())
}

fn check<'r>(report: &'r Value, name: &str) -> &'r Value {
    let checks = report["checks"].as_array().unwrap();
    checks.iter().find(|check| check["name"] == name).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_installation_of_its_own_is_validated_and_is_a_go() {
    let folder = TempDir::new().unwrap();
    let programs = programs();
    let mut arguments = vec!["--previous", &programs];
    if has_servers() {
        arguments.push("--strict");
    }
    let (said, report) = validation(folder.path(), &arguments).await;
    let said = said.ended_with(0);
    assert!(said.stdout.contains("  GO   25 of 25 in "), "{said:#?}");
    assert!(!said.stdout.contains("left out"), "{said:#?}");
    assert_eq!(report["verdict"], "go");
    let took = report["tookMs"].as_u64().unwrap();
    assert!(took < CHECKED_WITHIN_MS, "{took} ms: {said:#?}");
    // What was started for the checks is among it.
    let checks = report["checks"].as_array().unwrap().iter();
    let checks: u64 = checks.map(|check| check["tookMs"].as_u64().unwrap()).sum();
    assert!(took > checks + 500, "{took} ms, {checks} ms: {said:#?}");
    for name in LIVE
        .map(|(name, _)| name)
        .iter()
        .chain(&OWN.map(|(name, _)| name))
    {
        let check = check(&report, name);
        assert!(!check["measured"].as_str().unwrap().is_empty(), "{check}");
        assert!(!check["limit"].as_str().unwrap().is_empty(), "{check}");
    }
    let junit = std::fs::read_to_string(folder.path().join("validation.xml")).unwrap();
    assert!(junit.contains("tests=\"25\" failures=\"0\""), "{junit}");
}

/// Breaks what a check is about, and sees that very check say so.
async fn finds_what_is_broken(name: &str, before: &str, embedded: bool) {
    let folder = TempDir::new().unwrap();
    let only = format!("{before}{name}");
    let programs = programs();
    let mut arguments = vec!["--break", name, "--only", &only];
    arguments.extend([
        "--commands",
        "1",
        "--records",
        "100",
        "--previous",
        &programs,
    ]);
    if embedded {
        arguments.push("--embedded");
    }
    let (said, report) = validation(folder.path(), &arguments).await;
    let said = said.ended_with(20);
    assert!(said.stdout.contains("  NO-GO   "), "{said:#?}");
    let check = check(&report, name);
    assert_eq!(check["result"], "fail", "{check}");
    for part in ["reason", "fix"] {
        let text = check[part].as_str().unwrap();
        assert!(text.len() > 5, "{check}");
        assert!(said.stdout.contains(text), "{said:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_check_from_outside_finds_what_is_broken() {
    for (name, before) in LIVE {
        finds_what_is_broken(name, before, true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_check_that_kills_finds_what_is_broken() {
    for (name, needs_servers) in OWN {
        if has_servers() || !needs_servers {
            finds_what_is_broken(name, "", !needs_servers).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_tried_is_said_and_is_a_no_go_where_it_is_strict() {
    let folder = TempDir::new().unwrap();
    let arguments = ["--embedded", "--only", "rollback,redis_recovery"];
    let (said, report) = validation(folder.path(), &arguments).await;
    let said = said.ended_with(0);
    assert_eq!(check(&report, "redis_recovery")["result"], "skipped");
    // Where there are programs of an earlier version, `skew` looks at what is made of them.
    if Binaries::earlier().is_none() {
        assert!(said.stdout.contains("2 SKIPPED"), "{said:#?}");
        assert!(said.stdout.contains("cargo xtask skew"), "{said:#?}");
        assert!(said.stdout.contains("--previous DIR"), "{said:#?}");
    }
    let strict = [&arguments[..], &["--strict"]].concat();
    drop(validation(folder.path(), &strict).await.0.ended_with(20));
}

/// The script, as somebody calls it on the host of a backend.
fn script(system: &Deployment, arguments: &[&str]) -> Command {
    let mut command = Command::new(workspace().join("scripts/production_validation.sh"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = format!("{}:{}", programs(), path.display());
    command
        .current_dir(system.path())
        .env("PATH", path)
        .env("VIWORKS_CONFIG_DIR", system.path().join("config"))
        .args(arguments);
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_installation_is_validated_by_the_shipped_programs_alone_and_left_as_it_was() {
    let mut system = Deployment::new(Binaries::shipped());
    system.start_backend(Start::default()).await;
    let (url, config) = (system.api_url(), system.backend_config());
    let url = ["--url", &url, "--key", "operator.key"];
    let config = ["--backend-config", config.to_str().unwrap()];
    let rest = [
        "--report",
        "reports",
        "--only",
        "health,upgrade,registration,round_trip,revocation",
    ];
    let command = script(&system, &[&url[..], &config, &rest].concat());
    let said = finish(command, PATIENCE).await.ended_with(0);
    assert!(said.stdout.contains("  GO   5 of 5 in "), "{said:#?}");
    let part = "a part of it: 12 checks left out (--only)";
    assert!(said.stdout.contains(part), "{said:#?}");
    // The gateway that it had is revoked, and no agent of it runs.
    let gateways = system.get("/v1/gateways").await;
    let statuses: Vec<&Value> = gateways["items"].as_array().unwrap().iter().collect();
    assert_eq!(statuses.len(), 1, "{gateways}");
    assert_eq!(statuses[0]["status"], "revoked", "{gateways}");

    // What its key may not do is not tried, and said.
    run(
        &system.binaries().backend(),
        &[
            "apikey",
            "create",
            "--config",
            text(&system.backend_config()),
            "--name",
            "weak",
            "--scopes",
            "gateways:read",
            "--out",
            text(&system.path().join("weak.key")),
        ],
    );
    let weak = [url[0], url[1], url[2], "weak.key"];
    let rest = ["--only", "registration,pins,revocation"];
    let command = script(&system, &[&weak[..], &config, &rest].concat());
    let said = finish(command, PATIENCE).await.ended_with(0);
    for part in ["2 SKIPPED", "(pins:read)", "(gateways:write)"] {
        assert!(said.stdout.contains(part), "{part}: {said:#?}");
    }

    // Nobody is there: that is no verdict but the health check's.
    system.backend().stop(PATIENCE).await;
    let rest = ["--only", "health,enrolment"];
    let command = script(&system, &[&url[..], &config, &rest].concat());
    let said = finish(command, PATIENCE).await.ended_with(20);
    assert!(said.stdout.contains("fix  start the backend"), "{said:#?}");
    let unknown = "no address of the door is known: --door";
    assert!(said.stdout.contains(unknown), "{said:#?}");

    for wrong in [
        &["--url", "http://127.0.0.1:1"][..],
        &["--self-contained", "--url", "x"],
        &["--nonsense"],
    ] {
        drop(finish(script(&system, wrong), PATIENCE).await.ended_with(2));
    }
}
