//! Tells whoever looks after the backend that records are refused, or wait because the database refuses them: by
//! metric, log and health.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{debug, warn};
use viworks_common::human;
use viworks_common::id::{AgentId, GatewayName};
use viworks_common::telemetry::RecordRefusal;
use viworks_common::time::Monotonic;
use viworks_runtime::clock::Clock;
use viworks_runtime::conditions::{Conditions, Severity};

use crate::metrics::BackendMetrics;

const CONDITION: &str = "telemetry.refused";

/// The condition of gateways whose telemetry the database refuses as a whole.
const WITHHELD: &str = "telemetry.withheld";

const WITHHELD_FIX: &str = "nothing of it is lost while it fits into their spools, their commands go on, and it is tried again \
                            every 5 minutes at least; the code is the database's; take out what somebody added to the \
                            tables (a trigger, a rule), or put the row right that is damaged; a value that the database \
                            does not take is a fault to be reported";

/// The condition while the database takes no telemetry of anybody.
const STALLED: &str = "telemetry.stalled";

const STALLED_FIX: &str = "nothing of it is lost while it fits into the gateways' spools, and it is tried again every few \
                           seconds; the code is the database's, its words are in the log: see what is wrong with the \
                           database, and what somebody added to the tables of telemetry (a trigger, a rule)";

/// How long after the last refusal health speaks of it, and how often a gateway's refusals are logged.
const HOUR: Duration = Duration::from_secs(3_600);
/// Gateways whose last line in the log is remembered.
const LOGGED_MAX: usize = 10_000;

/// Records that one refusal adds to the counter of all gateways. One that HELLO causes is as large as the gateway
/// claims; what it claims is kept for that gateway alone.
const CLAIMED_MAX: u64 = 10_000;

/// What was refused lately.
pub(super) struct Watch {
    metrics: BackendMetrics,
    clock: Arc<dyn Clock>,
    conditions: Conditions,
    last: Option<Monotonic>,
    logged: BTreeMap<AgentId, Monotonic>,
    /// Whose telemetry waits until the database takes it.
    withheld: BTreeMap<AgentId, GatewayName>,
    /// Of whom it refuses that, as far as is known: where it takes nothing of anybody, no gateway is named.
    refused: BTreeSet<AgentId>,
    /// What of whom could not be committed when it was tried last, whoever is to blame.
    failing: BTreeSet<AgentId>,
    withheld_logged: BTreeMap<AgentId, Monotonic>,
    /// By which code or rule that was refused last.
    refused_by: String,
    /// Whether it is told that the database takes nothing of anybody.
    stalled: bool,
}

impl Watch {
    pub(super) const fn new(
        metrics: BackendMetrics,
        clock: Arc<dyn Clock>,
        conditions: Conditions,
    ) -> Self {
        Self {
            metrics,
            clock,
            conditions,
            last: None,
            logged: BTreeMap::new(),
            withheld: BTreeMap::new(),
            refused: BTreeSet::new(),
            failing: BTreeSet::new(),
            withheld_logged: BTreeMap::new(),
            refused_by: String::new(),
            stalled: false,
        }
    }

    /// The database refuses what a gateway hands in, by this code or rule, and for this reason. That may quote a value,
    /// so only the log has it: whoever may read health may not read telemetry.
    pub(super) fn refuses(&mut self, agent_id: AgentId, by: String, reason: &str) {
        let is_first = self.refused.insert(agent_id);
        if is_first || self.refused_by != by {
            self.refused_by = by;
            // Of whom nothing is kept yet is told once something is.
            self.tell_withheld();
        }
        if is_news(&mut self.withheld_logged, agent_id, self.clock.now()) {
            warn!(%agent_id, reason, "the database refuses a gateway's telemetry: it waits and is tried again; more of it within the hour is not logged");
        }
    }

    /// What a gateway handed in waits until the database does not refuse it.
    pub(super) fn withheld(&mut self, agent_id: AgentId, gateway: &GatewayName) {
        if self.withheld.insert(agent_id, gateway.clone()).is_none() {
            self.tell_withheld();
            self.count_waiting();
        }
    }

