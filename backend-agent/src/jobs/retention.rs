//! Backends of one database that are set to keep telemetry for different times: the longest holds, and that is told.

use viworks_common::human;
use viworks_runtime::conditions::Severity;

use super::Jobs;
use crate::data::{Instance, Retention, StoreResult};

/// The condition of it.
const NAME: &str = "telemetry.retention";

const FIX: &str = "give all backends of a database the same retention_days and rollup_retention_days in [telemetry]";

impl Jobs {
    /// Looks at what the backends tell of themselves.
    pub(super) async fn tell_retention(&self) -> StoreResult<()> {
        // Most of the time it is one backend, and there is nothing to ask.
        let is_alone = self.store.neighbours().borrow().is_empty();
        let all = if is_alone {
            Vec::new()
        } else {
            self.store.list_instances().await?
        };
        self.tell(NAME, differ(&all), Severity::Warn, FIX);
        Ok(())
    }
}

/// Who keeps telemetry for how long, where they differ.
fn differ(all: &[Instance]) -> Option<String> {
    let living = all.iter().filter(|one| !one.lease.is_zero());
    let told: Vec<(&str, Retention)> = living
        .filter_map(|one| Some((one.name.as_str(), one.retention?)))
        .collect();
    let (_, first) = told.first()?;
    if told.iter().all(|(_, other)| other == first) {
        return None;
    }
    let each = told.iter().map(|(name, kept)| {
        let records = match kept.records_days {
            0 => "for ever".to_owned(),
            days => format!("for {}", human::counted_all(days, "day", "days")),
        };
        let rollups = human::counted_all(kept.rollups_days, "day", "days");
        format!("{name} keeps telemetry {records} and roll-ups for {rollups}")
    });
    let each: Vec<String> = each.collect();
    Some(format!(
        "backends of this database are set differently: {}; the longest time holds while whoever is set to it runs",
        each.join("; ")
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;
    use viworks_common::id::InstanceId;

    use super::*;

    fn instance(name: &str, lease: u64, kept: Option<(u64, u64)>) -> Instance {
        Instance {
            id: InstanceId::from_uuid(Uuid::from_u128(1)),
            name: name.to_owned(),
            lease: Duration::from_secs(lease),
            sessions: 0,
            draining: false,
            retention: kept.map(|(records_days, rollups_days)| Retention {
                records_days,
                rollups_days,
            }),
        }
    }

    #[test]
    fn what_differs_is_told_of_whoever_is_there_and_told() {
        let same = instance("a", 9, Some((30, 730)));
        let mut all = vec![
            same.clone(),
            same,
            instance("gone", 0, Some((1, 730))),
            instance("new", 9, None),
        ];
        assert_eq!(differ(&all), None);
        all.push(instance("b", 9, Some((0, 1))));
        let told = differ(&all).unwrap();
        for part in [
            "a keeps telemetry for 30 days and roll-ups for 730 days",
            "b keeps telemetry for ever and roll-ups for 1 day",
        ] {
            assert!(told.contains(part), "{told}");
        }
        assert!(!told.contains("gone") && !told.contains("new"), "{told}");
    }
}
