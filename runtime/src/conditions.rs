//! What is wrong with this process right now, in words for whoever looks after it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use serde::Serialize;
use tracing::{error, info, warn};
use viworks_common::human;
use viworks_common::rate::{Bucket, Quota, Taken};
use viworks_common::time::{Monotonic, Timestamp};

use crate::clock::Clock;

/// Conditions that are kept at once; a part that would raise more is mistaken, and says it in the log only.
const CONDITIONS_MAX: usize = 64;

/// Conditions that are over and still remembered.
const PAST_MAX: usize = 32;

/// So many of them are of one part: one that comes and goes leaves what others were.
const PAST_OF_ONE_MAX: usize = 4;

/// How often one condition is logged again because something else is its cause now.
const AGAIN: Quota = Quota {
    per_minute: 1,
    burst: 10,
};

/// How bad a condition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The process does its work, and somebody should look.
    Warn,
    /// Part of its work is not done.
    Fail,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// The part that is concerned, such as `certificate` or `collector.disks`.
    pub name: String,
    /// How bad it is.
    pub severity: Severity,
    /// What was found, in one sentence.
    pub cause: String,
    /// What to do about it; empty when time heals it.
    pub fix: String,
    /// Since when, by the wall clock.
    pub since: Timestamp,
}

/// One thing that was wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Past {
    /// As it was last.
    #[serde(flatten)]
    pub condition: Condition,
    /// When it was found to be no more, by the wall clock.
    pub until: Timestamp,
}

impl Condition {
    /// Whether it belongs to a part of the process, as `queue.redis` does to `queue`.
    #[must_use]
    pub fn is_of(&self, part: &str) -> bool {
        is_of(&self.name, part)
    }
}

/// Whether something of this name is told of that part.
#[must_use]
pub fn is_of(name: &str, part: &str) -> bool {
    let rest = name.strip_prefix(part);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Everything that is wrong with a process. Clones share it.
///
/// A part raises a condition as often as it finds it and clears it as often as it does not; only a change is logged,
/// and another number or time in the same sentence is none.
#[derive(Clone)]
pub struct Conditions {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    current: Mutex<BTreeMap<String, Kept>>,
    /// The latest first.
    past: Mutex<VecDeque<Past>>,
}

/// A condition with what the log has of it.
struct Kept {
    condition: Condition,
    /// The cause that was logged last.
    logged: String,
    again: Bucket,
}

impl Kept {
    /// Whether the log is to have what it is now.
    fn is_news(&mut self, severity: Severity, now: Monotonic) -> bool {
        let worse_or_better = self.condition.severity != severity;
        let other = !human::same_but_for_numbers(&self.logged, &self.condition.cause);
        let news = worse_or_better
            || other && matches!(self.again.take(AGAIN, now), Taken::Allowed { .. });
        if news {
            self.logged.clone_from(&self.condition.cause);
        }
        news
    }
}

impl Conditions {
    /// Nothing is wrong yet; `clock` says since when something is.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            shared: Arc::new(Shared {
                clock,
                current: Mutex::default(),
                past: Mutex::default(),
            }),
        }
    }

    /// Says that something is wrong with `name`. A condition that is known keeps its beginning, and takes on the new
    /// words.
    pub fn raise(&self, name: &str, severity: Severity, cause: &str, fix: &str) {
        let mut current = self.lock();
        if let Some(known) = current.get_mut(name) {
            cause.clone_into(&mut known.condition.cause);
            fix.clone_into(&mut known.condition.fix);
            let news = known.is_news(severity, self.shared.clock.now());
            known.condition.severity = severity;
            if !news {
                return;
            }
        } else if current.len() >= CONDITIONS_MAX {
            drop(current);
            error!(condition = name, cause, fix, "more is wrong than is kept");
            return;
        } else {
            let condition = Condition {
                name: name.to_owned(),
                severity,
                cause: cause.to_owned(),
                fix: fix.to_owned(),
                since: self.shared.clock.wall(),
            };
            let kept = Kept {
                condition,
                logged: cause.to_owned(),
                again: Bucket::default(),
            };
            current.insert(name.to_owned(), kept);
        }
        drop(current);
        match severity {
            Severity::Warn => warn!(condition = name, fix, "{cause}"),
            Severity::Fail => error!(condition = name, fix, "{cause}"),
        }
    }

    /// Says that nothing is wrong with `name`, or no more.
    pub fn clear(&self, name: &str) {
        let known = self.lock().remove(name);
        if let Some(Kept { condition, .. }) = known {
            info!(condition = name, since = %condition.since, "no longer: {}", condition.cause);
            let until = self.shared.clock.wall();
            let mut past = self.lock_past();
            past.push_front(Past { condition, until });
            let mut of_it = 0_usize;
            past.retain(|it| {
                let is_of_it = it.condition.name == name;
                of_it += usize::from(is_of_it);
                !is_of_it || of_it <= PAST_OF_ONE_MAX
            });
            past.truncate(PAST_MAX);
        }
    }

    /// What is over, the latest first, as many as are remembered.
    #[must_use]
    pub fn past(&self) -> Vec<Past> {
        self.lock_past().iter().cloned().collect()
    }

    fn lock_past(&self) -> MutexGuard<'_, VecDeque<Past>> {
        let guard = self.shared.past.lock();
        guard.unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Condition> {
        let current = self.lock();
        current
            .values()
            .map(|kept| kept.condition.clone())
            .collect()
    }

    /// The worst severity at this moment.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        let current = self.lock();
        current.values().map(|kept| kept.condition.severity).max()
    }

    /// Shows each as `viworks_condition{name="…",severity="…"} 1`.
    #[must_use]
    pub fn collector(&self) -> Box<dyn Collector> {
        Box::new(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        // Every change is one insertion or removal, so a panic elsewhere leaves nothing half-done.
        let guard = self.shared.current.lock();
        guard.unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Conditions").field(&self.list()).finish()
    }
}

