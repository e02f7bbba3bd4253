//! A connection as intents see it: statements prepared once, with parameters and columns by name.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::ops::ControlFlow;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgStatement};
use sqlx::{
    Arguments as _, ConnectOptions as _, Connection as _, Either, Executor as _, PgConnection,
    Statement as _,
};
use tokio::runtime::Runtime;
use viworks_common::id::{AgentId, Tenant};
use viworks_common::telemetry::steps::Range;
use viworks_common::time::{Monotonic, Timestamp};
use viworks_runtime::clock::{Clock as _, SystemClock};
use viworks_runtime::sqlite::{Params, Row};

use super::Address;
use super::append::Known;
use super::error::Error;
use super::server;
use super::statement::numbered;
use super::values::{Bound, Kind, Read};
use crate::data::intents::link::{Link, LinkError, Party, Record, Sql, Take};
use crate::protocol::{self, Protocol};

/// What became of the connection, or of its transaction, beside the error that an intent saw.
#[derive(Debug, Clone)]
pub(super) enum Trouble {
    /// The transaction met another one.
    Again(Error),
    /// The connection is gone.
    Lost(Error),
    /// It is gone, and a statement that commits by itself was on its way.
    Unknown(Error),
}

/// How a transaction begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// It sees one state and changes nothing.
    Read(Party),
    /// It changes something. That of an instance is refused while it has no lease.
    Write(Party),
}

impl Begin {
    const fn party(self) -> Party {
        match self {
            Self::Read(party) | Self::Write(party) => party,
        }
    }

    fn text(self) -> Cow<'static, str> {
        match self {
            Self::Read(_) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY".into(),
            // It divides by zero where there is no lease.
            Self::Write(Party::Instance(instance)) => format!(
                "BEGIN; SELECT 1 / count(*) FROM instances \
                 WHERE instance = '{instance}' AND lease_until > clock_timestamp() AND NOT ended"
            )
            .into(),
            Self::Write(Party::Alone | Party::Beside) => "BEGIN".into(),
        }
    }
}

impl Trouble {
    fn of(error: &Error) -> Option<Self> {
        if let Error::Again(_) = error {
            Some(Self::Again(error.clone()))
        } else if let Error::Lost(_) = error {
            Some(Self::Lost(error.clone()))
        } else if let Error::Unknown(_) = error {
            Some(Self::Unknown(error.clone()))
        } else {
            None
        }
    }
}

/// How long an answer may take: longer than the server lets a statement take. A server that says nothing any more is no
/// better than one that is gone.
const ANSWER_TIME: Duration = Duration::from_secs(40);

/// For how long after an answer a connection is taken to be alive: one that rested may be gone, and is asked something
/// that changes nothing first.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// A connection on the thread that has it.
pub(super) struct Connection {
    runtime: Runtime,
    inner: RefCell<PgConnection>,
    statements: RefCell<HashMap<&'static str, Prepared>>,
    trouble: RefCell<Option<Trouble>>,
    /// Whether a transaction is open.
    open: Cell<bool>,
    /// What it remembers of the tables of telemetry.
    pub(super) known: Known,
    /// Whose transaction.
    party: Cell<Party>,
    /// When the server answered last.
    answered: Cell<Monotonic>,
}

#[derive(Clone)]
struct Prepared {
    statement: PgStatement,
    /// The types of its parameters.
    kinds: Vec<Kind>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects to a server that keeps what it commits, on the thread that is to have the connection.
    pub(super) fn open(address: &Address) -> Result<Self, Error> {
        Self::open_by(address, async |options| {
            Box::pin(within(address.connect_timeout, connect(options))).await
        })
    }

    /// The same as the first thing that is done with an address: where nothing but silence comes from there, it is seen
    /// whether another kind of server is, which no wait would mend. That takes no longer than connecting may take.
    pub(super) fn open_first(address: &Address) -> Result<Self, Error> {
        Self::open_by(address, async |options| {
            let limit = address.connect_timeout;
            let mut connecting = Box::pin(within(limit, connect(options)));
            let Some((host, port)) = address.host() else {
                return connecting.await;
            };
            let asking = || Box::pin(protocol::other_than(Protocol::Postgres, host, port));
            let alone = limit.saturating_sub(protocol::ASK_TIME);
            let early = tokio::time::timeout(alone, &mut connecting).await;
            let (connected, found) = match early {
                Ok(Err(error)) if error.is_silence() => (Err(error), asking().await),
                Ok(done) => (done, None),
                // It is asked what it is while it may yet answer.
                Err(_elapsed) => tokio::join!(connecting, asking()),
            };
            connected.map_err(|error| match found {
                Some(found) if error.is_silence() => Error::of_another(found),
                Some(_) | None => error,
            })
        })
    }

