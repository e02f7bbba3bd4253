//! Why a gateway is not connected, as the `status` of the shipped gateway tells it: the true cause, what to do, and
//! when it tries again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustix::process::Signal;
use serde_json::{Value, json};
use time::OffsetDateTime;
use viworks_common::code::CloseCode;
use viworks_common::key::BindingMode;
use viworks_common::session::HELLO_UNPROVED;
use viworks_common::time::Timestamp;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, run, text};
use viworks_testkit::gateway::{AGAIN, ONCE, mark_starts, started};
use viworks_testkit::process::{Process, Said, eventually, finish};
use viworks_testkit::rogue::{Material, Rogue};
use viworks_testkit::stand_in::{Answer, StandIn};

use super::desk::viworks;

/// What `status` says, by its JSON, and how it ends.
pub(crate) async fn status(binaries: &Binaries, socket: &Path) -> Said {
    let mut command = Command::new(binaries.gateway());
    command.args(["status", "--socket", text(socket), "-o", "json"]);
    finish(command, PATIENCE).await
}

/// Waits until `status` holds, and answers with it.
pub(crate) async fn status_where(
    what: &str,
    binaries: &Binaries,
    socket: &Path,
    mut holds: impl FnMut(&Value) -> bool,
) -> (Value, i32) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let said = status(binaries, socket).await;
        if let (Ok(json), Some(code)) = (serde_json::from_str(&said.stdout), said.code)
            && holds(&json)
        {
            return (json, code);
        }
        assert!(tokio::time::Instant::now() < deadline, "{what}: {said:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn failure(status: &Value) -> &Value {
    &status["connection"]["last_failure"]
}

/// Whether it waits for its next attempt. While it dials again, as after a reload, the last failure stays.
fn is_waiting(status: &Value) -> bool {
    !status["connection"]["next_attempt"].is_null()
}

/// Waits until the last failure has this code, and checks what belongs to each: not connected, an exit code that says
/// so.
pub(crate) async fn fails_with(binaries: &Binaries, folder: &Path, code: &str) -> Value {
    let socket = folder.join("state/api.sock");
    let what = format!("the last failure is {code}");
    let (status, exit) = status_where(&what, binaries, &socket, |status| {
        failure(status)["code"] == code && is_waiting(status)
    })
    .await;
    assert_eq!(status["connection"]["connected"], false, "{status:#}");
    assert_eq!(exit, 69, "{status:#}");
    status
}

/// How long after the failure the next attempt comes.
fn delay(status: &Value) -> Duration {
    let time = |value: &Value| Timestamp::parse(value.as_str().unwrap()).unwrap();
    let next = &status["connection"]["next_attempt"];
    time(next).saturating_since(time(&failure(status)["at"]))
}

/// The backend says the same in its own log: on one line what was refused, and what to do about that.
async fn told_there(system: &mut Deployment, words: &[&str]) {
    let what = format!("the backend's log tells of {words:?}");
    eventually(&what, PATIENCE, async || {
        let log = system.backend().log();
        let tells = |line: &str| words.iter().all(|word| line.contains(word));
        log.lines().any(tells).then_some(())
    })
    .await;
}

pub(crate) fn cause(status: &Value) -> &str {
    failure(status)["cause"].as_str().unwrap()
}

fn gateway_of(system: &Deployment, folder: &Path, url: &str) -> Process {
    let mut command = Command::new(system.binaries().gateway());
    command
        .args(["run", "--config", text(&folder.join("gateway.toml"))])
        .env("VIWORKS__OUTBOUND__URL", url);
    Process::start(&mut command, &folder.join("gateway.log")).unwrap()
}

/// A certificate for the key that a gateway has, as its authority would renew it.
pub(crate) fn renew(system: &Deployment, folder: &Path, lives: time::Duration) {
    renew_of(system, folder, time::Duration::HOUR, lives);
}

