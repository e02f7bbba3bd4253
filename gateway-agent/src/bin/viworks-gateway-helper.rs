//! Runs commands of the gateway's catalogue as other users: root's, started by the service manager for each connection.
//! Arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser as _;
use viworks_gateway_agent::cli::helper::{Action, Arguments};
use viworks_gateway_agent::helper::Service;
use viworks_gateway_agent::{builtin, launcher, program};
use viworks_runtime::logging;

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