    fn open_by(
        address: &Address,
        connecting: impl AsyncFnOnce(&PgConnectOptions) -> Result<PgConnection, Error>,
    ) -> Result<Self, Error> {
        let runtime = of_this_thread()?;
        let options = address
            .options()
            .map_err(|error| Error::Address(error.to_string()))?;
        let connected = runtime.block_on(connecting(&options));
        let inner = connected.map_err(|error| {
            if address.has_password() {
                error
            } else {
                error.without_password()
            }
        })?;
        Ok(Self {
            runtime,
            inner: RefCell::new(inner),
            statements: RefCell::default(),
            trouble: RefCell::default(),
            open: Cell::new(false),
            known: Known::default(),
            party: Cell::new(Party::Beside),
            answered: Cell::new(SystemClock.now()),
        })
    }

    /// Runs a statement without parameters, as it is.
    pub(super) fn batch(&self, sql: &'static str) -> Result<(), Error> {
        let mut inner = self.inner.borrow_mut();
        let run = async { Ok(inner.execute(sqlx::raw_sql(sql)).await.map(drop)?) };
        let run = self.runtime.block_on(within(ANSWER_TIME, run));
        self.note(run)
    }

    /// Runs statements that were made for this once.
    pub(super) fn run(&self, text: String) -> Result<(), Error> {
        let mut inner = self.inner.borrow_mut();
        let text = sqlx::AssertSqlSafe(text);
        let run = async { Ok(inner.execute(sqlx::raw_sql(text)).await.map(drop)?) };
        let run = self.runtime.block_on(within(ANSWER_TIME, run));
        self.note(run)
    }

    /// Hands rows over, all at once.
    pub(super) fn copy(&self, sql: &str, rows: Vec<u8>) -> Result<(), Error> {
        let mut inner = self.inner.borrow_mut();
        let copying = async {
            let mut copy = inner.copy_in_raw(sql).await?;
            copy.send(rows).await?;
            copy.finish().await?;
            Ok(())
        };
        let copied = self.runtime.block_on(within(ANSWER_TIME, copying));
        self.note(copied)
    }

    /// Says what happened to the transaction, where that is another thing than what the server said.
    pub(super) fn met(&self, error: Error) -> Error {
        *self.trouble.borrow_mut() = Trouble::of(&error);
        error
    }

    /// What comes is done for `party` without a transaction.
    pub(super) fn begin_none(&self, party: Party) {
        *self.trouble.borrow_mut() = None;
        self.party.set(party);
    }

    /// Whether the way to the server worked a moment ago: what breaks then breaks seldom before it is used.
    pub(super) fn is_fresh(&self) -> bool {
        let answered = self.answered.get();
        SystemClock.now().saturating_since(answered) < FRESH_FOR
    }

    /// Begins a transaction.
    pub(super) fn begin(&self, begin: Begin) -> Result<(), Error> {
        *self.trouble.borrow_mut() = None;
        self.party.set(begin.party());
        let mut inner = self.inner.borrow_mut();
        let text = sqlx::AssertSqlSafe(begin.text().into_owned());
        let run = async { Ok(inner.execute(sqlx::raw_sql(text)).await.map(drop)?) };
        let run = self.runtime.block_on(within(ANSWER_TIME, run));
        self.open.set(true);
        self.note(run.map_err(Error::while_beginning))
    }

    /// Ends it; when the connection breaks meanwhile, nobody knows whether it was committed.
    pub(super) fn commit(&self) -> Result<(), Error> {
        self.open.set(false);
        let committed = self.batch("COMMIT").map_err(Error::while_committing);
        if committed.is_err() {
            self.known.forget();
        }
        committed
    }

    /// Leaves nothing of it, and clears what was in its way. Answers whether the connection can be used again.
    pub(super) fn roll_back(&self) -> bool {
        self.known.forget();
        let usable = !self.open.replace(false) || self.batch("ROLLBACK").is_ok();
        if usable {
            self.finish_leaving();
        }
        usable
    }

    /// What happened to the transaction.
    pub(super) fn trouble(&self) -> Option<Trouble> {
        self.trouble.borrow().clone()
    }

