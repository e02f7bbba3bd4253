//! A site with two backends, each with its own way to every server, somebody who asks things of it, and the account at
//! the end: nothing accepted is lost or done twice, whatever happened meanwhile.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::gateway::{ONCE, feed, mark_starts, started};
use viworks_testkit::nginx::{Backends, Nginx};
use viworks_testkit::postgres::Own;
use viworks_testkit::process::{Process, eventually};
use viworks_testkit::proxy::Proxy;
use viworks_testkit::redis;

use super::health::at_this_moment;

/// The stream of what is fed.
pub(crate) const STREAM: &str = "app.pump";

/// A command that is still there after any test.
pub(crate) const LONG: &str = "test.long";

/// A command that leaves no mark: it is beside what is accounted for.
pub(crate) const QUICK: &str = "test.quick";

/// Gateways of a site.
pub(crate) const GATEWAYS: [&str; 4] = ["gw-1", "gw-2", "gw-3", "gw-4"];

/// The site.
pub(crate) struct Site {
    pub(crate) own: Own,
    /// The server between the backends, where there is one.
    pub(crate) redis: Option<redis::Own>,
    pub(crate) backends: [Deployment; 2],
    /// The ways to the database, and to the server between the backends.
    pub(crate) to_server: [Proxy; 2],
    pub(crate) to_redis: [Proxy; 2],
    /// In front of both, where it is there: then gateways and operators come through it.
    pub(crate) nginx: Option<Nginx>,
    is_behind_nginx: bool,
    /// Where gateways dial; it leads to one of the backends, or to nginx.
    pub(crate) address: Proxy,
    pub(crate) folders: Vec<PathBuf>,
    gateways: Vec<Process>,
}

impl Site {
    /// Starts one; without Redis where `redis` is none.
    pub(crate) async fn start(own: Own, redis: Option<redis::Own>) -> (Self, Load) {
        Self::start_of(Binaries::shipped(), own, redis).await
    }

    /// Starts one behind nginx with the configuration that ships.
    pub(crate) async fn start_behind_nginx(own: Own, redis: Option<redis::Own>) -> (Self, Load) {
        Self::begin(Binaries::shipped(), own, redis, true).await
    }

    /// The same of these programs.
    pub(crate) async fn start_of(
        binaries: &'static Binaries,
        own: Own,
        redis: Option<redis::Own>,
    ) -> (Self, Load) {
        Self::begin(binaries, own, redis, false).await
    }

    async fn begin(
        binaries: &'static Binaries,
        own: Own,
        redis: Option<redis::Own>,
        is_behind_nginx: bool,
    ) -> (Self, Load) {
        own.server().make_empty("viworks");
        let server = format!("127.0.0.1:{}", own.server().port());
        let to_server = [
            Proxy::before(server.as_str()).await.unwrap(),
            Proxy::before(server.as_str()).await.unwrap(),
        ];
        let between = redis.as_ref().map_or(1, |it| it.place().port());
        let between = format!("127.0.0.1:{between}");
        let to_redis = [
            Proxy::before(between.as_str()).await.unwrap(),
            Proxy::before(between.as_str()).await.unwrap(),
        ];
        // Behind a way, so that it is found where another server takes its place.
        let database = own.server().database("viworks");
        let database = database.behind(to_server[0].port());
        let one = Deployment::on(binaries, database);
        let other = one.another("backend-2");
        let mut site = Self {
            backends: [one, other],
            to_server,
            to_redis,
            redis,
            nginx: None,
            is_behind_nginx,
            address: Proxy::before("").await.unwrap(),
            folders: Vec::new(),
            gateways: Vec::new(),
            own,
        };
        for name in GATEWAYS {
            let folder = site.backends[0].issue(name);
            mark_starts(&folder);
            let catalogue = format!(
                "[[command]]\nname = \"{LONG}\"\ntitle = \"stays\"\nrisk = \"read\"\nidempotent = false\n\
                 argv = [\"/bin/sleep\", \"600\"]\ntimeout_ms = 900000\n\
                 [[command]]\nname = \"{QUICK}\"\ntitle = \"does nothing\"\nrisk = \"read\"\nidempotent = true\n\
                 argv = [\"/bin/true\"]\ntimeout_ms = 10000\n"
            );
            let file = folder.join("commands.d/long.toml");
            viworks_runtime::files::write_new(&file, catalogue.as_bytes(), 0o600).unwrap();
            site.folders.push(folder);
        }
        for which in [0, 1] {
            site.start_backend(which).await;
        }
        if is_behind_nginx {
            let api = |it: &Deployment| it.api_url().trim_start_matches("http://").to_owned();
            let backends = site.backends.each_ref();
            site.nginx = Some(Nginx::start(Backends {
                agents: backends.map(|it| it.agents_address().to_owned()).to_vec(),
                api: backends.map(api).to_vec(),
                enrolment: Vec::new(),
            }));
        }
        // With something between the backends there is something to be said between them.
        let is_spread = site.redis.is_some();
        for (number, folder) in site.folders.iter().enumerate() {
            site.lead_to(if is_spread { number % 2 } else { 0 });
            // nginx goes by the name.
            let url = format!("wss://localhost:{}/agent/v1/connect", site.address.port());
            let start = Start::default()
                .with("VIWORKS__OUTBOUND__BACKOFF_MAX_MS", "300")
                .with("VIWORKS__OUTBOUND__URL", url);
            let gateway = site.backends[0].start_gateway(folder, start);
            site.gateways.push(gateway);
            site.backends[1].online(GATEWAYS[number]).await;
        }
        let load = Load::of(&site);
        (site, load)
    }

