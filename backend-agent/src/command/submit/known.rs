//! What gateways said of commands, as it was last read: it spares a look, and is never believed without one.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use viworks_common::id::CommandName;

use crate::data::{GatewayRef, Target, TargetSelection};

/// Gateways that a selection may name one by one; larger ones are read.
const NAMED_MAX: usize = 16;

/// Bytes that all that is remembered may take; when there are more, everything is forgotten.
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// The memory of one process. The transaction that submits a run looks whether what was remembered still holds.
#[derive(Debug, Default)]
pub(in crate::command) struct Known {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    targets: BTreeMap<CommandName, BTreeMap<GatewayRef, Target>>,
    bytes: usize,
}

impl Known {
    /// The gateways of a selection, if each of them is remembered.
    pub(super) fn targets(
        &self,
        selection: &TargetSelection,
        command: &CommandName,
    ) -> Option<Vec<Target>> {
        let TargetSelection::Gateways(named) = selection else {
            return None;
        };
        if named.len() > NAMED_MAX {
            return None;
        }
        let inner = self.inner();
        let known = inner.targets.get(command)?;
        let found = named.iter().map(|reference| known.get(reference).cloned());
        found.collect()
    }

    /// Remembers those that were read one by one and can take the command.
    pub(super) fn remember(
        &self,
        selection: &TargetSelection,
        command: &CommandName,
        found: &[Target],
    ) {
        let TargetSelection::Gateways(named) = selection else {
            return;
        };
        // Where a gateway is named twice, which target is whose is not known.
        if named.len() > NAMED_MAX || named.len() != found.len() {
            return;
        }
        let mut inner = self.inner();
        for (reference, target) in named.iter().zip(found) {
            if is_able(target) {
                inner.insert(command, reference, target);
            }
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn insert(&mut self, command: &CommandName, reference: &GatewayRef, target: &Target) {
        let earlier = self
            .targets
            .get_mut(command)
            .and_then(|targets| targets.remove(reference));
        self.bytes = self.bytes.saturating_sub(earlier.as_ref().map_or(0, cost));
        let bytes = cost(target);
        if self.bytes.saturating_add(bytes) > BYTES_MAX {
            *self = Self::default();
        }
        self.bytes = self.bytes.saturating_add(bytes);
        let targets = self.targets.entry(command.clone()).or_default();
        targets.insert(reference.clone(), target.clone());
    }
}

fn is_able(target: &Target) -> bool {
    match target {
        Target::Known {
            revoked: false,
            report: Some(report),
            ..
        } => report
            .entry
            .as_ref()
            .is_some_and(|entry| entry.unavailable.is_none()),
        Target::Known { .. } | Target::Unknown(_) => false,
    }
}

/// About what it takes: the texts of the entry dominate, the rest is names and pointers.
fn cost(target: &Target) -> usize {
    const AROUND: usize = 512;
    let entry = match target {
        Target::Known { report, .. } => report.as_ref().and_then(|report| report.entry.as_ref()),
        Target::Unknown(_) => None,
    };
    let text = entry.and_then(|entry| serde_json::to_vec(&**entry).ok());
    AROUND + 2 * text.map_or(0, |text| text.len())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uuid::Uuid;
    use viworks_common::catalogue::{CatalogueEntry, Risk};
    use viworks_common::id::{AgentId, GatewayName};
    use viworks_common::time::Timestamp;

    use super::*;
    use crate::data::Report;

    fn command() -> CommandName {
        "sys.info".parse().unwrap()
    }

    fn name(n: u128) -> GatewayName {
        format!("gw-{n}").parse().unwrap()
    }

    fn named(numbers: &[u128]) -> TargetSelection {
        let named = numbers.iter().map(|n| GatewayRef::Name(name(*n)));
        TargetSelection::Gateways(named.collect())
    }

    fn target(n: u128, title: &str, unavailable: Option<&str>) -> Target {
        let entry = CatalogueEntry {
            name: command(),
            title: title.to_owned(),
            risk: Risk::Read,
            idempotent: true,
            arguments: Vec::new(),
            timeout_ms: 1_000,
            output_bytes_max: 1_024,
            unavailable: unavailable.map(str::to_owned),
        };
        Target::Known {
            agent_id: AgentId::from_uuid(Uuid::from_u128(n)),
            name: name(n),
            revoked: false,
            report: Some(Report {
                reported_at: Timestamp::from_unix_micros(1),
                entry: Some(Arc::new(entry)),
            }),
        }
    }

    #[test]
    fn only_a_selection_that_is_remembered_whole_is_answered() {
        let known = Known::default();
        assert_eq!(known.targets(&named(&[1]), &command()), None);
        let found = [target(1, "", None), target(2, "", Some("no such program"))];
        known.remember(&named(&[1, 2]), &command(), &found);
        assert_eq!(
            known.targets(&named(&[1]), &command()),
            Some(vec![target(1, "", None)])
        );
        assert_eq!(
            known.targets(&named(&[1, 2]), &command()),
            None,
            "one is unable"
        );
        assert_eq!(known.targets(&TargetSelection::All, &command()), None);
        let other = "sys.disks".parse().unwrap();
        assert_eq!(known.targets(&named(&[1]), &other), None);
    }

    #[test]
    fn what_is_remembered_is_bounded_by_what_it_takes() {
        let known = Known::default();
        let title = "x".repeat(100_000);
        for n in 0..1_000 {
            known.remember(&named(&[n]), &command(), &[target(n, &title, None)]);
            assert!(known.inner().bytes <= BYTES_MAX);
        }
        assert!(known.targets(&named(&[999]), &command()).is_some());
        assert!(known.targets(&named(&[1]), &command()).is_none());
        let before = known.inner().bytes;
        known.remember(&named(&[999]), &command(), &[target(999, &title, None)]);
        assert_eq!(
            known.inner().bytes,
            before,
            "the same once more takes no more"
        );
    }
}
