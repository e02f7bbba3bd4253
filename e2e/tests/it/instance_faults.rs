//! Two backends on one database under load: whatever happens to one of them, to the way between any two parts or to the
//! server, nothing accepted is lost or done twice.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::sleep;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::gateway::{ONCE, feed, mark_starts, started};
use viworks_testkit::postgres::Own;
use viworks_testkit::process::{Process, eventually};
use viworks_testkit::proxy::{Network, Proxy};

const STREAM: &str = "app.pump";

/// How long a backend stands still: beyond its lease.
const STILL: Duration = Duration::from_secs(30);

/// Two backends, each with its own way to the server, and gateways that find both behind one address.
struct Site {
    own: Own,
    backends: [Deployment; 2],
    to_server: [Proxy; 2],
    /// Where gateways dial; it leads to one of the backends.
    address: Proxy,
    folders: Vec<PathBuf>,
    gateways: Vec<Process>,
}

impl Site {
    async fn start() -> Option<(Self, Load)> {
        let own = Own::start()?;
        own.server().make_empty("viworks");
        let server = format!("127.0.0.1:{}", own.server().port());
        let to_server = [
            Proxy::before(server.as_str()).await.unwrap(),
            Proxy::before(server.as_str()).await.unwrap(),
        ];
        let database = own.server().database("viworks");
        let one = Deployment::on(Binaries::shipped(), database.clone());
        let other = one.another("backend-2");
        let mut site = Self {
            backends: [one, other],
            to_server,
            address: Proxy::before("").await.unwrap(),
            folders: Vec::new(),
            gateways: Vec::new(),
            own,
        };
        for name in ["gw-1", "gw-2"] {
            let folder = site.backends[0].issue(name);
            mark_starts(&folder);
            site.folders.push(folder);
        }
        for which in [0, 1] {
            site.start_backend(which).await;
        }
        site.lead_to(0);
        for folder in &site.folders {
            let url = format!("wss://{}/agent/v1/connect", site.address.address());
            let start = Start::default()
                .with("VIWORKS__OUTBOUND__BACKOFF_MAX_MS", "300")
                .with("VIWORKS__OUTBOUND__URL", url);
            let gateway = site.backends[0].start_gateway(folder, start);
            site.gateways.push(gateway);
        }
        for name in ["gw-1", "gw-2"] {
            site.backends[1].online(name).await;
        }
        let load = Load::of(&site);
        Some((site, load))
    }

    async fn start_backend(&mut self, which: usize) {
        let port = self.to_server[which].port();
        let database = self.own.server().database("viworks").behind(port);
        let start = Start::default()
            .with("VIWORKS__API__KEY_REQUESTS_PER_MINUTE", "1000000")
            .with("VIWORKS__STORE__URL", database.url());
        self.backends[which].start_backend(start).await;
    }

    /// From now on gateways that dial come to this backend.
    fn lead_to(&self, which: usize) {
        self.address
            .forward_to(self.backends[which].agents_address());
    }

    /// Every run ended well on both gateways and started there once; every record is there once.
    async fn account(mut self, runs: &[String], fed: usize) {
        for run in runs {
            let run = self.backends[0].finished(run).await;
            assert_eq!(run["counts"], json!({"succeeded": 2}), "{run}");
        }
        for folder in &self.folders {
            let marks = started(folder);
            assert_eq!(marks.len(), runs.len());
            assert!(marks.values().all(|times| *times == 1), "{marks:?}");
        }
        eventually("every record is stored", PATIENCE, async || {
            (self.backends[0].stored_telemetry(STREAM).records >= fed).then_some(())
        })
        .await;
        let stored = self.backends[0].stored_telemetry(STREAM);
        assert_eq!((stored.records, stored.keys, stored.in_gaps), (fed, fed, 0));
        for gateway in &mut self.gateways {
            assert!(gateway.stop(PATIENCE).await.success());
        }
        for backend in &mut self.backends {
            assert!(backend.backend().stop(PATIENCE).await.success());
        }
    }

    async fn is_well(&self, which: usize) {
        eventually("it is well", PATIENCE, async || {
            let asked = self.backends[which].request("GET", "/v1/health", None);
            let (status, health) = asked.await.ok()?;
            (status == 200 && health["status"] != "fail").then_some(())
        })
        .await;
    }
}

/// Somebody who submits runs at whichever backend takes them, and somebody who hands in telemetry.
struct Load {
    http: reqwest::Client,
    token: String,
    apis: [String; 2],
    folders: Vec<PathBuf>,
    over: AtomicBool,
    accepted: AtomicUsize,
}

impl Load {
    fn of(site: &Site) -> Self {
        let token = std::fs::read_to_string(site.backends[0].path().join("operator.key")).unwrap();
        Self {
            http: viworks_testkit::http::client(),
            token: token.trim().to_owned(),
            apis: [site.backends[0].api_url(), site.backends[1].api_url()],
            folders: site.folders.clone(),
            over: AtomicBool::new(false),
            accepted: AtomicUsize::new(0),
        }
    }

