//! What the helper is told: the service manager starts it, and nobody types it.

use std::path::PathBuf;

use clap::{CommandFactory as _, Parser, Subcommand};

/// Run a gateway's commands as other users
///
/// A program of root's that serves one connection of the gateway agent and ends with it. The service manager starts one
/// for each connection to viworks-gateway-helper.socket. Which commands it runs, and as whom, is in its own list, which
/// belongs to root; the agent names a command and gives values, and nothing more.
#[derive(Debug, Parser)]
#[command(name = "viworks-gateway-helper", version)]
pub struct Arguments {
    /// What it is to do
    #[command(subcommand)]
    pub action: Action,
}

/// What it is to do.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Serve the connection that is standard input
    Serve {
        /// What may run, and as whom: files of root's, as the catalogue's are
        #[arg(long, default_value = "/etc/viworks/helper.d", value_name = "DIR")]
        list: PathBuf,
        /// The user that the agent runs as; nobody else is served
        #[arg(long, default_value = "viworks-gateway", value_name = "USER")]
        agent: String,
    },
}

/// Its subcommand and flags, for its manual page.
#[must_use]
pub fn command() -> clap::Command {
    Arguments::command()
}
