//! The store of a large site: PostgreSQL as the system of record.
//!
//! Each intent is one transaction of its own on one of a few connections. What it decides about a gateway holds because
//! it locks the gateway first and looks afterwards; the server runs at its default isolation, *read committed*.

mod address;
mod append;
mod connection;
mod days;
mod dial;
mod era;
mod error;
mod fit;
mod lanes;
mod lease;
mod lock;
mod numbers;
mod promises;
mod schema;
mod server;
mod statement;
mod target;
mod values;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use viworks_common::id::{InstanceId, Tenant};
use viworks_common::time::Timestamp;

use super::intents::SqlStore;
use super::intents::link::{Doubt, Engine, Urgency};
use super::intents::merged::{Answer, Item};
use super::intents::tx::View;
use super::intents::upkeep;
use super::{
    Cause, InstanceLoad, MasterIds, Neighbour, Retention, StoreError, StoreHealth, StoreResult,
    without_words,
};

pub use address::{Address, AddressError};
pub use error::Error;
pub use schema::{Found, inspect};
pub use target::Target;

pub(in crate::data) use target::MOVE_WITH_LATER;

use connection::Connection;
use era::Era;
use lanes::Lanes;
use lease::Lease;
use workers::{Purpose, Workers};

/// Connections for what takes long and nobody sits and waits for.
const BULK_CONNECTIONS: u32 = 2;

/// Connections for what carries the load, at most: each has work for one processor of the server.
const LANES_MAX: u32 = 2;

/// Connections for reports, at most: as many as are made at a time.
const REPORT_CONNECTIONS_MAX: u32 = 2;

/// How long the server may take to show that it works.
const HEALTH_TIME: Duration = Duration::from_secs(10);
const HEALTH_LATE: &str = "the database server has not committed anything for ten seconds";

/// How long a transaction waits for a place among those that wait for a connection.
const ROOM_TIME: Duration = Duration::from_secs(5);

/// Who opens a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// One of the backends of a database.
    Backend,
    /// A tool that does its work beside them.
    Beside,
}

/// The store on a PostgreSQL server.
pub type PostgresStore = SqlStore<Postgres>;

/// The database of a [`PostgresStore`]. Clones share it.
#[derive(Debug, Clone)]
pub struct Postgres {
    address: Arc<Address>,
    lanes: Lanes,
    writers: Workers,
    bulk: Workers,
    readers: Workers,
    reports: Workers,
    fit: Arc<fit::Watch>,
    /// None for what works beside the backends.
    lease: Option<Arc<Lease>>,
    /// What a tool is: no instance.
    nobody: Arc<watch::Sender<Option<InstanceId>>>,
}

impl PostgresStore {
    /// Connects, and brings the schema up to date if `migrate` says so.
    ///
    /// # Errors
    /// When the server cannot be reached, does not keep what it commits, a site is being moved into this database, or
    /// its schema is not ours.
    pub async fn open(address: Address, role: Role, migrate: bool) -> Result<Self, Error> {
        let address = Arc::new(address);
        let era = Arc::new(Era::default());
        let (at, of) = (Arc::clone(&address), Arc::clone(&era));
        let prepared = tokio::task::spawn_blocking(move || {
            let connection = Connection::open_first(&at)?;
            if role == Role::Backend {
                lock::share(&connection)?;
            }
            let standing = schema::prepare(&at, migrate, role)?;
            schema::check_moved(&connection)?;
            if role == Role::Backend {
                schema::tell(&standing);
                // What it lacks and nothing fails without is told by its health.
                fit::look(&connection)?;
                return Lease::take(connection, at, of).map(Some);
            }
            connection.close();
            Ok(None)
        });
        let lease = prepared.await.map_err(|_panicked| Error::Panicked)??;
        let held = lease.as_ref().map(Lease::held);
        let start =
            |name, purpose, count| Workers::start(&address, name, purpose, held, &era, count);
        let reports = (address.connections_max / 8).clamp(1, REPORT_CONNECTIONS_MAX);
        let few = (address.connections_max / 4).max(1);
        let lanes = (address.connections_max / 8).clamp(1, LANES_MAX);
        let many = address
            .connections_max
            .saturating_sub(few + reports + lanes + BULK_CONNECTIONS)
            .max(1);
        Ok(Self::on(Postgres {
            address: Arc::clone(&address),
            lanes: Lanes::start(&address, held, &era, lanes)?,
            writers: start("postgres writer", Purpose::Write, many)?,
            bulk: start("postgres bulk", Purpose::Write, BULK_CONNECTIONS)?,
            readers: start("postgres reader", Purpose::Read, few)?,
            reports: start("postgres report", Purpose::Report, reports)?,
            fit: Arc::default(),
            lease: lease.map(Arc::new),
            nobody: Arc::new(watch::Sender::new(None)),
        }))
    }
}

