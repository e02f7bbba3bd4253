//! Starting, watching and stopping the demo's processes.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::time::{Instant, sleep};
use viworks_runtime::exit::ExitCode;

use super::context;
use super::layout::{FIRST, Layout, Process, QUEUE_SERVER, SERVER};
use crate::failure::Failure;
use crate::output;

/// How long a process may take until it says that it is ready.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How long a process may take to stop before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(25);
const POLL: Duration = Duration::from_millis(20);

/// The two production programs, found beside this one.
#[derive(Debug, Clone)]
pub struct Programs {
    pub backend: PathBuf,
    pub gateway: PathBuf,
}

impl Programs {
    pub fn find() -> Result<Self, Failure> {
        let me = std::env::current_exe()?;
        let folder = me.parent().unwrap_or_else(|| Path::new("."));
        let find = |name: &str| {
            let path = folder.join(name);
            if path.is_file() {
                Ok(path)
            } else {
                Err(Failure::new(
                    ExitCode::Config,
                    format!("{} was not found", path.display()),
                )
                .with(format!(
                    "fix: build it (cargo build -p {name}) or install it beside viworks"
                )))
            }
        };
        Ok(Self {
            backend: find("viworks-backend-agent")?,
            gateway: find("viworks-gateway-agent")?,
        })
    }
}

/// A program that has failed.
#[derive(Debug)]
pub struct Ended {
    /// What it ended with, when no signal did it.
    pub code: Option<i32>,
    /// Why.
    pub failure: Failure,
}

/// Runs a program to its end; its output becomes the failure's detail when it fails.
pub async fn run_to_end(
    layout: &Layout,
    program: &Path,
    arguments: &[&str],
) -> Result<(), Failure> {
    let ended = end_of(layout, program, arguments).await?;
    ended.map_err(|ended| ended.failure)
}

/// Runs a program to its end, with how it failed. It is killed when nobody waits for that any more.
pub async fn end_of(
    layout: &Layout,
    program: &Path,
    arguments: &[&str],
) -> Result<Result<(), Ended>, Failure> {
    let output = tokio::process::Command::new(program)
        .args(arguments)
        .env(MARK, layout.root())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    if output.status.success() {
        return Ok(Ok(()));
    }
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let failure = Failure::new(
        exit_of(output.status),
        format!(
            "{name} {} ended with {}",
            arguments.join(" "),
            output.status
        ),
    );
    let failure = String::from_utf8_lossy(&output.stderr)
        .lines()
        .rev()
        .take(8)
        .fold(failure, |failure, line| failure.with(line));
    Ok(Err(Ended {
        code: output.status.code(),
        failure,
    }))
}

/// What the demo ends with after one of its programs: what may pass by itself, such as a full disk, does so for both.
fn exit_of(status: ExitStatus) -> ExitCode {
    let passes = ExitCode::Unavailable;
    if status.code() == Some(i32::from(passes.number())) {
        passes
    } else {
        ExitCode::Error
    }
}

/// A child that writes its log to a file and is in a process group of its own, so that Ctrl-C reaches `up` alone.
pub struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    pub fn start(
        layout: &Layout,
        name: &str,
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, String)],
    ) -> Result<Self, Failure> {
        let mut command = Command::new(program);
        command.args(arguments).envs(
            environment
                .iter()
                .map(|(key, value)| (*key, value.as_str())),
        );
        Self::spawn(layout, name, command)
    }

    /// The same of a command that is somebody else's program.
    pub fn spawn(layout: &Layout, name: &str, mut command: Command) -> Result<Self, Failure> {
        let log = layout.log(name);
        let file = OpenOptions::new().create(true).append(true).open(&log)?;
        let child = command
            .env(MARK, layout.root())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .map_err(|error| {
                Failure::new(
                    ExitCode::Error,
                    format!(
                        "{} could not be started: {error}",
                        Path::new(command.get_program()).display()
                    ),
                )
            })?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// What to remember about it.
    pub fn observe(&self) -> Option<Process> {
        Process::observe(&self.name, self.child.id())
    }

    /// Why, when it has ended by itself.
    pub fn ended(&mut self) -> Result<Option<Failure>, Failure> {
        let Some(status) = self.child.try_wait()? else {
            return Ok(None);
        };
        let failure = Failure::new(
            exit_of(status),
            format!("{} ended by itself with {status}", self.name),
        );
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.iter().skip(lines.len().saturating_sub(5));
        Ok(Some(
            last.fold(failure, |failure, line| failure.with(*line))
                .with(format!("log: {}", self.log.display())),
        ))
    }

    /// Waits until its ready file is there and reads it.
    pub async fn ready<T: for<'de> Deserialize<'de>>(&mut self, file: &Path) -> Result<T, Failure> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            if let Ok(text) = std::fs::read(file) {
                return serde_json::from_slice(&text).map_err(|error| {
                    Failure::new(
                        ExitCode::Error,
                        format!("{} holds no addresses: {error}", file.display()),
                    )
                });
            }
            if let Some(failure) = self.ended()? {
                return Err(failure);
            }
            if Instant::now() >= deadline {
                return Err(Failure::new(
                    ExitCode::Unavailable,
                    format!(
                        "{} was not ready in {} s",
                        self.name,
                        READY_WITHIN.as_secs()
                    ),
                )
                .with(format!("log: {}", self.log.display())));
            }
            sleep(POLL).await;
        }
    }
}

