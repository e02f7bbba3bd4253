//! A machine that cannot reach the door: its request goes out in a file, and the answer comes back in one.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, Start, run, text};
use viworks_testkit::process::{Said, finish};

use super::{LIMIT, folder, gateways};

/// `enroll` of the machine whose files go there.
async fn enroll(system: &Deployment, home: &Path, words: &[&str]) -> Said {
    let mut command = Command::new(system.binaries().gateway());
    command.args(["enroll", "--demo", "--out"]).arg(home);
    command.args(words);
    finish(command, LIMIT).await
}

fn sign(system: &Deployment, request: &Path, name: &str, answer: &Path) -> Command {
    let mut command = Command::new(system.binaries().backend());
    command
        .args(["pki", "sign-request", text(request), "--name", name])
        .args(["--config", text(&system.backend_config())])
        .args(["--label", "site=berlin", "--out", text(answer)]);
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_without_a_way_to_the_door_becomes_a_gateway_by_a_request_and_its_answer() {
    let mut system = Deployment::new(Binaries::shipped());
    system.start_backend(Start::default()).await;
    let (home, other) = (folder(&system, "gw-1"), folder(&system, "gw-2"));
    let file = |name: &str| system.path().join(name);
    let (request, answer) = (file("gw-1.csr"), file("gw-1.answer"));
    // Nothing was asked for here, whatever the answer is.
    let said = enroll(&system, &home, &["--answer", text(&answer)]).await;
    let said = said.ended_with(2);
    assert!(said.stderr.contains("--request-out"), "{said:?}");
    assert!(!home.exists(), "{said:?}");

    let said = enroll(&system, &home, &["--request-out", text(&request)]).await;
    let said = said.ended_with(0);
    assert!(said.stdout.contains("pki sign-request"), "{said:?}");
    let asked = std::fs::read_to_string(&request).unwrap();
    assert!(asked.contains("CERTIFICATE REQUEST"), "{asked}");
    let said = enroll(&system, &home, &["--request-out", text(&request)]).await;
    let said = said.ended_with(6);
    assert!(
        said.stderr.contains("name a new file with --request-out"),
        "{said:?}"
    );
    assert_eq!(std::fs::read_to_string(&request).unwrap(), asked);

    let signed = finish(sign(&system, &request, "gw-1", &answer), LIMIT).await;
    let signed = signed.ended_with(0);
    assert!(signed.stdout.starts_with("gw-1 "), "{signed:?}");
    // The same request makes no second gateway.
    let twice = sign(&system, &request, "gw-9", &file("gw-9.answer"));
    let twice = finish(twice, LIMIT).await.ended_with(6);
    assert!(twice.stderr.contains("signed before"), "{twice:?}");
    assert!(!file("gw-9.answer").exists());
    assert_eq!(gateways(&system).await.len(), 1);

    // Another machine with a request of its own has no use for it.
    let elsewhere = file("gw-2.csr");
    let said = enroll(&system, &other, &["--request-out", text(&elsewhere)]).await;
    drop(said.ended_with(0));
    let said = enroll(&system, &other, &["--answer", text(&answer)]).await;
    let said = said.ended_with(2);
    assert!(said.stderr.contains("another key"), "{said:?}");
    assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
    assert!(!other.join("gateway.toml").exists());

    let said = enroll(&system, &home, &["--answer", text(&answer)]).await;
    let said = said.ended_with(0);
    for shown in [
        "CN=gw-1",
        "site=berlin",
        "takes this gateway's certificate",
        "it holds secrets: rm",
    ] {
        assert!(said.stdout.contains(shown), "{shown}: {said:?}");
    }
    let said = enroll(&system, &home, &["--answer", text(&answer)]).await;
    drop(said.ended_with(6));
    let mut gateway = system.start_gateway(&home, Start::default());
    let shown = system.online("gw-1").await;
    assert_eq!(shown["labels"][0]["value"], "berlin", "{shown:#}");
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    // A name that is taken is told, and the machine can ask for another one.
    let run_out = file("gw-2.answer");
    let taken = finish(sign(&system, &elsewhere, "gw-1", &run_out), LIMIT).await;
    drop(taken.ended_with(6));
    run(
        &system.binaries().backend(),
        &[
            "pki",
            "sign-request",
            text(&elsewhere),
            "--name",
            "gw-2",
            "--config",
            text(&system.backend_config()),
            "--out",
            text(&run_out),
        ],
    );
    let said = enroll(&system, &other, &["--answer", text(&run_out)]).await;
    drop(said.ended_with(0));
}
