//! What every function of the store works with: a transaction, whose rows it is about, and when.

use std::cell::Cell;
use std::ops::Deref;

use viworks_common::id::Tenant;
use viworks_common::limits::PAGE_BYTES_MAX;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Connection, Error, Params, Row, Statement, params};

use super::page::Rows;
use crate::data::{StoreError, StoreResult};

pub(super) const COUNT_OPEN: &str = "\
UPDATE open_commands SET commands = commands + :change WHERE tenant = :tenant";

pub(super) const BEGIN_COUNT: &str = "\
INSERT INTO open_commands (tenant, commands) VALUES (:tenant, :change)";

/// One state of a tenant's rows. Every statement that names `:tenant` gets it from here.
pub(super) struct View<'c> {
    connection: &'c Connection,
    tenant: &'c Tenant,
    now: Option<Timestamp>,
}

impl<'c> View<'c> {
    pub(super) const fn new(connection: &'c Connection, tenant: &'c Tenant) -> Self {
        Self {
            connection,
            tenant,
            now: None,
        }
    }

    /// The first row; it must be there.
    pub(super) fn one<T>(
        &self,
        sql: &'static str,
        params: Params<'_>,
        read: impl FnOnce(&Row<'_>) -> StoreResult<T>,
    ) -> StoreResult<T> {
        self.statement(sql, params)?.one(read)
    }

    /// The first row, if there is one.
    pub(super) fn optional<T>(
        &self,
        sql: &'static str,
        params: Params<'_>,
        read: impl FnOnce(&Row<'_>) -> StoreResult<T>,
    ) -> StoreResult<Option<T>> {
        self.statement(sql, params)?.optional(read)
    }

    /// Every row.
    pub(super) fn all<T>(
        &self,
        sql: &'static str,
        params: Params<'_>,
        read: impl FnMut(&Row<'_>) -> StoreResult<T>,
    ) -> StoreResult<Vec<T>> {
        self.statement(sql, params)?.all(read)
    }

    /// The rows of one page, no more than [`PAGE_BYTES_MAX`] and one row of them: whatever is stored, asking for it
    /// does not cost memory without bound.
    pub(super) fn page<T>(
        &self,
        sql: &'static str,
        params: Params<'_>,
        read: impl FnMut(&Row<'_>) -> StoreResult<T>,
    ) -> StoreResult<Rows<T>> {
        let (items, cut) = self.statement(sql, params)?.up_to(PAGE_BYTES_MAX, read)?;
        Ok(Rows { items, cut })
    }

    /// Executes a statement; answers how many rows it changed.
    pub(super) fn execute(
        &self,
        sql: &'static str,
        params: Params<'_>,
    ) -> Result<usize, StoreError> {
        Ok(self.try_execute(sql, params)?)
    }

    /// The same, where a broken constraint is an answer.
    pub(super) fn try_execute(
        &self,
        sql: &'static str,
        params: Params<'_>,
    ) -> Result<usize, Error> {
        self.statement(sql, params)?.execute()
    }

    fn statement(&self, sql: &'static str, params: Params<'_>) -> Result<Statement<'_>, Error> {
        let statement = self.connection.prepare(sql)?.with(params)?;
        let statement = statement.offer(":tenant", &self.tenant.as_str())?;
        match self.now {
            Some(now) => statement.offer(":now", &now),
            None => Ok(statement),
        }
    }
}

/// The transaction of one intent. Every statement that names `:now` gets it from here.
pub(super) struct Tx<'c> {
    view: View<'c>,
    /// When the intent happens.
    pub(super) now: Timestamp,
    /// By how many the tenant's open commands have become more.
    opened: Cell<i64>,
}

impl<'c> Deref for Tx<'c> {
    type Target = View<'c>;

    fn deref(&self) -> &View<'c> {
        &self.view
    }
}

impl<'c> Tx<'c> {
    /// Carries out an intent.
    pub(super) fn run<T>(
        connection: &'c Connection,
        tenant: &'c Tenant,
        now: Timestamp,
        intent: impl FnOnce(&Self) -> StoreResult<T>,
    ) -> StoreResult<T> {
        let view = View::new(connection, tenant);
        let tx = Self {
            view: View {
                now: Some(now),
                ..view
            },
            now,
            opened: Cell::new(0),
        };
        let answer = intent(&tx)?;
        tx.write_count()?;
        Ok(answer)
    }

    /// Notes that commands were made, or ended.
    pub(super) fn count_open(&self, change: i64) {
        self.opened.set(self.opened.get() + change);
    }

    /// Last of all: every intent of the tenant wants this row, and holds it until its transaction ends.
    fn write_count(&self) -> StoreResult<()> {
        let change = self.opened.get();
        if change != 0 && self.execute(COUNT_OPEN, params! { change })? == 0 {
            self.execute(BEGIN_COUNT, params! { change })?;
        }
        Ok(())
    }
}
