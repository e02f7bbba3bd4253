//! An earlier backend on PostgreSQL, and this version beside it on the same database: the schema is added to under the
//! one that runs, both work on it, and the later one goes on alone. Commands and telemetry are exact all the while.
//!
//! The gateways are of this version: what is tried is one database under backends of two versions.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use viworks_runtime::clock::{Clock as _, SystemClock};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::gateway::{ONCE, mark_starts, started};
use viworks_testkit::postgres::{self, Database};
use viworks_testkit::process::{Process, eventually};
use viworks_testkit::proxy::Proxy;
use viworks_testkit::redis;

use crate::instances::instance;
use crate::two_versions::{STREAM, load};
use crate::verb::backend;

const NAMES: [&str; 2] = ["gw-1", "gw-2"];

/// What a command takes at most whose gateway is with the other backend; a job would find it after 15 s.
const TOLD_WITHIN: Duration = Duration::from_secs(12);

/// A site that the earlier version has made, on a server.
struct Site {
    database: Database,
    earlier: Deployment,
    later: Deployment,
    folders: [PathBuf; 2],
    /// The way of the first gateway, which is led to the later backend in the end.
    way: Proxy,
    gateways: Vec<Process>,
    /// Commands that one gateway ran alone, and records of it.
    alone: (usize, usize),
    /// Commands that both ran.
    together: usize,
}

impl Site {
    /// The earlier backend works, with one gateway. `queue` is a section of the configuration, which all share.
    async fn made_by(version: &'static Binaries, database: Database, queue: &str) -> Self {
        let mut earlier = Deployment::on(version, database.clone());
        let config = earlier.backend_config();
        let written = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, format!("{written}\n{queue}")).unwrap();
        let folders = NAMES.map(|name| earlier.issue(name));
        for folder in &folders {
            mark_starts(folder);
        }
        let mut later = earlier.another("later");
        later.upgrade_to(Binaries::shipped());
        earlier.start_backend(Start::default()).await;
        let way = Proxy::before(earlier.agents_address()).await.unwrap();
        let url = format!("wss://{}/agent/v1/connect", way.address());
        let start = Start::default().with("VIWORKS__OUTBOUND__URL", url);
        // Only the backend is of before.
        earlier.upgrade_to(Binaries::shipped());
        let gateway = earlier.start_gateway(&folders[0], start);
        earlier.upgrade_to(version);
        earlier.online(NAMES[0]).await;
        Self {
            database,
            earlier,
            later,
            folders,
            way,
            gateways: vec![gateway],
            alone: (0, 0),
            together: 0,
        }
    }

    fn asks(&self, query: &str) -> String {
        self.database.ask(query).unwrap()
    }

    fn schema(&self) -> String {
        self.asks("SELECT max(version) FROM _sqlx_migrations")
    }

    /// Under the load of one gateway at the earlier backend, the schema is added to, and the later backend comes, with
    /// a gateway of its own.
    async fn is_added_to(&mut self) {
        let is_over = AtomicBool::new(false);
        let [near, far] = &self.folders;
        let (earlier, later) = (&self.earlier, &mut self.later);
        let together = &mut self.together;
        let add = async {
            ran(near, 5).await;
            let told = backend(later, &["migrate"]).await.ended_with(0);
            assert!(told.stdout.contains("postgres schema 14"), "{told:#?}");
            ran(near, 10).await;
            later.start_backend(Start::default()).await;
            let gateway = later.start_gateway(far, Start::default());
            later.online(NAMES[1]).await;
            for (asked, told) in [(earlier, &*later), (&*later, earlier)].repeat(3) {
                works_everywhere(asked, told, *together).await;
                *together += 1;
            }
            ran(near, 10).await;
            is_over.store(true, Ordering::Relaxed);
            gateway
        };
        let (alone, gateway) = tokio::join!(load(earlier, near, "before", &is_over), add);
        self.gateways.push(gateway);
        self.count(alone);
    }

    /// Both backends are there and well, each with its gateway, on the schema of the later one.
    async fn is_shared(&self) {
        for (name, with) in NAMES.iter().zip([&self.earlier, &self.later]) {
            assert_eq!(self.session(name), instance(with), "{name}");
        }
        for one in [&self.earlier, &self.later] {
            eventually("health is well", PATIENCE, async || {
                let (status, health) = one.request("GET", "/v1/health", None).await.ok()?;
                let health = health.to_string();
                let knows = |what: &str| health.contains(what);
                let is_well = status == 200 && !knows("queue.redis");
                (is_well && knows("postgres, schema 14") && knows("2 backends")).then_some(())
            })
            .await;
        }
    }

    /// Under the load of the same gateway at the later backend, the earlier one is stopped.
    async fn is_handed_over(&mut self) {
        let is_over = AtomicBool::new(false);
        self.way.forward_to(self.later.agents_address());
        let near = &self.folders[0];
        let (earlier, later) = (&mut self.earlier, &self.later);
        let stop = async {
            ran(near, 5).await;
            assert!(earlier.backend().stop(PATIENCE).await.success());
            ran(near, 10).await;
            is_over.store(true, Ordering::Relaxed);
        };
        let (alone, ()) = tokio::join!(load(later, near, "after", &is_over), stop);
        self.count(alone);
        assert_eq!(self.session(NAMES[0]), instance(&self.later));
        assert_eq!(self.asks("SELECT count(*) FROM instances"), "1");
    }

    /// Which instance has the session of a gateway.
    fn session(&self, name: &str) -> String {
        self.asks(&format!(
            "SELECT session_instance FROM gateways WHERE name = '{name}'"
        ))
    }

    fn count(&mut self, (commands, records): (usize, usize)) {
        self.alone.0 += commands;
        self.alone.1 += records;
    }

    /// What was accepted was done, once: by the gateways' own marks, and by the database.
    async fn is_exact(&self) {
        let marks = self.folders.each_ref().map(|folder| started(folder));
        let (alone, records) = self.alone;
        let expected = [alone + self.together, self.together];
        assert_eq!(marks.each_ref().map(|marks| marks.len()), expected);
        let stored = self.later.stored_commands();
        assert_eq!(stored.len(), expected.iter().sum::<usize>());
        for command in &stored {
            let times = marks.iter().filter_map(|marks| marks.get(&command.id));
            assert_eq!(times.sum::<usize>(), 1, "{command:?}");
            assert_eq!(command.state, "succeeded", "{command:?}");
        }
        let runs = self.asks("SELECT count(*) FROM runs");
        assert_eq!(runs, (alone + self.together).to_string());
        eventually("every record is stored", PATIENCE, async || {
            (self.later.stored_telemetry(STREAM).records == records).then_some(())
        })
        .await;
        let telemetry = self.later.stored_telemetry(STREAM);
        assert_eq!((telemetry.keys, telemetry.in_gaps), (records, 0));
    }
}

