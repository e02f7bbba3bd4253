//! Agent keys that gateways are given anew over their sessions: by one command, without a gateway that is cut off or a
//! command that is lost, whatever dies in between; the key before is refused afterwards.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use viworks_common::code::CloseCode;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, text};
use viworks_testkit::dump::change;
use viworks_testkit::process::{Said, eventually, finish};
use viworks_testkit::rogue::{Material, Refused, Rogue};

use crate::desk::viworks;
use crate::told::status_where;

/// Where a gateway dies while it is given another key: with one that is durable and not reported.
pub(crate) const KEY_POINTS: [&str; 1] = ["agent_key.kept"];

fn quick() -> Start {
    Start::default().with("VIWORKS__OUTBOUND__BACKOFF_MAX_MS", "300")
}

/// Waits until a gateway has a session with the key of this generation, and no other one is wanted.
async fn uses(system: &Deployment, name: &str, generation: u64) {
    let what = format!("{name} uses generation {generation}");
    eventually(&what, PATIENCE, async || {
        let path = format!("/v1/gateways/{name}");
        let (status, gateway) = system.request("GET", &path, None).await.ok()?;
        let key = json!({ "generation": generation, "takes_later": true });
        (status == 200 && gateway["status"] == "online" && gateway["key"] == key).then_some(())
    })
    .await;
}

async fn typed(system: &Deployment, words: &[&str]) -> Value {
    let token = system.path().join("operator.key");
    let said = finish(viworks(system, &token, words), PATIENCE).await;
    serde_json::from_str(&said.ended_with(0).stdout).unwrap()
}

async fn answers(system: &Deployment, key: &str) {
    let run = system.submit("gateway.info", key).await;
    system.finished(&run).await;
    for command in system.commands(&run).await {
        assert_eq!(command["state"], "succeeded", "{command:#}");
    }
}

async fn audited(system: &Deployment, action: &str) -> usize {
    let audit = system.get("/v1/audit?limit=200").await;
    let records = audit["items"].as_array().unwrap().iter();
    records.filter(|record| record["action"] == action).count()
}

