//! Gateways that were away for longer than their certificates live: they come back by themselves, by the door, whatever
//! dies or is lost on the way; those that were thrown out meanwhile do not.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::Signal;
use serde_json::{Value, json};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::dump::change;
use viworks_testkit::process::eventually;

use crate::reissued::renew_of;
use crate::told::status_where;

/// Where a gateway dies while it has a certificate from the door: with a request that the backend has not seen, with an
/// answer that is nowhere, and with a certificate that was in no session.
pub(crate) const DOOR_POINTS: [&str; 3] = ["door.asking", "door.answered", "door.kept"];

pub(crate) fn with_door() -> Start {
    Start::default().with("VIWORKS__ENROLMENT__LISTEN", "127.0.0.1:0")
}

/// A gateway that knows the door, which the first pauses of an attempt do not keep.
pub(crate) fn knowing(system: &Deployment) -> Start {
    let door = format!("https://{}", system.door_address());
    in_haste().with("VIWORKS__OUTBOUND__DOOR_URL", door)
}

/// A gateway whose pauses are short.
pub(crate) fn in_haste() -> Start {
    Start::default()
        .with("VIWORKS__OUTBOUND__BACKOFF_MAX_MS", "300")
        .with("VIWORKS__OUTBOUND__UNPROVED_BACKOFF_BASE_MS", "500")
        .with("VIWORKS__OUTBOUND__PERMANENT_BACKOFF_MIN_MS", "500")
        .with("VIWORKS__OUTBOUND__PERMANENT_BACKOFF_MAX_MS", "2000")
}

/// A backend with a door, and gateways whose certificates ended ten days ago, as both ends know it.
async fn long_away(binaries: &'static Binaries, names: &[&str]) -> (Deployment, Vec<PathBuf>) {
    let mut system = Deployment::new(binaries);
    let folders: Vec<PathBuf> = names.iter().map(|name| system.issue(name)).collect();
    for folder in &folders {
        renew_of(
            &system,
            folder,
            time::Duration::days(100),
            time::Duration::days(-10),
        );
    }
    system.start_backend(with_door()).await;
    assert!(system.backend().stop(PATIENCE).await.success());
    let database = system.state_folder().join("backend.sqlite");
    change(
        &database,
        "UPDATE certificates SET not_after = (unixepoch() - 864000) * 1000000",
    );
    system.start_backend(with_door()).await;
    (system, folders)
}

pub(crate) fn socket(folder: &Path) -> PathBuf {
    folder.join("state/api.sock")
}

async fn back(system: &Deployment, folder: &Path) -> Value {
    let (status, _exit) =
        status_where("it is back", system.binaries(), &socket(folder), |status| {
            status["connection"]["connected"] == true
                && status["certificate"]["origin"] == "renewed"
        })
        .await;
    status
}

pub(crate) fn condition<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    let listed = status["conditions"].as_array()?;
    listed.iter().find(|condition| condition["name"] == name)
}

