//! The gateway agent that ships as a child process: its main function, in this program's build profile.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use viworks_common::wire::CONNECT_PATH;
use viworks_gateway_agent::{launcher, program};
use viworks_runtime::config::environment;
use viworks_runtime::files;

use crate::gateway::{COMMAND, GATED, ONCE};
use crate::server::{ROLE, Server};

/// What this program is when it is a gateway agent.
const AGENT: &str = "agent";

/// A running gateway agent; killed when it is dropped.
pub(crate) struct Agent {
    child: Child,
    log: PathBuf,
    gate: PathBuf,
}

/// The command line of this process when it was started as a gateway agent, or by one for a command.
pub(crate) fn arguments_of_this_process() -> Option<Vec<String>> {
    let arguments: Vec<String> = std::env::args().collect();
    // An agent starts its own program for each command, with an environment of the command's own.
    let part = arguments.get(1).map(String::as_str);
    let of_an_agent = matches!(part, Some(launcher::SUBCOMMAND | program::BUILTIN));
    (of_an_agent || environment().get(ROLE) == Some(AGENT)).then_some(arguments)
}

impl Agent {
    /// Starts one from the folder that was issued for it, with a catalogue of the commands, and with these variables.
    pub(crate) fn start(
        folder: &Path,
        server: &Server,
        overlay: &[(&str, String)],
    ) -> anyhow::Result<Self> {
        let gate = folder.join("gate");
        let commands = folder.join("commands.d");
        files::create_private_folder(&commands)?;
        std::fs::write(commands.join("bench.toml"), catalogue(&gate))?;
        let log = folder.join("gateway.log");
        let child = Command::new(std::env::current_exe()?)
            .args(["run", "--config"])
            .arg(folder.join("gateway.toml"))
            .env(ROLE, AGENT)
            .env(
                "VIWORKS__OUTBOUND__URL",
                format!("wss://{}{CONNECT_PATH}", server.addresses.agents),
            )
            .env("VIWORKS__LOG__FILTER", "warn")
            .envs(overlay.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .spawn()
            .context("the gateway agent cannot be started")?;
        Ok(Self { child, log, gate })
    }

    /// Lets the commands end that wait for it.
    pub(crate) fn open_gate(&self) -> anyhow::Result<()> {
        Ok(std::fs::write(&self.gate, "")?)
    }

    /// What it said.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // One that ended by itself needs no signal.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The commands of the simulated gateways, as ones that start a process, and the one that waits.
fn catalogue(gate: &Path) -> String {
    let entry = |(name, idempotent, argv): (&str, bool, String)| {
        format!(
            "[[command]]\nname = \"{name}\"\ntitle = \"of the bench\"\nrisk = \"read\"\n\
             idempotent = {idempotent}\nargv = {argv}\ntimeout_ms = 300000\n"
        )
    };
    let quick = || "[\"/bin/true\"]".to_owned();
    let wait = format!("until [ -e '{}' ]; do sleep 0.2; done", gate.display());
    let gated = format!("[\"/bin/sh\", \"-c\", {wait:?}]");
    [
        (COMMAND, true, quick()),
        (ONCE, false, quick()),
        (GATED, false, gated),
    ]
    .map(entry)
    .join("\n")
}
