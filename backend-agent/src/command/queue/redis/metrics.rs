//! What is counted of Redis.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use viworks_common::breaker::BreakerState;
use viworks_runtime::metrics::Metrics;

type Label = [(&'static str, &'static str); 1];

/// The instruments. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct RedisMetrics {
    states: Family<Label, Gauge>,
    calls: Family<Label, Counter>,
    /// How long the last beat took, in seconds.
    beat: Gauge<f64, AtomicU64>,
    /// Times that everything was looked after, because hints or routes may have been lost.
    pub(super) sweeps: Counter,
    /// Offers that were refused because a gateway had its bound of hints.
    pub(super) refused: Counter,
    /// Changes of runs that were not told to the instances that watch them.
    pub(super) narration_lost: Counter,
}

impl RedisMetrics {
    /// Registers all of them.
    #[must_use]
    pub fn register(metrics: &Metrics) -> Self {
        let own = Self::default();
        metrics.register(|registry| {
            let registry = registry.sub_registry_with_prefix("viworks");
            registry.register(
                "queue_redis_state",
                "1 for the state of the breaker in front of Redis: closed, half-open or open",
                own.states.clone(),
            );
            registry.register(
                "queue_redis_calls",
                "What Redis was asked, by what came of it: ok, failed or late",
                own.calls.clone(),
            );
            registry.register(
                "queue_redis_beat_seconds",
                "How long Redis took for what it is asked each second, the last time it answered",
                own.beat.clone(),
            );
            registry.register(
                "queue_redis_sweeps",
                "Times that all gateways were looked after, because Redis may have lost something",
                own.sweeps.clone(),
            );
            registry.register(
                "queue_redis_refused",
                "Hints that Redis refused because their gateway had its bound of them",
                own.refused.clone(),
            );
            registry.register(
                "queue_redis_narration_lost",
                "Changes of runs that could not be told to instances that watch them, which see them in the database",
                own.narration_lost.clone(),
            );
        });
        own.state(BreakerState::Open);
        for result in ["ok", "failed", "late"] {
            drop(own.calls.get_or_create(&[("result", result)]));
        }
        own
    }

    pub(super) fn state(&self, state: BreakerState) {
        for each in [
            BreakerState::Closed,
            BreakerState::HalfOpen,
            BreakerState::Open,
        ] {
            let gauge = self.states.get_or_create(&[("state", each.name())]);
            gauge.set(i64::from(each == state));
        }
    }

    pub(super) fn beat_took(&self, took: Duration) {
        self.beat.set(took.as_secs_f64());
    }

    /// How long Redis took for its last answer; none while it is not asked.
    #[must_use]
    pub fn latency(&self) -> Option<Duration> {
        let closed = [("state", BreakerState::Closed.name())];
        let is_asked = self
            .states
            .get(&closed)
            .is_some_and(|state| state.get() == 1);
        let beat = Duration::try_from_secs_f64(self.beat.get()).ok();
        beat.filter(|beat| is_asked && !beat.is_zero())
    }

    pub(super) fn called(&self, result: &'static str) {
        self.calls.get_or_create(&[("result", result)]).inc();
    }
}
