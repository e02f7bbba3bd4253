//! Full disks: what was accepted stays, what cannot be kept is refused, and room is all it takes to go on.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::gateway::{AGAIN, ONCE, feed, local_request, mark_starts, started};
use viworks_testkit::process::{Process, eventually};
use viworks_testkit::small_disk::{break_disk, fill, fragile_is_allowed, is_allowed, seen_by};

const STREAM: &str = "test.full";

#[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
fn skipped(what: &str) {
    eprintln!("SKIPPED: {what}");
}

/// Says so when this machine allows no file systems of a test's own.
fn can_run() -> bool {
    let can = is_allowed();
    if !can {
        skipped("full disks: this machine allows no mounts, not even in a namespace of one's own");
    }
    can
}

async fn states(system: &Deployment, run: &str) -> Vec<String> {
    let commands = system.commands(run).await;
    let state = |command: &Value| command["state"].as_str().unwrap().to_owned();
    commands.iter().map(state).collect()
}

/// Every run ended well, and nothing that must not run twice did.
async fn all_succeeded(system: &Deployment, folder: &Path, runs: &[String]) {
    for run in runs {
        system.finished(run).await;
        assert_eq!(states(system, run).await, ["succeeded"], "{run}");
        for command in system.commands(run).await {
            let starts = started(folder)[command["id"].as_str().unwrap()];
            assert_eq!(starts, 1, "{command}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_whose_disk_is_full_runs_what_its_reserve_allows_and_the_rest_later() {
    if !can_run() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    system.start_backend(Start::default()).await;
    let start = Start::default()
        .with("VIWORKS__COLLECT__ENABLED", "false")
        .with("VIWORKS__JOURNAL__RESERVE_CHECK_INTERVAL_MS", "100")
        .on_disk_of(48);
    let mut gateway = system.start_gateway(&folder, start);
    system.online("gw-1").await;
    let inside = seen_by(gateway.pid(), &folder);
    let mut runs = vec![system.submit(ONCE, "before").await];
    all_succeeded(&system, &folder, &runs).await;

    // Everything but the reserve: commands go on.
    let first = fill(&inside.join("state"), "first");
    for (number, command) in [ONCE, AGAIN, ONCE].into_iter().enumerate() {
        runs.push(system.submit(command, &format!("reserve-{number}")).await);
    }
    all_succeeded(&system, &folder, &runs).await;

    // The reserve, too: whatever cannot be journalled is not started, and telemetry is refused, not lost.
    let second = fill(&inside.join("state"), "second");
    let mut number = 0;
    let begun = SystemClock.now();
    let waiting = loop {
        let took = SystemClock.now().saturating_since(begun);
        assert!(
            took < 3 * PATIENCE,
            "{number} commands ended well on a full disk"
        );
        number += 1;
        let run = system.submit(ONCE, &format!("full-{number}")).await;
        let refused = eventually("it ends or is refused", PATIENCE, async || {
            let state = states(&system, &run).await.pop()?;
            let log = gateway.log();
            let refused = log.matches("the command journal failed").count();
            (state == "succeeded" || refused > 0).then_some(state != "succeeded")
        })
        .await;
        runs.push(run.clone());
        if refused {
            break run;
        }
    };
    assert!(gateway.log().contains("gave up the journal's reserve"));
    let mut fed = 0;
    eventually("telemetry is refused", PATIENCE, async || {
        let record = json!({"stream": STREAM, "observed_at": SystemClock.wall().to_string(),
            "fields": {"text": "x".repeat(1_000)}});
        let records = json!({ "records": vec![record; 100] });
        let (status, answer) = local_request(&inside, "POST", "/v1/telemetry", &records)
            .await
            .ok()?;
        fed += if status == 200 { 100 } else { 0 };
        (status == 503 && answer.contains("disk_full")).then_some(())
    })
    .await;
    assert_ne!(states(&system, &waiting).await, ["succeeded"]);
    assert!(gateway.ended().is_none(), "{}", gateway.log());

    // Room is made: nobody has to do anything else.
    std::fs::remove_file(first).unwrap();
    std::fs::remove_file(second).unwrap();
    all_succeeded(&system, &folder, &runs).await;
    eventually("the reserve is back", PATIENCE, async || {
        inside
            .join("state/journal.db.reserve")
            .exists()
            .then_some(())
    })
    .await;
    fed += feed(&inside, STREAM, 100).await.answered;
    runs.push(system.submit(ONCE, "after").await);
    all_succeeded(&system, &folder, &runs).await;
    eventually("every record is delivered", PATIENCE, async || {
        let (_status, text) = local_request(&inside, "GET", "/v1/status", &json!({}))
            .await
            .ok()?;
        let status: Value = serde_json::from_str(&text).ok()?;
        (status["spool"]["records"] == 0).then_some(())
    })
    .await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    assert!(
        system
            .backend()
            .stop(Duration::from_secs(30))
            .await
            .success()
    );
    let stored = system.stored_telemetry(STREAM);
    assert_eq!(
        (stored.keys, stored.records + stored.in_gaps),
        (stored.records, fed)
    );
}

/// Bytes of the blocks that the files of a folder have on a file system in memory.
fn blocks_of(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).unwrap().map(|it| it.unwrap());
    let bytes = files.map(|it| it.metadata().unwrap().len().next_multiple_of(4_096));
    bytes.sum()
}

/// A machine that starts anew, with a disk that has been full since: there is room for that in the reserve alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_starts_on_a_full_disk_gives_its_reserve_up() {
    const DISK_MEBIBYTES: u32 = 24;
    if !can_run() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    system.start_backend(Start::default()).await;
    let gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let mut runs = vec![system.submit(ONCE, "before").await];
    all_succeeded(&system, &folder, &runs).await;
    drop(gateway);
    // With contents, or what takes the files to the small disk would leave holes.
    let state = folder.join("state");
    std::fs::write(state.join("journal.db.reserve"), vec![1_u8; 16 << 20]).unwrap();
    let left = (u64::from(DISK_MEBIBYTES) << 20) - blocks_of(&state);
    let ballast = vec![1_u8; usize::try_from(left).unwrap()];
    std::fs::write(state.join("ballast"), ballast).unwrap();
    let mut gateway = system.start_gateway(&folder, Start::default().on_disk_of(DISK_MEBIBYTES));
    runs.push(system.submit(ONCE, "after").await);
    all_succeeded(&system, &folder, &runs).await;
    let log = gateway.log();
    assert!(log.contains("gave up the journal's reserve"), "{log}");
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}

/// Nothing is read and no command comes, so nobody has met the full disk: the agent says so all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_without_room_and_without_reserve_is_not_well() {
    if !can_run() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let start = Start::default()
        .with("VIWORKS__COLLECT__ENABLED", "false")
        .on_disk_of(4);
    let mut gateway = system.start_gateway(&folder, start);
    system.online("gw-1").await;
    let inside = seen_by(gateway.pid(), &folder);
    let health = async || {
        let (status, text) = local_request(&inside, "GET", "/v1/health", &json!({}))
            .await
            .ok()?;
        let health: Value = serde_json::from_str(&text).ok()?;
        let conditions = health["conditions"].as_array()?;
        let reserve = conditions.iter().find(|it| it["name"] == "disk.reserve")?;
        Some((status, reserve["severity"].as_str()?.to_owned()))
    };
    let warned = (200, "warn".to_owned());
    eventually("it says that there is no reserve", PATIENCE, async || {
        (health().await? == warned).then_some(())
    })
    .await;
    let filled = fill(&inside.join("state"), "all");
    eventually("it is not well", PATIENCE, async || {
        (health().await? == (503, "fail".to_owned())).then_some(())
    })
    .await;
    std::fs::remove_file(filled).unwrap();
    eventually("it is well again", PATIENCE, async || {
        (health().await? == warned).then_some(())
    })
    .await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_whose_disk_is_full_refuses_what_it_cannot_keep_and_goes_on_when_there_is_room() {
    if !can_run() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    let start = Start::default()
        .with("VIWORKS__API__KEY_REQUESTS_PER_MINUTE", "1000000")
        .on_disk_of(32);
    system.start_backend(start).await;
    let state = seen_by(system.backend().pid(), &system.path().join("backend/state"));
    let quick = Start::default().with("VIWORKS__OUTBOUND__BACKOFF_MAX_MS", "300");
    let mut gateway = system.start_gateway(&folder, quick);
    system.online("gw-1").await;
    let mut runs = vec![system.submit(ONCE, "before").await];
    all_succeeded(&system, &folder, &runs).await;

    let ballast = fill(&state, "ballast");
    // What still fits into the log is accepted, and counts.
    let mut refused = None;
    for number in 0..2_000 {
        let body = json!({"command": ONCE, "targets": "all", "reason": "x".repeat(500)});
        let (status, answer) = system
            .request("POST", "/v1/runs", Some(&body))
            .await
            .unwrap();
        match status {
            201 => runs.push(answer["id"].as_str().unwrap().to_owned()),
            // A gateway takes its time; its queue is not what this is about.
            429 => tokio::time::sleep(Duration::from_millis(50)).await,
            _ => {
                refused = Some((number, status, answer));
                break;
            }
        }
    }
    let (_number, status, answer) = refused.expect("a full disk refuses in the end");
    assert_eq!(
        (status, &answer["code"]),
        (507, &json!("VW-S-003")),
        "{answer}"
    );
    assert!(
        system.backend().ended().is_none(),
        "{}",
        system.backend().log()
    );
    let (ready, _body) = system.request("GET", "/livez", None).await.unwrap();
    assert_eq!(ready, 200);

    std::fs::remove_file(ballast).unwrap();
    all_succeeded(&system, &folder, &runs).await;
    runs.push(system.submit(ONCE, "after").await);
    all_succeeded(&system, &folder, &runs).await;
    assert_eq!(
        started(&folder).len(),
        runs.len(),
        "what was refused never ran"
    );
    eventually(
        "it is ready again a minute later",
        2 * PATIENCE,
        async || {
            let (status, _body) = system.request("GET", "/readyz", None).await.ok()?;
            (status == 200).then_some(())
        },
    )
    .await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    assert!(
        system
            .backend()
            .stop(Duration::from_secs(30))
            .await
            .success()
    );
}

async fn local_status(inside: &Path) -> Option<Value> {
    let (_status, text) = local_request(inside, "GET", "/v1/status", &json!({}))
        .await
        .ok()?;
    serde_json::from_str(&text).ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_whose_disk_turned_read_only_says_so_takes_no_command_and_goes_on() {
    if !fragile_is_allowed() {
        skipped("a disk that breaks: this machine allows no loop mounts of ext4");
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default().on_fragile_disk_of(64));
    system.online("gw-1").await;
    let inside = seen_by(gateway.pid(), &folder);
    let before = system.submit(ONCE, "before").await;
    all_succeeded(&system, &folder, &[before]).await;

    break_disk(&inside.join("state"));
    eventually(
        "the agent says that its disk is read-only",
        PATIENCE,
        async || {
            let status = local_status(&inside).await?;
            let conditions = status["conditions"].as_array()?.clone();
            conditions.into_iter().find(|condition| {
                condition["name"] == "state_folder"
                    && condition["severity"] == "fail"
                    && condition["cause"].as_str().is_some_and(|cause| {
                        cause.contains(
                            "state cannot be written any more: the file system is read-only",
                        )
                    })
                    && condition["fix"]
                        .as_str()
                        .is_some_and(|fix| fix.contains("dmesg"))
            })
        },
    )
    .await;
    for command in [ONCE, AGAIN] {
        let run = system
            .submit(command, &format!("read-only {command}"))
            .await;
        let commands = system.commands(&run).await;
        let id = commands[0]["id"].as_str().unwrap();
        eventually("the command is refused", PATIENCE, async || {
            assert!(gateway.ended().is_none(), "{}", gateway.log());
            let log = gateway.log();
            let refused = |line: &str| {
                line.contains("refused a command")
                    && line.contains(id)
                    && line.contains("journal_unavailable")
            };
            log.lines().any(refused).then_some(())
        })
        .await;
        assert!(!started(&folder).contains_key(id), "{command}");
    }
    // It waits for whoever mends it, and still ends when it is told to.
    let status = local_status(&inside).await.expect("the agent answers");
    assert_eq!(status["connection"]["connected"], true, "{status}");
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_whose_disk_turned_read_only_says_so_takes_nothing_and_goes_on() {
    if !fragile_is_allowed() {
        skipped("a disk that breaks: this machine allows no loop mounts of ext4");
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    let fragile = Start::default().on_fragile_disk_of(64);
    system.start_backend(fragile).await;
    let state = seen_by(system.backend().pid(), &system.path().join("backend/state"));
    let mut gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let before = system.submit(ONCE, "before").await;
    all_succeeded(&system, &folder, &[before]).await;

    break_disk(&state);
    eventually("the backend says why", PATIENCE, async || {
        let health = system.get("/v1/health").await;
        let checks = health["checks"].as_array()?.clone();
        let mut found = checks.into_iter();
        let found = found.find(|check| check["name"] == "store.commits")?;
        let detail = found["detail"].as_str()?;
        let told = "state cannot be written any more: the file system is read-only";
        (found["status"] == "fail" && detail.contains(told)).then_some(())
    })
    .await;
    let body = json!({"command": ONCE, "targets": "all"});
    let (status, answer) = system
        .request("POST", "/v1/runs", Some(&body))
        .await
        .unwrap();
    assert_eq!(
        (status, &answer["code"]),
        (503, &json!("VW-S-001")),
        "{answer}"
    );
    let (ready, _body) = system.request("GET", "/readyz", None).await.unwrap();
    assert_eq!(ready, 503);
    // What was stored is still to be read, and the backend ends when it is told to.
    let runs = system.get("/v1/runs").await;
    assert_eq!(runs["items"].as_array().map(Vec::len), Some(1), "{runs}");
    assert_eq!(started(&folder).len(), 1);
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    let backend = system.backend();
    let ended = backend.stop(Duration::from_secs(30)).await;
    assert!(ended.success(), "{ended}: {}", backend.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readings_that_a_full_disk_refused_are_counted_as_gaps_once_there_is_room() {
    if !can_run() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let start = Start::default()
        .with("VIWORKS__COLLECT__INTERVAL_MS", "1000")
        .on_disk_of(48);
    let mut gateway = system.start_gateway(&folder, start);
    system.online("gw-1").await;
    let inside = seen_by(gateway.pid(), &folder);
    let ballast = fill(&inside.join("state"), "ballast");
    let refused = eventually("readings are refused", PATIENCE, async || {
        let status = local_status(&inside).await?;
        let named = status["conditions"].to_string();
        let refused = status["spool"]["refused_by_disk"].as_u64()?;
        (refused > 50 && named.contains("spool.db cannot be written")).then_some(refused)
    })
    .await;
    std::fs::remove_file(ballast).unwrap();
    let dropped = eventually("they are counted in the spool", PATIENCE, async || {
        let status = local_status(&inside).await?;
        let dropped = status["spool"]["dropped"].as_u64()?;
        (dropped >= refused && dropped == status["spool"]["refused_by_disk"].as_u64()?)
            .then_some(dropped)
    })
    .await;
    eventually("the backend knows of the gap", PATIENCE, async || {
        let gaps = system.get("/v1/telemetry/gaps?gateway=gw-1").await;
        let missing: u64 = gaps["items"]
            .as_array()?
            .iter()
            .filter(|gap| gap["reason"] == "spool_full")
            .map(|gap| gap["to_seq"].as_u64().unwrap() - gap["from_seq"].as_u64().unwrap() + 1)
            .sum();
        (missing == dropped).then_some(())
    })
    .await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}

/// `ulimit -f`: a file that may not grow any further is an error like a full disk, not the end without a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_on_the_size_of_files_ends_no_agent_without_a_word() {
    let system = Deployment::new(Binaries::shipped());
    let backend = system.binaries().backend();
    let mut limited = Command::new("sh");
    // 512 KiB: enough for the schema, and not for what comes.
    limited
        .args(["-c", "ulimit -f 1024; exec \"$0\" \"$@\""])
        .arg(backend);
    limited
        .args(["serve", "--config"])
        .arg(system.backend_config());
    limited
        .env("VIWORKS__API__LISTEN", "127.0.0.1:0")
        .env("VIWORKS__AGENTS__LISTEN", "127.0.0.1:0");
    let ready = system.path().join("limited.json");
    limited.arg("--ready-file").arg(&ready);
    let log = system.path().join("limited.log");
    let mut process = Process::start(&mut limited, &log).unwrap();
    let addresses: Value = eventually("it listens", PATIENCE, async || {
        assert!(process.ended().is_none(), "{}", process.log());
        serde_json::from_slice(&std::fs::read(&ready).ok()?).ok()
    })
    .await;
    let http = viworks_testkit::http::client();
    let token = std::fs::read_to_string(system.path().join("operator.key")).unwrap();
    let url = format!("http://{}/v1/apikeys", addresses["api"].as_str().unwrap());
    let mut refused = false;
    for number in 0..2_000 {
        let body =
            json!({"name": format!("key-{number}-{}", "x".repeat(40)), "scopes": ["runs:read"]});
        let request = http.post(&url).bearer_auth(token.trim()).json(&body).send();
        let status = request.await.unwrap().status().as_u16();
        if status >= 500 {
            refused = true;
            break;
        }
        assert!(status == 201 || status == 429, "{status}");
    }
    assert!(refused, "nothing met the limit");
    assert!(process.ended().is_none(), "{}", process.log());
    assert!(process.stop(PATIENCE).await.code().is_some());
}