    pub(crate) async fn start_backend(&mut self, which: usize) {
        self.start_backend_as(which, Start::default()).await;
    }

    pub(crate) async fn start_backend_as(&mut self, which: usize, start: Start) {
        let start = self.settings(which, start);
        self.backends[which].start_backend(start).await;
    }

    /// The settings of one of the backends, on top of its configuration.
    pub(crate) fn settings(&self, which: usize, start: Start) -> Start {
        let port = self.to_server[which].port();
        let database = self.own.server().database("viworks").behind(port);
        let mut start = start
            .with("VIWORKS__API__KEY_REQUESTS_PER_MINUTE", "1000000")
            .with("VIWORKS__STORE__URL", database.url());
        if self.is_behind_nginx {
            start = start
                .with("VIWORKS__AGENTS__PROXY_PROTOCOL", "require")
                .with("VIWORKS__AGENTS__TRUSTED_PROXIES", "127.0.0.1");
        }
        if self.redis.is_some() {
            let port = self.to_redis[which].port();
            start = start.with("VIWORKS__QUEUE__URL", format!("redis://127.0.0.1:{port}"));
        }
        start
    }

    /// From now on gateways that dial come to this backend, unless nginx decides that.
    pub(crate) fn lead_to(&self, which: usize) {
        let nginx = self.nginx.as_ref();
        let nginx = nginx.map(|nginx| format!("127.0.0.1:{}", nginx.port()));
        let own = self.backends[which].agents_address();
        self.address.forward_to(nginx.as_deref().unwrap_or(own));
    }

