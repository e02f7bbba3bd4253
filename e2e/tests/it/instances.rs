//! Two backends on one database: whatever one of them is asked holds on the other, and losing one costs nothing.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use viworks_runtime::clock::{Clock as _, SystemClock};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, run, text};
use viworks_testkit::gateway::{AGAIN, ONCE, mark_starts, started};
use viworks_testkit::postgres::{Database, Own};
use viworks_testkit::process::{Process, eventually};
use viworks_testkit::proxy::Proxy;

use crate::authority::Authority;
use crate::verb;

/// A command that is still there after any test.
const LONG: &str = "test.long";

/// Two backends and the way of gateways to one of them, which can be turned to the other.
struct Site {
    _own: Own,
    database: Database,
    one: Deployment,
    other: Deployment,
    way: Proxy,
}

impl Site {
    async fn start(binaries: &'static Binaries) -> Option<Self> {
        let own = Own::start()?;
        own.server().make_empty("viworks");
        let database = own.server().database("viworks");
        let one = Deployment::on(binaries, database.clone());
        let other = one.another("backend-2");
        let way = Proxy::before("127.0.0.1:1").await.unwrap();
        Some(Self {
            _own: own,
            database,
            one,
            other,
            way,
        })
    }

    async fn start_both(&mut self) {
        self.start_both_as(Start::default).await;
    }

    async fn start_both_as(&mut self, start: impl Fn() -> Start) {
        self.one.start_backend(start()).await;
        self.other.start_backend(start()).await;
        self.way.forward_to(self.one.agents_address());
    }

    /// The folder of a gateway whose commands write down that they ran.
    fn issue(&self, name: &str) -> std::path::PathBuf {
        let folder = self.one.issue(name);
        mark_starts(&folder);
        let catalogue = format!(
            "[[command]]\nname = \"{LONG}\"\ntitle = \"stays\"\nrisk = \"read\"\nidempotent = false\n\
             argv = [\"/bin/sleep\", \"600\"]\ntimeout_ms = 900000\n"
        );
        let file = folder.join("commands.d/long.toml");
        viworks_runtime::files::write_new(&file, catalogue.as_bytes(), 0o600).unwrap();
        folder
    }

    /// Starts a gateway whose way can be turned.
    fn gateway(&self, folder: &Path) -> Process {
        let url = format!("wss://{}/agent/v1/connect", self.way.address());
        let start = Start::default().with("VIWORKS__OUTBOUND__URL", url);
        self.one.start_gateway(folder, start)
    }

    fn asks(&self, query: &str) -> String {
        self.database.ask(query).unwrap()
    }

    /// Waits until the session of a gateway is with this backend.
    async fn is_with(&self, backend: &Deployment, name: &str) -> Value {
        let instance = instance(backend);
        let query = format!("SELECT session_instance FROM gateways WHERE name = '{name}'");
        eventually(&format!("{name} is with it"), PATIENCE, async || {
            (self.asks(&query) == instance).then_some(())
        })
        .await;
        self.other.online(name).await
    }
}

/// Which instance a backend is, by its own word.
pub(super) fn instance(backend: &Deployment) -> String {
    let file = backend.state_folder().join("instance");
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().next().unwrap().to_owned()
}

fn epoch(gateway: &Value) -> u64 {
    gateway["session"]["epoch"].as_u64().unwrap()
}

