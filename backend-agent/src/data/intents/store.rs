//! A store: a database, and the bounds of what it keeps.

use viworks_common::id::Tenant;
use viworks_common::time::Timestamp;

use super::link::{Engine, Urgency};
use super::tx::{Tx, View};
use crate::data::{StoreResult, TelemetryLimits};

/// The store on an SQL database. Clones share it.
#[derive(Debug, Clone)]
pub struct SqlStore<E> {
    pub(super) engine: E,
    pub(super) telemetry: TelemetryLimits,
}

impl<E: Engine> SqlStore<E> {
    /// The store on this database.
    pub(in crate::data) fn on(engine: E) -> Self {
        Self {
            engine,
            telemetry: TelemetryLimits::default(),
        }
    }

    /// The same, with these bounds of what a gateway may have stored.
    #[must_use]
    pub fn telemetry_limits(mut self, limits: TelemetryLimits) -> Self {
        self.telemetry = limits;
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
        self.engine.write(tenant, Urgency::Prompt, intent).await
    }

    pub(super) async fn read<T: Send + 'static>(
        &self,
        tenant: &Tenant,
        question: impl Fn(&View<'_>) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        self.engine.read(tenant, question).await
    }
}
