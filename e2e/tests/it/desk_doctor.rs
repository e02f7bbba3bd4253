//! `viworks doctor`: the first thing that is in an operator's way to a backend, and what to do about it, within five
//! seconds.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, run, text};
use viworks_testkit::process::{Said, eventually, finish};
use viworks_testkit::proxy::{Network, Proxy};

use super::desk::viworks;

const IN_TIME: Duration = Duration::from_secs(5);

/// At this server with this key, or without one.
fn at(system: &Deployment, server: &str, key: &str) -> Command {
    let token = system.path().join(key);
    let mut command = viworks(system, &token, &["doctor", "-o", "json"]);
    command.env("VIWORKS_SERVER", server);
    if key.is_empty() {
        command.env_remove("VIWORKS_TOKEN_FILE");
    }
    command
}

fn hold(said: &Said, step: &str, code: i32, cause: &str, fix: &str) -> Value {
    let told = said.json();
    assert_eq!(said.code, Some(code), "{step}: {told:#}");
    assert!(said.took < IN_TIME, "{step}: {said:#?}");
    assert_eq!(told["step"], step, "{told:#}");
    let has = |name: &str, words: &str| told[name].as_str().unwrap().contains(words);
    assert!(has("cause", cause), "{cause}: {told:#}");
    assert!(has("fix", fix), "{fix}: {told:#}");
    told
}

/// A key with these scopes; the backend must not run.
fn key(system: &Deployment, name: &str, scopes: &str) -> PathBuf {
    let (config, out) = (system.backend_config(), system.path().join(name));
    let arguments = [
        "apikey",
        "create",
        "--config",
        text(&config),
        "--name",
        name,
        "--scopes",
        scopes,
        "--out",
        text(&out),
    ];
    let _said = run(&system.binaries().backend(), &arguments);
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_an_operators_way_is_named() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    let _few = key(&system, "few.key", "runs:read");
    std::fs::copy(
        system.path().join("few.key"),
        system.path().join("wrong.key"),
    )
    .unwrap();
    let wrong = std::fs::read_to_string(system.path().join("few.key")).unwrap();
    let (body, _last) = wrong.trim().split_at(wrong.trim().len() - 8);
    std::fs::write(system.path().join("wrong.key"), format!("{body}00000000")).unwrap();
    system.start_backend(Start::default()).await;
    let gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let server = system.api_url();
    let doctor = async |server: &str, key: &str| finish(at(&system, server, key), PATIENCE).await;

    let well = doctor(&server, "operator.key").await.ended_with(0);
    assert_eq!(well.json()["status"], "pass", "{well:#?}");
    let shown = well.json()["steps"].to_string();
    assert!(shown.contains("1 of 1 online"), "{shown}");

    let said = doctor(&server, "nothing.key").await;
    hold(&said, "context", 78, "API key", "");
    let said = doctor("http://localhost.invalid:8080", "").await;
    hold(&said, "dns", 69, "could not be resolved", "DNS");
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let said = doctor(&closed, "operator.key").await;
    hold(&said, "tcp", 69, "refused", "is the backend running");
    let silent = Proxy::before(server.trim_start_matches("http://"))
        .await
        .unwrap();
    silent.set(Network::HalfOpen);
    let said = doctor(&format!("http://{}", silent.address()), "operator.key").await;
    hold(&said, "api", 69, "did not answer in time", "");
    let agents = format!("http://{}", system.agents_address());
    let said = doctor(&agents, "operator.key").await;
    assert_eq!(said.json()["step"], "api", "{said:#?}");
    let said = doctor(&server, "").await;
    hold(&said, "key", 4, "no key is sent", "--token-file");
    let said = doctor(&server, "wrong.key").await;
    hold(&said, "key", 4, "", "apikey create");
    let few = doctor(&server, "few.key").await.ended_with(0);
    let shown = few.json()["steps"].to_string();
    assert!(shown.contains("health:read"), "{shown}");

    drop(gateway);
    let away = eventually("the gateway is away", PATIENCE, async || {
        let said = doctor(&server, "operator.key").await;
        said.stdout.contains("gw-1 is offline").then_some(said)
    })
    .await;
    assert!(
        away.stdout
            .contains("on gw-1: viworks-gateway-agent doctor"),
        "{away:#?}"
    );

    let (state, aside) = (
        system.path().join("backend/state"),
        system.path().join("backend/aside"),
    );
    std::fs::rename(&state, &aside).unwrap();
    let broken = eventually("the health fails", PATIENCE, async || {
        let said = doctor(&server, "operator.key").await;
        (said.code == Some(20)).then_some(said)
    })
    .await;
    hold(&broken, "health", 20, "store", "");
    std::fs::rename(&aside, &state).unwrap();
}
