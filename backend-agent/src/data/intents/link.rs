//! What intents need of a database: statements in its dialect, and rows.

use std::future::Future;
use std::ops::ControlFlow;

use tokio::sync::watch;
use viworks_common::id::{AgentId, InstanceId, Tenant};
use viworks_common::telemetry::steps::Range;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{self, Constraint, Params, Row};

use super::merged::{Answer, Item};
use super::tx::View;
use crate::data::{
    InstanceLoad, MasterIds, Neighbour, Retention, StoreError, StoreHealth, StoreResult,
};

/// A statement in both dialects. Most say it in the same words, with parameters by name (`:agent_id`).
#[derive(Debug, Clone, Copy)]
pub(in crate::data) struct Sql {
    pub(in crate::data) sqlite: &'static str,
    pub(in crate::data) postgres: &'static str,
}

impl From<&'static str> for Sql {
    fn from(both: &'static str) -> Self {
        Self {
            sqlite: both,
            postgres: both,
        }
    }
}

impl Sql {
    /// About what only a server has: several backends, or tables that an embedded database has nothing of.
    pub(super) const fn of_server(postgres: &'static str) -> Self {
        Self {
            sqlite: "",
            postgres,
        }
    }

    /// About what only an embedded database has.
    pub(super) const fn of_file(sqlite: &'static str) -> Self {
        Self {
            sqlite,
            postgres: "",
        }
    }
}

/// Whose transaction it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::data) enum Party {
    /// The only backend that there is.
    Alone,
    /// A tool, beside however many backends.
    Beside,
    /// One of several backends.
    Instance(InstanceId),
}

impl Party {
    /// Which of several backends.
    pub(super) const fn instance(self) -> Option<InstanceId> {
        match self {
            Self::Instance(instance) => Some(instance),
            Self::Alone | Self::Beside => None,
        }
    }
}

/// What a statement cannot do.
#[derive(Debug)]
pub(in crate::data) enum LinkError {
    Sqlite(sqlite::Error),
    Postgres(crate::data::postgres::Error),
}

impl LinkError {
    /// Whether a rule of one of these kinds refused the statement.
    pub(in crate::data) fn is_constraint(&self, kinds: &[Constraint]) -> bool {
        match self {
            Self::Sqlite(error) => kinds.iter().any(|kind| error.is_constraint(*kind)),
            Self::Postgres(error) => kinds.iter().any(|kind| error.is_constraint(*kind)),
        }
    }
}

impl From<sqlite::Error> for LinkError {
    fn from(error: sqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<LinkError> for StoreError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Sqlite(error) => error.into(),
            LinkError::Postgres(error) => error.into(),
        }
    }
}

/// Turns the refusal of a unique key into a conflict.
pub(super) fn conflict_or(
    kinds: &'static [Constraint],
    what: impl FnOnce() -> String,
) -> impl FnOnce(LinkError) -> StoreError {
    move |error| {
        if error.is_constraint(kinds) {
            StoreError::Conflict { what: what() }
        } else {
            error.into()
        }
    }
}

/// Takes the rows of an answer one by one, as long as it wants more.
pub(in crate::data) type Take<'t> = &'t mut dyn FnMut(&Row<'_>) -> ControlFlow<()>;

/// A record of telemetry as it is stored.
#[derive(Debug, Clone, Copy)]
pub(in crate::data) struct Record<'r> {
    pub(in crate::data) agent_id: &'r str,
    pub(in crate::data) spool_epoch: &'r str,
    pub(in crate::data) seq: u64,
    pub(in crate::data) stream: &'r str,
    pub(in crate::data) observed_at: Timestamp,
    pub(in crate::data) stored_at: Timestamp,
    pub(in crate::data) fields: &'r str,
    pub(in crate::data) time_source: &'r str,
    pub(in crate::data) gateway_time: Option<Timestamp>,
}

/// A connection inside a transaction.
pub(in crate::data) trait Link {
    /// Executes a statement; answers how many rows it changed. Each of `params` is one of the statement's; those of
    /// `offers` may be.
    fn execute(&self, sql: Sql, params: Params<'_>, offers: Params<'_>)
    -> Result<usize, LinkError>;

    /// Asks a question.
    fn query(
        &self,
        sql: Sql,
        params: Params<'_>,
        offers: Params<'_>,
        take: Take<'_>,
    ) -> Result<(), LinkError>;

    /// The same of a statement that writes all that an intent writes, outside of a transaction: once it has answered,
    /// what it wrote is committed.
    fn query_and_commit(
        &self,
        sql: Sql,
        params: Params<'_>,
        offers: Params<'_>,
        take: Take<'_>,
    ) -> Result<(), LinkError>;

    /// Whose transaction it is.
    fn party(&self) -> Party;

    /// Keeps other transactions that lock these gateways waiting until this one ends; answers whether what was read of
    /// them before may have changed. Ids come in their order, or two transactions may wait for each other.
    fn lock_gateways(&self, tenant: &Tenant, gateways: &[AgentId]) -> Result<bool, LinkError>;

    /// Keeps other transactions waiting that lock one of the same names, which are locked one after another.
    fn lock_names(&self, tenant: &Tenant, names: &[String]) -> Result<(), LinkError>;

