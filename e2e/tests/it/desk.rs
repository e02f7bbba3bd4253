//! An operator's desk: a backend, two gateways with the commands a test wants, and the command line.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::gateway::mark_starts;
use viworks_testkit::process::{Process, Said, finish};

/// A catalogue with `test.say`, which says a word of this pattern and has this risk.
pub(crate) fn say(risk: &str, pattern: &str) -> String {
    format!(
        r#"
[[command]]
name = "test.say"
title = "says what it is told"
risk = "{risk}"
idempotent = true
argv = ["/bin/echo", "{{word}}"]
timeout_ms = 20000
[[command.argument]]
name = "word"
description = "what it says"
type = "string"
pattern = "{pattern}"
"#
    )
}

/// The command line with a key, as somebody types it who has nothing else on this machine.
pub(crate) fn viworks(system: &Deployment, token: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(system.binaries().cli());
    command.args(arguments).current_dir(system.path());
    system.ask_with(token, &mut command);
    command
}

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

    /// Two gateways that can say a word, and have `more` commands.
    pub(crate) async fn that_speaks(more: &str, backend: Start) -> Self {
        let catalogue = say("read", "[a-z]{1,8}") + more;
        Self::open(&catalogue, backend).await
    }

    /// These gateways.
    pub(crate) async fn of(names: &[&str], catalogue: &str, backend: Start) -> Self {
        let catalogues: Vec<_> = names
            .iter()
            .map(|name| (*name, Some(catalogue.to_owned())))
            .collect();
        Self::of_each(&catalogues, backend).await
    }

    /// These gateways, each with its own catalogue or with none.
    pub(crate) async fn of_each(catalogues: &[(&str, Option<String>)], backend: Start) -> Self {
        let mut system = Deployment::new(Binaries::shipped());
        let mut folders = Vec::new();
        for (name, catalogue) in catalogues {
            let folder = system.issue(name);
            mark_starts(&folder);
            if let Some(catalogue) = catalogue {
                let file = folder.join("commands.d/desk.toml");
                std::fs::write(&file, catalogue).unwrap();
                std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
            }
            folders.push(folder);
        }
        system.start_backend(backend).await;
        let gateways = folders
            .iter()
            .map(|folder| {
                let quick = Start::default().with("VIWORKS__COLLECT__INTERVAL_MS", "100");
                system.start_gateway(folder, quick)
            })
            .collect();
        for (name, _catalogue) in catalogues {
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
        viworks(&self.system, token, arguments)
    }

    /// What it says.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Said {
        self.run_with(&self.token, arguments).await
    }

    /// What it says to the holder of a key.
    pub(crate) async fn run_with(&self, token: &Path, arguments: &[&str]) -> Said {
        finish(self.command(token, arguments), PATIENCE).await
    }

    /// What it prints with `-o json`, and nothing else beside it.
    pub(crate) async fn json(&self, arguments: &[&str], code: i32) -> Value {
        let said = self.run(&[arguments, &["-o", "json"]].concat()).await;
        said.ended_with(code).json()
    }
}
