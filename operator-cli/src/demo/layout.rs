//! Where the demo keeps its files, and what it remembers about what it started.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use viworks_runtime::exit::ExitCode;
use viworks_runtime::files;

use crate::error::Failure;

/// The demo's folder.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The demo below `root`, made absolute because children may run elsewhere.
    pub fn at(root: &Path) -> Result<Self, Failure> {
        Ok(Self {
            root: std::path::absolute(root)?,
        })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The backend's certificates, keys, configuration and database.
    pub fn backend(&self) -> PathBuf {
        self.root.join("backend")
    }

    /// The backend's configuration.
    pub fn backend_config(&self) -> PathBuf {
        self.backend().join("backend.toml")
    }

    /// One gateway's files.
    pub fn gateway(&self, name: &str) -> PathBuf {
        self.root.join("gateways").join(name)
    }

    /// The operator's API key.
    pub fn token(&self) -> PathBuf {
        self.root.join("operator.key")
    }

    /// A process's log.
    pub fn log(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }

    /// Where a process writes its addresses once it is ready.
    pub fn ready(&self, name: &str) -> PathBuf {
        self.root.join("run").join(format!("{name}.json"))
    }

    fn started(&self) -> PathBuf {
        self.root.join("run").join("demo.json")
    }

    /// Makes the folders, readable by their owner alone.
    pub fn create(&self) -> Result<(), Failure> {
        for folder in [
            self.root.clone(),
            self.root.join("logs"),
            self.root.join("run"),
            self.root.join("gateways"),
        ] {
            files::create_private_folder(&folder).map_err(|error| {
                Failure::new(ExitCode::Error, error.to_string())
                    .with("fix: use another place: viworks up --data-dir DIR")
            })?;
        }
        Ok(())
    }

    /// What an earlier `up` started and did not stop.
    pub fn load_started(&self) -> Option<Started> {
        serde_json::from_slice(&std::fs::read(self.started()).ok()?).ok()
    }

    /// Remembers what was started.
    pub fn save_started(&self, started: &Started) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(started)
            .map_err(|error| Failure::new(ExitCode::Error, error.to_string()))?;
        files::write_atomic(&self.started(), &text)
            .map_err(|error| Failure::new(ExitCode::Error, error.to_string()))
    }

    /// Forgets it.
    pub fn forget_started(&self) -> Result<(), Failure> {
        match std::fs::remove_file(self.started()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What `up` started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Started {
    /// The process that runs `viworks up` itself.
    pub up: Process,
    /// Where its backend listens, once everything is started.
    pub addresses: Option<Addresses>,
    /// The backend first, then the gateways.
    pub processes: Vec<Process>,
}

/// Where a demo's backend listens, `host:port` each, as its ready file says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Addresses {
    /// For operators.
    pub api: String,
    /// For agents.
    pub agents: String,
}

/// One process, told apart from a later one with the same number by its start time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// What it is.
    pub name: String,
    /// Its number.
    pub pid: u32,
    /// Its start, in clock ticks since boot.
    pub started_ticks: u64,
}

impl Process {
    /// The process `pid` as it runs at this moment.
    pub fn observe(name: &str, pid: u32) -> Option<Self> {
        Some(Self {
            name: name.to_owned(),
            pid,
            started_ticks: start_ticks(pid)?,
        })
    }

    /// Whether this very process still runs.
    pub fn is_alive(&self) -> bool {
        start_ticks(self.pid) == Some(self.started_ticks)
    }
}

/// Field 22 of `/proc/PID/stat` (proc(5)); `None` when the process is gone or a zombie.
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is in parentheses and may hold blanks; what follows the last one is regular.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::Process;

    #[test]
    fn this_process_is_alive_and_its_predecessor_is_not() {
        let me = Process::observe("me", std::process::id()).unwrap();
        assert!(me.is_alive());
        assert!(
            !Process {
                started_ticks: me.started_ticks.wrapping_add(1),
                ..me
            }
            .is_alive()
        );
    }
}
