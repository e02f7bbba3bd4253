//! The wall clock of a running backend is set: nothing starts late, ends early or is overtaken because of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::faketime::library;
use viworks_testkit::gateway::{ONCE, mark_starts, started};
use viworks_testkit::postgres::Own;
use viworks_testkit::process::eventually;

/// A backend whose wall clock is what a file says: `+0`, `-90s`. Its monotonic clocks are the machine's.
struct Clocked {
    system: Deployment,
    library: PathBuf,
    folder: PathBuf,
}

impl Clocked {
    async fn start(library: PathBuf) -> Self {
        let system = Deployment::new(Binaries::shipped());
        let folder = system.issue("gw-1");
        mark_starts(&folder);
        let mut own = Self {
            system,
            library,
            folder,
        };
        own.set("+0");
        own.serve().await;
        // The catalogue is known from here on, and the gateway is away.
        let gateway = own.gateway();
        own.system.online("gw-1").await;
        drop(gateway);
        eventually("the gateway is away", PATIENCE, async || {
            let gateway = own.system.get("/v1/gateways/gw-1").await;
            (gateway["status"] != "online").then_some(())
        })
        .await;
        own
    }

    async fn serve(&mut self) {
        let start = by_the_clock_in(&self.file(), &self.library);
        self.system.start_backend(start).await;
    }

    fn file(&self) -> PathBuf {
        self.system.path().join("clock")
    }

    fn set(&self, offset: &str) {
        let next = self.system.path().join("clock.next");
        std::fs::write(&next, offset).unwrap();
        std::fs::rename(&next, self.file()).unwrap();
    }

    fn gateway(&self) -> viworks_testkit::process::Process {
        self.system.start_gateway(&self.folder, Start::default())
    }

    async fn submit(&self, expires: Duration) -> String {
        submit(&self.system, expires).await
    }

    async fn state(&self, run: &str) -> Value {
        self.system.commands(run).await[0]["state"].clone()
    }

    /// Waits for the backend to say in its health that its clock was set.
    async fn noticed(&self) {
        noticed(&self.system).await;
    }
}

/// A wall clock that is what a file says. Monotonic clocks are the machine's.
fn by_the_clock_in(file: &Path, library: &Path) -> Start {
    Start::default()
        .with("LD_PRELOAD", library.display().to_string())
        .with("FAKETIME_TIMESTAMP_FILE", file.display().to_string())
        .with("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .with("FAKETIME_NO_CACHE", "1")
}

async fn submit(backend: &Deployment, expires: Duration) -> String {
    let expires = u64::try_from(expires.as_millis()).unwrap();
    let body = json!({ "command": ONCE, "targets": "all", "deadline_ms": expires });
    let run = backend.post("/v1/runs", &body).await;
    run["id"].as_str().unwrap().to_owned()
}

/// Waits for a backend to say in its health that a clock is not what it should be.
async fn noticed(backend: &Deployment) {
    eventually("the condition is in the health", PATIENCE, async || {
        let health = backend.get("/v1/health").await;
        let checks = health["checks"].as_array()?;
        let clock = checks.iter().find(|check| check["name"] == "clock")?;
        (clock["status"] == "warn").then_some(())
    })
    .await;
}

fn nothing_started(folder: &Path) {
    assert_eq!(started(folder).len(), 0, "a command started");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_back_makes_no_command_late_also_across_a_restart() {
    let Some(library) = library() else {
        return;
    };
    let mut clocked = Clocked::start(library).await;
    let first = clocked.submit(Duration::from_secs(2)).await;
    clocked.set("-90s");
    clocked.noticed().await;
    clocked.system.finished(&first).await;
    assert_eq!(clocked.state(&first).await, "expired");

    let second = clocked.submit(Duration::from_secs(2)).await;
    clocked.system.kill_backend();
    clocked.set("-3600s");
    clocked.serve().await;
    clocked.system.finished(&second).await;
    assert_eq!(clocked.state(&second).await, "expired");

    // What is submitted now is neither held back by the older ones nor by the clock.
    let third = clocked.submit(Duration::from_secs(60)).await;
    let _gateway = clocked.gateway();
    clocked.system.finished(&third).await;
    assert_eq!(clocked.state(&third).await, "succeeded");
    assert_eq!(started(&clocked.folder).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_forward_ends_nothing_early_also_across_a_restart() {
    let Some(library) = library() else {
        return;
    };
    let mut clocked = Clocked::start(library).await;
    let waiting = clocked.submit(Duration::from_secs(120)).await;
    clocked.set("+3600s");
    clocked.noticed().await;
    clocked.system.kill_backend();
    clocked.serve().await;
    let brief = clocked.submit(Duration::from_millis(100)).await;
    clocked.system.finished(&brief).await;
    assert_eq!(clocked.state(&waiting).await, "queued", "the job looked");
    nothing_started(&clocked.folder);
    let _gateway = clocked.gateway();
    clocked.system.finished(&waiting).await;
    assert_eq!(clocked.state(&waiting).await, "succeeded");
}

/// Case 10 of the ten: either backend takes what is submitted, and the jobs of both look at it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_whose_clock_is_an_hour_off_ends_nothing_of_another_one_early() {
    for off in ["+3600s", "-3600s"] {
        beside_a_clock_that_is_off(off).await;
    }
}

async fn beside_a_clock_that_is_off(off: &str) {
    let (Some(library), Some(own)) = (library(), Own::start()) else {
        return;
    };
    own.server().make_empty("viworks");
    let mut right = Deployment::on(Binaries::shipped(), own.server().database("viworks"));
    let mut wrong = right.another("backend-2");
    let folder = right.issue("gw-1");
    mark_starts(&folder);
    let clock = right.path().join("clock");
    std::fs::write(&clock, off).unwrap();
    right.start_backend(Start::default()).await;
    wrong.start_backend(by_the_clock_in(&clock, &library)).await;
    noticed(&wrong).await;
    let gateway = right.start_gateway(&folder, Start::default());
    right.online("gw-1").await;
    drop(gateway);
    eventually("the gateway is away", PATIENCE, async || {
        let gateway = right.get("/v1/gateways/gw-1").await;
        (gateway["status"] != "online").then_some(())
    })
    .await;
    let (mut waiting, mut brief) = (Vec::new(), Vec::new());
    for backend in [&right, &wrong] {
        waiting.push(submit(backend, Duration::from_secs(120)).await);
        brief.push(submit(backend, Duration::from_millis(500)).await);
    }
    for run in &brief {
        right.finished(run).await;
        assert_eq!(wrong.commands(run).await[0]["state"], "expired");
    }
    for run in &waiting {
        assert_eq!(right.commands(run).await[0]["state"], "queued");
    }
    nothing_started(&folder);
    let _gateway = wrong.start_gateway(&folder, Start::default());
    for run in &waiting {
        right.finished(run).await;
        assert_eq!(right.commands(run).await[0]["state"], "succeeded");
    }
    assert_eq!(started(&folder).len(), 2);
}
