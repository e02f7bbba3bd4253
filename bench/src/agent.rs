//! The gateway agent that ships as a child process: its main function, in this program's build profile.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use viworks_common::wire::CONNECT_PATH;
use viworks_gateway_agent::{launcher, program};
use viworks_runtime::config::environment;
use viworks_runtime::files;

use crate::gateway::{COMMAND, ONCE};
use crate::server::{ROLE, Server};

/// What this program is when it is a gateway agent.
const AGENT: &str = "agent";

/// A running gateway agent; killed when it is dropped.
pub(crate) struct Agent {
    child: Child,
    log: PathBuf,
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
    /// Starts one from the folder that was issued for it, with a catalogue of the two commands.
    pub(crate) fn start(folder: &Path, server: &Server) -> anyhow::Result<Self> {
        let commands = folder.join("commands.d");
        files::create_private_folder(&commands)?;
        std::fs::write(commands.join("bench.toml"), catalogue())?;
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
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .spawn()
            .context("the gateway agent cannot be started")?;
        Ok(Self { child, log })
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

/// The commands of the simulated gateways, as ones that start a process.
fn catalogue() -> String {
    let entry = |(name, idempotent): (&str, bool)| {
        format!(
            "[[command]]\nname = \"{name}\"\ntitle = \"answers at once\"\nrisk = \"read\"\n\
             idempotent = {idempotent}\nargv = [\"/bin/true\"]\ntimeout_ms = 60000\n"
        )
    };
    [(COMMAND, true), (ONCE, false)].map(entry).join("\n")
}
