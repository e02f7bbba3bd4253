//! Commands that a revocation may have ended whose answer was lost. Whoever asked for it asks again, and is answered that
//! it was done before: what ended with it is not said a second time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use viworks_common::id::{AgentId, CommandId};

use crate::data::{Command, Settled};

/// Gateways of which that is remembered at once, the first of them; their commands are bounded by their queues.
const REMEMBERED: usize = 100;

/// By gateway, the commands that were not final before.
#[derive(Debug, Default)]
pub(super) struct Unsure {
    gateways: Mutex<BTreeMap<AgentId, BTreeSet<CommandId>>>,
}

impl Unsure {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<AgentId, BTreeSet<CommandId>>> {
        // Nothing panics while it is held.
        self.gateways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody knows whether this gateway was revoked, and whether these ended with it.
    pub(super) fn lost(&self, agent_id: AgentId, open: impl IntoIterator<Item = CommandId>) {
        let mut gateways = self.lock();
        if gateways.len() < REMEMBERED || gateways.contains_key(&agent_id) {
            gateways.entry(agent_id).or_default().extend(open);
        }
    }

    /// Those of a gateway that is known to be revoked now; they are said once.
    pub(super) fn take(&self, agent_id: AgentId) -> BTreeSet<CommandId> {
        self.lock().remove(&agent_id).unwrap_or_default()
    }
}

/// How a command is told of that ended with its gateway, and not as the last of its run.
pub(super) fn settled(command: &Command) -> Settled {
    Settled {
        moved: true,
        command_id: command.command_id,
        agent_id: command.agent_id,
        run_id: command.run_id,
        state: command.state,
        run_finished: false,
        reason: command.reason.clone(),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_may_have_ended_is_taken_once() {
        let unsure = Unsure::default();
        let agent = |n| AgentId::from_uuid(Uuid::from_u128(n));
        let command = |n| CommandId::from_uuid(Uuid::from_u128(n));
        unsure.lost(agent(1), [command(1)]);
        unsure.lost(agent(1), [command(1), command(2)]);
        assert!(unsure.take(agent(2)).is_empty());
        assert_eq!(unsure.take(agent(1)), [command(1), command(2)].into());
        assert!(unsure.take(agent(1)).is_empty());
        for n in 0..=u128::try_from(REMEMBERED).unwrap() {
            unsure.lost(agent(n), [command(n)]);
        }
        assert!(unsure.take(agent(u128::try_from(REMEMBERED).unwrap())).is_empty());
        assert_eq!(unsure.take(agent(0)).len(), 1);
    }
}
