//! Machines become gateways by tickets: from the string to the first command, and every way in which that goes wrong.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use viworks_common::enrolment::Ticket;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, Start};
use viworks_testkit::process::{Said, eventually, finish};

pub(crate) mod again;
mod behind_proxy;
mod machine;
mod offline;
mod prompt;
mod refused;
mod speed;
mod strangers;
mod typed;

const LIMIT: Duration = Duration::from_secs(60);

/// Where an enrolment dies here, and how often it passes there.
pub(crate) const ENROLMENT_POINTS: [(&str, usize); 5] = [
    ("enrol.asked", 1),
    ("enrol.answered", 1),
    ("enrol.writing", 7),
    ("enrol.filling", 1),
    ("enrol.moving", 5),
];

/// A backend with a door.
pub(crate) async fn backend() -> Deployment {
    let mut system = Deployment::new(Binaries::shipped());
    system.start_backend(with_door()).await;
    system
}

fn with_door() -> Start {
    Start::default().with("VIWORKS__ENROLMENT__LISTEN", "127.0.0.1:0")
}

/// Makes a ticket; its string.
pub(crate) async fn ticket(system: &Deployment, wanted: &Value) -> String {
    let made = system.post("/v1/tickets", wanted).await;
    made["secret"].as_str().unwrap().to_owned()
}

pub(crate) fn folder(system: &Deployment, name: &str) -> PathBuf {
    system.path().join("gateways").join(name)
}

/// `enroll` of the machine whose files go there.
pub(crate) fn enroll(system: &Deployment, folder: &Path, ticket: &str, more: &[&str]) -> Command {
    let file = system.path().join(format!(
        "{}.ticket",
        folder.file_name().unwrap().to_str().unwrap()
    ));
    std::fs::write(&file, ticket).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = Command::new(system.binaries().gateway());
    command.args(["enroll", "--demo", "--out"]).arg(folder);
    command.arg("--ticket-file").arg(file).args(more);
    if !more.contains(&"--wait") {
        command.args(["--wait", "20"]);
    }
    command
}

async fn enrolled(system: &Deployment, name: &str, ticket: &str) -> Said {
    let command = enroll(system, &folder(system, name), ticket, &["--name", name]);
    finish(command, LIMIT).await
}

async fn good_for(system: &Deployment, name: &str, ticket: &str) {
    let said = enrolled(system, name, ticket).await;
    assert_eq!(said.code, Some(0), "{said:?}");
}

async fn gateways(system: &Deployment) -> Vec<Value> {
    let page = system.get("/v1/gateways?limit=1000").await;
    page["items"].as_array().unwrap().clone()
}