    /// Every run ended well on all gateways and started there once; every record is there once.
    pub(crate) async fn account(self, runs: &[String], fed: usize) {
        for run in runs {
            let run = self.backends[0].finished(run).await;
            assert_eq!(run["counts"], json!({"succeeded": GATEWAYS.len()}), "{run}");
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
        self.stop().await;
    }

    /// Waits until a backend says that it can do its work.
    pub(crate) async fn is_well(&self, which: usize) {
        eventually("it is well", PATIENCE, async || {
            let health = self.health(which).await?;
            (health["status"] != "fail").then_some(())
        })
        .await;
    }

    /// What a backend says of itself, if it does.
    pub(crate) async fn health(&self, which: usize) -> Option<Value> {
        let asked = self.backends[which].request("GET", "/v1/health", None);
        let (status, health) = asked.await.ok()?;
        (status == 200).then_some(health)
    }

    /// Waits until what a backend says of itself has a word in it, or has it no more.
    pub(crate) async fn says(&self, which: usize, word: &str, wanted: bool) {
        let what = format!("backend {which} says {word}: {wanted}");
        eventually(&what, PATIENCE, async || {
            let health = self.health(which).await?;
            (at_this_moment(&health).contains(word) == wanted).then_some(())
        })
        .await;
    }

    /// What a gateway wrote down.
    pub(crate) fn log_of_gateway(&self, which: usize) -> String {
        self.gateways[which].log()
    }

    /// Ends all of it, as it should end.
    pub(crate) async fn stop(mut self) {
        for gateway in &mut self.gateways {
            assert!(gateway.stop(PATIENCE).await.success());
        }
        for backend in &mut self.backends {
            assert!(backend.backend().stop(PATIENCE).await.success());
        }
    }
}

/// Somebody who submits runs at whichever backend takes them, and somebody who hands in telemetry.
pub(crate) struct Load {
    http: reqwest::Client,
    token: String,
    apis: [String; 2],
    folders: Vec<PathBuf>,
    /// The rest between two runs, in milliseconds.
    rest: AtomicU64,
    over: AtomicBool,
    accepted: AtomicUsize,
}

impl Load {
    fn of(site: &Site) -> Self {
        let token = std::fs::read_to_string(site.backends[0].path().join("operator.key")).unwrap();
        let (http, apis) = site.nginx.as_ref().map_or_else(
            || {
                let apis = site.backends.each_ref().map(Deployment::api_url);
                (viworks_testkit::http::client(), apis)
            },
            |nginx| (nginx.client(), [nginx.api_url(), nginx.api_url()]),
        );
        Self {
            http,
            token: token.trim().to_owned(),
            apis,
            folders: site.folders.clone(),
            rest: AtomicU64::new(20),
            over: AtomicBool::new(false),
            accepted: AtomicUsize::new(0),
        }
    }

    /// Submits one run after the other until it is over, each until it is accepted, at the two backends in turn.
    pub(crate) async fn submit(&self) -> Vec<String> {
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
            sleep(Duration::from_millis(self.rest.load(Ordering::SeqCst))).await;
        }
        runs
    }

    /// From here on less is asked, for what takes so long that others shall not wait for it.
    pub(crate) fn ease(&self) {
        self.rest.store(400, Ordering::SeqCst);
    }

    /// It is enough.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
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
        // Or nginx has nobody who answers.
        if matches!(status, 429 | 502 | 503 | 504) {
            return None;
        }
        let answer: Value = response.json().await.ok()?;
        assert!((200..300).contains(&status), "{status} {answer}");
        answer["id"].as_str().map(str::to_owned)
    }

    pub(crate) async fn feed(&self) -> usize {
        let mut fed = 0;
        while !self.over.load(Ordering::SeqCst) {
            for folder in &self.folders {
                fed += feed(folder, STREAM, 20).await.answered;
            }
            let rest = self.rest.load(Ordering::SeqCst).max(50);
            sleep(Duration::from_millis(rest)).await;
        }
        fed
    }

    /// How many runs were accepted.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Returns when so many more runs were accepted.
    pub(crate) async fn more(&self, count: usize) {
        let wanted = self.accepted() + count;
        eventually("runs are accepted", 2 * PATIENCE, async || {
            (self.accepted() >= wanted).then_some(())
        })
        .await;
    }
}

/// Lets something happen to a site that works, and takes the account of it.
pub(crate) async fn while_it_works(
    own: Own,
    redis: Option<redis::Own>,
    happen: impl AsyncFnOnce(&mut Site, &Load),
) {
    let (site, load) = Site::start(own, redis).await;
    work(site, &load, happen).await;
}

/// The same of a site that is there.
pub(crate) async fn work(mut site: Site, load: &Load, happen: impl AsyncFnOnce(&mut Site, &Load)) {
    let script = async {
        load.more(3).await;
        happen(&mut site, load).await;
        load.more(3).await;
        load.end();
    };
    let ((), runs, fed) = tokio::join!(script, load.submit(), load.feed());
    site.account(&runs, fed).await;
}
