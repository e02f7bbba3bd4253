//! A backend that is told to stop while commands run: no command fails for that, whether it ends while nobody is there
//! or after somebody is again.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use viworks_common::limits::DRAIN_TIME;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::gateway::started;
use viworks_testkit::process::eventually;

/// Commands at once on each of the two gateways.
const EACH: usize = 25;

/// A command that must not run twice, writes down that it began, and ends once the file `gate` is there.
pub(crate) const GATED: &str = "test.gated";
/// The same, and it may run twice.
pub(crate) const GATED_AGAIN: &str = "test.gated-again";

/// Gives a gateway both of them.
pub(crate) fn gated(folder: &Path) {
    let script = folder.join("gated.sh");
    let (marks, gate) = (folder.join("started"), folder.join("gate"));
    let text = format!(
        "#!/bin/sh\necho \"$VIWORKS_COMMAND_ID\" >> '{}'\nuntil [ -e '{}' ]; do sleep 0.2; done\n",
        marks.display(),
        gate.display()
    );
    let commands = folder.join("commands.d");
    std::fs::create_dir_all(&commands).unwrap();
    let file = commands.join("gated.toml");
    let argv = script.display().to_string();
    let catalogue = [(GATED, false), (GATED_AGAIN, true)].map(|(name, idempotent)| {
        format!(
            "[[command]]\nname = \"{name}\"\ntitle = \"waits\"\nrisk = \"read\"\n\
             idempotent = {idempotent}\nargv = [{argv:?}]\ntimeout_ms = 300000\n"
        )
    });
    let catalogue = catalogue.concat();
    for (path, text, mode) in [(&script, &text, 0o755), (&file, &catalogue, 0o600)] {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
}

pub(crate) fn open_gate(folder: &Path) {
    std::fs::write(folder.join("gate"), "").unwrap();
}

/// How many of the runs' commands are in this state.
async fn count(system: &Deployment, runs: &[String], state: &str) -> usize {
    let mut count = 0;
    for run in runs {
        let commands = system.commands(run).await;
        count += commands.iter().filter(|it| it["state"] == state).count();
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_command_of_fifty_that_run_fails_when_the_backend_is_told_to_stop() {
    let mut system = Deployment::new(Binaries::shipped());
    let folders = ["gw-1", "gw-2"].map(|name| system.issue(name));
    system.start_backend(Start::default()).await;
    let many = || Start::default().with("VIWORKS__EXECUTOR__PARALLEL_MAX", EACH.to_string());
    let mut gateways = Vec::new();
    for folder in &folders {
        gated(folder);
        gateways.push(system.start_gateway(folder, many()));
    }
    system.online("gw-1").await;
    system.online("gw-2").await;
    let mut runs = Vec::new();
    for number in 0..EACH {
        runs.push(system.submit(GATED, &format!("run-{number}")).await);
    }
    eventually("all fifty run", PATIENCE, async || {
        (count(&system, &runs, "running").await == 2 * EACH).then_some(())
    })
    .await;

    let begun = SystemClock.now();
    let status = system.backend().stop(PATIENCE).await;
    let took = SystemClock.now().saturating_since(begun);
    assert!(status.success(), "{status}: {}", system.backend().log());
    // It says so itself when it had to drop a task; what is left is what closing takes.
    assert!(took < DRAIN_TIME + Duration::from_secs(5), "{took:?}");
    // Half of them end while there is nobody to tell it to.
    open_gate(&folders[0]);
    system.start_backend(Start::default()).await;
    system.online("gw-1").await;
    system.online("gw-2").await;
    assert!(count(&system, &runs, "running").await >= EACH);
    open_gate(&folders[1]);
    for run in &runs {
        let run = system.finished(run).await;
        assert_eq!(run["counts"], json!({"succeeded": 2}), "{run}");
    }
    for folder in &folders {
        let marks = started(folder);
        assert_eq!(marks.len(), EACH);
        assert!(marks.values().all(|times| *times == 1), "{marks:?}");
    }
}
