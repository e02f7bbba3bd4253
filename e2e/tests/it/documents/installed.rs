//! The blocks of the page of the first installation, typed in a folder where nothing is yet.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::PATIENCE;
use viworks_testkit::process::finish;

use super::{INSTALL, blocks, environment, page};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_installation_by_hand_works_as_printed() {
    by_hand(Command::new("bash"), |_folder| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_installation_by_hand_needs_no_root() {
    if !rustix::process::geteuid().is_root() {
        // Then the other test is this one.
        return;
    }
    let mut shell = Command::new("setpriv");
    shell.args(["--reuid=65534", "--regid=65534", "--clear-groups", "bash"]);
    by_hand(shell, |folder| {
        std::os::unix::fs::chown(folder, Some(65_534), Some(65_534)).unwrap();
    })
    .await;
}

/// Does what the page says, in a folder that was prepared for whoever the shell is.
async fn by_hand(mut shell: Command, prepare: impl FnOnce(&Path)) {
    let every = blocks(&page(INSTALL));
    assert!(every.iter().all(|block| block.not_run.is_none()));
    let folder = TempDir::with_prefix("viworks install ").unwrap();
    let programs = folder.path().join("target/debug");
    std::fs::create_dir_all(&programs).unwrap();
    let shipped = Binaries::shipped();
    for program in [shipped.cli(), shipped.backend(), shipped.gateway()] {
        // Where they are built another user may not go.
        let here = programs.join(program.file_name().unwrap());
        std::fs::hard_link(&program, &here)
            .or_else(|_elsewhere| std::fs::copy(&program, &here).map(|_bytes| ()))
            .unwrap();
    }
    prepare(folder.path());
    let mut steps: Vec<String> = every.into_iter().map(|block| block.script).collect();
    let start = steps.iter().find(|step| step.contains(" serve "));
    let again = with_a_door(start.unwrap());
    steps.push(again);
    // Whatever fails, nothing stays.
    let steps = steps.join("\n");
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let holders = [free(), free(), free()];
    let [api, agents, door] = holders
        .each_ref()
        .map(|holder| holder.local_addr().unwrap().port().to_string());
    // Somebody else may have the ports of the page.
    let ports = [("9080", &api), ("9081", &agents), ("9082", &door)];
    // One that is free may have another one of the page in it.
    let steps = ports.iter().fold(steps, |steps, (port, _own)| {
        steps.replace(port, &format!("PORT-{port}"))
    });
    let steps = ports.iter().fold(steps, |steps, (port, own)| {
        steps.replace(&format!("PORT-{port}"), own)
    });
    drop(holders);
    let script =
        format!("set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{steps}");
    shell.args(["-c", &script]);
    environment(&mut shell, folder.path());
    let said = finish(shell, PATIENCE).await;
    assert_eq!(said.code, Some(0), "{script}\n{said:#?}");
    assert!(said.stdout.contains("gw-first"), "{said:#?}");
    let last = said.stdout.lines().last().unwrap_or_default();
    assert!(last.starts_with("vwt1_"), "{said:#?}");
}

/// What the page says of a door for new gateways, to be done behind the rest: its lines in the configuration, the step
/// that starts the backend once more, and a ticket.
fn with_a_door(start: &str) -> String {
    let text = page(INSTALL);
    let mut found = text.split("\n```toml\n").skip(1);
    let block = found.next().and_then(|rest| rest.split("\n```").next());
    let block = block.unwrap();
    assert!(block.contains("[enrolment]") && found.next().is_none());
    format!(
        "rm -f backend.ready\ncat >>backend/backend.toml <<'END'\n\n{block}\nEND\n{start}\nviworks ticket create\n\
         kill \"$backend\"\nwait \"$backend\""
    )
}
