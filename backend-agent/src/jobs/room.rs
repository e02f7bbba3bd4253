//! What is told of a store that has no room, and whether it takes requests then.

use crate::data::StoreHealth;

/// The condition of a store that has no room for more.
pub(super) const CONDITION: &str = "store.room";

/// What is said of it, and what to do about it.
type Told = (&'static str, &'static str);

const EVERYTHING: Told = (
    "the database found no room for something within the last minute: its disk is full",
    "make room where the database is; what was refused meanwhile is not lost: gateways keep what they could not \
     deliver, and callers were told",
);

/// The same where nothing but telemetry met it.
const TELEMETRY: Told = (
    "the database said within the last minute that it has no room for telemetry, and stored none of anybody \
     meanwhile; all else that was written found room: its disk is nearly full, or a rule of its tables says so",
    "make room where the database is, or take out what somebody added to its tables (a trigger, a rule); nothing is \
     lost of what fits into the gateways' spools",
);

/// What is said of a store that has no room, and what to do about it.
pub(super) fn lacking(health: &StoreHealth) -> Option<Told> {
    if health.full {
        return Some(EVERYTHING);
    }
    health.full_for_telemetry.then_some(TELEMETRY)
}

/// Why the store takes no requests, if it does not.
pub(super) fn in_the_way(health: &StoreHealth) -> Option<&str> {
    let problem = health.problem.as_deref();
    // What still fits is stored; what does not is refused, so whoever looks for a place to ask is told. While only
    // telemetry is, and a rule may be all that stands behind that, every request is served.
    problem.or_else(|| health.full.then_some(EVERYTHING.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(full: bool, full_for_telemetry: bool) -> StoreHealth {
        StoreHealth {
            kind: "postgres",
            schema_version: 1,
            problem: None,
            full,
            full_for_telemetry,
            lacks: None,
            refused: None,
            held: None,
        }
    }

    #[test]
    fn a_backend_is_ready_while_it_is_only_telemetry_that_finds_no_room() {
        let found = |full, of_telemetry| {
            let health = health(full, of_telemetry);
            let in_the_way = in_the_way(&health).map(str::to_owned);
            (lacking(&health), in_the_way)
        };
        assert_eq!(found(false, false), (None, None));
        assert_eq!(found(false, true), (Some(TELEMETRY), None));
        for of_telemetry in [false, true] {
            let told = (Some(EVERYTHING), Some(EVERYTHING.0.to_owned()));
            assert_eq!(found(true, of_telemetry), told);
        }
    }

    #[test]
    fn what_does_not_work_is_in_the_way_before_all_else() {
        let problem = Some("gone".to_owned());
        let health = StoreHealth {
            problem,
            ..health(true, false)
        };
        assert_eq!(in_the_way(&health), Some("gone"));
    }
}
