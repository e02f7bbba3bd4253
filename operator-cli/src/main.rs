//! `viworks`, the operator's command line: arguments in, exit code out.

use std::ffi::OsString;

use clap::{CommandFactory as _, Parser};
use viworks_operator_cli::failure::Failure;
use viworks_operator_cli::flags::Arguments;
use viworks_operator_cli::output::{self, Format};
use viworks_operator_cli::unparsed;
use viworks_operator_cli::verbs;
use viworks_operator_cli::views::failure::print;
use viworks_runtime::exit::ExitCode;

/// What was asked for is the help or the version, or it was not understood.
fn not_parsed(error: clap::Error) -> ExitCode {
    if error.use_stderr() {
        let arguments: Vec<OsString> = std::env::args_os().collect();
        let error = unparsed::as_typed(Arguments::command(), &arguments, error);
        let environment = viworks_runtime::config::environment();
        match unparsed::format(&arguments, environment.get("VIWORKS_OUTPUT")) {
            Format::Json => print(&unparsed::failure(&error, &arguments), Format::Json),
            Format::Table if unparsed::shows_ticket(&error, &arguments) => {
                print(&unparsed::failure(&error, &arguments), Format::Table);
            }
            // If nobody reads it, the exit code has to do.
            Format::Table => drop(error.print()),
        }
        return ExitCode::Usage;
    }
    match output::raw(&error.render().to_string()) {
        Ok(()) => ExitCode::Ok,
        Err(failure) => {
            print(&failure, Format::Table);
            failure.exit
        }
    }
}

fn main() -> std::process::ExitCode {
    if let Some(code) = viworks_runtime::lifecycle::init::run_if_first() {
        return code;
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return not_parsed(error).into(),
    };
    let format = arguments.global.output;
    viworks_runtime::tls::install_provider();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            print(&Failure::from(error), format);
            return ExitCode::Error.into();
        }
    };
    match viworks_runtime::lifecycle::run_to_end(runtime, verbs::execute(arguments)) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            print(&failure, format);
            failure.exit.into()
        }
    }
}
