//! The agent of the gateway that is validated with: the shipped program, with a catalogue and a state of its own.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::{ask, files};

/// The only command of its catalogue.
pub(super) const COMMAND: &str = "validation.echo";
/// The stream of the telemetry that is handed in.
pub(super) const STREAM: &str = "validation.flow";

/// Its local API and its catalogue, in its folder.
const SOCKET: &str = "api.sock";
const COMMANDS: &str = "commands.d";
/// Where no backend is.
const NOBODY: &str = "wss://127.0.0.1:1";

/// Records of one request.
const BATCH: u32 = 500;
/// How long it may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(45);
/// How long its local API may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A running agent, in a folder that goes with it.
#[derive(Debug)]
pub(super) struct Agent {
    command: Command,
    process: Child,
    socket: PathBuf,
    log: PathBuf,
    /// Its state and catalogue.
    _folder: TempDir,
}

impl Agent {
    /// Starts it for the gateway in `papers`.
    pub(super) fn start(program: &Path, papers: &Path) -> Result<Self, String> {
        let failed = |error: &dyn std::error::Error| crate::failure::chain(error);
        let folder = own_folder()?;
        let log = folder.path().join("agent.log");
        let output = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log);
        let output = output.map_err(|error| failed(&error))?;
        let mut command = command(program, "run", papers, folder.path());
        // As many as are handed in, at once.
        command.env("VIWORKS__INTAKE__RECORDS_PER_MINUTE", "100000");
        command.stderr(output);
        let process = command.spawn();
        let process = process.map_err(|error| format!("{}: {error}", program.display()))?;
        Ok(Self {
            command,
            process,
            socket: folder.path().join(SOCKET),
            log,
            _folder: folder,
        })
    }

    /// Stops it as a service manager does, and starts it again; it may not be connected yet.
    pub(super) async fn restart(&mut self) -> Result<(), String> {
        self.terminate();
        let stopped = timeout(STOP_WITHIN, self.process.wait()).await;
        stopped
            .map_err(|_elapsed| "the agent does not stop".to_owned())?
            .map_err(|error| error.to_string())?;
        self.process = self.command.spawn().map_err(|error| error.to_string())?;
        Ok(())
    }

    /// Whether it has a session, as it says itself.
    pub(super) async fn is_connected(&self) -> bool {
        let answer = ask::unix(&self.socket, "/v1/status", ANSWER_WITHIN).await;
        let status = answer
            .ok()
            .and_then(|answer| serde_json::from_slice::<Value>(&answer.body).ok());
        status.is_some_and(|status| status["connection"]["connected"] == true)
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().ok().flatten()
    }

    /// The last line that it wrote.
    pub(super) fn last_line(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        crate::output::last_line(&log)
    }

    /// Hands in `count` records, numbered from nought. Answers how many were taken.
    pub(super) async fn hand_in(&self, count: u32) -> Result<u32, String> {
        let mut taken = 0;
        while taken < count {
            let size = BATCH.min(count - taken);
            let now = SystemClock.wall().to_string();
            let record = |n: u32| json!({"stream": STREAM, "observed_at": now, "fields": {"n": n}});
            let records: Vec<Value> = (taken..taken + size).map(record).collect();
            let body = json!({ "records": records });
            let status = timeout(ANSWER_WITHIN, self.post("/v1/telemetry", &body)).await;
            let status = status.map_err(|_elapsed| "its local API does not answer".to_owned())?;
            match status.map_err(|error| format!("its local API: {error}"))? {
                200..300 => taken += size,
                status => return Err(format!("its local API answered {status}")),
            }
        }
        Ok(taken)
    }

    async fn post(&self, path: &str, body: &Value) -> std::io::Result<u16> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        status.ok_or_else(|| std::io::Error::other("the answer was cut"))
    }

    fn terminate(&self) {
        let pid = self.process.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            // One that is gone needs no signal.
            let _sent = kill_process(pid, Signal::TERM);
        }
    }

    /// Ends it, as it should end, or at once.
    pub(super) async fn stop(mut self) {
        self.terminate();
        if timeout(STOP_WITHIN, self.process.wait()).await.is_err() {
            // It is dropped with its folder either way.
            drop(self.process.kill().await);
        }
    }
}

/// A folder with what an agent needs beside a gateway's papers.
fn own_folder() -> Result<TempDir, String> {
    let failed = |error: &dyn std::error::Error| crate::failure::chain(error);
    let folder = tempfile::Builder::new().prefix("viworks-").tempdir();
    let folder = folder.map_err(|error| failed(&error))?;
    let commands = folder.path().join(COMMANDS);
    files::create_private_folder(&commands).map_err(|error| failed(&error))?;
    let catalogue = format!(
        "[[command]]\nname = \"{COMMAND}\"\ntitle = \"Answers, for a validation\"\nrisk = \"read\"\n\
         idempotent = true\nargv = [\"/bin/echo\", \"here\"]\ntimeout_ms = 10000\n"
    );
    let file = commands.join("validation.toml");
    files::write_new(&file, catalogue.as_bytes(), 0o600).map_err(|error| failed(&error))?;
    Ok(folder)
}

/// The agent for the gateway in `papers`, with everything else from `folder` and nothing from whoever calls.
fn command(program: &Path, verb: &str, papers: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _value) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("VIWORKS_") {
            command.env_remove(name);
        }
    }
    command
        .args([verb, "--config"])
        .arg(papers.join("gateway.toml"))
        .arg("--state-folder")
        .arg(folder.join("state"))
        .env("VIWORKS__GATEWAY__SOCKET", folder.join(SOCKET))
        .env("VIWORKS__EXECUTOR__COMMANDS_FOLDER", folder.join(COMMANDS))
        .env("VIWORKS__COLLECT__ENABLED", "false")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    if !rustix::process::geteuid().is_root() {
        command.env("VIWORKS__EXECUTOR__ALLOW_OWN_COMMANDS", "for_demo_only");
    }
    command
}

/// How a start went.
#[derive(Debug)]
pub(super) struct Tried {
    /// What it ended with; `None` when it goes on, or was ended by a signal.
    pub(super) code: Option<i32>,
    /// What it said on standard error.
    pub(super) said: String,
}

/// Starts it, with its configuration overlaid with something, or as it is.
pub(super) async fn tries(
    program: &Path,
    papers: &Path,
    verb: &str,
    overlay: Option<(&str, &str)>,
) -> Result<Tried, String> {
    let folder = own_folder()?;
    let mut command = command(program, verb, papers, folder.path());
    // One that goes on where it should not is not to be a second holder of the identity.
    command.env("VIWORKS__OUTBOUND__URL", NOBODY);
    command.envs(overlay).stderr(Stdio::piped());
    match timeout(ANSWER_WITHIN, command.output()).await {
        Ok(Ok(output)) => Ok(Tried {
            code: output.status.code(),
            said: String::from_utf8_lossy(&output.stderr).into_owned(),
        }),
        Ok(Err(error)) => Err(format!("{}: {error}", program.display())),
        Err(_elapsed) => Ok(Tried {
            code: None,
            said: String::new(),
        }),
    }
}
