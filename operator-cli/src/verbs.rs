//! What is done about the command line: a verb each, which asks the backend and hands the answer to a view.

mod audit;
mod authority;
mod catalogue;
mod codes;
mod context;
mod diag;
mod dlq;
mod doctor;
mod follow;
mod gateway;
mod key;
mod pin;
mod prompt;
mod run;
mod runs;
mod target;
mod telemetry;
mod ticket;
mod validate;

use viworks_runtime::exit::ExitCode;

use crate::failure::Failure;
use crate::flags::{Arguments, Global, Up, Verb};
use crate::{demo, views};

/// Carries out what was asked.
pub async fn execute(arguments: Arguments) -> Result<ExitCode, Failure> {
    let global = arguments.global;
    let format = global.output;
    let client = || target::client(&global);
    match arguments.verb {
        Verb::Up(flags) => demo::up(&wanted(&global, flags)).await,
        Verb::Down { data_dir } => {
            demo::down(&data_dir, global.config_dir.as_deref()).await?;
            Ok(ExitCode::Ok)
        }
        Verb::Run(flags) => run::execute(&client()?, &flags, format).await,
        Verb::Runs(verb) => runs::execute(&client()?, verb, format).await,
        Verb::Audit(verb) => audit::execute(&client()?, verb, format).await,
        Verb::Dlq(verb) => dlq::execute(&client()?, verb, format).await,
        Verb::Gateway(verb) => gateway::execute(&client()?, verb, format).await,
        Verb::Ticket(verb) => ticket::execute(client, verb, format).await,
        Verb::Pin(verb) => pin::execute(&client()?, verb, format).await,
        Verb::Authority(verb) => authority::execute(&client()?, verb, format).await,
        Verb::Key(verb) => key::execute(&client()?, verb, format).await,
        Verb::Command(verb) => catalogue::execute(&client()?, verb, format).await,
        Verb::Telemetry(flags) => telemetry::execute(&client()?, &flags, format).await,
        Verb::Context(verb) => context::execute(global.config_dir.as_deref(), &verb, format),
        Verb::Validate(flags) => validate::execute(&client()?, &flags, format).await,
        Verb::Doctor { timeout } => doctor::execute(client(), timeout, format).await,
        Verb::Diag(verb) => diag::execute(&client()?, verb, format).await,
        Verb::ExitCodes => views::codes::exits(format).map(|()| ExitCode::Ok),
        Verb::Error { code } => codes::errors(code.as_deref(), format),
    }
}

fn wanted(global: &Global, flags: Up) -> demo::Options {
    demo::Options {
        agents: usize::from(flags.agents),
        once: flags.once,
        reset: flags.reset,
        stores: flags.stores,
        data_dir: flags.data_dir,
        format: global.output,
        config_dir: global.config_dir.clone(),
    }
}
