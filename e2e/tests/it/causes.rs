//! Why a gateway is not connected, as the `status` of the shipped gateway tells it: the true cause, what to do, and
//! when it tries again.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rcgen::KeyPair;
use rustix::process::Signal;
use serde_json::Value;
use viworks_common::code::CloseCode;
use viworks_common::key::BindingMode;
use viworks_common::session::HELLO_UNPROVED;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, text};
use viworks_testkit::process::{Process, finish};
use viworks_testkit::rogue::{Material, Rogue};
use viworks_testkit::stand_in::{Answer, StandIn};

use super::reissued::renew;
use super::told::{
    advice, cause, delay, fails_with, failure, is_waiting, status_where, told_there,
};

fn gateway_of(system: &Deployment, folder: &Path, url: &str) -> Process {
    let mut command = Command::new(system.binaries().gateway());
    command
        .args(["run", "--config", text(&folder.join("gateway.toml"))])
        .env("VIWORKS__OUTBOUND__URL", url);
    Process::start(&mut command, &folder.join("gateway.log")).unwrap()
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
            assert_eq!(fix, advice(*code, &folder), "{status:#}");
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
        let fix = advice(code, &folder);
        assert_eq!(failure(&status)["fix"], fix, "{what}: {status:#}");
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
