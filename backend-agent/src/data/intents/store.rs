//! A store: a database, and the bounds of what it keeps.

use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use viworks_common::id::Tenant;
use viworks_common::time::Timestamp;

use super::dead_letters;
use super::link::{Engine, Urgency};
use super::merged::{Answer, Intent, Item};
use super::outage::Outage;
use super::recent::Recent;
use super::room::Room;
use super::tx::{Outcome, Tx, View};
use crate::data::{Hurry, MasterIds, Retention, StoreError, StoreResult, TelemetryLimits};

/// Reports that are made at a time. Each is bounded in what it reads; this bounds what callers can ask for together.
const REPORTS_MAX: usize = 2;

/// How long a report may take: on a server each statement of it, in a file all of it.
pub(in crate::data) const REPORT_TIME: Duration = Duration::from_secs(10);

/// How long a report waits for its turn.
const REPORT_WAIT: Duration = Duration::from_secs(3);

/// The store on an SQL database. Clones share it.
#[derive(Clone)]
pub struct SqlStore<E> {
    pub(super) engine: E,
    telemetry: Arc<RwLock<TelemetryLimits>>,
    /// Dead letters that are kept of all gateways together.
    pub(super) dead_letters_max: usize,
    /// Who tells other backends at once.
    hurry: Arc<OnceLock<Arc<dyn Hurry>>>,
    pub(super) room: Arc<Room>,
    pub(super) outage: Arc<Outage>,
    /// A permit for each report that may be made at a time.
    reports: Arc<Semaphore>,
    pub(super) recent: Arc<Recent>,
}

impl<E: fmt::Debug> fmt::Debug for SqlStore<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engine = &self.engine;
        f.debug_struct("SqlStore")
            .field("engine", engine)
            .finish_non_exhaustive()
    }
}

impl<E: Engine> SqlStore<E> {
    /// The store on this database.
    pub(in crate::data) fn on(engine: E) -> Self {
        Self {
            engine,
            telemetry: Arc::default(),
            dead_letters_max: dead_letters::ALL_MAX,
            hurry: Arc::default(),
            room: Arc::default(),
            outage: Arc::default(),
            reports: Arc::new(Semaphore::new(REPORTS_MAX)),
            recent: Arc::default(),
        }
    }

    /// The same, with these bounds of what a gateway may have stored.
    #[must_use]
    pub fn telemetry_limits(self, limits: TelemetryLimits) -> Self {
        self.set_telemetry(limits);
        self
    }

