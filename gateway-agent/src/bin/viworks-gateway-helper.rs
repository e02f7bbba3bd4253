//! Runs commands of the gateway's catalogue as other users: root's, started by the service manager for each connection.
//! Arguments in, exit code out.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use viworks_gateway_agent::helper::Service;
use viworks_gateway_agent::{builtin, launcher, program};
use viworks_runtime::logging;

#[derive(Debug, Parser)]
#[command(
    name = "viworks-gateway-helper",
    version,
    about = "Runs a gateway's commands as other users"
)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Serves the connection that is standard input.
    Serve {
        /// What may run, and as whom: files of root's, as the catalogue's are.
        #[arg(long, default_value = "/etc/viworks/helper.d", value_name = "DIR")]
        list: PathBuf,
        /// The user that the agent runs as; nobody else is served.
        #[arg(long, default_value = "viworks-gateway", value_name = "USER")]
        agent: String,
    },
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    // It starts itself for what has to be a process of its own.
    match arguments.get(1).map(String::as_str) {
        Some(launcher::SUBCOMMAND) => return launcher::run().into(),
        Some(program::BUILTIN) => {
            return builtin::run(arguments.get(2..).unwrap_or_default()).into();
        }
        Some(_) | None => {}
    }
    let Action::Serve { list, agent } = Arguments::parse_from(arguments).action;
    let service = Service {
        list: &list,
        agent: &agent,
    };
    match service.serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logging::say(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}
