//! Which authority gateways need, and which they have: none is taken out of the file while somebody would be cut off by
//! that, no server's certificate of one is put in place that somebody lacks, and who is cut off is named.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rcgen::KeyPair;
use rustix::process::Signal;
use serde_json::{Value, json};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::process::{Said, eventually, finish};

use crate::authority::{Authority, OLD, answers, needed_by, reload};
use crate::enrolment::{enroll, folder, ticket};
use crate::lapsed::{in_haste, with_door};
use crate::reissued::renew;
use crate::renewals::renew_server;
use crate::rotation::{has_openssl, script};
use crate::told::status_where;

/// How many gateways lack an authority, once it is so many.
async fn lacking(system: &Deployment, gateways: u64) -> Value {
    let what = format!("{gateways} lack an authority");
    eventually(&what, PATIENCE, async || {
        let status = system.get("/v1/authorities").await;
        (status["lacking"] == gateways).then_some(status)
    })
    .await
}

/// What is in the subject of the one that takes its place.
const NEW: &str = "the next authority";

/// The check of this name in the backend's health.
async fn check(system: &Deployment, name: &str) -> Option<Value> {
    let (_status, health) = system.request("GET", "/v1/health", None).await.ok()?;
    let mut checks = health["checks"].as_array()?.iter();
    checks.find(|check| check["name"] == name).cloned()
}