    /// Submits one run after the other until it is over, each until it is accepted, at the two backends in turn.
    async fn submit(&self) -> Vec<String> {
        let mut runs = Vec::new();
        let mut turn = 0;
        while !self.over.load(Ordering::SeqCst) {
            let key = format!("run-{}", runs.len());
            let run = eventually("the run is accepted", 2 * PATIENCE, async || {
                turn += 1;
                self.submit_once(&self.apis[turn % 2], &key).await
            });
            runs.push(run.await);
            self.accepted.store(runs.len(), Ordering::SeqCst);
            sleep(Duration::from_millis(20)).await;
        }
        runs
    }

    async fn submit_once(&self, api: &str, key: &str) -> Option<String> {
        let request = self.http.post(format!("{api}/v1/runs"));
        let request = request
            .bearer_auth(&self.token)
            .header("idempotency-key", key)
            .json(&json!({"command": ONCE, "targets": "all"}))
            // A backend that stands still answers nothing; the other one does.
            .timeout(Duration::from_secs(5));
        let response = request.send().await.ok()?;
        let status = response.status().as_u16();
        if matches!(status, 429 | 503) {
            return None;
        }
        let answer: Value = response.json().await.ok()?;
        assert!((200..300).contains(&status), "{status} {answer}");
        answer["id"].as_str().map(str::to_owned)
    }

    async fn feed(&self) -> usize {
        let mut fed = 0;
        while !self.over.load(Ordering::SeqCst) {
            for folder in &self.folders {
                fed += feed(folder, STREAM, 20).await.answered;
            }
            sleep(Duration::from_millis(50)).await;
        }
        fed
    }

    /// Returns when so many more runs were accepted.
    async fn more(&self, count: usize) {
        let wanted = self.accepted.load(Ordering::SeqCst) + count;
        eventually("runs are accepted", 2 * PATIENCE, async || {
            (self.accepted.load(Ordering::SeqCst) >= wanted).then_some(())
        })
        .await;
    }
}

/// Lets something happen to a site that works, and takes the account of it.
async fn while_it_works(happen: impl AsyncFnOnce(&mut Site, &Load)) {
    let Some((mut site, load)) = Site::start().await else {
        return;
    };
    let script = async {
        load.more(3).await;
        happen(&mut site, &load).await;
        load.more(3).await;
        load.over.store(true, Ordering::SeqCst);
    };
    let ((), runs, fed) = tokio::join!(script, load.submit(), load.feed());
    site.account(&runs, fed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_both_fails_no_command() {
    while_it_works(async |site, load| {
        for _round in 0..2 {
            for which in [0, 1] {
                site.lead_to(1 - which);
                assert!(
                    site.backends[which]
                        .backend()
                        .stop(PATIENCE)
                        .await
                        .success()
                );
                load.more(2).await;
                site.start_backend(which).await;
                site.is_well(which).await;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_killed_under_load_costs_nothing() {
    while_it_works(async |site, load| {
        for which in [0, 1] {
            site.lead_to(1 - which);
            site.backends[which].kill_backend();
            load.more(2).await;
            site.start_backend(which).await;
            site.is_well(which).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_stands_still_under_load_costs_nothing() {
    while_it_works(async |site, load| {
        site.backends[0].backend().signal(Signal::STOP);
        site.lead_to(1);
        // What it had stays connected and is silent; what a balancer does about that is up to it.
        site.address.cut(1, 0);
        load.more(2).await;
        sleep(STILL).await;
        site.backends[0].backend().signal(Signal::CONT);
        site.is_well(0).await;
    })
    .await;
}

/// A backend whose way to the server is like that until the others have given it up.
async fn without_the_server(network: Network) {
    while_it_works(async |site, load| {
        site.to_server[0].set(network);
        site.lead_to(1);
        eventually("it says what is wrong", PATIENCE, async || {
            let asked = site.backends[0].request("GET", "/v1/health", None);
            let (status, health) = asked.await.ok()?;
            (status == 200 && health["status"] == "fail").then_some(())
        })
        .await;
        eventually("its gateways are at the other one", PATIENCE, async || {
            let list = site.backends[1].request("GET", "/v1/gateways", None).await;
            let (_status, list) = list.ok()?;
            let online = |gateway: &Value| gateway["status"] == "online";
            list["items"].as_array()?.iter().all(online).then_some(())
        })
        .await;
        load.more(2).await;
        site.to_server[0].set(Network::Normal);
        site.is_well(0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_cut_off_from_the_server_says_so_and_costs_nothing() {
    without_the_server(Network::Cut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_to_which_the_server_is_silent_says_so_and_costs_nothing() {
    without_the_server(Network::HalfOpen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_that_are_cut_off_again_and_again_lose_nothing() {
    while_it_works(async |site, load| {
        for round in 0..6 {
            site.lead_to(round % 2);
            let network = if round % 3 == 0 {
                Network::Reset
            } else {
                Network::Cut
            };
            site.address.set(network);
            site.address.set(Network::Normal);
            load.more(2).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_under_two_backends_costs_nothing() {
    while_it_works(async |site, load| {
        for _round in 0..3 {
            site.own.kill();
            site.own.start_again();
            for which in [0, 1] {
                site.is_well(which).await;
            }
            load.more(2).await;
        }
    })
    .await;
}