    /// What this backend is set to.
    pub(super) fn telemetry(&self) -> TelemetryLimits {
        // Nothing panics while it is held.
        *self
            .telemetry
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What a gateway may have stored. Nothing goes that another backend is set to keep, one that is away among them,
    /// nor before each that is there told.
    pub(super) fn limits(&self) -> TelemetryLimits {
        const UNTOLD: Retention = Retention {
            records_days: 0,
            rollups_days: u64::MAX,
        };
        let own = self.telemetry();
        let neighbours = self.engine.neighbours();
        let all = neighbours.borrow();
        let others = all.iter().map(|it| it.load.retention.unwrap_or(UNTOLD));
        let others = others.chain(self.engine.promised());
        let kept = others.fold(Retention::of(&own), Retention::or_longer);
        TelemetryLimits {
            retention_days: kept.records_days,
            rollup_days: kept.rollups_days,
            ..own
        }
    }

    /// Whether days are rolled up, as they are where anybody keeps roll-ups. Nothing while it is not known of everybody
    /// who is there: a day that was left out stays so.
    pub(super) fn makes_rollups(&self) -> Option<bool> {
        let own = Retention::of(&self.telemetry());
        let neighbours = self.engine.neighbours();
        let all = neighbours.borrow();
        let told = all.iter().filter_map(|it| it.load.retention);
        let mut told = told.chain(self.engine.promised()).chain([own]);
        if told.any(|it| it.rollups_days > 0) {
            return Some(true);
        }
        let all_told = all.iter().all(|it| it.load.retention.is_some());
        all_told.then_some(false)
    }

    pub(super) fn set_telemetry(&self, limits: TelemetryLimits) {
        let current = self.telemetry.write();
        *current.unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// The same, with this bound of how many dead letters are kept of all gateways together.
    #[must_use]
    pub fn dead_letters_max(mut self, most: usize) -> Self {
        self.dead_letters_max = most;
        self
    }

    /// The database beneath, for its metrics.
    #[must_use]
    pub const fn engine(&self) -> &E {
        &self.engine
    }

    /// Carries out an intent at `now`.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        now: Timestamp,
        intent: impl Fn(&Tx<'_>) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let intent = move |view: &View<'_>| Tx::run(view, now, &intent);
        let outcome = self.write_view(tenant, Urgency::Prompt, intent).await?;
        Ok(self.told(outcome))
    }

    /// Carries out an intent at `now`; by one statement where `at_once` can.
    pub(super) async fn write_at_once<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        now: Timestamp,
        at_once: impl Fn(&Tx<'_>) -> StoreResult<Option<T>> + Send + 'static,
        intent: impl Fn(&Tx<'_>) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let at_once = move |view: &View<'_>| {
            let done = Tx::run(view, now, &at_once)?;
            Ok(done.answer.map(|answer| Outcome {
                answer,
                mailed: done.mailed,
            }))
        };
        let intent = move |view: &View<'_>| Tx::run(view, now, &intent);
        let written = self.engine.write_at_once(tenant, at_once, intent).await;
        Ok(self.told(self.room.note(self.outage.note(written))?))
    }

    /// Carries out an intent at `now` together with others that wait at the same moment; `None` where it has to go its
    /// own way.
    pub(super) async fn write_together(
        &self,
        tenant: &Tenant,
        now: Timestamp,
        intent: Intent,
    ) -> StoreResult<Option<Answer>> {
        let Some(item) = Item::new(tenant, now, intent, &self.recent) else {
            return Ok(None);
        };
        let written = self.engine.write_together(item).await;
        if let Ok(None) = written {
            return Ok(None);
        }
        self.room.note(self.outage.note(written))
    }

    /// Tells those for whom something was left.
    pub(super) fn told<T>(&self, outcome: Outcome<T>) -> T {
        if let Some(hurry) = self.hurry.get() {
            for instance in outcome.mailed {
                hurry.hurry(instance);
            }
        }
        outcome.answer
    }

    /// From here on other backends are told by this of what is left for them. The first one stays.
    pub(super) fn set_hurry(&self, hurry: Arc<dyn Hurry>) {
        let _first = self.hurry.set(hurry);
    }

    /// Writes what needs no time.
    pub(super) async fn write_view<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        urgency: Urgency,
        intent: impl Fn(&View<'_>) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        self.noted(self.engine.write(tenant, urgency, intent).await)
    }

    /// Looks at what became of a write.
    pub(super) fn noted<T>(&self, written: StoreResult<T>) -> StoreResult<T> {
        self.room.note(self.outage.note(written))
    }

    /// Says which master keys this backend has.
    pub(super) async fn note_masters_of(&self, masters: MasterIds) -> StoreResult<()> {
        let noted = self.engine.note_masters(masters).await;
        self.room.note(self.outage.note(noted))
    }

    /// Answers a question that is one statement.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        question: impl Fn(&View<'_>) -> StoreResult<T> + Send + Sync + 'static,
    ) -> StoreResult<T> {
        let answered = self.engine.ask(tenant, question).await;
        self.outage.note(answered)
    }

    /// The same of somebody who writes next about what is found.
    pub(super) async fn ask_before_writing<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        question: impl Fn(&View<'_>) -> StoreResult<T> + Send + Sync + 'static,
    ) -> StoreResult<T> {
        let answered = self.engine.ask_before_writing(tenant, question).await;
        self.outage.note(answered)
    }

    pub(super) async fn read<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        question: impl Fn(&View<'_>) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let answered = self.engine.read(tenant, question).await;
        self.outage.note(answered)
    }

    /// Answers what takes much reading, a few questions at a time.
    pub(super) async fn report<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        question: impl Fn(&View<'_>) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let turn = timeout(REPORT_WAIT, Arc::clone(&self.reports).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(StoreError::ReportsBusy);
        };
        // The turn ends with the work, not with the patience of whoever asked.
        let question = move |view: &View<'_>| {
            let _taken = &turn;
            question(view)
        };
        let answered = self.engine.report(tenant, question).await;
        self.outage.note(answered)
    }
}
