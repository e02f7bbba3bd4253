//! A connection as jobs see it: static statements, prepared once, with parameters and columns by name.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use rusqlite::CachedStatement;
use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;

use super::value::{Bind, Column, Value};
use super::{Error, Options};
use crate::clock::{Clock as _, SystemClock};

/// Statements that stay prepared: more than any of our databases has.
const STATEMENTS_MAX: usize = 256;

/// Steps of a statement, a millisecond or less of them, after which a limit of time is looked at.
const STEPS: i32 = 10_000;

/// Parameters by name, as [`params!`](crate::params) makes them.
pub type Params<'p> = &'p [(&'static str, &'p dyn Bind)];

/// Parameters of a statement: `params! { agent_id, name: new.name }` binds `:agent_id` and `:name`.
#[macro_export]
macro_rules! params {
    (@one $name:ident) => {
        &$name
    };
    (@one $name:ident $value:expr) => {
        &$value
    };
    ($($name:ident $(: $value:expr)?),* $(,)?) => {
        &[$((
            ::std::concat!(":", ::std::stringify!($name)),
            $crate::params!(@one $name $($value)?) as &dyn $crate::sqlite::Bind,
        )),*]
    };
}

/// An open connection, inside a transaction.
#[derive(Debug)]
pub struct Connection {
    inner: rusqlite::Connection,
    /// Where it is, for who has to mend it.
    path: Box<Path>,
}

/// While it is there, the statements of a connection have a limit; without it they take as long as they do.
struct Limited<'c>(&'c rusqlite::Connection);

impl Drop for Limited<'_> {
    fn drop(&mut self) {
        let no_limit: Option<fn() -> bool> = None;
        drop(self.0.progress_handler(0, no_limit));
    }
}

impl Connection {
    pub(super) fn new(inner: rusqlite::Connection, options: &Options) -> Result<Self, Error> {
        inner.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        inner.busy_timeout(options.busy_timeout)?;
        inner.execute_batch("PRAGMA trusted_schema = OFF")?;
        // A plan that looks at the values of parameters is made anew whenever they change: statements would be parsed
        // each time, and the plans that tests look at would not be those that run.
        inner.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        Ok(Self {
            inner,
            path: options.path.as_path().into(),
        })
    }

    pub(super) const fn inner(&self) -> &rusqlite::Connection {
        &self.inner
    }

    pub(super) fn into_inner(self) -> rusqlite::Connection {
        self.inner
    }

    /// Does some work whose statements have so long together: what is under way then fails with [`Error::TooLong`], as
    /// does all that is asked later in it. Nothing else bounds what a statement takes.
    ///
    /// # Errors
    ///
    /// The work's own.
    pub fn within<T, E: From<Error>>(
        &self,
        limit: Duration,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let begun = SystemClock.now();
        let is_over = move || SystemClock.now().saturating_since(begun) > limit;
        let limited = self.inner.progress_handler(STEPS, Some(is_over));
        limited.map_err(Error::from)?;
        let _limited = Limited(&self.inner);
        work()
    }

    /// The statement, prepared now or by an earlier call.
    ///
    /// # Errors
    ///
    /// When the database has no such table or column.
    pub fn prepare(&self, sql: &'static str) -> Result<Statement<'_>, Error> {
        let inner = self.inner.prepare_cached(sql);
        Ok(Statement {
            inner: inner.map_err(|error| Error::of(error, &self.path))?,
            bound: 0,
            path: &self.path,
        })
    }

    /// Executes a statement; answers how many rows it changed.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub fn execute(&self, sql: &'static str, params: Params<'_>) -> Result<usize, Error> {
        self.prepare(sql)?.with(params)?.execute()
    }

    /// The first row; it must be there.
    ///
    /// # Errors
    ///
    /// When the statement fails or has no row, or the row cannot be read.
    pub fn one<T, E: From<Error>>(
        &self,
        sql: &'static str,
        params: Params<'_>,
        read: impl FnOnce(&Row<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.prepare(sql)?.with(params)?.one(read)
    }

    /// The first row, if there is one.
    ///
    /// # Errors
    ///
    /// When the statement fails, or the row cannot be read.
    pub fn optional<T, E: From<Error>>(
        &self,
        sql: &'static str,
        params: Params<'_>,
        read: impl FnOnce(&Row<'_>) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        self.prepare(sql)?.with(params)?.optional(read)
    }

    /// Every row.
    ///
    /// # Errors
    ///
    /// When the statement fails, or a row cannot be read.
    pub fn all<T, E: From<Error>>(
        &self,
        sql: &'static str,
        params: Params<'_>,
        read: impl FnMut(&Row<'_>) -> Result<T, E>,
    ) -> Result<Vec<T>, E> {
        self.prepare(sql)?.with(params)?.all(read)
    }
}

/// A prepared statement and what is bound to it.
pub struct Statement<'c> {
    inner: CachedStatement<'c>,
    bound: usize,
    path: &'c Path,
}

impl Statement<'_> {
    /// Binds parameters.
    ///
    /// # Errors
    ///
    /// When the statement has no parameter of such a name.
    pub fn with(mut self, params: Params<'_>) -> Result<Self, Error> {
        for (name, value) in params {
            let Some(index) = self.inner.parameter_index(name)? else {
                return Err(rusqlite::Error::InvalidParameterName((*name).to_owned()).into());
            };
            self.bind(index, *value)?;
        }
        Ok(self)
    }

    /// Binds a parameter if the statement has it.
    ///
    /// # Errors
    ///
    /// When the value is too large for SQLite.
    pub fn offer(mut self, name: &'static str, value: &dyn Bind) -> Result<Self, Error> {
        if let Some(index) = self.inner.parameter_index(name)? {
            self.bind(index, value)?;
        }
        Ok(self)
    }

    fn bind(&mut self, index: usize, value: &dyn Bind) -> Result<(), Error> {
        self.inner.raw_bind_parameter(index, value.bind())?;
        self.bound += 1;
        Ok(())
    }

    /// A parameter that nobody bound would silently be null.
    fn check(&self) -> Result<(), Error> {
        let wanted = self.inner.parameter_count();
        if self.bound == wanted {
            return Ok(());
        }
        Err(rusqlite::Error::InvalidParameterCount(self.bound, wanted).into())
    }

    /// Executes it; answers how many rows it changed.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn execute(&mut self) -> Result<usize, Error> {
        self.check()?;
        let changed = self.inner.raw_execute();
        changed.map_err(|error| Error::of(error, self.path))
    }

