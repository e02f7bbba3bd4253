//! `migrate`, and what `check-config --connect` tries: whether the database can be used, and what it lacks.

use super::super::views::print;
use crate::app::{self, StartError};
use crate::config::Config;
use crate::data::postgres::{Address, Role, pending};
use crate::data::{Pending, sqlite};

/// Brings the schema up to date, or says what that would do.
pub(super) async fn migrate(config: &Config, dry_run: bool) -> anyhow::Result<()> {
    if dry_run {
        return match config.store.address().map_err(StartError::from)? {
            Some(address) => list(&lacking(address).await?),
            None => {
                let missing = sqlite::pending(&config.data.sqlite_file);
                list(&missing.map_err(StartError::from)?)
            }
        };
    }
    viworks_runtime::files::create_private_folder(&config.data.state_folder)?;
    let mut config = config.clone();
    config.store.migrate_at_start = true;
    let store = app::open(&config, Role::Beside).await?;
    let health = store.health().await;
    store.close().await;
    let health = health?;
    print(&format!("{} schema {}", health.kind, health.schema_version))?;
    Ok(())
}

fn list(missing: &[Pending]) -> anyhow::Result<()> {
    if missing.is_empty() {
        return print("the schema is up to date");
    }
    for Pending {
        version,
        description,
        ..
    } in missing
    {
        print(&format!("would apply {version:04} {description}"))?;
    }
    Ok(())
}

async fn lacking(address: Address) -> Result<Vec<Pending>, StartError> {
    let named = address.to_string();
    let missing = pending(address).await;
    missing.map_err(|source| StartError::Server {
        address: named,
        source,
    })
}

/// Tries whether the server takes us and has a database of ours; the embedded database is nothing to connect to.
pub(super) async fn try_connection(config: &Config) -> anyhow::Result<()> {
    let Some(address) = config.store.address().map_err(StartError::from)? else {
        return print("the embedded database needs no connection");
    };
    let named = address.to_string();
    let missing = lacking(address).await?.len();
    let schema = match missing {
        0 => "the schema is up to date".to_owned(),
        more => format!("migrations that are not applied: {more}"),
    };
    print(&format!("{named}: connected, {schema}"))
}
