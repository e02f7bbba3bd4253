//! What every function of the store works with: a transaction, whose rows it is about, and when.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::{ControlFlow, Deref};

use viworks_common::id::{AgentId, InstanceId, Tenant};
use viworks_common::limits::PAGE_BYTES_MAX;
use viworks_common::telemetry::steps::Range;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Constraint, Params, Row, params};

use super::inbox::{self, Post};
use super::link::{Link, LinkError, Party, Record, Sql, Take};
use super::page::Rows;
use crate::data::{StoreError, StoreResult};

/// In one row where one writes at a time; in several where each transaction would hold it until it is on the disk.
pub(super) const COUNT_OPEN: Sql = Sql {
    // Never below zero: what it is off by is found when it is counted anew.
    sqlite: "UPDATE open_commands SET commands = max(0, commands + :change) WHERE tenant = :tenant",
    postgres: "\
INSERT INTO open_commands (tenant, share, commands) VALUES (:tenant, pg_backend_pid() % 16, :change)
ON CONFLICT (tenant, share) DO UPDATE SET commands = open_commands.commands + excluded.commands",
};

pub(super) const BEGIN_COUNT: Sql = Sql {
    sqlite: "INSERT INTO open_commands (tenant, commands) VALUES (:tenant, max(0, :change))",
    postgres: COUNT_OPEN.postgres,
};

/// One state of a tenant's rows. Every statement that names `:tenant` gets it from here.
pub struct View<'c> {
    link: &'c dyn Link,
    tenant: &'c Tenant,
    now: Option<Timestamp>,
}

impl<'c> View<'c> {
    pub(in crate::data) const fn new(link: &'c dyn Link, tenant: &'c Tenant) -> Self {
        Self {
            link,
            tenant,
            now: None,
        }
    }

