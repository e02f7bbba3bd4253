//! `migrate`, and what `check-config --connect` tries: whether the database and the queue can be used, and what the
//! database lacks.

use std::sync::Arc;

use viworks_common::id::InstanceId;
use viworks_runtime::clock::{SystemClock, Timeline};
use viworks_runtime::random;

use super::super::views::{print, say};
use crate::command::queue::redis::RedisQueue;
use crate::config::Config;
use crate::data::postgres::Role;
use crate::data::{Pending, sqlite};
use crate::database;
use crate::pki::site;
use crate::setup::Setup;
use crate::start_error::StartError;

/// Brings the schema up to date, or says what that would do.
pub(super) async fn migrate(config: &Config, dry_run: bool) -> anyhow::Result<()> {
    if dry_run {
        return match config.store.address().map_err(StartError::from)? {
            Some(address) => list(&database::inspect(address, true).await?.missing),
            None => {
                let missing = sqlite::pending(&config.data.sqlite_file);
                list(&missing.map_err(StartError::from)?)
            }
        };
    }
    viworks_runtime::files::create_private_folder(&config.data.state_folder)?;
    let mut config = config.clone();
    config.store.migrate_at_start = true;
    let store = database::open(&config, Role::Beside).await?;
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

/// Tries whether the servers take us, and whether a start would find what it needs there; what is embedded is nothing
/// to connect to.
pub(super) async fn try_connection(setup: &Setup) -> anyhow::Result<()> {
    let Setup {
        config, material, ..
    } = setup;
    let own = material.master.check();
    let is_for_us =
        |is_ours| site::judge(is_ours, &config.keys.master_key_file).map_err(StartError::from);
    match config.store.address().map_err(StartError::from)? {
        Some(address) => {
            let named = address.to_string();
            let found = database::look(config, address).await?;
            is_for_us(found.key_check.is_none_or(|check| check == own))?;
            let schema = match found.missing.len() {
                0 => "the schema is up to date".to_owned(),
                more => format!("migrations that a start applies: {more}"),
            };
            if let Some(lacks) = found.lacks {
                say(&format!("warning: {lacks}"));
            }
            print(&format!("{named}: connected, {schema}"))?;
        }
        None => {
            let other = sqlite::belongs_to_another(&config.data.sqlite_file, own);
            is_for_us(!other.map_err(StartError::from)?)?;
            print("the embedded database needs no connection")?;
        }
    }
    let Some(address) = config.queue.address().map_err(StartError::from)? else {
        return print("the queue in memory needs no connection");
    };
    let named = address.to_string();
    let clock = Arc::new(Timeline::unstored(Arc::new(SystemClock)));
    let own = InstanceId::from_uuid(random::uuid_v4());
    let tried = RedisQueue::try_out(address, own, clock).await;
    tried.map_err(|source| StartError::Queue {
        address: named.clone(),
        source,
    })?;
    print(&format!("{named}: connected, the queue can be used"))
}
