//! Opens the database that the configuration names, or only looks at what is in it.

use std::sync::Arc;

use viworks_runtime::migrations::Standing;
use viworks_runtime::sqlite::Options;

use crate::config::Config;
use crate::data::Store;
use crate::data::moving::marker;
use crate::data::postgres::{self, Address, Found, PostgresStore, Role};
use crate::data::sqlite::{self as embedded, SqliteStore};
use crate::start_error::StartError;

/// Opens the store that the configuration names.
///
/// # Errors
///
/// When it cannot be opened.
pub async fn open(config: &Config, role: Role) -> Result<Arc<dyn Store>, StartError> {
    let limits = config.telemetry.limits;
    let Some(address) = config.store.address()? else {
        refuse_moved(config)?;
        let store = SqliteStore::open(Options::new(&config.data.sqlite_file)).await?;
        return Ok(Arc::new(store.telemetry_limits(limits)));
    };
    if role == Role::Backend {
        // Before anything is written there.
        look(config, address.clone()).await?;
    }
    let named = address.to_string();
    let store = PostgresStore::open(address, role, config.store.migrate_at_start).await;
    let store = store.map_err(|source| StartError::Server {
        address: named,
        source,
    })?;
    Ok(Arc::new(store.telemetry_limits(limits)))
}

/// Refuses an embedded database whose site has moved: what happened since is not in it.
///
/// # Errors
///
/// When it has.
fn refuse_moved(config: &Config) -> Result<(), StartError> {
    if config.store.is_embedded() {
        marker::refuse(&config.data.sqlite_file)??;
    }
    Ok(())
}

/// Where the embedded database stands, which is not changed; refused where [`open`] refuses it.
///
/// # Errors
///
/// When no backend can use it.
pub fn standing(config: &Config) -> Result<Standing, StartError> {
    refuse_moved(config)?;
    Ok(embedded::standing(&config.data.sqlite_file)?)
}

/// Looks at a server's database as a backend does that starts, and changes nothing.
///
/// # Errors
///
/// When no backend can start there: that of another site least of all.
pub async fn look(config: &Config, address: Address) -> Result<Found, StartError> {
    let found = inspect(address, config.store.migrate_at_start).await?;
    let file = &config.data.sqlite_file;
    if !found.has_gateways && embedded::has_gateways(file)? {
        // It would turn a fleet away.
        return Err(StartError::AnotherSite {
            file: file.clone(),
            url: config.store.url.clone(),
        });
    }
    Ok(found)
}

/// Refuses to prepare a server's empty database for a site that is in the embedded one, as [`look`] does at a start.
///
/// # Errors
///
/// When it is so, and when no backend can start there anyway.
pub async fn refuse_another_site(config: &Config) -> Result<(), StartError> {
    let Some(address) = config.store.address()? else {
        return Ok(());
    };
    if embedded::has_gateways(&config.data.sqlite_file)? {
        look(config, address).await?;
    }
    Ok(())
}

/// What is in a server's database.
///
/// # Errors
///
/// When no backend can start there.
pub async fn inspect(address: Address, migrate: bool) -> Result<Found, StartError> {
    let named = address.to_string();
    let found = postgres::inspect(address, migrate).await;
    found.map_err(|source| StartError::Server {
        address: named,
        source,
    })
}
