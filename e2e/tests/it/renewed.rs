//! Certificates that gateways have renewed over their sessions: taken over without anybody's hands, whatever dies in
//! between, and the one before is refused afterwards.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::Signal;
use serde_json::Value;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::dump::change;
use viworks_testkit::process::eventually;
use viworks_testkit::rogue::{Material, Refused, upgrade};

use crate::reissued::{renew, renew_of};
use crate::told::status_where;

/// Where a gateway dies while its certificate is renewed: with a key that nobody was asked for, with a certificate that
/// was in no session, and with one that the backend knows to be in use.
pub(crate) const RENEWAL_POINTS: [&str; 3] =
    ["renewal.key_kept", "renewal.issued_kept", "renewal.moving"];

/// A gateway whose certificate is past two thirds of its life.
fn due(system: &Deployment, name: &str) -> std::path::PathBuf {
    let folder = system.issue(name);
    let (since, lives) = (time::Duration::days(89), time::Duration::days(20));
    renew_of(system, &folder, since, lives);
    folder
}

fn quick() -> Start {
    Start::default().with("VIWORKS__OUTBOUND__BACKOFF_MAX_MS", "300")
}

async fn with_origin(system: &Deployment, folder: &Path, origin: &str) -> Value {
    let socket = folder.join("state/api.sock");
    let (status, _exit) = status_where(origin, system.binaries(), &socket, |status| {
        status["certificate"]["origin"] == origin && status["connection"]["connected"] == true
    })
    .await;
    status
}

fn condition<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    let listed = status["conditions"].as_array()?;
    listed.iter().find(|condition| condition["name"] == name)
}

async fn answers(system: &Deployment, key: &str) {
    let run = system.submit("gateway.info", key).await;
    system.finished(&run).await;
    let commands = system.commands(&run).await;
    assert_eq!(commands[0]["state"], "succeeded", "{commands:?}");
}

async fn audited(system: &Deployment, action: &str) -> usize {
    let audit = system.get("/v1/audit?limit=200").await;
    let records = audit["items"].as_array().unwrap().iter();
    records.filter(|record| record["action"] == action).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_renews_its_certificate_and_the_one_before_is_refused() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = due(&system, "gw-1");
    let old = Material::read(&folder).unwrap();
    let configured = std::fs::read(folder.join("gateway.crt")).unwrap();
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, quick());
    system.online("gw-1").await;
    answers(&system, "before").await;
    let status = with_origin(&system, &folder, "renewed").await;
    assert_eq!(condition(&status, "renewal"), None, "{status:#}");
    assert_eq!(condition(&status, "certificate"), None, "{status:#}");
    assert_eq!(
        status["certificate"]["renewal"]["offered"], true,
        "{status:#}"
    );
    answers(&system, "after").await;
    let kept = folder.join("state/renewed.pem").metadata().unwrap();
    assert_eq!(kept.permissions().mode() & 0o777, 0o600);
    for gone in ["renewal.key", "renewal.pem"] {
        assert!(!folder.join("state").join(gone).exists(), "{gone}");
    }
    assert_eq!(
        std::fs::read(folder.join("gateway.crt")).unwrap(),
        configured,
        "that is the operator's"
    );
    for (action, times) in [("certificate.renew", 1), ("certificate.prove", 1)] {
        assert_eq!(audited(&system, action).await, times, "{action}");
    }

    // A copy of the files as they were.
    let refused = upgrade(
        system.agents_address(),
        &old.authority,
        Some(&old.certificate),
        "/agent/v1/connect",
        "viworks.agent.v1",
    );
    let Err((refused, _address)) = refused.await else {
        panic!("it is retired")
    };
    assert_eq!(refused, Refused::Http(403));
    assert_eq!(audited(&system, "gateway.retired_certificate").await, 1);

    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    let mut gateway = system.start_gateway(&folder, quick());
    with_origin(&system, &folder, "renewed").await;
    answers(&system, "again").await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_dies_while_its_certificate_is_renewed_comes_back_with_the_new_one() {
    let mut system = Deployment::new(Binaries::with_fault_points());
    let folders =
        RENEWAL_POINTS.map(|point| (point, due(&system, &point.replace(['.', '_'], "-"))));
    system.start_backend(Start::default()).await;
    let system = &system;
    let died = folders.iter().map(|(point, folder)| async move {
        let mut dying = system.start_gateway(folder, quick().dying_at(point));
        let status = dying.wait(PATIENCE).await;
        assert!(!status.success(), "{point}: {}", dying.log());
        let mut healthy = system.start_gateway(folder, quick());
        with_origin(system, folder, "renewed").await;
        assert!(healthy.stop(Duration::from_secs(30)).await.success());
    });
    join_all(died).await;
    // The one that died with a certificate has used it.
    assert_eq!(
        audited(system, "certificate.renew").await,
        RENEWAL_POINTS.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_that_is_refused_is_given_up_for_the_one_before() {
    let mut system = Deployment::new(Binaries::with_fault_points());
    let folder = due(&system, "gw-1");
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, quick().stopping_at("renewal.issued_kept"));
    let issued = folder.join("state/renewal.pem");
    eventually("a certificate is issued", PATIENCE, async || {
        issued.exists().then_some(())
    })
    .await;
    // A backend that was set back to a time at which it had issued none.
    assert!(system.backend().stop(PATIENCE).await.success());
    let database = system.state_folder().join("backend.sqlite");
    change(
        &database,
        "DELETE FROM certificates WHERE unproved IS NOT NULL",
    );
    system.start_backend(Start::default()).await;
    gateway.signal(Signal::CONT);
    let socket = folder.join("state/api.sock");
    let (status, _exit) = status_where("it is back", system.binaries(), &socket, |status| {
        condition(status, "renewal").is_some() && status["connection"]["connected"] == true
    })
    .await;
    assert_eq!(status["certificate"]["origin"], "configured", "{status:#}");
    answers(&system, "with the old one").await;
    eventually("it is given up", PATIENCE, async || {
        (!issued.exists()).then_some(())
    })
    .await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_without_an_authority_says_so_and_a_certificate_that_is_put_there_is_used() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = due(&system, "gw-1");
    system.without_authority();
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, quick());
    let socket = folder.join("state/api.sock");
    let (status, exit) = status_where("it is told", system.binaries(), &socket, |status| {
        condition(status, "renewal").is_some()
    })
    .await;
    assert_eq!(exit, 0, "{status:#}");
    let refusal = &status["certificate"]["renewal"]["last_refusal"];
    assert_eq!(refusal["code"], "no_authority", "{status:#}");
    let log = system.backend().log();
    assert!(log.contains("set ca_key_file in [keys]"), "{log}");
    answers(&system, "all the same").await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    renew(&system, &folder, time::Duration::days(90));
    let mut gateway = system.start_gateway(&folder, quick());
    let status = with_origin(&system, &folder, "configured").await;
    assert_eq!(condition(&status, "renewal"), None, "{status:#}");
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}