impl Postgres {
    /// Commits something, and says what stands in the way: of what a statement met, all that there is of it.
    async fn look(&self, doubt: Doubt) -> StoreResult<StoreHealth> {
        let beat = |view: &View<'_>| upkeep::health(view, "postgres");
        let tenant = Tenant::default_tenant();
        let beaten = self.write(&tenant, Urgency::Prompt, beat).await;
        let is_held = matches!(beaten, Err(StoreError::Held(_)));
        let mut held = None;
        if doubt.held || is_held {
            let holders = |connection: &Connection| fit::holders(connection);
            held = self.readers.run::<_, Error, _>(ROOM_TIME, holders).await?;
        }
        if is_held && let Some(held) = held {
            return Err(StoreError::Held(held.into()));
        }
        let is_unfit = matches!(beaten, Err(StoreError::Unfit(_)));
        if beaten.is_err() && !is_unfit {
            return beaten;
        }
        let known = self.fit.known().filter(|_| !doubt.unfit && !is_unfit);
        let lacks = match known {
            Some(flaw) => flaw,
            None => {
                let look = |connection: &Connection| fit::look(connection);
                let found = self.readers.run::<_, Error, _>(ROOM_TIME, look).await;
                self.fit.note(found)?
            }
        };
        Ok(StoreHealth {
            lacks,
            held,
            ..beaten?
        })
    }
}

impl Engine for Postgres {
    const BULK_WRITES: usize = BULK_CONNECTIONS as usize;

    const HEARTBEATS: usize = 256;

    async fn write<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        urgency: Urgency,
        intent: impl Fn(&View<'_>) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let tenant = tenant.clone();
        let workers = match urgency {
            Urgency::Prompt => &self.writers,
            Urgency::Bulk => &self.bulk,
        };
        let job = move |connection: &Connection| intent(&View::new(connection, &tenant));
        workers.run(ROOM_TIME, job).await
    }