/// The same, issued so long ago.
pub(crate) fn renew_of(
    system: &Deployment,
    folder: &Path,
    since: time::Duration,
    lives: time::Duration,
) {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
    let backend = system.path().join("backend");
    let authority = KeyPair::from_pem(&read(backend.join("ca.key"))).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read(backend.join("ca.crt")), authority).unwrap();
    let material = Material::read(folder).unwrap();
    let name = format!(
        "spiffe://viworks.internal/tenant/{}/gateway/{}",
        material.identity.tenant, material.identity.agent_id
    );
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let now =
        OffsetDateTime::from_unix_timestamp(SystemClock.wall().unix_millis() / 1_000).unwrap();
    params.not_before = now - since;
    params.not_after = now + lives;
    let key = KeyPair::from_pem(&read(folder.join("gateway.key"))).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let draft = folder.join("gateway.crt.new");
    std::fs::write(&draft, certificate.pem()).unwrap();
    std::fs::rename(draft, folder.join("gateway.crt")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_signed_refusal_shows_its_code_its_reason_and_what_to_do() {
    let system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    let first = Answer::Refuse(CloseCode::Internal, "a first word".to_owned());
    let backend = system.path().join("backend");
    let stand_in = StandIn::start(&backend, first).await.unwrap();
    let gateway = gateway_of(&system, &folder, &stand_in.url);
    fails_with(system.binaries(), &folder, "internal").await;
    for code in CloseCode::ALL {
        let reason = format!("because of {}", code.name());
        stand_in.answer(Answer::Refuse(*code, reason.clone()));
        // Whatever it waits for: a reload is what somebody does who mended the cause.
        gateway.signal(Signal::HUP);
        let status = fails_with(system.binaries(), &folder, code.name()).await;
        assert!(cause(&status).contains(&reason), "{status:#}");
        assert!(!cause(&status).contains("not signed"), "{status:#}");
        let fix = failure(&status)["fix"].as_str().unwrap();
        if *code == CloseCode::BadEnvelope {
            assert!(fix.contains("state folder"), "{status:#}");
        } else {
            assert_eq!(fix, code.advice(), "{status:#}");
        }
        if code.is_permanent() {
            assert!(delay(&status) >= Duration::from_secs(15 * 60), "{status:#}");
        }
    }
    let mut command = Command::new(system.binaries().gateway());
    let socket = folder.join("state/api.sock");
    command.args(["status", "--socket", text(&socket)]);
    let said = finish(command, PATIENCE).await.ended_with(69);
    assert!(said.stdout.contains("because of draining"), "{said:#?}");

    // A message that comes twice is told of as well, and is on record here.
    stand_in.answer(Answer::Twice);
    gateway.signal(Signal::HUP);
    let status = fails_with(system.binaries(), &folder, "bad_envelope").await;
    assert!(cause(&status).contains("sequence number"), "{status:#}");
    let audit = std::fs::read_to_string(folder.join("state/audit.log")).unwrap();
    assert!(audit.contains("backend.frame_replayed"), "{audit}");
    assert!(gateway.log().contains("security event: frame_replayed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_signed_is_shown_as_such_with_what_to_do_and_asked_again_soon() {
    let system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    let backend = system.path().join("backend");
    let problem = |status: &str, code: &str, more: &str| {
        let body = format!(r#"{{"code":"{code}","detail":"the words of {code}"}}"#);
        Answer::Http(format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/problem+json\r\n{more}Content-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    };
    let first = problem("403 Forbidden", "revoked", "");
    let stand_in = StandIn::start(&backend, first).await.unwrap();
    let gateway = gateway_of(&system, &folder, &stand_in.url);
    // It listens for SIGHUP by then.
    fails_with(system.binaries(), &folder, "revoked").await;
    let minute = Duration::from_secs(60);
    let mut answers = vec![
        (CloseCode::Revoked, problem("403 Forbidden", "revoked", "")),
        (
            CloseCode::CertUntrusted,
            problem("403 Forbidden", "cert_untrusted", ""),
        ),
        (
            CloseCode::ProtocolTooOld,
            problem("400 Bad Request", "protocol_too_old", ""),
        ),
        (
            CloseCode::RateLimited,
            problem(
                "503 Service Unavailable",
                "rate_limited",
                "Retry-After: 40\r\n",
            ),
        ),
        (
            CloseCode::ProtocolTooOld,
            Answer::Challenge(2, 3, BindingMode::Exporter),
        ),
        (
            CloseCode::BindingMismatch,
            Answer::Challenge(1, 1, BindingMode::Certificate),
        ),
        (CloseCode::Draining, Answer::Drain(Duration::from_secs(50))),
    ];
    let frames = CloseCode::ALL
        .iter()
        .map(|code| (*code, Answer::CloseFrame(*code)));
    answers.extend(frames);
    for (code, answer) in answers {
        let by_frame = matches!(answer, Answer::CloseFrame(_));
        let by_http = matches!(answer, Answer::Http(_));
        // Never the same twice in a row, so that what is seen is the answer to this one.
        stand_in.answer(Answer::Refuse(
            CloseCode::Superseded,
            "in between".to_owned(),
        ));
        gateway.signal(Signal::HUP);
        fails_with(system.binaries(), &folder, "superseded").await;
        let what = format!("{answer:?}");
        stand_in.answer(answer);
        gateway.signal(Signal::HUP);
        let socket = folder.join("state/api.sock");
        let (status, exit) = status_where(&what, system.binaries(), &socket, |status| {
            let failure = failure(status);
            let own = failure["cause"]
                .as_str()
                .is_some_and(|cause| !cause.contains("in between"));
            failure["code"] == code.name() && own && is_waiting(status)
        })
        .await;
        assert_eq!(exit, 69, "{what}: {status:#}");
        assert_eq!(failure(&status)["fix"], code.advice(), "{what}: {status:#}");
        let unsigned = cause(&status).contains("not signed");
        assert_eq!(unsigned, by_frame || by_http, "{what}: {status:#}");
        if by_http {
            let words = format!("the words of {}", code.name());
            assert!(cause(&status).contains(&words), "{what}: {status:#}");
        }
        assert!(delay(&status) <= minute, "{what}: {status:#}");
    }
    // A proxy's page says nothing of ours.
    let page = "HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\n<b>no</b>".to_owned();
    stand_in.answer(Answer::Http(page));
    gateway.signal(Signal::HUP);
    let socket = folder.join("state/api.sock");
    let (status, _exit) = status_where("a page", system.binaries(), &socket, |status| {
        failure(status)["cause"] == "the server answered 403 instead of 101"
    })
    .await;
    let fix = failure(&status)["fix"].as_str().unwrap();
    assert!(fix.contains("proxy"), "{status:#}");
}

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
    assert_eq!(failure(&told)["fix"], CloseCode::Revoked.advice());
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
        for words in ["the gateway itself was not", "viworks gateway replace NAME"] {
            assert!(fix.contains(words), "{status:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_is_not_registered_or_has_another_key_is_told_so() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let identity = folder.join("identity.json");
    let right = std::fs::read_to_string(&identity).unwrap();
    let mut wrong: Value = serde_json::from_str(&right).unwrap();
    wrong["agent_key"] = Value::from("09".repeat(32));
    std::fs::write(&identity, wrong.to_string()).unwrap();
    let mut gateway = system.start_gateway(&folder, Start::default());
    let socket = folder.join("state/api.sock");
    let (status, exit) = status_where("the key is named", system.binaries(), &socket, |status| {
        failure(status)["cause"]
            .as_str()
            .is_some_and(|cause| cause.contains("does not accept this gateway's agent key"))
    })
    .await;
    assert_eq!(
        (exit, &failure(&status)["code"]),
        (69, &Value::from("bad_envelope"))
    );
    let fix = failure(&status)["fix"].as_str().unwrap();
    assert!(fix.contains("identity_file"), "{status:#}");
    assert!(
        system.backend().log().contains(HELLO_UNPROVED),
        "{}",
        system.backend().log()
    );
    let fix = "not its agent key";
    told_there(&mut system, &["refused a session", "gateway=gw-1", fix]).await;
    let id = wrong["agent_id"].as_str().unwrap();
    let audit = system.get("/v1/audit?limit=1000").await;
    let event = audit["items"].as_array().unwrap().iter().find(|record| {
        record["action"] == "gateway.wrong_agent_key" && record["object"] == format!("gateway:{id}")
    });
    assert!(event.is_some(), "{audit:#}");
    assert!(gateway.stop(Duration::from_secs(30)).await.success());

    std::fs::write(&identity, &right).unwrap();
    let stranger = system.issue("gw-2");
    let key = KeyPair::generate().unwrap();
    std::fs::write(stranger.join("gateway.key"), key.serialize_pem()).unwrap();
    renew(&system, &stranger, time::Duration::HOUR);
    let _unregistered = system.start_gateway(&stranger, Start::default());
    let status = fails_with(system.binaries(), &stranger, "cert_untrusted").await;
    assert!(cause(&status).contains("not registered"), "{status:#}");
    assert_eq!(failure(&status)["fix"], CloseCode::CertUntrusted.advice());
    told_there(
        &mut system,
        &["not registered for", "gw-2", "see that this backend uses"],
    )
    .await;
    let audit = system.get("/v1/audit?limit=1000").await.to_string();
    let action = "gateway.unregistered_certificate";
    assert!(audit.contains(action), "{audit}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_has_ended_is_named_and_so_is_a_full_house() {
    let mut system = Deployment::new(Binaries::shipped());
    let (folder, busy) = (system.issue("gw-1"), system.issue("gw-2"));
    system
        .start_backend(
            Start::default()
                .with("VIWORKS__AGENTS__OPENINGS_MAX", "1")
                .with("VIWORKS__AGENTS__HELLO_TIMEOUT_MS", "20000"),
        )
        .await;
    // Valid when it starts is not asked: a gateway must be able to say what is wrong.
    renew(&system, &folder, -time::Duration::MINUTE);
    let mut gateway = system.start_gateway(&folder, Start::default());
    let status = fails_with(system.binaries(), &folder, "cert_untrusted").await;
    assert!(
        cause(&status).contains("certificate ended at"),
        "{status:#}"
    );
    let fix = failure(&status)["fix"].as_str().unwrap();
    assert!(fix.contains("renewed certificate"), "{status:#}");
    told_there(
        &mut system,
        &[
            "TLS handshake failed",
            "expired",
            "gw-1",
            "door",
            "gateway expiring",
        ],
    )
    .await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());

    let agents = system.agents_address().to_owned();
    let holder = Rogue::challenged(&agents, &Material::read(&busy).unwrap())
        .await
        .unwrap();
    let _gateway = system.start_gateway(&busy, Start::default());
    let status = fails_with(system.binaries(), &busy, "rate_limited").await;
    assert_eq!(failure(&status)["fix"], CloseCode::RateLimited.advice());
    drop(holder);
    system.online("gw-2").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_state_folder_is_named_beside_the_copy_and_the_name_can_be_issued_again() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    let first = system.online("gw-1").await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    std::fs::remove_dir_all(folder.join("state")).unwrap();
    let mut refused = system.start_gateway(&folder, Start::default());
    let status = fails_with(system.binaries(), &folder, "identity_fork").await;
    let cause = cause(&status).to_owned();
    assert!(cause.contains("state was lost or restored"), "{status:#}");
    assert!(cause.contains("holds no session yet"), "{status:#}");
    assert_eq!(failure(&status)["fix"], CloseCode::IdentityFork.advice());
    told_there(
        &mut system,
        &["refused a session", "gw-1", "gateway forks shows both"],
    )
    .await;

    // Both holders are seen, by the API and by the command line.
    let forks = system.get("/v1/gateways/gw-1/forks").await;
    let fork = &forks["items"][0];
    assert_ne!(
        fork["refused"]["install_id"],
        fork["accepted"]["install_id"]
    );
    assert_eq!(fork["refused"]["boot_id"], fork["accepted"]["boot_id"]);
    let token = system.path().join("operator.key");
    for verb in ["show", "forks"] {
        let command = viworks(&system, &token, &["gateway", verb, "gw-1"]);
        let said = finish(command, PATIENCE).await.ended_with(0);
        for side in ["refused", "accepted"] {
            let install = fork[side]["install_id"].as_str().unwrap();
            assert!(said.stdout.contains(install), "{said:#?}");
        }
        let all = format!("{}{}", said.stdout, said.stderr);
        assert!(all.contains("state folder was lost"), "{said:#?}");
    }

    // The way out that the page describes.
    let config = system.backend_config();
    let backend = system.binaries().backend();
    let revoke = [
        "gateway",
        "revoke",
        "gw-1",
        "--reason",
        "its disk was lost",
        "--config",
        text(&config),
    ];
    run(&backend, &revoke);
    let mut twice = Command::new(&backend);
    twice.args(revoke);
    let said = finish(twice, PATIENCE).await.ended_with(0);
    let told = "gw-1 was revoked already, ";
    assert!(said.stdout.starts_with(told), "{said:#?}");
    let again = system.path().join("gateways/again");
    run(
        &backend,
        &[
            "pki",
            "issue-gateway",
            "gw-1",
            "--config",
            text(&config),
            "--out",
            text(&again),
            "--demo",
        ],
    );
    let _new = system.start_gateway(&again, Start::default());
    let now = system.online("gw-1").await;
    assert_ne!(now["id"], first["id"]);
    let old = system
        .get(&format!("/v1/gateways/{}", first["id"].as_str().unwrap()))
        .await;
    assert_eq!(old["status"], "revoked");
    assert_eq!(old["revocation"]["reason"], "its disk was lost");
    assert!(
        old["name"].as_str().unwrap().starts_with("gw-1-revoked-"),
        "{old:#}"
    );
    assert!(refused.stop(Duration::from_secs(30)).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_folder_that_is_lost_under_a_running_agent_is_noticed_and_starts_nothing_twice() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    system.start_backend(Start::default()).await;
    let socket = system.path().join("gw.sock");
    let start = Start::default().with("VIWORKS__GATEWAY__SOCKET", text(&socket));
    let mut gateway = system.start_gateway(&folder, start);
    system.online("gw-1").await;
    let aside = folder.join("aside");
    std::fs::rename(folder.join("state"), &aside).unwrap();
    let condition = |status: &Value| {
        status["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|condition| condition["name"] == "state_folder" && condition["severity"] == "fail")
    };
    let (status, exit) = status_where("it is noticed", system.binaries(), &socket, condition).await;
    assert_eq!(
        (exit, &status["connection"]["connected"]),
        (20, &Value::from(true))
    );

    let once = system.submit(ONCE, "once").await;
    let again = system.submit(AGAIN, "again").await;
    system.finished(&again).await;
    assert_eq!(system.commands(&again).await[0]["state"], "succeeded");
    eventually("it is refused with a reason", PATIENCE, async || {
        let log = gateway.log();
        log.contains("the state folder is lost").then_some(())
    })
    .await;
    assert_eq!(started(&folder).len(), 1);
    assert_ne!(system.commands(&once).await[0]["state"], "succeeded");

    // Whoever only has the command's end learns why it never started.
    let body = serde_json::json!({ "command": ONCE, "targets": "all", "deadline_ms": 4_000 });
    let late = system.post("/v1/runs", &body).await;
    let late = late["id"].as_str().unwrap();
    system.finished(late).await;
    let late = &system.commands(late).await[0];
    assert_eq!(late["state"], "expired", "{late:#}");
    let reason = late["reason"].as_str().unwrap();
    for words in [
        "its deadline passed before it could start; the gateway refused it: ",
        "the state folder is lost",
    ] {
        assert!(reason.contains(words), "{reason}");
    }

    // And so does whoever waits for it, while they wait.
    let key = system.path().join("operator.key");
    let words = ["run", ONCE, "-g", "gw-1", "--yes", "--expires", "4s"];
    let said = finish(viworks(&system, &key, &words), PATIENCE).await;
    let waiting = said
        .stderr
        .lines()
        .find(|line| line.contains("waiting for"));
    let waiting = waiting.unwrap_or_else(|| panic!("{said:#?}"));
    assert!(
        waiting.contains("the gateway refused it: the state folder is lost"),
        "{said:#?}"
    );
    assert!(!waiting.contains("about to start"), "{said:#?}");

    // Back where it was: nothing has to be restarted.
    std::fs::rename(&aside, folder.join("state")).unwrap();
    system.finished(&once).await;
    let ran = &system.commands(&once).await[0];
    assert_eq!(ran["state"], "succeeded");
    assert_eq!(ran["reason"], Value::Null, "a refusal that is over");
    assert_eq!(started(&folder).len(), 2);
    let (_status, exit) = status_where("all is well", system.binaries(), &socket, |status| {
        !condition(status)
    })
    .await;
    assert_eq!(exit, 0);
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}
