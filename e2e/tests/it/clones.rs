//! A state folder is copied and both run: one of them is live, the fork is recorded, and an operator's decision holds,
//! whichever of the two it is for. The same with two backends is in `instances.rs`.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use viworks_runtime::clock::{Clock as _, SystemClock};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::process::{Process, eventually, finish};

use crate::desk::viworks;
use crate::instances::{fork, start_copy};
use crate::told::status_where;

const STOP: Duration = Duration::from_secs(30);

/// How long a holder that is kept may take to be back: a minute, and what programs take here.
const BACK: Duration = Duration::from_secs(75);

async fn resolve(system: &Deployment, decision: &Value) -> Value {
    let path = "/v1/gateways/gw-1/forks/resolve";
    system.post(path, decision).await
}

/// Waits until a gateway's own word is that it is connected.
async fn connected(system: &Deployment, folder: &Path) {
    let socket = folder.join("state/api.sock");
    let what = format!("{} is connected", folder.display());
    let is = |status: &Value| status["connection"]["connected"] == true;
    status_where(&what, system.binaries(), &socket, is).await;
}

/// The original was told to come back, which moves it past a copy of its latest state.
async fn past_the_copy(system: &Deployment, recorded: &Value) -> Value {
    let copied = recorded["accepted"]["epoch"].as_u64();
    eventually("the original is past the copy", PATIENCE, async || {
        let now = system.online("gw-1").await;
        (now["session"]["epoch"].as_u64() > copied).then_some(now)
    })
    .await
}

async fn refused(gateway: &Process) {
    eventually("it is refused as a fork", PATIENCE, async || {
        gateway.log().contains("identity_fork").then_some(())
    })
    .await;
}

/// Undecided forks, as health counts them.
async fn forks_in_health(system: &Deployment) -> u64 {
    let health = system.get("/v1/health").await;
    let mut checks = health["checks"].as_array().unwrap().iter();
    let fleet = checks.find(|check| check["name"] == "fleet").unwrap();
    fleet["figures"]["forks"].as_u64().unwrap()
}

/// The copy was made while the original was off, and spoke first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_original_that_its_copy_came_before_is_back_within_a_minute_of_the_decision() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let mut before = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    assert!(before.stop(STOP).await.success());
    let (copy, copied) = start_copy(&folder, &system);
    connected(&system, &copy).await;
    let original = system.start_gateway(&folder, Start::default());
    refused(&original).await;
    let recorded = fork(&system, "gw-1").await;
    assert_eq!(forks_in_health(&system).await, 1);
    for side in ["refused", "accepted"] {
        let holder = &recorded[side];
        assert!(holder["certificate_serial"].is_string(), "{recorded:#}");
        assert!(holder["certificate_not_after"].is_string(), "{recorded:#}");
    }

    let keep = json!({"keep": recorded["refused"]["agent_run_id"]});
    let begun = SystemClock.now();
    let resolved = resolve(&system, &keep).await;
    assert_eq!(resolved["session_ended"], true, "{resolved:#}");
    // Nobody tells it: it asks again.
    let socket = folder.join("state/api.sock");
    let is = |status: &Value| status["connection"]["connected"] == true;
    status_where("it is back", system.binaries(), &socket, is).await;
    let took = SystemClock.now().saturating_since(begun);
    assert!(took < BACK, "{took:?}");
    refused(&copied).await;
    assert_eq!(forks_in_health(&system).await, 0);
    let again = resolve(&system, &keep).await;
    assert_eq!(again["already"], true, "{again:#}");
    connected(&system, &folder).await;
}

/// The copy was made of a running gateway, and the operator keeps the one that is live, then the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_original_is_not_disturbed_and_can_be_put_out_for_its_copy() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let original = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let (copy, copied) = start_copy(&folder, &system);
    refused(&copied).await;
    let recorded = fork(&system, "gw-1").await;
    let live = past_the_copy(&system, &recorded).await;

    let keep = json!({"keep": recorded["accepted"]["agent_run_id"]});
    let resolved = resolve(&system, &keep).await;
    assert_eq!(resolved["session_ended"], false, "{resolved:#}");
    assert_eq!(resolved["gateway"]["session"]["id"], live["session"]["id"]);
    assert_eq!(forks_in_health(&system).await, 0);

    let keep = json!({"keep": recorded["refused"]["agent_run_id"]});
    let resolved = resolve(&system, &keep).await;
    assert_eq!(resolved["session_ended"], true, "{resolved:#}");
    // What a person does who does not want to wait.
    copied.signal(Signal::HUP);
    connected(&system, &copy).await;
    refused(&original).await;
    // Nobody is asked to decide what is decided.
    eventually("it is told who was kept", PATIENCE, async || {
        let told = "another holder of this identity was kept";
        original.log().contains(told).then_some(())
    })
    .await;
    assert!(
        !original.log().contains("decide who keeps this identity"),
        "{}",
        original.log()
    );
}

/// The copy was made of a gateway that is connected and does not answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_gateway_that_hangs_takes_over_until_an_operator_gives_it_back() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let original = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    original.signal(Signal::STOP);
    let (copy, _copied) = start_copy(&folder, &system);
    connected(&system, &copy).await;
    original.signal(Signal::CONT);
    refused(&original).await;
    let recorded = fork(&system, "gw-1").await;
    let keep = json!({"keep": recorded["refused"]["agent_run_id"]});
    let resolved = resolve(&system, &keep).await;
    assert_eq!(resolved["session_ended"], true, "{resolved:#}");
    original.signal(Signal::HUP);
    connected(&system, &folder).await;
}

/// One of the two is to be another gateway: nothing of the one that goes on changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_to_get_an_identity_of_its_own_is_told_how_and_no_alarm_any_more() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let _original = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let (_copy, copied) = start_copy(&folder, &system);
    refused(&copied).await;
    let recorded = fork(&system, "gw-1").await;
    let live = past_the_copy(&system, &recorded).await;
    let token = system.path().join("operator.key");
    let arguments = ["gateway", "resolve", "gw-1", "--replace"];
    let said = finish(viworks(&system, &token, &arguments), PATIENCE).await;
    let said = said.ended_with(0);
    let all = format!("{}{}", said.stdout, said.stderr);
    assert!(all.contains("ticket create --name gw-1-2"), "{said:#?}");
    let now = system.online("gw-1").await;
    assert_eq!(now["session"]["id"], live["session"]["id"]);
    let decided = fork(&system, "gw-1").await;
    assert_eq!(decided["resolution"], "replaced", "{decided:#}");
    assert_eq!(forks_in_health(&system).await, 0);
}
