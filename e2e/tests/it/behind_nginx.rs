//! A site behind nginx with the configuration that ships: gateways passed through and known by their own addresses,
//! operators by HTTPS, and what a reload and the loss of a backend cost.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use futures_util::StreamExt;
use rcgen::KeyPair;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, text};
use viworks_testkit::gateway::{ONCE, mark_starts, started};
use viworks_testkit::nginx::{API_NAME, Backends, Nginx};
use viworks_testkit::postgres;
use viworks_testkit::process::{Process, Said, eventually, finish};
use viworks_testkit::rogue::{Material, Refused, upgrade};

use crate::pins::{pin, pin_of};

/// Where nginx comes from in these tests: another address than that of gateways, which is 127.0.0.1.
pub(crate) const PROXY: &str = "127.0.0.9";

/// What a backend is told that stands behind it.
pub(crate) fn behind() -> Start {
    Start::default()
        .with("VIWORKS__AGENTS__PROXY_PROTOCOL", "require")
        .with("VIWORKS__AGENTS__TRUSTED_PROXIES", PROXY)
        .with("VIWORKS__API__TRUSTED_PROXIES", PROXY)
}

fn from_its_own_address(shipped: &str) -> String {
    ["proxy_pass $viworks_target;", "proxy_http_version 1.1;"]
        .into_iter()
        .fold(shipped.to_owned(), |text, line| {
            text.replace(line, &format!("{line}\n    proxy_bind {PROXY};"))
        })
}

fn api(system: &Deployment) -> String {
    system.api_url().trim_start_matches("http://").to_owned()
}

pub(crate) fn nginx_before(systems: &[&Deployment]) -> Nginx {
    let agents = |system: &&Deployment| system.agents_address().to_owned();
    let backends = Backends {
        agents: systems.iter().map(agents).collect(),
        api: systems.iter().map(|system| api(system)).collect(),
        enrolment: Vec::new(),
    };
    Nginx::start_changed(backends, trusting_both)
}

/// In front of the door of a backend: machines that ask it for `localhost` enrol.
pub(crate) fn nginx_before_door(system: &Deployment) -> Nginx {
    let backends = Backends {
        enrolment: vec![system.door_address().to_owned()],
        ..Backends::default()
    };
    Nginx::start_changed(backends, |shipped| {
        // The name that resolves on any machine.
        from_its_own_address(shipped)
            .replace(
                "localhost  viworks_agents",
                "agents.example.org  viworks_agents",
            )
            .replace("enrol.example.org ", "localhost ")
    })
}

/// The part that ends TLS is told by the other part who connects, from its address.
fn trusting_both(shipped: &str) -> String {
    from_its_own_address(shipped).replace(
        "set_real_ip_from 127.0.0.1;",
        &format!("set_real_ip_from {PROXY};"),
    )
}

fn through(nginx: &Nginx) -> Start {
    Start::default()
        .with("VIWORKS__OUTBOUND__URL", nginx.agents_url())
        .with("VIWORKS__OUTBOUND__BACKOFF_MAX_MS", "500")
}

/// The key of an operator who may do everything.
pub(crate) fn token(system: &Deployment) -> String {
    let key = std::fs::read_to_string(system.path().join("operator.key")).unwrap();
    key.trim().to_owned()
}

/// Status, headers and body of a request through nginx.
async fn ask(system: &Deployment, nginx: &Nginx, path: &str) -> reqwest::Response {
    let request = nginx.client().get(format!("{}{path}", nginx.api_url()));
    let request = request.bearer_auth(token(system)).timeout(PATIENCE);
    request.send().await.unwrap()
}

/// Gateways with what [`mark_starts`] gives them, through nginx.
async fn gateways(system: &Deployment, nginx: &Nginx, folders: &[PathBuf]) -> Vec<Process> {
    gateways_by(
        system,
        nginx,
        folders,
        ("VIWORKS__OUTBOUND__BINDING", "exporter"),
    )
    .await
}

