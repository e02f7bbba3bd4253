//! Opens the database that the configuration names, or only looks at what is in it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;
use viworks_common::id::Tenant;
use viworks_common::ledger::lease::Backoff;
use viworks_common::pin::PinSet;
use viworks_common::pin::rotation::Rotation;
use viworks_common::time::Timestamp;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::lifecycle::notify;
use viworks_runtime::migrations::Standing;
use viworks_runtime::sqlite::Options;

use crate::agent::authorities::Authorities;
use crate::agent::signers::{self, Holders};
use crate::config::Config;
use crate::data::moving::marker;
use crate::data::postgres::{self, Address, Found, PostgresStore, Role};
use crate::data::sqlite::{self as embedded, SqliteStore};
use crate::data::{OwnPins, Store, StoreError, StoreResult, in_full};
use crate::start_error::StartError;

/// How a start waits for a server that is away before it tries again.
const AWAY: Backoff = Backoff {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(30),
};

/// How often it does: for two minutes. What else may have changed, such as the configuration, is read anew after that.
const WAITS: u32 = 8;

/// More than a try takes.
const TRY_TIME: Duration = Duration::from_secs(60);

/// Opens the store for a backend that starts. Under a service manager a server that is away is tried again with growing
/// pauses: the manager itself would start the process anew every other second. Anybody else is told at once.
///
/// # Errors
///
/// When it cannot be opened.
pub async fn open_for_start(config: &Config) -> Result<Arc<dyn Store>, StartError> {
    let mut pauses = pauses();
    loop {
        let error = match open(config, Role::Backend).await {
            Err(error) if passes(&error) && notify::is_managed() => error,
            opened => return opened,
        };
        let Some(pause) = pauses.next() else {
            return Err(error);
        };
        let why = in_full(&error);
        let seconds = pause.as_secs();
        warn!(error = why, "the start tries again in {seconds} s");
        let line = format!("starting, and tries again in {seconds} s: {why}");
        notify::still_starting(&line, pause + TRY_TIME);
        sleep(pause).await;
    }
}

fn pauses() -> impl Iterator<Item = Duration> {
    (1..=WAITS).map(|attempt| AWAY.after(attempt))
}

/// Whether a start fails for something that passes by itself.
fn passes(error: &StartError) -> bool {
    matches!(error, StartError::Server { source, .. } if !source.is_lasting())
}

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
    let store = open_server(address, role, config.store.migrate_at_start).await?;
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

/// Opens a server's database to look at what is in it; the schema stays as it is. `None` for the embedded one, whose
/// file is read as it lies there.
///
/// # Errors
///
/// When the server's cannot be opened, or the embedded one is of a site that has moved.
async fn open_for_a_look(config: &Config) -> Result<Option<Arc<dyn Store>>, StartError> {
    let Some(address) = config.store.address()? else {
        refuse_moved(config)?;
        return Ok(None);
    };
    let store = open_server(address, Role::Beside, false).await?;
    Ok(Some(Arc::new(store)))
}

/// Opens a server's database, and brings its schema up to date where it may.
///
/// # Errors
///
/// When it cannot be opened.
async fn open_server(
    address: Address,
    role: Role,
    migrate: bool,
) -> Result<PostgresStore, StartError> {
    let named = address.to_string();
    let opened = PostgresStore::open(address, role, migrate).await;
    opened.map_err(|source| StartError::Server {
        address: named,
        source,
    })
}

/// The keys that gateways are to trust: those that are stored, if a rotation was begun, as a backend reads them that
/// has these. Nothing is changed, and the schema stays as it is. Otherwise why they cannot be read.
///
/// # Errors
///
/// When the database cannot be read as it is.
pub async fn pins_in_force(config: &Config, own: OwnPins) -> Result<PinSet, String> {
    let tenant = Tenant::default_tenant();
    let opened = open_for_a_look(config).await;
    let Some(store) = opened.map_err(|error| in_full(&error))? else {
        let stored = embedded::server_keys(&config.data.sqlite_file, &tenant);
        let stored = stored.map_err(|error| in_full(&error))?;
        return Ok(Rotation::of(&own.configured, own.live, stored).set());
    };
    // The time says which backends still show their keys, which changes nothing in the set.
    let known = store.pins(&tenant, own, SystemClock.wall()).await;
    store.close().await;
    let known = known.map_err(|error| in_full(&error))?;
    Ok(known.rotation.set())
}

/// The gateways that are cut off where these authorities are trusted, because another one signed their certificates.
/// Nothing is changed, and the schema stays as it is. Otherwise why that cannot be read.
///
/// # Errors
///
/// When the database cannot be read as it is.
pub async fn cut_off(config: &Config, trusted: &Authorities) -> Result<Holders, String> {
    let (tenant, wall) = (Tenant::default_tenant(), SystemClock.wall());
    let opened = open_for_a_look(config).await;
    let Some(store) = opened.map_err(|error| in_full(&error))? else {
        let read = cut_off_there(&config.data.sqlite_file, &tenant, trusted, wall);
        return read.map_err(|error| in_full(&error));
    };
    let found = async {
        let signed = signers::others(store.signed(&tenant, wall).await?, trusted);
        Holders::of(&*store, &tenant, &signed, wall).await
    };
    let found = found.await;
    store.close().await;
    found.map_err(|error: StoreError| in_full(&error))
}

/// The same by the embedded database.
fn cut_off_there(
    file: &Path,
    tenant: &Tenant,
    trusted: &Authorities,
    wall: Timestamp,
) -> StoreResult<Holders> {
    let mut holders = Holders::default();
    for one in signers::others(embedded::signed(file, tenant, wall)?, trusted) {
        let first = embedded::signed_for(file, tenant, one.issuer, wall, signers::NAMED_MAX)?;
        holders.add(&one, first);
    }
    Ok(holders)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_waits_longer_each_time_and_not_for_ever() {
        let seconds: Vec<u64> = pauses().map(|pause| pause.as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 30, 30, 30]);
    }

    #[test]
    fn a_start_waits_for_what_passes() {
        let of = |source| StartError::Server {
            address: "viworks at 127.0.0.1:5432".to_owned(),
            source,
        };
        assert!(passes(&of(postgres::Error::Busy)));
        let unfit = postgres::Error::Unfit("it is too old".to_owned());
        assert!(!passes(&of(unfit)));
        assert!(!passes(&StartError::from(postgres::AddressError::NoUser)));
    }
}
