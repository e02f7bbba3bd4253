//! The operator's command line against a real backend and real gateways: what it prints, and what it ends with.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use viworks_testkit::deployment::{PATIENCE, Start, run, text};
use viworks_testkit::gateway::ONCE;
use viworks_testkit::process::{Process, eventually, finish};

use super::desk::Desk;

const MORE: &str = r#"
[[command]]
name = "test.fail"
title = "fails"
risk = "read"
idempotent = true
argv = ["/bin/false"]
timeout_ms = 20000

[[command]]
name = "test.long"
title = "takes its time"
risk = "read"
idempotent = true
argv = ["/bin/sleep", "60"]
timeout_ms = 120000
"#;

async fn open() -> Desk {
    Desk::that_speaks(MORE, Start::default()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_runs_commands_and_reads_what_came_of_them() {
    let desk = open().await;
    let said = desk.run(&["gateway", "ls"]).await.ended_with(0);
    assert!(
        said.stdout.contains("gw-1") && said.stdout.contains("online"),
        "{said:#?}"
    );
    assert!(
        !said.stdout.contains('\x1b') && !said.stderr.contains('\x1b'),
        "{said:#?}"
    );
    assert_eq!(
        desk.json(&["gateway", "ls"], 0).await["items"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!(
        desk.json(&["gateway", "show", "gw-2"], 0).await["name"],
        "gw-2"
    );
    let said = desk.run(&["command", "ls"]).await.ended_with(0);
    assert!(said.stdout.contains("test.say"), "{said:#?}");

    let said = desk
        .run(&["run", "test.say", "word=hello", "--all"])
        .await
        .ended_with(0);
    assert_eq!(said.stdout.matches("hello").count(), 2, "{said:#?}");
    let result = desk
        .json(&["run", "test.say", "word=hello", "-g", "gw-1"], 0)
        .await;
    let commands = result["commands"].as_array().unwrap();
    assert_eq!(commands.len(), 1, "{result:#}");
    assert_eq!(commands[0]["state"], "succeeded");
    let id = result["run"]["id"].as_str().unwrap();
    assert_eq!(desk.json(&["runs", "show", id], 0).await["run"]["id"], id);
    drop(desk.run(&["runs", "wait", id]).await.ended_with(0));
    let said = desk.run(&["runs", "ls"]).await.ended_with(0);
    assert!(said.stdout.contains("test.say"), "{said:#?}");
    let listed = desk.json(&["runs", "ls"], 0).await;
    assert_eq!(listed["items"].as_array().unwrap().len(), 2, "{listed:#}");
    eventually("telemetry arrives", PATIENCE, async || {
        let said = desk
            .run(&["telemetry", "-g", "gw-1", "--stream", "host.cpu"])
            .await;
        (said.code == Some(0) && said.stdout.contains("host.cpu")).then_some(())
    })
    .await;
    numbers_over_time(&desk).await;
    let limited = &["run", "test.long", "-g", "gw-1", "--timeout", "300ms"];
    let result = desk.json(limited, 3).await;
    assert_eq!(result["commands"][0]["state"], "timed_out", "{result:#}");
    let codes = desk.run(&["exit-codes"]).await.ended_with(0);
    assert!(codes.stdout.contains("unavailable"), "{codes:#?}");
}

/// What `viworks telemetry` says of a field over time.
async fn numbers_over_time(desk: &Desk) {
    let load = ["telemetry", "-g", "gw-1", "--stream", "host.load"];
    let with = |more: &[&'static str]| [&load, more].concat();
    let said = desk
        .run(&with(&["--field", "one", "--step", "1h"]))
        .await
        .ended_with(0);
    assert!(
        said.stdout.contains("RECORDS") && said.stdout.contains(":00:00Z"),
        "{said:#?}"
    );
    assert!(said.stderr.contains("avg of one in "), "{said:#?}");
    let count = with(&["--field", "one", "--step", "1h", "--agg", "count"]);
    let counted = desk.json(&count, 0).await;
    assert_eq!(counted["kind"], "TelemetryStepList");
    assert_eq!(
        counted["items"][0]["value"], counted["items"][0]["records"],
        "{counted:#}"
    );
    let said = desk
        .run(&with(&["--field", "won", "--step", "1h"]))
        .await
        .ended_with(0);
    assert!(
        said.stderr.contains("\"won\"; it has: fifteen five one"),
        "{said:#?}"
    );
    for wrong in [
        &["--step", "1h"][..],
        &["--field", "one"],
        &["--field", "one", "--step", "an hour"],
        &["--field", "one", "--step", "1h", "--agg", "median"],
        &["--field", "one", "--step", "1ms"],
    ] {
        let said = desk.run(&with(wrong)).await.ended_with(2);
        assert!(
            said.stderr.contains("step") || said.stderr.contains("avg"),
            "{said:#?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_to_go_wrong_has_its_exit_code_and_says_what_to_do() {
    let desk = open().await;
    let said = desk.run(&["run", "test.fail", "--all"]).await.ended_with(3);
    assert!(said.stdout.contains("failed"), "{said:#?}");
    let said = desk.run(&["run", "test.nothing", "--all"]).await;
    assert_eq!(said.code, Some(5), "{said:#?}");
    assert!(said.stderr.contains("command ls"), "{said:#?}");
    let said = desk
        .run(&["run", "test.say", "word=NOT", "--all"])
        .await
        .ended_with(2);
    assert!(
        said.stderr.contains("word") && said.stderr.contains("[a-z]{1,8}"),
        "{said:#?}"
    );
    let said = desk.run(&["run", "test.say", "--all"]).await.ended_with(2);
    assert!(said.stderr.contains("word"), "{said:#?}");
    drop(
        desk.run(&["run", "test.say", "word=a", "-g", "gw-9"])
            .await
            .ended_with(5),
    );
    drop(desk.run(&["gateway", "show", "gw-9"]).await.ended_with(5));
    drop(desk.run(&["run", "test.say"]).await.ended_with(2));
    drop(desk.run(&["gateways"]).await.ended_with(2));
    let error = desk
        .run(&["gateway", "show", "gw-9", "-o", "json"])
        .await
        .ended_with(5);
    assert_eq!(error.error()["code"], "VW-N-001", "{error:#?}");
    assert_eq!(error.stdout, "", "errors are no results");
    // What was not understood is told in the form that was asked for.
    for wrong in [
        &["gateway", "ls", "--nonsense", "-o", "json"][..],
        &["-ojson", "gateways"],
        &["gateway", "--output=json"],
    ] {
        let said = desk.run(wrong).await.ended_with(2);
        assert_eq!(said.error()["code"], "usage", "{said:#?}");
        assert_eq!(said.stdout, "", "{said:#?}");
    }
    let said = desk.run(&["error", "VW-N-001"]).await.ended_with(0);
    assert!(said.stdout.contains("not found"), "{said:#?}");
    let said = desk.run(&["error", "4429"]).await.ended_with(0);
    assert!(said.stdout.contains("4429"), "{said:#?}");
    drop(desk.run(&["error", "VW-X-999"]).await.ended_with(5));

    let said = desk
        .run(&["run", "test.long", "-g", "gw-1", "--wait=1s"])
        .await
        .ended_with(8);
    let listed = desk.json(&["runs", "ls"], 0).await;
    let id = listed["items"][0]["id"].as_str().unwrap().to_owned();
    assert!(
        said.stderr.contains(&id),
        "the hint names the run: {said:#?}"
    );
    drop(desk.run(&["runs", "cancel", &id]).await.ended_with(0));
    let waited = desk.run(&["runs", "wait", &id]).await;
    assert!(
        matches!(waited.code, Some(3 | 7)),
        "a cancelled command did not succeed: {waited:#?}"
    );

    let unreadable = desk.system.path().join("nowhere.key");
    let said = desk.run_with(&unreadable, &["gateway", "ls"]).await;
    assert!(
        matches!(said.code, Some(4 | 78)) && said.stderr.contains("nowhere.key"),
        "{said:#?}"
    );
    let wrong = desk.system.path().join("wrong.key");
    std::fs::write(&wrong, format!("vwk_{}\n", "0".repeat(64))).unwrap();
    std::fs::set_permissions(&wrong, std::fs::Permissions::from_mode(0o600)).unwrap();
    drop(
        desk.run_with(&wrong, &["gateway", "ls"])
            .await
            .ended_with(4),
    );
    let narrow = desk.system.path().join("narrow.key");
    run(
        &desk.system.binaries().backend(),
        &[
            "apikey",
            "create",
            "--config",
            text(&desk.system.backend_config()),
            "--name",
            "narrow",
            "--scopes",
            "health:read",
            "--out",
            text(&narrow),
        ],
    );
    drop(
        desk.run_with(&narrow, &["gateway", "ls"])
            .await
            .ended_with(77),
    );
    let mut away = desk.command(&desk.token, &["gateway", "ls"]);
    away.env("VIWORKS_SERVER", "http://127.0.0.1:1");
    let said = finish(away, PATIENCE).await.ended_with(69);
    assert!(said.stderr.contains("fix"), "{said:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_the_whole_run_and_says_when_to_come_back() {
    let desk = Desk::that_speaks(
        MORE,
        Start::default().with("VIWORKS__QUEUE__PER_GATEWAY", "1"),
    )
    .await;
    let body = serde_json::json!({"command": "test.long", "targets": {"gateways": ["gw-1"]}});
    let first = desk.system.post("/v1/runs", &body).await["id"].clone();
    // It needs both gateways, and one of them is full: nothing goes to the other.
    let said = desk
        .run(&["run", "test.say", "word=a", "--all"])
        .await
        .ended_with(75);
    assert!(
        said.stderr.contains("queue full") && said.stderr.contains("try again in about"),
        "{said:#?}"
    );
    let body =
        serde_json::json!({"command": "test.say", "arguments": {"word": "a"}, "targets": "all"});
    let (status, problem) = desk
        .system
        .request("POST", "/v1/runs", Some(&body))
        .await
        .unwrap();
    assert_eq!((status, &problem["code"]), (429, &Value::from("VW-Q-001")));
    assert!(problem["retry_after_ms"].as_u64() > Some(0), "{problem}");
    let runs = desk.json(&["runs", "ls"], 0).await;
    assert_eq!(runs["items"].as_array().unwrap().len(), 1, "{runs:#}");
    assert_eq!(
        desk.json(&["gateway", "show", "gw-2"], 0).await["queued_commands"],
        0
    );
    let first = first.as_str().unwrap();
    drop(desk.run(&["runs", "cancel", first]).await.ended_with(0));
    desk.system.finished(first).await;
    drop(
        desk.run(&["run", "test.say", "word=a", "--all"])
            .await
            .ended_with(0),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ctrl_c_ends_the_waiting_and_not_the_work() {
    let desk = open().await;
    let mut command = desk.command(&desk.token, &["run", "test.long", "-g", "gw-1"]);
    let mut waiting = Process::start(&mut command, &desk.system.path().join("run.log")).unwrap();
    let id = eventually("it runs", PATIENCE, async || {
        let listed = desk.json(&["runs", "ls"], 0).await;
        let id = listed["items"][0]["id"].as_str()?.to_owned();
        let commands = desk.system.commands(&id).await;
        (commands[0]["state"] == "running").then_some(id)
    })
    .await;
    waiting.signal(Signal::INT);
    let status = waiting.wait(PATIENCE).await;
    assert_eq!(status.code(), Some(130), "{}", waiting.log());
    assert!(
        waiting.log().contains(&id),
        "how to go on: {}",
        waiting.log()
    );
    assert_eq!(desk.system.commands(&id).await[0]["state"], "running");
    drop(desk.run(&["runs", "cancel", &id]).await.ended_with(0));
    desk.system.finished(&id).await;
    assert_eq!(desk.system.commands(&id).await[0]["state"], "cancelled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_subcommand_explains_itself_and_a_closed_pipe_is_no_crash() {
    let desk = open().await;
    for path in [
        &["up"][..],
        &["down"],
        &["run"],
        &["runs"],
        &["runs", "ls"],
        &["runs", "show"],
        &["runs", "wait"],
        &["runs", "cancel"],
        &["gateway", "ls"],
        &["gateway", "show"],
        &["command", "ls"],
        &["telemetry"],
        &["context", "ls"],
        &["context", "use"],
        &["context", "rm"],
        &["exit-codes"],
        &["error"],
    ] {
        let said = desk.run(&[path, &["--help"]].concat()).await.ended_with(0);
        let summary = said.stdout.lines().next().unwrap_or_default();
        assert!(
            summary.len() > 10 && said.stdout.contains("Usage: viworks"),
            "{path:?}: {said:#?}"
        );
    }
    for n in 0..30 {
        let run = desk.system.submit(ONCE, &n.to_string()).await;
        desk.system.finished(&run).await;
    }
    let mut command = Command::new("/bin/sh");
    let cli = desk.system.binaries().cli();
    let line = format!("'{}' runs ls | head -n 1; exit 0", text(&cli));
    command.args(["-c", &line]);
    for (name, value) in desk.command(&desk.token, &[]).get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let said = finish(command, Duration::from_secs(30)).await.ended_with(0);
    assert!(!said.stderr.contains("panicked"), "{said:#?}");
}
