//! How soon a backend on the embedded database is ready, at its first start and at the next one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::time::{Instant, sleep};
use viworks_operator_cli::validation::Finding;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::Deployment;
use viworks_testkit::process::Process;

use crate::breaks::Break;

/// How long a start may take.
const READY_MAX: Duration = Duration::from_secs(2);
/// After how long one is given up, and a stop.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

pub(crate) async fn check(programs: &'static Binaries, broken: Option<Break>) -> Finding {
    let fix = "look at what the machine is busy with, and at its disk";
    match measure(programs, broken).await {
        Ok((first, next)) => {
            let measured = format!(
                "ready after {} ms, and {} ms when started again",
                first.as_millis(),
                next.as_millis()
            );
            if first.max(next) < READY_MAX {
                return Finding::Pass(measured);
            }
            let reason = "a start took as long as the limit, or longer";
            Finding::fail(measured, reason, fix)
        }
        Err(error) => Finding::fail("not started", format!("{error:#}"), fix),
    }
}

async fn measure(
    programs: &'static Binaries,
    broken: Option<Break>,
) -> anyhow::Result<(Duration, Duration)> {
    let site = Deployment::new(programs);
    let program = match broken {
        Some(Break::BackendStart) => slow(&site)?,
        _ => programs.backend(),
    };
    Ok((once(&site, &program).await?, once(&site, &program).await?))
}

/// The backend behind a program that takes its time.
fn slow(site: &Deployment) -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;

    let script = site.path().join("slow.sh");
    let backend = site.binaries().backend();
    let text = format!(
        "#!/bin/sh\nsleep 2.5\nexec '{}' \"$@\"\n",
        backend.display()
    );
    std::fs::write(&script, text)?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

/// From the start until it says that it takes connections.
async fn once(site: &Deployment, program: &Path) -> anyhow::Result<Duration> {
    let ready = site.path().join("start-ready.json");
    if ready.exists() {
        std::fs::remove_file(&ready)?;
    }
    let mut command = Command::new(program);
    command
        .args(["serve", "--config"])
        .arg(site.backend_config())
        .arg("--ready-file")
        .arg(&ready)
        .env("VIWORKS__API__LISTEN", "127.0.0.1:0")
        .env("VIWORKS__AGENTS__LISTEN", "127.0.0.1:0");
    let begun = Instant::now();
    let log = site.path().join("start.log");
    let mut process = Process::start(&mut command, &log).context("the backend")?;
    while !ready.exists() {
        if let Some(status) = process.ended() {
            bail!("the backend ended with {status}: {}", process.log());
        }
        ensure!(begun.elapsed() < GIVEN_UP_AFTER, "it does not become ready");
        sleep(POLL).await;
    }
    let took = begun.elapsed();
    let status = process.stop(GIVEN_UP_AFTER).await;
    ensure!(status.success(), "the backend ended with {status}");
    Ok(took)
}