    async fn write_at_once<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        at_once: impl Fn(&View<'_>) -> StoreResult<Option<T>> + Send + 'static,
        intent: impl Fn(&View<'_>) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let (tenant, same) = (tenant.clone(), tenant.clone());
        let at_once = move |connection: &Connection| at_once(&View::new(connection, &same));
        let job = move |connection: &Connection| intent(&View::new(connection, &tenant));
        self.writers.run_at_once(ROOM_TIME, at_once, job).await
    }

    async fn write_together(&self, item: Item) -> StoreResult<Option<Answer>> {
        self.lanes.run(item).await
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

    /// Without a transaction, which would be two journeys more.
    async fn ask<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        question: impl Fn(&View<'_>) -> StoreResult<T> + Send + Sync + 'static,
    ) -> StoreResult<T> {
        let (tenant, question) = (tenant.clone(), Arc::new(question));
        let (same, again) = (tenant.clone(), Arc::clone(&question));
        let at_once =
            move |connection: &Connection| question(&View::new(connection, &tenant)).map(Some);
        let job = move |connection: &Connection| again(&View::new(connection, &same));
        self.readers.run_at_once(ROOM_TIME, at_once, job).await
    }

    /// Whoever asks has no connection of his own that would have anything at hand.
    async fn ask_before_writing<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        question: impl Fn(&View<'_>) -> StoreResult<T> + Send + Sync + 'static,
    ) -> StoreResult<T> {
        self.ask(tenant, question).await
    }

    async fn report<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        question: impl Fn(&View<'_>) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let tenant = tenant.clone();
        let job = move |connection: &Connection| question(&View::new(connection, &tenant));
        let reported = self.reports.run(ROOM_TIME, job).await;
        reported.map_err(or_too_long)
    }

    async fn delete_days(&self, before: Timestamp) -> StoreResult<u64> {
        let address = Arc::clone(&self.address);
        // On a connection of its own: a day leaves in no transaction, and may wait for whoever reads it.
        let delete = tokio::task::spawn_blocking(move || {
            let connection = Connection::open(&address)?;
            let deleted = connection.delete_days(before);
            connection.close();
            deleted
        });
        Ok(delete.await.map_err(|_panicked| Error::Panicked)??)
    }

    fn is_busy(&self) -> bool {
        self.writers.is_busy() || self.lanes.is_busy()
    }

    fn instance(&self) -> watch::Receiver<Option<InstanceId>> {
        let lease = self.lease.as_ref();
        lease.map_or_else(|| self.nobody.subscribe(), |lease| lease.instance())
    }

    fn neighbours(&self) -> watch::Receiver<Vec<Neighbour>> {
        match &self.lease {
            Some(lease) => lease.neighbours(),
            None => watch::Sender::default().subscribe(),
        }
    }

    fn promised(&self) -> Option<Retention> {
        self.lease.as_ref().and_then(|lease| lease.promised())
    }

    fn note_load(&self, load: InstanceLoad) {
        if let Some(lease) = &self.lease {
            lease.note(load);
        }
    }

    fn note_authorities(&self, bundle: &str) {
        if let Some(lease) = &self.lease {
            lease.note_authorities(bundle);
        }
    }

    async fn note_masters(&self, masters: MasterIds) -> StoreResult<()> {
        if let Some(lease) = &self.lease {
            lease.note_masters(masters);
        }
        Ok(())
    }

    async fn health(&self, doubt: Doubt) -> StoreResult<StoreHealth> {
        let late = |_elapsed| Err(StoreError::Unavailable(HEALTH_LATE.into()));
        let looked = timeout(HEALTH_TIME, self.look(doubt));
        let looked = looked.await.unwrap_or_else(late);
        looked.map_err(|error| naming(&self.address, error))
    }

    async fn close(&self) {
        self.readers.close().await;
        self.reports.close().await;
        self.lanes.close().await;
        self.writers.close().await;
        self.bulk.close().await;
        if let Some(lease) = &self.lease {
            lease.give_back().await;
        }
    }
}

/// What became of a report whose statement was ended by its limit: asked again it would take as long.
fn or_too_long(error: StoreError) -> StoreError {
    if let StoreError::Unavailable(cause) = error {
        return match cause.downcast_ref() {
            Some(Error::Slow(_)) => StoreError::TooLong(cause),
            Some(_) | None => StoreError::Unavailable(cause),
        };
    }
    error
}

/// Says which server it is that cannot be used: whoever reads of it need not know what the configuration names.
fn naming(address: &Address, error: StoreError) -> StoreError {
    let at = |cause: Cause| Cause::from(format!("{address}: {}", without_words(&cause)));
    if let StoreError::Unavailable(cause) = error {
        return StoreError::Unavailable(at(cause));
    }
    if let StoreError::Unknown(cause) = error {
        return StoreError::Unknown(at(cause));
    }
    error
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
