//! The measured server as a child process: ours or the reference, with what the kernel says about it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use viworks_runtime::config::environment;

use crate::processor;
use crate::system::System;

/// Tells a process started from this very program what it is.
pub(crate) const ROLE: &str = "VIWORKS_BENCH_ROLE";

/// Tell a reference on servers where they are: its database, and its queue.
pub(crate) const RELAY: [&str; 2] = ["VIWORKS_BENCH_POSTGRES", "VIWORKS_BENCH_REDIS"];

/// How long a server may take to listen.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How long one may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// What runs in a server process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The backend: the main function that ships, in this program's build profile.
    Ours,
    /// The bare reference.
    Reference,
}

impl Role {
    /// What this process was started as; `None` for the one that measures.
    pub(crate) fn of_this_process() -> Option<Self> {
        match environment().get(ROLE)? {
            "ours" => Some(Self::Ours),
            _ => Some(Self::Reference),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Reference => "reference",
        }
    }
}

/// Where a server listens, as its ready file says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Addresses {
    /// For HTTP.
    pub(crate) api: String,
    /// For agents.
    pub(crate) agents: String,
}

/// A running server; killed when it is dropped.
pub(crate) struct Server {
    child: Child,
    /// Where it listens.
    pub(crate) addresses: Addresses,
}

impl Server {
    /// Starts one on free ports, or on those of `before`, and waits until it listens.
    pub(crate) async fn start(
        role: Role,
        system: &System,
        before: Option<&Addresses>,
    ) -> anyhow::Result<Self> {
        Self::start_as(role, role.name(), system, before).await
    }

    /// Starts another one beside the first, with a state folder of its own.
    pub(crate) async fn beside(role: Role, system: &System) -> anyhow::Result<Self> {
        let name = format!("other-{}", role.name());
        Self::start_as(role, &name, system, None).await
    }

    async fn start_as(
        role: Role,
        name: &str,
        system: &System,
        before: Option<&Addresses>,
    ) -> anyhow::Result<Self> {
        let ready = system.place(&format!("{name}-ready.json"));
        if ready.exists() {
            std::fs::remove_file(&ready)?;
        }
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(system.place(&format!("{name}.log")))?;
        let state = system.state(name)?;
        let any = Addresses {
            api: "127.0.0.1:0".to_owned(),
            agents: "127.0.0.1:0".to_owned(),
        };
        let wanted = before.unwrap_or(&any);
        let relay = system.relay.iter().flatten();
        let relay = RELAY.iter().zip(relay);
        let mut child = Command::new(std::env::current_exe()?)
            .envs(relay)
            .args(["serve", "--config"])
            .arg(system.config())
            .arg("--ready-file")
            .arg(&ready)
            .env(ROLE, role.name())
            .env("VIWORKS__DATA__STATE_FOLDER", state)
            .env("VIWORKS__API__LISTEN", &wanted.api)
            .env("VIWORKS__AGENTS__LISTEN", &wanted.agents)
            .env("VIWORKS__AGENTS__PER_SOURCE_MAX", "200000")
            .env("VIWORKS__API__KEY_REQUESTS_PER_MINUTE", "100000000")
            .env("VIWORKS__API__KEY_REQUESTS_BURST", "1000000")
            .env("VIWORKS__LOG__FILTER", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("the server cannot be started")?;
        let deadline = Instant::now() + READY_WITHIN;
        let addresses = loop {
            if let Some(addresses) = read(&ready) {
                break addresses;
            }
            if let Some(status) = child.try_wait()? {
                let log = std::fs::read_to_string(system.place(&format!("{name}.log")));
                bail!(
                    "the server ended with {status}: {}",
                    log.unwrap_or_default()
                );
            }
            if Instant::now() >= deadline {
                // Reaps it; a killed process ends.
                drop(child.kill());
                drop(child.wait());
                bail!("the server does not listen");
            }
            sleep(Duration::from_millis(5)).await;
        };
        Ok(Self { child, addresses })
    }

    /// kill -9; its addresses, for its successor.
    pub(crate) fn kill(mut self) -> Addresses {
        self.end();
        self.addresses.clone()
    }

    /// SIGTERM, and waits until it has ended well; its addresses, for its successor.
    pub(crate) async fn stop(mut self) -> anyhow::Result<Addresses> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("a process has an id")?, Signal::TERM)?;
        let deadline = Instant::now() + STOP_WITHIN;
        let status = loop {
            match self.child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() >= deadline => bail!("the server does not stop"),
                None => sleep(Duration::from_millis(5)).await,
            }
        };
        ensure!(status.success(), "the server ended with {status}");
        Ok(self.addresses.clone())
    }

    /// Resident memory, in bytes: `Rss` of `smaps_rollup` (proc(5)).
    pub(crate) fn resident_bytes(&self) -> anyhow::Result<u64> {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:"));
        let kib: u64 = line
            .and_then(|line| line.trim().strip_suffix("kB"))
            .context("no Rss in smaps_rollup")?
            .trim()
            .parse()?;
        Ok(kib * 1024)
    }

    /// Forgets the peak of its memory (`clear_refs`, proc(5)).
    pub(crate) fn forget_peak(&self) -> anyhow::Result<()> {
        Ok(std::fs::write(
            format!("/proc/{}/clear_refs", self.child.id()),
            "5",
        )?)
    }

    /// The peak of its resident memory, in bytes: `VmHWM` of `status` (proc(5)).
    pub(crate) fn peak_bytes(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib: u64 = line
            .and_then(|line| line.trim().strip_suffix("kB"))
            .context("no VmHWM in status")?
            .trim()
            .parse()?;
        Ok(kib * 1024)
    }

    /// Processor time used so far.
    pub(crate) fn cpu_time(&self) -> anyhow::Result<Duration> {
        processor::of_process(self.child.id())
    }

    /// How often its threads have waited for something and gone on: `voluntary_ctxt_switches` of each (proc(5)).
    pub(crate) fn wakeups(&self) -> anyhow::Result<u64> {
        let mut sum = 0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // One that ends meanwhile has no status any more.
            let status = std::fs::read_to_string(thread?.path().join("status")).unwrap_or_default();
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            sum += line.map_or(Ok(0), |line| line.trim().parse::<u64>())?;
        }
        Ok(sum)
    }

    fn end(&mut self) {
        // One that ended by itself needs no signal.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

fn read(ready: &Path) -> Option<Addresses> {
    serde_json::from_slice(&std::fs::read(ready).ok()?).ok()
}

/// Lets this process and its children hold a socket for each agent.
pub(crate) fn raise_file_limit(agents: usize) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let needed = u64::try_from(agents)? + 512;
    if let Some(maximum) = limit.maximum
        && maximum < needed
    {
        bail!(
            "{agents} agents need {needed} open files and the limit is {maximum}; raise it (ulimit -Hn) or use --agents"
        );
    }
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )
    .context("the limit of open files cannot be raised")
}
