//! What a person is shown: names in place of ids, what a command left running, times as seen from now.

use std::process::Command;

use serde_json::Value;
use viworks_testkit::deployment::{PATIENCE, Start, text};
use viworks_testkit::process::finish;

use super::desk::Desk;

const CATALOGUE: &str = r#"
[[command]]
name = "test.say"
title = "says a word"
risk = "read"
idempotent = true
argv = ["/bin/echo", "hello"]
timeout_ms = 20000

[[command]]
name = "test.leave"
title = "leaves a program running that keeps its output"
risk = "read"
idempotent = true
argv = ["/bin/sh", "-c", "sleep 300 & echo started"]
timeout_ms = 20000
"#;

/// A time as programs get it: with microseconds.
fn has_exact_time(text: &str) -> bool {
    let dated = |word: &str| word.contains('T') && word.contains(':') && word.contains('.');
    text.split_whitespace()
        .map(|word| word.trim_start_matches('('))
        .any(|word| dated(word) && word.starts_with("20"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_on_many_gateways_is_shown_whole_or_says_what_is_left_out() {
    const MANY: u32 = 60;
    let gateways = [("gw-1", Some(CATALOGUE.to_owned())), ("gw-2", None)];
    let mut desk = Desk::of_each(&gateways, Start::default()).await;
    let words = ["run", "test.say", "--all", "--skip-unable"];
    let result = desk.json(&words, 0).await;
    let run = result["run"]["id"].as_str().unwrap();
    let stopped = desk.system.backend().stop(PATIENCE).await;
    assert!(stopped.success(), "{stopped}");
    desk.system.multiply(run, MANY);
    // Too few requests for all of this: what the key may not ask for at once is asked for later.
    let scarce = Start::default()
        .with("VIWORKS__API__KEY_REQUESTS_BURST", "100")
        .with("VIWORKS__API__KEY_REQUESTS_PER_MINUTE", "1200");
    desk.system.start_backend(scarce).await;

    let short = desk.run(&["runs", "show", run]).await.ended_with(0);
    assert!(short.stdout.contains("gw-2"), "{short:#?}");
    let told = "the output of 61 gateways is not shown here";
    assert!(short.stderr.contains(told), "{short:#?}");
    let more = format!("runs show {run} --full");
    assert!(short.stderr.contains(&more), "{short:#?}");
    // A program is told the same.
    let part = desk.json(&["runs", "show", run], 0).await;
    assert_eq!(part["without_output"], 61, "{part:#}");

    let whole = desk.json(&["runs", "show", run, "--full"], 0).await;
    assert_eq!(whole["without_output"], Value::Null, "{whole:#}");
    let commands = whole["commands"].as_array().unwrap();
    let said = |command: &&Value| command["outcome"]["stdout"]["head"]["text"] == "hello\n";
    assert_eq!(commands.iter().filter(said).count(), 61, "{whole:#}");
    let whole = desk.run(&["runs", "show", run, "--full"]).await;
    let whole = whole.ended_with(0);
    let shown = whole.stdout.matches("── stdout\nhello\n").count();
    assert_eq!(shown, 61, "{whole:#?}");
    assert!(whole.stdout.contains("══ gw-2  ○ skipped\n"), "{whole:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_shown_by_its_name() {
    let desk = Desk::of(&["gw-1"], CATALOGUE, Start::default()).await;
    let result = desk.json(&["run", "test.say", "-g", "gw-1"], 0).await;
    let run = result["run"]["id"].as_str().unwrap();
    let listed = desk.run(&["runs", "ls"]).await.ended_with(0);
    let shown = desk.run(&["runs", "show", run]).await.ended_with(0);
    assert!(listed.stdout.contains(" tests "), "{listed:#?}");
    assert!(shown.stdout.contains(" by tests\n"), "{shown:#?}");
    for said in [&listed, &shown] {
        assert!(!said.stdout.contains("api_key:"), "{said:#?}");
    }
    let audit = desk.system.get("/v1/audit").await;
    let records = audit["items"].as_array().unwrap();
    let of = |action: &str| -> &Value {
        let found = records.iter().find(|record| record["action"] == action);
        found.unwrap_or_else(|| panic!("{action}: {audit:#}"))
    };
    assert_eq!(of("run.submit")["actor_name"], "tests", "{audit:#}");
    assert_eq!(of("api_key.create")["object_name"], "tests", "{audit:#}");
    let named = records
        .iter()
        .filter(|record| record["object"].as_str().unwrap().starts_with("gateway:"));
    let names: Vec<&Value> = named.map(|record| &record["object_name"]).collect();
    assert!(!names.is_empty(), "{audit:#}");
    assert!(names.iter().all(|name| **name == "gw-1"), "{audit:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_command_left_running_is_told_beside_its_success() {
    const LEFT: &str = "what it left running in its session or with its output was ended";
    let desk = Desk::open(CATALOGUE, Start::default()).await;
    let one = desk.run(&["run", "test.leave", "-g", "gw-1"]).await;
    let one = one.ended_with(0);
    assert_eq!(one.stdout, "started\n", "{one:#?}");
    assert!(one.stderr.contains(LEFT), "{one:#?}");
    assert!(one.stderr.contains("sleep"), "{one:#?}");
    let all = desk
        .run(&["run", "test.leave", "--all"])
        .await
        .ended_with(0);
    assert_eq!(all.stdout.matches(LEFT).count(), 2, "{all:#?}");
    let listed = desk.json(&["runs", "ls"], 0).await;
    let run = listed["items"][0]["id"].as_str().unwrap();
    let shown = desk.run(&["runs", "show", run]).await.ended_with(0);
    assert_eq!(shown.stdout.matches(LEFT).count(), 2, "{shown:#?}");
    assert_eq!(shown.stdout.matches("started").count(), 2, "{shown:#?}");
    assert!(!has_exact_time(&shown.stdout), "{shown:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_are_said_from_now_and_gateways_by_their_names() {
    let mut desk = Desk::of(&["gw-1"], CATALOGUE, Start::default()).await;
    let socket = desk.system.path().join("gateways/gw-1/state/api.sock");
    let mut command = Command::new(desk.system.binaries().gateway());
    command.args(["status", "--socket", text(&socket)]);
    let said = finish(command, PATIENCE).await.ended_with(0);
    assert!(!has_exact_time(&said.stdout), "{said:#?}");
    let line = |what: &str| said.stdout.lines().find(|line| line.starts_with(what));
    for what in ["connection", "agent"] {
        let line = line(what).unwrap();
        assert!(line.contains(" (20") && line.ends_with("Z)"), "{said:#?}");
    }
    let mut command = Command::new(desk.system.binaries().gateway());
    command.args(["status", "--socket", text(&socket), "-o", "json"]);
    let status = finish(command, PATIENCE).await.ended_with(0).json();
    let since = status["connection"]["since"].as_str().unwrap();
    assert!(has_exact_time(since), "{status:#}");
    let shown = desk.run(&["gateway", "show", "gw-1"]).await.ended_with(0);
    assert!(!has_exact_time(&shown.stdout), "{shown:#?}");
    let log = desk.system.backend().log();
    let connected = log.lines().find(|line| line.contains("gateway connected"));
    assert!(connected.unwrap().contains("gateway=gw-1"), "{log}");
}
