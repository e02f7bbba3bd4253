//! Commands that may have ended with something whose answer was lost: the revocation of their gateway, or a machine
//! that took its place. Whoever asked for it asks again, and is answered that it was done before: what ended with it
//! is not said a second time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use viworks_common::id::{AgentId, CommandId, RunId, Tenant};
use viworks_common::time::Timestamp;

use super::bus::RunBus;
use crate::data::{Command, Settled, Store, StoreResult};

/// Gateways of which that is remembered at once, the first of them; their commands are bounded by their queues.
const REMEMBERED: usize = 100;

/// By gateway, the commands that were not final before.
#[derive(Debug, Default)]
pub(crate) struct Unsure {
    gateways: Mutex<BTreeMap<AgentId, BTreeSet<CommandId>>>,
}

impl Unsure {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<AgentId, BTreeSet<CommandId>>> {
        // Nothing panics while it is held.
        self.gateways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody knows whether these commands of a gateway have ended. Whoever follows their runs looks.
    pub(crate) fn lost(
        &self,
        bus: &RunBus,
        agent_id: AgentId,
        open: impl IntoIterator<Item = (CommandId, RunId)>,
    ) {
        let open = open.into_iter().map(|(command_id, run_id)| {
            bus.look(run_id);
            command_id
        });
        self.keep(agent_id, open);
    }

    /// Remembers these for another time.
    pub(crate) fn keep(&self, agent_id: AgentId, open: impl IntoIterator<Item = CommandId>) {
        let open: BTreeSet<CommandId> = open.into_iter().collect();
        let mut gateways = self.lock();
        if gateways.len() < REMEMBERED || gateways.contains_key(&agent_id) {
            gateways.entry(agent_id).or_default().extend(open);
        }
    }

    /// The gateways of which something is remembered.
    pub(crate) fn gateways(&self) -> Vec<AgentId> {
        self.lock().keys().copied().collect()
    }

    /// Those of a gateway of which it is known now what became of it; they are said once.
    pub(crate) fn take(&self, agent_id: AgentId) -> BTreeSet<CommandId> {
        self.lock().remove(&agent_id).unwrap_or_default()
    }
}

/// Those of some commands that ended at one of these moments. The others were told of by whoever ended them.
///
/// # Errors
///
/// When the store cannot answer.
pub(crate) async fn ended_at(
    store: &dyn Store,
    tenant: &Tenant,
    commands: &BTreeSet<CommandId>,
    moments: &BTreeSet<Timestamp>,
) -> StoreResult<Vec<Settled>> {
    let mut ended = Vec::new();
    for command_id in commands {
        let found = store.command(tenant, *command_id).await?;
        let is_meant = |it: &Command| it.finished_at.is_some_and(|at| moments.contains(&at));
        ended.extend(found.filter(is_meant).as_ref().map(settled));
    }
    // A run that has ended did so with the last of its commands.
    let mut runs = BTreeSet::new();
    for settled in ended.iter_mut().rev() {
        if runs.insert(settled.run_id) {
            let run = store.run(tenant, settled.run_id).await?;
            settled.run_finished = run.is_some_and(|run| run.is_finished());
        }
    }
    Ok(ended)
}

/// How a command is told of that ended with its gateway, and not as the last of its run.
fn settled(command: &Command) -> Settled {
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
        unsure.keep(agent(1), [command(1)]);
        unsure.keep(agent(1), [command(1), command(2)]);
        assert!(unsure.take(agent(2)).is_empty());
        assert_eq!(unsure.take(agent(1)), [command(1), command(2)].into());
        assert!(unsure.take(agent(1)).is_empty());
        for n in 0..=u128::try_from(REMEMBERED).unwrap() {
            unsure.keep(agent(n), [command(n)]);
        }
        assert!(
            unsure
                .take(agent(u128::try_from(REMEMBERED).unwrap()))
                .is_empty()
        );
        assert_eq!(unsure.take(agent(0)).len(), 1);
    }
}