/// The same with a setting.
pub(crate) async fn gateways_by(
    system: &Deployment,
    nginx: &Nginx,
    folders: &[PathBuf],
    (name_of, value): (&str, &str),
) -> Vec<Process> {
    let mut started = Vec::new();
    for folder in folders {
        let start = through(nginx).with(name_of, value);
        started.push(system.start_gateway(folder, start));
    }
    for folder in folders {
        system.online(name(folder)).await;
    }
    started
}

fn name(folder: &Path) -> &str {
    folder.file_name().unwrap().to_str().unwrap()
}

pub(crate) fn issue(system: &Deployment, count: usize) -> Vec<PathBuf> {
    let issued = (1..=count).map(|number| system.issue(&format!("gw-{number}")));
    let issued: Vec<_> = issued.collect();
    issued.iter().for_each(|folder| mark_starts(folder));
    issued
}

/// Which session each gateway has.
pub(crate) async fn sessions(system: &Deployment, folders: &[PathBuf]) -> BTreeMap<String, String> {
    let mut sessions = BTreeMap::new();
    for folder in folders {
        let shown = system.get(&format!("/v1/gateways/{}", name(folder))).await;
        let session = shown["session"]["id"].as_str().unwrap_or_default();
        sessions.insert(name(folder).to_owned(), session.to_owned());
    }
    sessions
}

/// Waits until every gateway has another session than it had.
pub(crate) async fn all_came_back(
    system: &Deployment,
    folders: &[PathBuf],
    before: &BTreeMap<String, String>,
) {
    for folder in folders {
        eventually("it is back", PATIENCE, async || {
            let now = sessions(system, std::slice::from_ref(folder)).await;
            let now = &now[name(folder)];
            (!now.is_empty() && *now != before[name(folder)]).then_some(())
        })
        .await;
    }
}

