//! A verb of the backend's program on what a deployment has, with listeners on free ports where it listens at all.

use std::process::Command;

use viworks_testkit::deployment::{Deployment, PATIENCE};
use viworks_testkit::process::{Said, finish};

/// The verb, to be run.
pub(crate) fn command(system: &Deployment, arguments: &[&str]) -> Command {
    let mut command = Command::new(system.binaries().backend());
    command
        .args(arguments)
        .arg("--config")
        .arg(system.backend_config())
        .env("VIWORKS__API__LISTEN", "127.0.0.1:0")
        .env("VIWORKS__AGENTS__LISTEN", "127.0.0.1:0");
    command
}

/// What it says, and what it ends with.
pub(crate) async fn backend(system: &Deployment, arguments: &[&str]) -> Said {
    finish(command(system, arguments), PATIENCE).await
}
