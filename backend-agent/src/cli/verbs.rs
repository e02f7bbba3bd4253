//! What is done about each subcommand.

mod apikey;
mod gateway;
mod open;
mod pki;
mod serve;

use viworks_runtime::exit::ExitCode;

use self::open::{load, load_all, open};
use super::flags::Subcommands;
use super::views::{print, say};
use crate::config::reference;
use crate::data::Store;

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
        Subcommands::CheckConfig(config) => {
            for warning in load_all(&config)?.warnings {
                say(&format!("warning: {warning}"));
            }
            print(&format!("{} is valid", config.config.display()))?;
        }
        Subcommands::ConfigReference => print(reference::markdown().trim_end())?,
        Subcommands::Migrate(config) => {
            let store = open(&load(&config)?).await?;
            let health = store.health().await?;
            store.close().await;
            print(&format!("{} schema {}", health.kind, health.schema_version))?;
        }
        Subcommands::Apikey(command) => return apikey::execute(command).await,
        Subcommands::Pki(command) => pki::execute(command).await?,
        Subcommands::Gateway(command) => return gateway::execute(command).await,
    }
    Ok(ExitCode::Ok)
}
