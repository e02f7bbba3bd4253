//! A site on PostgreSQL whose network or disk fails under load: nothing accepted is lost or done twice, health says
//! what is wrong, and it goes on by itself.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::gateway::{ONCE, feed, mark_starts, started};
use viworks_testkit::postgres::Own;
use viworks_testkit::process::{Process, eventually};
use viworks_testkit::proxy::{Network, Proxy};
use viworks_testkit::small_disk::{fill, is_allowed, seen_by};

const STREAM: &str = "app.pump";

/// Health has an answer within three seconds, whatever the database says; and a busy machine may take as long again.
const PROMPT: Duration = Duration::from_secs(6);

/// The same once it is known that the database does not answer.
const PROMPT_DOWN: Duration = Duration::from_secs(3);

/// A backend behind a proxy, one gateway, and what was asked of them.
struct Site {
    system: Deployment,
    folder: PathBuf,
    gateway: Process,
    over: AtomicBool,
    accepted: AtomicUsize,
}

impl Site {
    async fn start(own: &Own, port: u16) -> Self {
        own.server().make_empty("viworks");
        let database = own.server().database("viworks").behind(port);
        let mut system = Deployment::on(Binaries::shipped(), database);
        let folder = system.issue("gw-1");
        mark_starts(&folder);
        let many = Start::default().with("VIWORKS__API__KEY_REQUESTS_PER_MINUTE", "1000000");
        system.start_backend(many).await;
        let quick = Start::default().with("VIWORKS__OUTBOUND__BACKOFF_MAX_MS", "300");
        let gateway = system.start_gateway(&folder, quick);
        system.online("gw-1").await;
        // From here on the key is known.
        assert_eq!(health(&system).await["status"], "pass");
        Self {
            system,
            folder,
            gateway,
            over: AtomicBool::new(false),
            accepted: AtomicUsize::new(0),
        }
    }

    /// Submits one run after the other until it is over, each until it is accepted.
    async fn submit(&self) -> Vec<String> {
        let mut runs = Vec::new();
        while !self.over.load(Ordering::SeqCst) {
            let key = format!("run-{}", runs.len());
            let body = json!({"command": ONCE, "targets": "all"});
            let run = eventually("the run is accepted", PATIENCE, async || {
                let (status, answer) = self.system.submit_once(&body, &key).await;
                if matches!(status, 429 | 503 | 507) {
                    return None;
                }
                assert!((200..300).contains(&status), "{status} {answer}");
                answer["id"].as_str().map(str::to_owned)
            });
            runs.push(run.await);
            self.accepted.store(runs.len(), Ordering::SeqCst);
            // A person's pace: the queue of one gateway is not what this is about.
            sleep(Duration::from_millis(20)).await;
        }
        runs
    }

    /// Hands in telemetry until it is over; how much.
    async fn feed(&self) -> usize {
        let mut fed = 0;
        while !self.over.load(Ordering::SeqCst) {
            let taken = feed(&self.folder, STREAM, 50).await;
            assert_eq!(taken.unanswered, 0);
            fed += taken.answered;
            sleep(Duration::from_millis(50)).await;
        }
        fed
    }

    /// Returns when so many more runs were accepted.
    async fn more(&self, count: usize) {
        let wanted = self.accepted.load(Ordering::SeqCst) + count;
        eventually("runs are accepted", PATIENCE, async || {
            (self.accepted.load(Ordering::SeqCst) >= wanted).then_some(())
        })
        .await;
    }

    /// Every run ended well and started once; every record is there once.
    async fn account(mut self, runs: &[String], fed: usize) {
        for run in runs {
            let run = self.system.finished(run).await;
            assert_eq!(run["counts"], json!({"succeeded": 1}), "{run}");
        }
        let marks = started(&self.folder);
        assert_eq!(marks.len(), runs.len());
        assert!(marks.values().all(|times| *times == 1), "{marks:?}");
        eventually("every record is stored", PATIENCE, async || {
            (self.system.stored_telemetry(STREAM).records >= fed).then_some(())
        })
        .await;
        let stored = self.system.stored_telemetry(STREAM);
        assert_eq!(
            (stored.records, stored.keys, stored.in_gaps),
            (fed, fed, 0),
            "{fed} records were handed in"
        );
        assert!(self.gateway.stop(PATIENCE).await.success());
        assert!(self.system.backend().stop(PATIENCE).await.success());
    }
}

