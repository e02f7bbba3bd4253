//! A backend with its queue in Redis: what the server does to it, and what its operator is told.

use std::time::Duration;

use serde_json::json;
use viworks_runtime::clock::{Clock as _, SystemClock};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::gateway::{ONCE, mark_starts, started};
use viworks_testkit::postgres;
use viworks_testkit::process::eventually;
use viworks_testkit::redis::Own;

use super::health::at_this_moment;
use super::verb::backend;

/// How soon everything is looked after once Redis is back.
const SWEEP: Duration = Duration::from_secs(5);

/// Names a queue in the configuration; `lines` stand in its section, which the configuration has not yet.
fn configure(system: &Deployment, written: &str, lines: &str) {
    let text = format!("{written}\n[queue]\n{lines}\n");
    std::fs::write(system.backend_config(), text).unwrap();
}

/// Submits a command for one gateway.
async fn submit(system: &Deployment, gateway: &str) -> String {
    let body = json!({"command": ONCE, "targets": {"gateways": [gateway]}});
    let answer = system.request("POST", "/v1/runs", Some(&body)).await;
    let (status, run) = answer.unwrap();
    assert_eq!(status, 201, "{run}");
    run["id"].as_str().unwrap().to_owned()
}

async fn health(system: &Deployment) -> String {
    let (_status, health) = system.request("GET", "/v1/health", None).await.unwrap();
    at_this_moment(&health)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_run_whatever_becomes_of_redis_and_health_says_so() {
    let Some(mut own) = Own::start() else { return };
    let mut system = Deployment::new(Binaries::shipped());
    let written = std::fs::read_to_string(system.backend_config()).unwrap();
    configure(
        &system,
        &written,
        &format!("url = \"{}\"", own.place().url()),
    );
    let (here, away) = (system.issue("gw-1"), system.issue("gw-2"));
    mark_starts(&here);
    mark_starts(&away);
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&here, Start::default());
    system.online("gw-1").await;
    // It says what it allows, and is gone.
    let mut second = system.start_gateway(&away, Start::default());
    system.online("gw-2").await;
    assert!(second.stop(PATIENCE).await.success());
    let said = health(&system).await;
    assert!(!said.contains("queue.redis"), "{said}");
    let port = own.place().port();
    assert!(
        said.contains(&format!("Redis at 127.0.0.1:{port}")),
        "{said}"
    );
    assert_eq!(said.matches("\"name\":\"store\"").count(), 1, "{said}");
    eventually("the answer of Redis is measured", PATIENCE, async || {
        let health = system.get("/v1/health").await;
        let mut checks = health["checks"].as_array()?.iter();
        let queue = checks.find(|check| check["name"] == "queue")?;
        (queue["latency_us"].as_u64()? > 0).then_some(())
    })
    .await;
    let mut runs = Vec::new();
    let mut hints = Vec::new();
    for round in 0..3 {
        // Once it works, once it is gone, once it is back.
        match round {
            1 => own.kill(),
            2 => {
                own.start_again();
                eventually("health is well again", SWEEP, async || {
                    (!health(&system).await.contains("queue.redis")).then_some(())
                })
                .await;
            }
            _ => {}
        }
        for _command in 0..5 {
            runs.push(submit(&system, "gw-1").await);
        }
        for run in runs.iter().rev().take(5) {
            let run = system.finished(run).await;
            assert_eq!(run["counts"], json!({"succeeded": 1}), "{run}");
        }
        // One that waits for a gateway that is away has its hint where there is somewhere to keep it.
        hints.push(submit(&system, "gw-2").await);
        if round == 1 {
            eventually("health says what is wrong", PATIENCE, async || {
                health(&system).await.contains("queue.redis").then_some(())
            })
            .await;
            let health = system.get("/v1/health").await;
            let mut checks = health["checks"].as_array().unwrap().iter();
            let queue = checks.find(|check| check["name"] == "queue").unwrap();
            assert_eq!(queue["status"], "warn", "{health:#}");
        }
    }
    let second = system.start_gateway(&away, Start::default());
    for run in &hints {
        let run = system.finished(run).await;
        assert_eq!(run["counts"], json!({"succeeded": 1}), "{run}");
    }
    eventually("no hint is left behind", PATIENCE, async || {
        let keys: Vec<String> = own.place().ask(&["KEYS", "vw:*:q"]).unwrap();
        keys.is_empty().then_some(())
    })
    .await;
    for (folder, expected) in [(&here, runs.len()), (&away, hints.len())] {
        let marks = started(folder);
        assert_eq!(marks.len(), expected, "{marks:?}");
        assert!(marks.values().all(|times| *times == 1), "{marks:?}");
    }
    assert!(gateway.stop(PATIENCE).await.success());
    drop(second);
    assert!(system.backend().stop(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_cannot_be_used_is_refused_in_one_sentence_and_one_that_is_away_is_waited_for()
{
    let user = "user vw on >correct-horse ~vw:* &vw:* +@all";
    let Some(mut own) = Own::start_with(&[user]) else {
        return;
    };
    let mut system = Deployment::new(Binaries::shipped());
    let written = std::fs::read_to_string(system.backend_config()).unwrap();
    let folder = system.path().join("backend");
    for (name, secret) in [("right", "correct-horse\n"), ("wrong", "battery-staple")] {
        let path = folder.join(format!("{name}.password"));
        viworks_runtime::files::write_new(&path, secret.as_bytes(), 0o600).unwrap();
    }
    let url = own.place().url().replace("//", "//vw@");
    let with = |password: &str| format!("url = \"{url}\"\npassword_file = \"{password}.password\"");
    for (lines, code, said) in [
        (
            "url = \"redis://vw:hunter2@127.0.0.1\"".to_owned(),
            78,
            "holds a password",
        ),
        (
            "url = \"redis://queue.example.net\"".to_owned(),
            78,
            "use rediss://",
        ),
        (
            "url = \"amqp://127.0.0.1\"".to_owned(),
            78,
            "not a URL of a queue",
        ),
        (
            "password_file = \"right.password\"".to_owned(),
            78,
            "has no password",
        ),
        (with("absent"), 78, "absent.password"),
        (with("wrong"), 78, "WRONGPASS"),
        (
            with("right").replace("redis://", "redis-cluster://"),
            78,
            "no node of a Redis Cluster",
        ),
        (with("right"), 0, ""),
    ] {
        configure(&system, &written, &lines);
        let tried = backend(&system, &["check-config", "--connect"])
            .await
            .ended_with(code);
        assert!(tried.stderr.contains(said), "{said}: {tried:#?}");
        for secret in ["hunter2", "battery-staple", "correct-horse"] {
            assert!(!tried.stderr.contains(secret), "{tried:#?}");
        }
        assert_eq!(
            code == 0,
            tried.stdout.contains("the queue can be used"),
            "{tried:#?}"
        );
        if said == "WRONGPASS" {
            let refused = backend(&system, &["serve"]).await.ended_with(78);
            assert_eq!(refused.stderr.matches(said).count(), 1, "{refused:#?}");
            assert!(!refused.stderr.contains("nothing is lost"), "{refused:#?}");
        }
    }
    // It can be used as it is, and somebody should know.
    let words = ["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"];
    own.place().ask::<String>(&words).unwrap();
    let tried = backend(&system, &["check-config", "--connect"])
        .await
        .ended_with(0);
    for word in ["allkeys-lru", "noeviction"] {
        assert!(tried.stderr.contains(word), "{tried:#?}");
    }
    own.kill();
    let tried = backend(&system, &["check-config", "--connect"])
        .await
        .ended_with(69);
    assert!(
        tried.stderr.contains("failed to open the queue"),
        "{tried:#?}"
    );
    // The database has the commands, so a start does not wait for it.
    system.start_backend(Start::default()).await;
    let said = health(&system).await;
    assert!(said.contains("queue.redis"), "{said}");
    own.start_again();
    eventually("it is used once it is there", PATIENCE, async || {
        (!health(&system).await.contains("queue.redis")).then_some(())
    })
    .await;
    assert!(system.backend().stop(PATIENCE).await.success());
}

/// A certificate for `name`, with its own authority: the certificate, its key, and the authority.
fn certificate(name: &str) -> (String, String, String) {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_certificate = authority.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::from_params(&authority, &authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let server = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let server = server.signed_by(&key, &issuer).unwrap();
    let authority = authority_certificate.pem();
    (server.pem(), key.serialize_pem(), authority)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_verified() {
    let Some(mut own) = Own::start() else { return };
    let (chain, key, authority) = certificate("localhost");
    let (_, _, stranger) = certificate("localhost");
    let port = own.encrypt(&chain, &key);
    let system = Deployment::new(Binaries::shipped());
    let written = std::fs::read_to_string(system.backend_config()).unwrap();
    let folder = system.path().join("backend");
    std::fs::write(folder.join("queue-ca.pem"), authority).unwrap();
    std::fs::write(folder.join("stranger-ca.pem"), stranger).unwrap();
    for (host, authority, code) in [
        ("localhost", "queue-ca.pem", 0),
        ("localhost", "stranger-ca.pem", 78),
        ("127.0.0.1", "queue-ca.pem", 78),
    ] {
        let lines = format!("url = \"rediss://{host}:{port}\"\nca_file = \"{authority}\"");
        configure(&system, &written, &lines);
        let tried = backend(&system, &["check-config", "--connect"])
            .await
            .ended_with(code);
        assert_eq!(
            code == 78,
            tried.stderr.contains("certificate"),
            "{tried:#?}"
        );
    }
}

/// A command that writes something, and is there for a while.
const TALK: &str = "test.talk";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_followed_live_at_the_backend_that_does_not_have_its_gateway() {
    let (Some(mut own), Some(database)) = (Own::start(), postgres::Own::start()) else {
        return;
    };
    database.server().make_empty("viworks");
    let mut one = Deployment::on(Binaries::shipped(), database.server().database("viworks"));
    let written = std::fs::read_to_string(one.backend_config()).unwrap();
    configure(&one, &written, &format!("url = \"{}\"", own.place().url()));
    let folder = one.issue("gw-1");
    mark_starts(&folder);
    let script = "i=0; while [ $i -lt 20 ]; do echo line $i; i=$((i+1)); sleep 0.1; done";
    let catalogue = format!(
        "[[command]]\nname = \"{TALK}\"\ntitle = \"talks\"\nrisk = \"read\"\nidempotent = false\n\
         argv = [\"/bin/sh\", \"-c\", {script:?}]\ntimeout_ms = 60000\n"
    );
    let file = folder.join("commands.d/talk.toml");
    viworks_runtime::files::write_new(&file, catalogue.as_bytes(), 0o600).unwrap();
    let mut other = one.another("backend-2");
    one.start_backend(Start::default()).await;
    other.start_backend(Start::default()).await;
    let gateway = other.start_gateway(&folder, Start::default());
    one.online("gw-1").await;
    // Whoever waits at the other backend is told sooner than it would look by itself.
    let mut quick = Duration::MAX;
    for number in 0..5 {
        let begun = SystemClock.now();
        let body = json!({"command": ONCE, "targets": {"gateways": ["gw-1"]}});
        let path = "/v1/runs?wait_ms=30000";
        let (status, run) = one.request("POST", path, Some(&body)).await.unwrap();
        assert_eq!(status, 201, "{number}: {run}");
        assert_eq!(run["counts"], json!({"succeeded": 1}), "{run}");
        quick = quick.min(SystemClock.now().saturating_since(begun));
    }
    assert!(quick < Duration::from_millis(900), "{quick:?}");
    // Live output comes while the command runs, also what was written before anybody elsewhere heard of it.
    let follow = async |backend: &Deployment| {
        let body = json!({"command": TALK, "targets": {"gateways": ["gw-1"]}});
        let (_, run) = one.request("POST", "/v1/runs", Some(&body)).await.unwrap();
        let run = run["id"].as_str().unwrap().to_owned();
        let path = format!("/v1/runs/{run}/events");
        let (_, events) = backend.request("GET", &path, None).await.unwrap();
        events.as_str().unwrap().to_owned()
    };
    let text = follow(&one).await;
    let (before, _after) = text.split_once("event: finished").unwrap();
    let live: Vec<&str> = before.split("event: output").skip(1).collect();
    assert!(live.len() >= 10, "{text}");
    let mut behind = live.concat();
    for number in 0..20 {
        let line = format!("line {number}\\n");
        // Each once, in their order.
        assert_eq!(behind.matches(&line).count(), 1, "{line} in {text}");
        behind = behind.split_once(&line).unwrap().1.to_owned();
    }
    assert!(!before.contains("event: missed"), "{text}");
    assert!(before.contains("\"running\""), "{text}");
    // Without Redis it is told what it missed, and the end all the same.
    own.kill();
    let text = follow(&one).await;
    assert!(text.contains("event: missed"), "{text}");
    assert!(text.contains("event: finished"), "{text}");
    assert!(text.contains("\"succeeded\":1"), "{text}");
    drop(gateway);
    assert!(one.backend().stop(PATIENCE).await.success());
    assert!(other.backend().stop(PATIENCE).await.success());
}
