//! An operator's desk: a backend, two gateways with the commands a test wants, and the command line.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::gateway::mark_starts;
use viworks_testkit::process::{Process, Said, finish};

/// The desk and all that runs for it.
pub(crate) struct Desk {
    pub(crate) system: Deployment,
    pub(crate) token: PathBuf,
    pub(crate) gateways: Vec<Process>,
}

impl Desk {
    /// Two gateways with a catalogue of their own.
    pub(crate) async fn open(catalogue: &str, backend: Start) -> Self {
        Self::of(&["gw-1", "gw-2"], catalogue, backend).await
    }

    /// These gateways.
    pub(crate) async fn of(names: &[&str], catalogue: &str, backend: Start) -> Self {
        let mut system = Deployment::new(Binaries::shipped());
        let folders: Vec<PathBuf> = names.iter().map(|name| system.issue(name)).collect();
        for folder in &folders {
            mark_starts(folder);
            let file = folder.join("commands.d/cli.toml");
            std::fs::write(&file, catalogue).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        system.start_backend(backend).await;
        let gateways = folders
            .iter()
            .map(|folder| {
                let quick = Start::default().with("VIWORKS__COLLECT__INTERVAL_MS", "100");
                system.start_gateway(folder, quick)
            })
            .collect();
        for name in names {
            system.online(name).await;
        }
        let token = system.path().join("operator.key");
        Self {
            system,
            token,
            gateways,
        }
    }

    /// A program of a test, such as a script.
    pub(crate) fn script(folder: &Path, name: &str, text: &str) -> PathBuf {
        let file = folder.join(name);
        std::fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        file
    }

    /// The command line with a key.
    pub(crate) fn command(&self, token: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.system.binaries().cli());
        command
            .args(arguments)
            .current_dir(self.system.path())
            .env("HOME", self.system.path())
            .env("VIWORKS_CONFIG_DIR", self.system.path().join("config"))
            .env("VIWORKS_SERVER", self.system.api_url())
            .env("VIWORKS_TOKEN_FILE", token)
            .env_remove("VIWORKS_CONTEXT")
            .env_remove("VIWORKS_OUTPUT");
        command
    }

    /// What it says.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Said {
        finish(self.command(&self.token, arguments), PATIENCE).await
    }

    /// What it prints with `-o json`, and nothing else beside it.
    pub(crate) async fn json(&self, arguments: &[&str], code: i32) -> Value {
        let said = self.run(&[arguments, &["-o", "json"]].concat()).await;
        said.ended_with(code).json()
    }
}