    /// Appends records of telemetry that are beyond their positions, all at once. The telemetry of their gateways is
    /// locked.
    fn append_telemetry(&self, tenant: &Tenant, records: &[Record<'_>]) -> Result<(), LinkError>;

    /// The parts of a range of time that are each in a table of their own, in their order; none where one table has an
    /// order of times over everything.
    fn telemetry_tables(&self, range: Range) -> Result<Option<Vec<Range>>, LinkError>;

    /// Makes room for the telemetry of the days that come next, where room has to be made.
    fn make_days_ahead(&self, now: Timestamp) -> Result<(), LinkError>;

    /// Deletes at most `most` records of a gateway that were observed before a time; answers how many.
    fn delete_telemetry(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        before: Timestamp,
        most: usize,
    ) -> Result<usize, LinkError>;

    /// Forgets what stood for names of a gateway that no record has any more, where nothing is left of before a time.
    fn forget_telemetry(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        emptied_to: Timestamp,
    ) -> Result<(), LinkError>;

    /// Before which time nothing is left of a gateway of which less was deleted than might have been.
    fn emptied_to(&self, before: Timestamp) -> Result<Timestamp, LinkError>;
}

/// What statements met lately that the health of a database is to explain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Doubt {
    /// One found something lacking.
    pub unfit: bool,
    /// One waited for a lock in vain.
    pub held: bool,
}

/// How urgent a write is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Somebody waits for it.
    Prompt,
    /// It takes long, and nobody sits and waits for it.
    Bulk,
}

/// A database that carries out intents.
pub trait Engine: Clone + Send + Sync + 'static {
    /// How many writes that take long go on at a time.
    const BULK_WRITES: usize;

    /// How many heartbeats one transaction stores: whoever has to do with these gateways waits until it is committed.
    const HEARTBEATS: usize;

    /// Carries out an intent in one transaction, and answers once that is durable. It may run more than once, each time
    /// with nothing left of the time before.
    fn write<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        urgency: Urgency,
        intent: impl Fn(&View<'_>) -> StoreResult<T> + Send + 'static,
    ) -> impl Future<Output = StoreResult<T>> + Send;

    /// The same where the intent may be carried out by one statement that commits by itself, on a server, where each
    /// statement is a journey. `at_once` does that outside of a transaction: it may ask first, and has to write in one
    /// statement that holds only for what was found. Where it has nothing to answer, nothing was written, and the
    /// intent follows.
    fn write_at_once<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        at_once: impl Fn(&View<'_>) -> StoreResult<Option<T>> + Send + 'static,
        intent: impl Fn(&View<'_>) -> StoreResult<T> + Send + 'static,
    ) -> impl Future<Output = StoreResult<T>> + Send;

    /// Carries out an intent together with others that wait at the same moment, where this database gains by that. What
    /// has no answer was not written, and goes its own way.
    fn write_together(
        &self,
        item: Item,
    ) -> impl Future<Output = StoreResult<Option<Answer>>> + Send;

    /// Answers a question about one state of what is committed.
    fn read<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        question: impl Fn(&View<'_>) -> StoreResult<T> + Send + 'static,
    ) -> impl Future<Output = StoreResult<T>> + Send;

    /// The same of a question that is one statement, and so is about one state anyway. It may be asked again.
    fn ask<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        question: impl Fn(&View<'_>) -> StoreResult<T> + Send + Sync + 'static,
    ) -> impl Future<Output = StoreResult<T>> + Send;

    /// The same of somebody who writes next about what is found: where there is one writer, it has that at hand.
    fn ask_before_writing<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        question: impl Fn(&View<'_>) -> StoreResult<T> + Send + Sync + 'static,
    ) -> impl Future<Output = StoreResult<T>> + Send;

    /// The same where much is read, which holds up nobody who reads little.
    fn report<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        question: impl Fn(&View<'_>) -> StoreResult<T> + Send + 'static,
    ) -> impl Future<Output = StoreResult<T>> + Send;

    /// Deletes the days of telemetry that end before a time, where each is a table of its own; answers how many.
    fn delete_days(&self, before: Timestamp) -> impl Future<Output = StoreResult<u64>> + Send;

    /// Whether writes come in that people wait for.
    fn is_busy(&self) -> bool;

    /// Which of several backends this one is, from now on; nothing where it is alone.
    fn instance(&self) -> watch::Receiver<Option<InstanceId>>;

    /// The other backends, as they told of themselves last.
    fn neighbours(&self) -> watch::Receiver<Vec<Neighbour>>;

    /// The longest of what the others promised to keep, those among them that are away. Whoever asks for both asks for
    /// the neighbours first: what one of them promised is known when it is gone.
    fn promised(&self) -> Option<Retention>;

    /// Tells the other backends of itself.
    fn note_load(&self, load: InstanceLoad);

    /// Tells the other backends which bundle of authorities this one gives gateways.
    fn note_authorities(&self, bundle: &str);

    /// Says which master keys this backend has: at once where it is alone, and else with its lease.
    fn note_masters(&self, masters: MasterIds) -> impl Future<Output = StoreResult<()>> + Send;

    /// Whether it works, by committing something, and has all that it needs; that is looked at again at once where
    /// statements gave cause to.
    fn health(&self, doubt: Doubt) -> impl Future<Output = StoreResult<StoreHealth>> + Send;

    /// Finishes what is under way and closes.
    fn close(&self) -> impl Future<Output = ()> + Send;
}