    /// The connection itself, for what is no intent.
    pub(super) fn with<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.with_within(ANSWER_TIME, work)
    }

    /// The same, where the answer must not take longer than this.
    pub(super) fn with_within<T>(
        &self,
        limit: Duration,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut inner = self.inner.borrow_mut();
        let done = self.runtime.block_on(within(limit, work(&mut inner)));
        self.note(done)
    }

    /// The same, for what takes as long as there are rows.
    pub(super) fn with_patience<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut inner = self.inner.borrow_mut();
        let done = self.runtime.block_on(work(&mut inner));
        self.note(done)
    }

    /// Says goodbye.
    pub(super) fn close(self) {
        let closing = async { Ok(self.inner.into_inner().close().await?) };
        let closed = self.runtime.block_on(within(GOODBYE_TIME, closing));
        if let Err(error) = closed {
            tracing::debug!(%error, "a connection to the database was gone before it was closed");
        }
    }

    fn note<T>(&self, done: Result<T, Error>) -> Result<T, Error> {
        match &done {
            Ok(_) => self.answered.set(SystemClock.now()),
            Err(error) => {
                let trouble = Trouble::of(error);
                if trouble.is_some() {
                    *self.trouble.borrow_mut() = trouble;
                }
            }
        }
        done
    }

    /// Prepares a statement, as the first use of it does.
    #[cfg(test)]
    pub(super) fn prepare(&self, sql: Sql) -> Result<(), Error> {
        self.prepared(sql).map(drop)
    }

    fn prepared(&self, sql: Sql) -> Result<Prepared, Error> {
        if let Some(known) = self.statements.borrow().get(sql.postgres) {
            return Ok(known.clone());
        }
        let numbered = numbered(sql.postgres);
        let mut inner = self.inner.borrow_mut();
        let sql_text = sqlx::SqlSafeStr::into_sql_str(numbered.sql.as_str());
        let preparing = async { Ok(inner.prepare(sql_text).await?) };
        let statement = self.runtime.block_on(within(ANSWER_TIME, preparing))?;
        let kinds = match statement.parameters() {
            Some(Either::Left(types)) => types.iter().map(Kind::of).collect(),
            Some(Either::Right(_)) | None => Vec::new(),
        };
        let prepared = Prepared { statement, kinds };
        let mut statements = self.statements.borrow_mut();
        statements.insert(sql.postgres, prepared.clone());
        Ok(prepared)
    }

    fn bind(
        &self,
        sql: Sql,
        params: Params<'_>,
        offers: Params<'_>,
    ) -> Result<(Prepared, PgArguments), Error> {
        let prepared = self.prepared(sql)?;
        let names = &numbered(sql.postgres).names;
        if let Some((stray, _)) = params
            .iter()
            .find(|(name, _)| !names.iter().any(|known| known == name))
        {
            return Err(fault(format!("the statement has no parameter {stray}")));
        }
        let mut arguments = PgArguments::default();
        for (name, kind) in names.iter().zip(&prepared.kinds) {
            let mut given = params.iter().chain(offers);
            let Some((_, value)) = given.find(|(given, _)| given == name) else {
                return Err(fault(format!("nobody bound {name}")));
            };
            let value = Bound {
                value: value.bind(),
                kind: *kind,
            };
            arguments.add(value).map_err(sqlx::Error::Encode)?;
        }
        Ok((prepared, arguments))
    }

    fn ask(
        &self,
        sql: Sql,
        params: Params<'_>,
        offers: Params<'_>,
        take: Take<'_>,
    ) -> Result<(), Error> {
        let (prepared, arguments) = self.bind(sql, params, offers)?;
        let mut inner = self.inner.borrow_mut();
        let query = prepared.statement.query_with(arguments);
        let fetching = async {
            let mut rows = query.fetch(&mut *inner);
            while let Some(row) = rows.try_next().await? {
                if take(&Row::new(&Read(row))) == ControlFlow::Break(()) {
                    break;
                }
            }
            Ok(())
        };
        self.runtime.block_on(within(ANSWER_TIME, fetching))
    }
}

/// How long saying goodbye may take.
const GOODBYE_TIME: Duration = Duration::from_secs(2);

/// Connects, and sees whether the server can be used.
async fn connect(options: &PgConnectOptions) -> Result<PgConnection, Error> {
    let mut inner = options.connect().await?;
    server::check(&mut inner).await?;
    Ok(inner)
}

fn of_this_thread() -> Result<Runtime, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.map_err(|error| Error::NoThread(error.into()))
}

/// What comes within a time; a connection whose answer was not waited for cannot be used again.
async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let late = |_elapsed| {
        let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
        Err(sqlx::Error::Io(late).into())
    };
    tokio::time::timeout(limit, work).await.unwrap_or_else(late)
}

/// A statement and its parameters do not go together.
fn fault(what: String) -> Error {
    sqlx::Error::Encode(what.into()).into()
}