/// Why the demo cannot go on, when one of its processes has ended by itself.
pub fn failure_of(running: &mut [Running]) -> Result<Option<Failure>, Failure> {
    for one in running {
        if let Some(failure) = one.ended()? {
            return Ok(Some(failure));
        }
    }
    Ok(None)
}

/// Stops children in order: asks, waits, kills what does not listen, and reaps all.
pub async fn stop(running: &mut Vec<Running>) {
    // Gateways first, so that they say goodbye to a backend that is still there; and that one before its servers.
    running.reverse();
    let (servers, agents): (Vec<Running>, Vec<Running>) = running
        .drain(..)
        .partition(|one| [SERVER, QUEUE_SERVER].contains(&one.name.as_str()));
    let (backend, gateways): (Vec<Running>, Vec<Running>) = agents
        .into_iter()
        .partition(|one| one.name.starts_with(FIRST));
    for mut group in [gateways, backend, servers] {
        for one in &group {
            signal(one.child.id(), goodbye(one.child.id()));
        }
        let deadline = Instant::now() + STOP_WITHIN;
        for one in &mut group {
            while matches!(one.child.try_wait(), Ok(None)) {
                if Instant::now() >= deadline {
                    output::note(&format!("{} did not stop in time and was killed", one.name));
                    signal(one.child.id(), Signal::KILL);
                    // Reaps it; a killed process ends.
                    let _status = one.child.wait();
                    break;
                }
                sleep(POLL).await;
            }
        }
    }
}

/// What asks a process to end. A database server that is asked politely waits until everybody has gone.
fn goodbye(pid: u32) -> Signal {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.trim_end() == SERVER {
        Signal::INT
    } else {
        Signal::TERM
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // A process that is already gone needs no signal.
        let _sent = kill_process(pid, signal);
    }
}

/// The environment variable by which a demo's processes are found whatever became of their `up`: its folder.
pub const MARK: &str = "VIWORKS_DEMO_FOLDER";

/// What still runs of the demo in this folder, without its `up`.
pub fn left_running(layout: &Layout) -> Vec<Process> {
    let mark = format!("{MARK}={}", layout.root().display()).into_bytes();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| {
            // Observed first: if it is somebody else's by now, its environment does not fit.
            let process = Process::observe("a process of the demo", pid)?;
            // Other users' processes cannot be read, and are not ours to stop.
            let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
            let marked = environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == mark);
            marked.then_some(process)
        })
        .collect()
}

/// `viworks down`: stops what an earlier `up` started, and only that.
pub async fn down(data_dir: &Path, config_dir: Option<&Path>) -> Result<(), Failure> {
    let layout = Layout::at(data_dir)?;
    layout.refuse_strangers()?;
    let up = layout.load_started().map(|started| started.up);
    let up = up.filter(Process::is_alive);
    if up.is_none() && left_running(&layout).is_empty() {
        layout.remove_sockets();
        layout.forget_started()?;
        context::forget(config_dir, &layout);
        output::note(&format!(
            "nothing to stop: no demo runs in {} (--data-dir names another folder)",
            layout.root().display()
        ));
        return Ok(());
    }
    stop_demo(&layout, up.as_ref()).await?;
    layout.remove_sockets();
    layout.forget_started()?;
    // An `up` that was killed could not.
    context::forget(config_dir, &layout);
    let up = layout.up();
    output::note(&format!(
        "the demo is stopped; its data stays ({up} starts it again, {up} --reset starts over)"
    ));
    Ok(())
}

/// `up` stops its children itself when it is asked to; without it they are asked one by one.
pub async fn stop_demo(layout: &Layout, up: Option<&Process>) -> Result<(), Failure> {
    let first = up
        .cloned()
        .map_or_else(|| left_running(layout), |up| vec![up]);
    for process in &first {
        signal(process.pid, goodbye(process.pid));
    }
    let deadline = Instant::now() + STOP_WITHIN * 2;
    loop {
        let mut left = left_running(layout);
        left.extend(up.filter(|up| up.is_alive()).cloned());
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            for process in &left {
                signal(process.pid, Signal::KILL);
            }
            return Err(Failure::new(
                ExitCode::Error,
                "some processes did not stop in time and were killed",
            ));
        }
        sleep(POLL).await;
    }
}