/// The document, in time.
async fn health(system: &Deployment) -> Value {
    let begun = Instant::now();
    let (status, health) = system.request("GET", "/v1/health", None).await.unwrap();
    assert_eq!(status, 200, "{health}");
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
    health
}

/// What a check says, unless it passes or is not there.
fn trouble(health: &Value, name: &str) -> Option<String> {
    let checks = health["checks"].as_array()?;
    let check = checks.iter().find(|check| check["name"] == name)?;
    (check["status"] == "fail").then(|| check["detail"].to_string())
}

/// What stands in the way, as whoever has no key is told.
async fn reasons(system: &Deployment) -> Value {
    let (status, answer) = system.request("GET", "/readyz", None).await.unwrap();
    assert_eq!(status, 503, "{answer}");
    answer["reasons"].clone()
}

async fn readiness(system: &Deployment) -> u16 {
    system.request("GET", "/readyz", None).await.unwrap().0
}

/// Has the network be like that while a site works on it. One that carries nothing is told of; under any other the work
/// goes on.
async fn under(network: Network) {
    let Some(own) = Own::start() else { return };
    let server = format!("127.0.0.1:{}", own.server().port());
    let proxy = Proxy::before(server).await.unwrap();
    let site = Site::start(&own, proxy.port()).await;
    let script = async {
        site.more(3).await;
        proxy.set(network);
        if matches!(network, Network::Delay(_) | Network::Slow(_)) {
            site.more(3).await;
            assert_eq!(trouble(&health(&site.system).await, "store.commits"), None);
        } else {
            let told = eventually("health says that the store is gone", PATIENCE, async || {
                trouble(&health(&site.system).await, "store.commits")
            })
            .await;
            let is_of_server = told.contains("see that the server runs");
            assert!(is_of_server && !told.contains("its folder"), "{told}");
            let named = format!("127.0.0.1:{}: ", proxy.port());
            assert!(told.contains(&named), "{told}");
            let begun = Instant::now();
            assert_eq!(health(&site.system).await["status"], "fail");
            assert!(begun.elapsed() < PROMPT_DOWN, "{:?}", begun.elapsed());
            assert_eq!(reasons(&site.system).await, json!(["store.commits"]));
            let (status, metrics) = site.system.request("GET", "/metrics", None).await.unwrap();
            assert_eq!(status, 200, "{metrics}");
        }
        proxy.set(Network::Normal);
        eventually("it is well again", PATIENCE, async || {
            (health(&site.system).await["status"] == "pass").then_some(())
        })
        .await;
        assert_eq!(readiness(&site.system).await, 200);
        site.more(3).await;
        site.over.store(true, Ordering::SeqCst);
    };
    let ((), runs, fed) = tokio::join!(script, site.submit(), site.feed());
    site.account(&runs, fed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_far_away_costs_time_and_nothing_else() {
    under(Network::Delay(Duration::from_millis(40))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_way_to_the_database_costs_time_and_nothing_else() {
    under(Network::Slow(40_000)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_hangs_up_is_told_of_and_costs_nothing() {
    under(Network::Cut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_whose_connections_are_reset_is_told_of_and_costs_nothing() {
    under(Network::Reset).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_says_nothing_is_told_of_and_costs_nothing() {
    under(Network::HalfOpen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_whose_disk_is_full_is_told_of_and_goes_on_when_there_is_room() {
    if !is_allowed() || !Own::may_have_a_disk() {
        eprintln!("SKIPPED: a full disk of the server: this machine does not let a test have one");
        return;
    }
    let Some(own) = Own::start_on_disk_of(96) else {
        return;
    };
    let site = Site::start(&own, own.server().port()).await;
    let script = async {
        site.more(3).await;
        let disk = seen_by(own.pid(), &own.tables());
        let ballast = fill(&disk, "ballast");
        // What still fits into the tables is accepted, and counts.
        eventually("health says that there is no room", PATIENCE, async || {
            trouble(&health(&site.system).await, "store.room")
        })
        .await;
        assert_eq!(health(&site.system).await["status"], "fail");
        // By telemetry alone nobody could tell it from a rule of somebody's; all else that is written meets it soon.
        eventually("nothing more is asked of it", PATIENCE, async || {
            let ready = site.system.request("GET", "/readyz", None).await;
            let (_status, answer) = ready.unwrap();
            let named = answer["reasons"].as_array()?;
            named.contains(&json!("store.room")).then_some(())
        })
        .await;
        std::fs::remove_file(ballast).unwrap();
        site.more(3).await;
        eventually(
            "it is well again a minute later",
            2 * PATIENCE,
            async || (health(&site.system).await["status"] == "pass").then_some(()),
        )
        .await;
        assert_eq!(readiness(&site.system).await, 200);
        site.over.store(true, Ordering::SeqCst);
    };
    let ((), runs, fed) = tokio::join!(script, site.submit(), site.feed());
    site.account(&runs, fed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_lost_something_is_told_with_its_fix_until_it_is_put_back() {
    let Some(own) = Own::start() else { return };
    let site = Site::start(&own, own.server().port()).await;
    let ask = |statement: &str| own.server().psql("viworks", statement).unwrap();
    ask("ALTER TABLE commands RENAME COLUMN available_at TO aside");
    let told = eventually("health says what is lacking", PATIENCE, async || {
        trouble(&health(&site.system).await, "store.schema")
    })
    .await;
    for part in [
        "the column commands.available_at bigint",
        "restore the database from a backup",
        "nothing has to be restarted",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert_eq!(reasons(&site.system).await, json!(["store.schema"]));
    let body = json!({"command": ONCE, "targets": "all"});
    let (status, answer) = site.system.submit_once(&body, "meanwhile").await;
    assert_eq!(status, 503, "{answer}");
    assert!(
        answer["detail"]
            .to_string()
            .contains("not as the backend needs it"),
        "{answer}"
    );
    ask("ALTER TABLE commands RENAME COLUMN aside TO available_at");
    eventually("it is well again", PATIENCE, async || {
        (health(&site.system).await["status"] == "pass").then_some(())
    })
    .await;
    assert_eq!(readiness(&site.system).await, 200);
    let run = site.system.submit(ONCE, "after").await;
    site.account(&[run], 0).await;
}

/// How often a job failed so far.
async fn failed_jobs(system: &Deployment) -> u64 {
    let (_, metrics) = system.request("GET", "/metrics", None).await.unwrap();
    let text = metrics.as_str().unwrap_or_default();
    let count = text
        .lines()
        .find_map(|line| line.strip_prefix("viworks_job_failures_total "));
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_gone_is_told_in_a_few_lines() {
    let Some(mut own) = Own::start() else { return };
    let port = own.server().port();
    let mut site = Site::start(&own, port).await;
    let alarms = |site: &mut Site| {
        let log = site.system.backend().log();
        let alarms = log
            .lines()
            .filter(|line| line.contains(" WARN ") || line.contains("ERROR "));
        alarms.map(str::to_owned).collect::<Vec<_>>()
    };
    let before = alarms(&mut site).len();
    own.kill();
    eventually("much has failed", PATIENCE, async || {
        (failed_jobs(&site.system).await >= 60).then_some(())
    })
    .await;
    let told = alarms(&mut site).split_off(before);
    assert!(told.len() <= 12, "{told:#?}");
    assert!(
        told.iter()
            .any(|line| line.contains("the database cannot be used")),
        "{told:#?}"
    );
    assert!(
        !told.iter().any(|line| line.contains("client certificate")),
        "{told:#?}"
    );
    own.start_again();
    eventually("it is well again", PATIENCE, async || {
        (health(&site.system).await["status"] == "pass").then_some(())
    })
    .await;
    // Each finds out by itself, at its next try.
    for again in [
        "the database is used again",
        "lease of the database is renewed again",
    ] {
        let backend = site.system.backend();
        let is_told = async || backend.log().contains(again).then_some(());
        eventually(again, PATIENCE, is_told).await;
    }
    site.system.online("gw-1").await;
    assert!(site.gateway.stop(PATIENCE).await.success());
    assert!(site.system.backend().stop(PATIENCE).await.success());
}