    /// The first row; it must be there.
    ///
    /// # Errors
    ///
    /// When it fails or has no row, or the row cannot be read.
    pub fn one<T, E: From<Error>>(
        &mut self,
        read: impl FnOnce(&Row<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let row = self.optional(read)?;
        row.ok_or_else(|| Error::from(rusqlite::Error::QueryReturnedNoRows).into())
    }

    /// The first row, if there is one.
    ///
    /// # Errors
    ///
    /// When it fails, or the row cannot be read.
    pub fn optional<T, E: From<Error>>(
        &mut self,
        read: impl FnOnce(&Row<'_>) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        self.check()?;
        let path = self.path;
        let mut rows = self.inner.raw_query();
        match rows.next().map_err(|error| Error::of(error, path))? {
            Some(row) => read(&Row::new(row)).map(Some),
            None => Ok(None),
        }
    }

    /// Every row.
    ///
    /// # Errors
    ///
    /// When it fails, or a row cannot be read.
    pub fn all<T, E: From<Error>>(
        &mut self,
        mut read: impl FnMut(&Row<'_>) -> Result<T, E>,
    ) -> Result<Vec<T>, E> {
        self.check()?;
        let path = self.path;
        let mut rows = self.inner.raw_query();
        let mut all = Vec::new();
        while let Some(row) = rows.next().map_err(|error| Error::of(error, path))? {
            all.push(read(&Row::new(row))?);
        }
        Ok(all)
    }

    /// Gives one row after another to `take`, as long as that wants more.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn each(&mut self, take: &mut dyn FnMut(&Row<'_>) -> ControlFlow<()>) -> Result<(), Error> {
        self.check()?;
        let path = self.path;
        let mut rows = self.inner.raw_query();
        while let Some(row) = rows.next().map_err(|error| Error::of(error, path))? {
            if take(&Row::new(row)).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// The columns of a row, of whatever database it is.
pub trait Columns {
    /// What a column holds; `None` where there is no such column, or its type is not one that the tables use.
    fn value(&self, column: &str) -> Option<Value<'_>>;

    /// What the first column holds.
    fn first(&self) -> Option<Value<'_>>;

    /// Bytes of all its text and blobs.
    fn bytes(&self) -> usize;
}

impl Columns for rusqlite::Row<'_> {
    fn value(&self, column: &str) -> Option<Value<'_>> {
        Value::of(self.get_ref(column).ok()?)
    }

    fn first(&self) -> Option<Value<'_>> {
        Value::of(self.get_ref(0).ok()?)
    }

    fn bytes(&self) -> usize {
        let columns = 0..self.as_ref().column_count();
        let size = |column| match self.get_ref(column) {
            Ok(ValueRef::Text(bytes) | ValueRef::Blob(bytes)) => bytes.len(),
            Ok(ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_)) | Err(_) => 0,
        };
        columns.map(size).sum()
    }
}

/// A row of an answer.
pub struct Row<'r>(&'r dyn Columns);

impl std::fmt::Debug for Row<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Row").field(&self.name()).finish()
    }
}

impl<'r> Row<'r> {
    /// The row with these columns.
    #[must_use]
    pub const fn new(columns: &'r dyn Columns) -> Self {
        Self(columns)
    }

    /// What a column holds; `None` where that is no `T`, or there is no such column.
    #[must_use]
    pub fn get<T: Column>(&self, column: &str) -> Option<T> {
        T::read(self.0.value(column)?)
    }

    /// Text that need not be copied.
    #[must_use]
    pub fn text(&self, column: &str) -> Option<&str> {
        borrowed(&self.0.value(column)?)
    }

    /// Bytes of all its text and blobs.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// The text of the first column, which mostly tells which row it is.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        borrowed(&self.0.first()?)
    }
}

/// The text of a value that holds it as the row does.
const fn borrowed<'v>(value: &Value<'v>) -> Option<&'v str> {
    match value {
        Value::Text(Cow::Borrowed(text)) => Some(text),
        Value::Text(Cow::Owned(_))
        | Value::Null
        | Value::Integer(_)
        | Value::Real(_)
        | Value::Blob(_) => None,
    }
}
