//! Backends of one database that are set to keep telemetry for different times: the longest holds, and that is told.

use viworks_common::human;
use viworks_runtime::conditions::Severity;

use super::Jobs;
use crate::data::{Instance, Neighbour, Retention, StoreResult};

/// The condition of it.
const NAME: &str = "telemetry.retention";

const FIX: &str = "give all backends of a database the same retention_days and rollup_retention_days in [telemetry]; what \
                   one promised that never comes back ends by itself, or at once with DELETE FROM telemetry_promises \
                   WHERE untold_seconds > 600";

impl Jobs {
    /// Looks at what the backends tell of themselves.
    pub(super) async fn tell_retention(&self) -> StoreResult<()> {
        // Most of the time it is one backend, and there is nothing to ask.
        let neighbours = self.store.neighbours().borrow().clone();
        let promised = self.store.promised();
        let is_alone = promised.is_none() && neighbours.is_empty();
        let all = if is_alone {
            Vec::new()
        } else {
            self.store.list_instances().await?
        };
        self.tell(
            NAME,
            differ(&all, of_one_away(promised, &neighbours)),
            Severity::Warn,
            FIX,
        );
        Ok(())
    }
}

/// What was promised, unless it is explained by those who were there at that moment: they may be set to something else
/// since, which the list of them tells sooner. Who has not told yet keeps to what it promised before it was started.
fn of_one_away(promised: Option<Retention>, neighbours: &[Neighbour]) -> Option<Retention> {
    let told = neighbours.iter().map(|one| one.load.retention);
    let told: Option<Vec<Retention>> = told.collect();
    let longest = told?.into_iter().reduce(Retention::or_longer);
    promised
        .filter(|promised| longest.is_none_or(|longest| longest.or_longer(*promised) != longest))
}

/// Who keeps telemetry for how long, where they differ, or where one that is away promised more.
fn differ(all: &[Instance], promised: Option<Retention>) -> Option<String> {
    let living = all.iter().filter(|one| !one.lease.is_zero());
    let told: Vec<(&str, Retention)> = living
        .filter_map(|one| Some((one.name.as_str(), one.retention?)))
        .collect();
    let kept = told.iter().map(|(_, kept)| *kept);
    let longest = kept.reduce(Retention::or_longer)?;
    let away = promised.filter(|promised| longest.or_longer(*promised) != longest);
    let (_, first) = told.first()?;
    if away.is_none() && told.iter().all(|(_, other)| other == first) {
        return None;
    }
    let each = told.iter().map(|(name, kept)| says(name, *kept));
    let away = away.map(|promised| says("one that is away", longest.or_longer(promised)));
    let each: Vec<String> = each.chain(away).collect();
    Some(format!(
        "backends of this database are set differently: {}; the longest time holds, also while whoever is set to it is away, \
         until the others have run without it for {}",
        each.join("; "),
        human::counted_all(Retention::PROMISED_DAYS, "day", "days")
    ))
}

fn says(name: &str, kept: Retention) -> String {
    let records = match kept.records_days {
        0 => "for ever".to_owned(),
        days => format!("for {}", human::counted_all(days, "day", "days")),
    };
    let rollups = human::counted_all(kept.rollups_days, "day", "days");
    format!("{name} keeps telemetry {records} and roll-ups for {rollups}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;
    use viworks_common::id::InstanceId;

    use super::*;
    use crate::data::InstanceLoad;

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
            authorities: None,
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
        assert_eq!(differ(&all, None), None);
        all.push(instance("b", 9, Some((0, 1))));
        let told = differ(&all, None).unwrap();
        for part in [
            "a keeps telemetry for 30 days and roll-ups for 730 days",
            "b keeps telemetry for ever and roll-ups for 1 day",
        ] {
            assert!(told.contains(part), "{told}");
        }
        assert!(!told.contains("gone") && !told.contains("new"), "{told}");
    }

    #[test]
    fn what_somebody_promised_who_is_there_is_not_that_of_one_away() {
        let kept = |records_days| {
            Some(Retention {
                records_days,
                rollups_days: 730,
            })
        };
        let neighbour = |retention| Neighbour {
            id: InstanceId::from_uuid(Uuid::from_u128(2)),
            load: InstanceLoad {
                retention,
                ..InstanceLoad::default()
            },
        };
        // It has read its configuration again since, and the list has what it is set to now.
        let there = [neighbour(kept(0)), neighbour(kept(30))];
        assert_eq!(of_one_away(kept(0), &there), None);
        assert_eq!(of_one_away(kept(30), &there[1..]), None);
        // It has only begun.
        let begun = [neighbour(kept(30)), neighbour(None)];
        assert_eq!(of_one_away(kept(0), &begun), None);
        assert_eq!(of_one_away(kept(0), &there[1..]), kept(0));
        assert_eq!(of_one_away(kept(90), &[]), kept(90));
        assert_eq!(of_one_away(None, &there), None);
    }

    #[test]
    fn what_one_promised_that_is_away_is_told_where_it_is_longer() {
        let promised = |records_days, rollups_days| {
            Some(Retention {
                records_days,
                rollups_days,
            })
        };
        let all = [instance("a", 9, Some((30, 730)))];
        assert_eq!(differ(&all, promised(30, 730)), None);
        assert_eq!(differ(&all, promised(7, 90)), None);
        let told = differ(&all, promised(90, 1)).unwrap();
        for part in [
            "a keeps telemetry for 30 days and roll-ups for 730 days; one that is away keeps telemetry for 90 days",
            "until the others have run without it for 7 days",
        ] {
            assert!(told.contains(part), "{told}");
        }
        let told = differ(&all, promised(0, 0)).unwrap();
        assert!(told.contains("away keeps telemetry for ever"), "{told}");
        // Whoever has not told may be set to the same.
        assert_eq!(differ(&[instance("a", 9, None)], promised(90, 1)), None);
    }
}
