//! What is done about each subcommand.

mod apikey;
mod check;
mod config;
mod diag;
mod gateway;
mod health;
mod master_key;
mod migrate;
mod moving;
mod nginx;
mod open;
mod pki;
mod serve;

use viworks_runtime::exit::ExitCode;

use self::open::{load, load_all};
use super::flags::Subcommands;
use crate::data::postgres::Address;
use crate::start_error::StartError;

/// Carries out what was asked.
pub(super) async fn execute(command: Subcommands) -> anyhow::Result<ExitCode> {
    match command {
        Subcommands::Serve { config, ready_file } => {
            return Box::pin(serve::serve(
                move || load_all(&config),
                ready_file.as_deref(),
            ))
            .await;
        }
        Subcommands::CheckConfig {
            config,
            connect,
            output,
        } => check::config(&config, connect, output).await?,
        Subcommands::Diag(command) => return diag::execute(command).await,
        Subcommands::Health(flags) => return health::execute(flags).await,
        Subcommands::Config(command) => config::execute(command)?,
        Subcommands::Migrate {
            config,
            dry_run,
            output,
        } => migrate::execute(&config, dry_run, output).await?,
        Subcommands::MigrateStore {
            config,
            to,
            password_file,
            ca_file,
            verify,
        } => {
            let address = Address::parse(&to, password_file.as_deref(), ca_file.as_deref());
            let address = address.map_err(StartError::from)?;
            moving::execute(&load(&config)?, address, verify).await?;
        }
        Subcommands::Apikey(command) => return apikey::execute(command).await,
        Subcommands::Pki(command) => return pki::execute(command).await,
        Subcommands::Gateway(command) => return gateway::execute(command).await,
        Subcommands::Nginx(command) => return nginx::execute(command).await,
    }
    Ok(ExitCode::Ok)
}