/// What the audit trail has of the latest attempt to use a ticket.
async fn latest_attempt(system: &Deployment) -> Value {
    let audit = system.get("/v1/audit?limit=50").await;
    let mut records = audit["items"].as_array().unwrap().iter();
    let attempt = records.find(|record| record["action"] == "ticket.redeem");
    attempt.unwrap_or_else(|| panic!("{audit}")).clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_with_a_ticket_becomes_a_gateway_and_answers_its_first_command() {
    let system = backend().await;
    let ticket = ticket(
        &system,
        &json!({"uses": 1, "name_prefix": "gw-", "labels": {"site": "berlin"}}),
    )
    .await;
    let said = enrolled(&system, "gw-7", &ticket).await.ended_with(0);
    for shown in [
        "ECDSA P-256, made here",
        "CN=gw-7",
        "site=berlin",
        "takes this gateway's certificate",
    ] {
        assert!(said.stdout.contains(shown), "{shown}: {said:?}");
    }
    let secret = &ticket[ticket.len() - 40..];
    assert!(!said.stdout.contains(secret) && !said.stderr.contains(secret));
    let home = folder(&system, "gw-7");
    for (name, mode) in [
        ("gateway.toml", 0o600),
        ("gateway.key", 0o600),
        ("identity.json", 0o600),
        ("gateway.crt", 0o644),
        ("ca.crt", 0o644),
    ] {
        let found = home.join(name).metadata().unwrap().permissions().mode();
        assert_eq!(found & 0o777, mode, "{name}");
    }
    assert!(!home.join(".enrolling").exists());
    // Where it gets another certificate, should its own ever end while it is away.
    let toml = std::fs::read_to_string(home.join("gateway.toml")).unwrap();
    let door = system.door_address().rsplit_once(':').unwrap().1.to_owned();
    let known = toml.lines().find(|line| line.starts_with("door_url = "));
    assert!(
        known.is_some_and(|line| line.ends_with(&format!(":{door}\""))),
        "{toml}"
    );
    let _gateway = system.start_gateway(&home, Start::default());
    let shown = system.online("gw-7").await;
    assert_eq!(shown["labels"][0]["value"], "berlin", "{shown}");
    let run = system.submit("gateway.info", "1").await;
    system.finished(&run).await;
    let commands = system.commands(&run).await;
    assert_eq!(commands[0]["state"], "succeeded", "{commands:?}");
    let tickets = system.get("/v1/tickets").await;
    assert_eq!(tickets["items"][0]["status"], "used_up", "{tickets}");
    let audit = system.get("/v1/audit?limit=50").await;
    let actions: Vec<&str> = audit["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|record| record["action"].as_str())
        .collect();
    for action in [
        "ticket.create",
        "ticket.redeem",
        "gateway.create",
        "certificate.register",
    ] {
        assert!(actions.contains(&action), "{action}: {actions:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_machines_with_one_ticket_are_a_hundred_gateways() {
    const MACHINES: usize = 100;
    let system = backend().await;
    let ticket = ticket(&system, &json!({"uses": MACHINES})).await;
    let names: Vec<String> = (0..=MACHINES).map(|n| format!("gw-{n}")).collect();
    // One more than the ticket is for.
    let all = names.iter().map(|name| enrolled(&system, name, &ticket));
    let said = join_all(all).await;
    let refused: Vec<&Said> = said.iter().filter(|said| said.code != Some(0)).collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0].code, Some(77), "{refused:?}");
    assert!(
        refused[0].stderr.contains("has enrolled 100 gateways"),
        "{refused:?}"
    );
    let gateways = gateways(&system).await;
    let ids: BTreeSet<&str> = gateways.iter().filter_map(|it| it["id"].as_str()).collect();
    assert_eq!((ids.len(), gateways.len()), (MACHINES, MACHINES));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_that_is_no_good_says_why_and_changes_nothing() {
    let system = backend().await;
    let good = ticket(&system, &json!({"uses": 1})).await;
    let used = ticket(&system, &json!({"uses": 1})).await;
    good_for(&system, "first", &used).await;
    let revoked = ticket(&system, &json!({"uses": 1})).await;
    let newest = system.get("/v1/tickets?limit=1").await;
    let path = format!("/v1/tickets/{}", newest["items"][0]["id"].as_str().unwrap());
    let (status, _) = system.request("DELETE", &path, None).await.unwrap();
    assert_eq!(status, 204);
    let elsewhere = ticket(&system, &json!({"uses": 1, "networks": ["192.0.2.0/24"]})).await;
    let fixed = ticket(&system, &json!({"uses": 1, "name": "gw-fixed"})).await;
    let other = backend().await;
    let foreign = ticket(&other, &json!({"uses": 1})).await;
    let short = ticket(&system, &json!({"uses": 1, "expires_in_ms": 1000})).await;
    let digit = if good.as_bytes()[60] == b'A' {
        "B"
    } else {
        "A"
    };
    let mistyped = format!("{}{digit}{}", &good[..60], &good[61..]);
    let expired = eventually("the ticket has ended", LIMIT, async || {
        let newest = system.get("/v1/tickets?limit=1").await;
        (newest["items"][0]["status"] == "expired").then(|| short.clone())
    })
    .await;
    // In the place of a file's name it is not said again.
    let mut inspect = Command::new(system.binaries().cli());
    inspect.args(["ticket", "inspect", &good]);
    let mut enrolling = Command::new(system.binaries().gateway());
    enrolling.args(["enroll", "--demo", "--ticket-file", &good, "--out"]);
    enrolling.arg(folder(&system, "m0"));
    for command in [inspect, enrolling] {
        let said = finish(command, LIMIT).await.ended_with(2);
        assert!(
            said.stderr.contains("a ticket itself and no file"),
            "{said:?}"
        );
        assert!(!said.stderr.contains(&good[5..]), "{said:?}");
    }
    for (name, ticket, code, told) in [
        ("m1", mistyped.clone(), 2, "mistyped"),
        ("m2", good[..100].to_owned(), 2, "cut off after 100"),
        ("m3", "hello".to_owned(), 2, "begins with vwt1_"),
        ("m4", expired, 77, "expired at"),
        ("m5", used, 77, "has enrolled 1 gateway"),
        ("m6", revoked, 77, "was revoked at"),
        ("m7", elsewhere, 77, "not for machines at this address"),
        ("m8", fixed, 77, "is for the gateway gw-fixed"),
    ] {
        let said = enrolled(&system, name, &ticket).await.ended_with(code);
        assert!(said.stderr.contains(told), "{told}: {said:?}");
        assert!(said.stderr.lines().count() == 1, "{said:?}");
        assert!(!folder(&system, name).exists(), "{name}");
    }
    // Nor is what is above it left where that was made for nothing.
    let deep = enroll(&system, &folder(&system, "above/m9"), &mistyped, &[]);
    let said = finish(deep, LIMIT).await.ended_with(2);
    assert!(said.stderr.contains("mistyped"), "{said:?}");
    assert!(!folder(&system, "above").exists());
    let names: Vec<Value> = gateways(&system)
        .await
        .iter()
        .map(|it| it["name"].clone())
        .collect();
    assert_eq!(names, ["first"]);
    // A server in the place of the ticket's backend, and a backend that never made the ticket.
    let (ours, theirs): (Ticket, Ticket) = (good.parse().unwrap(), foreign.parse().unwrap());
    let led = |pins: &Ticket| {
        let ticket = Ticket {
            pins: pins.pins.clone(),
            url: ours.url.clone(),
            ..foreign.parse().unwrap()
        };
        ticket.expose().to_string()
    };
    let binaries = Binaries::shipped();
    let mut help = Command::new(binaries.gateway());
    help.args(["enroll", "--help"]);
    let help = finish(help, LIMIT).await.ended_with(0).stdout;
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for (name, ticket, told, code, meaning) in [
        (
            "m10",
            led(&theirs),
            "which is not in the ticket",
            69,
            "69 when the backend cannot be reached or understood or another server answers in its place",
        ),
        (
            "m11",
            led(&ours),
            "it is of another backend",
            77,
            "77 when it refuses",
        ),
    ] {
        let said = enrolled(&system, name, &ticket).await.ended_with(code);
        assert!(said.stderr.contains(told), "{said:?}");
        assert!(help.contains(meaning), "{help}");
        assert!(said.stderr.lines().count() == 1, "{said:?}");
        let is_left = folder(&system, name).exists();
        assert_eq!(
            (is_left, gateways(&system).await.len()),
            (false, 1),
            "{name}"
        );
    }
    drop(other);
    let home = folder(&system, "m9");
    let impatient = enroll(&system, &home, &foreign, &["--wait", "0"]);
    let said = finish(impatient, LIMIT).await.ended_with(69);
    assert!(said.stderr.contains("is not reached"), "{said:?}");
    // The good one is still good.
    good_for(&system, "second", &good).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_is_a_gateway_stays_the_one_it_is() {
    let system = backend().await;
    let ticket = ticket(&system, &json!({"uses": 2})).await;
    good_for(&system, "gw-1", &ticket).await;
    let key = std::fs::read(folder(&system, "gw-1").join("gateway.key")).unwrap();
    let said = enrolled(&system, "gw-1", &ticket).await.ended_with(6);
    assert!(
        said.stderr.contains("is there already and stays as it is"),
        "{said:?}"
    );
    assert_eq!(
        std::fs::read(folder(&system, "gw-1").join("gateway.key")).unwrap(),
        key
    );
    assert_eq!(gateways(&system).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enrolment_that_died_anywhere_goes_on_as_the_same_gateway() {
    let system = backend().await;
    let points = ENROLMENT_POINTS.into_iter().flat_map(|(point, times)| {
        let each = move |time| format!("{point}:{time}");
        (1..=times).map(each)
    });
    for (n, point) in points.enumerate() {
        let name = format!("gw-{n}");
        let ticket = ticket(&system, &json!({"uses": 1, "name": name})).await;
        let home = folder(&system, &name);
        let mut command = Command::new(Binaries::with_fault_points().gateway());
        let plain = enroll(&system, &home, &ticket, &[]);
        command.args(plain.get_args()).env("VIWORKS_FAULT", &point);
        let said = finish(command, LIMIT).await;
        assert_ne!(said.code, Some(0), "{point}: {said:?}");
        assert!(
            !home.join("gateway.toml").exists(),
            "{point}: half an identity"
        );
        let said = finish(enroll(&system, &home, &ticket, &[]), LIMIT).await;
        assert_eq!(said.code, Some(0), "{point}: {said:?}");
        assert!(!home.join(".enrolling").exists(), "{point}");
        let _gateway = system.start_gateway(&home, Start::default());
        system.online(&name).await;
        assert_eq!(gateways(&system).await.len(), n + 1, "{point}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_without_a_door_makes_no_ticket_and_says_so() {
    let mut system = Deployment::new(Binaries::shipped());
    system.start_backend(Start::default()).await;
    let (status, said) = system
        .request("POST", "/v1/tickets", Some(&json!({"uses": 1})))
        .await
        .unwrap();
    assert_eq!(status, 409, "{said}");
    assert!(
        said["detail"]
            .as_str()
            .unwrap()
            .contains("set listen in [enrolment]"),
        "{said}"
    );
}
