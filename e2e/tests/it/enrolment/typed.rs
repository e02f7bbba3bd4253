//! Tickets as an operator types for them at the desk.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use rustix::process::Signal;
use viworks_testkit::deployment::{Deployment, text};
use viworks_testkit::process::{Process, Said, eventually, finish};

use super::super::desk::viworks;
use super::{LIMIT, backend, folder, gateways};

async fn typed(system: &Deployment, arguments: &[&str]) -> Said {
    let key = system.path().join("operator.key");
    let arguments = [&["ticket"][..], arguments].concat();
    finish(viworks(system, &key, &arguments), LIMIT).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_goes_into_a_new_file_that_enroll_takes_and_is_revoked_by_what_was_said() {
    let system = backend().await;
    let file = system.path().join("gw-1.ticket");
    let create = ["create", "--uses", "2", "--out", text(&file)];
    let said = typed(&system, &create).await.ended_with(0);
    let written = std::fs::read_to_string(&file).unwrap();
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert!(written.starts_with("vwt1_") && mode & 0o777 == 0o600);
    let all = format!("{}{}", said.stdout, said.stderr);
    assert!(!all.contains(written.trim_end()), "{said:#?}");
    // What is there is never replaced, and no ticket is made for nothing.
    let again = typed(&system, &create).await.ended_with(6);
    assert!(
        again.stderr.contains("name a new file with --out"),
        "{again:#?}"
    );
    assert_eq!(std::fs::read_to_string(&file).unwrap(), written);
    let made = system.get("/v1/tickets").await;
    assert_eq!(made["items"].as_array().unwrap().len(), 1, "{made}");
    let mut enroll = Command::new(system.binaries().gateway());
    enroll.args(["enroll", "--demo", "--name", "gw-1", "--out"]);
    enroll.arg(folder(&system, "gw-1"));
    enroll.args(["--ticket-file", text(&file)]);
    let _enrolled = finish(enroll, LIMIT).await.ended_with(0);
    assert_eq!(gateways(&system).await.len(), 1);
    // As it is typed from what was said.
    let mut lines = said.stderr.lines().map(str::trim_start);
    let revoke = lines.find_map(|line| line.strip_prefix("Revoke   viworks ticket "));
    let revoke: Vec<_> = revoke.unwrap().split_whitespace().collect();
    let first = typed(&system, &revoke).await.ended_with(0).stdout;
    assert!(first.contains("is revoked; "), "{first}");
    let second = typed(&system, &revoke).await.ended_with(0).stdout;
    assert!(second.contains("was revoked already, "), "{second}");
    // One that nobody got to see is named as well.
    let plain = viworks(
        &system,
        &system.path().join("operator.key"),
        &["ticket", "create"],
    );
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" >/dev/full"]);
    command.arg(plain.get_program()).args(plain.get_args());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let said = finish(command, LIMIT).await.ended_with(1);
    let made = system.get("/v1/tickets?limit=1").await;
    let id = made["items"][0]["id"].as_str().unwrap();
    let told = format!("revoke it: viworks ticket revoke {id}");
    assert!(said.stderr.contains(&told), "{said:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_that_is_not_answered_leaves_no_file_when_it_is_interrupted() {
    let system = backend().await;
    let key = system.path().join("operator.key");
    // It takes whoever connects, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("http://{}", silent.local_addr().unwrap());
    let file = system.path().join("gw-1.ticket");
    let create = ["ticket", "create", "--out", text(&file)];
    let unanswered = || {
        let mut command = viworks(&system, &key, &create);
        command.env("VIWORKS_SERVER", &server);
        command
    };
    let log = system.path().join("create.log");
    let mut process = Process::start(&mut unanswered(), &log).unwrap();
    eventually("the file is there", LIMIT, async || {
        file.exists().then_some(())
    })
    .await;
    process.signal(Signal::INT);
    let ended = process.wait(LIMIT).await;
    assert_eq!(ended.code(), Some(130), "{}", process.log());
    let told = "whether a ticket was made is not known";
    assert!(process.log().contains(told), "{}", process.log());
    assert!(!file.exists());
    // One of a call that was killed is told of as what it is.
    std::fs::write(&file, "").unwrap();
    let said = finish(unanswered(), LIMIT).await.ended_with(6);
    for told in ["is there already, and empty", "remove it: rm "] {
        assert!(said.stderr.contains(told), "{said:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_ticket_can_be_is_told_in_words_of_the_flags() {
    let system = backend().await;
    for (flags, told) in [
        (&["--ttl", "91d"][..], "at most 90 days"),
        (&["--ttl", "500ms"], "at least 1s"),
        (&["--name", "gw-1", "--uses", "2"], "leave --uses out"),
        (&["--out", "-"], "leave --out out"),
        (&["--name-prefix", "Gw-"], "'--name-prefix <PREFIX>'"),
        (&["-l", "=berlin"], "'--label <KEY=VALUE>'"),
    ] {
        let said = typed(&system, &[&["create"][..], flags].concat()).await;
        let said = said.ended_with(2);
        assert!(said.stderr.contains(told), "{told}: {said:#?}");
        assert!(!said.stderr.contains("expires_in_ms"), "{said:#?}");
    }
    let made = system.get("/v1/tickets").await;
    assert_eq!(made["items"].as_array().unwrap().len(), 0, "{made}");
}