/// A reload is refused as long as this gateway has a certificate of an authority that is gone from the file.
async fn reload_is_refused(system: &mut Deployment, name: &str) {
    system.backend().signal(Signal::HUP);
    eventually("the reload is refused", PATIENCE, async || {
        let refused = check(system, "reload").await?.to_string();
        let said = refused.contains("still has a certificate of an authority")
            && refused.contains(&format!("cut off: {name}"))
            && refused.contains("restart this backend");
        said.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_authority_is_taken_out_by_a_reload_while_a_gateway_has_a_certificate_of_it() {
    let mut system = Deployment::new(Binaries::shipped());
    let folders = ["gw-1", "gw-2"].map(|name| system.issue(name));
    let backend = system.path().join("backend");
    let (old, new) = (Authority::of(&backend), Authority::create(NEW));
    system.start_backend(Start::default()).await;
    let mut first = system.start_gateway(&folders[0], Start::default());
    let session = system.online("gw-1").await["session"]["id"].clone();
    new.signs_beside(&backend, &[&old]);
    reload(&mut system).await;
    needed_by(&system, OLD, 2).await;

    // One gets a certificate of the new one for its key, by hand, and the other one is off.
    renew(&system, &folders[0], time::Duration::days(90));
    assert!(first.stop(Duration::from_secs(30)).await.success());
    let mut first = system.start_gateway(&folders[0], Start::default());
    eventually("it shows the other one", PATIENCE, async || {
        let now = system.online("gw-1").await;
        (now["session"]["id"] != session).then_some(())
    })
    .await;
    needed_by(&system, NEW, 1).await;
    let status = needed_by(&system, OLD, 1).await;
    assert!(
        status.to_string().contains(r#""needed_by_first":["gw-2"]"#),
        "{status:#}"
    );
    let cli = Command::new(system.binaries().cli());
    let told = asks(&system, cli, &["authority", "status"]).await;
    let said = format!("{}{}", told.stdout, told.stderr);
    let named = "not yet to be taken out of client_ca_file: gw-2";
    assert!(said.contains(named), "{told:#?}");

    // It is not taken out, and a check of the configuration says so as well.
    new.signs_beside(&backend, &[]);
    reload_is_refused(&mut system, "gw-2").await;
    let status = system.get("/v1/authorities").await;
    assert_eq!(status["authorities"].as_array().unwrap().len(), 2);
    let config = system.backend_config();
    let mut command = Command::new(system.binaries().backend());
    command.args(["check-config", "--config", config.to_str().unwrap()]);
    let checked = finish(command, PATIENCE).await;
    let said = format!("{}{}", checked.stdout, checked.stderr);
    let would = "1 gateway would be cut off by a start with this file";
    assert!(said.contains(would), "{checked:#?}");
    assert!(said.contains("gw-2"), "{checked:#?}");

    // Once it has another one as well, nothing keeps the old one.
    renew(&system, &folders[1], time::Duration::days(90));
    let mut second = system.start_gateway(&folders[1], Start::default());
    system.online("gw-2").await;
    needed_by(&system, OLD, 0).await;
    of_the_one_that_signs(&backend);
    reload(&mut system).await;
    let status = system.get("/v1/authorities").await;
    assert_eq!(status["authorities"].as_array().unwrap().len(), 1);
    eventually("health has nothing to say of it", PATIENCE, async || {
        check(&system, "reload").await.is_none().then_some(())
    })
    .await;
    answers(&system, &["gw-1", "gw-2"]).await;
    for gateway in [&mut first, &mut second] {
        assert!(gateway.stop(Duration::from_secs(30)).await.success());
    }
}

/// Puts a server's certificate of the authority that signs now in place, for the same key.
fn of_the_one_that_signs(backend: &Path) {
    let key = std::fs::read_to_string(backend.join("server.key")).unwrap();
    let key = KeyPair::from_pem(&key).unwrap();
    renew_server(backend, &key, time::Duration::days(60));
}

/// What a check of the backend's configuration says, which is valid.
async fn checked(system: &Deployment) -> String {
    let config = system.backend_config();
    let mut command = Command::new(system.binaries().backend());
    command.args(["check-config", "--config", config.to_str().unwrap()]);
    let checked = finish(command, PATIENCE).await.ended_with(0);
    format!("{}{}", checked.stdout, checked.stderr)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_authority_does_not_leave_before_the_server_has_a_certificate_of_the_new_one() {
    const UNKNOWN: &str = "server's certificate is of no authority in client_ca_file";
    let mut system = Deployment::new(Binaries::shipped());
    let backend = system.path().join("backend");
    let (old, new) = (Authority::of(&backend), Authority::create(NEW));
    system.start_backend(Start::default()).await;
    new.signs_beside(&backend, &[&old]);
    reload(&mut system).await;
    assert!(!checked(&system).await.contains(UNKNOWN));

    // Nobody's own certificate keeps the old one, and the server's is of it.
    new.signs_beside(&backend, &[]);
    system.backend().signal(Signal::HUP);
    let refused = eventually("the reload is refused", PATIENCE, async || {
        check(&system, "reload").await
    })
    .await;
    let said = refused.to_string();
    for words in [
        "server's certificate would be of no authority in client_ca_file",
        "machines that enrol",
        "scripts/rotate_certificates.sh",
    ] {
        assert!(said.contains(words), "{refused:#}");
    }
    let status = system.get("/v1/authorities").await;
    assert_eq!(status["authorities"].as_array().unwrap().len(), 2);
    assert!(check(&system, "trust.server").await.is_none());
    assert!(checked(&system).await.contains(UNKNOWN));

    // A restart takes it, and as long as it is so health says it; nothing is refused because of it.
    assert!(system.backend().stop(PATIENCE).await.success());
    system.start_backend(Start::default()).await;
    let told = eventually("health tells of it", PATIENCE, async || {
        check(&system, "trust.server").await
    })
    .await;
    assert_eq!(told["status"], "warn", "{told:#}");
    assert!(told.to_string().contains(UNKNOWN), "{told:#}");
    reload(&mut system).await;
    assert!(check(&system, "trust.server").await.is_some());

    // With a certificate of the new one all is well.
    of_the_one_that_signs(&backend);
    reload(&mut system).await;
    eventually("health has nothing to say of it", PATIENCE, async || {
        let all = [
            check(&system, "trust.server").await,
            check(&system, "reload").await,
        ];
        all.iter().all(Option::is_none).then_some(())
    })
    .await;
    assert!(!checked(&system).await.contains(UNKNOWN));
    assert!(system.backend().stop(PATIENCE).await.success());

    // In the right order nothing is refused: the server first, then the old one leaves.
    old.signs_beside(&backend, &[&new]);
    of_the_one_that_signs(&backend);
    new.signs_beside(&backend, &[&old]);
    system.start_backend(Start::default()).await;
    of_the_one_that_signs(&backend);
    reload(&mut system).await;
    new.signs_beside(&backend, &[]);
    reload(&mut system).await;
    assert!(check(&system, "reload").await.is_none());
    assert!(check(&system, "trust.server").await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_authority_is_taken_out_by_a_restart_and_whoever_is_cut_off_is_named_until_it_is_back()
 {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    let backend = system.path().join("backend");
    let (old, new) = (Authority::of(&backend), Authority::create(NEW));
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, in_haste());
    system.online("gw-1").await;
    new.signs_beside(&backend, &[]);
    reload_is_refused(&mut system, "gw-1").await;

    // A restart takes the file as it is.
    assert!(system.backend().stop(PATIENCE).await.success());
    system.start_backend(Start::default()).await;
    eventually("it is named", PATIENCE, async || {
        let named = check(&system, "trust.certificates").await?.to_string();
        (named.contains("1 gateway is cut off") && named.contains(": gw-1")).then_some(())
    })
    .await;
    let cli = || Command::new(system.binaries().cli());
    let told = asks(&system, cli(), &["authority", "status"]).await;
    let told = told.ended_with(20);
    let said = format!("{}{}", told.stdout, told.stderr);
    assert!(said.contains("1 gateway is cut off"), "{told:#?}");
    let told = asks(&system, cli(), &["gateway", "ls"]).await.ended_with(0);
    assert!(told.stdout.contains("unknown CA"), "{told:#?}");
    let told = asks(&system, cli(), &["gateway", "show", "gw-1"]).await;
    let told = told.ended_with(0).stdout;
    assert!(told.contains("put that one's certificate back"), "{told}");
    // Whoever has a certificate of it gets in no more.
    let socket = folder.join("state/api.sock");
    status_where("it is refused", system.binaries(), &socket, |status| {
        let cause = status["connection"]["last_failure"]["cause"].as_str();
        cause.is_some_and(|cause| cause.contains("UnknownCA"))
    })
    .await;
    let shown = system.get("/v1/gateways/gw-1").await;
    assert_eq!(shown["status"], "offline", "{shown:#}");
    let status = system.get("/v1/authorities").await;
    assert_eq!(status["authorities"].as_array().unwrap().len(), 1);
    // Others may be taken up meanwhile: it was out before.
    reload(&mut system).await;

    // With it back everything is as it was.
    new.signs_beside(&backend, &[&old]);
    reload(&mut system).await;
    system.online("gw-1").await;
    eventually("nobody is named", PATIENCE, async || {
        let named = check(&system, "trust.certificates").await;
        named.is_none().then_some(())
    })
    .await;
    let shown = system.get("/v1/gateways/gw-1").await;
    assert_eq!(shown["certificate_unknown_ca"], false, "{shown:#}");
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}

/// A certificate of the authority that signs now, for the server's key, beside the one in place.
struct Rotation {
    certificate: PathBuf,
    /// The backend that is to take it over.
    process: String,
}

impl Rotation {
    fn of(system: &mut Deployment) -> Self {
        let backend = system.path().join("backend");
        let (in_place, certificate) = (backend.join("server.crt"), backend.join("other.crt"));
        let kept = std::fs::read(&in_place).unwrap();
        let key = std::fs::read_to_string(backend.join("server.key")).unwrap();
        let key = KeyPair::from_pem(&key).unwrap();
        let issued = renew_server(&backend, &key, time::Duration::days(60));
        std::fs::write(&certificate, issued).unwrap();
        std::fs::write(&in_place, kept).unwrap();
        Self {
            certificate,
            process: system.backend().pid().to_string(),
        }
    }

    /// Puts it in place.
    async fn run(&self, system: &Deployment, more: &[&str]) -> Said {
        let config = system.backend_config();
        let arguments = [
            "--config",
            config.to_str().unwrap(),
            "--certificate",
            self.certificate.to_str().unwrap(),
            "--connect",
            system.agents_address(),
            "--pid",
            &self.process,
            "--names-change",
        ];
        let arguments = [&arguments[..], more].concat();
        asks(system, script("rotate_certificates.sh"), &arguments).await
    }
}

/// What a command says that asks this backend.
async fn asks(system: &Deployment, mut command: Command, arguments: &[&str]) -> Said {
    command.args(arguments);
    system.ask(&mut command);
    finish(command, PATIENCE).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_is_off_is_named_and_no_certificate_of_an_authority_that_it_lacks_is_put_in_place()
 {
    if !has_openssl() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    let folders = ["gw-1", "gw-2"].map(|name| system.issue(name));
    let backend = system.path().join("backend");
    let (old, new) = (
        Authority::of(&backend),
        Authority::create("the next authority"),
    );
    system.start_backend(Start::default()).await;
    let mut first = system.start_gateway(&folders[0], Start::default());
    let mut second = system.start_gateway(&folders[1], Start::default());
    for name in ["gw-1", "gw-2"] {
        system.online(name).await;
    }
    let before = lacking(&system, 0).await;
    assert!(second.stop(Duration::from_secs(30)).await.success());

    // The new one is given while the second one is off.
    new.signs_beside(&backend, &[&old]);
    reload(&mut system).await;
    let status = lacking(&system, 1).await;
    assert_eq!(
        (&status["gateways"], &status["lacking_off"]),
        (&json!(2), &json!(1))
    );
    assert_ne!(status["bundle"], before["bundle"]);
    let binaries = system.binaries();
    let cli = || Command::new(binaries.cli());
    let told = asks(&system, cli(), &["authority", "status"]).await;
    let told = told.ended_with(20).stdout;
    assert!(told.contains("gw-2") && !told.contains("gw-1"), "{told}");
    for (name, current) in [("gw-1", true), ("gw-2", false)] {
        let shown = system.get(&format!("/v1/gateways/{name}")).await;
        assert_eq!(shown["authorities"]["current"], current, "{shown:#}");
    }
    eventually("health says who is off", PATIENCE, async || {
        let health = system.get("/v1/health").await.to_string();
        let said = "client_ca_file has (1 of them off): gw-2";
        (health.contains("trust.gateways") && health.contains(said)).then_some(())
    })
    .await;

    // A certificate of the new one, for the key in place, beside it.
    let in_place = backend.join("server.crt");
    let kept = std::fs::read(&in_place).unwrap();
    let rotation = Rotation::of(&mut system);
    let rotate = async |more: &[&str]| rotation.run(&system, more).await;
    let refused = rotate(&[]).await.ended_with(6);
    let why = "1 of 2 gateways know the authority";
    assert!(refused.stderr.contains(why), "{refused:#?}");
    assert!(
        refused.stderr.contains("refuse the server: gw-2"),
        "{refused:#?}"
    );
    assert_eq!(std::fs::read(&in_place).unwrap(), kept);
    drop(rotate(&["--force"]).await.ended_with(2));
    let forced = ["--dry-run", "--force", "--reason", "gw-2 was sold"];
    let forced = rotate(&forced).await.ended_with(0);
    assert!(forced.stdout.contains("(gw-2 was sold)"), "{forced:#?}");

    // Once it was connected, nobody is cut off.
    let mut again = system.start_gateway(&folders[1], Start::default());
    let after = lacking(&system, 0).await;
    assert_eq!(after["bundle"], status["bundle"]);
    drop(
        asks(&system, cli(), &["authority", "status"])
            .await
            .ended_with(0),
    );
    drop(rotate(&[]).await.ended_with(0));
    assert_ne!(std::fs::read(&in_place).unwrap(), kept);
    for gateway in [&mut first, &mut again] {
        assert!(gateway.stop(Duration::from_secs(30)).await.success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_enrolled_while_both_authorities_are_given_lacks_neither_of_them() {
    if !has_openssl() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    let backend = system.path().join("backend");
    let (old, new) = (
        Authority::of(&backend),
        Authority::create("the next authority"),
    );
    system.start_backend(with_door()).await;
    let enrolled = async |system: &Deployment, name: &str| {
        let made = ticket(system, &json!({"uses": 1, "name": name})).await;
        let command = enroll(system, &folder(system, name), &made, &[]);
        drop(finish(command, PATIENCE).await.ended_with(0));
    };
    enrolled(&system, "gw-early").await;
    lacking(&system, 0).await;
    new.signs_beside(&backend, &[&old]);
    reload(&mut system).await;
    enrolled(&system, "gw-late").await;

    // Neither has ever connected, and one of them was given both.
    let status = lacking(&system, 1).await;
    assert_eq!(status["gateways"], 2, "{status:#}");
    let shown = system.get("/v1/gateways/gw-late").await;
    assert_eq!(shown["authorities"]["current"], true, "{shown:#}");
    let binaries = system.binaries();
    let cli = || Command::new(binaries.cli());
    let told = asks(&system, cli(), &["authority", "status"]).await;
    let told = told.ended_with(20).stdout;
    assert!(
        told.contains("gw-early") && !told.contains("gw-late"),
        "{told}"
    );
    eventually("health names the early one alone", PATIENCE, async || {
        let named = check(&system, "trust.gateways").await?.to_string();
        (named.contains("gw-early") && !named.contains("gw-late")).then_some(())
    })
    .await;
    let rotation = Rotation::of(&mut system);
    let refused = rotation.run(&system, &[]).await.ended_with(6);
    assert!(
        refused.stderr.contains("refuse the server: gw-early"),
        "{refused:#?}"
    );
    assert!(!refused.stderr.contains("gw-late"), "{refused:#?}");

    // Without the early one nobody is cut off, and the late one accepts what is put in place.
    let why = json!({ "reason": "it was sold" });
    system.post("/v1/gateways/gw-early/revoke", &why).await;
    lacking(&system, 0).await;
    let told = asks(&system, cli(), &["authority", "status"]).await;
    drop(told.ended_with(0));
    drop(rotation.run(&system, &[]).await.ended_with(0));
    let mut late = system.start_gateway(&folder(&system, "gw-late"), Start::default());
    system.online("gw-late").await;
    assert!(late.stop(Duration::from_secs(30)).await.success());
}

/// Has the running backend refuse to read its files again, for a reason with these words.
async fn not_taken_over(system: &mut Deployment, words: &str) {
    system.backend().signal(Signal::HUP);
    eventually("the reload is refused", PATIENCE, async || {
        let refused = check(system, "reload").await?.to_string();
        refused.contains(words).then_some(())
    })
    .await;
}

/// The metric of when the authority ends.
const CA_ENDS: &str = "viworks_certificate_not_after_seconds{certificate=\"ca\"}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_that_enrol_are_given_the_authorities_in_force_until_a_reload_takes_others_over() {
    let mut system = Deployment::new(Binaries::shipped());
    let backend = system.path().join("backend");
    let (old, new) = (Authority::of(&backend), Authority::create(NEW));
    system.start_backend(with_door()).await;
    let given = async |system: &Deployment, name: &str| {
        let made = ticket(system, &json!({"uses": 1, "name": name})).await;
        let place = folder(system, name);
        let command = enroll(system, &place, &made, &[]);
        drop(finish(command, PATIENCE).await.ended_with(0));
        std::fs::read_to_string(place.join("ca.crt")).unwrap()
    };
    // What the one that signs is told to end with is that of the one in force as well.
    let ends = async |system: &Deployment| {
        let (_status, text) = system.request("GET", "/metrics", None).await.unwrap();
        let mut lines = text.as_str().unwrap().lines();
        let line = lines.find(|line| line.starts_with(CA_ENDS)).unwrap();
        line.to_owned()
    };
    let before = given(&system, "gw-before").await;
    let end = ends(&system).await;
    let file = backend.join("ca.crt");
    let whole = std::fs::read_to_string(&file).unwrap();

    // Half of it is written, and a reload comes in between.
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(given(&system, "gw-half").await, before);
    not_taken_over(&mut system, "cannot be used").await;
    assert_eq!(given(&system, "gw-refused").await, before);
    // Another one is to sign, and its key is not there yet.
    let new_certificate = new.certificate().to_owned();
    std::fs::write(&file, format!("{new_certificate}{whole}")).unwrap();
    not_taken_over(&mut system, "does not fit").await;
    assert_eq!(given(&system, "gw-unfit").await, before);
    assert_eq!(ends(&system).await, end);

    new.signs_beside(&backend, &[&old]);
    reload(&mut system).await;
    let after = given(&system, "gw-after").await;
    assert_eq!(after.matches("BEGIN CERTIFICATE").count(), 2, "{after}");
    assert_ne!(after, before);
    assert_ne!(ends(&system).await, end);
    for name in ["gw-half", "gw-after"] {
        let mut gateway = system.start_gateway(&folder(&system, name), Start::default());
        system.online(name).await;
        assert!(gateway.stop(Duration::from_secs(30)).await.success());
    }
}
