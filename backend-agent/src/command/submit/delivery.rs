//! The way of a run's commands to their gateways: at once where a session has kept room, by way of the queue otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;

use viworks_common::code::CloseCode;
use viworks_common::id::{AgentId, CommandId};
use viworks_common::ledger::lease::Place;

use crate::agent::shelf::Kept;
use crate::command::CommandNudge;
use crate::data::Offered;

/// Room that was kept for the commands of a run that is being submitted. What is not used goes back when it is dropped.
pub(super) struct Delivery {
    nudge: Arc<dyn CommandNudge>,
    kept: BTreeMap<AgentId, Kept>,
}

impl Delivery {
    pub(super) fn new(nudge: Arc<dyn CommandNudge>) -> Self {
        Self {
            nudge,
            kept: BTreeMap::new(),
        }
    }

    /// Keeps room in a gateway's session, if it has some.
    pub(super) fn keep(&mut self, agent_id: AgentId, with_timeout: bool) -> Option<Place> {
        let kept = self.nudge.keep(&agent_id, with_timeout)?;
        let place = kept.place();
        self.kept.insert(agent_id, kept);
        Some(place)
    }

    /// Ends the sessions that kept room: whether commands were offered to them is not known, and what follows the end
    /// of a session settles both.
    pub(super) fn give_up(self) {
        for kept in self.kept.into_values() {
            kept.end(CloseCode::Internal, "the answer to a commit was lost");
        }
    }

    /// Sends what was offered, and wakes dispatch for the others of `commands`.
    pub(super) fn deliver(mut self, offered: Vec<Offered>, commands: Vec<(AgentId, CommandId)>) {
        let mut waiting: BTreeMap<AgentId, CommandId> = commands.into_iter().collect();
        for offer in offered {
            waiting.remove(&offer.agent_id);
            if let Some(kept) = self.kept.remove(&offer.agent_id) {
                kept.put(offer.command);
            }
        }
        // First the room: whoever is woken needs it.
        self.kept.clear();
        for (agent_id, command_id) in waiting {
            self.nudge.offer(&agent_id, command_id);
        }
    }
}