/// A HELLO by the files as the gateway was issued with them is refused.
async fn first_key_is_refused(system: &Deployment, folder: &Path) {
    let material = Material::read(folder).unwrap();
    let mut rogue = Rogue::challenged(system.agents_address(), &material)
        .await
        .unwrap();
    rogue.hello().await;
    let refused = Refused::Closed(CloseCode::CertUntrusted.number());
    assert_eq!(rogue.end().await, refused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_keys_are_rotated_by_one_command_and_the_old_ones_are_refused() {
    let mut system = Deployment::new(Binaries::shipped());
    let folders = ["gw-1", "gw-2"].map(|name| system.issue(name));
    let issued = std::fs::read(folders[0].join("identity.json")).unwrap();
    system.start_backend(Start::default()).await;
    let mut gateways = folders
        .each_ref()
        .map(|folder| system.start_gateway(folder, quick()));
    for name in ["gw-1", "gw-2"] {
        system.online(name).await;
        uses(&system, name, 1).await;
    }
    answers(&system, "before").await;

    let all = ["key", "rotate", "--all", "-o", "json"];
    let planned = typed(&system, &[&all[..], &["--dry-run"]].concat()).await;
    for gateway in planned["gateways"].as_array().unwrap() {
        assert_eq!(gateway["gets_it"], "now", "{planned:#}");
        assert_eq!(gateway["key"]["wanted"], Value::Null, "{planned:#}");
    }
    assert_eq!(audited(&system, "gateway.rotate_key").await, 0);

    let rotated = typed(&system, &all).await;
    for gateway in rotated["gateways"].as_array().unwrap() {
        assert_eq!(gateway["key"]["wanted"], 2, "{rotated:#}");
    }
    answers(&system, "meanwhile").await;
    for (name, folder) in ["gw-1", "gw-2"].into_iter().zip(&folders) {
        uses(&system, name, 2).await;
        first_key_is_refused(&system, folder).await;
    }
    answers(&system, "after").await;
    for action in ["gateway.rotate_key", "gateway.key_in_use"] {
        assert_eq!(audited(&system, action).await, 2, "{action}");
    }
    let told = typed(&system, &["key", "status", "-o", "json"]).await;
    let expected = json!({ "generations": [{ "generation": 2, "gateways": 2 }], "waiting": [] });
    assert_eq!(told, expected);
    let kept = folders[0].join("state/agent_keys.json");
    assert_eq!(kept.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let identity = std::fs::read(folders[0].join("identity.json")).unwrap();
    assert_eq!(identity, issued, "that is root's");

    // The gateway comes back with it; so it does to a backend whose database knows of nothing.
    let [first, _second] = &mut gateways;
    assert!(first.stop(Duration::from_secs(30)).await.success());
    assert!(system.backend().stop(PATIENCE).await.success());
    let database = system.state_folder().join("backend.sqlite");
    change(
        &database,
        "UPDATE gateways SET key_generation = 1, key_wanted = NULL, takes_keys = NULL",
    );
    system.start_backend(Start::default()).await;
    let mut first = system.start_gateway(&folders[0], quick());
    for name in ["gw-1", "gw-2"] {
        uses(&system, name, 2).await;
    }
    let again = typed(&system, &["key", "rotate", "gw-1", "-o", "json"]).await;
    assert_eq!(again["gateways"][0]["key"]["wanted"], 3, "{again:#}");
    uses(&system, "gw-1", 3).await;
    answers(&system, "again").await;
    assert!(first.stop(Duration::from_secs(30)).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_dies_with_a_key_that_it_has_not_reported_comes_back_with_it() {
    let mut system = Deployment::new(Binaries::with_fault_points());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let [point] = KEY_POINTS;
    let mut dying = system.start_gateway(&folder, quick().dying_at(point));
    system.online("gw-1").await;
    system
        .post("/v1/gateways/gw-1/rotate-key", &json!({}))
        .await;
    let status = dying.wait(PATIENCE).await;
    assert!(!status.success(), "{}", dying.log());
    let shown = system.get("/v1/gateways/gw-1").await;
    assert_eq!(shown["key"]["generation"], 1, "{shown:#}");
    let mut healthy = system.start_gateway(&folder, quick());
    uses(&system, "gw-1", 2).await;
    answers(&system, "after").await;
    first_key_is_refused(&system, &folder).await;
    assert!(healthy.stop(Duration::from_secs(30)).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_key_that_is_refused_gives_way_to_the_one_before_and_to_the_next() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    // As it is where the master key is another one than when the key was made.
    let identity = std::fs::read(folder.join("identity.json")).unwrap();
    let identity: Value = serde_json::from_slice(&identity).unwrap();
    let foreign = json!({
        "tenant": identity["tenant"], "agent_id": identity["agent_id"],
        "keys": [{ "generation": 9, "agent_key": "ab".repeat(32) }],
    });
    let mut gateway = system.start_gateway(&folder, quick());
    system.online("gw-1").await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    let keys = folder.join("state/agent_keys.json");
    std::fs::write(&keys, foreign.to_string()).unwrap();
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut gateway = system.start_gateway(&folder, quick());
    let socket = folder.join("state/api.sock");
    let (_status, _exit) = status_where("it is back", system.binaries(), &socket, |status| {
        let conditions = status["conditions"].as_array().into_iter().flatten();
        let mut names = conditions.map(|condition| &condition["name"]);
        names.any(|name| name == "agent_key") && status["connection"]["connected"] == true
    })
    .await;
    system
        .post("/v1/gateways/gw-1/rotate-key", &json!({}))
        .await;
    uses(&system, "gw-1", 2).await;
    answers(&system, "after").await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}

/// The same configuration with these lines in place of the one that names the master key.
fn with_master_keys(before: &str, lines: impl Fn(&str) -> String) -> String {
    let mut named = 0;
    let changed: String = before
        .lines()
        .map(|line| match line.strip_prefix("master_key_file") {
            Some(rest) => {
                named += 1;
                lines(rest.trim_start_matches([' ', '=']))
            }
            None => format!("{line}\n"),
        })
        .collect();
    assert_eq!(named, 1, "{before}");
    changed
}

async fn rotate_master_key(system: &Deployment, more: &[&str]) -> Said {
    let config = system.backend_config();
    let mut command = Command::new(system.binaries().backend());
    command.args(["pki", "rotate-master-key", "--config", text(&config)]);
    command.args(more);
    finish(command, PATIENCE).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_master_key_is_rotated_while_both_are_accepted_and_nobody_is_cut_off() {
    let mut system = Deployment::new(Binaries::shipped());
    let names = ["gw-1", "gw-2"];
    let folders = names.map(|name| system.issue(name));
    let door = Start::default().with("VIWORKS__ENROLMENT__LISTEN", "127.0.0.1:0");
    system.start_backend(door).await;
    let _gateways = folders
        .each_ref()
        .map(|folder| system.start_gateway(folder, quick()));
    for name in names {
        system.online(name).await;
        uses(&system, name, 1).await;
    }
    let made = system.post("/v1/tickets", &json!({ "uses": 3 })).await;
    let ticket = made["ticket"]["id"].as_str().unwrap();
    let ticket_is = async |system: &Deployment, status: &str| {
        let shown = system.get(&format!("/v1/tickets/{ticket}")).await;
        assert_eq!(shown["status"], status, "{shown:#}");
    };
    let config = system.backend_config();
    let new = config.parent().unwrap().join("new-master.key");
    std::fs::write(&new, "5c".repeat(32)).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
    let before = std::fs::read_to_string(&config).unwrap();
    let new = text(&new);
    let both = with_master_keys(&before, |old| {
        format!("master_key_file = \"{new}\"\nprevious_master_key_file = {old}\n")
    });
    let alone = with_master_keys(&before, |_old| format!("master_key_file = \"{new}\"\n"));

    // There is none beside it yet.
    let said = rotate_master_key(&system, &[]).await.ended_with(78);
    assert!(
        said.stderr.contains("previous_master_key_file"),
        "{said:#?}"
    );
    assert!(system.backend().stop(PATIENCE).await.success());
    std::fs::write(&config, &both).unwrap();
    system.start_backend(Start::default()).await;
    for name in names {
        uses(&system, name, 1).await;
    }
    let said = rotate_master_key(&system, &["--dry-run"])
        .await
        .ended_with(0);
    assert!(said.stdout.contains("nothing was changed"), "{said:#?}");
    assert!(said.stdout.contains("2 gateways: gw-1, gw-2"), "{said:#?}");
    drop(
        rotate_master_key(&system, &["--finish"])
            .await
            .ended_with(6),
    );
    drop(rotate_master_key(&system, &[]).await.ended_with(0));
    drop(rotate_master_key(&system, &[]).await.ended_with(0));
    answers(&system, "meanwhile").await;
    let said = rotate_master_key(&system, &["--finish", "--dry-run"]).await;
    let said = said.ended_with(6);
    let behind = "not started since the site moved";
    assert!(said.stdout.contains(behind), "{said:#?}");
    assert!(said.stderr.contains("start it anew"), "{said:#?}");

    assert!(system.backend().stop(PATIENCE).await.success());
    system.start_backend(Start::default()).await;
    for name in names {
        uses(&system, name, 2).await;
    }
    answers(&system, "moved").await;
    let said = eventually("nobody needs the old one", PATIENCE, async || {
        let said = rotate_master_key(&system, &["--finish"]).await;
        (said.code == Some(0)).then_some(said)
    })
    .await;
    // What ends with it is said, and goes on until then.
    assert!(said.stdout.contains(ticket), "{said:#?}");
    assert!(said.stderr.contains("viworks ticket revoke"), "{said:#?}");
    ticket_is(&system, "active").await;
    assert_eq!(audited(&system, "site.rotate_master_key").await, 1);

    assert!(system.backend().stop(PATIENCE).await.success());
    std::fs::write(&config, &alone).unwrap();
    system.start_backend(Start::default()).await;
    for name in names {
        uses(&system, name, 2).await;
    }
    answers(&system, "alone").await;
    ticket_is(&system, "key_gone").await;
    // Whoever asks again is not sent to begin.
    let said = rotate_master_key(&system, &["--finish"]).await;
    let said = said.ended_with(0);
    assert!(said.stdout.contains("nothing is left to do"), "{said:#?}");
    assert_eq!(audited(&system, "site.finish_master_key").await, 1);
}
