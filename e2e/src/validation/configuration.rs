//! A backend whose configuration cannot be used does not start: it says so with 78, and names what it is.

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
    let found = look(scene, broken).await;
    found.unwrap_or_else(|error| {
        Finding::fail(
            "not started",
            error.to_string(),
            "install the backend of this release",
        )
    })
}

async fn look(scene: &Scene, broken: Option<Break>) -> std::io::Result<Finding> {
    let (program, script) = match broken {
        Some(Break::BackendConfiguration) => (PathBuf::from("/bin/true"), None),
        Some(Break::BackendStart) => (PathBuf::from("/bin/sh"), Some(refusing(scene)?)),
        _ => (scene.first().binaries().backend(), None),
    };
    let start = || {
        let mut command = Command::new(&program);
        command.args(&script);
        command
    };
    let config = scene.first().backend_config();
    // Refused for what is laid over it, and not because it is always refused.
    let plain = tries(start(), "check-config", &config, None).await?;
    if plain.code != Some(0) {
        return Ok(Finding::fail(
            plain.end(),
            format!(
                "`check-config` does not take the configuration as it is: {}",
                plain.said.lines().last().unwrap_or_default()
            ),
            "viworks-backend-agent check-config lists every problem of the configuration",
        ));
    }
    let mut refused = 0;
    for (variable, value, what) in OVERLAYS {
        for verb in ["check-config", "serve"] {
            let tried = tries(start(), verb, &config, Some((variable, value))).await?;
            let named = tried.said.contains(variable);
            if tried.code == Some(78) && named {
                refused += 1;
                continue;
            }
            let silent = if named { "" } else { ", and does not name it" };
            let end = tried.end();
            let reason = format!("`{verb}` with {what}: {end}{silent}");
            return Ok(Finding::fail(
                end,
                reason,
                "install the backend of this release",
            ));
        }
    }
    Ok(Finding::Pass(format!(
        "{refused} of {refused} starts refused with 78"
    )))
}

/// A backend that takes no configuration at all, for a shell to read: a program that was just written cannot be
/// executed while somebody else, who was forked meanwhile, still holds it open.
fn refusing(scene: &Scene) -> std::io::Result<PathBuf> {
    let script = scene.first().path().join("refusing.sh");
    std::fs::write(&script, "exit 78\n")?;
    Ok(script)
}

/// How a start went.
struct Tried {
    /// What it ended with; `None` when it goes on, or was ended by a signal.
    code: Option<i32>,
    /// What it said on standard error.
    said: String,
}

impl Tried {
    fn end(&self) -> String {
        let code = self.code;
        code.map_or_else(|| "no end".to_owned(), |code| format!("exit code {code}"))
    }
}

async fn tries(
    mut command: Command,
    verb: &str,
    config: &Path,
    overlay: Option<(&str, &str)>,
) -> std::io::Result<Tried> {
    let folder = tempfile::tempdir()?;
    command
        .args([verb, "--config"])
        .arg(config)
        .arg("--state-folder")
        .arg(folder.path())
        .envs(overlay)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    Ok(match timeout(WITHIN, command.output()).await {
        Ok(output) => {
            let output = output?;
            Tried {
                code: output.status.code(),
                said: String::from_utf8_lossy(&output.stderr).into_owned(),
            }
        }
        Err(_elapsed) => Tried {
            code: None,
            said: String::new(),
        },
    })
}
