//! A backend whose configuration cannot be used does not start, and says so with 78.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;
use viworks_operator_cli::validation::Finding;

use crate::breaks::Break;
use crate::scene::Scene;

/// How long a refusal may take.
const WITHIN: Duration = Duration::from_secs(10);

/// What is laid over a configuration that is valid, and what that makes of it.
const OVERLAYS: [(&str, &str, &str); 4] = [
    (
        "VIWORKS__API__LISTEN",
        "0.0.0.0:0",
        "a plain-text API for everybody",
    ),
    ("VIWORKS__AGENTS__NO_SUCH_KEY", "1", "an unknown key"),
    ("VIWORKS__KEYS__MASTER_KEY_FILE", "absent", "no master key"),
    (
        "VIWORKS__AGENTS__KEY_FILE",
        "next.key",
        "the key of another certificate",
    ),
];

pub(crate) async fn check(scene: &Scene, broken: Option<Break>) -> Finding {
    let program = match broken {
        Some(Break::BackendConfiguration) => PathBuf::from("/bin/true"),
        _ => scene.first().binaries().backend(),
    };
    let config = scene.first().backend_config();
    let mut refused = 0;
    for (variable, value, what) in OVERLAYS {
        for verb in ["check-config", "serve"] {
            let fix = "install the backend of this release";
            match code(&program, verb, &config, (variable, value)).await {
                Ok(Some(78)) => refused += 1,
                Ok(Some(code)) => {
                    let reason = format!("`{verb}` with {what} ended with {code}");
                    return Finding::fail(format!("exit code {code}"), reason, fix);
                }
                Ok(None) => {
                    let reason = format!("`{verb}` with {what} goes on");
                    return Finding::fail("no end", reason, fix);
                }
                Err(error) => return Finding::fail("not started", error.to_string(), fix),
            }
        }
    }
    Finding::Pass(format!("{refused} of {refused} starts refused with 78"))
}

async fn code(
    program: &Path,
    verb: &str,
    config: &Path,
    overlay: (&str, &str),
) -> std::io::Result<Option<i32>> {
    let folder = tempfile::tempdir()?;
    let mut process = Command::new(program)
        .args([verb, "--config"])
        .arg(config)
        .arg("--state-folder")
        .arg(folder.path())
        .env(overlay.0, overlay.1)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    match timeout(WITHIN, process.wait()).await {
        Ok(status) => Ok(status?.code()),
        Err(_elapsed) => Ok(None),
    }
}
