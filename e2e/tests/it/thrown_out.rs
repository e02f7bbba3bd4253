//! A gateway, or one certificate of it, that an operator revokes: it is out at once, and is told so.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use viworks_common::code::CloseCode;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::process::{eventually, finish};

use super::desk::viworks;
use super::told::{
    advice, cause, delay, fails_with, failure, is_waiting, status_where, told_there,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_is_thrown_out_by_an_operator_and_knows_at_once() {
    let mut system = Deployment::new(Binaries::shipped());
    let (folder, away) = (system.issue("gw-1"), system.issue("gw-2"));
    // No job finds within this test what was done.
    let start = Start::default().with("VIWORKS__JOBS__EXPIRE_INTERVAL_MS", "3600000");
    system.start_backend(start).await;
    let gateway = system.start_gateway(&folder, Start::default());
    let mut other = system.start_gateway(&away, Start::default());
    system.online("gw-1").await;
    system.online("gw-2").await;
    assert!(other.stop(Duration::from_secs(30)).await.success());
    eventually("the other one is away", PATIENCE, async || {
        let gateway = system.get("/v1/gateways/gw-2").await;
        (gateway["status"] == "offline").then_some(())
    })
    .await;
    let body = json!({"command": "sys.uptime", "targets": {"gateways": ["gw-2"]}});
    let waiting = system.post("/v1/runs", &body).await;

    let key = system.path().join("operator.key");
    let typed = async |words: &[&str]| finish(viworks(&system, &key, words), PATIENCE).await;
    let revoke = async |name: &str, more: &[&str]| {
        let words = ["gateway", "revoke", name, "--reason", "it was stolen"];
        typed(&[&words[..], more].concat()).await
    };
    // Nobody is there who could say yes.
    let asked = revoke("gw-1", &[]).await.ended_with(9);
    for words in ["is thrown out: its session ends", "--yes"] {
        assert!(asked.stderr.contains(words), "{asked:#?}");
    }
    system.online("gw-1").await;
    drop(revoke("gw-9", &["--yes"]).await.ended_with(5));

    // One certificate alone: its gateway stays, and so do the commands that wait for it.
    let certificates = ["gateway", "certificates", "gw-2"];
    let listed = typed(&[&certificates[..], &["-o", "json"]].concat()).await;
    let serial = listed.ended_with(0).json()["items"][0]["serial"].clone();
    let serial = serial.as_str().unwrap();
    let one = ["--certificate", serial];
    drop(revoke("gw-2", &one).await.ended_with(9));
    let said = revoke("gw-2", &[&one[..], &["--yes"]].concat()).await;
    let said = said.ended_with(0);
    assert!(
        said.stdout.contains("no session was open with it"),
        "{said:#?}"
    );
    let shown = typed(&certificates).await.ended_with(0);
    assert!(shown.stdout.contains(serial) && shown.stdout.contains("revoked"));
    assert!(shown.stderr.contains("1 certificate, 0 of them accepted"));

    let said = revoke("gw-2", &["--yes"]).await.ended_with(0);
    let fate = "gw-2 is revoked; 1 waiting command was cancelled\n";
    assert_eq!(said.stdout, fate, "{said:#?}");
    assert!(
        said.stderr.contains("ticket create --name gw-2"),
        "{said:#?}"
    );
    let ended = system.finished(waiting["id"].as_str().unwrap()).await;
    assert_eq!(ended["counts"], json!({"cancelled": 1}), "{ended:#}");

    let begun = SystemClock.now();
    let said = revoke("gw-1", &["--yes", "-o", "json"]).await.ended_with(0);
    let told = fails_with(system.binaries(), &folder, "revoked").await;
    let took = SystemClock.now().saturating_since(begun);
    // A second is the bound; beside it, programs start here, and the machine may be busy. A job would find it after an
    // hour.
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert_eq!(said.json()["session_ended"], true, "{said:#?}");
    let again = revoke("gw-1", &["--yes"]).await.ended_with(0);
    assert!(
        again.stdout.starts_with("gw-1 was revoked already, "),
        "{again:#?}"
    );
    let shown = typed(&["gateway", "show", "gw-1"]).await.ended_with(0);
    for words in ["✕ revoked since", "it was stolen"] {
        assert!(shown.stdout.contains(words), "{shown:#?}");
    }
    let by = shown.stdout.lines().find(|it| it.starts_with("revoked by"));
    assert!(by.is_some_and(|it| it.ends_with(" tests")), "{shown:#?}");
    assert!(!cause(&told).contains("not signed"), "{told:#}");
    assert_eq!(failure(&told)["fix"], advice(CloseCode::Revoked, &folder));
    assert!(delay(&told) >= Duration::from_secs(15 * 60), "{told:#}");
    let log = gateway.log();
    let warned = |line: &&str| {
        line.contains("WARN") && line.contains("the connection to the backend is lost")
    };
    assert!(log.lines().any(|line| warned(&line)), "{log}");

    // The same is asked again at once, and the upgrade says why it is refused.
    gateway.signal(Signal::HUP);
    let socket = folder.join("state/api.sock");
    let (status, _exit) = status_where(
        "the upgrade is refused",
        system.binaries(),
        &socket,
        |status| {
            failure(status)["cause"]
                .as_str()
                .is_some_and(|cause| cause.contains("HTTP 403"))
                && is_waiting(status)
        },
    )
    .await;
    assert_eq!(failure(&status)["code"], "revoked", "{status:#}");
    assert!(delay(&status) <= Duration::from_secs(60), "{status:#}");
    told_there(
        &mut system,
        &["was revoked", "viworks gateway replace gw-1"],
    )
    .await;
    let shown = system.get("/v1/gateways/gw-1").await;
    let why = &shown["last_refusal"]["why"];
    assert_eq!(*why, "revoked_certificate", "{shown:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_whose_certificate_alone_was_revoked_is_told_so_at_once_and_at_the_upgrade() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let all = system.get("/v1/gateways/gw-1/certificates").await;
    let fingerprint = all["items"][0]["fingerprint"].as_str().unwrap();
    let key = system.path().join("operator.key");
    let words = ["gateway", "revoke", "gw-1", "--reason", "it was copied"];
    let one = ["--certificate", fingerprint, "--yes"];
    let revoke = viworks(&system, &key, &[&words[..], &one[..]].concat());
    drop(finish(revoke, PATIENCE).await.ended_with(0));
    let told = fails_with(system.binaries(), &folder, "revoked").await;
    assert!(!cause(&told).contains("not signed"), "{told:#}");
    gateway.signal(Signal::HUP);
    let socket = folder.join("state/api.sock");
    let (refused, _exit) = status_where("HTTP 403", system.binaries(), &socket, |status| {
        let cause = failure(status)["cause"].as_str();
        cause.is_some_and(|cause| cause.contains("HTTP 403")) && is_waiting(status)
    })
    .await;
    for status in [told, refused] {
        let fix = failure(&status)["fix"].as_str().unwrap();
        for words in ["the gateway itself was not", "viworks gateway replace "] {
            assert!(fix.contains(words), "{status:#}");
        }
    }
}
