//! A connection as jobs see it: static statements, prepared once, with parameters and columns by name.

use rusqlite::CachedStatement;
use rusqlite::config::DbConfig;

use super::value::{Bind, Column, Value};
use super::{Error, Options};

/// Statements that stay prepared: more than any of our databases has.
const STATEMENTS_MAX: usize = 256;

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
pub struct Connection(rusqlite::Connection);

impl Connection {
    pub(super) fn new(inner: rusqlite::Connection, options: &Options) -> Result<Self, Error> {
        inner.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
        inner.busy_timeout(options.busy_timeout)?;
        inner.execute_batch("PRAGMA trusted_schema = OFF")?;
        // A plan that looks at the values of parameters is made anew whenever they change: statements would be parsed
        // each time, and the plans that tests look at would not be those that run.
        inner.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        Ok(Self(inner))
    }

    pub(super) const fn inner(&self) -> &rusqlite::Connection {
        &self.0
    }

    pub(super) fn into_inner(self) -> rusqlite::Connection {
        self.0
    }

    /// The statement, prepared now or by an earlier call.
    ///
    /// # Errors
    ///
    /// When the database has no such table or column.
    pub fn prepare(&self, sql: &'static str) -> Result<Statement<'_>, Error> {
        let inner = self.0.prepare_cached(sql)?;
        Ok(Statement { inner, bound: 0 })
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
        Ok(self.inner.raw_execute()?)
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
        let mut rows = self.inner.raw_query();
        match rows.next().map_err(Error::from)? {
            Some(row) => read(&Row(row)).map(Some),
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
        let mut rows = self.inner.raw_query();
        let mut all = Vec::new();
        while let Some(row) = rows.next().map_err(Error::from)? {
            all.push(read(&Row(row))?);
        }
        Ok(all)
    }
}

/// A row of an answer.
#[derive(Debug)]
pub struct Row<'r>(&'r rusqlite::Row<'r>);

impl Row<'_> {
    /// What a column holds; `None` where that is no `T`, or there is no such column.
    #[must_use]
    pub fn get<T: Column>(&self, column: &str) -> Option<T> {
        T::read(Value::of(self.0.get_ref(column).ok()?)?)
    }

    /// Text that need not be copied.
    #[must_use]
    pub fn text(&self, column: &str) -> Option<&str> {
        self.0.get_ref(column).ok()?.as_str().ok()
    }

    /// The text of the first column, which mostly tells which row it is.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.0.get_ref(0).ok()?.as_str().ok()
    }
}