impl Collector for Conditions {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let conditions = self.list();
        let mut family = encoder.encode_descriptor(
            "viworks_condition",
            "What is wrong right now, one series for each condition",
            None,
            MetricType::Gauge,
        )?;
        for condition in conditions {
            let severity = match condition.severity {
                Severity::Warn => "warn",
                Severity::Fail => "fail",
            };
            let labels = [("name", condition.name.as_str()), ("severity", severity)];
            ConstGauge::new(1_i64).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    struct Stopped;

    impl Clock for Stopped {
        fn now(&self) -> Monotonic {
            Monotonic::ORIGIN
        }

        fn wall(&self) -> Timestamp {
            Timestamp::from_unix_micros(7)
        }
    }

    #[test]
    fn a_condition_is_there_until_it_is_cleared() {
        let conditions = Conditions::new(Arc::new(Stopped));
        assert_eq!(conditions.worst(), None);
        conditions.raise("disk", Severity::Warn, "90 % full", "make room");
        conditions.raise("disk", Severity::Fail, "full", "make room");
        let listed = conditions.list();
        assert_eq!(listed.len(), 1);
        assert_eq!(
            (listed[0].severity, listed[0].cause.as_str()),
            (Severity::Fail, "full")
        );
        assert_eq!(conditions.worst(), Some(Severity::Fail));
        assert_eq!(conditions.past(), []);
        conditions.clear("disk");
        conditions.clear("disk");
        assert_eq!(conditions.list(), []);
        // Once, however often it is not found.
        let past = conditions.past();
        assert_eq!(past.len(), 1);
        assert_eq!(past[0].condition.cause, "full");
        for number in 0..2 * PAST_MAX {
            let name = format!("part {number}");
            conditions.raise(&name, Severity::Warn, "odd", "");
            conditions.clear(&name);
        }
        let past = conditions.past();
        assert_eq!(
            (past.len(), past[0].condition.name.as_str()),
            (PAST_MAX, "part 63")
        );
    }

    #[test]
    fn another_cause_is_news_another_number_is_none_and_news_has_a_bound() {
        let conditions = Conditions::new(Arc::new(Stopped));
        let logged = || {
            let current = conditions.lock();
            current
                .get("reload")
                .map(|kept| kept.logged.clone())
                .unwrap()
        };
        let raise = |cause: &str| conditions.raise("reload", Severity::Warn, cause, "mend it");
        raise("the key cannot be read, attempt 1");
        raise("the key cannot be read, attempt 2");
        assert_eq!(logged(), "the key cannot be read, attempt 1");
        raise("the certificate cannot be read");
        assert_eq!(logged(), "the certificate cannot be read");
        for part in "abcdefghijklmnopqrstuvwxyz".chars() {
            raise(&format!("part {part} cannot be read"));
        }
        assert_eq!(logged(), "part i cannot be read");
        assert_eq!(conditions.list()[0].cause, "part z cannot be read");
        conditions.raise("reload", Severity::Fail, "part z cannot be read", "");
        assert_eq!(logged(), "part z cannot be read");
    }

    #[test]
    fn a_condition_that_comes_and_goes_leaves_what_others_were() {
        let conditions = Conditions::new(Arc::new(Stopped));
        let was = |name: &str| {
            conditions.raise(name, Severity::Warn, "odd", "");
            conditions.clear(name);
        };
        was("disk");
        for _again in 0..2 * PAST_MAX {
            was("queue");
        }
        let past = conditions.past();
        let names: Vec<_> = past.iter().map(|it| it.condition.name.as_str()).collect();
        assert_eq!(names, ["queue", "queue", "queue", "queue", "disk"]);
    }

    #[test]
    fn conditions_are_bounded() {
        let conditions = Conditions::new(Arc::new(Stopped));
        for number in 0..2 * CONDITIONS_MAX {
            conditions.raise(&format!("part {number}"), Severity::Warn, "odd", "");
        }
        assert_eq!(conditions.list().len(), CONDITIONS_MAX);
    }

    #[test]
    fn metrics_show_each_condition() {
        let conditions = Conditions::new(Arc::new(Stopped));
        let metrics = Metrics::new("viworks-test", "1.2.3", Timestamp::from_unix_micros(0));
        metrics.register(|registry| registry.register_collector(conditions.collector()));
        conditions.raise("certificate", Severity::Warn, "expires soon", "renew it");
        let text = metrics.encode().unwrap();
        let line = "viworks_condition{name=\"certificate\",severity=\"warn\"} 1";
        assert!(text.contains(line), "{text}");
    }
}