impl Link for Connection {
    fn execute(
        &self,
        sql: Sql,
        params: Params<'_>,
        offers: Params<'_>,
    ) -> Result<usize, LinkError> {
        let run = || {
            let (prepared, arguments) = self.bind(sql, params, offers)?;
            let mut inner = self.inner.borrow_mut();
            let query = prepared.statement.query_with(arguments);
            let executing = async { Ok(query.execute(&mut *inner).await?) };
            let done = self.runtime.block_on(within(ANSWER_TIME, executing))?;
            Ok(usize::try_from(done.rows_affected()).unwrap_or(usize::MAX))
        };
        self.note(run()).map_err(LinkError::Postgres)
    }

    fn query(
        &self,
        sql: Sql,
        params: Params<'_>,
        offers: Params<'_>,
        take: Take<'_>,
    ) -> Result<(), LinkError> {
        let asked = self.ask(sql, params, offers, take);
        self.note(asked).map_err(LinkError::Postgres)
    }

    fn query_and_commit(
        &self,
        sql: Sql,
        params: Params<'_>,
        offers: Params<'_>,
        take: Take<'_>,
    ) -> Result<(), LinkError> {
        // The end of the answer says that it was committed; a row does not.
        let mut wants = true;
        let asked = self.ask(sql, params, offers, &mut |row| {
            wants = wants && take(row) == ControlFlow::Continue(());
            ControlFlow::Continue(())
        });
        let asked = asked.map_err(Error::by_itself);
        self.note(asked).map_err(LinkError::Postgres)
    }

    fn party(&self) -> Party {
        self.party.get()
    }

    fn lock_gateways(&self, tenant: &Tenant, gateways: &[AgentId]) -> Result<bool, LinkError> {
        const ONE: &str = "\
            SELECT agent_id FROM gateways WHERE tenant = :tenant AND agent_id = :agent_id FOR NO KEY UPDATE";
        // Rows are locked in the order in which they are sorted.
        const MANY: &str = "\
            SELECT agent_id FROM gateways
            WHERE tenant = :tenant AND agent_id IN (SELECT * FROM json_array_elements_text(:gateways))
            ORDER BY agent_id FOR NO KEY UPDATE";
        let tenant = tenant.as_str();
        if gateways.len() > 3 {
            let gateways: Vec<String> = gateways.iter().map(ToString::to_string).collect();
            let gateways = serde_json::Value::from(gateways).to_string();
            let params = viworks_runtime::params! { tenant, gateways };
            self.query(MANY.into(), params, &[], &mut |_row| {
                ControlFlow::Continue(())
            })?;
            return Ok(true);
        }
        for agent_id in gateways {
            let params = viworks_runtime::params! { tenant, agent_id };
            self.query(ONE.into(), params, &[], &mut |_row| {
                ControlFlow::Continue(())
            })?;
        }
        Ok(true)
    }

    fn lock_names(&self, tenant: &Tenant, names: &[String]) -> Result<(), LinkError> {
        // The rows of a function come in its order.
        const LOCK: &str = "\
            SELECT pg_advisory_xact_lock(hashtextextended(:tenant || ' ' || name, 0)) IS NULL
            FROM json_array_elements_text(:names) AS n (name)";
        let tenant = tenant.as_str();
        let names = serde_json::Value::from(names).to_string();
        let params = viworks_runtime::params! { tenant, names };
        self.query(LOCK.into(), params, &[], &mut |_row| {
            ControlFlow::Continue(())
        })
    }

    fn append_telemetry(&self, tenant: &Tenant, records: &[Record<'_>]) -> Result<(), LinkError> {
        self.append(tenant, records)
    }

    fn telemetry_tables(&self, range: Range) -> Result<Option<Vec<Range>>, LinkError> {
        self.tables_of(range).map(Some)
    }

    fn make_days_ahead(&self, now: Timestamp) -> Result<(), LinkError> {
        self.add_days(now)
    }

    /// Days are deleted whole, and not here.
    fn delete_telemetry(
        &self,
        _tenant: &Tenant,
        _agent_id: AgentId,
        _before: Timestamp,
        _most: usize,
    ) -> Result<usize, LinkError> {
        Ok(0)
    }

    fn forget_telemetry(
        &self,
        tenant: &Tenant,
        agent_id: AgentId,
        emptied_to: Timestamp,
    ) -> Result<(), LinkError> {
        self.take_back_numbers(tenant, agent_id, emptied_to)
    }

    fn emptied_to(&self, before: Timestamp) -> Result<Timestamp, LinkError> {
        self.telemetry_emptied_to(before)
    }
}
