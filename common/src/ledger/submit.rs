//! Acceptance of a run: its targets and the bounds of the queues.

use std::collections::BTreeSet;

use crate::id::{AgentId, GatewayName};

/// How many commands may be open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Of one gateway.
    pub per_gateway: u64,
    /// Of all gateways.
    pub global: u64,
}

/// What counts for a gateway's next command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters {
    /// Its name, for whoever is refused.
    pub name: GatewayName,
    /// The order of its next command.
    pub next_order: u64,
    /// How many of its commands are open.
    pub open: u64,
}

/// Why a run is refused, as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It names a gateway twice.
    Doubled,
    /// It names none.
    Nobody,
    /// There is no such gateway, or it was revoked.
    Unknown(AgentId),
    /// The queues of these gateways are full.
    Full(Vec<GatewayName>),
    /// All queues together are.
    AllFull,
}

/// The first reason against a run for `targets`; otherwise those of them that are skipped because their queues are
/// full, as far as the run allows that. `gateways` knows those of the targets that exist and are not revoked,
/// `waiting` are the open commands of all.
///
/// # Errors
/// Why it is refused.
pub fn judge<'g>(
    targets: impl IntoIterator<Item = AgentId>,
    skip_full: bool,
    bounds: Bounds,
    gateways: impl Fn(AgentId) -> Option<&'g Counters>,
    waiting: u64,
) -> Result<BTreeSet<AgentId>, Refusal> {
    let mut agents = BTreeSet::new();
    for target in targets {
        if !agents.insert(target) {
            return Err(Refusal::Doubled);
        }
    }
    if agents.is_empty() {
        return Err(Refusal::Nobody);
    }
    if let Some(unknown) = agents.iter().find(|id| gateways(**id).is_none()) {
        return Err(Refusal::Unknown(*unknown));
    }
    let full: Vec<(&AgentId, &Counters)> = agents
        .iter()
        .filter_map(|id| gateways(*id).map(|gateway| (id, gateway)))
        .filter(|(_, gateway)| gateway.open >= bounds.per_gateway)
        .collect();
    if !full.is_empty() && (!skip_full || full.len() == agents.len()) {
        let names = full.iter().map(|(_, full)| full.name.clone()).collect();
        return Err(Refusal::Full(names));
    }
    let commands = u64::try_from(agents.len() - full.len()).unwrap_or(u64::MAX);
    if waiting.saturating_add(commands) > bounds.global {
        return Err(Refusal::AllFull);
    }
    Ok(full.into_iter().map(|(id, _)| *id).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        per_gateway: 2,
        global: 5,
    };

    fn agent(n: u128) -> AgentId {
        AgentId::from_uuid(Uuid::from_u128(n))
    }

    fn gateways(open: &[u64]) -> BTreeMap<AgentId, Counters> {
        let gateways = (1..).zip(open).map(|(n, open)| {
            let counters = Counters {
                name: format!("gw-{n}").parse().unwrap(),
                next_order: 10,
                open: *open,
            };
            (agent(n), counters)
        });
        gateways.collect()
    }

    fn decide(
        open: &[u64],
        targets: &[u128],
        skip_full: bool,
    ) -> Result<BTreeSet<AgentId>, Refusal> {
        let targets = targets.iter().copied().map(agent);
        let gateways = gateways(open);
        let find = |id| gateways.get(&id);
        judge(targets, skip_full, BOUNDS, find, open.iter().sum())
    }

    #[test]
    fn a_run_needs_gateways_that_are_there_and_each_only_once() {
        let decide = |targets: &[u128]| decide(&[0, 0], targets, false);
        assert_eq!(decide(&[]), Err(Refusal::Nobody));
        assert_eq!(decide(&[1, 1]), Err(Refusal::Doubled));
        assert_eq!(decide(&[1, 9]), Err(Refusal::Unknown(agent(9))));
        assert_eq!(decide(&[1, 2]), Ok(BTreeSet::new()));
    }

    #[test]
    fn a_full_queue_refuses_the_run_or_is_skipped() {
        let full = Refusal::Full(vec!["gw-1".parse().unwrap()]);
        assert_eq!(decide(&[2, 0], &[1, 2], false), Err(full.clone()));
        assert_eq!(decide(&[2, 0], &[1, 2], true), Ok([agent(1)].into()));
        // Nobody is left.
        assert_eq!(decide(&[2, 0], &[1], true), Err(full));
    }

    #[test]
    fn all_queues_together_are_bounded() {
        let open = [1, 1, 2, 0];
        assert_eq!(decide(&open, &[4], false), Ok(BTreeSet::new()));
        assert_eq!(decide(&open, &[1, 4], false), Err(Refusal::AllFull));
    }

    proptest! {
        #[test]
        fn accepted_runs_never_pass_the_bounds(
            runs in prop::collection::vec((prop::collection::btree_set(1_u128..4, 1..4), any::<bool>()), 1..40)
        ) {
            let mut open = [0, 0, 0];
            for (targets, skip_full) in runs {
                let targets: Vec<u128> = targets.into_iter().collect();
                let Ok(full) = decide(&open, &targets, skip_full) else { continue };
                for target in targets.into_iter().filter(|id| !full.contains(&agent(*id))) {
                    open[usize::try_from(target - 1).unwrap()] += 1;
                }
                prop_assert!(open.iter().sum::<u64>() <= BOUNDS.global);
                prop_assert!(open.iter().all(|open| *open <= BOUNDS.per_gateway));
            }
        }
    }
}