    /// The first row; it must be there.
    pub(in crate::data) fn one<T>(
        &self,
        sql: impl Into<Sql>,
        params: Params<'_>,
        read: impl FnOnce(&Row<'_>) -> StoreResult<T>,
    ) -> StoreResult<T> {
        let row = self.optional(sql, params, read)?;
        row.ok_or_else(|| StoreError::Unavailable("a statement that always answers did not".into()))
    }

    /// The first row, if there is one.
    pub(super) fn optional<T>(
        &self,
        sql: impl Into<Sql>,
        params: Params<'_>,
        read: impl FnOnce(&Row<'_>) -> StoreResult<T>,
    ) -> StoreResult<Option<T>> {
        let (mut read, mut found) = (Some(read), None);
        self.query(sql, params, &mut |row| {
            found = read.take().map(|read| read(row));
            ControlFlow::Break(())
        })?;
        found.transpose()
    }

    /// Every row of a statement that writes and commits by itself. Where a rule of one of the database's keys refuses
    /// it, nothing was written and there is no answer.
    pub(super) fn all_and_commit<T>(
        &self,
        sql: Sql,
        params: Params<'_>,
        mut read: impl FnMut(&Row<'_>) -> StoreResult<T>,
    ) -> StoreResult<Option<Vec<T>>> {
        let mut all = Ok(Vec::new());
        let take: Take<'_> = &mut |row| keep(&mut all, read(row));
        let asked =
            self.with_offers(|offers| self.link.query_and_commit(sql, params, offers, take));
        match asked {
            Err(error) if error.is_constraint(&[Constraint::PrimaryKey, Constraint::Unique]) => {
                Ok(None)
            }
            asked => {
                asked?;
                all.map(Some)
            }
        }
    }

    /// Every row.
    pub(super) fn all<T>(
        &self,
        sql: impl Into<Sql>,
        params: Params<'_>,
        mut read: impl FnMut(&Row<'_>) -> StoreResult<T>,
    ) -> StoreResult<Vec<T>> {
        let mut all = Ok(Vec::new());
        self.query(sql, params, &mut |row| keep(&mut all, read(row)))?;
        all
    }

    /// The rows of one page, no more than [`PAGE_BYTES_MAX`] and one row of them: whatever is stored, asking for it
    /// does not cost memory without bound.
    pub(super) fn page<T>(
        &self,
        sql: impl Into<Sql>,
        params: Params<'_>,
        read: impl FnMut(&Row<'_>) -> StoreResult<T>,
    ) -> StoreResult<Rows<T>> {
        self.page_on(sql, params, &mut 0, read)
    }

    /// The same for a page that holds so many bytes already.
    pub(super) fn page_on<T>(
        &self,
        sql: impl Into<Sql>,
        params: Params<'_>,
        held: &mut usize,
        mut read: impl FnMut(&Row<'_>) -> StoreResult<T>,
    ) -> StoreResult<Rows<T>> {
        let (mut items, mut cut) = (Ok(Vec::new()), false);
        self.query(sql, params, &mut |row| {
            if *held >= PAGE_BYTES_MAX {
                cut = true;
                return ControlFlow::Break(());
            }
            *held = held.saturating_add(row.bytes());
            keep(&mut items, read(row))
        })?;
        Ok(Rows { items: items?, cut })
    }

    /// One row after another, as long as more are wanted.
    pub(super) fn each(
        &self,
        sql: impl Into<Sql>,
        params: Params<'_>,
        mut take: impl FnMut(&Row<'_>) -> StoreResult<ControlFlow<()>>,
    ) -> StoreResult<()> {
        let mut failed = Ok(());
        self.query(sql, params, &mut |row| match take(row) {
            Ok(flow) => flow,
            Err(error) => {
                failed = Err(error);
                ControlFlow::Break(())
            }
        })?;
        failed
    }

    /// Executes a statement; answers how many rows it changed.
    pub(super) fn execute(
        &self,
        sql: impl Into<Sql>,
        params: Params<'_>,
    ) -> Result<usize, StoreError> {
        Ok(self.try_execute(sql, params)?)
    }

    /// The same, where a broken constraint is an answer.
    pub(super) fn try_execute(
        &self,
        sql: impl Into<Sql>,
        params: Params<'_>,
    ) -> Result<usize, LinkError> {
        self.with_offers(|offers| self.link.execute(sql.into(), params, offers))
    }

    /// Has these gateways to itself until the transaction ends: what is read of them and of their commands afterwards
    /// holds. First of all, so that transactions do not wait for each other in a circle. Answers whether what was read
    /// before may have changed.
    pub(super) fn lock(&self, gateways: impl IntoIterator<Item = AgentId>) -> StoreResult<bool> {
        let in_order: BTreeSet<AgentId> = gateways.into_iter().collect();
        let in_order: Vec<AgentId> = in_order.into_iter().collect();
        Ok(self.link.lock_gateways(self.tenant, &in_order)?)
    }

    /// Has the telemetry of these gateways to itself, which does not hold up their commands.
    pub(super) fn lock_telemetry(
        &self,
        gateways: impl IntoIterator<Item = AgentId>,
    ) -> StoreResult<()> {
        let in_order: BTreeSet<AgentId> = gateways.into_iter().collect();
        let names = in_order.iter();
        let names: Vec<String> = names.map(|id| format!("telemetry {id}")).collect();
        Ok(self.link.lock_names(self.tenant, &names)?)
    }

    /// Whose rows these are.
    pub(super) const fn tenant(&self) -> &'c Tenant {
        self.tenant
    }

    /// Whose transaction it is.
    pub(super) fn party(&self) -> Party {
        self.link.party()
    }

    /// Keeps others waiting that lock the same name.
    pub(super) fn lock_name(&self, name: &str) -> StoreResult<()> {
        Ok(self.link.lock_names(self.tenant, &[name.to_owned()])?)
    }

    /// Appends records of telemetry.
    pub(super) fn append_telemetry(&self, records: &[Record<'_>]) -> StoreResult<()> {
        Ok(self.link.append_telemetry(self.tenant, records)?)
    }

    /// The tables that telemetry of a time is in; see [`Link::telemetry_tables`].
    pub(super) fn telemetry_tables(
        &self,
        from: Timestamp,
        until: Timestamp,
    ) -> StoreResult<Option<Vec<Range>>> {
        Ok(self.link.telemetry_tables(Range { from, until })?)
    }

    /// Makes room for the telemetry of the days that come next.
    pub(super) fn make_days_ahead(&self, now: Timestamp) -> StoreResult<()> {
        Ok(self.link.make_days_ahead(now)?)
    }

    /// Deletes telemetry; see [`Link::delete_telemetry`].
    pub(super) fn delete_telemetry(
        &self,
        agent_id: AgentId,
        before: Timestamp,
        most: usize,
    ) -> StoreResult<usize> {
        let link = self.link;
        Ok(link.delete_telemetry(self.tenant, agent_id, before, most)?)
    }

    /// Forgets names of streams and spool epochs; see [`Link::forget_telemetry`].
    pub(super) fn forget_telemetry(
        &self,
        agent_id: AgentId,
        emptied_to: Timestamp,
    ) -> StoreResult<()> {
        let link = self.link;
        Ok(link.forget_telemetry(self.tenant, agent_id, emptied_to)?)
    }

    /// Before which time no telemetry is left; see [`Link::emptied_to`].
    pub(super) fn telemetry_emptied_to(&self, before: Timestamp) -> StoreResult<Timestamp> {
        Ok(self.link.emptied_to(before)?)
    }

    fn query(
        &self,
        sql: impl Into<Sql>,
        params: Params<'_>,
        take: Take<'_>,
    ) -> Result<(), LinkError> {
        self.with_offers(|offers| self.link.query(sql.into(), params, offers, take))
    }

    fn with_offers<T>(&self, run: impl FnOnce(Params<'_>) -> T) -> T {
        let tenant = self.tenant.as_str();
        match self.now {
            Some(now) => run(params! { tenant, now }),
            None => run(params! { tenant }),
        }
    }
}

/// Adds what was read of a row, unless a row before it could not be read.
fn keep<T>(all: &mut StoreResult<Vec<T>>, read: StoreResult<T>) -> ControlFlow<()> {
    match (all.as_mut(), read) {
        (Ok(kept), Ok(item)) => {
            kept.push(item);
            ControlFlow::Continue(())
        }
        (Ok(_), Err(error)) => {
            *all = Err(error);
            ControlFlow::Break(())
        }
        (Err(_), _) => ControlFlow::Break(()),
    }
}

/// The transaction of one intent. Every statement that names `:now` gets it from here.
pub(in crate::data) struct Tx<'c> {
    view: View<'c>,
    /// When the intent happens.
    pub(super) now: Timestamp,
    /// By how many the tenant's open commands have become more.
    opened: Cell<i64>,
    /// What is left for other backends.
    posts: RefCell<Vec<Post>>,
}

/// What a transaction came to.
pub(in crate::data) struct Outcome<T> {
    /// What the intent answers.
    pub(super) answer: T,
    /// The other backends for which it left something.
    pub(super) mailed: BTreeSet<InstanceId>,
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
        view: &View<'c>,
        now: Timestamp,
        intent: impl FnOnce(&Self) -> StoreResult<T>,
    ) -> StoreResult<Outcome<T>> {
        let tx = Self {
            view: View {
                link: view.link,
                tenant: view.tenant,
                now: Some(now),
            },
            now,
            opened: Cell::new(0),
            posts: RefCell::default(),
        };
        let answer = intent(&tx)?;
        let mailed = inbox::deliver(&tx, &tx.posts.take())?;
        tx.write_count()?;
        Ok(Outcome { answer, mailed })
    }

    /// Leaves something for another backend.
    pub(super) fn post(&self, post: Post) {
        self.posts.borrow_mut().push(post);
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