    /// What a gateway handed in could not be committed, and there was nothing of another one with it.
    pub(super) fn failed(&mut self, agent_id: AgentId) {
        if self.failing.insert(agent_id) {
            self.count_waiting();
        }
    }

    /// As far as can be seen, the database takes no telemetry of anybody, by this code.
    pub(super) fn takes_nothing(&mut self, by: &str) {
        self.stalled = true;
        let cause = format!(
            "the database takes no telemetry of any gateway; its code is {by}, its words are in the log"
        );
        self.conditions
            .raise(STALLED, Severity::Fail, &cause, STALLED_FIX);
    }

    /// A transaction with what these handed in was committed; whether it stored records.
    pub(super) fn stored(&mut self, of: impl Iterator<Item = AgentId>, stores: bool) {
        if stores && std::mem::take(&mut self.stalled) {
            self.conditions.clear(STALLED);
        }
        if self.failing.is_empty() {
            return;
        }
        for agent_id in of {
            self.failing.remove(&agent_id);
        }
        self.count_waiting();
        self.settle_stalled();
    }

    /// Where nobody waits any more, nobody is left by whom it could be seen that the database goes on.
    fn settle_stalled(&mut self) {
        let nobody = self.failing.is_empty() && self.withheld.is_empty();
        if nobody && std::mem::take(&mut self.stalled) {
            self.conditions.clear(STALLED);
        }
    }

    /// Nothing of a gateway waits for that any more.
    pub(super) fn released(&mut self, agent_id: AgentId) {
        self.refused.remove(&agent_id);
        let failed = self.failing.remove(&agent_id);
        if let Some(gateway) = self.withheld.remove(&agent_id) {
            debug!(%gateway, %agent_id, "no telemetry of the gateway waits for the database to take it any more");
            self.tell_withheld();
            self.count_waiting();
        } else if failed {
            self.count_waiting();
        }
        self.settle_stalled();
    }