/// Waits until a gateway has run so many commands more.
async fn ran(folder: &Path, more: usize) {
    let least = started(folder).len() + more;
    eventually("commands run", PATIENCE, async || {
        (started(folder).len() >= least).then_some(())
    })
    .await;
}

/// Runs a command on both gateways: one backend is asked for it, another one tells what became of it.
async fn works_everywhere(asked: &Deployment, told: &Deployment, number: usize) {
    let begun = SystemClock.now();
    let run = asked.submit(ONCE, &format!("together-{number}")).await;
    let run = told.finished(&run).await;
    assert_eq!(run["counts"], json!({"succeeded": 2}), "{run}");
    let took = SystemClock.now().saturating_since(begun);
    assert!(took < TOLD_WITHIN, "{took:?}");
}

/// An upgrade as an operator does it whose site has several backends, with a queue in memory or in Redis.
async fn hands_over(version: &'static Binaries, server: &postgres::Own, queue: &str) {
    server.server().make_empty("viworks");
    let database = server.server().database("viworks");
    let mut site = Site::made_by(version, database, queue).await;
    assert_eq!(site.schema(), "1");
    let told = backend(&site.later, &["migrate", "--dry-run"]).await;
    let told = told.ended_with(0);
    let go_on = "backends that know schema 1 and run go on; none of them starts again afterwards";
    assert!(told.stdout.contains(go_on), "{told:#?}");

    site.is_added_to().await;
    assert_eq!(site.schema(), "14");
    site.is_shared().await;
    // What its gateway kept meanwhile is stored by the earlier one.
    site.is_exact().await;

    site.is_handed_over().await;
    // It does not read who can go on, and is not let in again; it names the first step that it does not have.
    for verb in [&["serve"][..], &["check-config", "--connect"], &["migrate"]] {
        let refused = backend(&site.earlier, verb).await.ended_with(78);
        let why = "has version 2, this program knows versions up to 1; use the newer program";
        assert!(refused.stderr.contains(why), "{verb:?}: {refused:#?}");
    }
    works_everywhere(&site.later, &site.later, site.together).await;
    site.together += 1;
    site.is_exact().await;
    assert!(site.later.backend().stop(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_earlier_backend_works_on_a_schema_that_was_added_to_until_this_one_takes_over() {
    let Some(earlier) = Binaries::earlier_on_postgres() else {
        return;
    };
    let Some(server) = postgres::Own::start() else {
        return;
    };
    hands_over(earlier, &server, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_versions_hand_each_other_commands_by_way_of_redis() {
    let Some(earlier) = Binaries::earlier_on_postgres() else {
        return;
    };
    let (Some(server), Some(redis)) = (postgres::Own::start(), redis::Own::start()) else {
        return;
    };
    let queue = format!("[queue]\nurl = \"{}\"\n", redis.place().url());
    hands_over(earlier, &server, &queue).await;
}
