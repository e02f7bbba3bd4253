//! The command line: subcommands in, exit code out.

mod exit;
mod flags;
mod verbs;
mod views;

use std::num::NonZero;

use anyhow::Context;
use clap::{CommandFactory as _, Parser};
use viworks_common::enrolment::told_of_tickets;
use viworks_runtime::config::environment;
use viworks_runtime::exit::ExitCode;
use viworks_runtime::stdout::{self, PrintError};
use viworks_runtime::{fault, logging, tls};

use self::flags::Cli;
use self::views::say;
use crate::data::in_full;

/// Runs the program with the arguments of this process.
#[must_use]
pub fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args_os()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            if error.use_stderr() {
                not_understood(&error, &arguments);
                return ExitCode::Usage.into();
            }
            return asked(&error.render().to_string()).into();
        }
    };
    tls::install_provider();
    let code = match start(cli) {
        Ok(code) => code,
        Err(error) if matches!(error.downcast_ref(), Some(PrintError::ReaderGone)) => {
            ExitCode::ReaderGone
        }
        Err(error) => {
            logging::say(&format!("error: {}", in_full(&*error)));
            if let Some(fix) = exit::fix_of(&error) {
                logging::say(&format!("  fix: {fix}"));
            }
            exit::code_of(&error)
        }
    };
    logging::flush();
    code.into()
}

/// Every subcommand and flag, for what is written about them: manual pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Says what is wrong with the arguments. Without a place to write to, only the exit code is left.
fn not_understood(error: &clap::Error, arguments: &[String]) {
    match told_of_tickets(&error.render().to_string(), arguments) {
        Some(told) => say(&told),
        None => drop(error.print()),
    }
}

/// Prints the help or the version.
fn asked(text: &str) -> ExitCode {
    match stdout::print(text) {
        Ok(()) => ExitCode::Ok,
        Err(PrintError::ReaderGone) => ExitCode::ReaderGone,
        Err(error @ PrintError::Failed(_)) => {
            say(&format!("error: {error}"));
            ExitCode::Error
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    fault::configure(&environment())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // Said here, because the library would read a variable of its own and panic where that is no number.
        .worker_threads(std::thread::available_parallelism().map_or(1, NonZero::get))
        .enable_all()
        .build()
        .context("failed to start the async runtime")?;
    viworks_runtime::lifecycle::run_to_end(runtime, verbs::execute(cli.command))
}
