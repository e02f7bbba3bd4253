//! A machine that is gone is replaced by another one: the same gateway, by one action of an operator.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, text};
use viworks_testkit::dump::change;
use viworks_testkit::process::{Process, Said, eventually, finish};

use crate::desk::viworks;
use crate::enrolment::{backend, enroll, folder, ticket};
use crate::lapsed::audited;
use crate::told::{cause, fails_with};

async fn typed(system: &Deployment, words: &[&str]) -> Said {
    let key = system.path().join("operator.key");
    finish(viworks(system, &key, words), PATIENCE).await
}

/// The folder of a machine that redeems a ticket.
async fn machine(system: &Deployment, name: &str, ticket: &str) -> PathBuf {
    let folder = folder(system, name);
    let said = finish(enroll(system, &folder, ticket, &[]), PATIENCE).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    folder
}

fn start(system: &Deployment, folder: &Path) -> Process {
    let quick = Start::default().with("VIWORKS__OUTBOUND__BACKOFF_MAX_MS", "300");
    system.start_gateway(folder, quick)
}

async fn answers(system: &Deployment, key: &str) {
    let run = system.submit("gateway.info", key).await;
    system.finished(&run).await;
    let commands = system.commands(&run).await;
    assert_eq!(commands[0]["state"], "succeeded", "{commands:?}");
}

/// A ticket for the place of gw-1, as an operator makes it.
async fn place(system: &Deployment, file: &str) -> String {
    let out = system.path().join(file);
    let words = [
        "gateway",
        "replace",
        "gw-1",
        "--ttl",
        "10m",
        "--out",
        text(&out),
    ];
    let said = typed(system, &words).await.ended_with(0);
    assert!(said.stderr.contains("takes the place of"), "{said:?}");
    std::fs::read_to_string(out).unwrap()
}

/// The gateway that took the place is refused by nothing; whoever was it is told what became of it.
async fn is_told(system: &Deployment, folder: &Path) {
    let told = fails_with(system.binaries(), folder, "cert_untrusted").await;
    assert!(cause(&told).contains("another machine"), "{told:#}");
}

/// Whoever knocks is a security event of this name alone of those that follow from what an operator did, and `show` has
/// it for the gateway that is meant.
async fn is_noted(system: &Deployment, gateway: &str, (kind, other): (&str, &str)) {
    let noted = eventually("it is recorded", PATIENCE, async || {
        let count = audited(system, &format!("gateway.{kind}"), "refused").await;
        (count > 0).then_some(())
    });
    noted.await;
    let others = audited(system, &format!("gateway.{other}"), "refused").await;
    assert_eq!(others, 0, "{other}");
    let shown = system.get(&format!("/v1/gateways/{gateway}")).await;
    let last = &shown["last_refusal"];
    assert_eq!(last["why"], kind, "{shown:#}");
    assert!(last["peer_address"].is_string(), "{shown:#}");
}

fn same(before: &Value, after: &Value) {
    for field in ["id", "name", "labels", "created_at"] {
        assert_eq!(before[field], after[field], "{field}: {after:#}");
    }
    assert_eq!(after["forks"], 0, "{after:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_died_is_replaced_and_stays_the_same_gateway() {
    let system = backend().await;
    let wanted = json!({"uses": 1, "name": "gw-1", "labels": {"site": "berlin"}});
    let first = ticket(&system, &wanted).await;
    let old = machine(&system, "old", &first).await;
    let mut gateway = start(&system, &old);
    let before = system.online("gw-1").await;
    answers(&system, "before").await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    std::fs::remove_dir_all(old.join("state")).unwrap();

    let second = place(&system, "second.ticket").await;
    let new = machine(&system, "new", &second).await;
    let mut gateway = start(&system, &new);
    same(&before, &system.online("gw-1").await);
    answers(&system, "on the new machine").await;
    // The machine before was repaired.
    let mut repaired = start(&system, &old);
    is_told(&system, &old).await;
    let replaced = ("replaced_certificate", "revoked_certificate");
    is_noted(&system, "gw-1", replaced).await;
    assert!(repaired.stop(Duration::from_secs(30)).await.success());
    answers(&system, "all the same").await;

    // One that still runs is cut off by the redemption alone.
    let third = place(&system, "third.ticket").await;
    answers(&system, "a ticket changes nothing").await;
    let newest = machine(&system, "newest", &third).await;
    is_told(&system, &new).await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    let mut gateway = start(&system, &newest);
    same(&before, &system.online("gw-1").await);
    answers(&system, "on the newest machine").await;

    // The last ticket leaked.
    let tickets = system.get("/v1/tickets?limit=1").await;
    let leaked = &tickets["items"][0];
    assert_eq!(leaked["replaces"], before["id"], "{tickets}");
    let words = [
        "gateway",
        "revoke",
        "--reason",
        "the ticket leaked",
        "--of-ticket",
    ];
    let of = leaked["id"].as_str().unwrap();
    let shown = typed(&system, &["ticket", "show", of]).await.ended_with(0);
    assert!(shown.stdout.contains(" by tests\n"), "{shown:?}");
    let mistyped = [&words[..], &[before["id"].as_str().unwrap(), "--yes"]].concat();
    let said = typed(&system, &mistyped).await.ended_with(5);
    assert!(said.stderr.contains("no such ticket"), "{said:?}");
    let asked = typed(&system, &[&words[..], &[of]].concat()).await;
    let asked = asked.ended_with(9);
    assert!(
        asked.stderr.contains("gw-1") && asked.stderr.contains("1 gateway"),
        "{asked:?}"
    );
    let said = typed(&system, &[&words[..], &[of, "--yes"]].concat()).await;
    assert!(said.ended_with(0).stdout.contains("gw-1 is revoked"));
    fails_with(system.binaries(), &newest, "revoked").await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ephemeral_gateway_that_stays_away_is_removed_by_its_backend() {
    let mut system = Deployment::new(Binaries::shipped());
    let _folder = system.issue("gw-1");
    // As one that came of a ticket an hour ago, and was never connected.
    let hour = "UPDATE gateways SET ephemeral_ms = 60000, created_at = created_at - 3600000000";
    change(&system.state_folder().join("backend.sqlite"), hour);
    // A backend that has just started lets everybody come back first: for 300 rounds of this job.
    let quick = Start::default().with("VIWORKS__JOBS__EXPIRE_INTERVAL_MS", "100");
    system.start_backend(quick).await;
    let shown = system.get("/v1/gateways/gw-1").await;
    assert_eq!(shown["status"], "never", "{shown:#}");
    let removed = eventually("it is removed", PATIENCE, async || {
        let listed = system.get("/v1/gateways?revoked=true").await;
        listed["items"][0]["id"].as_str().map(str::to_owned)
    });
    let id = removed.await;
    let shown = system.get(&format!("/v1/gateways/{id}")).await;
    let reason = shown["revocation"]["reason"].as_str().unwrap();
    assert!(reason.contains("ephemeral"), "{shown:#}");
    let (status, _) = system
        .request("GET", "/v1/gateways/gw-1", None)
        .await
        .unwrap();
    assert_eq!(status, 404, "its name is free");
}
