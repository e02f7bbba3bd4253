//! `kill -9` of the backend and of a gateway amid commands and telemetry, and a backend that takes little at once:
//! everything final, nothing twice, nothing lost.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::gateway::{AGAIN, Fed, ONCE, feed, local_request, mark_starts, started};
use viworks_testkit::process::eventually;

const GATEWAYS: usize = 4;
const RUNS: usize = 50;
const RECORDS: usize = 50_000;
const STREAM: &str = "test.feed";

fn quick() -> Start {
    Start::default()
        .with("VIWORKS__OUTBOUND__BACKOFF_MAX_MS", "300")
        .with("VIWORKS__COLLECT__ENABLED", "false")
}

/// Waits until the gateways have nothing left to deliver.
async fn delivered(folders: &[PathBuf]) {
    let within = Duration::from_secs(90);
    eventually("every record is delivered", within, async || {
        for folder in folders {
            let status = local_request(folder, "GET", "/v1/status", &json!({})).await;
            let status: Value = serde_json::from_str(&status.ok()?.1).ok()?;
            if status["spool"]["records"] != 0 {
                return None;
            }
        }
        Some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_batch_that_may_wait_gateways_keep_the_others_and_none_is_lost() {
    let mut system = Deployment::new(Binaries::shipped());
    let folders = ["gw-1", "gw-2"].map(|name| system.issue(name));
    let one = Start::default().with("VIWORKS__TELEMETRY__BATCHES_WAITING_MAX", "1");
    system.start_backend(one).await;
    let _gateways = folders
        .each_ref()
        .map(|folder| system.start_gateway(folder, quick()));
    system.online("gw-1").await;
    system.online("gw-2").await;
    let (one, other) = tokio::join!(
        feed(&folders[0], STREAM, 5_000),
        feed(&folders[1], STREAM, 5_000)
    );
    assert_eq!((one.unanswered, other.unanswered), (0, 0));
    delivered(&folders).await;
    assert!(system.backend().stop(PATIENCE).await.success());
    let stored = system.stored_telemetry(STREAM);
    assert_eq!((stored.records, stored.keys), (10_000, 10_000));
    assert_eq!(stored.in_gaps, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_amid_commands_and_telemetry_lose_nothing_and_repeat_nothing() {
    let mut system = Deployment::new(Binaries::shipped());
    let folders: Vec<_> = (0..GATEWAYS)
        .map(|n| system.issue(&format!("gw-{n}")))
        .collect();
    folders.iter().for_each(|folder| mark_starts(folder));
    system.start_backend(Start::default()).await;
    let mut gateways: Vec<_> = folders
        .iter()
        .map(|folder| system.start_gateway(folder, quick()))
        .collect();
    for n in 0..GATEWAYS {
        system.online(&format!("gw-{n}")).await;
    }

    let feeders: Vec<_> = folders
        .iter()
        .cloned()
        .map(|folder| {
            #[expect(
                clippy::disallowed_methods,
                reason = "a test has no lifecycle; the task is joined below"
            )]
            tokio::spawn(async move { feed(&folder, STREAM, RECORDS / GATEWAYS).await })
        })
        .collect();
    let mut runs = Vec::new();
    for n in 0..RUNS {
        let command = if n % 2 == 0 { ONCE } else { AGAIN };
        runs.push((command, system.submit(command, &format!("key-{n}")).await));
        if n % 12 == 10 {
            system.kill_backend();
            system.start_backend(Start::default()).await;
        }
        if n % 20 == 15 {
            gateways[1].kill();
            gateways[1] = system.start_gateway(&folders[1], quick());
        }
    }
    let mut fed = Fed::default();
    for feeder in feeders {
        let one = feeder.await.unwrap();
        fed.answered += one.answered;
        fed.unanswered += one.unanswered;
    }

    let mut final_commands = 0;
    for (command, run) in &runs {
        system.finished(run).await;
        for one in system.commands(run).await {
            final_commands += 1;
            let id = one["id"].as_str().unwrap();
            let state = one["state"].as_str().unwrap();
            let starts: usize = folders
                .iter()
                .filter_map(|folder| started(folder).get(id).copied())
                .sum();
            match state {
                "succeeded" => assert!(starts >= 1, "{id} succeeded and never ran"),
                "indeterminate" => assert_eq!(
                    *command, ONCE,
                    "only what must not run twice is indeterminate"
                ),
                other => panic!("{id} is {other}: {one}"),
            }
            if *command == ONCE {
                assert!(starts <= 1, "{id} started {starts} times");
            }
        }
    }
    assert_eq!(final_commands, RUNS * GATEWAYS);

    delivered(&folders).await;
    assert!(
        system
            .backend()
            .stop(Duration::from_secs(30))
            .await
            .success()
    );
    let stored = system.stored_telemetry(STREAM);
    assert_eq!(stored.records, stored.keys, "no key is stored twice");
    let delivered = stored.records + stored.in_gaps;
    assert!(
        (fed.answered..=fed.answered + fed.unanswered).contains(&delivered),
        "{stored:?} does not account for {fed:?}"
    );
    for gateway in &mut gateways {
        assert!(
            gateway.stop(Duration::from_secs(30)).await.success(),
            "{}",
            gateway.log()
        );
    }
}