    fn count_waiting(&self) {
        let apart = self.failing.iter();
        let apart = apart.filter(|agent_id| !self.withheld.contains_key(*agent_id));
        let count = self.withheld.len() + apart.count();
        self.metrics
            .telemetry_waiting
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    fn tell_withheld(&self) {
        let waiting = self.withheld.iter();
        let mut named = waiting.filter(|(agent_id, _)| self.refused.contains(*agent_id));
        let first = named.next().map(|(_, gateway)| gateway);
        let count = named.count() + usize::from(first.is_some());
        self.metrics
            .telemetry_withheld
            .set(i64::try_from(count).unwrap_or(i64::MAX));
        let Some(first) = first else {
            self.conditions.clear(WITHHELD);
            return;
        };
        let more = if count > 1 { ", …" } else { "" };
        let cause = format!(
            "the database refuses the telemetry of {}: {first}{more}; its code is {}, its words are in the log",
            human::counted_all(
                u64::try_from(count).unwrap_or(u64::MAX),
                "gateway",
                "gateways"
            ),
            self.refused_by
        );
        self.conditions
            .raise(WITHHELD, Severity::Warn, &cause, WITHHELD_FIX);
    }

    /// Records of a gateway were refused.
    pub(super) fn refused(
        &mut self,
        agent_id: AgentId,
        gateway: &GatewayName,
        refused: &BTreeMap<RecordRefusal, u64>,
    ) {
        if refused.is_empty() {
            return;
        }
        for (reason, records) in refused {
            let counted = (*records).min(CLAIMED_MAX);
            self.metrics.telemetry_records_refused(*reason, counted);
        }
        let now = self.clock.now();
        self.last = Some(now);
        let reasons: Vec<_> = refused.keys().map(|reason| reason.name()).collect();
        let reasons = reasons.join(", ");
        let cause = format!("telemetry is refused, last of {gateway}: {reasons}");
        let fix = format!(
            "`viworks telemetry --gateway {gateway} --gaps` lists what; the bounds are in [telemetry] of the configuration"
        );
        self.conditions
            .raise(CONDITION, Severity::Warn, &cause, &fix);
        if !is_news(&mut self.logged, agent_id, now) {
            return;
        }
        warn!(%gateway, %agent_id, reasons, "telemetry of a gateway is refused; more of it within the hour is only counted");
    }

    /// Health stops speaking of what is long over.
    pub(super) fn look(&mut self) {
        let now = self.clock.now();
        if self
            .last
            .take_if(|last| now.saturating_since(*last) >= HOUR)
            .is_some()
        {
            self.conditions.clear(CONDITION);
        }
    }
}

/// Whether a gateway was not logged within the hour; it is now.
fn is_news(logged: &mut BTreeMap<AgentId, Monotonic>, agent_id: AgentId, now: Monotonic) -> bool {
    let last = logged.get(&agent_id).copied();
    if last.is_some_and(|last| now.saturating_since(last) < HOUR) {
        return false;
    }
    if logged.len() >= LOGGED_MAX {
        logged.clear();
    }
    logged.insert(agent_id, now);
    true
}

/// Whoever has it has it alone.
pub(super) fn lock(watch: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    // Nothing panics while it is held.
    watch.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use viworks_common::time::Timestamp;
    use viworks_runtime::clock::SystemClock;
    use viworks_runtime::metrics::Metrics;

    use super::*;

    #[test]
    fn what_one_gateway_claims_leaves_the_counter_of_all_of_use() {
        let metrics = Metrics::new("test", "0", Timestamp::from_unix_micros(0));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let conditions = Conditions::new(Arc::clone(&clock));
        let mut watch = Watch::new(BackendMetrics::register(&metrics), clock, conditions);
        let agent = AgentId::from_uuid(Uuid::from_u128(1));
        let name = "gw-1".parse().unwrap();
        let mut refused =
            |records| watch.refused(agent, &name, &[(RecordRefusal::EpochLimit, records)].into());
        refused((1 << 53) - 1);
        refused(7);
        let text = metrics.encode().unwrap();
        let counted = "records_total{reason=\"epoch_limit\"} 10007";
        assert!(text.contains(counted), "{text}");
    }

    #[test]
    fn health_has_by_what_telemetry_is_refused_and_nothing_of_its_values() {
        let metrics = Metrics::new("test", "0", Timestamp::from_unix_micros(0));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let conditions = Conditions::new(Arc::clone(&clock));
        let own = BackendMetrics::register(&metrics);
        let mut watch = Watch::new(own, clock, conditions.clone());
        let agent = AgentId::from_uuid(Uuid::from_u128(1));
        watch.refuses(agent, "P0001".to_owned(), "not the value 17");
        watch.withheld(agent, &"gw-1".parse().unwrap());
        let cause = || conditions.list().remove(0).cause;
        let told = "the database refuses the telemetry of 1 gateway: gw-1; its code is P0001, its words are in the log";
        assert_eq!(cause(), told);
        // Another rule is told while the same gateways wait.
        watch.refuses(agent, "23514 spoilt".to_owned(), "nor the value 18");
        let told = told.replace("P0001", "23514 spoilt");
        assert_eq!(cause(), told);
        watch.released(agent);
        assert!(conditions.list().is_empty());
    }

    #[test]
    fn who_waits_and_is_not_refused_is_not_named() {
        let metrics = Metrics::new("test", "0", Timestamp::from_unix_micros(0));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let conditions = Conditions::new(Arc::clone(&clock));
        let own = BackendMetrics::register(&metrics);
        let mut watch = Watch::new(own, clock, conditions.clone());
        let agents = [1, 2].map(|n| AgentId::from_uuid(Uuid::from_u128(n)));
        for (agent, name) in agents.into_iter().zip(["gw-1", "gw-2"]) {
            watch.withheld(agent, &name.parse().unwrap());
        }
        assert!(conditions.list().is_empty());
        watch.refuses(agents[1], "53100".to_owned(), "no room for 17");
        let cause = conditions.list().remove(0).cause;
        let told = "of 1 gateway: gw-2; its code is 53100,";
        assert!(cause.contains(told), "{cause}");
        watch.released(agents[1]);
        assert!(conditions.list().is_empty());
        watch.withheld(agents[1], &"gw-2".parse().unwrap());
        assert!(conditions.list().is_empty());
    }

    #[test]
    fn where_nothing_of_anybody_is_stored_that_is_told_until_something_is() {
        let metrics = Metrics::new("test", "0", Timestamp::from_unix_micros(0));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let conditions = Conditions::new(Arc::clone(&clock));
        let own = BackendMetrics::register(&metrics);
        let mut watch = Watch::new(own, clock, conditions.clone());
        let [agent, other] = [1, 2].map(|n| AgentId::from_uuid(Uuid::from_u128(n)));
        watch.failed(agent);
        watch.failed(other);
        assert!(conditions.list().is_empty());
        watch.takes_nothing("57014");
        let told = conditions.list().remove(0);
        assert_eq!(told.severity, Severity::Fail);
        let cause = "the database takes no telemetry of any gateway; its code is 57014, its words are in the log";
        assert_eq!(told.cause, cause);
        // Of a transaction that added nothing nothing is known.
        watch.stored([agent].into_iter(), false);
        assert_eq!(conditions.list().len(), 1);
        watch.stored([agent].into_iter(), true);
        assert!(conditions.list().is_empty());
        // Those that failed are gone, and nobody else has anything to store.
        watch.takes_nothing("57014");
        watch.released(other);
        assert!(conditions.list().is_empty());
    }

    #[test]
    fn whoever_waits_is_counted_whatever_for() {
        let metrics = Metrics::new("test", "0", Timestamp::from_unix_micros(0));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let conditions = Conditions::new(Arc::clone(&clock));
        let mut watch = Watch::new(BackendMetrics::register(&metrics), clock, conditions);
        let counted = |gauge: &str, count: usize| {
            let text = metrics.encode().unwrap();
            let line = format!("_{gauge}_gateways {count}\n");
            assert!(text.contains(&line), "{line} {text}");
        };
        let agents = [1, 2, 3].map(|n| AgentId::from_uuid(Uuid::from_u128(n)));
        // Two fail, of which one is withheld; nobody knows yet whether the database refuses it.
        watch.failed(agents[0]);
        watch.failed(agents[1]);
        watch.withheld(agents[1], &"gw-2".parse().unwrap());
        counted("telemetry_waiting", 2);
        counted("telemetry_withheld", 0);
        watch.refuses(agents[1], "53100".to_owned(), "no room for 17");
        counted("telemetry_waiting", 2);
        counted("telemetry_withheld", 1);
        watch.stored([agents[0], agents[2]].into_iter(), true);
        counted("telemetry_waiting", 1);
        watch.stored([agents[1]].into_iter(), true);
        watch.released(agents[1]);
        counted("telemetry_waiting", 0);
        watch.failed(agents[2]);
        counted("telemetry_waiting", 1);
        watch.released(agents[2]);
        counted("telemetry_waiting", 0);
        counted("telemetry_withheld", 0);
    }

    #[test]
    fn of_so_many_gateways_it_is_known_that_they_were_logged_and_then_of_none() {
        let metrics = Metrics::new("test", "0", Timestamp::from_unix_micros(0));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let conditions = Conditions::new(Arc::clone(&clock));
        let mut watch = Watch::new(BackendMetrics::register(&metrics), clock, conditions);
        let name = "gw-1".parse().unwrap();
        let mut refused = |n: usize| {
            let agent = AgentId::from_uuid(Uuid::from_u128(u128::try_from(n).unwrap()));
            watch.refused(agent, &name, &[(RecordRefusal::EpochLimit, 1)].into());
            watch.logged.len()
        };
        for n in 0..LOGGED_MAX {
            refused(n);
        }
        assert_eq!(refused(0), LOGGED_MAX);
        assert_eq!(refused(LOGGED_MAX), 1);
    }
}