/// One run on every gateway, to its good end.
pub(crate) async fn run_everywhere(system: &Deployment, key: &str, gateways: usize) {
    let run = system.submit(ONCE, key).await;
    let run = system.finished(&run).await;
    assert_eq!(run["counts"]["succeeded"], gateways, "{run}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_pass_through_nginx_and_are_known_by_their_own_address() {
    if !Nginx::is_installed() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    let folders = issue(&system, 1);
    let rogue = Material::read(&system.issue("gw-rogue")).unwrap();
    system.start_backend(behind()).await;
    let nginx = nginx_before(&[&system]);
    let _gateway = gateways(&system, &nginx, &folders).await;
    let shown = system.get("/v1/gateways/gw-1").await;
    let address = shown["session"]["peer_address"].as_str().unwrap();
    assert!(address.starts_with("127.0.0.1:"), "{shown}");
    let log = system.backend().log();
    let connected = log.lines().find(|line| line.contains("gateway connected"));
    assert!(connected.unwrap().contains(address), "{log}");
    let body = json!({"command": ONCE, "targets": {"gateways": ["gw-1"]}});
    let run = system.post("/v1/runs", &body).await;
    let run = system.finished(run["id"].as_str().unwrap()).await;
    assert_eq!(run["counts"]["succeeded"], 1, "{run}");

    // Its TLS ends at the backend: an upgrade is answered with 101, and a certificate is asked for there.
    let front = format!("127.0.0.1:{}", nginx.port());
    let (path, protocol) = ("/agent/v1/connect", "viworks.agent.v1");
    let certificate = Some(&rogue.certificate);
    let upgraded = upgrade(&front, &rogue.authority, certificate, path, protocol).await;
    assert!(upgraded.is_ok());
    let refused = upgrade(&front, &rogue.authority, None, path, protocol).await;
    let (refused, _address) = refused.err().unwrap();
    assert!(
        matches!(refused, Refused::Tls | Refused::Cut),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_goes_past_nginx_or_claims_an_address_is_refused() {
    if !Nginx::is_installed() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    let rogue = Material::read(&system.issue("gw-rogue")).unwrap();
    system.start_backend(behind()).await;
    let agents = system.agents_address().to_owned();
    let (path, protocol) = ("/agent/v1/connect", "viworks.agent.v1");
    let past = upgrade(
        &agents,
        &rogue.authority,
        Some(&rogue.certificate),
        path,
        protocol,
    )
    .await;
    let (refused, _address) = past.err().unwrap();
    assert!(
        matches!(refused, Refused::Tls | Refused::Cut),
        "{refused:?}"
    );
    // A header from an address that is not nginx's, and none from the one that is.
    let header = &b"PROXY TCP4 203.0.113.9 127.0.0.1 50000 443\r\n"[..];
    for (from, sent) in [
        ("127.0.0.1", header),
        (PROXY, &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..]),
    ] {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
        let mut stream = socket.connect(agents.parse().unwrap()).await.unwrap();
        // It may be closed before anything arrives.
        drop(stream.write_all(sent).await);
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        drop(ended.expect("it is closed"));
        assert_eq!(answer, b"", "{from}");
    }
    eventually("both are told", PATIENCE, async || {
        let log = system.backend().log();
        let told = log.contains("does not come through a proxy of agents.trusted_proxies")
            && log.contains("does not begin with a header of the PROXY protocol")
            && !log.contains("203.0.113.9");
        told.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_reach_the_api_by_https_and_nothing_else_is_served() {
    if !Nginx::is_installed() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    system.start_backend(behind()).await;
    let nginx = nginx_before(&[&system]);
    let answer = ask(&system, &nginx, "/v1/gateways").await;
    assert_eq!(answer.status(), 200);
    for (header, value) in [
        ("strict-transport-security", "max-age=63072000"),
        ("x-content-type-options", "nosniff"),
        ("server", "nginx"),
    ] {
        assert_eq!(answer.headers()[header], value);
    }
    // More than any request of ours.
    let request = nginx.client().post(format!("{}/v1/runs", nginx.api_url()));
    let request = request
        .bearer_auth(token(&system))
        .body(vec![b' '; 2 * 1024 * 1024]);
    assert_eq!(request.send().await.unwrap().status(), 413);
    // Plain HTTP says where the encrypted one is.
    let mut plain = TcpStream::connect(("127.0.0.1", nginx.plain_port()))
        .await
        .unwrap();
    let request =
        format!("GET /v1/gateways HTTP/1.1\r\nhost: {API_NAME}\r\nconnection: close\r\n\r\n");
    plain.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).await.unwrap();
    let there = format!("location: https://{API_NAME}/v1/gateways");
    assert!(
        answer.starts_with("HTTP/1.1 301") && answer.to_lowercase().contains(&there),
        "{answer}"
    );
    // A name that is not served, and the one of a door that this backend does not have.
    for name in ["elsewhere.example.org", "enrol.example.org"] {
        let there = ([127, 0, 0, 1], nginx.port()).into();
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_danger_accept_invalid_certs(true)
            .resolve(name, there)
            .build()
            .unwrap();
        let url = format!("https://{name}:{}/", nginx.port());
        client.get(url).send().await.unwrap_err();
    }
    let log = std::fs::read_to_string(nginx.path().join("access.log")).unwrap();
    let first: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&first["client"], &first["status"]),
        (&json!("127.0.0.1"), &json!(200))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_are_known_by_their_own_address_whatever_they_claim() {
    if !Nginx::is_installed() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    system.start_backend(behind()).await;
    let nginx = nginx_before(&[&system]);
    let past = reqwest::Client::builder().no_proxy().build().unwrap();
    for (name, client, url) in [
        ("through", nginx.client(), nginx.api_url()),
        ("past", past, system.api_url()),
    ] {
        let body = json!({"name": name, "scopes": ["runs:read"]});
        let request = client.post(format!("{url}/v1/apikeys")).json(&body);
        let request = request
            .bearer_auth(token(&system))
            .header("x-real-ip", "203.0.113.9")
            .header("x-forwarded-for", "203.0.113.9");
        assert_eq!(request.send().await.unwrap().status(), 201, "{name}");
        let audit = system.get("/v1/audit?limit=1").await;
        let record = &audit["items"][0];
        assert_eq!(record["action"], "api_key.create", "{name}: {audit}");
        // Neither what it claims, nor the address of nginx.
        assert_eq!(record["detail"]["peer"], "127.0.0.1", "{name}: {audit}");
    }
    // The line about a refusal says the same.
    let refused = nginx.client().get(format!("{}/v1/runs", nginx.api_url()));
    let refused = refused.bearer_auth("vwk_nobody").send().await.unwrap();
    assert_eq!(refused.status(), 401);
    let log = system.backend().log();
    let line = log
        .lines()
        .find(|line| line.contains("a request was refused"));
    assert!(
        line.is_some_and(|line| line.contains("peer=127.0.0.1")),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_arrive_through_nginx_as_they_happen() {
    if !Nginx::is_installed() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    let folders = issue(&system, 1);
    // It says something, and goes on only once that was seen.
    let (script, seen) = (folders[0].join("wait.sh"), folders[0].join("seen"));
    let waits = format!(
        "#!/bin/sh\necho first\nwhile [ ! -e '{}' ]; do sleep 0.05; done\necho second\n",
        seen.display()
    );
    viworks_runtime::files::write_new(&script, waits.as_bytes(), 0o700).unwrap();
    let catalogue = format!(
        "[[command]]\nname = \"test.wait\"\ntitle = \"waits\"\nrisk = \"read\"\nidempotent = true\nargv = [\"{}\"]\ntimeout_ms = 50000\n",
        script.display()
    );
    let file = folders[0].join("commands.d/wait.toml");
    viworks_runtime::files::write_new(&file, catalogue.as_bytes(), 0o600).unwrap();
    system.start_backend(behind()).await;
    let nginx = nginx_before(&[&system]);
    let _gateway = gateways(&system, &nginx, &folders).await;
    let run = system.submit("test.wait", "wait").await;
    let answer = ask(&system, &nginx, &format!("/v1/runs/{run}/events")).await;
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut body = answer.bytes_stream();
    let mut text = String::new();
    let deadline = Instant::now() + PATIENCE;
    // The base64 of "first\n": it is here while the command still runs.
    for (expected, then) in [("Zmlyc3QK", Some(&seen)), ("c2Vjb25kCg", None)] {
        while !text.contains(expected) {
            let part = tokio::time::timeout_at(deadline, body.next()).await;
            let part = part.unwrap_or_else(|_late| panic!("no {expected}: {text}"));
            text.push_str(&String::from_utf8_lossy(&part.unwrap().unwrap()));
        }
        if let Some(seen) = then {
            std::fs::write(seen, "").unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_of_nginx_costs_no_session_and_those_that_it_drops_come_back() {
    const GATEWAYS: usize = 10;
    if !Nginx::is_installed() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    let folders = issue(&system, GATEWAYS);
    system.start_backend(behind()).await;
    let mut nginx = nginx_before(&[&system]);
    let _gateways = gateways(&system, &nginx, &folders).await;
    let before = sessions(&system, &folders).await;
    for round in 0..3 {
        let old = nginx.workers();
        nginx.reload();
        run_everywhere(&system, &format!("reload-{round}"), GATEWAYS).await;
        eventually("new workers are there", PATIENCE, async || {
            let new = nginx.workers().into_iter().any(|pid| !old.contains(&pid));
            new.then_some(())
        })
        .await;
    }
    assert_eq!(sessions(&system, &folders).await, before);

    // nginx itself starts again, and from here on old workers may stay for a second only.
    let shortly = |shipped: &str| {
        trusting_both(shipped).replace("worker_shutdown_timeout 10m", "worker_shutdown_timeout 1s")
    };
    nginx.configure(shortly);
    nginx.stop();
    nginx.start_again();
    all_came_back(&system, &folders, &before).await;
    let between = sessions(&system, &folders).await;
    let old = nginx.workers();
    nginx.reload();
    run_everywhere(&system, "cut", GATEWAYS).await;
    eventually("the old workers are gone", PATIENCE, async || {
        let left = nginx.workers().into_iter().any(|pid| old.contains(&pid));
        (!left).then_some(())
    })
    .await;
    all_came_back(&system, &folders, &between).await;
    run_everywhere(&system, "after", GATEWAYS).await;
    for folder in &folders {
        let marks = started(folder);
        assert!(
            marks.len() == 5 && marks.values().all(|times| *times == 1),
            "{marks:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateways_of_a_backend_that_is_killed_go_to_the_other_one() {
    const GATEWAYS: usize = 6;
    if !Nginx::is_installed() {
        return;
    }
    let Some(server) = postgres::Own::start() else {
        return;
    };
    server.server().make_empty("viworks");
    let database = server.server().database("viworks");
    let mut one = Deployment::on(Binaries::shipped(), database);
    let mut other = one.another("backend-2");
    let folders = issue(&one, GATEWAYS);
    one.start_backend(behind()).await;
    other.start_backend(behind()).await;
    let nginx = nginx_before(&[&one, &other]);
    let _gateways = gateways(&one, &nginx, &folders).await;
    // nginx spreads them.
    let connected = |log: String| log.matches("gateway connected").count();
    let spread = [
        connected(one.backend().log()),
        connected(other.backend().log()),
    ];
    assert!(spread.iter().all(|&count| count > 0), "{spread:?}");
    run_everywhere(&one, "both", GATEWAYS).await;
    let before = sessions(&one, &folders).await;
    other.kill_backend();
    let begun = Instant::now();
    for folder in &folders {
        eventually("it is at the other backend", PATIENCE, async || {
            let log = one.backend().log();
            let mut lines = log
                .lines()
                .filter(|line| line.contains("gateway connected"));
            lines.any(|line| line.contains(name(folder))).then_some(())
        })
        .await;
    }
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "{:?}",
        begun.elapsed()
    );
    run_everywhere(&one, "one", GATEWAYS).await;
    let stayed = sessions(&one, &folders).await;
    let stayed = stayed
        .iter()
        .filter(|(name, id)| before[*name] == **id)
        .count();
    assert_eq!(
        stayed, spread[0],
        "those of the other backend keep their sessions"
    );
    // Operators notice nothing, whichever backend they were sent to.
    for _ in 0..4 {
        assert_eq!(ask(&one, &nginx, "/v1/gateways").await.status(), 200);
    }
}

/// A verb of the backend about nginx, with what it says.
async fn nginx_verb(system: &Deployment, arguments: &[&str]) -> Said {
    nginx_verb_in(system, system.path(), arguments).await
}

/// The same from a folder.
async fn nginx_verb_in(system: &Deployment, folder: &Path, arguments: &[&str]) -> Said {
    let mut command = Command::new(system.binaries().backend());
    command.current_dir(folder);
    let config = system.backend_config();
    command
        .arg("nginx")
        .args(arguments)
        .args(["--config", text(&config)]);
    command.envs(behind().environment);
    command.env("VIWORKS__AGENTS__LISTEN", system.agents_address());
    command.env("VIWORKS__API__LISTEN", api(system));
    finish(command, PATIENCE).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backend_checks_the_configuration_of_the_nginx_in_front_of_it() {
    if !Nginx::is_installed() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    system.start_backend(behind()).await;
    let nginx = nginx_before(&[&system]);
    let file = nginx.path().join("nginx.conf");
    let said = nginx_verb(&system, &["check", text(&file)])
        .await
        .ended_with(0);
    for line in [
        "nginx can read it (nginx -t)",
        "gateways are passed through to ",
        "gateways pin sha256/",
    ] {
        assert!(said.stdout.contains(line), "{said:#?}");
    }
    // What was staged is in force, whatever the configuration says.
    let staged = pin_of(&KeyPair::generate().unwrap());
    let _done = pin(&system, &["stage", &staged]).await.ended_with(0);
    let said = nginx_verb(&system, &["check", text(&file)]).await;
    let said = said.ended_with(0);
    let pins = said.stdout.lines().find(|it| it.contains("gateways pin "));
    let pins = pins.unwrap();
    assert!(
        pins.contains(&staged) && !pins.contains("by the configuration"),
        "{said:#?}"
    );
    // From its folder, by its name alone.
    let said = nginx_verb_in(&system, nginx.path(), &["check", "nginx.conf"]).await;
    let said = said.ended_with(0);
    assert!(
        said.stdout.contains("nginx can read it (nginx -t)"),
        "{said:#?}"
    );
    let written = std::fs::read_to_string(&file).unwrap();
    let refused = async |wrong: &str| {
        std::fs::write(&file, wrong).unwrap();
        let check = ["check", text(&file), "-o", "json"];
        let said = nginx_verb(&system, &check).await.ended_with(78);
        let document: Value = serde_json::from_str(&said.stdout).unwrap();
        assert_eq!(document["status"], "fail", "{document:#}");
        let first = &document["problems"][0];
        for part in ["message", "help"] {
            let words = first[part].as_str().unwrap();
            assert!(said.stderr.contains(words), "{said:#?}");
        }
        said.stderr
    };
    // What nginx cannot read comes alone, and what would follow from it once it can.
    let lacks = written.replace("proxy_protocol on;", "");
    let unsent = "none is sent: no gateway could connect";
    let told = refused(&lacks.replace("preread_timeout 5s;", "no_such_directive 5s;")).await;
    for part in [
        "unknown directive \"no_such_directive\"",
        "help: correct the word",
    ] {
        assert!(told.contains(part), "{told}");
    }
    assert!(!told.contains(unsent), "{told}");
    let told = refused(&lacks).await;
    assert!(
        told.contains(unsent) && !told.contains("nginx refuses it"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rendered_file_that_somebody_changed_is_left_alone() {
    let mut system = Deployment::new(Binaries::shipped());
    system.start_backend(behind()).await;
    let out = system.path().join("site.conf");
    let render = [
        "render",
        "--agents-name",
        "gw.site.example",
        "--api-name",
        "api.site.example",
        "--out",
        text(&out),
    ];
    let said = nginx_verb(&system, &render).await.ended_with(0);
    assert!(said.stdout.starts_with("wrote "), "{said:#?}");
    // All that the backend is not told yet is where gateways dial.
    assert!(
        said.stderr.contains("[agents]")
            && said
                .stderr
                .ends_with("  public_url = \"wss://gw.site.example\"\n")
            && said.stderr.lines().count() == 2,
        "{said:#?}"
    );
    let written = std::fs::read_to_string(&out).unwrap();
    assert!(
        written.contains(&format!("server {} max_fails", system.agents_address())),
        "{written}"
    );
    let kept = |line: &str| {
        let words = line.split_whitespace();
        words.eq(["enrol.site.example", "viworks_enrolment;"])
    };
    assert!(written.lines().any(kept), "{written}");
    let said = nginx_verb(&system, &render).await.ended_with(0);
    assert!(
        said.stdout.contains("is as it would be written"),
        "{said:#?}"
    );
    std::fs::write(&out, "# mine").unwrap();
    let said = nginx_verb(&system, &render).await.ended_with(6);
    assert!(
        said.stderr.contains("with other content") && said.stderr.contains("--force"),
        "{said:#?}"
    );
    // What the backend should be told of a file that was not written is no news.
    let other = [&render[..], &["--mode", "terminate"]].concat();
    let said = nginx_verb(&system, &other).await.ended_with(6);
    assert_eq!(said.stderr.lines().count(), 2, "{said:#?}");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "# mine");
    let forced = [&render[..], &["--force"]].concat();
    let _said = nginx_verb(&system, &forced).await.ended_with(0);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), written);
    // Without a file it goes to the standard output, and a name that is missing is told of.
    let said = nginx_verb(&system, &["render", "--api-name", "api.site.example"])
        .await
        .ended_with(2);
    assert!(said.stderr.contains("public_url"), "{said:#?}");
    let said = nginx_verb(&system, &render[..5]).await.ended_with(0);
    assert_eq!(said.stdout, written);
    // A file at hand is named by its whole path, and one that nginx would misread by its flag.
    let plain = [&render[..5], &["--certificate", "api.crt"]].concat();
    let said = nginx_verb(&system, &plain).await.ended_with(0);
    let whole = format!(" {};", text(&system.path().join("api.crt")));
    assert!(said.stdout.contains(&whole), "{whole}: {said:#?}");
    let blank = [&render[..5], &["--key", "a b.key"]].concat();
    let said = nginx_verb(&system, &blank).await.ended_with(2);
    assert!(said.stderr.contains("--key is \""), "{said:#?}");
}