pub(crate) async fn audited(system: &Deployment, action: &str, outcome: &str) -> usize {
    let audit = system.get("/v1/audit?limit=200").await;
    let records = audit["items"].as_array().unwrap().iter();
    let own = records.filter(|record| record["action"] == action && record["outcome"] == outcome);
    own.count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_was_away_for_longer_than_its_certificate_lives_comes_back_by_itself() {
    let (system, folders) = long_away(Binaries::shipped(), &["gw-1", "gw-2"]).await;
    let [folder, stranger] = &folders[..] else {
        panic!("there are two");
    };
    // One is thrown out before it is back.
    system
        .post(
            "/v1/gateways/gw-2/revoke",
            &json!({ "reason": "it was stolen" }),
        )
        .await;
    let configured = std::fs::read(folder.join("gateway.crt")).unwrap();
    let mut gateway = system.start_gateway(folder, knowing(&system));
    let status = back(&system, folder).await;
    for name in ["certificate.door", "certificate", "renewal"] {
        assert_eq!(condition(&status, name), None, "{status:#}");
    }
    let told = "asking the door at https://";
    assert!(gateway.log().contains(told), "{}", gateway.log());
    system.online("gw-1").await;
    let run = system.submit("gateway.info", "after a year").await;
    system.finished(&run).await;
    let commands = system.commands(&run).await;
    assert_eq!(commands[0]["state"], "succeeded", "{commands:?}");
    let action = "certificate.renew_at_door";
    assert_eq!(audited(&system, action, "done").await, 1);
    assert_eq!(audited(&system, "certificate.prove", "done").await, 1);
    // The key never left its files, and those are the operator's.
    assert_eq!(
        std::fs::read(folder.join("gateway.crt")).unwrap(),
        configured
    );
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    let mut gateway = system.start_gateway(folder, knowing(&system));
    back(&system, folder).await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    assert_eq!(audited(&system, action, "done").await, 1, "it is good");

    let mut thrown_out = system.start_gateway(stranger, knowing(&system));
    let socket = socket(stranger);
    let (status, exit) = status_where("it is told", system.binaries(), &socket, |status| {
        let told = condition(status, "certificate.door");
        told.is_some_and(|told| told["cause"].as_str().unwrap().contains("was revoked"))
    })
    .await;
    assert_eq!(exit, 69, "{status:#}");
    let cause = condition(&status, "certificate.door").unwrap()["cause"].to_string();
    assert!(cause.contains("certificate ended at"), "{cause}");
    assert!(cause.contains("asking again in"), "{cause}");
    assert!(!stranger.join("state/renewal.pem").exists());
    assert_eq!(audited(&system, action, "refused").await, 1);
    assert!(thrown_out.stop(Duration::from_secs(30)).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_dies_at_the_door_and_a_lost_answer_cost_no_certificate() {
    let names: Vec<String> = DOOR_POINTS.map(|point| point.replace('.', "-")).to_vec();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (system, folders) = long_away(Binaries::with_fault_points(), &names).await;
    let system = &system;
    let died = DOOR_POINTS
        .iter()
        .zip(&folders)
        .map(|(point, folder)| async move {
            let mut dying = system.start_gateway(folder, knowing(system).dying_at(point));
            let status = dying.wait(PATIENCE).await;
            assert!(!status.success(), "{point}: {}", dying.log());
            let mut healthy = system.start_gateway(folder, knowing(system));
            back(system, folder).await;
            assert!(healthy.stop(Duration::from_secs(30)).await.success());
        });
    join_all(died).await;
    // The answer that was lost was given again: one certificate each.
    let issued = audited(system, "certificate.renew_at_door", "done").await;
    assert_eq!(issued, DOOR_POINTS.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_without_the_address_of_the_door_is_told_how_to_name_it() {
    let (system, folders) = long_away(Binaries::shipped(), &["gw-1"]).await;
    let folder = &folders[0];
    let mut gateway = system.start_gateway(folder, Start::default());
    let (status, exit) = status_where("it is told", system.binaries(), &socket(folder), |status| {
        status["connection"]["last_failure"]["code"] == "cert_untrusted"
    })
    .await;
    assert_eq!(exit, 69, "{status:#}");
    let fix = status["connection"]["last_failure"]["fix"]
        .as_str()
        .unwrap();
    assert!(fix.contains("[outbound] door_url"), "{fix}");
    assert_eq!(condition(&status, "certificate.door"), None, "{status:#}");

    // It is taken over while the agent runs.
    let path = folder.join("gateway.toml");
    let toml = std::fs::read_to_string(&path).unwrap();
    let door = format!(
        "[outbound]\ndoor_url = \"https://{}\"",
        system.door_address()
    );
    std::fs::write(&path, toml.replacen("[outbound]", &door, 1)).unwrap();
    gateway.signal(Signal::HUP);
    back(&system, folder).await;
    eventually("it is in use", PATIENCE, async || {
        folder.join("state/renewed.pem").exists().then_some(())
    })
    .await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}
