//! A log that nobody reads: both agents go on, answer, say what is missing, and end when they are told to.

use std::io::Read;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpStream;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::gateway::{AGAIN, mark_starts};
use viworks_testkit::process::{Said, eventually, finish};

/// Far less than a hang, far more than an answer takes.
const SOON: Duration = Duration::from_secs(20);

async fn status(folder: &std::path::Path) -> Said {
    let mut command = Command::new(Binaries::shipped().gateway());
    command
        .args(["status", "--output", "json", "--socket"])
        .arg(folder.join("state/api.sock"));
    finish(command, SOON).await
}

fn names(document: &Value) -> Vec<&str> {
    let conditions = document["conditions"].as_array().into_iter().flatten();
    conditions
        .filter_map(|condition| condition["name"].as_str())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_whose_log_nobody_reads_works_answers_says_so_and_ends() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    let other = system.issue("gw-2");
    mark_starts(&folder);
    mark_starts(&other);
    system.start_backend(Start::default()).await;
    let start = Start::default()
        .with("VIWORKS__LOG__FILTER", "trace")
        .with("VIWORKS__LOG__WAITING_BYTES_MAX", "16384")
        .with_an_unread_log();
    let mut gateway = system.start_gateway(&folder, start.clone());
    let mut ended = system.start_gateway(&other, start);
    system.online("gw-1").await;
    system.online("gw-2").await;
    let mut runs = Vec::new();
    for n in 0..400 {
        runs.push(system.submit(AGAIN, &format!("key-{n}")).await);
    }
    for run in &runs {
        system.finished(run).await;
    }
    // The queue of lines is full by now, and `status` says why lines are missing.
    for folder in [&folder, &other] {
        eventually("status names the log", PATIENCE, async || {
            let said = status(folder).await.ended_with(0);
            names(&said.json()).contains(&"log").then_some(())
        })
        .await;
    }
    assert!(ended.stop(SOON).await.success());

    // Read again, the log says how much of it is missing; then nothing is wrong any more.
    let mut reader = gateway.take_unread().unwrap();
    let reading = std::thread::spawn(move || {
        let mut text = Vec::new();
        reader.read_to_end(&mut text).map(|_bytes| text)
    });
    eventually("nothing is wrong with the log", PATIENCE, async || {
        let said = status(&folder).await.ended_with(0);
        (!names(&said.json()).contains(&"log")).then_some(())
    })
    .await;
    assert!(gateway.stop(SOON).await.success());
    let text = reading.join().unwrap().unwrap();
    let text = String::from_utf8_lossy(&text);
    assert!(
        text.contains("lines dropped: nobody took the log"),
        "{text}"
    );
    assert!(text.lines().last().unwrap().contains("stopped"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_cannot_stop_a_backend_by_filling_a_log_that_nobody_reads() {
    let mut system = Deployment::new(Binaries::shipped());
    let start = Start::default()
        .with("VIWORKS__LOG__FILTER", "trace")
        .with("VIWORKS__LOG__WAITING_BYTES_MAX", "16384")
        .with("VIWORKS__AGENTS__TLS_TIMEOUT_MS", "1000")
        .with_an_unread_log();
    system.start_backend(start).await;
    let agents = system.agents_address().to_owned();
    for _round in 0..10 {
        let mut strangers = Vec::new();
        for _ in 0..100 {
            strangers.push(TcpStream::connect(&agents).await.unwrap());
        }
    }
    let client = viworks_testkit::http::client();
    let url = format!("{}/livez", system.api_url());
    eventually("the log is stuck", PATIENCE, async || {
        let answer = client.get(&url).timeout(SOON).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let health = system.get("/v1/health").await;
        let metrics = system.get("/metrics").await;
        let dropped = metrics.as_str()?.lines().find_map(|line| {
            let count = line.strip_prefix("viworks_log_lines_dropped_total ")?;
            count.parse::<u64>().ok()
        })?;
        (dropped > 0 && health.to_string().contains("lines of the log")).then_some(())
    })
    .await;
    assert!(system.backend().stop(SOON).await.success());
}