async fn running(backend: &Deployment, run: &str) {
    eventually("the command runs", PATIENCE, async || {
        (backend.commands(run).await[0]["state"] == "running").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_submitted_watched_and_cancelled_at_any_backend() {
    let Some(mut site) = Site::start(Binaries::shipped()).await else {
        return;
    };
    let (here, there) = (site.issue("gw-1"), site.issue("gw-2"));
    site.start_both().await;
    let _near = site.one.start_gateway(&here, Start::default());
    let _far = site.other.start_gateway(&there, Start::default());
    site.is_with(&site.one, "gw-1").await;
    site.is_with(&site.other, "gw-2").await;
    // Whichever is asked names the one that has a gateway, as health does.
    for (gateway, at) in [("gw-1", &site.one), ("gw-2", &site.other)] {
        let named = format!(
            "SELECT name FROM instances WHERE instance = '{}'",
            instance(at)
        );
        let named = site.asks(&named);
        for asked in [&site.one, &site.other] {
            let shown = asked.get(&format!("/v1/gateways/{gateway}")).await;
            assert_eq!(shown["session"]["backend"], named.as_str(), "{shown}");
            let health = asked.get("/v1/health").await.to_string();
            assert!(health.contains(&named), "{named}: {health}");
        }
    }
    // Each backend sees both, and a run goes to whichever has the gateway.
    let health = site.one.get("/v1/health").await.to_string();
    assert!(health.contains("2 backends"), "{health}");
    for number in 0..5 {
        let begun = SystemClock.now();
        let run = site.one.submit(ONCE, &format!("run-{number}")).await;
        let finished = site.other.finished(&run).await;
        assert_eq!(finished["counts"], json!({"succeeded": 2}), "{finished}");
        let took = SystemClock.now().saturating_since(begun);
        // A job would find it after 15 s.
        assert!(took < Duration::from_secs(6), "{took:?}");
    }
    assert_eq!(started(&here).len(), 5);
    assert!(started(&there).values().all(|times| *times == 1));
    let body = json!({"command": LONG, "targets": {"gateways": ["gw-2"]}});
    let run = site.one.post("/v1/runs", &body).await;
    let run = run["id"].as_str().unwrap().to_owned();
    running(&site.one, &run).await;
    let begun = SystemClock.now();
    site.one
        .post(&format!("/v1/runs/{run}/cancel"), &json!({}))
        .await;
    let finished = site.one.finished(&run).await;
    assert_eq!(finished["counts"], json!({"cancelled": 1}), "{finished}");
    let took = SystemClock.now().saturating_since(begun);
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_is_revoked_loses_its_session_at_whichever_backend() {
    let Some(mut site) = Site::start(Binaries::shipped()).await else {
        return;
    };
    let names = ["gw-1", "gw-2", "gw-3"];
    let folders = names.map(|name| site.issue(name));
    // No job finds within this test what was done.
    let start = || {
        Start::default()
            .with("VIWORKS__JOBS__EXPIRE_INTERVAL_MS", "3600000")
            .with("VIWORKS__JOBS__OFFER_INTERVAL_MS", "3600000")
    };
    site.start_both_as(start).await;
    for (folder, name) in folders.iter().zip(names) {
        let mut gateway = site.other.start_gateway(folder, Start::default());
        site.is_with(&site.other, name).await;
        if name == "gw-1" {
            // On a backend's host, by the database.
            let config = site.one.backend_config();
            let arguments = ["gateway", "revoke", name, "--config", text(&config)];
            run(&site.one.binaries().backend(), &arguments);
        } else if name == "gw-3" {
            // The certificate that its session shows, and nothing else of it.
            let certificates = format!("/v1/gateways/{name}/certificates");
            let listed = site.one.get(&certificates).await;
            let serial = listed["items"][0]["serial"].as_str().unwrap();
            let path = format!("{certificates}/{serial}/revoke");
            let told = site.one.post(&path, &json!({"reason": "copied"})).await;
            assert_eq!(told["session_ended"], true, "{told:#}");
        } else {
            // By an operator, at the backend that does not have its session.
            let (path, why) = (format!("/v1/gateways/{name}/revoke"), "it was stolen");
            let told = site.one.post(&path, &json!({"reason": why})).await;
            assert_eq!(told["session_ended"], true, "{told:#}");
        }
        let revoked = SystemClock.now();
        eventually("its session is closed", PATIENCE, async || {
            gateway.log().contains("revoked").then_some(())
        })
        .await;
        let took = SystemClock.now().saturating_since(revoked);
        // A quarter of a second is the rule, and a second what is promised; on a busy machine, processes wait for their
        // turns beside it. A job would find it after an hour.
        assert!(took < Duration::from_secs(4), "{took:?}");
        gateway.kill();
    }
    // A gateway whose certificate was revoked is none that was.
    let gateway = site.one.get("/v1/gateways/gw-3").await;
    assert_eq!(gateway["status"], "offline", "{gateway:#}");
}

/// Starts a copy of a gateway at a backend, as a whole machine is copied; a running one's files come along as they are.
pub(crate) fn start_copy(original: &Path, at: &Deployment) -> (std::path::PathBuf, Process) {
    let copy = at.path().join("copy");
    let copied = Command::new("cp")
        .arg("-a")
        .arg(original)
        .arg(&copy)
        .status();
    assert!(copied.unwrap().success());
    drop(std::fs::remove_file(copy.join("state/.lock")));
    let moved = format!("s#{}#{}#g", original.display(), copy.display());
    let moved = Command::new("sed")
        .args(["-i", &moved])
        .arg(copy.join("gateway.toml"))
        .status();
    assert!(moved.unwrap().success());
    let process = at.start_gateway(&copy, Start::default());
    (copy, process)
}

/// The only fork that is recorded of a gateway, once there is one.
pub(crate) async fn fork(backend: &Deployment, name: &str) -> Value {
    eventually("the copy is recorded", PATIENCE, async || {
        let path = format!("/v1/gateways/{name}/forks");
        backend.get(&path).await["items"]
            .as_array()?
            .first()
            .cloned()
    })
    .await
}

/// Case 1 of the ten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_dials_another_backend_takes_nothing_from_a_live_original() {
    let Some(mut site) = Site::start(Binaries::shipped()).await else {
        return;
    };
    let folder = site.issue("gw-1");
    site.start_both().await;
    let gateway = site.one.start_gateway(&folder, Start::default());
    let before = site.is_with(&site.one, "gw-1").await;
    let (copy, process) = start_copy(&folder, &site.other);
    let fork = fork(&site.other, "gw-1").await;
    let kept = fork["accepted"]["epoch"].as_u64();
    assert_eq!(kept, Some(epoch(&before)), "{fork}");
    // The original was told to come back, which moved it past the copy.
    let after = eventually("the original is past the copy", PATIENCE, async || {
        let now = site.one.online("gw-1").await;
        (epoch(&now) > epoch(&before)).then_some(now)
    })
    .await;
    site.is_with(&site.one, "gw-1").await;
    let run = site.other.submit(ONCE, "after").await;
    site.one.finished(&run).await;
    assert_eq!(started(&folder).len(), 1, "{after}");
    assert_eq!(started(&copy).len(), 0);
    // An operator finds that the copy is the one to keep, at the backend that the original is not connected to.
    let keep = json!({"keep": fork["refused"]["agent_run_id"]});
    let path = "/v1/gateways/gw-1/forks/resolve";
    let resolved = site.other.post(path, &keep).await;
    assert_eq!(resolved["session_ended"], true, "{resolved}");
    process.signal(Signal::HUP);
    let kept = site.is_with(&site.other, "gw-1").await;
    assert!(epoch(&kept) > epoch(&after), "{kept}");
    eventually("the original stays out", PATIENCE, async || {
        gateway.log().contains("identity_fork").then_some(())
    })
    .await;
    drop(gateway);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_waits_while_the_backend_that_has_the_original_does_not_answer() {
    let Some(mut site) = Site::start(Binaries::shipped()).await else {
        return;
    };
    let folder = site.issue("gw-1");
    site.start_both().await;
    let gateway = site.one.start_gateway(&folder, Start::default());
    let before = site.is_with(&site.one, "gw-1").await;
    site.one.backend().signal(Signal::STOP);
    let (_copy, process) = start_copy(&folder, &site.other);
    eventually("the copy is told to wait", PATIENCE, async || {
        process.log().contains("rate_limited").then_some(())
    })
    .await;
    let held = site.asks("SELECT session_epoch FROM gateways WHERE name = 'gw-1'");
    assert_eq!(held, epoch(&before).to_string());
    site.one.backend().signal(Signal::CONT);
    let fork = fork(&site.other, "gw-1").await;
    let kept = fork["accepted"]["epoch"].as_u64();
    assert_eq!(kept, Some(epoch(&before)), "{fork}");
    site.is_with(&site.one, "gw-1").await;
    drop(gateway);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_killed_leaves_its_gateways_to_the_other() {
    let Some(mut site) = Site::start(Binaries::shipped()).await else {
        return;
    };
    let folder = site.issue("gw-1");
    site.start_both().await;
    let gateway = site.gateway(&folder);
    site.is_with(&site.one, "gw-1").await;
    let mut runs = vec![site.other.submit(AGAIN, "before").await];
    site.other.finished(&runs[0]).await;
    site.one.kill_backend();
    runs.push(site.other.submit(AGAIN, "between").await);
    site.way.forward_to(site.other.agents_address());
    site.is_with(&site.other, "gw-1").await;
    runs.push(site.other.submit(ONCE, "after").await);
    for run in &runs {
        let run = site.other.finished(run).await;
        assert_eq!(run["counts"], json!({"succeeded": 1}), "{run}");
    }
    eventually("its lease is over", PATIENCE, async || {
        (site.asks("SELECT count(*) FROM instances") == "1").then_some(())
    })
    .await;
    // It comes back, and both are there again.
    site.one.start_backend(Start::default()).await;
    let back = site.one.submit(ONCE, "back").await;
    site.one.finished(&back).await;
    assert_eq!(site.asks("SELECT count(*) FROM instances"), "2");
    drop(gateway);
}

/// Whatever a gateway went through before: a backend that stops says when to come back, and is believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_stopped_costs_its_gateways_no_more_than_a_moment() {
    let Some(mut site) = Site::start(Binaries::shipped()).await else {
        return;
    };
    let folder = site.issue("gw-1");
    site.start_both().await;
    // It tries in vain for a while, and longer each time.
    site.way.forward_to("127.0.0.1:1");
    let mut gateway = site.gateway(&folder);
    eventually("it has failed often", PATIENCE, async || {
        let log = gateway.log();
        (log.matches("no connection to the backend").count() >= 5).then_some(())
    })
    .await;
    site.way.forward_to(site.one.agents_address());
    site.is_with(&site.one, "gw-1").await;
    for round in 0..4 {
        let (stops, stays) = if round % 2 == 0 {
            (&mut site.one, &site.other)
        } else {
            (&mut site.other, &site.one)
        };
        site.way.forward_to(stays.agents_address());
        let (begun, after) = (SystemClock.now(), instance(stays));
        assert!(stops.backend().stop(PATIENCE).await.success());
        let query = "SELECT session_instance FROM gateways WHERE name = 'gw-1'";
        eventually("it is with the one that stays", PATIENCE, async || {
            (site.database.ask(query).unwrap() == after).then_some(())
        })
        .await;
        let took = SystemClock.now().saturating_since(begun);
        assert!(took < Duration::from_secs(6), "{round}: {took:?}");
        let stopped = if round % 2 == 0 {
            &mut site.one
        } else {
            &mut site.other
        };
        stopped.start_backend(Start::default()).await;
    }
    assert!(gateway.stop(PATIENCE).await.success());
}

/// Case 4 of the ten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_stood_still_beyond_its_lease_goes_on_as_another_instance() {
    let Some(mut site) = Site::start(Binaries::shipped()).await else {
        return;
    };
    let (moved, stays) = (site.issue("gw-1"), site.issue("gw-2"));
    site.start_both().await;
    let gateway = site.gateway(&moved);
    let _other = site.one.start_gateway(&stays, Start::default());
    let before = site.is_with(&site.one, "gw-1").await;
    site.is_with(&site.one, "gw-2").await;
    let was = instance(&site.one);
    site.one.backend().signal(Signal::STOP);
    site.way.forward_to(site.other.agents_address());
    site.way.cut(1, 0);
    let after = site.is_with(&site.other, "gw-1").await;
    assert!(epoch(&after) > epoch(&before));
    let ended = format!("SELECT count(*) FROM gateways WHERE session_instance = '{was}'");
    eventually("its sessions are ended", PATIENCE, async || {
        (site.asks(&ended) == "0").then_some(())
    })
    .await;
    let run = site.other.submit(ONCE, "meanwhile").await;
    site.one.backend().signal(Signal::CONT);
    // The gateway that is still connected to it comes back by itself, and gets what waited.
    let finished = site.one.finished(&run).await;
    assert_eq!(finished["counts"], json!({"succeeded": 2}), "{finished}");
    assert_ne!(instance(&site.one), was);
    site.is_with(&site.one, "gw-2").await;
    let now = site.other.online("gw-1").await;
    assert_eq!(
        epoch(&now),
        epoch(&after),
        "nothing was moved by the old epoch"
    );
    for folder in [&moved, &stays] {
        assert!(started(folder).values().all(|times| *times == 1));
    }
    drop(gateway);
    assert!(site.one.backend().stop(PATIENCE).await.success());
    assert!(site.other.backend().stop(PATIENCE).await.success());
    assert_eq!(site.asks("SELECT count(*) FROM instances"), "0");
}

/// Case 2 of the ten: the permit is committed, and nobody says GO.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permit_that_was_committed_and_never_given_runs_nothing_twice() {
    let Some(mut site) = Site::start(Binaries::with_fault_points()).await else {
        return;
    };
    let folder = site.issue("gw-1");
    site.start_both().await;
    let mut gateway = site.gateway(&folder);
    site.is_with(&site.one, "gw-1").await;
    for (round, restarts) in [(0, false), (1, true)] {
        assert!(site.one.backend().stop(PATIENCE).await.success());
        let dying = Start::default().dying_at("release.committed.before_go");
        site.one.start_backend(dying).await;
        site.way.forward_to(site.one.agents_address());
        site.way.cut(1, 0);
        site.is_with(&site.one, "gw-1").await;
        let run = site.other.submit(ONCE, &format!("round-{round}")).await;
        site.one.backend().wait(PATIENCE).await;
        if restarts {
            gateway.kill();
            gateway = site.gateway(&folder);
        }
        site.way.forward_to(site.other.agents_address());
        let finished = site.other.finished(&run).await;
        let command = site.other.commands(&run).await.remove(0);
        let ran = started(&folder)
            .get(command["id"].as_str().unwrap())
            .copied();
        match command["state"].as_str().unwrap() {
            "succeeded" => assert_eq!(ran, Some(1), "{finished}"),
            "indeterminate" => assert!(ran.is_none_or(|times| times == 1), "{finished}"),
            other => panic!("{other}: {finished}"),
        }
        site.is_with(&site.other, "gw-1").await;
        site.one.start_backend(Start::default()).await;
    }
    drop(gateway);
}

/// The same where whoever would say GO stands still, and says it when another process of the gateway is elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permit_that_is_given_long_after_its_commit_runs_nothing_twice() {
    let Some(mut site) = Site::start(Binaries::with_fault_points()).await else {
        return;
    };
    let folder = site.issue("gw-1");
    let stopping = Start::default().stopping_at("release.committed.before_go");
    site.one.start_backend(stopping).await;
    site.other.start_backend(Start::default()).await;
    site.way.forward_to(site.one.agents_address());
    let mut gateway = site.gateway(&folder);
    site.is_with(&site.one, "gw-1").await;
    let run = site.other.submit(ONCE, "once").await;
    let permits = "SELECT count(*) FROM commands WHERE state = 'released'";
    eventually("the permit is committed", PATIENCE, async || {
        (site.asks(permits) == "1").then_some(())
    })
    .await;
    gateway.kill();
    site.way.forward_to(site.other.agents_address());
    let gateway = site.gateway(&folder);
    site.is_with(&site.other, "gw-1").await;
    site.one.backend().signal(Signal::CONT);
    let finished = site.other.finished(&run).await;
    let next = site.other.submit(ONCE, "next").await;
    let after = site.other.finished(&next).await;
    assert_eq!(after["counts"], json!({"succeeded": 1}), "{after}");
    let command = site.other.commands(&run).await.remove(0);
    let ran = started(&folder);
    let ran = ran.get(command["id"].as_str().unwrap()).copied();
    // It was never given, and whether it was nobody can know.
    assert_eq!(
        finished["counts"],
        json!({"indeterminate": 1}),
        "{finished}"
    );
    assert_eq!(ran, None, "{finished}");
    drop(gateway);
    assert!(site.one.backend().stop(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_embedded_database_has_one_backend() {
    let mut system = Deployment::new(Binaries::shipped());
    system.start_backend(Start::default()).await;
    let refused = verb::backend(&system, &["serve"]).await.ended_with(6);
    assert!(
        refused.stderr.contains("is in use by process"),
        "{refused:#?}"
    );
}

/// How many other backends this one says have other authorities, and whether its health says so.
async fn apart(backend: &Deployment) -> (usize, bool) {
    let status = backend.get("/v1/authorities").await;
    let named = status["backends"].as_array().unwrap().len();
    let health = backend.get("/v1/health").await;
    let mut checks = health["checks"].as_array().unwrap().iter();
    (named, checks.any(|check| check["name"] == "trust.backends"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_with_other_authorities_is_told_of_by_each_of_them() {
    let Some(mut site) = Site::start(Binaries::shipped()).await else {
        return;
    };
    site.start_both().await;
    let folder = site.one.path().join("backend");
    let old = Authority::of(&folder);
    for backend in [&site.one, &site.other] {
        assert_eq!(apart(backend).await, (0, false));
    }
    // One of them has read its file again, and the other one has not.
    Authority::create("the next authority").signs_beside(&folder, &[&old]);
    site.one.backend().signal(Signal::HUP);
    for backend in [&site.one, &site.other] {
        eventually("it names the other one", PATIENCE, async || {
            (apart(backend).await == (1, true)).then_some(())
        })
        .await;
    }
    site.other.backend().signal(Signal::HUP);
    for backend in [&site.one, &site.other] {
        eventually("they have the same", PATIENCE, async || {
            (apart(backend).await == (0, false)).then_some(())
        })
        .await;
    }
}
