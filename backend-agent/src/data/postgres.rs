//! The store of a large site: PostgreSQL as the system of record.
//!
//! Each intent is one transaction of its own on one of a few connections. What it decides about a gateway holds because
//! it locks the gateway first and looks afterwards; the server runs at its default isolation, *read committed*.

mod address;
mod connection;
mod error;
mod instance;
mod schema;
mod statement;
mod target;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use viworks_common::id::Tenant;

use super::intents::SqlStore;
use super::intents::link::{Engine, Urgency};
use super::intents::tx::View;
use super::intents::upkeep;
use super::{StoreError, StoreHealth, StoreResult};

pub use address::{Address, AddressError};
pub use error::Error;
pub use schema::pending;
pub use target::Target;

use connection::{Begin, Connection};
use instance::Instance;
use workers::{Purpose, Workers};

/// Connections for what takes long and nobody sits and waits for.
const BULK_CONNECTIONS: u32 = 2;

/// How long the server may take to show that it works.
const HEALTH_TIME: Duration = Duration::from_secs(10);
const HEALTH_LATE: &str = "the database server has not committed anything for ten seconds";

/// How long a transaction waits for a place among those that wait for a connection.
const ROOM_TIME: Duration = Duration::from_secs(5);

/// Who opens a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The backend, of which a database has one at a time.
    Backend,
    /// A tool that does its work beside it.
    Beside,
}

/// The store on a PostgreSQL server.
pub type PostgresStore = SqlStore<Postgres>;

/// The database of a [`PostgresStore`]. Clones share it.
#[derive(Debug, Clone)]
pub struct Postgres {
    writers: Workers,
    bulk: Workers,
    readers: Workers,
    /// None for what works beside the backend.
    instance: Option<Arc<Instance>>,
}

impl PostgresStore {
    /// Connects, and brings the schema up to date if `migrate` says so.
    ///
    /// # Errors
    /// When the server cannot be reached, does not keep what it commits, has another backend on this database, or a
    /// schema that is not ours.
    pub async fn open(address: Address, role: Role, migrate: bool) -> Result<Self, Error> {
        let address = Arc::new(address);
        let ready = Arc::clone(&address);
        let instance = tokio::task::spawn_blocking(move || {
            let connection = Connection::open(&ready)?;
            schema::check_server(&connection)?;
            match role {
                Role::Backend => Instance::take(connection, Arc::clone(&ready)).map(Some),
                Role::Beside => {
                    connection.close();
                    Ok(None)
                }
            }
        });
        let instance = instance.await.map_err(|_panicked| Error::Panicked)??;
        let at = Arc::clone(&address);
        let prepared = tokio::task::spawn_blocking(move || {
            schema::prepare(&at, migrate, role)?;
            schema::check_moved(&at)?;
            match role {
                Role::Backend => schema::take_over(&at).map(Begin::of_generation),
                Role::Beside => Ok(Begin::write()),
            }
        });
        let begin = prepared.await.map_err(|_panicked| Error::Panicked)??;
        let start = |name, purpose, begin: &Begin, count| {
            Workers::start(&address, name, purpose, begin, count)
        };
        let few = (address.connections_max / 4).max(1);
        let many = address
            .connections_max
            .saturating_sub(few + BULK_CONNECTIONS)
            .max(1);
        Ok(Self::on(Postgres {
            writers: start("postgres writer", Purpose::Write, &begin, many)?,
            bulk: start("postgres bulk", Purpose::Write, &begin, BULK_CONNECTIONS)?,
            readers: start("postgres reader", Purpose::Read, &Begin::read(), few)?,
            instance: instance.map(Arc::new),
        }))
    }
}

impl Engine for Postgres {
    async fn write<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        urgency: Urgency,
        intent: impl Fn(&View<'_>) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        if let Some(instance) = &self.instance {
            instance.check()?;
        }
        let tenant = tenant.clone();
        let workers = match urgency {
            Urgency::Prompt => &self.writers,
            Urgency::Bulk => &self.bulk,
        };
        let job = move |connection: &Connection| intent(&View::new(connection, &tenant));
        workers.run(ROOM_TIME, job).await
    }

    async fn read<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        question: impl Fn(&View<'_>) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let tenant = tenant.clone();
        let job = move |connection: &Connection| question(&View::new(connection, &tenant));
        self.readers.run(ROOM_TIME, job).await
    }

    fn is_busy(&self) -> bool {
        self.writers.is_busy()
    }

    async fn health(&self) -> StoreResult<StoreHealth> {
        let beat = |view: &View<'_>| upkeep::health(view, "postgres");
        let tenant = Tenant::default_tenant();
        let beaten = self.write(&tenant, Urgency::Prompt, beat);
        let late = |_elapsed| Err(StoreError::Unavailable(HEALTH_LATE.into()));
        timeout(HEALTH_TIME, beaten).await.unwrap_or_else(late)
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writers.close().await;
        self.bulk.close().await;
        if let Some(instance) = &self.instance {
            instance.let_go().await;
        }
    }
}

/// Rests on a thread that belongs to a connection.
#[expect(
    clippy::disallowed_methods,
    reason = "a thread of its own gives the server a moment; no runtime and no test waits on it"
)]
fn rest(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests;
