//! Programs of an earlier version beside those of this one: gateways that are older than their backend, and a backend
//! that is older than its gateways.
//!
//! `cargo xtask skew` builds the earlier ones from this repository's own history; without them this is skipped, loudly.

mod handed_over;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::gateway::{AGAIN, ONCE, feed, mark_starts, started};
use viworks_testkit::process::{Process, eventually, finish};

const NAMES: [&str; 2] = ["gw-1", "gw-2"];
const STREAM: &str = "app.skew";
/// Records of each gateway in each round.
const RECORDS: usize = 50;

/// How long the rehearsal of a rollback may take: five starts of a site.
const REHEARSED_WITHIN: Duration = Duration::from_secs(200);

/// A site that the earlier version has made, and what its gateways have done so far.
struct Site {
    system: Deployment,
    folders: [PathBuf; 2],
    runs: usize,
    records: usize,
}

impl Site {
    async fn made_by(earlier: &'static Binaries) -> (Self, [Process; 2]) {
        let mut system = Deployment::new(earlier);
        let folders = NAMES.map(|name| system.issue(name));
        system.start_backend(Start::default()).await;
        let gateways = folders.each_ref().map(|folder| {
            mark_starts(folder);
            system.start_gateway(folder, Start::default())
        });
        let mut site = Self {
            system,
            folders,
            runs: 0,
            records: 0,
        };
        site.works().await;
        (site, gateways)
    }

    /// Runs a command on every gateway.
    async fn runs(&mut self, request: Value) {
        self.runs += 1;
        let key = format!("run-{}", self.runs);
        let (status, run) = self.system.submit_once(&request, &key).await;
        assert!((200..300).contains(&status), "{run:#}");
        let run = self.system.finished(run["id"].as_str().unwrap()).await;
        assert_eq!(run["counts"], json!({"succeeded": 2}), "{run:#}");
        for folder in &self.folders {
            let starts = started(folder);
            assert_eq!(starts.len(), self.runs, "{starts:?}");
            assert!(starts.values().all(|times| *times == 1), "{starts:?}");
        }
    }

    /// A command with a time limit of its own. Gateways of before keep none but their catalogue's: they are not asked
    /// to run for longer than somebody was promised.
    async fn limited(&self, ends: Value) {
        let request = json!({"command": AGAIN, "targets": "all", "timeout_ms": 10_000});
        let key = format!("limited-{ends}");
        let (status, run) = self.system.submit_once(&request, &key).await;
        assert!((200..300).contains(&status), "{run:#}");
        let run = self.system.finished(run["id"].as_str().unwrap()).await;
        assert_eq!(run["counts"], ends, "{run:#}");
        // The second one is of before in any case.
        assert_eq!(started(&self.folders[1]).len(), self.runs);
    }

    /// A command of each kind and telemetry of every gateway, all of it once.
    async fn works(&mut self) {
        for name in NAMES {
            self.system.online(name).await;
        }
        for command in [ONCE, AGAIN] {
            self.runs(json!({"command": command, "targets": "all"}))
                .await;
        }
        for folder in &self.folders {
            assert_eq!(feed(folder, STREAM, RECORDS).await.unanswered, 0);
            self.records += RECORDS;
        }
        eventually("every record is stored", PATIENCE, async || {
            let stored = self.system.stored_telemetry(STREAM);
            assert_eq!((stored.records, stored.in_gaps), (stored.keys, 0));
            (stored.records == self.records).then_some(())
        })
        .await;
    }

    async fn stop(mut self, gateways: [Process; 2]) {
        for mut gateway in gateways {
            assert!(gateway.stop(PATIENCE).await.success());
        }
        assert!(self.system.backend().end(PATIENCE).await.success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_is_upgraded_before_its_gateways() {
    let Some(earlier) = Binaries::earlier() else {
        return;
    };
    let (mut site, [mut first, second]) = Site::made_by(earlier).await;
    assert!(site.system.backend().end(PATIENCE).await.success());
    site.system.upgrade_to(Binaries::shipped());
    site.system.start_backend(Start::default()).await;
    site.works().await;

    site.limited(json!({"rejected": 2})).await;

    // One after the other.
    assert!(first.stop(PATIENCE).await.success());
    let first = site
        .system
        .start_gateway(&site.folders[0], Start::default());
    site.works().await;
    site.limited(json!({"rejected": 1, "succeeded": 1})).await;
    site.stop([first, second]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_is_upgraded_before_its_backend() {
    let Some(earlier) = Binaries::earlier() else {
        return;
    };
    let (mut site, [mut first, second]) = Site::made_by(earlier).await;
    assert!(first.stop(PATIENCE).await.success());
    site.system.upgrade_to(Binaries::shipped());
    let first = site
        .system
        .start_gateway(&site.folders[0], Start::default());
    site.works().await;
    site.stop([first, second]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_validation_goes_back_to_the_earlier_version() {
    if Binaries::earlier().is_none() {
        return;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_production_validation"));
    command.args(["--embedded", "--strict", "--only", "rollback"]);
    // Strict: what is not rehearsed is no GO.
    let said = finish(command, REHEARSED_WITHIN).await.ended_with(0);
    assert!(said.stdout.contains("  GO   1 of 1 in "), "{said:#?}");
}
